//! Beside the Node.js service: two `kiro-server` processes under load and the program of `tests/coexist` on one Redis.
//! Nothing of either side is lost, as far as contract/redis.md promises (R34).
#![cfg(all(unix, feature = "server"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "test code may panic, and measures"
)]

use std::time::Duration;

use kiro_messages::proto::record::{Account, Note};
use redis::Commands as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

#[allow(dead_code, reason = "each test file uses its part")]
#[path = "support/stage.rs"]
mod stage;

use stage::node_service::{NodeService, theirs, unknown_members, uses};
use stage::redis_server::{LOGGED, RedisServer};
use stage::{Load, POOL, Server, Stage, Upstream, access, eventually, id, none_failed, say, token, token_key};

const FAR: &str = "2099-01-01T00:00:00.000Z";

/// Two servers under steady load and the service, on one pool.
struct House {
    stage: Stage,
    upstream: Upstream,
    servers: [Server; 2],
    node: NodeService,
    load: Load,
    seeds: std::collections::BTreeMap<String, String>,
}

impl House {
    /// With these access tokens; a name of the simulator's presets decides what the account answers.
    async fn new(tokens: &[String]) -> Self {
        let stage = Stage::new(RedisServer::start_with(&LOGGED));
        for (n, access_token) in tokens.iter().enumerate() {
            stage.add(n, &record(n));
            stage.set_token(n, &token(n, access_token, FAR));
        }
        let upstream = stage.upstream().await;
        let options = [("KIRO_ACCOUNT_CACHE_TTL", "500ms"), ("KIRO_HEALTH_COOLDOWN", "1s")];
        let servers = stage.servers([&upstream; 2], &options).await;
        let node = stage.node_service(&upstream);
        let plans = servers.each_ref().map(|server| server.plan(2, Duration::from_millis(20)));
        let load = Load::start(&plans, 30.0);
        let seeds = stage.records();
        Self { stage, upstream, servers, node, load, seeds }
    }

    fn account(&self, n: usize) -> Account {
        self.stage.account(n)
    }

    /// Waits for a state of an account's record.
    async fn sees(&self, what: &str, n: usize, is: impl Fn(&Account) -> bool) {
        eventually(what, Duration::from_secs(20), || async { is(&self.account(n)) }).await;
    }

    /// No request failed; everything is written; each account's count and unknown members are what they must be.
    async fn adds_up(mut self, what: &str, ordinary: &[(usize, &str)]) {
        let shots = self.load.stop().await;
        none_failed(shots.iter().map(|shot| &shot.outcome), &self.servers);
        let mut given_up = 0;
        for server in self.servers {
            given_up += i64::try_from(server.process.given_up()).unwrap();
            server.process.stop().await;
        }
        let (journal, records) = (self.node.journal(), self.stage.records());
        let stats = self.upstream.stats().await;
        for &(n, access_token) in ordinary {
            let record = &records[&id(n)];
            let seed = &self.seeds[&id(n)];
            let (theirs, last) = theirs(&journal, &id(n), seed);
            let ours = successes(access_token, &stats);
            let before = uses(Some(seed));
            let (there, wanted) = (uses(Some(record)), before + ours + theirs);
            let is_exact = (wanted - given_up..=wanted).contains(&there);
            assert!(
                is_exact,
                "account {n}: {there}; {before} before, {ours} of ours, {theirs} of theirs, {given_up} uncertain (R22)"
            );
            assert_eq!(unknown_members(record), unknown_members(last), "{n}");
        }
        say(format!(
            "{what}: {} requests, none failed; {} writes of the Node.js service; the counts of {} accounts exact, {given_up} \
             uncertain (R22)",
            shots.len(),
            journal.len(),
            ordinary.len()
        ));
    }
}

/// What a predecessor and the service have left in a record.
fn record(n: usize) -> String {
    format!(
        r#"{{"uuid":"{id}","KIRO_TOKEN_FILE_PATH":"redis:tokens:claude-kiro-oauth:{id}","customName":"name {n}","notSupportedModels":[],"usageCount":{n},"errorCount":0,"isHealthy":true,"x-big":12345678901234567890,"x-note":"a\/b","lastUsed":null}}"#,
        id = id(n)
    )
}

/// Streams for this access token and for those that came from refreshing its account (`sim-ok.N.ROOT`).
fn successes(access_token: &str, stats: &Value) -> i64 {
    let root = format!(".{}", access_token.replace("access-", "refresh-"));
    let is_its = |token: &str| token == access_token || (token.starts_with("sim-ok.") && token.ends_with(&root));
    let calls = stats["calls_by_token"].as_object().unwrap().iter().filter(|(token, _)| is_its(token));
    let refusals = stats["answered_otherwise"].as_array().unwrap().iter();
    let refusals = refusals.filter(|refusal| is_its(refusal["token"].as_str().unwrap())).count();
    calls.map(|(_, calls)| calls.as_i64().unwrap()).sum::<i64>() - i64::try_from(refusals).unwrap()
}

/// E1 to E6, E12: its successes lift our marks, its restart zeroes counts, its rewrites undo everything, a person edits
/// and deletes. Accounts 8 and 9 are suspended and out of quota.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_updates_and_rewrites_lose_nothing_of_ours_r18_r23_r34() {
    let mut tokens: Vec<String> = (0..8).map(access).collect();
    tokens.extend(["sim-suspended.8".to_owned(), "sim-402.9".to_owned()]);
    let mut house = House::new(&tokens).await;
    let ejected = |account: &Account| {
        !account.standing.healthy
            && account.standing.error_count == 10
            && matches!(account.standing.note, Some(Note::Ejected { .. }))
    };
    let out_of_quota = |account: &Account| !account.standing.healthy && account.standing.recovery.is_some();
    house.sees("the suspended account is ejected", 8, ejected).await;
    house.sees("the used-up account waits", 9, out_of_quota).await;

    // Its restart (E3), then traffic of its own on the accounts that serve (E2, E12).
    house.node.order("start", json!({}));
    house.node.order("busy", json!({ "every_ms": 15, "uuids": (0..8).map(id).collect::<Vec<_>>() }));
    house.node.order("edit", json!({ "uuid": id(1), "fields": { "customName": "edited", "checkHealth": true } }));
    // E4 in every form: with a gap, without, and because one of its scripts failed (an update of an account that is gone).
    house.node.order("rewrite", json!({ "gap_ms": 400 }));
    house.node.order("rewrite", json!({}));

    // Its memory says that both are healthy; the price is one attempt each, and the marks are there again (R18).
    for n in [8, 9] {
        house.node.order("reset", json!({ "uuid": id(n) }));
    }
    house.node.order("rewrite", json!({ "gap_ms": 100 }));
    house.sees("the ejection is marked again", 8, ejected).await;
    house.sees("the quota is marked again", 9, out_of_quota).await;

    // E6: it gives an account up for good; we bring it back (R17), whatever its memory says.
    house.node.order("fail", json!({ "uuid": id(2), "message": "Request failed with status code 500" }));
    house
        .sees("the given-up account serves again", 2, |account| {
            account.standing.healthy && account.standing.error_count == 0
        })
        .await;

    // A person deletes an account while requests run on it: neither we nor the late write of a success bring it back.
    house.node.order("idle", json!({}));
    house.node.order("remove", json!({ "uuid": id(7) }));
    let removed = Instant::now();
    // Neither does its rewrite: it deleted the account itself.
    house.node.order("rewrite", json!({ "gap_ms": 200 }));
    sleep(Duration::from_millis(11_500).saturating_sub(removed.elapsed())).await;
    let mut redis = house.stage.redis.connection();
    assert!(!redis.hexists::<_, _, bool>(POOL, id(7)).unwrap());
    assert!(!redis.exists::<_, bool>(token_key(&id(7))).unwrap());
    let name = unknown_members(&house.stage.records()[&id(1)]).into_iter().find(|(name, _)| name == "customName");
    assert_eq!(name.unwrap().1, "\"edited\"");
    let ordinary: Vec<String> = (0..7).map(access).collect();
    let ordinary: Vec<(usize, &str)> = ordinary.iter().enumerate().map(|(n, token)| (n, token.as_str())).collect();
    house.adds_up("updates and rewrites", &ordinary).await;
}

/// E7 to E10: it refreshes with the tokens of its memory and without the lock, replays writes after an outage, gives
/// accounts new ids. Whichever side refreshes last, the newest refresh token is in the record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_refreshes_replays_and_new_ids_lose_no_token_r41_r45_r48() {
    let tokens: Vec<String> = (0..6).map(access).collect();
    let mut house = House::new(&tokens).await;
    for n in 0..6 {
        house.node.order("hold_token", json!({ "uuid": id(n) }));
    }
    // It refreshes: we adopt.
    let theirs = house.node.order("refresh", json!({ "uuid": id(0) }));
    assert_eq!(theirs["refreshed"], true);
    house.serves_with_newest("its refresh", 0).await;

    // We refresh (upstream rejects our token once); then it writes the record of its memory over ours, late (R48).
    house.we_refresh(1).await;
    house.node.order("save_token", json!({ "uuid": id(1) }));
    house.newest_is_saved("a late write of an old token", 1).await;

    // It uses the refresh token that we have used up, fails, marks the account, and we heal it (E7, R17).
    house.we_refresh(2).await;
    assert_eq!(house.node.order("refresh", json!({ "uuid": id(2) }))["refreshed"], false);
    house.newest_is_saved("its refresh with a used-up token", 2).await;
    house.sees("the account serves again", 2, |account| account.standing.healthy).await;

    // Both at once, it without the lock: one of the two answers is a refusal.
    let script = json!({ "token": access(3), "scenarios": ["401"] });
    house.upstream.script(script).await;
    house.node.order("refresh", json!({ "uuid": id(3) }));
    house.newest_is_saved("both at once", 3).await;
    house.sees("the account serves", 3, |account| account.standing.healthy).await;

    // A new id, the token key stays (E9, R45); then a refresh of ours goes into the old key.
    let renamed = house.node.order("rotate", json!({ "uuid": id(4) }))["uuid"].as_str().unwrap().to_owned();
    house.we_refresh(4).await;
    house.newest_is_saved("a new id", 4).await;
    let mut redis = house.stage.redis.connection();
    assert!(!redis.exists::<_, bool>(token_key(&renamed)).unwrap(), "no second token key");

    // An outage in which both of us go on: it keeps its writes, and replays them over ours (E10).
    house.we_refresh(5).await;
    house.stage.redis.kill();
    house.node.order("save_token", json!({ "uuid": id(5) }));
    house.node.order("edit", json!({ "uuid": id(5), "fields": { "customName": "edited in the outage" } }));
    for _ in 0..20 {
        house.node.order("use", json!({ "uuid": id(5) }));
    }
    let waiting = house.node.order("queued", json!({}));
    assert_eq!(waiting, json!({ "queued": 22, "ready": false }), "it keeps what it can't write");
    sleep(Duration::from_secs(2)).await;
    tokio::task::block_in_place(|| house.stage.redis.restart());
    house.node.order("drained", json!({}));
    house.newest_is_saved("a replay of an old token", 5).await;
    let name = unknown_members(&house.stage.records()[&id(5)]).into_iter().find(|(name, _)| name == "customName");
    assert_eq!(name.unwrap().1, "\"edited in the outage\"");
    let ordinary = [0, 1, 2, 3, 5].map(|n| (n, access(n)));
    house.adds_up("refreshes, replays and new ids", &ordinary.each_ref().map(|(n, token)| (*n, token.as_str()))).await;
}

impl House {
    /// Upstream rejects the account's token once; the refresh that follows is ours.
    async fn we_refresh(&self, n: usize) {
        let before = self.stage.token(n)["refreshToken"].clone();
        self.upstream.script(json!({ "token": self.stage.token(n)["accessToken"], "scenarios": ["401"] })).await;
        let began = Instant::now();
        while self.stage.token(n)["refreshToken"] == before {
            let trouble = || self.servers.each_ref().map(|server| server.process.trouble());
            assert!(began.elapsed() < Duration::from_secs(20), "account {n} is not refreshed: {:#?}", trouble());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The record's refresh token is the one that upstream gave last, and it stays.
    async fn newest_is_saved(&self, what: &str, n: usize) {
        let is_newest = || async {
            let stats = self.upstream.stats().await;
            let root = format!("refresh-{n}");
            let given = stats["refreshed"].as_array().unwrap().iter().rev();
            let mut given = given.map(|given| given["refresh_token"].as_str().unwrap());
            let newest = given.find(|token| token.split('~').next() == Some(root.as_str())).unwrap_or(&root);
            self.stage.token(n)["refreshToken"] == newest
        };
        eventually(what, Duration::from_secs(20), is_newest).await;
        sleep(Duration::from_millis(700)).await;
        assert!(is_newest().await, "{what}: the newest token is lost again");
    }

    /// Requests go out with the token that lies in the record.
    async fn serves_with_newest(&self, what: &str, n: usize) {
        self.newest_is_saved(what, n).await;
        let newest = self.stage.token(n)["accessToken"].as_str().unwrap().to_owned();
        let used = || async { self.upstream.calls(&newest).await > 1 };
        eventually(what, Duration::from_secs(20), used).await;
    }
}
