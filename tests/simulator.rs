//! The simulator over a real socket, read by `aws-smithy-eventstream` and a plain HTTP reader of its own: nothing of
//! ours judges what it sends.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "simulator/client.rs"]
mod client;
#[path = "simulator/kiro.rs"]
mod kiro;
#[path = "simulator/scenarios.rs"]
mod scenarios;
#[path = "simulator/serving.rs"]
mod serving;
