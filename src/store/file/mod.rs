//! The embedded file store (R63–R68): one JSON file with the records of R70, or a token file of the Kiro IDE or
//! CLI that stands for one account. Shared by processes of one machine through an advisory lock beside the file.
//!
//! Every call runs on a thread for blocking work. A call whose future is dropped still runs to its end; a change that
//! is waiting for another one doesn't run at all then.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::{
    Added, Cas, Change, KnownLogins, Latency, Lock, LockHandle, NewAccount, RawAccount, Status, StoreError,
    StoreErrorKind, Tickets, TokenKey,
};
use crate::files::Stamp;
use crate::proto::json::without_mark;
use crate::proto::record::{self, Account, Registration, Token, TokenFile, id_of_path, token_id_of_path};
use crate::secret::Secret;

mod content;
pub(super) mod disk;
mod id_secret;
pub(super) mod refreshing;
mod service;

use content::{Content, Pool};
use refreshing::Refreshing;
pub use service::ServiceStore;

/// How often the file is checked while the store is away.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a change waits for the tokens of running refreshes, to be written with them (R66). When a write takes
/// longer, as long as the write, up to [`GATHER_MOST`].
const GATHER: Duration = Duration::from_millis(100);
const GATHER_MOST: Duration = Duration::from_secs(1);

/// Accounts and tokens in one JSON file. Cheap to clone.
#[derive(Clone)]
pub struct FileStore {
    inner: Arc<Inner>,
    _stop: Arc<DropGuard>,
}

struct Inner {
    /// The path as it was named, made absolute.
    path: PathBuf,
    status: watch::Sender<Status>,
    desk: Desk,
    tickets: AtomicU64,
    /// One change at a time in this process; among processes the lock file decides. Waiting takes no thread: while
    /// another process holds the lock file, the threads for blocking work (reads, host names) must not run out.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// Changes of records that wait for their turn: the next writer writes them all, in one write of the file.
    waiting: Mutex<Vec<QueuedChanges>>,
    /// This process's refreshes that hold their lock, by token: their tokens will come soon.
    refreshing: Refreshing,
    memory: Mutex<Memory>,
    /// Only one call reads a changed file; the others wait for its result, and for a running change.
    renewing: Mutex<()>,
    /// How long the last write took, in milliseconds.
    wrote_in: AtomicU64,
    /// The last write failed: reads alone don't make the store whole again (R66).
    cannot_write: AtomicBool,
    owner: Owner,
}

/// The work on a store's files. It may block, so it runs on threads for that, to its end even when its caller is gone.
#[derive(Default)]
struct Desk {
    running: TaskTracker,
    latency: Latency,
}

impl Desk {
    /// Does work on `inner`, timed.
    async fn run<I: Send + Sync + 'static, T: Send + 'static>(
        &self,
        inner: &Arc<I>,
        work: impl FnOnce(&I) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(inner);
        let started = Instant::now();
        let done = self.running.spawn_blocking(move || work(&inner)).await;
        let result = done.unwrap_or_else(|_| Err(StoreError::away("the work on the file was given up")));
        self.latency.observe(started.elapsed(), result.is_ok());
        result
    }

    /// Resolves when nothing runs.
    async fn idle(&self) {
        self.running.close();
        self.running.wait().await;
    }
}

/// The program that a file belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Ours, or Kiro's: only its owner may read it (R64).
    Private,
    /// The Node.js service: it keeps the mode that it has, and its client is found as that service does (R97, R98).
    Service,
}

/// Compare-and-sets of one caller.
struct QueuedChanges {
    kind: RecordKind,
    changes: Vec<Change>,
    done: oneshot::Sender<Vec<Result<Cas, StoreError>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum RecordKind {
    Account,
    Token,
}

/// The memory between two reads of the file.
#[derive(Default)]
struct Memory {
    seen: Option<(Stamp, Content)>,
    /// The account record behind a token file: its counters and marks live here only (R68).
    account: Option<Bytes>,
    /// A learned profile that the token file has no member for (R68).
    profile_arn: Option<String>,
    warned: Warned,
}

/// Kept warnings, at most: their texts come from another program's file.
const MOST_WARNED: usize = 1_000;

/// Warnings that were logged, so that each is logged once.
#[derive(Default)]
struct Warned {
    // Bound: file stores: warnings that were logged | MOST_WARNED | a further one isn't logged
    texts: HashSet<String>,
}

impl Warned {
    fn is_new(&mut self, message: &str) -> bool {
        self.texts.len() < MOST_WARNED && self.texts.insert(message.to_owned())
    }
}

impl FileStore {
    /// Reads the file once, so that the status is known when this returns.
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).map_err(|error| {
            StoreError::new(StoreErrorKind::Config, format!("{}: {}", path.display(), error.kind()))
        })?;
        let inner = Arc::new(Inner::new(path, Owner::Private));
        let stop = CancellationToken::new();
        let watching = stop.clone().run_until_cancelled_owned(Arc::clone(&inner).look_while_away());
        let store = Self { inner, _stop: Arc::new(stop.drop_guard()) };
        let first = store.run(|inner| {
            if let Ok(target) = disk::target(&inner.path) {
                disk::sweep(&target);
            }
            disk::refuse_folder(&inner.path)?;
            inner.content().map(|_| ())
        });
        // The status holds an error; the file may come or be repaired (R54). One of another program won't be ours.
        if let Err(error) = first.await
            && error.kind() == StoreErrorKind::Config
        {
            return Err(error);
        }
        #[expect(clippy::disallowed_methods, reason = "the store's background task; it ends with the last clone")]
        tokio::spawn(watching);
        Ok(store)
    }

    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.inner.status.subscribe()
    }

    pub(super) fn latency(&self) -> &Latency {
        &self.inner.desk.latency
    }

    /// Resolves when no work on the file runs.
    pub(super) async fn idle(&self) {
        self.inner.desk.idle().await;
    }

    pub(super) fn pool_name(&self) -> String {
        self.inner.path.display().to_string()
    }

    pub(super) async fn load(&self) -> Result<Vec<RawAccount>, StoreError> {
        self.run(Inner::load).await
    }

    pub(super) async fn read_accounts(&self, ids: &[&str]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        self.run(move |inner| {
            let content = inner.content()?;
            Ok(ids.iter().map(|id| inner.account(&content, id)).collect())
        })
        .await
    }

    pub(super) async fn compare_and_set_accounts(&self, changes: &[Change]) -> Vec<Result<Cas, StoreError>> {
        self.compare_and_set(RecordKind::Account, changes.to_vec()).await
    }

    /// Joins the changes that wait for the file. The first one that gets the file writes all of them.
    async fn compare_and_set(&self, kind: RecordKind, changes: Vec<Change>) -> Vec<Result<Cas, StoreError>> {
        let count = changes.len();
        let given_up = |_| vec![Err(StoreError::away("the work on the file was given up")); count];
        let (done, mut answer) = oneshot::channel();
        self.inner.waiting().push(QueuedChanges { kind, changes, done });
        self.inner.refreshing.arrive();
        let until = Instant::now() + self.inner.gather();
        let one_at_a_time = Arc::clone(&self.inner.changing).lock_owned().await;
        if let Ok(results) = answer.try_recv() {
            return results;
        }
        while self.inner.is_more_to_come() && timeout_at(until, self.inner.refreshing.arrived()).await.is_ok() {}
        let written = self.run(move |inner| {
            let _one_at_a_time = one_at_a_time;
            let began = Instant::now();
            inner.write_waiting();
            inner.wrote_in.store(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
            Ok(())
        });
        match written.await {
            Ok(()) => answer.await.unwrap_or_else(|_| given_up(())),
            Err(_) => given_up(()),
        }
    }

    pub(super) async fn read_token(&self, key: &TokenKey, now: Timestamp) -> Result<Option<Bytes>, StoreError> {
        let key = key.clone();
        self.run(move |inner| match inner.content()? {
            Content::Absent => Ok(None),
            Content::Pool(pool) => Ok(pool.tokens.get(key.id()).cloned()),
            Content::Token(file) if key.id() == inner.token_file_id() => {
                let registration = inner.registration(&file, Some(now))?;
                Ok(Some(inner.token_record(&file, registration.as_ref())?))
            }
            Content::Token(_) => Ok(None),
        })
        .await
    }

    pub(super) async fn compare_and_set_token(
        &self,
        key: &TokenKey,
        old: &[u8],
        new: &[u8],
    ) -> Result<Cas, StoreError> {
        let (old, new) = (Bytes::copy_from_slice(old), Bytes::copy_from_slice(new));
        let change = Change { id: key.id().to_owned(), old, new };
        let mut results = self.compare_and_set(RecordKind::Token, vec![change]).await;
        results.pop().unwrap_or_else(|| Err(broken("no answer")))
    }

    /// Ids of all token records.
    pub(super) async fn token_ids(&self) -> Result<Vec<String>, StoreError> {
        self.run(|inner| match inner.content()? {
            Content::Pool(pool) => Ok(pool.tokens.keys().cloned().collect()),
            Content::Absent | Content::Token(_) => Ok(Vec::new()),
        })
        .await
    }

    /// One machine needs no shared counter.
    pub(super) fn reserve_tickets(&self, count: u64) -> Tickets {
        let first = self.inner.tickets.fetch_add(count, Ordering::Relaxed);
        first..first.wrapping_add(count)
    }

    pub(super) async fn client_key(&self) -> Result<Option<Secret>, StoreError> {
        self.run(|inner| match inner.content()? {
            Content::Pool(pool) => Ok(pool.config.as_deref().and_then(record::client_key)),
            Content::Absent | Content::Token(_) => Ok(None),
        })
        .await
    }

    pub(super) async fn lock(&self, key: &TokenKey) -> Result<Option<Lock>, StoreError> {
        let key = key.clone();
        self.run(move |inner| {
            let target = disk::target(&inner.path)?;
            let file = disk::try_lock_of(&target, key.id())?;
            // The lock file may exist although nothing can be written any more: then no refresh, since it couldn't be
            // saved.
            disk::can_replace(&target)?;
            Ok(file.map(|file| {
                let under_way = inner.refreshing.begin(key.id());
                Lock { key, held: LockHandle::File(file, under_way) }
            }))
        })
        .await
    }

    pub(super) async fn add_accounts(&self, new: &[NewAccount]) -> Result<Vec<Result<Added, StoreError>>, StoreError> {
        let record = |new: &NewAccount| {
            let account = record::new_account(&new.id, &new.id, new.added_at, new.custom_name.as_deref(), &new.members);
            (new.id.clone(), account, new.token.clone())
        };
        let new: Vec<_> = new.iter().map(record).collect();
        self.run_change(move |inner| {
            disk::make_folder(&disk::target(&inner.path)?)?;
            inner.change(|content| {
                let pool = match content {
                    Content::Absent => Pool::default(),
                    Content::Pool(pool) => pool.clone(),
                    Content::Token(_) => return Err(inner.single_account()),
                };
                let mut known = KnownLogins::of(&raw_accounts(&pool));
                let mut fresh = Vec::new();
                let added = new.iter().map(|one| {
                    let (id, _, token) = one;
                    let token = Token::parse(token).map_err(|error| broken(format!("new token record {error}")))?;
                    if let Some(id) = known.duplicate_of(&token) {
                        return Ok(Added::Duplicate { id: id.to_owned() });
                    }
                    if pool.accounts.contains_key(id) {
                        return Err(broken("an account with this id exists already"));
                    }
                    known.add(id, &token);
                    fresh.push(one);
                    Ok(Added::New)
                });
                let added = added.collect();
                let text = if fresh.is_empty() { None } else { Some(pool.with_accounts(&fresh)?) };
                Ok((added, text))
            })
        })
        .await
    }

    pub(super) async fn remove_account(&self, id: &str) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.run_change(move |inner| {
            inner.change(|content| {
                let pool = match content {
                    Content::Absent => return Ok((false, None)),
                    Content::Pool(pool) => pool,
                    Content::Token(_) => return Err(inner.single_account()),
                };
                let Some(account) = raw_accounts(pool).into_iter().find(|account| account.id == id) else {
                    return Ok((false, None));
                };
                let token_id = account.token.as_ref().map(|(key, _)| key.id());
                Ok((true, Some(pool.without_account(&id, token_id)?)))
            })
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.desk.run(&self.inner, work).await
    }

    /// As [`FileStore::run`], for work that changes the file.
    async fn run_change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let one_at_a_time = Arc::clone(&self.inner.changing).lock_owned().await;
        self.run(move |inner| {
            let _one_at_a_time = one_at_a_time;
            work(inner)
        })
        .await
    }
}

impl Inner {
    fn new(path: PathBuf, owner: Owner) -> Self {
        Self {
            path,
            status: watch::Sender::new(Status::Connecting(None)),
            desk: Desk::default(),
            tickets: AtomicU64::new(0),
            changing: Arc::default(),
            waiting: Mutex::default(),
            refreshing: Refreshing::default(),
            memory: Mutex::default(),
            renewing: Mutex::default(),
            wrote_in: AtomicU64::new(0),
            cannot_write: AtomicBool::new(false),
            owner,
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renewing(&self) -> MutexGuard<'_, ()> {
        self.renewing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content that was read before, if the file is still the same.
    fn seen(&self, found: Option<&disk::FoundFile>) -> Option<Content> {
        let memory = self.memory();
        let (stamp, content) = memory.seen.as_ref()?;
        (*stamp == found?.stamp).then(|| content.clone())
    }

    /// The content of a file's bytes. Known content is used only after a comparison: times are coarse, and a writer
    /// must be sure.
    fn parsed(&self, text: Option<Vec<u8>>) -> Result<Content, StoreError> {
        let known = self.memory().seen.as_ref().map(|(_, content)| content.clone());
        match (known, &text) {
            (Some(content), Some(text)) if content.is(text) => Ok(content),
            _ => Content::parse(text).map_err(|error| self.named(error)),
        }
    }

    /// The file as it is now; parsed again only when it changed (R65).
    fn content(&self) -> Result<Content, StoreError> {
        let looked = (|| {
            let target = disk::target(&self.path)?;
            if let Some(content) = self.seen(disk::look(&target)?.as_ref()) {
                return Ok(content);
            }
            let _renewing = self.renewing();
            let found = disk::look(&target)?;
            if let Some(content) = self.seen(found.as_ref()) {
                return Ok(content);
            }
            if self.owner == Owner::Private && found.as_ref().is_some_and(|found| found.is_open_to_others) {
                self.warn_once(&format!("{} can be read by others: chmod 600", target.display()));
            }
            let content = Content::parse(disk::read(&target)?).map_err(|error| self.named(error))?;
            // The stamp was taken before the read: a change in between shows at the next read.
            self.memory().seen = found.map(|found| (found.stamp, content.clone()));
            Ok(content)
        })();
        self.looked(looked.as_ref().err());
        looked
    }

    fn load(&self) -> Result<Vec<RawAccount>, StoreError> {
        match self.content()? {
            Content::Absent => Ok(Vec::new()),
            Content::Pool(pool) => Ok(raw_accounts(&pool)),
            Content::Token(file) => {
                // Without its registration the account serves until its access token expires (R67).
                let registration = self.registration(&file, None).unwrap_or_else(|error| {
                    self.warn_once(&error.to_string());
                    None
                });
                let id = self.token_file_id();
                let token = Some((TokenKey::of(&id), self.token_record(&file, registration.as_ref())?));
                Ok(vec![RawAccount { account: self.token_file_account(), id, token }])
            }
        }
    }

    fn account(&self, content: &Content, id: &str) -> Option<Bytes> {
        match content {
            Content::Absent => None,
            Content::Pool(pool) => pool.accounts.get(id).cloned(),
            Content::Token(_) => (id == self.token_file_id()).then(|| self.token_file_account()),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<QueuedChanges>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gather(&self) -> Duration {
        Duration::from_millis(self.wrote_in.load(Ordering::Relaxed)).clamp(GATHER, GATHER_MOST)
    }

    /// Whether a refresh is running whose token isn't among the waiting changes yet.
    fn is_more_to_come(&self) -> bool {
        let waiting = self.waiting();
        let tokens = waiting.iter().filter(|waiting| waiting.kind == RecordKind::Token);
        let tokens: HashSet<&str> =
            tokens.flat_map(|tokens| &tokens.changes).map(|change| change.id.as_str()).collect();
        self.refreshing.ids().iter().any(|id| !tokens.contains(id.as_str()))
    }

    /// Writes all waiting changes whose callers are still there. The caller holds `changing`.
    fn write_waiting(&self) {
        let mut waiting = std::mem::take(&mut *self.waiting());
        waiting.retain(|waiting| !waiting.done.is_closed());
        let changes = waiting.iter().flat_map(|one| one.changes.iter().map(|change| (one.kind, change)));
        let mut results = self.compare_and_set(&changes.collect::<Vec<_>>()).into_iter();
        for QueuedChanges { changes, done, .. } in waiting {
            // Its caller was dropped meanwhile.
            let _gone = done.send(results.by_ref().take(changes.len()).collect());
        }
    }

    fn compare_and_set(&self, changes: &[(RecordKind, &Change)]) -> Vec<Result<Cas, StoreError>> {
        let written = match self.content() {
            Ok(Content::Token(_)) => {
                let one = |(kind, change): &(RecordKind, &Change)| match kind {
                    RecordKind::Account => Ok(self.compare_and_set_in_memory(change)),
                    RecordKind::Token => self.compare_and_set_token_file(change),
                };
                return changes.iter().map(one).collect();
            }
            Ok(_) => self.change(|content| {
                let Content::Pool(pool) = content else { return Ok((vec![Cas::Absent; changes.len()], None)) };
                let mut replaced: HashMap<(RecordKind, &str), (Bytes, Bytes)> = HashMap::new();
                let results = changes.iter().map(|(kind, change)| {
                    let records = if *kind == RecordKind::Token { &pool.tokens } else { &pool.accounts };
                    let Some(before) = records.get(&change.id) else { return Cas::Absent };
                    let place = (*kind, change.id.as_str());
                    let current = replaced.get(&place).map_or(before, |(_, new)| new);
                    if *current != change.old {
                        return Cas::Conflict(current.clone());
                    }
                    replaced.insert(place, (before.clone(), change.new.clone()));
                    Cas::Written
                });
                let results: Vec<Cas> = results.collect();
                let text = (!replaced.is_empty()).then(|| pool.with_replaced(replaced.into_values().collect()));
                Ok((results, text))
            }),
            Err(error) => Err(error),
        };
        match written {
            Ok(results) => results.into_iter().map(Ok).collect(),
            Err(error) => changes.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    fn compare_and_set_in_memory(&self, change: &Change) -> Cas {
        if change.id != self.token_file_id() {
            return Cas::Absent;
        }
        let current = self.token_file_account();
        if current != change.old {
            return Cas::Conflict(current);
        }
        self.memory().account = Some(change.new.clone());
        Cas::Written
    }

    fn compare_and_set_token_file(&self, change: &Change) -> Result<Cas, StoreError> {
        self.change(|content| {
            let Content::Token(file) = content else { return Ok((Cas::Absent, None)) };
            if change.id != self.token_file_id() {
                return Ok((Cas::Absent, None));
            }
            let registration = self.registration(file, None).unwrap_or_default();
            let current = self.token_record(file, registration.as_ref())?;
            if current != change.old {
                return Ok((Cas::Conflict(current), None));
            }
            let token = Token::parse(&change.new).map_err(|error| broken(format!("new token record {error}")))?;
            let parsed = token_file(file)?;
            if !parsed.has_profile_member() {
                self.memory().profile_arn.clone_from(&token.profile_arn);
            }
            let text = parsed.with_token(&token).map_err(|error| broken(format!("new token file {error}")))?;
            Ok((Cas::Written, text))
        })
    }

    /// Reads, changes and replaces the file under the lock (R65). The caller holds `changing`.
    fn change<T>(
        &self,
        change: impl FnOnce(&Content) -> Result<(T, Option<Vec<u8>>), StoreError>,
    ) -> Result<T, StoreError> {
        let mut written = false;
        let changed = (|| -> Result<T, StoreError> {
            let target = disk::target(&self.path)?;
            let _lock = disk::lock(&target)?;
            let content = self.parsed(disk::read(&target)?)?;
            let (result, text) = change(&content)?;
            if let Some(text) = text {
                // Before writing: a file that is too long to be read again must not replace this one.
                let after = Content::parse(Some(text.clone())).map_err(|error| self.named(error))?;
                let _renewing = self.renewing();
                match self.owner {
                    Owner::Private => disk::replace(&target, &text)?,
                    Owner::Service => disk::replace_unchanged(&target, content.text().as_deref(), &text)?,
                }
                written = true;
                // Still under the lock, so this is the file just written.
                let found = disk::look(&target)?;
                self.memory().seen = found.map(|found| (found.stamp, after));
            }
            Ok(result)
        })();
        match &changed {
            Ok(_) if written => {
                self.cannot_write.store(false, Ordering::SeqCst);
                self.looked(None);
            }
            Ok(_) => {}
            Err(error) if error.is_away() => {
                self.cannot_write.store(true, Ordering::SeqCst);
                self.tell(Status::Away(error.clone()));
            }
            Err(error) => self.looked(Some(error)),
        }
        changed
    }

    fn token_file_id(&self) -> String {
        id_of_path(&self.path.to_string_lossy())
    }

    fn token_file_account(&self) -> Bytes {
        self.memory().account.clone().unwrap_or_else(|| Bytes::from_static(b"{}"))
    }

    fn token_record(&self, file: &[u8], registration: Option<&Registration>) -> Result<Bytes, StoreError> {
        let profile_arn = self.memory().profile_arn.clone();
        Ok(token_file(file)?.record(registration, profile_arn.as_deref()).into())
    }

    /// The client registration beside a token file, if there is one; checked for its expiry when `now` is given.
    fn registration(&self, file: &[u8], now: Option<Timestamp>) -> Result<Option<Registration>, StoreError> {
        registration_of(&token_file(file)?, &disk::target(&self.path)?, now, self.owner)
    }

    fn single_account(&self) -> StoreError {
        let detail =
            format!("{} is a Kiro token file and stands for one account; name another file", self.path.display());
        StoreError::new(StoreErrorKind::Config, detail)
    }

    /// An error about the content names its file.
    fn named(&self, error: StoreError) -> StoreError {
        StoreError { detail: format!("{} {}", self.path.display(), error.detail), ..error }
    }

    /// Notes the result of a read of the file.
    fn looked(&self, error: Option<&StoreError>) {
        match error {
            None if self.cannot_write.load(Ordering::SeqCst) => {}
            None => self.tell(Status::Connected),
            Some(error) => {
                let was_there = !matches!(&*self.status.borrow(), Status::Connecting(_));
                self.tell(if was_there {
                    Status::Away(error.clone())
                } else {
                    Status::Connecting(Some(error.clone()))
                });
            }
        }
    }

    fn tell(&self, next: Status) {
        self.status.send_if_modified(|status| {
            let changed = *status != next;
            *status = next;
            changed
        });
    }

    fn warn_once(&self, message: &str) {
        if self.memory().warned.is_new(message) {
            tracing::warn!("{message}");
        }
    }

    /// Replaces the file by itself: the only way to know whether it can be written again.
    fn try_to_write(&self) -> Result<(), StoreError> {
        let is_there = self.change(|content| Ok((content.text().is_some(), content.text())))?;
        if !is_there {
            // Without a file there is nothing to lose; the lock beside it could be made.
            self.cannot_write.store(false, Ordering::SeqCst);
            self.looked(None);
        }
        Ok(())
    }

    /// Polls for the file, but only while it is away: there is no event for its return.
    async fn look_while_away(self: Arc<Self>) {
        let mut status = self.status.subscribe();
        loop {
            if status.wait_for(|status| !status.is_connected()).await.is_err() {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            let inner = Arc::clone(&self);
            let one_at_a_time = Arc::clone(&self.changing).lock_owned().await;
            let looked = self.desk.running.spawn_blocking(move || {
                let _one_at_a_time = one_at_a_time;
                // The status holds an error.
                let _still_away = if inner.cannot_write.load(Ordering::SeqCst) {
                    inner.try_to_write()
                } else {
                    inner.content().map(|_| ())
                };
            });
            if looked.await.is_err() {
                return;
            }
        }
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

/// The parts of a token file that `accounts add --from FILE` imports (R80).
pub struct Imported {
    /// The token record, client registration copied in.
    pub token: Vec<u8>,
    /// `social`, `idc`, `external` or `api-key`.
    pub method: record::Method,
}

impl fmt::Debug for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imported").field("method", &self.method).finish_non_exhaustive()
    }
}

/// Reads a token file of the Kiro IDE or CLI, with its client registration, as a token record (R80). Blocks.
///
/// [`StoreErrorKind::Broken`] when it is no such file or gives no account that can serve, [`StoreErrorKind::Registration`] when the registration beside it
/// is missing, expired or refused, [`StoreErrorKind::Away`] when it can't be read.
pub fn import(path: &Path, now: Timestamp) -> Result<Imported, StoreError> {
    let named = |error: StoreError| StoreError { detail: format!("{} {}", path.display(), error.detail), ..error };
    let target = disk::target(path)?;
    let text = disk::read_at_most(&target, record::RECORD.bytes as u64 + 1)?;
    let text = text.map(|text| without_mark(&text).to_vec());
    match text.as_ref().map(Vec::len) {
        None => return Err(StoreError::away(format!("{}: not found; log in in Kiro first", path.display()))),
        Some(length) if length > record::RECORD.bytes => {
            let limit = record::RECORD.bytes;
            return Err(named(broken(format!("is longer than {limit} bytes: no token file of the Kiro IDE or CLI"))));
        }
        Some(_) => {}
    }
    let Content::Token(text) = Content::parse(text).map_err(named)? else {
        return Err(named(broken("is no token file of the Kiro IDE or CLI")));
    };
    let file = token_file(&text)?;
    let registration = registration_of(&file, &target, Some(now), Owner::Private)?;
    let token = file.record(registration.as_ref(), None);
    let parsed = Token::parse(&token).map_err(|error| named(broken(error.to_string())))?;
    if parsed.access_token.is_none() && parsed.refresh_token.is_none() && parsed.kiro_api_key.is_none() {
        return Err(named(broken("holds no token: each is empty or not a text; log in again in Kiro")));
    }
    if [&parsed.region, &parsed.idc_region].into_iter().flatten().any(|region| !record::is_region(region)) {
        return Err(named(broken("has a region that is no region's name; log in again in Kiro")));
    }
    Ok(Imported { method: parsed.method(), token })
}

fn registration_of(
    file: &TokenFile<'_>,
    path: &Path,
    now: Option<Timestamp>,
    owner: Owner,
) -> Result<Option<Registration>, StoreError> {
    let wrong = |detail: String| StoreError::new(StoreErrorKind::Registration, detail);
    let name = file
        .registration_file()
        .map_err(|_| wrong(format!("{}: clientIdHash is refused: it is no plain name", path.display())))?;
    let named = name.map(|name| path.with_file_name(name));
    let text = named.as_deref().map(disk::read).transpose()?.flatten();
    let registration = match (&named, text) {
        (Some(place), Some(text)) => Registration::parse(&text)
            .ok_or_else(|| wrong(format!("{} holds no client registration; log in again in Kiro", place.display())))?,
        _ if owner == Owner::Service && file.lacks_client() => lone_registration(path).map_err(wrong)?,
        (Some(place), None) => return Err(wrong(format!("{} is missing; log in again in Kiro", place.display()))),
        (None, _) => return Ok(None),
    };
    match (registration.expires_at, now) {
        (Some(end), Some(now)) if end <= now => {
            let place = named.as_deref().unwrap_or(path).display();
            Err(wrong(format!("{place} has expired; log in again in Kiro")))
        }
        _ => Ok(Some(registration)),
    }
}

/// The client of a token file that names none: its folder's only other file that has one (R83). Blocks.
///
/// # Errors
/// There is none, or more than one; the sentence names the folder.
pub fn lone_registration(path: &Path) -> Result<Registration, String> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let listed = std::fs::read_dir(folder).map_err(|error| error.to_string())?;
    let others = listed.filter_map(|entry| Some(entry.ok()?.path()));
    let others = others.filter(|other| other != path && other.extension().is_some_and(|end| end == "json"));
    let mut found =
        others.filter_map(|other| Registration::parse(&crate::files::read(&other, record::RECORD.bytes as u64).ok()?));
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => Err(format!("more than one client registration in {}", folder.display())),
        (Some(only), None) => Ok(only),
        (None, _) => {
            Err(format!("client registration missing (a file with clientId and clientSecret in {})", folder.display()))
        }
    }
}

fn token_file(text: &[u8]) -> Result<TokenFile<'_>, StoreError> {
    TokenFile::parse(text).ok().flatten().ok_or_else(|| broken("is no token file any more"))
}

/// The accounts of a pool with their tokens, by the same rules as in Redis (R13, R45).
fn raw_accounts(pool: &Pool) -> Vec<RawAccount> {
    let accounts = pool.ids().into_iter().map(|id| {
        let account = pool.accounts[id].clone();
        let own = pool.tokens.get(id).map(|token| (TokenKey::of(id), token.clone()));
        let renamed = || {
            let path = Account::parse(&account, id).ok()?.token_file_path?;
            let other = token_id_of_path(&path).filter(|other| !pool.accounts.contains_key(*other))?;
            Some((TokenKey::of(other), pool.tokens.get(other)?.clone()))
        };
        let token = own.or_else(renamed);
        RawAccount { id: id.to_owned(), account, token }
    });
    accounts.collect()
}

fn broken(detail: impl Into<String>) -> StoreError {
    StoreError::new(StoreErrorKind::Broken, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_logged_once_and_remembered_up_to_a_bound() {
        let mut warned = Warned::default();
        assert!(warned.is_new("a") && !warned.is_new("a"));
        let logged = (0..2 * MOST_WARNED).filter(|n| warned.is_new(&n.to_string())).count();
        assert_eq!((logged, warned.texts.len()), (MOST_WARNED - 1, MOST_WARNED));
    }
}
