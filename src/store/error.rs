//! A failure of the store.

use std::{fmt, io};

/// A failure of the store. Its text holds addresses of files and error words, never a value (R6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    pub(super) kind: StoreErrorKind,
    pub(super) detail: String,
    /// Whether the command may have been executed all the same.
    pub(super) perhaps_done: bool,
    /// The store isn't away but read-only.
    pub(super) read_only: bool,
}

/// The meaning of a [`StoreError`] for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// The configuration can't work: bad URL, unreadable certificate. Start-up fails.
    Config,
    /// Connection lost, timeout, LOADING, READONLY, CLUSTERDOWN, MASTERDOWN; a folder that can't be written (R49, R66).
    Away,
    /// NOAUTH, WRONGPASS, NOPERM: start-up fails with that word; later it counts as away (R49).
    Refused,
    /// OOM, MISCONF: reads go on, writes stay pending (R49).
    WritesRefused,
    /// The shared counter isn't an integer or would overflow: local tickets (R36).
    Counter,
    /// The store holds something unexpected: WRONGTYPE, a file that is not JSON (R65).
    Broken,
    /// The client registration beside a token file is missing, expired or refused (R67).
    Registration,
}

impl StoreError {
    pub(crate) fn new(kind: StoreErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), perhaps_done: false, read_only: false }
    }

    pub(crate) fn away(detail: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Away, detail)
    }

    /// Its meaning.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// Whether the store counts as away from now on (R49). At start-up look for [`StoreErrorKind::Refused`] first.
    pub fn is_away(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Away | StoreErrorKind::Refused)
    }

    /// Whether this store can only be read: a replica, a file that may not be written. That may last, so nothing is
    /// begun that must be saved.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the command may have been executed although its reply was lost (R22).
    pub fn is_perhaps_done(&self) -> bool {
        self.perhaps_done
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            StoreErrorKind::Config => "store configuration",
            StoreErrorKind::Away => "store away",
            StoreErrorKind::Refused => "store refused access",
            StoreErrorKind::WritesRefused => "store refused to write",
            StoreErrorKind::Counter => "round-robin counter",
            StoreErrorKind::Broken => "store content",
            StoreErrorKind::Registration => "client registration",
        };
        write!(f, "{what}: {}", self.detail)
    }
}

impl std::error::Error for StoreError {}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        io::Error::other(error)
    }
}
