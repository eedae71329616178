//! The embedded file store.
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use super::*;

/// Accounts and tokens in one JSON file. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FileStore(watch::Receiver<Status>);

impl FileStore {
    pub(super) fn open(_path: &std::path::Path) -> Result<Self, StoreError> {
        Ok(Self(watch::channel(Status::Connecting(None)).1))
    }
    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.0.clone()
    }
    pub(super) async fn load(&self) -> Result<Vec<RawAccount>, StoreError> {
        Err(away())
    }
    pub(super) async fn read_accounts(&self, _ids: &[&str]) -> Result<Vec<Option<Bytes>>, StoreError> {
        Err(away())
    }
    pub(super) async fn compare_and_set_accounts(&self, changes: &[Change]) -> Vec<Result<Cas, StoreError>> {
        changes.iter().map(|_| Err(away())).collect()
    }
    pub(super) async fn read_token(&self, _k: &TokenKey, _now: Timestamp) -> Result<Option<Bytes>, StoreError> {
        Err(away())
    }
    pub(super) async fn compare_and_set_token(&self, _k: &TokenKey, _o: &[u8], _n: &[u8]) -> Result<Cas, StoreError> {
        Err(away())
    }
    pub(super) fn reserve_tickets(&self, count: u64) -> Tickets {
        0..count
    }
    pub(super) async fn client_key(&self) -> Result<Option<Secret>, StoreError> {
        Err(away())
    }
    pub(super) async fn lock(&self, _key: &TokenKey) -> Result<Option<Lock>, StoreError> {
        Err(away())
    }
    pub(super) async fn add_account(&self, _new: &NewAccount) -> Result<Added, StoreError> {
        Err(away())
    }
    pub(super) async fn remove_account(&self, _id: &str) -> Result<bool, StoreError> {
        Err(away())
    }
    pub(super) fn pool_name(&self) -> String {
        String::new()
    }
    pub(super) fn latency(&self) -> &Latency {
        unimplemented_latency()
    }
}

fn unimplemented_latency() -> &'static Latency {
    static LATENCY: std::sync::OnceLock<Latency> = std::sync::OnceLock::new();
    LATENCY.get_or_init(Latency::default)
}

fn away() -> StoreError {
    StoreError::away("not connected")
}
