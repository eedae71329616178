//! The client keys: a single one, configured or read from the store (R57, M2), and named ones, from a file or the store
//! (R108, R109, M88).

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use serde::Serialize;
use subtle::ConstantTimeEq;

use super::heavy::run_heavy;
use crate::config::{Config, StoreKind};
use crate::error::{Code, Error};
use crate::files::{self, Watched};
use crate::policy::{later, pace};
use crate::proto::record::client_key::{
    ClientKey, KeyDigest, KeyStanding, MOST_BYTES, client_keys, client_keys_of_hash,
};
use crate::secret::Secret;
use crate::store::{KeyFields, Store, StoreError, StoreErrorKind};

/// How often the store is asked for the key while it hasn't been reached.
pub(super) const FIRST_KEY_INTERVAL: Duration = Duration::from_millis(100);
/// How often a start looks whether the keys are known.
const KNOWN_INTERVAL: Duration = Duration::from_millis(10);
/// How long the store's hash must read empty before its keys are forgotten (R109).
const EMPTY_BELIEVED: Duration = Duration::from_secs(60);
/// `retry-after` when a client's key has too many requests in flight.
const BUSY_WAIT: Duration = Duration::from_secs(1);
/// Most names in the status.
const MOST_SHOWN: usize = 100;

/// The result of comparing a client's key.
#[derive(Debug, Clone)]
pub enum KeyCheck {
    /// One of the offered keys is right.
    Right(KeyHolder),
    /// No key is configured anywhere. Who can reach the server decides whether that is allowed.
    Open,
    /// None of them is.
    Wrong,
    /// The store hasn't been reached, so the key isn't known.
    Unknown,
}

/// The right key of a request.
#[derive(Debug, Clone)]
pub struct KeyHolder {
    /// [`super::client_key_hash`] of it.
    pub digest: [u8; 32],
    /// None: the single key.
    pub named: Option<Arc<NamedKey>>,
}

/// A named key, and what this process counts of it.
#[derive(Debug)]
pub struct NamedKey {
    key: ClientKey,
    usage: Arc<KeyUsage>,
}

/// Lives as long as its name, whatever key has it.
#[derive(Debug, Default)]
struct KeyUsage {
    in_flight: AtomicU32,
    requests: AtomicU64,
    refused: AtomicU64,
    /// The state of [`pace::take`], nanoseconds since the start.
    due: AtomicU64,
}

/// A place among a key's requests in flight, until it is dropped.
#[derive(Debug)]
pub struct KeyPlace(Arc<NamedKey>);

impl KeyPlace {
    /// The key's name.
    pub fn name(&self) -> &Arc<str> {
        &self.0.key.name
    }
}

impl Drop for KeyPlace {
    fn drop(&mut self) {
        self.0.usage.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A key's limit is reached (M88).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLimit {
    /// `max_inflight` or `rpm`.
    pub which: &'static str,
    /// Its value.
    pub limit: u32,
    /// When to come again.
    pub retry_after: Duration,
}

/// A named key in the status: never its hash.
#[derive(Debug, Clone, Serialize)]
pub struct KeyStatus {
    /// Its name.
    pub name: Arc<str>,
    /// `valid`, `disabled` or `expired`.
    pub state: &'static str,
    /// This process's running requests for an answer with it.
    pub in_flight: u32,
    /// Requests for an answer since the start that it let in.
    pub requests: u64,
    /// Those that a limit of it refused.
    pub refused: u64,
}

impl NamedKey {
    /// Takes a place for a request for an answer. `since_start`: the time.
    pub(super) fn enter(self: &Arc<Self>, since_start: Duration) -> Result<KeyPlace, KeyLimit> {
        let usage = &self.usage;
        let most = self.key.max_inflight.unwrap_or(u32::MAX);
        let taken = usage.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < most).then_some(n + 1));
        if taken.is_err() {
            return Err(self.refuse("max_inflight", most, BUSY_WAIT));
        }
        let place = KeyPlace(self.clone());
        if let Some(rpm) = self.key.rpm {
            let mut wait = Duration::ZERO;
            let paced = usage.due.fetch_update(Ordering::AcqRel, Ordering::Acquire, |due| {
                let taken = pace::take(Duration::from_nanos(due), since_start, rpm);
                taken.map_err(|early| wait = early).ok().and_then(|due| u64::try_from(due.as_nanos()).ok())
            });
            if paced.is_err() {
                return Err(self.refuse("rpm", rpm, wait));
            }
        }
        usage.requests.fetch_add(1, Ordering::Relaxed);
        Ok(place)
    }

    fn refuse(&self, which: &'static str, limit: u32, retry_after: Duration) -> KeyLimit {
        self.usage.refused.fetch_add(1, Ordering::Relaxed);
        KeyLimit { which, limit, retry_after }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.key.name
    }
}

/// The keys that clients need.
pub(super) struct Keys {
    /// `KIRO_API_KEY`; beats the store.
    fixed: Option<KeyDigest>,
    found: ArcSwapOption<KeyDigest>,
    reached: AtomicBool,
    refused: OnceLock<StoreError>,
    /// Looked up by digest, which tells nothing about a key.
    // Bound: named client keys | client_key::MOST_KEYS in the file, as many in Redis | a larger set isn't taken
    named: ArcSwap<HashMap<KeyDigest, Arc<NamedKey>>>,
    /// There is a place of named keys that has had some: the server is never open again.
    has_named: AtomicBool,
    /// [`HashRead`].
    hash: AtomicU8,
    places: Mutex<Places>,
}

/// What is known of the store's hash.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum HashRead {
    /// It hasn't answered yet.
    Never,
    /// What it holds can't be used, and nothing good was read before.
    Broken,
    /// Its keys are known. So it is for stores without one.
    Known,
}

/// The keys by their places.
#[derive(Default)]
struct Places {
    /// `KIRO_API_KEYS_FILE`.
    file: Vec<ClientKey>,
    /// The store's hash.
    hash: Vec<ClientKey>,
    empty_since: Option<Timestamp>,
    /// What the log says about the hash.
    problem: Option<String>,
    /// What the log says about the store's single key.
    single_problem: Option<String>,
}

impl Keys {
    pub(super) fn new(config: &Config) -> Self {
        let asks_hash = matches!(config.store, StoreKind::Redis);
        let hash = if asks_hash { HashRead::Never } else { HashRead::Known };
        Self {
            fixed: config.api_key.as_ref().map(|key| KeyDigest::of(key.expose())),
            found: ArcSwapOption::empty(),
            reached: AtomicBool::new(false),
            refused: OnceLock::new(),
            named: ArcSwap::default(),
            has_named: AtomicBool::new(config.api_keys_file.is_some()),
            hash: AtomicU8::new(hash as u8),
            places: Mutex::default(),
        }
    }

    /// Whether the store has to be asked for the single key.
    fn asks_store(&self) -> bool {
        self.fixed.is_none()
    }

    /// Takes the store's key. A known key is replaced only by another key, so an evicted or broken `config` never opens
    /// the server. True when the key has changed.
    fn heard(&self, key: Option<&Secret>) -> bool {
        let mut changed = false;
        if let Some(key) = key.filter(|key| !key.is_empty()) {
            let key = KeyDigest::of(key.expose());
            changed = self.found.load().as_ref().is_some_and(|known| **known != key);
            self.found.store(Some(Arc::new(key)));
        }
        self.reached.store(true, Ordering::Release);
        changed
    }

    /// The store refuses to show it. True when that is new and no key is known yet (R49).
    fn refused(&self, error: &StoreError) -> bool {
        !self.is_known() && self.refused.set(error.clone()).is_ok()
    }

    /// The store can be reached, and what it holds can't be read: a key known before stays. The log says so once.
    fn single_is_bad(&self, error: &StoreError) {
        let problem = error.to_string();
        let mut places = self.places();
        if places.single_problem.as_ref() != Some(&problem) {
            let known =
                if self.is_known() { "the one known before stays in force" } else { "nobody is served until it can" };
            tracing::warn!(problem, "the client key can't be read, and {known}: correct that, or set KIRO_API_KEY");
            places.single_problem = Some(problem);
        }
    }

    /// Why the single key isn't known although the store can be reached.
    pub(super) fn problem(&self) -> Option<String> {
        if self.is_known() { None } else { self.places().single_problem.clone() }
    }

    /// Why the store refuses, while no key is known.
    fn refusal(&self) -> Option<&StoreError> {
        if self.is_known() { None } else { self.refused.get() }
    }

    /// Whether no key is known although the store was reached.
    pub(super) fn is_open(&self) -> bool {
        self.fixed.is_none()
            && self.reached.load(Ordering::Acquire)
            && self.found.load().is_none()
            && self.hash() == HashRead::Known
            && !self.has_named.load(Ordering::Acquire)
    }

    /// Whether the single key is known.
    pub(super) fn is_known(&self) -> bool {
        self.fixed.is_some() || self.reached.load(Ordering::Acquire)
    }

    /// Whether every place has answered.
    pub(super) fn are_known(&self) -> bool {
        self.is_known() && self.hash() != HashRead::Never
    }

    /// Resolves when every place has answered.
    pub(super) async fn known(&self) {
        while !self.are_known() {
            tokio::time::sleep(KNOWN_INTERVAL).await;
        }
    }

    /// Resolves when the store refuses to show the single key and none is known yet.
    pub(super) async fn when_refused(&self) -> StoreError {
        while !self.is_known() {
            if let Some(error) = self.refusal() {
                return error.clone();
            }
            tokio::time::sleep(FIRST_KEY_INTERVAL).await;
        }
        std::future::pending().await
    }

    fn hash(&self) -> HashRead {
        match self.hash.load(Ordering::Acquire) {
            0 => HashRead::Never,
            1 => HashRead::Broken,
            _ => HashRead::Known,
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the file's keys.
    pub(super) fn set_file(&self, keys: Vec<ClientKey>) {
        let mut places = self.places();
        places.file = keys;
        self.publish(&places);
    }

    /// Takes the hash's keys. An empty hash is believed after a minute: a store that was emptied, or a replica that took
    /// over without it, locks nobody out at once (R109).
    fn heard_hash(&self, keys: Vec<ClientKey>, now: Timestamp) {
        let mut places = self.places();
        if places.problem.take().is_some() {
            tracing::info!("the store's client keys are good again");
        }
        if keys.is_empty() && !places.hash.is_empty() {
            let since = *places.empty_since.get_or_insert(now);
            if later(since, EMPTY_BELIEVED) > now {
                return;
            }
            tracing::warn!("the store's client keys are gone");
        }
        places.empty_since = None;
        if keys != places.hash {
            tracing::info!(keys = keys.len(), "the store's client keys were read");
            places.hash = keys;
            self.publish(&places);
        }
        self.hash.store(HashRead::Known as u8, Ordering::Release);
    }

    /// The hash can't be used: what it said before stays. The log says so once.
    fn hash_is_bad(&self, problem: String, refused: bool) {
        let mut places = self.places();
        if places.problem.as_ref() != Some(&problem) {
            tracing::error!(
                problem,
                "the client keys in the store's hash kiro:client-keys can't be used, and those known before stay in force: \
                 `kiro-server keys list` shows them, `keys remove` takes a bad one away"
            );
            places.problem = Some(problem);
        }
        // Where other keys are, one that may not be read holds none.
        let is_elsewhere =
            self.fixed.is_some() || self.found.load().is_some() || self.has_named.load(Ordering::Acquire);
        if self.hash() != HashRead::Known {
            let hash = if refused && is_elsewhere { HashRead::Known } else { HashRead::Broken };
            self.hash.store(hash as u8, Ordering::Release);
        }
    }

    /// Asks the store for its single key, and Redis for its hash.
    pub(super) async fn look_in(&self, store: &Store, kind: &StoreKind, now: impl Fn() -> Timestamp) {
        let is_redis = matches!(kind, StoreKind::Redis);
        self.look_for_single(store, is_redis).await;
        if !is_redis {
            return;
        }
        match store.client_keys().await {
            Ok(fields) => self.take_hash(&fields, now),
            Err(error) if matches!(error.kind(), StoreErrorKind::Refused | StoreErrorKind::Broken) => {
                self.hash_is_bad(error.to_string(), error.kind() == StoreErrorKind::Refused);
            }
            Err(error) => tracing::debug!(%error, "the client keys could not be read"),
        }
    }

    fn take_hash(&self, fields: &KeyFields, now: impl Fn() -> Timestamp) {
        let bytes = fields.iter().map(|(name, record)| name.len() + record.len()).sum();
        run_heavy(bytes, || match client_keys_of_hash(fields) {
            Ok(keys) => self.heard_hash(keys, now()),
            Err(problem) => self.hash_is_bad(problem, false),
        });
    }

    async fn look_for_single(&self, store: &Store, is_redis: bool) {
        if !self.asks_store() {
            return;
        }
        match store.client_key().await {
            Ok(key) => {
                if self.places().single_problem.take().is_some() {
                    tracing::info!("the client key can be read again");
                }
                if self.heard(key.as_ref()) {
                    tracing::info!("the client key was changed");
                }
            }
            Err(error) if error.kind() == StoreErrorKind::Refused && self.refused(&error) => {
                tracing::error!(%error, "the client key could not be read");
            }
            Err(error) if error.kind() == StoreErrorKind::Broken || !is_redis && store.status().is_connected() => {
                self.single_is_bad(&error);
            }
            // A store that can't be read, a broken file too, doesn't mean that no key is set (R54, R57).
            Err(error) => tracing::debug!(%error, "the client key could not be read"),
        }
    }

    /// Makes both places' keys the ones that are looked up. The file's win, and counts stay with their names.
    fn publish(&self, places: &Places) {
        let before = self.named.load();
        let usages: HashMap<&str, &Arc<KeyUsage>> =
            before.values().map(|named| (&*named.key.name, &named.usage)).collect();
        let in_file: HashSet<&str> = places.file.iter().map(|key| &*key.name).collect();
        let of_hash = places.hash.iter().filter(|key| !in_file.contains(&*key.name));
        let mut named = HashMap::with_capacity(places.file.len() + places.hash.len());
        for key in places.file.iter().chain(of_hash) {
            let usage = usages.get(&*key.name).map_or_else(Arc::default, |usage| Arc::clone(usage));
            named.entry(key.digest).or_insert_with(|| Arc::new(NamedKey { key: key.clone(), usage }));
        }
        if !named.is_empty() {
            self.has_named.store(true, Ordering::Release);
        }
        drop(before);
        self.named.store(Arc::new(named));
    }

    /// Looks for a right key among the offered ones. A named key's record decides even where the single key is the same.
    pub(super) fn check<'a>(&self, offered: impl Iterator<Item = &'a str>, now: impl Fn() -> Timestamp) -> KeyCheck {
        let (named, found) = (self.named.load(), self.found.load());
        let single = self.fixed.as_ref().or(found.as_deref());
        let (mut right, mut is_any) = (None, false);
        // Every offered key is compared, also after a match.
        for key in offered {
            is_any = true;
            let digest = KeyDigest::of(key);
            let holder = match named.get(&digest) {
                Some(named) if named.key.standing(now()) == KeyStanding::Valid => Some(Some(named.clone())),
                Some(_) => None,
                None => single.is_some_and(|single| digest.0.ct_eq(&single.0).into()).then_some(None),
            };
            right = right.or(holder.map(|named| KeyHolder { digest: digest.0, named }));
        }
        match right {
            Some(holder) => KeyCheck::Right(holder),
            None if self.is_open() => KeyCheck::Open,
            // A key may be one of those that aren't known yet. Without any there is nothing to wait for.
            None if !self.is_known() || (self.hash() != HashRead::Known && (is_any || single.is_none())) => {
                KeyCheck::Unknown
            }
            None => KeyCheck::Wrong,
        }
    }

    /// Named keys with their counts, busy ones first, at most [`MOST_SHOWN`]; and how many there are.
    pub(super) fn status(&self, now: Timestamp) -> (Vec<KeyStatus>, usize) {
        let named = self.named.load();
        let status = |named: &Arc<NamedKey>| KeyStatus {
            name: named.key.name.clone(),
            state: named.key.standing(now).as_str(),
            in_flight: named.usage.in_flight.load(Ordering::Acquire),
            requests: named.usage.requests.load(Ordering::Relaxed),
            refused: named.usage.refused.load(Ordering::Relaxed),
        };
        let mut all: Vec<KeyStatus> = named.values().map(status).collect();
        all.sort_by(|a, b| (b.in_flight, b.requests, &a.name).cmp(&(a.in_flight, a.requests, &b.name)));
        let count = all.len();
        all.truncate(MOST_SHOWN);
        (all, count)
    }
}

/// `KIRO_API_KEYS_FILE` (R108).
pub(super) struct KeysFile(Watched);

impl KeysFile {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`Code::Config`] with the file's name, and the record that is wrong.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<ClientKey>), Error> {
        let file = Watched::new(path);
        let keys = read(path)?;
        Ok((Self(file), keys))
    }

    /// The keys when the file has changed since the last look and is good. The log names a bad or missing one once, and
    /// the keys that were read before stay.
    pub(super) fn look(&mut self) -> Option<Vec<ClientKey>> {
        if !self.0.has_changed() {
            return None;
        }
        let path = self.0.path();
        match read(path) {
            Ok(keys) => {
                tracing::info!(file = %path.display(), keys = keys.len(), "the client keys were read again");
                Some(keys)
            }
            Err(error) => {
                tracing::error!(%error, "the client keys were not replaced, those known before stay in force");
                None
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<ClientKey>, Error> {
    let refuse = |what: String| {
        let cure = "correct it, or make a new one with `kiro-server keys add NAME --file`";
        Error::new(Code::Config, format!("KIRO_API_KEYS_FILE: {}: {what}; {cure}", path.display()))
    };
    let text = files::read(path, MOST_BYTES + 1).map_err(|error| refuse(error.to_string()))?;
    client_keys(&text).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::config::{Face, RawConfig};
    use crate::gateway::outside::now;

    /// With these settings.
    fn keys(settings: &[(&str, &str)]) -> Keys {
        let pairs = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Keys::new(&RawConfig::from_env(pairs).resolve(Face::Server).unwrap())
    }

    const FILE: (&str, &str) = ("KIRO_STORE", "file:/none");

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// The word of the result, and the name of a named key.
    fn said(keys: &Keys, offered: &[&str], second: i64) -> String {
        match keys.check(offered.iter().copied(), || at(second)) {
            KeyCheck::Right(KeyHolder { named: Some(named), .. }) => named.name().to_string(),
            KeyCheck::Right(_) => "right".to_owned(),
            KeyCheck::Open => "open".to_owned(),
            KeyCheck::Wrong => "wrong".to_owned(),
            KeyCheck::Unknown => "unknown".to_owned(),
        }
    }

    fn check(keys: &Keys, offered: &[&str]) -> String {
        said(keys, offered, 0)
    }

    fn named(name: &str, key: &str) -> ClientKey {
        ClientKey {
            name: name.into(),
            digest: KeyDigest::of(key),
            enabled: true,
            expires: None,
            max_inflight: None,
            rpm: None,
        }
    }

    #[test]
    fn a_configured_key_beats_the_store() {
        let keys = keys(&[FILE, ("KIRO_API_KEY", "k1")]);
        keys.heard(Some(&Secret::new("k2")));
        assert_eq!(check(&keys, &["k1"]), "right");
        assert_eq!(check(&keys, &["k2", ""]), "wrong");
        assert_eq!(check(&keys, &[]), "wrong");
        assert_eq!(check(&keys, &["x", "k1"]), "right");
    }

    /// R57, case 41.
    #[test]
    fn a_known_key_is_replaced_only_by_another_key() {
        let keys = keys(&[FILE]);
        assert_eq!(check(&keys, &["k1"]), "unknown");
        keys.heard(Some(&Secret::new("k1")));
        assert_eq!(check(&keys, &["k1"]), "right");
        assert!(!keys.heard(None) && !keys.heard(Some(&Secret::new(""))) && !keys.heard(Some(&Secret::new("k1"))));
        assert_eq!(check(&keys, &[""]), "wrong");
        assert_eq!(check(&keys, &["k1"]), "right");
        assert!(keys.heard(Some(&Secret::new("k3"))));
        assert_eq!(check(&keys, &["k1"]), "wrong");
    }

    #[test]
    fn without_any_key_it_is_open() {
        let keys = keys(&[FILE]);
        keys.heard(None);
        assert!(keys.is_open());
        assert_eq!(check(&keys, &["anything"]), "open");
    }

    #[test]
    fn named_keys_stand_beside_the_single_one_r108() {
        let keys = keys(&[FILE, ("KIRO_API_KEY", "single"), ("KIRO_API_KEYS_FILE", "f")]);
        keys.set_file(vec![
            named("a", "k-a"),
            ClientKey { enabled: false, ..named("b", "k-b") },
            ClientKey { expires: Some(at(10)), ..named("c", "k-c") },
            ClientKey { enabled: false, ..named("d", "single") },
        ]);
        for (key, second, expected) in
            [("k-a", 0, "a"), ("k-b", 0, "wrong"), ("k-c", 9, "c"), ("k-c", 10, "wrong"), ("k-x", 0, "wrong")]
        {
            assert_eq!(said(&keys, &[key], second), expected, "{key} at {second}");
        }
        assert_eq!(check(&keys, &["single"]), "wrong", "its own record disables it");
        assert_eq!(check(&keys, &["k-b", "k-a"]), "a", "in any place");
        keys.set_file(Vec::new());
        assert_eq!(check(&keys, &["single"]), "right");
        assert_eq!(check(&keys, &["k-a"]), "wrong");
    }

    #[test]
    fn a_server_that_has_named_keys_is_never_open_r108_r109() {
        let with_file = keys(&[FILE, ("KIRO_API_KEYS_FILE", "f")]);
        with_file.heard(None);
        assert_eq!(check(&with_file, &[]), "wrong");
        let keys = keys(&[]);
        keys.heard(None);
        assert_eq!(check(&keys, &[]), "unknown", "the hash has not been read");
        keys.heard_hash(vec![named("a", "k-a")], at(0));
        assert_eq!(check(&keys, &["k-a"]), "a");
        keys.heard_hash(Vec::new(), at(0));
        keys.heard_hash(Vec::new(), at(59));
        assert_eq!(check(&keys, &["k-a"]), "a", "an empty hash is believed after a minute");
        keys.heard_hash(vec![named("a", "k-a")], at(60));
        keys.heard_hash(Vec::new(), at(61));
        keys.heard_hash(Vec::new(), at(120));
        assert_eq!(check(&keys, &["k-a"]), "a", "it was back in between");
        keys.heard_hash(Vec::new(), at(121));
        assert_eq!(check(&keys, &["k-a"]), "wrong");
        assert!(!keys.is_open());
    }

    #[test]
    fn a_key_that_may_be_in_the_hash_is_unknown_until_it_is_read_r109() {
        let keys = keys(&[("KIRO_API_KEY", "single")]);
        assert_eq!(
            [check(&keys, &["single"]), check(&keys, &["k-a"]), check(&keys, &[])],
            ["right", "unknown", "wrong"]
        );
        keys.hash_is_bad("field a: sha256".to_owned(), false);
        assert!(keys.are_known());
        assert_eq!([check(&keys, &["single"]), check(&keys, &["k-a"])], ["right", "unknown"]);
        keys.heard_hash(vec![named("a", "k-a")], at(0));
        keys.hash_is_bad("field a: sha256".to_owned(), false);
        assert_eq!([check(&keys, &["k-a"]), check(&keys, &["k-b"])], ["a", "wrong"], "the last good ones stay");
        // Without the right to read it there are none.
        let poor = self::keys(&[("KIRO_API_KEY", "single")]);
        poor.hash_is_bad("NOPERM".to_owned(), true);
        assert_eq!(check(&poor, &["k-a"]), "wrong");
        let nothing_else = self::keys(&[]);
        nothing_else.heard(None);
        nothing_else.hash_is_bad("NOPERM".to_owned(), true);
        assert_eq!(check(&nothing_else, &[]), "unknown", "never open because of a refusal");
    }

    #[test]
    fn the_file_wins_over_the_hash_r109() {
        let keys = keys(&[("KIRO_API_KEY", "single")]);
        keys.heard_hash(vec![named("a", "k-1"), named("b", "k-2"), named("c", "k-3")], at(0));
        keys.set_file(vec![named("a", "k-4"), ClientKey { enabled: false, ..named("x", "k-2") }]);
        let checks = ["k-1", "k-2", "k-3", "k-4"].map(|key| check(&keys, &[key]));
        assert_eq!(checks, ["wrong", "wrong", "c", "a"]);
    }

    fn holder(keys: &Keys, key: &str) -> Arc<NamedKey> {
        match keys.check([key].into_iter(), || at(0)) {
            KeyCheck::Right(KeyHolder { named: Some(named), .. }) => named,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn limits_of_a_name_survive_a_new_key_m88() {
        let keys = keys(&[FILE]);
        let limited = |key: &str| ClientKey { max_inflight: Some(2), rpm: Some(3), ..named("a", key) };
        keys.set_file(vec![limited("k-1"), named("b", "k-b")]);
        let second = Duration::from_secs;
        let places = [0, 1].map(|at| holder(&keys, "k-1").enter(second(at)).unwrap());
        keys.set_file(vec![limited("k-2"), named("b", "k-b")]);
        let busy = holder(&keys, "k-2").enter(second(2)).unwrap_err();
        assert_eq!((busy.which, busy.limit, busy.retry_after), ("max_inflight", 2, BUSY_WAIT));
        drop(places);
        drop(holder(&keys, "k-2").enter(second(3)).unwrap());
        let fast = holder(&keys, "k-2").enter(second(3)).unwrap_err();
        assert_eq!((fast.which, fast.limit, fast.retry_after), ("rpm", 3, second(17)));
        holder(&keys, "k-b").enter(second(3)).unwrap();
        let (shown, count) = keys.status(at(0));
        let shown: Vec<_> = shown.iter().map(|key| (&*key.name, key.in_flight, key.requests, key.refused)).collect();
        assert_eq!((shown, count), (vec![("a", 0, 3, 2), ("b", 0, 1, 0)], 2));
        drop(holder(&keys, "k-2").enter(second(20)).unwrap());
    }

    #[test]
    fn ten_thousand_keys_cost_no_more_than_one_m88() {
        let keys = keys(&[FILE, ("KIRO_API_KEY", "single")]);
        let text = |n: usize| format!("sk-kiro-{n:064x}");
        let time = |keys: &Keys, count: usize| {
            let offered: Vec<String> = (0..1000).map(|n| text(n * 7919 % count)).collect();
            let best = (0..20).map(|_| {
                let began = now();
                for key in &offered {
                    let checked = keys.check([key.as_str()].into_iter(), || at(0));
                    assert!(matches!(checked, KeyCheck::Right(KeyHolder { named: Some(_), .. })));
                }
                began.elapsed() / 1000
            });
            best.min().unwrap()
        };
        keys.set_file((0..10).map(|n| named(&format!("n{n}"), &text(n))).collect());
        let few = time(&keys, 10);
        keys.set_file((0..10_000).map(|n| named(&format!("n{n}"), &text(n))).collect());
        let many = time(&keys, 10_000);
        writeln!(std::io::stdout().lock(), "  a look-up among 10 keys: {few:?}, among 10,000: {many:?}").unwrap();
        // Lax: a machine that does something else, without optimisation.
        assert!(many < Duration::from_micros(100) && many < few * 5, "{few:?} {many:?}");
    }
}
