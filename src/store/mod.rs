//! Accounts and tokens, where several processes share them: Redis, or one file (contract/redis.md).
//!
//! [`Store`] moves and compares bytes. [`crate::proto::record`] reads records; [`writer::Writer`] decides what is
//! written and when. No call here stands on a request's path (R5), except in a blocking refresh (R44).
//!
//! Every call is cancel-safe in this sense: dropping its future leaves the store as if the call had or had not run,
//! never half done.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::proto::record::{self, Entry, Unusable};
use crate::secret::Secret;

mod changes;
pub mod client_key;
mod error;
pub mod file;
pub(crate) mod journal;
mod lock;
mod records;
pub mod redis;
mod simulated;
mod status;
pub mod writer;

use changes::Changes;
pub use error::{StoreError, StoreErrorKind};
pub use file::{Imported, ServiceStore, import, lone_registration};
pub use journal::JournalSurvey;
pub use lock::Lock;
use lock::LockHandle;
pub use records::{Added, Cas, Change, KeyFields, KnownLogins, NewAccount, RawAccount, Tickets};
pub use redis::{DEFAULT_KEY_PREFIX, RedisConfig};
pub use status::{Inspection, Latency, Status};
pub use writer::{Pending, Writer};

pub use crate::config::RedisAddress;
pub use crate::policy::unsaved::{OnRecord, Saved, UnsavedToken};
pub use crate::proto::record::TokenKey;

/// Reads the wall clock. Passed in, so that tests own the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Which store, and how to reach it.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// `KIRO_STORE=redis`, the default.
    Redis(RedisConfig),
    /// `KIRO_STORE=file:PATH` (R63, R67).
    File(PathBuf),
    /// `KIRO_STORE=aiclient:PATH` (R95).
    Aiclient(PathBuf),
    /// One of these under `KIRO_UPSTREAM=simulator`: only read (R110).
    Simulated(Box<Self>),
}

/// A record that a person edits.
#[derive(Clone, Copy)]
enum Edited<'a> {
    Account(&'a str),
    Token(&'a TokenKey),
}

/// Accounts, tokens, locks and the counter, in Redis or in a file. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Store {
    /// Shared by any number of processes and machines.
    Redis(redis::RedisStore),
    /// Shared by processes of one machine.
    File(file::FileStore),
    /// The pool file and the token files of a Node.js service on this machine.
    Service(ServiceStore),
    /// Any of these under `KIRO_UPSTREAM=simulator`: it is read, and changes stay in memory (R110).
    Simulated(SimulatedStore),
}

/// A store that is only read, and what has changed. Cheap to clone.
#[derive(Clone)]
pub struct SimulatedStore {
    below: Box<Store>,
    changes: Arc<Mutex<Changes>>,
    tickets: Arc<AtomicU64>,
}

/// The same call to either store.
macro_rules! either {
    ($store:expr, $either:ident => $call:expr) => {
        match $store {
            Self::Redis($either) => $call,
            Self::File($either) => $call,
            Self::Service($either) => $call,
            Self::Simulated($either) => $call,
        }
    };
}

impl Store {
    /// Opens the store and returns at once, reached or not: [`Store::watch`] shows which (R54). Reconnects until the
    /// last clone is dropped. Needs a tokio runtime. Fails only with [`StoreErrorKind::Config`].
    pub async fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        match config {
            StoreConfig::Redis(config) => redis::RedisStore::connect(config).map(Self::Redis),
            StoreConfig::File(path) => file::FileStore::open(path).await.map(Self::File),
            StoreConfig::Aiclient(path) => ServiceStore::open(path).await.map(Self::Service),
            StoreConfig::Simulated(below) => {
                Box::pin(Self::connect(below)).await.map(|below| Self::Simulated(SimulatedStore::over(below)))
            }
        }
    }

    /// Whether the store can be used now.
    pub fn status(&self) -> Status {
        self.watch().borrow().clone()
    }

    /// Shows every change of [`Store::status`].
    pub fn watch(&self) -> watch::Receiver<Status> {
        either!(self, store => store.watch())
    }

    /// All accounts with their token records, sorted by the bytes of the id (R13, R14). A key without a proper id is
    /// left out.
    ///
    /// Empty means that the pool is empty or missing: the caller decides whether to believe it (R55).
    pub async fn load(&self) -> Result<Vec<RawAccount>, StoreError> {
        either!(self, store => store.load().await)
    }

    /// One account record as it is now.
    pub async fn read_account(&self, id: &str) -> Result<Option<Bytes>, StoreError> {
        let mut found = self.read_accounts(&[id]).await?;
        Ok(found.pop().flatten())
    }

    /// Several account records as they are now, in the order asked for.
    pub async fn read_accounts(&self, ids: &[&str]) -> Result<Vec<Option<Bytes>>, StoreError> {
        either!(self, store => store.read_accounts(ids).await)
    }

    /// Replaces an account record if it still has the bytes `old` (R21).
    pub async fn compare_and_set_account(&self, id: &str, old: &[u8], new: &[u8]) -> Result<Cas, StoreError> {
        let change = Change { id: id.to_owned(), old: Bytes::copy_from_slice(old), new: Bytes::copy_from_slice(new) };
        let mut results = self.compare_and_set_accounts(&[change]).await;
        results.pop().unwrap_or_else(|| Err(StoreError::new(StoreErrorKind::Broken, "no reply")))
    }

    /// Several compare-and-sets at once, each on its own, answered in order. At most 64 scripts a pipeline (R31).
    pub async fn compare_and_set_accounts(&self, changes: &[Change]) -> Vec<Result<Cas, StoreError>> {
        either!(self, store => store.compare_and_set_accounts(changes).await)
    }

    /// One token record as it is now (R40 step 3). `now` decides whether the client registration beside a Kiro token
    /// file has expired, which is [`StoreErrorKind::Registration`] (R67).
    pub async fn read_token(&self, key: &TokenKey, now: Timestamp) -> Result<Option<Bytes>, StoreError> {
        match self {
            Self::Redis(store) => store.read_token(key).await,
            Self::File(store) => store.read_token(key, now).await,
            Self::Service(store) => store.read_token(key, now).await,
            Self::Simulated(store) => store.read_token(key, now).await,
        }
    }

    /// Replaces a token record if it still has the bytes `old` (R21).
    pub async fn compare_and_set_token(&self, key: &TokenKey, old: &[u8], new: &[u8]) -> Result<Cas, StoreError> {
        either!(self, store => store.compare_and_set_token(key, old, new).await)
    }

    /// Saves a refreshed token (R40 step 6, R22): `entries` on `base`, or on the record as somebody else changed it
    /// meanwhile, or not at all when somebody else rotated the refresh token.
    ///
    /// On an error the token is unsaved: [`Writer::save_token`] keeps it.
    pub async fn save_token(&self, unsaved: &UnsavedToken) -> Result<Saved, StoreError> {
        let mut base = unsaved.base.clone();
        for tried in 0..MAX_TRIES {
            if tried > 0 {
                tokio::time::sleep(conflict_pause()).await;
            }
            let patched = match unsaved.on(base.clone()) {
                OnRecord::Write(patched) => patched,
                OnRecord::Settled(saved) => return Ok(saved),
            };
            match self.compare_and_set_token(&unsaved.key, &base, &patched).await? {
                Cas::Written => return Ok(Saved::Written(patched)),
                Cas::Absent => return Ok(Saved::Absent),
                Cas::Conflict(current) => base = current,
            }
        }
        Err(StoreError::away("record changes faster than it can be written"))
    }

    /// Reserves `count` selection tickets (R36). [`StoreErrorKind::Counter`] when the counter is unusable.
    pub async fn reserve_tickets(&self, count: u64) -> Result<Tickets, StoreError> {
        match self {
            Self::Redis(store) => store.reserve_tickets(count).await,
            Self::File(store) => Ok(store.reserve_tickets(count)),
            Self::Service(store) => Ok(store.reserve_tickets(count)),
            Self::Simulated(store) => Ok(store.reserve_tickets(count)),
        }
    }

    /// The client key in the store's `config` (R57); `None` without one. The caller doesn't forget a
    /// known key because of a `None`.
    pub async fn client_key(&self) -> Result<Option<Secret>, StoreError> {
        either!(self, store => store.client_key().await)
    }

    /// The hash of named client keys (R109); always empty in a file store, whose keys lie in `KIRO_API_KEYS_FILE`.
    pub async fn client_keys(&self) -> Result<KeyFields, StoreError> {
        match self {
            Self::Redis(store) => store.client_keys().await,
            Self::Simulated(store) => Box::pin(store.below().client_keys()).await,
            Self::File(_) | Self::Service(_) => Ok(Vec::new()),
        }
    }

    /// Takes the refresh lock for 30 s (R40 step 1); `None` when somebody else has it.
    pub async fn lock(&self, key: &TokenKey, now: Timestamp) -> Result<Option<Lock>, StoreError> {
        match self {
            Self::Redis(store) => store.lock(key, now).await,
            Self::File(store) => store.lock(key).await,
            Self::Service(store) => store.lock(key).await,
            Self::Simulated(_) => Ok(Some(SimulatedStore::lock(key))),
        }
    }

    /// Gives the refresh lock back, if it is still ours (R40 step 7).
    pub async fn unlock(&self, lock: Lock) -> Result<(), StoreError> {
        match (self, lock.held) {
            (Self::Redis(store), LockHandle::Redis(value)) => store.unlock(&lock.key, &value).await,
            _ => Ok(()),
        }
    }

    /// The account that another process noted for a conversation (R102), under its key of 32 hex digits. Always none in
    /// the file store.
    pub async fn home(&self, conversation: &str) -> Result<Option<String>, StoreError> {
        match self {
            Self::Redis(store) => store.home(conversation).await,
            Self::File(_) | Self::Service(_) | Self::Simulated(_) => Ok(None),
        }
    }

    /// Notes the account of a conversation for an hour (R102).
    pub async fn keep_home(&self, conversation: &str, account: &str) -> Result<(), StoreError> {
        match self {
            Self::Redis(store) => store.keep_home(conversation, account).await,
            Self::File(_) | Self::Service(_) | Self::Simulated(_) => Ok(()),
        }
    }

    /// The secret of derived ids that all processes of this store share; without one, `fresh` becomes it (R103).
    pub async fn id_secret(&self, fresh: &str) -> Result<Secret, StoreError> {
        either!(self, store => store.id_secret(fresh).await)
    }

    /// Adds an account, unless one with its refresh token or API key exists (R62).
    pub async fn add_account(&self, new: &NewAccount) -> Result<Added, StoreError> {
        let mut added = self.add_accounts(std::slice::from_ref(new)).await;
        added.pop().unwrap_or_else(|| Err(StoreError::new(StoreErrorKind::Broken, "no answer")))
    }

    /// Adds many accounts: the store is read once for all of them, and a file is written once. Each has its own outcome.
    pub async fn add_accounts(&self, new: &[NewAccount]) -> Vec<Result<Added, StoreError>> {
        let all = match self {
            Self::Redis(store) => store.add_accounts(new).await,
            Self::File(store) => store.add_accounts(new).await,
            Self::Service(store) => store.add_accounts(new),
            Self::Simulated(_) => SimulatedStore::add_accounts(new),
        };
        all.unwrap_or_else(|error| new.iter().map(|_| Err(error.clone())).collect())
    }

    /// Removes an account, its token record and the index of its refresh token (R62). False when it was not there.
    pub async fn remove_account(&self, id: &str) -> Result<bool, StoreError> {
        match self {
            Self::Redis(store) => store.remove_account(id).await,
            Self::File(store) => store.remove_account(id).await,
            Self::Service(store) => store.remove_account(id),
            Self::Simulated(_) => Err(SimulatedStore::refusal()),
        }
    }

    /// Patches an account record for a person at the command line: read, patch, compare-and-set (R22).
    /// False when the account is not there.
    pub async fn patch_account(&self, id: &str, entries: &[Entry]) -> Result<bool, StoreError> {
        let Some(base) = self.read_account(id).await? else { return Ok(false) };
        self.edit(Edited::Account(id), base, |base| record::patch(base, entries)).await
    }

    /// Edits a token record for a person, from the bytes that were read: compare-and-set, and again on the record as
    /// somebody else changed it meanwhile (R21). An edit without a result changes nothing. False when the record is gone.
    ///
    /// # Errors
    /// The store can't be used, or the record can't be edited.
    pub async fn edit_token(
        &self,
        key: &TokenKey,
        base: Bytes,
        edit: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, Unusable>,
    ) -> Result<bool, StoreError> {
        self.edit(Edited::Token(key), base, edit).await
    }

    async fn edit(
        &self,
        record: Edited<'_>,
        mut base: Bytes,
        edit: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, Unusable>,
    ) -> Result<bool, StoreError> {
        if matches!(self, Self::Simulated(_)) {
            return Err(SimulatedStore::refusal());
        }
        let what = match record {
            Edited::Account(_) => "account",
            Edited::Token(_) => "token",
        };
        for _ in 0..MAX_TRIES {
            let edited = edit(&base)
                .map_err(|error| StoreError::new(StoreErrorKind::Broken, format!("{what} record {error}")))?;
            let Some(edited) = edited else { return Ok(true) };
            let written = match record {
                Edited::Account(id) => self.compare_and_set_account(id, &base, &edited).await?,
                Edited::Token(key) => self.compare_and_set_token(key, &base, &edited).await?,
            };
            match written {
                Cas::Written => return Ok(true),
                Cas::Absent => return Ok(false),
                Cas::Conflict(current) => base = current,
            }
            tokio::time::sleep(conflict_pause()).await;
        }
        Err(StoreError::away("record changes faster than it can be written"))
    }

    /// The full name of the pool, a Redis key or a path: named when the pool is empty (R56).
    pub fn pool_name(&self) -> String {
        match self {
            Self::Redis(store) => store.pool_key(),
            Self::File(store) => store.pool_name(),
            Self::Service(store) => store.pool_name(),
            Self::Simulated(store) => store.below().pool_name(),
        }
    }

    /// The pool's key under the default prefix, when ours is missing and that one exists: the Node.js service takes its
    /// prefix only from its own configuration file (R1). For start-up and `doctor`.
    pub async fn pool_under_default_prefix(&self) -> Result<Option<String>, StoreError> {
        match self {
            Self::Redis(store) => store.pool_under_default_prefix().await,
            Self::Simulated(store) => Box::pin(store.below().pool_under_default_prefix()).await,
            Self::File(_) | Self::Service(_) => Ok(None),
        }
    }

    /// Whole ids of the token records that no account uses, sorted: somebody wrote their accounts out of the pool (R106).
    pub async fn orphans(&self) -> Result<Vec<String>, StoreError> {
        let ids = match self {
            Self::Redis(store) => store.token_ids().await?,
            Self::File(store) => store.token_ids().await?,
            // Token files that no account names are the service's matter.
            Self::Service(_) => return Ok(Vec::new()),
            Self::Simulated(store) => return Box::pin(store.below().orphans()).await,
        };
        // Read afterwards: an account that is added meanwhile has its token first.
        let mut used = HashSet::new();
        for account in self.load().await? {
            used.extend(account.token.map(|(key, _)| key.id().to_owned()));
            used.insert(account.id);
        }
        let mut orphans: Vec<_> = ids.into_iter().filter(|id| !used.contains(id)).collect();
        orphans.sort();
        Ok(orphans)
    }

    /// Whether a program that removes an account on purpose removes its token record too (R106).
    pub fn removes_tokens(&self) -> bool {
        match self {
            Self::Redis(_) | Self::File(_) => true,
            Self::Service(_) => false,
            Self::Simulated(store) => store.below().removes_tokens(),
        }
    }

    /// Whether `pool-types` is not empty and lacks this pool, which hides it from the Node.js service. For
    /// `doctor`; needs the command line's rights (R3).
    pub async fn is_missing_in_pool_types(&self) -> Result<bool, StoreError> {
        match self {
            Self::Redis(store) => store.is_missing_in_pool_types().await,
            Self::Simulated(store) => Box::pin(store.below().is_missing_in_pool_types()).await,
            Self::File(_) | Self::Service(_) => Ok(false),
        }
    }

    /// The server's description and our rights, for `doctor`; none for the file store.
    pub async fn inspect(&self) -> Result<Option<Inspection>, StoreError> {
        match self {
            Self::Redis(store) => store.inspect().await.map(Some),
            Self::Simulated(store) => Box::pin(store.below().inspect()).await,
            Self::File(_) | Self::Service(_) => Ok(None),
        }
    }

    /// Resolves when this store touches no file any more: calls whose callers are gone run to their end (R63).
    pub async fn idle(&self) {
        match self {
            Self::Redis(_) => {}
            Self::File(store) => store.idle().await,
            Self::Service(store) => store.idle().await,
            Self::Simulated(store) => store.idle().await,
        }
    }

    /// How long the store's commands took, for the metrics.
    pub fn latency(&self) -> &Latency {
        either!(self, store => store.latency())
    }
}

/// Tries of a compare-and-set before it is postponed (R22).
pub(crate) const MAX_TRIES: usize = 8;

/// 1–20 ms (R22).
pub(crate) fn conflict_pause() -> Duration {
    Duration::from_micros(fastrand::u64(1_000..=20_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acceptance case 48: no accidental output shows a secret.
    #[test]
    fn records_print_as_their_size_case_48() {
        let record = Bytes::from_static(br#"{"accessToken":"hush"}"#);
        let key = TokenKey::of("a1");
        let raw = RawAccount { id: "a1".into(), account: record.clone(), token: Some((key.clone(), record.clone())) };
        let change = Change { id: "a1".into(), old: record.clone(), new: record.clone() };
        let new = NewAccount {
            id: "a1".into(),
            custom_name: None,
            added_at: Timestamp::UNIX_EPOCH,
            token: record.to_vec(),
            members: Vec::new(),
        };
        let entries = vec![Entry::AccessToken(Secret::new("hush"))];
        let unsaved = UnsavedToken { key, base: record.clone(), replaces: Vec::new(), entries };
        let replies = (Cas::Conflict(record.clone()), Saved::Written(record.clone()), Saved::Rotated(record));
        let shown = format!("{raw:?} {change:?} {new:?} {unsaved:?} {replies:?}");
        assert!(!shown.contains("hush") && shown.contains("22 bytes"), "{shown}");
    }
}
