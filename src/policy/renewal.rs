//! How a refresh and a look-up of profiles end, for all who wait for them.

use crate::proto::kiro::fault::{Fault, FaultKind, NO_TOKEN};
use crate::proto::kiro::token::Refusal;

/// Why there is no fresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshError {
    /// The account is not in the pool.
    Gone,
    /// There is no readable token record (R45).
    NoCredential,
    /// The record can't be refreshed: an API key, no refresh token, IdC without a client registration, or an invalid
    /// region (K11).
    NotRefreshable,
    /// Refused for good; the account is ejected (R41).
    Rejected,
    /// Refused, but not believed yet, or only for now (K59–K61).
    Refused(Refusal),
    /// The address can't be reached from this machine: nothing was sent.
    Unreachable,
    /// The connection broke off.
    Network,
    /// No answer within 15 s.
    Timeout,
    /// Another process held the lock for 20 s.
    StillLocked,
    /// A refresh failed a moment ago and the next one must wait (K60).
    Pausing,
    /// Another process holds the lock (background only).
    Locked,
    /// The client registration beside a Kiro token file is missing, expired or refused (R67).
    Registration,
    /// The store can only be read, and no journal works: a new token could not be saved.
    ReadOnly,
    /// The process is stopping.
    Closed,
}

impl RefreshError {
    /// The fault of the attempt that needed the token. Reported to the account it counts once (R42), but not when the
    /// account is ejected already or has no credential (R45).
    pub fn fault(self) -> Fault {
        let (kind, what) = match self {
            Self::Gone => (FaultKind::TokenRejected, "it left the pool"),
            Self::NoCredential => (FaultKind::TokenRejected, "its token record is missing or can't be read"),
            Self::ReadOnly => (
                FaultKind::TokenRejected,
                "it has expired, and a new one could not be saved: the store is read-only, and the log names what to make writable",
            ),
            Self::NotRefreshable => (FaultKind::Forbidden, "it has expired and can't be refreshed"),
            Self::Rejected => (FaultKind::TokenRejected, "its refresh token was rejected"),
            Self::Registration => (FaultKind::ServerError, "its client registration is missing or expired"),
            Self::Refused(Refusal::ClientVersion) => (FaultKind::ClientVersion, "the client version was refused"),
            Self::Refused(_) => (FaultKind::ServerError, "the token refresh was refused"),
            // Nothing was sent, so the account gets no mark.
            Self::Unreachable | Self::Closed => (FaultKind::Unreachable, "the token refresh could not connect"),
            Self::Pausing => (FaultKind::Unreachable, "the token refresh failed a moment ago"),
            Self::Network => (FaultKind::Network, "the token refresh broke off"),
            Self::Timeout => (FaultKind::Timeout, "the token refresh took too long"),
            Self::StillLocked | Self::Locked => (FaultKind::Timeout, "another process is still refreshing it"),
        };
        no_token(kind, what)
    }
}

pub(crate) fn no_token(kind: FaultKind, what: &str) -> Fault {
    Fault { kind, status: None, reason: None, message: format!("{NO_TOKEN}{what}").into(), retry_after: None }
}

/// How a refresh ended, for all who wait for it. After a success the token is in memory.
pub(crate) type Ended = Result<(), RefreshError>;

/// How a look-up of profiles ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookUp {
    /// There are profiles: the account has other variants now.
    Found,
    /// There are none: the organisation's administrator must add this user to one.
    Nothing,
    /// The account is an AWS Builder ID: it has other variants now.
    BuilderId,
    /// There was no answer that can be believed, or none within 10 s.
    Unanswered,
    /// It was not asked: the account's kind has no profiles, or it was asked a moment ago.
    NotAsked,
}
