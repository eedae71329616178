//! `accounts list`.

use std::process::ExitCode;

use clap::ArgMatches;
use jiff::Timestamp;
use kiro_messages::config::{Config, StoreKind};
use kiro_messages::proto::record::{Method, Note, rfc3339};
use serde_json::{Value, json};

use super::super::desk::{Desk, DeskAccount};
use super::super::output::{CommandFailure, method, name, plain, relative, short, show, show_json, table};

/// A table or JSON of all accounts. An empty pool isn't a failure.
pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let desk = Desk::open(config).await?;
    let accounts = desk.accounts().await?;
    let now = Timestamp::now();
    if options.get_flag("json") {
        let list: Vec<Value> = accounts.iter().map(json_of).collect();
        let store = match desk.config.store {
            StoreKind::Redis => "redis",
            StoreKind::File(_) => "file",
            StoreKind::Aiclient(_) => "aiclient",
        };
        show_json(&json!({ "store": store, "pool": desk.store.pool_name(), "accounts": list }))?;
    } else if accounts.is_empty() {
        show(&format!("no accounts in {}; {}\n", desk.store.pool_name(), desk.config.store.cure()))?;
    } else {
        let head = ["ID", "NAME", "METHOD", "HEALTH", "TOKEN", "USES", "LAST USED", ""];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(accounts.iter().map(|entry| row(entry, now)));
        let served = accounts.iter().filter(|entry| entry.info.state.is_served()).count();
        let noun = if accounts.len() == 1 { "account" } else { "accounts" };
        show(&format!("{}\n{} {noun}, {served} in service\n", table(&rows), accounts.len()))?;
    }
    desk.close().await?;
    Ok(ExitCode::SUCCESS)
}

fn row(entry: &DeskAccount, now: Timestamp) -> Vec<String> {
    let info = &entry.info;
    let health = match info.state.until() {
        Some(until) => format!("{}, back {}", info.condition(), relative(until, now)),
        None => info.state.as_str().to_owned(),
    };
    let token = match (info.method, info.expires_at) {
        (Method::ApiKey, _) => "no expiry".to_owned(),
        (_, Some(end)) if end <= now => format!("expired {}", relative(end, now)),
        (_, Some(end)) => format!("ends {}", relative(end, now)),
        (_, None) => "-".to_owned(),
    };
    let account = entry.account.as_ref();
    let used = account.and_then(|account| account.last_used);
    vec![
        short(&info.id).to_owned(),
        name(info.name.as_deref()),
        method(info),
        health,
        token,
        account.map_or_else(|| "-".to_owned(), |account| account.usage_count.to_string()),
        used.map_or_else(|| "never".to_owned(), |used| relative(used, now)),
        why(entry).or_else(|| registration(entry, now)).unwrap_or_default(),
    ]
}

fn json_of(entry: &DeskAccount) -> Value {
    let (info, account) = (&entry.info, entry.account.as_ref());
    let mut json = info.json();
    json["reason"] = json!(why(entry));
    json["expires_at"] = json!(info.expires_at.map(rfc3339));
    json["registration_expires_at"] = json!(info.registration_expires_at.map(rfc3339));
    json["uses"] = json!(account.map(|account| account.usage_count));
    json["errors"] = json!(account.map(|account| account.standing.error_count));
    json["last_used"] = json!(account.and_then(|account| account.last_used).map(rfc3339));
    json
}

/// The note that a client registration ends (K99).
fn registration(entry: &DeskAccount, now: Timestamp) -> Option<String> {
    let end = entry.info.registration_soon(now)?;
    let verb = if end <= now { "ended" } else { "ends" };
    Some(format!("client registration {verb} {}: sign in again", relative(end, now)))
}

/// Why an account is not in service. Another program's text is not repeated (R6).
fn why(entry: &DeskAccount) -> Option<String> {
    if let Some(problem) = &entry.info.problem {
        return Some(problem.clone());
    }
    if entry.info.state == kiro_messages::policy::health::HealthState::Unusable {
        return Some("no credential".to_owned());
    }
    match entry.account.as_ref()?.standing.mark()? {
        Note::CoolDown { cause, .. } | Note::Quota { cause, .. } | Note::Ejected { cause } => {
            Some(plain(cause, 100)).filter(|_| !entry.info.state.is_served())
        }
        Note::Plain(_) => None,
    }
}
