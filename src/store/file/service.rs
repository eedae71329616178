//! The existing Node.js service's pool file as the store (R95–R100): its records are read and followed, the token files
//! that they name are read and written back in place, and the pool file itself is never written.
//!
//! A token file is the one of R67 and uses its code: reading, locking, replacing. Its record's key is the id of its path,
//! because the service gives accounts new ids and leaves their files where they are (E9).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use super::content::{FILE, place};
use super::{
    Added, Cas, Change, Content, Desk, Inner, Latency, Lock, LockHandle, NewAccount, Owner, RawAccount, Status,
    StoreError, StoreErrorKind, Tickets, TokenKey, Warned, broken, disk, id_secret,
};
use crate::files::Stamp;
use crate::proto::json::without_mark;
use crate::proto::record::import::{Place, inline, is_service_list, place_of_record};
use crate::proto::record::{self, Object, RECORD, Registration, id_of_path, is_account_id, short};
use crate::secret::Secret;

/// A file that reads broken is read again before that is believed: the service writes in place (R96).
const LOOKS: u32 = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(25);
/// Members of an account record that one mark writes together (R29): what the service changed of them replaces all.
const MARK: [&str; 5] = ["isHealthy", "errorCount", "lastErrorTime", "lastErrorMessage", "scheduledRecoveryTime"];

/// The accounts of a Node.js service without Redis. Cheap to clone.
#[derive(Clone)]
pub struct ServiceStore {
    inner: Arc<Service>,
}

struct Service {
    /// The path as it was named, made absolute.
    path: PathBuf,
    /// The one list that is read (N80); none: all of Kiro's.
    only: Option<String>,
    /// Relative paths of token files begin here (R83).
    root: PathBuf,
    status: watch::Sender<Status>,
    desk: Desk,
    tickets: AtomicU64,
    /// Only one call reads a changed file; the others wait for its result.
    renewing: Mutex<()>,
    seen: Mutex<Seen>,
}

/// The memory between two reads.
#[derive(Default)]
struct Seen {
    pool: Option<(Stamp, Arc<ServicePool>)>,
    /// The token files of this pool and of the one before it, by token id: a refresh may end after its account got a new
    /// id.
    // Bound: service's pool: its token files | an account each, of this pool and the one before | they go with the next pool
    files: HashMap<String, Arc<ServiceToken>>,
    /// Marks and counts, by account: they live here only (R99).
    // Bound: service's pool: marks and counts | an account each | they go with their account
    kept: HashMap<String, Kept>,
    warned: Warned,
}

/// An account record as this process changed it.
struct Kept {
    /// The record in the pool file that the changes were made on.
    base: Bytes,
    record: Bytes,
}

/// The Kiro accounts of a pool file.
#[derive(Default)]
struct ServicePool {
    accounts: BTreeMap<String, ServiceRecord>,
    /// Sentences about records that can't be accounts.
    left_out: Vec<String>,
}

struct ServiceRecord {
    record: Bytes,
    token: TokenPlace,
}

enum TokenPlace {
    File(Arc<ServiceToken>),
    /// The token record of a credential inside the pool file.
    Inline(Bytes),
    /// Why there is none.
    Nowhere(String),
}

/// A token file that an account names.
struct ServiceToken {
    id: String,
    file: Inner,
    /// The last whole content, and the client beside it: a file that is just being written isn't believed.
    good: Mutex<Option<(Bytes, Option<Registration>)>>,
}

impl ServiceStore {
    /// Reads the file once, so that the status is known when this returns.
    pub(in crate::store) async fn open(path: &Path) -> Result<Self, StoreError> {
        let (path, only) = one_list(path);
        let path = std::path::absolute(&path).map_err(|error| {
            StoreError::new(StoreErrorKind::Config, format!("{}: {}", path.display(), error.kind()))
        })?;
        let root = record::import::service_root(&path, None);
        let store = Self {
            inner: Arc::new(Service {
                path,
                only,
                root,
                status: watch::Sender::new(Status::Connecting(None)),
                desk: Desk::default(),
                tickets: AtomicU64::new(0),
                renewing: Mutex::default(),
                seen: Mutex::default(),
            }),
        };
        store.run(|service| disk::refuse_folder(&service.path)).await?;
        // The status holds an error; the file may come or be repaired (R54).
        let _status = store.run(|service| service.pool().map(|_| ())).await;
        Ok(store)
    }

    pub(in crate::store) fn watch(&self) -> watch::Receiver<Status> {
        self.inner.status.subscribe()
    }

    pub(in crate::store) fn latency(&self) -> &Latency {
        &self.inner.desk.latency
    }

    pub(in crate::store) async fn idle(&self) {
        self.inner.desk.idle().await;
    }

    pub(in crate::store) fn pool_name(&self) -> String {
        self.inner.path.display().to_string()
    }

    pub(in crate::store) async fn load(&self) -> Result<Vec<RawAccount>, StoreError> {
        self.run(Service::load).await
    }

    pub(in crate::store) async fn read_accounts(&self, ids: &[&str]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        self.run(move |service| {
            let pool = service.pool()?;
            let mut seen = service.seen();
            Ok(ids.iter().map(|id| Some(seen.account(id, &pool.accounts.get(id)?.record))).collect())
        })
        .await
    }

    /// In memory: the pool file is the service's (R99).
    pub(in crate::store) async fn compare_and_set_accounts(&self, changes: &[Change]) -> Vec<Result<Cas, StoreError>> {
        let (count, changes) = (changes.len(), changes.to_vec());
        let written = self.run(move |service| {
            let pool = service.pool()?;
            let mut seen = service.seen();
            let one = |change: Change| {
                let Some(account) = pool.accounts.get(&change.id) else { return Ok(Cas::Absent) };
                let current = seen.account(&change.id, &account.record);
                if current != change.old {
                    return Ok(Cas::Conflict(current));
                }
                seen.kept.insert(change.id, Kept { base: account.record.clone(), record: change.new });
                Ok(Cas::Written)
            };
            Ok(changes.into_iter().map(one).collect())
        });
        written.await.unwrap_or_else(|error| vec![Err(error); count])
    }

    pub(in crate::store) async fn read_token(
        &self,
        key: &TokenKey,
        now: Timestamp,
    ) -> Result<Option<Bytes>, StoreError> {
        let key = key.clone();
        self.run(move |service| match service.place_of(&key)? {
            Some(TokenPlace::File(token)) => token.read(now),
            Some(TokenPlace::Inline(record)) => Ok(Some(record)),
            Some(TokenPlace::Nowhere(why)) => Err(broken(why)),
            None => Ok(None),
        })
        .await
    }

    pub(in crate::store) async fn compare_and_set_token(
        &self,
        key: &TokenKey,
        old: &[u8],
        new: &[u8],
    ) -> Result<Cas, StoreError> {
        let owned = key.clone();
        let token = match self.run(move |service| service.place_of(&owned)).await? {
            Some(TokenPlace::File(token)) => token,
            Some(TokenPlace::Inline(_) | TokenPlace::Nowhere(_)) => return Err(self.inner.only_read()),
            None => return Ok(Cas::Absent),
        };
        let change =
            Change { id: token.id.clone(), old: Bytes::copy_from_slice(old), new: Bytes::copy_from_slice(new) };
        let one_at_a_time = Arc::clone(&token.file.changing).lock_owned().await;
        self.run(move |_| {
            let _one_at_a_time = one_at_a_time;
            token.file.compare_and_set_token_file(&change)
        })
        .await
    }

    /// One machine needs no shared counter.
    pub(in crate::store) fn reserve_tickets(&self, count: u64) -> Tickets {
        let first = self.inner.tickets.fetch_add(count, Ordering::Relaxed);
        first..first.wrapping_add(count)
    }

    /// The key of the service's own configuration, beside its pool file (R57, R107).
    pub(in crate::store) async fn client_key(&self) -> Result<Option<Secret>, StoreError> {
        self.run(|service| {
            let path = service.path.with_file_name("config.json");
            let Some(text) = disk::read(&path)? else { return Ok(None) };
            if Object::parse(&text, FILE).is_err() {
                let what = serde_json::from_slice::<serde::de::IgnoredAny>(&text).err();
                let what = what.map_or_else(|| "it is no JSON object".to_owned(), |error| error.to_string());
                return Err(broken(format!("{}: {what}", path.display())));
            }
            Ok(record::client_key(&text))
        })
        .await
    }

    pub(in crate::store) async fn lock(&self, key: &TokenKey) -> Result<Option<Lock>, StoreError> {
        let key = key.clone();
        self.run(move |service| match service.place_of(&key)? {
            Some(TokenPlace::File(token)) => {
                let target = disk::target(&token.file.path)?;
                let file = disk::try_lock_of(&target, &token.id)?;
                // A token that couldn't be saved isn't asked for.
                disk::can_replace(&target)?;
                Ok(file.map(|file| {
                    let under_way = token.file.refreshing.begin(&token.id);
                    Lock { key, held: LockHandle::File(file, under_way) }
                }))
            }
            Some(TokenPlace::Inline(_) | TokenPlace::Nowhere(_)) => Err(service.only_read()),
            None => Err(service.refused()),
        })
        .await
    }

    pub(in crate::store) async fn id_secret(&self, fresh: &str) -> Result<Secret, StoreError> {
        let fresh = fresh.to_owned();
        self.run(move |service| id_secret::beside(&service.path, fresh)).await
    }

    pub(in crate::store) fn add_accounts(
        &self,
        _: &[NewAccount],
    ) -> Result<Vec<Result<Added, StoreError>>, StoreError> {
        Err(self.inner.refused())
    }

    pub(in crate::store) fn remove_account(&self, _: &str) -> Result<bool, StoreError> {
        Err(self.inner.refused())
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Service) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.desk.run(&self.inner, work).await
    }
}

impl Service {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool as it is now; parsed again only when the file changed.
    fn pool(&self) -> Result<Arc<ServicePool>, StoreError> {
        let looked = (|| {
            let target = disk::target(&self.path)?;
            if let Some(pool) = self.known(disk::look(&target)?.as_ref()) {
                return Ok(pool);
            }
            let _renewing = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
            patiently(|| {
                // The stamp is taken before the read: a change in between shows at the next read.
                let found = disk::look(&target)?;
                if let Some(pool) = self.known(found.as_ref()) {
                    return Ok(pool);
                }
                let missing = || broken(format!("{}: not found", self.path.display()));
                let (found, text) = found.zip(disk::read(&target)?).ok_or_else(missing)?;
                let pool = Arc::new(self.parse(text.into())?);
                self.take_in(found.stamp, &pool);
                Ok(pool)
            })
        })();
        let status = match &looked {
            Ok(_) => Status::Connected,
            Err(error) if matches!(&*self.status.borrow(), Status::Connecting(_)) => {
                Status::Connecting(Some(error.clone()))
            }
            Err(error) => Status::Away(error.clone()),
        };
        self.status.send_if_modified(|before| {
            let changed = *before != status;
            *before = status;
            changed
        });
        looked
    }

    fn known(&self, found: Option<&disk::FoundFile>) -> Option<Arc<ServicePool>> {
        let seen = self.seen();
        let (stamp, pool) = seen.pool.as_ref()?;
        (*stamp == found?.stamp).then(|| Arc::clone(pool))
    }

    fn parse(&self, text: Bytes) -> Result<ServicePool, StoreError> {
        let of_this = |problem: String| broken(format!("{} {problem}", self.path.display()));
        let json = without_mark(&text);
        let file = Object::parse(json, FILE).map_err(|error| of_this(place(json, error)))?;
        let mut pool = ServicePool::default();
        let is_read = |name: &str| self.only.as_deref().map_or_else(|| is_service_list(name), |only| name == only);
        let lists = file.members().filter(|(name, _)| is_read(name));
        for (name, list) in lists {
            for (at, record) in list.elements().unwrap_or_default().into_iter().enumerate() {
                let raw = record.raw().as_bytes();
                let uuid = Object::parse(raw, RECORD).ok().and_then(|record| record.last("uuid")?.string());
                let Some(id) = uuid.filter(|id| is_account_id(id.as_bytes())) else {
                    pool.left_out.push(format!("{name}: account {} has no uuid and is left out", at + 1));
                    continue;
                };
                if pool.accounts.contains_key(&*id) {
                    pool.left_out.push(format!("{name}: account {} is there twice; the first one counts", short(&id)));
                    continue;
                }
                let token = match place_of_record(raw) {
                    Place::File(name) => {
                        let path = self.root.join(name.strip_prefix("./").unwrap_or(&name));
                        TokenPlace::File(self.token_at(path))
                    }
                    Place::Inline(json) => {
                        inline(&json).map_or_else(TokenPlace::Nowhere, |record| TokenPlace::Inline(record.into()))
                    }
                    Place::Nowhere(why) => TokenPlace::Nowhere(why),
                };
                pool.accounts.insert(id.into_owned(), ServiceRecord { record: text.slice_ref(raw), token });
            }
        }
        Ok(pool)
    }

    /// The token file at a path, with what is known of it.
    fn token_at(&self, path: PathBuf) -> Arc<ServiceToken> {
        let id = id_of_path(&path.to_string_lossy());
        let known = self.seen().files.get(&id).cloned();
        known.unwrap_or_else(|| {
            let file = Inner::new(path, Owner::Service);
            Arc::new(ServiceToken { id, file, good: Mutex::default() })
        })
    }

    fn take_in(&self, stamp: Stamp, pool: &Arc<ServicePool>) {
        let mut seen = self.seen();
        let before = seen.pool.replace((stamp, Arc::clone(pool)));
        let pools = before.iter().map(|(_, pool)| pool).chain([pool]);
        let tokens = pools.flat_map(|pool| pool.accounts.values());
        let tokens = tokens.filter_map(|account| match &account.token {
            TokenPlace::File(token) => Some((token.id.clone(), Arc::clone(token))),
            TokenPlace::Inline(_) | TokenPlace::Nowhere(_) => None,
        });
        seen.files = tokens.collect();
        seen.kept.retain(|id, _| pool.accounts.contains_key(id));
        for sentence in &pool.left_out {
            seen.warn_once(sentence);
        }
    }

    fn load(&self) -> Result<Vec<RawAccount>, StoreError> {
        let pool = self.pool()?;
        let one = |(id, account): (&String, &ServiceRecord)| {
            let token = match &account.token {
                TokenPlace::File(token) => {
                    let missing = || format!("{} not found", token.shown());
                    let read = token.believed().map_err(|error| error.detail);
                    read.and_then(|record| Ok(Some((TokenKey::of(&token.id), record.ok_or_else(missing)?))))
                }
                TokenPlace::Inline(record) => Ok(Some((TokenKey::of(id), record.clone()))),
                TokenPlace::Nowhere(why) => Err(why.clone()),
            };
            let mut seen = self.seen();
            let token = token.unwrap_or_else(|why| {
                seen.warn_once(&format!("account {}: {why}", short(id)));
                None
            });
            RawAccount { account: seen.account(id, &account.record), id: id.clone(), token }
        };
        Ok(pool.accounts.iter().map(one).collect())
    }

    /// Where the token of a key is. An account without a token record is asked for by its own id.
    fn place_of(&self, key: &TokenKey) -> Result<Option<TokenPlace>, StoreError> {
        let pool = self.pool()?;
        if let Some(token) = self.seen().files.get(key.id()) {
            return Ok(Some(TokenPlace::File(Arc::clone(token))));
        }
        Ok(pool.accounts.get(key.id()).map(|account| account.token.clone()))
    }

    fn only_read(&self) -> StoreError {
        let detail = format!(
            "{} holds this account's token itself and is never written: a token file (KIRO_OAUTH_CREDS_FILE_PATH) could be",
            self.path.display()
        );
        StoreError { read_only: true, ..StoreError::away(detail) }
    }

    fn refused(&self) -> StoreError {
        let detail = format!(
            "{} is the Node.js service's and is never written: add, remove and change accounts in that service",
            self.path.display()
        );
        StoreError::new(StoreErrorKind::Config, detail)
    }
}

impl Seen {
    /// The account record of the pool file, with what this process noted on it.
    fn account(&mut self, id: &str, record: &Bytes) -> Bytes {
        let Some(kept) = self.kept.get_mut(id) else { return record.clone() };
        if kept.base != *record {
            kept.record = rebased(kept, record).into();
            kept.base = record.clone();
        }
        kept.record.clone()
    }

    fn warn_once(&mut self, message: &str) {
        if self.warned.is_new(message) {
            tracing::warn!("{message}");
        }
    }
}

impl ServiceToken {
    /// The token record of a snapshot: of the file, or of its last whole content while it can't be read as one.
    fn believed(&self) -> Result<Option<Bytes>, StoreError> {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match (self.text(), &*good) {
            (Ok(None), _) => return Ok(None),
            (Ok(Some(text)), _) => text,
            (Err(_), Some((text, _))) => text.clone(),
            (Err(error), None) => return Err(error),
        };
        let registration = match &*good {
            Some((known, registration)) if *known == text => registration.clone(),
            _ => match self.file.registration(&text, None) {
                Ok(registration) => {
                    *good = Some((text.clone(), registration.clone()));
                    registration
                }
                Err(error) => {
                    // Without its client the account serves until its access token expires (R67).
                    self.file.warn_once(&self.plain(error).to_string());
                    None
                }
            },
        };
        self.file.token_record(&text, registration.as_ref()).map(Some)
    }

    /// The token record as it is now, with the client beside it.
    fn read(&self, now: Timestamp) -> Result<Option<Bytes>, StoreError> {
        let read = patiently(|| {
            let Some(text) = self.text()? else { return Ok(None) };
            let registration = self.file.registration(&text, Some(now))?;
            self.file.token_record(&text, registration.as_ref()).map(Some)
        });
        read.map_err(|error| self.plain(error))
    }

    fn text(&self) -> Result<Option<Bytes>, StoreError> {
        match self.file.content() {
            Ok(Content::Absent) => Ok(None),
            Ok(Content::Token(text)) => Ok(Some(text)),
            Err(error) if error.kind() != StoreErrorKind::Config => Err(self.plain(error)),
            // JSON of another kind.
            Ok(Content::Pool(_)) | Err(_) => {
                let detail = format!("{} holds no token: sign in again in the Node.js service", self.shown());
                Err(broken(detail))
            }
        }
    }

    /// The path, unless it may hold a mail address (R6).
    fn shown(&self) -> String {
        let path = self.file.path.display().to_string();
        if path.contains('@') { "its token file".to_owned() } else { path }
    }

    fn plain(&self, error: StoreError) -> StoreError {
        let path = self.file.path.display().to_string();
        StoreError { detail: error.detail.replace(&path, &self.shown()), ..error }
    }
}

impl Clone for TokenPlace {
    fn clone(&self) -> Self {
        match self {
            Self::File(token) => Self::File(Arc::clone(token)),
            Self::Inline(record) => Self::Inline(record.clone()),
            Self::Nowhere(why) => Self::Nowhere(why.clone()),
        }
    }
}

/// `PATH#claude-kiro-oauth-team`: that list alone, for a host whose pools stay apart (N80).
fn one_list(path: &Path) -> (PathBuf, Option<String>) {
    match path.to_str().and_then(|text| text.rsplit_once('#')) {
        Some((file, name)) if is_service_list(name) && !name.contains(['/', '\\']) => {
            (file.into(), Some(name.to_owned()))
        }
        _ => (path.to_owned(), None),
    }
}

/// Reads again while the content is broken: another program may be writing it. Blocks.
fn patiently<T>(read: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    for _ in 1..LOOKS {
        match read() {
            Err(error) if error.kind() == StoreErrorKind::Broken => std::thread::sleep(BETWEEN_LOOKS),
            read => return read,
        }
    }
    read()
}

/// Our changes on a record that the service rewrote: where both changed a member, or a part of one mark, the service's
/// counts (R99).
fn rebased(kept: &Kept, record: &Bytes) -> Vec<u8> {
    let objects = [&kept.base, &kept.record, record].map(|record| Object::parse(record, RECORD));
    let [Ok(base), Ok(ours), Ok(theirs)] = objects else { return record.to_vec() };
    let differs = |a: &Object<'_>, b: &Object<'_>, name: &str| {
        a.last(name).map(record::Json::raw) != b.last(name).map(record::Json::raw)
    };
    let is_marked_anew = MARK.iter().any(|name| differs(&base, &theirs, name));
    let names: HashSet<_> = ours.members().map(|(name, _)| name).collect();
    let is_kept = |name: &str| {
        differs(&base, &ours, name) && !differs(&base, &theirs, name) && !(is_marked_anew && MARK.contains(&name))
    };
    let mut edits: Vec<_> = names
        .iter()
        .filter(|name| is_kept(name))
        .filter_map(|name| Some((&**name, ours.last(name)?.raw().to_owned())))
        .collect();
    edits.sort();
    if edits.is_empty() { record.to_vec() } else { theirs.with(edits) }
}

impl fmt::Debug for ServiceStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceStore").field("path", &self.inner.path).finish_non_exhaustive()
    }
}
