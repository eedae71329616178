//! The pool in simulated time: two servers on one store, an upstream with outages, accounts that end, restarts, and what
//! must hold whatever happens.
//!
//! Every choice comes from one seed. Time is the test's own: it jumps from one event to the next, so that hours are a
//! moment, and the store is read and written between two events. A failure names its seed; this plays it again:
//!
//! ```text
//! SIMULATION_SEED=17 cargo test --features server --test simulation -- --nocapture
//! ```
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, reason = "test code")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use kiro_messages::config::{Config, Face, RawConfig};
use kiro_messages::policy::health::HealthState;
use kiro_messages::pool::{AccountId, AttemptEnd, Hooks, Pool, Wanted};
use kiro_messages::proto::kiro::fault::{Fault, FaultKind, RetryAfter};
use kiro_messages::store::{Clock, Store, StoreConfig};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local, yield_now};

/// Seeds of a run without `SIMULATION_SEED`.
const SEEDS: u64 = 150;
const THREADS: u64 = 8;
const T0: &str = "2026-11-23T10:00:00.000Z";
/// As `KIRO_MAX_ATTEMPTS`.
const ATTEMPTS: usize = 3;

/// What is really the matter with an account; the pool can only learn it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Truth {
    Good,
    /// From its n-th request on.
    Suspended(u32),
    QuotaUsed(u32),
    /// Every n-th request is one too many.
    Throttled(u32),
    /// Breaks off so many of a hundred streams, alone.
    Flaky(u32),
}

#[derive(Clone, Copy, Debug)]
enum Weather {
    Fine,
    /// So many of a hundred answers fail, on all accounts alike.
    Failing(FaultKind, u32),
    /// This server can't connect.
    CutOff(usize),
}

struct World {
    seed: u64,
    truths: Vec<Truth>,
    asked: Vec<u32>,
    /// Uses that must be counted: streams that ended well, and those that broke after their beginning.
    uses: Vec<u64>,
    /// Accounts that upstream itself spoke against.
    hard: Vec<bool>,
    weather: Weather,
    served: u32,
    refused: u32,
    cut_off: u32,
    running: [u32; 2],
    broken: Vec<String>,
}

type Shared = Rc<RefCell<World>>;

/// Time since the beginning, and who waits for which moment.
#[derive(Clone, Default)]
struct Time {
    millis: Arc<AtomicI64>,
    waiting: Rc<RefCell<Timers>>,
}

#[derive(Default)]
struct Timers {
    /// In order, those of one moment as they came.
    events: BTreeMap<(i64, u64), oneshot::Sender<()>>,
    count: u64,
}

impl Time {
    fn now(&self) -> i64 {
        self.millis.load(Ordering::Relaxed)
    }

    fn clock(&self) -> Clock {
        let (t0, millis) = (T0.parse::<Timestamp>().unwrap(), self.millis.clone());
        Arc::new(move || t0 + jiff::SignedDuration::from_millis(millis.load(Ordering::Relaxed)))
    }

    /// For a request.
    async fn sleep(&self, millis: u64) {
        let (event, waits) = oneshot::channel();
        {
            let mut waiting = self.waiting.borrow_mut();
            waiting.count += 1;
            let place = (self.now() + i64::try_from(millis).unwrap(), waiting.count);
            waiting.events.insert(place, event);
        }
        waits.await.unwrap();
    }

    /// For the driver: everything that is due within this time happens, one after the other.
    async fn advance(&self, millis: u64) {
        let end = self.now() + i64::try_from(millis).unwrap();
        settle().await;
        loop {
            let next = {
                let mut waiting = self.waiting.borrow_mut();
                let due = waiting.events.first_key_value().is_some_and(|((at, _), _)| *at <= end);
                if due { waiting.events.pop_first() } else { None }
            };
            let Some(((at, _), event)) = next else { break };
            self.millis.store(at, Ordering::Relaxed);
            event.send(()).unwrap_or_default();
            settle().await;
        }
        self.millis.store(end, Ordering::Relaxed);
    }
}

/// Lets every task that can go on do so.
async fn settle() {
    for _ in 0..4 {
        yield_now().await;
    }
}

/// What the background does every `KIRO_ACCOUNT_CACHE_TTL`.
async fn share(pools: &[Pool]) {
    for pool in pools {
        pool.flush(Duration::from_secs(30)).await;
    }
    for pool in pools {
        pool.reload().await.unwrap();
    }
}

fn id(n: usize) -> AccountId {
    format!("{n:08}-0000-4000-8000-000000000000").into()
}

fn number(id: &str) -> usize {
    id[..8].parse().unwrap()
}

fn fault(kind: FaultKind) -> Fault {
    Fault { kind, status: None, reason: None, message: Default::default(), retry_after: None }
}

async fn server(path: &Path, config: &Config, clock: &Clock) -> Pool {
    let store = Store::connect(&StoreConfig::File(path.to_owned())).await.unwrap();
    let pool = Pool::start(store, config, clock.clone(), Hooks::default());
    pool.first_snapshot().await;
    pool
}

/// One client's request, as the gateway makes its attempts.
async fn request(pool: Pool, server: usize, world: Shared, time: Time, mut rng: fastrand::Rng) {
    world.borrow_mut().running[server] += 1;
    let conversation = rng.u64(..50).to_string();
    let mut tried: Vec<AccountId> = Vec::new();
    for _ in 0..ATTEMPTS {
        let wanted = Wanted { exclude: &tried, conversation_id: &conversation, ..Wanted::default() };
        let lease = match pool.select(&wanted) {
            Ok(lease) => lease,
            Err(none) => {
                let mut world = world.borrow_mut();
                let left = (0..world.truths.len()).find(|n| !world.hard[*n] && !tried.contains(&id(*n)));
                if let Some(left) = left {
                    let told =
                        format!("refused ({none}) while account {left} had no hard fault: {:?}", pool.accounts());
                    world.broken.push(told);
                }
                if tried.is_empty() {
                    world.refused += 1;
                }
                break;
            }
        };
        let n = number(lease.account().id());
        tried.push(id(n));
        let verdict = {
            let mut world = world.borrow_mut();
            if matches!(world.weather, Weather::CutOff(cut) if cut == server) {
                world.cut_off += 1;
                Some(FaultKind::Unreachable)
            } else {
                world.asked[n] += 1;
                let asked = world.asked[n];
                let own = match world.truths[n] {
                    Truth::Suspended(from) if asked >= from => Some(FaultKind::Suspended),
                    Truth::QuotaUsed(from) if asked >= from => Some(FaultKind::QuotaMonth),
                    Truth::Throttled(every) if asked.is_multiple_of(every) => Some(FaultKind::RateLimited),
                    _ => None,
                };
                world.hard[n] |= own.is_some();
                own
            }
        };
        if let Some(kind) = verdict {
            let seconds = rng.u64(1..30);
            let retry_after = (kind == FaultKind::RateLimited && rng.bool()).then_some(RetryAfter::Seconds(seconds));
            lease.failed(&Fault { retry_after, ..fault(kind) }, AttemptEnd::default());
            continue;
        }
        time.sleep(rng.u64(50..2_000)).await;
        let fails = {
            let world = world.borrow();
            match (world.weather, world.truths[n]) {
                (Weather::Failing(kind, percent), _) if rng.u32(..100) < percent => Some(kind),
                (_, Truth::Flaky(percent)) if rng.u32(..100) < percent => Some(FaultKind::Network),
                _ => None,
            }
        };
        let begun = rng.u32(..4) > 0;
        match fails {
            Some(kind) if !begun => {
                lease.failed(&fault(kind), AttemptEnd::default());
                continue;
            }
            Some(kind) => {
                time.sleep(rng.u64(..8_000)).await;
                world.borrow_mut().uses[n] += 1;
                lease.failed(&fault(kind), AttemptEnd { refreshed: false, committed: true });
            }
            // The client goes away: nothing is said about the account.
            None if rng.u32(..20) == 0 => {}
            None => {
                time.sleep(rng.u64(..8_000)).await;
                let mut world = world.borrow_mut();
                world.uses[n] += 1;
                world.served += 1;
                drop(world);
                lease.succeeded();
            }
        }
        break;
    }
    world.borrow_mut().running[server] -= 1;
}

async fn idle(world: &Shared, time: &Time, server: usize) {
    // The task that was just begun hasn't said so yet.
    settle().await;
    while world.borrow().running[server] > 0 {
        time.advance(100).await;
    }
}

async fn life(seed: u64, folder: &Path) -> World {
    let mut rng = fastrand::Rng::with_seed(seed);
    // The pool's own randomness.
    fastrand::seed(seed);
    let accounts = rng.usize(2..=8);
    let truth = |n: usize, rng: &mut fastrand::Rng| match rng.u32(..10) {
        // One can always serve.
        _ if n == 0 => Truth::Good,
        0 => Truth::Suspended(rng.u32(1..40)),
        1 => Truth::QuotaUsed(rng.u32(1..40)),
        2 => Truth::Throttled(rng.u32(2..20)),
        3 | 4 => Truth::Flaky(rng.u32(5..100)),
        _ => Truth::Good,
    };
    let truths: Vec<Truth> = (0..accounts).map(|n| truth(n, &mut rng)).collect();
    let path = folder.join(format!("{seed}.json"));
    let records: BTreeMap<String, Value> = (0..accounts)
        .map(|n| (id(n).to_string(), json!({ "uuid": &*id(n), "isHealthy": true, "usageCount": 0 })))
        .collect();
    let token = json!({
        "accessToken": "t", "refreshToken": "r", "expiresAt": "2027-11-24T10:00:00.000Z", "authMethod": "social"
    });
    let tokens: BTreeMap<String, &Value> = (0..accounts).map(|n| (id(n).to_string(), &token)).collect();
    std::fs::write(&path, json!({ "accounts": records, "tokens": tokens }).to_string()).unwrap();

    let time = Time::default();
    let clock = time.clock();
    let mut raw = RawConfig::default();
    // By a hash of a drawn conversation: tickets come from the store when they come.
    raw.set_option("strategy", "sticky").unwrap();
    raw.set_option("accountCacheTtlMs", "3600000").unwrap();
    let config = raw.resolve(Face::Server).unwrap();
    let world = Rc::new(RefCell::new(World {
        seed,
        asked: vec![0; accounts],
        uses: vec![0; accounts],
        hard: vec![false; accounts],
        truths,
        weather: Weather::Fine,
        served: 0,
        refused: 0,
        cut_off: 0,
        running: [0; 2],
        broken: Vec::new(),
    }));
    let mut pools = [server(&path, &config, &clock).await, server(&path, &config, &clock).await];
    let mut read = 0;
    for _ in 0..rng.u32(4..12) {
        let weather = match rng.u32(..6) {
            0 => Weather::CutOff(rng.usize(..2)),
            1 => Weather::Failing(FaultKind::Network, rng.u32(1..30)),
            2 => Weather::Failing(FaultKind::ServerError, rng.u32(30..=100)),
            3 => Weather::Failing(FaultKind::Timeout, rng.u32(5..60)),
            _ => Weather::Fine,
        };
        world.borrow_mut().weather = weather;
        if rng.u32(..3) == 0 {
            let n = rng.usize(..2);
            idle(&world, &time, n).await;
            if pools[n].counts().in_flight > 0 {
                world.borrow_mut().broken.push(format!("leases leaked before a restart: {:?}", pools[n].counts()));
            }
            let pending = pools[n].close(Duration::from_secs(30)).await;
            assert!(pending.accounts.is_empty(), "seed {seed}: {:?}", pending.accounts);
            pools[n] = server(&path, &config, &clock).await;
        }
        let pace = rng.u64(20..1_500);
        for _ in 0..rng.u32(5..60) {
            let n = rng.usize(..2);
            spawn_local(request(pools[n].clone(), n, world.clone(), time.clone(), rng.fork()));
            time.advance(rng.u64(..pace)).await;
            if time.now() - read >= 5_000 {
                read = time.now();
                share(&pools).await;
            }
        }
    }
    // It gets fine, and stays so: rests, the longest of an hour, end.
    world.borrow_mut().weather = Weather::Fine;
    let ends: Vec<Truth> = world
        .borrow()
        .truths
        .iter()
        .map(|truth| match truth {
            Truth::Suspended(_) | Truth::QuotaUsed(_) => *truth,
            _ => Truth::Good,
        })
        .collect();
    world.borrow_mut().truths = ends;
    for n in 0..2 {
        idle(&world, &time, n).await;
    }
    share(&pools).await;
    time.advance(3_700_000).await;
    share(&pools).await;
    let served_before = world.borrow().served;
    for _ in 0..4 * accounts {
        for (n, pool) in pools.iter().enumerate() {
            spawn_local(request(pool.clone(), n, world.clone(), time.clone(), rng.fork()));
            idle(&world, &time, n).await;
        }
        share(&pools).await;
    }
    let mut broken = Vec::new();
    if world.borrow().served - served_before < u32::try_from(4 * accounts).unwrap() {
        broken.push("no progress in fine weather".to_owned());
    }
    for pool in &pools {
        let counts = pool.counts();
        if counts.in_flight + counts.waiting > 0 {
            broken.push(format!("leases leaked: {counts:?}"));
        }
        for account in pool.accounts() {
            let n = number(&account.id);
            let (truth, hard) = (world.borrow().truths[n], world.borrow().hard[n]);
            let fits = match (truth, account.state) {
                (Truth::Suspended(_), HealthState::Ejected) | (Truth::QuotaUsed(_), HealthState::Quota { .. }) => hard,
                // Only a process that calls the account sees its state; sticky conversations may leave it alone.
                (_, HealthState::Healthy | HealthState::HalfOpen) => true,
                _ => false,
            };
            if !fits {
                broken.push(format!("account {n} is {truth:?} and its state {:?}", account.state));
            }
        }
    }
    for pool in pools {
        pool.close(Duration::from_secs(30)).await;
    }
    let stored: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (n, uses) in world.borrow().uses.iter().enumerate() {
        let record = &stored["accounts"][&*id(n)];
        if record["usageCount"].as_u64() != Some(*uses) {
            broken.push(format!("account {n}: {uses} uses, and the record says {}", record["usageCount"]));
        }
    }
    let mut world = Rc::try_unwrap(world).ok().unwrap().into_inner();
    world.broken.append(&mut broken);
    world
}

fn play(seed: u64, folder: &Path) -> World {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, life(seed, folder))
}

#[test]
fn the_pool_serves_and_counts_in_any_order_of_events_k119_r28_r105() {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let seeds = match std::env::var("SIMULATION_SEED") {
        Ok(seed) => {
            let seed = seed.parse::<u64>().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
    };
    let (mut served, mut refused, mut cut_off, mut hard) = (0, 0, 0, 0);
    // Each life is one thread's; they wait for their files most of the time.
    let worlds: Vec<World> = std::thread::scope(|scope| {
        let lives = (0..THREADS).map(|thread| {
            let mine = seeds.clone().filter(move |seed| seed % THREADS == thread);
            let folder = folder.path();
            scope.spawn(move || mine.map(|seed| play(seed, folder)).collect::<Vec<World>>())
        });
        let lives: Vec<_> = lives.collect();
        lives.into_iter().flat_map(|life| life.join().unwrap()).collect()
    });
    for world in worlds {
        assert!(
            world.broken.is_empty(),
            "{:#?}\n\nagain: SIMULATION_SEED={} cargo test --features server --test simulation -- --nocapture",
            world.broken,
            world.seed
        );
        served += world.served;
        refused += world.refused;
        cut_off += world.cut_off;
        hard += world.hard.iter().filter(|hard| **hard).count();
    }
    println!(
        "{seeds:?}: {served} served, {refused} refused, {cut_off} attempts without a network, {hard} accounts in trouble"
    );
    assert!(served > 0 && (seeds.end - seeds.start == 1 || (cut_off > 0 && hard > 0)), "the weather is too fine");
}
