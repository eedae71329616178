//! Pure decisions: `now` and randomness are arguments.
#![forbid(unsafe_code)]

pub mod account;
pub mod affinity;
pub mod alike;
pub mod brake;
pub(crate) mod credential;
pub mod health;
pub mod learned;
pub mod marks;
pub mod names;
pub mod outcome;
pub mod reach;
pub mod retry;
pub mod select;
pub mod unsaved;
pub mod view;

use std::time::Duration;

use jiff::Timestamp;

pub(crate) fn later(start: Timestamp, pause: Duration) -> Timestamp {
    start.checked_add(pause).unwrap_or(Timestamp::MAX)
}
