//! The store in Redis against a real `redis-server`: cases of the store by number.
#![cfg(feature = "gateway")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

use std::time::Duration;

use kiro_messages::policy::outcome::Outcome;
use kiro_messages::proto::record::{self, Account, Entry, Fingerprint, Note, Token};
use kiro_messages::secret::Secret;
use kiro_messages::store::{
    Added, Cas, RedisAddress as Server, RedisConfig, Saved, Status, Store, StoreConfig, StoreError, StoreErrorKind,
    TokenKey, Writer,
};
use redis::Commands as _;
use tokio::time::{Instant, sleep};

#[path = "support/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "support/redis_server.rs"]
mod redis_server;
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "support/store.rs"]
mod support;

use proxy::Proxy;
use redis_server::{RedisServer, free_port};
use support::*;

/// What the Node.js service does to a record: decode with Lua's cjson, change, encode.
fn node_update(redis: &mut redis::Connection, id: &str, field: &str, value: &str) {
    let script = "local r = cjson.decode(redis.call('HGET', KEYS[1], ARGV[1]))
        r[ARGV[2]] = cjson.decode('[' .. ARGV[3] .. ']')[1]
        redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(r))";
    redis::Script::new(script).key(POOL).arg(id).arg(field).arg(value).invoke::<()>(redis).unwrap();
}

/// A server with one account, `a1`, and a store on it.
async fn with_account(record: &str) -> (RedisServer, redis::Connection, Store) {
    let server = RedisServer::start();
    let mut redis = server.connection();
    redis.hset::<_, _, _, ()>(POOL, "a1", record).unwrap();
    let store = connect(&server.url()).await;
    (server, redis, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn successes_are_patched_into_the_text_case_01_case_02_case_03_case_04_case_05_r19() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    for (case, before, count, after) in PATCHED {
        redis.hset::<_, _, _, ()>(POOL, "a1", before).unwrap();
        let read = store.load().await.unwrap();
        assert!(Account::parse(&read[0].account, "a1").unwrap().standing.healthy);
        record(&store, std::iter::repeat_n(success(), count)).await;
        assert_eq!(redis.hget::<_, _, String>(POOL, "a1").unwrap(), after, "case {case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_node_update_the_rest_stays_as_lua_left_it_case_06() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    let before = r#"{"uuid":"a1","notSupportedModels":[],"big":12345678901234567890,"usageCount":5,"note":"x\/y","z":{"keep":[1,2.5,[]]}}"#;
    redis.hset::<_, _, _, ()>(POOL, "a1", before).unwrap();
    node_update(&mut redis, "a1", "usageCount", "6");
    let lua: String = redis.hget(POOL, "a1").unwrap();
    assert!(lua.contains(r#""notSupportedModels":{}"#) && lua.contains("e+19"), "{lua}");
    record(&store, [success()]).await;
    let after: String = redis.hget(POOL, "a1").unwrap();
    let expected = lua.replace(r#""usageCount":6"#, r#""usageCount":7"#);
    assert_eq!(after, format!("{},{USED}}}", expected.strip_suffix('}').unwrap()));
    assert!(Account::parse(after.as_bytes(), "a1").unwrap().supports(&["claude-sonnet-4-5"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_records_stay_untouched_case_07() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(2 << 20));
    let bad = [("b1", "[]"), ("b2", "null"), ("b3", "not json"), ("b4", huge.as_str())];
    redis.hset_multiple::<_, _, _, ()>(POOL, &bad).unwrap();
    redis.hset::<_, _, _, ()>(POOL, "good", "{}").unwrap();
    let all = store.load().await.unwrap();
    let usable: Vec<_> = all.iter().filter(|raw| Account::parse(&raw.account, &raw.id).is_ok()).collect();
    assert_eq!((all.len(), usable.len(), usable[0].id.as_str()), (5, 1, "good"));

    let writer = Writer::spawn(store.clone(), clock());
    for (id, _) in bad {
        writer.record(id, &success());
    }
    writer.record("good", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    for (id, record) in bad {
        assert_eq!(redis.hget::<_, _, String>(POOL, id).unwrap(), record);
    }
    assert_eq!(redis.hget::<_, _, String>(POOL, "good").unwrap(), format!("{{\"usageCount\":1,{USED}}}"));
    assert_eq!(writer.dropped(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_account_is_not_created_again_case_08() {
    let (_server, mut redis, store) = with_account("{}").await;
    let writer = Writer::spawn(store, clock());
    writer.record("a1", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    redis.hdel::<_, _, ()>(POOL, "a1").unwrap();
    let ended = Instant::now();
    writer.record("a1", &success());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(writer.pending().accounts, ["a1"], "kept for 10 s: the pool may be in the middle of a rewrite (R23)");
    while !writer.pending().is_empty() && ended.elapsed() < Duration::from_secs(15) {
        sleep(Duration::from_millis(100)).await;
    }
    assert!(writer.pending().is_empty());
    assert!(!redis.hexists::<_, _, bool>(POOL, "a1").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_back_within_10_s_gets_its_counts_r23() {
    let (_server, mut redis, store) = with_account("{}").await;
    let writer = Writer::spawn(store, clock());
    redis.del::<_, ()>(POOL).unwrap();
    writer.record("a1", &success());
    sleep(Duration::from_millis(1500)).await;
    redis.hset::<_, _, _, ()>(POOL, "a1", r#"{"usageCount":3}"#).unwrap();
    sleep(Duration::from_millis(1000)).await;
    assert!(writer.pending().is_empty());
    assert_eq!(redis.hget::<_, _, String>(POOL, "a1").unwrap(), format!("{{\"usageCount\":4,{USED}}}"));
}

/// A stop in the middle of the Node.js service's rewrite (E4), when the pool is gone for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_rewritten_during_the_last_flush_gets_its_counts_r23_r33() {
    let (_server, mut redis, store) = with_account("{}").await;
    let writer = Writer::spawn(store, clock());
    redis.del::<_, ()>(POOL).unwrap();
    writer.record("a1", &success());
    let flushing = tokio::spawn(async move { writer.flush(Duration::from_secs(10)).await });
    sleep(Duration::from_millis(300)).await;
    redis.hset::<_, _, _, ()>(POOL, "a1", r#"{"usageCount":3}"#).unwrap();
    assert!(flushing.await.unwrap().is_empty());
    assert_eq!(redis.hget::<_, _, String>(POOL, "a1").unwrap(), format!("{{\"usageCount\":4,{USED}}}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_update_between_read_and_write_is_kept_case_09() {
    let (_server, mut redis, store) = with_account(r#"{"usageCount":1}"#).await;
    let read = store.read_account("a1").await.unwrap().unwrap();
    node_update(&mut redis, "a1", "customName", "\"new\"");
    let current: String = redis.hget(POOL, "a1").unwrap();
    let conflict = store.compare_and_set_account("a1", &read, b"{}").await.unwrap();
    assert_eq!(conflict, Cas::Conflict(current.clone().into()), "the stale write changes nothing and learns why");

    // The writer's own guess of the record is as stale: it wrote it itself, then somebody changed it.
    let writer = Writer::spawn(store, clock());
    writer.record("a1", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    node_update(&mut redis, "a1", "customName", "\"newer\"");
    writer.record("a1", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    let account = Account::parse(redis.hget::<_, _, String>(POOL, "a1").unwrap().as_bytes(), "a1").unwrap();
    assert_eq!((account.usage_count, account.custom_name.as_deref()), (3, Some("newer")));
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_count_exactly_case_10() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    redis.hset::<_, _, _, ()>(POOL, "a1", r#"{"n":[],"usageCount":7}"#).unwrap();
    run_case_10(&server.url());
    assert_eq!(redis.hget::<_, _, String>(POOL, "a1").unwrap(), format!("{{\"n\":[],\"usageCount\":1007,{USED}}}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_from_two_writers_are_two_counts_r60() {
    let (_server, mut redis, store) = with_account("{}").await;
    let writer = Writer::spawn(store, clock());
    writer.record("a1", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    // Another process counted at the same millisecond and so wrote just what this one is about to write.
    redis.hset::<_, _, _, ()>(POOL, "a1", format!("{{\"usageCount\":2,{USED}}}")).unwrap();
    writer.record("a1", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    assert_eq!(redis.hget::<_, _, String>(POOL, "a1").unwrap(), format!("{{\"usageCount\":3,{USED}}}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_is_counted_once_case_11() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let proxy = Proxy::start(server.port()).await;
    let store = connect(&proxy.url()).await;
    let writer = Writer::spawn(store.clone(), clock());
    redis.hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    writer.record("a1", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    for round in 1..=5 {
        proxy.lose_next_script_reply();
        writer.record("a1", &success());
        // Counted after the write in doubt, and not together with it.
        let doubtful = tokio::spawn({
            let writer = writer.clone();
            async move { writer.flush(Duration::from_secs(10)).await }
        });
        while proxy.lost() < round {
            sleep(Duration::from_millis(1)).await;
        }
        writer.record("a1", &success());
        assert!(doubtful.await.unwrap().is_empty());
        assert!(writer.flush(Duration::from_secs(10)).await.is_empty());
        let account = Account::parse(redis.hget::<_, _, String>(POOL, "a1").unwrap().as_bytes(), "a1").unwrap();
        assert_eq!(account.usage_count, 1 + 2 * round as u64, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_and_a_foreign_write_lose_a_count_and_no_mark_r22() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let proxy = Proxy::start(server.port()).await;
    let store = connect(&proxy.url()).await;
    let writer = Writer::spawn(store.clone(), clock());
    redis.hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    // So that the writer knows the script and the record, and the next script is the write itself.
    writer.record("a1", &success());
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    proxy.lose_next_script_reply();
    let until = time("10:01:00");
    writer.record("a1", &Outcome::marked(t0(), t0(), Note::CoolDown { until, cause: "429".into() }));
    while proxy.lost() < 1 {
        sleep(Duration::from_millis(1)).await;
    }
    redis.hset::<_, _, _, ()>(POOL, "a1", r#"{"isHealthy":true,"errorCount":0,"usageCount":9}"#).unwrap();
    assert!(writer.flush(Duration::from_secs(10)).await.is_empty());
    let account = Account::parse(redis.hget::<_, _, String>(POOL, "a1").unwrap().as_bytes(), "a1").unwrap();
    assert!(!account.standing.healthy, "the mark is applied again");
    assert_eq!((account.standing.error_count, account.usage_count), (0, 9), "what adds up is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heal_and_a_quota_are_written_into_the_record_case_13_case_15() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    let ill = r#"{"uuid":"a1","isHealthy":false,"errorCount":3,"lastErrorTime":"2026-11-23T09:00:00Z","lastErrorMessage":"cool-down until 2026-11-23T09:01:00.000Z: 429 rate limited","scheduledRecoveryTime":null,"usageCount":41}"#;
    redis.hset::<_, _, _, ()>(POOL, "a1", ill).unwrap();
    record(&store, [success()]).await;
    assert_eq!(
        redis.hget::<_, _, String>(POOL, "a1").unwrap(),
        r#"{"uuid":"a1","isHealthy":true,"errorCount":0,"lastErrorTime":null,"lastErrorMessage":null,"scheduledRecoveryTime":null,"usageCount":42,"lastUsed":"2026-11-23T10:00:00.000Z"}"#
    );

    redis.hset::<_, _, _, ()>(POOL, "a1", r#"{"uuid":"a1","isHealthy":true,"errorCount":0}"#).unwrap();
    let until = "2026-12-01T00:00:00Z".parse().unwrap();
    let quota = Outcome::marked(t0(), t0(), Note::Quota { until, cause: "MONTHLY_REQUEST_COUNT".into() });
    record(&store, [quota]).await;
    assert_eq!(
        redis.hget::<_, _, String>(POOL, "a1").unwrap(),
        r#"{"uuid":"a1","isHealthy":false,"errorCount":1,"lastErrorTime":"2026-11-23T10:00:00.000Z","lastErrorMessage":"quota exhausted until 2026-12-01T00:00:00.000Z: MONTHLY_REQUEST_COUNT","scheduledRecoveryTime":"2026-12-01T00:00:00.000Z","lastUsed":"2026-11-23T10:00:00.000Z"}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_come_in_blocks_case_20() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    assert_eq!(store.reserve_tickets(64).await.unwrap(), 0..64);
    assert_eq!(redis.get::<_, String>("aiclient:kiro:round-robin-counter").unwrap(), "64");
    assert_eq!(store.reserve_tickets(64).await.unwrap(), 64..128);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_counter_stays_as_it_is_case_21() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    for bad in ["abc", "9223372036854775807", "1.5"] {
        redis.set::<_, _, ()>("aiclient:kiro:round-robin-counter", bad).unwrap();
        assert_eq!(store.reserve_tickets(64).await.unwrap_err().kind(), StoreErrorKind::Counter);
        assert_eq!(redis.get::<_, String>("aiclient:kiro:round-robin-counter").unwrap(), bad);
        assert_eq!(store.status(), Status::Connected, "no outage");
    }
    redis.set::<_, _, ()>("aiclient:kiro:round-robin-counter", -1000).unwrap();
    assert_eq!(store.reserve_tickets(64).await.unwrap_err().kind(), StoreErrorKind::Counter);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_token_keeps_its_form_case_22() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    let key = TokenKey::of("a1");
    redis.set_ex::<_, _, ()>(token_key("a1"), TOKEN, 1000).unwrap();
    let base = store.read_token(&key, t0()).await.unwrap().unwrap();
    let saved = store.save_token(&refreshed(&key, &base)).await.unwrap();
    let expected =
        TOKEN.replace("old", "new").replace("refresh-1", "refresh-2").replace("1767225600000", "1795431600000");
    assert_eq!(saved, Saved::Written(expected.clone().into()));
    assert_eq!(redis.get::<_, String>(token_key("a1")).unwrap(), expected);
    assert_eq!(redis.ttl::<_, i64>(token_key("a1")).unwrap(), -1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_changed_meanwhile_is_kept_case_26() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    let changed = TOKEN.replace("us-east-1", "eu-west-1");
    redis.set::<_, _, ()>(token_key("a1"), &changed).unwrap();
    let saved = store.save_token(&refreshed(&TokenKey::of("a1"), TOKEN.as_bytes())).await.unwrap();
    let Saved::Written(record) = saved else { panic!("{saved:?}") };
    let token = Token::parse(&record).unwrap();
    assert_eq!(token.region(), "eu-west-1");
    assert_eq!(token.refresh_token, Some(Secret::new("refresh-2")));
    assert_eq!(redis.get::<_, Vec<u8>>(token_key("a1")).unwrap(), record);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_refresh_wins_case_27() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    let theirs = TOKEN.replace("refresh-1", "refresh-9").replace("old", "theirs");
    redis.set::<_, _, ()>(token_key("a1"), &theirs).unwrap();
    let saved = store.save_token(&refreshed(&TokenKey::of("a1"), TOKEN.as_bytes())).await.unwrap();
    assert_eq!(saved, Saved::Rotated(theirs.clone().into()));
    assert_eq!(redis.get::<_, String>(token_key("a1")).unwrap(), theirs);
}

/// A lock that Redis gave without our hearing it, and one that was given back without Redis' hearing it, are nobody's: who
/// asked takes it at once, others as always when it is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_whose_answer_was_lost_belongs_to_its_asker_r40() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let (store, other) = (connect(&server.url()).await, connect(&server.url()).await);
    let key = TokenKey::of("a1");
    let name = "aiclient:token-lock:claude-kiro-oauth:a1";
    let now = clock()();
    let holds = async |lock: kiro_messages::store::Lock, redis: &mut redis::Connection| {
        assert!(other.lock(&key, now).await.unwrap().is_none(), "it is held");
        assert!((28..=30).contains(&redis.ttl::<_, i64>(name).unwrap()), "for its whole time");
        lock
    };

    server.freeze();
    assert!(store.lock(&key, now).await.unwrap_err().is_perhaps_done());
    server.thaw();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !redis.exists::<_, bool>(name).unwrap() {
        assert!(Instant::now() < deadline, "the SET came through");
        sleep(Duration::from_millis(10)).await;
    }
    wait_for(&store, Status::is_connected, Duration::from_secs(20)).await;
    assert!(other.lock(&key, now).await.unwrap().is_none(), "only who asked knows");
    let lock = store.lock(&key, now).await.unwrap().expect("it is its own");
    let lock = holds(lock, &mut redis).await;

    let forbid = |redis: &mut redis::Connection, rights: &str| {
        let words = ["SETUSER", "default"].into_iter().chain(rights.split(' '));
        redis::cmd("ACL").arg(words.collect::<Vec<_>>()).exec(redis).unwrap();
    };
    forbid(&mut redis, "-eval -evalsha");
    store.unlock(lock).await.unwrap_err();
    forbid(&mut redis, "+@all");
    wait_for(&store, Status::is_connected, Duration::from_secs(20)).await;
    let lock = store.lock(&key, now).await.unwrap().expect("it was given back");
    let lock = holds(lock, &mut redis).await;
    store.unlock(lock).await.unwrap();
    let theirs = other.lock(&key, now).await.unwrap().expect("free");
    assert!(store.lock(&key, now).await.unwrap().is_none(), "another's lock is another's");
    other.unlock(theirs).await.unwrap();
    assert!(!redis.exists::<_, bool>(name).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_lost_its_refresh_token_meanwhile_gets_ours_r40_r46() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    let key = TokenKey::of("a1");
    let save = |redis: &mut redis::Connection, meanwhile: &str| {
        redis.set::<_, _, ()>(token_key("a1"), meanwhile).unwrap();
        let (store, unsaved) = (store.clone(), refreshed(&key, TOKEN.as_bytes()));
        async move { store.save_token(&unsaved).await.unwrap() }
    };
    let dropped = r#"{"accessToken":"theirs","expiresAt":"2026-11-23T11:00:00.000Z","authMethod":"social"}"#;
    let Saved::Written(record) = save(&mut redis, dropped).await else { panic!("ours is the only refresh token") };
    let token = Token::parse(&record).unwrap();
    assert_eq!(token.refresh_token, Some(Secret::new("refresh-2")));
    assert_eq!(token.access_token, Some(Secret::new("new")));
    // Another credential in its place is no loss of this one.
    for other in [r#"{"kiroApiKey":"ksk_1","accessToken":"x"}"#, "{}"] {
        assert_eq!(save(&mut redis, other).await, Saved::Rotated(other.into()), "{other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_account_stays_removed_case_28() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    redis.hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    redis.set::<_, _, ()>(token_key("a1"), TOKEN).unwrap();
    let store = connect(&server.url()).await;
    redis.hdel::<_, _, ()>(POOL, "a1").unwrap();
    redis.del::<_, ()>(token_key("a1")).unwrap();
    assert_eq!(store.save_token(&refreshed(&TokenKey::of("a1"), TOKEN.as_bytes())).await.unwrap(), Saved::Absent);
    record(&store, [Outcome::refreshed(t0())]).await;
    assert!(!redis.exists::<_, bool>(token_key("a1")).unwrap());
    assert!(!redis.hexists::<_, _, bool>(POOL, "a1").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_read_again_shows_the_other_refresh_token_case_30() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    let key = TokenKey::of("a1");
    redis.set::<_, _, ()>(token_key("a1"), TOKEN).unwrap();
    let first = store.read_token(&key, t0()).await.unwrap().unwrap();
    redis.set::<_, _, ()>(token_key("a1"), TOKEN.replace("refresh-1", "refresh-2")).unwrap();
    let again = store.read_token(&key, t0()).await.unwrap().unwrap();
    assert_ne!(Token::parse(&first).unwrap().refresh_token, Token::parse(&again).unwrap().refresh_token);
    let mut second = refreshed(&key, &again);
    second.replaces = vec![Fingerprint::of(&Secret::new("refresh-2"))];
    second.entries = vec![Entry::AccessToken(Secret::new("new")), Entry::RefreshToken(Secret::new("refresh-3"))];
    let Saved::Written(record) = store.save_token(&second).await.unwrap() else { panic!("not written") };
    assert_eq!(Token::parse(&record).unwrap().refresh_token, Some(Secret::new("refresh-3")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_record_is_replaced_by_compare_and_set_case_31_case_32() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    let key = TokenKey::of("a1");
    let ours = TOKEN.replace("refresh-1", "refresh-2");
    redis.set::<_, _, ()>(token_key("a1"), TOKEN).unwrap();
    let found = store.read_token(&key, t0()).await.unwrap().unwrap();
    assert_eq!(store.compare_and_set_token(&key, &found, ours.as_bytes()).await.unwrap(), Cas::Written);
    assert_eq!(redis.get::<_, String>(token_key("a1")).unwrap(), ours);
    // Late again, but this time somebody was faster.
    assert_eq!(store.compare_and_set_token(&key, &found, b"{}").await.unwrap(), Cas::Conflict(ours.into()));

    redis.set::<_, _, ()>(token_key("a1"), r#"{"accessToken":"a","n":[]}"#).unwrap();
    let found = store.read_token(&key, t0()).await.unwrap().unwrap();
    let patched = record::patch(&found, &[Entry::RefreshToken(Secret::new("refresh-1"))]).unwrap().unwrap();
    assert_eq!(store.compare_and_set_token(&key, &found, &patched).await.unwrap(), Cas::Written);
    assert_eq!(
        redis.get::<_, String>(token_key("a1")).unwrap(),
        r#"{"accessToken":"a","n":[],"refreshToken":"refresh-1"}"#
    );
    assert_eq!(store.compare_and_set_token(&TokenKey::of("gone"), b"{}", b"{}").await.unwrap(), Cas::Absent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_account_refreshes_into_its_old_key_case_33() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    let path = r#"{"KIRO_TOKEN_FILE_PATH":"redis:tokens:claude-kiro-oauth:old-id"}"#;
    redis
        .hset_multiple::<_, _, _, ()>(
            POOL,
            &[
                ("new-id", path),
                ("other", r#"{"KIRO_TOKEN_FILE_PATH":"redis:tokens:claude-kiro-oauth:third"}"#),
                ("third", "{}"),
            ],
        )
        .unwrap();
    redis.set::<_, _, ()>(token_key("old-id"), TOKEN).unwrap();
    redis.set::<_, _, ()>(token_key("third"), TOKEN).unwrap();
    let all = store.load().await.unwrap();
    let tokens: Vec<_> = all.iter().map(|raw| (raw.id.as_str(), raw.token.as_ref().map(|(key, _)| key.id()))).collect();
    assert_eq!(
        tokens,
        [("new-id", Some("old-id")), ("other", None), ("third", Some("third"))],
        "third is in the pool itself"
    );

    let (key, base) = all[0].token.clone().unwrap();
    let lock = store.lock(&key, t0()).await.unwrap().unwrap();
    assert!(redis.exists::<_, bool>("aiclient:token-lock:claude-kiro-oauth:old-id").unwrap());
    assert!(matches!(store.save_token(&refreshed(&key, &base)).await.unwrap(), Saved::Written(_)));
    store.unlock(lock).await.unwrap();
    assert!(redis.get::<_, String>(token_key("old-id")).unwrap().contains("refresh-2"));
    assert!(!redis.exists::<_, bool>(token_key("new-id")).unwrap());
    // An own record comes first.
    redis.set::<_, _, ()>(token_key("new-id"), TOKEN).unwrap();
    assert_eq!(store.load().await.unwrap()[0].token.as_ref().unwrap().0.id(), "new-id");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_holder_gives_the_lock_back_r40() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let (ours, theirs) = (connect(&server.url()).await, connect(&server.url()).await);
    let (key, name) = (TokenKey::of("a1"), "aiclient:token-lock:claude-kiro-oauth:a1");
    let lock = ours.lock(&key, t0()).await.unwrap().unwrap();
    assert!(theirs.lock(&key, t0()).await.unwrap().is_none());
    let value: String = redis.get(name).unwrap();
    let (millis, random) = value.split_once('-').unwrap();
    assert_eq!((millis, random.len()), ("1795428000000", 32));
    assert!((25..=30).contains(&redis.ttl::<_, i64>(name).unwrap()));
    // Ours has expired and somebody else holds it: giving back ours leaves theirs.
    redis.del::<_, ()>(name).unwrap();
    let second = theirs.lock(&key, t0()).await.unwrap().unwrap();
    ours.unlock(lock).await.unwrap();
    assert!(redis.exists::<_, bool>(name).unwrap());
    theirs.unlock(second).await.unwrap();
    assert!(!redis.exists::<_, bool>(name).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_scripts_are_loaded_again_r21() {
    let (_server, mut redis, store) = with_account("{}").await;
    for round in 1..=3 {
        redis::cmd("SCRIPT").arg("FLUSH").query::<()>(&mut redis).unwrap();
        record(&store, [success()]).await;
        let account = Account::parse(redis.hget::<_, _, String>(POOL, "a1").unwrap().as_bytes(), "a1").unwrap();
        assert_eq!(account.usage_count, round);
    }
}

/// 1,000 accounts whose outcomes wait for Redis; returns when all is written.
async fn pool_of_1000(redis: &mut redis::Connection) {
    for index in 0..1000 {
        let id = format!("a{index:04}");
        redis.hset::<_, _, _, ()>(POOL, &id, r#"{"usageCount":1}"#).unwrap();
        redis.set::<_, _, ()>(token_key(&id), TOKEN).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_nothing_and_is_over_within_a_second_case_36_r53() {
    let mut server = RedisServer::start();
    pool_of_1000(&mut server.connection()).await;
    let store = connect(&server.url()).await;
    let writer = Writer::spawn(store.clone(), clock());
    for index in 0..1000 {
        writer.record(&format!("a{index:04}"), &success());
    }
    server.shutdown_save();
    wait_for(&store, |status| matches!(status, Status::Away(_)), Duration::from_secs(2)).await;
    assert!(store.load().await.unwrap_err().is_away());
    assert_eq!(store.reserve_tickets(64).await.unwrap_err().kind(), StoreErrorKind::Away);
    let base = TOKEN.as_bytes();
    let unsaved = refreshed(&TokenKey::of("a0007"), base);
    assert!(store.save_token(&unsaved).await.unwrap_err().is_away());
    writer.keep_token("a0007", unsaved);
    for index in 0..1000 {
        writer.record(&format!("a{index:04}"), &success());
    }
    sleep(Duration::from_secs(3)).await;
    let left = writer.pending();
    assert_eq!((left.accounts.len(), left.tokens.len()), (1000, 1), "one entry per account, whatever the outage");

    server.restart();
    let back = Instant::now();
    wait_for(&store, Status::is_connected, Duration::from_secs(1)).await;
    while !writer.pending().is_empty() {
        assert!(back.elapsed() < Duration::from_secs(10), "{:?} left", writer.pending().accounts.len());
        sleep(Duration::from_millis(5)).await;
    }
    let took = back.elapsed();
    assert_eq!(store.load().await.unwrap().len(), 1000);
    println!("case 36: all written and a snapshot read {:?} after Redis took connections", back.elapsed());
    assert!(took < Duration::from_secs(1), "{took:?}");
    let mut redis = server.connection();
    assert_eq!(usage(&mut redis), 3000);
    assert!(redis.get::<_, String>(token_key("a0007")).unwrap().contains("refresh-2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_away_and_comes_back_case_37() {
    let server = RedisServer::start();
    server.connection().hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    let store = connect(&server.url()).await;
    let writer = Writer::spawn(store.clone(), clock());
    server.freeze();
    let started = Instant::now();
    let error = store.load().await.unwrap_err();
    assert!(
        error.is_away() && started.elapsed() < Duration::from_millis(1500),
        "{error} after {:?}",
        started.elapsed()
    );
    assert!(!store.status().is_connected());
    let started = Instant::now();
    assert!(store.load().await.unwrap_err().is_away());
    assert!(started.elapsed() < Duration::from_millis(50), "known to be away: told at once");
    writer.record("a1", &success());
    writer.record("a1", &success());
    sleep(Duration::from_secs(3)).await;
    server.thaw();
    wait_for(&store, Status::is_connected, Duration::from_secs(1)).await;
    assert!(writer.flush(Duration::from_secs(1)).await.is_empty());
    assert_eq!(usage(&mut server.connection()), 2);
}

/// Both writers' scripts lie in front of the frozen server. It runs them when it goes on: the first is written, the
/// second conflicts, and each must learn which one was its own.
#[tokio::test(flavor = "multi_thread")]
async fn two_writers_caught_by_a_freeze_count_exactly_case_37_r22() {
    let server = RedisServer::start();
    let ids = ["a1", "a2", "a3"];
    for id in ids {
        server.connection().hset::<_, _, _, ()>(POOL, id, "{}").unwrap();
    }
    let stores = [connect(&server.url()).await, connect(&server.url()).await];
    let writers = stores.each_ref().map(|store| Writer::spawn(store.clone(), clock()));
    for id in ids {
        for writer in &writers {
            writer.record(id, &success());
        }
    }
    for writer in &writers {
        assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    }
    server.freeze();
    for (writer, count) in writers.iter().zip([3, 5]) {
        for id in ids {
            for _ in 0..count {
                writer.record(id, &success());
            }
        }
    }
    sleep(Duration::from_secs(3)).await;
    // On top of what is in doubt.
    for writer in &writers {
        for id in ids {
            writer.record(id, &success());
        }
    }
    assert!(stores.iter().all(|store| !store.status().is_connected()));
    server.thaw();
    for store in &stores {
        wait_for(store, Status::is_connected, Duration::from_secs(1)).await;
    }
    for writer in &writers {
        assert!(writer.flush(Duration::from_secs(2)).await.is_empty());
    }
    assert_eq!(usage(&mut server.connection()), 3 * (2 + 3 + 5 + 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_writes_wait_and_reads_go_on_case_39() {
    let (_server, mut redis, store) = with_account("{}").await;
    let writer = Writer::spawn(store.clone(), clock());
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query::<()>(&mut redis).unwrap();
    let until = time("10:01:00");
    writer.record("a1", &Outcome::marked(t0(), t0(), Note::CoolDown { until, cause: "429".into() }));
    wait_for(&store, |status| matches!(status, Status::WritesRefused(_)), Duration::from_secs(2)).await;
    assert!(store.status().is_connected());
    assert_eq!(store.load().await.unwrap().len(), 1);
    assert_eq!(writer.pending().accounts, ["a1"]);
    assert_eq!(
        store.compare_and_set_account("a1", b"{}", b"{ }").await.unwrap_err().kind(),
        StoreErrorKind::WritesRefused
    );
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(0).query::<()>(&mut redis).unwrap();
    wait_for(&store, |status| *status == Status::Connected, Duration::from_secs(2)).await;
    assert!(writer.flush(Duration::from_secs(1)).await.is_empty());
    assert!(redis.hget::<_, _, String>(POOL, "a1").unwrap().contains(r#""errorCount":1,"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_replica_counts_as_away_r49() {
    let (_server, mut redis, store) = with_account("{}").await;
    let nowhere = free_port().to_string();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(&nowhere).query::<()>(&mut redis).unwrap();
    redis::cmd("CONFIG").arg("SET").arg("replica-serve-stale-data").arg("yes").query::<()>(&mut redis).unwrap();
    let began = Instant::now();
    let error = loop {
        match store.compare_and_set_account("a1", b"{}", b"{ }").await.unwrap_err() {
            // On a busy machine the answer may be late.
            late if late.to_string().contains("no answer in time") && began.elapsed() < Duration::from_secs(10) => {}
            error => break error,
        }
    };
    assert!(error.is_away() && !error.is_perhaps_done(), "{error}");
    sleep(Duration::from_secs(1)).await;
    assert!(!store.status().is_connected(), "a new connection to a replica is no return: {:?}", store.status());
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").query::<()>(&mut redis).unwrap();
    wait_for(&store, Status::is_connected, Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_reported_with_its_word_r49() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("hush-right").query::<()>(&mut redis).unwrap();
    for (url, word) in [(server.url(), "NOAUTH"), (server.url().replace("://", "://:hush-wrong@"), "WRONGPASS")] {
        let store = Store::connect(&config(&url)).await.unwrap();
        wait_for(&store, |status| matches!(status, Status::Connecting(Some(_))), Duration::from_secs(5)).await;
        let Status::Connecting(Some(error)) = store.status() else { panic!("{:?}", store.status()) };
        assert_eq!(error.kind(), StoreErrorKind::Refused);
        assert!(error.to_string().contains(word), "{error}");
        let error: StoreError = store.load().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused);
        assert!(!format!("{error} {error:?} {store:?}").contains("hush"));
    }
    let parts = StoreConfig::Redis(RedisConfig {
        server: Server::Parts {
            host: "127.0.0.1".into(),
            port: server.port(),
            password: Some(Secret::new("hush-right")),
            db: 3,
        },
        key_prefix: "aiclient:".into(),
        connections: 1,
    });
    let store = Store::connect(&parts).await.unwrap();
    wait_for(&store, Status::is_connected, Duration::from_secs(5)).await;
    assert_eq!(store.load().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_connects_when_redis_comes_r54() {
    let mut server = RedisServer::start();
    server.kill();
    let store = Store::connect(&config(&server.url())).await.unwrap();
    wait_for(&store, |status| matches!(status, Status::Connecting(Some(_))), Duration::from_secs(5)).await;
    sleep(Duration::from_secs(2)).await;
    server.restart();
    wait_for(&store, Status::is_connected, Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_key_follows_config_case_41() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    assert_eq!(store.client_key().await.unwrap(), None);
    redis.set::<_, _, ()>("aiclient:config", r#"{"REQUIRED_API_KEY":"k1","apiKey":"k2"}"#).unwrap();
    assert_eq!(store.client_key().await.unwrap(), Some(Secret::new("k1")));
    redis.set::<_, _, ()>("aiclient:config", r#"{"REQUIRED_API_KEY":"k3"}"#).unwrap();
    assert_eq!(store.client_key().await.unwrap(), Some(Secret::new("k3")));
    redis.del::<_, ()>("aiclient:config").unwrap();
    assert_eq!(store.client_key().await.unwrap(), None);
    redis.hset::<_, _, _, ()>("aiclient:config", "a", "b").unwrap();
    assert_eq!(store.client_key().await.unwrap(), None, "not even a string");
    assert_eq!(store.status(), Status::Connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_only_the_listed_rights_is_enough_case_43_r3() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let gateway =
        "+auth +hello +select +ping +client +hgetall +hget +hset +get +set +del +incrby +evalsha +eval +script|load";
    let line = "+hsetnx +hdel +sadd +sismember";
    let mut rights = redis::cmd("ACL");
    rights.arg("SETUSER").arg("kiro").arg("on").arg(">pw").arg("~aiclient:*").arg("resetchannels").arg("-@all");
    for right in gateway.split(' ') {
        rights.arg(right);
    }
    rights.query::<()>(&mut redis).unwrap();
    let store = connect(&server.url().replace("://", "://kiro:pw@")).await;
    exercise(&store, &mut redis).await;
    // Beyond these rights: refused with its word, and no outage.
    assert_eq!(store.remove_account("a1").await.unwrap_err().kind(), StoreErrorKind::Refused);
    assert_eq!(store.load().await.unwrap().len(), 1);

    let mut rights = redis::cmd("ACL");
    rights.arg("SETUSER").arg("kiro");
    for right in line.split(' ') {
        rights.arg(right);
    }
    rights.query::<()>(&mut redis).unwrap();
    add_and_remove(&store, &mut redis).await;
}

async fn add_and_remove(store: &Store, redis: &mut redis::Connection) {
    let token = r#"{"accessToken":"a","refreshToken":"refresh-7"}"#;
    let index = format!("aiclient:kiro:refresh-index:{}", Fingerprint::of(&Secret::new("refresh-7")).index());
    assert_eq!(store.add_account(&new_account("b1", token)).await.unwrap(), Added::New);
    assert_eq!(redis.get::<_, String>(token_key("b1")).unwrap(), token);
    assert_eq!(
        redis.hget::<_, _, String>(POOL, "b1").unwrap(),
        r#"{"uuid":"b1","KIRO_TOKEN_FILE_PATH":"redis:tokens:claude-kiro-oauth:b1","checkModel":"kiro","isHealthy":true,"usageCount":0,"errorCount":0,"addedAt":"2026-11-23T10:00:00.000Z","customName":"mine"}"#
    );
    assert_eq!(redis.get::<_, String>(&index).unwrap(), "b1");
    assert!(redis.sismember::<_, _, bool>("aiclient:pool-types", "claude-kiro-oauth").unwrap());

    let duplicate = Added::Duplicate { id: "b1".into() };
    assert_eq!(store.add_account(&new_account("b2", token)).await.unwrap(), duplicate, "by the index");
    redis.del::<_, ()>(&index).unwrap();
    assert_eq!(store.add_account(&new_account("b2", token)).await.unwrap(), duplicate, "by the records");
    redis.set::<_, _, ()>(&index, "b1").unwrap();

    assert!(!store.is_missing_in_pool_types().await.unwrap());
    redis.srem::<_, _, ()>("aiclient:pool-types", "claude-kiro-oauth").unwrap();
    assert!(!store.is_missing_in_pool_types().await.unwrap(), "an empty set hides nothing");
    redis.sadd::<_, _, ()>("aiclient:pool-types", "other").unwrap();
    assert!(store.is_missing_in_pool_types().await.unwrap());

    assert!(store.patch_account("b1", &[Entry::IsDisabled(true)]).await.unwrap());
    assert!(redis.hget::<_, _, String>(POOL, "b1").unwrap().ends_with(r#","isDisabled":true}"#));
    assert!(!store.patch_account("gone", &[Entry::IsDisabled(true)]).await.unwrap());

    assert!(store.remove_account("b1").await.unwrap());
    assert!(!store.remove_account("b1").await.unwrap());
    for key in [token_key("b1"), index] {
        assert!(!redis.exists::<_, bool>(key).unwrap());
    }
    assert!(!redis.hexists::<_, _, bool>(POOL, "b1").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_added_and_removed_r62() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    add_and_remove(&store, &mut server.connection()).await;
    let mut redis = server.connection();
    // A token record that was refreshed while its account was away stays.
    let refreshed = r#"{"refreshToken":"refresh-9"}"#;
    redis.set::<_, _, ()>(token_key("b9"), refreshed).unwrap();
    assert_eq!(store.add_account(&new_account("b9", r#"{"refreshToken":"refresh-8"}"#)).await.unwrap(), Added::New);
    assert_eq!(redis.get::<_, String>(token_key("b9")).unwrap(), refreshed);
    // An index left behind by somebody else's removal is no duplicate.
    let index = format!("aiclient:kiro:refresh-index:{}", Fingerprint::of(&Secret::new("refresh-7")).index());
    redis.set::<_, _, ()>(&index, "gone").unwrap();
    let token = r#"{"refreshToken":"refresh-7"}"#;
    assert_eq!(store.add_account(&new_account("b3", token)).await.unwrap(), Added::New);
    assert_eq!(store.add_account(&new_account("b4", r#"{"kiroApiKey":"ksk_1"}"#)).await.unwrap(), Added::New);
    let again = store.add_account(&new_account("b5", r#"{"kiroApiKey":"ksk_1"}"#)).await.unwrap();
    assert_eq!(again, Added::Duplicate { id: "b4".into() });
    assert_eq!(store.add_account(&new_account("b6", "[]")).await.unwrap_err().kind(), StoreErrorKind::Broken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_under_the_default_prefix_is_noticed_r1() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = Store::connect(&prefixed(&server.url(), "mine:")).await.unwrap();
    wait_for(&store, Status::is_connected, Duration::from_secs(5)).await;
    assert_eq!(store.pool_name(), "mine:pools:claude-kiro-oauth");
    assert_eq!(store.pool_under_default_prefix().await.unwrap(), None);
    redis.hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    assert_eq!(store.pool_under_default_prefix().await.unwrap().as_deref(), Some(POOL));
    redis.hset::<_, _, _, ()>("mine:pools:claude-kiro-oauth", "a1", "{}").unwrap();
    assert_eq!(store.pool_under_default_prefix().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_are_not_ids_are_left_out_and_the_rest_is_sorted_r13() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    for id in [&b"b"[..], b"a", b"B", b"", b"\xff", b"x\ny", &[b'x'; 129]] {
        redis.hset::<_, _, _, ()>(POOL, id, "{}").unwrap();
    }
    redis.set::<_, _, ()>(token_key("a"), TOKEN).unwrap();
    redis.hset::<_, _, _, ()>(token_key("b"), "not", "a string").unwrap();
    let all = store.load().await.unwrap();
    let ids: Vec<_> = all.iter().map(|raw| (raw.id.as_str(), raw.token.is_some())).collect();
    assert_eq!(ids, [("B", false), ("a", true), ("b", false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_leave_at_once_and_counters_within_a_second_r31() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    redis.hset_multiple::<_, _, _, ()>(POOL, &[("a1", "{}"), ("a2", "{}")]).unwrap();
    let store = connect(&server.url()).await;
    let writer = Writer::spawn(store, clock());
    writer.record("a1", &success());
    let until = time("10:01:00");
    writer.record("a2", &Outcome::marked(t0(), t0(), Note::CoolDown { until, cause: "429".into() }));
    let started = Instant::now();
    while writer.pending().accounts.contains(&"a2".to_owned()) {
        assert!(started.elapsed() < Duration::from_millis(500));
        sleep(Duration::from_millis(1)).await;
    }
    println!("r31: a mark was written after {:?}", started.elapsed());
    while !writer.pending().is_empty() {
        assert!(started.elapsed() < Duration::from_millis(1100));
        sleep(Duration::from_millis(5)).await;
    }
    println!("r31: a counter was written after {:?}", started.elapsed());
    assert_eq!(writer.written(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_delays_nobody_r32() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    for index in 0..100 {
        redis.hset::<_, _, _, ()>(POOL, format!("a{index}"), "{}").unwrap();
    }
    let proxy = Proxy::start(server.port()).await;
    let store = connect(&proxy.url()).await;
    let writer = Writer::spawn(store.clone(), clock());
    proxy.slow_down(Duration::from_millis(250));
    let started = Instant::now();
    for index in 0..100 {
        writer.record(&format!("a{index}"), &success());
    }
    let took = started.elapsed();
    assert!(took < Duration::from_millis(20), "{took:?}");
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    println!("r32: 100 ends taken in after {took:?}, written after {:?}", started.elapsed());
    assert_eq!(usage(&mut redis), 100);
    assert_eq!(store.status(), Status::Connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_completed_by_unwritten_changes_r18() {
    let (_server, _redis, store) = with_account("{}").await;
    let writer = Writer::spawn(store.clone(), clock());
    let since = Instant::now();
    let snapshot = store.load().await.unwrap();
    let read = || Account::parse(&snapshot[0].account, "a1").unwrap();
    assert!(writer.overlaid(&read(), since).is_none());
    let until = time("10:01:00");
    writer.record("a1", &Outcome::marked(t0(), t0(), Note::CoolDown { until, cause: "429".into() }));
    for written in [false, true] {
        assert!(!writer.overlaid(&read(), since).unwrap().healthy, "written: {written}");
        assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    }
    let later = Instant::now();
    assert!(writer.overlaid(&read(), later).is_none(), "a later snapshot knows better");

    let marked = store.load().await.unwrap();
    writer.record("a1", &success());
    let marked = Account::parse(&marked[0].account, "a1").unwrap();
    assert!(!marked.standing.healthy);
    assert!(writer.overlaid(&marked, later).unwrap().healthy, "our heal is not written yet");
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
    // A busy healthy account always has something waiting, which says nothing about its health: somebody else's mark counts.
    let now = Instant::now();
    writer.record("a1", &Outcome::used(t0()));
    assert!(!writer.overlaid(&marked, now).unwrap().healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn unwritten_changes_are_reported_at_the_deadline_r33() {
    let mut server = RedisServer::start();
    server.connection().hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    let store = connect(&server.url()).await;
    let writer = Writer::spawn(store.clone(), clock());
    server.kill();
    wait_for(&store, |status| !status.is_connected(), Duration::from_secs(2)).await;
    writer.record("a1", &success());
    writer.keep_token("a1", refreshed(&TokenKey::of("a1"), TOKEN.as_bytes()));
    let started = Instant::now();
    let left = writer.flush(Duration::from_millis(300)).await;
    assert!((300..1000).contains(&started.elapsed().as_millis()));
    assert_eq!((left.accounts, left.tokens), (vec!["a1".to_owned()], vec!["a1".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_connection_is_replaced_at_once_r2() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let store = connect(&server.url()).await;
    sleep(Duration::from_millis(200)).await;
    redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .arg("SKIPME")
        .arg("yes")
        .query::<()>(&mut redis)
        .unwrap();
    wait_for(&store, |status| !status.is_connected(), Duration::from_millis(500)).await;
    wait_for(&store, Status::is_connected, Duration::from_millis(500)).await;
    assert_eq!(store.load().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_sockets_and_resp2_work_r2() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let socket = connect(&format!("redis+unix://{}", server.socket().display())).await;
    exercise(&socket, &mut redis).await;
    redis::cmd("FLUSHALL").query::<()>(&mut redis).unwrap();
    let resp2 = connect(&format!("{}?protocol=resp2", server.url())).await;
    exercise(&resp2, &mut redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connections_close_with_the_last_clone() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let mut clients = || {
        let list: String = redis::cmd("CLIENT").arg("LIST").arg("TYPE").arg("normal").query(&mut redis).unwrap();
        list.lines().filter(|line| line.contains("lib-name=kiro-messages") || line.contains("cmd=eval")).count()
    };
    let store = connect(&server.url()).await;
    let writer = Writer::spawn(store.clone(), clock());
    sleep(Duration::from_millis(300)).await;
    assert_eq!(clients(), 2);
    drop((store, writer));
    sleep(Duration::from_millis(300)).await;
    assert_eq!(clients(), 0);
}

/// Answers HGETALL with one account, GET with `get`, and everything else with OK.
async fn odd_server(get: &'static str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}?protocol=resp2", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut chunk = [0; 4096];
                while let Ok(read @ 1..) = client.read(&mut chunk).await {
                    seen.extend_from_slice(&chunk[..read]);
                    while let Some((name, length)) = command_in(&seen) {
                        seen.drain(..length);
                        let reply = match name.as_str() {
                            "HGETALL" => "*2\r\n$2\r\na1\r\n$2\r\n{}\r\n",
                            "GET" | "HGET" => get,
                            _ => "+OK\r\n",
                        };
                        if client.write_all(reply.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    url
}

/// The first command in what was read: its name and its length in bytes.
fn command_in(seen: &[u8]) -> Option<(String, usize)> {
    let mut at = 0;
    let number = |at: &mut usize| -> Option<usize> {
        let end = *at + seen.get(*at..)?.windows(2).position(|two| two == b"\r\n")?;
        let digits = std::str::from_utf8(&seen[*at + 1..end]).ok()?;
        *at = end + 2;
        digits.parse().ok()
    };
    let count = number(&mut at)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(&mut at)?;
        words.push(seen.get(at..at + length)?);
        at += length + 2;
    }
    (at <= seen.len()).then(|| (String::from_utf8_lossy(words[0]).to_ascii_uppercase(), at))
}

/// A proxy in front of Redis whose backend is gone answers each command with an error of its own. It must not read as "no
/// token", which would put every account out of service, nor as "no client key", which would open the door.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_answer_is_not_an_absent_key_r14_r57() {
    for odd in ["-ERR backend is gone\r\n", ":5\r\n", "*0\r\n", "*1\r\n$1\r\nx\r\n"] {
        let store = connect(&odd_server(odd).await).await;
        assert_eq!(store.load().await.map(|all| all.len()).map_err(|error| error.kind()), Err(StoreErrorKind::Broken));
        assert_eq!(store.client_key().await.map_err(|error| error.kind()), Err(StoreErrorKind::Broken), "{odd:?}");
        assert_eq!(store.read_account("a1").await.map_err(|error| error.kind()), Err(StoreErrorKind::Broken));
        let token = store.read_token(&TokenKey::of("a1"), t0()).await;
        assert_eq!(token.map_err(|error| error.kind()), Err(StoreErrorKind::Broken), "{odd:?}");
    }
    for absent in ["-WRONGTYPE Operation against a key holding the wrong kind of value\r\n", "$-1\r\n"] {
        let store = connect(&odd_server(absent).await).await;
        assert!(store.load().await.unwrap()[0].token.is_none());
        assert_eq!(store.client_key().await.unwrap(), None);
    }
}
