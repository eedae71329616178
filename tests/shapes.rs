//! The two wire shapes, the client version, and what is done when upstream refuses one of them: acceptance cases A73 to A92,
//! A102, A113, A114, A131–A133, A184.
#![cfg(feature = "server")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test code")]

#[path = "support/redis_server.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod redis_server;
#[path = "support/world.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod world;

use std::time::Duration;

use kiro_messages::proto::kiro::client_identity::VERSION;
use serde_json::{Value, json};

use world::accounts::add_account;
use world::{World, base, events, kinds, with};

impl World {
    /// Changes the simulated world.
    fn becomes(&self, world: Value) {
        self.simulated.control().script(json!({ "world": world })).unwrap();
    }

    /// Chat calls of a shape so far.
    fn chats(&self, shape: &str) -> u64 {
        self.simulated.control().stats()["shapes"][shape]["chat"]["count"].as_u64().unwrap_or(0)
    }

    /// (q, runtime).
    fn both(&self) -> (u64, u64) {
        (self.chats("q"), self.chats("runtime"))
    }

    /// What is known of the last chat call of a shape.
    fn last(&self, shape: &str) -> Value {
        self.simulated.control().stats()["shapes"][shape]["chat"].clone()
    }

    async fn asks(&self, body: &Value) -> u16 {
        self.messages(body).await.status
    }

    fn metric(&self, line: &str) -> bool {
        self.gateway.metrics().lines().any(|one| one == line)
    }

    /// One more account in the store.
    fn adds_account(&self, id: &str, token: &Value) {
        add_account(&mut self.redis_connection(), id, &json!({}), token);
    }

    /// No health field of any account has changed.
    #[track_caller]
    fn accounts_are_unmarked(&self) {
        for account in self.gateway.status().accounts {
            assert_eq!(account.state, "healthy", "{account:?}");
        }
    }
}

async fn today(options: &[(&str, &str)]) -> World {
    World::new(options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_q_shape_by_default_a73_k111_k113_k115() {
    let world = today(&[]).await;
    assert_eq!(world.asks(&base()).await, 200);
    assert_eq!(world.both(), (1, 0));
    let seen = world.last("q");
    let headers = &seen["headers"];
    assert!(headers["user-agent"].as_str().unwrap().contains(&format!(" KiroIDE-{VERSION}-")), "{headers}");
    assert_eq!(headers["x-amzn-kiro-agent-mode"], "vibe");
    assert!(headers["x-amzn-kiro-client-attribution"].is_null());
    let members = seen["members"].to_string();
    assert!(!members.contains("agentMode") && !members.contains("rootConversationId"), "{members}");
    assert!(world.metric("kiro_upstream_shape_total{shape=\"q\",outcome=\"ok\"} 1"), "{}", world.gateway.metrics());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_shape_a74_k112_k115() {
    let world = today(&[("KIRO_UPSTREAM_API", "runtime")]).await;
    let reply = world.messages(&with(json!({ "stream": true }))).await;
    assert_eq!(reply.status, 200);
    assert_eq!(kinds(&events(&reply.text)).last(), Some(&"message_stop"));
    assert_eq!(world.both(), (0, 1));
    let seen = world.last("runtime");
    let headers = &seen["headers"];
    assert_eq!(headers["content-type"], "application/x-amz-json-1.0");
    assert_eq!(headers["x-amz-target"], "KiroRuntimeService.GenerateAssistantResponse");
    assert_eq!(headers["x-amzn-kiro-client-attribution"], "kiro-ide");
    assert_eq!(headers["x-kiro-attempt"], "1;max=3");
    assert!(headers["accept"].is_null() && headers["x-amzn-kiro-agent-mode"].is_null());
    assert!(headers["user-agent"].as_str().unwrap().contains("-KAS/"), "{headers}");
    let members = seen["members"].to_string();
    assert!(members.contains("agentMode") && members.contains("rootConversationId"), "{members}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_version_is_reported_and_marks_no_account_a75_k104_k105_k106_k107() {
    let world = today(&[("KIRO_CLIENT_VERSION", "0.8.140")]).await;
    let reply = world.messages(&base()).await;
    reply.is_error("A75", 500, "api_error", "the upstream refuses this gateway's client version");
    assert_eq!(reply.headers["x-should-retry"], "false");
    assert!(!reply.text.contains("0000000"), "no account is named");
    assert_eq!(world.both(), (1, 1), "no third call");
    world.accounts_are_unmarked();
    let health = serde_json::to_value(world.gateway.health()).unwrap();
    assert_eq!(
        (health["status"].as_str(), health["clientVersion"]["refused"].as_bool()),
        (Some("degraded"), Some(true))
    );
    assert_eq!(health["clientVersion"]["value"], "0.8.140");
    assert!(health["clientVersion"]["since"].is_string());
    let refused: u64 = (world.gateway.metrics().lines())
        .filter(|line| line.starts_with("kiro_client_version_refused_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(refused, 2);
    assert!(world.gateway.health().can_serve, "twenty must have been refused");
    for _ in 0..19 {
        world.messages(&base()).await;
    }
    assert!(!world.gateway.health().can_serve);
    world.becomes(json!("any-version"));
    assert_eq!(world.asks(&base()).await, 200);
    assert!(world.gateway.health().can_serve);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_refuses_the_version_and_the_other_serves_a76_a77_k109() {
    let world = today(&[]).await;
    world.becomes(json!("old-version-runtime"));
    assert_eq!(world.asks(&base()).await, 200);
    assert_eq!(world.both(), (1, 0));
    let world = today(&[]).await;
    world.becomes(json!("old-version-q"));
    assert_eq!(world.asks(&base()).await, 200);
    assert_eq!(world.both(), (1, 1));
    assert_eq!(world.asks(&base()).await, 200);
    assert_eq!(world.both(), (1, 2), "runtime first, for ten minutes");
    world.accounts_are_unmarked();
}

/// A78: the gate may be rolled out by region. What is known of it ranks the accounts of the next request.
#[tokio::test(flavor = "multi_thread")]
async fn one_account_of_another_region_is_tried_a78_k105_k109() {
    let world = World::with_tokens(&["access-1"], &[("KIRO_AFFINITY", "off")]).await;
    let far = json!({
        "accessToken": "access-eu", "refreshToken": "r-eu", "authMethod": "social", "region": "eu-central-1",
        "expiresAt": "2099-01-01T00:00:00.000Z",
        "profileArn": "arn:aws:codewhisperer:eu-central-1:123456789012:profile/SIMULATED",
    });
    world.adds_account("00000009-0000-4000-8000-000000000000", &far);
    world.gateway.pool().reload().await.unwrap();
    world.becomes(json!({ "min_version": { "us-east-1": "99.0.0" } }));
    for n in 1..=4 {
        assert_eq!(
            world.asks(&with(json!({ "messages": [{ "role": "user", "content": format!("{n}") }] }))).await,
            200,
            "{n}"
        );
    }
    let calls = world.simulated.control().stats()["calls_by_token"].clone();
    assert_eq!((calls["access-1"].as_u64(), calls["access-eu"].as_u64()), (Some(2), Some(4)), "{calls}");
    world.accounts_are_unmarked();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_gone_is_left_alone_a82_k118_k119_k120() {
    for gone in ["gone-q", "deprecated-q"] {
        let world = today(&[]).await;
        world.becomes(json!(gone));
        for n in 1..=11 {
            assert_eq!(world.asks(&base()).await, 200, "{gone} {n}");
        }
        assert_eq!(world.both(), (1, 11), "{gone}");
        world.accounts_are_unmarked();
        let hosts = serde_json::to_value(world.gateway.health()).unwrap()["hosts"].clone();
        assert!(hosts.to_string().contains("open"), "{hosts}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_hosts_gone_count_on_no_account_a83_k119() {
    let world = today(&[]).await;
    world.becomes(json!(["gone-q", "gone-runtime"]));
    world.messages(&base()).await.is_error("A83", 500, "api_error", "");
    assert_eq!(world.both(), (1, 1), "one call each");
    world.accounts_are_unmarked();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_the_accounts_and_never_asks_the_other_shape_a84_a85_k119() {
    let world = World::with_tokens(&["sim-429-retry-after-7.1", "access-2"], &[("KIRO_STRATEGY", "round-robin")]).await;
    for _ in 0..2 {
        assert_eq!(world.asks(&base()).await, 200);
    }
    let stats = world.simulated.control().stats();
    assert_eq!(stats["calls_by_token"]["sim-429-retry-after-7.1"], 1);
    assert_eq!(world.chats("runtime"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn suspicion_never_asks_the_other_shape_a86_k91() {
    let world = World::with_tokens(&["sim-suspicious.1", "access-2"], &[]).await;
    for _ in 0..2 {
        assert_eq!(world.asks(&base()).await, 200);
    }
    assert_eq!(world.chats("runtime"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_small_form_is_learned_a87_k116() {
    let world = today(&[("KIRO_UPSTREAM_API", "runtime")]).await;
    world.becomes(json!("no-continuation"));
    assert_eq!(world.asks(&base()).await, 200);
    assert_eq!(world.chats("runtime"), 2, "full, small");
    assert!(!world.last("runtime")["members"].to_string().contains("agentMode"));
    assert_eq!(world.asks(&base()).await, 200);
    assert_eq!(world.chats("runtime"), 3, "small at once");
    // The same with model fields that are refused without a word.
    let world = today(&[("KIRO_UPSTREAM_API", "runtime")]).await;
    world.becomes(json!(["no-continuation", "no-silent-fields"]));
    let fields = with(json!({ "model": "claude-opus-5", "output_config": { "effort": "low" } }));
    assert_eq!(world.asks(&fields).await, 200);
    assert_eq!(world.chats("runtime"), 3, "full, small, small without fields");
    assert_eq!(world.asks(&fields).await, 200);
    assert_eq!(world.chats("runtime"), 4);
    world.accounts_are_unmarked();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_an_arn_is_served_by_the_other_shape_a88_k119() {
    let world = World::with_tokens(&[], &[("KIRO_UPSTREAM_API", "runtime,q")]).await;
    let builder = json!({
        "accessToken": "sim-acct-builder-strict", "refreshToken": "r", "authMethod": "IdC", "provider": "BuilderId",
        "clientId": "c", "clientSecret": "s", "expiresAt": "2099-01-01T00:00:00.000Z",
    });
    world.adds_account("00000009-0000-4000-8000-000000000000", &builder);
    world.gateway.pool().reload().await.unwrap();
    world.becomes(json!("needs-arn-runtime"));
    assert_eq!(world.asks(&base()).await, 200);
    let (q, runtime) = world.both();
    assert!(q >= 1 && runtime >= 1, "{q}, {runtime}");
    assert_eq!(world.asks(&base()).await, 200);
    assert_eq!(world.both(), (q + 1, runtime), "remembered");
    world.accounts_are_unmarked();
}

/// P50–P52: texts that mean something else than their status.
#[tokio::test(flavor = "multi_thread")]
async fn texts_that_mean_something_else_than_their_status_p50_p51_p52_k90() {
    let world = today(&[]).await;
    let http = |status: u16, message: &str| json!({ "http": { "status": status, "message": message } });
    let pairs = http(503, "Expected toolResult blocks at messages.2.content for the following Ids: t1");
    world.scene(&pairs, json!({})).await.is_error("P50", 400, "invalid_request_error", "");
    assert_eq!(world.both(), (1, 0), "P50");
    let large = http(500, "Failed to buffer the request body: length limit exceeded");
    world.scene(&large, json!({})).await.is_error("P51", 413, "request_too_large", "");
    assert_eq!(world.both(), (2, 0), "P51");
    world.accounts_are_unmarked();
    let invalid = http(403, "Invalid token");
    world.simulated.control().script(json!({ "token": "access-1", "scenarios": [invalid] })).unwrap();
    assert_eq!(world.asks(&base()).await, 200, "P52: refreshed, and once more");
    world.accounts_are_unmarked();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_a_host_does_not_serve_is_remembered_for_a_day_a89_k119() {
    let world = today(&[]).await;
    world.becomes(json!("wrong-app"));
    for n in 1..=3 {
        assert_eq!(world.asks(&base()).await, 200, "{n}");
    }
    assert_eq!(world.both(), (1, 3));
    world.accounts_are_unmarked();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_repair_at_once_makes_at_most_eight_calls_a91_k118() {
    let world = World::with_tokens(&["access-1", "access-2", "access-3"], &[("KIRO_UPSTREAM_API", "runtime,q")]).await;
    world.becomes(json!(["no-continuation", "fields-strict", "no-silent-fields", "wrong-app", "no-cache-points"]));
    let body = with(json!({
        "model": "claude-opus-5", "output_config": { "effort": "xhigh" }, "thinking": { "type": "adaptive" },
    }));
    let status = world.asks(&body).await;
    assert!(matches!(status, 200 | 400 | 500), "{status}");
    let (q, runtime) = world.both();
    assert!(q + runtime <= 8, "{q} + {runtime}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_id_of_a_model_is_learned_a102_k123() {
    let world = today(&[]).await;
    world.becomes(json!({ "models": ["CLAUDE_SONNET_4_20250514_V1_0"] }));
    let body = with(json!({ "model": "claude-sonnet-4" }));
    assert_eq!(world.asks(&body).await, 200);
    assert_eq!(world.chats("q"), 2);
    assert_eq!(world.asks(&body).await, 200);
    assert_eq!(world.chats("q"), 3, "the old one at once");
    let models = world.last("q")["models"].clone();
    assert_eq!(models["CLAUDE_SONNET_4_20250514_V1_0"], 2, "{models}");
    // Kiro moves the account to the new id: that one is found again, and learned.
    world.becomes(json!({ "models": ["claude-sonnet-4"] }));
    for (n, chats) in [(1, 5), (2, 6)] {
        assert_eq!(world.asks(&body).await, 200, "{n}");
        assert_eq!(world.chats("q"), chats, "{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_a_model_refuses_are_left_out_a113_k128_k129() {
    let world = today(&[]).await;
    world.becomes(json!("no-fields"));
    let body = with(json!({ "model": "claude-opus-5", "thinking": { "type": "adaptive" } }));
    assert_eq!(world.asks(&body).await, 200);
    assert_eq!(world.chats("q"), 2, "with, without");
    assert_eq!(world.asks(&body).await, 200);
    assert_eq!(world.chats("q"), 3, "without at once");
    assert!(world.last("q")["fields"].is_null());
    assert!(world.gateway.metrics().contains("kiro_model_fields_refused_total{model=\"claude-opus-5\""));
    world.accounts_are_unmarked();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_lower_effort_is_tried_a114_k129() {
    let world = today(&[]).await;
    world.becomes(json!("no-xhigh"));
    let body = with(json!({
        "model": "claude-opus-5", "thinking": { "type": "adaptive" }, "output_config": { "effort": "xhigh" },
    }));
    assert_eq!(world.asks(&body).await, 200);
    assert_eq!(world.chats("q"), 2);
    assert_eq!(world.last("q")["fields"]["output_config"]["effort"], "high");
    assert_eq!(world.asks(&body).await, 200);
    assert_eq!(world.chats("q"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_without_its_header_is_classified_a92_k114() {
    let world = World::with_tokens(&["a", "b"], &[("KIRO_UPSTREAM_API", "runtime")]).await;
    let slow = json!({ "http": { "status": 400, "body": { "__type": "x#ThrottlingException", "Message": "slow" } } });
    for token in ["a", "b"] {
        world.simulated.control().script(json!({ "token": token, "scenarios": [slow] })).unwrap();
    }
    world.messages(&base()).await.is_error("A92", 429, "rate_limit_error", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_points_that_are_refused_are_left_out_a132_a133_k131() {
    let world = today(&[("KIRO_CACHE_POINTS", "client")]).await;
    world.becomes(json!("no-cache-points"));
    let marked = with(json!({
        "system": [{ "type": "text", "text": "S", "cache_control": { "type": "ephemeral" } }],
    }));
    assert_eq!(world.asks(&marked).await, 200);
    assert_eq!(world.chats("q"), 2, "with, without");
    assert_eq!(world.asks(&marked).await, 200);
    assert_eq!(world.chats("q"), 3);
    // A133: without any there is nothing to leave out.
    let improper =
        json!({ "http": { "status": 400, "type": "ValidationException", "message": "Improperly formed request." } });
    let world = today(&[]).await;
    let reply = world.scene(&improper, json!({})).await;
    reply.is_error("A133", 400, "invalid_request_error", "Improperly formed request.");
    assert_eq!(world.both(), (1, 0));
}

/// `plain-schemas` refuses each schema with a keyword that not every upstream knows, below the top too.
#[tokio::test(flavor = "multi_thread")]
async fn schemas_that_are_refused_go_out_bare_d6_tr64() {
    let world = today(&[]).await;
    world.becomes(json!("plain-schemas"));
    let with_tool =
        |schema: Value| with(json!({ "tools": [{ "name": "find", "description": "Finds.", "input_schema": schema }] }));
    let rich = with_tool(json!({
        "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "additionalProperties": false,
        "properties": { "q": { "anyOf": [{ "type": "string" }, { "type": "null" }] } },
    }));
    let merged = with_tool(json!({ "oneOf": [{ "properties": { "q": { "pattern": "^/" } } }] }));
    let plain = with_tool(json!({ "type": "object", "properties": { "q": { "type": "string" } } }));
    for (body, calls) in [(&plain, 1), (&rich, 3), (&rich, 4), (&merged, 5), (&plain, 6)] {
        assert_eq!(world.asks(body).await, 200);
        assert_eq!(world.chats("q"), calls, "{body}");
    }
    world.accounts_are_unmarked();
    // Still refused: the client's fault, after one repeat.
    let refused = json!({ "http": {
        "status": 400, "type": "ValidationException", "reason": "TOOL_SCHEMA_INVALID", "message": "Invalid tool schema.",
    } });
    let world = today(&[]).await;
    let reply = world.scene(&refused, json!({ "tools": rich["tools"] })).await;
    reply.is_error("TR64", 400, "invalid_request_error", "Invalid tool schema.");
    assert_eq!(world.both(), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_the_gate_refuses_ejects_nobody_a184_k105() {
    let world = World::with_expired_and(&["access-1"], &[("KIRO_CLIENT_VERSION", "0.8.140")]).await;
    let reply = world.messages(&base()).await;
    reply.is_error("A184", 500, "api_error", "the upstream refuses this gateway's client version");
    world.accounts_are_unmarked();
    for account in world.accounts() {
        assert_eq!(account["isHealthy"], true);
        assert!(account["errorCount"].as_u64().unwrap_or(0) == 0, "{account}");
    }
}

/// Nothing that works in last winter's Kiro breaks.
#[tokio::test(flavor = "multi_thread")]
async fn the_old_world_is_served_as_ever_k141() {
    let world = today(&[]).await;
    world.becomes(json!("2025-12"));
    let tool = json!([{ "name": "f", "description": "d", "input_schema": { "type": "object" } }]);
    let history = json!([
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": [{ "type": "tool_use", "id": "t1", "name": "f", "input": {} }] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t1", "content": "r" }] },
    ]);
    for changes in [
        json!({}),
        json!({ "stream": true }),
        json!({ "system": "S" }),
        json!({ "thinking": { "type": "enabled", "budget_tokens": 2048 }, "max_tokens": 4096 }),
        json!({ "thinking": { "type": "adaptive" }, "model": "claude-opus-4-6" }),
        json!({ "tools": tool, "messages": history }),
        json!({ "model": "claude-sonnet-4" }),
        json!({ "model": "claude-opus-5", "output_config": { "effort": "high" } }),
    ] {
        assert_eq!(world.asks(&with(changes.clone())).await, 200, "{changes}");
    }
    assert_eq!(world.chats("runtime"), 0);
    world.accounts_are_unmarked();
}

/// Upstream's metering shows that the turns of a conversation pay for what is new (a tenth for what was there).
#[tokio::test(flavor = "multi_thread")]
async fn later_turns_pay_for_what_is_new_a126_tr46_tr48_tr49() {
    let world = World::with_tokens(&["access-1", "access-2", "access-3"], &[]).await;
    let credits = || {
        let text = world.gateway.metrics();
        let line = text.lines().find(|line| line.starts_with("kiro_credits_total{"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let mut messages = vec![json!({ "role": "user", "content": format!("begin {}", "x".repeat(4_000)) })];
    let (mut before, mut sent) = (0.0, 0);
    for turn in 1..=20 {
        let body = with(json!({ "system": "s".repeat(4_000), "messages": messages }));
        let reply = world.messages(&body).await;
        assert_eq!(reply.status, 200, "{turn}: {}", reply.text);
        let (now, whole) = (credits(), body["messages"].to_string().len() + 4_000);
        let paid = now - before;
        if turn > 1 {
            // New: what was added since the turn before; all else at a tenth. A little for what we add ourselves.
            #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
            let most = ((whole - sent) as f64 + 0.1 * sent as f64) / 1_000.0 + 0.3;
            assert!(paid <= most, "turn {turn} cost {paid}, new and known make {most}");
        }
        (before, sent) = (now, whole);
        messages.push(json!({ "role": "assistant", "content": reply.json()["content"] }));
        messages.push(json!({ "role": "user", "content": format!("turn {turn} {}", "y".repeat(500)) }));
    }
    assert!(before > 8.0, "it was metered at all: {before}");
}

/// Each host gone, refusing or failing under load: nothing is lost while another way is open.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_another_way_is_open_k119_k120() {
    for state in ["gone-q", "gone-runtime", "deprecated-q", "wrong-app", "old-version-q", "old-version-runtime"] {
        let tokens: Vec<String> = (0..4).map(|n| format!("access-{n}")).collect();
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let world = std::sync::Arc::new(World::with_tokens(&tokens, &[]).await);
        let mut asked = tokio::task::JoinSet::new();
        for n in 0..100 {
            if n == 20 {
                world.becomes(json!(state));
            }
            let world = world.clone();
            let body = with(json!({ "messages": [{ "role": "user", "content": "[[sim {\"text\":\"x\"}]]" }] }));
            asked.spawn(async move { world.asks(&body).await });
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        while let Some(status) = asked.join_next().await {
            assert_eq!(status.unwrap(), 200, "{state}");
        }
        world.accounts_are_unmarked();
    }
}

/// The worlds `dns-q` and `dns-runtime`: a shape whose host's name isn't found is left for the other one (K119, K120), and
/// one alone is an answer that blames no account.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_name_is_not_found_a82_a83_k119_k120() {
    for (gone, api, seen) in [
        (json!("dns-q"), "auto", Some((0, 3))),
        (json!("dns-runtime"), "runtime,q", Some((3, 0))),
        (json!("dns-runtime"), "auto", Some((3, 0))),
        (json!(["dns-q", "dns-runtime"]), "auto", None),
    ] {
        let world = World::in_world(&gone, &[("KIRO_UPSTREAM_API", api)]).await;
        for _ in 0..3 {
            let reply = world.messages(&base()).await;
            match seen {
                Some(_) => assert_eq!(reply.status, 200, "{gone} {api}: {}", reply.text),
                None => reply.is_error("gone", 500, "api_error", ""),
            }
        }
        assert_eq!(world.both(), seen.unwrap_or((0, 0)), "{gone} {api}");
        world.accounts_are_unmarked();
        let hosts = serde_json::to_value(world.gateway.health()).unwrap()["hosts"].clone();
        let host = hosts.as_object().unwrap().iter().find(|(host, _)| host.starts_with("simulated.invalid"));
        let tried = api != "auto" || gone != "dns-runtime";
        assert_eq!(host.map(|(_, state)| state == "open"), tried.then_some(true), "{gone} {api}: {hosts}");
    }
}

/// The world `throttled-runtime`: whom the preferred shape throttles is never asked by the other one (K119, A84).
#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_runtime_rests_the_account_a84_a85_k119() {
    let world = World::with_tokens(&["access-1", "access-2"], &[("KIRO_UPSTREAM_API", "runtime,q")]).await;
    world.simulated.control().script(json!({ "token": "access-1", "world": "throttled-runtime" })).unwrap();
    for n in 0..4 {
        let body = with(json!({ "messages": [{ "role": "user", "content": format!("question {n}") }] }));
        assert_eq!(world.asks(&body).await, 200, "{n}");
    }
    let calls = world.simulated.control().stats()["calls_by_token"].clone();
    assert_eq!((&calls["access-1"], &calls["access-2"]), (&json!(1), &json!(4)), "it rests once");
    assert_eq!(world.chats("q"), 0);
    let world = World::with_tokens(&["access-1"], &[("KIRO_UPSTREAM_API", "auto")]).await;
    world.becomes(json!("throttled-runtime"));
    assert_eq!(world.asks(&base()).await, 200, "q is asked first, and isn't throttled");
    assert_eq!(world.both(), (1, 0));
}
