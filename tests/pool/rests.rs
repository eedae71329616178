//! What an outcome does to its account, here and in the other processes: rests, marks, probes and healing.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use kiro_messages::policy::health::HealthState;
use kiro_messages::policy::outcome::{Event, Outcome};
use kiro_messages::pool::{AttemptEnd, PoolEvent, Wanted, Why};
use kiro_messages::proto::kiro::fault::FaultKind;
use redis::Commands as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::accounts::{POOL, put_account, record, token_key};
use super::address::{Address, grant};
use super::clock::{Time, eventually, t0};
use super::instance::{Instance, LIVE, fault, ui_reset, usage};
use super::redis_server::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn a_rest_is_seen_by_the_other_instance_which_probes_after_it_case_12_r58() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", r#"{"uuid":"a1"}"#, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    let two = Instance::start(&server, &time, &[]).await;
    let lease = one.pool.select(&Wanted::default()).unwrap();
    lease.failed(&fault(FaultKind::RateLimited, 429), AttemptEnd::default());
    drop(lease);
    let marked = Instant::now();
    let gone = || two.pool.select(&Wanted::default()).is_err_and(|none| none.why == Why::Unavailable);
    eventually("the second instance leaves the account out", Duration::from_millis(5_100), gone).await;
    println!("seen by the other instance after {:?}", marked.elapsed());
    assert_eq!(
        record(&mut redis, "a1"),
        r#"{"uuid":"a1","isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:00.000Z","lastErrorMessage":"cool-down until 2026-11-23T10:01:00.000Z: 429 rate limited","lastUsed":"2026-11-23T10:00:00.000Z"}"#
    );
    time.pass(60);
    assert_eq!(two.state("a1"), HealthState::HalfOpen);
    let probe = two.pool.select(&Wanted::default()).unwrap();
    assert!(two.pool.select(&Wanted::default()).is_err());
    probe.succeeded();
    assert_eq!(two.state("a1"), HealthState::Healthy);
    two.written().await;
    one.pool.reload().await.unwrap();
    assert_eq!(one.state("a1"), HealthState::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_request_heals_case_13() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let before = r#"{"uuid":"a1","isHealthy":false,"errorCount":3,"lastErrorTime":"2026-11-23T09:00:00Z","lastErrorMessage":"cool-down until 2026-11-23T09:01:00.000Z: 429 rate limited","scheduledRecoveryTime":null,"usageCount":41}"#;
    put_account(&mut redis, "a1", before, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    one.pool.select(&Wanted::default()).unwrap().succeeded();
    one.written().await;
    assert_eq!(
        record(&mut redis, "a1"),
        r#"{"uuid":"a1","isHealthy":true,"errorCount":0,"lastErrorTime":null,"lastErrorMessage":null,"scheduledRecoveryTime":null,"usageCount":42,"lastUsed":"2026-11-23T10:00:00.000Z"}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_from_before_the_rest_only_counts_case_14() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", r#"{"usageCount":7}"#, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    let stream = one.pool.select(&Wanted::default()).unwrap();
    time.pass(1);
    one.pool.select(&Wanted::default()).unwrap().failed(&fault(FaultKind::RateLimited, 429), AttemptEnd::default());
    time.pass(1);
    stream.succeeded();
    one.written().await;
    let after = record(&mut redis, "a1");
    assert!(after.contains(r#""isHealthy":false"#) && after.contains(r#""usageCount":8"#), "{after}");
    one.pool.reload().await.unwrap();
    assert!(matches!(one.state("a1"), HealthState::Cooling { .. }));
}

/// K91: the step stands in the record, so that a process that starts anew goes on from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_goes_on_from_the_step_of_the_last_one_k91_p53() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", r#"{"uuid":"a1"}"#, LIVE.replace("2026-11-24", "2027-11-24").as_str());
    for (step, minutes) in [(1, 30), (2, 120), (3, 360), (4, 720), (5, 1440), (6, 1440)] {
        let process = Instance::start(&server, &time, &[]).await;
        let began = Timestamp::from_millisecond(time.0.load(Ordering::Relaxed)).unwrap();
        let lease = process.pool.select(&Wanted::default()).unwrap();
        lease.failed(&fault(FaultKind::Suspicious, 429), AttemptEnd::default());
        drop(lease);
        process.written().await;
        process.pool.reload().await.unwrap();
        let message: serde_json::Value = serde_json::from_str(&record(&mut redis, "a1")).unwrap();
        let message = message["lastErrorMessage"].as_str().unwrap().to_owned();
        let HealthState::Cooling { until } = process.state("a1") else { panic!("{message}") };
        assert_eq!(message, format!("cool-down until {until:.3}: suspicious activity ({step})"));
        let rest = until.duration_since(began).as_secs();
        assert!((minutes * 54..=minutes * 66).contains(&rest), "step {step}: {rest} s");
        time.pass(rest + 1);
        assert_eq!(process.state("a1"), HealthState::HalfOpen, "R16");
        assert!(process.pool.probes_due().is_empty());
        process.close().await;
    }
    let process = Instance::start(&server, &time, &[]).await;
    process.pool.select(&Wanted::default()).unwrap().succeeded();
    process.written().await;
    let healed: serde_json::Value = serde_json::from_str(&record(&mut redis, "a1")).unwrap();
    assert_eq!(
        (&healed["isHealthy"], &healed["lastErrorMessage"]),
        (&serde_json::json!(true), &serde_json::Value::Null)
    );
}

/// The step in a record's mark; 0: it tells of none.
fn step_of(record: &serde_json::Value) -> u32 {
    let message = record["lastErrorMessage"].as_str().filter(|_| record["isHealthy"] == false).unwrap_or("");
    let after = message.split_once("suspicious activity (").map(|(_, after)| after);
    after.and_then(|after| after.split_once(')')).map_or(0, |(step, _)| step.parse().unwrap())
}

/// Whether a server error is why it rests: it is asked while nobody else is left.
fn rests_softly(process: &Instance) -> bool {
    let cause = process.pool.accounts().into_iter().find_map(|account| account.cause);
    cause.is_some_and(|cause| cause.ends_with("server error"))
}

/// Two processes, streams that outlive rests, faults of all kinds, snapshots and writes in any order. Whatever happens:
/// a process that saw a refusal offers the account to nobody until its rest is over or somebody healed it (R105); a rest's
/// wave is one step, no step is lost but by a conversation that ended well, and no probe is one (K91).
#[tokio::test(flavor = "multi_thread")]
async fn any_order_of_outcomes_snapshots_and_processes_k91_r105() {
    const RESTS: [i64; 5] = [30, 120, 360, 720, 1440];
    let server = RedisServer::start();
    let mut redis = server.connection();
    let token = LIVE.replace("2026-11-24", "2036-11-24");
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let time = Time::new();
        put_account(&mut redis, "a1", r#"{"uuid":"a1"}"#, &token);
        let options = [("accountCacheTtlMs", "3600000"), ("suspicionBrake", "off")];
        let processes =
            [Instance::start(&server, &time, &options).await, Instance::start(&server, &time, &options).await];
        let mut open: Vec<(usize, kiro_messages::pool::Lease)> = Vec::new();
        let mut before = 0;
        for round in 0..12 {
            let place = format!("seed {seed}, round {round}");
            let (mut healed, mut suspected) = (false, false);
            // Since when a process has known of a mark of its own that nobody lifted.
            let mut refused = [false; 2];
            for _ in 0..rng.usize(5..40) {
                let p = rng.usize(0..2);
                let process = &processes[p];
                match rng.u8(0..10) {
                    0..=3 => {
                        if let Ok(lease) = process.pool.select(&Wanted::default()) {
                            assert!(!refused[p], "{place}: offered after a refusal");
                            open.push((p, lease));
                        }
                    }
                    4..=6 if !open.is_empty() => {
                        let (p, lease) = open.swap_remove(rng.usize(0..open.len()));
                        let kind = match rng.u8(0..8) {
                            0..=3 => FaultKind::Suspicious,
                            4 => FaultKind::RateLimited,
                            5 => FaultKind::ServerError,
                            6 => FaultKind::Forbidden,
                            _ => {
                                if let Some(Outcome { event: Event::Success { heals: true, .. }, .. }) =
                                    lease.succeeded()
                                {
                                    (healed, refused[p]) = (true, false);
                                }
                                continue;
                            }
                        };
                        let outcome = lease.failed(&fault(kind, 429), AttemptEnd::default());
                        let rests = matches!(processes[p].state("a1"), HealthState::Cooling { .. });
                        suspected |= kind == FaultKind::Suspicious && outcome.is_some();
                        refused[p] |= outcome.is_some() && rests && !rests_softly(&processes[p]);
                    }
                    7 => process.written().await,
                    8 => {
                        process.pool.reload().await.unwrap();
                        // Another process may have healed it.
                        refused[p] &=
                            matches!(process.state("a1"), HealthState::Cooling { .. }) && !rests_softly(process);
                        assert!(healed || !refused[p] || process.pool.select(&Wanted::default()).is_err(), "{place}");
                    }
                    _ => {
                        for probe in process.pool.probes_due() {
                            probe.succeeded();
                        }
                        // Twenty seconds a round at most: no rest ends in it.
                        time.0.fetch_add(rng.i64(0..500), Ordering::Relaxed);
                    }
                }
            }
            for process in &processes {
                process.written().await;
            }
            for process in &processes {
                process.pool.reload().await.unwrap();
            }
            let told: serde_json::Value = serde_json::from_str(&record(&mut redis, "a1")).unwrap();
            let step = step_of(&told);
            if healed {
                assert!(step <= before.max(1) + 1, "{place}: {before} to {step}: {told}");
            } else {
                assert!(step == before || step == before + 1, "{place}: {before} to {step}: {told}");
                assert!(step > 0 || !suspected, "{place}: {told}");
            }
            before = step;
            let now = Timestamp::from_millisecond(time.0.load(Ordering::Relaxed)).unwrap();
            let states = processes.each_ref().map(|process| process.state("a1"));
            assert_eq!(states[0].as_str(), states[1].as_str(), "{place}: {told}");
            if let HealthState::Cooling { until } = states[0] {
                let longest = RESTS[usize::try_from(step.clamp(1, 5)).unwrap() - 1] * 66;
                let rest = until.duration_since(now).as_secs();
                assert!(rest <= longest.max(3600), "{place}: {rest} s in step {step}");
                if !healed && told["lastErrorMessage"].as_str().unwrap().contains(": suspicious activity") {
                    assert!(rest >= longest / 66 * 54 - 60, "{place}: {rest} s in step {step}: {told}");
                }
                time.0.fetch_add((rest + 61) * 1000, Ordering::Relaxed);
            }
        }
        drop(open);
        for process in processes {
            process.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_lasts_to_the_turn_of_the_month_or_a_reset_case_15_case_16() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", r#"{"uuid":"a1","isHealthy":true,"errorCount":0}"#, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    one.pool.select(&Wanted::default()).unwrap().failed(&fault(FaultKind::QuotaMonth, 402), AttemptEnd::default());
    one.written().await;
    assert_eq!(
        record(&mut redis, "a1"),
        r#"{"uuid":"a1","isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:00.000Z","lastErrorMessage":"quota exhausted until 2026-12-01T00:00:00.000Z: MONTHLY_REQUEST_COUNT","scheduledRecoveryTime":"2026-12-01T00:00:00.000Z","lastUsed":"2026-11-23T10:00:00.000Z"}"#
    );
    one.pool.reload().await.unwrap();
    let none = one.pool.select(&Wanted::default()).unwrap_err();
    assert_eq!((none.is_lasting(), none.retry_after), (true, None), "M85");
    ui_reset(&mut redis, "a1");
    one.pool.reload().await.unwrap();
    assert_eq!(one.state("a1"), HealthState::Healthy, "case 16");
    time.set("2026-12-07T08:00:00Z");
    redis.set::<_, _, ()>(token_key("a1"), LIVE.replace("2026-11-24", "2027-11-24")).unwrap();
    one.pool.reload().await.unwrap();
    one.pool.select(&Wanted::default()).unwrap().failed(&fault(FaultKind::QuotaMonth, 402), AttemptEnd::default());
    one.written().await;
    let december = record(&mut redis, "a1");
    assert!(december.contains(r#""scheduledRecoveryTime":"2027-01-01T00:00:00.000Z""#), "{december}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_account_is_out_until_a_person_acts_case_17() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", "{}", &LIVE.replace("2026-11-24", "2036-11-24"));
    let one = Instance::start(&server, &time, &[]).await;
    let mut suspended = fault(FaultKind::Suspended, 403);
    suspended.reason = Some("TEMPORARILY_SUSPENDED".into());
    one.pool.select(&Wanted::default()).unwrap().failed(&suspended, AttemptEnd::default());
    one.written().await;
    let marked = record(&mut redis, "a1");
    let message = r#""lastErrorMessage":"ejected: 403 suspended (TEMPORARILY_SUSPENDED)""#;
    assert!(marked.contains(r#""errorCount":10"#) && marked.contains(message), "{marked}");
    assert!(matches!(&one.events.lock().unwrap()[..], [PoolEvent::Ejected { id, .. }] if &**id == "a1"));
    time.set("2028-01-01T00:00:00Z");
    one.pool.reload().await.unwrap();
    assert_eq!(one.state("a1"), HealthState::Ejected);
    ui_reset(&mut redis, "a1");
    one.pool.reload().await.unwrap();
    assert_eq!(one.selected(), "a1");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_of_twenty_requests_probes_case_18() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", r#"{"isHealthy":false}"#, LIVE);
    put_account(&mut redis, "a2", "{}", LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let pool = one.pool.clone();
        tasks.spawn(async move { pool.select(&Wanted::default()).unwrap() });
    }
    let leases = tasks.join_all().await;
    assert_eq!(leases.iter().filter(|lease| &**lease.account().id() == "a1").count(), 1);
}

/// K62, R17: an account that nobody asks is asked for its usage, and a good answer heals it.
#[tokio::test(flavor = "multi_thread")]
async fn a_marked_account_without_traffic_is_probed_and_healed_r17_k5() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { (200, r#"{"usageBreakdownList":[]}"#.to_owned()) }).await;
    let own = format!(r#"{{"KIRO_BASE_URL":"{}/generateAssistantResponse","usageCount":5}}"#, address.url);
    put_account(&mut redis, "a1", &own, &LIVE.replacen('{', r#"{"profileArn":"arn:aws:x/y","#, 1));
    let one = Instance::start(&server, &time, &[]).await;
    one.pool.select(&Wanted::default()).unwrap().failed(&fault(FaultKind::RateLimited, 429), AttemptEnd::default());
    one.written().await;
    assert!(record(&mut redis, "a1").contains(r#""isHealthy":false"#));
    time.pass(119);
    sleep(Duration::from_millis(1_300)).await;
    assert_eq!(address.calls(), 0);
    time.pass(1);
    eventually("healed", Duration::from_secs(4), || one.state("a1") == HealthState::Healthy).await;
    one.written().await;
    let after = record(&mut redis, "a1");
    assert!(after.contains(r#""usageCount":5"#) && after.contains(r#""isHealthy":true"#), "{after}");
    let call = address.calls.lock().unwrap()[0].clone();
    assert_eq!(
        call.path,
        "/getUsageLimits?isEmailRequired=true&origin=AI_EDITOR&resourceType=AGENTIC_REQUEST&profileArn=arn%3Aaws%3Ax%2Fy"
    );
    assert_eq!(call.headers["authorization"], "Bearer live");
    assert!(!call.headers.contains_key("content-type"));
}

/// Bar of the pool: what rests is met by nobody, and is back within a second after its rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_rest_concerns_one_account_only() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    for n in 0..20 {
        put_account(&mut redis, &format!("a{n:02}"), "{}", &LIVE.replace("2026-11-24", "2099-11-24"));
    }
    // The real clock: the rest is 2 s by Retry-After.
    let time = Time::new();
    let clock = time.clone();
    let ticking = tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(10)).await;
            clock.0.fetch_add(10, Ordering::Relaxed);
        }
    });
    let one = Instance::start(&server, &time, &[]).await;
    let mut limited = fault(FaultKind::RateLimited, 429);
    limited.retry_after = Some(kiro_messages::proto::kiro::fault::RetryAfter::Seconds(2));
    let (mut met, mut rested, mut back) = (0, None, None);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) && back.is_none() {
        let lease = one.pool.select(&Wanted::default()).unwrap();
        if &**lease.account().id() == "a07" {
            match rested {
                None => {
                    lease.failed(&limited, AttemptEnd::default());
                    rested = Some(time.0.load(Ordering::Relaxed));
                }
                Some(since) if time.0.load(Ordering::Relaxed) - since < 2_000 => met += 1,
                Some(since) => {
                    lease.succeeded();
                    back = Some(time.0.load(Ordering::Relaxed) - since);
                }
            }
        } else {
            lease.succeeded();
        }
        sleep(Duration::from_millis(5)).await;
    }
    ticking.abort();
    println!("met while resting: {met}; back after {back:?} ms of a rest of 2000 ms");
    assert_eq!(met, 0);
    assert!(back.is_some_and(|after| (2_000..3_000).contains(&after)), "{back:?}");
}

/// A mark that Redis has not taken yet is on top of every snapshot (R18), and what others write is seen beneath it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_is_not_written_yet_stands_r18() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", r#"{"uuid":"a1","errorCount":2}"#, LIVE);
    put_account(&mut redis, "a2", r#"{"uuid":"a2"}"#, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").query::<()>(&mut redis).unwrap();
    for _ in 0..2 {
        one.pool.select(&Wanted::default()).unwrap().failed(&fault(FaultKind::RateLimited, 429), AttemptEnd::default());
    }
    sleep(Duration::from_millis(200)).await;
    for _ in 0..3 {
        one.pool.reload().await.unwrap();
        assert!(matches!(one.state("a1"), HealthState::Cooling { .. }), "{:?}", one.state("a1"));
    }
    assert!(!record(&mut redis, "a1").contains("cool-down"), "Redis has not got it");
    // Somebody else does something heavier, and switches the other one off.
    let quota = r#"{"uuid":"a1","isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:05.000Z","lastErrorMessage":"quota exhausted until 2026-12-01T00:00:00.000Z: MONTHLY_REQUEST_COUNT","scheduledRecoveryTime":"2026-12-01T00:00:00.000Z"}"#;
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("0").query::<()>(&mut redis).unwrap();
    redis.hset::<_, _, _, ()>(POOL, "a1", quota).unwrap();
    redis.hset::<_, _, _, ()>(POOL, "a2", r#"{"uuid":"a2","isDisabled":true}"#).unwrap();
    one.pool.reload().await.unwrap();
    assert!(matches!(one.state("a1"), HealthState::Quota { .. }), "{:?}", one.state("a1"));
    assert_eq!(one.state("a2"), HealthState::Disabled);
    one.written().await;
    let after = record(&mut redis, "a1");
    assert!(after.contains("quota exhausted"), "{after}");
    one.pool.reload().await.unwrap();
    assert!(matches!(one.state("a1"), HealthState::Quota { .. }), "a lighter mark doesn't replace a heavier one");
}

/// What a host program records itself is not written by us, and what it gives back is written once (R35, N18).
#[tokio::test(flavor = "multi_thread")]
async fn outcomes_are_handed_over_and_taken_back_r35_n18() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", r#"{"uuid":"a1","usageCount":1}"#, LIVE);
    let seen = Arc::<Mutex<Vec<Outcome>>>::default();
    let shown = seen.clone();
    let record_it: kiro_messages::pool::Recorder = Arc::new(move |_, outcome| {
        shown.lock().unwrap().push(outcome.clone());
        true
    });
    let one = Instance::hosted(&server, &time, &[], Some(record_it)).await;
    let last = || seen.lock().unwrap().last().cloned().unwrap();
    let before = record(&mut redis, "a1");
    let select = || one.pool.select(&Wanted::default()).unwrap();
    let id: kiro_messages::pool::AccountId = "a1".into();

    select().succeeded();
    let Outcome { at, event: Event::Success { heals: true, half_open: false, probe: false }, .. } = last() else {
        panic!("{:?}", last())
    };
    assert_eq!(at, t0());
    one.written().await;
    assert_eq!(record(&mut redis, "a1"), before, "the host writes it");
    one.pool.write(&id, &last());
    one.written().await;
    assert_eq!(usage(&record(&mut redis, "a1")), 2, "the host declined");

    // After the commit: the mark is the host's to write; the use is ours in any case.
    select().failed(&fault(FaultKind::ServerError, 500), AttemptEnd { refreshed: false, committed: true });
    one.written().await;
    assert_eq!(usage(&record(&mut redis, "a1")), 3);
    assert!(!record(&mut redis, "a1").contains("server error"));
    one.pool.write(&id, &last());
    one.written().await;
    let marked = record(&mut redis, "a1");
    assert!(usage(&marked) == 3 && marked.contains(r#""lastErrorMessage":"500 server error""#), "{marked}");
    let outcomes = seen.lock().unwrap().len();
    select().failed(&fault(FaultKind::ModelCapacity, 429), AttemptEnd { refreshed: false, committed: true });
    assert_eq!(seen.lock().unwrap().len(), outcomes, "there is nothing for a host to call");
    one.written().await;
    assert_eq!(usage(&record(&mut redis, "a1")), 4);

    // A success that must not heal is reported as such; when the host declines it, it is a bare count.
    let stream = select();
    time.pass(1);
    select().failed(&fault(FaultKind::RateLimited, 429), AttemptEnd::default());
    let Event::Fault { mark: Some(mark), used: false } = last().event else { panic!("{:?}", last()) };
    assert_eq!(mark.to_string(), "cool-down until 2026-11-23T10:01:01.000Z: 429 rate limited");
    one.pool.write(&id, &last());
    time.pass(1);
    stream.succeeded();
    let late = last();
    assert!(matches!(late.event, Event::Success { heals: false, half_open: false, .. }), "{late:?}");
    one.pool.write(&id, &late);
    one.written().await;
    let after = record(&mut redis, "a1");
    assert!(usage(&after) == 5 && after.contains(r#""isHealthy":false"#) && after.contains("cool-down"), "{after}");

    // Pinned requests are nobody's to record (N5).
    let outcomes = seen.lock().unwrap().len();
    let pinned = Wanted { only: Some("a1"), ..Wanted::default() };
    one.pool.select(&pinned).unwrap().succeeded();
    one.pool.select(&pinned).unwrap().failed(&fault(FaultKind::Suspended, 403), AttemptEnd::default());
    assert_eq!(seen.lock().unwrap().len(), outcomes);
}

/// A probe whose bearer token is rejected is cured like any attempt: one forced refresh, and once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_refreshes_a_rejected_token_r17() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        let asks = call.path.starts_with("/getUsageLimits");
        let bearer = call.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        match bearer.as_deref() {
            Some("Bearer new") if asks => (200, r#"{"usageBreakdownList":[]}"#.to_owned()),
            _ if asks => (401, r#"{"message":"Unauthorized"}"#.to_owned()),
            _ => (200, grant("new", Some("refresh-2"))),
        }
    })
    .await;
    let own = format!(
        r#"{{"KIRO_BASE_URL":"{0}/g","KIRO_REFRESH_URL":"{0}/r","isHealthy":false,"lastErrorTime":"2026-11-23T09:00:00Z","lastErrorMessage":"cool-down until 2026-11-23T09:01:00.000Z: 429 rate limited"}}"#,
        address.url
    );
    put_account(&mut redis, "a1", &own, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    time.pass(61);
    eventually("healed", Duration::from_secs(5), || one.state("a1") == HealthState::Healthy).await;
    assert_eq!(address.used(), ["r"]);
    one.written().await;
    assert!(record(&mut redis, "a1").contains(r#""isHealthy":true"#));
}
