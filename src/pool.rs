//! The live snapshot of accounts: selection, in-flight counts, health. Fed by the store, asked by the gateway.
//!
//! One lock guards everything; it is held for microseconds and never across an await. No call of a request reaches the
//! store (R5): selection, [`Lease`]s and reports work on memory. A background task reads the store every
//! `KIRO_ACCOUNT_CACHE_TTL` (R14) and reserves tickets (R36). Outcomes leave through the store's [`Writer`].
//!
//! # Cancellation
//! A dropped [`Lease`] gives its place back at once and changes nothing on the account (K50). A dropped
//! [`Pool::acquire`] leaves the line; an account that it was given in this moment goes to the next. Dropping the last
//! [`Pool`] ends its background task; [`Pool::close`] waits for it.

mod fit;
mod lease;
mod line;
mod snapshot;
mod start;
#[cfg(test)]
mod tests;
mod tickets;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::policy::account::PoolAccount;
use crate::policy::alike::Alike;
use crate::policy::brake::Brake;
use crate::policy::health::{HealthState, Rules, is_soft};
use crate::policy::later;
pub use crate::policy::learned::Credits;
use crate::policy::learned::{Lesson, Variant};
use crate::policy::outcome::{Event, Outcome};
use crate::policy::renewal::{Ended, LookUp};
use crate::policy::select::Strategy;
use crate::policy::suspicion::SUSPICION;
use crate::policy::view::{self, Urls};
use crate::proto::kiro::catalogue::Catalogue;
use crate::proto::kiro::fault::Fault;
use crate::proto::kiro::profile::{AccountKind, region_of};
use crate::proto::record::{Method, Note, Token, TokenKey, rfc3339};
use crate::secret::Secret;
use crate::store::writer::Pending;
use crate::store::{Clock, JournalSurvey, Store, StoreError, Writer};

pub use crate::policy::health::AttemptEnd;
pub use crate::policy::view::{AccountId, AccountView, Addresses};
pub use crate::proto::record::short;
pub use fit::Fit;
pub use lease::{NoAccount, Outlook, Wanted, Why};
use line::Line;

/// The pool's settings.
struct Settings {
    strategy: Strategy,
    /// `KIRO_MAX_INFLIGHT_PER_ACCOUNT`; 0: no limit.
    max_in_flight: u32,
    /// `KIRO_ACCOUNT_RPM`; 0: no limit.
    per_minute: u32,
    /// `KIRO_SUSPICION_BRAKE`.
    brake: bool,
    /// The largest limit of conversations a minute and account (K92).
    remembered: u32,
    account_wait: Duration,
    /// How many requests may wait for an account: as many as may be in flight.
    max_waiting: usize,
    cache_ttl: Duration,
    rules: Rules,
    urls: Arc<Urls>,
    /// Where accounts are expected: the full key, or the path (R56).
    place: Arc<str>,
    /// The same for clients, without a path of this machine.
    shown: Arc<str>,
    /// What brings an account there.
    cure: &'static str,
}

/// Sees an outcome before it is written to an account's record: a success, a fault with a mark, a probe that heals;
/// never one of a pinned request (N5). True: the host program writes it (R35), so we don't; the host can still hand it
/// back with [`Pool::write`], also later. A host has no call for two others, which aren't shown and which we always
/// write: the use of a fault after the commit, and the fields of a refresh.
pub type Recorder = Arc<dyn Fn(&AccountId, &Outcome) -> bool + Send + Sync>;

/// Sees events for an operator or a host program.
pub type Listener = Arc<dyn Fn(PoolEvent) + Send + Sync>;

/// The pool's callbacks. Each is called outside the pool's lock, must not block and must not panic.
#[derive(Clone, Default)]
pub struct Hooks {
    /// See [`Recorder`].
    pub record: Option<Recorder>,
    /// See [`Listener`].
    pub event: Option<Listener>,
}

/// An event for [`Hooks::event`].
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
    /// A model's name that isn't known is served by another model, at the host program's wish (N90). Once a day for each
    /// name.
    ModelReplaced {
        /// The name, in quotes.
        name: String,
        /// The name of the model that serves.
        instead: String,
    },
    /// The store is away: accounts and tokens come from memory from here on (R50). Once for each outage; not for a
    /// store that was never reached.
    StoreLost {
        /// Error words and addresses, never a value (R6).
        cause: String,
    },
    /// The store is back, and the waiting records are written. Once for each [`PoolEvent::StoreLost`], before the next.
    StoreBack {
        /// How long it was away.
        away: Duration,
        /// Account and token records written since.
        written: u64,
    },
}

/// From when on the end of a client registration is shown, seconds (K99).
const REGISTRATION_SOON: i64 = 14 * 86_400;

/// One account in lists, without secrets.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountInfo {
    /// The whole id.
    pub id: AccountId,
    /// `customName`.
    pub name: Option<String>,
    /// How its credential is renewed.
    pub method: Method,
    /// Whose account it is (K73).
    pub kind: AccountKind,
    /// The region in which Kiro is asked for it (K74).
    pub region: String,
    /// Its profile: `own`, `listed`, `service`, `none`, or `missing`.
    pub profile: &'static str,
    /// Its state now.
    pub state: HealthState,
    /// When its access token expires; none for API keys and when it is unknown.
    pub expires_at: Option<Timestamp>,
    /// When the client registration of an IdC account ends: until then its token can be renewed (K99).
    pub registration_expires_at: Option<Timestamp>,
    /// This process's requests on it.
    pub in_flight: u32,
    /// Why it is unusable, naming the field.
    pub problem: Option<String>,
    /// Why it rests or is ejected.
    pub cause: Option<String>,
    /// What it had used of its quota when Kiro was last asked (K146).
    pub credits: Option<Credits>,
    /// This process's lessons from its answers, in words (R72).
    pub learned: Vec<String>,
}

impl AccountInfo {
    /// What every list of accounts says first of each, as a JSON object.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "id": &*self.id,
            "name": self.name,
            "method": self.method.as_str(),
            "kind": self.kind.as_str(),
            "region": self.region,
            "profile": self.profile,
            "state": self.state.as_str(),
            "until": self.state.until().map(rfc3339),
        })
    }

    /// The end of its client registration, from 14 days before (K99).
    pub fn registration_soon(&self, now: Timestamp) -> Option<Timestamp> {
        self.registration_expires_at.filter(|end| end.as_second() <= now.as_second() + REGISTRATION_SOON)
    }

    /// Its state for people: the state's word, or `suspicious` for a suspicious rest (K91).
    pub fn condition(&self) -> &'static str {
        match (self.state, &self.cause) {
            (HealthState::Cooling { .. }, Some(cause)) if cause.starts_with(SUSPICION) => "suspicious",
            _ => self.state.as_str(),
        }
    }
}

/// The pool in numbers, for `/health` and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accounts of the snapshot.
    pub total: usize,
    /// Requests in flight, all accounts.
    pub in_flight: usize,
    /// Requests that wait for an account.
    pub waiting: usize,
}

/// How many accounts a request could be sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Able {
    /// In the ordinary order.
    pub serving: usize,
    /// Only because no other account is left.
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
    /// Requests in the line, so that the end of a lease takes the lock only when a request waits.
    waiting: AtomicUsize,
    /// [`Inside::line_due`] has changed.
    line_moved: Arc<Notify>,
    reading: tokio::sync::Mutex<()>,
    loaded: watch::Sender<bool>,
    /// The last read that the store refused (NOAUTH, NOPERM).
    refused: watch::Sender<Option<StoreError>>,
    refill: Arc<Notify>,
    counter_told: AtomicBool,
    /// Found profiles are not written.
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
    // Bound: accounts | an account of the store each | it goes when it has left the store
    slots: BTreeMap<AccountId, PoolSlot>,
    /// Since when the store's pool reads empty although the last snapshot was not (R55).
    empty_since: Option<Timestamp>,
    /// The log has said that it reads empty.
    empty_told: bool,
    /// Accounts that the last snapshot missed, with the places of their tokens.
    // Bound: accounts that have just left the store | snapshot::MOST_GONE | further ones are forgotten at once
    gone: Vec<(AccountId, TokenKey)>,
    /// Addresses that a host program's configuration names for all accounts (N94).
    lent: Arc<Addresses>,
    tickets: tickets::Book,
    alike: Alike,
    brake: Brake,
    /// The log has said that the brake is on.
    brake_told: bool,
    line: Line<Waiter>,
    /// When an account may become free for the line by time alone: a rest, a minute or the brake ends.
    line_due: Option<Timestamp>,
    rng: fastrand::Rng,
}

/// One account of the pool, with its running tasks in this process.
pub(crate) struct PoolSlot {
    pub(crate) account: PoolAccount,
    load: Arc<Load>,
    host_marked: Option<Instant>,
    /// Its running refresh (R39).
    pub(crate) refresh: Option<watch::Receiver<Option<Ended>>>,
    /// Its running look-up of profiles (K79).
    pub(crate) look_up: Option<watch::Receiver<Option<LookUp>>>,
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

/// An account taken for one attempt. Dropping it gives the place back without a report on the account (K50).
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
    /// A pinned request: records no outcome (N5).
    Pinned,
    /// Heals, but is no use of the account (R17).
    Probe,
}

impl Pool {
    /// Time until this account's running `Retry-After` or rest ends; none: it is not resting.
    pub fn return_of(&self, id: &str) -> Option<Duration> {
        let now = self.now();
        let inside = self.inside();
        let slot = inside.slots.get(id)?;
        let rest = match slot.account.state(now) {
            HealthState::Cooling { until } => Some(until),
            _ => None,
        };
        slot.account.health.held_until(now).max(rest).map(|until| between(now, until))
    }

    /// Time until the soonest account that serves these models is back; none: no account will come back (K47, M61).
    pub fn soonest_return(&self, model_names: &[&str]) -> Option<Duration> {
        let now = self.now();
        self.inside().soonest(model_names, "", now)
    }

    /// The mark of an account that is out until a person acts.
    pub fn ejection(&self, id: &str) -> Option<Note> {
        self.with_slot(id, |slot, _| slot.account.health.ejection().cloned()).flatten()
    }

    /// Whether the account's access token expires within `threshold`; false when that isn't known.
    pub fn expires_within(&self, id: &str, threshold: Duration) -> bool {
        let soon = later(self.now(), threshold);
        self.with_slot(id, |slot, _| slot.account.expires_at()).flatten().is_some_and(|at| at <= soon)
    }

    /// Addresses of an account that a host program's configuration names (N4). Those of the account's own record come
    /// first, those of this process's configuration last. Unknown accounts are left out.
    pub fn lend_addresses(&self, id: &str, addresses: &Addresses) {
        let now = self.now();
        self.with_slot(id, |slot, _| {
            if slot.account.lent != *addresses {
                slot.account.lent = addresses.clone();
                slot.review(&self.0.settings.urls, now);
            }
        });
    }

    /// The same for all accounts, also those that come later (N94); addresses that were lent to one account alone come
    /// before.
    pub fn lend_addresses_to_all(&self, addresses: &Addresses) {
        let now = self.now();
        let addresses = Arc::new(addresses.clone());
        let mut inside = self.inside();
        if inside.lent == addresses {
            return;
        }
        inside.lent = addresses.clone();
        for slot in inside.slots.values_mut() {
            slot.account.lent_to_all = addresses.clone();
            slot.review(&self.0.settings.urls, now);
        }
    }

    /// The account's view, if the account is in the pool.
    pub fn account(&self, id: &str) -> Option<Arc<AccountView>> {
        self.inside().slots.get(id).map(|slot| slot.account.view.clone())
    }

    /// How an account with this token record would be seen, without being one.
    pub(crate) fn preview(&self, token: &Token) -> Arc<AccountView> {
        Arc::new(view::of_token(&AccountId::from("new"), token, &self.0.settings.urls))
    }

    /// The accounts whose calls go to this API region.
    pub fn accounts_in_region(&self, region: &str) -> Vec<AccountId> {
        let inside = self.inside();
        let there = |slot: &&PoolSlot| slot.account.view.region() == region;
        inside.slots.values().filter(there).map(|slot| slot.account.view.id.clone()).collect()
    }

    /// All accounts, sorted by id, from memory.
    pub fn accounts(&self) -> Vec<AccountInfo> {
        let now = self.now();
        let inside = self.inside();
        let info = |slot: &PoolSlot| AccountInfo {
            id: slot.account.view.id.clone(),
            name: slot.account.view.name.clone(),
            method: slot.account.view.method,
            kind: slot.account.view.kind(),
            region: slot.account.view.region().to_owned(),
            profile: slot.account.view.profile(),
            state: slot.account.state(now),
            expires_at: slot.account.expires_at(),
            registration_expires_at: slot
                .account
                .credential
                .token()
                .registration_expires_at
                .filter(|_| slot.account.view.method == Method::Idc),
            in_flight: slot.load.in_flight.load(Ordering::Relaxed),
            problem: slot.account.problem().map(str::to_owned),
            cause: slot.account.health.cause().filter(|_| !slot.account.state(now).is_served()).map(str::to_owned),
            credits: slot.account.learned.credits(now),
            learned: slot.account.learned.words(now),
        };
        inside.slots.values().map(info).collect()
    }

    /// The pool in numbers, from memory.
    pub fn counts(&self) -> Counts {
        let inside = self.inside();
        let in_flight = inside.slots.values().map(|slot| slot.load.in_flight.load(Ordering::Relaxed));
        let in_flight = in_flight.map(|count| usize::try_from(count).unwrap_or(usize::MAX)).sum();
        Counts { total: inside.slots.len(), in_flight, waiting: inside.line.len() }
    }

    /// The accounts that a request could be sent to now: their state lets them be selected, or they rest softly; they
    /// have a token or are one refresh away from it; and they are `reachable`, which is called under the pool's lock.
    /// Busy accounts count too.
    pub fn able(&self, reachable: impl Fn(&AccountView) -> bool) -> Able {
        let now = self.now();
        let inside = self.inside();
        let mut able = Able::default();
        for slot in
            inside.slots.values().filter(|slot| slot.account.credential.can_serve(now) && reachable(&slot.account.view))
        {
            match slot.account.state(now) {
                state if state.is_served() => able.serving += 1,
                HealthState::Cooling { .. } if slot.account.health.rests_softly(now).is_some() => able.last_resort += 1,
                _ => {}
            }
        }
        able
    }

    /// Accounts by state, each state once, by its word (for a metric).
    pub fn states(&self) -> [(&'static str, usize); 9] {
        let now = self.now();
        let mut states = HealthState::WORDS.map(|word| (word, 0));
        for slot in self.inside().slots.values() {
            let word = slot.account.state(now).as_str();
            states.iter_mut().filter(|(state, _)| *state == word).for_each(|(_, count)| *count += 1);
        }
        states
    }

    /// Account records and tokens that wait to be written.
    pub fn queued_writes(&self) -> (usize, usize) {
        self.0.writer.queued()
    }

    /// Tries whether tokens can be kept in `KIRO_STATE_DIR`, and logs it when not; none without that setting.
    pub async fn try_journal(&self) -> Option<bool> {
        self.0.writer.try_journal().await
    }

    /// A look into `KIRO_STATE_DIR`; none without that setting.
    pub async fn survey_journal(&self) -> Option<JournalSurvey> {
        self.0.writer.survey_journal().await
    }

    /// Whether waiting tokens can be kept in `KIRO_STATE_DIR`; none without that setting.
    pub fn journal_works(&self) -> Option<bool> {
        self.0.writer.journal_works()
    }

    /// Numbers since the start.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Half-open accounts that an instance of ours marked and that got no request within 60 s after their rest, each
    /// with a lease. The caller asks them with getUsageLimits (K62) and reports the answer like an attempt's (R17).
    pub fn probes_due(&self) -> Vec<Lease> {
        let now = self.now();
        let mut inside = self.inside();
        let due = |slot: &PoolSlot| {
            let free = !slot.load.probing.load(Ordering::Acquire) && slot.account.credential.live(now).is_some();
            free && slot.account.state(now) == HealthState::HalfOpen && slot.account.health.probe_due(now)
        };
        let due: Vec<&mut PoolSlot> = inside.slots.values_mut().filter(|slot| due(slot)).collect();
        due.into_iter().map(|slot| self.lease(slot, now, Purpose::Probe)).collect()
    }

    /// An account that wants its profiles looked up in the background: loaded without an ARN, in service, its token live
    /// (K79).
    pub(crate) fn look_up_due(&self) -> Option<AccountId> {
        let now = self.now();
        let inside = self.inside();
        let due = |slot: &&PoolSlot| {
            slot.account.state(now).is_served()
                && slot.account.view.wants_profiles()
                && slot.account.learned.may_ask_profiles(now)
                && slot.account.credential.live(now).is_some()
        };
        inside.slots.values().find(due).map(|slot| slot.account.view.id.clone())
    }

    /// Whether the account may be asked for its usage in the background: it neither rests nor is out (K146).
    pub(crate) fn may_be_asked(&self, id: &str) -> bool {
        let now = self.now();
        let asked = |state| matches!(state, HealthState::Healthy | HealthState::Stale | HealthState::Quota { .. });
        self.with_slot(id, |slot, _| asked(slot.account.state(now))).unwrap_or(false)
    }

    /// Takes in a lesson about an account (R72), outside any lease.
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
            slot.account.learned.learn(lesson, now);
            if changes_view {
                slot.review(&self.0.settings.urls, now);
            }
            changes_view
        });
        if changed == Some(true) {
            // An account that had no profile may serve now.
            self.serve_line();
        }
        if let Some(arn) = proven {
            self.keep_profile(id, arn);
        }
    }

    /// From now on found profiles, and tokens that the store lacks, serve this process and aren't written: for a command
    /// that changes nothing (K138).
    pub fn only_look(&self) {
        self.0.only_looks.store(true, Ordering::Relaxed);
    }

    /// Writes a found profile into the token record, unless the record has an own one (K79).
    pub(crate) fn keep_profile(&self, id: &str, arn: String) {
        if self.0.only_looks.load(Ordering::Relaxed) {
            return;
        }
        let now = self.now();
        let unsaved = self.with_slot(id, |slot, _| {
            if slot.account.view.has_own_profile() || self.0.settings.urls.is_service(&arn) {
                return None;
            }
            let region = region_of(&arn).map(str::to_owned);
            let idc_region = slot.account.view.refresh_region().to_owned();
            let unsaved = slot.account.credential.learned_profile(arn, region, &idc_region)?;
            slot.account.goes_on();
            slot.review(&self.0.settings.urls, now);
            Some(unsaved)
        });
        if let Some(unsaved) = unsaved.flatten() {
            // The background writer saves it; requests use it already.
            self.writer().keep_token(id, unsaved);
        }
    }

    /// Writes an outcome that [`Hooks::record`] had taken over, when the host program could not record it after all. A
    /// success that must not heal (R28) is written as a bare count (N18). The use of a fault after the commit isn't
    /// counted again.
    pub fn write(&self, id: &AccountId, outcome: &Outcome) {
        let mut outcome = outcome.clone();
        if let Event::Fault { used, .. } = &mut outcome.event {
            *used = false;
        }
        self.0.writer.record(id, &outcome);
    }

    /// Writes everything pending, for at most `within`. Returns what could not be written.
    pub async fn flush(&self, within: Duration) -> Pending {
        self.0.writer.flush(within).await
    }

    /// Ends the background task and writes everything pending, for at most `within` (R33). Returns what could not be
    /// written. Then the pool touches no file of its store any more. Leases stay valid, but nothing writes their reports any more.
    pub async fn close(&self, within: Duration) -> Pending {
        self.0.stop.cancel();
        self.0.tasks.close();
        let deadline = Instant::now() + within;
        if tokio::time::timeout_at(deadline, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("the pool's background task hangs");
        }
        let pending = self.0.writer.flush(deadline.saturating_duration_since(Instant::now())).await;
        if tokio::time::timeout_at(deadline, self.0.store.idle()).await.is_err() {
            tracing::warn!("work on the store's file isn't over: a lock of another process or a disk holds it up");
        }
        pending
    }

    pub(crate) fn now(&self) -> Timestamp {
        let now = (self.0.clock)();
        // Records hold milliseconds; a finer time would differ from its own record.
        Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
    }

    /// Runs `work` on an account in memory. Must be short and must not block.
    pub(crate) fn with_slot<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut PoolSlot, &mut fastrand::Rng) -> T,
    ) -> Option<T> {
        self.with_inside(id, |slot, rng, _| work(slot, rng))
    }

    fn with_inside<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut PoolSlot, &mut fastrand::Rng, &mut Brake) -> T,
    ) -> Option<T> {
        let mut inside = self.inside();
        let Inside { slots, rng, brake, .. } = &mut *inside;
        slots.get_mut(id).map(|slot| work(slot, rng, brake))
    }

    /// How many accounts have refused the model lately, and whether one has ever answered with it (K88, K89).
    pub fn model_votes(&self, kiro_id: &str) -> (usize, bool) {
        let now = self.now();
        let inside = self.inside();
        let refuses = inside.slots.values().filter(|slot| slot.account.learned.refuses_model(kiro_id, now)).count();
        (refuses, inside.slots.values().any(|slot| slot.account.learned.served_model(kiro_id).is_some()))
    }

    /// Each account's catalogue, while it is fresh (K125), and whether the account is healthy.
    pub(crate) fn catalogues(&self) -> Vec<(bool, Option<Arc<Catalogue>>)> {
        let now = self.now();
        let of = |slot: &PoolSlot| {
            let catalogue = slot.account.learned.catalogue(now).map(|(catalogue, _)| catalogue.clone());
            (matches!(slot.account.state(now), HealthState::Healthy), catalogue)
        };
        self.inside().slots.values().map(of).collect()
    }

    /// The account's view with this token record, which the snapshot may not have seen yet. The error says why the
    /// account can't be used with it (K11).
    pub(crate) fn view_with(&self, id: &str, token: &Token) -> Option<Result<AccountView, String>> {
        let viewed = self.with_slot(id, |slot, _| slot.account.viewed(token, &self.0.settings.urls))?;
        Some(viewed.problem.map_or(Ok(viewed.view), Err))
    }

    /// Accounts whose token should be refreshed in the background now.
    pub(crate) fn refreshes_due(&self, store_away: bool, threshold: Duration) -> Vec<AccountId> {
        let now = self.now();
        let inside = self.inside();
        let due = |slot: &&PoolSlot| {
            let asked_for = slot.account.health.standing().stale;
            !slot.is_refreshing()
                && slot.account.credential.is_due(slot.account.state(now), asked_for, store_away, threshold, now)
        };
        inside.slots.values().filter(due).map(|slot| slot.account.view.id.clone()).collect()
    }

    /// Wakes when a selection met an account whose token should be refreshed at once.
    pub(crate) fn refresh_wanted(&self) -> Arc<Notify> {
        self.0.refresh.clone()
    }

    /// Reports the result of a refresh: marks the account, writes the outcome, and sends the event.
    pub(crate) fn refreshed(&self, id: &str) {
        let now = self.now();
        let told = self.with_slot(id, |slot, _| {
            slot.review(&self.0.settings.urls, now);
            let event = PoolEvent::TokenRefreshed {
                id: slot.account.view.id.clone(),
                expires_at: slot.account.credential.token().expires_at,
                method: slot.account.view.method,
            };
            (slot.account.view.id.clone(), slot.account.health.refreshed(now), event)
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
        self.settle(id, |slot, _, now| Some(slot.account.health.eject(cause, now)));
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

    /// Judges and keeps an event of an account under one lock: the next selection sees the mark, and so does a snapshot
    /// that is taken in before the mark is written (R105).
    fn settle(
        &self,
        id: &str,
        judge: impl FnOnce(&mut PoolSlot, &mut fastrand::Rng, Timestamp) -> Option<Outcome>,
    ) -> Option<Outcome> {
        let now = self.now();
        let shown = Instant::now();
        let (id, outcome, host) = self
            .with_inside(id, |slot, rng, brake| {
                let outcome = judge(slot, rng, now)?;
                if let Some(at) = slot.account.turned_suspicious().filter(|_| self.0.settings.brake) {
                    brake.turned(&slot.account.view.id, at, now);
                }
                let host = self.0.hooks.record.as_ref().filter(|_| outcome.is_shown());
                match host {
                    None => self.0.writer.record(&slot.account.view.id, &outcome),
                    Some(_) => slot.host_marked = Some(shown),
                }
                Some((slot.account.view.id.clone(), outcome, host))
            })
            .flatten()?;
        if let Some(record) = host {
            if record(&id, &outcome) {
                if let Event::Fault { used: true, .. } = outcome.event {
                    self.0.writer.record(&id, &Outcome::used(outcome.at));
                }
            } else {
                self.0.writer.record(&id, &outcome);
                self.with_slot(&id, |slot, _| slot.host_marked = slot.host_marked.filter(|marked| *marked != shown));
            }
        }
        self.say(&id, &outcome);
        self.serve_line();
        Some(outcome)
    }

    /// Whether a fault hits several accounts alike, so that it is upstream's.
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
            Event::Success { .. } | Event::Fault { .. } | Event::Refreshed { .. } => {}
        }
    }

    pub(crate) fn tell(&self, event: PoolEvent) {
        if let Some(listener) = &self.0.hooks.event {
            listener(event);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.counts()).finish()
    }
}

impl PoolSlot {
    fn new(id: &AccountId, settings: &Settings, now: Timestamp) -> Self {
        Self {
            account: PoolAccount::new(id, &settings.urls, settings.rules, now),
            load: Arc::default(),
            host_marked: None,
            refresh: None,
            look_up: None,
        }
    }

    /// Makes the view again after a change of record or token, and logs the ignored fields.
    fn review(&mut self, urls: &Arc<Urls>, now: Timestamp) {
        for warning in self.account.review(urls, now) {
            tracing::warn!(account = self.account.view.short_id(), "{warning}");
        }
    }

    pub(crate) fn is_refreshing(&self) -> bool {
        self.refresh.as_ref().is_some_and(|flight| flight.borrow().is_none() && flight.has_changed().is_ok())
    }
}

fn between(now: Timestamp, until: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(now)).unwrap_or_default()
}
