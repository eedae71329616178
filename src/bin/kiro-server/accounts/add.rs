//! `accounts add`: a token file of the Kiro IDE or CLI becomes an account (R62, R69).

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ArgMatches;
use jiff::Timestamp;
use kiro_messages::config::Config;
use kiro_messages::credentials::LookUp;
use kiro_messages::pool::Wanted;
use kiro_messages::proto::record::{Method, Token, rfc3339};
use kiro_messages::store::{Added, NewAccount, StoreError, import};
use serde_json::json;

use super::super::desk::Desk;
use super::super::doctor::truncated;
use super::super::output::{CommandFailure, relative, short, show, show_json};
use super::name;

/// Where the Kiro IDE and CLI keep their token, below the home folder.
const DEFAULT_FILE: &str = ".aws/sso/cache/kiro-auth-token.json";
/// How a SQLite database begins.
const SQLITE: &[u8] = b"SQLite format 3\0";
const MAX_NAME: usize = 100;

pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let path = match options.get_one::<PathBuf>("from") {
        Some(path) => path.clone(),
        None => default_file()?,
    };
    let custom_name = options.get_one::<String>("name").map(|name| checked_name(name)).transpose()?;
    refuse_sqlite(&path)?;
    let now = Timestamp::now();
    let imported = import(&path, now).map_err(|error| of_file(&error))?;
    let token =
        Token::parse(&imported.token).map_err(|error| CommandFailure::new(format!("{}: {error}", path.display())))?;
    let mut warnings = Vec::new();
    if let Some(refresh_token) = &token.refresh_token {
        warnings.extend(truncated(refresh_token, &config));
    } else if imported.method != Method::ApiKey {
        warnings.push("it has no refresh token: it serves until its access token ends".to_owned());
    }

    let desk = Desk::open(config).await?;
    let new = NewAccount {
        id: uuid::Uuid::new_v4().to_string(),
        custom_name: custom_name.clone(),
        added_at: now,
        token: imported.token,
    };
    let added = desk.store.add_account(&new).await?;
    if let Added::Duplicate { id } = added {
        if options.get_flag("json") {
            show_json(&json!({ "added": false, "id": id, "duplicate": true }))?;
        } else {
            show(&format!("already there as account {}: nothing was added\n", short(&id)))?;
        }
        desk.close().await?;
        return Ok(ExitCode::FAILURE);
    }
    let profile =
        if options.get_flag("offline") { profile_of(&token) } else { look_up(&desk, &new.id, &token, now).await };
    if options.get_flag("json") {
        show_json(&json!({
            "added": true,
            "id": new.id,
            "name": custom_name,
            "method": imported.method.as_str(),
            "expires_at": token.expires_at.filter(|_| imported.method != Method::ApiKey).map(rfc3339),
            "profile": profile,
            "warnings": warnings,
        }))?;
    } else {
        let end = match (imported.method, token.expires_at) {
            (Method::ApiKey, _) => "no expiry".to_owned(),
            (_, Some(end)) if end <= now => format!("access token expired {}", relative(end, now)),
            (_, Some(end)) => format!("access token ends {}", relative(end, now)),
            (_, None) => "access token expired".to_owned(),
        };
        let profile = match profile {
            ProfileSource::Known | ProfileSource::Unneeded => "",
            ProfileSource::Found => ", profile found",
            ProfileSource::None => ", no profile found: the organisation's administrator must add this user to one",
            ProfileSource::Skipped => ", profile not looked up yet: `kiro-server accounts check` does it",
        };
        let (id, name, method) = (short(&new.id), name(custom_name.as_deref()), imported.method.as_str());
        show(&format!("added account {id} ({name}): {method}, {end}{profile}\n"))?;
        for warning in &warnings {
            show(&format!("warning: {warning}\n"))?;
        }
    }
    desk.close().await?;
    Ok(ExitCode::SUCCESS)
}

/// What is known of the account's profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum ProfileSource {
    /// The file names it.
    Known,
    /// An API key goes without; a Builder ID, a Google and a GitHub account use Kiro's fixed one.
    Unneeded,
    /// Upstream named it, and it is in the token record.
    Found,
    /// Upstream named none, or did not answer.
    None,
    /// Not asked: `--offline`, or the access token has expired. A refresh here would log Kiro out for nothing.
    Skipped,
}

fn profile_of(token: &Token) -> ProfileSource {
    match (token.method(), &token.profile_arn) {
        (Method::ApiKey, _) => ProfileSource::Unneeded,
        (_, Some(_)) => ProfileSource::Known,
        (_, None) => ProfileSource::Skipped,
    }
}

/// K79: by `accounts add`, once.
async fn look_up(desk: &Desk, id: &str, token: &Token, now: Timestamp) -> ProfileSource {
    let profile = profile_of(token);
    let soon = now.as_second() + 60;
    let live = token.access_token.is_some() && token.expires_at.is_some_and(|end| end.as_second() > soon);
    if profile != ProfileSource::Skipped || !live || desk.pool.reload().await.is_err() {
        return profile;
    }
    let Ok(mut lease) = desk.pool.select(&Wanted { only: Some(id), ..Wanted::default() }) else { return profile };
    match desk.credentials.look_up_profiles(&mut lease).await {
        LookUp::Found => ProfileSource::Found,
        // The background may have asked by now.
        LookUp::NotAsked if lease.account().has_own_profile() => ProfileSource::Found,
        LookUp::BuilderId | LookUp::NotAsked => ProfileSource::Unneeded,
        LookUp::Nothing | LookUp::Unanswered => ProfileSource::None,
    }
}

fn default_file() -> Result<PathBuf, CommandFailure> {
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let home = home
        .ok_or_else(|| CommandFailure::usage("there is no home folder to look in: name the token file with --from"))?;
    Ok(home.join(DEFAULT_FILE))
}

pub fn checked_name(name: &str) -> Result<String, CommandFailure> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(CommandFailure::usage(format!("--name: 1 to {MAX_NAME} printable characters")));
    }
    Ok(name.to_owned())
}

/// R69: only JSON token files can be read.
fn refuse_sqlite(path: &Path) -> Result<(), CommandFailure> {
    let mut head = Vec::new();
    // Reading it reports a file that can't be opened.
    if let Ok(file) = std::fs::File::open(path) {
        let read = file.take(SQLITE.len() as u64).read_to_end(&mut head);
        read.map_err(|error| CommandFailure::new(format!("{}: {error}", path.display())))?;
    }
    if head == SQLITE {
        return Err(CommandFailure::new(format!(
            "{} is a SQLite database: only JSON token files can be read, such as ~/{DEFAULT_FILE}",
            path.display()
        )));
    }
    Ok(())
}

/// The error of a file that is no store: without the word that says so.
fn of_file(error: &StoreError) -> CommandFailure {
    let text = error.to_string();
    CommandFailure::new(text.split_once(": ").map_or(text.clone(), |(_, detail)| detail.to_owned()))
}
