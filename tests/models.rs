//! The models of accounts: asked for in the background, shown, and passed on (K123–K127).
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use std::time::{Duration, Instant};

use kiro_messages::gateway::{Call, ModelInfo};
use serde_json::json;
use world::{World, base, with};

/// Calls of ListAvailableModels that the simulated Kiro has seen.
fn asked(world: &World) -> u64 {
    world.simulated.control().stats()["shapes"]["q"]["models"]["count"].as_u64().unwrap_or(0)
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn listed(world: &World, id: &str) -> Option<ModelInfo> {
    world.gateway.list_models().into_iter().find(|model| model.id == id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogue_of_three_pages_is_read_a99_k124_k125_k126_m86() {
    let world = World::new(&[]).await;
    let more = json!({ "more_models": [{ "id": "claude-opus-9.9", "window": 2_000_000 }], "models_page": 9 });
    world.simulated.control().world(more).unwrap();
    assert!(listed(&world, "claude-opus-9-9").is_none());
    assert_eq!(asked(&world), 0, "nobody is asked before the first answer");
    assert_eq!(world.messages(&base()).await.status, 200);
    until("no catalogue", || listed(&world, "claude-opus-9-9").is_some()).await;
    assert_eq!(asked(&world), 3);
    let found = listed(&world, "claude-opus-9-9").unwrap();
    assert_eq!((found.max_input_tokens, &*found.created_at), (2_000_000, "1970-01-01T00:00:00Z"));
    let last = world.gateway.list_models().pop().unwrap();
    assert_eq!(last.id, "claude-opus-9-9");
    // Every page came from one account, which has no old model.
    assert!(listed(&world, "claude-opus-5-5").is_some() && listed(&world, "gpt-5.6-sol").is_none());
    assert_eq!(world.gateway.model("claude-opus-9-9[1m]").unwrap().max_input_tokens, 2_000_000);
    assert!(world.gateway.model("claude-opus-9-8").is_none(), "it passes, but nobody knows it");
    assert_eq!(world.messages(&with(json!({ "model": "claude-opus-9-9" }))).await.status, 200);
    for _ in 0..5 {
        assert_eq!(world.messages(&base()).await.status, 200);
    }
    assert_eq!(asked(&world), 3, "an hour hasn't passed");
}

/// The account's window, and no other, is what the percentage refers to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_window_of_the_catalogue_makes_the_usage_a99_k126_tu2() {
    let world = World::new(&[("KIRO_USAGE_SPLIT", "none")]).await;
    world.simulated.control().world(json!({ "windows": { "claude-sonnet-4.5": 400_000 } })).unwrap();
    let total = async || {
        let usage = world.scene(&json!({ "text": "x" }), json!({})).await.json()["usage"].clone();
        usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap()
    };
    let by_table = total().await;
    until("no catalogue", || listed(&world, "claude-sonnet-4-5").unwrap().max_input_tokens == 400_000).await;
    assert!(by_table > 0);
    assert_eq!(total().await, 2 * by_table);
}

/// A free plan beside a paid one: the model's requests go to the account that has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_with_the_model_are_asked_first_a101_k127() {
    let world = World::with_tokens(&["access-1", "access-2"], &[]).await;
    let control = world.simulated.control();
    control.script(json!({ "token": "access-1", "world": "free-tier" })).unwrap();
    // Each conversation has an account of its own: both answer, so that both catalogues come.
    let ask = async |text: String, model: &str| {
        let message = json!([{ "role": "user", "content": text }]);
        assert_eq!(world.messages(&with(json!({ "model": model, "messages": message }))).await.status, 200);
    };
    for n in 0..2 {
        ask(format!("first {n}"), "claude-sonnet-4-5").await;
    }
    until("no catalogues", || asked(&world) == 2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let calls = |token: &str| control.stats()["calls_by_token"][token].as_u64().unwrap_or(0);
    let before = (calls("access-1"), calls("access-2"));
    for n in 0..4 {
        ask(format!("then {n}"), "claude-opus-5").await;
    }
    assert_eq!((calls("access-1"), calls("access-2")), (before.0, before.1 + 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_asked_for_by_get_where_post_is_unknown_k124() {
    let world = World::new(&[]).await;
    let unknown = json!({ "on": "models", "token": "access-1", "scenarios": [{ "http": { "status": 404, "type": "UnknownOperationException" } }] });
    world.simulated.control().script(unknown).unwrap();
    world
        .simulated
        .control()
        .world(json!({ "more_models": [{ "id": "claude-opus-9.9" }], "models_page": 20 }))
        .unwrap();
    assert_eq!(world.messages(&base()).await.status, 200);
    until("no catalogue", || listed(&world, "claude-opus-9-9").is_some()).await;
    let requests = &world.simulated.control().stats()["requests"];
    assert_eq!(asked(&world), 3, "a refused request, then two pages: {requests}");
    assert_eq!(requests["GET /ListAvailableModels"], 2, "{requests}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogue_that_fails_or_hangs_is_on_no_requests_path_a100_k125() {
    let world = World::new(&[("KIRO_MAX_INFLIGHT_PER_ACCOUNT", "1")]).await;
    let hang =
        json!({ "on": "models", "token": "access-1", "scenarios": [{ "head_ms": 60_000, "http": { "status": 500 } }] });
    world.simulated.control().script(hang).unwrap();
    let began = Instant::now();
    for _ in 0..5 {
        assert_eq!(world.messages(&base()).await.status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(listed(&world, "claude-opus-5-5").unwrap().max_input_tokens, 1_000_000, "the table's");
}

/// Another question each time, so that round robin goes on.
fn asks(model: &str, n: usize) -> serde_json::Value {
    with(json!({ "model": model, "messages": [{ "role": "user", "content": format!("question {n}") }] }))
}

fn calls(world: &World, token: &str) -> u64 {
    world.simulated.control().stats()["calls_by_token"][token].as_u64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_belongs_to_the_account_p44_k87_k88() {
    let world = World::with_tokens(&["free", "paid"], &[("KIRO_MODEL_DISCOVERY", "off")]).await;
    world.simulated.control().script(json!({ "token": "free", "world": "free-tier" })).unwrap();
    for n in 0..6 {
        assert_eq!(world.messages(&asks("claude-opus-5", n)).await.status, 200, "{n}");
    }
    assert_eq!((calls(&world, "free"), calls(&world, "paid")), (1, 6), "for an hour only to the one that has it");
    for n in 6..10 {
        assert_eq!(world.messages(&asks("claude-sonnet-4-5", n)).await.status, 200, "{n}");
    }
    assert!(calls(&world, "free") >= 3, "the other model goes to both");
    assert!(world.accounts().iter().all(|account| account["isHealthy"] == true), "no health change");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_404_only_when_no_resting_account_may_serve_it_p45_p46_k88() {
    let world = World::with_tokens(&["free"], &[("KIRO_MODEL_DISCOVERY", "off")]).await;
    world.simulated.control().world(json!("free-tier")).unwrap();
    for n in 0..2 {
        world.messages(&asks("claude-opus-5", n)).await.is_error("P45", 404, "not_found_error", "");
    }
    assert_eq!(calls(&world, "free"), 1, "one call; the second request: none");
    let world = World::with_tokens(&["free", "paid"], &[("KIRO_MODEL_DISCOVERY", "off")]).await;
    world.simulated.control().script(json!({ "token": "free", "world": "free-tier" })).unwrap();
    for n in 0..2 {
        assert_eq!(world.messages(&asks("claude-opus-5", n)).await.status, 200);
    }
    world.simulated.control().script(json!({ "token": "paid", "scenarios": ["429-retry-after-30"] })).unwrap();
    assert_eq!(world.messages(&asks("claude-opus-5", 2)).await.status, 429);
    let before = calls(&world, "free") + calls(&world, "paid");
    let reply = world.messages(&asks("claude-opus-5", 3)).await;
    assert!(matches!(reply.status, 503 | 429), "the model exists: {}", reply.text);
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(calls(&world, "free") + calls(&world, "paid"), before, "nobody is asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_asks_eight_accounts_at_most_p47_k88() {
    let tokens: Vec<String> = (0..20).map(|n| format!("free-{n:02}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let world = World::with_tokens(&tokens, &[("KIRO_MODEL_DISCOVERY", "off")]).await;
    world.simulated.control().world(json!("free-tier")).unwrap();
    let mut seen = 0;
    for (n, expected) in [8, 8, 4, 0].into_iter().enumerate() {
        world.messages(&asks("claude-opus-5", n)).await.is_error("P47", 404, "not_found_error", "");
        let now = world.upstream_calls();
        assert_eq!(now - seen, expected, "request {n}");
        seen = now;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_names_are_tried_on_two_accounts_at_most_a95_p48_k89_tr36() {
    let world = World::with_tokens(&["one", "two", "three"], &[("KIRO_MODEL_DISCOVERY", "off")]).await;
    for name in ["claude-opus-6", "claude-poet-7-1-20270101", "claude-hymn-3-2"] {
        let before = world.upstream_calls();
        world.messages(&asks(name, 1)).await.is_error(name, 404, "not_found_error", "");
        let first = world.upstream_calls() - before;
        assert_eq!(first, 2, "{name}");
        world.messages(&asks(name, 2)).await.is_error(name, 404, "not_found_error", "");
        assert_eq!(world.upstream_calls() - before, first, "{name}: answered at once for ten minutes");
    }
    // One that Kiro begins to serve answers at once.
    world.simulated.control().world(json!({ "more_models": ["claude-verse-2.1"] })).unwrap();
    assert_eq!(world.messages(&asks("claude-verse-2-1", 3)).await.status, 200);
}

/// TR50: of four markers as many go out as the account's catalogue allows for the model, or its row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_points_keep_to_the_catalogue_and_the_row_tr50_k126() {
    let marked = |text: &str| json!([{ "type": "text", "text": text, "cache_control": { "type": "ephemeral" } }]);
    let body = with(json!({ "system": marked("S"), "messages": [
        { "role": "user", "content": marked("a") },
        { "role": "assistant", "content": marked("b") },
        { "role": "user", "content": marked("c") },
    ] }));
    let table = |cache: &str| {
        format!(
            r#"[{{"kiro_id":"claude-sonnet-4.5","names":["claude-sonnet-4-5"],"display_name":"d",
            "created":"2025-09-29T00:00:00Z","window":200000,"max_output":64000{cache}}}]"#
        )
    };
    let says_4 = json!({ "supportsPromptCaching": true, "maximumCacheCheckpointsPerRequest": 4 });
    for (row, caching, first, then) in [
        ("", json!({}), 4, 4),
        ("", says_4.clone(), 4, 4),
        ("", json!({ "maximumCacheCheckpointsPerRequest": 2 }), 4, 2),
        ("", json!({ "supportsPromptCaching": false, "maximumCacheCheckpointsPerRequest": 4 }), 4, 0),
        (r#","cache":{"points":1}"#, says_4, 1, 1),
        (r#","cache":{"points":3},"pin":true"#, json!({ "supportsPromptCaching": false }), 3, 3),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("models.json");
        std::fs::write(&file, table(row)).unwrap();
        let world = World::new(&[("KIRO_CACHE_POINTS", "client"), ("KIRO_MODELS_FILE", file.to_str().unwrap())]).await;
        let control = world.simulated.control();
        let case = format!("{row} {caching}");
        let page = json!({ "models": [
            { "modelId": "claude-sonnet-4.5", "promptCaching": caching },
            { "modelId": "claude-opus-9.9" },
        ] });
        let answer = json!({ "http": { "status": 200, "body": page } });
        control.script(json!({ "on": "models", "token": "access-1", "scenarios": [answer] })).unwrap();
        let sent = || control.stats()["shapes"]["q"]["chat"]["cache_points"].as_u64().unwrap();
        assert_eq!(world.messages(&body).await.status, 200, "{case}");
        assert_eq!(sent(), first, "{case}: before the catalogue is known");
        until("no catalogue", || listed(&world, "claude-opus-9-9").is_some()).await;
        assert_eq!(world.messages(&body).await.status, 200, "{case}");
        assert_eq!(sent(), first + then, "{case}");
        assert_eq!(world.upstream_calls(), 2, "{case}: nothing had to be repaired");
    }
}

/// TR36: a name that upstream refuses is served by the model of `KIRO_MODEL_FALLBACK`, in the request that was refused too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fallback_serves_the_request_that_was_refused_tr36() {
    let settings = [("KIRO_MODEL_DISCOVERY", "off"), ("KIRO_MODEL_FALLBACK", "claude-sonnet-4-5")];
    for streamed in [false, true] {
        let world = World::with_tokens(&["one", "two", "three"], &settings).await;
        let body = |n: usize| {
            with(json!({
                "model": "claude-opus-6", "stream": streamed, "thinking": { "type": "adaptive" },
                "messages": [{ "role": "user", "content": format!("question {n}") }],
            }))
        };
        let seen = || {
            let chat = world.simulated.control().stats()["shapes"]["q"]["chat"].clone();
            (
                chat["models"]["claude-opus-6"].as_u64(),
                chat["models"]["claude-sonnet-4.5"].as_u64(),
                chat["fields"].clone(),
            )
        };
        let reply = world.messages(&body(1)).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert!(reply.text.contains(r#""model":"claude-opus-6""#), "the client's string: {}", reply.text);
        assert_eq!(
            seen(),
            (Some(2), Some(1), json!(null)),
            "two have said no; the other model is asked in its own way"
        );
        assert_eq!(world.messages(&body(2)).await.status, 200);
        assert_eq!(seen(), (Some(2), Some(2), json!(null)), "at once for ten minutes");
        let metrics = world.gateway.metrics();
        let counted = metrics.lines().filter(|line| line.starts_with("kiro_requests_total{") && !line.ends_with(" 0"));
        let counted: Vec<&str> = counted.filter(|line| line.contains("claude-sonnet-4-5")).collect();
        assert!(counted.len() == 1 && counted[0].ends_with(" 2"), "{counted:?}");
        assert!(world.accounts().iter().all(|account| account["isHealthy"] == true));
    }
}

/// TR36: the edges of the fallback: one account, a pinned request, a model that resting accounts have, a fallback that is
/// none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fallback_takes_over_when_no_account_serves_the_name_tr36_k88() {
    let settings = [("KIRO_MODEL_DISCOVERY", "off"), ("KIRO_MODEL_FALLBACK", "claude-sonnet-4-5")];
    let world = World::with_tokens(&["one"], &settings).await;
    assert_eq!(world.messages(&asks("claude-opus-6", 1)).await.status, 200);
    assert_eq!(world.upstream_calls(), 2);
    // A pinned request is served by its account, and nothing is remembered of it.
    let pinned = async |world: &World, model: &str| {
        let call = Call { account_id: Some("00000000-0000-4000-8000-000000000000".to_owned()), ..Call::default() };
        world.gateway.create(asks(model, 7).to_string().into(), call).await
    };
    for n in 1..=2 {
        pinned(&world, "claude-opus-7").await.unwrap();
        assert_eq!(world.upstream_calls(), 2 + 2 * n);
    }
    // A known model that this account doesn't have is no unknown name.
    world.simulated.control().world(json!("free-tier")).unwrap();
    world.messages(&asks("claude-opus-5", 2)).await.is_error("known", 404, "not_found_error", "");

    // The model exists: who has it only rests.
    let world = World::with_tokens(&["one", "two"], &settings).await;
    world.simulated.control().script(json!({ "token": "two", "world": "new-model" })).unwrap();
    let mut n = 0;
    while calls(&world, "two") == 0 {
        n += 1;
        assert_eq!(world.messages(&asks("claude-opus-9-9", n)).await.status, 200);
    }
    world.simulated.control().script(json!({ "token": "two", "scenarios": ["429-retry-after-30"] })).unwrap();
    for n in 10..12 {
        let reply = world.messages(&asks("claude-opus-9-9", n)).await;
        assert!(matches!(reply.status, 429 | 503), "{}", reply.text);
    }

    let settings = [("KIRO_MODEL_DISCOVERY", "off"), ("KIRO_MODEL_FALLBACK", "claude-nothing-9")];
    let world = World::with_tokens(&["one", "two"], &settings).await;
    world.messages(&asks("claude-opus-6", 1)).await.is_error("none", 404, "not_found_error", "");
    assert_eq!(world.upstream_calls(), 2);
}
