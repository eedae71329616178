//! The live snapshot of accounts: selection, in-flight counts, health. Fed by the store, asked by the gateway.
//!
//! One lock guards everything; it is held for microseconds and never across an await. No call of a request reaches the
//! store (R5): selection, [`Lease`]s and reports work on memory, a background task reads the store every
//! `KIRO_ACCOUNT_CACHE_TTL` (R14) and reserves tickets (R36), and what happened leaves through the store's [`Writer`].
//!
//! # Cancellation
//! A dropped [`Lease`] gives its place back at once and changes nothing on the account (K50). A dropped
//! [`Pool::acquire`] leaves the line; an account that it was given in this moment goes to the next. Dropping the last [`Pool`] ends its background task; [`Pool::close`] waits for it.

mod line;
#[cfg(test)]
mod tests;
mod tickets;
mod view;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::{Config, DEFAULT_RUNTIME_URL, DEFAULT_UPSTREAM_URL, StoreKind};
use crate::credentials::held::{Held, later};
use crate::error::Code;
use crate::policy::alike::Alike;
use crate::policy::brake::{self, Brake};
use crate::policy::health::{Attempt, Event, Health, Outcome, Rules, SUSPICION, Standing, State, is_soft};
use crate::policy::learned::{Learned, Lesson, Variant};
use crate::policy::select::{self, Candidate, Refusal, Strategy, Tier};
use crate::proto::kiro::catalogue::Catalogue;
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::profile::{Kind, region_of};
use crate::proto::record::{Account, Method, Note, Token, Unusable};
use crate::secret::Secret;
use crate::store::journal::Journal;
use crate::store::writer::Pending;
use crate::store::{
    Clock, OutcomePatch, RawAccount, Status, Store, StoreError, StoreErrorKind, TokenKey, UnsavedToken, Writer,
};

pub use crate::proto::record::short;
use line::{Line, Needs, Number};
pub use view::{AccountId, AccountView, Addresses};
use view::{Sources, Urls, Viewed};

/// The store is not asked for all accounts more often, however fresh they are wanted.
const SHORTEST_CACHE_TTL: Duration = Duration::from_millis(50);
/// An empty pool is looked at again so often, for [`EMPTY_LOOK_FOR`] (R55).
const EMPTY_LOOK_EVERY: Duration = Duration::from_millis(250);
const EMPTY_LOOK_FOR: Duration = Duration::from_secs(2);
/// After so long an empty pool is believed (R55).
const EMPTY_BELIEVED: Duration = Duration::from_secs(60);
/// After a failed read the next one is tried so soon; a store that is back is read at once (R53).
const RETRY_READ: Duration = Duration::from_secs(1);
/// A mark that the host program writes in our place stands for so long against a snapshot (R18, R35).
const HOST_WRITES_WITHIN: Duration = Duration::from_secs(2);
/// After an unusable counter no block is asked for, for so long (R36).
const COUNTER_PAUSE: Duration = Duration::from_secs(60);
/// The end of an outage is told when what waited for it is written, or after so long (R53).
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(2);
/// What passes within this time is worth a retry (M85).
const SOON: Duration = Duration::from_secs(120);
/// The clock is not looked at more often for those in line.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);
/// The time that `KIRO_ACCOUNT_RPM` counts in (K92).
const MINUTE: Duration = Duration::from_secs(60);

/// What the pool must know of the configuration.
struct Settings {
    strategy: Strategy,
    /// `KIRO_MAX_INFLIGHT_PER_ACCOUNT`; 0: no limit.
    max_in_flight: u32,
    /// `KIRO_ACCOUNT_RPM`; 0: no limit.
    per_minute: u32,
    /// `KIRO_SUSPICION_BRAKE`.
    brake: bool,
    account_wait: Duration,
    /// How many requests may wait for an account: as many as may be in flight.
    max_waiting: usize,
    cache_ttl: Duration,
    rules: Rules,
    urls: Arc<Urls>,
    /// Where accounts are expected (R56).
    place: Arc<str>,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let cap = config.max_inflight_per_account.unwrap_or(0);
        Self {
            strategy: config.strategy,
            max_in_flight: u32::try_from(cap).unwrap_or(u32::MAX),
            per_minute: config.account_rpm,
            brake: config.suspicion_brake,
            account_wait: config.account_wait,
            max_waiting: config.max_conns,
            cache_ttl: config.account_cache_ttl.max(SHORTEST_CACHE_TTL),
            rules: Rules { cool_down: config.health_cooldown },
            urls: Arc::new(Urls {
                runtime: config.runtime_url.clone(),
                management: config.management_url.clone(),
                shapes: config.upstream_api,
                pinned: config.upstream_url != DEFAULT_UPSTREAM_URL && config.runtime_url == DEFAULT_RUNTIME_URL,
                generate: config.upstream_url.clone(),
                social_refresh: config.social_refresh_url.clone(),
                idc_refresh: config.idc_refresh_url.clone(),
                api_regions: config.api_regions.clone(),
                builder_id_profile: Some(config.builder_id_profile_arn.as_str())
                    .filter(|arn| !arn.is_empty())
                    .map(Arc::from),
                social_profile: Some(config.social_profile_arn.as_str()).filter(|arn| !arn.is_empty()).map(Arc::from),
            }),
            place: match &config.store {
                StoreKind::Redis => format!("{}pools:claude-kiro-oauth", config.redis_key_prefix).into(),
                StoreKind::File(path) => path.to_string_lossy().into(),
            },
        }
    }
}

/// Sees an outcome that would be written to an account's record: a success, a fault with a mark, a probe that heals; never
/// anything of a pinned request (N5). True: the host program writes it (R35), so that we don't; it can still be handed
/// back with [`Pool::write`], also later. Not shown, because a host has no call for it, and always written by us: the use
/// that a fault after the commit is, and what a refresh leaves in the record.
pub type Recorder = Arc<dyn Fn(&AccountId, &Outcome) -> bool + Send + Sync>;

/// Sees what an operator or a host program wants to know.
pub type Listener = Arc<dyn Fn(PoolEvent) + Send + Sync>;

/// What the pool tells its surroundings. Each is called outside the pool's lock, must not block and must not panic.
#[derive(Clone, Default)]
pub struct Hooks {
    /// See [`Recorder`].
    pub record: Option<Recorder>,
    /// See [`Listener`].
    pub event: Option<Listener>,
}

/// What [`Hooks::event`] sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolEvent {
    /// The account is out until a person acts.
    Ejected {
        /// Which account.
        id: AccountId,
        /// The `lastErrorMessage`.
        message: String,
    },
    /// The account has a new access token.
    TokenRefreshed {
        /// Which account.
        id: AccountId,
        /// When the access token expires.
        expires_at: Option<Timestamp>,
        /// How it was renewed.
        method: Method,
    },
    /// The store is away: accounts and tokens come from memory from here on (R50). Once an outage; not for a store that
    /// was never reached.
    StoreLost {
        /// Error words and addresses, never a value (R6).
        cause: String,
    },
    /// The store is back, and what had to wait for it is written. Once for each [`PoolEvent::StoreLost`], before the next.
    StoreBack {
        /// How long it was away.
        away: Duration,
        /// Account and token records written since.
        written: u64,
    },
}

/// What a request looks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// The client's model name and the known name it resolves to (R7).
    pub model_names: &'a [&'a str],
    /// Accounts that this request has tried.
    pub exclude: &'a [AccountId],
    /// What [`Strategy::Sticky`] goes by.
    pub conversation_id: &'a str,
    /// The accounts that the conversation stays with, the first that may be taken: its home, then former ones (R101).
    pub homes: &'a [AccountId],
    /// The model as Kiro calls it: accounts that lately said no to it are left out (K88). Empty: none is.
    pub kiro_id: &'a str,
    /// How well an account fits beside its health; none: all the same.
    pub fit: Option<&'a Fit>,
    /// This account and no other, whatever its state but a running `Retry-After` (N5). Its lease records no outcome.
    pub only: Option<&'a str>,
}

/// How well an account fits a request, 0 the best, the same for all that are as good: an account whose catalogue lacks the
/// model comes after those which have it (K127), one whose every shape is marked after both (K109). It excludes nobody.
/// Called under the pool's lock, for every account, with what is learned of it: it must be quick and must not call the
/// pool.
#[derive(Clone)]
pub struct Fit(Arc<FitOf>);

type FitOf = dyn Fn(&AccountView, &Learned, Timestamp) -> u8 + Send + Sync;

impl Fit {
    /// Of this function.
    pub fn new(fit: impl Fn(&AccountView, &Learned, Timestamp) -> u8 + Send + Sync + 'static) -> Self {
        Self(Arc::new(fit))
    }
}

impl fmt::Debug for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fit")
    }
}

/// No account can take the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAccount {
    /// Why.
    pub why: Why,
    /// Until the soonest account is back; none: there is none to wait for, M61 says 60 s.
    pub retry_after: Option<Duration>,
}

/// Why no account can take a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no first snapshot yet (R54).
    NotLoaded,
    /// The pool is empty or missing, and that is believed (R56).
    Empty {
        /// Where accounts are expected: the full key, or the file.
        place: Arc<str>,
    },
    /// None is in a state to serve, or none serves the model.
    Unavailable,
    /// The same, and none will be for two minutes or more (M85).
    OutOfService(Outlook),
    /// Those that are left are without a profile, for now (K78).
    NoProfile,
    /// All that could be asked have said no to the model (K88).
    Model,
    /// There are some, but this request has tried them all.
    Exhausted,
    /// All that could serve are at their cap, or half-open with their one request on the way.
    Busy,
    /// All that could serve have had their requests of this minute (K92).
    Paced,
    /// The pinned account is not in the pool.
    Unknown,
    /// The pinned account has a running `Retry-After` (N5).
    Limited,
    /// The pinned account has no readable record or no credential.
    Unusable,
}

/// Why nobody serves for a while, and until when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// When the soonest account is back; none: when a person acts.
    pub until: Option<Timestamp>,
    /// How many accounts are in which state, by its word, those that serve the model.
    pub states: BTreeMap<&'static str, usize>,
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.states.is_empty() {
            return f.write_str("No account serves this model: see notSupportedModels in their records");
        }
        if self.states.len() == 1 && self.states.contains_key("no-profile") {
            return f.write_str("No account has a Kiro profile; see `kiro-server accounts check`");
        }
        match self.until {
            Some(until) => write!(f, "No account can serve before {until:.0} (")?,
            None => f.write_str("No account can serve until a person acts (")?,
        }
        for (n, (state, count)) in self.states.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            let words = match *state {
                "quota" => "out of quota",
                "cooling" => "resting",
                "no-profile" => "without a profile",
                other => other,
            };
            write!(f, "{comma}{count} {words}")?;
        }
        f.write_str("): see `kiro-server accounts list`, or add an account")
    }
}

/// One account in lists, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountInfo {
    /// The whole id.
    pub id: AccountId,
    /// `customName`.
    pub name: Option<String>,
    /// How its credential is renewed.
    pub method: Method,
    /// Whose account it is (K73).
    pub kind: Kind,
    /// The region in which Kiro is asked for it (K74).
    pub region: String,
    /// What goes out as its profile: `own`, `listed`, `service`, `none`, or `missing`.
    pub profile: &'static str,
    /// Its state now.
    pub state: State,
    /// When its access token expires; none for API keys and where it is unknown.
    pub expires_at: Option<Timestamp>,
    /// Requests that it serves for this process.
    pub in_flight: u32,
    /// Why it is unusable, naming the field.
    pub problem: Option<String>,
    /// Why it rests or is ejected.
    pub cause: Option<String>,
    /// What its answers have taught this process, in words (R72).
    pub learned: Vec<String>,
}

impl AccountInfo {
    /// What a person calls its state: its word, or `suspicious` for the rest of an account that upstream suspects (K91).
    pub fn condition(&self) -> &'static str {
        match (self.state, &self.cause) {
            (State::Cooling { .. }, Some(cause)) if cause.starts_with(SUSPICION) => "suspicious",
            _ => self.state.as_str(),
        }
    }
}

/// The pool in numbers, for `/health` and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accounts of the snapshot.
    pub total: usize,
    /// Those that would be selected now: healthy, half-open and stale ones.
    pub selectable: usize,
    /// State healthy.
    pub healthy: usize,
    /// State half-open.
    pub half_open: usize,
    /// State stale.
    pub stale: usize,
    /// State cooling.
    pub cooling: usize,
    /// State no-profile.
    pub no_profile: usize,
    /// State quota.
    pub quota: usize,
    /// State ejected.
    pub ejected: usize,
    /// State disabled.
    pub disabled: usize,
    /// State unusable.
    pub unusable: usize,
    /// Requests in flight, all accounts.
    pub in_flight: usize,
    /// Requests that wait for an account.
    pub waiting: usize,
}

/// How many accounts a request could be sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Able {
    /// As they come.
    pub serving: usize,
    /// Only because nobody else is left.
    pub last_resort: usize,
}

/// Counted since the start; relaxed loads are fine.
#[derive(Debug, Default)]
pub struct Counters {
    /// Snapshots read.
    pub snapshots: AtomicU64,
    /// Reads that failed.
    pub snapshot_failures: AtomicU64,
    /// Records that make their account unusable (R9), counted once per changed value.
    pub unusable_records: AtomicU64,
    /// Blocks of tickets reserved (R36).
    pub ticket_blocks: AtomicU64,
    /// Requests that had to wait for an account.
    pub waits: AtomicU64,
    /// Older tokens found in the store and overwritten with ours (R46, R48).
    pub tokens_written_back: AtomicU64,
}

/// How an attempt stood when it ended in a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stood {
    /// It went out with a token from a forced refresh of this request.
    pub refreshed: bool,
    /// Content had been handed downstream.
    pub committed: bool,
}

/// The pool. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    store: Store,
    writer: Writer,
    clock: Clock,
    settings: Settings,
    hooks: Hooks,
    state: Mutex<Inside>,
    /// Requests in the line, so that a lease that ends looks at the lock only when somebody waits.
    waiting: AtomicUsize,
    /// [`Inside::line_due`] has changed.
    line_moved: Arc<Notify>,
    reading: tokio::sync::Mutex<()>,
    loaded: watch::Sender<bool>,
    /// The last read that the store refused for want of rights.
    refused: watch::Sender<Option<StoreError>>,
    refill: Arc<Notify>,
    counter_told: AtomicBool,
    /// Profiles that are found are not written.
    only_looks: AtomicBool,
    refresh: Arc<Notify>,
    counters: Counters,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

struct Inside {
    loaded: bool,
    /// Sorted by the bytes of the id (R13).
    slots: BTreeMap<AccountId, Slot>,
    /// Since when the store's pool reads empty although the last snapshot was not (R55).
    empty_since: Option<Timestamp>,
    /// That it reads empty was said.
    empty_told: bool,
    tickets: tickets::Book,
    alike: Alike,
    brake: Brake,
    /// That the brake is on was said.
    brake_told: bool,
    line: Line<Waiter>,
    /// When an account may come for those in line without anybody's doing: a rest, a minute or the brake ends.
    line_due: Option<Timestamp>,
    rng: fastrand::Rng,
}

/// One account in memory.
pub(crate) struct Slot {
    record: Bytes,
    account: Option<Account>,
    token_record: Option<(TokenKey, Bytes)>,
    view: Arc<AccountView>,
    /// See [`Pool::lend_addresses`].
    lent: Addresses,
    /// Why the account is unusable, naming the record or the field: of the account record, the token record, the view.
    problems: [Option<String>; 3],
    warnings: Vec<String>,
    health: Health,
    pub(crate) held: Held,
    load: Arc<Load>,
    /// When its last conversations were sent, for the limits of K92.
    sent: VecDeque<Timestamp>,
    /// The end of the suspicious rest that the brake was told of.
    suspected: Option<Timestamp>,
    /// The ARN that upstream rejected; an empty one when none was sent.
    arn_rejected: Option<String>,
    host_marked: Option<Instant>,
    /// What its answers have taught (R72).
    learned: Learned,
}

/// What one account gets at most now, 0: no limit.
#[derive(Clone, Copy)]
struct Limits {
    in_flight: u32,
    per_minute: u32,
}

/// Shared by an account and its leases.
#[derive(Debug, Default)]
struct Load {
    in_flight: AtomicU32,
    probing: AtomicBool,
}

struct Waiter {
    conversation_id: String,
    homes: Vec<AccountId>,
    fit: Option<Fit>,
    place: oneshot::Sender<Lease>,
}

/// A request in line. Dropped, it leaves; a lease that it was given in this moment goes to the next one, since `place` is
/// dropped after that.
struct Waiting<'a> {
    pool: &'a Pool,
    number: Number,
    place: oneshot::Receiver<Lease>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inside = self.pool.inside();
        inside.line.leave(&self.number);
        self.pool.count_line(&inside);
    }
}

impl Pool {
    /// Starts the pool: a background task reads the store at once and then every `KIRO_ACCOUNT_CACHE_TTL`. Needs a
    /// tokio runtime. [`Pool::first_snapshot`] waits for the first read that went well.
    pub fn start(store: Store, config: &Config, clock: Clock, hooks: Hooks) -> Self {
        let stop = CancellationToken::new();
        let pool = Self(Arc::new(Inner {
            state: Mutex::new(Inside {
                loaded: false,
                slots: BTreeMap::new(),
                empty_since: None,
                empty_told: false,
                tickets: tickets::Book::new(),
                alike: Alike::default(),
                brake: Brake::default(),
                brake_told: false,
                line: Line::default(),
                line_due: None,
                rng: fastrand::Rng::new(),
            }),
            waiting: AtomicUsize::new(0),
            line_moved: Arc::default(),
            reading: tokio::sync::Mutex::new(()),
            loaded: watch::Sender::new(false),
            refused: watch::Sender::new(None),
            refill: Arc::default(),
            counter_told: AtomicBool::new(false),
            only_looks: AtomicBool::new(false),
            refresh: Arc::default(),
            counters: Counters::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
            _stop_on_drop: stop.clone().drop_guard(),
            writer: Writer::with_journal(
                store.clone(),
                clock.clone(),
                config.state_dir.as_deref().map(|folder| Journal::new(folder, &store.pool_name())),
            ),
            store,
            clock,
            settings: Settings::from(config),
            hooks,
        }));
        // A token that is cancelled before the first poll keeps everything from running.
        let reading = background(Arc::downgrade(&pool.0));
        pool.0.tasks.spawn(stop.clone().run_until_cancelled_owned(reading));
        let (status, writer) = (pool.0.store.watch(), pool.0.writer.clone());
        let watching = watch_store(Arc::downgrade(&pool.0), status, writer);
        let keeping_time = keep_time(Arc::downgrade(&pool.0), pool.0.line_moved.clone());
        pool.0.tasks.spawn(stop.clone().run_until_cancelled_owned(keeping_time));
        pool.0.tasks.spawn(stop.run_until_cancelled_owned(watching));
        pool
    }

    /// Resolves with the first snapshot (R54).
    pub async fn first_snapshot(&self) {
        let mut loaded = self.0.loaded.subscribe();
        // The sender lives as long as `self`.
        if loaded.wait_for(|loaded| *loaded).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether there was a first snapshot.
    pub fn is_ready(&self) -> bool {
        *self.0.loaded.borrow()
    }

    /// The store's pool reads empty, and that is not believed yet (R55): `degraded`.
    pub fn is_doubtful(&self) -> bool {
        self.inside().empty_since.is_some()
    }

    /// Takes an account for one attempt, now or not at all.
    pub fn select(&self, wanted: &Wanted<'_>) -> Result<Lease, NoAccount> {
        let now = self.now();
        let mut inside = self.inside();
        self.select_in(&mut inside, wanted, now)
    }

    /// Takes an account for an attempt, waiting for one where one may come: at its cap, half-open with its request on the
    /// way, or resting or at its requests of this minute not longer than that. A request waits at most `KIRO_ACCOUNT_WAIT`
    /// from its first attempt, which began to look for an account at `since`. First come, first served; with a full line,
    /// or where none will come in time, it fails at once.
    pub async fn acquire(&self, wanted: &Wanted<'_>, since: Instant) -> Result<Lease, NoAccount> {
        let deadline = since + self.0.settings.account_wait;
        let wait = deadline.saturating_duration_since(Instant::now());
        // Those in line choose first; what they can't have is nobody's. A pinned request stands in nobody's way and
        // waits for nobody (N5).
        if wanted.only.is_none() {
            self.serve_line();
        }
        let (mut waiting, served) = {
            let now = self.now();
            let mut inside = self.inside();
            let refused = match self.select_in(&mut inside, wanted, now) {
                Ok(lease) => return Ok(lease),
                Err(refused) => refused,
            };
            let in_time = match refused.why {
                Why::Busy | Why::NotLoaded => true,
                Why::Unavailable | Why::OutOfService(_) | Why::NoProfile | Why::Paced => {
                    refused.retry_after.is_some_and(|back| back <= wait)
                }
                Why::Empty { .. } | Why::Model | Why::Exhausted | Why::Unknown | Why::Limited | Why::Unusable => false,
            };
            if wait.is_zero() || !in_time || inside.line.len() >= self.0.settings.max_waiting {
                return Err(refused);
            }
            let (sender, place) = oneshot::channel();
            let waiter = Waiter {
                conversation_id: wanted.conversation_id.to_owned(),
                homes: wanted.homes.to_vec(),
                fit: wanted.fit.cloned(),
                place: sender,
            };
            let number = inside.line.join(wanted.needs(), waiter);
            self.count_line(&inside);
            // A place that came back before anybody was seen in line was offered to nobody.
            fence(Ordering::SeqCst);
            (Waiting { pool: self, number, place }, self.serve_in(&mut inside, now))
        };
        hand_over(served);
        self.0.counters.waits.fetch_add(1, Ordering::Relaxed);
        match tokio::time::timeout_at(deadline, &mut waiting.place).await {
            Ok(lease) => lease.map_err(|_| NoAccount { why: Why::Unavailable, retry_after: None }),
            // A lease that came in this very moment is still taken.
            Err(_) => waiting.place.try_recv().or_else(|_| self.select(wanted)),
        }
    }

    /// Takes this account for a question that a person asks (K62), whatever its state; a running `Retry-After` is no
    /// obstacle, since it is another call. The lease records nothing.
    ///
    /// # Errors
    /// [`Why::NotLoaded`], [`Why::Unknown`], [`Why::Unusable`].
    pub fn visit(&self, id: &str) -> Result<Lease, NoAccount> {
        let now = self.now();
        let mut inside = self.inside();
        if !inside.loaded {
            return Err(NoAccount { why: Why::NotLoaded, retry_after: None });
        }
        match inside.slots.get_mut(id) {
            None => Err(NoAccount { why: Why::Unknown, retry_after: None }),
            Some(slot) if !slot.is_usable(now) => Err(NoAccount { why: Why::Unusable, retry_after: None }),
            Some(slot) => Ok(self.lease(slot, now, Purpose::Pinned)),
        }
    }

    /// Time until this account's running `Retry-After` or rest ends; none: it is not resting.
    pub fn return_of(&self, id: &str) -> Option<Duration> {
        let now = self.now();
        let inside = self.inside();
        let slot = inside.slots.get(id)?;
        let rest = match slot.state(now) {
            State::Cooling { until } => Some(until),
            _ => None,
        };
        slot.health.held_until(now).max(rest).map(|until| between(now, until))
    }

    /// Time until the soonest account that serves these models is back; none: there is none to wait for (K47, M61).
    pub fn soonest_return(&self, model_names: &[&str]) -> Option<Duration> {
        let now = self.now();
        self.inside().soonest(model_names, "", now)
    }

    /// The mark of an account that is out until a person acts.
    pub fn ejection(&self, id: &str) -> Option<Note> {
        self.with_slot(id, |slot, _| slot.health.ejection().cloned()).flatten()
    }

    /// Whether the account's access token expires within `threshold`; no where that isn't known.
    pub fn expires_within(&self, id: &str, threshold: Duration) -> bool {
        let soon = later(self.now(), threshold);
        let expires = |slot: &mut Slot| slot.held.token().expires_at.filter(|_| slot.view.method != Method::ApiKey);
        self.with_slot(id, |slot, _| expires(slot)).flatten().is_some_and(|at| at <= soon)
    }

    /// Addresses of an account that a host program's configuration names (N4). Those of the account's own record come
    /// first, those of this process's configuration last. Unknown accounts are left out.
    pub fn lend_addresses(&self, id: &str, addresses: &Addresses) {
        let now = self.now();
        self.with_slot(id, |slot, _| {
            if slot.lent != *addresses {
                slot.lent = addresses.clone();
                slot.review(&self.0.settings.urls, now);
            }
        });
    }

    /// The account's view, if the account is in the pool.
    pub fn account(&self, id: &str) -> Option<Arc<AccountView>> {
        self.inside().slots.get(id).map(|slot| slot.view.clone())
    }

    /// The accounts whose calls go to this API region.
    pub fn accounts_in_region(&self, region: &str) -> Vec<AccountId> {
        let inside = self.inside();
        let there = |slot: &&Slot| slot.view.region() == region;
        inside.slots.values().filter(there).map(|slot| slot.view.id.clone()).collect()
    }

    /// All accounts, sorted by id, from memory.
    pub fn accounts(&self) -> Vec<AccountInfo> {
        let now = self.now();
        let inside = self.inside();
        let served = |state| matches!(state, State::Healthy | State::HalfOpen | State::Stale);
        let info = |slot: &Slot| AccountInfo {
            id: slot.view.id.clone(),
            name: slot.view.name.clone(),
            method: slot.view.method,
            kind: slot.view.kind(),
            region: slot.view.region().to_owned(),
            profile: slot.view.profile(),
            state: slot.state(now),
            expires_at: slot.held.token().expires_at.filter(|_| slot.view.method != Method::ApiKey),
            in_flight: slot.load.in_flight.load(Ordering::Relaxed),
            problem: slot.problem().map(str::to_owned),
            cause: slot.health.cause().filter(|_| !served(slot.state(now))).map(str::to_owned),
            learned: slot.learned.words(now),
        };
        inside.slots.values().map(info).collect()
    }

    /// The pool in numbers, from memory.
    pub fn counts(&self) -> Counts {
        let now = self.now();
        let inside = self.inside();
        let mut summary = Counts { total: inside.slots.len(), waiting: inside.line.len(), ..Counts::default() };
        for slot in inside.slots.values() {
            let (count, selectable) = match slot.state(now) {
                State::Healthy => (&mut summary.healthy, true),
                State::HalfOpen => (&mut summary.half_open, true),
                State::Stale => (&mut summary.stale, true),
                State::Cooling { .. } => (&mut summary.cooling, false),
                State::NoProfile { .. } => (&mut summary.no_profile, false),
                State::Quota { .. } => (&mut summary.quota, false),
                State::Ejected => (&mut summary.ejected, false),
                State::Disabled => (&mut summary.disabled, false),
                State::Unusable => (&mut summary.unusable, false),
            };
            *count += 1;
            summary.selectable += usize::from(selectable);
            summary.in_flight += usize::try_from(slot.load.in_flight.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        }
        summary
    }

    /// The accounts that a request would be sent to now: their state lets them be selected, or they rest softly; a token is
    /// there or one refresh away; and they are `reachable`, which is called under the pool's lock. A limit is no reason: an
    /// account that has enough to do is a good one.
    pub fn able(&self, reachable: impl Fn(&AccountView) -> bool) -> Able {
        let now = self.now();
        let inside = self.inside();
        let mut able = Able::default();
        for slot in inside.slots.values().filter(|slot| slot.held.can_serve(now) && reachable(&slot.view)) {
            match slot.state(now) {
                State::Healthy | State::HalfOpen | State::Stale => able.serving += 1,
                State::Cooling { .. } if slot.health.rests_softly(now).is_some() => able.last_resort += 1,
                _ => {}
            }
        }
        able
    }

    /// Accounts by state, each state once, by its word (for a metric).
    pub fn states(&self) -> [(&'static str, usize); 9] {
        let counts = self.counts();
        [
            ("healthy", counts.healthy),
            ("half-open", counts.half_open),
            ("stale", counts.stale),
            ("cooling", counts.cooling),
            ("no-profile", counts.no_profile),
            ("quota", counts.quota),
            ("ejected", counts.ejected),
            ("disabled", counts.disabled),
            ("unusable", counts.unusable),
        ]
    }

    /// Account records and tokens that wait to be written.
    pub fn queued_writes(&self) -> (usize, usize) {
        self.0.writer.queued()
    }

    /// Whether tokens that wait can be kept in `KIRO_STATE_DIR`; none: there is no such folder.
    pub fn journal_works(&self) -> Option<bool> {
        self.0.writer.journal_works()
    }

    /// Numbers since the start.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Half-open accounts that one of us marked and that got no request within 60 s after their rest, each with a
    /// lease. They are to be asked with getUsageLimits (K62), and the answer reported like any attempt's (R17).
    pub fn probes_due(&self) -> Vec<Lease> {
        let now = self.now();
        let mut inside = self.inside();
        let due = |slot: &Slot| {
            let free = !slot.load.probing.load(Ordering::Acquire) && slot.held.live(now).is_some();
            free && slot.state(now) == State::HalfOpen && slot.health.probe_due(now)
        };
        let due: Vec<&mut Slot> = inside.slots.values_mut().filter(|slot| due(slot)).collect();
        due.into_iter().map(|slot| self.lease(slot, now, Purpose::Probe)).collect()
    }

    /// An account that wants its profiles looked up in the background: loaded without an ARN, in service, its token live
    /// (K79).
    pub(crate) fn look_up_due(&self) -> Option<AccountId> {
        let now = self.now();
        let inside = self.inside();
        let due = |slot: &&Slot| {
            let served = matches!(slot.state(now), State::Healthy | State::HalfOpen | State::Stale);
            served && slot.view.wants_profiles() && slot.learned.may_ask_profiles(now) && slot.held.live(now).is_some()
        };
        inside.slots.values().find(due).map(|slot| slot.view.id.clone())
    }

    /// Takes in what a call taught of an account (R72), outside any lease.
    pub(crate) fn learn(&self, id: &str, lesson: Lesson) {
        let now = self.now();
        let proven = match &lesson {
            Lesson::VariantProven(_, Variant::Listed(arn)) => Some(arn.to_string()),
            _ => None,
        };
        let changed = self.with_slot(id, |slot, _| {
            let changes_view = matches!(
                lesson,
                Lesson::Profiles(_) | Lesson::IsBuilderId | Lesson::RefreshRegion(_) | Lesson::FipsHost
            );
            slot.learned.learn(lesson, now);
            if changes_view {
                slot.review(&self.0.settings.urls, now);
            }
            changes_view
        });
        if changed == Some(true) {
            // One that had no profile may serve now.
            self.serve_line();
        }
        if let Some(arn) = proven {
            self.keep_profile(id, arn);
        }
    }

    /// From now on profiles that are found serve this process and aren't written: for a command that only looks (K138).
    pub fn only_look(&self) {
        self.0.only_looks.store(true, Ordering::Relaxed);
    }

    /// Writes a profile that was found into the token record, unless that has one of the account's own (K79).
    pub(crate) fn keep_profile(&self, id: &str, arn: String) {
        if self.0.only_looks.load(Ordering::Relaxed) {
            return;
        }
        let now = self.now();
        let unsaved = self.with_slot(id, |slot, _| {
            if slot.view.has_own_profile() || self.0.settings.urls.is_service(&arn) {
                return None;
            }
            let region = region_of(&arn).map(str::to_owned);
            let idc_region = slot.view.refresh_region().to_owned();
            let unsaved = slot.held.learned_profile(arn, region, &idc_region)?;
            slot.goes_on();
            slot.review(&self.0.settings.urls, now);
            Some(unsaved)
        });
        if let Some(unsaved) = unsaved.flatten() {
            // The background writer saves it; requests go on with it.
            self.writer().keep_token(id, unsaved);
        }
    }

    /// Writes an outcome that [`Hooks::record`] had taken over, when the host program could not record it after all. A
    /// success that must not heal (R28) is written as a bare count (N18); the use in a fault after the commit is not
    /// counted again.
    pub fn write(&self, id: &AccountId, outcome: &Outcome) {
        let mut outcome = outcome.clone();
        if let Event::Fault { used, .. } = &mut outcome.event {
            *used = false;
        }
        self.write_whole(id, &outcome);
    }

    fn write_whole(&self, id: &AccountId, outcome: &Outcome) {
        for patch in patches(outcome) {
            self.0.writer.record(id, patch);
        }
    }

    /// Reads the store now; the background task does so by itself. One read at a time.
    ///
    /// # Errors
    /// The store is away or broken; the old snapshot stays.
    pub async fn reload(&self) -> Result<(), StoreError> {
        let _one = self.0.reading.lock().await;
        let since = Instant::now();
        match self.0.store.load().await {
            Ok(accounts) => {
                self.0.counters.snapshots.fetch_add(1, Ordering::Relaxed);
                let starts_empty = accounts.is_empty() && !self.is_ready();
                self.take_in(accounts, since);
                if starts_empty {
                    self.tell_of_an_empty_start().await;
                }
                Ok(())
            }
            Err(error) => {
                self.0.counters.snapshot_failures.fetch_add(1, Ordering::Relaxed);
                if error.kind() == StoreErrorKind::Refused {
                    self.0.refused.send_replace(Some(error.clone()));
                }
                if error.is_away() {
                    // Whatever read empty before it is another story: a minute of empty reads is one without this (R55).
                    self.inside().empty_since = None;
                }
                Err(error)
            }
        }
    }

    /// Resolves when the store refuses us (NOAUTH, WRONGPASS, NOPERM) before there was a first snapshot: the start has
    /// failed (R49). Pending for ever once there was one.
    pub async fn refused(&self) -> StoreError {
        let (mut status, mut reads) = (self.0.store.watch(), self.0.refused.subscribe());
        loop {
            if self.is_ready() {
                return std::future::pending().await;
            }
            let connecting = match &*status.borrow_and_update() {
                Status::Connecting(Some(error)) if error.kind() == StoreErrorKind::Refused => Some(error.clone()),
                _ => None,
            };
            if let Some(error) = connecting.or_else(|| reads.borrow_and_update().clone()) {
                return error;
            }
            tokio::select! {
                Ok(()) = status.changed() => {}
                Ok(()) = reads.changed() => {}
                () = self.first_snapshot() => {}
            }
        }
    }

    async fn tell_of_an_empty_start(&self) {
        let place = &*self.0.settings.place;
        tracing::warn!(place, "there are no accounts; `kiro-server accounts add` adds one");
        // The Node.js service takes its prefix from its own configuration only (R1).
        if let Ok(Some(elsewhere)) = self.0.store.pool_under_default_prefix().await {
            tracing::warn!(elsewhere, "there are accounts under the default prefix: look at REDIS_KEY_PREFIX");
        }
    }

    /// Writes what is pending now, for at most `within`; what could not be written is the answer.
    pub async fn flush(&self, within: Duration) -> Pending {
        self.0.writer.flush(within).await
    }

    /// Ends the background task and writes what is pending, for at most `within` (R33). What could not be written is
    /// the answer. Leases stay valid, but nothing writes their reports any more.
    pub async fn close(&self, within: Duration) -> Pending {
        self.0.stop.cancel();
        self.0.tasks.close();
        let deadline = Instant::now() + within;
        if tokio::time::timeout_at(deadline, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("the pool's background task hangs");
        }
        self.0.writer.flush(deadline.saturating_duration_since(Instant::now())).await
    }

    pub(crate) fn now(&self) -> Timestamp {
        let now = (self.0.clock)();
        // Records hold milliseconds; a finer time would differ from its own record.
        Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
    }

    /// Runs `work` on an account in memory. Must be short and must not block.
    pub(crate) fn with_slot<T>(&self, id: &str, work: impl FnOnce(&mut Slot, &mut fastrand::Rng) -> T) -> Option<T> {
        self.with_inside(id, |slot, rng, _| work(slot, rng))
    }

    fn with_inside<T>(&self, id: &str, work: impl FnOnce(&mut Slot, &mut fastrand::Rng, &mut Brake) -> T) -> Option<T> {
        let mut inside = self.inside();
        let Inside { slots, rng, brake, .. } = &mut *inside;
        slots.get_mut(id).map(|slot| work(slot, rng, brake))
    }

    /// An account for a call that is no request of anybody's (K125): it takes no place and records nothing. None: the account
    /// is gone or can't be used.
    pub(crate) fn look_in(&self, id: &str) -> Option<Lease> {
        let mut lease = self.visit(id).ok()?;
        // Its place goes back at once.
        lease.load.in_flight.fetch_sub(1, Ordering::AcqRel);
        lease.load = Arc::new(Load { in_flight: AtomicU32::new(1), ..Load::default() });
        Some(lease)
    }

    /// How many accounts have said no to the model lately, and whether one has ever answered with it (K88, K89).
    pub fn model_votes(&self, kiro_id: &str) -> (usize, bool) {
        let now = self.now();
        let inside = self.inside();
        let refuses = inside.slots.values().filter(|slot| slot.learned.refuses_model(kiro_id, now)).count();
        (refuses, inside.slots.values().any(|slot| slot.learned.served_model(kiro_id).is_some()))
    }

    /// Each account's catalogue, as long as it counts (K125), and whether the account is healthy.
    pub(crate) fn catalogues(&self) -> Vec<(bool, Option<Arc<Catalogue>>)> {
        let now = self.now();
        let of = |slot: &Slot| {
            let catalogue = slot.learned.catalogue(now).map(|(catalogue, _)| catalogue.clone());
            (matches!(slot.state(now), State::Healthy), catalogue)
        };
        self.inside().slots.values().map(of).collect()
    }

    /// The account's view as this token record makes it, which the snapshot may not have seen yet. The error says why
    /// the account can't be used with it (K11).
    pub(crate) fn view_with(&self, id: &str, token: &Token) -> Option<Result<AccountView, String>> {
        let viewed = self.with_slot(id, |slot, _| slot.viewed(token, &self.0.settings.urls))?;
        Some(viewed.problem.map_or(Ok(viewed.view), Err))
    }

    /// Accounts whose token should be refreshed in the background now.
    pub(crate) fn refreshes_due(&self, store_away: bool, threshold: Duration) -> Vec<AccountId> {
        let now = self.now();
        let inside = self.inside();
        let due = |slot: &&Slot| {
            let asked_for = slot.health.standing().stale;
            slot.held.is_due(slot.state(now), asked_for, store_away, threshold, now)
        };
        inside.slots.values().filter(due).map(|slot| slot.view.id.clone()).collect()
    }

    /// Wakes when a selection met an account whose token should be refreshed at once.
    pub(crate) fn refresh_wanted(&self) -> Arc<Notify> {
        self.0.refresh.clone()
    }

    /// An account that a refresh concerns: marks and writes what became of it, and tells.
    pub(crate) fn refreshed(&self, id: &str) {
        let now = self.now();
        let told = self.with_slot(id, |slot, _| {
            slot.review(&self.0.settings.urls, now);
            let event = PoolEvent::TokenRefreshed {
                id: slot.view.id.clone(),
                expires_at: slot.held.token().expires_at,
                method: slot.view.method,
            };
            (slot.view.id.clone(), slot.health.refreshed(now), event)
        });
        if let Some((id, outcome, event)) = told {
            self.write(&id, &outcome);
            self.tell(event);
            self.serve_line();
        }
    }

    /// The account's tokens were adopted from the store.
    pub(crate) fn adopted(&self, id: &str) {
        let now = self.now();
        self.with_slot(id, |slot, _| slot.review(&self.0.settings.urls, now));
        self.serve_line();
    }

    /// A refresh was refused for good (R41).
    pub(crate) fn eject(&self, id: &str, cause: String) {
        self.settle(id, |slot, _, now| Some(slot.health.eject(cause, now)));
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn writer(&self) -> &Writer {
        &self.0.writer
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn select_in(&self, inside: &mut Inside, wanted: &Wanted<'_>, now: Timestamp) -> Result<Lease, NoAccount> {
        if !inside.loaded {
            return Err(NoAccount { why: Why::NotLoaded, retry_after: None });
        }
        if let Some(only) = wanted.only {
            return self.pinned(inside, only, now);
        }
        let limits = self.limits(inside, now);
        let mut ranked = Vec::with_capacity(inside.slots.len());
        let (mut busy, mut excluded, mut paced) = (false, false, None::<Timestamp>);
        // Those that said no to the model, and those that may serve it when they are back (K88).
        let (mut said_no, mut resting, mut without_profile) = (false, false, false);
        let (mut passing, mut limited) = (false, false);
        for slot in inside.slots.values() {
            let candidate = slot.candidate(wanted, limits, self.0.settings.rules, now);
            let rank = select::rank(&candidate, limits.in_flight);
            let at_limit = rank.is_err_and(Refusal::is_limit);
            passing |= wanted.homes.first() == Some(&slot.view.id) && at_limit;
            limited |= at_limit && matches!(candidate.state, State::Healthy | State::Stale);
            match rank {
                Ok(tier) => ranked.push((tier, candidate)),
                Err(Refusal::Busy | Refusal::Probing) => busy = true,
                Err(Refusal::Paced(until)) => paced = Some(paced.map_or(until, |soonest| soonest.min(until))),
                Err(Refusal::Excluded) => excluded = true,
                Err(Refusal::SaidNo) => said_no = true,
                Err(Refusal::State(State::NoProfile { .. })) => without_profile = true,
                Err(Refusal::State(State::Cooling { .. } | State::Quota { .. })) => resting = true,
                Err(Refusal::Model | Refusal::State(_)) => {}
            }
        }
        // Who rests is asked when nobody else could serve, not while somebody merely has enough to do.
        if limited {
            ranked.retain(|(tier, _)| !matches!(tier, Tier::Resting(_)));
        }
        let strategy = self.0.settings.strategy;
        let kept = select::keep(&ranked, wanted.homes);
        let ticket = if kept.is_some() || ranked.is_empty() || strategy == Strategy::Sticky {
            0
        } else {
            let (ticket, fetch) = inside.tickets.take();
            if fetch {
                self.0.refill.notify_one();
            }
            ticket
        };
        let chosen = kept
            .or_else(|| select::choose(&ranked, strategy, ticket, wanted.conversation_id))
            .and_then(|index| ranked.get(index))
            .and_then(|(tier, candidate)| Some((*tier, inside.slots.get_key_value(candidate.id)?.0.clone())));
        let Some((tier, id)) = chosen else {
            let why = if inside.slots.is_empty() {
                Why::Empty { place: self.0.settings.place.clone() }
            } else if busy {
                Why::Busy
            } else if paced.is_some() {
                Why::Paced
            } else if said_no && !resting && !without_profile && !excluded {
                Why::Model
            } else if let Some(outlook) = inside.outlook(wanted, now) {
                Why::OutOfService(outlook)
            } else if excluded {
                Why::Exhausted
            } else if without_profile && !resting {
                Why::NoProfile
            } else {
                Why::Unavailable
            };
            let retry_after = match (&why, paced) {
                (Why::Busy, _) => Some(Duration::from_secs(1)),
                (Why::Paced, Some(until)) => Some(between(now, until)),
                _ => inside.soonest(wanted.model_names, wanted.kiro_id, now),
            };
            return Err(NoAccount { why, retry_after });
        };
        if matches!(tier, Tier::Stale | Tier::Blocking | Tier::StaleBlocking) {
            self.0.refresh.notify_one();
        }
        match inside.slots.get_mut(&id) {
            Some(slot) => {
                slot.sends(&self.0.settings, now);
                let mut lease = self.lease(slot, now, Purpose::Request);
                lease.passing = passing;
                Ok(lease)
            }
            None => Err(NoAccount { why: Why::Unavailable, retry_after: None }),
        }
    }

    fn pinned(&self, inside: &mut Inside, id: &str, now: Timestamp) -> Result<Lease, NoAccount> {
        let Some(slot) = inside.slots.get_mut(id) else {
            return Err(NoAccount { why: Why::Unknown, retry_after: None });
        };
        if !slot.is_usable(now) {
            return Err(NoAccount { why: Why::Unusable, retry_after: None });
        }
        if let Some(until) = slot.health.held_until(now) {
            return Err(NoAccount { why: Why::Limited, retry_after: Some(between(now, until)) });
        }
        slot.sends(&self.0.settings, now);
        Ok(self.lease(slot, now, Purpose::Pinned))
    }

    fn lease(&self, slot: &mut Slot, now: Timestamp, purpose: Purpose) -> Lease {
        let half_open = purpose != Purpose::Pinned && slot.state(now) == State::HalfOpen;
        slot.load.in_flight.fetch_add(1, Ordering::AcqRel);
        // The one request of a half-open account; others come where nobody else is left, and the flag isn't theirs.
        let half_open = half_open && !slot.load.probing.swap(true, Ordering::AcqRel);
        // Only what may heal counts: a host program that tests an account by name must not keep the probe away (R17, N5).
        if purpose != Purpose::Pinned {
            slot.health.asked(now);
        }
        Lease {
            pool: self.clone(),
            view: slot.view.clone(),
            load: slot.load.clone(),
            started: now,
            half_open,
            passing: false,
            purpose,
            bearer: Mutex::new(None),
        }
    }

    /// Gives those who wait their accounts, first come, first served.
    fn serve_line(&self) {
        fence(Ordering::SeqCst);
        if self.0.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        let now = self.now();
        let served = self.serve_in(&mut self.inside(), now);
        hand_over(served);
    }

    /// The answer is to be handed over after the lock.
    fn serve_in(&self, inside: &mut Inside, now: Timestamp) -> Vec<(Waiter, Lease)> {
        let mut line = std::mem::take(&mut inside.line);
        let served = line.serve(|needs, waiter| {
            let model_names: Vec<&str> = needs.model_names.iter().map(String::as_str).collect();
            let wanted = Wanted {
                model_names: &model_names,
                exclude: &needs.exclude,
                conversation_id: &waiter.conversation_id,
                kiro_id: &needs.kiro_id,
                homes: &waiter.homes,
                fit: waiter.fit.as_ref(),
                only: needs.only.as_deref(),
            };
            self.select_in(inside, &wanted, now).ok()
        });
        inside.line = line;
        self.count_line(inside);
        let due = if inside.line.is_empty() { None } else { self.soonest_change(inside, now) };
        if due != inside.line_due {
            inside.line_due = due;
            self.0.line_moved.notify_one();
        }
        served
    }

    fn count_line(&self, inside: &Inside) {
        self.0.waiting.store(inside.line.len(), Ordering::Release);
    }

    fn soonest_change(&self, inside: &mut Inside, now: Timestamp) -> Option<Timestamp> {
        let limits = self.limits(inside, now);
        let ends = |slot: &Slot| slot.state(now).until().or_else(|| slot.paced_until(limits.per_minute, now));
        inside.slots.values().filter_map(ends).chain(inside.brake.until(now)).min()
    }

    /// Until when the pool is slowed down because several accounts are under suspicion (K92); none: it isn't.
    pub fn brake(&self) -> Option<Timestamp> {
        let now = self.now();
        let mut inside = self.inside();
        self.brake_in(&mut inside, now)
    }

    /// Says once that the brake went on, and once that it went off.
    fn brake_in(&self, inside: &mut Inside, now: Timestamp) -> Option<Timestamp> {
        let until = inside.brake.until(now);
        if let Some(until) = until
            && !inside.brake_told
        {
            tracing::warn!("several accounts are under suspicion: requests are slowed down until {until:.0}");
        } else if until.is_none() && inside.brake_told {
            tracing::info!("no account turned suspicious lately: requests are not slowed down any more");
        }
        inside.brake_told = until.is_some();
        until
    }

    fn limits(&self, inside: &mut Inside, now: Timestamp) -> Limits {
        let Settings { max_in_flight, per_minute, .. } = self.0.settings;
        let least = |limit, other| if limit == 0 { other } else { u32::min(limit, other) };
        match self.brake_in(inside, now) {
            None => Limits { in_flight: max_in_flight, per_minute },
            Some(_) => Limits {
                in_flight: least(max_in_flight, brake::IN_FLIGHT),
                per_minute: least(per_minute, brake::PER_MINUTE),
            },
        }
    }

    /// What happened to an account, judged and kept under one lock: who selects next sees the mark, and so does a snapshot
    /// that is taken in before the mark is written (R105).
    fn settle(
        &self,
        id: &str,
        judge: impl FnOnce(&mut Slot, &mut fastrand::Rng, Timestamp) -> Option<Outcome>,
    ) -> Option<Outcome> {
        let now = self.now();
        let shown = Instant::now();
        let (id, outcome, host) = self
            .with_inside(id, |slot, rng, brake| {
                let outcome = judge(slot, rng, now)?;
                if let Some(at) = slot.turned_suspicious().filter(|_| self.0.settings.brake) {
                    brake.turned(&slot.view.id, at, now);
                }
                let host = self.0.hooks.record.as_ref().filter(|_| outcome.is_shown());
                match host {
                    None => self.write_whole(&slot.view.id, &outcome),
                    Some(_) => slot.host_marked = Some(shown),
                }
                Some((slot.view.id.clone(), outcome, host))
            })
            .flatten()?;
        if let Some(record) = host {
            if record(&id, &outcome) {
                if let Event::Fault { used: true, .. } = outcome.event {
                    self.0.writer.record(&id, OutcomePatch::Used { at: outcome.at });
                }
            } else {
                self.write_whole(&id, &outcome);
                self.with_slot(&id, |slot, _| slot.host_marked = slot.host_marked.filter(|marked| *marked != shown));
            }
        }
        self.say(&id, &outcome);
        self.serve_line();
        Some(outcome)
    }

    /// Whether a fault hits several accounts alike, so that it is upstream's and none of theirs.
    fn is_alike(&self, id: &str, fault: &Fault) -> bool {
        if !is_soft(fault.kind) {
            return false;
        }
        let now = self.now();
        let mut inside = self.inside();
        let alike = inside.alike.seen(fault.kind, id, now);
        if alike && inside.alike.is_news(now) {
            drop(inside);
            tracing::warn!(
                fault = fault.kind.as_str(),
                "several accounts have the same fault: it is upstream's and counts on none of them"
            );
        }
        alike
    }

    fn say(&self, id: &AccountId, outcome: &Outcome) {
        match &outcome.event {
            Event::Fault { mark: Some(mark @ Note::Ejected { .. }), .. } => {
                let message = mark.to_string();
                tracing::warn!(account = short(id), cause = %message, "account ejected");
                self.tell(PoolEvent::Ejected { id: id.clone(), message });
            }
            Event::Fault { mark: Some(mark @ (Note::CoolDown { .. } | Note::Quota { .. })), .. } => {
                tracing::info!(account = short(id), cause = %mark, "account rests");
            }
            Event::Success { half_open: true, .. } => {
                tracing::info!(account = short(id), "account healed");
            }
            Event::Success { .. } | Event::Fault { .. } | Event::Refreshed => {}
        }
    }

    fn tell(&self, event: PoolEvent) {
        if let Some(listener) = &self.0.hooks.event {
            listener(event);
        }
    }

    /// Takes in what the store holds, as a whole (R14). Changed records are parsed before the lock is taken.
    fn take_in(&self, accounts: Vec<RawAccount>, since: Instant) {
        let now = self.now();
        let known: HashMap<AccountId, Bytes> =
            self.inside().slots.iter().map(|(id, slot)| (id.clone(), slot.record.clone())).collect();
        let parse = |raw: &RawAccount| match known.get(raw.id.as_str()) {
            Some(record) if *record == raw.account => None,
            _ => Some(Account::parse(&raw.account, &raw.id)),
        };
        let accounts: Vec<_> = accounts.into_iter().map(|raw| (parse(&raw), raw)).collect();
        let mut tokens = Vec::new();
        let mut inside = self.inside();
        if accounts.is_empty() && !inside.slots.is_empty() {
            let empty_since = *inside.empty_since.get_or_insert(now);
            // A rewrite of the pool is over by then, and nothing to tell.
            if later(empty_since, EMPTY_LOOK_FOR) <= now && !std::mem::replace(&mut inside.empty_told, true) {
                tracing::warn!("the pool reads empty; the last snapshot serves on until that is certain");
            }
            if later(empty_since, EMPTY_BELIEVED) > now {
                return;
            }
            tracing::error!("the pool is empty");
        } else if inside.empty_told {
            tracing::info!("the pool is back");
        }
        inside.empty_told = false;
        inside.empty_since = None;
        let mut before = std::mem::take(&mut inside.slots);
        for (parsed, raw) in accounts {
            let (id, slot) = match before.remove_entry(raw.id.as_str()) {
                Some((id, slot)) => (id, slot),
                None => {
                    let id = AccountId::from(raw.id.as_str());
                    let slot = Slot::new(&id, &self.0.settings, now);
                    (id, slot)
                }
            };
            inside.slots.insert(id, slot);
            let Inside { slots, rng, .. } = &mut *inside;
            let Some(slot) = slots.get_mut(raw.id.as_str()) else { continue };
            if let Some(unsaved) = slot.take_in(raw, parsed, since, &self.0, now, rng) {
                tokens.push((slot.view.id.clone(), unsaved));
            }
        }
        if self.0.settings.brake {
            let Inside { slots, brake, .. } = &mut *inside;
            let turned = slots.values_mut().filter_map(|slot| Some((slot.turned_suspicious()?, slot.view.id.clone())));
            let mut turned: Vec<_> = turned.collect();
            turned.sort();
            turned.iter().for_each(|(at, id)| brake.turned(id, *at, now));
        }
        self.brake_in(&mut inside, now);
        inside.loaded = true;
        drop(inside);
        for (id, unsaved) in tokens {
            self.0.counters.tokens_written_back.fetch_add(1, Ordering::Relaxed);
            tracing::info!(account = short(&id), "the store holds an older token than we do: ours is written again");
            self.0.writer.keep_token(&id, unsaved);
        }
        self.0.loaded.send_if_modified(|loaded| !std::mem::replace(loaded, true));
        self.serve_line();
    }

    /// When the store should be read again after a good read.
    fn pace(&self) -> Duration {
        let now = self.now();
        match self.inside().empty_since {
            Some(since) if later(since, EMPTY_LOOK_FOR) > now => EMPTY_LOOK_EVERY.min(self.0.settings.cache_ttl),
            _ => self.0.settings.cache_ttl,
        }
    }
}

impl NoAccount {
    /// Whether it will not pass by trying again soon (M85).
    pub fn is_lasting(&self) -> bool {
        matches!(self.why, Why::OutOfService(_))
    }

    /// How the client is answered (contract/messages.md).
    pub fn code(&self) -> Code {
        match &self.why {
            Why::NotLoaded => Code::StoreUnavailable,
            Why::Empty { .. }
            | Why::Unavailable
            | Why::OutOfService(_)
            | Why::NoProfile
            | Why::Exhausted
            | Why::Busy => Code::NoAccount,
            // A pinned request's account (N5, N8).
            Why::Unusable => Code::AccountUnauthorized,
            Why::Model | Why::Unknown => Code::NotFound,
            Why::Paced | Why::Limited => Code::RateLimited,
        }
    }
}

impl fmt::Display for NoAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.why {
            Why::NotLoaded => "The account store has not been reached yet",
            Why::Empty { place } => {
                return write!(f, "There are no accounts in {place}: add one with `kiro-server accounts add`");
            }
            Why::Unavailable | Why::Exhausted | Why::Busy => "No healthy accounts available",
            Why::OutOfService(outlook) => return outlook.fmt(f),
            Why::NoProfile => "No account has a Kiro profile; see `kiro-server accounts check`",
            Why::Model => "No account serves this model",
            Why::Paced => "All accounts have had their requests of this minute",
            Why::Unknown => "Unknown account",
            Why::Limited => "The account is rate limited",
            Why::Unusable => "The account has no usable credential",
        })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.counts()).finish()
    }
}

/// An account taken for one attempt. Dropping it gives the place back and says nothing about the account (K50).
#[derive(Debug)]
pub struct Lease {
    pool: Pool,
    view: Arc<AccountView>,
    load: Arc<Load>,
    started: Timestamp,
    half_open: bool,
    passing: bool,
    purpose: Purpose,
    /// The bearer token that was handed out last: the one that upstream rejects.
    bearer: Mutex<Option<Secret>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Request,
    /// Records no outcome (N5).
    Pinned,
    /// Heals, but is no use of the account (R17).
    Probe,
}

impl Lease {
    /// Nothing but a limit kept the request from its conversation's home: the conversation stays there (R101).
    pub fn is_passing(&self) -> bool {
        self.passing
    }

    /// The account.
    pub fn account(&self) -> &Arc<AccountView> {
        &self.view
    }

    /// When the attempt was started (R28).
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// Whether the request was sent to this account by name (N5).
    pub fn is_pinned(&self) -> bool {
        self.purpose == Purpose::Pinned
    }

    /// The token that this attempt goes out with.
    pub(crate) fn hand_out(&self, bearer: &Secret) {
        *self.bearer.lock().unwrap_or_else(PoisonError::into_inner) = Some(bearer.clone());
    }

    /// The token that was handed out last.
    pub(crate) fn handed_out(&self) -> Option<Secret> {
        self.bearer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes in what a call taught (R72).
    pub fn learn(&self, lesson: Lesson) {
        self.pool.learn(&self.view.id, lesson);
    }

    /// Reads what is known of the account; nothing, if it has left the pool.
    pub fn learned<T>(&self, read: impl Fn(&Learned, Timestamp) -> T) -> T {
        let now = self.pool.now();
        let known = self.pool.with_slot(&self.view.id, |slot, _| read(&slot.learned, now));
        known.unwrap_or_else(|| read(&Learned::default(), now))
    }

    /// The same conversation goes out once more on this account: it counts in its minute (K92).
    pub fn sends_again(&self) {
        let now = self.pool.now();
        self.pool.with_slot(&self.view.id, |slot, _| slot.sends(&self.pool.0.settings, now));
    }

    /// Sees the account as it is now: after its profile was looked up.
    pub(crate) fn renew_view(&mut self) {
        if let Some(view) = self.pool.account(&self.view.id) {
            self.view = view;
        }
    }

    /// The attempt went well, at its end; a ghost exception (K36) is a success too. The answer is what was recorded.
    pub fn succeeded(&self) -> Option<Outcome> {
        if self.is_pinned() {
            return None;
        }
        let probe = self.purpose == Purpose::Probe;
        let outcome = self.pool.settle(&self.view.id, |slot, _, now| {
            if probe && slot.health.is_suspected() {
                return None;
            }
            slot.arn_rejected = None;
            let mut outcome = slot.health.success(self.started, now);
            if let Event::Success { probe: told, .. } = &mut outcome.event {
                *told = probe;
            }
            Some(outcome)
        });
        if outcome.is_none() && !probe {
            // The account left the snapshot while its stream ran; if its record is there all the same, the use counts.
            let at = self.pool.now();
            self.pool.0.writer.record(&self.view.id, OutcomePatch::Success { at, started_at: self.started });
        }
        outcome
    }

    /// The attempt ended in a fault, and nothing is to be recorded: what binds this process all the same is remembered, a
    /// `Retry-After` (N5) and a rejected profile ARN.
    pub fn noted(&self, fault: &Fault) {
        let now = self.pool.now();
        self.pool.with_slot(&self.view.id, |slot, _| self.note(slot, fault, now));
    }

    fn note(&self, slot: &mut Slot, fault: &Fault, now: Timestamp) {
        if fault.kind == FaultKind::ProfileArn {
            slot.arn_rejected = Some(self.view.profile_arn().unwrap_or_default().to_owned());
        }
        slot.health.hold(fault, now);
    }

    /// A question that a person asked was answered with `Suspended`: the one mark that such a question leaves (K62).
    pub fn suspended(&self, fault: &Fault) -> Option<Outcome> {
        let rules = self.pool.0.settings.rules;
        self.pool.settle(&self.view.id, |slot, _, now| {
            let attempt =
                Attempt { started: self.started, refreshed: false, committed: false, alike: false, spread: 0 };
            slot.health.fault(fault, attempt, rules, now)
        })
    }

    /// The attempt ended in a fault; the answer is what was recorded, none for a fault that is no account's (K49).
    pub fn failed(&self, fault: &Fault, stood: Stood) -> Option<Outcome> {
        let rules = self.pool.0.settings.rules;
        if self.is_pinned() {
            self.noted(fault);
            return None;
        }
        if stood.committed && self.pool.account(&self.view.id).is_none() {
            self.pool.0.writer.record(&self.view.id, OutcomePatch::Used { at: self.pool.now() });
        }
        let alike = self.pool.is_alike(&self.view.id, fault);
        self.pool.settle(&self.view.id, |slot, rng, now| {
            self.note(slot, fault, now);
            let attempt = Attempt {
                started: self.started,
                refreshed: stood.refreshed,
                committed: stood.committed,
                alike,
                spread: rng.i16(-100..=100),
            };
            slot.health.fault(fault, attempt, rules, now)
        })
    }
}

fn hand_over(served: Vec<(Waiter, Lease)>) {
    for (waiter, lease) in served {
        // Who has gone meanwhile passes it on.
        drop(waiter.place.send(lease));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Ordering::AcqRel);
        if self.half_open {
            self.load.probing.store(false, Ordering::Release);
        }
        self.pool.serve_line();
    }
}

impl Inside {
    /// Why no account that serves these models will do so within [`SOON`]; none: one will, or does (M85).
    fn outlook(&self, wanted: &Wanted<'_>, now: Timestamp) -> Option<Outlook> {
        let mut outlook = Outlook::default();
        for slot in self.slots.values().filter(|slot| slot.serves(wanted.model_names, wanted.kiro_id, now)) {
            let state = slot.state(now);
            match (state, state.until()) {
                (State::Healthy | State::HalfOpen | State::Stale, _) => return None,
                // The next request will ask it.
                (State::Cooling { .. }, _) if slot.health.rests_softly(now).is_some() => return None,
                (_, Some(until)) if until <= later(now, SOON) => return None,
                (_, until) => outlook.until = [outlook.until, until].into_iter().flatten().min(),
            }
            *outlook.states.entry(state.as_str()).or_default() += 1;
        }
        Some(outlook)
    }

    /// Until the soonest account that serves these models is back; a second when one is there already.
    fn soonest(&self, model_names: &[&str], kiro_id: &str, now: Timestamp) -> Option<Duration> {
        let back = |slot: &Slot| match slot.state(now) {
            State::Cooling { until } | State::NoProfile { until } => Some(between(now, until)),
            State::Healthy | State::HalfOpen | State::Stale => Some(Duration::from_secs(1)),
            State::Disabled | State::Unusable | State::Quota { .. } | State::Ejected => None,
        };
        self.slots.values().filter(|slot| slot.serves(model_names, kiro_id, now)).filter_map(back).min()
    }
}

impl Slot {
    fn new(id: &AccountId, settings: &Settings, now: Timestamp) -> Self {
        let (lent, token, learned) = (&Addresses::default(), &Token::default(), &Learned::default());
        let sources = Sources { account: None, lent, token, learned, urls: &settings.urls };
        let view = view::view(id, &sources).view;
        Self {
            record: Bytes::new(),
            account: None,
            token_record: None,
            view: Arc::new(view),
            lent: Addresses::default(),
            problems: [None, None, None],
            warnings: Vec::new(),
            health: Health::new(Standing::default(), settings.rules, now),
            held: Held::new(TokenKey::of(id)),
            load: Arc::default(),
            sent: VecDeque::new(),
            suspected: None,
            arn_rejected: None,
            host_marked: None,
            learned: Learned::default(),
        }
    }

    pub(crate) fn state(&self, now: Timestamp) -> State {
        match self.health.state(self.is_usable(now), now) {
            served @ (State::Healthy | State::HalfOpen | State::Stale) => {
                self.learned.no_profile_until(now).map_or(served, |until| State::NoProfile { until })
            }
            other => other,
        }
    }

    fn is_usable(&self, now: Timestamp) -> bool {
        self.problem().is_none() && self.held.is_usable(now)
    }

    fn problem(&self) -> Option<&str> {
        self.problems.iter().flatten().next().map(String::as_str)
    }

    fn supports(&self, model_names: &[&str]) -> bool {
        self.account.as_ref().is_none_or(|account| account.supports(model_names))
    }

    /// Whether it has said no to the model lately (K88).
    fn has_refused(&self, kiro_id: &str, now: Timestamp) -> bool {
        !kiro_id.is_empty() && self.learned.refuses_model(kiro_id, now)
    }

    fn serves(&self, model_names: &[&str], kiro_id: &str, now: Timestamp) -> bool {
        self.supports(model_names) && !self.has_refused(kiro_id, now)
    }

    /// Takes in what a snapshot holds of this account; the answer is a token that must be written back (R46, R48).
    /// A record that can't be read makes this account unusable and no other (R9).
    fn take_in(
        &mut self,
        raw: RawAccount,
        parsed: Option<Result<Account, Unusable>>,
        since: Instant,
        pool: &Inner,
        now: Timestamp,
        rng: &mut fastrand::Rng,
    ) -> Option<UnsavedToken> {
        let changed = parsed.is_some() || raw.token != self.token_record;
        if let Some(parsed) = parsed {
            self.problems[0] = parsed.as_ref().err().map(|error| format!("account record: {error}"));
            self.account = parsed.ok().or(self.account.take());
            self.record = raw.account;
        }
        if let (Some(account), None) = (&self.account, &self.problems[0]) {
            // What we have not written yet, or wrote after this was read, is on top of it (R18). What a host program writes
            // in our place we can't see coming.
            let by_host = self.host_marked.is_some_and(|marked| marked + HOST_WRITES_WITHIN > since);
            let ours = pool.writer.overlaid(account, since);
            let standing = Standing::from(ours.as_ref().unwrap_or(account));
            self.health.observe(standing, by_host, pool.settings.rules, now);
        }
        self.token_record.clone_from(&raw.token);
        let observed = self.held.observe(raw.token, now, rng);
        self.problems[1] = observed.as_ref().err().map(|error| format!("token record: {error}"));
        let mut observed = observed.unwrap_or_default();
        if let Some(left_over) = pool.writer.left_over(&self.view.id) {
            match self.held.take_left_over(&left_over, rng) {
                Some(unsaved) => observed.write_back = Some(unsaved),
                None => pool.writer.forget(&self.view.id, left_over),
            }
        }
        if observed.lost {
            tracing::warn!(account = self.view.short_id(), "no token record: its access token serves to its end");
        }
        if changed {
            self.review(&pool.settings.urls, now);
            if let Some(problem) = self.problem() {
                tracing::warn!(account = self.view.short_id(), problem, "account unusable");
                pool.counters.unusable_records.fetch_add(1, Ordering::Relaxed);
            }
        }
        observed.write_back
    }

    fn viewed(&self, token: &Token, urls: &Arc<Urls>) -> Viewed {
        let (account, lent, learned) = (self.account.as_ref(), &self.lent, &self.learned);
        view::view(&self.view.id, &Sources { account, lent, token, learned, urls })
    }

    /// Stands for the fields on which what was learned depends (R72).
    fn identity(&self) -> u64 {
        let (token, account) = (self.held.token(), self.account.as_ref());
        let secret = |field: &Option<Secret>| field.as_ref().map(|secret| secret.expose().to_owned());
        let mut hasher = DefaultHasher::new();
        let named = [&token.auth_method, &token.provider, &token.start_url, &token.profile_arn, &token.region];
        (named, &token.idc_region, &token.api_region).hash(&mut hasher);
        (secret(&token.client_id), secret(&token.kiro_api_key)).hash(&mut hasher);
        account.map(|account| (&account.profile_arn, &account.region)).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether its profiles may be looked up (K79).
    pub(crate) fn may_look_up(&self, now: Timestamp) -> bool {
        self.view.kind().has_profiles() && self.learned.may_ask_profiles(now)
    }

    /// The record was changed by us: what was learned goes on (R72).
    pub(crate) fn goes_on(&mut self) {
        self.learned.goes_on_with(self.identity());
    }

    /// Makes the view again after a change of record or token.
    fn review(&mut self, urls: &Arc<Urls>, now: Timestamp) {
        self.learned.belongs_to(self.identity());
        let viewed = self.viewed(self.held.token(), urls);
        self.problems[2] = viewed.problem;
        for warning in viewed.warnings.iter().filter(|warning| !self.warnings.contains(warning)) {
            tracing::warn!(account = viewed.view.short_id(), "{warning}");
        }
        self.warnings = viewed.warnings;
        let arn = viewed.view.profile_arn().filter(|arn| !arn.is_empty());
        if arn.is_some() && arn != self.arn_rejected.as_deref() {
            self.arn_rejected = None;
        }
        if viewed.view != *self.view {
            self.view = Arc::new(viewed.view);
        }
        self.health.set_fingerprint(self.held.fingerprint(), now);
    }

    /// A conversation is sent to it: it counts in its minute (K92). Only so many are kept as a limit can ask for.
    fn sends(&mut self, settings: &Settings, now: Timestamp) {
        let most = if settings.brake { settings.per_minute.max(brake::PER_MINUTE) } else { settings.per_minute };
        self.sent.push_back(now);
        while self.sent.len() > usize::try_from(most).unwrap_or(usize::MAX) {
            self.sent.pop_front();
        }
    }

    /// When its first place in the minute is free again; none: one is.
    fn paced_until(&self, per_minute: u32, now: Timestamp) -> Option<Timestamp> {
        let limit = usize::try_from(per_minute).ok().filter(|limit| *limit > 0)?;
        let oldest = *self.sent.get(self.sent.len().checked_sub(limit)?)?;
        Some(later(oldest, MINUTE)).filter(|free| oldest <= now && *free > now)
    }

    /// When the account turned suspicious, here or in another process; each time once.
    fn turned_suspicious(&mut self) -> Option<Timestamp> {
        let (until, at) = self.health.suspected()?;
        (self.suspected.replace(until) != Some(until)).then_some(at)
    }

    fn candidate<'a>(&'a self, wanted: &Wanted<'_>, limits: Limits, rules: Rules, now: Timestamp) -> Candidate<'a> {
        Candidate {
            id: &self.view.id,
            state: self.state(now),
            live_token: self.held.live(now).is_some(),
            arn_rejected: self.arn_rejected.is_some(),
            model_unsupported: !self.supports(wanted.model_names),
            model_refused: self.has_refused(wanted.kiro_id, now),
            fit: wanted.fit.map_or(0, |fit| fit.0(&self.view, &self.learned, now)),
            priority: self.account.as_ref().map_or(0, |account| account.priority),
            excluded: wanted.exclude.contains(&self.view.id),
            in_flight: self.load.in_flight.load(Ordering::Acquire),
            probing: self.load.probing.load(Ordering::Acquire),
            paced_until: self.paced_until(limits.per_minute, now),
            refused_lately: self.health.refused_lately(rules, now),
            rests_softly: self.health.rests_softly(now),
        }
    }
}

impl Wanted<'_> {
    fn needs(&self) -> Needs {
        let mut exclude = self.exclude.to_vec();
        exclude.sort_unstable();
        Needs {
            model_names: self.model_names.iter().map(|&name| name.to_owned()).collect(),
            kiro_id: self.kiro_id.to_owned(),
            exclude,
            only: self.only.map(str::to_owned),
        }
    }
}

/// Reads the store and reserves tickets, for as long as the pool lives.
async fn background(pool: Weak<Inner>) {
    let Some((mut status, refill)) = pool.upgrade().map(|inner| (inner.store.watch(), inner.refill.clone())) else {
        return;
    };
    // The first block is in hand before the first request can ask for a ticket, where the store is there at all.
    let connected = tokio::time::timeout(RETRY_READ, status.wait_for(Status::is_connected)).await.is_ok();
    let first = if connected { reserve_block(&pool).await } else { Some(RETRY_READ) };
    tokio::select! {
        () = read_store(pool.clone(), status) => {}
        () = reserve_tickets(pool, refill, first) => {}
    }
}

/// Serves those in line when an account may come for them without anybody's doing.
async fn keep_time(pool: Weak<Inner>, line_moved: Arc<Notify>) {
    loop {
        let due = {
            let Some(pool) = pool.upgrade().map(Pool) else { return };
            let now = pool.now();
            let mut inside = pool.inside();
            if inside.line.is_empty() {
                inside.line_due = None;
            }
            inside.line_due.map(|due| between(now, due).max(SHORTEST_SLEEP))
        };
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = line_moved.notified() => continue,
            () = sleep => {}
        }
        if let Some(pool) = pool.upgrade() {
            Pool(pool).serve_line();
        }
    }
}

/// Says once that the store is lost and once that it is back (R50), and what else an operator must know of it.
async fn watch_store(pool: Weak<Inner>, mut status: watch::Receiver<Status>, writer: Writer) {
    let mut lost: Option<(Instant, u64)> = None;
    let (mut waited, mut refused) = (false, false);
    loop {
        let now = status.borrow_and_update().clone();
        if let Status::Connecting(Some(error)) = &now
            && !std::mem::replace(&mut waited, true)
        {
            tracing::warn!(%error, "the store can't be reached yet; it is tried again for ever");
        }
        match (&now, lost) {
            (Status::Away(error), None) => {
                lost = Some((Instant::now(), writer.written()));
                tracing::warn!(%error, "the store is lost; accounts and tokens come from memory");
                tell(&pool, PoolEvent::StoreLost { cause: error.to_string() });
            }
            (Status::Connected | Status::WritesRefused(_), Some((since, before))) => {
                let away = since.elapsed();
                // What waited goes first; a store that is lost again in the middle of it is told as such.
                let mut again = status.clone();
                tokio::select! {
                    () = writer.caught_up(CAUGHT_UP_WITHIN) => {}
                    _ = again.wait_for(|status| !status.is_connected()) => {}
                }
                let written = writer.written().saturating_sub(before);
                let away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(away_ms, written, "the store is back");
                tell(&pool, PoolEvent::StoreBack { away, written });
                lost = None;
            }
            _ => {}
        }
        match &now {
            Status::WritesRefused(error) if !refused => {
                refused = true;
                tracing::warn!(%error, "the store takes no writes; what is to be written waits");
            }
            Status::Connected if std::mem::take(&mut refused) => tracing::info!("the store takes writes again"),
            _ => {}
        }
        if now.is_connected() && std::mem::take(&mut waited) {
            tracing::info!("the store is reached");
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn tell(pool: &Weak<Inner>, event: PoolEvent) {
    if let Some(inner) = pool.upgrade() {
        Pool(inner).tell(event);
    }
}

async fn read_store(pool: Weak<Inner>, mut status: watch::Receiver<Status>) {
    let mut told = false;
    loop {
        let Some(pool) = pool.upgrade().map(Pool) else { return };
        let started = Instant::now();
        let next = match pool.reload().await {
            Ok(()) => {
                told = false;
                started + pool.pace()
            }
            Err(error) => {
                // That the store is away is told where its state is watched.
                if !error.is_away() && !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "the accounts can't be read; the last snapshot serves on");
                }
                started + RETRY_READ
            }
        };
        drop(pool);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => break,
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Back again: the snapshot must be fresh at once (R53).
                    if status.borrow_and_update().is_connected() {
                        break;
                    }
                }
            }
        }
    }
}

/// Fetches blocks of tickets when asked to (R36).
async fn reserve_tickets(pool: Weak<Inner>, refill: Arc<Notify>, mut pause: Option<Duration>) {
    loop {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let Some(inner) = pool.upgrade() else { return };
        if pause.is_some() {
            Pool(inner).inside().tickets.fetched(None);
        } else {
            drop(inner);
        }
        refill.notified().await;
        pause = reserve_block(&pool).await;
    }
}

/// One block; the answer is how long not to ask again after a failure.
async fn reserve_block(pool: &Weak<Inner>) -> Option<Duration> {
    let pool = pool.upgrade()?;
    match pool.store.reserve_tickets(tickets::BLOCK).await {
        Ok(block) => {
            pool.counters.ticket_blocks.fetch_add(1, Ordering::Relaxed);
            Pool(pool).inside().tickets.fetched(Some(block));
            None
        }
        Err(error) if error.kind() == StoreErrorKind::Counter => {
            if !pool.counter_told.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "the round-robin counter is unusable; tickets are counted locally");
            }
            Some(COUNTER_PAUSE)
        }
        // The store itself tells that it is away.
        Err(_) => Some(RETRY_READ),
    }
}

/// How the writer is told about an outcome.
fn patches(outcome: &Outcome) -> Vec<OutcomePatch> {
    let (at, started_at) = (outcome.at, outcome.started);
    match &outcome.event {
        Event::Success { probe: true, .. } => vec![OutcomePatch::Healed { started_at }],
        Event::Success { heals: true, .. } => vec![OutcomePatch::Success { at, started_at }],
        Event::Success { heals: false, .. } => vec![OutcomePatch::Used { at }],
        Event::Refreshed => vec![OutcomePatch::Refreshed { at }],
        Event::Fault { mark, used } => {
            let used = used.then_some(OutcomePatch::Used { at });
            let mark = mark.as_ref().map(|mark| match mark.clone() {
                Note::Plain(cause) => OutcomePatch::Counted { at, started_at, cause },
                Note::CoolDown { until, cause } => OutcomePatch::CoolDown { at, started_at, until, cause },
                Note::Quota { until, cause } => OutcomePatch::Quota { at, started_at, until, cause },
                Note::Ejected { cause } => OutcomePatch::Ejected { at, started_at, cause },
            });
            used.into_iter().chain(mark).collect()
        }
    }
}

fn between(now: Timestamp, until: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or_default()
}
