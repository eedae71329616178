//! A store of the test's own and what every topology of Redis must do for it.

use std::process::Command;
use std::time::Duration;

use kiro_messages::proto::record::Account;
use kiro_messages::secret::Secret;
use kiro_messages::store::{RedisAddress as Server, RedisConfig, Saved, Status, Store, StoreConfig, Writer};
use redis::Commands;

#[path = "accounts.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod accounts;
#[path = "records.rs"]
mod records;
pub use accounts::{POOL, token_key};
pub use records::*;

/// The default prefix.
pub fn config(url: &str) -> StoreConfig {
    prefixed(url, "aiclient:")
}

/// Two connections.
pub fn prefixed(url: &str, prefix: &str) -> StoreConfig {
    StoreConfig::Redis(RedisConfig {
        server: Server::Url(Secret::new(url)),
        key_prefix: prefix.to_owned(),
        connections: 2,
    })
}

/// A store that is connected.
pub async fn connect(url: &str) -> Store {
    let store = Store::connect(&config(url)).await.unwrap();
    wait_for(&store, Status::is_connected, Duration::from_secs(20)).await;
    store
}

/// The sum of all usage counts.
pub fn usage(redis: &mut impl Commands) -> u64 {
    let all: Vec<(String, String)> = redis.hgetall(POOL).unwrap();
    all.iter().map(|(id, record)| Account::parse(record.as_bytes(), id).unwrap().usage_count).sum()
}

/// All that the gateway does with a store, once.
pub async fn exercise(store: &Store, redis: &mut impl Commands) {
    redis.hset::<_, _, _, ()>(POOL, "a1", "{}").unwrap();
    redis.set::<_, _, ()>(token_key("a1"), TOKEN).unwrap();
    let all = store.load().await.unwrap();
    let (key, base) = all[0].token.clone().unwrap();
    record(store, [success()]).await;
    store.reserve_tickets(64).await.unwrap();
    store.client_key().await.unwrap();
    let lock = store.lock(&key, t0()).await.unwrap().unwrap();
    assert_eq!(store.read_token(&key, t0()).await.unwrap().as_ref(), Some(&base));
    assert!(matches!(store.save_token(&refreshed(&key, &base)).await.unwrap(), Saved::Written(_)));
    store.unlock(lock).await.unwrap();
    assert_eq!(store.pool_under_default_prefix().await.unwrap(), None);
    assert_eq!(store.status(), Status::Connected);
}

/// 4 processes count 250 successes each.
pub fn run_case_10(url: &str) {
    let exe = std::env::current_exe().unwrap();
    let start = || {
        Command::new(&exe)
            .args(["--exact", "support::a_process_case_10", "--ignored", "--quiet"])
            .env(CASE_10_URL, url)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..4).map(|_| start()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
}

const CASE_10_URL: &str = "KIRO_TEST_CASE_10_URL";

#[test]
#[ignore = "a process of case_10"]
fn a_process_case_10() {
    let Ok(url) = std::env::var(CASE_10_URL) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = connect(&url).await;
        let writer = Writer::spawn(store, clock());
        for count in 0..250 {
            writer.record("a1", &success());
            // Some writes on their own, some merged.
            if count % 10 == 0 {
                assert!(writer.flush(Duration::from_secs(60)).await.is_empty());
            }
        }
        assert!(writer.flush(Duration::from_secs(60)).await.is_empty());
    });
}
