//! `accounts restore`: an account that another program dropped from the pool comes back with its token record.

use std::process::ExitCode;

use clap::ArgMatches;
use jiff::Timestamp;
use kiro_messages::config::Config;
use kiro_messages::proto::record::TokenKey;
use kiro_messages::store::{Added, NewAccount};
use serde_json::json;

use super::super::desk::{Desk, MIN_PREFIX, refuse_fixed_store};
use super::super::output::{CommandFailure, short, show, show_json};

/// The account record is made anew; the token record stays as it is.
pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    refuse_fixed_store(&config, "restored")?;
    let named = options.get_one::<String>("id").map_or("", String::as_str);
    let desk = Desk::open(config).await?;
    let id = orphan(&desk, named).await?;
    let now = Timestamp::now();
    let Some(token) = desk.store.read_token(&TokenKey::of(&id), now).await? else {
        return Err(CommandFailure::new(format!("account {} has no token record any more: add it again", short(&id))));
    };
    let new =
        NewAccount { id: id.clone(), custom_name: None, added_at: now, token: token.to_vec(), members: Vec::new() };
    if let Added::Duplicate { id: other } = desk.store.add_account(&new).await? {
        return Err(CommandFailure::new(format!("its login is there as account {}", short(&other))));
    }
    if options.get_flag("json") {
        show_json(&json!({ "id": short(&id), "restored": true }))?;
    } else {
        show(&format!("account {} restored\n", short(&id)))?;
    }
    desk.close().await?;
    Ok(ExitCode::SUCCESS)
}

/// The whole id that a prefix of at least 4 characters names.
async fn orphan(desk: &Desk, named: &str) -> Result<String, CommandFailure> {
    if named.chars().count() < MIN_PREFIX {
        return Err(CommandFailure::usage(format!(
            "restore: the account's id, or at least its first {MIN_PREFIX} characters"
        )));
    }
    if desk.store.load().await?.iter().any(|account| account.id.starts_with(named)) {
        return Err(CommandFailure::new(format!("account {} is there", short(named))));
    }
    let found: Vec<_> = match desk.store.orphans().await {
        Ok(orphans) => orphans.into_iter().filter(|id| id.starts_with(named)).collect(),
        // Keys can't be listed there: then it must be the whole id.
        Err(_) => vec![named.to_owned()],
    };
    match <[String; 1]>::try_from(found) {
        Ok([id]) => Ok(id),
        Err(none) if none.is_empty() => {
            Err(CommandFailure::new(format!("account {} has no token record any more: add it again", short(named))))
        }
        Err(more) => Err(CommandFailure::new(format!("{} accounts begin with that; give more characters", more.len()))),
    }
}
