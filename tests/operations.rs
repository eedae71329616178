//! Every setting with its effect, metrics, log lines, reload, dumps, profiles; on the simulator, a real Redis
//! and the built `kiro-server`.
#![cfg(all(feature = "server", unix))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "operations/client.rs"]
mod client;
#[path = "operations/command_line.rs"]
mod command_line;
#[path = "operations/debug.rs"]
mod debug;
#[path = "operations/dumps.rs"]
mod dumps;
#[path = "operations/ends.rs"]
mod ends;
#[path = "operations/keys.rs"]
mod keys;
#[path = "operations/logs.rs"]
mod logs;
#[path = "operations/metrics.rs"]
mod metrics;
#[path = "operations/place.rs"]
mod place;
#[path = "support/redis_server.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "operations/reload.rs"]
mod reload;
#[path = "operations/settings.rs"]
mod settings;
#[path = "operations/simulated.rs"]
mod simulated;
#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;
