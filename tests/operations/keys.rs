//! Named client keys in the built server: given, limited, rotated, taken away, in a file and in Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use redis::Commands as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use crate::place::{FAR, Server, add_account, client, scene, social};
use crate::redis_server::RedisServer;
use crate::world::{World, base, with};

const HASH: &str = "aiclient:kiro:client-keys";

fn hex(key: &str) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A record of the file.
fn record(name: &str, key: &str, more: &Value) -> Value {
    let mut record = json!({ "name": name, "sha256": hex(key) });
    for (member, value) in more.as_object().unwrap() {
        record[member] = value.clone();
    }
    record
}

fn write(path: &Path, records: &[Value]) {
    std::fs::write(path, json!({ "keys": records }).to_string()).unwrap();
}

/// Where named keys lie: the arguments and the environment of a command and of a server that use them.
#[derive(Clone)]
struct Keys {
    environment: Vec<(String, String)>,
}

impl Keys {
    fn file(path: &Path) -> Self {
        Self { environment: vec![("KIRO_API_KEYS_FILE".to_owned(), path.display().to_string())] }
    }

    fn redis(redis: &RedisServer) -> Self {
        Self { environment: vec![("REDIS_URL".to_owned(), redis.url())] }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiro-server"));
        command.args(arguments).env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).output().unwrap()
    }

    /// The standard output of a command that goes well.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The complaint of one that doesn't.
    fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn add(&self, name: &str) -> String {
        self.done(&["keys", "add", name]).trim().to_owned()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.done(&[arguments, &["--json"]].concat())).unwrap()
    }

    fn serve(&self, more: &[(&str, &str)]) -> Server {
        let mut all: Vec<(&str, &str)> = self.environment.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        all.extend(more);
        Server::start(&[], &all)
    }
}

async fn status(http: &reqwest::Client, address: &str, key: &str) -> u16 {
    let asked = http.get(format!("http://{address}/v1/models")).header("x-api-key", key).send().await.unwrap();
    asked.status().as_u16()
}

/// Asks until this key is answered with `expected`: a change counts within 5 s, and a busy machine may be late.
async fn becomes(http: &reqwest::Client, address: &str, key: &str, expected: u16) -> Duration {
    let began = Instant::now();
    while status(http, address, key).await != expected {
        assert!(began.elapsed() < Duration::from_secs(15), "not {expected} within 15 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

/// Two keys and the single one are valid at once, and under 100 requests a second none of them is ever refused meanwhile.
async fn rotates(keys: Keys, place: &str) {
    let old = keys.add("old");
    let server = keys.serve(&[("KIRO_API_KEY", "single")]);
    let (address, http) = (server.address(), client());
    becomes(&http, &address, &old, 200).await;
    let new = keys.add("new");
    let seen = becomes(&http, &address, &new, 200).await;

    // From here on all three are right, until the old one is taken away.
    let stop = tokio_util::sync::CancellationToken::new();
    let mut load = JoinSet::new();
    for (name, key, pace) in [("old", &old, 25), ("new", &new, 25), ("single", &"single".to_owned(), 50)] {
        let (http, address, key, stop) = (http.clone(), address.clone(), key.clone(), stop.clone());
        load.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(pace));
            let mut answers = BTreeMap::<u16, u32>::new();
            while !stop.is_cancelled() {
                ticks.tick().await;
                *answers.entry(status(&http, &address, &key).await).or_default() += 1;
            }
            (name, answers)
        });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    // A third key comes and goes, and both places are written again and again while they are read.
    keys.add("third");
    keys.done(&["keys", "disable", "third"]);
    keys.done(&["keys", "remove", "third"]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    stop.cancel();
    let mut total = 0;
    while let Some(done) = load.join_next().await {
        let (name, answers) = done.unwrap();
        let served = answers.get(&200).copied().unwrap_or(0);
        assert_eq!(answers.values().sum::<u32>(), served, "{place}, {name}: {answers:?}");
        assert!(served > 50, "{place}, {name}: {answers:?}");
        total += served;
    }
    keys.done(&["keys", "remove", "old"]);
    let gone = becomes(&http, &address, &old, 401).await;
    assert_eq!(status(&http, &address, &new).await, 200);
    assert_eq!(status(&http, &address, "single").await, 200);
    let figures =
        format!("{place}: {total} requests, none refused; a new key after {seen:?}, a removed one after {gone:?}");
    // Shown for a test that passes, too: past libtest's capture.
    writeln!(std::io::stdout().lock(), "  {figures}").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_a_file_is_rotated_without_a_break_r108() {
    let folder = tempfile::tempdir().unwrap();
    rotates(Keys::file(&folder.path().join("keys.json")), "file").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_redis_is_rotated_without_a_break_r109() {
    let redis = RedisServer::start();
    add_account(&mut redis.connection(), "aiclient:", 0, &social("access-1", FAR));
    rotates(Keys::redis(&redis), "Redis").await;
}

/// A gateway whose named keys lie in a file.
async fn world(folder: &Path, records: &[Value]) -> (World, PathBuf) {
    let path = folder.join("keys.json");
    write(&path, records);
    let world = World::new(&[("KIRO_API_KEYS_FILE", path.to_str().unwrap()), ("KIRO_LOG_LEVEL", "off")]).await;
    (world, path)
}

async fn ask(world: &World, key: &str, body: &Value) -> reqwest::Response {
    world.http.post(world.url("/v1/messages")).header("x-api-key", key).body(body.to_string()).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_refusal_tells_why_a_key_is_wrong_m2() {
    let folder = tempfile::tempdir().unwrap();
    let records = [
        record("on", "k-on", &json!({ "expires": "2099-01-01T00:00:00Z" })),
        record("off", "k-off", &json!({ "enabled": false })),
        record("over", "k-over", &json!({ "expires": "2026-01-01T00:00:00Z" })),
    ];
    let (world, _) = world(folder.path(), &records).await;
    assert_eq!(ask(&world, "k-on", &base()).await.status(), 200);
    let mut said = BTreeSet::new();
    for key in ["k-off", "k-over", "k-none"] {
        let refused = ask(&world, key, &base()).await;
        assert_eq!(refused.status(), 401, "{key}");
        let mut headers: Vec<String> = refused.headers().keys().map(ToString::to_string).collect();
        headers.sort();
        let body: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
        said.insert((headers, body["error"].to_string()));
    }
    assert_eq!(said.len(), 1, "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_has_its_limits_m1_m88() {
    let folder = tempfile::tempdir().unwrap();
    let records = [
        record("one", "k-one", &json!({ "max_inflight": 1 })),
        record("slow", "k-slow", &json!({ "rpm": 2 })),
        record("free", "k-free", &json!({})),
    ];
    let (world, _) = world(folder.path(), &records).await;
    let hanging = with(json!({
        "stream": true, "messages": scene(&json!({ "text": "a", "end": "hang" }))["messages"],
    }));
    let mut held = ask(&world, "k-one", &hanging).await;
    assert!(held.chunk().await.unwrap().is_some());
    let refused = ask(&world, "k-one", &base()).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    let body: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
    assert_eq!(body["error"], json!({ "type": "rate_limit_error", "message": "this key may send 1 requests at once" }));
    assert_eq!(ask(&world, "k-one", &json!({})).await.status(), 429, "before the body is looked at (M1)");
    // What costs no account has no limit, and other keys have their own.
    assert_eq!(status(&world.http, &world.listening.address().to_string(), "k-one").await, 200);
    assert_eq!(ask(&world, "k-free", &base()).await.status(), 200);
    let shown = || {
        let status = world.gateway.status();
        assert_eq!(status.keys_total, 3);
        let keys = status.keys.iter().map(|key| (key.name.to_string(), (key.in_flight, key.requests, key.refused)));
        keys.collect::<BTreeMap<_, _>>()
    };
    assert_eq!((shown()["one"], shown()["free"]), ((1, 1, 2), (0, 1, 0)));
    drop(held);
    let began = Instant::now();
    while shown()["one"].0 > 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "the place is free when its client is gone");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask(&world, "k-one", &base()).await.status(), 200);
    // A request that is wrong gives its place back, too.
    assert_eq!(ask(&world, "k-one", &json!({})).await.status(), 400);
    assert_eq!(ask(&world, "k-one", &base()).await.status(), 200);

    for expected in [200, 200, 429] {
        let answer = ask(&world, "k-slow", &base()).await;
        assert_eq!(answer.status(), expected);
        let wait = answer.headers().get("retry-after").map(|wait| wait.to_str().unwrap().parse::<u64>().unwrap());
        assert!(if expected == 429 { (25..=30).contains(&wait.unwrap()) } else { wait.is_none() }, "{wait:?}");
    }
    let metrics = world.gateway.metrics();
    for line in [
        "kiro_client_key_requests_total{key=\"slow\"} 2",
        "kiro_client_key_refused_total{key=\"slow\",limit=\"rpm\"} 1",
        "kiro_client_key_refused_total{key=\"one\",limit=\"max_inflight\"} 2",
        "kiro_client_key_refused_total{key=\"other\",limit=\"rpm\"} 0",
        "kiro_client_key_requests_total{key=\"other\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    assert!(!metrics.contains(&hex("k-slow")));
    assert!(!serde_json::to_string(&world.gateway.status()).unwrap().contains(&hex("k-slow")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_name_a_hundred_keys_and_no_more_m88() {
    let folder = tempfile::tempdir().unwrap();
    let records: Vec<Value> = (0..103).map(|n| record(&format!("n{n}"), &format!("k{n}"), &json!({}))).collect();
    let (world, _) = world(folder.path(), &records).await;
    for n in 0..103 {
        assert_eq!(ask(&world, &format!("k{n}"), &json!({})).await.status(), 400);
    }
    let metrics = world.gateway.metrics();
    let series = metrics.lines().filter(|line| line.starts_with("kiro_client_key_requests_total{")).count();
    assert_eq!(series, 101);
    assert!(metrics.contains("kiro_client_key_requests_total{key=\"other\"} 3"), "{metrics}");
    assert_eq!((world.gateway.status().keys.len(), world.gateway.status().keys_total), (100, 103));
}

/// The key that opens counts, wherever else the client put another text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_of_two_keys_never_share_an_id_tr48() {
    let folder = tempfile::tempdir().unwrap();
    let records = [record("a", "k-a", &json!({})), record("b", "k-b", &json!({}))];
    let (world, _) = world(folder.path(), &records).await;
    let mut ids = Vec::new();
    for (place, junk) in [("k-a", None), ("k-b", None), ("k-a", Some("junk")), ("k-b", Some("junk")), ("k-a", None)] {
        let asked = world.http.post(world.url("/v1/messages")).header("authorization", format!("Bearer {place}"));
        let asked = match junk {
            Some(junk) => asked.header("x-api-key", junk),
            None => asked,
        };
        assert_eq!(asked.body(base().to_string()).send().await.unwrap().status(), 200);
        let stats = world.simulated.control().stats_with_bodies();
        let chats = stats["last"].as_array().unwrap().iter().rev();
        let body = chats.filter_map(|call| call["body"].as_str()).find(|body| body.contains("\"conversationState\""));
        let body: Value = serde_json::from_str(body.unwrap()).unwrap();
        ids.push(body["conversationState"]["conversationId"].as_str().unwrap().to_owned());
    }
    assert_ne!(ids[0], ids[1]);
    assert_eq!([&ids[0], &ids[1], &ids[0]], [&ids[2], &ids[3], &ids[4]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_names_the_key_and_a_broken_file_changes_nothing_r108() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    write(&path, &[record("ci-runner", "k-1", &json!({ "rpm": 1 }))]);
    let server = Keys::file(&path).serve(&[]);
    assert_eq!(server.ask("k-1", &base()).await.status(), 200);
    assert_eq!(server.ask("k-1", &base()).await.status(), 429);
    let line = server.line("request", |line| line["message"] == "request");
    assert_eq!((&line["key"], &line["status"]), (&json!("ci-runner"), &json!(200)));
    let line = server.line("turned away", |line| line["message"] == "turned away");
    assert_eq!((&line["key"], &line["status"]), (&json!("ci-runner"), &json!(429)));

    std::fs::write(&path, json!({ "keys": [{ "name": "ci-runner", "sha256": "no" }] }).to_string()).unwrap();
    let said = server.line("not replaced", |line| line["message"].as_str().is_some_and(|m| m.contains("not replaced")));
    let error = said["error"].as_str().unwrap();
    assert!(error.contains("keys.json: keys[0]: sha256: must be 64") && error.contains("keys add NAME"), "{error}");
    assert_eq!(status(&client(), &server.address(), "k-1").await, 200, "the last good keys stay");
    write(&path, &[record("next", "k-2", &json!({}))]);
    becomes(&client(), &server.address(), "k-2", 200).await;
    assert_eq!(status(&client(), &server.address(), "k-1").await, 401);
    let lines = server.lines().join("\n");
    assert_eq!(lines.matches("not replaced").count(), 1);
    assert!(!lines.contains(&hex("k-1")) && !lines.contains("\"k-1\""), "{lines}");

    let mut refused = Server::spawn(&["--api-keys-file", folder.path().join("none.json").to_str().unwrap()], &[]);
    assert_eq!(refused.ended(), 2);
    let said = refused.lines().join("\n");
    assert!(said.contains("KIRO_API_KEYS_FILE") && said.contains("none.json") && said.contains("keys add"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_hash_changes_nothing_and_is_named_r109() {
    let redis = RedisServer::start();
    let mut connection = redis.connection();
    add_account(&mut connection, "aiclient:", 0, &social("access-1", FAR));
    let keys = Keys::redis(&redis);
    let key = keys.add("a");
    let server = keys.serve(&[]);
    let (address, http) = (server.address(), client());
    becomes(&http, &address, &key, 200).await;
    connection.hset::<_, _, _, ()>(HASH, "b", r#"{"sha256":"SECRET"}"#).unwrap();
    let said = server.line("bad", |line| line["problem"].is_string());
    assert!(said["problem"].as_str().unwrap().starts_with("field b: sha256: "), "{said}");
    assert!(said["message"].as_str().unwrap().contains("keys remove"), "{said}");
    assert_eq!(status(&http, &address, &key).await, 200);
    let refused = keys.refused(1, &["keys", "list"]);
    assert!(refused.contains(HASH) && refused.contains("field b: sha256") && !refused.contains("SECRET"), "{refused}");
    keys.done(&["keys", "remove", "b"]);
    server.line("good again", |line| line["message"] == "the store's client keys are good again");
    // Not a hash at all.
    connection.del::<_, ()>(HASH).unwrap();
    connection.set::<_, _, ()>(HASH, "text").unwrap();
    server.line("wrong type", |line| line["problem"].as_str().is_some_and(|p| p.contains("WRONGTYPE")));
    assert_eq!(status(&http, &address, &key).await, 200);
    assert!(!server.lines().join("\n").contains("SECRET"));
}

#[test]
fn keys_are_kept_in_a_file_of_their_owner_r108() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new").join("keys.json");
    let keys = Keys::file(&path);
    let ends = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(48)).to_string();
    let key = keys.done(&["keys", "add", "alice", "--expires", &ends, "--max-inflight", "4", "--rpm", "60"]);
    assert!(key.starts_with("sk-kiro-") && key.trim().len() == 8 + 64 && key.ends_with('\n'), "{key}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&hex(key.trim())) && !text.contains(key.trim()), "{text}");
    // Other members stay, and --file beats the environment.
    let mut document: Value = serde_json::from_str(&text).unwrap();
    document["ours"] = json!(1);
    document["keys"][0]["team"] = json!("x");
    std::fs::write(&path, document.to_string()).unwrap();
    let elsewhere = Keys { environment: vec![("KIRO_API_KEYS_FILE".to_owned(), "/nowhere/keys.json".to_owned())] };
    let at = ["keys", "--file", path.to_str().unwrap()];
    let made = elsewhere.json(&[&at[..], &["add", "bob", "--expires", "30d"]].concat());
    assert!(made["key"].as_str().unwrap().starts_with("sk-kiro-") && made["state"] == "valid", "{made}");
    assert_eq!(made["place"], path.to_str().unwrap());
    keys.done(&["keys", "disable", "bob"]);
    let list = keys.json(&["keys", "list"]);
    assert_eq!(list["keys"][0]["max_inflight"], 4);
    assert_eq!((&list["keys"][1]["name"], &list["keys"][1]["state"]), (&json!("bob"), &json!("disabled")));
    let table = keys.done(&["keys", "list"]);
    assert!(table.starts_with("NAME") && table.contains("2 keys in"), "{table}");
    for shown in [list.to_string(), table] {
        assert!(!shown.contains(&hex(key.trim())), "{shown}");
    }
    keys.done(&["keys", "enable", "bob"]);
    let store = format!("file:{}", folder.path().join("pool.json").display());
    let doctor = keys.run(&["doctor", "--store", &store, "--upstream", "simulator"]);
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert!(said.contains("2 keys, 2 valid") && said.contains("1 end within 7 days (alice)"), "{said}");
    assert!(said.contains("only named keys are right"), "{said}");
    // A start would end, or nobody would get in.
    let wrong = |file: &Path| {
        let file = file.to_str().unwrap();
        let doctor = keys.run(&["doctor", "--store", &store, "--upstream", "simulator", "--api-keys-file", file]);
        assert_eq!(doctor.status.code(), Some(1));
        String::from_utf8(doctor.stdout).unwrap()
    };
    let said = wrong(&folder.path().join("missing.json"));
    assert!(said.contains("✗  client keys") && said.contains("isn't there: the server won't start"), "{said}");
    let dead = folder.path().join("dead.json");
    write(&dead, &[record("old", "k", &json!({ "expires": "2020-01-01T00:00:00Z" }))]);
    let said = wrong(&dead);
    assert!(said.contains("1 key, 0 valid") && said.contains("no named key is valid: nobody is served"), "{said}");
    keys.done(&["keys", "remove", "bob"]);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"ours\": 1") && text.contains("\"team\": \"x\"") && !text.contains("bob"), "{text}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    assert!(keys.refused(1, &["keys", "add", "alice"]).contains("called alice already"));
    assert!(keys.refused(1, &["keys", "remove", "bob"]).contains("no such key"));
    assert!(keys.refused(2, &["keys", "add", "a b"]).contains("NAME: must be"));
    assert!(keys.refused(2, &["keys", "add", "c", "--expires", "2020-01-01T00:00:00Z"]).contains("over already"));
    assert!(keys.refused(2, &["keys", "add", "c", "--expires", "soon"]).contains("such as 90d"));
    let none = Keys { environment: vec![("KIRO_STORE".to_owned(), "file:pool.json".to_owned())] };
    assert!(none.refused(2, &["keys", "list"]).contains("--file or KIRO_API_KEYS_FILE"));
    std::fs::write(&path, "{ broken").unwrap();
    assert!(keys.refused(1, &["keys", "add", "d"]).contains("keys.json: is not JSON (line 1"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{ broken");
}

#[test]
fn keys_in_redis_leave_the_neighbours_alone_r109() {
    let redis = RedisServer::start();
    let mut connection = redis.connection();
    add_account(&mut connection, "aiclient:", 0, &social("access-1", FAR));
    connection.set::<_, _, ()>("aiclient:config", r#"{"REQUIRED_API_KEY":"single"}"#).unwrap();
    let all = |connection: &mut redis::Connection| {
        let names: Vec<String> = connection.keys("*").unwrap();
        let dumps = names.into_iter().filter(|name| name != HASH);
        dumps.map(|name| (name.clone(), redis::cmd("DUMP").arg(&name).query::<Vec<u8>>(connection).unwrap())).collect()
    };
    let before: BTreeMap<String, Vec<u8>> = all(&mut connection);
    let keys = Keys::redis(&redis);
    let key = keys.add("alice");
    let text: String = connection.hget(HASH, "alice").unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({ "sha256": hex(&key), "enabled": true }));
    connection.hset::<_, _, _, ()>(HASH, "alice", format!(r#"{{"sha256":"{}","x":1.50}}"#, hex(&key))).unwrap();
    keys.done(&["keys", "disable", "alice"]);
    let text: String = connection.hget(HASH, "alice").unwrap();
    assert_eq!(text, format!(r#"{{"sha256":"{}","x":1.50,"enabled":false}}"#, hex(&key)));
    assert_eq!(keys.json(&["keys", "list"])["place"], HASH);
    assert!(keys.refused(1, &["keys", "add", "alice"]).contains("called alice already"));
    keys.done(&["keys", "enable", "alice"]);
    keys.done(&["keys", "remove", "alice"]);
    assert!(keys.refused(1, &["keys", "enable", "alice"]).contains("no such key"));
    assert_eq!(all(&mut connection), before);
}
