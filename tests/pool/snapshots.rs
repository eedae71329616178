//! The store's contents as a process sees them: turns, snapshots, a pool that is gone, a store that is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiro_messages::pool::{AttemptEnd, PoolEvent, Wanted};
use kiro_messages::proto::kiro::fault::FaultKind;
use redis::Commands as _;
use tokio::time::{Instant, sleep};

use super::accounts::{POOL, put_account, record, token_key};
use super::clock::{Time, eventually};
use super::instance::{COUNTER, Instance, LIVE, fault, usage};
use super::redis_server::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn round_robin_by_the_shared_counter_case_20() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    for id in ["a2", "a3", "a1"] {
        put_account(&mut redis, id, "{}", LIVE);
    }
    let one = Instance::start(&server, &time, &[]).await;
    let turns: Vec<_> = (0..6).map(|_| one.selected()).collect();
    assert_eq!(turns, ["a1", "a2", "a3", "a1", "a2", "a3"]);
    assert_eq!(redis.get::<_, String>(COUNTER).unwrap(), "64");
    let two = Instance::start(&server, &time, &[]).await;
    assert_eq!(two.selected(), "a2", "ticket 64");
    assert_eq!(redis.get::<_, String>(COUNTER).unwrap(), "128");
    for _ in 0..300 {
        one.selected();
        sleep(Duration::from_micros(200)).await;
    }
    let counter: u64 = redis.get(COUNTER).unwrap();
    assert!((384..=512).contains(&counter), "306 + 1 tickets in blocks of 64: {counter}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_counter_is_left_alone_case_21() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    for id in ["a1", "a2", "a3"] {
        put_account(&mut redis, id, "{}", LIVE);
    }
    redis.set::<_, _, ()>(COUNTER, "abc").unwrap();
    let one = Instance::start(&server, &time, &[]).await;
    let turns: Vec<_> = (0..200).map(|_| one.selected()).collect();
    assert!(turns.chunks(3).all(|three| three.iter().zip(["a1", "a2", "a3"]).all(|(got, wanted)| got == wanted)));
    assert_eq!(redis.get::<_, String>(COUNTER).unwrap(), "abc");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_of_the_pool_under_load_is_not_noticed_case_34() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    for id in ["a1", "a2"] {
        put_account(&mut redis, id, "{}", LIVE);
    }
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "100")]).await;
    let (served, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load = {
        let (pool, served, failed) = (one.pool.clone(), served.clone(), failed.clone());
        tokio::spawn(async move {
            loop {
                match pool.select(&Wanted::default()) {
                    Ok(lease) => {
                        lease.succeeded();
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                sleep(Duration::from_millis(1)).await;
            }
        })
    };
    sleep(Duration::from_millis(300)).await;
    let fields: BTreeMap<String, String> = redis.hgetall(POOL).unwrap();
    redis.del::<_, ()>(POOL).unwrap();
    sleep(Duration::from_millis(300)).await;
    assert!(one.pool.is_doubtful() && !redis.exists::<_, bool>(POOL).unwrap(), "never written back");
    for (id, record) in &fields {
        redis.hset::<_, _, _, ()>(POOL, id, record).unwrap();
    }
    eventually("certain again", Duration::from_secs(2), || !one.pool.is_doubtful()).await;
    load.abort();
    println!("served {} requests over the rewrite", served.load(Ordering::Relaxed));
    assert!(served.load(Ordering::Relaxed) > 20 && failed.load(Ordering::Relaxed) == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_deleted_for_good_is_served_for_a_minute_case_35_r56() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", "{}", LIVE);
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "100")]).await;
    redis.del::<_, ()>(POOL).unwrap();
    eventually("noticed", Duration::from_secs(2), || one.pool.is_doubtful()).await;
    time.pass(59);
    sleep(Duration::from_millis(400)).await;
    assert_eq!(one.selected(), "a1");
    time.pass(1);
    eventually("believed", Duration::from_secs(2), || one.pool.select(&Wanted::default()).is_err()).await;
    let none = one.pool.select(&Wanted::default()).unwrap_err().to_string();
    assert!(none.contains(POOL) && none.contains("accounts add"), "{none}");
}

/// Redis came up without its data, was stopped again, and gets it back from elsewhere: two empty reads with an outage
/// between them are no minute of empty reads.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_between_empty_reads_does_not_count_r55() {
    let mut server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", "{}", LIVE);
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "100")]).await;
    redis.del::<_, ()>(POOL).unwrap();
    eventually("noticed", Duration::from_secs(2), || one.pool.is_doubtful()).await;
    server.shutdown_save();
    eventually("lost", Duration::from_secs(5), || !one.pool.is_doubtful()).await;
    time.pass(120);
    server.restart();
    eventually("noticed again", Duration::from_secs(5), || one.pool.is_doubtful()).await;
    assert_eq!(one.selected(), "a1");
    time.pass(60);
    eventually("believed", Duration::from_secs(2), || one.pool.select(&Wanted::default()).is_err()).await;
}

/// Each outage is reported once at its beginning and once at its end, when the writes that waited are done.
#[tokio::test(flavor = "multi_thread")]
async fn store_lost_and_store_back_are_reported_once_each_r50() {
    let mut server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    for id in ["a1", "a2"] {
        put_account(&mut redis, id, r#"{"usageCount":1}"#, LIVE);
    }
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "100")]).await;
    let events = || one.events.lock().unwrap().clone();
    assert!(events().is_empty(), "the first connection is no return: {:?}", events());
    for outage in 1..=2 {
        server.shutdown_save();
        let told = outage * 2;
        eventually("the loss", Duration::from_secs(5), || events().len() == told - 1).await;
        let lost = events()[told - 2].clone();
        assert!(matches!(&lost, PoolEvent::StoreLost { cause } if cause.contains("store away")), "{lost:?}");
        for _ in 0..10 {
            one.pool.select(&Wanted::default()).unwrap().succeeded();
        }
        sleep(Duration::from_millis(700)).await;
        server.restart();
        eventually("the return", Duration::from_secs(8), || events().len() == told).await;
        let back = events()[told - 1].clone();
        let PoolEvent::StoreBack { away, written } = back else { panic!("{back:?}") };
        assert_eq!(written, 2, "both accounts had something to be written");
        assert!((Duration::from_millis(700)..Duration::from_secs(20)).contains(&away), "{away:?}");
        let mut redis = server.connection();
        let counts: u64 = ["a1", "a2"].map(|id| usage(&record(&mut redis, id))).iter().sum();
        assert_eq!(counts, 2 + 10 * outage as u64, "written before it was told");
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!(events().len(), 4);
}

/// Selection, the token, the end of a stream: nothing of a request reaches for the store.
#[tokio::test(flavor = "multi_thread")]
async fn no_call_of_a_request_waits_for_the_store_r5() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    for n in 0..20 {
        put_account(&mut redis, &format!("a{n:02}"), "{}", LIVE);
    }
    let one = Instance::start(&server, &time, &[]).await;
    server.freeze();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for n in 0..500 {
        let asked = Instant::now();
        let lease = one.pool.select(&Wanted::default()).unwrap();
        assert_eq!(one.credentials.access_token(&lease).await.unwrap().expose(), "live");
        if n % 50 == 0 {
            lease.failed(&fault(FaultKind::ServerError, 500), AttemptEnd::default());
        } else {
            lease.succeeded();
        }
        slowest = slowest.max(asked.elapsed());
    }
    println!("500 requests on a frozen Redis: {:?}, the slowest {slowest:?}", begun.elapsed());
    server.thaw();
    assert!(begun.elapsed() < Duration::from_millis(900), "one command alone would wait for 1 s");
    one.written().await;
}

/// A snapshot is taken whole or not at all, and a changed token record is adopted.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_read_keeps_the_snapshot_r14() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", "{}", LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    redis.rename::<_, _, ()>(POOL, "aside").unwrap();
    redis.set::<_, _, ()>(POOL, "no hash").unwrap();
    one.pool.reload().await.unwrap_err();
    assert_eq!(one.selected(), "a1");
    redis.rename::<_, _, ()>("aside", POOL).unwrap();
    put_account(&mut redis, "a2", "{}", LIVE);
    redis.set::<_, _, ()>(token_key("a1"), LIVE.replace("live", "theirs").replace("\"r\"", "\"r2\"")).unwrap();
    one.pool.reload().await.unwrap();
    assert_eq!(one.token_of("a1").await.unwrap(), "theirs");
    assert_eq!(one.pool.states()[0], ("healthy", 2));
}

/// The Node.js service sets counts back at its start (E2, E3): ours come on top of what is there, and nothing is repaired.
#[tokio::test(flavor = "multi_thread")]
async fn counts_that_others_set_back_stay_set_back_r34() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", r#"{"usageCount":50}"#, LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    for _ in 0..3 {
        one.pool.select(&Wanted::default()).unwrap().succeeded();
    }
    one.written().await;
    assert_eq!(usage(&record(&mut redis, "a1")), 53);
    redis.hset::<_, _, _, ()>(POOL, "a1", r#"{"usageCount":0,"errorCount":0}"#).unwrap();
    one.pool.select(&Wanted::default()).unwrap().succeeded();
    one.written().await;
    one.pool.reload().await.unwrap();
    assert_eq!(usage(&record(&mut redis, "a1")), 1);
}
