//! The background writer: what happened to the accounts reaches the store, merged, late if need be, once (R30–R33, R51).

use std::time::Duration;

use jiff::Timestamp;

use super::{Clock, Store, UnsavedToken};

/// What one attempt did to its account: the rows of §8. Times are wall clock.
///
/// `started_at` is when the attempt started. A success heals only a failure that is not younger than that (R28), and a
/// late failure of an attempt that started before a heavier mark (ejected, then quota, then cool-down) was set counts,
/// but doesn't replace that mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutcomePatch {
    /// `usageCount` += 1, `lastUsed`; heals (R28).
    Success {
        /// When it ended.
        at: Timestamp,
        /// When the attempt started.
        started_at: Timestamp,
    },
    /// `usageCount` += 1, `lastUsed`, nothing else: a fault after the commit. Its own row is reported beside it.
    Used {
        /// When it ended.
        at: Timestamp,
    },
    /// Heals without counting a use: a good answer to a probe that is no request (R17).
    Healed {
        /// When the probe started.
        started_at: Timestamp,
    },
    /// `errorCount` += 1, `lastErrorTime`, `lastErrorMessage`, `lastUsed`.
    Counted {
        /// When it failed.
        at: Timestamp,
        /// When the attempt started.
        started_at: Timestamp,
        /// One line without secrets.
        cause: String,
    },
    /// `isHealthy:false` until a time (R16).
    CoolDown {
        /// When it failed.
        at: Timestamp,
        /// When the attempt started.
        started_at: Timestamp,
        /// End of the rest.
        until: Timestamp,
        /// One line without secrets.
        cause: String,
    },
    /// `isHealthy:false` until the quota resets.
    Quota {
        /// When it failed.
        at: Timestamp,
        /// When the attempt started.
        started_at: Timestamp,
        /// `scheduledRecoveryTime`.
        until: Timestamp,
        /// The quota's name.
        cause: String,
    },
    /// `isHealthy:false`, `errorCount:10`, until a person acts. The prefix `ejected: ` is added here.
    Ejected {
        /// When it failed.
        at: Timestamp,
        /// When the attempt started.
        started_at: Timestamp,
        /// One line without secrets.
        cause: String,
    },
    /// `needsRefresh:false`, `refreshCount:0`, `lastHealthCheckTime`.
    Refreshed {
        /// When the new token came.
        at: Timestamp,
    },
}

/// Collects outcomes and unsaved tokens and writes them in the background. Cheap to clone; one per gateway (R30).
///
/// Holds one entry per account, whatever the outage. The task ends when the last clone is dropped; what is pending then
/// is lost, so call [`Writer::flush`] first.
#[derive(Clone, Debug)]
pub struct Writer;

/// What is waiting to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Accounts with outcomes.
    pub accounts: Vec<String>,
    /// Accounts with tokens that upstream has rotated and the store doesn't hold.
    pub tokens: Vec<String>,
}

impl Writer {
    /// Starts the background task. Needs a tokio runtime.
    pub fn spawn(_store: Store, _clock: Clock) -> Self {
        Self
    }

    /// Takes in an outcome; never waits (R32).
    pub fn record(&self, _account_id: &str, _outcome: OutcomePatch) {}

    /// Takes in a refreshed token that could not be saved; a newer one replaces an older one (R51). Never waits.
    pub fn keep_token(&self, _account_id: &str, _token: UnsavedToken) {}

    /// What is waiting. `accounts` is R50's and the metrics' "queued writes".
    pub fn pending(&self) -> Pending {
        Pending::default()
    }

    /// Whether a mark or heal of this account is not written yet, or was written after `since`: then it stands against
    /// a snapshot whose read began at `since` (R18).
    pub fn is_newer_than(&self, _account_id: &str, _since: tokio::time::Instant) -> bool {
        false
    }

    /// Writes everything that is pending, for at most `deadline`; returns and logs what could not be written (R33).
    pub async fn flush(&self, _deadline: Duration) -> Pending {
        Pending::default()
    }
}
