//! `accounts restore`: an account that another program wrote out of the pool comes back with its token record.

use std::process::ExitCode;

use clap::ArgMatches;
use jiff::Timestamp;
use kiro_messages::config::Config;
use kiro_messages::proto::record::{TokenKey, is_account_id};
use kiro_messages::store::{Added, NewAccount};
use serde_json::json;

use super::super::desk::{Desk, refuse_token_file};
use super::super::output::{CommandFailure, short, show, show_json};

/// The account record is made anew; the token record stays as it is.
pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    refuse_token_file(&config, "restored")?;
    let id = options.get_one::<String>("id").map_or("", String::as_str);
    if !is_account_id(id.as_bytes()) {
        return Err(CommandFailure::usage("restore: the account's whole id"));
    }
    let desk = Desk::open(config).await?;
    if desk.store.read_account(id).await?.is_some() {
        return Err(CommandFailure::new(format!("account {} is there", short(id))));
    }
    let now = Timestamp::now();
    let Some(token) = desk.store.read_token(&TokenKey::of(id), now).await? else {
        return Err(CommandFailure::new(format!("account {} has no token record any more: add it again", short(id))));
    };
    let new =
        NewAccount { id: id.to_owned(), custom_name: None, added_at: now, token: token.to_vec(), members: Vec::new() };
    if let Added::Duplicate { id: other } = desk.store.add_account(&new).await? {
        return Err(CommandFailure::new(format!("its login is there as account {}", short(&other))));
    }
    if options.get_flag("json") {
        show_json(&json!({ "id": short(id), "restored": true }))?;
    } else {
        show(&format!("account {} restored\n", short(id)))?;
    }
    desk.close().await?;
    Ok(ExitCode::SUCCESS)
}
