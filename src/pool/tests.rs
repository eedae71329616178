//! The pool's memory: snapshots are handed in, the store is an empty file.

use std::sync::atomic::AtomicI64;

use super::snapshot::{EMPTY_LOOK_EVERY, HOST_WRITES_WITHIN};
use std::collections::VecDeque;

use bytes::Bytes;

use super::*;
use crate::config::{Face, RawConfig};
use crate::error::Code;
use crate::policy::outcome::Outcomes;
use crate::proto::kiro::fault::{FaultKind, RetryAfter};
use crate::store::TokenKey;
use crate::store::{RawAccount, StoreConfig};

const T0: &str = "2026-11-23T10:00:00.000Z";
const LIVE: &str =
    r#"{"accessToken":"t","refreshToken":"r","expiresAt":"2026-11-24T10:00:00.000Z","authMethod":"social"}"#;

type Shown = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

struct Fixture {
    pool: Pool,
    millis: Arc<AtomicI64>,
    outcomes: Arc<Mutex<Vec<(String, Outcome)>>>,
    /// Called once when an outcome is shown to the host.
    shown: Shown,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new(options: &[(&str, &str)], accounts: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut raw = RawConfig::default();
        raw.set_option("accountCacheTtlMs", "3600000").unwrap();
        for (name, value) in options {
            raw.set_option(name, value).unwrap();
        }
        let config = raw.resolve(Face::Server).unwrap();
        let millis = Arc::new(AtomicI64::new(T0.parse::<Timestamp>().unwrap().as_millisecond()));
        let clock: Clock = {
            let millis = millis.clone();
            Arc::new(move || Timestamp::from_millisecond(millis.load(Ordering::Relaxed)).unwrap())
        };
        let store = Store::connect(&StoreConfig::File(folder.path().join("accounts.json"))).await.unwrap();
        let outcomes = Arc::<Mutex<Vec<_>>>::default();
        let shown = Shown::default();
        let record: Recorder = {
            let (outcomes, shown) = (outcomes.clone(), shown.clone());
            Arc::new(move |id, outcome| {
                if let Some(shown) = shown.lock().unwrap().take() {
                    shown();
                }
                outcomes.lock().unwrap().push((id.to_string(), outcome.clone()));
                true
            })
        };
        let pool = Pool::start(store, &config, clock, Hooks { record: Some(record), event: None });
        let reads = || {
            let counters = pool.counters();
            counters.snapshots.load(Ordering::Relaxed) + counters.snapshot_failures.load(Ordering::Relaxed)
        };
        while reads() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let fixture = Self { pool, millis, outcomes, shown, _folder: folder };
        fixture.snapshot(accounts);
        fixture
    }

    /// Accounts with a live token.
    fn snapshot(&self, accounts: &[(&str, &str)]) {
        let with_token: Vec<_> = accounts.iter().map(|(id, record)| (*id, *record, Some(LIVE))).collect();
        self.snapshot_of(&with_token);
    }

    fn snapshot_of(&self, accounts: &[(&str, &str, Option<&str>)]) {
        let raw = accounts.iter().map(|(id, record, token)| RawAccount {
            id: (*id).to_owned(),
            account: Bytes::copy_from_slice(record.as_bytes()),
            token: token.map(|token| (TokenKey::of(id), Bytes::copy_from_slice(token.as_bytes()))),
        });
        // Far enough from the marks of the test, which a host has "written".
        self.pool.take_in(raw.collect(), Instant::now() + HOST_WRITES_WITHIN + Duration::from_secs(1));
    }

    fn later(&self, seconds: i64) {
        self.millis.fetch_add(seconds * 1000, Ordering::Relaxed);
    }

    fn select(&self) -> Result<Lease, NoAccount> {
        self.pool.select(&Wanted::default())
    }

    fn selected(&self) -> String {
        self.select().unwrap().account().id().to_string()
    }

    fn in_state(&self, word: &str) -> usize {
        self.pool.states().iter().find(|(state, _)| *state == word).unwrap().1
    }

    fn state(&self, id: &str) -> HealthState {
        self.pool.accounts().into_iter().find(|info| &*info.id == id).unwrap().state
    }
}

fn fault(kind: FaultKind) -> Fault {
    Fault { kind, status: None, reason: None, message: Default::default(), retry_after: None }
}

fn limited(seconds: u64) -> Fault {
    Fault { retry_after: Some(RetryAfter::Seconds(seconds)), ..fault(FaultKind::RateLimited) }
}

fn why(result: Result<Lease, NoAccount>) -> (Why, Option<u64>) {
    let none = result.unwrap_err();
    (none.why, none.retry_after.map(|after| after.as_secs()))
}

/// Acceptance case 20, without the shared counter.
#[tokio::test]
async fn round_robin_in_the_order_of_the_ids_r36() {
    let fixture = Fixture::new(&[], &[("a3", "{}"), ("a1", "{}"), ("a2", "{}")]).await;
    let first = fixture.selected();
    let turns: Vec<_> = (0..6).map(|_| fixture.selected()).collect();
    let start = ["a1", "a2", "a3"].iter().position(|id| *id == first).unwrap() + 1;
    let expected: Vec<_> = (0..6).map(|n| ["a1", "a2", "a3"][(start + n) % 3]).collect();
    assert_eq!(turns, expected);
}

#[tokio::test]
async fn unsupported_models_and_tried_accounts_are_left_out_r7() {
    let fixture = Fixture::new(
        &[],
        &[("a1", r#"{"notSupportedModels":["claude-x"]}"#), ("a2", r#"{"isDisabled":true}"#), ("a3", "{}")],
    )
    .await;
    let names = ["claude-x-20260101", "claude-x"];
    let wanted = Wanted { model_names: &names, ..Wanted::default() };
    for _ in 0..4 {
        assert_eq!(&**fixture.pool.select(&wanted).unwrap().account().id(), "a3", "R7");
    }
    let tried = ["a3".into()];
    let rest = Wanted { exclude: &tried, ..Wanted::default() };
    assert_eq!(&**fixture.pool.select(&rest).unwrap().account().id(), "a1");
    let none = Wanted { exclude: &tried, ..wanted };
    assert_eq!(why(fixture.pool.select(&none)).0, Why::Exhausted);
    let pinned = Wanted { only: Some("a2"), exclude: &tried, ..wanted };
    assert_eq!(&**fixture.pool.select(&pinned).unwrap().account().id(), "a2", "N5: whatever its state");
    let unknown = Wanted { only: Some("a9"), ..wanted };
    assert_eq!(why(fixture.pool.select(&unknown)).0, Why::Unknown);
}

#[tokio::test]
async fn a_pinned_request_records_nothing_but_obeys_retry_after_n5() {
    let fixture = Fixture::new(&[], &[("a1", "{}")]).await;
    let pinned = Wanted { only: Some("a1"), ..Wanted::default() };
    let lease = fixture.pool.select(&pinned).unwrap();
    assert_eq!(lease.succeeded(), None);
    assert_eq!(lease.failed(&fault(FaultKind::Suspended), AttemptEnd::default()), None);
    assert_eq!(fixture.state("a1"), HealthState::Healthy);
    assert_eq!(lease.failed(&limited(30), AttemptEnd::default()), None);
    assert_eq!(why(fixture.pool.select(&pinned)), (Why::Limited, Some(30)));
    fixture.later(30);
    assert!(fixture.pool.select(&pinned).is_ok());
    assert!(fixture.outcomes.lock().unwrap().is_empty());
}

/// Acceptance case 12, in memory: rests, is left out, comes back half-open.
#[tokio::test]
async fn an_account_that_answers_429_rests_and_comes_back_case_12_trap_27() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", "{}")]).await;
    let lease = std::iter::repeat_with(|| fixture.select().unwrap()).find(|l| &**l.account().id() == "a1").unwrap();
    let outcome = lease.failed(&fault(FaultKind::RateLimited), AttemptEnd::default()).unwrap();
    let Event::Fault { mark: Some(mark), used: false } = outcome.event else { panic!("{outcome:?}") };
    assert_eq!(mark.to_string(), "cool-down until 2026-11-23T10:01:00.000Z: rate limited");
    drop(lease);
    assert!((0..10).all(|_| fixture.selected() == "a2"));
    let only_a1 = ["a2".into()];
    let wanted = Wanted { exclude: &only_a1, ..Wanted::default() };
    assert_eq!(why(fixture.pool.select(&wanted)), (Why::Exhausted, Some(1)), "another account is back already");
    fixture.later(60);
    assert_eq!(fixture.state("a1"), HealthState::HalfOpen);
    let probe = fixture.pool.select(&wanted).unwrap();
    assert_eq!(why(fixture.pool.select(&wanted)).0, Why::Busy);
    assert!((0..4).all(|_| fixture.selected() == "a2"), "one request at a time");
    let healed = probe.succeeded().unwrap();
    assert_eq!(healed.event, Event::Success { heals: true, half_open: true, probe: false });
    assert_eq!(fixture.state("a1"), HealthState::Healthy);
}

/// Acceptance case 18.
#[tokio::test]
async fn of_twenty_requests_one_probes_a_half_open_account_case_18() {
    let fixture = Fixture::new(&[], &[("a1", r#"{"isHealthy":false}"#)]).await;
    let leases: Vec<_> = (0..20).map(|_| fixture.select()).collect();
    assert_eq!(leases.iter().filter(|lease| lease.is_ok()).count(), 1);
    assert!(leases[0].is_ok() && leases[1..].iter().all(|lease| lease.as_ref().unwrap_err().why == Why::Busy));
    drop(leases);
    assert!(fixture.select().is_ok(), "a cancelled probe is followed by the next (K50)");
    assert_eq!(fixture.state("a1"), HealthState::HalfOpen);
}

/// Fifty requests at once over ten accounts, four of them bad: a bad one fails the requests that it had when its first
/// refusal was seen, and no later ones, whatever its fault.
#[tokio::test]
async fn a_wave_meets_a_bad_account_no_more_often_than_it_was_in_flight_r105() {
    let ids: Vec<String> = (0..10).map(|n| format!("a{n}")).collect();
    let accounts: Vec<_> = ids.iter().map(|id| (id.as_str(), "{}")).collect();
    let fixture = Fixture::new(&[], &accounts).await;
    let bad = |id: &str| match id {
        "a1" => Some(fault(FaultKind::RateLimited)),
        "a2" => Some(fault(FaultKind::QuotaMonth)),
        "a3" => Some(fault(FaultKind::Suspended)),
        "a4" => Some(fault(FaultKind::Forbidden)),
        _ => None,
    };
    let mut met = std::collections::BTreeMap::<String, u32>::new();
    let mut first = std::collections::BTreeMap::<String, u32>::new();
    let mut running: VecDeque<(Lease, Vec<AccountId>)> = VecDeque::new();
    let (mut begun, mut done) = (0, 0);
    let select = |exclude: Vec<AccountId>, met: &mut std::collections::BTreeMap<String, u32>| {
        let lease = fixture.pool.select(&Wanted { exclude: &exclude, ..Wanted::default() }).unwrap();
        *met.entry(lease.account().id().to_string()).or_default() += 1;
        (lease, exclude)
    };
    while done < 500 {
        while begun < 500 && running.len() < 50 {
            begun += 1;
            let next = select(Vec::new(), &mut met);
            running.push_back(next);
        }
        // The bad ones answer at once, so that they are asked as often as possible.
        let at = running.iter().position(|(lease, _)| bad(lease.account().id()).is_some()).unwrap_or(0);
        let (lease, mut tried) = running.remove(at).unwrap();
        let id = lease.account().id().clone();
        let Some(fault) = bad(&id) else {
            lease.succeeded();
            done += 1;
            continue;
        };
        let in_flight = fixture.pool.accounts().iter().find(|info| info.id == id).unwrap().in_flight;
        first.entry(id.to_string()).or_insert(in_flight);
        lease.failed(&fault, AttemptEnd { refreshed: true, committed: false });
        tried.push(id);
        let next = select(tried, &mut met);
        running.push_back(next);
    }
    for id in ["a1", "a2", "a3", "a4"] {
        assert_eq!(met.get(id), first.get(id), "{id}: as many as were in flight");
    }
}

/// A snapshot from before a mark doesn't lift it, even when it is taken in while the host program's callback runs.
#[tokio::test]
async fn no_snapshot_comes_between_the_mark_and_its_writing_r105() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", "{}")]).await;
    let since = Instant::now();
    let pool = fixture.pool.clone();
    let raw = |id: &str| RawAccount {
        id: id.to_owned(),
        account: Bytes::from_static(b"{}"),
        token: Some((TokenKey::of(id), Bytes::from_static(LIVE.as_bytes()))),
    };
    *fixture.shown.lock().unwrap() = Some(Box::new(move || pool.take_in(vec![raw("a1"), raw("a2")], since)));
    let lease = fixture.select().unwrap();
    let id = lease.account().id().clone();
    lease.failed(&fault(FaultKind::QuotaMonth), AttemptEnd::default());
    drop(lease);
    assert!(matches!(fixture.state(&id), HealthState::Quota { .. }));
    assert!((0..4).all(|_| fixture.selected() != *id));
}

/// Alone in the pool it is asked all the same; when no answer comes, it gets its turn again after a while.
#[tokio::test]
async fn an_account_that_refused_is_passed_over_not_excluded_r105() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", r#"{"isDisabled":true}"#)]).await;
    fixture.select().unwrap().failed(&fault(FaultKind::Forbidden), AttemptEnd::default());
    assert_eq!(fixture.selected(), "a1");
    fixture.snapshot(&[("a1", "{}"), ("a2", "{}")]);
    assert!((0..4).all(|_| fixture.selected() == "a2"));
    fixture.later(60);
    assert!((0..4).any(|_| fixture.selected() == "a1"));
    fixture.select().unwrap().failed(&fault(FaultKind::ServerError), AttemptEnd::default());
    let turns: std::collections::BTreeSet<_> = (0..4).map(|_| fixture.selected()).collect();
    assert_eq!(turns.len(), 2, "what upstream is to blame for is no refusal of the account");
}

/// An old stream that is still running doesn't block the probe.
#[tokio::test]
async fn a_long_stream_from_before_the_rest_is_no_probe() {
    let fixture = Fixture::new(&[], &[("a1", "{}")]).await;
    let old = fixture.select().unwrap();
    fixture.select().unwrap().failed(&fault(FaultKind::RateLimited), AttemptEnd::default());
    fixture.later(61);
    let probe = fixture.select().unwrap();
    assert!(fixture.select().is_err());
    drop(old);
    assert!(fixture.select().is_err(), "the old stream's end frees no probe");
    drop(probe);
    assert!(fixture.select().is_ok());
}

/// Acceptance case 14.
#[tokio::test]
async fn a_stream_from_before_a_rest_does_not_lift_it_r28() {
    let fixture = Fixture::new(&[], &[("a1", "{}")]).await;
    let stream = fixture.select().unwrap();
    fixture.later(1);
    fixture.select().unwrap().failed(&fault(FaultKind::RateLimited), AttemptEnd::default());
    fixture.later(1);
    let outcome = stream.succeeded().unwrap();
    assert_eq!(outcome.event, Event::Success { heals: false, half_open: false, probe: false });
    assert_eq!(why(fixture.select()), (Why::Unavailable, Some(59)));
}

/// Acceptance cases 16 and 17: the reset of the UI, which leaves time and message behind.
#[tokio::test]
async fn quota_and_ejection_end_with_a_reset_r15() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", "{}")]).await;
    for kind in [FaultKind::QuotaMonth, FaultKind::Suspended] {
        fixture.select().unwrap().failed(&fault(kind), AttemptEnd::default());
    }
    fixture.later(1_000);
    let none = fixture.select().unwrap_err();
    assert_eq!((none.is_lasting(), none.retry_after), (true, None), "M61: nothing to wait for");
    let left = r#"{"isHealthy":true,"errorCount":0,"needsRefresh":false,"lastErrorTime":null,
        "lastErrorMessage":"ejected: suspended","scheduledRecoveryTime":"2026-12-01T00:00:00.000Z"}"#;
    fixture.snapshot(&[("a1", left), ("a2", left)]);
    assert_eq!((fixture.state("a1"), fixture.state("a2")), (HealthState::Healthy, HealthState::Healthy));
}

#[tokio::test]
async fn a_bad_record_makes_one_account_unusable_r9_r45() {
    let fixture = Fixture::new(&[], &[]).await;
    let region = r#"{"accessToken":"t","expiresAt":"2027-01-01T00:00:00Z","region":"x"}"#;
    fixture.snapshot_of(&[
        ("a1", "[]", Some(LIVE)),
        ("a2", "{}", Some("not json")),
        ("a3", "{}", None),
        ("a4", "{}", Some(region)),
        ("a5", "{}", Some(r#"{"authMethod":"social"}"#)),
        ("a6", "{}", Some(LIVE)),
    ]);
    assert!((0..6).all(|_| fixture.selected() == "a6"));
    let problems: Vec<_> = fixture.pool.accounts().into_iter().map(|info| (info.state, info.problem)).collect();
    assert!(problems[..5].iter().all(|(state, _)| *state == HealthState::Unusable));
    assert!(problems[0].1.as_ref().unwrap().starts_with("account record: "));
    assert!(problems[1].1.as_ref().unwrap().starts_with("token record: "));
    assert_eq!(problems[3].1.as_deref(), Some("region: not a region's name"));
    assert_eq!(fixture.pool.counters().unusable_records.load(Ordering::Relaxed), 3);
    let pinned = Wanted { only: Some("a1"), ..Wanted::default() };
    assert_eq!(why(fixture.pool.select(&pinned)).0, Why::Unusable);
    fixture.snapshot(&[("a1", "{}"), ("a2", "{}")]);
    assert_eq!(fixture.in_state("healthy"), 2, "a good record heals");
}

/// Acceptance cases 34 and 35.
#[tokio::test]
async fn an_empty_pool_is_believed_after_a_minute_r55() {
    let fixture = Fixture::new(&[], &[("a1", "{}")]).await;
    fixture.snapshot(&[]);
    assert!(fixture.select().is_ok() && fixture.pool.is_doubtful());
    assert_eq!(fixture.pool.pace(), EMPTY_LOOK_EVERY);
    fixture.later(2);
    assert_eq!(fixture.pool.pace(), Duration::from_secs(3600));
    fixture.later(57);
    fixture.snapshot(&[]);
    assert!(fixture.select().is_ok());
    fixture.snapshot(&[("a1", "{}")]);
    assert!(!fixture.pool.is_doubtful(), "it was a rewrite");
    fixture.snapshot(&[]);
    fixture.later(60);
    fixture.snapshot(&[]);
    let none = fixture.select().unwrap_err();
    assert!(matches!(none.why, Why::Empty { .. }), "{none:?}");
    assert!(none.to_string().contains("pools:claude-kiro-oauth"), "{none}");
    assert!(none.to_string().contains("accounts add"));
}

#[tokio::test]
async fn an_empty_file_is_named_without_its_path_r56() {
    for (store, cure) in
        [("file:/srv/own/accounts.json", "accounts add"), ("aiclient:/srv/own/pools.json", "in the Node.js service")]
    {
        let fixture = Fixture::new(&[("store", store)], &[]).await;
        fixture.snapshot(&[]);
        let none = fixture.select().unwrap_err().to_string();
        assert!(none.contains(cure) && !none.contains("/srv") && !none.contains(".json"), "{none}");
    }
}

#[tokio::test]
async fn an_account_gone_from_a_pool_that_is_not_empty_is_gone_at_once() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", "{}")]).await;
    let running: Vec<_> = (0..2).map(|_| fixture.select().unwrap()).collect();
    fixture.snapshot(&[("a2", "{}")]);
    assert!((0..4).all(|_| fixture.selected() == "a2"));
    for lease in running {
        let gone = &**lease.account().id() == "a1";
        assert_eq!(lease.succeeded().is_none(), gone, "running ones finish");
    }
    fixture.snapshot(&[("a1", "{}"), ("a2", "{}")]);
    let info = fixture.pool.accounts();
    assert!(info.iter().all(|info| info.in_flight == 0), "{info:?}");
}

#[tokio::test]
async fn the_cap_counts_requests_in_flight() {
    let options = [("maxInflightPerAccount", "2")];
    let fixture = Fixture::new(&options, &[("a1", "{}"), ("a2", "{}")]).await;
    let mut leases: Vec<_> = (0..4).map(|_| fixture.select().unwrap()).collect();
    assert!(fixture.pool.accounts().iter().all(|info| info.in_flight == 2));
    assert_eq!(why(fixture.select()), (Why::Busy, Some(1)));
    let freed = leases.pop().unwrap().account().id().clone();
    assert_eq!(fixture.selected(), &*freed);
}

#[tokio::test]
async fn waiting_is_first_come_first_served_and_bounded() {
    let options = [("maxInflightPerAccount", "1"), ("accountWaitMs", "10000"), ("maxConns", "2")];
    let fixture = Fixture::new(&options, &[("a1", "{}")]).await;
    let holder = fixture.select().unwrap();
    let order = Arc::<Mutex<Vec<u32>>>::default();
    let mut waiting = tokio::task::JoinSet::new();
    for n in 1..=2 {
        let (pool, order) = (fixture.pool.clone(), order.clone());
        waiting.spawn(async move {
            let lease = pool.acquire(&Wanted::default(), Instant::now()).await.unwrap();
            order.lock().unwrap().push(n);
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(lease);
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fixture.pool.counts().waiting, 2);
    assert_eq!(why(fixture.pool.acquire(&Wanted::default(), Instant::now()).await).0, Why::Busy, "the queue is full");
    let begun = Instant::now();
    drop(holder);
    assert_eq!(waiting.join_next().await.unwrap().map_err(|e| e.to_string()), Ok(()));
    assert_eq!(waiting.join_next().await.unwrap().map_err(|e| e.to_string()), Ok(()));
    assert_eq!(*order.lock().unwrap(), [1, 2]);
    assert!(begun.elapsed() < Duration::from_millis(2000), "woken, not polled: {:?}", begun.elapsed());
    assert_eq!((fixture.pool.counts().waiting, fixture.pool.counts().in_flight), (0, 0));
}

#[tokio::test]
async fn limits_of_records_hold_and_a_full_queue_is_a_rate_limit_n86() {
    let records = [("a1", r#"{"concurrencyLimit":1,"queueLimit":1}"#), ("a2", r#"{"concurrencyLimit":"2"}"#)];
    let fixture = Fixture::new(&[("affinity", "off")], &records).await;
    let mut leases: Vec<_> = (0..3).map(|_| fixture.select().unwrap()).collect();
    let in_flight = || fixture.pool.accounts().iter().map(|info| info.in_flight).collect::<Vec<_>>();
    assert_eq!(in_flight(), [1, 2]);
    let pool = fixture.pool.clone();
    let mut waits = tokio::task::JoinSet::new();
    waits.spawn(async move { pool.acquire(&Wanted::default(), Instant::now()).await.is_ok() });
    while fixture.pool.counts().waiting == 0 {
        tokio::task::yield_now().await;
    }
    let refused = fixture.pool.acquire(&Wanted::default(), Instant::now()).await.unwrap_err();
    assert_eq!((&refused.why, refused.code()), (&Why::Full, Code::RateLimited), "one place to wait");
    leases.clear();
    assert!(waits.join_next().await.unwrap().unwrap(), "the one that waits is served");

    let without = Fixture::new(&[], &[("a1", r#"{"concurrencyLimit":1,"queueLimit":0}"#)]).await;
    let _held = without.select().unwrap();
    let refused = without.pool.acquire(&Wanted::default(), Instant::now()).await.unwrap_err();
    assert_eq!(refused.code(), Code::RateLimited, "at once");
}

/// Counts the accounts that selections examine: one per selection in a pool of one account.
fn counting() -> (Fit, Arc<AtomicUsize>) {
    let looks = Arc::<AtomicUsize>::default();
    let counted = looks.clone();
    (Fit::new(move |_, _, _| usize::from(counted.fetch_add(1, Ordering::Relaxed) == usize::MAX) as u8), looks)
}

/// A free place asks only the first in line; so does a request that joins. The clock alone wakes nobody.
#[tokio::test]
async fn a_free_place_goes_to_the_line_before_others() {
    const WAITING: usize = 300;
    let options = [("maxInflightPerAccount", "1"), ("accountWaitMs", "60000")];
    let fixture = Fixture::new(&options, &[("a1", "{}")]).await;
    let (fit, looks) = counting();
    let mut holder = fixture.select().unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..WAITING {
        let (pool, fit) = (fixture.pool.clone(), fit.clone());
        waiting.spawn(async move {
            let wanted = Wanted { fit: Some(&fit), ..Wanted::default() };
            (n, pool.acquire(&wanted, Instant::now()).await.unwrap())
        });
    }
    while fixture.pool.counts().waiting < WAITING {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let joined = looks.swap(0, Ordering::Relaxed);
    assert!(joined <= 4 * WAITING, "{joined} selections while {WAITING} joined the line");
    for expected in 0..WAITING {
        drop(holder);
        let (n, lease) = waiting.join_next().await.unwrap().unwrap();
        assert_eq!(n, expected, "first come, first served");
        holder = lease;
    }
    let served = looks.load(Ordering::Relaxed);
    assert!(served <= 4 * WAITING, "{served} selections for {WAITING} places");
}

/// More come than are served: each that waits in vain fails when its time is up, however many there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overrun_line_ends_in_time() {
    const WAIT: Duration = Duration::from_secs(2);
    let accounts: Vec<String> = (0..12).map(|n| format!("a{n:02}")).collect();
    let accounts: Vec<_> = accounts.iter().map(|id| (id.as_str(), "{}")).collect();
    let options = [("maxInflightPerAccount", "1"), ("accountWaitMs", "2000"), ("maxConns", "4000")];
    let fixture = Fixture::new(&options, &accounts).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..4_000 {
        let pool = fixture.pool.clone();
        requests.spawn(async move {
            let began = Instant::now();
            let got = pool.acquire(&Wanted::default(), began).await;
            let waited = began.elapsed();
            if got.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (got.is_ok(), waited)
        });
    }
    let ended = requests.join_all().await;
    let longest = ended.iter().map(|(_, waited)| *waited).max().unwrap();
    let served = ended.iter().filter(|(served, _)| *served).count();
    println!("{served} served, the last one heard after {longest:?}");
    // Woken one by one, for everybody, the last one would fail after a minute.
    assert!(longest < WAIT + Duration::from_secs(4), "the last one heard after {longest:?}; {served} served");
    // Twelve every 50 ms: 480 at most.
    assert!((100..=600).contains(&served), "{served} served");
    assert_eq!((fixture.pool.counts().waiting, fixture.pool.counts().in_flight), (0, 0));
}

#[tokio::test]
async fn a_wait_ends_in_time_and_a_cancelled_one_leaves_no_trace() {
    let options = [("maxInflightPerAccount", "1"), ("accountWaitMs", "300")];
    let fixture = Fixture::new(&options, &[("a1", "{}")]).await;
    let holder = fixture.select().unwrap();
    let begun = Instant::now();
    assert_eq!(why(fixture.pool.acquire(&Wanted::default(), Instant::now()).await).0, Why::Busy);
    let waited = begun.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_millis(1000)).contains(&waited), "{waited:?}");
    {
        let wanted = Wanted::default();
        let cancelled = fixture.pool.acquire(&wanted, Instant::now());
        tokio::time::timeout(Duration::from_millis(10), cancelled).await.unwrap_err();
    }
    drop(holder);
    let next = fixture.pool.acquire(&Wanted::default(), Instant::now()).await.unwrap();
    assert_eq!(fixture.pool.counts().in_flight, 1);
    drop(next);
    assert_eq!((fixture.pool.counts().waiting, fixture.pool.counts().in_flight), (0, 0));
}

/// A request that leaves in the moment in which it gets an account passes the account on.
#[tokio::test]
async fn an_account_given_to_a_leaving_request_goes_to_the_next() {
    let options = [("maxInflightPerAccount", "1"), ("accountWaitMs", "60000")];
    let fixture = Fixture::new(&options, &[("a1", "{}")]).await;
    let holder = fixture.select().unwrap();
    let wanted = Wanted::default();
    let mut line: Vec<_> = (0..3).map(|_| Box::pin(fixture.pool.acquire(&wanted, Instant::now()))).collect();
    for waiting in &mut line {
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    }
    let last = line.pop().unwrap();
    drop(holder);
    assert_eq!((fixture.pool.counts().waiting, fixture.pool.counts().in_flight), (2, 1), "it is the first one's");
    drop(line);
    let lease = tokio::time::timeout(Duration::from_secs(5), last).await.unwrap().unwrap();
    assert_eq!((fixture.pool.counts().waiting, fixture.pool.counts().in_flight), (0, 1));
    drop(lease);
    assert_eq!(fixture.pool.counts().in_flight, 0);
}

/// A wait ends without a freed place, too: when a rest is over, also after an earlier end with an empty line, and when
/// a profile is found.
#[tokio::test]
async fn the_line_is_served_when_an_account_is_free_by_time_alone() {
    let fixture = Fixture::new(&[("accountWaitMs", "60000")], &[("a1", "{}")]).await;
    let wanted = Wanted::default();
    let get = async |done: &dyn Fn()| {
        let mut waiting = Box::pin(fixture.pool.acquire(&wanted, Instant::now()));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        done();
        tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap()
    };
    for _ in 0..2 {
        fixture.select().unwrap().failed(&limited(1), AttemptEnd::default());
        let mut cancelled = Box::pin(fixture.pool.acquire(&wanted, Instant::now()));
        assert!(futures_util::poll!(cancelled.as_mut()).is_pending());
        drop(cancelled);
        let lease = get(&|| fixture.later(1)).await;
        lease.succeeded();
    }
    fixture.select().unwrap().learn(Lesson::NoProfile { asked: true });
    fixture.later(590);
    assert!(matches!(fixture.state("a1"), HealthState::NoProfile { .. }));
    let found = Lesson::Profiles(vec!["arn:aws:codewhisperer:us-east-1:1:profile/P".into()]);
    drop(get(&|| fixture.pool.learn("a1", found.clone())).await);
}

/// A rest that ends within the wait is waited for; a longer one is not.
#[tokio::test]
async fn a_rest_that_ends_in_time_is_waited_for() {
    let fixture = Fixture::new(&[("accountWaitMs", "2000")], &[("a1", "{}")]).await;
    fixture.select().unwrap().failed(&limited(5), AttemptEnd::default());
    let begun = Instant::now();
    assert_eq!(why(fixture.pool.acquire(&Wanted::default(), Instant::now()).await), (Why::Unavailable, Some(5)));
    assert!(begun.elapsed() < Duration::from_millis(500), "fails at once");
    fixture.later(4);
    let (pool, millis) = (fixture.pool.clone(), fixture.millis.clone());
    let waiting = async move { pool.acquire(&Wanted::default(), Instant::now()).await };
    let time = async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        millis.fetch_add(1_000, Ordering::Relaxed);
    };
    let (lease, ()) = tokio::join!(waiting, time);
    assert_eq!(&**lease.unwrap().account().id(), "a1");
}

#[tokio::test]
async fn a_rejected_profile_is_the_last_choice_until_the_record_has_another() {
    let with_arn = |arn: &str| LIVE.replace('{', &format!(r#"{{"profileArn":"{arn}","#));
    let (one, two) = (with_arn("arn:1"), with_arn("arn:2"));
    let fixture = Fixture::new(&[], &[]).await;
    fixture.snapshot_of(&[("a1", "{}", Some(&one)), ("a2", "{}", Some(&one))]);
    let lease = std::iter::repeat_with(|| fixture.select().unwrap()).find(|l| &**l.account().id() == "a1").unwrap();
    assert_eq!(lease.failed(&fault(FaultKind::ProfileArn), AttemptEnd::default()), None, "none written");
    drop(lease);
    assert!((0..4).all(|_| fixture.selected() == "a2"));
    fixture.snapshot_of(&[("a1", "{}", Some(&one)), ("a2", "{}", Some(&one))]);
    assert!((0..4).all(|_| fixture.selected() == "a2"), "the same ARN is no other one");
    fixture.snapshot_of(&[("a1", "{}", Some(&two)), ("a2", "{}", Some(&one))]);
    assert!((0..4).any(|_| fixture.selected() == "a1"));
}

#[tokio::test]
async fn the_host_gets_its_outcomes_and_its_marks_stand_for_a_while_r35() {
    let fixture = Fixture::new(&[], &[("a1", "{}")]).await;
    fixture.select().unwrap().failed(&fault(FaultKind::RateLimited), AttemptEnd::default());
    let recorded = fixture.outcomes.lock().unwrap().clone();
    assert!(matches!(&recorded[..], [(id, Outcome { event: Event::Fault { .. }, .. })] if id == "a1"));
    let raw = RawAccount {
        id: "a1".into(),
        account: Bytes::from_static(b"{}"),
        token: Some((TokenKey::of("a1"), Bytes::from_static(LIVE.as_bytes()))),
    };
    fixture.pool.take_in(vec![raw], Instant::now());
    assert!(matches!(fixture.state("a1"), HealthState::Cooling { .. }), "the host may not have written yet");
    fixture.snapshot(&[("a1", "{}")]);
    assert_eq!(fixture.state("a1"), HealthState::Healthy, "R18: Redis wins");
}

#[tokio::test]
async fn a_dropped_lease_changes_nothing_k50() {
    let fixture = Fixture::new(&[], &[("a1", "{}")]).await;
    drop(fixture.select().unwrap());
    assert!(fixture.outcomes.lock().unwrap().is_empty());
    assert_eq!(fixture.pool.counts().in_flight, 0);
}

#[tokio::test]
async fn accounts_without_traffic_are_offered_for_a_probe_once_r17() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", r#"{"isHealthy":false,"lastErrorMessage":"401"}"#)]).await;
    let lease = std::iter::repeat_with(|| fixture.select().unwrap()).find(|l| &**l.account().id() == "a1").unwrap();
    lease.failed(&fault(FaultKind::RateLimited), AttemptEnd::default());
    drop(lease);
    fixture.later(119);
    assert!(fixture.pool.probes_due().is_empty());
    fixture.later(1);
    let probes = fixture.pool.probes_due();
    assert_eq!(probes.iter().map(|lease| &**lease.account().id()).collect::<Vec<_>>(), ["a1"]);
    assert!(fixture.pool.probes_due().is_empty(), "one at a time");
    let healed = probes[0].succeeded().unwrap();
    assert_eq!(healed.event, Event::Success { heals: true, half_open: true, probe: true });
    assert_eq!(Outcomes::from(&healed).uses(), 0, "no use is counted");
}

/// Acceptance case P54: getUsageLimits answers 200 to a suspended account all the same.
#[tokio::test]
async fn only_a_real_request_heals_a_suspicious_account_k91_p54() {
    let fixture = Fixture::new(&[], &[("a1", "{}")]).await;
    fixture.select().unwrap().failed(&fault(FaultKind::RateLimited), AttemptEnd::default());
    fixture.later(200);
    let mut probes = fixture.pool.probes_due();
    let probe = probes.pop().unwrap();
    let suspected = r#"{"isHealthy":false,"lastErrorTime":"2026-11-23T10:03:00.000Z",
        "lastErrorMessage":"cool-down until 2026-11-23T16:03:00.000Z: suspicious activity (3)"}"#;
    fixture.snapshot(&[("a1", suspected)]);
    assert_eq!(probe.succeeded(), None, "marked elsewhere while the probe ran");
    drop(probe);
    assert!(matches!(fixture.state("a1"), HealthState::Cooling { .. }));
    let info = fixture.pool.accounts().remove(0);
    assert_eq!((info.condition(), info.cause.as_deref()), ("suspicious", Some("suspicious activity (3)")));
    fixture.later(7 * 3600);
    assert_eq!(fixture.state("a1"), HealthState::HalfOpen);
    assert!(fixture.pool.probes_due().is_empty());
    let one = fixture.select().unwrap();
    assert_eq!(why(fixture.select()).0, Why::Busy, "one real request");
    one.succeeded();
    assert_eq!(fixture.state("a1"), HealthState::Healthy);
}

/// Acceptance case P55, the pool's half: all accounts are slowed down, whatever their addresses.
#[tokio::test]
async fn two_suspicious_accounts_slow_the_whole_pool_down_k92_p55() {
    let proxied = r#"{"KIRO_PROXY_URL":"http://127.0.0.1:1"}"#;
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", "{}"), ("a3", "{}"), ("a4", proxied)]).await;
    let wanted = |only: &[&str]| -> Vec<AccountId> {
        ["a1", "a2", "a3", "a4"].iter().filter(|id| !only.contains(id)).map(|id| (*id).into()).collect()
    };
    let take = |only: &str| {
        let exclude = wanted(&[only]);
        fixture.pool.select(&Wanted { exclude: &exclude, ..Wanted::default() })
    };
    take("a1").unwrap().failed(&fault(FaultKind::Suspicious), AttemptEnd::default());
    assert_eq!(fixture.pool.brake(), None);
    fixture.later(60);
    take("a2").unwrap().failed(&fault(FaultKind::Suspicious), AttemptEnd::default());
    let until: Timestamp = "2026-11-23T10:31:00Z".parse().unwrap();
    assert_eq!(fixture.pool.brake(), Some(until));
    for id in ["a3", "a4"] {
        let first = take(id).unwrap();
        assert_eq!(why(take(id)), (Why::Busy, Some(1)), "{id}: one in flight");
        drop(first);
        for _ in 0..3 {
            drop(take(id).unwrap());
        }
        assert_eq!(why(take(id)), (Why::Paced, Some(60)), "{id}: four a minute");
    }
    assert_eq!(why(fixture.select()), (Why::Paced, Some(60)));
    // Another process has seen a third.
    let third = r#"{"isHealthy":false,"lastErrorTime":"2026-11-23T10:02:00.000Z",
        "lastErrorMessage":"cool-down until 2026-11-23T10:32:00.000Z: suspicious activity (1)"}"#;
    fixture.later(60);
    fixture.snapshot(&[("a1", "{}"), ("a2", "{}"), ("a3", third), ("a4", proxied)]);
    let until: Timestamp = "2026-11-23T11:01:00Z".parse().unwrap();
    assert_eq!(fixture.pool.brake(), Some(until), "half an hour more");
    fixture.snapshot(&[("a1", "{}"), ("a2", "{}"), ("a3", third), ("a4", proxied)]);
    assert_eq!(fixture.pool.brake(), Some(until), "each is counted once");
    fixture.later(3600);
    assert_eq!(fixture.pool.brake(), None);
    let many: Vec<_> = (0..20).map(|_| fixture.select().unwrap()).collect();
    assert_eq!(many.len(), 20);
}

#[tokio::test]
async fn the_brake_is_seen_in_the_first_snapshot_and_can_be_switched_off_k92() {
    let suspected = |at: &str| {
        format!(
            r#"{{"isHealthy":false,"lastErrorTime":"2026-11-23T{at}:00.000Z",
            "lastErrorMessage":"cool-down until 2026-11-23T12:00:00.000Z: suspicious activity (2)"}}"#
        )
    };
    // In the order of the ids the first two are not within ten minutes.
    let (late, first, second) = (suspected("09:58"), suspected("09:40"), suspected("09:45"));
    let accounts = [("a1", late.as_str()), ("a2", first.as_str()), ("a3", second.as_str()), ("a4", "{}")];
    for (word, until) in [("on", Some("2026-11-23T10:45:00Z".parse().unwrap())), ("off", None)] {
        // KIRO_SUSPICION_BRAKE.
        let fixture = Fixture::new(&[("suspicionBrake", word)], &accounts).await;
        assert_eq!(fixture.pool.brake(), until, "{word}");
    }
}

/// Acceptance case P56.
#[tokio::test]
async fn conversations_a_minute_are_limited_k92_p56() {
    let fixture = Fixture::new(&[("accountRpm", "2")], &[("a1", "{}"), ("a2", "{}")]).await;
    let mut taken = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..4 {
        *taken.entry(fixture.selected()).or_default() += 1;
        fixture.later(5);
    }
    assert!(taken.values().eq(&[2, 2]), "{taken:?}");
    let (why, after) = why(fixture.select());
    assert_eq!(why, Why::Paced);
    assert_eq!(after, Some(40), "until the first place is free");
    assert_eq!(fixture.select().unwrap_err().code(), Code::RateLimited);
    assert!(fixture.outcomes.lock().unwrap().is_empty(), "no mark");
    let pinned = Wanted { only: Some("a1"), ..Wanted::default() };
    drop(fixture.pool.select(&pinned).unwrap());
    fixture.later(46);
    assert_eq!(fixture.selected(), "a2", "a pinned conversation counts, too");
    fixture.later(60);
    let lease = fixture.select().unwrap();
    lease.sends_again();
    let id = lease.account().id().to_string();
    assert!((0..2).all(|_| fixture.selected() != id), "so does a repetition on the same account");
    fixture.pool.visit(&id).unwrap();
}

#[tokio::test]
async fn a_place_in_the_minute_is_waited_for_within_account_wait_k92() {
    let fixture = Fixture::new(&[("accountRpm", "1"), ("accountWaitMs", "2000")], &[("a1", "{}")]).await;
    drop(fixture.select().unwrap());
    let begun = Instant::now();
    assert_eq!(why(fixture.pool.acquire(&Wanted::default(), begun).await), (Why::Paced, Some(60)));
    assert!(begun.elapsed() < Duration::from_millis(500), "none will be free in time");
    fixture.later(59);
    let (pool, millis) = (fixture.pool.clone(), fixture.millis.clone());
    let waiting = async move { pool.acquire(&Wanted::default(), Instant::now()).await };
    let time = async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        millis.fetch_add(1_000, Ordering::Relaxed);
    };
    let (lease, ()) = tokio::join!(waiting, time);
    assert_eq!(&**lease.unwrap().account().id(), "a1");
}

#[tokio::test]
async fn fitting_accounts_come_first_and_refusing_ones_are_left_out_k88_k109_k127() {
    let fixture = Fixture::new(&[("accountWaitMs", "5000")], &[("a1", "{}"), ("a2", "{}"), ("a3", "{}")]).await;
    let no = std::iter::repeat_with(|| fixture.select().unwrap()).find(|l| &**l.account().id() == "a2").unwrap();
    no.learn(Lesson::ModelRefused("kiro-x".into()));
    drop(no);
    let fit = Fit::new(|account, _, _| u8::from(&**account.id() == "a1"));
    let wanted = Wanted { fit: Some(&fit), kiro_id: "kiro-x", ..Wanted::default() };
    assert!((0..4).all(|_| &**fixture.pool.select(&wanted).unwrap().account().id() == "a3"));
    let tried = ["a3".into()];
    let second = Wanted { exclude: &tried, ..wanted };
    assert!((0..4).all(|_| &**fixture.pool.select(&second).unwrap().account().id() == "a1"), "not excluded");
    let tried = ["a1".into(), "a3".into()];
    let last = Wanted { exclude: &tried, ..wanted };
    assert_eq!(why(fixture.pool.select(&last)).0, Why::Exhausted);
    fixture.later(3600);
    assert!(fixture.pool.select(&last).is_ok(), "after an hour it is asked again");
}

/// When an account is back within two minutes, a retry is worthwhile; else the error names the end and the cure.
#[tokio::test]
async fn a_retry_is_advised_only_for_outages_up_to_two_minutes_m85_p3() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", "{}"), ("a3", r#"{"isDisabled":true}"#)]).await;
    let told = |result: Result<Lease, NoAccount>| {
        let none = result.unwrap_err();
        (none.is_lasting(), none.to_string(), none.retry_after.map(|after| after.as_secs()))
    };
    let one = fixture.select().unwrap();
    one.failed(&fault(FaultKind::QuotaMonth), AttemptEnd::default());
    let tried = [one.account().id().clone()];
    drop(one);
    let other = Wanted { exclude: &tried, ..Wanted::default() };
    let lease = fixture.pool.select(&other).unwrap();
    assert!(!told(fixture.pool.select(&Wanted { exclude: &["a1".into(), "a2".into()], ..other })).0);
    lease.failed(&limited(1800), AttemptEnd::default());
    drop(lease);
    let text = "No account can serve before 2026-11-23T10:30:00Z (1 resting, 1 disabled, 1 out of quota): see \
                `kiro-server accounts list`, or add an account";
    assert_eq!(told(fixture.select()), (true, text.to_owned(), Some(1800)));
    assert_eq!(told(fixture.pool.select(&other)), (true, text.to_owned(), Some(1800)), "whoever was tried");
    fixture.later(1680);
    assert_eq!(told(fixture.select()), (false, "No healthy accounts available".to_owned(), Some(120)));
    fixture.later(120);
    let lease = fixture.select().unwrap();
    lease.failed(&fault(FaultKind::Suspended), AttemptEnd::default());
    let text = "No account can serve before 2026-12-01T00:00:00Z (1 disabled, 1 ejected, 1 out of quota): see \
                `kiro-server accounts list`, or add an account";
    assert_eq!(told(fixture.select()), (true, text.to_owned(), None));
    fixture.later(8 * 86_400);
    let lease = fixture.select().unwrap();
    lease.failed(&fault(FaultKind::Suspended), AttemptEnd::default());
    let text = "No account can serve until a person acts (1 disabled, 2 ejected): see `kiro-server accounts list`, or \
                add an account";
    assert_eq!(told(fixture.select()), (true, text.to_owned(), None));
    let names = ["m"];
    let only = Fixture::new(&[], &[("a1", r#"{"notSupportedModels":["m"]}"#)]).await;
    let none = only.pool.select(&Wanted { model_names: &names, ..Wanted::default() }).unwrap_err();
    assert!(none.is_lasting() && none.to_string().starts_with("No account serves this model"), "{none}");
}

/// K78: an account without a profile isn't selected, and that is its state, in this process alone.
#[tokio::test]
async fn an_account_without_a_profile_is_not_selected_k78_p3() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", "{}")]).await;
    let lease = fixture.select().unwrap();
    lease.learn(Lesson::NoProfile { asked: true });
    let id = lease.account().id().clone();
    drop(lease);
    let until = "2026-11-23T10:10:00Z".parse().unwrap();
    assert_eq!(fixture.state(&id), HealthState::NoProfile { until });
    assert_eq!(
        (fixture.pool.accounts().iter().filter(|info| info.state.is_served()).count(), fixture.in_state("no-profile")),
        (1, 1)
    );
    let other = fixture.selected();
    assert!(other != *id && (0..4).all(|_| fixture.selected() == other));
    let last = fixture.select().unwrap();
    last.learn(Lesson::NoProfile { asked: true });
    drop(last);
    let none = fixture.select().unwrap_err();
    assert_eq!(none.to_string(), "No account has a Kiro profile; see `kiro-server accounts check`");
    assert_eq!((none.is_lasting(), none.retry_after), (true, Some(Duration::from_secs(600))));
    fixture.later(480);
    let none = fixture.select().unwrap_err();
    assert_eq!(none.to_string(), "No account has a Kiro profile; see `kiro-server accounts check`");
    assert_eq!((none.is_lasting(), none.code(), none.why), (false, Code::NoAccount, Why::NoProfile));
    fixture.later(120);
    assert!(fixture.select().is_ok());
    assert!(fixture.outcomes.lock().unwrap().is_empty(), "never written");
}

/// The table of K88: the error when accounts have refused a model.
#[tokio::test]
async fn a_refused_model_is_distinguished_from_a_resting_account_k88() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", "{}"), ("a3", r#"{"isDisabled":true}"#)]).await;
    let wanted = Wanted { kiro_id: "kiro-x", ..Wanted::default() };
    fixture.pool.select(&wanted).unwrap().learn(Lesson::ModelRefused("kiro-x".into()));
    let other = fixture.pool.select(&wanted).unwrap();
    other.failed(&limited(30), AttemptEnd::default());
    assert_eq!(why(fixture.pool.select(&wanted)), (Why::Unavailable, Some(30)), "it may serve the model");
    other.learn(Lesson::ModelRefused("kiro-x".into()));
    let none = fixture.pool.select(&wanted).unwrap_err();
    assert_eq!((none.code(), none.why), (Code::NotFound, Why::Model));
    assert!(fixture.select().is_ok(), "other models are served");
    let tried = ["a1".into(), "a2".into()];
    let none = fixture.pool.select(&Wanted { exclude: &tried, ..wanted }).unwrap_err();
    assert_eq!((none.is_lasting(), none.why), (false, Why::Model), "also where this request heard it");
}

/// R90: the shared counter goes on inside the lowest tier with a selectable account.
#[tokio::test]
async fn the_shared_counter_goes_on_inside_a_tier_r90() {
    let fixture = Fixture::new(
        &[],
        &[
            ("a1", r#"{"priority":2}"#),
            ("a2", "{}"),
            ("a3", r#"{"priority":"0"}"#),
            ("a4", r#"{"priority":-1,"isDisabled":true}"#),
        ],
    )
    .await;
    let turns: Vec<_> = (0..4).map(|_| fixture.selected()).collect();
    assert!(turns[0] != turns[1] && turns[..2] == turns[2..] && !turns.contains(&"a1".into()), "{turns:?}");
    for _ in 0..2 {
        let lease = fixture.select().unwrap();
        assert_ne!(&**lease.account().id(), "a1");
        lease.failed(&limited(30), AttemptEnd::default());
    }
    assert!((0..4).all(|_| fixture.selected() == "a1"), "the next tier");
    fixture.later(30);
    assert!((0..2).all(|_| fixture.selected() != "a1"));
    fixture.snapshot(&[("a1", r#"{"priority":-2}"#), ("a2", "{}"), ("a3", "{}")]);
    assert!((0..4).all(|_| fixture.selected() == "a1"));
}

/// A host that asks an account by name again and again heals nothing, and doesn't keep the probe away.
#[tokio::test]
async fn pinned_requests_do_not_put_a_probe_off_r17_n5() {
    let fixture = Fixture::new(&[], &[("a1", "{}")]).await;
    fixture.select().unwrap().failed(&fault(FaultKind::RateLimited), AttemptEnd::default());
    for _ in 0..12 {
        fixture.later(10);
        let pinned = Wanted { only: Some("a1"), ..Wanted::default() };
        fixture.pool.select(&pinned).unwrap().succeeded();
        fixture.pool.visit("a1").unwrap();
    }
    assert_eq!(fixture.pool.probes_due().len(), 1);
}

/// A pinned request passes the line.
#[tokio::test]
async fn a_pinned_request_passes_the_line_n5() {
    let options = [("maxInflightPerAccount", "1"), ("accountWaitMs", "5000"), ("maxConns", "1")];
    let fixture = Fixture::new(&options, &[("a1", "{}")]).await;
    let holder = fixture.select().unwrap();
    let pool = fixture.pool.clone();
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(async move { pool.acquire(&Wanted::default(), Instant::now()).await.is_ok() });
    while fixture.pool.counts().waiting == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let pinned = Wanted { only: Some("a1"), ..Wanted::default() };
    let began = Instant::now();
    assert!(fixture.pool.acquire(&pinned, Instant::now()).await.is_ok());
    assert!(began.elapsed() < Duration::from_millis(1_000), "{:?}", began.elapsed());
    drop(holder);
    assert!(waiting.join_next().await.unwrap().unwrap());
}

/// `needsRefresh` counts in every state that is refreshed, not only for healthy accounts.
#[tokio::test]
async fn an_account_that_rests_is_refreshed_when_its_record_asks_for_it_r37() {
    let rests = r#""isHealthy":false,"lastErrorTime":"2026-11-23T09:59:30.000Z""#;
    let asks = format!(r#"{{{rests},"needsRefresh":true}}"#);
    let fixture = Fixture::new(&[], &[("a1", &asks), ("a2", &format!("{{{rests}}}"))]).await;
    let due = |away| -> Vec<String> {
        fixture.pool.refreshes_due(away, Duration::from_secs(300)).iter().map(|id| id.to_string()).collect()
    };
    assert!(matches!(fixture.state("a1"), HealthState::Cooling { .. }));
    assert_eq!(due(false), ["a1"]);
    fixture.later(31);
    assert_eq!(fixture.state("a1"), HealthState::HalfOpen);
    assert_eq!(due(false), ["a1"]);
    assert!(due(true).is_empty(), "R52");
}

/// A request that waits for one account doesn't hold up others that can have another; one that can have none doesn't
/// wait.
#[tokio::test]
async fn a_busy_account_holds_up_only_requests_for_it() {
    let options = [("maxInflightPerAccount", "1"), ("accountWaitMs", "20000"), ("maxConns", "1")];
    let fixture = Fixture::new(&options, &[("a1", "{}"), ("a2", r#"{"notSupportedModels":["m"]}"#)]).await;
    let names = ["m"];
    let of_model = Wanted { model_names: &names, ..Wanted::default() };
    let holder = fixture.pool.select(&of_model).unwrap();
    let pool = fixture.pool.clone();
    let mut waiting = tokio::task::JoinSet::new();
    waiting
        .spawn(async move { pool.acquire(&Wanted { model_names: &["m"], ..Wanted::default() }, Instant::now()).await });
    while fixture.pool.counts().waiting == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let other = fixture.pool.acquire(&Wanted::default(), Instant::now()).await.unwrap();
    assert_eq!(&**other.account().id(), "a2", "the queue is full, but not of those who want it");
    let tried = ["a1".into()];
    let began = Instant::now();
    let last = fixture.pool.acquire(&Wanted { exclude: &tried, ..of_model }, Instant::now()).await;
    assert_eq!(why(last).0, Why::Exhausted, "none will come");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop((holder, other));
    assert_eq!(&**waiting.join_next().await.unwrap().unwrap().unwrap().account().id(), "a1");
}

/// All waits of one request together last `KIRO_ACCOUNT_WAIT`.
#[tokio::test]
async fn all_waits_of_a_request_share_one_time() {
    let options = [("maxInflightPerAccount", "1"), ("accountWaitMs", "2000")];
    let fixture = Fixture::new(&options, &[("a1", "{}")]).await;
    let _holder = fixture.select().unwrap();
    let began = Instant::now();
    let since = began - Duration::from_millis(1_800);
    assert_eq!(why(fixture.pool.acquire(&Wanted::default(), since).await).0, Why::Busy);
    let waited = began.elapsed();
    assert!((Duration::from_millis(150)..Duration::from_millis(1_500)).contains(&waited), "{waited:?}");
}

/// A stream of a pool under load outlives the next failure of its account: its good end separates the failures all the
/// same.
#[tokio::test]
async fn any_good_end_separates_failures_in_a_row_k43() {
    let fixture = Fixture::new(&[], &[("a1", "{}")]).await;
    let streams: Vec<Lease> = (0..20).map(|_| fixture.select().unwrap()).collect();
    for (n, stream) in streams.into_iter().enumerate() {
        fixture.later(1);
        if n % 3 == 2 {
            stream.succeeded();
        } else {
            stream.failed(&fault(FaultKind::Network), AttemptEnd { refreshed: false, committed: true });
        }
    }
    assert_eq!(fixture.state("a1"), HealthState::Healthy);
}

#[tokio::test]
async fn a_fault_on_three_accounts_alike_is_upstreams_and_rests_none_k119() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", "{}"), ("a3", "{}"), ("a4", "{}")]).await;
    for _ in 0..100 {
        let lease = fixture.select().unwrap();
        lease.failed(&fault(FaultKind::ServerError), AttemptEnd { refreshed: false, committed: true });
    }
    assert_eq!(fixture.in_state("healthy"), 4);
    let shown = fixture.outcomes.lock().unwrap();
    let is_mark = |outcome: &Outcome| matches!(outcome.event, Event::Fault { mark: Some(_), .. });
    assert_eq!(shown.iter().filter(|(_, outcome)| is_mark(outcome)).count(), 2, "of the first two accounts");
    assert_eq!(shown.len(), 2, "uses are no business of a host (R35)");
}

#[tokio::test]
async fn a_hard_fault_counts_on_its_account_even_when_others_have_it_too_k119() {
    let ids = ["a1", "a2", "a3", "a4"];
    let fixture = Fixture::new(&[], &ids.map(|id| (id, "{}"))).await;
    for id in ids {
        let lease = fixture.pool.select(&Wanted { homes: &[id.into()], ..Wanted::default() }).unwrap();
        let kind = if id == "a1" { FaultKind::Suspended } else { FaultKind::RateLimited };
        lease.failed(&fault(kind), AttemptEnd::default());
    }
    assert_eq!(fixture.state("a1"), HealthState::Ejected);
    assert_eq!(fixture.in_state("cooling"), 3);
    assert!(fixture.select().is_err(), "what upstream said of an account itself is kept to");
}

#[tokio::test]
async fn while_all_rest_for_a_soft_fault_the_least_bad_one_is_asked_k119() {
    let fixture = Fixture::new(&[], &[("a1", "{}"), ("a2", "{}"), ("a3", r#"{"isDisabled":true}"#)]).await;
    let fail = |id: &str, times: usize| {
        for _ in 0..times {
            let lease = fixture.pool.select(&Wanted { homes: &[id.into()], ..Wanted::default() });
            let lease = lease.unwrap();
            assert_eq!(&**lease.account().id(), id);
            lease.failed(&fault(FaultKind::Network), AttemptEnd::default());
            // Apart from each other: not upstream's.
            fixture.later(20);
        }
    };
    fail("a1", 3);
    assert!(matches!(fixture.state("a1"), HealthState::Cooling { .. }));
    assert_eq!(fixture.selected(), "a2", "not while somebody else may serve");
    fail("a2", 3);
    assert_eq!(fixture.in_state("cooling") + fixture.in_state("half-open"), 2);
    fixture.later(-10);
    let both: Vec<Lease> = (0..20).map(|_| fixture.select().unwrap()).collect();
    let tried = [both[0].account().id().clone()];
    assert!(
        fixture.pool.select(&Wanted { exclude: &tried, ..Wanted::default() }).is_ok(),
        "and the other one after it"
    );
    drop(both);
    assert!(fixture.pool.counts().in_flight == 0);
    // It answers well: it is healthy again, and only it is asked.
    let lease = fixture.select().unwrap();
    let healed = lease.account().id().to_string();
    lease.succeeded();
    drop(lease);
    assert_eq!(fixture.state(&healed), HealthState::Healthy);
    assert!((0..4).all(|_| fixture.selected() == healed));
}

/// The bar in virtual time: ten minutes at 100 requests a second (20 with two accounts, which can't tell upstream's
/// fault from their own), 5 % of the answers break off in the middle. No request is refused.
#[tokio::test]
async fn ten_minutes_of_five_per_cent_broken_streams_refuse_nobody_k119() {
    for (accounts, step, most) in [(10_usize, 10, 0), (2, 50, 12_000)] {
        let ids: Vec<String> = (0..accounts).map(|n| format!("a{n}")).collect();
        let records: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), "{}")).collect();
        let fixture = Fixture::new(&[], &records).await;
        let mut rng = fastrand::Rng::with_seed(11);
        let mut running: BTreeMap<(i64, usize), Lease> = BTreeMap::new();
        let mut rested = 0;
        for n in 0..usize::try_from(600_000 / step).unwrap() {
            let now = fixture.millis.fetch_add(step, Ordering::Relaxed) + step;
            while running.first_key_value().is_some_and(|((at, _), _)| *at <= now) {
                let Some((_, lease)) = running.pop_first() else { break };
                if rng.u32(..100) < 5 {
                    lease.failed(&fault(FaultKind::Network), AttemptEnd { refreshed: false, committed: true });
                } else {
                    lease.succeeded();
                }
            }
            let lease = fixture.select().unwrap_or_else(|none| panic!("request {n} of {accounts} accounts: {none}"));
            running.insert((now + rng.i64(500..10_000), n), lease);
            rested += fixture.in_state("cooling");
        }
        assert!(rested <= most, "{accounts} accounts: {rested}");
    }
}
