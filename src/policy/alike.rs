//! Faults that hit several accounts alike are upstream's, not the accounts'.
//!
//! Once three accounts of the pool had the same kind of fault within ten seconds, and while that goes on, such a fault
//! says nothing about an account. A pool of fewer accounts can't tell.
//!
//! The brake on suspicion looks for the same pattern and concludes the opposite: when several accounts are suspected,
//! all are spared.
//!
//! Pure: times are arguments.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use crate::proto::kiro::fault::FaultKind;

/// Faults within this time may have one cause.
pub const TOGETHER: Duration = Duration::from_secs(10);
/// How many accounts must have it.
pub const ACCOUNTS: usize = 3;
/// Faults remembered; further ones within the time add nothing.
const MOST: usize = 64;

/// The last faults that may have one cause.
#[derive(Clone, Debug, Default)]
pub struct Alike {
    // Bound: faults that may have one cause | MOST | the oldest goes
    seen: VecDeque<(Timestamp, FaultKind, String)>,
    told: Option<Timestamp>,
}

impl Alike {
    /// Notes an account's fault of this kind. True: it is upstream's.
    pub fn seen(&mut self, kind: FaultKind, id: &str, now: Timestamp) -> bool {
        let recent = |at: Timestamp| at <= now && at.checked_add(TOGETHER).is_ok_and(|until| until > now);
        self.seen.retain(|(at, ..)| recent(*at));
        // Each account's last one counts.
        self.seen.retain(|(_, of, other)| *of != kind || other != id);
        if self.seen.len() >= MOST {
            self.seen.pop_front();
        }
        self.seen.push_back((now, kind, id.to_owned()));
        self.seen.iter().filter(|(_, of, _)| *of == kind).count() >= ACCOUNTS
    }

    /// Whether to log it: once, until there was none for the same time.
    pub fn is_news(&mut self, now: Timestamp) -> bool {
        let last = self.told.replace(now);
        last.is_none_or(|last| last.checked_add(TOGETHER).is_ok_and(|until| until <= now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn the_same_fault_on_three_accounts_within_ten_seconds_is_upstreams_k119() {
        use FaultKind::{Network, ServerError};
        for (seen, expected) in [
            (&[(Network, "a", 0), (Network, "a", 1), (Network, "b", 2)][..], false),
            (&[(Network, "a", 0), (Network, "b", 1), (Network, "c", 9)][..], true),
            (&[(Network, "a", 0), (Network, "b", 1), (Network, "c", 10)][..], false),
            (&[(Network, "a", 0), (Network, "b", 1), (ServerError, "c", 2)][..], false),
            (&[(Network, "a", 0), (Network, "b", 9), (Network, "a", 11), (Network, "c", 12)][..], true),
            (&[(Network, "a", 9), (Network, "b", 9), (Network, "c", 0)][..], false),
        ] {
            let mut alike = Alike::default();
            let mut last = false;
            for (kind, id, second) in seen {
                last = alike.seen(*kind, id, at(*second));
            }
            assert_eq!(last, expected, "{seen:?}");
        }
    }

    #[test]
    fn a_common_fault_is_logged_once_and_the_memory_is_bounded() {
        let mut alike = Alike::default();
        let told = (0..100).filter(|n| alike.is_news(at(*n))).count();
        assert_eq!(told, 1);
        assert!(alike.is_news(at(200)));
        for n in 0..1_000 {
            alike.seen(FaultKind::Network, &n.to_string(), at(0));
        }
        assert_eq!(alike.seen.len(), MOST);
    }
}
