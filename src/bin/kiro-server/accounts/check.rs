//! `accounts check`: the usage of accounts (K62–K64), how they are served, and their models (K125).

use std::process::ExitCode;

use clap::ArgMatches;
use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use kiro_messages::config::Config;
use kiro_messages::credentials::RefreshError;
use kiro_messages::policy::health::HealthState;
use kiro_messages::policy::outcome::{Event, Outcome};
use kiro_messages::pool::{Lease, Wanted, Why};
use kiro_messages::proto::kiro::catalogue::Listed;
use kiro_messages::proto::kiro::fault::{Fault, FaultKind};
use kiro_messages::proto::kiro::usage::Usage;
use kiro_messages::proto::record::{Method, Note, rfc3339};
use serde_json::{Value, json};

use super::super::desk::{Desk, DeskAccount, find};
use super::super::output::{CommandFailure, bar, name, number, plain, relative, short, show, show_json, table};
use super::super::survey::{Search, Survey};

/// Accounts asked at a time.
const AT_A_TIME: usize = 8;
/// A token that ends sooner is renewed first.
const MARGIN_SECONDS: i64 = 10;

pub async fn run(config: Config, options: &ArgMatches) -> Result<ExitCode, CommandFailure> {
    let desk = Desk::open(config).await?;
    let accounts = desk.accounts().await?;
    let chosen: Vec<&DeskAccount> = match options.get_one::<String>("id") {
        Some(id) => vec![find(&accounts, id)?],
        None => accounts.iter().collect(),
    };
    if chosen.is_empty() {
        let pool = desk.store.pool_name();
        return Err(CommandFailure::new(format!("no accounts in {pool}; {}", desk.config.store.cure())));
    }
    let force = options.get_flag("refresh");
    let checks = stream::iter(&chosen).map(|entry| check(&desk, entry, force)).buffered(AT_A_TIME);
    let checks: Vec<Checked> = checks.collect().await;
    if options.get_flag("json") {
        let list: Vec<Value> = chosen.iter().zip(&checks).map(|(entry, checked)| json_of(entry, checked)).collect();
        show_json(&json!({ "accounts": list }))?;
    } else {
        let now = Timestamp::now();
        let head = ["ID", "NAME", "PLAN", "USED", "", "", "RESETS", "SHAPE", "SEARCH", "MODELS", ""];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(chosen.iter().zip(&checks).map(|(entry, checked)| row(entry, checked, now)));
        show(&table(&rows))?;
        if options.get_one::<String>("id").is_some() {
            let told: String = checks.iter().filter_map(|checked| checked.survey.as_ref()).map(details).collect();
            show(&told)?;
        }
    }
    desk.close().await?;
    let fine = checks.iter().all(|checked| checked.usage.is_ok());
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Checked {
    usage: Result<Usage, Problem>,
    refreshed: bool,
    /// Whether the account has a profile, from its records or just found.
    profile: bool,
    /// None: it wasn't asked.
    survey: Option<Survey>,
}

/// A problem, and its cure.
struct Problem {
    message: String,
    cure: &'static str,
}

async fn check(desk: &Desk, entry: &DeskAccount, force: bool) -> Checked {
    let (mut refreshed, mut profile) = (false, false);
    let usage = ask(desk, entry, force, &mut refreshed, &mut profile).await;
    // A resting account is left alone, because this goes to the hosts of conversations.
    let rests = matches!(entry.info.state, HealthState::Cooling { .. });
    let survey = match take(desk, entry) {
        Ok(lease) if usage.is_ok() && !rests => Some(Survey::of(desk, &lease).await),
        _ => None,
    };
    Checked { usage, refreshed, profile, survey }
}

async fn ask(
    desk: &Desk,
    entry: &DeskAccount,
    force: bool,
    refreshed: &mut bool,
    profile: &mut bool,
) -> Result<Usage, Problem> {
    let id = &*entry.info.id;
    let token = desk.credentials.credential(id).unwrap_or_default();
    let refreshable = entry.info.method != Method::ApiKey && token.refresh_token.is_some();
    let soon = Timestamp::now().as_second() + MARGIN_SECONDS;
    let live = token.access_token.is_some() && token.expires_at.is_some_and(|end| end.as_second() > soon);
    if refreshable && (force || !live) {
        desk.credentials.refresh(id).await.map_err(of_refresh)?;
        *refreshed = true;
    }
    let mut lease = take(desk, entry)?;
    if lease.account().wants_profiles() {
        desk.credentials.look_up_profiles(&mut lease).await;
    }
    *profile = lease.account().profile_arn().is_some();
    let mut answer = desk.credentials.usage_limits(&lease).await;
    if let Err(fault) = &answer
        && fault.kind == FaultKind::TokenRejected
        && refreshable
        && !*refreshed
    {
        desk.credentials.force_refresh(&lease).await.map_err(|fault| of_fault(&fault))?;
        *refreshed = true;
        answer = desk.credentials.usage_limits(&lease).await;
    }
    match answer {
        Ok(answer) => Usage::parse(&answer).ok_or(Problem {
            message: "upstream's answer can't be read".to_owned(),
            cure: "try again; behind a proxy, look at what it answers",
        }),
        Err(fault) => {
            if fault.kind == FaultKind::Suspended && entry.info.state != HealthState::Ejected {
                eject_suspended(desk, entry);
            }
            let mut problem = of_fault(&fault);
            if fault.kind == FaultKind::ProfileArn && !lease.account().has_own_profile() {
                problem.cure = "`kiro-server doctor --live --only profile` says what Kiro takes; please report it";
            }
            Err(problem)
        }
    }
}

/// The one mark that a person's question leaves (K62).
fn eject_suspended(desk: &Desk, entry: &DeskAccount) {
    let now = Timestamp::now();
    let mark = Some(Note::Ejected { cause: FaultKind::Suspended.as_str().to_owned() });
    desk.pool.write(&entry.info.id, &Outcome { at: now, started: now, event: Event::Fault { mark, used: false } });
}

/// A lease of this account in any state; it records nothing.
fn take(desk: &Desk, entry: &DeskAccount) -> Result<Lease, Problem> {
    let wanted = Wanted { only: Some(&entry.info.id), ..Wanted::default() };
    desk.pool.select(&wanted).map_err(|none| match none.why {
        Why::Unusable => Problem {
            message: entry.info.problem.clone().unwrap_or_else(|| "it has no credential".to_owned()),
            cure: "`kiro-server doctor` says what to do",
        },
        _ => {
            Problem { message: "it left the pool meanwhile".to_owned(), cure: "look with `kiro-server accounts list`" }
        }
    })
}

const LOG_IN_AGAIN: &str = "sign in anew: `kiro-server accounts login --replace ID`";
const TRY_LATER: &str = "try again in a minute";
const LOOK_AT_NETWORK: &str = "`kiro-server doctor` looks at the network";

fn of_refresh(error: RefreshError) -> Problem {
    let (message, cure) = match error {
        RefreshError::Gone => ("it left the pool meanwhile", "look with `kiro-server accounts list`"),
        RefreshError::NoCredential => {
            ("it has no token record that can be read", "`kiro-server doctor` says what to do")
        }
        RefreshError::ReadOnly => ("the store is read-only: a new token could not be saved", "make it writable"),
        RefreshError::NotRefreshable => {
            ("its token can't be renewed: part of what that needs is missing", LOG_IN_AGAIN)
        }
        RefreshError::Rejected => {
            ("its refresh token or client registration was rejected; it is ejected", LOG_IN_AGAIN)
        }
        RefreshError::Registration => {
            ("its client registration is missing, expired or refused", "log in again in Kiro")
        }
        RefreshError::Refused(refusal) => {
            return Problem { message: format!("the refresh was refused ({})", refusal.as_str()), cure: TRY_LATER };
        }
        RefreshError::Unreachable | RefreshError::Network => ("the refresh address can't be reached", LOOK_AT_NETWORK),
        RefreshError::Timeout => ("the refresh took too long", LOOK_AT_NETWORK),
        RefreshError::Pausing | RefreshError::StillLocked | RefreshError::Locked | RefreshError::Closed => {
            ("another refresh of it is under way", TRY_LATER)
        }
    };
    Problem { message: message.to_owned(), cure }
}

/// Upstream's own text isn't shown: it holds user ids and links (K48).
fn of_fault(fault: &Fault) -> Problem {
    let cure = match fault.kind {
        FaultKind::TokenRejected | FaultKind::Forbidden => LOG_IN_AGAIN,
        FaultKind::Suspended => "ask Kiro's support; afterwards `kiro-server accounts enable`",
        FaultKind::QuotaMonth | FaultKind::QuotaDay => "wait for the reset, or buy more",
        FaultKind::Network | FaultKind::Unreachable | FaultKind::Timeout | FaultKind::Endpoint => LOOK_AT_NETWORK,
        FaultKind::ClientVersion => "update kiro-server, or set KIRO_CLIENT_VERSION to a newer version of Kiro's IDE",
        FaultKind::ProfileArn => "correct or remove profileArn in its token record",
        _ => TRY_LATER,
    };
    let Some(status) = fault.status else {
        // Without a status the sentence is ours.
        return Problem { message: plain(&fault.message, 100), cure };
    };
    let reason = fault.reason.as_deref().map(|reason| format!(", {}", plain(reason, 60))).unwrap_or_default();
    Problem { message: format!("{} (HTTP {status}{reason})", fault.kind.as_str()), cure }
}

fn row(entry: &DeskAccount, checked: &Checked, now: Timestamp) -> Vec<String> {
    let mut row = vec![short(&entry.info.id).to_owned(), name(entry.info.name.as_deref())];
    match &checked.usage {
        Ok(usage) => {
            row.push(usage.plan.as_deref().map_or_else(|| "-".to_owned(), |plan| plain(plan, 24)));
            row.push(match usage.limit {
                Some(limit) => format!("{} of {}", number(usage.used), number(limit)),
                None => format!("{}, no limit named", number(usage.used)),
            });
            row.push(usage.share().map(bar).unwrap_or_default());
            row.push(usage.share().map(|share| format!("{:.0} %", share * 100.0)).unwrap_or_default());
            row.push(usage.resets_at.map_or_else(|| "-".to_owned(), |reset| relative(reset, now)));
            let survey = checked.survey.as_ref();
            let none = || "-".to_owned();
            row.push(survey.and_then(Survey::shape).map_or_else(none, |shape| shape.to_string()));
            row.push(survey.map_or_else(none, |survey| search(&survey.search).to_owned()));
            let models = survey.and_then(|survey| survey.models.as_ref().ok());
            row.push(models.map_or_else(none, |models| models.models().len().to_string()));
            row.push(if checked.refreshed { "token renewed".to_owned() } else { String::new() });
        }
        Err(problem) => row.push(format!("✗ {} → {}", problem.message, problem.cure)),
    }
    row
}

fn search(search: &Search) -> &'static str {
    match search {
        Search::Offered(_) => "yes",
        Search::Not(_) => "no",
        Search::Unknown => "-",
    }
}

/// The lines below the table when one account was named.
fn details(survey: &Survey) -> String {
    let mut text = format!("\nShapes: {}\n", survey.words());
    if let Search::Not(why) = &survey.search {
        text.push_str(&format!("Web search: no: {why}\n"));
    }
    match &survey.models {
        Ok(models) => {
            text.push_str("Models, as Kiro lists them for this account:\n");
            let tokens = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
            let row = |model: &Listed| {
                vec![
                    format!("  {}", plain(&model.kiro_id, 60)),
                    tokens(model.window),
                    tokens(model.max_output),
                    efforts(model),
                ]
            };
            let head = ["  ID", "WINDOW", "MOST OUTPUT", "EFFORTS"].map(str::to_owned).to_vec();
            text.push_str(&table(&[vec![head], models.models().iter().map(row).collect()].concat()));
        }
        Err(why) => text.push_str(&format!("Models: not known, the embedded table serves: {why}\n")),
    }
    for word in &survey.learned {
        text.push_str(&format!("Learned: {}\n", plain(word, 200)));
    }
    text
}

fn efforts(model: &Listed) -> String {
    let effort = model.fields.as_ref().and_then(|fields| fields.effort.as_ref());
    let levels = effort.and_then(|effort| effort.levels.as_deref());
    levels.map_or_else(
        || "-".to_owned(),
        |levels| levels.iter().map(|level| level.as_str()).collect::<Vec<_>>().join(" "),
    )
}

fn json_of(entry: &DeskAccount, checked: &Checked) -> Value {
    let usage = checked.usage.as_ref().ok();
    let error = checked.usage.as_ref().err();
    let survey = checked.survey.as_ref();
    let model = |model: &Listed| json!({ "id": model.kiro_id, "name": model.name, "window": model.window, "max_output": model.max_output });
    json!({
        "id": short(&entry.info.id),
        "name": entry.info.name,
        "ok": usage.is_some(),
        "plan": usage.and_then(|usage| usage.plan.clone()),
        "used": usage.map(|usage| usage.used),
        "limit": usage.and_then(|usage| usage.limit),
        "percent": usage.and_then(Usage::share).map(|share| (share * 1000.0).round() / 10.0),
        "resets_at": usage.and_then(|usage| usage.resets_at).map(rfc3339),
        "email": usage.and_then(|usage| usage.email.clone()),
        "profile": checked.profile,
        "token_renewed": checked.refreshed,
        "shape": survey.and_then(Survey::shape).map(|shape| shape.as_str()),
        "shapes": survey.map(|survey| {
            let shapes = survey.shapes.iter().map(|(shape, answer)| {
                json!({ "shape": shape.as_str(), "answers": answer.is_ok(), "error": answer.as_ref().err().map(ToString::to_string) })
            });
            shapes.collect::<Vec<_>>()
        }),
        "search": survey.and_then(|survey| match survey.search {
            Search::Offered(_) => Some(true),
            Search::Not(_) => Some(false),
            Search::Unknown => None,
        }),
        "models": survey.and_then(|survey| survey.models.as_ref().ok()).map(|models| {
            models.models().iter().map(model).collect::<Vec<_>>()
        }),
        "learned": survey.map(|survey| survey.learned.clone()),
        "error": error.map(|problem| json!({ "message": problem.message, "cure": problem.cure })),
    })
}
