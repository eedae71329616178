//! The background writer: outcomes reach the store merged, if need be late, and once (R30–R33, R51).
//!
//! Per account there is one entry:
//!
//! ```text
//!   record() ──▶ pending ──(due)──▶ in flight ──▶ written
//!                   ▲                  │  └─ reply lost: in doubt, asked for before anything newer leaves (R22)
//!                   └──── failed ──────┘
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::journal::Journal;
use super::waiting::{Generation, Waiting};
use super::{Cas, Change, Clock, MAX_TRIES, Saved, Store, StoreError, StoreErrorKind, UnsavedToken, conflict_pause};
use crate::policy::outcome::{Outcome, Outcomes};
use crate::proto::record::{self, Account, short};

/// How long marks wait for others, to leave together; R31 allows 50 ms.
const MARKS_WAIT: Duration = Duration::from_millis(5);
/// Counters leave at most this long after their event: a killed process loses those of 1 s (R31, R66).
const COUNTERS_WAIT: Duration = Duration::from_millis(800);
/// When a failed write is tried again, unless the store comes back sooner.
const RETRY: Duration = Duration::from_secs(1);
/// How long changes of a missing account are kept: the pool may be in the middle of a rewrite (R23).
const ABSENT: Duration = Duration::from_secs(10);
const ABSENT_RETRY: Duration = Duration::from_millis(250);
/// [`ABSENT`] while a caller waits for [`Writer::flush`]: a rewrite of the pool is over by then (R55).
const FLUSH_ABSENT: Duration = Duration::from_secs(2);
/// [`RETRY`] while a caller waits for [`Writer::flush`].
const FLUSH_RETRY: Duration = Duration::from_millis(100);
/// Batches in flight at once. An account is in at most one of them.
const BATCHES: usize = 8;
/// Accounts in one batch: its pipelines leave together, each with up to 64 scripts (R31).
const BATCH: usize = 256;
/// How long written changes are remembered, for snapshots whose read began before (R18).
const REMEMBER: Duration = Duration::from_secs(60);
/// How long an account's entry is kept without a change.
const FORGET: Duration = Duration::from_secs(600);

/// Collects outcomes and unsaved tokens and writes them in the background. Cheap to clone; one per gateway (R30).
///
/// Holds one entry per account, however long an outage lasts. The task ends when the last clone is dropped. Pending
/// changes are lost then, so call [`Writer::flush`] first.
#[derive(Clone)]
pub struct Writer {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

/// Pending writes, by account id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Accounts with outcomes.
    pub accounts: Vec<String>,
    /// Accounts with tokens that upstream has rotated and the store doesn't hold.
    pub tokens: Vec<String>,
}

impl Pending {
    /// Whether nothing is waiting.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty() && self.tokens.is_empty()
    }
}

struct Shared {
    store: Store,
    clock: Clock,
    /// Keeps waiting tokens for the next process.
    journal: Option<Arc<Journal>>,
    /// The journal is being written. A token that comes meanwhile may be saved in the store before its turn.
    journaling: AtomicBool,
    state: Mutex<Queue>,
    /// Something became due.
    wake: Notify,
    /// Something was settled.
    settled: Notify,
    /// Ticks of the counters are this plus a multiple of their interval, so that instances don't write at the same time
    /// (R31).
    phase: Instant,
    written: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Queue {
    entries: HashMap<String, AccountWrites>,
    tokens: Waiting,
    /// A caller waits: everything leaves now, and changes without a record are given up sooner.
    flushing: bool,
}

#[derive(Default)]
struct AccountWrites {
    pending: Outcomes,
    /// The unsettled change: only while a batch holds it or its reply is in doubt.
    in_flight: Option<InFlight>,
    /// When `pending` or `in_flight` must leave; `None` when there is nothing to write.
    due: Option<Instant>,
    /// A batch holds it.
    busy: bool,
    /// The record as last seen, as the base of the next patch. Only a guess: the compare-and-set decides.
    known: Option<Bytes>,
    absent_since: Option<Instant>,
    /// Marks, heals and refreshes that were written lately.
    recent: Vec<(Instant, Outcomes)>,
    touched: Option<Instant>,
    /// When its last write ended, well or not.
    settled: Option<Instant>,
}

#[derive(Clone)]
struct InFlight {
    change: Outcomes,
    /// The reply to this compare-and-set was lost.
    doubt: Option<Doubt>,
}

#[derive(Clone)]
struct Doubt {
    old: Bytes,
    new: Bytes,
}

impl Writer {
    /// Starts the background task, without a journal. Needs a tokio runtime.
    pub fn spawn(store: Store, clock: Clock) -> Self {
        Self::with_journal(store, clock, None)
    }

    /// Starts the background task. Reads the tokens that an earlier process has left in the journal.
    pub(crate) fn with_journal(store: Store, clock: Clock, journal: Option<Journal>) -> Self {
        let tokens = journal.as_ref().map(|journal| Waiting::with_journal(journal.left_over())).unwrap_or_default();
        let left_over = tokens.iter().count();
        if left_over > 0 {
            tracing::warn!(count = left_over, "tokens that the store lacked were kept in KIRO_STATE_DIR");
        }
        let shared = Arc::new(Shared {
            store,
            clock,
            journal: journal.map(Arc::new),
            journaling: AtomicBool::new(false),
            state: Mutex::new(Queue { tokens, ..Queue::default() }),
            wake: Notify::new(),
            settled: Notify::new(),
            phase: Instant::now() + COUNTERS_WAIT.mul_f64(fastrand::f64()),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        let running = stop.clone().run_until_cancelled_owned(Arc::clone(&shared).run());
        #[expect(
            clippy::disallowed_methods,
            reason = "the store's background task; `stop` ends it with the last clone"
        )]
        tokio::spawn(running);
        Self { shared, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Takes in an outcome; never waits (R32).
    pub fn record(&self, account_id: &str, outcome: &Outcome) {
        let change = Outcomes::from(outcome);
        if change.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut state = self.shared.state();
        let due = match change.is_urgent() {
            _ if state.flushing => now,
            true => now + MARKS_WAIT,
            false => self.shared.next_tick(now),
        };
        let entry = state.entry(account_id);
        entry.pending = std::mem::take(&mut entry.pending).then(change);
        entry.touched = Some(now);
        if entry.due.is_none_or(|before| due < before) {
            entry.due = Some(due);
            drop(state);
            self.shared.wake.notify_one();
        }
    }

    /// Takes in a token or a profile that the store doesn't hold (R51). Never waits.
    pub fn keep_token(&self, account_id: &str, token: UnsavedToken) {
        self.shared.state().tokens.keep(account_id, token, Instant::now());
        self.shared.wake.notify_one();
    }

    /// Saves a refreshed token now. It is kept even when this call is dropped or fails, and tried again until it is
    /// saved.
    ///
    /// # Errors
    /// The store's.
    pub async fn save_token(&self, account_id: &str, token: UnsavedToken) -> Result<Saved, StoreError> {
        let generation = {
            let mut state = self.shared.state();
            state.tokens.keep(account_id, token.clone(), Instant::now());
            state.tokens.take(account_id).map_or(0, |(_, generation)| generation)
        };
        self.shared.wake.notify_one();
        let saved = self.shared.store.save_token(&token).await;
        self.shared.settle_token(account_id, generation, &saved);
        self.shared.wake.notify_one();
        saved
    }

    /// Whether there is a journal, so that waiting tokens outlive the process.
    pub(crate) fn has_journal(&self) -> bool {
        self.shared.journal.is_some()
    }

    /// Whether the journal can be written; none without one.
    pub(crate) fn journal_works(&self) -> Option<bool> {
        self.shared.journal.as_ref().map(|journal| !journal.is_broken())
    }

    /// The token that an earlier process kept for this account and could not save. Returned once.
    pub(crate) fn left_over(&self, account_id: &str) -> Option<UnsavedToken> {
        self.shared.state().tokens.left_over(account_id)
    }

    /// The store has a newer token than the one left over.
    pub(crate) fn forget(&self, account_id: &str, left_over: UnsavedToken) {
        self.shared.state().tokens.forget(account_id, left_over);
        self.shared.wake.notify_one();
    }

    /// The pending writes.
    pub fn pending(&self) -> Pending {
        self.shared.pending()
    }

    /// The numbers of waiting accounts and tokens: the metrics' queued writes.
    pub fn queued(&self) -> (usize, usize) {
        let state = self.shared.state();
        (state.entries.values().filter(|entry| entry.has_work()).count(), state.tokens.len())
    }

    /// Account and token records written so far, for `storeBack`'s `written`.
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Changes dropped so far because their account was gone or unusable (R9, R23).
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Resolves when everything that waits now has been tried once more, or after `within`: the backlog of an outage
    /// (R53).
    pub async fn caught_up(&self, within: Duration) {
        let since = Instant::now();
        let backlog = self.pending();
        let is_done = |state: &Queue| {
            let account = |id: &String| {
                let entry = state.entries.get(id);
                entry.is_none_or(|entry| !entry.has_work() || entry.settled.is_some_and(|settled| settled >= since))
            };
            let token = |id: &String| state.tokens.was_tried(id, since);
            backlog.accounts.iter().all(account) && backlog.tokens.iter().all(token)
        };
        loop {
            let settled = self.shared.settled.notified();
            if is_done(&self.shared.state()) || timeout_at(since + within, settled).await.is_err() {
                return;
            }
        }
    }

    /// The record of `account`, read by a snapshot that began at `since`, with all changes that it may lack (R18);
    /// none: it lacks none. Counts may come out too high; health is right.
    pub fn overlaid(&self, account: &Account, since: Instant) -> Option<Account> {
        let state = self.shared.state();
        let change = state.entries.get(&account.id)?.newer_than(since)?;
        let mut account = account.clone();
        change.apply(&mut account, (self.shared.clock)());
        Some(account)
    }

    /// Writes everything pending, for at most `deadline`; returns and logs what could not be written (R33).
    pub async fn flush(&self, deadline: Duration) -> Pending {
        let deadline = Instant::now() + deadline;
        {
            let mut state = self.shared.state();
            state.flushing = true;
            state.all_due(Instant::now());
        }
        self.shared.wake.notify_one();
        loop {
            let settled = self.shared.settled.notified();
            if self.shared.pending().is_empty() || timeout_at(deadline, settled).await.is_err() {
                break;
            }
        }
        self.shared.state().flushing = false;
        let left = self.shared.pending();
        if !left.accounts.is_empty() {
            let accounts: Vec<&str> = left.accounts.iter().map(|id| short(id)).collect();
            tracing::warn!(count = accounts.len(), ?accounts, "outcomes could not be written");
        }
        for id in &left.tokens {
            match &self.shared.journal {
                Some(_) => tracing::warn!(account = short(id), "a refreshed token waits in KIRO_STATE_DIR"),
                None => tracing::error!(
                    account = short(id),
                    "a refreshed token could not be saved: this account must log in again"
                ),
            }
        }
        left
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (accounts, tokens) = self.queued();
        f.debug_struct("Writer").field("accounts", &accounts).field("tokens", &tokens).finish()
    }
}

impl Queue {
    fn entry(&mut self, account_id: &str) -> &mut AccountWrites {
        if !self.entries.contains_key(account_id) {
            self.entries.insert(account_id.to_owned(), AccountWrites::default());
        }
        self.entries.entry(account_id.to_owned()).or_default()
    }

    /// When the next write is due, and which accounts and tokens are due now.
    fn due(&self, now: Instant) -> (Option<Instant>, Vec<String>, Vec<String>) {
        let accounts = self.entries.iter().filter(|(_, entry)| !entry.busy);
        let accounts: Vec<_> = accounts.filter_map(|(id, entry)| Some((entry.due?, id))).collect();
        let tokens: Vec<_> = self.tokens.dues().collect();
        let next = accounts.iter().chain(&tokens).map(|(due, _)| *due).filter(|due| *due > now).min();
        let ripe = |waiting: Vec<(Instant, &String)>| -> Vec<String> {
            waiting.into_iter().filter(|(due, _)| *due <= now).map(|(_, id)| id.clone()).collect()
        };
        (next, ripe(accounts), ripe(tokens))
    }

    /// Everything that waits leaves now.
    fn all_due(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            entry.due = entry.due.map(|due| due.min(now));
        }
        self.tokens.all_due(now);
    }

    fn forget(&mut self, now: Instant) {
        self.entries.retain(|_, entry| {
            entry.busy || entry.has_work() || entry.touched.is_some_and(|touched| now.duration_since(touched) < FORGET)
        });
    }
}

impl AccountWrites {
    fn has_work(&self) -> bool {
        self.in_flight.is_some() || !self.pending.is_empty()
    }

    /// Everything that a snapshot whose read began at `since` may lack, in order.
    fn newer_than(&self, since: Instant) -> Option<Outcomes> {
        let written = self.recent.iter().filter(|(written, _)| *written >= since).map(|(_, change)| change.clone());
        let waiting = self.in_flight.iter().map(|in_flight| in_flight.change.clone());
        let changes = written.chain(waiting).chain((!self.pending.is_empty()).then(|| self.pending.clone()));
        changes.reduce(Outcomes::then)
    }
}

/// One account in a batch.
struct WriteJob {
    id: String,
    change: Outcomes,
    base: Option<Bytes>,
    doubt: Option<Doubt>,
}

impl WriteJob {
    /// The reply was lost and somebody else has written since: the record doesn't show whether it holds our counts. A
    /// count may be lost, but never doubled (R22).
    fn take_for_written(&mut self) {
        let change = std::mem::take(&mut self.change);
        if change.uses() > 0 {
            tracing::warn!(
                account = short(&self.id),
                uses = change.uses(),
                "uses count as written: the reply was lost, and another process has written to the account since"
            );
        }
        self.change = change.without_counts();
        self.doubt = None;
    }
}

/// How a job ended.
enum WriteEnd {
    /// The record has these bytes and holds the change.
    Written(Bytes),
    /// No record there.
    Absent,
    /// The record can't be written (R9).
    Unusable,
    /// Tried too often, or the store is away; its last reply may be in doubt.
    Failed(Option<Doubt>),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> Pending {
        let state = self.state();
        let working = state.entries.iter().filter(|(_, entry)| entry.has_work());
        Pending {
            accounts: working.map(|(id, _)| id.clone()).collect(),
            tokens: state.tokens.accounts().cloned().collect(),
        }
    }

    fn next_tick(&self, now: Instant) -> Instant {
        let since = now.saturating_duration_since(self.phase).as_micros();
        let before = now < self.phase;
        let ticks = since / COUNTERS_WAIT.as_micros() + 1;
        let ticks = if before { 0 } else { u32::try_from(ticks).unwrap_or(u32::MAX) };
        self.phase + COUNTERS_WAIT * ticks
    }

    async fn run(self: Arc<Self>) {
        let mut status = self.store.watch();
        let mut was_connected = false;
        let mut forgot = Instant::now();
        let mut batches = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            if now.duration_since(forgot) >= REMEMBER {
                self.state().forget(now);
                forgot = now;
            }
            let is_connected = status.borrow_and_update().is_connected();
            if is_connected && !was_connected {
                self.state().all_due(now);
            }
            was_connected = is_connected;
            let (mut next, accounts, tokens) = self.state().due(now);
            let (to_keep, keep_next) = self.journal_work(now);
            batches.extend(to_keep.map(Either::Right));
            // Only trying shows whether a file can be written again.
            let may_try = is_connected || matches!(self.store, Store::File(_));
            if may_try && batches.len() < BATCHES && (!accounts.is_empty() || !tokens.is_empty()) {
                let mut chunks = accounts.chunks(BATCH).map(<[String]>::to_vec);
                let first = chunks.next().unwrap_or_default();
                batches.push(Either::Left(Arc::clone(&self).batch(first, tokens)));
                for chunk in chunks.take(BATCHES) {
                    batches.push(Either::Left(Arc::clone(&self).batch(chunk, Vec::new())));
                }
            } else if !may_try {
                // The status changes when the store is back.
                next = None;
            }
            let next = next.into_iter().chain(keep_next).min();
            let timer = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                Ok(()) = status.changed() => {}
                Some(()) = batches.next(), if !batches.is_empty() => {}
                () = timer => {}
            }
        }
    }

    /// Writes some accounts and some tokens and settles them all.
    fn batch(self: Arc<Self>, accounts: Vec<String>, tokens: Vec<String>) -> impl Future<Output = ()> {
        // Taken here and not at the first poll, so that the loop doesn't find them due again.
        let jobs = self.take(accounts);
        let tokens: Vec<(String, UnsavedToken, u64)> = {
            let mut state = self.state();
            let taken = tokens.into_iter().filter_map(|id| {
                let (token, generation) = state.tokens.take(&id)?;
                Some((id, token, generation))
            });
            taken.collect()
        };
        async move {
            let saves = tokens.into_iter().map(|(id, token, generation)| {
                let shared = &self;
                async move {
                    let saved = shared.store.save_token(&token).await;
                    let why = match &saved {
                        Ok(Saved::Absent) => "its account was removed",
                        Ok(Saved::Unusable) => "its record is no JSON object",
                        Ok(Saved::Rotated(_)) => "the store holds a newer one",
                        Ok(Saved::Written(_)) | Err(_) => "",
                    };
                    if !why.is_empty() {
                        tracing::info!(account = short(&id), why, "an unsaved token is dropped");
                    }
                    shared.settle_token(&id, generation, &saved);
                }
            });
            tokio::join!(self.write(jobs), join_all(saves));
        }
    }

    fn take(&self, accounts: Vec<String>) -> Vec<WriteJob> {
        let mut state = self.state();
        let mut jobs = Vec::with_capacity(accounts.len());
        for id in accounts {
            let Some(entry) = state.entries.get_mut(&id) else { continue };
            entry.busy = true;
            entry.due = None;
            let in_flight = match entry.in_flight.take() {
                // A change in doubt leaves alone: it could not be separated from newer counts again (R22).
                Some(doubtful) => doubtful,
                None => InFlight { change: std::mem::take(&mut entry.pending), doubt: None },
            };
            let base = if in_flight.doubt.is_some() { None } else { entry.known.clone() };
            jobs.push(WriteJob { id, change: in_flight.change.clone(), base, doubt: in_flight.doubt.clone() });
            entry.in_flight = Some(in_flight);
        }
        jobs
    }

    /// Compare-and-set of each job, again on a conflict, up to 8 times (R22).
    async fn write(&self, mut jobs: Vec<WriteJob>) {
        for attempt in 0..MAX_TRIES {
            if attempt > 0 {
                sleep(conflict_pause()).await;
            }
            jobs = self.read(jobs).await;
            let (changes, waiting) = self.patch(jobs);
            if changes.is_empty() {
                return;
            }
            let results = self.store.compare_and_set_accounts(&changes).await;
            jobs = Vec::new();
            for ((mut job, change), result) in waiting.into_iter().zip(changes).zip(results) {
                match result {
                    Ok(Cas::Written) => {
                        self.written.fetch_add(1, Ordering::Relaxed);
                        self.settle(job, WriteEnd::Written(change.new));
                    }
                    // An earlier try whose reply was lost had succeeded. Without such a try another process has written
                    // the same bytes: it counted its own use, and ours is added (R22, R60).
                    Ok(Cas::Conflict(current)) if job.doubt.is_some() && current == change.new => {
                        self.settle(job, WriteEnd::Written(current));
                    }
                    Ok(Cas::Conflict(current)) => {
                        if job.doubt.is_some() {
                            job.take_for_written();
                        }
                        job.base = Some(current);
                        jobs.push(job);
                    }
                    Ok(Cas::Absent) => self.settle(job, WriteEnd::Absent),
                    Err(error) => {
                        let doubt = Doubt { old: change.old, new: change.new };
                        let doubt = if error.is_perhaps_done() { Some(doubt) } else { job.doubt.take() };
                        self.fail(job, doubt, &error);
                    }
                }
            }
            if jobs.is_empty() {
                return;
            }
        }
        for job in jobs {
            self.settle(job, WriteEnd::Failed(None));
        }
    }

    /// Reads the records without a guess.
    async fn read(&self, jobs: Vec<WriteJob>) -> Vec<WriteJob> {
        let (mut ready, unread): (Vec<WriteJob>, Vec<WriteJob>) = jobs.into_iter().partition(|job| job.base.is_some());
        if unread.is_empty() {
            return ready;
        }
        let ids: Vec<&str> = unread.iter().map(|job| job.id.as_str()).collect();
        let found = match self.store.read_accounts(&ids).await {
            Ok(found) => found,
            Err(error) => {
                for mut job in unread {
                    let doubt = job.doubt.take();
                    self.fail(job, doubt, &error);
                }
                return ready;
            }
        };
        for (mut job, found) in unread.into_iter().zip(found) {
            match (found, &job.doubt) {
                (None, _) => self.settle(job, WriteEnd::Absent),
                (Some(found), Some(doubt)) if found == doubt.new => self.settle(job, WriteEnd::Written(found)),
                (Some(found), doubt) => {
                    if doubt.as_ref().is_some_and(|doubt| found != doubt.old) {
                        job.take_for_written();
                    }
                    job.base = Some(found);
                    ready.push(job);
                }
            }
        }
        ready
    }

    /// The compare-and-sets of these jobs. Jobs without a change are settled here.
    fn patch(&self, jobs: Vec<WriteJob>) -> (Vec<Change>, Vec<WriteJob>) {
        let now = (self.clock)();
        let mut changes = Vec::with_capacity(jobs.len());
        let mut waiting = Vec::with_capacity(jobs.len());
        for job in jobs {
            let Some(old) = job.base.clone() else { continue };
            // In doubt, and the old bytes are still there: the same write again, so that it can't happen twice.
            let patched = match &job.doubt {
                Some(doubt) => Ok(Some(doubt.new.clone())),
                None => Account::parse(&old, &job.id).and_then(|account| {
                    let entries = job.change.entries(&account, now);
                    Ok(record::patch(&old, &entries)?.map(Bytes::from))
                }),
            };
            match patched {
                Ok(Some(new)) => {
                    changes.push(Change { id: job.id.clone(), old, new });
                    waiting.push(job);
                }
                Ok(None) => self.settle(job, WriteEnd::Written(old)),
                Err(_) => self.settle(job, WriteEnd::Unusable),
            }
        }
        (changes, waiting)
    }

    fn fail(&self, job: WriteJob, doubt: Option<Doubt>, error: &StoreError) {
        if error.kind() == StoreErrorKind::Broken {
            tracing::debug!(account = short(&job.id), %error, "an outcome could not be written");
        }
        self.settle(job, WriteEnd::Failed(doubt));
    }

    fn settle(&self, job: WriteJob, end: WriteEnd) {
        let now = Instant::now();
        let mut state = self.state();
        let flushing = state.flushing;
        let retry = if flushing { FLUSH_RETRY } else { RETRY };
        let patience = if flushing { FLUSH_ABSENT } else { ABSENT };
        let Some(entry) = state.entries.get_mut(&job.id) else { return };
        entry.busy = false;
        entry.touched = Some(now);
        entry.settled = Some(now);
        entry.in_flight = None;
        if !matches!(end, WriteEnd::Absent) {
            entry.absent_since = None;
        }
        match end {
            WriteEnd::Written(record) => {
                entry.recent.retain(|(written, _)| now.duration_since(*written) < REMEMBER);
                entry.known = Some(record);
                let before = job.base.as_ref().and_then(|before| Account::parse(before, &job.id).ok());
                if job.change.is_urgent() || before.is_none_or(|before| job.change.heals(&before, (self.clock)())) {
                    entry.recent.push((now, job.change.without_counts()));
                }
                entry.due = entry.due.or((!entry.pending.is_empty()).then_some(now));
            }
            WriteEnd::Absent => {
                entry.known = None;
                let since = *entry.absent_since.get_or_insert(now);
                if now.duration_since(since) >= patience {
                    tracing::debug!(account = short(&job.id), "the account is gone: its outcomes are dropped");
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    entry.pending = Outcomes::default();
                    entry.due = None;
                    entry.absent_since = None;
                } else {
                    entry.give_back(job.change, None, now + ABSENT_RETRY);
                }
            }
            WriteEnd::Unusable => {
                entry.known = None;
                entry.pending = Outcomes::default();
                entry.due = None;
                self.dropped.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    account = short(&job.id),
                    "the account record can't be written: its outcomes are dropped"
                );
            }
            WriteEnd::Failed(doubt) => entry.give_back(job.change, doubt, now + retry),
        }
        drop(state);
        self.settled.notify_waiters();
    }

    fn settle_token(&self, id: &str, generation: Generation, saved: &Result<Saved, StoreError>) {
        let mut state = self.state();
        let retry = if state.flushing { FLUSH_RETRY } else { RETRY };
        state.tokens.settle(id, generation, saved, Instant::now(), retry);
        drop(state);
        if matches!(saved, Ok(Saved::Written(_))) {
            self.written.fetch_add(1, Ordering::Relaxed);
        }
        self.settled.notify_waiters();
    }

    /// The journal's work now, and when it is due next.
    fn journal_work(self: &Arc<Self>, now: Instant) -> (Option<impl Future<Output = ()> + use<>>, Option<Instant>) {
        let Some(journal) = &self.journal else { return (None, None) };
        if self.journaling.load(Ordering::Relaxed) {
            return (None, None);
        }
        let (keep, done, next) = self.state().tokens.journal_work(now);
        if keep.is_empty() && done.is_empty() {
            return (None, next);
        }
        self.journaling.store(true, Ordering::Relaxed);
        let (journal, shared) = (Arc::clone(journal), Arc::clone(self));
        let work = tokio::task::spawn_blocking(move || {
            keep.iter().for_each(|(id, token)| journal.keep(id, token));
            done.iter().for_each(|(id, token)| journal.forget(id, token));
        });
        let ends = async move {
            if work.await.is_err() {
                tracing::error!("the work on KIRO_STATE_DIR was given up");
            }
            shared.journaling.store(false, Ordering::Relaxed);
        };
        (Some(ends), next)
    }
}

impl AccountWrites {
    /// Puts the change back in front of newer ones, to leave at `due` or when the store is back.
    fn give_back(&mut self, change: Outcomes, doubt: Option<Doubt>, due: Instant) {
        match doubt {
            Some(doubt) => self.in_flight = Some(InFlight { change, doubt: Some(doubt) }),
            None => self.pending = change.then(std::mem::take(&mut self.pending)),
        }
        self.due = Some(due);
    }
}
