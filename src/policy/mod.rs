//! Pure decisions: `now` and randomness are arguments.
#![forbid(unsafe_code)]

#[cfg(feature = "gateway")]
pub(crate) mod account;
pub mod affinity;
pub mod alike;
pub mod brake;
#[cfg(feature = "gateway")]
pub(crate) mod credential;
pub mod health;
pub mod learned;
pub mod marks;
pub mod names;
pub mod outcome;
#[cfg(feature = "gateway")]
pub(crate) mod pending;
pub mod reach;
pub mod retry;
pub mod select;
#[cfg(feature = "gateway")]
pub mod unsaved;
#[cfg(feature = "gateway")]
pub mod view;
#[cfg(feature = "gateway")]
pub(crate) mod waiting;

#[cfg(feature = "gateway")]
pub(crate) fn later(start: jiff::Timestamp, pause: std::time::Duration) -> jiff::Timestamp {
    start.checked_add(pause).unwrap_or(jiff::Timestamp::MAX)
}
