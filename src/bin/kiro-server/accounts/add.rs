//! `accounts add`: sessions of other programs become accounts (R62, R78).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ArgMatches;
use jiff::Timestamp;
use kiro_messages::accounts::ProfileSource;
use kiro_messages::accounts::import::{
    Choice, Import, ImportError, ImportResult, Imported, checked_name, of_vanished, vanished,
};
use kiro_messages::accounts::source::{Reading, gather};
use kiro_messages::config::Config;
use kiro_messages::proto::record::Method;

use super::super::desk::{Desk, refuse_service_pool};
use super::super::output::{CommandFailure, name, plain, relative, short, show, show_json};
use super::super::stops::{STOPPED, Stops};
use super::database;

/// Longest name of an account in its source, and longest reason, that are shown.
const LONGEST_LABEL: usize = 100;
const LONGEST_REASON: usize = 1_000;

pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let path = |name: &str| options.get_one::<PathBuf>(name).map(PathBuf::as_path);
    let flag = |name: &str| options.get_flag(name);
    refuse_service_pool(&config, "added")?;
    let now = Timestamp::now();
    let reading = Reading { base: path("base"), now, database: Some(database::read) };
    let name = options.get_one::<String>("name").map(|name| checked_name(name)).transpose();
    let choice = Choice {
        only: options.get_one::<usize>("only").copied(),
        key: options.get_one::<String>("key").map(String::as_str),
        name: name.map_err(|error| CommandFailure::usage(format!("--name: {error}")))?,
        dry: flag("dry-run"),
        offline: flag("offline"),
    };
    // A signal doesn't end it within: the private copy of a database would be left behind.
    let mut stops = Stops::catch().map_err(|error| CommandFailure::new(format!("signals: {error}")))?;
    let gathered = gather(path("from"), reading).map_err(CommandFailure::new)?;
    let import = Import::prepare(gathered, choice, &config, now).map_err(|error| match error {
        ImportError::Usage(error) => CommandFailure::usage(format!("--name: {error}, with --only or --key")),
        ImportError::Failed(error) => CommandFailure::new(error),
    })?;
    let (dry, offline, json) = (flag("dry-run"), flag("offline"), flag("json"));
    let done = stops.unless(add(config, import, now, (dry || offline, json))).await;
    done.unwrap_or(Ok(ExitCode::from(STOPPED)))
}

/// Puts the accounts into the store. `is_last`: nothing is checked again afterwards.
async fn add(
    config: Config,
    import: Import,
    now: Timestamp,
    (is_last, json): (bool, bool),
) -> Result<ExitCode, CommandFailure> {
    let is_single = import.is_single();
    let desk = Desk::open(config).await?;
    let mut imported = import
        .add(desk.intake(), |label, report| match json {
            true => Ok(()),
            false => show(&line(label, report, is_single, now)),
        })
        .await?;
    let vanished = if is_last { Vec::new() } else { vanished(desk.intake(), &imported.ids()).await? };
    imported.notes.extend(vanished.iter().map(|id| of_vanished(id)));
    tell(&imported, json)?;
    desk.close().await?;
    let [added, _, failed] = imported.counts();
    let is_done = added > 0 && failed == 0 && vanished.is_empty();
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An account's line, and its warnings below it.
fn line(label: &str, report: &ImportResult, is_single: bool, now: Timestamp) -> String {
    let label = plain(label, LONGEST_LABEL);
    let account = match report {
        ImportResult::Duplicate(id) if is_single => {
            return format!("already there as account {}: nothing was added\n", short(id));
        }
        ImportResult::Duplicate(id) => return format!("{label}: already there as account {}\n", short(id)),
        ImportResult::Failed(why) => return format!("{label}: not added: {}\n", plain(why, LONGEST_REASON)),
        ImportResult::Added(account) => account,
    };
    let method = account.token.method();
    let end = match (method, account.token.expires_at) {
        (Method::ApiKey, _) => "no expiry".to_owned(),
        (_, Some(end)) if end <= now => format!("access token expired {}", relative(end, now)),
        (_, Some(end)) => format!("access token ends {}", relative(end, now)),
        (_, None) => "access token expired".to_owned(),
    };
    let profile = match (account.profile, account.profile.advice()) {
        (ProfileSource::Found, _) => ", profile found".to_owned(),
        (_, Some(advice)) => format!(", {advice}"),
        (_, None) => String::new(),
    };
    let name = name(account.shown_name());
    let done = match &account.id {
        Some(id) => format!("added account {} ({name})", short(id)),
        None => format!("would add {label} ({name})"),
    };
    let mut text = format!("{done}: {}, {end}{profile}\n", method.as_str());
    for warning in &account.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}

fn tell(imported: &Imported, json: bool) -> Result<(), CommandFailure> {
    if json {
        return show_json(&imported.json());
    }
    for note in &imported.notes {
        show(&format!("note: {note}\n"))?;
    }
    if !imported.is_single {
        let [added, duplicates, failed] = imported.counts();
        let verb = if imported.dry { "would be added" } else { "added" };
        show(&format!("{added} {verb}, {duplicates} already there, {failed} failed\n"))?;
    }
    Ok(())
}
