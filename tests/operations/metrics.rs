//! `/metrics`: every name of the table moves when what it counts happens.

use std::collections::BTreeMap;
use std::time::Duration;

use kiro_messages::gateway::Call;
use kiro_messages::metrics::METRICS;
use serde_json::json;

use crate::place::{Place, add_account, scene, social, within_10_s};
use crate::settings::hold;
use crate::world::{KEY, STREAM, World, base, with};

/// Series and values of a text.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

/// The sum over all labels.
fn sum(all: &BTreeMap<String, f64>, name: &str) -> f64 {
    let is_it = |key: &str| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
    all.iter().filter(|(key, _)| is_it(key)).map(|(_, value)| value).sum()
}

/// A server does everything that is counted; then no name of the table has the value that it had at the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_moves() {
    let world = World::with_tokens(
        &["access-1", "sim-429"],
        &[("KIRO_MAX_INFLIGHT_PER_ACCOUNT", "2"), ("KIRO_ACCOUNT_WAIT", "5s"), ("KIRO_ACCOUNT_CACHE_TTL", "100ms")],
    )
    .await;
    let text = async || world.http.get(world.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let before = series(&text().await);

    // An answer with an unknown event, one that breaks, a refused request, one without a key, an unknown path.
    let unknown = json!({ "steps": [{ "event": "somethingNew", "payload": {} }, { "text": "a" }] });
    assert_eq!(world.scene(&unknown, STREAM()).await.status, 200);
    world.scene(&json!({ "text": "a", "end": "corrupt_crc" }), STREAM()).await;
    world.scene(&json!({ "text": "a", "usage": false }), STREAM()).await;
    // The other account is rate limited: two requests are enough to meet it.
    for conversation in ["a", "b"] {
        world.messages(&with(json!({ "messages": [{ "role": "user", "content": conversation }] }))).await;
    }
    // A thought of nobody we know.
    let thought = json!([{ "type": "thinking", "thinking": "t", "signature": "s" }, { "type": "text", "text": "x" }]);
    let messages = json!([
        { "role": "user", "content": "c" }, { "role": "assistant", "content": thought }, { "role": "user", "content": "d" },
    ]);
    world.messages(&with(json!({ "thinking": { "type": "adaptive" }, "messages": messages }))).await;
    assert_eq!(world.messages(&with(json!({ "model": "claude-none" }))).await.status, 404);
    assert_eq!(world.http.get(world.url("/nope")).send().await.unwrap().status(), 404);
    assert_eq!(world.http.post(world.url("/v1/messages")).body("{}").send().await.unwrap().status(), 401);
    // An expired token is refreshed.
    add_account(&mut world.redis_connection(), "aiclient:", 9, &social("old", "2020-01-01T00:00:00.000Z"));
    within_10_s("the third account is seen", || world.gateway.accounts().len() == 3).await;
    world.gateway.pool().account(&crate::place::account_id(9)).unwrap();
    let pinned = Call { account_id: Some(crate::place::account_id(9)), ..Call::default() };
    world.gateway.create(base().to_string().into(), pinned).await.unwrap();

    // Streams that hang fill both accounts that are left; one more waits.
    let hang = json!({ "text": "a", "end": "hang" });
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(hold(&world.gateway, &hang).await);
    }
    let waiting = {
        let gateway = world.gateway.clone();
        tokio::spawn(async move { gateway.create(base().to_string().into(), Call::default()).await })
    };
    within_10_s("one waits", || world.gateway.status().waiting == 1).await;
    let during = series(&text().await);
    for (name, wanted) in [
        ("kiro_requests_in_flight", 5.0),
        ("kiro_streams_open", 4.0),
        ("kiro_requests_waiting", 1.0),
        ("kiro_account_in_flight", 4.0),
        ("kiro_account_waits_total", 1.0),
    ] {
        assert_eq!(sum(&during, name), wanted, "{name}");
    }
    drop(held.pop());
    waiting.await.unwrap().unwrap();
    drop(held);

    let text = text().await;
    let after = series(&text);
    // Levels that are back where they were, or that never change.
    let levels = [
        "kiro_requests_in_flight",
        "kiro_streams_open",
        "kiro_requests_waiting",
        "kiro_account_in_flight",
        "kiro_redis_queued_writes",
        "kiro_build_info",
        "kiro_client_version_info",
        "kiro_suspicion_brake",
        "kiro_upstream_host_state",
        "kiro_model_fields_refused_total",
        "kiro_client_version_refused_total",
        "process_max_fds",
        "process_start_time_seconds",
        "kiro_redis_connected",
        "kiro_redis_errors_total",
        "kiro_frame_crc_failures_total",
        "process_threads",
        "process_open_fds",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "kiro_tasks_alive",
        // tests/serving/handshakes.rs, tests/upstream_wire/kept.rs
        "kiro_upstream_idle_connections",
        "kiro_upstream_ahead_failures_total",
        // tests/serving/bodies.rs
        "kiro_request_memory_bytes",
        "kiro_request_memory_waits_total",
        // tests/web_search.rs
        "kiro_web_search_total",
        "kiro_web_search_seconds",
        // tests/operations/keys.rs
        "kiro_client_key_requests_total",
        "kiro_client_key_refused_total",
        // tests/credits.rs
        "kiro_accounts_without_credits",
        // tests/webhook.rs
        "kiro_notices_total",
        // tests/stop.rs
        "kiro_log_lines_dropped_total",
    ];
    for metric in METRICS {
        let family = metric.name.strip_suffix("_total").unwrap_or(metric.name);
        if cfg!(not(target_os = "linux")) && family.starts_with("process_") {
            continue;
        }
        assert!(text.contains(&format!("# HELP {family} ")), "{family}");
        assert!(text.contains(&format!("# TYPE {family} {}\n", metric.kind.as_str())), "{family}");
        let name = match metric.kind {
            kiro_messages::metrics::MetricKind::Histogram => format!("{}_count", metric.name),
            _ => metric.name.to_owned(),
        };
        let (then, now) = (sum(&before, &name), sum(&after, &name));
        if !levels.contains(&metric.name) {
            assert!(now > then, "{name} stayed at {now}");
        }
    }
    for name in ["process_open_fds", "process_threads", "process_virtual_memory_bytes", "process_resident_memory_bytes"]
    {
        assert!(cfg!(not(target_os = "linux")) || sum(&after, name) > 0.0, "{name}");
    }
    assert!(sum(&after, "kiro_tasks_alive") >= 1.0 && sum(&after, "kiro_build_info") == 1.0);
    assert_eq!(sum(&after, "kiro_redis_connected"), 1.0);
    assert_eq!(sum(&after, "kiro_frame_crc_failures_total"), 1.0);
    for (one, wanted) in [
        ("kiro_requests_total{outcome=\"refused\",model=\"unknown\"}", 1.0),
        ("kiro_request_errors_total{code=\"KIRO_NOT_FOUND\"}", 1.0),
        ("kiro_request_errors_total{code=\"KIRO_INTERNAL\"}", 0.0),
        ("kiro_http_refused_total{route=\"messages\",status=\"401\"}", 1.0),
        ("kiro_http_refused_total{route=\"other\",status=\"404\"}", 1.0),
        ("kiro_unknown_events_total{event=\"somethingNew\"}", 1.0),
        ("kiro_upstream_attempts_total{outcome=\"RateLimited\"}", 1.0),
        ("kiro_upstream_attempts_total{outcome=\"Protocol\"}", 1.0),
        ("kiro_token_refreshes_total{outcome=\"refreshed\"}", 1.0),
        ("kiro_accounts{state=\"healthy\"}", 2.0),
        ("kiro_accounts{state=\"cooling\"}", 1.0),
        ("kiro_account_in_flight{account=\"00000000\"}", 0.0),
    ] {
        assert_eq!(after.get(one), Some(&wanted), "{one} in {text}");
    }
    assert!(!text.contains(&crate::place::account_id(0)), "a whole account id");
    assert!(!text.contains("access-1") && !text.contains("client-key"), "a secret");
}

/// Redis goes: the errors are counted, the level says so, and writes are queued.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_redis_shows() {
    let mut place = Place::new(&[("KIRO_ACCOUNT_CACHE_TTL", "100ms")]).await;
    place.redis.kill();
    within_10_s("it is away", || !place.gateway.store().status().is_connected()).await;
    place.ask(base()).await.unwrap();
    within_10_s("an error", || sum(&series(&place.gateway.metrics()), "kiro_redis_errors_total") >= 1.0).await;
    let all = series(&place.gateway.metrics());
    assert_eq!(sum(&all, "kiro_redis_connected"), 0.0);
    assert_eq!(all["kiro_redis_queued_writes{kind=\"account\"}"], 1.0);
    within_10_s("a read fails", || {
        series(&place.gateway.metrics())["kiro_account_snapshots_total{outcome=\"failed\"}"] >= 1.0
    })
    .await;
}

/// A slow upstream and a slow caller are not the gateway's overhead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overhead_leaves_out_upstream_and_caller() {
    let place = Place::new(&[]).await;
    // Half a second before the head, before the first event and between the events: 3 s in all.
    let slow = json!({ "head_ms": 500, "first_ms": 500, "count": 5, "gap_ms": 500, "text": "a" });
    place.scene(&slow).await.unwrap();
    let status = place.gateway.status();
    assert!(status.overhead_seconds.sum < 0.3, "{:?}", status.overhead_seconds);
    let all = series(&place.gateway.metrics());
    assert!(sum(&all, "kiro_request_duration_seconds_sum") > 2.5);
    assert!((0.9..2.5).contains(&sum(&all, "kiro_first_event_seconds_sum")), "{all:?}");

    // The caller takes its time.
    use futures_util::StreamExt;
    let mut body = scene(&json!({ "count": 4, "gap_ms": 1, "text": "a" }));
    body["stream"] = json!(true);
    let mut stream = place.gateway.stream(body.to_string().into(), Call::default()).await.unwrap();
    while stream.next().await.is_some() {
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    drop(stream);
    let status = place.gateway.status();
    assert!(status.overhead_seconds.sum < 0.4, "{:?}", status.overhead_seconds);
    assert_eq!(status.overhead_seconds.count(), 2);
    assert_eq!((status.requests["complete"], status.in_flight, status.streams_open), (2, 0, 0));
}

/// What waits for an account is the gateway's own doing, and counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_an_account_is_overhead() {
    let place = Place::new(&[("KIRO_ACCOUNT_WAIT", "9s"), ("KIRO_MAX_INFLIGHT_PER_ACCOUNT", "1")]).await;
    let held = hold(&place.gateway, &json!({ "text": "a", "end": "hang" })).await;
    let (asked, ()) = tokio::join!(place.ask(base()), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        drop(held);
    });
    asked.unwrap();
    assert!(place.gateway.status().overhead_seconds.sum >= 0.6, "{:?}", place.gateway.status().overhead_seconds);
}

/// M2: no key on loopback, else the client key. A proxy on loopback is no loopback client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_need_the_key_from_elsewhere() {
    let world = World::new(&[]).await;
    let get = async |key: &str| {
        let asked =
            world.http.get(world.url("/metrics")).header("x-forwarded-for", "192.0.2.1").header("x-api-key", key);
        asked.send().await.unwrap()
    };
    assert_eq!(get("wrong").await.status(), 401);
    let reply = get(KEY).await;
    assert_eq!(reply.status(), 200);
    assert!(reply.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
}
