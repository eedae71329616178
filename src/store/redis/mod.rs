//! The shared store in Redis (R1–R6, R21): Redis ≥ 6.0 or Valkey ≥ 7.2, alone, behind Sentinels, or as a Cluster.
//!
//! # URL forms
//! - `redis://[user:password@]host[:port][/db]`, `rediss://…` with TLS, `redis+unix:///path[?db=n&user=…&pass=…]`
//! - `redis+sentinel://[user:password@]host:port,host:port/service[/db]`: user, password and db are Redis'; the
//!   Sentinels' own are `?sentinel_username=…&sentinel_password=…`. `rediss+sentinel://` uses TLS for both.
//! - `redis+cluster://[user:password@]host:port,host:port`, `rediss+cluster://…`: any nodes of the cluster.
//! - With TLS: `?cacert=FILE` for a private authority, `cert=FILE&key=FILE` for a client certificate, all PEM.
//!   Without `cacert`, the usual public authorities count.
//! - `?protocol=resp2` for a proxy that doesn't know HELLO.
//!
//! # Rights
//! The gateway needs HGETALL, HGET, HSET, GET, SET, DEL, INCRBY, EVALSHA, EVAL and SCRIPT LOAD on its prefix, beside
//! AUTH, HELLO, SELECT, PING and CLIENT (R3); with Cluster also CLUSTER SLOTS, with Sentinel `SENTINEL
//! get-master-addr-by-name` there. The command line adds HSETNX, HDEL, SADD, SISMEMBER, SCAN.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{FuturesOrdered, StreamExt};
use jiff::Timestamp;
use redis::{Cmd, Value};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Added, Cas, Change, Inspection, KeyFields, KnownLogins, Latency, Lock, LockHandle, NewAccount, RawAccount, Status,
    StoreError, StoreErrorKind, Tickets, TokenKey,
};
use crate::config::RedisAddress;
use crate::proto::record::{self, Account, Fingerprint, Token, is_account_id, token_id_of_path};
use crate::secret::Secret;

mod address;
mod conversation;
mod error;
mod link;

use address::{Address, COMMAND_TIMEOUT};
use error::{classify, is_no_script, is_wrong_type, no_answer};
use link::{Links, Live};

/// Default of `REDIS_KEY_PREFIX`.
pub const DEFAULT_KEY_PREFIX: &str = "aiclient:";
/// Seconds after which a lock frees itself (R40).
const LOCK_SECONDS: u64 = 30;
/// Scripts in one pipeline (R31).
const SCRIPTS_A_PIPELINE: usize = 64;
/// Token records that are listed; a pool has a tenth of it at most.
const MOST_TOKEN_IDS: usize = 100_000;
/// Commands in flight at once without a pipeline: in a Cluster each key has its own node.
const CLUSTER_CONCURRENCY: usize = 64;
/// A late reply still counts when it comes within this time after the server is back.
const LATE_REPLY_GRACE: Duration = Duration::from_millis(250);
const PROVIDER: &str = "claude-kiro-oauth";

/// `REDIS_*` and `KIRO_REDIS_POOL_SIZE` (R1, R2).
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Where Redis is.
    pub server: RedisAddress,
    /// Put in front of every key. Default [`DEFAULT_KEY_PREFIX`].
    pub key_prefix: String,
    /// Multiplexed connections, at least 1. Default 4.
    pub connections: usize,
}

/// Accounts and tokens in Redis. Cheap to clone; the connections close with the last clone.
#[derive(Clone)]
pub struct RedisStore {
    inner: Arc<Inner>,
}

struct Inner {
    links: Arc<Links>,
    prefix: String,
    account: Script,
    token: Script,
    unlock: Script,
    latency: Latency,
    /// The last value of each key with which a lock was asked for or given back without a reply: such a lock belongs to
    /// nobody.
    // Bound: locks whose reply was lost | a token key each | it goes with the key's next lock
    unheard: Mutex<HashMap<TokenKey, String>>,
    /// Number of hash fields that aren't ids, in the last snapshot: a warning each time it changes (R13).
    strange_ids: AtomicUsize,
    _stop: DropGuard,
}

struct Script {
    code: &'static str,
    sha: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, sha: redis::Script::new(code).get_hash().to_owned() }
    }

    /// `command` is EVALSHA with the script's name or EVAL with its text.
    fn call(&self, command: &str, key: &str, arguments: &[&[u8]]) -> Cmd {
        let mut cmd = redis::cmd(command);
        cmd.arg(if command == "EVAL" { self.code } else { &self.sha }).arg(1).arg(key);
        for argument in arguments {
            cmd.arg(*argument);
        }
        cmd
    }
}

impl RedisStore {
    pub(super) fn connect(config: &RedisConfig) -> Result<Self, StoreError> {
        let address = Address::parse(&config.server)?;
        let stop = CancellationToken::new();
        let prefix = config.key_prefix.clone();
        let (probe, pool) = (format!("{prefix}token-lock:{PROVIDER}:"), format!("{prefix}pools:{PROVIDER}"));
        let links = Links::start(address, config.connections, probe, pool, &stop);
        Ok(Self {
            inner: Arc::new(Inner {
                links,
                prefix,
                account: Script::new(include_str!("account.lua")),
                token: Script::new(include_str!("token.lua")),
                unlock: Script::new(include_str!("unlock.lua")),
                latency: Latency::default(),
                unheard: Mutex::default(),
                strange_ids: AtomicUsize::new(0),
                _stop: stop.drop_guard(),
            }),
        })
    }

    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.inner.links.watch()
    }

    pub(super) fn latency(&self) -> &Latency {
        &self.inner.latency
    }

    pub(super) async fn load(&self) -> Result<Vec<RawAccount>, StoreError> {
        let mut accounts = self.pool().await?;
        let keys: Vec<TokenKey> = accounts.iter().map(|account| TokenKey::of(&account.id)).collect();
        for ((account, key), token) in accounts.iter_mut().zip(&keys).zip(self.tokens(&keys).await?) {
            account.token = token.map(|token| (key.clone(), token));
        }
        self.adopt_renamed(&mut accounts).await?;
        Ok(accounts)
    }

    pub(super) async fn read_accounts(&self, ids: &[&str]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let pool = self.pool_key();
        let reads = ids.iter().map(|id| command("HGET", &[pool.as_bytes(), id.as_bytes()])).collect();
        self.many(reads, Patience::Command).await.into_iter().map(|value| bytes(value?)).collect()
    }

    pub(super) async fn compare_and_set_accounts(&self, changes: &[Change]) -> Vec<Result<Cas, StoreError>> {
        let pool = &self.pool_key();
        let chunks = changes.chunks(SCRIPTS_A_PIPELINE).map(|chunk| {
            let calls = chunk.iter().map(move |change| {
                let arguments = [change.id.as_bytes(), &change.old[..], &change.new[..]];
                (pool.as_str(), arguments)
            });
            self.call(&self.inner.account, calls, Patience::Reply)
        });
        let replies = join_all(chunks).await.into_iter().flatten();
        replies.map(|reply| reply.and_then(cas)).collect()
    }

    pub(super) async fn read_token(&self, key: &TokenKey) -> Result<Option<Bytes>, StoreError> {
        let name = self.token_key(key);
        self.one(command("GET", &[name.as_bytes()])).await.and_then(bytes)
    }

    pub(super) async fn compare_and_set_token(
        &self,
        key: &TokenKey,
        old: &[u8],
        new: &[u8],
    ) -> Result<Cas, StoreError> {
        let name = self.token_key(key);
        let reply =
            self.call(&self.inner.token, [(name.as_str(), [old, new])].into_iter(), Patience::Command).await.pop();
        reply.unwrap_or_else(|| Err(no_reply())).and_then(cas)
    }

    pub(super) async fn reserve_tickets(&self, count: u64) -> Result<Tickets, StoreError> {
        let name = self.key("kiro:round-robin-counter");
        let reply = self.write(command("INCRBY", &[name.as_bytes(), count.to_string().as_bytes()])).await?;
        let end = match reply {
            Value::Int(end) => u64::try_from(end).ok(),
            _ => None,
        };
        let first = end.and_then(|end| end.checked_sub(count));
        let counter = || StoreError::new(StoreErrorKind::Counter, "negative");
        Ok(first.ok_or_else(counter)?..end.ok_or_else(counter)?)
    }

    pub(super) async fn client_key(&self) -> Result<Option<Secret>, StoreError> {
        let name = self.key("config");
        let found = self.one(command("GET", &[name.as_bytes()])).await.and_then(bytes);
        match found {
            Ok(config) => Ok(config.and_then(|config| record::client_key(&config))),
            // Not even a string: no key in it (R57).
            Err(error) if is_wrong_type(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn client_keys(&self) -> Result<KeyFields, StoreError> {
        let reply = self.one(command("HGETALL", &[self.client_keys_key().as_bytes()])).await?;
        redis::from_redis_value(reply).map_err(|_| broken("the client keys are no hash"))
    }

    /// False when there is one of this name.
    pub(in crate::store) async fn add_client_key(&self, name: &str, record: &[u8]) -> Result<bool, StoreError> {
        let hash = self.client_keys_key();
        Ok(self.write(command("HSETNX", &[hash.as_bytes(), name.as_bytes(), record])).await? == Value::Int(1))
    }

    /// Replaces a key's record if it still has the bytes `old`.
    pub(in crate::store) async fn compare_and_set_client_key(
        &self,
        name: &str,
        old: &[u8],
        new: &[u8],
    ) -> Result<Cas, StoreError> {
        let hash = self.client_keys_key();
        let arguments = [name.as_bytes(), old, new];
        let call = [(hash.as_str(), arguments)].into_iter();
        let reply = self.call(&self.inner.account, call, Patience::Command).await.pop();
        reply.unwrap_or_else(|| Err(no_reply())).and_then(cas)
    }

    /// False when there is none of this name.
    pub(in crate::store) async fn remove_client_key(&self, name: &str) -> Result<bool, StoreError> {
        let hash = self.client_keys_key();
        Ok(self.write(command("HDEL", &[hash.as_bytes(), name.as_bytes()])).await? == Value::Int(1))
    }

    /// The full name of the hash of named client keys.
    pub(in crate::store) fn client_keys_key(&self) -> String {
        self.key("kiro:client-keys")
    }

    pub(super) async fn lock(&self, key: &TokenKey, now: Timestamp) -> Result<Option<Lock>, StoreError> {
        let left = self.unheard().get(key).cloned();
        // Its SET may still come through later, so it is remembered until it is found.
        if let Some(left) = left
            && self.delete_lock(key, &left).await?
        {
            self.unheard().remove(key);
        }
        let value = format!("{}-{}", now.as_millisecond(), uuid::Uuid::new_v4().simple());
        let mut set = redis::cmd("SET");
        set.arg(self.lock_key(key)).arg(&value).arg("NX").arg("EX").arg(LOCK_SECONDS);
        let taken = self.write(set).await;
        if taken.as_ref().is_err_and(StoreError::is_perhaps_done) {
            self.unheard().insert(key.clone(), value.clone());
        }
        Ok((taken? == Value::Okay).then(|| Lock { key: key.clone(), held: LockHandle::Redis(value) }))
    }

    pub(super) async fn unlock(&self, key: &TokenKey, value: &str) -> Result<(), StoreError> {
        let deleted = self.delete_lock(key, value).await;
        if deleted.is_err() {
            self.unheard().insert(key.clone(), value.to_owned());
        }
        deleted.map(drop)
    }

    /// True if it existed.
    async fn delete_lock(&self, key: &TokenKey, value: &str) -> Result<bool, StoreError> {
        let name = self.lock_key(key);
        let reply = self
            .call(&self.inner.unlock, [(name.as_str(), [value.as_bytes()])].into_iter(), Patience::Command)
            .await
            .pop();
        reply.unwrap_or_else(|| Err(no_reply())).map(|reply| reply == Value::Int(1))
    }

    fn unheard(&self) -> MutexGuard<'_, HashMap<TokenKey, String>> {
        self.inner.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn add_accounts(&self, new: &[NewAccount]) -> Result<Vec<Result<Added, StoreError>>, StoreError> {
        let mut known = KnownLogins::of(&self.load().await?);
        let mut added: Vec<Result<Added, StoreError>> = Vec::new();
        for one in new {
            // Once it is away, nobody waits for it again and again.
            let away = added.last().and_then(|last| last.as_ref().err().filter(|error| error.is_away()).cloned());
            added.push(match away {
                Some(error) => Err(error),
                None => self.add_one(one, &mut known).await,
            });
        }
        Ok(added)
    }

    async fn add_one(&self, new: &NewAccount, known: &mut KnownLogins) -> Result<Added, StoreError> {
        let token = Token::parse(&new.token).map_err(|error| broken(format!("new token record {error}")))?;
        let index = token.refresh_token.as_ref().map(|token| self.index_key(&Fingerprint::of(token)));
        if let Some(index) = &index {
            let indexed = self.one(command("GET", &[index.as_bytes()])).await.and_then(bytes)?;
            let indexed = indexed.and_then(|id| String::from_utf8(id.into()).ok());
            if let Some(id) = indexed.filter(|id| is_account_id(id.as_bytes()))
                && self.read_accounts(&[&id]).await?.pop().flatten().is_some()
            {
                return Ok(Added::Duplicate { id });
            }
        }
        if let Some(id) = known.duplicate_of(&token) {
            return Ok(Added::Duplicate { id: id.to_owned() });
        }
        // In this order a crash leaves an orphan token, never an account without one (R62).
        let key = TokenKey::of(&new.id);
        // A record that is there may be newer than what its reader brings back (`accounts restore`).
        self.write(command("SET", &[self.token_key(&key).as_bytes(), &new.token, b"NX"])).await?;
        let account = record::new_account(&new.id, key.id(), new.added_at, new.custom_name.as_deref(), &new.members);
        let pool = self.pool_key();
        let set = self.write(command("HSETNX", &[pool.as_bytes(), new.id.as_bytes(), &account])).await?;
        if set != Value::Int(1) {
            return Err(broken("an account with this id exists already"));
        }
        self.write(command("SADD", &[self.key("pool-types").as_bytes(), PROVIDER.as_bytes()])).await?;
        if let Some(index) = index {
            self.write(command("SET", &[index.as_bytes(), new.id.as_bytes()])).await?;
        }
        known.add(&new.id, &token);
        Ok(Added::New)
    }

    pub(super) async fn remove_account(&self, id: &str) -> Result<bool, StoreError> {
        let all = self.load().await?;
        let Some(account) = all.into_iter().find(|account| account.id == id) else { return Ok(false) };
        let pool = self.pool_key();
        self.write(command("HDEL", &[pool.as_bytes(), id.as_bytes()])).await?;
        let Some((key, token)) = account.token else { return Ok(true) };
        self.write(command("DEL", &[self.token_key(&key).as_bytes()])).await?;
        if let Some(token) = Token::parse(&token).ok().and_then(|token| token.refresh_token) {
            self.write(command("DEL", &[self.index_key(&Fingerprint::of(&token)).as_bytes()])).await?;
        }
        Ok(true)
    }

    /// The full name of the pool's key.
    pub(super) fn pool_key(&self) -> String {
        self.key(&format!("pools:{PROVIDER}"))
    }

    pub(super) async fn pool_under_default_prefix(&self) -> Result<Option<String>, StoreError> {
        let default = format!("{DEFAULT_KEY_PREFIX}pools:{PROVIDER}");
        if self.inner.prefix == DEFAULT_KEY_PREFIX || self.exists(&self.pool_key()).await? {
            return Ok(None);
        }
        Ok(self.exists(&default).await?.then_some(default))
    }

    /// Ids of all token records. Only `doctor` and `accounts restore` ask for them.
    pub(super) async fn token_ids(&self) -> Result<Vec<String>, StoreError> {
        if self.pick()?.connection.is_cluster() {
            return Err(StoreError::new(StoreErrorKind::Broken, "a cluster's keys can't be listed"));
        }
        let start = self.key(&format!("tokens:{PROVIDER}:"));
        let escaped: String = start
            .chars()
            .flat_map(|c| matches!(c, '*' | '?' | '[' | ']' | '\\').then_some('\\').into_iter().chain([c]))
            .collect();
        let pattern = format!("{escaped}*");
        let mut ids = HashSet::new();
        let mut cursor = b"0".to_vec();
        loop {
            let reply = self.one(command("SCAN", &[&cursor, b"MATCH", pattern.as_bytes(), b"COUNT", b"1000"])).await?;
            let (next, keys): (Vec<u8>, Vec<Vec<u8>>) =
                redis::from_redis_value(reply).map_err(|_| broken("SCAN gives no keys"))?;
            let names =
                keys.into_iter().filter_map(|key| String::from_utf8(key).ok()?.strip_prefix(&start).map(str::to_owned));
            ids.extend(names.filter(|id| is_account_id(id.as_bytes())));
            cursor = next;
            if cursor == b"0" || ids.len() >= MOST_TOKEN_IDS {
                return Ok(ids.into_iter().collect());
            }
        }
    }

    pub(super) async fn is_missing_in_pool_types(&self) -> Result<bool, StoreError> {
        let name = self.key("pool-types");
        let member = self.one(command("SISMEMBER", &[name.as_bytes(), PROVIDER.as_bytes()])).await?;
        Ok(member != Value::Int(1) && self.exists(&name).await?)
    }

    pub(super) async fn inspect(&self) -> Result<Inspection, StoreError> {
        let script = Script::new(include_str!("inspect.lua"));
        let key = self.key(&format!("token-lock:{PROVIDER}:"));
        let reply = self.one(script.call("EVAL", &key, &[self.inner.prefix.as_bytes()])).await?;
        let (name, version, missing): (String, String, Option<Vec<String>>) =
            redis::from_redis_value(reply).map_err(|_| no_reply())?;
        Ok(Inspection { server: (!version.is_empty()).then(|| format!("{name} {version}")), missing_rights: missing })
    }

    /// Whether a key of another type than string exists. EXISTS is not among our rights (R3), but GET's error shows it.
    async fn exists(&self, name: &str) -> Result<bool, StoreError> {
        match self.one(command("GET", &[name.as_bytes()])).await {
            Ok(value) => Ok(value != Value::Nil),
            Err(error) if is_wrong_type(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// All accounts without their tokens, sorted.
    async fn pool(&self) -> Result<Vec<RawAccount>, StoreError> {
        let reply = self.one(command("HGETALL", &[self.pool_key().as_bytes()])).await?;
        let fields: Vec<(Vec<u8>, Bytes)> =
            redis::from_redis_value(reply).map_err(|_| broken("the pool is no hash"))?;
        let total = fields.len();
        let account = |(field, account): (Vec<u8>, Bytes)| {
            let id = String::from_utf8(field).ok().filter(|id| is_account_id(id.as_bytes()))?;
            Some(RawAccount { id, account, token: None })
        };
        let mut accounts: Vec<RawAccount> = fields.into_iter().filter_map(account).collect();
        accounts.sort_by(|a, b| a.id.cmp(&b.id));
        let strange = total - accounts.len();
        if self.inner.strange_ids.swap(strange, Ordering::Relaxed) != strange && strange > 0 {
            tracing::warn!(fields = strange, "fields of the pool that are no account ids are left out");
        }
        Ok(accounts)
    }

    async fn tokens(&self, keys: &[TokenKey]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let reads = keys.iter().map(|key| command("GET", &[self.token_key(key).as_bytes()])).collect();
        let values = self.many(reads, Patience::Command).await;
        values
            .into_iter()
            .map(|value| match value {
                Ok(value) => bytes(value),
                // A key of another type isn't a token record; the other accounts are not affected (R9).
                Err(error) if is_wrong_type(&error) => Ok(None),
                Err(error) => Err(error),
            })
            .collect()
    }

    /// The Node.js service gives accounts new ids without renaming their token keys: look where the record says (R45).
    async fn adopt_renamed(&self, accounts: &mut [RawAccount]) -> Result<(), StoreError> {
        let in_pool: HashSet<&str> = accounts.iter().map(|account| account.id.as_str()).collect();
        let renamed = |account: &RawAccount| -> Option<TokenKey> {
            let path = Account::parse(&account.account, &account.id).ok()?.token_file_path?;
            let other = token_id_of_path(&path)?;
            (!in_pool.contains(other)).then(|| TokenKey::of(other))
        };
        let (places, keys): (Vec<usize>, Vec<TokenKey>) = accounts
            .iter()
            .enumerate()
            .filter(|(_, account)| account.token.is_none())
            .filter_map(|(place, account)| Some((place, renamed(account)?)))
            .unzip();
        if keys.is_empty() {
            return Ok(());
        }
        for ((place, key), token) in places.into_iter().zip(&keys).zip(self.tokens(&keys).await?) {
            accounts[place].token = token.map(|token| (key.clone(), token));
        }
        Ok(())
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.inner.prefix)
    }

    fn token_key(&self, key: &TokenKey) -> String {
        self.key(&format!("tokens:{PROVIDER}:{}", key.id()))
    }

    fn lock_key(&self, key: &TokenKey) -> String {
        self.key(&format!("token-lock:{PROVIDER}:{}", key.id()))
    }

    fn index_key(&self, fingerprint: &Fingerprint) -> String {
        self.key(&format!("kiro:refresh-index:{}", fingerprint.index()))
    }

    /// Several calls of one script as EVALSHA. When the server doesn't know the script, they are repeated as EVAL,
    /// which loads it (R21).
    async fn call<'a, const N: usize>(
        &self,
        script: &Script,
        calls: impl Iterator<Item = (&'a str, [&'a [u8]; N])> + Clone,
        patience: Patience,
    ) -> Vec<Result<Value, StoreError>> {
        let by_name = calls.clone().map(|(key, arguments)| script.call("EVALSHA", key, &arguments)).collect();
        let mut replies = self.many(by_name, patience).await;
        let unknown = |reply: &Result<Value, StoreError>| reply.as_ref().is_err_and(is_no_script);
        let again: Vec<usize> = (0..replies.len()).filter(|place| unknown(&replies[*place])).collect();
        if !again.is_empty() {
            let by_text = calls.enumerate().filter(|(place, _)| again.binary_search(place).is_ok());
            let by_text = by_text.map(|(_, (key, arguments))| script.call("EVAL", key, &arguments)).collect();
            for (place, reply) in again.iter().zip(self.many(by_text, patience).await) {
                replies[*place] = reply;
            }
        }
        for reply in &replies {
            self.inner.links.wrote(reply.as_ref().map(|_| ()));
        }
        replies
    }

    async fn write(&self, cmd: Cmd) -> Result<Value, StoreError> {
        let reply = self.one(cmd).await;
        self.inner.links.wrote(reply.as_ref().map(|_| ()));
        reply
    }

    async fn one(&self, cmd: Cmd) -> Result<Value, StoreError> {
        let live = self.pick()?;
        self.run(&live, &cmd).await
    }

    fn pick(&self) -> Result<Arc<Live>, StoreError> {
        let live = self.inner.links.pick();
        if live.is_err() {
            self.inner.latency.unsent();
        }
        live
    }

    /// Commands that don't depend on each other: one pipeline, or in a Cluster each on its own.
    async fn many(&self, commands: Vec<Cmd>, patience: Patience) -> Vec<Result<Value, StoreError>> {
        let live = match self.pick() {
            Ok(live) => live,
            Err(error) => return commands.iter().map(|_| Err(error.clone())).collect(),
        };
        if live.connection.is_cluster() {
            return self.each(&live, &commands).await;
        }
        let mut pipe = redis::Pipeline::with_capacity(commands.len());
        pipe.ignore_errors();
        let count = commands.len();
        for command in commands {
            pipe.add_command(command);
        }
        let started = Instant::now();
        let replies = match patience {
            Patience::Command => pipe.query_async::<Vec<Value>>(&mut live.connection.clone()).await,
            Patience::Reply => match self.late_replies(&live, &pipe).await {
                Some(replies) => replies,
                None => return (0..count).map(|_| Err(no_answer())).collect(),
            },
        };
        self.inner.latency.observe(started.elapsed(), replies.is_ok());
        match replies {
            Ok(replies) if replies.len() == count => replies.into_iter().map(|reply| self.sort(&live, reply)).collect(),
            Ok(_) => (0..count).map(|_| Err(no_reply())).collect(),
            Err(error) => {
                let error = self.failed(&live, &error);
                (0..count).map(|_| Err(error.clone())).collect()
            }
        }
    }

    /// The replies of a pipeline, however late, while its connection stands. A silent server (frozen, swapped out)
    /// answers when it goes on, and only its answer shows whether a count was taken: the record doesn't, once another
    /// process has written to it (R22). None: the server is back and hasn't sent them.
    async fn late_replies(&self, live: &Live, pipe: &redis::Pipeline) -> Option<redis::RedisResult<Vec<Value>>> {
        let mut connection = live.connection.patient();
        let mut replies = pin!(pipe.query_async::<Vec<Value>>(&mut connection));
        if let Ok(replies) = tokio::time::timeout(COMMAND_TIMEOUT, &mut replies).await {
            return Some(replies);
        }
        self.inner.latency.observe(COMMAND_TIMEOUT, false);
        self.inner.links.failed(live, &no_answer());
        let mut status = self.watch();
        let back = async {
            // The store holds the sender: this can't fail.
            drop(status.wait_for(Status::is_connected).await);
            tokio::time::sleep(LATE_REPLY_GRACE).await;
        };
        tokio::select! {
            biased;
            replies = &mut replies => Some(replies),
            () = back => None,
        }
    }

    async fn each(&self, live: &Live, commands: &[Cmd]) -> Vec<Result<Value, StoreError>> {
        let mut running = FuturesOrdered::new();
        let mut replies = Vec::with_capacity(commands.len());
        for command in commands {
            if running.len() >= CLUSTER_CONCURRENCY {
                replies.extend(running.next().await);
            }
            running.push_back(self.run(live, command));
        }
        while let Some(reply) = running.next().await {
            replies.push(reply);
        }
        replies
    }

    async fn run(&self, live: &Live, cmd: &Cmd) -> Result<Value, StoreError> {
        let started = Instant::now();
        let reply = cmd.query_async::<Value>(&mut live.connection.clone()).await;
        self.inner.latency.observe(started.elapsed(), reply.is_ok());
        reply.map_err(|error| self.failed(live, &error))
    }

    /// One reply of a pipeline.
    fn sort(&self, live: &Live, reply: Value) -> Result<Value, StoreError> {
        match reply {
            Value::ServerError(error) => Err(self.failed(live, &error.into())),
            reply => Ok(reply),
        }
    }

    /// The error of a command; the connection hears of it.
    fn failed(&self, live: &Live, error: &redis::RedisError) -> StoreError {
        let error = classify(error);
        self.inner.links.failed(live, &error);
        error
    }
}

/// How long a caller waits for a reply.
#[derive(Clone, Copy)]
enum Patience {
    /// The time of any command (R2).
    Command,
    /// See [`RedisStore::late_replies`].
    Reply,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("prefix", &self.inner.prefix).finish_non_exhaustive()
    }
}

fn command(name: &str, arguments: &[&[u8]]) -> Cmd {
    let mut cmd = redis::cmd(name);
    for argument in arguments {
        cmd.arg(*argument);
    }
    cmd
}

/// A key's value; `None` when it doesn't exist. Anything but a string is an error.
fn bytes(value: Value) -> Result<Option<Bytes>, StoreError> {
    match value {
        Value::BulkString(bytes) => Ok(Some(Bytes::from(bytes))),
        Value::SimpleString(text) => Ok(Some(Bytes::from(text))),
        Value::Nil => Ok(None),
        _ => Err(no_reply()),
    }
}

/// The scripts' replies.
fn cas(reply: Value) -> Result<Cas, StoreError> {
    match reply {
        Value::Int(0) => Ok(Cas::Absent),
        Value::Int(1) => Ok(Cas::Written),
        reply => bytes(reply)?.map(Cas::Conflict).ok_or_else(no_reply),
    }
}

fn no_reply() -> StoreError {
    broken("unexpected reply")
}

fn broken(detail: impl Into<String>) -> StoreError {
    StoreError::new(StoreErrorKind::Broken, detail)
}
