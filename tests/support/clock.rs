//! Time as a test wants it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use kiro_messages::store::Clock;
use tokio::time::{Instant, sleep};

/// `T0` of the contract.
pub fn t0() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().unwrap()
}

/// A wall clock that the test moves.
#[derive(Clone)]
pub struct Time(pub Arc<AtomicI64>);

impl Time {
    pub fn new() -> Self {
        Self(Arc::new(AtomicI64::new(t0().as_millisecond())))
    }

    pub fn clock(&self) -> Clock {
        let millis = self.0.clone();
        Arc::new(move || Timestamp::from_millisecond(millis.load(Ordering::Relaxed)).unwrap())
    }

    pub fn set(&self, text: &str) {
        self.0.store(text.parse::<Timestamp>().unwrap().as_millisecond(), Ordering::Relaxed);
    }

    pub fn pass(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1000, Ordering::Relaxed);
    }
}

/// Looks every 10 ms until it is so.
pub async fn eventually(what: &str, within: Duration, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !check() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
