//! Log lines: the members of docs/operations.md and no others, one line for each event, nothing secret at any level.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::place::{FAR, Server, add_account, client, scene, social};
use crate::redis_server::RedisServer;
use crate::settings::with_stream;
use crate::world::base;

const ALWAYS: &[&str] = &["timestamp", "level", "target", "message"];
/// As docs/operations.md lists them.
const REQUEST: &[&str] = &[
    "request_id",
    "account",
    "model",
    "kiro_model",
    "stream",
    "status",
    "stop_reason",
    "affinity",
    "shape",
    "attempts",
    "input_tokens",
    "output_tokens",
    "credits",
    "ttfe_ms",
    "duration_ms",
    "bytes",
];

fn members(line: &Value) -> BTreeSet<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

fn is_request(line: &Value) -> bool {
    line["message"] == "request"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_one_line_with_these_members() {
    let redis = RedisServer::start();
    add_account(&mut redis.connection(), "aiclient:", 0, &social("access-1", FAR));
    let server = Server::start(&[], &[("REDIS_URL", &redis.url()), ("KIRO_API_KEY", "k-1")]);
    while client().get(format!("http://{}/health", server.address())).send().await.unwrap().status() != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let asked = client().post(format!("http://{}/v1/messages?beta=true", server.address()));
    let asked = asked.header("x-api-key", "k-1").header("x-request-id", "from-the-client").body(base().to_string());
    let id = asked.send().await.unwrap().headers()["request-id"].to_str().unwrap().to_owned();
    let line = server.line("request", is_request);
    // It names the simulator as every line does while there is one, and the client's own id.
    let wanted = [ALWAYS, REQUEST, &["upstream", "client_request_id"]].concat().into_iter().collect();
    assert_eq!(members(&line), wanted, "{line}");
    assert_eq!(line["request_id"], id);
    assert_eq!((&line["account"], &line["status"]), (&json!("00000000"), &json!(200)));
    assert_eq!((&line["stop_reason"], &line["stream"]), (&json!("end_turn"), &json!(false)));
    assert_eq!((&line["upstream"], &line["client_request_id"]), (&json!("simulator"), &json!("from-the-client")));
    assert!(line["input_tokens"].as_u64() > Some(0) && line["output_tokens"].as_u64() > Some(0), "{line}");
    assert_eq!(line["credits"], json!(0.002), "TU9: {line}");
    assert_eq!(server.lines().iter().filter(|text| text.contains(&id)).count(), 1);

    // A stream that fails says why; one whose client went away is 499 (M10); a refused one never had an account.
    server.ask("k-1", &with_stream(&json!({ "text": "a", "end": "cut" }))).await.text().await.unwrap();
    let failed = server.line("failed", |line| is_request(line) && line["code"].is_string());
    assert_eq!(
        (&failed["status"], &failed["code"], &failed["stream"]),
        (&json!(500), &json!("KIRO_UPSTREAM"), &json!(true))
    );
    let mut left = server.ask("k-1", &with_stream(&json!({ "text": "a", "end": "hang" }))).await;
    left.chunk().await.unwrap();
    drop(left);
    server.line("left", |line| is_request(line) && line["status"] == 499);
    server.ask("k-1", &json!({ "model": "claude-sonnet-4-5" })).await;
    let refused = server.line("refused", |line| is_request(line) && line["status"] == 400);
    assert_eq!((&refused["code"], &refused["attempts"]), (&json!("KIRO_INVALID_REQUEST"), &json!(0)));
    server.ask("wrong", &base()).await;
    let turned = server.line("turned away", |line| line["message"] == "turned away");
    assert_eq!((&turned["route"], &turned["status"]), (&json!("messages"), &json!(401)));
    client().get(format!("http://{}/secret/path", server.address())).send().await.unwrap();
    server.line("unknown path", |line| line["message"] == "turned away" && line["status"] == 404);
    assert!(!server.lines().join("\n").contains("secret/path"));
}

/// The guide for who comes from the predecessor names members that are there.
#[test]
fn the_migration_guide_names_members_of_the_request_line() {
    let guide = include_str!("../../docs/migration-go.md");
    let table = guide.split_once("| for | here |").unwrap().1.split_once("\n\n").unwrap().0;
    let is_member = |word: &&str| word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
    let named: BTreeSet<&str> = table.split('`').skip(1).step_by(2).filter(is_member).collect();
    let known = [ALWAYS, REQUEST, &["client_request_id", "code", "fault"]].concat();
    let unknown: Vec<_> = named.iter().filter(|name| !known.contains(name)).collect();
    assert!(named.len() > 12 && unknown.is_empty(), "{unknown:?} of {named:?}");
}

/// Start-up, refresh, ejection, Redis lost and found: one line each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_one_line() {
    let mut redis = RedisServer::start();
    let mut connection = redis.connection();
    add_account(&mut connection, "aiclient:", 0, &social("old", "2020-01-01T00:00:00.000Z"));
    add_account(&mut connection, "aiclient:", 1, &social("sim-suspended", FAR));
    let server = Server::start(
        &[],
        &[("REDIS_URL", &redis.url()), ("KIRO_ACCOUNT_CACHE_TTL", "200ms"), ("KIRO_AFFINITY", "off")],
    );
    let listening = server.line("listening", |line| line["message"] == "listening");
    assert_eq!(
        (&listening["version"], &listening["upstream"]),
        (&json!(env!("CARGO_PKG_VERSION")), &json!("simulator"))
    );
    // The background refresh finds the expired token; two requests find the suspended account.
    let is = |part: &'static str, account: &'static str| {
        move |line: &Value| {
            line["message"].as_str().is_some_and(|text| text.contains(part)) && line["account"] == account
        }
    };
    server.line("refreshed", is("token refreshed", "00000000"));
    for _ in 0..4 {
        server.ask("", &base()).await.text().await.unwrap();
    }
    server.line("ejected", is("ejected", "00000001"));
    let lost = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("the store is lost"));
    let found = |line: &Value| line["message"] == "the store is back";
    drop(connection);
    redis.shutdown_save();
    let (from, _) = server.lines_from(0, "lost", lost);
    redis.restart();
    server.lines_from(from, "found again", found);
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (what, count, is) in [("lost", 1, &lost as &dyn Fn(&Value) -> bool), ("found", 1, &found)] {
        let lines = server.lines();
        let all = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|line| is(line));
        assert_eq!(all.count(), count, "{what}:\n{}", lines.join("\n"));
    }
}

/// No prompt text, no token, no key, whatever the level (R6, case 48).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_logged_at_any_level_case_48() {
    let redis = RedisServer::start();
    let mut connection = redis.connection();
    let secrets = ["tkn-4711-a", "sim-403-invalid-token.tkn-4711-b", "sim-suspended.tkn-4711-c"];
    for (n, token) in secrets.iter().enumerate() {
        add_account(&mut connection, "aiclient:", n, &social(token, FAR));
    }
    let key = "client-key-4711";
    redis::cmd("SET")
        .arg("aiclient:config")
        .arg(json!({ "apiKey": key }).to_string())
        .query::<()>(&mut connection)
        .unwrap();
    let server =
        Server::start(&[], &[("REDIS_URL", &redis.url()), ("KIRO_LOG_LEVEL", "trace"), ("KIRO_AFFINITY", "off")]);
    while client().get(format!("http://{}/health", server.address())).send().await.unwrap().status() != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut prompt = scene(&json!({ "text": "answer-4711" }));
    prompt["system"] = json!("system-4711");
    prompt["tools"] =
        json!([{ "name": "tool_4711", "description": "described-4711", "input_schema": { "type": "object" } }]);
    for stream in [false, true, false, true] {
        prompt["stream"] = json!(stream);
        server.ask(key, &prompt).await.text().await.unwrap();
    }
    server.ask(key, &json!({ "model": "claude-sonnet-4-5", "max_tokens": 1, "messages": "prompt-4711" })).await;
    server.ask("wrong-key-4711", &prompt).await;
    // Each kind of line that could have named a secret was there to be read.
    for (what, is) in [
        (
            "an answer",
            (|line| is_request(line) && line["stream"] == false && line["status"] == 200) as fn(&Value) -> bool,
        ),
        ("a stream", |line| is_request(line) && line["stream"] == true && line["status"] == 200),
        ("a bad request", |line| is_request(line) && line["status"] == 400),
        ("a refreshed token", |line| line["message"] == "token refreshed"),
        ("a failed attempt", |line| line["message"] == "an attempt failed"),
        ("an ejected account", |line| line["message"] == "account ejected"),
        ("a wrong key", |line| line["message"] == "turned away"),
    ] {
        server.line(what, is);
    }
    for line in server.lines() {
        assert!(!line.contains("4711"), "{line}");
    }
}
