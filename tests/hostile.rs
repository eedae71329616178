//! What upstream may do to us: an upstream made by hand, which says what no simulator would, in front of a whole gateway.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "hostile/bounds.rs"]
mod bounds;
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "hostile/secrets.rs"]
mod secrets;
#[path = "hostile/table.rs"]
mod table;
#[path = "hostile/upstream.rs"]
mod upstream;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;
