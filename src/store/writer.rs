//! The background writer: outcomes reach the store merged, if need be late, and once (R30–R33, R51).
//! `crate::policy::pending` decides what leaves when, and what the store's answer means.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{Either, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Notify;
use tokio::time::{self, sleep, sleep_until, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::journal::{Journal, JournalSurvey};
use super::{
    Cas, Change, Clock, MAX_TRIES, Saved, Status, Store, StoreError, StoreErrorKind, UnsavedToken, conflict_pause,
};
use crate::policy::outcome::{Outcome, Outcomes};
pub use crate::policy::pending::Pending;
use crate::policy::pending::{COUNTERS_WAIT, Found, PendingWrites, REMEMBER, WriteEnd, WriteJob};
use crate::policy::waiting::{Generation, WaitingTokens};
use crate::proto::record::{Account, Standing, short};

/// Batches in flight at once. An account is in at most one of them.
const BATCHES: usize = 8;
/// How long a flush looks after its deadline whether the journal has what it could not save, all tokens together.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// How long a flush waits for a store that is away or takes no writes, when only what an outage may cost waits for it:
/// counts and marks, and tokens that the journal keeps.
const AWAY_WAIT: Duration = Duration::from_secs(5);
/// Accounts in one batch: its pipelines leave together, each with up to 64 scripts (R31).
const BATCH: usize = 256;
/// Collects outcomes and unsaved tokens and writes them in the background. Cheap to clone; one per gateway (R30).
///
/// Holds one entry per account, however long an outage lasts. The task ends when the last clone is dropped. Pending
/// changes are lost then, so call [`Writer::flush`] first.
#[derive(Clone)]
pub struct Writer {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

struct Shared {
    store: Store,
    clock: Clock,
    /// Keeps waiting tokens for the next process.
    journal: Option<Arc<Journal>>,
    /// The journal is being written. A token that comes meanwhile may be saved in the store before its turn.
    journaling: AtomicBool,
    state: Mutex<PendingWrites>,
    /// Something became due.
    wake: Notify,
    /// Something was settled.
    settled: Notify,
    written: AtomicU64,
    dropped: AtomicU64,
}

impl Writer {
    /// Starts the background task, without a journal. Needs a tokio runtime.
    pub fn spawn(store: Store, clock: Clock) -> Self {
        Self::with_journal(store, clock, None)
    }

    /// Starts the background task. Reads the tokens that an earlier process has left in the journal.
    pub(crate) fn with_journal(store: Store, clock: Clock, journal: Option<Journal>) -> Self {
        let tokens =
            journal.as_ref().map(|journal| WaitingTokens::with_journal(journal.left_over())).unwrap_or_default();
        let left_over = tokens.iter().count();
        if left_over > 0 {
            tracing::warn!(count = left_over, "tokens that the store lacked were kept in KIRO_STATE_DIR");
        }
        let phase = now() + COUNTERS_WAIT.mul_f64(fastrand::f64());
        let shared = Arc::new(Shared {
            store,
            clock,
            journal: journal.map(Arc::new),
            journaling: AtomicBool::new(false),
            state: Mutex::new(PendingWrites::new(tokens, phase)),
            wake: Notify::new(),
            settled: Notify::new(),
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
        if self.shared.state().record(account_id, change, now()) {
            self.shared.wake.notify_one();
        }
    }

    /// Takes in a token or a profile that the store doesn't hold (R51). Never waits.
    pub fn keep_token(&self, account_id: &str, token: UnsavedToken) {
        self.shared.state().tokens.keep(account_id, token, now());
        self.shared.wake.notify_one();
    }

    /// Whether a token of the account waits to be written.
    pub(crate) fn token_waits(&self, account_id: &str) -> bool {
        self.shared.state().tokens.waits(account_id)
    }

    /// Saves a refreshed token now. It is kept even when this call is dropped or fails, and tried again until it is
    /// saved.
    ///
    /// # Errors
    /// The store's.
    pub async fn save_token(&self, account_id: &str, token: UnsavedToken) -> Result<Saved, StoreError> {
        let generation = {
            let mut state = self.shared.state();
            state.tokens.keep(account_id, token.clone(), now());
            state.tokens.take(account_id).map_or(0, |(_, generation)| generation)
        };
        self.shared.wake.notify_one();
        let saved = self.shared.store.save_token(&token).await;
        self.shared.settle_token(account_id, generation, &saved);
        self.shared.wake.notify_one();
        saved
    }

    /// Tries whether the journal can keep a token, so that it outlives the process; none without a journal.
    pub(crate) async fn try_journal(&self) -> Option<bool> {
        let journal = Arc::clone(self.shared.journal.as_ref()?);
        let tried = tokio::task::spawn_blocking(move || journal.try_out()).await;
        Some(tried.unwrap_or(false))
    }

    /// A look into the journal; none without one.
    pub(crate) async fn survey_journal(&self) -> Option<JournalSurvey> {
        let journal = Arc::clone(self.shared.journal.as_ref()?);
        tokio::task::spawn_blocking(move || journal.survey()).await.ok()
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
        self.shared.state().pending()
    }

    /// The numbers of waiting accounts and tokens: the metrics' queued writes.
    pub fn queued(&self) -> (usize, usize) {
        self.shared.state().len()
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
        let since = now();
        let backlog = self.pending();
        let until = time::Instant::now() + within;
        loop {
            let settled = self.shared.settled.notified();
            if self.shared.state().was_tried(&backlog, since) || timeout_at(until, settled).await.is_err() {
                return;
            }
        }
    }

    /// How `account`, read by a snapshot that began at `since`, stands with all changes that it may lack (R18); none: it
    /// lacks none. The count of errors may come out too high; health is right.
    pub fn overlaid(&self, account: &Account, since: time::Instant) -> Option<Standing> {
        let change = self.shared.state().newer_than(&account.id, since.into_std())?;
        let mut standing = account.standing.clone();
        change.judge(&mut standing, (self.shared.clock)());
        Some(standing)
    }

    /// Writes everything pending, for at most `deadline`; returns and logs what could not be written (R33). Tokens that the
    /// journal still has to take may need one second more.
    pub async fn flush(&self, deadline: Duration) -> Pending {
        self.shared.state().flush(true, now());
        self.shared.wake.notify_one();
        self.emptied(time::Instant::now() + deadline).await;
        self.shared.state().flush(false, now());
        let mut left = self.pending();
        if !left.accounts.is_empty() {
            let accounts: Vec<&str> = left.accounts.iter().map(|id| short(id)).collect();
            tracing::warn!(count = accounts.len(), ?accounts, "outcomes could not be written");
        }
        let unsaved: Vec<(String, UnsavedToken, bool)> = {
            let tokens = &self.shared.state().tokens;
            tokens.iter().map(|(id, token)| (id.clone(), token.clone(), tokens.waits(id))).collect()
        };
        let until = time::Instant::now() + LAST_LOOK;
        for (id, token, is_ours) in unsaved {
            if !token.brings_a_token() {
                continue;
            }
            let account = short(&id).to_owned();
            // What an earlier process left lies there.
            if self.shared.journal.is_some() && (!is_ours || self.kept(id.clone(), token, until).await) {
                tracing::warn!(account, "a refreshed token waits in KIRO_STATE_DIR");
            } else {
                tracing::error!(account, "a refreshed token could not be saved: this account must log in again");
                left.lost.push(id);
            }
        }
        left
    }

    /// Resolves when nothing is pending, at the deadline, or when the store has been away for so long that what waits
    /// isn't worth more.
    async fn emptied(&self, deadline: time::Instant) {
        let mut status = self.shared.store.watch();
        let mut away_since = None;
        loop {
            let settled = self.shared.settled.notified();
            let works = *status.borrow_and_update() == Status::Connected;
            away_since = if works { None } else { away_since.or_else(|| Some(time::Instant::now())) };
            let until = match away_since {
                Some(since) if !self.risks_a_login() => deadline.min(since + AWAY_WAIT),
                _ => deadline,
            };
            if self.shared.state().pending().is_empty() || time::Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = settled => {}
                Ok(()) = status.changed() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Whether a refreshed token waits that would end with the process.
    fn risks_a_login(&self) -> bool {
        let tokens = &self.shared.state().tokens;
        // What an earlier process left lies in the journal.
        let waits = || tokens.iter().any(|(id, token)| token.brings_a_token() && tokens.waits(id));
        self.journal_works() != Some(true) && waits()
    }

    /// Whether the journal has this token at last. Its lock and its disk may take longer.
    async fn kept(&self, id: String, token: UnsavedToken, until: time::Instant) -> bool {
        let Some(journal) = self.shared.journal.clone() else { return false };
        let kept = tokio::task::spawn_blocking(move || journal.keeps(&id, &token));
        matches!(timeout_at(until, kept).await, Ok(Ok(true)))
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (accounts, tokens) = self.queued();
        f.debug_struct("Writer").field("accounts", &accounts).field("tokens", &tokens).finish()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, PendingWrites> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>) {
        let mut status = self.store.watch();
        let mut was_connected = false;
        let mut forgot = now();
        let mut batches = FuturesUnordered::new();
        loop {
            let now = now();
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
            let may_try = is_connected || matches!(self.store, Store::File(_) | Store::Service(_));
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
                    Some(next) => sleep_until(next.into()).await,
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
        let (jobs, tokens): (Vec<WriteJob>, Vec<(String, UnsavedToken, Generation)>) = {
            let mut state = self.state();
            let jobs = state.take(accounts);
            let taken = tokens.into_iter().filter_map(|id| {
                let (token, generation) = state.tokens.take(&id)?;
                Some((id, token, generation))
            });
            (jobs, taken.collect())
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

    /// Compare-and-set of each job, again on a conflict, up to 8 times (R22).
    async fn write(&self, mut jobs: Vec<WriteJob>) {
        for attempt in 0..MAX_TRIES {
            if attempt > 0 {
                sleep(conflict_pause()).await;
            }
            let (changes, waiting) = self.patch(self.read(jobs).await);
            if changes.is_empty() {
                return;
            }
            let results = self.store.compare_and_set_accounts(&changes).await;
            jobs = Vec::new();
            for ((mut job, Change { old, new, .. }), result) in waiting.into_iter().zip(changes).zip(results) {
                match result {
                    Ok(Cas::Written) => {
                        self.written.fetch_add(1, Ordering::Relaxed);
                        self.settle(job, WriteEnd::Written(new));
                    }
                    Ok(Cas::Conflict(current)) => jobs.extend(self.find(job, current)),
                    Ok(Cas::Absent) => self.settle(job, WriteEnd::Absent),
                    Err(error) => {
                        if error.is_perhaps_done() {
                            job.doubts(old, new);
                        }
                        self.fail(job, &error);
                    }
                }
            }
            if jobs.is_empty() {
                return;
            }
        }
        for job in jobs {
            self.settle(job, WriteEnd::Failed);
        }
    }

    /// Reads the records without a guess.
    async fn read(&self, jobs: Vec<WriteJob>) -> Vec<WriteJob> {
        let (unread, mut ready): (Vec<WriteJob>, Vec<WriteJob>) = jobs.into_iter().partition(WriteJob::is_unread);
        if unread.is_empty() {
            return ready;
        }
        let ids: Vec<&str> = unread.iter().map(|job| job.id.as_str()).collect();
        match self.store.read_accounts(&ids).await {
            Ok(found) => {
                for (job, found) in unread.into_iter().zip(found) {
                    match found {
                        None => self.settle(job, WriteEnd::Absent),
                        Some(found) => ready.extend(self.find(job, found)),
                    }
                }
            }
            Err(error) => unread.into_iter().for_each(|job| self.fail(job, &error)),
        }
        ready
    }

    /// This record lies where the job goes. None: that settles it.
    fn find(&self, mut job: WriteJob, record: Bytes) -> Option<WriteJob> {
        match job.finds(record) {
            Found::Ours(record) => {
                self.settle(job, WriteEnd::Written(record));
                return None;
            }
            Found::BaseWithout(uses) if uses > 0 => tracing::warn!(
                account = short(&job.id),
                uses,
                "uses count as written: the reply was lost, and another process has written to the account since"
            ),
            Found::BaseWithout(_) | Found::Base => {}
        }
        Some(job)
    }

    /// The compare-and-sets of these jobs. Jobs without a change are settled here.
    fn patch(&self, jobs: Vec<WriteJob>) -> (Vec<Change>, Vec<WriteJob>) {
        let now = (self.clock)();
        let mut changes = Vec::with_capacity(jobs.len());
        let mut waiting = Vec::with_capacity(jobs.len());
        for mut job in jobs {
            match job.patch(now) {
                Ok((old, new)) => {
                    changes.push(Change { id: job.id.clone(), old, new });
                    waiting.push(job);
                }
                Err(end) => self.settle(job, end),
            }
        }
        (changes, waiting)
    }

    fn fail(&self, job: WriteJob, error: &StoreError) {
        if error.kind() == StoreErrorKind::Broken {
            tracing::debug!(account = short(&job.id), %error, "an outcome could not be written");
        }
        self.settle(job, WriteEnd::Failed);
    }

    fn settle(&self, mut job: WriteJob, end: WriteEnd) {
        let is_gone = end == WriteEnd::Absent;
        if self.state().settle(&mut job, end, now()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            let account = short(&job.id);
            if is_gone {
                tracing::debug!(account, "the account is gone: its outcomes are dropped");
            } else {
                tracing::warn!(account, "the account record can't be written: its outcomes are dropped");
            }
        }
        self.settled.notify_waiters();
    }

    fn settle_token(&self, id: &str, generation: Generation, saved: &Result<Saved, StoreError>) {
        self.state().settle_token(id, generation, saved.is_ok(), now());
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

/// The time that a test may stop.
fn now() -> Instant {
    time::Instant::now().into_std()
}
