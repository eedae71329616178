//! Messages with Anthropic's web search, from the client to the simulated Kiro and back: rounds, the search's own calls,
//! its faults.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/log.rs"]
mod log;
#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use world::{Reply, World, events, with};

const TOKENS: [&str; 2] = ["s1", "s2"];
const OFF: (&str, &str) = ("KIRO_AFFINITY", "off");

/// A tool event of upstream's.
fn search(id: &str, query: &str) -> Value {
    json!({ "name": "web_search", "id": format!("tooluse_{id}"), "input": { "query": query } })
}

/// The model calls these tools, then says `Found.`.
fn model(world: &World, tools: Value) {
    let rules = json!([
        { "when": { "call": "chat", "round": 1 }, "tools": tools },
        { "when": { "call": "chat", "round": 2 }, "text": "Found." },
    ]);
    world.simulated.control().world(json!({ "rules": rules })).unwrap();
}

fn of(world: &World, token: &str, change: Value) {
    world.simulated.control().script(json!({ "token": token, "world": change })).unwrap();
}

/// A request with the tool, changed by `options`, and a text of its own.
fn request(text: &str, options: Value) -> Value {
    let mut tool = json!({ "type": "web_search_20250305", "name": "web_search" });
    for (key, value) in options.as_object().unwrap() {
        tool[key] = value.clone();
    }
    with(json!({ "max_tokens": 20_000, "tools": [tool], "messages": [{ "role": "user", "content": text }] }))
}

struct Seen {
    token: String,
    target: String,
    headers: Value,
    body: Value,
}

/// Upstream's calls, conversations and searches apart, in order.
fn calls(world: &World) -> (Vec<Seen>, Vec<Seen>) {
    let stats = world.simulated.control().stats_with_bodies();
    let (mut chats, mut searches) = (Vec::new(), Vec::new());
    for call in stats["last"].as_array().unwrap() {
        let Ok(body) = serde_json::from_str::<Value>(call["body"].as_str().unwrap()) else { continue };
        let headers = call["headers"].clone();
        let token = headers["authorization"].as_str().unwrap_or_default().replace("Bearer ", "");
        let target = call["target"].as_str().unwrap().to_owned();
        let list = match (body.get("conversationState"), body.get("method")) {
            (Some(_), _) => &mut chats,
            (_, Some(_)) => &mut searches,
            _ => continue,
        };
        list.push(Seen { token, target, headers, body });
    }
    (chats, searches)
}

fn tokens(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| &*seen.token).collect()
}

fn current(chat: &Seen) -> &Value {
    &chat.body["conversationState"]["currentMessage"]["userInputMessage"]
}

fn result_text(message: &Value, n: usize) -> &str {
    message["userInputMessageContext"]["toolResults"][n]["content"][0]["text"].as_str().unwrap_or_default()
}

/// The `type` of each block of the message.
fn kinds(message: &Value) -> Vec<&str> {
    message["content"].as_array().unwrap().iter().map(|block| block["type"].as_str().unwrap()).collect()
}

/// The error codes of the blocks that are results; empty for hits.
fn codes(message: &Value) -> Vec<&str> {
    let results =
        message["content"].as_array().unwrap().iter().filter(|block| block["type"] == "web_search_tool_result");
    results.map(|block| block["content"]["error_code"].as_str().unwrap_or_default()).collect()
}

/// The message, which must be whole.
#[track_caller]
fn whole(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

const FOUND: [&str; 3] = ["server_tool_use", "web_search_tool_result", "text"];

#[tokio::test]
async fn a_message_goes_on_behind_its_search_in_both_shapes_a134_a159_a139_k132_k7() {
    for shape in ["q", "runtime"] {
        let world = World::with_tokens(&["s1"], &[("KIRO_UPSTREAM_API", shape)]).await;
        model(&world, json!([search("A1", "rust")]));
        let mut asked = request("Perform a web search for the query: rust", json!({ "max_uses": 8 }));
        asked["tool_choice"] = json!({ "type": "tool", "name": "web_search" });
        let message = whole(&world.messages(&asked).await);
        assert_eq!(kinds(&message), FOUND, "{shape}");
        assert_eq!((&message["stop_reason"], &message["content"][2]["text"]), (&json!("end_turn"), &json!("Found.")));
        let hits = message["content"][1]["content"].as_array().unwrap();
        assert_eq!((hits.len(), &hits[0]["page_age"]), (3, &json!("October 5, 2026")));
        assert_eq!(message["usage"]["server_tool_use"]["web_search_requests"], 1);

        let text = world.gateway.metrics();
        assert!(text.contains("kiro_web_search_total{outcome=\"ok\"} 1"), "{text}");
        assert!(text.contains("kiro_web_search_seconds_count 1"));

        let (chats, searches) = calls(&world);
        assert_eq!((chats.len(), searches.len()), (2, 1));
        let call = &searches[0];
        assert_eq!(call.body["params"], json!({ "name": "web_search", "arguments": { "query": "rust" } }));
        let id = call.body["id"].as_str().unwrap();
        assert!(id.starts_with("web_search_tooluse_") && id.split('_').count() == 6, "{id}");
        let arn = &call.headers["x-amzn-kiro-profile-arn"];
        assert!(arn.is_string());
        match shape {
            "q" => assert_eq!((call.target.as_str(), call.body.get("profileArn")), ("/mcp", None)),
            _ => {
                assert_eq!(call.headers["x-amz-target"], "KiroRuntimeService.InvokeMCP");
                assert_eq!((call.target.as_str(), &call.body["profileArn"]), ("/", arn));
            }
        }
        assert!(current(&chats[0])["content"].as_str().unwrap().contains("You must call the tool"));
        assert_eq!(current(&chats[1])["content"], "Tool results provided.");
        let live = result_text(current(&chats[1]), 0).to_owned();
        assert!(
            live.starts_with("Web search results for \"rust\":\n\n[1] rust (1)\nhttps://site1.test/rust"),
            "{live}"
        );

        // The next turn has the same text in its history.
        let mut next = asked.clone();
        let more = [
            json!({ "role": "assistant", "content": message["content"] }),
            json!({ "role": "user", "content": "more" }),
        ];
        next["messages"].as_array_mut().unwrap().extend(more);
        whole(&world.messages(&next).await);
        let (chats, _) = calls(&world);
        let history = chats[2].body["conversationState"]["history"].as_array().unwrap();
        assert_eq!(result_text(&history[2]["userInputMessage"], 0), live);
    }
}

#[tokio::test]
async fn a_stream_shows_the_search_while_it_runs_a134_a142() {
    let world = World::with_tokens(&["s1"], &[]).await;
    model(&world, json!([search("A1", "rust"), search("B2", "go")]));
    let mut asked = request("q", json!({}));
    asked["stream"] = json!(true);
    let reply = world.messages(&asked).await;
    let events = events(&reply.text);
    let starts: Vec<_> = events.iter().filter(|event| event["type"] == "content_block_start").collect();
    let kinds: Vec<_> = starts.iter().map(|start| start["content_block"]["type"].as_str().unwrap()).collect();
    let (asked, found) = ("server_tool_use", "web_search_tool_result");
    assert_eq!(kinds, [asked, asked, found, found, "text"]);
    for (start, place) in starts.iter().zip(0..) {
        assert_eq!(start["index"], place);
    }
    assert_eq!(starts[2]["content_block"]["tool_use_id"], starts[0]["content_block"]["id"]);
    assert_eq!(starts[3]["content_block"]["tool_use_id"], starts[1]["content_block"]["id"]);
    assert_eq!(starts[3]["content_block"]["content"][0]["title"], "go (1)");
    assert_eq!(events.last().unwrap()["type"], "message_stop");
}

#[tokio::test]
async fn a_search_beside_a_clients_tool_ends_the_message_a136_a137_a138() {
    let world = World::with_tokens(&["s1"], &[OFF]).await;
    model(&world, json!([search("A1", "rust"), { "name": "f", "id": "tooluse_f", "input": { "x": 1 } }]));
    let mut asked = request("q", json!({}));
    asked["tools"].as_array_mut().unwrap().push(json!({ "name": "f", "input_schema": { "type": "object" } }));
    let message = whole(&world.messages(&asked).await);
    assert_eq!(kinds(&message), ["server_tool_use", "tool_use", "web_search_tool_result"]);
    assert_eq!(message["stop_reason"], "tool_use");
    let (chats, searches) = calls(&world);
    assert_eq!((chats.len(), searches.len()), (1, 1));
    let result = json!([{ "type": "tool_result", "tool_use_id": "tooluse_f", "content": "r" }]);
    let more =
        [json!({ "role": "assistant", "content": message["content"] }), json!({ "role": "user", "content": result })];
    asked["messages"].as_array_mut().unwrap().extend(more);
    whole(&world.messages(&asked).await);
    let (chats, _) = calls(&world);
    assert!(result_text(current(&chats[1]), 0).starts_with("Web search results"));
    assert_eq!(result_text(current(&chats[1]), 1), "r");

    let mut asked = request("only f", json!({}));
    asked["tools"].as_array_mut().unwrap().push(json!({ "name": "f", "input_schema": { "type": "object" } }));
    let world = World::with_tokens(&["s1"], &[OFF]).await;
    model(&world, json!([{ "name": "f", "id": "tooluse_g", "input": { "x": 1 } }]));
    let message = whole(&world.messages(&asked).await);
    assert_eq!((kinds(&message), calls(&world).0.len()), (vec!["tool_use"], 1));
    assert_eq!(message["usage"]["server_tool_use"]["web_search_requests"], 0);
}

#[tokio::test]
async fn limits_domains_and_queries_are_the_clients_a143_a145_a146_a148() {
    let world = World::with_tokens(&["s1"], &[OFF]).await;
    let long = "word ".repeat(60);
    model(&world, json!([search("A1", &long), search("B2", "go")]));
    let message = whole(&world.messages(&request("1", json!({ "max_uses": 1 }))).await);
    assert_eq!(codes(&message), ["", "max_uses_exceeded"]);
    let (chats, searches) = calls(&world);
    assert_eq!(searches.len(), 1);
    assert_eq!(searches[0].body["params"]["arguments"]["query"].as_str().map(str::len), Some(199));
    assert_eq!(result_text(current(&chats[1]), 1), "The search failed: max_uses_exceeded.");

    let message = whole(&world.messages(&request("2", json!({ "allowed_domains": ["a.test"] }))).await);
    assert_eq!(message["content"][2]["content"], json!([]));
    let message = whole(&world.messages(&request("3", json!({ "blocked_domains": ["site2.test"] }))).await);
    let urls: Vec<_> = message["content"][2]["content"].as_array().unwrap().iter().map(|hit| &hit["url"]).collect();
    assert_eq!(urls.len(), 2);
    assert!(urls.iter().all(|url| !url.as_str().unwrap().contains("site2")), "{urls:?}");

    let before = calls(&world).1.len();
    let world = World::with_tokens(&["s1"], &[OFF]).await;
    model(&world, json!([search("C3", " ")]));
    let message = whole(&world.messages(&request("4", json!({}))).await);
    assert_eq!((codes(&message), before), (vec!["invalid_tool_input"], 5));
    assert_eq!(calls(&world).1.len(), 0);
}

#[tokio::test]
async fn a_message_that_only_searches_pauses_a144_ts33_ts35() {
    let world = World::with_tokens(&["s1"], &[("KIRO_WEB_SEARCH_MAX_ROUNDS", "3")]).await;
    let rules = json!([
        { "when": { "call": "chat", "round": 1 }, "tools": [search("A1", "more")] },
        { "when": { "call": "chat", "round": 2 }, "tools": [search("A2", "more")] },
        { "when": { "call": "chat" }, "tools": [search("A3", "more")] },
    ]);
    world.simulated.control().world(json!({ "rules": rules })).unwrap();
    let asked = request("q", json!({}));
    let message = whole(&world.messages(&asked).await);
    assert_eq!(message["stop_reason"], "pause_turn");
    let (chats, searches) = calls(&world);
    assert_eq!((chats.len(), searches.len()), (3, 3));
    // TS33: each request holds each earlier search once.
    let uses = |chat: &Seen| {
        let history = chat.body["conversationState"]["history"].as_array().unwrap().clone();
        let of = |message: &Value| message["assistantResponseMessage"]["toolUses"].as_array().cloned();
        let uses = history.iter().filter_map(of).flatten();
        uses.map(|tool_use| tool_use["toolUseId"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(uses(&chats[1]), ["tooluse_A1"]);
    assert_eq!(uses(&chats[2]), ["tooluse_A1", "tooluse_A2"]);
    let mut again = asked.clone();
    again["messages"].as_array_mut().unwrap().push(json!({ "role": "assistant", "content": message["content"] }));
    whole(&world.messages(&again).await);
    let (chats, _) = calls(&world);
    assert_eq!(current(&chats[3])["content"], "Tool results provided.");
    assert!(result_text(current(&chats[3]), 0).starts_with("Web search results"));
}

#[tokio::test]
async fn another_account_searches_where_one_cannot_a149_a186_k135() {
    let needs_arn = "profileArn is required for this request.";
    let needs_arn = json!({ "http": { "status": 400, "type": "ValidationException", "message": needs_arn } });
    // A rate limit passes; an account without search isn't asked again.
    for (how, again) in [
        ("rate", vec!["s1", "s2", "s1", "s2"]),
        ("forbidden", vec!["s1", "s2", "s2"]),
        ("needs an ARN", vec!["s1", "s2", "s2"]),
    ] {
        let world = World::with_tokens(&TOKENS, &[]).await;
        model(&world, json!([search("A1", "rust")]));
        match how {
            "needs an ARN" => {
                let script = json!({ "token": "s1", "on": "mcp", "scenarios": [needs_arn] });
                world.simulated.control().script(script).unwrap();
            }
            how => of(&world, "s1", json!({ "search": how })),
        }
        let records = world.accounts();
        for _ in 0..2 {
            let message = whole(&world.messages(&request("stays with its account", json!({}))).await);
            assert_eq!((kinds(&message), codes(&message)), (FOUND.to_vec(), vec![""]), "{how}");
        }
        assert_eq!(tokens(&calls(&world).0), ["s1"; 4], "{how}: the conversation stays");
        assert_eq!(tokens(&calls(&world).1), again, "{how}");
        assert_eq!(health(&records), health(&world.accounts()), "{how}");
    }
}

/// The members of the records that say something about health.
fn health(records: &[Value]) -> Vec<[Value; 4]> {
    let of =
        |record: &Value| ["isHealthy", "errorCount", "lastErrorMessage", "isDisabled"].map(|name| record[name].clone());
    records.iter().map(of).collect()
}

#[tokio::test]
async fn a_search_that_fails_is_a_block_and_harms_nobody_a150_a156_k135_k136_m71() {
    for (how, code, made) in [
        ("error", "unavailable", 2),
        ("badjson", "unavailable", 2),
        ("forbidden", "unavailable", 1),
        ("rate", "too_many_requests", 1),
        ("invalid", "invalid_tool_input", 1),
        ("slow:20000", "unavailable", 1),
    ] {
        let world = World::with_tokens(&["s1"], &[("KIRO_WEB_SEARCH_TIMEOUT", "400ms")]).await;
        model(&world, json!([search("A1", "rust")]));
        of(&world, "s1", json!({ "search": how }));
        let records = world.accounts();
        let began = Instant::now();
        let message = whole(&world.messages(&request("q", json!({}))).await);
        assert!(began.elapsed() < Duration::from_secs(10), "{how}");
        assert_eq!((kinds(&message), codes(&message)), (FOUND.to_vec(), vec![code]), "{how}");
        let (chats, searches) = calls(&world);
        assert_eq!(searches.len(), made, "{how}");
        assert_eq!(result_text(current(&chats[1]), 0), format!("The search failed: {code}."));
        assert_eq!(health(&records), health(&world.accounts()), "{how}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_drops_the_search_a155() {
    let log = log::Log::listen();
    let world = World::with_tokens(&["s1"], &[]).await;
    model(&world, json!([search("A1", "rust")]));
    of(&world, "s1", json!({ "search": "slow:30000" }));
    // A busy machine may be late: the best of a few tries counts.
    let mut quickest = Duration::MAX;
    for attempt in 1..=5 {
        let mut asked = request("q", json!({}));
        asked["stream"] = json!(true);
        let sent = world.http.post(world.url("/v1/messages")).header("x-api-key", world::KEY).body(asked.to_string());
        let mut answer = sent.send().await.unwrap();
        let mut seen = String::new();
        while calls(&world).1.len() < attempt || !seen.contains("server_tool_use") {
            if let Ok(chunk) = tokio::time::timeout(Duration::from_millis(50), answer.chunk()).await {
                seen.push_str(&String::from_utf8_lossy(&chunk.unwrap().unwrap()));
            }
        }
        drop(answer);
        let left = Instant::now();
        while !world.gateway.metrics().lines().any(|line| line == "kiro_requests_in_flight 0") {
            assert!(left.elapsed() < Duration::from_secs(5), "the message still runs");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        quickest = quickest.min(left.elapsed());
        if quickest < Duration::from_millis(100) {
            break;
        }
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
    let searched = world.gateway.metrics();
    assert!(searched.contains("kiro_web_search_seconds_count 0"), "the search has ended: {searched}");
    assert!(!log.lines("status=499").is_empty(), "{:?}", log.lines("status"));
}

#[tokio::test]
async fn four_searches_of_a_message_run_at_once_k136() {
    let world = World::with_tokens(&["s1"], &[]).await;
    let searches: Vec<_> = (1..=9).map(|n| search(&format!("A{n}"), &format!("rust {n}"))).collect();
    model(&world, json!(searches));
    of(&world, "s1", json!({ "search": "slow:400" }));
    let began = Instant::now();
    let message = whole(&world.messages(&request("q", json!({}))).await);
    assert_eq!(codes(&message), [""; 9]);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(3 * 400) && took < Duration::from_millis(7 * 400), "{took:?}");
}

#[tokio::test]
async fn sixty_four_searches_of_a_process_run_at_once_k136() {
    let world = World::with_tokens(&["s1", "s2"], &[OFF]).await;
    model(&world, json!((1..=4).map(|n| search(&format!("A{n}"), "rust")).collect::<Vec<_>>()));
    for token in ["s1", "s2"] {
        of(&world, token, json!({ "search": "slow:1500" }));
    }
    let began = Instant::now();
    let asked: Vec<_> = (0..17).map(|n| request(&format!("message {n}"), json!({}))).collect();
    let replies = futures_util::future::join_all(asked.iter().map(|asked| world.messages(asked))).await;
    assert!(replies.iter().all(|reply| codes(&whole(reply)) == [""; 4]));
    assert!(began.elapsed() >= Duration::from_millis(2 * 1_500), "68 searches in {:?}", began.elapsed());
}

#[tokio::test]
async fn a_message_has_at_most_a_hundred_searches_ts30() {
    let world = World::with_tokens(&["s1"], &[]).await;
    model(&world, json!((1..=102).map(|n| search(&format!("A{n}"), "rust")).collect::<Vec<_>>()));
    let message = whole(&world.messages(&request("q", json!({ "max_uses": 1_000 }))).await);
    assert_eq!(codes(&message)[98..], ["", "", "max_uses_exceeded", "max_uses_exceeded"]);
    let counted = world.gateway.metrics();
    assert!(counted.contains("kiro_web_search_total{outcome=\"ok\"} 100\n"), "{counted}");
}

#[tokio::test]
async fn a_search_that_is_off_leaves_deferred_tools_a135_tr59() {
    let world = World::with_tokens(&["s1"], &[("KIRO_WEB_SEARCH", "off")]).await;
    let mut asked = request("q", json!({}));
    assert_eq!(world.messages(&asked).await.status, 400);
    let deferred = json!({ "name": "f", "input_schema": { "type": "object" }, "defer_loading": true });
    asked["tools"].as_array_mut().unwrap().push(deferred);
    whole(&world.messages(&asked).await);
    let (chats, _) = calls(&world);
    let declared = &current(&chats[0])["userInputMessageContext"]["tools"];
    assert_eq!(declared[0]["toolSpecification"]["name"], "f", "{declared}");
}

#[tokio::test]
async fn the_presets_of_rounds_play_a137_a144() {
    let world = World::with_tokens(&["sim-search-mixed"], &[OFF]).await;
    let mut asked = request("q", json!({}));
    asked["tools"].as_array_mut().unwrap().push(json!({ "name": "f", "input_schema": { "type": "object" } }));
    let message = whole(&world.messages(&asked).await);
    assert_eq!(kinds(&message), ["server_tool_use", "tool_use", "web_search_tool_result"]);

    let world = World::with_tokens(&["sim-search-forever"], &[("KIRO_WEB_SEARCH_MAX_ROUNDS", "3")]).await;
    let message = whole(&world.messages(&request("q", json!({}))).await);
    let (chats, searches) = calls(&world);
    assert_eq!((chats.len(), searches.len(), &message["stop_reason"]), (3, 3, &json!("pause_turn")));
}

#[tokio::test]
async fn a_refused_token_is_refreshed_once_a151_k135() {
    let world = World::with_tokens(&["s1"], &[]).await;
    model(&world, json!([search("A1", "rust")]));
    let refused = json!({ "token": "s1", "on": "mcp", "scenarios": ["401"] });
    world.simulated.control().script(refused).unwrap();
    let message = whole(&world.messages(&request("q", json!({}))).await);
    assert_eq!((kinds(&message), codes(&message)), (FOUND.to_vec(), vec![""]));
    let (_, searches) = calls(&world);
    assert_eq!(searches.len(), 2);
    assert_ne!(searches[0].token, searches[1].token);
}

#[tokio::test]
async fn a_host_may_know_the_older_target_only_k132() {
    let world = World::with_tokens(&["s1"], &[("KIRO_UPSTREAM_API", "runtime"), OFF]).await;
    model(&world, json!([search("A1", "rust")]));
    let unknown = json!({ "http": { "status": 400, "type": "UnknownOperationException", "message": "unknown" } });
    world.simulated.control().script(json!({ "token": "s1", "on": "mcp", "scenarios": [unknown] })).unwrap();
    for text in ["1", "2"] {
        let message = whole(&world.messages(&request(text, json!({}))).await);
        assert_eq!(codes(&message), [""]);
    }
    let (_, searches) = calls(&world);
    let targets: Vec<_> = searches.iter().map(|call| call.headers["x-amz-target"].as_str().unwrap()).collect();
    let older = "AmazonCodeWhispererStreamingService.InvokeMCP";
    assert_eq!(targets, ["KiroRuntimeService.InvokeMCP", older, older], "what answers is remembered");
}

#[tokio::test]
async fn fifty_messages_with_three_searches_each_end_properly_under_faults_k135_k136() {
    let tokens = ["s1", "s2", "s3", "s4", "s5", "s6"];
    let settings = [OFF, ("KIRO_WEB_SEARCH_TIMEOUT", "3s")];
    let world = World::with_tokens(&tokens, &settings).await;
    model(&world, json!([search("A1", "one"), search("B2", "two"), search("C3", "three")]));
    for (token, how) in tokens.iter().zip(["rate", "error", "slow:300", "badjson", "forbidden", "null"]) {
        of(&world, token, json!({ "search": how }));
    }
    let records = world.accounts();
    let asked = (0..50).map(|n| {
        let mut asked = request(&format!("message {n}"), json!({}));
        asked["stream"] = json!(n % 2 == 0);
        asked
    });
    let asked: Vec<_> = asked.collect();
    let replies = futures_util::future::join_all(asked.iter().map(|asked| world.messages(asked))).await;
    for (reply, asked) in replies.iter().zip(&asked) {
        assert_eq!(reply.status, 200, "{}", reply.text);
        let (results, ended) = match asked["stream"].as_bool().unwrap() {
            true => {
                let events = events(&reply.text);
                let results = |event: &&Value| event["content_block"]["type"] == "web_search_tool_result";
                (events.iter().filter(results).count(), events.last().unwrap()["type"] == "message_stop")
            }
            false => (codes(&reply.json()).len(), reply.json()["stop_reason"] == "end_turn"),
        };
        assert!(results == 3 && ended, "{}", reply.text);
    }
    assert_eq!(health(&records), health(&world.accounts()));
    assert_eq!(world.gateway.health().accounts.healthy, tokens.len());
}

/// Fails with this scenario in the second round.
fn fails_in_round_2(world: &World, token: &str, mut scenario: Value) {
    scenario["when"] = json!({ "call": "chat", "round": 2 });
    let first = json!({ "when": { "call": "chat", "round": 1 }, "tools": [search("A1", "rust")] });
    of(world, token, json!({ "rules": [first, scenario] }));
}

const RATE: &str = "ThrottlingException";

#[tokio::test]
async fn a_round_without_content_is_repeated_silently_a152_ts34() {
    for stream in [false, true] {
        let world = World::with_tokens(&TOKENS, &[]).await;
        fails_in_round_2(&world, "s1", json!({ "exception": RATE }));
        of(&world, "s2", json!({ "rules": [{ "when": { "call": "chat", "round": 2 }, "text": "Found." }] }));
        let mut asked = request("q", json!({}));
        asked["stream"] = json!(stream);
        let reply = world.messages(&asked).await;
        let (chats, searches) = calls(&world);
        assert_eq!((tokens(&chats), searches.len()), (vec!["s1", "s1", "s2"], 1), "{}", reply.text);
        assert_eq!(result_text(current(&chats[1]), 0), result_text(current(&chats[2]), 0));
        if stream {
            let text = reply.text.matches("\"type\":\"message_start\"").count();
            assert_eq!(
                (text, reply.text.matches("content_block_start\",\"index\":").count()),
                (1, 3),
                "{}",
                reply.text
            );
            assert!(reply.text.contains("Found.") && !reply.text.contains("event: error"), "{}", reply.text);
        } else {
            assert_eq!(kinds(&whole(&reply)), FOUND);
        }
    }
}

#[tokio::test]
async fn a_round_that_fails_everywhere_is_the_messages_failure_a153_ts34() {
    for stream in [false, true] {
        let world = World::with_tokens(&TOKENS, &[]).await;
        for token in TOKENS {
            fails_in_round_2(&world, token, json!({ "exception": RATE }));
        }
        let mut asked = request("q", json!({}));
        asked["stream"] = json!(stream);
        let reply = world.messages(&asked).await;
        if stream {
            let events = events(&reply.text);
            let last: Vec<_> = events.iter().rev().take(2).map(|event| event["type"].as_str().unwrap()).collect();
            assert_eq!(last, ["error", "content_block_stop"], "{}", reply.text);
            assert!(reply.text.contains("web_search_tool_result"));
        } else {
            assert_eq!((reply.status, &reply.json()["error"]["type"]), (429, &json!("rate_limit_error")));
        }
    }
}

#[tokio::test]
async fn a_round_that_is_cut_in_its_text_is_an_error_a154_ts34() {
    let world = World::with_tokens(&TOKENS, &[]).await;
    fails_in_round_2(&world, "s1", json!({ "text": "Fou", "exception": "InternalServerException" }));
    let mut asked = request("q", json!({}));
    asked["stream"] = json!(true);
    let reply = world.messages(&asked).await;
    assert!(reply.text.contains("Fou") && reply.text.contains("event: error"), "{}", reply.text);
    assert!(!reply.text.contains("message_stop"), "{}", reply.text);
    assert_eq!(tokens(&calls(&world).0), ["s1", "s1"]);
}

#[tokio::test]
async fn a_piece_without_its_id_never_belongs_to_an_earlier_answer_ts39_ts20_ts31() {
    let without_id =
        json!({ "steps": [{ "event": "toolUseEvent", "payload": { "name": "f", "input": "{}", "stop": true } }] });
    let world = World::with_tokens(&["s1"], &[]).await;
    let mut unfinished = search("A1", "rust");
    unfinished["stop"] = json!("never");
    let rules = json!([
        { "when": { "call": "chat", "round": 1 }, "tools": [unfinished] },
        { "when": { "call": "chat", "round": 2 }, "steps": without_id["steps"] },
    ]);
    world.simulated.control().world(json!({ "rules": rules })).unwrap();
    let reply = world.messages(&request("q", json!({}))).await;
    assert_eq!(reply.status, 500, "{}", reply.text);

    // The same after a failover.
    let world = World::with_tokens(&["s1"], &[]).await;
    let head = json!({ "event": "toolUseEvent", "payload": { "name": "f", "toolUseId": "tooluse_B" } });
    let cut = json!({ "steps": [head], "end": "cut" });
    world.simulated.control().script(json!({ "token": "s1", "scenarios": [cut, without_id, without_id] })).unwrap();
    let reply = world.messages(&request("r", json!({}))).await;
    assert!(!reply.text.contains("tooluse_B"), "{}", reply.text);
}

#[tokio::test]
async fn thoughts_of_earlier_rounds_use_up_nothing_of_max_tokens_m83_tr51() {
    let world = World::with_tokens(&["s1"], &[]).await;
    let found = "Found. ".repeat(40);
    let rules = json!([
        { "when": { "call": "chat", "round": 1 }, "think": "hm ".repeat(2_000), "tools": [search("A1", "rust")] },
        { "when": { "call": "chat", "round": 2 }, "text": found },
    ]);
    world.simulated.control().world(json!({ "rules": rules })).unwrap();
    let mut asked = request("q", json!({}));
    asked["max_tokens"] = json!(1_100);
    asked["thinking"] = json!({ "type": "enabled", "budget_tokens": 1_024 });
    let message = whole(&world.messages(&asked).await);
    assert_eq!((&message["stop_reason"], &message["content"][3]["text"]), (&json!("end_turn"), &json!(found)));
}

#[tokio::test]
async fn usage_is_the_sum_of_the_rounds_a160_tu10() {
    let world = World::with_tokens(&["s1"], &[]).await;
    let tokens = |input, output| json!({ "tokens": { "uncachedInputTokens": input, "outputTokens": output } });
    let rules = json!([
        { "when": { "call": "chat", "round": 1 }, "tools": [search("A1", "rust")], "usage": tokens(100, 10) },
        { "when": { "call": "chat", "round": 2 }, "text": "Found.", "usage": tokens(150, 20) },
    ]);
    world.simulated.control().world(json!({ "rules": rules })).unwrap();
    let message = whole(&world.messages(&request("q", json!({}))).await);
    let usage = &message["usage"];
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&json!(250), &json!(30)), "{usage}");
    assert_eq!(usage["cache_read_input_tokens"], 0);
}

#[tokio::test]
async fn pings_flow_while_a_search_runs_a156_ts31() {
    let world = World::with_tokens(&["s1"], &[("KIRO_PING_INTERVAL", "50ms")]).await;
    model(&world, json!([search("A1", "rust")]));
    of(&world, "s1", json!({ "search": "slow:600" }));
    let mut asked = request("q", json!({}));
    asked["stream"] = json!(true);
    let reply = world.messages(&asked).await;
    let (before, _) = reply.text.split_once("web_search_tool_result").unwrap();
    let (_, waiting) = before.split_once("server_tool_use").unwrap();
    assert!(waiting.matches("event: ping").count() >= 3, "{}", reply.text);
    assert!(reply.text.contains("message_stop"));
}
