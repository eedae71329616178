//! Where named client keys are written: a file, or the Redis hash (R108, R109). Blocks on the file, for the command line.

use std::path::PathBuf;

use super::file::disk;
use super::{Cas, KeyFields, MAX_TRIES, Store, StoreError, StoreErrorKind, conflict_pause};
use crate::proto::record::client_key::{
    ClientKey, MOST_BYTES, MOST_KEYS, client_keys, client_keys_of_hash, switched, with_client_key,
    with_client_key_switched, without_client_key,
};

/// A place of named keys.
#[derive(Debug, Clone)]
pub enum KeyPlaces {
    /// `KIRO_API_KEYS_FILE`.
    File(PathBuf),
    /// The store's hash.
    Redis(super::redis::RedisStore),
}

impl KeyPlaces {
    /// The store's own place.
    ///
    /// # Errors
    /// It has none.
    pub fn of(store: &Store) -> Result<Self, StoreError> {
        match store {
            Store::Redis(redis) => Ok(Self::Redis(redis.clone())),
            Store::Simulated(store) => Self::of(store.below()),
            Store::File(_) | Store::Service(_) => Err(StoreError::new(
                StoreErrorKind::Config,
                "a file store has no place for client keys: name a file with --file or KIRO_API_KEYS_FILE",
            )),
        }
    }

    /// What it is called: a path, or a Redis key.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Redis(redis) => redis.client_keys_key(),
        }
    }

    /// The keys, sorted by name. A file that isn't there holds none.
    ///
    /// # Errors
    /// The place can't be read, or a record is bad.
    pub async fn read(&self) -> Result<Vec<ClientKey>, StoreError> {
        let keys = match self {
            Self::File(path) => {
                let text = disk::read_at_most(path, MOST_BYTES + 1)?;
                text.map_or_else(|| Ok(Vec::new()), |text| client_keys(&text))
            }
            Self::Redis(redis) => client_keys_of_hash(&redis.client_keys().await?),
        };
        keys.map_err(|problem| self.broken(&problem))
    }

    /// Adds a key.
    ///
    /// # Errors
    /// The place can't be used, or has a key of this name.
    pub async fn add(&self, key: &ClientKey) -> Result<(), StoreError> {
        let known = self.read().await?;
        if known.len() >= MOST_KEYS {
            return Err(self.broken(&format!("holds {} keys already; at most {MOST_KEYS} are taken", known.len())));
        }
        if known.iter().any(|known| known.name == key.name) {
            return Err(self.broken(&format!("there is a key called {} already", key.name)));
        }
        match self {
            Self::File(_) => self.edit(|text| with_client_key(text, key).map(Some)).map(drop),
            Self::Redis(redis) => {
                match redis.add_client_key(&key.name, key.to_json(false).to_string().as_bytes()).await? {
                    true => Ok(()),
                    false => Err(self.broken(&format!("there is a key called {} already", key.name))),
                }
            }
        }
    }

    /// Enables or disables a key. False when there is none of this name.
    ///
    /// # Errors
    /// The place can't be used, or the record is bad.
    pub async fn switch(&self, name: &str, enabled: bool) -> Result<bool, StoreError> {
        let redis = match self {
            Self::File(_) => {
                return self.edit(|text| match text {
                    Some(text) => with_client_key_switched(text, name, enabled),
                    None => Ok(None),
                });
            }
            Self::Redis(redis) => redis,
        };
        let Some(mut record) = field(redis.client_keys().await?, name) else { return Ok(false) };
        for _ in 0..MAX_TRIES {
            let new =
                switched(&record, name, enabled).map_err(|problem| self.broken(&format!("field {name}: {problem}")))?;
            match redis.compare_and_set_client_key(name, &record, &new).await? {
                Cas::Written => return Ok(true),
                Cas::Absent => return Ok(false),
                Cas::Conflict(current) => record = current,
            }
            tokio::time::sleep(conflict_pause()).await;
        }
        Err(StoreError::away("record changes faster than it can be written"))
    }

    /// Removes a key, also a bad one. False when there is none of this name.
    ///
    /// # Errors
    /// The place can't be used.
    pub async fn remove(&self, name: &str) -> Result<bool, StoreError> {
        match self {
            Self::File(_) => self.edit(|text| match text {
                Some(text) => without_client_key(text, name),
                None => Ok(None),
            }),
            Self::Redis(redis) => redis.remove_client_key(name).await,
        }
    }

    /// Edits the file under its lock, and replaces it as a whole (R64). False when the edit has no result.
    fn edit(&self, edit: impl FnOnce(Option<&[u8]>) -> Result<Option<Vec<u8>>, String>) -> Result<bool, StoreError> {
        let Self::File(path) = self else { return Ok(false) };
        let target = disk::target(path)?;
        disk::make_folder(&target)?;
        let _one_at_a_time = disk::lock(&target)?;
        let text = disk::read_at_most(&target, MOST_BYTES + 1)?;
        match edit(text.as_deref()).map_err(|problem| self.broken(&problem))? {
            Some(text) => disk::replace(&target, &text).map(|()| true),
            None => Ok(false),
        }
    }

    fn broken(&self, problem: &str) -> StoreError {
        StoreError::new(StoreErrorKind::Broken, format!("{}: {problem}", self.name()))
    }
}

fn field(fields: KeyFields, name: &str) -> Option<bytes::Bytes> {
    fields.into_iter().find(|(field, _)| field == name.as_bytes()).map(|(_, record)| record)
}
