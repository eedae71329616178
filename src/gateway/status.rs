//! The gateway's state at a glance, from memory: the content of the status page.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use serde::Serialize;

use super::keys::KeyStatus;
use super::outside::wall_clock;
use super::shared::{Gateway, Shared};
use crate::metrics::{Observed, Scrape};
use crate::policy::health::HealthState;
use crate::policy::marks::Circuit;
use crate::pool::{AccountInfo, Credits, short};
use crate::proto::record::rfc3339;
use crate::store::Status as StoreStatus;

/// What the gateway does now, and what it has done since the start. Without secrets: ids are cut to 8 characters.
#[derive(Debug, Clone, Serialize)]
pub struct GatewayStatus {
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
    /// Running requests for an answer, streamed or not.
    pub in_flight: usize,
    /// Running streams.
    pub streams_open: u64,
    /// Requests that wait for an account.
    pub waiting: usize,
    /// As in `/health`.
    pub counts: AccountCounts,
    /// Until when the pool is slowed down because several accounts are under suspicion (K92), RFC 3339.
    pub braked_until: Option<String>,
    /// Every account, sorted by id.
    pub accounts: Vec<AccountStatus>,
    /// Named client keys with their counts, busy ones first, at most 100.
    pub keys: Vec<KeyStatus>,
    /// How many named client keys there are.
    pub keys_total: usize,
    /// Requests since the start by outcome: `complete`, `error`, `cancelled`, `refused`.
    pub requests: BTreeMap<&'static str, u64>,
    /// From arrival to the first upstream event.
    pub first_event_seconds: Observed,
    /// The gateway's own time of each request.
    pub overhead_seconds: Observed,
    /// Records that wait to be written to the store: accounts, tokens.
    pub queued_writes: (usize, usize),
    /// As in `/health`: `off`, `ok` or `broken`.
    pub journal: &'static str,
}

/// The body of `GET /health`.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    /// `healthy`, or `degraded`: something is wrong, and `can_serve` says whether it serves all the same.
    pub status: &'static str,
    /// Whether a request would probably be served now: status 200, else 503.
    #[serde(rename = "canServe")]
    pub can_serve: bool,
    /// `connected` or `disconnected`; for the embedded file store too.
    pub redis: &'static str,
    /// The accounts of the snapshot.
    pub accounts: AccountCounts,
    /// Seconds since the start.
    pub uptime: u64,
    /// Version of this program.
    pub version: &'static str,
    /// `simulator` while answers are simulated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<&'static str>,
    /// Every upstream host that was called: `closed`, `half-open` or `open` (K120).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, &'static str>,
    /// Upstream's verdict on our client version.
    #[serde(rename = "clientVersion")]
    pub client_version: ClientVersion,
    /// Refreshed tokens that wait to be saved. Without `KIRO_STATE_DIR` these logins are lost if the process ends now.
    #[serde(rename = "unsavedTokens")]
    pub unsaved_tokens: usize,
    /// `KIRO_STATE_DIR`, where they are kept meanwhile: `off` without one, `ok`, or `broken` when the last one could
    /// not be kept.
    pub journal: &'static str,
}

/// Whether upstream takes this program's client version (K107).
#[derive(Debug, Clone, Serialize)]
pub struct ClientVersion {
    /// `KIRO_CLIENT_VERSION`.
    pub value: String,
    /// Some host refuses it.
    pub refused: bool,
    /// Since when, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// How many accounts there are.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct AccountCounts {
    /// In the snapshot.
    pub total: usize,
    /// Those that would be asked now: able to serve, with a token or one refresh away from it, and reachable from here.
    pub healthy: usize,
}

/// One account of [`GatewayStatus`].
#[derive(Debug, Clone, Serialize)]
pub struct AccountStatus {
    /// The first 8 characters of its id.
    pub id: String,
    /// `customName`.
    pub name: Option<String>,
    /// `social`, `idc`, `external`, `api-key`.
    pub method: &'static str,
    /// Whose account it is (K73): `social`, `builder-id`, `enterprise`, `external`, `api-key`, `unsure`.
    pub kind: &'static str,
    /// The region in which Kiro is asked for it.
    pub region: String,
    /// What goes out as its profile: `own`, `listed`, `service`, `none`, or `missing`.
    pub profile: &'static str,
    /// `healthy`, `half-open`, `stale`, `cooling`, `no-profile`, `quota`, `ejected`, `disabled`, `unusable`.
    pub state: &'static str,
    /// The end of a rest, of a used-up quota or of the time without a profile, RFC 3339.
    pub until: Option<String>,
    /// Seconds until then.
    pub rests_seconds: Option<u64>,
    /// This process's requests on it.
    pub in_flight: u32,
    /// When its access token expires, RFC 3339.
    pub expires_at: Option<String>,
    /// When the client registration of an IdC account ends, RFC 3339 (K99).
    pub registration_expires_at: Option<String>,
    /// Why it is unusable, naming the field; or why it rests or is ejected. `suspicious, back in 6 h` (K91).
    pub problem: Option<String>,
    /// What it had used of its quota when Kiro was last asked; null: that isn't known (K146).
    pub credits: Option<CreditsStatus>,
    /// This process's lessons from its answers, in words: a refused profile, a model that it doesn't have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<String>,
}

/// An account's quota in credits.
#[derive(Debug, Clone, Serialize)]
pub struct CreditsStatus {
    /// Used so far.
    pub used: f64,
    /// Null: Kiro names none.
    pub limit: Option<f64>,
    /// When the quota starts again, RFC 3339.
    pub resets_at: Option<String>,
    /// When Kiro said so, RFC 3339.
    pub asked_at: String,
}

impl From<Credits> for CreditsStatus {
    fn from(known: Credits) -> Self {
        Self {
            used: known.used,
            limit: known.limit,
            resets_at: known.resets_at.map(text),
            asked_at: text(known.asked_at),
        }
    }
}

impl Gateway {
    /// The gateway's state, from memory: no store is asked, and no lock is held longer than by a request's selection.
    pub fn status(&self) -> GatewayStatus {
        let shared = &self.shared;
        let health = self.health();
        let now = wall_clock();
        let account = |account: AccountInfo| {
            let until = account.state.until();
            let rests_seconds = until.map(|until| until.duration_since(now).as_secs().max(0).unsigned_abs());
            let suspicious = (account.condition() == "suspicious").then(|| back_in(rests_seconds.unwrap_or(0)));
            AccountStatus {
                id: short(&account.id).to_owned(),
                name: account.name,
                method: account.method.as_str(),
                kind: account.kind.as_str(),
                region: account.region,
                profile: account.profile,
                state: account.state.as_str(),
                until: until.map(text),
                rests_seconds,
                in_flight: account.in_flight,
                expires_at: account.expires_at.map(text),
                registration_expires_at: account.registration_expires_at.map(text),
                credits: account.credits.map(CreditsStatus::from),
                learned: account.learned,
                problem: account.problem.or(suspicious).or(account.cause),
            }
        };
        let (keys, keys_total) = shared.keys.status(now);
        GatewayStatus {
            keys,
            keys_total,
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
            accounts: shared.pool.accounts().into_iter().map(account).collect(),
            requests: shared.metrics.outcomes().into_iter().collect(),
            first_event_seconds: shared.metrics.first_event.observed(),
            overhead_seconds: shared.metrics.overhead.observed(),
            queued_writes: shared.pool.queued_writes(),
            journal: health.journal,
        }
    }
}

impl Gateway {
    /// From memory.
    pub fn health(&self) -> Health {
        let shared = &self.shared;
        let connected = shared.store.status().is_connected();
        let counts = shared.pool.counts();
        let gate = shared.upstream.gate().status();
        let able = shared.pool.able(|view| !shared.is_cut_off(view));
        let serves = able.serving + able.last_resort > 0;
        let can_serve = shared.pool.is_ready() && serves && shared.keys.is_known() && !gate.shut;
        let fine = matches!(shared.store.status(), StoreStatus::Connected)
            && able.serving > 0
            && !shared.pool.is_doubtful()
            && gate.refused_for.is_none();
        Health {
            status: if can_serve && fine { "healthy" } else { "degraded" },
            can_serve,
            redis: if connected { "connected" } else { "disconnected" },
            accounts: AccountCounts { total: counts.total, healthy: able.serving },
            uptime: shared.began.elapsed().as_secs(),
            version: env!("CARGO_PKG_VERSION"),
            upstream: shared.upstream_word(),
            hosts: shared.hosts().map(|(host, circuit)| (host, circuit.as_str())).collect(),
            client_version: ClientVersion {
                value: shared.config.client_version.clone(),
                refused: gate.refused_for.is_some(),
                since: gate
                    .refused_for
                    .map(|ago| rfc3339(wall_clock() - jiff::SignedDuration::try_from(ago).unwrap_or_default())),
            },
            unsaved_tokens: shared.pool.queued_writes().1,
            journal: match shared.pool.journal_works() {
                None => "off",
                Some(true) => "ok",
                Some(false) => "broken",
            },
        }
    }

    /// Every metric as OpenMetrics text.
    pub fn metrics(&self) -> String {
        let shared = &self.shared;
        let counters = shared.pool.counters();
        let latency = shared.store.latency();
        let accounts = shared.pool.accounts();
        let unknown = |account: &&AccountInfo| account.state.is_served() && account.credits.is_none();
        let requests = shared.requests.figures();
        shared.metrics.text(Scrape {
            in_flight: shared.in_flight.load(Ordering::Acquire),
            waiting: shared.pool.counts().waiting,
            waits: counters.waits.load(Ordering::Relaxed),
            request_memory: requests.held,
            request_memory_waits: [("waited", requests.waits), ("refused", requests.refused)],
            connects: shared.upstream.connects(),
            connects_ahead: shared.upstream.connects_ahead(),
            idle_connections: shared.upstream.idle_connections(),
            states: shared.pool.states().to_vec(),
            braked: shared.pool.brake().is_some(),
            account_in_flight: in_flight_by_id(&accounts),
            credits: credits_by_id(&accounts),
            without_credits: accounts.iter().filter(unknown).count(),
            refreshes: shared.credentials.counters().outcomes().to_vec(),
            snapshots: (counters.snapshots.load(Ordering::Relaxed), counters.snapshot_failures.load(Ordering::Relaxed)),
            redis: Some(latency.observed()),
            redis_errors: latency.errors(),
            redis_connected: shared.store.status().is_connected(),
            queued: shared.pool.queued_writes(),
            tasks: tokio::runtime::Handle::try_current().ok().map(|runtime| runtime.metrics().num_alive_tasks()),
            simulated: shared.upstream_word().is_some(),
            client_version: shared.config.client_version.clone(),
            hosts: shared.hosts().map(|(host, circuit)| (host, circuit.gauge())).collect(),
            version_refusals: shared.upstream.gate().status().counts,
        })
    }
}

impl Shared {
    fn hosts(&self) -> impl Iterator<Item = (String, Circuit)> {
        self.upstream.hosts(self.pool.now()).into_iter()
    }
}

/// Requests in flight by short id; accounts that share one are added up.
fn in_flight_by_id(accounts: &[AccountInfo]) -> Vec<(String, u32)> {
    let mut all = BTreeMap::<String, u32>::new();
    for account in accounts {
        *all.entry(short(&account.id).to_owned()).or_default() += account.in_flight;
    }
    all.into_iter().collect()
}

/// Known credits by short id; accounts that share one are added up, and the first reset counts. What an account has left
/// that is out until a person acts serves nobody.
fn credits_by_id(accounts: &[AccountInfo]) -> Vec<(String, Credits)> {
    let mut all = BTreeMap::<String, Credits>::new();
    let is_out = |state| matches!(state, HealthState::Ejected | HealthState::Disabled | HealthState::Unusable);
    let usable = accounts.iter().filter(|account| !is_out(account.state));
    for (id, known) in usable.filter_map(|account| Some((short(&account.id), account.credits?))) {
        let both = |sum: &Credits| Credits {
            used: sum.used + known.used,
            limit: sum.limit.zip(known.limit).map(|(one, other)| one + other),
            resets_at: sum.resets_at.into_iter().chain(known.resets_at).min(),
            asked_at: sum.asked_at.min(known.asked_at),
        };
        let sum = all.get(id).map_or(known, both);
        all.insert(id.to_owned(), sum);
    }
    all.into_iter().collect()
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
