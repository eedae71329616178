use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

const KEEP: Duration = Duration::from_secs(55);

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Which connections there are, and which of them the other side has closed.
#[derive(Default)]
struct World {
    there: HashSet<u32>,
    closed: HashSet<u32>,
    next: u32,
}

/// A connection; it is gone when it is dropped.
struct Connection(u32, Rc<RefCell<World>>);

impl Drop for Connection {
    fn drop(&mut self) {
        assert!(self.1.borrow_mut().there.remove(&self.0));
    }
}

impl Connection {
    fn open(world: &Rc<RefCell<World>>) -> Self {
        let mut inside = world.borrow_mut();
        inside.next += 1;
        let number = inside.next;
        inside.there.insert(number);
        drop(inside);
        Self(number, world.clone())
    }

    fn is_open(&mut self) -> bool {
        !self.1.borrow().closed.contains(&self.0)
    }
}

#[test]
fn the_youngest_is_used_and_four_are_kept_for_the_whole_time_k67() {
    let mut idle = IdleConnections::new(KEEP);
    for n in 0..10 {
        idle.keep(&"q", n, s(n));
    }
    idle.sweep(s(10), |_| true);
    assert_eq!(idle.count(), 4, "of those beyond four that are 5 s old or more, none");
    assert_eq!(idle.take(&"q", s(10), |_| true), Some((9, s(1))));
    idle.keep(&"q", 9, s(20));
    idle.sweep(s(60), |_| true);
    assert_eq!(idle.count(), 4);
    idle.sweep(s(63), |_| true);
    assert_eq!(idle.count(), 1);
    assert_eq!(idle.take(&"q", s(75), |_| true), None, "its time is over");
    assert_eq!(idle.take(&"runtime", s(75), |_| true), None);
}

#[test]
fn no_more_than_a_thousand_are_kept_and_zero_keeps_none_k67() {
    let mut idle = IdleConnections::new(KEEP);
    for n in 0..3_000_u64 {
        idle.keep(&(n % 2_000), n, at(n));
    }
    assert_eq!(idle.count(), MOST);
    assert_eq!(idle.take(&999, at(3_000), |_| true), Some((2_999, at(1))), "the oldest have gone");
    let mut none = IdleConnections::new(Duration::ZERO);
    none.keep(&1, 1, s(1));
    none.chosen(&1, s(1));
    assert!(!none.wants(&1, s(1)) && none.due(s(9), |_| true).is_empty());
    assert_eq!((none.count(), none.take(&1, s(1), |_| true)), (0, None));
}

#[test]
fn a_host_that_closes_early_is_learned_and_forgotten_slowly_k67() {
    let mut idle = IdleConnections::new(KEEP);
    idle.keep(&"q", 1, s(0));
    idle.sweep(s(21), |_| false);
    assert_eq!(idle.count(), 0);
    // 7/8 of 20 s.
    let kept = |idle: &mut IdleConnections<&str, i32>, from: Duration, age: Duration| {
        idle.keep(&"q", 2, from);
        idle.sweep(from + age, |_| true);
        idle.take(&"q", from + age, |_| true).is_some()
    };
    assert!(kept(&mut idle, s(21), s(17)));
    assert!(!kept(&mut idle, s(40), s(22)));
    assert!(kept(&mut idle, s(100), s(24)), "it has grown by 8 s");
    // A request found out, at a lower age than any.
    idle.died(&"q", s(2), s(200));
    assert!(kept(&mut idle, s(200), at(4_900)) && !kept(&mut idle, s(210), s(7)), "5 s is the least");
    assert!(kept(&mut idle, s(1_000), s(54)), "all is forgotten");
    idle.sweep(s(1_001), |_| true);
    assert!(idle.ways.is_empty());
}

#[test]
fn a_way_in_use_has_its_connection_replaced_before_its_end_k143() {
    let mut idle = IdleConnections::new(KEEP);
    idle.chosen(&"q", s(0));
    idle.keep(&"fallback", 0, s(0));
    idle.keep(&"q", 0, s(10));
    let mut opened = Vec::new();
    for second in 10..1_000 {
        let now = s(second);
        idle.sweep(now, |_| true);
        for way in idle.due(now, |_| true) {
            assert_eq!(way, "q", "nobody chose the other one first");
            assert!(idle.due(now, |_| true).is_empty(), "one at a time");
            opened.push(second);
            idle.opened(&way, Some(1), now);
        }
        assert!(second >= 600 || idle.ways["q"].has_younger(KEEP, now), "{second}");
    }
    assert_eq!(opened, [62, 114, 166, 218, 270, 322, 374, 426, 478, 530, 582], "and none once it is quiet");
    assert!(idle.ways.is_empty());
}

#[test]
fn failures_ahead_back_off_and_a_resting_way_is_left_alone_k143() {
    let mut idle = IdleConnections::<_, ()>::new(KEEP);
    let mut tried = Vec::new();
    for second in 0..1_500 {
        let now = s(second);
        if second % 100 == 0 {
            idle.chosen(&"q", now);
        }
        assert!(idle.due(now, |_| false).is_empty());
        for way in idle.due(now, |_| true) {
            tried.push(second);
            idle.opened(&way, None, now);
        }
    }
    assert_eq!(tried, [3, 13, 33, 73, 153, 313, 633, 1_233]);
}

#[test]
fn a_request_that_is_coming_has_one_opened_unless_one_is_there_k143() {
    let mut idle = IdleConnections::new(KEEP);
    assert_eq!(idle.likely(s(0)), None);
    idle.chosen(&"old", s(1));
    idle.chosen(&"q", s(2));
    assert_eq!(idle.likely(s(3)), Some("q"));
    assert!(idle.wants(&"q", s(3)));
    assert_eq!(idle.due(s(3), |_| true), ["q"]);
    assert!(!idle.wants(&"q", s(3)), "it is being opened");
    idle.opened(&"q", Some(1), s(3));
    assert!(!idle.wants(&"q", s(4)), "it is there");
    assert!(idle.take(&"q", s(4), |_| true).is_some());
    assert!(idle.wants(&"q", s(5)), "another one needs another one, at once");
    assert_eq!(idle.due(s(5), |_| true)[0], "q");
    assert_eq!(idle.likely(s(700)), None);
}

#[test]
fn few_are_opened_ahead_however_many_ways_there_are_k143() {
    let mut idle = IdleConnections::new(KEEP);
    let mut opened = Vec::new();
    for second in 0..600 {
        let now = s(second);
        (0..50).for_each(|way| idle.chosen(&way, now.saturating_sub(s(10))));
        idle.sweep(now, |_| true);
        for way in idle.due(now, |_| true) {
            opened.push(second);
            idle.opened(&way, Some(second), now);
        }
        let lately = opened.iter().filter(|at| **at + 60 > second).count();
        assert!(lately <= AHEAD_A_MINUTE && idle.count() <= 50 * KEPT, "{lately}");
    }
    assert!(opened.len() > 20);
}

#[derive(Debug, Clone)]
enum Step {
    Passes(u64),
    /// A request begins, on a kept connection or a new one; the connection comes back, or doesn't.
    Request {
        way: u8,
        returns: bool,
    },
    Dies {
        way: u8,
    },
    Closes(u32),
    Sweep,
    Wants(u8),
    Due {
        rests: u8,
    },
    Opened {
        made: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u64..20_000).prop_map(Step::Passes),
        1 => (60_000_u64..900_000).prop_map(Step::Passes),
        6 => (0_u8..5, any::<bool>()).prop_map(|(way, returns)| Step::Request { way, returns }),
        1 => (0_u8..5).prop_map(|way| Step::Dies { way }),
        2 => (0_u32..200).prop_map(Step::Closes),
        4 => Just(Step::Sweep),
        2 => (0_u8..5).prop_map(Step::Wants),
        4 => (0_u8..6).prop_map(|rests| Step::Due { rests }),
        3 => any::<bool>().prop_map(|made| Step::Opened { made }),
    ]
}

proptest! {
    /// Whatever happens in which order: none is used after its end or once it was closed, none leaks, and the bounds hold.
    #[test]
    fn in_every_order_none_is_used_after_its_end_and_none_leaks_k67_k143(
        steps in prop::collection::vec(step(), 1..150),
        keep in prop_oneof![Just(0_u64), Just(2), Just(20), Just(55)],
    ) {
        let keep = s(keep);
        let world = Rc::new(RefCell::new(World::default()));
        let mut idle = IdleConnections::new(keep);
        let (mut now, mut opening, mut busy, mut ahead) = (s(0), Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Passes(millis) => now += at(millis),
                Step::Request { way, returns } => {
                    idle.chosen(&way, now);
                    let taken = idle.take(&way, now, Connection::is_open);
                    if let Some((connection, age)) = &taken {
                        prop_assert!(*age < keep, "{age:?}");
                        prop_assert!(!world.borrow().closed.contains(&connection.0));
                    }
                    let connection = taken.map_or_else(|| Connection::open(&world), |(connection, _)| connection);
                    match returns {
                        true => idle.keep(&way, connection, now),
                        false if busy.len() < 5 => busy.push(connection),
                        false => {}
                    }
                }
                Step::Dies { way } => {
                    if let Some((_, age)) = idle.take(&way, now, Connection::is_open) {
                        idle.died(&way, age, now);
                        let time = idle.ways[&way].time(keep, now);
                        prop_assert!(time <= age.max(LEAST) && time <= keep, "{time:?} after {age:?}");
                    }
                }
                Step::Closes(number) => drop(world.borrow_mut().closed.insert(number)),
                Step::Sweep => {
                    idle.sweep(now, Connection::is_open);
                    for way in idle.ways.values() {
                        let age = |(_, since): &(Connection, Duration)| now.saturating_sub(*since);
                        prop_assert!(way.idle.iter().all(|one| age(one) < keep));
                        prop_assert!(way.idle.iter().filter(|one| age(one) >= SURPLUS).count() <= KEPT);
                        let closed = &world.borrow().closed;
                        prop_assert!(way.idle.iter().all(|(connection, _)| !closed.contains(&connection.0)));
                    }
                }
                Step::Wants(way) => drop(idle.wants(&way, now)),
                Step::Due { rests } => {
                    for way in idle.due(now, |way| *way != rests) {
                        prop_assert!(way != rests && !opening.contains(&way) && !keep.is_zero());
                        opening.push(way);
                        ahead.push(now);
                    }
                    let lately = ahead.iter().filter(|at| now.saturating_sub(**at) < MINUTE).count();
                    prop_assert!(lately <= AHEAD_A_MINUTE);
                }
                Step::Opened { made } => {
                    if let Some(way) = opening.pop() {
                        idle.opened(&way, made.then(|| Connection::open(&world)), now);
                    }
                }
            }
            prop_assert_eq!(world.borrow().there.len(), idle.count() + busy.len(), "a connection leaks");
            prop_assert!(idle.count() <= MOST);
            prop_assert!(keep > Duration::ZERO || idle.count() == 0);
        }
        for way in opening {
            idle.opened(&way, None, now);
        }
        now += s(3_600);
        idle.sweep(now, Connection::is_open);
        idle.due(now, |_| true).iter().for_each(|way| idle.opened(way, None, now));
        idle.sweep(now + s(3_600), Connection::is_open);
        prop_assert!(idle.ways.is_empty() && world.borrow().there.len() == busy.len());
    }
}
