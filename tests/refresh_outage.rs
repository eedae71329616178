//! Refreshes while the store takes no writes, against an upstream whose refresh tokens work once.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/accounts.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod accounts;
#[path = "support/log.rs"]
mod log;
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;

use std::time::{Duration, Instant};

use kiro_messages::config::{Face, RawConfig};
use kiro_messages::error::Error;
use kiro_messages::gateway::{Call, Gateway};
use kiro_messages::simulator::{Running, Simulator};
use serde_json::{Value, json};

use accounts::add_account;
use redis_server::RedisServer;

struct World {
    gateway: Gateway,
    upstream: Running,
    redis: RedisServer,
    said: Vec<(&'static str, String)>,
    accounts: usize,
}

impl World {
    /// Accounts whose access tokens have ended; each refresh gives one for `life` seconds.
    async fn new(accounts: usize, life: u64, options: &[(&'static str, &str)]) -> Self {
        let redis = RedisServer::start();
        let simulator = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let upstream = simulator.world(json!([format!("one-time-tokens-{life}")])).unwrap().spawn().unwrap();
        for n in 0..accounts {
            let token = json!({
                "accessToken": format!("sim-ok.{n}"), "refreshToken": format!("old{n}"), "authMethod": "social",
                "expiresAt": "2026-01-01T00:00:00.000Z",
            });
            add_account(&mut redis.connection(), &id(n), &json!({}), &token);
        }
        let port = upstream.addr().port();
        let mut said = vec![
            ("REDIS_URL", redis.url()),
            ("KIRO_API_KEY", "key".to_owned()),
            ("KIRO_STORE_WAIT", "5s".to_owned()),
            ("KIRO_UPSTREAM_URL", format!("http://q.{{region}}.localhost:{port}/generateAssistantResponse")),
            ("KIRO_SOCIAL_REFRESH_URL", format!("http://auth.{{region}}.localhost:{port}/refreshToken")),
        ];
        said.extend(options.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let gateway = start(&said).await;
        Self { gateway, upstream, redis, said, accounts }
    }

    async fn asks(&self, text: &str) -> Result<(), Error> {
        self.asks_one(None, text).await
    }

    /// The same of one account alone.
    async fn asks_one(&self, account_id: Option<String>, text: &str) -> Result<(), Error> {
        let body = json!({
            "model": "claude-sonnet-4-5", "max_tokens": 64, "messages": [{ "role": "user", "content": text }],
        });
        self.gateway.create(body.to_string().into(), Call { account_id, ..Call::default() }).await.map(drop)
    }

    /// Requests for so long, 20 a second; the failures.
    async fn lives(&self, span: Duration) -> Vec<Error> {
        let end = Instant::now() + span;
        let mut failed = Vec::new();
        for n in 0.. {
            if Instant::now() >= end {
                break;
            }
            failed.extend(self.asks(&format!("hello {n} at {end:?}")).await.err());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        failed
    }

    /// The sum of a count over all accounts.
    fn count(&self, what: &str) -> u64 {
        let accounts = self.upstream.control().accounts();
        accounts.as_object().unwrap().values().map(|account| account[what].as_u64().unwrap()).sum()
    }

    fn in_store(&self, n: usize) -> String {
        let text: String = redis::cmd("GET").arg(key(n)).query(&mut self.redis.connection()).unwrap();
        let token: Value = serde_json::from_str(&text).unwrap();
        token["refreshToken"].as_str().unwrap().to_owned()
    }

    /// The refresh tokens that work.
    fn working(&self) -> Vec<String> {
        let accounts = self.upstream.control().accounts();
        let mut all: Vec<String> = accounts
            .as_object()
            .unwrap()
            .values()
            .map(|account| account["refresh_token"].as_str().unwrap().to_owned())
            .collect();
        all.sort();
        all
    }

    /// Which accounts' refresh tokens in the store are not the ones that work.
    fn lost(&self) -> Vec<usize> {
        let accounts = self.upstream.control().accounts();
        let works = |n: usize| accounts[format!("old{n}")]["refresh_token"].as_str().map(str::to_owned);
        (0..self.accounts).filter(|n| works(*n).is_some_and(|works| works != self.in_store(*n))).collect()
    }

    async fn all_saved(&self, within: Duration) {
        let end = Instant::now() + within;
        while !self.lost().is_empty() {
            let accounts = self.upstream.control().accounts();
            let store: Vec<String> = (0..self.accounts).map(|n| self.in_store(n)).collect();
            assert!(Instant::now() < end, "not in the store within {within:?}: {store:?} {accounts}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn redis(&self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        let mut cmd = redis::cmd(words[0]);
        for word in &words[1..] {
            cmd.arg(*word);
        }
        cmd.query::<redis::Value>(&mut self.redis.connection()).unwrap();
    }

    fn states(&self) -> Vec<&'static str> {
        self.gateway.accounts().iter().map(|account| account.state.as_str()).collect()
    }
}

async fn start(said: &[(&'static str, String)]) -> Gateway {
    let raw = RawConfig::from_env(said.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    Gateway::start(raw.resolve(Face::Server).unwrap()).await.unwrap()
}

fn id(n: usize) -> String {
    format!("{n:08}-0000-4000-8000-000000000000")
}

fn key(n: usize) -> String {
    format!("aiclient:tokens:claude-kiro-oauth:{}", id(n))
}

/// 200 cycles in full size (`npm run soak:pool`), a dozen else; four were enough to lose every login.
fn cycles() -> u64 {
    if std::env::var_os("KIRO_TEST_FULL_SIZE").is_some() { 200 } else { 12 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_no_writes_loses_no_login_r48_r51() {
    let world = World::new(1, 1, &[]).await;
    world.redis("CONFIG SET maxmemory 1");
    let failed = world.lives(Duration::from_secs(cycles())).await;
    assert!(failed.is_empty(), "{} failed, first {:?}", failed.len(), failed[0]);
    assert_eq!(world.count("dead_refreshes"), 0, "{}", world.upstream.control().accounts());
    assert!(world.count("refreshes") >= cycles(), "{}", world.upstream.control().accounts());
    assert_eq!(world.states(), ["healthy"]);
    world.redis("CONFIG SET maxmemory 0");
    world.all_saved(Duration::from_secs(5)).await;
}

/// The server answers nothing for six seconds: calls end in doubt, and the writes land when it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_land_late_are_known_as_ours_r22_r48() {
    let world = World::new(8, 1, &[]).await;
    for round in 0..3 {
        world.redis("CLIENT PAUSE 6000 ALL");
        world.lives(Duration::from_secs(7)).await;
        assert_eq!(world.lives(Duration::from_secs(1)).await.len(), 0, "round {round}");
    }
    world.all_saved(Duration::from_secs(5)).await;
    assert_eq!(world.count("dead_refreshes"), 0, "{}", world.upstream.control().accounts());
    assert_eq!(world.states(), ["healthy"; 8]);
}

fn kept(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.to_string_lossy().ends_with(".token.json")).collect()
}

fn kept_tokens(folder: &std::path::Path) -> Vec<String> {
    let token = |path: &std::path::PathBuf| {
        let kept: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        kept["token"]["refreshToken"].as_str().unwrap().to_owned()
    };
    let mut all: Vec<String> = kept(folder).iter().map(token).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_while_the_store_takes_no_writes_loses_no_login_r51() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut world = World::new(3, 1, &[("KIRO_STATE_DIR", state.to_str().unwrap())]).await;
    world.redis("CONFIG SET maxmemory 1");
    for round in 0..3 {
        let failed = world.lives(Duration::from_secs(4)).await;
        assert!(failed.is_empty(), "{round}: {} failed, first {:?}", failed.len(), failed[0]);
        // An account without a turn, for the others' tokens live, gets one.
        let end = Instant::now() + Duration::from_secs(20);
        while kept(&state).len() < 3 {
            assert!(Instant::now() < end, "{:?}", kept(&state));
            for n in 0..3 {
                world.asks_one(Some(id(n)), &format!("you, {end:?}")).await.unwrap();
            }
        }
        #[cfg(unix)]
        for path in kept(&state) {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        // A token that came just now is on its way to its file.
        let end = Instant::now() + Duration::from_secs(2);
        while kept_tokens(&state) != world.working() {
            assert!(Instant::now() < end, "{:?} kept, {:?} work", kept_tokens(&state), world.working());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // As killed: nothing is flushed.
        world.gateway = start(&world.said).await;
    }
    world.redis("CONFIG SET maxmemory 0");
    world.all_saved(Duration::from_secs(5)).await;
    assert_eq!(world.count("dead_refreshes"), 0, "{}", world.upstream.control().accounts());
    let end = Instant::now() + Duration::from_secs(2);
    while !kept(&state).is_empty() {
        assert!(Instant::now() < end, "{:?}", kept(&state));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is lost is an error, and nothing else is.
#[tokio::test]
async fn a_stop_during_an_outage_names_the_logins_that_it_loses_r33_r51() {
    let log = log::Log::listen();
    let folder = tempfile::tempdir().unwrap();
    for (state, kept) in [(folder.path().to_str(), "WARN"), (None, "ERROR")] {
        let settings: Vec<_> = state.map(|state| ("KIRO_STATE_DIR", state)).into_iter().collect();
        let world = World::new(1, 1, &settings).await;
        world.asks("hello").await.unwrap();
        world.all_saved(Duration::from_secs(5)).await;
        let before = log.lines("").len();
        world.redis("CONFIG SET maxmemory 1");
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        // The token comes as the stop begins.
        world.asks("and now").await.unwrap();
        world.gateway.close(Duration::ZERO).await;
        let said = log.lines("").split_off(before).join("\n");
        assert_eq!(said.contains("ERROR"), kept == "ERROR", "{said}");
        let sentence = if kept == "WARN" { "waits in KIRO_STATE_DIR" } else { "this account must log in again" };
        assert!(said.contains(sentence), "{said}");
    }
}

/// Another process holds the folder for longer: one second for all tokens together, and what isn't known to lie there is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_looks_into_a_held_folder_for_a_second_r33() {
    let log = log::Log::listen();
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(3, 1, &[("KIRO_STATE_DIR", folder.path().to_str().unwrap())]).await;
    let held = std::fs::File::create(folder.path().join("tokens.lock")).unwrap();
    held.lock().unwrap();
    world.redis("CONFIG SET maxmemory 1");
    // The tokens of the start end.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for n in 0..3 {
        world.asks_one(Some(id(n)), "hello").await.unwrap();
    }
    assert_eq!(world.gateway.health().unsaved_tokens, 3);
    let started = Instant::now();
    world.gateway.close(Duration::ZERO).await;
    let took = started.elapsed();
    // One second for the store, which is asked at any rate, and that one.
    assert!((1_900..3_000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(log.lines("this account must log in again").len(), 3, "{:?}", log.lines(""));
    assert!(kept(folder.path()).is_empty());
}

/// Health says what waits to be saved and whether it is kept meanwhile, and that it serves all the same.
#[tokio::test(flavor = "multi_thread")]
async fn health_shows_unsaved_tokens_and_the_journal_r51() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let world = World::new(2, 1, &[("KIRO_STATE_DIR", state.to_str().unwrap())]).await;
    let says = async |expected: (&str, u64, &str)| {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let health = world.gateway.health();
            assert!(health.can_serve, "{health:?}");
            let told = serde_json::to_value(&health).unwrap();
            let said = (told["status"].as_str(), told["unsavedTokens"].as_u64(), told["journal"].as_str());
            if said == (Some(expected.0), Some(expected.1), Some(expected.2)) {
                assert_eq!(world.gateway.status().journal, expected.2);
                return;
            }
            assert!(Instant::now() < end, "{told}, not {expected:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    world.asks("hello").await.unwrap();
    world.all_saved(Duration::from_secs(5)).await;
    says(("healthy", 0, "ok")).await;
    world.redis("CONFIG SET maxmemory 1");
    assert!(world.lives(Duration::from_secs(3)).await.is_empty());
    says(("degraded", 2, "ok")).await;
    // A file lies in the folder's place.
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::write(&state, "no folder").unwrap();
    assert!(world.lives(Duration::from_secs(3)).await.is_empty());
    says(("degraded", 2, "broken")).await;
    world.redis("CONFIG SET maxmemory 0");
    world.all_saved(Duration::from_secs(5)).await;
    says(("healthy", 0, "broken")).await;
    std::fs::remove_file(&state).unwrap();
    world.redis("CONFIG SET maxmemory 1");
    assert!(world.lives(Duration::from_secs(3)).await.is_empty());
    says(("degraded", 2, "ok")).await;
    world.redis("CONFIG SET maxmemory 0");
    says(("healthy", 0, "ok")).await;

    let world = World::new(1, 60, &[]).await;
    assert_eq!(world.gateway.health().journal, "off");
}

/// Somebody logged in again while the server was down: what was kept is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_token_gives_way_to_a_new_login_r51() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(1, 1, &[("KIRO_STATE_DIR", folder.path().to_str().unwrap())]).await;
    world.redis("CONFIG SET maxmemory 1");
    assert!(world.lives(Duration::from_secs(2)).await.is_empty());
    let kept_one = kept(folder.path()).pop().unwrap();
    let text = std::fs::read(&kept_one).unwrap();
    world.redis("CONFIG SET maxmemory 0");
    world.all_saved(Duration::from_secs(5)).await;
    world.redis(&format!(r#"SET {} {{"accessToken":"sim-ok.new","refreshToken":"new"}}"#, key(0)));
    std::fs::write(&kept_one, text).unwrap();
    world.gateway = start(&world.said).await;
    assert!(world.asks("hello").await.is_ok());
    assert!(world.in_store(0).starts_with("new~"), "{}", world.in_store(0));
    assert!(kept(folder.path()).is_empty());
}

/// A refresh that can't be saved would log the account's owner out.
#[tokio::test(flavor = "multi_thread")]
async fn no_refresh_is_begun_on_a_read_only_store_r52() {
    let world = World::new(1, 2, &[]).await;
    world.asks("hello").await.unwrap();
    world.redis("REPLICAOF 127.0.0.1 1");
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let refreshes = world.count("refreshes");
    let error = world.asks("are you there").await.unwrap_err();
    assert!(error.message().contains("the store is read-only"), "{error:?}");
    assert_eq!(world.count("refreshes"), refreshes);
    world.redis("REPLICAOF NO ONE");
    let end = Instant::now() + Duration::from_secs(5);
    while world.asks(&format!("and now, {end:?}")).await.is_err() {
        assert!(Instant::now() < end, "{:?}", world.states());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.all_saved(Duration::from_secs(5)).await;
    assert_eq!(world.count("dead_refreshes"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_in_a_journal_are_refreshed_all_the_same_r52() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(1, 1, &[("KIRO_STATE_DIR", folder.path().to_str().unwrap())]).await;
    world.asks("hello").await.unwrap();
    world.redis("REPLICAOF 127.0.0.1 1");
    let failed = world.lives(Duration::from_secs(4)).await;
    assert!(failed.is_empty(), "{} failed, first {:?}", failed.len(), failed[0]);
    world.redis("REPLICAOF NO ONE");
    world.all_saved(Duration::from_secs(5)).await;
    assert_eq!(world.count("dead_refreshes"), 0);
}
