//! Refreshes while others have a hand in the same record: locks, logins, deletions, replays, a store that is away.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiro_messages::credentials::RefreshError;
use kiro_messages::policy::health::HealthState;
use kiro_messages::pool::Wanted;
use kiro_messages::proto::kiro::fault::FaultKind;
use kiro_messages::secret::Secret;
use redis::Commands as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::accounts::{POOL, put_account, record, token, token_key};
use super::address::{Address, grant, refused};
use super::clock::{Time, eventually};
use super::instance::{Instance, LIVE, expired, lock_key};
use super::redis_server::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn three_instances_refresh_once_under_three_hundred_requests_case_24_r59_k56() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async {
        sleep(Duration::from_millis(300)).await;
        (200, grant("new", Some("refresh-2")))
    })
    .await;
    let (record, token) = expired(&address);
    put_account(&mut redis, "a1", &record, token);
    let instances = [0; 3].map(|_| Instance::start(&server, &time, &[])).into_iter().collect::<Vec<_>>();
    let mut started = Vec::new();
    for instance in instances {
        started.push(Arc::new(instance.await));
    }
    let mut requests = JoinSet::new();
    let begun = Instant::now();
    for n in 0..300 {
        let instance = started[n % 3].clone();
        requests.spawn(async move { instance.token_of("a1").await });
    }
    let tokens = requests.join_all().await;
    assert!(tokens.iter().all(|token| token.as_deref() == Ok("new")), "{tokens:?}");
    println!("300 requests on 3 instances: {} refresh call(s), {:?}", address.calls(), begun.elapsed());
    assert_eq!(address.calls(), 1);
}

/// While a request waits for the lock, a snapshot brings the token of the one who held it: there is nothing left to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_a_snapshot_brought_meanwhile_is_not_refreshed_again_r40_r59() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, token) = expired(&address);
    put_account(&mut redis, "a1", &record, token);
    redis.set_ex::<_, _, ()>(lock_key("a1"), "1795427974000-other", 20).unwrap();
    let one = Arc::new(Instance::start(&server, &time, &[]).await);
    let waiting = tokio::spawn({
        let one = one.clone();
        async move { one.token_of("a1").await }
    });
    sleep(Duration::from_millis(100)).await;
    let theirs = token.replace("old", "theirs").replace("refresh-1", "refresh-2").replace("09:00:00", "11:00:00");
    redis.set::<_, _, ()>(token_key("a1"), theirs).unwrap();
    one.pool.reload().await.unwrap();
    redis.del::<_, ()>(lock_key("a1")).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "theirs");
    assert_eq!(address.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_holder_of_the_lock_stops_nobody_with_a_live_token_case_25_r59() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, token) = expired(&address);
    // Expires in 2 minutes: due for a background refresh, and live.
    put_account(&mut redis, "a1", &record, &token.replace("09:00:00", "10:02:00"));
    // What is left of a holder that died 26 s ago.
    redis.set_ex::<_, _, ()>(lock_key("a1"), "1795427974000-dead", 4).unwrap();
    let one = Instance::start(&server, &time, &[]).await;
    let begun = Instant::now();
    while address.calls() == 0 {
        let asked = Instant::now();
        assert_eq!(one.token_of("a1").await.unwrap(), "old");
        assert!(asked.elapsed() < Duration::from_millis(50), "{:?}", asked.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(9), "4 s of lock and a look every second");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() > Duration::from_secs(3), "not before the lock was free");
    eventually("the new token", Duration::from_secs(1), || {
        one.credentials.credential("a1").unwrap().access_token == Some(Secret::new("new"))
    })
    .await;
}

/// The address does something to Redis while the refresh call is under way, then grants.
async fn meddling(server: &RedisServer, meddle: impl Fn(&mut redis::Connection) + Send + Sync + 'static) -> Address {
    let redis = Arc::new(Mutex::new(server.connection()));
    let meddle = Arc::new(meddle);
    Address::start(move |_| {
        let (redis, meddle) = (redis.clone(), meddle.clone());
        async move {
            meddle(&mut redis.lock().unwrap());
            (200, grant("new", Some("refresh-2")))
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_changes_the_region_during_the_call_case_26() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = meddling(&server, |redis| {
        let record = token(redis, "a1").replace("us-east-1", "eu-west-1");
        redis.set::<_, _, ()>(token_key("a1"), record).unwrap();
    })
    .await;
    let (record, before) = expired(&address);
    put_account(&mut redis, "a1", &record, before);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    assert_eq!(
        token(&mut redis, "a1"),
        r#"{"accessToken":"new","refreshToken":"refresh-2","expiresAt":"2026-11-23T11:00:00.000Z","authMethod":"social","region":"eu-west-1"}"#
    );
    assert_eq!(one.credentials.credential("a1").unwrap().region(), "eu-west-1");
}

/// R40 step 5: the answer names no profile, so the one that somebody has just put into the record is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn somebody_changes_the_profile_during_the_call_r40() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = meddling(&server, |redis| {
        let record = token(redis, "a1").replace("arn:old", "arn:new");
        redis.set::<_, _, ()>(token_key("a1"), record).unwrap();
    })
    .await;
    let (record, before) = expired(&address);
    put_account(&mut redis, "a1", &record, &before.replace("us-east-1\"", "us-east-1\",\"profileArn\":\"arn:old\""));
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    assert_eq!(
        token(&mut redis, "a1"),
        r#"{"accessToken":"new","refreshToken":"refresh-2","expiresAt":"2026-11-23T11:00:00.000Z","authMethod":"social","region":"us-east-1","profileArn":"arn:new"}"#
    );
    assert_eq!(one.pool.account("a1").unwrap().profile_arn(), Some("arn:new"));
}

/// R40 step 4: what the record says under the lock decides where the refresh goes, not what the last snapshot said.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_goes_where_the_record_says_by_then_r40_k10() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let own = format!(
        r#"{{"KIRO_REFRESH_URL":"{0}/social/{{{{region}}}}","KIRO_REFRESH_IDC_URL":"{0}/idc/{{region}}"}}"#,
        address.url
    );
    put_account(&mut redis, "a1", &own, LIVE);
    put_account(&mut redis, "a2", &own, LIVE);
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "3600000")]).await;
    // Somebody logs in again, another way and elsewhere.
    let login = r#"{"accessToken":"t","refreshToken":"refresh-1","expiresAt":"2026-11-23T09:00:00.000Z","authMethod":"IdC","clientId":"c","clientSecret":"s","idcRegion":"eu-west-1"}"#;
    redis.set::<_, _, ()>(token_key("a1"), login).unwrap();
    redis.set::<_, _, ()>(token_key("a2"), login.replace("eu-west-1", "evil.example.org/")).unwrap();
    assert!(one.credentials.refresh("a1").await.unwrap().is_some());
    assert_eq!(address.calls.lock().unwrap()[0].path, "/idc/eu-west-1");
    assert_eq!(one.credentials.refresh("a2").await, Err(RefreshError::NotRefreshable), "K11");
    assert_eq!(address.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_rotates_the_token_during_the_call_case_27() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let theirs = r#"{"accessToken":"theirs","refreshToken":"refresh-9","expiresAt":"2026-11-23T12:00:00.000Z","authMethod":"social"}"#;
    let address = meddling(&server, move |redis| redis.set::<_, _, ()>(token_key("a1"), theirs).unwrap()).await;
    let (record, before) = expired(&address);
    put_account(&mut redis, "a1", &record, before);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "theirs");
    assert_eq!(token(&mut redis, "a1"), theirs, "untouched");
    assert_eq!(one.credentials.counters().conflicts.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_account_is_deleted_during_the_call_case_28() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = meddling(&server, |redis| {
        redis.hdel::<_, _, ()>(POOL, "a1").unwrap();
        redis.del::<_, ()>(token_key("a1")).unwrap();
    })
    .await;
    let (record, before) = expired(&address);
    put_account(&mut redis, "a1", &record, before);
    put_account(&mut redis, "a2", "{}", LIVE);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new", "the running request may use it");
    one.close().await;
    assert!(!redis.hexists::<_, _, bool>(POOL, "a1").unwrap());
    assert!(!redis.exists::<_, bool>(token_key("a1")).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_refresh_token_ejects_until_there_is_another_case_29_r41() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { refused() }).await;
    let (before, old) = expired(&address);
    put_account(&mut redis, "a1", &before, old);
    let one = Instance::start(&server, &time, &[]).await;
    let fault = one.token_of("a1").await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::TokenRejected);
    assert_eq!(address.used(), ["refresh-1"]);
    one.written().await;
    let ejected = "ejected: refresh token rejected (bd473e5d) in us-east-1; log in again";
    let marked = record(&mut redis, "a1");
    assert!(marked.contains(ejected) && marked.contains(r#""errorCount":10"#), "{marked}");
    assert_eq!(one.state("a1"), HealthState::Ejected);
    time.pass(1_000_000);
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(address.calls(), 1, "ejected accounts are not refreshed");
    let new = LIVE.replace("\"r\"", "\"refresh-2\"").replace("2026-11-24", "2027-11-24");
    redis.set::<_, _, ()>(token_key("a1"), new).unwrap();
    eventually("half-open", Duration::from_secs(6), || one.state("a1") == HealthState::HalfOpen).await;
    one.pool.select(&Wanted::default()).unwrap().succeeded();
    assert_eq!(one.state("a1"), HealthState::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_but_the_record_holds_another_token_by_now_case_30_r41() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let other = Mutex::new(server.connection());
    let address = Address::start(move |call| {
        let first = call.body["refreshToken"] == "refresh-1";
        if first {
            let mut redis = other.lock().unwrap();
            let record = token(&mut redis, "a1").replace("refresh-1", "refresh-2");
            redis.set::<_, _, ()>(token_key("a1"), record).unwrap();
        }
        async move { if first { refused() } else { (200, grant("new", Some("refresh-3"))) } }
    })
    .await;
    let (before, old) = expired(&address);
    put_account(&mut redis, "a1", &before, old);
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    assert_eq!(address.used(), ["refresh-1", "refresh-2"]);
    one.written().await;
    assert!(token(&mut redis, "a1").contains("refresh-3"));
    assert!(!record(&mut redis, "a1").contains("ejected"));
}

/// Each refresh goes well, and still there is no token that lives: its record is there all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_at_once_is_not_called_missing_r45() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let turn = AtomicUsize::new(0);
    let address = meddling(&server, move |redis| {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let theirs = format!(
            r#"{{"accessToken":"theirs","refreshToken":"theirs-{turn}","expiresAt":"2026-11-23T09:00:00.000Z","authMethod":"social"}}"#
        );
        redis.set::<_, _, ()>(token_key("a1"), theirs).unwrap();
    })
    .await;
    let (record, before) = expired(&address);
    put_account(&mut redis, "a1", &record, before);
    let one = Instance::start(&server, &time, &[]).await;
    let fault = one.token_of("a1").await.unwrap_err();
    assert!(fault.message.ends_with("another program put one there that has ended"), "{}", fault.message);
    assert_eq!((address.calls(), one.credentials.counters().conflicts.load(Ordering::Relaxed)), (3, 3));
    one.close().await;

    // Saving takes a while, and by then the new token has ended.
    let slow = meddling(&server, |redis| {
        redis::cmd("CLIENT").arg("PAUSE").arg(500).arg("WRITE").exec(redis).unwrap();
    })
    .await;
    let (record, before) = expired(&slow);
    put_account(&mut redis, "a1", &record, before);
    let one = Instance::start(&server, &time, &[]).await;
    let (credentials, passing) = (one.credentials.clone(), time.clone());
    let ageing = tokio::spawn(async move {
        for refreshed in 1..=3 {
            while credentials.counters().refreshed.load(Ordering::Relaxed) < refreshed {
                sleep(Duration::from_millis(1)).await;
            }
            passing.pass(7_200);
        }
    });
    let fault = one.token_of("a1").await.unwrap_err();
    assert!(fault.message.ends_with("each new one ended before it could be used"), "{}", fault.message);
    ageing.await.unwrap();
    assert_eq!(slow.calls(), 3);
}

/// R41: one look at the record after a refusal tells whether there is another token, and is what goes out next.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reads_the_record_once_r41() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let (other, seen) = (Mutex::new(server.connection()), Arc::<Mutex<Vec<String>>>::default());
    let reads = seen.clone();
    let address = Address::start(move |call| {
        let used = call.body["refreshToken"].as_str().unwrap().to_owned();
        let turn = used.strip_prefix("refresh-").unwrap().parse::<u32>().unwrap();
        let mut redis = other.lock().unwrap();
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut *redis).unwrap();
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls=")?.split(',').next());
        reads.lock().unwrap().push(calls.unwrap_or("0").to_owned());
        if turn < 3 {
            let record = token(&mut redis, "a1").replace(&used, &format!("refresh-{}", turn + 1));
            redis.set::<_, _, ()>(token_key("a1"), record).unwrap();
        }
        redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut *redis).unwrap();
        async move { if turn < 3 { refused() } else { (200, grant("new", Some("refresh-9"))) } }
    })
    .await;
    let (before, old) = expired(&address);
    put_account(&mut redis, "a1", &before, old);
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "3600000")]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    assert_eq!(address.used(), ["refresh-1", "refresh-2", "refresh-3"]);
    assert_eq!(seen.lock().unwrap()[1..], ["1", "1"], "reads from a refusal to the next call");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_replay_is_overwritten_within_one_snapshot_case_31() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, before) = expired(&address);
    put_account(&mut redis, "a1", &record, before);
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "300")]).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    let ours = token(&mut redis, "a1");
    redis.set::<_, _, ()>(token_key("a1"), before).unwrap();
    eventually("ours again", Duration::from_secs(1), || token(&mut redis, "a1") == ours).await;
    assert_eq!((one.token_of("a1").await.unwrap().as_str(), address.calls()), ("new", 1));
    // Counted once Redis has answered, which is after the record can be seen.
    let counted = || one.pool.counters().tokens_written_back.load(Ordering::Relaxed);
    eventually("counted", Duration::from_secs(1), || counted() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_refresh_token_is_patched_back_once_case_32() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    put_account(&mut redis, "a1", "{}", &LIVE.replace("\"r\"", "\"refresh-1\""));
    let one = Instance::start(&server, &time, &[("accountCacheTtlMs", "200")]).await;
    let without = LIVE.replace(r#""refreshToken":"r","#, "").replace("live", "live-2");
    redis.set::<_, _, ()>(token_key("a1"), &without).unwrap();
    let patched = format!(r#"{},"refreshToken":"refresh-1"}}"#, without.strip_suffix('}').unwrap());
    eventually("patched back", Duration::from_secs(2), || token(&mut redis, "a1") == patched).await;
    assert_eq!(one.token_of("a1").await.unwrap(), "live-2");
    redis.set::<_, _, ()>(token_key("a1"), &without).unwrap();
    sleep(Duration::from_millis(800)).await;
    assert_eq!(token(&mut redis, "a1"), without, "at most once a minute");
}

/// R45: the account has a new id, its token lies under the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_account_refreshes_into_its_old_token_key_case_33() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, before) = expired(&address);
    redis.set::<_, _, ()>(token_key("old-id"), before).unwrap();
    let path = r#"{"KIRO_TOKEN_FILE_PATH":"redis:tokens:claude-kiro-oauth:old-id","#;
    redis.hset::<_, _, _, ()>(POOL, "new-id", record.replacen('{', path, 1)).unwrap();
    let one = Instance::start(&server, &time, &[]).await;
    assert_eq!(one.token_of("new-id").await.unwrap(), "new");
    assert!(token(&mut redis, "old-id").contains("refresh-2"));
    assert!(!redis.exists::<_, bool>(token_key("new-id")).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_while_redis_is_down_case_38() {
    let mut server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, token_text) = expired(&address);
    put_account(&mut redis, "a1", &record, &token_text.replace("09:00:00", "10:10:00"));
    let one = Arc::new(Instance::start(&server, &time, &[]).await);
    assert_eq!(one.token_of("a1").await.unwrap(), "old");
    server.shutdown_save();
    time.set("2026-11-23T10:08:00Z");
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(
        (one.token_of("a1").await.unwrap().as_str(), address.calls()),
        ("old", 0),
        "R52: more than 60 s are left"
    );
    time.set("2026-11-23T10:10:00Z");
    let mut requests = JoinSet::new();
    for _ in 0..20 {
        let one = one.clone();
        requests.spawn(async move { one.token_of("a1").await });
    }
    assert!(requests.join_all().await.iter().all(|token| token.as_deref() == Ok("new")));
    assert_eq!(address.calls(), 1);
    server.restart();
    let back = Instant::now();
    let mut redis = server.connection();
    let expected =
        token_text.replace("\"old\"", "\"new\"").replace("refresh-1", "refresh-2").replace("09:00:00", "11:10:00");
    eventually("saved after the return", Duration::from_secs(3), || token(&mut redis, "a1") == expected).await;
    println!("saved {:?} after the return", back.elapsed());
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
}

/// R41 while the store is away: somebody may have rotated the token without our seeing it.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_not_believed_while_redis_is_down_r52() {
    let mut server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|_| async { refused() }).await;
    let (record, token) = expired(&address);
    put_account(&mut redis, "a1", &record, &token.replace("09:00:00", "10:10:00"));
    let one = Instance::start(&server, &time, &[]).await;
    server.kill();
    time.set("2026-11-23T10:11:00Z");
    one.token_of("a1").await.unwrap_err();
    assert!(address.calls() >= 1);
    assert_eq!(one.state("a1"), HealthState::Healthy, "not ejected");
}

/// A blocking refresh is bounded where another process holds the lock and doesn't come to an end (R40 step 2).
#[tokio::test(flavor = "multi_thread")]
async fn a_blocking_refresh_waits_20_s_for_another_process_r44() {
    let server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::granting().await;
    let (record, token) = expired(&address);
    put_account(&mut redis, "a1", &record, token);
    redis.set_ex::<_, _, ()>(lock_key("a1"), "1795427974000-slow", 60).unwrap();
    let one = Instance::start(&server, &time, &[]).await;
    let begun = Instant::now();
    let fault = one.token_of("a1").await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Timeout);
    assert!(fault.message.ends_with("another process is still refreshing it"), "{}", fault.message);
    let waited = begun.elapsed();
    assert!((Duration::from_secs(19)..Duration::from_secs(28)).contains(&waited), "{waited:?}");
    assert_eq!(address.calls(), 0);
}

/// A profile that is found while a rotated token waits to be saved doesn't push it out (K64, R51).
#[tokio::test(flavor = "multi_thread")]
async fn a_profile_joins_the_token_that_waits_r51_k64() {
    let mut server = RedisServer::start();
    let (mut redis, time) = (server.connection(), Time::new());
    let address = Address::start(|call| async move {
        match call.body.get("refreshToken") {
            Some(_) => (200, grant("new", Some("refresh-2"))),
            None => (200, r#"{"profiles":[{"arn":"arn:found"}]}"#.to_owned()),
        }
    })
    .await;
    let (record, before) = expired(&address);
    let own = record.replacen('{', &format!(r#"{{"KIRO_BASE_URL":"{}/g","#, address.url), 1);
    let own = own.replace("KIRO_REFRESH_URL", "KIRO_REFRESH_IDC_URL");
    let idc = before.replace(r#""social""#, r#""idc","clientId":"c","clientSecret":"s""#);
    put_account(&mut redis, "a1", &own, &idc.replace("09:00:00", "10:10:00"));
    let one = Instance::start(&server, &time, &[]).await;
    server.shutdown_save();
    time.set("2026-11-23T10:10:00Z");
    assert_eq!(one.token_of("a1").await.unwrap(), "new");
    let mut lease = one.pool.visit("a1").unwrap();
    // In the background it may have been found already.
    one.credentials.look_up_profiles(&mut lease).await;
    assert_eq!(lease.account().profile_arn(), Some("arn:found"));
    server.restart();
    let mut redis = server.connection();
    eventually("both saved", Duration::from_secs(5), || {
        let saved = token(&mut redis, "a1");
        saved.contains("refresh-2") && saved.contains(r#""accessToken":"new""#) && saved.contains("arn:found")
    })
    .await;
}
