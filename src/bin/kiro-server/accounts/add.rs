//! `accounts add`: sessions of other programs become accounts (R62, R78).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use jiff::Timestamp;
use kiro_messages::config::{Config, StoreKind};
use kiro_messages::credentials::LookUp;
use kiro_messages::pool::Wanted;
use kiro_messages::proto::record::import::{Checked, FoundAccount, ImportedAccount, check};
use kiro_messages::proto::record::{Method, Token, TokenKey, is_account_id, rfc3339};
use kiro_messages::store::{Added, NewAccount};
use serde_json::{Value, json};

use super::super::desk::Desk;
use super::super::doctor::truncated;
use super::super::output::{CommandFailure, relative, short, show, show_json};
use super::name;
use super::source::{self, Gathered};

const MAX_NAME: usize = 100;
/// When a program that keeps the pool in memory may have written it back without what was added.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(8)];

pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let path = |name: &str| options.get_one::<PathBuf>(name).map(PathBuf::as_path);
    let custom_name = options.get_one::<String>("name").map(|name| checked_name(name)).transpose()?;
    let now = Timestamp::now();
    let gathered = source::gather(path("from"), path("base"), now)?;
    let Gathered { found, is_single, is_shared, notes } = gathered;
    let found = chosen(found, options)?;
    if custom_name.is_some() && found.len() > 1 {
        return Err(CommandFailure::usage("--name: there is more than one account; --only or --key picks one"));
    }
    let count = found.len();
    let mut ready = Vec::new();
    for (label, found) in found {
        let checked = found.taken.and_then(|taken| prepare(taken, &config, now));
        match checked {
            Err(why) if is_single => return Err(CommandFailure::new(format!("{label}: {why}"))),
            checked => ready.push((label, checked)),
        }
    }

    let desk = Desk::open(config).await?;
    let options = Options {
        dry: options.get_flag("dry-run"),
        offline: options.get_flag("offline"),
        // Many at once would be many questions at once: the server asks one a second (K79).
        asks: count == 1 && !options.get_flag("offline"),
        json: options.get_flag("json"),
        now,
    };
    let mut known = StoredAccounts::of(&desk).await?;
    let mut reports = Vec::new();
    for (label, checked) in ready {
        let report = match checked {
            Ok((taken, checked)) => {
                let named = custom_name.clone().or_else(|| taken.name.clone());
                add(&desk, &mut known, taken, checked, named, &options).await?
            }
            Err(why) => Report::Failed(why),
        };
        if !options.json {
            show(&line(&label, &report, is_single, now))?;
        }
        reports.push((label, report));
    }
    let vanished = if options.dry || options.offline { Vec::new() } else { vanished(&desk, &reports).await? };
    let outcome = Outcome { is_single, is_shared, notes, vanished };
    let code = outcome.tell(&reports, &options)?;
    desk.close().await?;
    Ok(code)
}

struct Options {
    dry: bool,
    offline: bool,
    asks: bool,
    json: bool,
    now: Timestamp,
}

/// The accounts that `--only` and `--key` leave, each with what it is called.
fn chosen(found: Vec<FoundAccount>, options: &ArgMatches) -> Result<Vec<(String, FoundAccount)>, CommandFailure> {
    let only = options.get_one::<usize>("only").copied();
    let key = options.get_one::<String>("key");
    let all = found.len();
    let named = found
        .into_iter()
        .enumerate()
        .filter(|(at, found)| only.is_none_or(|only| only == at + 1) && key.is_none_or(|key| *key == found.label));
    let named: Vec<_> = named.map(|(at, found)| (source::shown(&found.label, at), found)).collect();
    if named.is_empty() {
        return Err(CommandFailure::new(format!("none of the {all} accounts is that one")));
    }
    Ok(named)
}

fn prepare(taken: ImportedAccount, config: &Config, now: Timestamp) -> Result<(ImportedAccount, Checked), String> {
    let mut checked = check(taken.token.clone(), &config.external_idp_hosts, now)?;
    if let Some(refresh_token) = &checked.token.refresh_token {
        // A provider's own tokens may be short (R86).
        let short_one = truncated(refresh_token, config).filter(|_| checked.token.method() != Method::External);
        checked.warnings.extend(short_one);
    } else if checked.token.method() != Method::ApiKey {
        checked.warnings.push("it has no refresh token: it serves until its access token ends".to_owned());
    }
    Ok((taken, checked))
}

/// What the store had before, and what came in since.
struct StoredAccounts {
    ids: HashSet<String>,
    credentials: HashMap<String, String>,
}

impl StoredAccounts {
    async fn of(desk: &Desk) -> Result<Self, CommandFailure> {
        let mut known = Self { ids: HashSet::new(), credentials: HashMap::new() };
        for account in desk.store.load().await? {
            if let Some(token) = account.token.as_ref().and_then(|(_, record)| Token::parse(record).ok()) {
                known.keep(&account.id, &token);
            }
            known.ids.insert(account.id);
        }
        Ok(known)
    }

    fn keep(&mut self, id: &str, token: &Token) {
        for secret in [&token.refresh_token, &token.kiro_api_key].into_iter().flatten() {
            self.credentials.insert(secret.expose().to_owned(), id.to_owned());
        }
        self.ids.insert(id.to_owned());
    }

    fn duplicate_of(&self, token: &Token) -> Option<String> {
        let secrets = [&token.refresh_token, &token.kiro_api_key];
        secrets.into_iter().flatten().find_map(|secret| self.credentials.get(secret.expose()).cloned())
    }
}

/// What came of one account.
enum Report {
    Added(AddedAccount),
    Duplicate(String),
    Failed(String),
}

struct AddedAccount {
    /// None: it would be added.
    id: Option<String>,
    name: Option<String>,
    token: Token,
    profile: ProfileSource,
    warnings: Vec<String>,
}

async fn add(
    desk: &Desk,
    known: &mut StoredAccounts,
    taken: ImportedAccount,
    checked: Checked,
    name: Option<String>,
    options: &Options,
) -> Result<Report, CommandFailure> {
    let Checked { record, token, warnings } = checked;
    if let Some(id) = known.duplicate_of(&token) {
        return Ok(Report::Duplicate(id));
    }
    let id = match taken.id.filter(|id| is_account_id(id.as_bytes()) && !known.ids.contains(id)) {
        // A token record without an account may be a newer one of this login: it is left alone.
        Some(id) if desk.store.read_token(&TokenKey::of(&id), options.now).await?.is_none() => id,
        _ => uuid::Uuid::new_v4().to_string(),
    };
    if options.dry {
        known.keep(&id, &token);
        let profile = profile_of(&token);
        return Ok(Report::Added(AddedAccount { id: None, name, token, profile, warnings }));
    }
    let new = NewAccount {
        id: id.clone(),
        custom_name: name.clone(),
        added_at: options.now,
        token: record,
        members: taken.members,
    };
    if let Added::Duplicate { id } = desk.store.add_account(&new).await? {
        return Ok(Report::Duplicate(id));
    }
    known.keep(&id, &token);
    let profile = if options.asks { look_up(desk, &id, &token, options.now).await } else { profile_of(&token) };
    Ok(Report::Added(AddedAccount { id: Some(id), name, token, profile, warnings }))
}

/// The whole ids of added accounts that another program has written out of the pool meanwhile.
async fn vanished(desk: &Desk, reports: &[(String, Report)]) -> Result<Vec<String>, CommandFailure> {
    let ids = reports.iter().filter_map(|(_, report)| match report {
        Report::Added(account) => account.id.clone(),
        Report::Duplicate(_) | Report::Failed(_) => None,
    });
    let ids: Vec<String> = ids.collect();
    if ids.is_empty() || matches!(desk.config.store, StoreKind::File(_)) {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
    for wait in LOOK_AGAIN {
        tokio::time::sleep(wait).await;
        let there = desk.store.read_accounts(&names).await?;
        let gone: Vec<_> =
            ids.iter().zip(&there).filter(|(_, found)| found.is_none()).map(|(id, _)| id.clone()).collect();
        if !gone.is_empty() {
            return Ok(gone);
        }
    }
    Ok(Vec::new())
}

/// An account's line, and its warnings below it.
fn line(label: &str, report: &Report, is_single: bool, now: Timestamp) -> String {
    let account = match report {
        Report::Duplicate(id) if is_single => {
            return format!("already there as account {}: nothing was added\n", short(id));
        }
        Report::Duplicate(id) => return format!("{label}: already there as account {}\n", short(id)),
        Report::Failed(why) => return format!("{label}: not added: {why}\n"),
        Report::Added(account) => account,
    };
    let method = account.token.method();
    let end = match (method, account.token.expires_at) {
        (Method::ApiKey, _) => "no expiry".to_owned(),
        (_, Some(end)) if end <= now => format!("access token expired {}", relative(end, now)),
        (_, Some(end)) => format!("access token ends {}", relative(end, now)),
        (_, None) => "access token expired".to_owned(),
    };
    let profile = match account.profile {
        ProfileSource::Known | ProfileSource::Unneeded => "",
        ProfileSource::Found => ", profile found",
        ProfileSource::None => ", no profile found: the organisation's administrator must add this user to one",
        ProfileSource::Skipped => ", profile not looked up yet: `kiro-server accounts check` does it",
    };
    // A mail address is a name for lists, where its owner looks; here it could end in a log.
    let name = name(account.name.as_deref().filter(|name| !name.contains('@')));
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

/// What is said of all of them.
struct Outcome {
    is_single: bool,
    is_shared: bool,
    notes: Vec<String>,
    vanished: Vec<String>,
}

impl Outcome {
    fn tell(mut self, reports: &[(String, Report)], options: &Options) -> Result<ExitCode, CommandFailure> {
        let count = |is: fn(&Report) -> bool| reports.iter().filter(|(_, report)| is(report)).count();
        let added = count(|report| matches!(report, Report::Added(_)));
        let duplicates = count(|report| matches!(report, Report::Duplicate(_)));
        let failed = count(|report| matches!(report, Report::Failed(_)));
        if self.is_shared && added > 0 && !self.is_single {
            self.notes.push(
                "these sessions are shared with the program that made them: whoever renews a refresh token first may log \
                 the other out"
                    .to_owned(),
            );
        }
        for id in &self.vanished {
            self.notes.push(format!(
                "account {} is gone again: a Node.js service that has the pool in memory wrote it back without it. Let that \
                 service reload its pool, or restart it, then `kiro-server accounts restore {id}`",
                short(id)
            ));
        }
        match reports {
            _ if !options.json => {
                for note in &self.notes {
                    show(&format!("note: {note}\n"))?;
                }
                if !self.is_single {
                    let verb = if options.dry { "would be added" } else { "added" };
                    show(&format!("{added} {verb}, {duplicates} already there, {failed} failed\n"))?;
                }
            }
            [(_, report)] if self.is_single => show_json(&object(report, &self.notes))?,
            _ => {
                let accounts = reports.iter().map(|(label, report)| {
                    let mut account = object(report, &[]);
                    account["source"] = json!(label);
                    account
                });
                show_json(&json!({
                    "accounts": accounts.collect::<Vec<_>>(),
                    "added": if options.dry { 0 } else { added },
                    "duplicates": duplicates,
                    "failed": failed,
                    "warnings": self.notes,
                }))?;
            }
        }
        let is_done = added > 0 && failed == 0 && self.vanished.is_empty();
        Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn object(report: &Report, notes: &[String]) -> Value {
    match report {
        Report::Failed(why) => json!({ "added": false, "error": why }),
        Report::Duplicate(id) => json!({ "added": false, "id": id, "duplicate": true }),
        Report::Added(account) => {
            let method = account.token.method();
            let name = account.name.as_deref().filter(|name| !name.contains('@'));
            let mut value = json!({
                "added": account.id.is_some(),
                "id": account.id,
                "name": name,
                "method": method.as_str(),
                "expires_at": account.token.expires_at.filter(|_| method != Method::ApiKey).map(rfc3339),
                "profile": account.profile,
                "warnings": account.warnings.iter().chain(notes).collect::<Vec<_>>(),
            });
            if account.id.is_none() {
                value["would_add"] = json!(true);
            }
            value
        }
    }
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

pub fn checked_name(name: &str) -> Result<String, CommandFailure> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(CommandFailure::usage(format!("--name: 1 to {MAX_NAME} printable characters")));
    }
    Ok(name.to_owned())
}
