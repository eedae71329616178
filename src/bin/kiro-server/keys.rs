//! `kiro-server keys …`: named client keys in a file or in Redis (R108, R109).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ArgMatches;
use jiff::{SignedDuration, Timestamp};
use kiro_messages::config::Config;
use kiro_messages::proto::record::client_key::{ClientKey, KeyDigest, is_key_name, parse_expiry};
use kiro_messages::proto::record::rfc3339;
use kiro_messages::store::client_key::KeyPlaces;
use serde_json::{Value, json};

use super::desk::Desk;
use super::output::{CommandFailure, relative, show, show_json, table};

/// What our keys begin with, so that a person or a scanner recognises a lost one.
const PREFIX: &str = "sk-kiro-";

/// Runs the named subcommand.
pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let file = options.get_one::<PathBuf>("file").or(config.api_keys_file.as_ref()).cloned();
    // The store stays connected as long as the place needs it.
    let (places, _desk) = match file {
        Some(path) => (KeyPlaces::File(path), None),
        None => {
            let desk = Desk::open(config).await?;
            let places = KeyPlaces::of(&desk.store).map_err(|error| CommandFailure::usage(error.to_string()))?;
            (places, Some(desk))
        }
    };
    match options.subcommand() {
        Some(("add", options)) => add(&places, options).await,
        Some(("list", options)) => list(&places, options).await,
        Some(("disable", options)) => switch(&places, options, false).await,
        Some(("enable", options)) => switch(&places, options, true).await,
        Some(("remove", options)) => remove(&places, options).await,
        _ => Err(CommandFailure::usage("keys: name what to do; see --help")),
    }
}

async fn add(places: &KeyPlaces, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let name = name(options);
    if !is_key_name(name) {
        return Err(CommandFailure::usage(
            "NAME: must be 1–64 characters of A–Z a–z 0–9 . _ @ -, begin with a letter or digit, and not be `other`",
        ));
    }
    let expires = options.get_one::<String>("expires").map(|text| end(text, Timestamp::now())).transpose()?;
    let text = new_key();
    let key = ClientKey {
        name: name.into(),
        digest: KeyDigest::of(&text),
        enabled: true,
        expires,
        max_inflight: options.get_one("max-inflight").copied(),
        rpm: options.get_one("rpm").copied(),
    };
    places.add(&key).await?;
    if options.get_flag("json") {
        let mut shown = shown(&key);
        shown["key"] = json!(text);
        shown["place"] = json!(places.name());
        show_json(&shown)?;
    } else {
        // The key alone on standard output: a script can take it.
        super::output::complain(format!(
            "the key {name}, which is shown only now; {} keeps its hash, and a running server takes it within 5 s",
            places.name()
        ));
        show(&format!("{text}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// 244 random bits.
fn new_key() -> String {
    let [a, b] = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|part| part.simple().to_string());
    [PREFIX, &a, &b].concat()
}

/// A time, or a number of days from now.
fn end(text: &str, now: Timestamp) -> Result<Timestamp, CommandFailure> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u16>().ok());
    let end = match days {
        Some(days) => now.checked_add(SignedDuration::from_hours(24 * i64::from(days))).ok(),
        None => parse_expiry(text).ok(),
    };
    match end {
        Some(end) if end > now => Ok(end),
        Some(_) => Err(CommandFailure::usage("--expires: is over already")),
        None => {
            Err(CommandFailure::usage("--expires: must be a time such as 2027-01-31T00:00:00Z, or days such as 90d"))
        }
    }
}

async fn list(places: &KeyPlaces, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let keys = places.read().await?;
    let now = Timestamp::now();
    if options.get_flag("json") {
        let all: Vec<Value> = keys.iter().map(shown).collect();
        show_json(&json!({ "place": places.name(), "keys": all }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if keys.is_empty() {
        show(&format!("no named keys in {}; `kiro-server keys add NAME` makes one\n", places.name()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let limit = |limit: Option<u32>| limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
    let mut rows = vec![["NAME", "STATE", "ENDS", "AT ONCE", "A MINUTE"].map(str::to_owned).to_vec()];
    rows.extend(keys.iter().map(|key| {
        vec![
            key.name.to_string(),
            key.standing(now).as_str().to_owned(),
            key.expires.map_or_else(|| "never".to_owned(), |end| relative(end, now)),
            limit(key.max_inflight),
            limit(key.rpm),
        ]
    }));
    let noun = if keys.len() == 1 { "key" } else { "keys" };
    show(&format!("{}\n{} {noun} in {}\n", table(&rows), keys.len(), places.name()))?;
    Ok(ExitCode::SUCCESS)
}

async fn switch(places: &KeyPlaces, options: &ArgMatches, enabled: bool) -> Result<ExitCode, CommandFailure> {
    let name = name(options);
    if !places.switch(name, enabled).await? {
        return Err(absent(places));
    }
    done(options, name, if enabled { "enabled" } else { "disabled" })
}

async fn remove(places: &KeyPlaces, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let name = name(options);
    if !places.remove(name).await? {
        return Err(absent(places));
    }
    done(options, name, "removed")
}

fn done(options: &ArgMatches, name: &str, what: &str) -> Result<ExitCode, CommandFailure> {
    if options.get_flag("json") {
        show_json(&json!({ "name": name, "done": what }))?;
    } else {
        show(&format!("key {name} {what}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn absent(places: &KeyPlaces) -> CommandFailure {
    CommandFailure::new(format!("no such key in {}; `kiro-server keys list` shows them", places.name()))
}

/// A key for machines, without its hash.
fn shown(key: &ClientKey) -> Value {
    json!({
        "name": key.name,
        "state": key.standing(Timestamp::now()).as_str(),
        "expires": key.expires.map(rfc3339),
        "max_inflight": key.max_inflight,
        "rpm": key.rpm,
    })
}

fn name(options: &ArgMatches) -> &str {
    options.get_one::<String>("name").map_or("", String::as_str)
}
