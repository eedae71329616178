//! The state of an account's health and its transitions.
//!
//! ```text
//!             ×1, ×1, ×1 or 429                     end of the rest
//!   healthy ───────────────────▶ cooling(until) ───────────────────▶ half-open
//!      ▲  │ 402, quota             ▲                                  │   │
//!      │  ├──────────▶ quota(until)│──── the next longer rest ◀────── ×1  │
//!      │  └ suspended, dead token ▶ ejected (until a person acts, R47)    │
//!      └────────────────────────── success (R28) ◀────────────────────────┘
//! ```
//!
//! Pure: `now` is an argument. A [`Health`] is what this process believes of one account: the record as the last
//! snapshot had it ([`Standing`]), what we did to it since, and what only this process knows (R58): failures in a row,
//! the length of the next rest, a running `Retry-After`.

use jiff::Timestamp;

/// Prefix of `lastErrorMessage` of a resting account (R27).
pub const COOL_DOWN_PREFIX: &str = "cool-down until ";
/// Prefix of `lastErrorMessage` of an account whose quota is used up (R27).
pub const QUOTA_PREFIX: &str = "quota exhausted until ";
/// Prefix of `lastErrorMessage` of an account that only a person brings back (R27).
pub const EJECTED_PREFIX: &str = "ejected: ";
/// `errorCount` of an ejected account (§8).
pub const EJECTED_ERROR_COUNT: u64 = 10;

/// What one event changes in an account's record (redis-contract.md §8). Made here, written by the store's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// When it happened; becomes `lastUsed`, `lastErrorTime`, `lastHealthCheckTime`.
    pub at: Timestamp,
    /// What happened.
    pub event: Event,
}

/// The rows of redis-contract.md §8 that touch an account's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `usageCount` += 1, `lastUsed`; heals a record whose `lastErrorTime` is not later than `started` (R28).
    Success {
        /// When the attempt was started.
        started: Timestamp,
        /// Whether it healed the account in this process. The record may differ: the writer decides by R28.
        heals: bool,
        /// Whether it was the one request that a half-open account gets.
        half_open: bool,
    },
    /// A fault that marks the account, a fault after the commit, or both.
    Fault {
        /// What it means for the account; none when the fault's class is no fault of the account.
        mark: Option<Mark>,
        /// After the commit: `usageCount` += 1 and `lastUsed` too.
        used: bool,
    },
    /// The access token was refreshed: `needsRefresh:false, refreshCount:0, lastHealthCheckTime`.
    Refreshed,
}

/// What a fault means for its account, weakest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// ×1: `errorCount` += 1, `lastErrorTime`, `lastErrorMessage`, `lastUsed`; the account stays healthy.
    Failure {
        /// One line, no secret.
        cause: String,
    },
    /// Rests until then: `isHealthy:false`, a stale `scheduledRecoveryTime` becomes null.
    CoolDown {
        /// The end of the rest.
        until: Timestamp,
        /// One line, no secret.
        cause: String,
    },
    /// Out until its quota is renewed: `scheduledRecoveryTime` too.
    Quota {
        /// When it is renewed.
        until: Timestamp,
        /// One line, no secret.
        cause: String,
    },
    /// Out until a person acts: `errorCount` becomes [`EJECTED_ERROR_COUNT`].
    Ejected {
        /// One line, no secret.
        cause: String,
    },
}

impl Mark {
    /// The `lastErrorMessage`: one line, at most 200 characters, with the machine-read prefix (R27).
    pub fn message(&self) -> String {
        let whole = match self {
            Self::Failure { cause } => cause.clone(),
            Self::CoolDown { until, cause } => format!("{COOL_DOWN_PREFIX}{until:.3}: {cause}"),
            Self::Quota { until, cause } => format!("{QUOTA_PREFIX}{until:.3}: {cause}"),
            Self::Ejected { cause } => format!("{EJECTED_PREFIX}{cause}"),
        };
        whole.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
    }
}

/// The health fields of an account record (redis-contract.md §3), as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `isHealthy`, absent: true.
    pub healthy: bool,
    /// `isDisabled`.
    pub disabled: bool,
    /// `needsRefresh`.
    pub stale: bool,
    /// `errorCount`.
    pub error_count: u64,
    /// `lastErrorTime`.
    pub last_error: Option<Timestamp>,
    /// `lastErrorMessage`.
    pub message: Option<String>,
    /// `scheduledRecoveryTime`.
    pub recovery: Option<Timestamp>,
}

/// What an account is good for now (redis-contract.md §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Switched off by a person.
    Disabled,
    /// Its record can't be read or it has no credential.
    Unusable,
    /// Its quota is used up until then. Never selected.
    Quota {
        /// When it is renewed.
        until: Timestamp,
    },
    /// Out until a person acts. Never selected.
    Ejected,
    /// Rests.
    Cooling {
        /// The end of the rest.
        until: Timestamp,
    },
    /// Gets one request at a time; success heals.
    HalfOpen,
    /// Its token needs a refresh: only when no healthy account is left.
    Stale,
    /// Selected as it comes.
    Healthy,
}
