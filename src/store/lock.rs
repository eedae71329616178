//! A held refresh lock.

use super::file::refreshing::UnderWay;
use crate::proto::record::TokenKey;

/// A held refresh lock (R40). Give it back with [`Store::unlock`](super::Store::unlock); a dropped one ends by
/// itself: in Redis after 30 s, in the file store at once.
#[derive(Debug)]
pub struct Lock {
    pub(super) key: TokenKey,
    pub(super) held: LockHandle,
}

#[derive(Debug)]
pub(super) enum LockHandle {
    Redis(String),
    #[expect(dead_code, reason = "the lock is free, and the refresh over, when they are dropped")]
    File(std::fs::File, UnderWay),
    Simulated,
}

impl Lock {
    /// Which token record it guards.
    pub fn key(&self) -> &TokenKey {
        &self.key
    }
}
