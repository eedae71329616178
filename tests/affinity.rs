//! Conversations through the real gateway, over real HTTP against the simulator and a real Redis: the account they stay
//! with, their ids, and what of their thinking goes upstream again (A119 to A133).
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "operations/place.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod place;
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kiro_messages::gateway::{Call, Gateway, client_key_hash};
use place::{Place, account_id, config, within_10_s};
use serde_json::{Value, json};
use world::with;

const TOKENS: [&str; 3] = ["access-1", "access-2", "access-3"];

/// A turn of a conversation: what the user said first, and how much was said since.
fn turn(first: &str, turn: usize) -> Value {
    let mut messages = vec![json!({ "role": "user", "content": first })];
    for n in 1..turn {
        messages.push(json!({ "role": "assistant", "content": format!("answer {n}") }));
        messages.push(json!({ "role": "user", "content": format!("more {n}") }));
    }
    with(json!({ "messages": messages }))
}

/// The access token and the body of the last call of upstream.
fn last(place: &Place) -> (String, Value) {
    seen(&place.last_request())
}

fn seen(request: &Value) -> (String, Value) {
    let bearer = request["headers"]["authorization"].as_str().unwrap();
    let body = serde_json::from_str(request["body"].as_str().unwrap()).unwrap();
    (bearer.strip_prefix("Bearer ").unwrap().to_owned(), body)
}

/// All chat calls that upstream still remembers, the newest last.
fn all(place: &Place) -> Vec<(String, Value)> {
    let stats = place.upstream.control().stats_with_bodies();
    let is_chat = |call: &&Value| call["body"].as_str().unwrap().contains("\"conversationState\"");
    stats["last"].as_array().unwrap().iter().filter(is_chat).map(seen).collect()
}

fn script(place: &Place, token: &str, scenarios: Value) {
    place.upstream.control().script(json!({ "token": token, "scenarios": scenarios })).unwrap();
}

/// Asks, and says which account answered.
async fn account_of(place: &Place, body: Value) -> String {
    place.ask(body).await.unwrap();
    last(place).0
}

fn affinity(gateway: &Gateway) -> BTreeMap<String, u64> {
    let text = gateway.metrics();
    let lines = text.lines().filter_map(|line| line.strip_prefix("kiro_affinity_total{result=\""));
    lines
        .map(|line| {
            let (result, count) = line.split_once("\"} ").unwrap();
            (result.to_owned(), count.parse().unwrap())
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn counts(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|(result, count)| ((*result).to_owned(), *count)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_get_conversations_evenly_and_each_stays_a119_r101_r36() {
    let place = Place::with(&TOKENS, &[]).await;
    let mut of_account = BTreeMap::<String, usize>::new();
    for conversation in 0..30 {
        let first = format!("conversation {conversation}");
        let home = account_of(&place, turn(&first, 1)).await;
        for n in 2..=5 {
            assert_eq!(account_of(&place, turn(&first, n)).await, home, "{first}, turn {n}");
        }
        *of_account.entry(home).or_default() += 1;
    }
    assert!(of_account.len() == 3 && of_account.values().all(|count| *count == 10), "{of_account:?}");
    assert_eq!(affinity(&place.gateway), counts(&[("home", 120), ("new", 30)]));
    // Turns draw no tickets: one block of 64 was enough for 30 conversations.
    let drawn: u64 =
        redis::cmd("GET").arg("aiclient:kiro:round-robin-counter").query(&mut place.redis.connection()).unwrap();
    assert!(drawn <= 128, "{drawn}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_moves_with_its_account_out_a120_r101() {
    let place = Place::with(&TOKENS, &[]).await;
    let home = account_of(&place, turn("a", 1)).await;
    assert_eq!(account_of(&place, turn("a", 2)).await, home);
    script(&place, &home, json!(["429-retry-after-1"]));
    place.ask(turn("a", 3)).await.unwrap();
    let calls: Vec<_> = all(&place).into_iter().map(|(token, _)| token).collect();
    let [.., refused, new] = &calls[..] else { panic!("{calls:?}") };
    assert!(*refused == home && *new != home, "{calls:?}");
    // Also when the old one is back.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    for n in 4..=5 {
        assert_eq!(account_of(&place, turn("a", n)).await, *new, "turn {n}");
    }
    assert_eq!(affinity(&place.gateway), counts(&[("home", 3), ("moved", 1), ("new", 1)]));
    // When the new one is out, the old one is no stranger.
    script(&place, new, json!(["429-retry-after-1"]));
    assert_eq!(account_of(&place, turn("a", 6)).await, home);
    assert_eq!(affinity(&place.gateway)["older"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_stays_when_only_a_limit_is_in_the_way_r101() {
    let place = Place::with(&TOKENS[..2], &[("KIRO_MAX_INFLIGHT_PER_ACCOUNT", "1")]).await;
    let home = account_of(&place, turn("a", 1)).await;
    script(&place, &home, json!([{ "text": "slow", "first_ms": 400 }]));
    let slow = tokio::spawn({
        let gateway = place.gateway.clone();
        async move { gateway.create(turn("a", 2).to_string().into(), Call::default()).await }
    });
    within_10_s("the home is at its limit", || place.calls(&home) == 2).await;
    let elsewhere = account_of(&place, turn("a", 3)).await;
    assert_ne!(elsewhere, home);
    slow.await.unwrap().unwrap();
    assert_eq!(account_of(&place, turn("a", 4)).await, home);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_share_a_conversation_through_redis_a121_r102() {
    let place = Place::with(&TOKENS, &[]).await;
    let other = || Gateway::start(config(&place.redis, &place.upstream, &[]));
    let ask = |gateway: Gateway, body: Value| async move {
        gateway.create(body.to_string().into(), Call::default()).await.unwrap();
    };
    let mut connection = place.redis.connection();
    let mut notes =
        || -> Vec<String> { redis::cmd("KEYS").arg("aiclient:kiro:affinity:*").query(&mut connection).unwrap() };
    let home = account_of(&place, turn("a", 1)).await;
    within_10_s("the note is written", || notes().len() == 1).await;
    let note = notes().remove(0);
    let hex = note.rsplit(':').next().unwrap();
    assert!(hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{note}");
    let (account, left): (String, i64) =
        redis::pipe().get(&note).ttl(&note).query(&mut place.redis.connection()).unwrap();
    let place_of_home = TOKENS.iter().position(|token| *token == home).unwrap();
    assert_eq!(account, account_id(place_of_home));
    assert!((3_590..=3_600).contains(&left), "{left}");

    let b = other().await.unwrap();
    let asked = |word: &str| -> u64 {
        let text: String = redis::cmd("INFO").arg("commandstats").query(&mut place.redis.connection()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{word}:calls=")));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    };
    // The background reads tokens once in 5 s; between two of these a request is quick.
    let gets = asked("get");
    ask(b.clone(), turn("a", 2)).await;
    assert_eq!(last(&place).0, home);
    assert!(asked("get") > gets, "the note was read");
    // From here on it knows: not read again, and the note may be gone.
    redis::cmd("DEL").arg(&note).query::<()>(&mut place.redis.connection()).unwrap();
    ask(b.clone(), turn("a", 3)).await;
    assert_eq!(last(&place).0, home);
    // A first turn asks nobody.
    assert_eq!(affinity(&b), counts(&[("home", 2)]));

    // Redis hangs: a ticket, and no second of waiting for it.
    let c = other().await.unwrap();
    place.redis.freeze();
    let began = Instant::now();
    ask(c.clone(), turn("a", 4)).await;
    let took = began.elapsed();
    place.redis.thaw();
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!(affinity(&c), counts(&[("new", 1)]));
    for gateway in [b, c] {
        gateway.close(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_secret_for_all_instances_of_a_redis_and_the_settings_own_r103_r102() {
    let place = Place::new(&[]).await;
    let other = Gateway::start(config(&place.redis, &place.upstream, &[])).await.unwrap();
    let secret = || -> Option<String> {
        redis::cmd("GET").arg("aiclient:kiro:id-secret").query(&mut place.redis.connection()).unwrap()
    };
    within_10_s("the secret is there", || secret().is_some()).await;
    let told = secret().unwrap();
    assert!(told.len() == 64 && told.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", told.len());
    let id_by = |gateway: Gateway| {
        let place = &place;
        async move {
            gateway.create(turn("a", 1).to_string().into(), Call::default()).await.unwrap();
            last(place).1["conversationState"]["conversationId"].clone()
        }
    };
    let (first, second) = (id_by(place.gateway.clone()).await, id_by(other.clone()).await);
    assert_eq!(first, second);
    // A set one needs no store, and is another one.
    let own = [("KIRO_ID_SECRET", "sixteen characters")];
    let a = Gateway::start(config(&place.redis, &place.upstream, &own)).await.unwrap();
    let b = Gateway::start(config(&place.redis, &place.upstream, &own)).await.unwrap();
    let (third, fourth) = (id_by(a.clone()).await, id_by(b.clone()).await);
    assert!(third == fourth && third != first);
    for gateway in [other, a, b] {
        gateway.close(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn off_is_strictly_by_ticket_a122_r101() {
    let place = Place::with(&TOKENS, &[("KIRO_AFFINITY", "off")]).await;
    let mut accounts = Vec::new();
    for n in 1..=6 {
        accounts.push(account_of(&place, turn("a", n)).await);
    }
    assert!(accounts[0] != accounts[1] && accounts[1] != accounts[2] && accounts[0] != accounts[2], "{accounts:?}");
    assert_eq!(accounts[..3], accounts[3..]);
    assert!(affinity(&place.gateway).is_empty());
    let notes: Vec<String> =
        redis::cmd("KEYS").arg("aiclient:kiro:affinity:*").query(&mut place.redis.connection()).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
}

/// The two ids of the last call.
fn ids(place: &Place) -> [String; 2] {
    let body = last(place).1;
    ["conversationId", "agentContinuationId"].map(|id| body["conversationState"][id].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_without_ids_gets_derived_ones_a124_tr48_tr49() {
    let place = Place::new(&[]).await;
    let ask = |body: Value, key: Option<&str>| {
        let call = Call { client_key: key.map(client_key_hash), ..Call::default() };
        let place = &place;
        async move {
            place.gateway.create(body.to_string().into(), call).await.unwrap();
            ids(place)
        }
    };
    let first = ask(turn("a", 1), Some("key-1")).await;
    assert_eq!(ask(turn("a", 2), Some("key-1")).await, first);
    for id in &first {
        assert!(id.len() == 36 && &id[14..15] == "4" && "89ab".contains(&id[19..20]), "{id}");
    }
    let mut seen = vec![first];
    for other in [ask(turn("a", 1), Some("key-2")).await, ask(turn("b", 1), Some("key-1")).await] {
        for one in &seen {
            assert!(one[0] != other[0] && one[1] != other[1]);
        }
        seen.push(other);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_ids_differ_each_time_a125_tr48_tr49() {
    let place = Place::new(&[("KIRO_CONVERSATION_ID", "random")]).await;
    let mut seen: Vec<[String; 2]> = Vec::new();
    for _ in 0..3 {
        place.ask(turn("a", 1)).await.unwrap();
        let other = ids(&place);
        assert!(seen.iter().all(|one| one[0] != other[0] && one[1] != other[1]), "{seen:?} {other:?}");
        seen.push(other);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_beginning_stays_byte_for_byte_a126_a127_tr46_tr47() {
    let place = Place::new(&[]).await;
    let body = |n: usize, changes: Value| {
        let mut body = turn("a", n);
        body["system"] = json!("You are \"terse\" <b>é</b>.");
        body["tools"] = json!([{ "name": "f", "input_schema": { "type": "object" } }]);
        for (key, value) in changes.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    let history = |text: &str| -> String {
        let at = text.find("\"history\":[").unwrap();
        text[at..].to_owned()
    };
    let ask = |body: Value| {
        let place = &place;
        async move {
            place.ask(body).await.unwrap();
            place.last_request()["body"].as_str().unwrap().to_owned()
        }
    };
    let one = ask(body(1, json!({}))).await;
    let pair = history(&one);
    let pair = &pair[..pair.find("]").unwrap()];
    assert!(pair.contains("I will follow these instructions."), "{pair}");
    let two = ask(body(2, json!({ "tool_choice": { "type": "any" } }))).await;
    assert!(history(&two).starts_with(pair), "{pair}\n{two}");
    let current = |text: &str| -> String {
        let body: Value = serde_json::from_str(text).unwrap();
        body["conversationState"]["currentMessage"]["userInputMessage"]["content"].as_str().unwrap().to_owned()
    };
    assert_eq!(current(&one), "a");
    assert_eq!(current(&two), "more 1\n\nYou must call at least one of the tools in your next reply.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_header_of_a_gateway_in_front_counts_a183_tr48() {
    let place = Place::with(&TOKENS, &[]).await;
    let ask = |first: &'static str, session: &'static str| {
        let call = Call { gateway_session: Some(session.to_owned()), ..Call::default() };
        let place = &place;
        async move {
            place.gateway.create(turn(first, 1).to_string().into(), call).await.unwrap();
            last(place)
        }
    };
    let (one, first) = ask("a", "abc-12345").await;
    let (other, second) = ask("b", "abc-12345").await;
    let id = &first["conversationState"]["conversationId"];
    assert_eq!(*id, second["conversationState"]["conversationId"]);
    assert!(id.as_str().unwrap().len() == 36 && &id.as_str().unwrap()[14..15] == "4", "{id}");
    assert!(!place.last_request()["body"].as_str().unwrap().contains("abc-12345"));
    // Two keys: two conversations, which two accounts get.
    assert_ne!(one, other);
    assert_eq!(affinity(&place.gateway), counts(&[("new", 2)]));
}

/// A second turn with a thought of this signature.
fn thought(first: &str, signature: &str) -> Value {
    with(json!({
        "model": "claude-opus-5",
        "thinking": { "type": "adaptive" },
        "messages": [
            { "role": "user", "content": first },
            { "role": "assistant", "content": [
                { "type": "thinking", "thinking": "hm", "signature": signature },
                { "type": "text", "text": "b" },
            ] },
            { "role": "user", "content": "more" },
        ],
    }))
}

fn thinking(first: &str) -> Value {
    with(json!({
        "model": "claude-opus-5",
        "thinking": { "type": "adaptive" },
        "messages": [{ "role": "user", "content": first }],
    }))
}

fn reasoning(body: &Value) -> usize {
    body.to_string().matches("reasoningContent").count()
}

fn reasonings(gateway: &Gateway) -> [u64; 3] {
    let text = gateway.metrics();
    ["sent", "left_out", "refused"].map(|result| {
        let name = format!("kiro_reasoning_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thinking_goes_back_to_the_account_that_made_it_a128_tr44_tr45() {
    let place = Place::with(&TOKENS[..2], &[]).await;
    for token in &TOKENS[..2] {
        script(&place, token, json!([{ "thinking": "hm", "signature": format!("sig-{token}"), "text": "b" }]));
    }
    let home = account_of(&place, thinking("a")).await;
    let signature = format!("sig-{home}");
    place.ask(thought("a", &signature)).await.unwrap();
    let (token, body) = last(&place);
    assert_eq!((token, reasoning(&body)), (home.clone(), 1), "{body}");
    assert_eq!(
        body["conversationState"]["history"][1]["assistantResponseMessage"]["reasoningContent"],
        json!({ "reasoningText": { "text": "hm", "signature": signature } })
    );
    // The home is out: the other one gets none of it, and no tags instead.
    let calls = all(&place).len();
    script(&place, &home, json!(["429-retry-after-1"]));
    place.ask(thought("a", &signature)).await.unwrap();
    let seen = all(&place).split_off(calls);
    let sent: Vec<_> = seen.iter().map(|(token, body)| (*token == home, reasoning(body))).collect();
    assert_eq!(sent, [(true, 1), (false, 0)]);
    assert!(!seen[1].1.to_string().contains("<thinking>"), "{}", seen[1].1);
    // It is the home now, and the signature is still the other one's.
    place.ask(thought("a", &signature)).await.unwrap();
    let (token, body) = last(&place);
    assert!(token != home && reasoning(&body) == 0, "{body}");
    assert_eq!(reasonings(&place.gateway), [2, 1, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thinking_of_another_model_or_an_unknown_maker_stays_here_tr44() {
    let place = Place::with(&TOKENS[..1], &[]).await;
    script(&place, TOKENS[0], json!([{ "thinking": "hm", "signature": "sig-1", "text": "b" }]));
    place.ask(thinking("a")).await.unwrap();
    let mut other = thought("a", "sig-1");
    other["model"] = json!("claude-opus-4-8");
    place.ask(other).await.unwrap();
    assert_eq!(reasoning(&last(&place).1), 0, "another model");
    place.ask(thought("new", "sig-2")).await.unwrap();
    assert_eq!(reasoning(&last(&place).1), 0, "nobody knows who made it, nor the conversation");
    place.ask(thought("a", "sig-2")).await.unwrap();
    assert_eq!(reasoning(&last(&place).1), 1, "nobody knows who made it, but the account is the home");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_signature_is_left_out_and_stays_out_a130_k130() {
    let place = Place::with(&TOKENS[..1], &[]).await;
    place.ask(thinking("a")).await.unwrap();
    script(&place, TOKENS[0], json!(["thinking-signature"]));
    let calls = all(&place).len();
    place.ask(thought("a", "sig-of-nobody")).await.unwrap();
    let sent: Vec<_> = all(&place)[calls..].iter().map(|(_, body)| reasoning(body)).collect();
    assert_eq!(sent, [1, 0]);
    place.ask(thought("a", "sig-of-nobody")).await.unwrap();
    let sent: Vec<_> = all(&place)[calls + 2..].iter().map(|(_, body)| reasoning(body)).collect();
    assert_eq!(sent, [0], "at once without");
    assert_eq!(reasonings(&place.gateway), [1, 1, 1]);
    // The account had no part in it.
    let record: String = redis::cmd("HGET")
        .arg("aiclient:pools:claude-kiro-oauth")
        .arg(account_id(0))
        .query(&mut place.redis.connection())
        .unwrap();
    assert!(!record.contains("\"isHealthy\":false") && !record.contains("lastErrorMessage\":\""), "{record}");
}

/// A home that only the other instance knows gets its thoughts back too (R102, TR45).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_known_elsewhere_gets_unknown_signatures_r102_tr44() {
    let place = Place::with(&TOKENS, &[]).await;
    let home = account_of(&place, thinking("a")).await;
    let notes = || -> Vec<String> {
        redis::cmd("KEYS").arg("aiclient:kiro:affinity:*").query(&mut place.redis.connection()).unwrap()
    };
    within_10_s("the note is written", || notes().len() == 1).await;
    let other = Gateway::start(config(&place.redis, &place.upstream, &[])).await.unwrap();
    other.create(thought("a", "sig-1").to_string().into(), Call::default()).await.unwrap();
    let (token, body) = last(&place);
    assert_eq!((token, reasoning(&body)), (home, 1), "{body}");
    other.close(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_points_stand_on_messages_a131_tr50() {
    let place = Place::new(&[("KIRO_CACHE_POINTS", "client")]).await;
    let mark = json!({ "type": "ephemeral" });
    place
        .ask(with(json!({
            "system": [{ "type": "text", "text": "S", "cache_control": mark }],
            "tools": [{ "name": "f", "input_schema": { "type": "object" }, "cache_control": mark }],
            "messages": [{ "role": "user", "content": [{ "type": "text", "text": "a", "cache_control": mark }] }],
        })))
        .await
        .unwrap();
    let state = &last(&place).1["conversationState"];
    let point = json!({ "type": "default" });
    let current = &state["currentMessage"]["userInputMessage"];
    assert_eq!(state["history"][0]["userInputMessage"]["cachePoint"], point);
    assert_eq!(current["cachePoint"], point);
    assert!(!current["userInputMessageContext"]["tools"].to_string().contains("cachePoint"), "{current}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_cache_points_are_left_out_and_stay_out_a132_k131() {
    let place = Place::new(&[("KIRO_CACHE_POINTS", "auto")]).await;
    script(&place, "access-1", json!(["400"]));
    for _ in 0..2 {
        place.ask(turn("a", 2)).await.unwrap();
    }
    let points: Vec<_> = all(&place).iter().map(|(_, body)| body.to_string().matches("cachePoint").count()).collect();
    assert_eq!(points, [1, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_thought_without_text_is_left_out_and_stays_out_a188_tr44() {
    let place = Place::with(&TOKENS[..1], &[]).await;
    place.ask(thinking("a")).await.unwrap();
    let mut omitted = thought("a", "sig-1");
    omitted["messages"][1]["content"][0]["thinking"] = json!("");
    script(&place, TOKENS[0], json!(["400"]));
    let calls = all(&place).len();
    for _ in 0..2 {
        place.ask(omitted.clone()).await.unwrap();
    }
    let sent: Vec<_> = all(&place)[calls..].iter().map(|(_, body)| reasoning(body)).collect();
    assert_eq!(sent, [1, 0, 0]);
    // What has a text still goes.
    place.ask(thought("a", "sig-1")).await.unwrap();
    assert_eq!(reasoning(&last(&place).1), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_improper_request_without_cache_points_is_sent_once_a133_k131() {
    for points in ["off", "client"] {
        let place = Place::new(&[("KIRO_CACHE_POINTS", points)]).await;
        script(&place, "access-1", json!(["400", "400", "400"]));
        assert!(place.ask(turn("a", 2)).await.is_err());
        assert_eq!(place.calls("access-1"), 1, "{points}");
    }
}
