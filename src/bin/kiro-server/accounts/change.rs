//! `accounts disable`, `enable` and `remove`.

use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use kiro_messages::config::{Config, StoreKind};
use kiro_messages::policy::health::HealthState;
use kiro_messages::proto::record::Entry as Field;
use serde_json::json;

use super::super::desk::{Desk, find, refuse_fixed_store};
use super::super::output::{CommandFailure, name, short, show, show_json};

/// A Node.js service writes its memory back within this time (E4).
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// `isDisabled: true`.
pub async fn disable(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    patch(config, options, "disabled", |_| vec![Field::IsDisabled(true)]).await
}

/// Enables an account and lifts its mark (cool-down, quota, ejection), as the Node.js service's UI does (R15): a person
/// who enables an account wants it tried.
pub async fn enable(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    patch(config, options, "enabled", |is_marked| {
        let mut fields = vec![Field::IsDisabled(false)];
        if is_marked {
            fields.extend(Field::NO_MARK);
        }
        fields
    })
    .await
}

async fn patch(
    config: Config,
    options: &ArgMatches,
    done: &str,
    fields: impl FnOnce(bool) -> Vec<Field>,
) -> Result<ExitCode, CommandFailure> {
    refuse_fixed_store(&config, done)?;
    let desk = Desk::open(config).await?;
    let accounts = desk.accounts().await?;
    let entry = find(&accounts, id(options))?;
    let Some(account) = &entry.account else {
        let problem = entry.info.problem.as_deref().unwrap_or("its record can't be read");
        return Err(CommandFailure::new(format!("account {}: {problem}", short(&entry.raw.id))));
    };
    let was = entry.info.state;
    if !desk.store.patch_account(&entry.raw.id, &fields(!account.standing.healthy)).await? {
        return Err(gone());
    }
    let after = desk.accounts().await?;
    let now = find(&after, &entry.raw.id)?.info.state;
    if options.get_flag("json") {
        show_json(&json!({ "id": short(&entry.raw.id), "was": was.as_str(), "state": now.as_str() }))?;
    } else {
        let change = if was == now {
            format!("{} as before", now.as_str())
        } else {
            format!("{}, was {}", now.as_str(), was.as_str())
        };
        let hint = match now {
            HealthState::Unusable => "; `kiro-server doctor` says why",
            _ => "",
        };
        let (id, name) = (short(&entry.raw.id), name(entry.info.name.as_deref()));
        show(&format!("account {id} ({name}) {done}: {change}{hint}\n"))?;
    }
    desk.close().await?;
    Ok(ExitCode::SUCCESS)
}

/// Removes account, token and index; with Redis it checks again afterwards (E4).
pub async fn remove(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    refuse_fixed_store(&config, "removed")?;
    let desk = Desk::open(config).await?;
    let accounts = desk.accounts().await?;
    let entry = find(&accounts, id(options))?;
    let (id, name) = (entry.raw.id.as_str(), name(entry.info.name.as_deref()));
    if !desk.store.remove_account(id).await? {
        return Err(gone());
    }
    let came_back = match desk.config.store {
        StoreKind::File(_) | StoreKind::Aiclient(_) => false,
        StoreKind::Redis => {
            tokio::time::sleep(LOOK_AGAIN).await;
            desk.store.read_account(id).await?.is_some()
        }
    };
    if options.get_flag("json") {
        show_json(&json!({ "id": short(id), "removed": !came_back, "came_back": came_back }))?;
    } else if came_back {
        show(&format!(
            "account {} ({name}) was removed and came back: a Node.js service has it in memory and wrote it back, without its \
             token. Remove it there, in its UI, and here once more\n",
            short(id)
        ))?;
    } else {
        show(&format!("account {} ({name}) removed, with its tokens\n", short(id)))?;
    }
    desk.close().await?;
    Ok(if came_back { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn id(options: &ArgMatches) -> &str {
    options.get_one::<String>("id").map_or("", String::as_str)
}

fn gone() -> CommandFailure {
    CommandFailure::new("the account was removed meanwhile")
}
