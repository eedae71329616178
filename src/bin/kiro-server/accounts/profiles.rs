//! `accounts profiles`: which profiles an account has, and which of them it uses (K79).

use std::process::ExitCode;

use clap::ArgMatches;
use kiro_messages::config::Config;
use kiro_messages::credentials::ListedProfile;
use kiro_messages::proto::kiro::profile::region_of;
use kiro_messages::proto::record::{Entry, patch};
use serde_json::json;

use super::super::desk::{Desk, DeskAccount, find};
use super::super::output::{CommandFailure, method, plain, short, show, show_json, table};

pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let desk = Desk::open(config).await?;
    let accounts = desk.accounts().await?;
    let entry = find(&accounts, options.get_one::<String>("id").map_or("", String::as_str))?;
    let id = short(&entry.raw.id).to_owned();
    if !entry.info.kind.has_profiles() {
        return Err(CommandFailure::new(format!(
            "account {id} is {}: Kiro keeps profiles for users of an organisation only",
            entry.info.kind.as_str()
        )));
    }
    let lease = desk.pool.visit(&entry.raw.id).map_err(|_| {
        let problem = entry.info.problem.as_deref().unwrap_or("it can't be used");
        CommandFailure::new(format!("account {id}: {problem}"))
    })?;
    let profiles = desk.credentials.profiles(&lease).await;
    let profiles =
        profiles.map_err(|fault| CommandFailure::new(format!("its profiles: {}", plain(&fault.message, 200))))?;
    drop(lease);
    let mut chosen = entry.token.as_ref().and_then(|token| token.profile_arn.clone());
    if let Some(arn) = options.get_one::<String>("set") {
        if !profiles.iter().any(|profile| *profile.arn == **arn) {
            return Err(CommandFailure::usage(format!(
                "--set: account {id} has no such profile; without it, they are listed"
            )));
        }
        set(&desk, entry, arn).await?;
        chosen = Some(arn.clone());
    }
    tell(entry, &profiles, chosen.as_deref(), options)?;
    desk.close().await?;
    Ok(if profiles.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn tell(
    entry: &DeskAccount,
    profiles: &[ListedProfile],
    chosen: Option<&str>,
    options: &ArgMatches,
) -> Result<(), CommandFailure> {
    let region = |profile: &ListedProfile| region_of(&profile.arn).unwrap_or("-").to_owned();
    let is_chosen = |profile: &ListedProfile| chosen == Some(&*profile.arn);
    if options.get_flag("json") {
        let profiles = profiles.iter().map(|profile| {
            json!({
                "arn": &*profile.arn, "name": profile.name, "region": region_of(&profile.arn), "in_record": is_chosen(profile),
            })
        });
        return show_json(&json!({
            "id": short(&entry.raw.id), "kind": entry.info.kind.as_str(), "profiles": profiles.collect::<Vec<_>>(),
        }));
    }
    show(&format!("account {}: {}\n", short(&entry.raw.id), method(&entry.info)))?;
    if profiles.is_empty() {
        return show("no profile: the organisation's administrator must add this user to one\n");
    }
    let mut rows = vec![["", "NAME", "REGION", "ARN"].map(str::to_owned).to_vec()];
    rows.extend(profiles.iter().map(|profile| {
        let mark = if is_chosen(profile) { "*" } else { "" };
        let name = profile.name.as_deref().map_or_else(|| "-".to_owned(), |name| plain(name, 40));
        vec![mark.to_owned(), name, region(profile), plain(&profile.arn, usize::MAX)]
    }));
    show(&table(&rows))?;
    show(match (profiles.len(), profiles.iter().any(is_chosen)) {
        (_, true) => "* is in its record; --set ARN writes another one\n",
        (1, false) => "the next request writes it into the account's record\n",
        (_, false) => "the first that serves a request is written into its record; --set ARN chooses\n",
    })
}

/// Writes the profile into the token record; every other byte stays.
async fn set(desk: &Desk, entry: &DeskAccount, arn: &str) -> Result<(), CommandFailure> {
    let gone = || CommandFailure::new("the account was removed meanwhile");
    let (key, old) = entry.raw.token.clone().ok_or_else(gone)?;
    let chosen = [Entry::ProfileArn(arn.to_owned())];
    let is_there = desk.store.edit_token(&key, old, |old| patch(old, &chosen)).await?;
    if is_there { Ok(()) } else { Err(gone()) }
}
