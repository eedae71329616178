//! What accounts have left, asked in the background (K146).
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use world::{World, with};

/// Another text each time: equal requests are one conversation.
async fn ask(world: &World, text: &str) -> u16 {
    world.messages(&with(json!({ "messages": [{ "role": "user", "content": text }] }))).await.status
}

/// Calls for usage that the simulator has seen.
fn asked(world: &World) -> u64 {
    let stats = world.simulated.control().stats();
    ["q", "runtime"].iter().filter_map(|shape| stats["shapes"][shape]["usage"]["count"].as_u64()).sum()
}

fn metric(world: &World, series: &str) -> Option<f64> {
    let text = world.gateway.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The marks of all accounts, as the store has them.
fn marks(world: &World) -> Vec<Value> {
    let mark = |account: Value| json!([account["lastErrorMessage"], account["isHealthy"], account["errorCount"]]);
    world.accounts().into_iter().map(mark).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_account_shows_its_credits_and_an_unused_one_is_not_asked_k146() {
    let world = World::with_tokens(&["access-1", "access-2"], &[]).await;
    world.simulated.control().world(json!({ "credits": 100 })).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(asked(&world), 0, "nobody was used");
    assert_eq!(metric(&world, "kiro_accounts_without_credits"), Some(2.0));
    assert_eq!(metric(&world, "kiro_usage_asks_total{outcome=\"ok\"}"), Some(0.0), "it is there before the event");

    assert_eq!(ask(&world, "hello").await, 200);
    until("the first reading", || metric(&world, "kiro_accounts_without_credits") == Some(1.0)).await;
    assert_eq!(metric(&world, "kiro_usage_asks_total{outcome=\"ok\"}"), Some(1.0));
    let used = |text: &str| text.lines().filter(|line| line.starts_with("kiro_account_credits_used{")).count();
    assert_eq!(used(&world.gateway.metrics()), 1, "an account that wasn't asked has no series");

    let status = serde_json::to_value(world.gateway.status()).unwrap();
    let accounts = status["accounts"].as_array().unwrap();
    let known: Vec<&Value> = accounts.iter().filter(|account| !account["credits"].is_null()).collect();
    let [known] = known[..] else { panic!("{status}") };
    let id = known["id"].as_str().unwrap();
    assert_eq!(id.len(), 8);
    assert_eq!(metric(&world, &format!("kiro_account_credits_limit{{account=\"{id}\"}}")), Some(100.0));
    let used = metric(&world, &format!("kiro_account_credits_used{{account=\"{id}\"}}")).unwrap();
    assert!(used > 0.0 && used < 100.0, "{used}");
    assert_eq!((&known["credits"]["used"], &known["credits"]["limit"]), (&json!(used), &json!(100.0)));
    let reset = metric(&world, &format!("kiro_account_credits_reset_time_seconds{{account=\"{id}\"}}")).unwrap();
    let resets_at: jiff::Timestamp = known["credits"]["resets_at"].as_str().unwrap().parse().unwrap();
    assert!((reset - resets_at.as_second() as f64).abs() <= 1.0, "{reset}");

    // Used again, it is not due for a quarter of an hour.
    assert_eq!(ask(&world, "hello").await, 200);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(asked(&world), 1);
}

/// What a dead account has left would hide that the pool runs dry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_out_has_no_gauges_k146() {
    let world = World::new(&[("KIRO_USAGE_INTERVAL", "300ms")]).await;
    assert_eq!(ask(&world, "hello").await, 200);
    let shown = || world.gateway.metrics().lines().filter(|line| line.starts_with("kiro_account_credits_")).count();
    until("three gauges", || shown() == 3).await;
    let suspended = json!({ "http": { "status": 403, "type": "AccessDeniedException", "reason": "TEMPORARILY_SUSPENDED", "message": "Your User ID is temporarily suspended." } });
    world.scene(&suspended, json!({})).await;
    until("none", || shown() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_interval_is_a_setting_and_off_asks_nobody_k146() {
    let often = World::new(&[("KIRO_USAGE_INTERVAL", "200ms")]).await;
    assert_eq!(ask(&often, "one").await, 200);
    until("the first question", || asked(&often) == 1).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(asked(&often), 1, "unused since");
    assert_eq!(ask(&often, "two").await, 200);
    until("the second question", || asked(&often) == 2).await;

    let never = World::new(&[("KIRO_USAGE_INTERVAL", "0s")]).await;
    assert_eq!(ask(&never, "three").await, 200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(asked(&never), 0);
}

/// Whatever Kiro answers: even `suspended` is for the next request to find out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_question_is_counted_and_marks_nothing_k146() {
    for preset in ["suspended", "402", "429", "500"] {
        let world = World::new(&[("KIRO_USAGE_INTERVAL", "500ms")]).await;
        let http = match preset {
            "suspended" => {
                json!({ "http": { "status": 403, "type": "AccessDeniedException", "reason": "TEMPORARILY_SUSPENDED", "message": "Your User ID is temporarily suspended." } })
            }
            "402" => {
                json!({ "http": { "status": 402, "type": "ServiceQuotaExceededException", "reason": "MONTHLY_REQUEST_COUNT", "message": "You have reached the limit." } })
            }
            "429" => {
                json!({ "http": { "status": 429, "type": "ThrottlingException", "message": "Too many requests." } })
            }
            _ => json!({ "http": { "status": 500, "type": "InternalServerException", "message": "Oh." } }),
        };
        let script = json!({ "token": "access-1", "on": "usage", "scenarios": [http], "forever": true });
        world.simulated.control().script(script).unwrap();
        assert_eq!(ask(&world, preset).await, 200);
        let before = marks(&world);
        let failed = || metric(&world, "kiro_usage_asks_total{outcome=\"failed\"}") >= Some(1.0);
        until("a failure", failed).await;
        assert_eq!(metric(&world, "kiro_accounts_without_credits"), Some(1.0));
        let state = serde_json::to_value(world.gateway.status()).unwrap()["accounts"][0]["state"].clone();
        assert_eq!(state, "healthy", "{preset}");
        assert_eq!(ask(&world, "and on").await, 200, "{preset}");
        world.gateway.close(Duration::from_secs(1)).await;
        assert_eq!(marks(&world), before, "{preset}");
        assert_eq!(before[0][0], Value::Null);
        let calls = asked(&world);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(asked(&world), calls, "{preset}: none after the end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_rests_is_not_asked_and_a_pool_runs_dry_k146() {
    let world = World::new(&[("KIRO_USAGE_INTERVAL", "300ms")]).await;
    assert_eq!(ask(&world, "hello").await, 200);
    until("the first question", || asked(&world) == 1).await;
    assert_eq!(ask(&world, "hello again").await, 200);
    let limited = json!({ "http": { "status": 429, "type": "ThrottlingException", "message": "Too many requests." } });
    assert_eq!(world.scene(&limited, json!({})).await.status, 429);
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    let status = serde_json::to_value(world.gateway.status()).unwrap();
    assert_eq!(asked(&world), 1, "it rests: {status}");
    assert_eq!(metric(&world, "kiro_usage_asks_total{outcome=\"failed\"}"), Some(0.0), "which is no failure");

    let world = World::new(&[("KIRO_USAGE_INTERVAL", "300ms")]).await;
    world.simulated.control().world(json!("runs-dry")).unwrap();
    let mut statuses = Vec::new();
    for n in 0..20 {
        statuses.push(ask(&world, &format!("request {n} of a pool that runs dry")).await);
        if statuses.last() != Some(&200) {
            break;
        }
    }
    assert!(statuses.len() > 1 && statuses.last() != Some(&200), "{statuses:?}");
    let left = || {
        let known = serde_json::to_value(world.gateway.status()).unwrap()["accounts"][0]["credits"].clone();
        Some(known["limit"].as_f64()? - known["used"].as_f64()?)
    };
    // The account is out of quota by now, and asked all the same: it was used since it was asked last.
    until("nothing is left", || left().is_some_and(|left| left <= 0.0)).await;
}
