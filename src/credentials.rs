//! Access tokens: single-flight refresh and background renewal (R37–R48, K51–K61).
//!
//! A request gets its token from memory. It waits only when the token in hand has expired (R38), or after upstream
//! rejected it. A refresh runs on a task of its own, one per credential (R39), under the lock that all processes share,
//! and ends in a compare-and-set on the record that it read under that lock (R40). `crate::policy::credential` judges
//! the tokens that snapshots find in the store.
//!
//! # Cancellation
//! A caller that goes away leaves its refresh running: upstream may have rotated the token already.

pub(crate) mod calls;
#[cfg(test)]
mod model;
mod profiles;
mod usage;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::policy::learned::Lesson;
use crate::policy::renewal::{Ended, no_token};
pub use crate::policy::renewal::{LookUp, RefreshError};
use crate::pool::{AccountId, AccountView, AttemptEnd, Lease, Pool, short};
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::kiro::profile::region_of;
use crate::proto::kiro::token::{Grant, Refusal};
use crate::proto::record::{DEFAULT_REGION, Fingerprint, Method, Token, is_region};
use crate::secret::Secret;
use crate::store::{Lock, Saved, Status, Store, StoreErrorKind, TokenKey};
use crate::upstream::{Upstream, host_of};

pub(crate) use calls::{MAX_REFRESH_ANSWER, read_up_to};
pub use profiles::ListedProfile;

/// How often accounts are checked for a background refresh or a probe.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Background refreshes at a time; blocking ones are not bounded.
const AT_A_TIME: usize = 32;
/// The whole time of one refresh call (K68): half the lock's life.
pub(crate) const CALL_WITHIN: Duration = Duration::from_secs(15);
/// The whole time, and the most calls, of a refused refresh in other regions (K76).
const CALLS_WITHIN: Duration = Duration::from_secs(20);
const MOST_REGIONS: usize = 4;
/// Refresh tokens that one refresh tries: the record's, one that has replaced it meanwhile, those held before (R41).
const MOST_TOKENS: usize = 5;
/// How long a blocking or forced refresh waits for another process (R40 step 2).
const LOCK_WITHIN: Duration = Duration::from_secs(20);
/// Most refreshes of one request: an adopted or new token that isn't live either is refreshed again.
const ROUNDS: usize = 3;

/// Access tokens of the pool's accounts. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    pool: Pool,
    upstream: Arc<Upstream>,
    threshold: Duration,
    counters: Counters,
    at_a_time: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// Refreshes since the start, by outcome; relaxed loads are fine.
#[derive(Debug, Default)]
pub struct Counters {
    /// A new token came and is saved or about to be.
    pub refreshed: AtomicU64,
    /// Somebody else had refreshed: theirs was used, without a call.
    pub adopted: AtomicU64,
    /// Refused for good: the account was ejected.
    pub rejected: AtomicU64,
    /// Failed for now: refused in doubt, 429, 5xx, network, timeout.
    pub failed: AtomicU64,
    /// Somebody else rotated the refresh token during our call: ours was dropped (R40 step 6).
    pub conflicts: AtomicU64,
    /// New tokens that could not be saved at once.
    pub unsaved: AtomicU64,
}

impl Counters {
    /// Each outcome by its word, for a metric.
    pub fn outcomes(&self) -> [(&'static str, u64); 6] {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("refreshed", load(&self.refreshed)),
            ("adopted", load(&self.adopted)),
            ("rejected", load(&self.rejected)),
            ("failed", load(&self.failed)),
            ("conflict", load(&self.conflicts)),
            ("unsaved", load(&self.unsaved)),
        ]
    }
}

/// Why a refresh is made.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    /// Expiry is near (R37).
    Background,
    /// The token in hand has expired (R38).
    Blocking,
    /// Upstream rejected this token (R38).
    Rejected(Secret),
    /// A person asked (R38).
    Person,
}

/// The order for a refresh.
#[derive(Debug)]
struct Order {
    cause: Cause,
    /// The access token held at that time. A different one under the lock came from somebody else's refresh, perhaps by
    /// a snapshot.
    held: Option<Secret>,
}

impl Order {
    /// Whether this access token differs from the one to be replaced.
    fn is_met_by(&self, token: &Secret) -> bool {
        let rejected = matches!(&self.cause, Cause::Rejected(rejected) if rejected == token);
        !rejected && self.held.as_ref() != Some(token)
    }
}

impl Credentials {
    /// Starts the background renewal. Needs a tokio runtime; ends with [`Credentials::close`] or the last clone.
    pub fn start(pool: Pool, upstream: Arc<Upstream>, config: &Config) -> Self {
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            pool,
            upstream,
            threshold: config.refresh_threshold,
            counters: Counters::default(),
            at_a_time: Arc::new(Semaphore::new(AT_A_TIME)),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
            _stop_on_drop: stop.clone().drop_guard(),
        });
        // A token that is cancelled before the first poll keeps everything from running.
        inner.tasks.spawn(stop.run_until_cancelled_owned(background(Arc::downgrade(&inner))));
        Self(inner)
    }

    /// The bearer token for an attempt. From memory; only a token that has expired is refreshed first (R38).
    ///
    /// # Errors
    /// There is no token. Report the fault like an attempt's ([`RefreshError::fault`]).
    pub async fn access_token(&self, lease: &Lease) -> Result<Secret, Fault> {
        let bearer = self.bearer(lease.account().id()).await?;
        lease.hand_out(&bearer);
        Ok(bearer)
    }

    /// The fault; when the way failed, with the name of the way.
    fn fault_of(&self, id: &AccountId, error: RefreshError) -> Fault {
        let mut fault = error.fault();
        if fault.kind == FaultKind::Unreachable
            && let Some(view) = self.0.pool.account(id)
            && let Some(url) = view.refresh_url(view.refresh_region())
        {
            let way = self.0.upstream.way(host_of(&url), view.proxy_url().map(Secret::expose));
            fault.message = format!("{way}: {}", fault.message).into();
        }
        fault
    }

    async fn bearer(&self, id: &AccountId) -> Result<Secret, Fault> {
        for _ in 0..ROUNDS {
            let now = self.0.pool.now();
            let live = self.0.pool.with_slot(id, |slot, _| slot.account.credential.live(now).cloned());
            if let Some(bearer) = live.ok_or_else(|| RefreshError::Gone.fault())? {
                return Ok(bearer);
            }
            self.renew(id, Cause::Blocking).await.map_err(|error| self.fault_of(id, error))?;
        }
        let ours = self
            .0
            .pool
            .with_slot(id, |slot, _| slot.account.credential.is_ours())
            .ok_or_else(|| RefreshError::Gone.fault())?;
        Err(no_token(
            FaultKind::TokenRejected,
            if ours {
                "each new one ended before it could be used"
            } else {
                "another program put one there that has ended"
            },
        ))
    }

    /// Another bearer token after upstream rejected the one that [`Credentials::access_token`] gave for this lease: one
    /// forced, single-flight refresh (K56).
    ///
    /// # Errors
    /// As [`Credentials::access_token`].
    pub async fn force_refresh(&self, lease: &Lease) -> Result<Secret, Fault> {
        if let Some(rejected) = lease.handed_out() {
            let id = lease.account().id();
            self.renew(id, Cause::Rejected(rejected)).await.map_err(|error| self.fault_of(id, error))?;
        }
        self.access_token(lease).await
    }

    /// A refresh that a person asked for: `refresh()` and `accounts check`. Returns when the token expires. Within
    /// 30 s after a success it adopts that one (R38).
    ///
    /// # Errors
    /// Why there is no fresh token.
    pub async fn refresh(&self, id: &str) -> Result<Option<Timestamp>, RefreshError> {
        let id = AccountId::from(id);
        self.renew(&id, Cause::Person).await?;
        self.0.pool.with_slot(&id, |slot, _| slot.account.credential.token().expires_at).ok_or(RefreshError::Gone)
    }

    /// The token in hand: the only call that shows secrets (N19).
    pub fn credential(&self, id: &str) -> Option<Token> {
        self.0.pool.with_slot(id, |slot, _| slot.account.credential.token().clone())
    }

    /// Refreshes by outcome.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Starts no further refresh and waits for those under way, at most `within`: a token that upstream has rotated must
    /// still be saved. Before [`Pool::close`].
    pub async fn close(&self, within: Duration) {
        self.0.stop.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(within, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("a token refresh is still under way");
        }
    }

    /// Joins the refresh under way or starts one.
    async fn renew(&self, id: &AccountId, cause: Cause) -> Ended {
        loop {
            let now = self.0.pool.now();
            let joined = self.0.pool.with_slot(id, |slot, _| {
                let (credential, is_refreshing) = (&slot.account.credential, slot.is_refreshing());
                let settled = match &cause {
                    Cause::Background => false,
                    Cause::Blocking => credential.live(now).is_some(),
                    Cause::Rejected(rejected) => {
                        let another = credential.live(now).is_some_and(|live| live != rejected);
                        another || (credential.succeeded_lately(now) && !is_refreshing)
                    }
                    Cause::Person => credential.succeeded_lately(now),
                };
                if settled {
                    return Ok(None);
                }
                if !is_refreshing {
                    if credential.is_pausing(now) && cause != Cause::Person {
                        return Err(RefreshError::Pausing);
                    }
                    let (done, flight) = watch::channel(None);
                    let order = Order { cause: cause.clone(), held: credential.token().access_token.clone() };
                    let (inner, id) = (self.0.clone(), id.clone());
                    slot.refresh = Some(flight);
                    self.0.tasks.spawn(async move {
                        let ended = inner.run(&id, &order).await;
                        done.send_replace(Some(ended));
                    });
                }
                Ok(slot.refresh.clone())
            });
            let Some(mut flight) = joined.ok_or(RefreshError::Gone)?? else { return Ok(()) };
            let ended = match flight.wait_for(Option::is_some).await {
                Ok(ended) => ended.unwrap_or(Err(RefreshError::Closed)),
                Err(_) => Err(RefreshError::Closed),
            };
            match ended {
                // A background refresh gave up because of the lock; a request that waits doesn't.
                Err(RefreshError::Locked) if cause != Cause::Background => {}
                ended => return ended,
            }
        }
    }
}

impl Inner {
    /// One refresh from lock to unlock (R40).
    async fn run(&self, id: &AccountId, order: &Order) -> Ended {
        let key = self.pool.with_slot(id, |slot, _| slot.account.credential.key().clone()).ok_or(RefreshError::Gone)?;
        let ended = match self.take_lock(id, &key, order).await {
            Ok(LockAttempt::Settled) => Ok(()),
            Ok(LockAttempt::Lock(lock)) => {
                let ended = self.refresh(id, &key, order).await;
                if let Err(error) = self.store().unlock(lock).await {
                    tracing::debug!(account = short(id), %error, "the refresh lock frees itself");
                }
                ended
            }
            Ok(LockAttempt::WithoutLock) => self.refresh(id, &key, order).await,
            Err(error) => Err(error),
        };
        match ended {
            // The store's own line says that it is read-only.
            Ok(()) | Err(RefreshError::Locked | RefreshError::ReadOnly) => {}
            Err(RefreshError::Rejected) => count(&self.counters.rejected),
            Err(error) => {
                count(&self.counters.failed);
                tracing::warn!(account = short(id), ?error, "token refresh failed");
            }
        }
        ended
    }

    /// Takes the lock, or waits for its holder: R40, steps 1 and 2.
    async fn take_lock(&self, id: &AccountId, key: &TokenKey, order: &Order) -> Result<LockAttempt, RefreshError> {
        let deadline = Instant::now() + LOCK_WITHIN;
        loop {
            match self.store().lock(key, self.pool.now()).await {
                Ok(Some(lock)) => return Ok(LockAttempt::Lock(lock)),
                Ok(None) if order.cause == Cause::Background => return Err(RefreshError::Locked),
                Ok(None) => {}
                // Without a pause: upstream wasn't asked, and it continues as soon as the store takes writes.
                Err(error) if error.is_read_only() && self.pool.writer().try_journal().await != Some(true) => {
                    let first = self.pool.with_slot(id, |slot, _| slot.account.credential.cannot_save());
                    if first == Some(true) {
                        tracing::warn!(
                            account = short(id),
                            %error,
                            "no token is refreshed, for a new one could not be saved: make what is named writable for this \
                             user, on a disk with room, or set KIRO_STATE_DIR to a folder that is"
                        );
                    }
                    return Err(RefreshError::ReadOnly);
                }
                // The store is away, or it refuses to write (R52).
                Err(_) => return Ok(LockAttempt::WithoutLock),
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(150..=250))).await;
            if let Ok(Some(bytes)) = self.store().read_token(key, self.pool.now()).await
                && let Ok(record) = Token::parse(&bytes)
                && self.adopt(id, bytes, record, order)
            {
                return Ok(LockAttempt::Settled);
            }
            if Instant::now() >= deadline {
                return Err(RefreshError::StillLocked);
            }
        }
    }

    /// Reads the record, calls upstream and saves: R40, steps 3 to 7.
    async fn refresh(&self, id: &AccountId, key: &TokenKey, order: &Order) -> Ended {
        // The refresh tokens that upstream refused just now.
        let mut refused: Vec<Secret> = Vec::new();
        let ((mut bytes, mut record), mut known) = self.base(id, key).await?;
        if known && self.adopt(id, bytes.clone(), record.clone(), order) {
            return Ok(());
        }
        loop {
            let credential = self.pool.with_slot(id, |slot, _| slot.account.credential.to_spend(&record, &refused));
            let credential = credential.ok_or(RefreshError::Gone)?.ok_or(RefreshError::NotRefreshable)?;
            // Method and region come from the record itself: a snapshot's could send its secrets to another address.
            let view = self.pool.view_with(id, &credential).ok_or(RefreshError::Gone)?;
            let view = view.map_err(|_| RefreshError::NotRefreshable)?;
            let Some(used) = credential.refresh_token.clone() else { return Err(RefreshError::NotRefreshable) };
            if !credential.can_refresh() {
                return Err(RefreshError::NotRefreshable);
            }
            let region = view.refresh_region().to_owned();
            let since = Instant::now();
            match self.call(&view, &credential, &region).await {
                Ok(grant) => {
                    self.save(id, &used, (bytes, record), grant).await;
                    return Ok(());
                }
                Err(CallError::Refused(refusal, told))
                    if !matches!(refusal, Refusal::Passing | Refusal::ClientVersion) =>
                {
                    refused.push(used.clone());
                    // The record may hold another refresh token by now, or we held one before (R41).
                    if refused.len() < MOST_TOKENS
                        && let Ok((base, still_known)) = self.base(id, key).await
                        && self
                            .pool
                            .with_slot(id, |slot, _| slot.account.credential.to_spend(&base.1, &refused).is_some())
                            == Some(true)
                    {
                        ((bytes, record), known) = (base, still_known);
                        continue;
                    }
                    if credential.method() == Method::External {
                        let provider = view.refresh_url(&region).unwrap_or_default();
                        let by =
                            std::iter::once(host_of(&provider)).chain(told.as_deref()).collect::<Vec<_>>().join(", ");
                        return Err(self.refused(id, &format!("by {by}"), &used, refusal, known));
                    }
                    let mut tried = vec![region];
                    if credential.method() == Method::Idc
                        && matches!(refusal, Refusal::Rejected | Refusal::RegistrationExpired)
                    {
                        match self.call_elsewhere(&view, &credential, told, &mut tried, since).await {
                            Ok(grant) => {
                                self.granted_elsewhere(id, &credential, tried.last(), grant, &used, (bytes, record))
                                    .await;
                                return Ok(());
                            }
                            // A region that might have said yes didn't answer: the refusal isn't final.
                            Err(true) => {
                                let now = self.pool.now();
                                self.pool.with_slot(id, |slot, rng| slot.account.credential.failed(now, rng));
                                return Err(RefreshError::Refused(Refusal::Passing));
                            }
                            Err(false) => {}
                        }
                    }
                    return Err(self.refused(id, &format!("in {}", tried.join(", ")), &used, refusal, known));
                }
                Err(error) => {
                    let now = self.pool.now();
                    self.pool.with_slot(id, |slot, rng| match error {
                        CallError::Unreachable => slot.account.credential.unreached(now),
                        _ => slot.account.credential.failed(now, rng),
                    });
                    return Err(match error {
                        CallError::Refused(refusal, _) => RefreshError::Refused(refusal),
                        CallError::Unreachable => RefreshError::Unreachable,
                        CallError::Network => RefreshError::Network,
                        CallError::Timeout => RefreshError::Timeout,
                    });
                }
            }
        }
    }

    /// The same request in the other possible regions (K76). `tried` grows. The error says whether one of them might
    /// still say yes.
    async fn call_elsewhere(
        &self,
        view: &AccountView,
        credential: &Token,
        mut told: Option<String>,
        tried: &mut Vec<String>,
        since: Instant,
    ) -> Result<Grant, bool> {
        let mut is_silent = false;
        while tried.len() < MOST_REGIONS {
            let arn_region = view.profile_arn().and_then(region_of);
            let recorded = [credential.idc_region.as_deref(), credential.region.as_deref(), arn_region];
            let candidates = std::iter::once(told.as_deref()).chain(recorded).flatten().chain([DEFAULT_REGION]);
            let urls: Vec<_> = tried.iter().map(|region| view.refresh_url(region)).collect();
            let is_new = |region: &&str| {
                let url = view.refresh_url(region);
                is_region(region) && url.is_some() && !urls.contains(&url)
            };
            let Some(region) = candidates.into_iter().find(is_new).map(str::to_owned) else { break };
            let left = CALLS_WITHIN.saturating_sub(since.elapsed());
            let answer = tokio::time::timeout(left, self.call(view, credential, &region)).await;
            tried.push(region);
            match answer {
                Ok(Ok(grant)) => return Ok(grant),
                Ok(Err(CallError::Refused(Refusal::Passing | Refusal::ClientVersion, _) | CallError::Timeout))
                | Err(_) => is_silent = true,
                Ok(Err(CallError::Refused(_, again))) => told = again.or(told),
                Ok(Err(CallError::Network | CallError::Unreachable)) => {}
            }
        }
        Err(is_silent)
    }

    /// Another region than the first one granted the token: remembers it, and writes it when the record names none.
    async fn granted_elsewhere(
        &self,
        id: &AccountId,
        credential: &Token,
        region: Option<&String>,
        mut grant: Grant,
        used: &Secret,
        base: (Bytes, Token),
    ) {
        if let Some(region) = region {
            match &credential.idc_region {
                Some(recorded) if recorded != region => tracing::warn!(
                    account = short(id),
                    recorded,
                    region,
                    "the token is refreshed in another region than the record's idcRegion: correct it there"
                ),
                _ => grant.idc_region = Some(region.clone()),
            }
            self.pool.learn(id, Lesson::RefreshRegion(region.as_str().into()));
        }
        self.save(id, used, base, grant).await;
    }

    /// The record to refresh (R40, step 3), and whether it is surely the store's current one. While the store is away
    /// it is the last one seen (R52).
    async fn base(&self, id: &AccountId, key: &TokenKey) -> Result<((Bytes, Token), bool), RefreshError> {
        match self.store().read_token(key, self.pool.now()).await {
            Ok(Some(bytes)) => {
                let record = Token::parse(&bytes).map_err(|_| RefreshError::NoCredential)?;
                // A store that takes no writes doesn't show other processes' new tokens.
                Ok(((bytes, record), self.store().status() == Status::Connected))
            }
            Ok(None) => Err(RefreshError::NoCredential),
            Err(error) if error.kind() == StoreErrorKind::Registration => {
                tracing::warn!(account = short(id), %error, "token refresh");
                Err(RefreshError::Registration)
            }
            Err(_) => {
                let seen = self.pool.with_slot(id, |slot, _| slot.account.credential.seen().cloned()).flatten();
                let bytes = seen.ok_or(RefreshError::NoCredential)?;
                let record = Token::parse(&bytes).map_err(|_| RefreshError::NoCredential)?;
                Ok(((bytes, record), false))
            }
        }
    }

    /// Uses the record's token when somebody else refreshed: it differs from the one to be replaced, and is live.
    fn adopt(&self, id: &AccountId, bytes: Bytes, record: Token, order: &Order) -> bool {
        let now = self.pool.now();
        let adopted = self.pool.with_slot(id, |slot, rng| {
            slot.account.credential.adopt_refreshed(bytes, record, |theirs| order.is_met_by(theirs), now, rng)
        });
        let adopted = adopted.unwrap_or(false);
        if adopted {
            count(&self.counters.adopted);
            self.pool.adopted(id);
        }
        adopted
    }

    /// Saves the new token: R40, steps 5 to 7.
    async fn save(&self, id: &AccountId, used: &Secret, base: (Bytes, Token), grant: Grant) {
        let now = self.pool.now();
        count(&self.counters.refreshed);
        let unsaved = self.pool.with_slot(id, |slot, rng| {
            let unsaved = slot.account.credential.granted(used, base, grant, now, rng);
            slot.account.goes_on();
            unsaved
        });
        let Some(unsaved) = unsaved else { return };
        match self.pool.writer().save_token(id, unsaved).await {
            Ok(Saved::Written(bytes)) => {
                self.pool.with_slot(id, |slot, _| slot.account.credential.saved(bytes));
            }
            Ok(Saved::Rotated(bytes)) => {
                count(&self.counters.conflicts);
                tracing::warn!(
                    account = short(id),
                    "somebody else rotated the refresh token meanwhile: theirs is used"
                );
                self.pool.with_slot(id, |slot, rng| slot.account.credential.replaced_by(bytes, rng));
                self.pool.adopted(id);
                return;
            }
            Ok(Saved::Absent) => tracing::info!(account = short(id), "the account was removed during its refresh"),
            Ok(Saved::Unusable) => tracing::warn!(account = short(id), "the token record can't be read any more"),
            Err(error) => {
                count(&self.counters.unsaved);
                // The store's own line says that it is away.
                tracing::debug!(account = short(id), %error, "a refreshed token waits to be saved");
            }
        }
        tracing::info!(account = short(id), "token refreshed");
        self.pool.refreshed(id);
    }

    /// Handles a refusal; `whence` says who refused: `in us-east-1`, `by login.example.org`.
    fn refused(&self, id: &AccountId, whence: &str, used: &Secret, refusal: Refusal, known: bool) -> RefreshError {
        let now = self.pool.now();
        let believed = self.pool.with_slot(id, |slot, rng| {
            // While the store is away another process may have rotated the token unseen: the refusal isn't final.
            let believed = known && slot.account.credential.refused(refusal, now);
            // The next call with this token waits, whether the refusal is believed or not.
            slot.account.credential.failed(now, rng);
            believed
        });
        if believed != Some(true) {
            return RefreshError::Refused(refusal);
        }
        let fingerprint = Fingerprint::of(used).short();
        self.pool.eject(
            id,
            match refusal {
                Refusal::RegistrationExpired => format!("client registration expired ({fingerprint}); log in again"),
                Refusal::ClientRefused => format!("client refused ({fingerprint}) {whence}; log in again"),
                Refusal::Rejected
                | Refusal::Doubtful
                | Refusal::ClientVersion
                | Refusal::Passing
                | Refusal::Unknown => format!("refresh token rejected ({fingerprint}) {whence}; log in again"),
            },
        );
        RefreshError::Rejected
    }

    fn store(&self) -> &Store {
        self.pool.store()
    }
}

/// The result of taking the lock.
enum LockAttempt {
    Lock(Lock),
    /// The store is away (R52).
    WithoutLock,
    /// Somebody else has refreshed meanwhile.
    Settled,
}

/// Why a refresh call brought no token.
enum CallError {
    /// With the detail that the refusal named: the right region (K76), or an external provider's number (K82).
    Refused(Refusal, Option<String>),
    /// Nothing was sent.
    Unreachable,
    Network,
    Timeout,
}

/// Renews tokens before they expire (R37) and probes unused half-open accounts (R17), while the credentials live.
async fn background(inner: Weak<Inner>) {
    let Some(wanted) = inner.upgrade().map(|inner| inner.pool.refresh_wanted()) else { return };
    let mut looked_up = Instant::now();
    loop {
        let Some(inner) = inner.upgrade() else { return };
        // A token that can't be saved now is refreshed only when it must be (R52).
        let away = inner.pool.store().status() != Status::Connected;
        for id in inner.pool.refreshes_due(away, inner.threshold) {
            let Ok(place) = inner.at_a_time.clone().try_acquire_owned() else { break };
            let credentials = Credentials(inner.clone());
            inner.tasks.spawn(async move {
                if let Err(error) = credentials.renew(&id, Cause::Background).await {
                    tracing::debug!(account = short(&id), ?error, "no background refresh");
                }
                drop(place);
            });
        }
        for lease in inner.pool.probes_due() {
            let credentials = Credentials(inner.clone());
            inner.tasks.spawn(async move { credentials.probe(lease).await });
        }
        // One account a second (K79).
        if looked_up.elapsed() >= LOOK_EVERY
            && let Some(id) = inner.pool.look_up_due()
        {
            looked_up = Instant::now();
            let credentials = Credentials(inner.clone());
            inner.tasks.spawn(async move { credentials.look_up(&id).await });
        }
        drop(inner);
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = wanted.notified() => {}
        }
    }
}

impl Credentials {
    /// Asks a half-open account for its usage (R17): a good answer heals it, a bad one is the next failure.
    async fn probe(&self, lease: Lease) {
        match self.usage_limits_refreshed(&lease).await {
            Ok(_) => drop(lease.succeeded()),
            Err((fault, refreshed)) => drop(lease.failed(&fault, AttemptEnd { refreshed, committed: false })),
        }
    }

    /// [`Credentials::usage_limits`], asked by a person: with one forced refresh when the bearer token is rejected. No
    /// health field is changed, except for `Suspended` (K62).
    ///
    /// # Errors
    /// Upstream's fault, or why there is no token.
    pub async fn usage_for_person(&self, lease: &Lease) -> Result<Bytes, Fault> {
        let answer = self.usage_limits_refreshed(lease).await.map_err(|(fault, _)| fault);
        if let Err(fault) = &answer
            && fault.kind == FaultKind::Suspended
        {
            drop(lease.suspended(fault));
        }
        answer
    }

    /// As for a conversation, a rejected bearer token is refreshed once. The flag: it was rejected again.
    async fn usage_limits_refreshed(&self, lease: &Lease) -> Result<Bytes, (Fault, bool)> {
        match self.usage_limits(lease).await {
            Err(fault) if fault.kind == FaultKind::TokenRejected && !lease.account().is_api_key() => {
                self.force_refresh(lease).await.map_err(|fault| (fault, false))?;
                self.usage_limits(lease).await.map_err(|fault| (fault, true))
            }
            answer => answer.map_err(|fault| (fault, false)),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::translate::fault::{PromptSize, api_error};

    /// A request that was never sent is neither a refusal nor a timeout.
    #[test]
    fn a_missing_token_is_explained_r45() {
        let errors = [
            RefreshError::Gone,
            RefreshError::NoCredential,
            RefreshError::NotRefreshable,
            RefreshError::Rejected,
            RefreshError::Refused(Refusal::Passing),
            RefreshError::Network,
            RefreshError::Timeout,
            RefreshError::StillLocked,
            RefreshError::Pausing,
            RefreshError::Registration,
            RefreshError::ReadOnly,
            RefreshError::Closed,
        ];
        for error in errors {
            let told = api_error(&error.fault(), PromptSize { estimate: 0, window: 0 });
            assert!(told.message.starts_with("The Kiro account has no access token: "), "{error:?}: {}", told.message);
        }
        let told = api_error(&RefreshError::NoCredential.fault(), PromptSize { estimate: 0, window: 0 });
        assert!(told.message.contains("its token record is missing"), "{}", told.message);
    }
}
