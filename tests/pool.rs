//! Pool and credentials on a real `redis-server`, with a refresh address of the test's own: acceptance cases of
//! contract/cases.md by number.
#![cfg(feature = "gateway")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/accounts.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod accounts;
#[path = "support/address.rs"]
mod address;
#[path = "support/clock.rs"]
mod clock;
#[path = "pool/connections.rs"]
mod connections;
#[path = "pool/instance.rs"]
mod instance;
#[path = "pool/profiles.rs"]
mod profiles;
#[path = "pool/races.rs"]
mod races;
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "pool/refresh.rs"]
mod refresh;
#[path = "pool/regions.rs"]
mod regions;
#[path = "pool/rests.rs"]
mod rests;
#[path = "pool/snapshots.rs"]
mod snapshots;
