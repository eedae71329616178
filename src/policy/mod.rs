//! Pure decisions: `now` and randomness are arguments.
#![forbid(unsafe_code)]

use std::time::Duration;

#[cfg(feature = "gateway")]
pub(crate) mod account;
pub mod affinity;
pub mod alike;
pub mod brake;
#[cfg(feature = "gateway")]
pub(crate) mod credential;
pub mod health;
pub mod idle;
pub mod learned;
pub mod marks;
pub mod names;
pub mod notices;
pub mod outcome;
pub mod pace;
#[cfg(feature = "gateway")]
pub(crate) mod pending;
pub mod reach;
#[cfg(feature = "gateway")]
pub(crate) mod renewal;
pub mod retry;
pub mod select;
pub mod suspicion;
#[cfg(feature = "gateway")]
pub mod unsaved;
#[cfg(feature = "gateway")]
pub mod view;
#[cfg(feature = "gateway")]
pub(crate) mod waiting;

pub(crate) fn later(start: jiff::Timestamp, pause: Duration) -> jiff::Timestamp {
    start.checked_add(pause).unwrap_or(jiff::Timestamp::MAX)
}

/// `first · 2ⁿ`, at most `longest`.
fn doubled(first: Duration, n: u32, longest: Duration) -> Duration {
    2_u32.checked_pow(n).and_then(|factor| first.checked_mul(factor)).map_or(longest, |time| time.min(longest))
}
