//! How a store is doing: whether it can be used, how long its commands take, what its server says of itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::error::StoreError;
use crate::metrics::{Histogram, Observed};

/// A Redis server's own description and our rights on it, as far as a script can tell (R3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Name and version, such as `redis 7.2.4`; none before Redis 7.
    pub server: Option<String>,
    /// Commands on our keys that this user may not run, such as `INCRBY`; none when the server can't say (before Redis
    /// 7).
    pub missing_rights: Option<Vec<String>>,
}

/// Whether the store can be used (R49). [`Store::watch`](super::Store::watch) shows changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Never reached since the start; the last failure, if there was one.
    Connecting(Option<StoreError>),
    /// Reads and writes work.
    Connected,
    /// Reads work, writes are refused (OOM, MISCONF): `degraded`.
    WritesRefused(StoreError),
    /// Lost, with the reason.
    Away(StoreError),
}

impl Status {
    /// Whether reads work: `redis: "connected"` in `/health`.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected | Self::WritesRefused(_))
    }
}

/// Latency of the store's commands, and the errors.
#[derive(Debug)]
pub struct Latency {
    times: Histogram,
    errors: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        let bounds = &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];
        Self { times: Histogram::new(bounds), errors: AtomicU64::new(0) }
    }
}

impl Latency {
    /// Commands or pipelines, each counted once.
    pub fn observed(&self) -> Observed {
        self.times.observed()
    }

    /// Commands that failed, or that had no connection to go out on.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Counts a command that could not be sent, for want of a connection.
    pub(crate) fn unsent(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn observe(&self, took: Duration, ok: bool) {
        self.times.observe(took);
        if !ok {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}
