//! A store of the test's own and what every topology of Redis must do for it.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kiro_messages::proto::record::{Account, Entry};
use kiro_messages::secret::Secret;
use kiro_messages::store::{
    Clock, NewAccount, OutcomePatch, RedisConfig, RedisServer as Server, Saved, Status, Store, StoreConfig, TokenKey,
    UnsavedToken, Writer,
};
use redis::Commands;
use tokio::time::timeout;

/// The pool's key.
pub const POOL: &str = "aiclient:pools:claude-kiro-oauth";
/// What a success at [`t0`] leaves.
pub const USED: &str = r#""lastUsed":"2026-11-23T10:00:00.000Z""#;

/// A time on the day of the examples.
pub fn time(text: &str) -> Timestamp {
    format!("2026-11-23T{text}Z").parse().unwrap()
}

/// `T0` of the contract.
pub fn t0() -> Timestamp {
    time("10:00:00")
}

/// Always [`t0`].
pub fn clock() -> Clock {
    Arc::new(t0)
}

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

/// Waits for a status.
pub async fn wait_for(store: &Store, wanted: impl Fn(&Status) -> bool, within: Duration) {
    let mut status = store.watch();
    let reached = timeout(within, status.wait_for(|status| wanted(status))).await;
    assert!(reached.is_ok(), "still {:?} after {within:?}", store.status());
}

/// At [`t0`].
pub fn success() -> OutcomePatch {
    OutcomePatch::Success { at: t0(), started_at: t0() }
}

/// Records a few outcomes of account a1 and waits until they are written.
pub async fn record(store: &Store, outcomes: impl IntoIterator<Item = OutcomePatch>) {
    let writer = Writer::spawn(store.clone(), clock());
    for outcome in outcomes {
        writer.record("a1", outcome);
    }
    assert!(writer.flush(Duration::from_secs(5)).await.is_empty());
}

/// The key of a token record.
pub fn token_key(id: &str) -> String {
    format!("aiclient:tokens:claude-kiro-oauth:{id}")
}

/// A token record before its refresh.
pub const TOKEN: &str = r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":1767225600000,"authMethod":"builder-id","clientId":"c","clientSecret":"s","region":"us-east-1","n":[]}"#;

/// What a refresh of `base` with refresh-1 brought.
pub fn refreshed(key: &TokenKey, base: &[u8]) -> UnsavedToken {
    UnsavedToken {
        key: key.clone(),
        base: base.to_vec().into(),
        used: Secret::new("refresh-1"),
        entries: vec![
            Entry::AccessToken(Secret::new("new")),
            Entry::RefreshToken(Secret::new("refresh-2")),
            Entry::ExpiresAt(time("11:00:00")),
        ],
    }
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

/// An account to add.
pub fn new_account(id: &str, token: &str) -> NewAccount {
    NewAccount { id: id.into(), custom_name: Some("mine".into()), added_at: t0(), token: token.into() }
}

/// 4 processes count 250 successes each.
pub fn run_case_10(url: &str) {
    let exe = std::env::current_exe().unwrap();
    let start = || {
        Command::new(&exe)
            .args(["--exact", "support::case_10_process", "--ignored", "--quiet"])
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
fn case_10_process() {
    let Ok(url) = std::env::var(CASE_10_URL) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = connect(&url).await;
        let writer = Writer::spawn(store, clock());
        for count in 0..250 {
            writer.record("a1", success());
            // Some writes on their own, some merged.
            if count % 10 == 0 {
                assert!(writer.flush(Duration::from_secs(60)).await.is_empty());
            }
        }
        assert!(writer.flush(Duration::from_secs(60)).await.is_empty());
    });
}
