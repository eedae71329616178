//! Idle connections: how long each is kept, and which is opened ahead of need (K67, K143).
//!
//! ```text
//!  request ends ──▶ kept ──next request──▶ used ──▶ …
//!                    ├─ its time is over, or too many ──▶ closed
//!                    └─ the other side has closed it ──▶ closed, and the host's time is shorter from now on
//! ```
//!
//! Pure: times are arguments, all since the same moment. `R` names a way to a host, `C` is a connection.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// Connections of one way that are kept for the whole time; older ones beyond that go after [`SURPLUS`].
pub const KEPT: usize = 4;
/// The time of surplus connections after a burst of streams.
pub const SURPLUS: Duration = Duration::from_secs(5);
/// Idle connections of all ways together.
pub const MOST: usize = 1024;
/// A host that closes early doesn't shorten the time below this.
const LEAST: Duration = Duration::from_secs(5);
/// A shortened time grows by a second in so many seconds.
const GROWS_IN: u32 = 10;
/// A connection is found closed up to this much after it was.
const FOUND_WITHIN: Duration = Duration::from_secs(1);
/// How long after a request its way is in use.
const IN_USE: Duration = Duration::from_secs(600);
/// How long before a connection's time ends it is replaced.
const LEAD: Duration = Duration::from_secs(3);
/// Ways, the last used ones, that have a connection replaced.
const REPLACED_WAYS: usize = 8;
/// Connections that are opened ahead in a minute.
pub const AHEAD_A_MINUTE: usize = 20;
const MINUTE: Duration = Duration::from_secs(60);
/// Pauses after a connection ahead that failed: the first doubled, and the longest.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The idle connections of every way.
#[derive(Debug)]
pub struct IdleConnections<R, C> {
    /// `KIRO_UPSTREAM_KEEP_IDLE`; zero: none is kept.
    keep: Duration,
    // Bound: ways with idle connections, and these | MOST of each | the one touched longest ago goes
    ways: HashMap<R, IdleWay<C>>,
    /// When connections were opened ahead, in the last minute.
    // Bound: connections opened ahead in the last minute | AHEAD_A_MINUTE | no further one is opened
    ahead: VecDeque<Duration>,
}

#[derive(Debug)]
struct IdleWay<C> {
    /// With the time since which each idles. The youngest is at the end and is used next, so that the others age.
    idle: Vec<(C, Duration)>,
    /// A shorter time, and when it was learned.
    learned: Option<(Duration, Duration)>,
    /// When a request last chose this way before any other.
    used: Option<Duration>,
    /// A request is on its way here.
    wanted: bool,
    /// One is being opened ahead.
    opening: bool,
    /// Failures to open one ahead, in a row.
    failures: u32,
    /// None is opened ahead before.
    not_before: Duration,
}

impl<C> Default for IdleWay<C> {
    fn default() -> Self {
        Self {
            idle: Vec::new(),
            learned: None,
            used: None,
            wanted: false,
            opening: false,
            failures: 0,
            not_before: Duration::ZERO,
        }
    }
}

impl<C> IdleWay<C> {
    /// How long a connection is kept now.
    fn time(&self, longest: Duration, now: Duration) -> Duration {
        self.learned.map_or(longest, |(time, at)| longest.min(time + now.saturating_sub(at) / GROWS_IN))
    }

    /// The other side closed a connection that had been idle for `age`.
    fn closed_at(&mut self, age: Duration, longest: Duration, now: Duration) {
        let below = age.saturating_sub(FOUND_WITHIN) * 7 / 8;
        let time = below.max(LEAST).min(self.time(longest, now));
        self.learned = Some((time, now));
    }

    fn is_in_use(&self, now: Duration) -> bool {
        self.used.is_some_and(|used| now.saturating_sub(used) < IN_USE)
    }

    /// Whether one is there that idles for less than `age`.
    fn has_younger(&self, age: Duration, now: Duration) -> bool {
        self.idle.last().is_some_and(|(_, since)| now.saturating_sub(*since) < age)
    }

    /// Its last sign of life.
    fn touched(&self) -> Duration {
        self.idle.last().map(|(_, since)| *since).max(self.used).unwrap_or_default()
    }
}

impl<R: Clone + Eq + Hash, C> IdleConnections<R, C> {
    /// `keep`: how long a connection idles at most; zero: none is kept.
    pub fn new(keep: Duration) -> Self {
        Self { keep, ways: HashMap::new(), ahead: VecDeque::new() }
    }

    /// Idle connections now.
    pub fn count(&self) -> usize {
        self.ways.values().map(|way| way.idle.len()).sum()
    }

    /// The youngest connection of a way that is open, and how long it has idled.
    pub fn take(&mut self, route: &R, now: Duration, mut is_open: impl FnMut(&mut C) -> bool) -> Option<(C, Duration)> {
        let keep = self.keep;
        let way = self.ways.get_mut(route)?;
        while let Some((mut connection, since)) = way.idle.pop() {
            let age = now.saturating_sub(since);
            if age >= way.time(keep, now) {
                continue;
            }
            if is_open(&mut connection) {
                return Some((connection, age));
            }
            way.closed_at(age, keep, now);
        }
        None
    }

    /// Takes in a connection without a running request. With too many the one goes that idles longest.
    pub fn keep(&mut self, route: &R, connection: C, now: Duration) {
        if self.keep.is_zero() {
            return;
        }
        if self.count() >= MOST {
            let oldest = self.ways.values_mut().filter(|way| !way.idle.is_empty()).min_by_key(|way| way.idle[0].1);
            oldest.map(|way| way.idle.remove(0));
        }
        self.way(route).idle.push((connection, now));
    }

    /// A connection that had been idle for `age` was closed before it answered.
    pub fn died(&mut self, route: &R, age: Duration, now: Duration) {
        let keep = self.keep;
        self.way(route).closed_at(age, keep, now);
    }

    /// A request chose this way before any other.
    pub fn chosen(&mut self, route: &R, now: Duration) {
        if !self.keep.is_zero() {
            self.way(route).used = Some(now);
        }
    }

    /// The way that the next request probably takes: the one in use that was chosen last.
    pub fn likely(&self, now: Duration) -> Option<R> {
        let in_use = self.ways.iter().filter(|(_, way)| way.is_in_use(now));
        in_use.max_by_key(|(_, way)| way.used).map(|(route, _)| route.clone())
    }

    /// A request is coming that probably takes this way. Returns whether [`IdleConnections::due`] should be asked.
    pub fn wants(&mut self, route: &R, now: Duration) -> bool {
        let keep = self.keep;
        if keep.is_zero() {
            return false;
        }
        let way = self.way(route);
        way.wanted = !way.opening && !way.has_younger(way.time(keep, now), now);
        way.wanted
    }

    /// Closes what has idled too long, is too much, or was closed by the other side. Call it once a second.
    pub fn sweep(&mut self, now: Duration, mut is_open: impl FnMut(&mut C) -> bool) {
        let keep = self.keep;
        self.ways.retain(|_, way| {
            let time = way.time(keep, now);
            let mut surplus = way.idle.len().saturating_sub(KEPT);
            let mut closed = None;
            way.idle.retain_mut(|(connection, since)| {
                let limit = if surplus > 0 { time.min(SURPLUS) } else { time };
                surplus = surplus.saturating_sub(1);
                let age = now.saturating_sub(*since);
                let stays = age < limit;
                let open = stays && is_open(connection);
                if stays && !open {
                    closed = closed.max(Some(age));
                }
                open
            });
            way.idle.shrink_to(2 * way.idle.len());
            if let Some(age) = closed {
                way.closed_at(age, keep, now);
            }
            let knows = way.time(keep, now) < keep || now < way.not_before;
            !way.idle.is_empty() || way.opening || way.wanted || way.is_in_use(now) || knows
        });
    }

    /// The ways that a connection is to be opened on now, ahead of need; the caller says with
    /// [`IdleConnections::opened`] what became of each. `may`: whether the way may be tried.
    pub fn due(&mut self, now: Duration, may: impl Fn(&R) -> bool) -> Vec<R> {
        let keep = self.keep;
        let lead = LEAD.min(keep / 2);
        while self.ahead.front().is_some_and(|at| now.saturating_sub(*at) >= MINUTE) {
            self.ahead.pop_front();
        }
        let mut used: Vec<_> = self.ways.iter_mut().filter(|(_, way)| way.wanted || way.is_in_use(now)).collect();
        used.sort_by_key(|(_, way)| std::cmp::Reverse((way.wanted, way.used)));
        let mut due = Vec::new();
        for (place, (route, way)) in used.into_iter().enumerate() {
            let wanted = std::mem::take(&mut way.wanted);
            // A request that has just gone out may leave its own connection.
            let is_late = way.used.is_some_and(|used| now.saturating_sub(used) >= lead);
            let replaces = place < REPLACED_WAYS && is_late && now >= way.not_before;
            let may_open = replaces || (wanted && (way.failures == 0 || now >= way.not_before));
            let enough = if wanted { way.time(keep, now) } else { way.time(keep, now).saturating_sub(lead) };
            if may_open
                && !way.opening
                && !way.has_younger(enough, now)
                && self.ahead.len() < AHEAD_A_MINUTE
                && may(route)
            {
                way.opening = true;
                self.ahead.push_back(now);
                due.push(route.clone());
            }
        }
        due
    }

    /// A connection that was [`IdleConnections::due`] is there, or couldn't be made.
    pub fn opened(&mut self, route: &R, made: Option<C>, now: Duration) {
        let pause = self.keep.saturating_sub(LEAD.min(self.keep / 2));
        let way = self.way(route);
        way.opening = false;
        match made {
            Some(connection) => {
                way.failures = 0;
                way.not_before = now + pause;
                self.keep(route, connection, now);
            }
            None => {
                way.failures = (way.failures + 1).min(16);
                way.not_before = now + LONGEST_PAUSE.min(AFTER_FAILURE * (1 << way.failures));
            }
        }
    }

    /// A way's place. Beyond [`MOST`] ways the one goes that was touched longest ago.
    fn way(&mut self, route: &R) -> &mut IdleWay<C> {
        if self.ways.len() >= MOST && !self.ways.contains_key(route) {
            let forgotten = self.ways.iter().filter(|(_, way)| !way.opening).min_by_key(|(_, way)| way.touched());
            if let Some(forgotten) = forgotten.map(|(route, _)| route.clone()) {
                self.ways.remove(&forgotten);
            }
        }
        self.ways.entry(route.clone()).or_default()
    }
}

#[cfg(test)]
#[path = "idle_tests.rs"]
mod tests;
