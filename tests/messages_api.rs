//! The cases of contract/cases.md (A), by number, over real HTTP against the simulator.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use std::time::Duration;

use serde_json::{Value, json};
use world::{KEY, Reply, STREAM, World, base, content, events, kinds, with, without};

const IRE: &str = "invalid_request_error";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_requests_name_the_place_a3_to_a48() {
    let world = World::new(&[]).await;
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let raw: &[(&str, Vec<u8>, &str)] = &[
        ("A3", b"{\"model\":".to_vec(), "body: not valid JSON (line 1, column"),
        ("A4", b"[]".to_vec(), "body: must be a JSON object"),
        ("A4", b"\"x\"".to_vec(), "body: must be a JSON object"),
        ("A4", b"".to_vec(), "body: "),
        ("A5", b"{\"model\":\"\xff\"}".to_vec(), "body: "),
        ("A6", format!("{{\"x\":{deep}}}").into_bytes(), "body: nested too deeply"),
    ];
    for (case, body, begins) in raw {
        world.post("/v1/messages", body.clone()).await.is_error(case, 400, IRE, begins);
    }
    let tool = |tool: Value| with(json!({ "tools": [tool] }));
    let second = |blocks: Value| {
        with(
            json!({ "messages": [{ "role": "user", "content": "hi" }, { "role": "assistant", "content": blocks }, { "role": "user", "content": "go on" }] }),
        )
    };
    let image = |media: &str, data: &str| json!([{ "type": "image", "source": { "type": "base64", "media_type": media, "data": data } }]);
    let table: Vec<(&str, Value, &str)> = vec![
        ("A7", without("model"), "model: field required"),
        ("A7", with(json!({ "model": "" })), "model: "),
        ("A7", with(json!({ "model": 5 })), "model: must be a string"),
        ("A10", without("max_tokens"), "max_tokens: field required"),
        ("A10", with(json!({ "max_tokens": 0 })), "max_tokens: must be at least 1"),
        ("A10", with(json!({ "max_tokens": -1 })), "max_tokens: "),
        ("A10", with(json!({ "max_tokens": "64" })), "max_tokens: must be an integer"),
        ("A10", with(json!({ "max_tokens": 1.5 })), "max_tokens: must be an integer"),
        ("A12", without("messages"), "messages: field required"),
        ("A12", with(json!({ "messages": [] })), "messages: must not be empty"),
        ("A12", with(json!({ "messages": {} })), "messages: must be an array"),
        ("A13", with(json!({ "messages": [{ "role": "tool", "content": "x" }] })), "messages.0.role: "),
        (
            "A14",
            with(json!({ "messages": [{ "role": "assistant", "content": "x" }] })),
            "messages.0.role: first message must be 'user'",
        ),
        ("A16", content(json!("")), "messages.0.content: must not be empty"),
        ("A16", content(json!([])), "messages.0.content: must not be empty"),
        ("A16", content(Value::Null), "messages.0.content: "),
        ("A16", with(json!({ "messages": [{ "role": "user" }] })), "messages.0.content: field required"),
        ("A16", content(json!(5)), "messages.0.content: "),
        ("A17", content(json!([{ "type": "text", "text": "" }])), "messages.0.content: must not be empty"),
        (
            "A18",
            content(json!([{ "type": "text", "text": "a" }, { "type": "text" }])),
            "messages.0.content.1.text: field required",
        ),
        ("A19", content(json!([{ "type": "video" }])), "messages.0.content.0.type: unknown block type 'video'"),
        ("A19", content(json!([{ "text": "x" }])), "messages.0.content.0.type: field required"),
        (
            "A20",
            content(json!([{ "type": "image", "source": { "type": "url", "url": "https://127.0.0.1:1/x.png" } }])),
            "messages.0.content.0.source.type: ",
        ),
        ("A23", content(image("image/png", "@@@")), "messages.0.content.0.source.data: "),
        ("A23", content(image("image/png", "")), "messages.0.content.0.source.data: "),
        (
            "A23",
            content(image("image/png", "data:image/png;base64,iVBORw0KGgo=")),
            "messages.0.content.0.source.data: ",
        ),
        (
            "A27",
            content(json!([{ "type": "tool_use", "id": "t", "name": "f", "input": {} }])),
            "messages.0.content.0.type: 'tool_use' is not allowed in a user message",
        ),
        ("A27", second(json!([{ "type": "tool_result", "tool_use_id": "t" }])), "messages.1.content.0.type: "),
        (
            "A28",
            second(json!([{ "type": "tool_use", "name": "f", "input": {} }])),
            "messages.1.content.0.id: field required",
        ),
        (
            "A28",
            second(json!([{ "type": "tool_use", "id": "t", "name": "f", "input": "x" }])),
            "messages.1.content.0.input: must be an object",
        ),
        (
            "A28",
            second(json!([{ "type": "tool_use", "id": "t", "name": "f", "input": [] }])),
            "messages.1.content.0.input: must be an object",
        ),
        ("A30", content(json!([{ "type": "tool_result" }])), "messages.0.content.0.tool_use_id: field required"),
        (
            "A30",
            content(json!([{ "type": "tool_result", "tool_use_id": "t", "is_error": "yes" }])),
            "messages.0.content.0.is_error: must be a boolean",
        ),
        ("A33", with(json!({ "system": [{ "type": "image" }] })), "system.0.type: must be 'text'"),
        ("A33", with(json!({ "system": 5 })), "system: must be a string or an array"),
        ("A34", with(json!({ "temperature": 1.1 })), "temperature: must be between 0 and 1"),
        ("A34", with(json!({ "top_p": -0.1 })), "top_p: must be between 0 and 1"),
        ("A34", with(json!({ "top_k": -1 })), "top_k: must be at least 0"),
        ("A35", with(json!({ "stop_sequences": [""] })), "stop_sequences.0: must not be empty"),
        ("A35", with(json!({ "stop_sequences": "x" })), "stop_sequences: must be an array"),
        ("A36", with(json!({ "stream": "true" })), "stream: must be a boolean"),
        (
            "A37",
            with(json!({ "thinking": { "type": "enabled", "budget_tokens": 1023 } })),
            "thinking.budget_tokens: must be at least 1024",
        ),
        ("A37", with(json!({ "thinking": { "type": "enabled" } })), "thinking.budget_tokens: field required"),
        ("A38", with(json!({ "thinking": { "type": "maybe" } })), "thinking.type: must be one of "),
        ("A40", with(json!({ "output_config": { "effort": "huge" } })), "output_config.effort: must be one of "),
        ("A41", tool(json!({ "input_schema": {} })), "tools.0.name: field required"),
        ("A41", tool(json!({ "name": "" })), "tools.0.name: "),
        ("A41", tool(json!({ "name": "x".repeat(257) })), "tools.0.name: "),
        ("A44", tool(json!({ "name": "f", "input_schema": "x" })), "tools.0.input_schema: must be an object"),
        (
            "A163",
            tool(json!({ "type": "code_execution_20250825", "name": "code_execution" })),
            "tools: 'code_execution_20250825' can't be served through Kiro",
        ),
        (
            "A48",
            with(json!({ "tools": [{ "name": "f" }], "tool_choice": { "type": "tool", "name": "nope" } })),
            "tool_choice.name: no tool named 'nope'",
        ),
        ("A48", with(json!({ "tool_choice": { "type": "any" } })), "tool_choice: needs tools"),
    ];
    for (case, body, begins) in &table {
        let reply = world.messages(body).await;
        reply.is_error(case, 400, IRE, begins);
        assert_eq!(reply.headers["x-should-retry"], "false", "{case}");
    }
    let reply = world.messages(&with(json!({ "model": "gpt-4o" }))).await;
    reply.is_error("A8", 404, "not_found_error", "model: unknown model 'gpt-4o'. Known: ");
    assert!(reply.text.contains("claude-sonnet-4-5"), "A8: {}", reply.text);

    // The process doesn't notice, and nothing of all this reached upstream.
    assert_eq!(world.upstream_calls(), 0, "a refused request reached upstream");
    assert_eq!(world.messages(&base()).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_requests_a1_a9_to_a49() {
    let world = World::new(&[]).await;
    let tool_round = |input: Value| {
        json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": [{ "type": "tool_use", "id": "t", "name": "f", "input": input }] },
               { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t", "content": "r" }] }])
    };
    let image =
        json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo=" } });
    let pdf = json!({ "type": "document", "source": { "type": "base64", "media_type": "application/pdf", "data": "JVBERi0=" } });
    let table: Vec<(&str, Value)> = vec![
        ("A1", base()),
        ("A25", content(json!([pdf, pdf, pdf, pdf, pdf, pdf]))),
        ("A9", with(json!({ "model": "claude-haiku-4-5-20251001" }))),
        ("A11", with(json!({ "max_tokens": 1_000_000 }))),
        (
            "A15",
            with(
                json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "system", "content": "note" }, { "role": "assistant", "content": "b" }, { "role": "user", "content": "c" }] }),
            ),
        ),
        (
            "A24",
            with(
                json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": [{ "type": "tool_use", "id": "t", "name": "f", "input": {} }] }, { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t", "content": [image] }] }] }),
            ),
        ),
        (
            "A26",
            content(
                json!([{ "type": "document", "source": { "type": "text", "media_type": "text/plain", "data": "hello" } }]),
            ),
        ),
        ("A29", with(json!({ "messages": tool_round(Value::Null) }))),
        ("A31", content(json!([{ "type": "tool_result", "tool_use_id": "nobody", "content": "r" }]))),
        ("A32", with(json!({ "system": null }))),
        ("A32", with(json!({ "system": "S" }))),
        ("A32", with(json!({ "system": [{ "type": "text", "text": "S", "cache_control": { "type": "ephemeral" } }] }))),
        ("A39", with(json!({ "max_tokens": 32000, "thinking": { "type": "enabled", "budget_tokens": 31999 } }))),
        ("A39", with(json!({ "thinking": { "type": "enabled", "budget_tokens": 31999 } }))),
        ("A43", with(json!({ "tools": [{ "name": "f", "input_schema": null }, { "name": "g" }] }))),
        (
            "A46",
            with(
                json!({ "tools": [{ "type": "web_search_20250305", "name": "web_search" }, { "name": "WebSearch" }] }),
            ),
        ),
        (
            "A47",
            with(json!({ "tools": [{ "name": "f", "description": "one" }, { "name": "f", "description": "two" }] })),
        ),
        (
            "A49",
            with(
                json!({ "x": 1, "context_management": {}, "metadata": { "a": 1, "user_id": "会session_é" }, "messages": [{ "role": "user", "y": 2, "content": [{ "type": "text", "text": "hi", "z": { "q": 3 } }] }] }),
            ),
        ),
    ];
    for (case, body) in &table {
        let reply = world.messages(body).await;
        assert_eq!(reply.status, 200, "{case}: {}", reply.text);
        let message = reply.json();
        assert_eq!(message["model"], body["model"], "{case}: the model is echoed as sent");
        for member in ["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"] {
            assert!(message.get(member).is_some(), "{case}: no {member}");
        }
        assert!(message["id"].as_str().unwrap().starts_with("msg_"), "{case}");
        for count in ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens"] {
            assert!(message["usage"][count].is_u64(), "{case}: {count}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_have_the_grammar_under_both_prefixes_a2_a53_m3_m6() {
    let world = World::new(&[]).await;
    for (path, headers) in [
        ("/v1/messages", &[][..]),
        ("/claude-kiro-oauth/v1/messages?beta=true", &[("anthropic-version", "2023-06-01")]),
        (
            "/v1/messages",
            &[("anthropic-version", "2026-10-21"), ("anthropic-beta", "a-2026-01-01,b"), ("x-app", "cli")],
        ),
        (
            "/v1/messages?x=%zz&",
            &[("anthropic-version", "?"), ("content-type", "text/plain"), ("expect", "100-continue")],
        ),
    ] {
        let mut request = world.http.post(world.url(path)).header("x-api-key", KEY);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = Reply::read(request.body(with(json!({ "stream": true })).to_string()).send().await.unwrap()).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.headers["content-type"], "text/event-stream; charset=utf-8");
        assert_eq!(reply.headers["cache-control"], "no-cache");
        assert_eq!(reply.headers["x-accel-buffering"], "no");
        let names: Vec<&str> = reply.text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!((names[0], names[1]), ("message_start", "content_block_start"));
        assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
        assert!(reply.text.ends_with("\n\n"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_limit_with_and_without_a_length_a50_m11() {
    let world = World::new(&[("KIRO_MAX_REQUEST_BODY", "1000")]).await;
    let mut body = base();
    body["messages"][0]["content"] = json!("x".repeat(2000));
    let text = body.to_string();
    world.post("/v1/messages", text.clone()).await.is_error("A50", 413, "request_too_large", "");
    let pieces: Vec<Result<String, std::io::Error>> =
        text.as_bytes().chunks(100).map(|c| Ok(String::from_utf8_lossy(c).into_owned())).collect();
    let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    world.post("/v1/messages", chunked).await.is_error("A50", 413, "request_too_large", "");
    assert_eq!(world.messages(&base()).await.status, 200);
    // Where nothing is read because the caller has the body already (the addon's countTokens).
    let refused = world.gateway.count_tokens(text.as_bytes()).unwrap_err();
    assert_eq!((refused.status(), refused.error_type().as_str()), (413, "request_too_large"));
}

/// Puts a key somewhere on a request.
type Dress = fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_right_key_in_any_place_is_enough_a51_m2() {
    let world = World::new(&[]).await;
    let url = world.url("/v1/messages");
    let ask = |set: Dress, query: &str| set(world.http.post(format!("{url}{query}"))).body(base().to_string()).send();
    let reply = Reply::read(ask(|r| r, "").await.unwrap()).await;
    reply.is_error("A51", 401, "authentication_error", "");
    assert_eq!(reply.headers["x-should-retry"], "false");
    let wrong = Reply::read(ask(|r| r.header("x-api-key", "no"), "").await.unwrap()).await;
    wrong.is_error("A51", 401, "authentication_error", "");
    let right: [(Dress, &str); 5] = [
        (|r| r.header("x-api-key", KEY), ""),
        (|r| r.header("authorization", format!("bEaReR {KEY}")), ""),
        (|r| r.header("x-goog-api-key", KEY), ""),
        (|r| r, "?key=client-key-1"),
        (|r| r.header("x-api-key", "no").header("authorization", format!("Bearer {KEY}")), ""),
    ];
    for (n, (set, query)) in right.into_iter().enumerate() {
        assert_eq!(ask(set, query).await.unwrap().status(), 200, "way {n}");
    }
    // No key needed here (M2).
    assert_eq!(world.http.get(world.url("/health")).send().await.unwrap().status(), 200);
    assert_eq!(world.http.head(world.url("/")).send().await.unwrap().status(), 200);
    let events = world.http.post(world.url("/api/event_logging/batch")).body("{}").send().await.unwrap();
    assert_eq!(events.text().await.unwrap(), r#"{"success":true}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_methods_and_encodings_a52_m4_m7_m8() {
    let world = World::new(&[]).await;
    let get = Reply::read(world.http.get(world.url("/v1/messages")).send().await.unwrap()).await;
    get.is_error("A52", 405, IRE, "");
    assert_eq!(get.headers["allow"], "POST, OPTIONS");
    world.post("/nope", "{}").await.is_error("A52", 404, "not_found_error", "");
    let asked = world
        .http
        .request(reqwest::Method::OPTIONS, world.url("/v1/messages"))
        .header("access-control-request-headers", "x-stainless-os,x-api-key")
        .send()
        .await
        .unwrap();
    let asked = Reply::read(asked).await;
    assert_eq!((asked.status, asked.text.as_str()), (204, ""));
    assert_eq!(asked.headers["access-control-allow-headers"], "x-stainless-os,x-api-key");
    assert_eq!(asked.headers["access-control-allow-methods"], "GET, POST, HEAD, OPTIONS");
    assert_eq!(asked.headers["access-control-max-age"], "86400");
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        let encoded = |encodings: &[&str]| {
            let request = world.http.post(world.url(path)).header("x-api-key", KEY);
            let set = |request: reqwest::RequestBuilder, encoding: &&str| request.header("content-encoding", *encoding);
            encodings.iter().fold(request, set).body(base().to_string()).send()
        };
        for encodings in [&["gzip"][..], &["identity", "gzip"]] {
            let reply = Reply::read(encoded(encodings).await.unwrap()).await;
            reply.is_error("M4", 400, IRE, "content-encoding: not supported");
        }
        assert_eq!(encoded(&["Identity"]).await.unwrap().status(), 200, "M4");
    }
    for path in ["/", "/health", "/v1/models", "/v1/models/claude-opus-5"] {
        let ask = |method| world.http.request(method, world.url(path)).header("x-api-key", KEY).send();
        let get = Reply::read(ask(reqwest::Method::GET).await.unwrap()).await;
        let head = Reply::read(ask(reqwest::Method::HEAD).await.unwrap()).await;
        assert_eq!((head.status, head.text.as_str()), (get.status, ""), "M8: {path}");
        assert_eq!(head.headers["content-type"], get.headers["content-type"], "M8: {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn count_tokens_equals_the_estimate_of_message_start_a69_m65() {
    let world = World::new(&[("KIRO_USAGE_SPLIT", "none")]).await;
    let mut body = without("max_tokens");
    let counted = world.post("/v1/messages/count_tokens", body.to_string()).await;
    assert_eq!(counted.status, 200, "{}", counted.text);
    let tokens = counted.json()["input_tokens"].as_u64().unwrap();
    assert!(tokens >= 1);
    body["max_tokens"] = json!(5);
    body["stream"] = json!(true);
    let stream = world.messages(&body).await;
    let start: Value =
        serde_json::from_str(stream.text.lines().nth(1).unwrap().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(start["message"]["usage"]["input_tokens"].as_u64(), Some(tokens));
    let bad = world
        .post(
            "/v1/messages/count_tokens",
            r#"{"model":"claude-sonnet-4-5","messages":[{"role":"tool","content":"x"}]}"#,
        )
        .await;
    bad.is_error("A69", 400, IRE, "messages.0.role");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_page_by_page_a70_m66_m67() {
    let world = World::new(&[]).await;
    let get = async |path: &str| {
        Reply::read(world.http.get(world.url(path)).header("x-api-key", KEY).send().await.unwrap()).await
    };
    let all = get("/v1/models?limit=1000").await.json();
    let ids: Vec<String> =
        all["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect();
    assert!(ids.len() > 4 && ids.iter().all(|id| id.starts_with("claude")));
    let mut seen: Vec<String> = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = get(&format!("/v1/models?limit=2{cursor}")).await.json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()));
        if page["has_more"] == false {
            break;
        }
        cursor = format!("&after_id={}", page["last_id"].as_str().unwrap());
    }
    assert_eq!(seen, ids, "every id once, in order");
    let before = get(&format!("/v1/models?limit=2&before_id={}", ids[3])).await.json();
    assert_eq!((before["data"][0]["id"].as_str(), before["has_more"].as_bool()), (Some(ids[1].as_str()), Some(true)));
    get("/v1/models?limit=0").await.is_error("A70", 400, IRE, "limit: must be between 1 and 1000");
    get("/v1/models?after_id=x").await.is_error("A70", 400, IRE, "after_id: unknown model");
    // What can't be decoded is wrong too, not absent.
    get("/v1/models?limit=%zz").await.is_error("M66", 400, IRE, "limit: must be between 1 and 1000");
    get("/v1/models?after_id=%FF").await.is_error("M66", 400, IRE, "after_id: unknown model");
    get("/v1/models?after_id=x&before_id=y").await.is_error("A70", 400, IRE, "before_id: not together with after_id");
    get("/v1/models/nope").await.is_error("A70", 404, "not_found_error", "");
    assert_eq!(get("/v1/models/claude-sonnet-4-5-20250929").await.json()["id"], "claude-sonnet-4-5-20250929");
}

/// M1: each request has one fault more than the one before it; the answer is that of the first check that fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_run_in_their_order_m1() {
    let world = World::with_tokens(&[], &[("KIRO_MAX_REQUEST_BODY", "300"), ("KIRO_STORE_WAIT", "0s")]).await;
    // Before that a wrong key may be one of Redis' (R109).
    world.gateway.key_known().await;
    let ask = async |method: &str, path: &str, key: &str, body: String| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = world.http.request(method, world.url(path)).header("x-api-key", key).body(body);
        Reply::read(request.send().await.unwrap()).await
    };
    let path = "/v1/messages";
    ask("POST", path, KEY, base().to_string()).await.is_error("accounts", 503, "overloaded_error", "");
    let unknown = with(json!({ "model": "gpt-4o" }));
    ask("POST", path, KEY, unknown.to_string()).await.is_error("model", 404, "not_found_error", "model: unknown model");
    let mut field = unknown.clone();
    field["tools"] = json!(5);
    ask("POST", path, KEY, field.to_string()).await.is_error("fields", 400, IRE, "tools: must be an array");
    let broken = field.to_string().replace('}', "");
    ask("POST", path, KEY, broken.clone()).await.is_error("JSON", 400, IRE, "body: not valid JSON");
    let large = broken + &" ".repeat(400);
    ask("POST", path, KEY, large.clone()).await.is_error("size", 413, "request_too_large", "");
    ask("POST", path, "no", large.clone()).await.is_error("key", 401, "authentication_error", "");
    ask("PUT", path, "no", large.clone()).await.is_error("method", 405, IRE, "");
    ask("PUT", "/v1/message", "no", large).await.is_error("path", 404, "not_found_error", "");
}

/// The other tests look at the id of every answer they read; here, that it is another one each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_an_id_of_its_own_a71_m5() {
    let world = World::new(&[]).await;
    let mut ids = std::collections::HashSet::new();
    for stream in [false, true] {
        for body in [base(), without("model"), with(json!({ "model": "gpt-4o" }))] {
            let mut body = body;
            body["stream"] = json!(stream);
            let reply = world.messages(&body).await;
            assert!(ids.insert(reply.headers["request-id"].clone()), "A71: {}", reply.text);
            if reply.status != 200 {
                assert_eq!(reply.json()["request_id"], reply.headers["request-id"].to_str().unwrap(), "A71");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_by_upstream_once_without_hurting_the_account_a54_a55_k49_m62() {
    let world = World::with_tokens(&["sim-400", "sim-400"], &[]).await;
    let reply = world.messages(&base()).await;
    reply.is_error("A54", 400, IRE, "Improperly formed request.");
    assert_eq!(reply.headers["x-should-retry"], "false");
    assert_eq!(world.upstream_calls(), 1);
    assert_eq!(world.gateway.health().accounts.healthy, 2);

    let world = World::with_tokens(&["sim-prompt-too-long", "sim-prompt-too-long"], &[]).await;
    let reply = world.messages(&base()).await;
    reply.is_error("A55", 400, IRE, "prompt is too long: 200001 tokens > 200000 maximum");
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_of_all_accounts_reaches_the_client_a56_a57_trap_31() {
    let world = World::with_tokens(&["sim-429-retry-after-7", "sim-429-retry-after-7"], &[]).await;
    for stream in [false, true] {
        // The second round finds both accounts at rest.
        let reply = world.messages(&with(json!({ "stream": stream }))).await;
        let (status, kind) = if stream { (503, "overloaded_error") } else { (429, "rate_limit_error") };
        reply.is_error("A56", status, kind, "");
        assert_eq!(reply.headers["retry-after"], "7", "A56 stream {stream}");
    }
    assert_eq!(world.upstream_calls(), 2);

    // An account that can't serve the model is no reason to come back sooner (K47, R7).
    let world = World::with_tokens(&["sim-429-retry-after-7", "access-2"], &[]).await;
    let other = r#"{"notSupportedModels":["claude-sonnet-4-5"]}"#;
    let mut set = redis::cmd("HSET");
    set.arg("aiclient:pools:claude-kiro-oauth").arg("00000001-0000-4000-8000-000000000000").arg(other);
    set.query::<()>(&mut world.redis_connection()).unwrap();
    world.gateway.pool().reload().await.unwrap();
    let reply = world.messages(&base()).await;
    reply.is_error("A56", 429, "rate_limit_error", "");
    assert_eq!(reply.headers["retry-after"], "7", "A56");

    let world = World::with_tokens(&["sim-429-retry-after-7"], &[]).await;
    let reply = world.messages(&with(STREAM())).await;
    reply.is_error("A56", 429, "rate_limit_error", "");

    let world = World::with_tokens(&["sim-429-retry-after-7", "access-2"], &[]).await;
    for _ in 0..3 {
        assert_eq!(world.messages(&base()).await.status, 200, "A57");
    }
    let stream = world.messages(&with(STREAM())).await;
    assert_eq!(kinds(&events(&stream.text)).iter().filter(|kind| **kind == "message_start").count(), 1, "A57");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_account_the_error_says_when_to_retry_a58_m61() {
    // (what the only account says at the first request, the answer to the second, its retry-after, whether a retry is
    // worth it)
    let table = [
        ("sim-429-retry-after-30", (503, "overloaded_error", "No healthy accounts available"), 20, 30, None),
        ("sim-suspicious", (500, "api_error", "No account can serve before "), 1600, 1980, Some("false")),
    ];
    for (token, (status, kind, begins), least, most, retry) in table {
        let world = World::with_tokens(&[token], &[]).await;
        world.messages(&base()).await.is_error("A58", 429, "rate_limit_error", "");
        let reply = world.messages(&with(STREAM())).await;
        reply.is_error("A58", status, kind, begins);
        let after: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((least..=most).contains(&after), "A58 {token}: {after}");
        assert_eq!(reply.headers.get("x-should-retry").map(|value| value.to_str().unwrap()), retry, "A58 {token}");
        assert_eq!(world.upstream_calls(), 1, "A58 {token}");
    }

    let world = World::with_tokens(&[], &[("KIRO_STORE_WAIT", "0s")]).await;
    let reply = world.messages(&base()).await;
    reply.is_error("A58", 503, "overloaded_error", "");
    assert_eq!(reply.headers["retry-after"], "60", "A58");
    assert_eq!(world.http.get(world.url("/health")).send().await.unwrap().status(), 503);
}

/// The request that uses up the last account is answered as the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_request_that_uses_up_the_last_account_gets_the_next_ones_error_m85() {
    for tokens in [&["sim-402"][..], &["sim-suspended"], &["sim-402", "sim-suspended", "sim-402"]] {
        let world = World::with_tokens(tokens, &[]).await;
        let mut told = Vec::new();
        for stream in [true, false, true] {
            let reply = world.messages(&with(json!({ "stream": stream }))).await;
            reply.is_error("M85", 500, "api_error", "No account can serve ");
            assert_eq!(reply.headers["x-should-retry"], "false", "M85 {tokens:?}");
            assert_eq!(reply.headers["retry-after"], "60", "M61 {tokens:?}");
            told.push(reply.json()["error"]["message"].clone());
        }
        assert!(told[0] == told[1] && told[1] == told[2], "{told:?}");
        assert_eq!(world.upstream_calls(), tokens.len() as u64, "M85 {tokens:?}");
    }
    // The soonest is back in five minutes.
    let world = World::with_tokens(&["sim-429-retry-after-300", "sim-402"], &[]).await;
    for _ in 0..2 {
        let reply = world.messages(&base()).await;
        reply.is_error("M85", 500, "api_error", "No account can serve before ");
        assert_eq!(reply.headers["x-should-retry"], "false");
        let after: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((290..=300).contains(&after), "M61: {after}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exception_before_content_is_an_error_not_an_answer_a59_a60_m9() {
    let world = World::new(&[("KIRO_MAX_ATTEMPTS", "1")]).await;
    let first = json!({ "steps": [{ "exception": "InternalServerException" }] });
    world.scene(&first, STREAM()).await.is_error("A59", 500, "api_error", "");

    let world =
        World::new(&[("KIRO_MAX_ATTEMPTS", "1"), ("KIRO_EARLY_HEADERS", "100ms"), ("KIRO_PING_INTERVAL", "100ms")])
            .await;
    let late = json!({ "first_ms": 450, "steps": [{ "exception": "InternalServerException" }] });
    let reply = world.scene(&late, STREAM()).await;
    assert_eq!(reply.status, 200, "A60: {}", reply.text);
    let events = events(&reply.text);
    let kinds = kinds(&events);
    assert_eq!((kinds[0], kinds[1], kinds[kinds.len() - 1]), ("message_start", "ping", "error"), "A60: {kinds:?}");
    assert!(!kinds.contains(&"message_stop"), "A60");
    assert_eq!(events[events.len() - 1]["error"]["type"], "api_error");
    assert_eq!(events[events.len() - 1]["request_id"], reply.headers["request-id"].to_str().unwrap());
}

/// An event that gives the client nothing is no event to it: the ping comes when it was due (A60's stream goes on).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_behind_early_headers_delays_no_ping_m54_ts22() {
    let world = World::new(&[("KIRO_EARLY_HEADERS", "100ms"), ("KIRO_PING_INTERVAL", "2s")]).await;
    // message_start after 0.1 s, so a ping after 2.1 s; the note in between made it 3.5 s.
    let note = json!({ "event": "messageMetadataEvent", "payload": {} });
    let scene = json!({ "first_ms": 1500, "steps": [note, { "wait_ms": 1500 }, { "text": "x" }] });
    let reply = world.scene(&scene, STREAM()).await;
    assert_eq!(kinds(&events(&reply.text))[..3], ["message_start", "ping", "content_block_start"], "{}", reply.text);
}

/// However early it is due, `message_start` waits for its figures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_headers_do_not_overtake_the_estimate_m58_tu8() {
    let world = World::new(&[("KIRO_EARLY_HEADERS", "1ms"), ("KIRO_USAGE_SPLIT", "none")]).await;
    // Reading it takes longer than that.
    let mut body = with(STREAM());
    body["system"] = json!("word ".repeat(400_000));
    let counted = world.post("/v1/messages/count_tokens", body.to_string()).await.json();
    let start = &events(&world.messages(&body).await.text)[0];
    assert_eq!(start["message"]["usage"]["input_tokens"], counted["input_tokens"]);
}

/// Counts that no sum holds harm nobody but themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_counts_of_upstream_are_bounded_m59_tu2() {
    let world = World::new(&[]).await;
    let tokens = json!({ "uncachedInputTokens": u64::MAX, "outputTokens": u64::MAX, "cacheReadInputTokens": u64::MAX });
    let scene = json!({ "text": "x", "usage": { "tokens": tokens } });
    for stream in [false, true] {
        let reply = world.scene(&scene, json!({ "stream": stream })).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.text.matches("_tokens\":9007199254740991").count(), 3, "{}", reply.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_and_then_a61_to_a65() {
    let world = World::new(&[]).await;
    let mid = json!({ "steps": [{ "text": "Hel" }, { "exception": "ThrottlingException" }] });
    let reply = world.scene(&mid, STREAM()).await;
    let all = events(&reply.text);
    assert_eq!(
        kinds(&all),
        ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "error"],
        "A61"
    );
    assert_eq!(all[4]["error"]["type"], "rate_limit_error", "A61");

    let world = World::new(&[]).await;
    let cut =
        json!({ "steps": [{ "tool": { "id": "t", "name": "f", "input": "{\"a\":", "stop": "never" } }], "end": "cut" });
    world.scene(&cut, json!({})).await.is_error("A62", 500, "api_error", "");

    let half = json!({ "steps": [{ "text": "x" }, { "tool": { "id": "t", "name": "f", "input": "{\"a\":", "stop": "never" } }] });
    let world = World::new(&[]).await;
    let reply = world.scene(&half, STREAM()).await;
    let all = events(&reply.text);
    assert_eq!(all[all.len() - 2]["delta"]["stop_reason"], "max_tokens", "A63: {}", reply.text);
    let folded = world.scene(&half, json!({})).await.json();
    assert_eq!(
        (&folded["stop_reason"], folded["content"].as_array().unwrap().len()),
        (&json!("max_tokens"), 1),
        "A63: {folded}"
    );

    let tools = json!({ "steps": [
        { "tool": { "id": "a", "name": "f", "input": "{}" } }, { "tool": { "id": "b", "name": "g", "input": "{\"y\":2}", "pieces": 2 } }, { "text": "ok" }] });
    let reply = world.scene(&tools, STREAM()).await;
    let all = events(&reply.text);
    let starts: Vec<_> =
        all.iter().filter(|e| e["type"] == "content_block_start").map(|e| e["index"].as_u64().unwrap()).collect();
    assert_eq!(starts, [0, 1, 2], "A64");
    assert_eq!(all[all.len() - 2]["delta"]["stop_reason"], "tool_use", "A64");

    let empty = json!({ "steps": [{ "tool": { "id": "a", "name": "f" } }] });
    let reply = world.scene(&empty, STREAM()).await;
    let deltas: Vec<_> = events(&reply.text).into_iter().filter(|e| e["type"] == "content_block_delta").collect();
    assert_eq!(deltas.len(), 1, "A65");
    assert_eq!(deltas[0]["delta"], json!({ "type": "input_json_delta", "partial_json": "{}" }), "A65");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thinking_comes_with_signature_redacted_data_and_text_a66() {
    let world = World::new(&[]).await;
    let scene = json!({ "steps": [{ "thinking": "I see.", "signature": "abcd", "signature_pieces": 2 }, { "redacted": "AAEC" }, { "text": "Yes" }] });
    let folded = world.scene(&scene, json!({ "thinking": { "type": "adaptive" } })).await.json();
    assert_eq!(
        folded["content"],
        json!([{ "type": "thinking", "thinking": "I see.", "signature": "abcd" }, { "type": "redacted_thinking", "data": "AAEC" }, { "type": "text", "text": "Yes" }]),
        "A66"
    );
}

/// A110, A118, stream half: a signature alone is a thinking block with empty text; signed segments aren't joined.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_alone_and_segments_a110_a118_ts27_ts29() {
    let world = World::new(&[]).await;
    let thinking = json!({ "thinking": { "type": "enabled", "budget_tokens": 2000 } });
    let alone = json!({ "steps": [{ "signature": "c2lnbmF0dXJl", "signature_pieces": 3 }, { "text": "Yes" }] });
    let folded = world.scene(&alone, thinking.clone()).await.json();
    let empty = |signature: &str| json!({ "type": "thinking", "thinking": "", "signature": signature });
    assert_eq!(folded["content"], json!([empty("c2lnbmF0dXJl"), { "type": "text", "text": "Yes" }]), "A110");
    assert_eq!(world.scene(&alone, json!({})).await.json()["content"].as_array().unwrap().len(), 1, "nobody asked");

    let signed = |text: &str, signature: &str| json!({ "thinking": text, "signature": signature });
    let segments =
        json!({ "steps": [signed("a", "czE="), signed("b", "czI="), { "signature": "czM=" }, { "text": "t" }] });
    let folded = world.scene(&segments, thinking).await.json();
    let signatures: Vec<&Value> =
        folded["content"].as_array().unwrap().iter().map(|block| &block["signature"]).collect();
    assert_eq!(json!(signatures), json!(["czE=", "czI=", "czM=", null]), "A118: {folded}");
}

/// A111: `omitted` where upstream doesn't know it: the gateway drops the text, and keeps the signature if one came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn omitted_text_is_dropped_here_a111_ts28() {
    let world = World::new(&[]).await;
    let thinking = json!({ "thinking": { "type": "enabled", "budget_tokens": 2000, "display": "omitted" } });
    let signed = json!({ "steps": [{ "thinking": "I see.", "signature": "abcd" }, { "text": "Yes" }] });
    let folded = world.scene(&signed, thinking.clone()).await.json();
    assert_eq!(
        folded["content"],
        json!([{ "type": "thinking", "thinking": "", "signature": "abcd" }, { "type": "text", "text": "Yes" }]),
        "A111"
    );
    let unsigned = json!({ "steps": [{ "text": "<thinking>I see.</thinking>Yes" }] });
    let folded = world.scene(&unsigned, thinking).await.json();
    assert_eq!(folded["content"], json!([{ "type": "text", "text": "Yes" }]), "A111");
}

/// A187: 20 answers with counts and a percentage say what the percentage of the next one refers to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_window_of_percentages_is_learnt_a187() {
    let world = World::new(&[("KIRO_USAGE_SPLIT", "none")]).await;
    let percent_only = json!({ "steps": [{ "text": "x" }, { "usage": { "percent": 10 } }] });
    let before = world.scene(&percent_only, json!({})).await.json()["usage"]["input_tokens"].as_u64().unwrap();
    let both = |input: u64| {
        let tokens = json!({ "uncachedInputTokens": input, "outputTokens": 1 });
        json!({ "steps": [{ "text": "x" }, { "usage": { "percent": 10, "tokens": tokens } }] })
    };
    // What can't be is not used.
    for _ in 0..20 {
        world.scene(&both(before * 4), json!({})).await;
    }
    assert_eq!(world.scene(&percent_only, json!({})).await.json()["usage"]["input_tokens"], before, "A187");
    for _ in 0..20 {
        world.scene(&both(before * 2), json!({})).await;
    }
    let after = world.scene(&percent_only, json!({})).await.json()["usage"]["input_tokens"].as_u64().unwrap();
    assert!(after.abs_diff(before * 2) <= 2, "A187: {before}, then {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_are_sent_while_upstream_is_silent_a67() {
    let world = World::new(&[("KIRO_PING_INTERVAL", "200ms")]).await;
    let scene = json!({ "steps": [{ "text": "a" }, { "wait_ms": 700 }, { "text": "b" }] });
    let reply = world.scene(&scene, STREAM()).await;
    let all = events(&reply.text);
    assert_eq!(kinds(&all).iter().filter(|kind| **kind == "ping").count(), 3, "A67: {}", reply.text);
    assert_eq!(kinds(&all).last(), Some(&"message_stop"), "A67");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_frees_upstream_within_100_ms_a68_m10_k70() {
    let world = World::new(&[]).await;
    // In mid-answer, before the first event, and with a folded answer.
    let hanging = json!({ "text": "a", "end": "hang" });
    let silent = json!({ "end": "hang", "steps": [] });
    for (scenario, stream, reads) in [(&hanging, true, true), (&silent, true, false), (&hanging, false, false)] {
        let mut body = with(json!({ "stream": stream }));
        body["messages"] = json!([{ "role": "user", "content": format!("[[sim {scenario}]]") }]);
        let request = world.http.post(world.url("/v1/messages")).header("x-api-key", KEY).body(body.to_string());
        if reads {
            let mut response = request.send().await.unwrap();
            assert!(response.chunk().await.unwrap().is_some());
            drop(response);
        } else {
            let asked = tokio::time::timeout(Duration::from_millis(300), request.send()).await;
            assert!(asked.is_err(), "nothing should have come yet");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let stats = world.simulated.control().stats();
        assert_eq!(stats["streams"]["open"], 0, "A68: {stats}");
        assert_eq!(world.gateway.in_flight(), 0, "A68");
    }
    assert_eq!(world.simulated.control().stats()["streams"]["closed_by_client"], 3);
    assert_eq!(world.gateway.health().accounts.healthy, 1, "A68: the account is unchanged");
}

/// The next numbers of `/status/events`.
async fn numbers(response: &mut reqwest::Response) -> Value {
    let mut seen = String::new();
    while !seen.ends_with("\n\n") {
        let chunk = tokio::time::timeout(Duration::from_secs(10), response.chunk()).await.unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&chunk.expect("the numbers go on")).unwrap());
    }
    let data = seen.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    assert!(seen.contains("event: status\n"), "{seen}");
    serde_json::from_str(data).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_page_is_strict_and_its_numbers_are_live() {
    let world = World::with_tokens(&["access-1", "sim-402"], &[]).await;
    let page = world.http.get(world.url("/claude-kiro-oauth/status")).send().await.unwrap();
    let header = |name: &str| page.headers()[name].to_str().unwrap().to_owned();
    assert_eq!((page.status().as_u16(), header("content-type")), (200, "text/html; charset=utf-8".to_owned()));
    assert!(header("content-security-policy").starts_with("default-src 'none'; script-src 'sha256-"));
    assert_eq!((header("cache-control"), header("referrer-policy")), ("no-store".to_owned(), "no-referrer".to_owned()));

    let mut live = world.http.get(world.url("/status/events")).send().await.unwrap();
    let before = numbers(&mut live).await;
    assert_eq!((&before["requests"]["complete"], &before["streams_open"]), (&json!(0), &json!(0)), "{before}");
    let held = world.hold(&json!({ "text": "one", "end": "hang" })).await;
    for _ in 0..3 {
        assert_eq!(world.messages(&base()).await.status, 200);
    }
    let mut now = numbers(&mut live).await;
    while now["requests"]["complete"] != 3 {
        now = numbers(&mut live).await;
    }
    assert_eq!((&now["streams_open"], &now["in_flight"], &now["accounts_hidden"]), (&json!(1), &json!(1), &json!(0)));
    let accounts = now["accounts"].as_array().unwrap();
    // What needs a look comes first; ids are cut.
    assert_eq!((&accounts[0]["id"], &accounts[0]["state"]), (&json!("00000001"), &json!("quota")), "{now}");
    assert!(accounts[0]["rests_seconds"].as_u64().unwrap() > 0);
    assert_eq!((&accounts[1]["id"], &accounts[1]["in_flight"]), (&json!("00000000"), &json!(1)));
    let text = now.to_string();
    for secret in ["access-1", "sim-402", "refresh-0", KEY, "-4000-8000", "arn:"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    drop(held);

    // A shutdown doesn't wait for a client that watches the live figures.
    let closing = tokio::time::timeout(Duration::from_secs(5), async {
        tokio::join!(world.gateway.close(Duration::from_secs(60)), world.listening.drain(), async {
            while live.chunk().await.unwrap().is_some() {}
        })
    });
    closing.await.expect("the numbers end when the gateway closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_status_need_the_key_from_elsewhere() {
    let world = World::new(&[]).await;
    for path in ["/metrics", "/status", "/status/events", "/claude-kiro-oauth/metrics"] {
        let ask = |headers: &[(&'static str, String)]| {
            let mut request = world.http.get(world.url(path));
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            async { request.send().await.unwrap() }
        };
        let said = |name, value: &str| (name, value.to_owned());
        assert_eq!(ask(&[]).await.status(), 200, "{path} on loopback");
        for elsewhere in [
            said("x-forwarded-for", "192.0.2.1"),
            said("forwarded", "for=192.0.2.1"),
            said("x-real-ip", "192.0.2.1"),
            said("via", "1.1 proxy"),
            said("sec-fetch-site", "cross-site"),
        ] {
            let refused = ask(std::slice::from_ref(&elsewhere)).await;
            assert_eq!(refused.status(), 401, "{path} with {elsewhere:?}");
            let asks_for_a_password = refused.headers().contains_key("www-authenticate");
            assert_eq!(asks_for_a_password, path.starts_with("/status"), "{path}");
            assert_eq!(ask(&[elsewhere, said("x-api-key", KEY)]).await.status(), 200, "{path}");
        }
        // A browser's own form: "x" and the key, then "x" and another one.
        for (pair, is_key) in [(format!("x:{KEY}"), true), ("x:other".to_owned(), false)] {
            let basic = format!("Basic {}", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pair));
            let answer = ask(&[said("via", "1.1 proxy"), ("authorization", basic)]).await;
            let right = is_key && path.starts_with("/status");
            assert_eq!(answer.status(), if right { 200 } else { 401 }, "{path}");
        }
    }
    assert_eq!(world.post("/status", "").await.status, 405);
}

/// C40: how the newest Claude Code greets, and what it sends beside what everybody sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_the_newest_claude_code_are_served_c39_c40() {
    let world = World::new(&[]).await;
    let hello = world.http.head(world.url("/api/hello")).send().await.unwrap();
    assert_eq!(hello.status(), 200);
    let body = with(json!({
        "model": "claude-opus-5-5",
        "stream": true,
        "safeguards": { "level": "high" },
        "thinking": { "type": "adaptive", "display": "omitted" },
        "context_management": { "edits": [{ "type": "clear_thinking_20251015", "keep": "all" }] },
        "messages": [
            { "role": "user", "content": "hi" },
            { "role": "system", "content": [], "output_config": { "effort": "low" } },
            { "role": "system", "content": [] },
        ],
    }));
    let reply = world.messages(&body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(!reply.text.contains("safeguards"));
    for model in ["claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"] {
        for form in [model.to_owned(), format!("{model}[1m]"), format!("{model}-latest"), format!("{model}-20260926")] {
            assert_eq!(world.messages(&with(json!({ "model": form }))).await.status, 200, "{form}");
        }
    }
    let updates = with(json!({ "thinking": { "type": "adaptive", "display": "updates" } }));
    world.messages(&updates).await.is_error("C40", 400, "invalid_request_error", "thinking.display");
}
