//! Where the clock, chance and tasks enter. What lies below the gateway gets them as arguments.

use std::future::Future;
use std::time::SystemTime;

use jiff::Timestamp;
use tokio::time::Instant;

pub(super) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the gateway is where the wall clock enters")]
pub(super) fn wall_clock() -> Timestamp {
    Timestamp::try_from(SystemTime::now()).unwrap_or_default()
}

/// A prefix and 24 characters.
pub(super) fn random_id(prefix: &str) -> String {
    let mut id = String::with_capacity(prefix.len() + 24);
    id.push_str(prefix);
    id.extend((0..24).map(|_| fastrand::alphanumeric()));
    id
}

pub(super) fn random_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[expect(clippy::disallowed_methods, reason = "the gateway's background tasks; they end with the gateway")]
pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}
