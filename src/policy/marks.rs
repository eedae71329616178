//! Hosts and regions to avoid for now: one bounded table (K109, K119, K120).
//!
//! A *host* has a circuit: closed, open, half-open. A *gate* is a wire shape in an API region that refused this
//! program's client version. Both are preferences: a marked way is used last, but never refused.
//!
//! ```text
//!  closed ──3 in 60 s, 1 without a success in 60 s, 5 failures in a row of 2 accounts──▶ open (30 s, ×2, at most 10 min)
//!    ▲                                                                                   │ time
//!    └───────────── success ───────────── half-open: one call ◀──────────────────────────┘
//!                                             └─ failure ─▶ open, longer
//! ```

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{doubled, later};
use crate::proto::kiro::fault::FaultKind;
use crate::proto::kiro::route::Shape;

/// The first time that a host is left alone; doubled at each failure of its one call.
const OPEN: Duration = Duration::from_secs(30);
const OPEN_LONGEST: Duration = Duration::from_secs(600);
/// How long a gate is marked (K109).
const GATE: SignedDuration = SignedDuration::from_secs(600);
/// A host that served any account within this time isn't given up at the first failure. Failures count for the same
/// time.
const WINDOW: SignedDuration = SignedDuration::from_secs(60);
const GIVEN_UP_IN_WINDOW: u32 = 3;
const FAILED_IN_A_ROW: u32 = 5;
/// A half-open host's one call counts as lost after this time.
const TRIAL_LOST: SignedDuration = SignedDuration::from_secs(60);
/// Hosts; a pool whose records name more than this has its oldest forgotten.
const MOST: usize = 1024;
/// Gates, likewise.
const MOST_GATES: usize = 64;

/// Where an attempt could go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way<'a> {
    /// The wire shape.
    pub shape: Shape,
    /// Host and port.
    pub host: &'a str,
    /// The API region.
    pub region: &'a str,
}

/// State of a host's circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Circuit {
    /// In use.
    Closed,
    /// Its rest is over: the next call tells.
    HalfOpen,
    /// Left alone.
    Open,
}

impl Circuit {
    /// The value of the gauge `kiro_upstream_host_state`.
    pub const fn gauge(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }

    /// The word in `/health` and the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

#[derive(Debug, Clone, Default)]
struct HostMark {
    until: Option<Timestamp>,
    /// How often in a row it was opened.
    step: u32,
    /// When the one call of a half-open host went out.
    trial: Option<Timestamp>,
    /// The last success.
    served: Option<Timestamp>,
    /// Failures of the kind that gives a host up, since `window`.
    given_up: u32,
    window: Option<Timestamp>,
    /// Counted failures in a row, whose account was the first, and whether another one joined it.
    in_a_row: u32,
    first: String,
    others: bool,
    /// When it was last touched.
    seen: Option<Timestamp>,
}

/// The table.
#[derive(Debug, Default)]
pub struct Marks {
    // Bound: hosts with their circuits | MOST | the one heard of longest ago goes
    hosts: HashMap<String, HostMark>,
    /// Wire shapes and API regions that refused our client version, each until when. Almost always empty.
    // Bound: shapes and regions that refused the client version | MOST_GATES | the oldest goes
    gates: Vec<(Shape, String, Timestamp)>,
}

/// The outcome of one call for its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostOutcome {
    Served,
    GivenUp,
    Failed,
    Gate,
    /// The host answered; the answer says nothing about the host.
    Answered,
}

impl HostOutcome {
    fn of(outcome: Option<FaultKind>) -> Self {
        match outcome {
            None => Self::Served,
            Some(FaultKind::Unreachable | FaultKind::Endpoint) => Self::GivenUp,
            Some(FaultKind::ServerError | FaultKind::Timeout | FaultKind::Network) => Self::Failed,
            Some(FaultKind::ClientVersion) => Self::Gate,
            Some(_) => Self::Answered,
        }
    }
}

impl Marks {
    /// The first unmarked way, as its place in the list. When all are marked, the first whose circuit isn't open, else
    /// the first. `refused`: whether the account's own lessons speak against a shape. None only when there is no way.
    pub fn choose(&mut self, ways: &[Way<'_>], refused: impl Fn(Shape) -> bool, now: Timestamp) -> Option<usize> {
        let free = |marks: &Self, way: &Way<'_>| {
            marks.circuit(way.host, now) != Circuit::Open && !marks.trial_runs(way.host, now)
        };
        let clean =
            |marks: &Self, way: &Way<'_>| free(marks, way) && !marks.gate_is_marked(way, now) && !refused(way.shape);
        let chosen = (ways.iter().position(|way| clean(self, way)))
            .or_else(|| ways.iter().position(|way| free(self, way) && !refused(way.shape)))
            .or_else(|| ways.iter().position(|way| free(self, way)))
            .or((!ways.is_empty()).then_some(0))?;
        let host = ways.get(chosen)?.host;
        if self.circuit(host, now) == Circuit::HalfOpen
            && let Some(mark) = self.hosts.get_mut(host)
        {
            mark.trial = Some(now);
        }
        Some(chosen)
    }

    /// The wire shapes and API regions that refused our client version lately: an account that has no other comes after
    /// those that have one (K109). Almost always empty.
    pub fn gates(&self, now: Timestamp) -> Vec<(Shape, String)> {
        let marked = self.gates.iter().filter(|(.., until)| *until > now);
        marked.map(|(shape, region, _)| (*shape, region.clone())).collect()
    }

    /// A call ended: none, or its fault. The host's new state, if that changed it.
    pub fn heard(
        &mut self,
        way: &Way<'_>,
        account: &str,
        outcome: Option<FaultKind>,
        now: Timestamp,
    ) -> Option<Circuit> {
        let outcome = HostOutcome::of(outcome);
        if matches!(outcome, HostOutcome::Gate | HostOutcome::Served) {
            self.gates.retain(|(shape, region, _)| *shape != way.shape || region != way.region);
        }
        if outcome == HostOutcome::Gate {
            if self.gates.len() == MOST_GATES {
                self.gates.remove(0);
            }
            self.gates.push((way.shape, way.region.to_owned(), now + GATE));
        }
        let before = self.circuit(way.host, now);
        let host = self.host(way.host, now)?;
        host.trial = None;
        match outcome {
            HostOutcome::Served | HostOutcome::Answered | HostOutcome::Gate => {
                // An answer proves that the host is there, whatever it says.
                let served = if outcome == HostOutcome::Served { Some(now) } else { host.served };
                *host = HostMark { served, seen: Some(now), ..HostMark::default() };
            }
            HostOutcome::GivenUp => {
                let young = |at: Option<Timestamp>| at.is_some_and(|at| now.duration_since(at) < WINDOW);
                if !young(host.window) {
                    (host.window, host.given_up) = (Some(now), 0);
                }
                host.given_up += 1;
                // A call that goes out because every host is open doesn't prolong the rest.
                let opens = before == Circuit::HalfOpen || !young(host.served) || host.given_up >= GIVEN_UP_IN_WINDOW;
                if opens && before != Circuit::Open {
                    host.open(now);
                }
            }
            HostOutcome::Failed => {
                if host.in_a_row == 0 {
                    account.clone_into(&mut host.first);
                    host.others = false;
                }
                host.in_a_row += 1;
                host.others |= host.first != account;
                let opens = before == Circuit::HalfOpen || (host.in_a_row >= FAILED_IN_A_ROW && host.others);
                if opens && before != Circuit::Open {
                    host.open(now);
                }
            }
        }
        let after = self.circuit(way.host, now);
        (before != after).then_some(after)
    }

    /// The state of a host's circuit.
    pub fn circuit(&self, host: &str, now: Timestamp) -> Circuit {
        match self.hosts.get(host).and_then(|mark| mark.until) {
            None => Circuit::Closed,
            Some(until) if until > now => Circuit::Open,
            Some(_) => Circuit::HalfOpen,
        }
    }

    /// Every host that was called, with its state, in the order of their names.
    pub fn hosts(&self, now: Timestamp) -> Vec<(String, Circuit)> {
        let mut hosts: Vec<_> = self.hosts.keys().map(|host| (host.clone(), self.circuit(host, now))).collect();
        hosts.sort_by(|(one, _), (other, _)| one.cmp(other));
        hosts
    }

    fn trial_runs(&self, host: &str, now: Timestamp) -> bool {
        let trial = self.hosts.get(host).and_then(|mark| mark.trial);
        trial.is_some_and(|since| now.duration_since(since) < TRIAL_LOST)
    }

    fn gate_is_marked(&self, way: &Way<'_>, now: Timestamp) -> bool {
        let marked = |(shape, region, until): &(Shape, String, Timestamp)| {
            *shape == way.shape && region == way.region && *until > now
        };
        self.gates.iter().any(marked)
    }

    fn host(&mut self, host: &str, now: Timestamp) -> Option<&mut HostMark> {
        if !self.hosts.contains_key(host) {
            if self.hosts.len() >= MOST {
                let oldest = self.hosts.iter().min_by_key(|(_, mark)| mark.seen).map(|(host, _)| host.clone());
                if let Some(oldest) = oldest {
                    self.hosts.remove(&oldest);
                }
            }
            self.hosts.insert(host.to_owned(), HostMark::default());
        }
        let mark = self.hosts.get_mut(host)?;
        mark.seen = Some(now);
        Some(mark)
    }
}

impl HostMark {
    fn open(&mut self, now: Timestamp) {
        let rest = doubled(OPEN, self.step, OPEN_LONGEST);
        self.step = (self.step + 1).min(16);
        self.until = Some(later(now, rest));
        (self.given_up, self.in_a_row) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: Way<'static> = Way { shape: Shape::Q, host: "q", region: "us-east-1" };
    const RUNTIME: Way<'static> = Way { shape: Shape::Runtime, host: "runtime", region: "us-east-1" };
    const BOTH: [Way<'static>; 2] = [Q, RUNTIME];

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn chosen(marks: &mut Marks, seconds: i64) -> Shape {
        let place = marks.choose(&BOTH, |_| false, at(seconds)).unwrap();
        BOTH[place].shape
    }

    #[test]
    fn a_host_that_is_gone_is_left_alone_and_tried_again_k118_k120() {
        let mut marks = Marks::default();
        let gone = Some(FaultKind::Endpoint);
        assert_eq!(chosen(&mut marks, 0), Shape::Q);
        assert_eq!(marks.heard(&Q, "a", gone, at(0)), Some(Circuit::Open), "nobody was served in the last minute");
        for second in 0..30 {
            assert_eq!(chosen(&mut marks, second), Shape::Runtime);
        }
        assert_eq!(chosen(&mut marks, 30), Shape::Q, "half-open: one call");
        assert_eq!(chosen(&mut marks, 30), Shape::Runtime, "and only one");
        assert_eq!(marks.heard(&Q, "a", gone, at(31)), Some(Circuit::Open));
        assert_eq!(chosen(&mut marks, 90), Shape::Runtime, "twice as long");
        assert_eq!(chosen(&mut marks, 91), Shape::Q);
        assert_eq!(marks.heard(&Q, "a", None, at(92)), Some(Circuit::Closed));
        assert_eq!(chosen(&mut marks, 92), Shape::Q);
        // It served a moment ago: three in a minute.
        assert_eq!(marks.heard(&Q, "a", gone, at(93)), None);
        assert_eq!(marks.heard(&Q, "a", gone, at(94)), None);
        assert_eq!(marks.heard(&Q, "a", gone, at(95)), Some(Circuit::Open));
        // A half-open host whose one call never came back.
        assert_eq!(chosen(&mut marks, 125), Shape::Q);
        assert_eq!(chosen(&mut marks, 186), Shape::Q);
        // Both are open: the first, since a circuit may delay and never refuse.
        marks.heard(&Q, "a", gone, at(187));
        marks.heard(&RUNTIME, "a", gone, at(187));
        assert_eq!(chosen(&mut marks, 187), Shape::Q);
        assert_eq!(marks.hosts(at(187)), [("q".to_owned(), Circuit::Open), ("runtime".to_owned(), Circuit::Open)]);
    }

    #[test]
    fn five_failures_in_a_row_of_two_accounts_open_the_circuit_k120() {
        let mut marks = Marks::default();
        let failed = Some(FaultKind::ServerError);
        for n in 0..20 {
            assert_eq!(marks.heard(&Q, "a", failed, at(n)), None, "one account's trouble");
        }
        assert_eq!(marks.heard(&Q, "b", failed, at(20)), Some(Circuit::Open));
        let mut marks = Marks::default();
        for n in 0..20 {
            let account = if n % 2 == 0 { "a" } else { "b" };
            let outcome = if n % 4 == 3 { Some(FaultKind::RateLimited) } else { failed };
            assert_eq!(marks.heard(&Q, account, outcome, at(n)), None, "an answer between them");
        }
        // The longest rest.
        let mut now = 100;
        for _ in 0..12 {
            marks.heard(&RUNTIME, "a", Some(FaultKind::Unreachable), at(now));
            now += 600;
            assert_eq!(marks.circuit("runtime", at(now)), Circuit::HalfOpen);
        }
    }

    #[test]
    fn a_gate_marks_a_shape_in_a_region_for_ten_minutes_k109() {
        let mut marks = Marks::default();
        marks.heard(&Q, "a", Some(FaultKind::ClientVersion), at(0));
        assert_eq!(chosen(&mut marks, 0), Shape::Runtime);
        assert_eq!(marks.gates(at(0)), [(Shape::Q, "us-east-1".to_owned())]);
        marks.heard(&RUNTIME, "a", Some(FaultKind::ClientVersion), at(1));
        assert_eq!(marks.gates(at(1)).len(), 2);
        assert_eq!(chosen(&mut marks, 1), Shape::Q, "nothing is ever excluded");
        assert_eq!(marks.gates(at(601)), [], "their time is over");
        marks.heard(&RUNTIME, "a", None, at(2));
        assert_eq!(chosen(&mut marks, 2), Shape::Runtime);
        assert_eq!(
            marks.choose(&BOTH, |shape| shape == Shape::Runtime, at(2)),
            Some(0),
            "what the account itself is refused"
        );
    }

    #[test]
    fn the_table_is_bounded() {
        let mut marks = Marks::default();
        for n in 0..5_000 {
            let host = format!("h{n}");
            marks.heard(&Way { host: &host, ..Q }, "a", Some(FaultKind::Network), at(n));
        }
        assert_eq!(marks.hosts.len(), MOST);
        assert!(marks.hosts(at(0)).iter().any(|(host, _)| host == "h4999"));
    }
}
