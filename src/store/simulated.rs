//! A named store under `KIRO_UPSTREAM=simulator`: read as it is, and never written (R110).
//!
//! What a simulated upstream says about an account would be a lie in the store, and a token that it gives in place of a
//! real one the loss of a login. So changes stay here, as long as the store's own record is the one that they were made
//! on: an edit by somebody else wins, and shows.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use super::changes::{Changes, compare_and_set, seen};
use super::error::{StoreError, StoreErrorKind};
use super::lock::{Lock, LockHandle};
use super::records::{Added, Cas, Change, NewAccount, RawAccount, Tickets};
use super::status::{Latency, Status};
use super::{SimulatedStore, Store};
use crate::proto::record::TokenKey;
use crate::secret::Secret;

impl SimulatedStore {
    pub(super) fn over(below: Store) -> Self {
        Self { below: Box::new(below), changes: Arc::default(), tickets: Arc::default() }
    }

    /// The store that is only read.
    pub(super) fn below(&self) -> &Store {
        &self.below
    }

    /// Why nobody can edit it.
    pub(super) fn refusal() -> StoreError {
        StoreError::new(
            StoreErrorKind::Config,
            "KIRO_UPSTREAM is simulator, under which a store that was named is never written: unset KIRO_UPSTREAM to change \
             its accounts",
        )
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.below.watch()
    }

    pub(super) async fn load(&self) -> Result<Vec<RawAccount>, StoreError> {
        let mut all = Box::pin(self.below.load()).await?;
        let mut changes = self.changes();
        for account in &mut all {
            seen(&mut changes.accounts, &account.id, &mut account.account);
            if let Some((key, record)) = &mut account.token {
                seen(&mut changes.tokens, key.id(), record);
            }
        }
        Ok(all)
    }

    pub(super) async fn read_accounts(&self, ids: &[&str]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let mut found = Box::pin(self.below.read_accounts(ids)).await?;
        let mut changes = self.changes();
        for (id, record) in ids.iter().zip(&mut found) {
            if let Some(record) = record {
                seen(&mut changes.accounts, id, record);
            }
        }
        Ok(found)
    }

    pub(super) async fn compare_and_set_accounts(&self, wanted: &[Change]) -> Vec<Result<Cas, StoreError>> {
        let ids: Vec<&str> = wanted.iter().map(|change| change.id.as_str()).collect();
        let found = match Box::pin(self.below.read_accounts(&ids)).await {
            Ok(found) => found,
            Err(error) => return wanted.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut changes = self.changes();
        let set = |(change, found): (&Change, Option<Bytes>)| {
            Ok(compare_and_set(&mut changes.accounts, &change.id, found, &change.old, &change.new))
        };
        wanted.iter().zip(found).map(set).collect()
    }

    pub(super) async fn read_token(&self, key: &TokenKey, now: Timestamp) -> Result<Option<Bytes>, StoreError> {
        let mut found = Box::pin(self.below.read_token(key, now)).await?;
        if let Some(record) = &mut found {
            seen(&mut self.changes().tokens, key.id(), record);
        }
        Ok(found)
    }

    pub(super) async fn compare_and_set_token(
        &self,
        key: &TokenKey,
        old: &[u8],
        new: &[u8],
    ) -> Result<Cas, StoreError> {
        // Whether a client registration has expired matters to a refresh, and this one is over.
        let found = Box::pin(self.below.read_token(key, Timestamp::UNIX_EPOCH)).await?;
        Ok(compare_and_set(&mut self.changes().tokens, key.id(), found, old, new))
    }

    /// Of this process: the shared counter isn't touched.
    pub(super) fn reserve_tickets(&self, count: u64) -> Tickets {
        let first = self.tickets.fetch_add(count, Ordering::Relaxed);
        first..first.saturating_add(count)
    }

    pub(super) async fn client_key(&self) -> Result<Option<Secret>, StoreError> {
        Box::pin(self.below.client_key()).await
    }

    /// Other processes refresh somewhere else.
    pub(super) fn lock(key: &TokenKey) -> Lock {
        Lock { key: key.clone(), held: LockHandle::Simulated }
    }

    #[expect(clippy::unused_async, reason = "as the other stores")]
    pub(super) async fn id_secret(&self, fresh: &str) -> Result<Secret, StoreError> {
        Ok(Secret::new(fresh))
    }

    pub(super) fn add_accounts(_: &[NewAccount]) -> Result<Vec<Result<Added, StoreError>>, StoreError> {
        Err(Self::refusal())
    }

    pub(super) async fn idle(&self) {
        Box::pin(self.below.idle()).await;
    }

    pub(super) fn latency(&self) -> &Latency {
        self.below.latency()
    }
}

impl fmt::Debug for SimulatedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedStore").field("below", &self.below).finish_non_exhaustive()
    }
}
