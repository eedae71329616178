//! `doctor`: configuration, store, accounts and upstream, one line each, with the cure.
//!
//! It changes nothing. Upstream is asked whether it answers, and for the usage, the models and the tools of one account
//! in each API region: whether it still takes our client version is seen nowhere else (K108).

pub mod faults;
pub mod live;
pub mod probe;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use futures_util::stream::{self, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use kiro_messages::accounts::import::truncated;
use kiro_messages::config::{
    Config, RawConfig, Source, StoreKind, UpstreamKind, is_below_floor, parse_version, without_secrets,
};
use kiro_messages::files;
use kiro_messages::gateway::Webhook;
use kiro_messages::policy::health::HealthState;
use kiro_messages::pool::Lease;
use kiro_messages::proto::address::{ALLOWED, endpoint, origin};
use kiro_messages::proto::kiro::client_identity;
use kiro_messages::proto::kiro::fault::FaultKind;
use kiro_messages::proto::kiro::profile::AccountKind;
use kiro_messages::proto::kiro::route::{Operation, Shape};
use kiro_messages::proto::record::client_key::KeyStanding;
use kiro_messages::proto::record::{Account, DEFAULT_REGION, Method, Note, Object, RECORD, Token, is_region};
use kiro_messages::proto::translate::model::Models;
use kiro_messages::secret::Secret;
use kiro_messages::store::client_key::KeyPlaces;
use kiro_messages::store::{Status, StoreError, StoreErrorKind, TokenKey};
use kiro_messages::upstream::Upstream;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::desk::{Desk, DeskAccount, is_token_file};
use super::output::{CommandFailure, innermost, method, number, plain, relative, short, show, show_json, table};
use super::survey::{Search, Silence, Survey};

/// An address that takes longer to answer is out of reach.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
const AT_A_TIME: usize = 8;
/// A client identity that was last checked longer ago may be out of date (K108).
const STALE_DAYS: i32 = 60;
const NEWER_VERSION: &str =
    "update kiro-server, or set KIRO_CLIENT_VERSION=… to a newer number; an installed Kiro IDE shows one";
/// Rights that the command line needs beside the gateway's (R3).
const COMMAND_LINE_ONLY: [&str; 4] = ["HSETNX ", "HDEL ", "SADD ", "SISMEMBER "];
/// Ids or names that a line shows.
const MOST_SHOWN: usize = 10;

pub async fn run(config: Config, raw: &RawConfig, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    if options.get_flag("live") {
        return live::run(config, options).await;
    }
    let mut report = DoctorReport::default();
    if options.get_flag("webhook") {
        webhook(&config, &mut report).await;
        return report.end(options);
    }
    report.configuration(&config, raw);
    models(&config, &mut report);
    match Desk::prepare(config).await {
        Ok(desk) => {
            desk.pool.only_look();
            examine(&desk, &mut report).await;
            if let Err(failure) = desk.close().await {
                report.wrong("store", failure.to_string(), "look at the store's line above");
            }
        }
        Err(failure) => report.wrong("configuration", failure.to_string(), "correct the setting it names"),
    }
    report.end(options)
}

/// A test notice to `KIRO_WEBHOOK_URL`.
async fn webhook(config: &Config, report: &mut DoctorReport) {
    let webhook = Upstream::new(config).and_then(|upstream| Webhook::of(config, &upstream));
    match webhook {
        Ok(None) => report.wrong("webhook", "there is none", "set KIRO_WEBHOOK_URL"),
        Err(error) => report.wrong("webhook", error.to_string(), "correct the setting it names"),
        Ok(Some(webhook)) => match webhook.test().await {
            Ok(()) => report.ok("webhook", "it took the test notice"),
            Err(what) => report.wrong("webhook", what, "look at KIRO_WEBHOOK_URL and at what listens there"),
        },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineStatus {
    Ok,
    /// Worth knowing; nothing to be done.
    Note,
    Wrong,
}

struct ReportLine {
    check: &'static str,
    /// The first 8 characters.
    account: Option<String>,
    status: LineStatus,
    message: String,
    cure: Option<String>,
}

impl ReportLine {
    fn json(&self) -> Value {
        let status = match self.status {
            LineStatus::Ok => "ok",
            LineStatus::Note => "note",
            LineStatus::Wrong => "wrong",
        };
        json!({
            "check": self.check, "account": self.account, "status": status, "message": self.message, "cure": self.cure,
        })
    }
}

#[derive(Default)]
struct DoctorReport {
    lines: Vec<ReportLine>,
}

impl DoctorReport {
    fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        let message = message.into();
        self.lines.push(ReportLine { check, account: None, status: LineStatus::Ok, message, cure: None });
    }

    fn note(&mut self, check: &'static str, message: impl Into<String>) {
        let message = message.into();
        self.lines.push(ReportLine { check, account: None, status: LineStatus::Note, message, cure: None });
    }

    fn wrong(&mut self, check: &'static str, message: impl Into<String>, cure: impl Into<String>) {
        let (message, cure) = (message.into(), Some(cure.into()));
        self.lines.push(ReportLine { check, account: None, status: LineStatus::Wrong, message, cure });
    }

    /// Shows the lines. Exit code 1: something is wrong.
    fn end(&self, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
        let fine = self.lines.iter().all(|line| line.status != LineStatus::Wrong);
        if options.get_flag("json") {
            let checks: Vec<Value> = self.lines.iter().map(ReportLine::json).collect();
            show_json(&json!({ "ok": fine, "version": env!("CARGO_PKG_VERSION"), "checks": checks }))?;
        } else {
            show(&self.text())?;
        }
        Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn configuration(&mut self, config: &Config, raw: &RawConfig) {
        let said = raw.shown().iter().filter(|(_, _, source)| *source != Source::Default).count();
        let settings = if said == 1 { "setting" } else { "settings" };
        self.ok("configuration", format!("{said} {settings} given, the others by default"));
        for doubt in raw.doubts() {
            self.note("configuration", doubt);
        }
        let version = &config.client_version;
        if is_below_floor(version) {
            let message =
                format!("{version} is refused by Kiro since 2026-11-09 (below {})", client_identity::VERSION_FLOOR);
            let cure = format!(
                "set KIRO_CLIENT_VERSION={} or newer; an installed Kiro IDE shows its own",
                client_identity::VERSION
            );
            self.wrong("client version", message, cure);
        } else {
            self.ok("client version", version);
        }
        let checked = client_identity::CHECKED.parse::<jiff::civil::Date>().ok();
        let days =
            checked.and_then(|day| (Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date() - day).get_days().into());
        if let Some(days) = days.filter(|days: &i32| *days > STALE_DAYS) {
            let message = format!(
                "our client identity was last compared with Kiro's IDE {days} days ago ({})",
                client_identity::CHECKED
            );
            self.note("client version", message);
        }
        if config.upstream == UpstreamKind::Simulator {
            self.note("configuration", "KIRO_UPSTREAM is simulator: every answer is made up");
        }
    }

    fn text(&self) -> String {
        let row = |line: &ReportLine| {
            let mark = match line.status {
                LineStatus::Ok => "✓",
                LineStatus::Note => "·",
                LineStatus::Wrong => "✗",
            };
            let subject = match &line.account {
                Some(id) => format!("{} {id}", line.check),
                None => line.check.to_owned(),
            };
            let cure = line.cure.as_ref().map(|cure| format!(" → {cure}")).unwrap_or_default();
            vec![mark.to_owned(), subject, format!("{}{cure}", line.message)]
        };
        let rows: Vec<Vec<String>> = self.lines.iter().map(row).collect();
        let wrong = self.lines.iter().filter(|line| line.status == LineStatus::Wrong).count();
        let end = match wrong {
            0 => "All is fine.".to_owned(),
            1 => "1 thing is wrong.".to_owned(),
            more => format!("{more} things are wrong."),
        };
        format!("{}\n{end}\n", table(&rows))
    }
}

fn models(config: &Config, report: &mut DoctorReport) {
    let Some(path) = &config.models_file else {
        return report.ok("models", format!("embedded table, {} models", Models::embedded().list().count()));
    };
    let read = std::fs::read(path).map_err(|error| error.to_string());
    match read.and_then(|text| Models::from_json(&text)) {
        Ok(models) => report.ok("models", format!("{}: {} models", path.display(), models.list().count())),
        Err(error) => report.wrong(
            "models",
            format!("{}: {error}", path.display()),
            "correct the file, or unset KIRO_MODELS_FILE for the embedded table",
        ),
    }
}

async fn examine(desk: &Desk, report: &mut DoctorReport) {
    let accounts = match desk.reach().await {
        Ok(()) => {
            store(desk, report).await;
            let named = client_keys(desk, report).await;
            client_key(desk, named, report).await;
            match desk.accounts().await {
                Ok(accounts) => {
                    pool(desk, &accounts, report).await;
                    state_folder(desk, report).await;
                    shared_logins(desk, &accounts, report);
                    accounts
                }
                Err(error) => {
                    report.wrong("pool", error.to_string(), store_cure(desk, &error));
                    Vec::new()
                }
            }
        }
        Err(error) => {
            report.wrong("store", format!("{}: {error}", place(desk)), store_cure(desk, &error));
            Vec::new()
        }
    };
    for entry in &accounts {
        account(desk, entry, report).await;
    }
    upstream(desk, &accounts, report).await;
    client_version(desk, &accounts, report).await;
    credits(desk, &accounts, report).await;
}

/// One usage call with one account of each API region, in each shape's order, and how the account is served (K108). An
/// account that rests, or whose token would have to be renewed first, is not asked.
async fn client_version(desk: &Desk, accounts: &[DeskAccount], report: &mut DoctorReport) {
    let now = Timestamp::now();
    let mut asked = BTreeMap::new();
    for entry in accounts.iter().filter(|entry| may_be_asked(desk, entry, now)) {
        let Ok(lease) = desk.pool.visit(&entry.info.id) else { continue };
        asked.entry(lease.account().region().to_owned()).or_insert(lease);
    }
    let version = &desk.config.client_version;
    let mut asked_on = Vec::new();
    for (region, lease) in asked {
        let mut goes_on = true;
        match desk.credentials.usage_limits(&lease).await {
            Ok(_) => report.ok("client version", format!("{version} is taken in {region}")),
            Err(fault) if fault.kind == FaultKind::ClientVersion => {
                report.wrong("client version", format!("{version} is refused by usage in {region}"), NEWER_VERSION);
            }
            Err(fault) if fault.says("not authorized to make this call") && is_before_0_12(version) => report.wrong(
                "client version",
                format!(
                    "{region} doesn't let the account in: the client version is refused, or its profile ARN is missing"
                ),
                "set KIRO_CLIENT_VERSION=… to a newer number; then `kiro-server accounts check`",
            ),
            Err(fault) if is_of_the_account(fault.kind) => {
                goes_on = false;
                report.lines.push(ReportLine {
                    check: "account",
                    account: Some(short(lease.account().id()).to_owned()),
                    status: LineStatus::Wrong,
                    message: format!("Kiro says of it: {fault}"),
                    cure: Some("`kiro-server accounts check` says what to do".to_owned()),
                });
            }
            Err(fault) => report.note(
                "client version",
                format!(
                    "{region} answers with {fault}, which says nothing of it; `kiro-server accounts check` says more"
                ),
            ),
        }
        if goes_on {
            asked_on.push((region, lease));
        }
    }
    for (region, lease) in &asked_on {
        service(desk, region, lease, report).await;
    }
}

/// Whether the account neither rests nor needs a new token first.
fn may_be_asked(desk: &Desk, entry: &DeskAccount, now: Timestamp) -> bool {
    let token = desk.credentials.credential(&entry.info.id).unwrap_or_default();
    let live =
        token.expires_at.is_none_or(|end| end > now) && (token.access_token.is_some() || token.kiro_api_key.is_some());
    live && !matches!(entry.info.state, HealthState::Cooling { .. } | HealthState::Disabled | HealthState::Ejected)
}

/// Accounts that are asked for their credits, one after the other, and the time for all.
const CREDITS_OF: usize = 16;
const CREDITS_WITHIN: Duration = Duration::from_secs(20);

/// What the pool has left (K146), once an account has answered for its version: the first ones are asked, and the line
/// says of how many it speaks.
async fn credits(desk: &Desk, accounts: &[DeskAccount], report: &mut DoctorReport) {
    let known = || desk.pool.accounts().into_iter().filter_map(|account| Some((account.id, account.credits?)));
    let before: Vec<_> = known().map(|(id, _)| id).collect();
    if before.is_empty() {
        return;
    }
    let now = Timestamp::now();
    let more = accounts.iter().filter(|entry| !before.contains(&entry.info.id) && may_be_asked(desk, entry, now));
    let asking = async {
        for entry in more.take(CREDITS_OF.saturating_sub(before.len())) {
            let Ok(lease) = desk.pool.visit(&entry.info.id) else { continue };
            // `accounts check` says what is wrong with an account; here it is one that isn't counted.
            drop(desk.credentials.usage_limits(&lease).await);
        }
    };
    let in_time = tokio::time::timeout(CREDITS_WITHIN, asking).await.is_ok();
    let all: Vec<_> = known().map(|(_, credits)| credits).collect();
    let limited = all.iter().filter_map(|known| Some((known.left()?, known.limit?)));
    let (left, limit) = limited.fold((0.0, 0.0), |(left, limit), (more, most)| (left + more, limit + most));
    let of = if all.len() == 1 { "1 account".to_owned() } else { format!("{} accounts", all.len()) };
    let mut message = format!("{} of {} left in {of}", number(left), number(limit));
    if let Some(reset) = all.iter().filter_map(|known| known.resets_at).min() {
        message.push_str(&format!("; the first starts again {}", relative(reset, now)));
    }
    if all.len() < accounts.len() {
        let why = if in_time { "" } else { ", time ran out" };
        message.push_str(&format!("; {} of the pool not asked{why}", accounts.len() - all.len()));
    }
    if left > 0.0 { report.ok("credits", message) } else { report.note("credits", message) }
}

/// Whether the fault is the account's and not the request's: further questions are pointless.
fn is_of_the_account(kind: FaultKind) -> bool {
    matches!(
        kind,
        FaultKind::Suspended
            | FaultKind::Suspicious
            | FaultKind::RateLimited
            | FaultKind::QuotaMonth
            | FaultKind::QuotaDay
            | FaultKind::TokenRejected
    )
}

/// By which shapes these accounts are served, their models, and web search (K120, K125).
async fn service(desk: &Desk, region: &str, lease: &Lease, report: &mut DoctorReport) {
    let survey = Survey::of(desk, lease).await;
    let of = |message: &str| format!("{message} ({region}, account {})", short(lease.account().id()));
    let silent = survey.shapes.iter().filter(|(_, answer)| answer.is_err()).count();
    let gated = |(_, answer): &(_, Result<(), Silence>)| matches!(answer, Err(Silence::ClientVersion));
    match (silent, survey.shapes.len()) {
        (_, 0) => {}
        (0, _) => report.ok("shapes", of(&survey.words())),
        _ if survey.shapes.iter().any(gated) => report.wrong("shapes", of(&survey.words()), NEWER_VERSION),
        (silent, all) if silent < all => report.note("shapes", of(&survey.words())),
        _ => report.wrong(
            "shapes",
            of(&survey.words()),
            "nothing is served there: `kiro-server doctor --live` says more; see KIRO_UPSTREAM_API and the addresses",
        ),
    }
    match &survey.search {
        Search::Offered(true) => report.ok("web search", of("Kiro offers it, declared as here")),
        Search::Offered(false) => report.note("web search", of("Kiro declares it otherwise than this program does")),
        Search::Not(why) => report.note("web search", of(&format!("not offered: {why}"))),
        Search::Unknown => {}
    }
    match &survey.models {
        // The shapes say so.
        Err(_) if survey.shapes.iter().all(gated) => {}
        Err(why) => report.note("models", of(&format!("the account's list can't be read, the table serves: {why}"))),
        Ok(catalogue) => {
            let table = Models::embedded();
            let known = |id: &&str| table.resolve(id, None).is_some_and(|found| !found.row.passed);
            let new = catalogue.models().iter().map(|model| &*model.kiro_id).filter(|id| !known(id));
            let new: Vec<String> = new.map(|id| plain(id, 60)).collect();
            let mut message = format!("{} models listed by Kiro just now", catalogue.models().len());
            if !new.is_empty() {
                message.push_str(&format!(", of which the embedded table doesn't know {}", new.join(", ")));
            }
            if !desk.config.model_discovery {
                message.push_str("; KIRO_MODEL_DISCOVERY is off, so the server doesn't look");
            }
            report.ok("models", of(&message));
        }
    }
}

fn is_before_0_12(version: &str) -> bool {
    parse_version(version) < parse_version("0.12.0")
}

/// Where the store is, without a password.
fn place(desk: &Desk) -> String {
    match &desk.config.store {
        StoreKind::File(path) | StoreKind::Aiclient(path) => path.display().to_string(),
        StoreKind::Redis => plain(&desk.config.redis.shown(), 100),
    }
}

/// An address of a record, as a line of text.
fn shown(url: &str) -> String {
    plain(&without_secrets(url).unwrap_or_default(), 100)
}

fn store_cure(desk: &Desk, error: &StoreError) -> String {
    let redis = matches!(desk.config.store, StoreKind::Redis);
    match error.kind() {
        StoreErrorKind::Config => "correct KIRO_STORE or REDIS_URL".to_owned(),
        StoreErrorKind::Refused if redis => {
            "give REDIS_URL the right user, password and database, and that user the rights in docs/cli.md".to_owned()
        }
        StoreErrorKind::WritesRefused => "free memory or disk at the Redis server".to_owned(),
        StoreErrorKind::Broken if !redis => {
            "correct the file, or restore it: it is never overwritten as it is".to_owned()
        }
        StoreErrorKind::Broken => "look at REDIS_KEY_PREFIX: other data lies under these keys".to_owned(),
        StoreErrorKind::Away if redis => {
            "start Redis, or correct REDIS_URL; without Redis: KIRO_STORE=file:PATH".to_owned()
        }
        _ => "make the file and its folder readable and writable for this user".to_owned(),
    }
}

async fn store(desk: &Desk, report: &mut DoctorReport) {
    if let Status::WritesRefused(error) = desk.store.status() {
        report.wrong("store", format!("{}: {error}", place(desk)), store_cure(desk, &error));
    }
    match &desk.config.store {
        StoreKind::File(path) => file(path, report),
        StoreKind::Aiclient(path) => service_pool(path, report),
        StoreKind::Redis => {
            let inspected = desk.store.inspect().await.map(Option::unwrap_or_default);
            let inspection = match inspected {
                Ok(inspection) => inspection,
                Err(error) => {
                    report.wrong("store", format!("{}: {error}", place(desk)), store_cure(desk, &error));
                    return;
                }
            };
            let server = inspection.server.unwrap_or_else(|| "a Redis older than 7".to_owned());
            report.ok("store", format!("{}: {server}", place(desk)));
            rights(inspection.missing_rights, report);
        }
    }
}

fn rights(missing: Option<Vec<String>>, report: &mut DoctorReport) {
    let Some(missing) = missing else {
        return report.note("rights", "Redis before version 7 can't say");
    };
    let is_ours = |right: &&String| COMMAND_LINE_ONLY.iter().any(|command| right.starts_with(command));
    let (ours, needed): (Vec<&String>, Vec<&String>) = missing.iter().partition(is_ours);
    let words = |rights: Vec<&String>| rights.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if missing.is_empty() {
        report.ok("rights", "every command on our keys is allowed");
    }
    if !needed.is_empty() {
        report.wrong("rights", format!("not allowed: {}", words(needed)), "ACL SETUSER: the rights are in docs/cli.md");
    }
    if !ours.is_empty() {
        report.note("rights", format!("not allowed, only `accounts add` and `remove` need it: {}", words(ours)));
    }
}

fn file(path: &Path, report: &mut DoctorReport) {
    let shown = path.display();
    let metadata = std::fs::metadata(path).ok();
    if metadata.as_ref().is_some_and(|found| !found.is_file()) {
        return report.wrong("store", format!("{shown} is no file"), "name a file in KIRO_STORE: file:PATH");
    }
    #[cfg(unix)]
    if let Some(found) = &metadata
        && std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o077 != 0
    {
        report.wrong("store", format!("{shown} can be read by others"), format!("chmod 600 {shown}"));
    }
    if let Err((folder, error)) = can_write_beside(path) {
        report.wrong(
            "store",
            format!(
                "no file can be written in {}: {error}; renewed tokens would be lost with the process",
                folder.display()
            ),
            "make the folder writable for this user, and see that the disk has room",
        );
    }
    let Some(metadata) = metadata else { return report.ok("store", format!("{shown}: not there yet")) };
    let what = if is_token_file(path) { "a token file of Kiro, one account" } else { "a pool" };
    report.ok("store", format!("{shown}: {what}, {} bytes", metadata.len()));
}

/// The Node.js service's file, which is only read (R95, R99).
fn service_pool(path: &Path, report: &mut DoctorReport) {
    let shown = path.display();
    let message = format!(
        "{shown}: the pool of a Node.js service, which is never written: marks and counts live in this server's memory, \
         accounts are added in that service"
    );
    report.ok("store", message);
}

/// The file is replaced as a whole (R64), so its folder must take a new one. A folder that isn't there is made in the
/// nearest one above.
fn can_write_beside(path: &Path) -> Result<(), (PathBuf, std::io::Error)> {
    let target = std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
    let folder = target.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(&target).to_owned();
    let trial = folder.join(format!(".kiro-doctor-{}", uuid::Uuid::new_v4()));
    files::try_room(&target, &trial).map_err(|error| (folder, error))
}

/// What named keys there are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NamedKeys {
    /// A server asks for none.
    None,
    /// It asks for one, and none is valid.
    Dead,
    Valid,
}

/// Named keys: how many, and which have ended or soon will (R108, R109).
async fn client_keys(desk: &Desk, report: &mut DoctorReport) -> NamedKeys {
    let mut named = if desk.config.api_keys_file.is_some() { NamedKeys::Dead } else { NamedKeys::None };
    let of_store = KeyPlaces::of(&desk.store).ok();
    let places = desk.config.api_keys_file.clone().map(KeyPlaces::File).into_iter().chain(of_store);
    let now = Timestamp::now();
    for place in places {
        let keys = match (place.read().await, &place) {
            (Ok(keys), KeyPlaces::Redis(_)) if keys.is_empty() => continue,
            (Ok(_), KeyPlaces::File(path)) if !path.exists() => {
                let message = format!("{} isn't there: the server won't start", path.display());
                report.wrong("client keys", message, "`kiro-server keys add NAME` makes it");
                continue;
            }
            (Ok(keys), _) => keys,
            (Err(error), _) => {
                let cure = "correct it, or `kiro-server keys remove NAME`; a server keeps the keys that it knows";
                report.wrong("client keys", error.to_string(), cure);
                // Which keys it would hold isn't known.
                named = NamedKeys::Valid;
                continue;
            }
        };
        let valid = keys.iter().filter(|key| key.standing(now) == KeyStanding::Valid).count();
        named = named.max(if valid > 0 { NamedKeys::Valid } else { NamedKeys::Dead });
        let noun = if keys.len() == 1 { "key" } else { "keys" };
        report.ok("client keys", format!("{}: {} {noun}, {valid} valid", place.name(), keys.len()));
        let soon = now + SignedDuration::from_hours(24 * 7);
        let enabled = || keys.iter().filter(|key| key.enabled);
        let ended = enabled().filter(|key| key.standing(now) == KeyStanding::Expired);
        let ending = enabled().filter(|key| key.expires.is_some_and(|end| end > now && end <= soon));
        for (what, names) in [
            ("have ended", ended.map(|key| &*key.name).collect::<Vec<_>>()),
            ("end within 7 days", ending.map(|key| &*key.name).collect()),
        ] {
            if !names.is_empty() {
                let (count, shown) = (names.len(), some_of(&names));
                let message = format!("{count} {what} ({shown}); `kiro-server keys add` makes new ones");
                report.note("client keys", message);
            }
        }
    }
    named
}

async fn client_key(desk: &Desk, named: NamedKeys, report: &mut DoctorReport) {
    let loopback = desk.config.listen.ip().to_canonical().is_loopback();
    if desk.config.api_key.is_some() {
        return report.ok("client key", "from the configuration");
    }
    match desk.store.client_key().await {
        Ok(Some(_)) => report.ok("client key", "from the store"),
        Ok(None) if named == NamedKeys::Valid => report.note("client key", "none: only named keys are right"),
        Ok(None) if named == NamedKeys::Dead => report.wrong(
            "client key",
            "none, and no named key is valid: nobody is served",
            "`kiro-server keys add NAME`, or set KIRO_API_KEY",
        ),
        Ok(None) if loopback => {
            report.note("client key", "none: everybody who can reach the loopback address is served");
        }
        Ok(None) if desk.config.allow_anonymous => {
            report.note("client key", format!("none: everybody who can reach {} is served", desk.config.listen));
        }
        Ok(None) => report.wrong(
            "client key",
            format!("none, and {} is no loopback address: the server won't start", desk.config.listen),
            "set KIRO_API_KEY, or --allow-anonymous",
        ),
        Err(error) => report.wrong("client key", error.to_string(), store_cure(desk, &error)),
    }
}

async fn pool(desk: &Desk, accounts: &[DeskAccount], report: &mut DoctorReport) {
    let name = desk.store.pool_name();
    if accounts.is_empty() {
        // Without the right to look there, there is no hint.
        let elsewhere = desk.store.pool_under_default_prefix().await.unwrap_or_default();
        match elsewhere {
            Some(key) => report.wrong(
                "pool",
                format!("{name} is empty, but {key} exists"),
                "set REDIS_KEY_PREFIX as the Node.js service has it in its configuration file (redis.keyPrefix)",
            ),
            None => report.wrong("pool", format!("no accounts in {name}"), desk.config.store.cure()),
        }
        return;
    }
    let served = accounts.iter().filter(|entry| entry.info.state.is_served()).count();
    let text = format!("{name}: {} accounts, {served} in service", accounts.len());
    if served == 0 {
        report.wrong("pool", text, "see the accounts below");
    } else {
        report.ok("pool", text);
    }
    let suspicious = accounts.iter().filter(|entry| entry.info.condition() == "suspicious").count();
    if suspicious > 1 {
        report.wrong(
            "pool",
            format!("Kiro finds the activity of {suspicious} accounts suspicious: the whole pool is slowed down"),
            "send fewer requests (KIRO_ACCOUNT_RPM) and wait: `kiro-server accounts list` says until when",
        );
    }
    match desk.store.is_missing_in_pool_types().await {
        Ok(false) => {}
        Ok(true) => report.wrong(
            "pool",
            "the set pool-types lacks claude-kiro-oauth: a Node.js service doesn't see this pool",
            format!("redis-cli SADD {}pool-types claude-kiro-oauth", desk.config.redis_key_prefix),
        ),
        Err(error) => report.note("pool", format!("pool-types can't be read: {error}")),
    }
    match desk.store.orphans().await {
        Ok(orphans) if orphans.is_empty() => {}
        Ok(orphans) => {
            let ids: Vec<_> = orphans.iter().map(|id| short(id)).collect();
            report.note(
                "pool",
                format!(
                    "{} token records have no account ({}). Were the accounts removed by a program that keeps the pool in \
                     memory and wrote it back? `kiro-server accounts restore ID` brings one back, once that program has \
                     reloaded its pool",
                    orphans.len(),
                    some_of(&ids)
                ),
            );
        }
        Err(error) => report.note("pool", format!("token records without an account can't be looked for: {error}")),
    }
}

/// `KIRO_STATE_DIR`: whether it could keep a token, and the tokens that wait there (R51).
async fn state_folder(desk: &Desk, report: &mut DoctorReport) {
    const CHECK: &str = "state folder";
    let (Some(folder), Some(survey)) = (&desk.config.state_dir, desk.pool.survey_journal().await) else {
        // The simulator's logins are made up.
        if desk.config.upstream == UpstreamKind::Kiro {
            let message =
                "KIRO_STATE_DIR is not set: a renewed token that can't be saved is lost when the process ends";
            report.note(CHECK, message);
        }
        return;
    };
    let shown = folder.display();
    if let Err(error) = &survey.trial {
        report.wrong(
            CHECK,
            format!(
                "{shown} can't be written: {error}; a renewed token that can't be saved is lost when the process ends"
            ),
            "make KIRO_STATE_DIR a folder that this user may write, or name another one",
        );
    }
    let mut parts = Vec::new();
    if !survey.accounts.is_empty() {
        let ids: Vec<_> = survey.accounts.iter().map(|id| short(id)).collect();
        parts.push(format!("{} ({}), which a server with these settings saves", tokens(ids.len()), some_of(&ids)));
    }
    if survey.others > 0 {
        parts.push(format!("{} of other stores", tokens(survey.others)));
    }
    for problem in &survey.unreadable {
        report.wrong(CHECK, problem.clone(), "remove the file, and sign in anew with the account that lacks a token");
    }
    match (parts.is_empty(), &survey.trial) {
        (true, Ok(())) => report.ok(CHECK, format!("{shown}: can be written, no token waits there")),
        (true, Err(_)) => {}
        (false, _) => report.note(CHECK, format!("{shown}: {} there", parts.join("; "))),
    }
}

/// The first of some ids or names, and whether there are more.
fn some_of<S: AsRef<str>>(all: &[S]) -> String {
    let shown: Vec<_> = all.iter().take(MOST_SHOWN).map(AsRef::as_ref).collect();
    shown.join(", ") + if all.len() > MOST_SHOWN { ", …" } else { "" }
}

fn tokens(count: usize) -> String {
    if count == 1 { "1 token waits".to_owned() } else { format!("{count} tokens wait") }
}

/// Accounts on one login: its limits count once, and one account's refresh can end the other's token (R76).
fn shared_logins(desk: &Desk, accounts: &[DeskAccount], report: &mut DoctorReport) {
    let mut logins: BTreeMap<&str, Vec<&DeskAccount>> = BTreeMap::new();
    for entry in accounts {
        let Some(token) = &entry.token else { continue };
        let Some(login) = token.refresh_token.as_ref().or(token.kiro_api_key.as_ref()) else { continue };
        logins.entry(login.expose()).or_default().push(entry);
    }
    let cure = match is_service_store(desk) {
        true => "remove all but one of them in the Node.js service, or sign in there anew with another login",
        false => "`kiro-server accounts remove` all but one of them, or sign in anew: `accounts login --replace ID`",
    };
    for sharing in logins.into_values().filter(|sharing| sharing.len() > 1) {
        let shown = |entry: &&DeskAccount| match &entry.info.name {
            Some(name) => format!("{} ({})", short(&entry.raw.id), plain(name, 24)),
            None => short(&entry.raw.id).to_owned(),
        };
        let named: Vec<_> = sharing.iter().map(shown).collect();
        let files: BTreeSet<_> = sharing.iter().map(|entry| token_place(entry)).collect();
        let place = match files.into_iter().collect::<Vec<_>>().as_slice() {
            [Some(file)] => format!(", in {}", plain(file, 100)),
            _ => String::new(),
        };
        let message = format!("{} accounts have one login{place}: {}", sharing.len(), some_of(&named));
        report.wrong("login", message, cure);
    }
}

/// Where a record says that its token lies.
fn token_place(entry: &DeskAccount) -> Option<String> {
    let record = Object::parse(&entry.raw.account, RECORD).ok()?;
    let said = |name: &str| Some(record.last(name)?.string()?.into_owned());
    said("KIRO_OAUTH_CREDS_FILE_PATH").or_else(|| said("KIRO_TOKEN_FILE_PATH"))
}

/// Everything about one account: a line for each thing that is wrong, else one line.
async fn account(desk: &Desk, entry: &DeskAccount, report: &mut DoctorReport) {
    let now = Timestamp::now();
    let id = short(&entry.raw.id).to_owned();
    let mut findings = Findings::default();
    entry_findings(desk, entry, now, &mut findings).await;
    let mut line = |status, message: String, cure: Option<String>| {
        report.lines.push(ReportLine { check: "account", account: Some(id.clone()), status, message, cure });
    };
    let name = entry.info.name.as_deref().map(|name| format!("{}: ", plain(name, 24))).unwrap_or_default();
    for (message, cure) in &findings.wrong {
        line(LineStatus::Wrong, format!("{name}{message}"), Some(cure.clone()));
    }
    if findings.wrong.is_empty() {
        let status = if findings.notes.is_empty() { LineStatus::Ok } else { LineStatus::Note };
        let mut parts = vec![method(&entry.info), entry.info.condition().to_owned()];
        parts.extend(findings.notes);
        line(status, format!("{name}{}", parts.join(", ")), None);
    }
}

#[derive(Default)]
struct Findings {
    wrong: Vec<(String, String)>,
    notes: Vec<String>,
}

impl Findings {
    fn wrong(&mut self, message: impl Into<String>, cure: impl Into<String>) {
        self.wrong.push((message.into(), cure.into()));
    }
}

const LOG_IN_AGAIN: &str = "sign in anew: `kiro-server accounts login --replace ID`";

async fn entry_findings(desk: &Desk, entry: &DeskAccount, now: Timestamp, findings: &mut Findings) {
    let info = &entry.info;
    let Some(account) = &entry.account else {
        let problem = info.problem.clone().unwrap_or_else(|| "its record can't be read".to_owned());
        return findings.wrong(problem, "correct the record where it was written, or `kiro-server accounts remove` it");
    };
    if info.state == HealthState::Disabled {
        return findings.notes.push("`kiro-server accounts enable` puts it back".to_owned());
    }
    own_addresses(account, entry.token.as_ref(), findings);
    match (&entry.token, &entry.raw.token) {
        (Some(token), _) => {
            if let Some(problem) = &info.problem {
                let cure = if problem.contains("egion") {
                    "correct it in the token record: a name such as us-east-1"
                } else {
                    "correct it in the record or the configuration"
                };
                findings.wrong(problem.clone(), cure);
            }
            token_findings(desk, entry, token, now, findings);
            profile_findings(desk, entry, account, token, findings);
            node_findings(desk, entry, token, findings);
        }
        (None, Some(_)) => {
            let problem = info.problem.clone().unwrap_or_else(|| "its token record can't be read".to_owned());
            findings.wrong(problem, LOG_IN_AGAIN);
        }
        (None, None) if is_service_store(desk) => {
            let read = desk.store.read_token(&TokenKey::of(&entry.raw.id), now).await;
            let rights = read.as_ref().is_err_and(StoreError::is_read_only);
            let why = read.err().map_or_else(|| "its token file isn't there".to_owned(), |error| error.to_string());
            if rights {
                return findings.wrong(why, "let this user read and write that file and its folder (owner, mode)");
            }
            findings.wrong(why, "sign in again in the Node.js service, or correct the record's path there");
        }
        (None, None) if account.has_foreign_credentials => findings.wrong(
            "its credentials lie where another program keeps them (KIRO_OAUTH_CREDS_*), which is not read",
            "`kiro-server accounts add --from` that file, and `accounts remove` this one",
        ),
        (None, None) => findings.wrong("it has no token record", LOG_IN_AGAIN),
    }
    if let Some((key, _)) = &entry.raw.token
        && let Err(error) = desk.store.read_token(key, now).await
        && error.kind() == StoreErrorKind::Registration
    {
        findings.wrong(error.to_string(), "log in again in Kiro");
    }
    if is_service_store(desk)
        && let Some((key, _)) = &entry.raw.token
        && let Err(error) = desk.store.lock(key, now).await
        && error.is_read_only()
    {
        findings.wrong(
            format!("its renewed tokens can't be kept, so it serves until its token ends: {error}"),
            "make the token file and its folder writable for this user; or KIRO_STATE_DIR",
        );
    }
    standing(entry, account, now, findings);
}

fn token_findings(desk: &Desk, entry: &DeskAccount, token: &Token, now: Timestamp, findings: &mut Findings) {
    if token.method() == Method::ApiKey {
        return;
    }
    if token.has_unknown_method() {
        findings.notes.push(format!("unknown authMethod, taken for {}", token.method().as_str()));
    }
    let live = token.access_token.is_some() && token.expires_at.is_some_and(|end| end > now);
    let Some(refresh_token) = &token.refresh_token else {
        return match token.expires_at.filter(|_| live) {
            Some(end) => {
                findings.notes.push(format!("no refresh token: it serves until its token ends {}", relative(end, now)))
            }
            None => findings.wrong("its token has expired and there is no refresh token", LOG_IN_AGAIN),
        };
    };
    if let Some(truncated) = truncated(refresh_token, &desk.config) {
        findings
            .wrong(truncated, "take the whole token over: `kiro-server accounts add`, and `accounts remove` this one");
    }
    let registered = token.client_id.is_some() && token.client_secret.is_some();
    if token.method() == Method::Idc && !registered && !is_token_store(desk) {
        findings.wrong(
            "it has no client registration (clientId, clientSecret), so its token can't be renewed",
            LOG_IN_AGAIN,
        );
    }
    match entry.info.registration_soon(now) {
        Some(end) if end <= now => {
            findings.wrong(format!("its client registration expired {}", relative(end, now)), LOG_IN_AGAIN);
        }
        Some(end) => {
            findings.notes.push(format!("its client registration ends {}: sign in again before", relative(end, now)));
        }
        None => {}
    }
    match token.expires_at {
        Some(end) if end > now => {}
        Some(end) => {
            findings.notes.push(format!("access token expired {}, it is renewed at the next use", relative(end, now)))
        }
        None => findings.notes.push("access token counts as expired, it is renewed at the next use".to_owned()),
    }
}

/// Problems of its profile, region or sign-in (R76).
fn profile_findings(desk: &Desk, entry: &DeskAccount, account: &Account, token: &Token, findings: &mut Findings) {
    let Some(view) = desk.pool.account(&entry.info.id) else { return };
    if let Some((region, host)) = view.region_clash() {
        findings.wrong(
            format!("its profile is in {region}, but its address goes to {host}: Kiro takes no conversation that way"),
            "remove KIRO_BASE_URL, or KIRO_UPSTREAM_URL and KIRO_RUNTIME_URL, or write {region} into them",
        );
    }
    let known = |region: &str| desk.config.api_regions.iter().any(|known| known == region);
    let region = token.region.as_deref().or(account.region.as_deref()).filter(|region| is_region(region));
    if let Some(region) = region.filter(|region| !known(region) && !view.has_own_profile()) {
        findings.notes.push(format!(
            "Kiro doesn't answer in its region {region} (KIRO_API_REGIONS), so {} is asked; `kiro-server accounts check` \
             looks for its profile",
            view.region()
        ));
    }
    let recorded = token.profile_arn.as_ref().or(account.profile_arn.as_ref());
    if view.kind().has_profiles() && view.kind() != AccountKind::Unsure && !view.has_own_profile() && recorded.is_some()
    {
        findings.wrong(
            "its record holds Kiro's fixed profile of other accounts, which is never sent for it",
            "`kiro-server accounts check` looks for its own and puts that in its place",
        );
    }
}

/// The Node.js service sends every account but those that say `social` to the refresh of IdC logins (R71, R76).
fn node_findings(desk: &Desk, entry: &DeskAccount, token: &Token, findings: &mut Findings) {
    if !matches!(desk.config.store, StoreKind::Redis) {
        return;
    }
    let said = entry.raw.token.as_ref().and_then(|(_, record)| {
        let record = Object::parse(record, RECORD).ok()?;
        record.last("authMethod")?.string()
    });
    let cure = match token.method() {
        Method::Idc => return,
        Method::Social if said.as_deref() == Some("social") => return,
        Method::Social => "write authMethod `social` into its token record",
        Method::External | Method::ApiKey => "keep it in a pool of its own (REDIS_KEY_PREFIX)",
    };
    let message =
        "a Node.js service that shares this pool can't serve it: it takes its login for IdC and fails at its refresh";
    findings.notes.push(format!("{message}; {cure}"));
}

fn is_token_store(desk: &Desk) -> bool {
    is_service_store(desk) || matches!(&desk.config.store, StoreKind::File(path) if is_token_file(path))
}

fn is_service_store(desk: &Desk) -> bool {
    matches!(desk.config.store, StoreKind::Aiclient(_))
}

/// Addresses of its own, the ignored ones too (K12).
fn own_addresses(account: &Account, token: Option<&Token>, findings: &mut Findings) {
    let region = token.map_or(DEFAULT_REGION, Token::region);
    let own = [
        ("KIRO_BASE_URL", &account.base_url),
        ("KIRO_REFRESH_URL", &account.refresh_url),
        ("KIRO_REFRESH_IDC_URL", &account.refresh_idc_url),
    ];
    for (field, url) in own {
        // A region that can't be filled in has a line of its own.
        let Some(url) = url else { continue };
        match endpoint(url, region).or_else(|| endpoint(url, DEFAULT_REGION)) {
            None => findings.wrong(format!("{field} is ignored"), format!("it must be {ALLOWED}")),
            // Any program that writes records may have put it there: the account's token goes to that host (K12).
            Some(url) => findings.notes.push(format!("{field} of its own: {}", shown(origin(&url)))),
        }
    }
}

fn standing(entry: &DeskAccount, account: &Account, now: Timestamp, findings: &mut Findings) {
    let back = |until| format!("back {}", relative(until, now));
    match entry.info.state {
        HealthState::Ejected => {
            let cause = match account.standing.mark() {
                Some(Note::Ejected { cause }) => plain(cause, 100),
                _ => "no cause given".to_owned(),
            };
            let cure = if cause.to_ascii_lowercase().contains("suspended") {
                "ask Kiro's support; afterwards `kiro-server accounts enable`"
            } else {
                LOG_IN_AGAIN
            };
            findings.wrong(format!("ejected: {cause}"), cure);
        }
        HealthState::Quota { until } => findings.notes.push(format!("quota used up, {}", back(until))),
        HealthState::Cooling { until } | HealthState::NoProfile { until } => findings.notes.push(back(until)),
        HealthState::HalfOpen => findings.notes.push("the next request decides".to_owned()),
        HealthState::Stale => findings.notes.push("its token is to be renewed".to_owned()),
        HealthState::Unusable if findings.wrong.is_empty() => findings.wrong("it has no credential", LOG_IN_AGAIN),
        HealthState::Disabled | HealthState::Unusable | HealthState::Healthy => {}
    }
}

/// Whether each address that the accounts use answers, through its proxy.
async fn upstream(desk: &Desk, accounts: &[DeskAccount], report: &mut DoctorReport) {
    let views = accounts.iter().filter_map(|entry| desk.pool.account(&entry.info.id));
    let mut origins: BTreeMap<(String, String), KnownHost> = BTreeMap::new();
    let mut add = |url: &str, proxy: Option<&Secret>, others: &[String]| {
        let origin = origin(url).to_owned();
        if !origin.is_empty() {
            let proxied = proxy.map(|proxy| proxy.expose().to_owned()).unwrap_or_default();
            let host = origins.entry((origin.clone(), proxied)).or_default();
            host.proxy = proxy.cloned();
            host.others.extend(others.iter().filter(|other| !other.is_empty() && **other != origin).cloned());
        }
    };
    for view in views {
        let region = view.region();
        let chat = |shape: &Shape| origin(&view.url(*shape, Operation::Chat, region)).to_owned();
        for shape in view.shapes(region) {
            let others: Vec<String> = view.shapes(region).iter().filter(|other| *other != shape).map(chat).collect();
            for call in [Operation::Chat, Operation::Usage] {
                add(&view.url(*shape, call, region), view.proxy_url(), &others);
            }
        }
        if !view.is_api_key() {
            add(&view.refresh_url(view.refresh_region()).unwrap_or_default(), view.proxy_url(), &[]);
        }
    }
    if accounts.is_empty() {
        for template in [&desk.config.upstream_url, &desk.config.social_refresh_url] {
            add(&endpoint(template, DEFAULT_REGION).unwrap_or_default(), None, &[]);
        }
    }
    let asked = stream::iter(origins).map(|((origin, _), host)| async move {
        let answer = reach(desk, &origin, host.proxy.as_ref()).await;
        (origin, host, answer)
    });
    let answers: Vec<_> = asked.buffered(AT_A_TIME).collect().await;
    let answers_at = |wanted: &String| answers.iter().any(|(origin, _, answer)| origin == wanted && answer.is_ok());
    for (origin, host, answer) in &answers {
        match answer {
            Ok(took) => report.ok("upstream", format!("{origin} answers ({} ms)", took.as_millis())),
            Err(why) => match host.others.iter().find(|other| answers_at(other)) {
                Some(other) => report.note("upstream", format!("{origin}: {why}; {other} takes its place")),
                None => report.wrong("upstream", format!("{origin}: {why}"), network_cure(why)),
            },
        }
    }
}

/// An address that accounts use.
#[derive(Default)]
struct KnownHost {
    proxy: Option<Secret>,
    /// The other shape's addresses: when one of them answers, nobody needs this one.
    others: Vec<String>,
}

async fn reach(desk: &Desk, origin: &str, proxy: Option<&Secret>) -> Result<Duration, String> {
    let client = desk.upstream.client(proxy.map(Secret::expose)).map_err(|fault| plain(&fault.message, 100))?;
    let started = Instant::now();
    match tokio::time::timeout(ANSWER_WITHIN, client.get(origin).send()).await {
        // Any answer shows that it is there.
        Ok(Ok(_)) => Ok(started.elapsed()),
        Ok(Err(error)) if error.is_timeout() => Err("no connection in time".to_owned()),
        Ok(Err(error)) => Err(innermost(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

fn network_cure(why: &str) -> &'static str {
    if why.contains("ertificate") {
        "something between signs for it: name its authority with NODE_EXTRA_CA_CERTS"
    } else if why.contains("PROXY_URL") {
        "correct PROXY_URL in the account's record"
    } else {
        "look at DNS, firewall and KIRO_PROXY_URL"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiro_messages::config::Face;

    fn config(upstream: &str) -> Config {
        let said = [("KIRO_UPSTREAM".to_owned(), upstream.to_owned())];
        RawConfig::from_env(said).resolve(Face::Server).unwrap()
    }

    #[test]
    fn a_truncated_paste_is_seen() {
        let kiro = config("kiro");
        let full = "x".repeat(100);
        assert_eq!(truncated(&Secret::new(full.clone()), &kiro), None);
        assert!(truncated(&Secret::new("x".repeat(99)), &kiro).unwrap().contains("99 characters"));
        assert!(truncated(&Secret::new(format!("{full}...{full}")), &kiro).unwrap().contains("..."));
        assert_eq!(truncated(&Secret::new("short"), &config("simulator")), None);
    }
}
