//! How many requests a minute: a token bucket whose whole state is one time, the generic cell rate algorithm.

use std::time::Duration;

/// The burst that is allowed, and what a full bucket takes to fill.
const MINUTE: Duration = Duration::from_secs(60);

/// Takes one of `a_minute` requests. `due` is the state, zero at first; both times count from the same moment. Returns the
/// new state.
///
/// # Errors
/// The limit is reached: how long until it isn't.
pub fn take(due: Duration, now: Duration, a_minute: u32) -> Result<Duration, Duration> {
    let next = due.max(now) + MINUTE / a_minute.max(1);
    match next.checked_sub(now + MINUTE) {
        None | Some(Duration::ZERO) => Ok(next),
        Some(early) => Err(early),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is taken of requests that come at these times.
    fn taken(a_minute: u32, times: impl Iterator<Item = Duration>) -> usize {
        let mut due = Duration::ZERO;
        times.filter(|now| take(due, *now, a_minute).map(|next| due = next).is_ok()).count()
    }

    #[test]
    fn a_minutes_worth_at_once_and_then_at_its_pace_m88() {
        for a_minute in [1, 3, 60, 600, 7] {
            let most = usize::try_from(a_minute).unwrap();
            assert_eq!(taken(a_minute, (0..1000).map(|_| Duration::from_secs(5))), most, "at once");
            // Ten a second for ten minutes: the burst, and then the pace.
            let all = taken(a_minute, (0..6000).map(|n| Duration::from_millis(100 * n)));
            assert!((most * 11 - 1..=most * 11).contains(&all) || a_minute == 600 && all == 6000, "{a_minute}: {all}");
        }
    }

    #[test]
    fn the_wait_is_what_it_takes_m88() {
        let now = Duration::from_secs(100);
        let mut due = Duration::ZERO;
        for _ in 0..2 {
            due = take(due, now, 2).unwrap();
        }
        let wait = take(due, now, 2).unwrap_err();
        assert_eq!(wait, Duration::from_secs(30));
        assert!(take(due, now + wait - Duration::from_millis(1), 2).is_err());
        assert!(take(due, now + wait, 2).is_ok());
    }
}
