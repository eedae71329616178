//! Ways that can't be connected: a host, or a host through a proxy.
//!
//! A failure to connect (no DNS, a refusal, a certificate, no file descriptors) is the fault of this machine or the
//! way, and never of an account: nothing of an account was sent. So this process remembers it here, and not on the
//! account, which other machines may reach.
//!
//! ```text
//!  open ──3 failures in a row──▶ rests: fails at once, but for one trial each 250 ms ──a connection is made──▶ open
//! ```
//!
//! Trials don't wait for each other, so one that hangs can't hide that the network is back.
//!
//! Pure: times are arguments, all since the same moment.

use std::collections::HashMap;
use std::time::Duration;

/// The time between two trials of a resting way.
pub const TRY_EVERY: Duration = Duration::from_millis(250);
/// Failures in a row, without a connection between them, after which a way rests. One alone may be one dead address of many.
pub const FAILURES: u32 = 3;
/// Ways remembered.
const MOST: usize = 1024;

/// The ways that have failed, with their state.
#[derive(Debug, Default)]
pub struct Reach {
    // Bound: ways to hosts that failed | MOST | one that doesn't rest and was tried longest ago goes
    ways: HashMap<String, WayState>,
}

#[derive(Debug, Default)]
struct WayState {
    /// Since the last connection.
    failures: u32,
    why: String,
    /// The first of them.
    since: Duration,
    /// The last trial.
    tried: Duration,
    /// The last connection.
    made: Option<Duration>,
}

impl WayState {
    fn rests(&self) -> bool {
        self.failures >= FAILURES
    }
}

impl Reach {
    /// Whether a connection may be tried now; the error says why the last ones weren't made.
    ///
    /// # Errors
    /// The way rests.
    pub fn may_try(&mut self, way: &str, now: Duration) -> Result<(), String> {
        match self.ways.get_mut(way).filter(|way| way.rests()) {
            Some(way) if now < way.tried + TRY_EVERY => Err(way.why.clone()),
            Some(way) => {
                way.tried = now;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A connection begun at `began` failed. True: the way rests from now on. The failure doesn't count when a later
    /// one succeeded.
    pub fn failed(&mut self, way: &str, why: &str, began: Duration, now: Duration) -> bool {
        if self.ways.len() >= MOST && !self.ways.contains_key(way) {
            // The least useful one.
            let least =
                self.ways.iter().min_by_key(|(_, way)| (way.rests(), way.tried.max(way.made.unwrap_or_default())));
            if let Some(least) = least.map(|(name, _)| name.clone()) {
                self.ways.remove(&least);
            }
        }
        let way = self.ways.entry(way.to_owned()).or_default();
        if way.made.is_some_and(|made| made >= began) {
            return false;
        }
        if way.failures == 0 {
            way.since = began;
        }
        let rested = way.rests();
        way.failures = way.failures.saturating_add(1);
        way.tried = way.tried.max(began);
        why.clone_into(&mut way.why);
        if !rested && way.rests() {
            way.tried = now;
            return true;
        }
        false
    }

    /// A connection was made. Returns how long none could be, if the way rested.
    pub fn made(&mut self, way: &str, now: Duration) -> Option<Duration> {
        let way = self.ways.get_mut(way)?;
        let rested = way.rests().then(|| now.saturating_sub(way.since));
        way.failures = 0;
        way.made = Some(now);
        rested
    }

    /// Why a way rests; none: it doesn't.
    pub fn rests(&self, way: &str) -> Option<&str> {
        self.ways.get(way).filter(|way| way.rests()).map(|way| way.why.as_str())
    }

    /// The ways that rest; nearly always none.
    pub fn resting(&self) -> impl Iterator<Item = &str> {
        self.ways.iter().filter(|(_, way)| way.rests()).map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn down(reach: &mut Reach, millis: u64) {
        for n in 1..=FAILURES {
            assert!(reach.may_try("q", at(millis)).is_ok());
            assert_eq!(reach.failed("q", "refused", at(millis), at(millis)), n == FAILURES);
        }
    }

    #[test]
    fn a_way_rests_after_three_failures_and_is_tried_four_times_a_second_k119() {
        let mut reach = Reach::default();
        down(&mut reach, 1_000);
        assert_eq!(reach.rests("q"), Some("refused"));
        let tried = (1_000..3_000).filter(|millis| reach.may_try("q", at(*millis)).is_ok()).count();
        assert_eq!(tried, 7);
        assert!(reach.may_try("runtime", at(2_000)).is_ok(), "another way");
        assert_eq!(reach.made("q", at(3_100)), Some(at(2_100)));
        assert_eq!(reach.made("q", at(3_200)), None, "told once");
        assert!(reach.resting().next().is_none() && reach.may_try("q", at(3_100)).is_ok());
    }

    #[test]
    fn a_success_between_failures_keeps_the_way_open_k119() {
        let mut reach = Reach::default();
        for n in 0..100 {
            reach.failed("q", "refused", at(10 * n), at(10 * n));
            reach.failed("q", "refused", at(10 * n), at(10 * n));
            reach.made("q", at(10 * n + 5));
        }
        assert!(reach.resting().next().is_none());
    }

    #[test]
    fn hanging_trials_block_nobody_and_do_not_count_late_k119() {
        let mut reach = Reach::default();
        down(&mut reach, 0);
        let hanging: Vec<u64> = (0..10_000).step_by(50).filter(|n| reach.may_try("q", at(*n)).is_ok()).collect();
        assert!(hanging.len() >= 39, "{}", hanging.len());
        assert!(reach.made("q", at(10_000)).is_some());
        assert!(hanging.iter().all(|began| !reach.failed("q", "late", at(*began), at(10_001))));
        assert!(reach.resting().next().is_none());
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut reach = Reach::default();
        down(&mut reach, 0);
        for n in 0..5_000 {
            reach.failed(&n.to_string(), "refused", at(n), at(n));
        }
        assert_eq!(reach.ways.len(), MOST);
        assert!(reach.rests("q").is_some(), "what rests is forgotten last");
    }
}
