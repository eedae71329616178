//! Pure decisions: `now` and randomness are arguments.
#![forbid(unsafe_code)]

pub mod affinity;
pub mod alike;
pub mod brake;
pub mod health;
pub mod learned;
pub mod marks;
pub mod names;
pub mod outcome;
pub mod reach;
pub mod retry;
pub mod select;
