//! How an account stands by its record.

use jiff::Timestamp;

use super::note::Note;

/// The health fields of an account record (R70), as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `isHealthy`, absent: true.
    pub healthy: bool,
    /// `isDisabled`: set by a person. Default false.
    pub disabled: bool,
    /// `needsRefresh`: its access token should be renewed. Default false.
    pub stale: bool,
    /// `errorCount`: failures since the last success; 0 to 10^14 − 1.
    pub error_count: u64,
    /// `lastErrorTime`: when the last failure happened.
    pub last_error: Option<Timestamp>,
    /// `lastErrorMessage`: the last failure. See [`Standing::mark`].
    pub note: Option<Note>,
    /// `scheduledRecoveryTime`: when a quota resets. Counts only while the account is not healthy (R15).
    pub recovery: Option<Timestamp>,
}

impl Default for Standing {
    /// An account without failures.
    fn default() -> Self {
        Self {
            healthy: true,
            disabled: false,
            stale: false,
            error_count: 0,
            last_error: None,
            note: None,
            recovery: None,
        }
    }
}

impl Standing {
    /// The note of an account that is not healthy; of a healthy one it doesn't count (R15).
    pub fn mark(&self) -> Option<&Note> {
        self.note.as_ref().filter(|_| !self.healthy)
    }
}
