//! The pool-wide brake on suspicion (K92).
//!
//! Two accounts of the pool that turn `Suspicious` within ten minutes put it on for half an hour. Each further account
//! adds half an hour, up to four hours. Marks of other processes count by the time in their record, so that all
//! instances slow down together.
//!
//! Pure: times are arguments.

use std::time::Duration;

use jiff::Timestamp;

use super::later;

/// Two accounts that turn suspicious within this time put the brake on.
pub const TOGETHER: Duration = Duration::from_secs(600);
/// How long it is on, and how much longer with each further account.
pub const STEP: Duration = Duration::from_secs(30 * 60);
/// How long it is on at most.
pub const LONGEST: Duration = Duration::from_secs(4 * 3600);
/// Requests a minute and account while it is on.
pub const PER_MINUTE: u32 = 4;
/// Requests in flight per account while it is on.
pub const IN_FLIGHT: u32 = 1;

/// The accounts that turned suspicious lately, and the state of the brake.
#[derive(Clone, Debug, Default)]
pub struct Brake {
    turned: Vec<(String, Timestamp)>,
    /// Since when it is or was on, and until when.
    on: Option<(Timestamp, Timestamp)>,
}

impl Brake {
    /// An account turned `Suspicious` at `at`. A time ahead of `now` comes from a wrong clock and counts as now.
    pub fn turned(&mut self, id: &str, at: Timestamp, now: Timestamp) {
        let at = at.min(now);
        let on = self.on.filter(|(_, until)| *until > at);
        let known = on.map_or(at, |(since, _)| since.min(at));
        self.turned.retain(|(_, other)| later(*other, TOGETHER) >= known);
        if let Some((_, known)) = self.turned.iter_mut().find(|(other, _)| other == id) {
            *known = at.max(*known);
        } else {
            self.turned.push((id.to_owned(), at));
            if let Some((since, until)) = on {
                self.on = Some((since, later(until, STEP).min(later(since, LONGEST))));
            }
        }
        if on.is_none() {
            let together = |other: Timestamp| other.max(at).duration_since(other.min(at)).unsigned_abs() <= TOGETHER;
            let other = self.turned.iter().filter(|(other, at)| other != id && together(*at)).map(|(_, at)| *at).max();
            if let Some(other) = other {
                let since = other.max(at);
                self.on = Some((since, later(since, STEP)));
            }
        }
    }

    /// Until when it is on; none: it is off.
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        self.on.map(|(_, until)| until).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(n: i64) -> Timestamp {
        let t0: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        t0 + jiff::SignedDuration::from_mins(n)
    }

    fn brake(turned: &[(&str, i64)]) -> Brake {
        let mut brake = Brake::default();
        for (id, at) in turned {
            brake.turned(id, minute(*at), minute(*at));
        }
        brake
    }

    #[test]
    fn two_accounts_within_ten_minutes_put_the_brake_on_k92() {
        for (turned, until) in [
            (&[][..], None),
            (&[("a", 0)][..], None),
            (&[("a", 0), ("a", 5)][..], None),
            (&[("a", 0), ("b", 11)][..], None),
            (&[("a", 0), ("b", 10)][..], Some(40)),
            (&[("b", 10), ("a", 0)][..], Some(40)),
            (&[("a", 0), ("a", 5), ("b", 12)][..], Some(42)),
            (&[("a", 0), ("b", 1), ("c", 20)][..], Some(61)),
            (&[("a", 0), ("b", 1), ("a", 20), ("b", 25)][..], Some(31)),
            (&[("a", 0), ("b", 1), ("c", 32)][..], None),
            (&[("a", 0), ("b", 1), ("c", 2), ("d", 3), ("e", 4), ("f", 5), ("g", 6), ("h", 7)][..], Some(211)),
            (
                &[("a", 0), ("b", 0), ("c", 0), ("d", 0), ("e", 0), ("f", 0), ("g", 0), ("h", 0), ("i", 0), ("j", 0)][..],
                Some(240),
            ),
        ] {
            let brake = brake(turned);
            let last = turned.iter().map(|(_, at)| *at).max().unwrap_or(0);
            assert_eq!(brake.until(minute(last)), until.map(minute), "{turned:?}");
            assert_eq!(brake.until(minute(until.unwrap_or(last))), None, "it ends by itself: {turned:?}");
        }
    }

    #[test]
    fn a_wrong_clock_counts_as_now_k92() {
        let mut brake = brake(&[("a", 0)]);
        brake.turned("b", minute(1_000_000), minute(1));
        assert_eq!(brake.until(minute(1)), Some(minute(31)));
        assert!(brake.turned.len() == 2);
    }

    #[test]
    fn old_suspicions_are_forgotten_k92() {
        let mut brake = Brake::default();
        for n in 0..100 {
            let at = minute(n * 300);
            brake.turned(&n.to_string(), at, at);
            assert!(brake.turned.len() <= 1);
        }
    }
}
