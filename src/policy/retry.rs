//! The verdict after a fault: stop, same account, next account.

use std::time::Duration;

/// What the driver does after a fault before the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The fault is the answer.
    Stop,
    /// The same account once more, after the remedy. Uses up no attempt.
    SameAccount(Remedy),
    /// Another account.
    NextAccount {
        /// How long to wait before.
        after: Duration,
    },
}

/// What must be done before the same account is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// One forced, single-flight refresh of the access token.
    RefreshToken,
    /// Leave `reasoningContent` out of the history.
    WithoutReasoning,
    /// Look the account's profile up (K64).
    LookUpProfile,
}
