//! One request from start to end, over real HTTP against the simulator and a real Redis: failover, timeouts, connections,
//! shutdown (K42–K50, K67–K72, K137, traps).
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::json;
use world::{KEY, Reply, STREAM, World, base, events, kinds, with};

/// K45, the column *client*, and the verdict: with a good second account, does the client notice?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_alone_and_beside_a_good_account_k45_m60_trap_29_trap_30_trap_32() {
    let table = [
        // preset, status, type, next account helps
        ("prompt-too-long", 400, "invalid_request_error", false),
        ("413", 413, "request_too_large", false),
        ("unknown-model", 404, "not_found_error", false),
        ("400", 400, "invalid_request_error", false),
        ("conversation-limit", 400, "invalid_request_error", false),
        // One forced refresh, and the new token is taken.
        ("401", 200, "", true),
        ("403-invalid-token", 200, "", true),
        ("403-expired-token", 200, "", true),
        ("suspended", 500, "api_error", true),
        ("suspended-by-message", 500, "api_error", true),
        ("403", 500, "api_error", true),
        ("409", 500, "api_error", true),
        // M85: the next request would be told the same.
        ("402", 500, "api_error", true),
        ("402-plain", 500, "api_error", true),
        ("overage", 500, "api_error", true),
        ("daily", 500, "api_error", true),
        ("suspicious", 429, "rate_limit_error", true),
        ("capacity", 529, "overloaded_error", true),
        ("unavailable", 529, "overloaded_error", true),
        ("529", 529, "overloaded_error", true),
        ("429", 429, "rate_limit_error", true),
        ("400-throttling", 429, "rate_limit_error", true),
        ("500", 500, "api_error", true),
        ("502-html", 500, "api_error", true),
        ("503", 500, "api_error", true),
        ("408", 500, "api_error", true),
        ("invalid-state", 500, "api_error", true),
        ("drop", 500, "api_error", true),
        ("drop-reset", 500, "api_error", true),
        ("empty", 500, "api_error", true),
        ("cut-early", 500, "api_error", true),
        ("corrupt", 500, "api_error", true),
        ("corrupt-prelude", 500, "api_error", true),
    ];
    // They wait for their next attempts most of the time: a few at once.
    let rows = futures_util::stream::iter(table);
    rows.for_each_concurrent(8, async |(preset, status, kind, next_helps)| {
        let bad = format!("sim-{preset}");
        let alone = World::with_tokens(&[&bad], &[]).await;
        // Both modes alike (trap 29), and a real status (trap 32).
        let reply = alone.messages(&with(STREAM())).await;
        assert_eq!(reply.status, status, "{preset}: {}", reply.text);
        if status != 200 {
            assert_eq!(reply.json()["error"]["type"], kind, "{preset}: {}", reply.text);
        }
        assert!(!reply.text.contains("d-0000000000"), "{preset}: upstream's user id reached the client (K48)");

        let pair = World::with_tokens(&[&bad, "access-2"], &[]).await;
        for stream in [false, true] {
            let reply = pair.messages(&with(json!({ "stream": stream }))).await;
            // Round-robin: one of the two requests begins at the bad account.
            let helped = reply.status == 200;
            assert!(
                helped || (!next_helps && reply.status == status),
                "{preset} beside a good one: {} {}",
                reply.status,
                reply.text
            );
        }
        if !next_helps {
            assert_eq!(
                pair.gateway.health().accounts.healthy,
                2,
                "{preset}: a request's fault took an account out (K49)"
            );
        }
    })
    .await;
}

/// Six of ten accounts are out in whatever way, in whatever order: nobody notices, and no bad account is asked again and
/// again (R105: exactly as often as it was in flight is held in `src/pool/tests.rs`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_six_of_ten_accounts_out_no_request_fails_d19_k137_r105() {
    const ROUNDS: u64 = 20;
    let mut rng = fastrand::Rng::with_seed(19);
    for round in 0..ROUNDS {
        let mut tokens: Vec<String> =
            ["429", "402", "suspended", "403", "suspicious", "daily"].map(|preset| format!("sim-{preset}")).into();
        tokens.extend((0..4).map(|n| format!("access-{n}")));
        rng.shuffle(&mut tokens);
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let world = World::with_tokens(&tokens, &[]).await;
        let (world, body) = (&world, &base());
        let answers = futures_util::stream::iter(0..500).map(|_| world.messages(body)).buffer_unordered(50);
        let failed: Vec<String> = answers
            .filter_map(async |reply| (reply.status != 200).then(|| format!("{}: {}", reply.status, reply.text)))
            .collect()
            .await;
        assert!(failed.is_empty(), "round {round}, {tokens:?}: {failed:#?}");
        for (token, calls) in calls_by_token(world) {
            // Fifty requests over ten accounts, and those of the other bad ones that come to it meanwhile.
            assert!(!token.starts_with("sim-") || calls <= 20, "round {round}: {calls} to {token}");
        }
    }
}

fn calls_by_token(world: &World) -> Vec<(String, u64)> {
    let stats = world.simulated.control().stats();
    let calls = stats["calls_by_token"].as_object().unwrap();
    calls.iter().map(|(token, calls)| (token.clone(), calls.as_u64().unwrap())).collect()
}

/// Slow refusals: the request ends in time, with what the last account said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_time_ends_a_request_d20_k137() {
    let tokens: Vec<String> = (0..10).map(|n| format!("access-{n}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let world = World::with_tokens(&tokens, &[("KIRO_FAILOVER_TIME", "1s")]).await;
    let slow = json!({ "head_ms": 400, "http": {
        "status": 402, "type": "ServiceQuotaExceededException", "reason": "MONTHLY_REQUEST_COUNT", "message": "limit"
    } });
    let began = Instant::now();
    let reply = world.scene(&slow, json!({})).await;
    let took = began.elapsed();
    reply.is_error("D20", 503, "overloaded_error", "");
    assert!((Duration::from_millis(1_150)..Duration::from_millis(3_000)).contains(&took), "{took:?}");
    assert!((2..=3).contains(&world.upstream_calls()), "{}", world.upstream_calls());
}

/// What upstream is to blame for is tried on `KIRO_MAX_ATTEMPTS` accounts, not on all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wave_of_5xx_from_all_is_three_attempts_d21_k137() {
    let tokens: Vec<String> = (0..16).map(|n| format!("access-{n}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let world = World::with_tokens(&tokens, &[]).await;
    world.scene(&json!({ "http": { "status": 500, "message": "no" } }), json!({})).await.is_error(
        "D21",
        500,
        "api_error",
        "",
    );
    assert_eq!(world.upstream_calls(), 3);
}

/// Acceptance case P55: two accounts are under suspicion, a third is throttled, and the fourth is not asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_the_brake_a_throttled_request_goes_nowhere_else_k90_k92_p55() {
    let world = World::with_tokens(&["access-1", "access-2", "sim-429", "sim-429.2"], &[]).await;
    let now = jiff::Timestamp::now();
    for n in 0..2 {
        let id = format!("0000000{n}-0000-4000-8000-000000000000");
        let until = now + jiff::SignedDuration::from_mins(30);
        let suspected = json!({
            "uuid": id, "isHealthy": false, "errorCount": 1, "lastErrorTime": format!("{now:.3}"),
            "lastErrorMessage": format!("cool-down until {until:.3}: suspicious activity (1)"),
        });
        let mut set = redis::cmd("HSET");
        set.arg("aiclient:pools:claude-kiro-oauth").arg(&id).arg(suspected.to_string());
        set.query::<()>(&mut world.redis_connection()).unwrap();
    }
    world.gateway.pool().reload().await.unwrap();
    for calls in 1..=2 {
        let reply = world.messages(&base()).await;
        reply.is_error("P55", 429, "rate_limit_error", "");
        assert!(reply.headers.contains_key("retry-after"), "P55");
        assert_eq!(world.upstream_calls(), calls, "P55: no fourth account");
    }
    let status = world.gateway.status();
    assert!(status.braked_until.is_some());
    let suspected = status.accounts.iter().filter(|account| {
        account.problem.as_deref().is_some_and(|problem| problem.starts_with("suspicious, back in "))
    });
    assert_eq!(suspected.count(), 2, "K91");
    let metrics = world.http.get(world.url("/metrics")).header("x-api-key", KEY).send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains("kiro_suspicion_brake 1"));
}

/// Acceptance case P56: a limit is no failure and leaves no mark.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_a_minute_over_http_k92_p56() {
    let world = World::with_tokens(&["access-1", "access-2"], &[("KIRO_ACCOUNT_RPM", "2")]).await;
    let (asked, body) = (&world, &base());
    let replies: Vec<Reply> =
        futures_util::stream::iter(0..6).map(|_| asked.messages(body)).buffer_unordered(6).collect().await;
    assert_eq!(calls_by_token(&world), [("access-1".to_owned(), 2), ("access-2".to_owned(), 2)]);
    let (good, limited): (Vec<&Reply>, Vec<&Reply>) = replies.iter().partition(|reply| reply.status == 200);
    assert_eq!((good.len(), limited.len()), (4, 2));
    for reply in limited {
        reply.is_error("P56", 429, "rate_limit_error", "All accounts have had their requests of this minute");
        let after: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&after), "P56: {after}");
    }
    assert_eq!(world.gateway.health().accounts.healthy, 2);
    assert!(world.accounts().iter().all(|account| account["isHealthy"] == true), "P56: no mark");
}

/// Trap 28: a 400 goes upstream once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_400_is_one_upstream_call_trap_28() {
    let world = World::with_tokens(&["sim-400", "sim-400", "sim-400"], &[]).await;
    assert_eq!(world.messages(&base()).await.status, 400);
    assert_eq!(world.upstream_calls(), 1);
}

/// K71, M56: the first delta leaves before the second frame exists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_waits_for_a_later_chunk_k71() {
    let world = World::new(&[]).await;
    let mut body = with(STREAM());
    body["messages"] = json!([{ "role": "user", "content": "[[sim {\"steps\":[{\"text\":\"first\"},{\"wait_ms\":600},{\"text\":\"second\"}]}]]" }]);
    let began = Instant::now();
    let mut response = world
        .http
        .post(world.url("/v1/messages"))
        .header("x-api-key", KEY)
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    let mut seen = String::new();
    while !seen.contains("first") {
        seen.push_str(&String::from_utf8_lossy(&response.chunk().await.unwrap().unwrap()));
    }
    assert!(began.elapsed() < Duration::from_millis(400), "the first delta took {:?}", began.elapsed());
    assert!(!seen.contains("second"));
    while let Some(chunk) = response.chunk().await.unwrap() {
        seen.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(seen.contains("second") && seen.contains("message_stop"));
}

/// K70, K72, trap 19: finished streams give their connection back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_used_again_k70_k72_trap_19() {
    let world = World::new(&[]).await;
    let scene = json!({ "text": "x" });
    for n in 0..1000 {
        let stream = n % 2 == 0;
        assert_eq!(world.scene(&scene, json!({ "stream": stream })).await.status, 200);
    }
    let accepted = world.simulated.control().stats()["connections"]["accepted"].as_u64().unwrap();
    assert!(accepted <= 10, "{accepted} connections for 1,000 requests");
}

/// K68: headers alone don't stop the wait for the first event; silence later ends in `timeout_error`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_timeout_ends_its_own_wait_k68_trap_20() {
    let world = World::with_tokens(&["sim-silent"], &[("KIRO_FIRST_EVENT_TIMEOUT", "300ms")]).await;
    let began = Instant::now();
    world.messages(&with(STREAM())).await.is_error("first event", 504, "timeout_error", "");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());

    let world = World::with_tokens(&["sim-no-head"], &[("KIRO_FIRST_EVENT_TIMEOUT", "300ms")]).await;
    world.messages(&base()).await.is_error("no head", 504, "timeout_error", "");

    let world = World::with_tokens(&["sim-stall"], &[("KIRO_IDLE_TIMEOUT", "300ms")]).await;
    let reply = world.messages(&with(STREAM())).await;
    let all = events(&reply.text);
    assert_eq!(kinds(&all)[all.len() - 2..], ["content_block_stop", "error"], "{}", reply.text);
    assert_eq!(all[all.len() - 1]["error"]["type"], "timeout_error");

    // Trap 20: a stream longer than every configured timeout lives while chunks keep coming.
    let short =
        [("KIRO_FIRST_EVENT_TIMEOUT", "400ms"), ("KIRO_IDLE_TIMEOUT", "400ms"), ("KIRO_CONNECT_TIMEOUT", "400ms")];
    let world = World::new(&short).await;
    let reply = world.scene(&json!({ "text": "{n},", "count": 20, "gap_ms": 80 }), STREAM()).await;
    assert_eq!(kinds(&events(&reply.text)).last(), Some(&"message_stop"), "{}", reply.text);
}

/// A long request is no reason for the streams of its thread to wait, here for the one there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_request_delays_nobody() {
    let world = World::new(&[]).await;
    let tool = |n: usize| json!({ "name": format!("t{n}"), "input_schema": { "type": "object" } });
    let tools: Vec<_> = (0..40_000).map(tool).collect();
    let long = with(json!({ "tools": tools })).to_string();
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let ticking = tokio::spawn({
        let longest = longest.clone();
        async move {
            let mut last = Instant::now();
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let waited = last.elapsed();
                last = Instant::now();
                let mut longest = longest.lock().unwrap();
                *longest = waited.max(*longest);
            }
        }
    });
    let gateway = world.gateway.clone();
    let worked = tokio::spawn(async move {
        let began = Instant::now();
        gateway.count_tokens(long.as_bytes()).unwrap();
        began.elapsed()
    });
    let worked = worked.await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    ticking.abort();
    let waited = *longest.lock().unwrap();
    assert!(waited < worked / 2, "{waited:?} in {worked:?}");
}

/// `KIRO_MAX_CONNS`: over it 529 at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_conns_is_answered_with_529() {
    let world = World::new(&[("KIRO_MAX_CONNS", "1")]).await;
    let held = world.hold(&json!({ "text": "a", "end": "hang" })).await;
    world.messages(&base()).await.is_error("max conns", 529, "overloaded_error", "");
    drop(held);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.messages(&base()).await.status, 200);
}

/// Grace: what ends in time is whole, the rest ends with `error` (M64), and nothing new begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_lets_streams_finish_and_cuts_the_rest() {
    let world = World::new(&[]).await;
    let quick = world.hold(&json!({ "steps": [{ "text": "a" }, { "wait_ms": 300 }, { "text": "b" }] })).await;
    let endless = world.hold(&json!({ "text": "a", "end": "hang" })).await;
    let (_, whole, cut) = tokio::join!(world.gateway.close(Duration::from_millis(800)), quick.rest(), endless.rest());
    assert_eq!(kinds(&events(&whole)).last(), Some(&"message_stop"), "{whole}");
    let all = events(&cut);
    assert_eq!(kinds(&all)[all.len() - 2..], ["content_block_stop", "error"], "{cut}");
    assert_eq!(all[all.len() - 1]["error"]["type"], "overloaded_error");
    assert_eq!(world.gateway.in_flight(), 0);
    world.messages(&base()).await.is_error("closed", 503, "overloaded_error", "");
}

/// Round-robin by the shared counter: each account its share, and uses are counted in Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uses_are_spread_evenly_and_counted() {
    let world = World::with_tokens(&["a-1", "a-2", "a-3"], &[]).await;
    for n in 0..30 {
        assert_eq!(world.scene(&json!({ "text": format!("x{n}") }), json!({})).await.status, 200);
    }
    world.gateway.close(Duration::from_secs(2)).await;
    let counts: Vec<u64> = world.accounts().iter().map(|account| account["usageCount"].as_u64().unwrap()).collect();
    assert_eq!(counts.iter().sum::<u64>(), 30, "{counts:?}");
    assert!(counts.iter().all(|count| (9..=11).contains(count)), "{counts:?}");
}

/// Issue of the predecessor: however many requests meet an expired token, it is refreshed once (trap 33), and all are
/// answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_requests_on_an_expired_token_are_one_refresh_trap_33() {
    let world = World::with_expired(&["old-access"]).await;
    let scene = json!({ "text": "x" });
    let asked = (0..10).map(|_| world.scene(&scene, STREAM()));
    for reply in futures_util::future::join_all(asked).await {
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    let stats = world.simulated.control().stats();
    let calls: u64 = stats["refresh_calls"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(calls, 1, "{stats}");
}

/// A models file replaces the table, and a change of it is seen without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_models_file_is_reloaded_and_a_bad_one_changes_nothing_tr6() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("models.json");
    let table = |name: &str| {
        json!([{ "kiro_id": "claude-next", "names": [name], "display_name": "Next", "created": "2026-11-01T00:00:00Z", "window": 172_500, "max_output": 64_000 }]).to_string()
    };
    std::fs::write(&file, table("claude-next-1")).unwrap();
    // Names that the table doesn't hold would pass to upstream, or be found in an account's list.
    let settings = [
        ("KIRO_MODELS_FILE", file.to_str().unwrap()),
        ("KIRO_MODEL_UNKNOWN", "refuse"),
        ("KIRO_MODEL_DISCOVERY", "off"),
    ];
    let world = World::new(&settings).await;
    world.simulated.control().world(json!({ "more_models": ["claude-next"] })).unwrap();
    assert_eq!(world.messages(&with(json!({ "model": "claude-next-1" }))).await.status, 200);
    world.messages(&base()).await.is_error("replaced", 404, "not_found_error", "model: unknown model");
    std::fs::write(&file, "[{ \"kiro_id\": 5 }]").unwrap();
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    assert_eq!(world.messages(&with(json!({ "model": "claude-next-1" }))).await.status, 200, "the old table stays");
    std::fs::write(&file, table("claude-next-2")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let reply = world.messages(&with(json!({ "model": "claude-next-2" }))).await;
        if reply.status == 200 {
            break;
        }
        assert!(Instant::now() < deadline, "not reloaded: {}", reply.text);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Case 42's other half and M2: a key in the store's config is needed, and a change of it takes effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_in_the_store_is_needed_r57() {
    let world = World::new(&[("KIRO_API_KEY", "")]).await;
    world.set_config(r#"{"REQUIRED_API_KEY":"k1","apiKey":"k2"}"#);
    let ask = async |key: &str| {
        let sent = world.http.post(world.url("/v1/messages")).header("x-api-key", key).body(base().to_string()).send();
        // Not `Reply::read`: before the key is known, no other site may read the answer.
        sent.await.unwrap().status().as_u16()
    };
    let deadline = Instant::now() + Duration::from_secs(7);
    while ask("k2").await != 401 {
        assert!(Instant::now() < deadline, "the store's key was not taken");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((ask("k1").await, ask("").await), (200, 401));
}
