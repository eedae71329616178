//! Notices to `KIRO_WEBHOOK_URL`: what changed for the worse or back, as one small JSON POST each.
//!
//! A task of its own looks at the state every two seconds ([`Notices`]), so no request knows of it. Another sends, one
//! notice after the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::Sha256;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::outside::{now, wall_clock};
use super::shared::Shared;
use crate::config::Config;
use crate::error::Error;
use crate::policy::health::HealthState;
use crate::policy::notices::{Condition, Facts, Notices, Subject};
use crate::pool::{AccountInfo, short};
use crate::proto::record::rfc3339;
use crate::secret::Secret;
use crate::upstream::{Upstream, root_cause};

/// How often the state is looked at.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often until the accounts are known: what dies after the first look is news.
const FIRST: Duration = Duration::from_millis(20);
// Bound: notices to the webhook that wait | MOST_WAITING | what is more is said later
/// Notices that wait to be sent; what is more is said later.
const MOST_WAITING: usize = 64;
/// Pauses in front of the tries.
const TRIES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(10)];
/// For one try.
const TIMEOUT: Duration = Duration::from_secs(5);
const SIGNATURE: &str = "x-webhook-signature";

/// Where notices go.
#[derive(Debug, Clone)]
pub struct Webhook {
    client: reqwest::Client,
    url: Secret,
    secret: Option<Secret>,
}

impl Webhook {
    /// The one of `KIRO_WEBHOOK_URL`; none without that setting.
    ///
    /// # Errors
    /// The client can't be made.
    pub fn of(config: &Config, upstream: &Upstream) -> Result<Option<Self>, Error> {
        let Some(url) = config.webhook_url.clone() else { return Ok(None) };
        Ok(Some(Self { client: upstream.outside_client()?, url, secret: config.webhook_secret.clone() }))
    }

    /// Sends a notice of the kind `test`, once.
    ///
    /// # Errors
    /// What went wrong, in words without the URL.
    pub async fn test(&self) -> Result<(), String> {
        self.post(&body("test", "kiro-server: this is a test notice.", Map::new())).await
    }

    /// Any status from 200 to 299 counts. A redirection isn't followed, and the answer's body isn't read.
    async fn post(&self, body: &str) -> Result<(), String> {
        let request = self.client.post(self.url.expose()).timeout(TIMEOUT);
        let mut request = request.header("content-type", "application/json").body(body.to_owned());
        if let Some(secret) = &self.secret {
            request = request.header(SIGNATURE, signature(secret, body));
        }
        match request.send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("status {}", answer.status().as_u16())),
            Err(error) if error.is_timeout() => Err("timed out".to_owned()),
            Err(error) if error.is_connect() => Err(format!("can't be reached: {}", root_cause(&error))),
            Err(_) => Err("the exchange broke off".to_owned()),
        }
    }

    /// Up to three tries.
    async fn deliver(&self, body: &str) -> Result<(), String> {
        let mut last = String::new();
        for pause in TRIES {
            tokio::time::sleep(pause).await;
            match self.post(body).await {
                Ok(()) => return Ok(()),
                Err(what) => last = what,
            }
        }
        Err(last)
    }
}

/// `sha256=HEX`: HMAC-SHA-256 of the body.
fn signature(secret: &Secret, body: &str) -> String {
    use std::fmt::Write as _;
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) else { return String::new() };
    mac.update(body.as_bytes());
    let mut text = "sha256=".to_owned();
    for byte in mac.finalize().into_bytes() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A notice: `id` is the same in every try.
fn body(kind: &str, text: &str, more: Map<String, Value>) -> String {
    let mut notice = Map::from_iter([
        ("id".to_owned(), json!(uuid::Uuid::new_v4().to_string())),
        ("kind".to_owned(), json!(kind)),
        ("text".to_owned(), json!(text)),
        ("at".to_owned(), json!(rfc3339(wall_clock()))),
    ]);
    notice.extend(more);
    Value::Object(notice).to_string()
}

/// Looks at the state and sends, until `stop`.
pub(super) async fn watch(shared: Weak<Shared>, webhook: Webhook, stop: CancellationToken) {
    let (queue, waiting) = mpsc::channel(MOST_WAITING);
    let looking = look(shared.clone(), queue);
    let sending = send(shared, webhook, waiting);
    tokio::select! {
        () = stop.cancelled() => {}
        () = async { tokio::join!(looking, sending); } => {}
    }
}

async fn look(shared: Weak<Shared>, queue: mpsc::Sender<String>) {
    let (began, mut notices) = (now(), Notices::default());
    let mut pause = FIRST;
    loop {
        tokio::time::sleep(pause).await;
        let Some(shared) = shared.upgrade() else { return };
        if !shared.pool.is_ready() {
            continue;
        }
        pause = INTERVAL;
        let accounts: BTreeMap<String, AccountInfo> =
            shared.pool.accounts().into_iter().map(|account| (account.id.to_string(), account)).collect();
        let facts = facts(&shared, &accounts);
        for (subject, condition) in notices.look(&facts, began.elapsed(), queue.capacity()) {
            let notice = notice(&subject, condition, &accounts, &facts);
            if queue.try_send(notice).is_err() {
                return;
            }
        }
    }
}

async fn send(shared: Weak<Shared>, webhook: Webhook, mut waiting: mpsc::Receiver<String>) {
    while let Some(notice) = waiting.recv().await {
        let outcome = webhook.deliver(&notice).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.metrics.count_notice(outcome.is_ok());
        if let Err(what) = outcome {
            tracing::warn!(what, "a notice could not be sent to KIRO_WEBHOOK_URL");
        }
    }
}

fn facts(shared: &Arc<Shared>, accounts: &BTreeMap<String, AccountInfo>) -> Facts {
    let in_use = accounts.iter().filter(|(_, account)| account.state != HealthState::Disabled);
    Facts {
        accounts: in_use.map(|(id, account)| (id.clone(), condition(account))).collect(),
        serving: shared.pool.able(|view| !shared.is_cut_off(view)).serving,
        wanted: shared.config.webhook_min_accounts,
        version_refused: shared.upstream.gate().status().refused_for.is_some(),
        store_away: !shared.store.status().is_connected(),
    }
}

/// None: a short rest, or a state that the next request decides.
fn condition(account: &AccountInfo) -> Option<Condition> {
    match account.state {
        HealthState::Healthy => Some(Condition::Fine),
        HealthState::Unusable => Some(Condition::Ejected),
        HealthState::Ejected if account.cause.as_ref().is_some_and(|cause| cause.contains("suspended")) => {
            Some(Condition::Suspended)
        }
        HealthState::Ejected => Some(Condition::Ejected),
        HealthState::Quota { .. } => Some(Condition::OutOfQuota),
        HealthState::Cooling { .. } if account.condition() == "suspicious" => Some(Condition::Suspicious),
        HealthState::Cooling { .. }
        | HealthState::NoProfile { .. }
        | HealthState::HalfOpen
        | HealthState::Stale
        | HealthState::Disabled => None,
    }
}

/// Names of accounts stay out: people put e-mail addresses there.
fn notice(subject: &Subject, condition: Condition, accounts: &BTreeMap<String, AccountInfo>, facts: &Facts) -> String {
    let counts = json!({ "total": accounts.len(), "healthy": facts.serving });
    let mut more = Map::from_iter([("accounts".to_owned(), counts)]);
    let (healthy, total) = (facts.serving, accounts.len());
    let text = match subject {
        Subject::Account(id) => {
            more.insert("account".to_owned(), json!(short(id)));
            account_text(id, condition, accounts.get(id), &mut more)
        }
        Subject::Pool => match condition {
            Condition::Fine => format!("Enough Kiro accounts can serve again: {healthy} of {total}."),
            Condition::Empty => format!("No Kiro account can serve now, of {total}."),
            _ => format!("Only {healthy} of {total} Kiro accounts can serve; {} are wanted.", facts.wanted),
        },
        Subject::ClientVersion => match condition {
            Condition::Fine => "Kiro takes the client version again.".to_owned(),
            _ => "Kiro refuses the client version: set KIRO_CLIENT_VERSION to a newer one, or update.".to_owned(),
        },
        Subject::Store => match condition {
            Condition::Fine => "The store is back.".to_owned(),
            _ => "The store has been away for a minute; accounts and tokens come from memory.".to_owned(),
        },
    };
    body(condition.kind(subject), &text, more)
}

fn account_text(
    id: &str,
    condition: Condition,
    account: Option<&AccountInfo>,
    more: &mut Map<String, Value>,
) -> String {
    let until: Option<Timestamp> = account.and_then(|account| account.state.until());
    let cause = account.and_then(|account| account.problem.clone().or_else(|| account.cause.clone()));
    let what = match condition {
        Condition::Suspended => "was suspended by Kiro: its owner must act",
        Condition::OutOfQuota => "has used up its quota",
        Condition::Suspicious => "rests: Kiro reports suspicious activity",
        Condition::Fine => return format!("Kiro account {} is back.", short(id)),
        _ => "is out until somebody acts",
    };
    let mut text = format!("Kiro account {} {what}", short(id));
    if let Some(cause) = cause {
        if condition != Condition::Suspicious {
            text = format!("{text} ({cause})");
        }
        more.insert("cause".to_owned(), json!(cause));
    }
    if let Some(until) = until {
        let until = format!("{until:.0}");
        text = format!("{text}, until {until}");
        more.insert("until".to_owned(), json!(until));
    }
    text + "."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_signed_as_rfc_4231_has_it() {
        let secret = Secret::new("Jefe");
        let signed = signature(&secret, "what do ya want for nothing?");
        assert_eq!(signed, "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
