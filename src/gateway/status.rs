//! Everything an operator wants to see at a glance, from memory: what the status page shows.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use serde::Serialize;

use super::{AccountCounts, Gateway, wall_clock};
use crate::metrics::Observed;
use crate::pool::short;

/// What the gateway is doing now and what it did since the start. Without secrets: ids are cut to 8 characters.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Version of this program.
    pub version: &'static str,
    /// `kiro` or `simulator`.
    pub upstream: &'static str,
    /// As in `/health`: `healthy` or `degraded`.
    pub status: &'static str,
    /// As in `/health`: `connected` or `disconnected`.
    pub redis: &'static str,
    /// The time of this snapshot, RFC 3339.
    pub now: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Requests for an answer that run now, streamed or not.
    pub in_flight: usize,
    /// Answers that are being streamed now.
    pub streams_open: u64,
    /// Requests that wait for an account.
    pub waiting: usize,
    /// As in `/health`.
    pub counts: AccountCounts,
    /// Until when the pool is slowed down because several accounts are under suspicion (K92), RFC 3339.
    pub braked_until: Option<String>,
    /// Every account, sorted by id.
    pub accounts: Vec<AccountStatus>,
    /// Requests since the start by outcome: `complete`, `error`, `cancelled`, `refused`.
    pub requests: BTreeMap<&'static str, u64>,
    /// From arrival to the first upstream event.
    pub first_event_seconds: Observed,
    /// What the gateway itself took of each request.
    pub overhead_seconds: Observed,
    /// Records that wait to be written to the store: accounts, tokens.
    pub queued_writes: (usize, usize),
    /// As in `/health`: `off`, `ok` or `broken`.
    pub journal: &'static str,
}

/// One account of [`Status`].
#[derive(Debug, Clone, Serialize)]
pub struct AccountStatus {
    /// The first 8 characters of its id.
    pub id: String,
    /// `customName`.
    pub name: Option<String>,
    /// `social`, `idc`, `external`, `api-key`.
    pub method: &'static str,
    /// `healthy`, `half-open`, `stale`, `cooling`, `no-profile`, `quota`, `ejected`, `disabled`, `unusable`.
    pub state: &'static str,
    /// The end of a rest, of a used-up quota or of the time without a profile, RFC 3339.
    pub until: Option<String>,
    /// Seconds until then.
    pub rests_seconds: Option<u64>,
    /// Requests that it serves for this process.
    pub in_flight: u32,
    /// When its access token expires, RFC 3339.
    pub expires_at: Option<String>,
    /// Why it is unusable, naming the field; or why it rests or is ejected. `suspicious, back in 6 h` (K91).
    pub problem: Option<String>,
    /// What its answers have taught this process, in words: a refused profile, a model that isn't for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<String>,
}

impl Gateway {
    /// Everything an operator wants to see, from memory: no store is asked and nothing is locked for longer than a
    /// request's selection locks it.
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let health = self.health();
        let now = wall_clock();
        let account = |account: crate::pool::AccountInfo| {
            let until = account.state.until();
            let rests_seconds = until.map(|until| until.duration_since(now).as_secs().max(0).unsigned_abs());
            let suspicious = (account.condition() == "suspicious").then(|| back_in(rests_seconds.unwrap_or(0)));
            AccountStatus {
                id: short(&account.id).to_owned(),
                name: account.name,
                method: account.method.as_str(),
                state: account.state.as_str(),
                until: until.map(text),
                rests_seconds,
                in_flight: account.in_flight,
                expires_at: account.expires_at.map(text),
                learned: account.learned,
                problem: account.problem.or(suspicious).or(account.cause),
            }
        };
        Status {
            version: health.version,
            upstream: shared.upstream_word().unwrap_or("kiro"),
            status: health.status,
            redis: health.redis,
            now: text(now),
            uptime_seconds: health.uptime,
            in_flight: shared.in_flight.load(Ordering::Acquire),
            streams_open: u64::try_from(shared.metrics.streams_open.get()).unwrap_or(0),
            waiting: shared.pool.counts().waiting,
            counts: health.accounts,
            braked_until: shared.pool.brake().map(text),
            accounts: self.accounts().into_iter().map(account).collect(),
            requests: shared.metrics.outcomes().into_iter().collect(),
            first_event_seconds: shared.metrics.first_event.observed(),
            overhead_seconds: shared.metrics.overhead.observed(),
            queued_writes: shared.pool.queued_writes(),
            journal: health.journal,
        }
    }
}

fn back_in(seconds: u64) -> String {
    match seconds.div_ceil(60) {
        minutes @ 0..=99 => format!("suspicious, back in {minutes} min"),
        minutes => format!("suspicious, back in {} h", (minutes + 30) / 60),
    }
}

fn text(at: Timestamp) -> String {
    format!("{at:.0}")
}
