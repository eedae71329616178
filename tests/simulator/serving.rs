//! The simulator as a server: which scenario wins, mistakes, refreshes, usage, many streams, its end.

use std::time::{Duration, Instant};

use kiro_messages::simulator::{PROFILE_ARN, Simulator};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::client::{Client, End, body, chat, marked, play, simulator, text_of};

#[tokio::test]
async fn a_script_beats_the_token_the_prompt_and_the_default() {
    let simulator = simulator();
    let control = simulator.control();
    control.script(json!({ "token": "sim-429", "scenarios": ["500", null], "times": 2 })).unwrap();
    control.script(json!({ "default": { "text": "the default" } })).unwrap();
    let asks_for_402 = marked(&json!("402"));
    for expected in [500, 402, 500, 402, 429, 429] {
        assert_eq!(chat(&simulator, "sim-429", &asks_for_402).await.status, expected);
    }
    assert_eq!(chat(&simulator, "sim-ok", &asks_for_402).await.status, 402);
    let answer = chat(&simulator, "sim-ok.any", &body("Hi")).await;
    assert_eq!(text_of(&answer.events()), "the default");
    let conditional = marked(&json!({ "when": "reasoning", "http": { "status": 500 } }));
    assert_eq!(chat(&simulator, "token", &conditional).await.status, 200);

    control.script(json!([{ "token": "t", "scenarios": ["429", "500"], "forever": true }])).unwrap();
    for expected in [429, 500, 500, 500] {
        assert_eq!(chat(&simulator, "t", &body("Hi")).await.status, expected);
    }
    control.reset();
    assert!(text_of(&chat(&simulator, "t", &body("Hi")).await.events()).contains("simulated"));
}

#[tokio::test]
async fn mistakes_in_a_scenario_are_answered_with_400_that_names_them() {
    let simulator = simulator();
    for (scenario, named) in [
        (json!({ "txet": "a" }), "unknown key `txet` in `scenario`"),
        (json!({ "text": 1 }), "`scenario.text`"),
        (json!({ "steps": [{ "text": "a" }, { "texts": "b" }] }), "unknown key `texts` in `scenario.steps[1]`"),
        (json!({ "steps": [{}] }), "`scenario.steps[0]` sends nothing"),
        (json!({ "tools": [{ "id": "a" }] }), "`scenario.tools[0].name` is missing"),
        (json!({ "tools": [{ "name": "a", "stop": "now" }] }), "`scenario.tools[0].stop`"),
        (json!({ "http": { "status": 99 } }), "`http.status`"),
        (json!({ "http": { "status": 200, "colour": 1 } }), "unknown key `colour` in `http`"),
        (json!({ "http": { "headers": { "a b": "c" } } }), "`http.headers.a b`"),
        (json!({ "end": "soon" }), "`soon`"),
        (json!({ "pieces": 0 }), "`scenario.pieces` is at least 1"),
        (json!({ "steps": [{ "corrupt": "all" }] }), "corrupt_all"),
        (json!({ "headers": { "a": "x".repeat(40_000) } }), "no frame can hold this"),
        (json!("no-such"), "no preset is called `no-such`"),
        (json!(7), "not 7"),
    ] {
        let answer = play(&simulator, &scenario).await;
        assert_eq!(answer.status, 400, "{scenario}");
        assert!(answer.json()["message"].as_str().unwrap().contains(named), "{scenario}: {}", answer.text());
    }
    for (content, named) in [("[[sim {", "not JSON"), ("[[sim ", "empty"), ("[[sim {}", "end with `]]`")] {
        let answer = chat(&simulator, "token", &body(content)).await;
        assert!(answer.status == 400 && answer.text().contains(named), "{content}: {}", answer.text());
    }
    let answer = chat(&simulator, "sim-no-such.one", &body("Hi")).await;
    assert!(answer.status == 400 && answer.text().contains("`no-such`"));
    let control = simulator.control();
    for (script, named) in [
        (json!({ "token": "t", "scenario": [] }), "scenarios"),
        (json!({ "token": "t", "scenarios": [], "on": "lunch" }), "lunch"),
        (json!({ "refresh_token": "t", "answers": [{ "texpires_in": 1 }] }), "texpires_in"),
        (json!(1), "not 1"),
    ] {
        assert!(control.script(script.clone()).is_err_and(|error| error.contains(named)), "{script}");
    }
}

#[tokio::test]
async fn the_simulator_refuses_what_kiro_refuses() {
    let simulator = simulator();
    let answer = chat(&simulator, "token", &body("")).await;
    assert_eq!((answer.status, &answer.json()["reason"]), (400, &json!("REQUEST_BODY_INVALID")));
    assert_eq!(answer.headers["x-amzn-errortype"], "ValidationException");
    let mut client = Client::connect(&simulator).await;
    client.request("POST", "/generateAssistantResponse", &[("content-type", "application/json")], "{}").await;
    let answer = client.read().await;
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("bearer token"));
    client.request("GET", "/nothing", &[], "").await;
    assert_eq!(client.read().await.status, 404);
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed_at_once_even_in_silence() {
    let simulator = simulator();
    for (scenario, before_events) in [
        (json!({ "end": "hang" }), 0),
        (json!({ "head_ms": 60_000 }), 0),
        (json!({ "count": 100_000, "gap_ms": 20 }), 1),
    ] {
        simulator.control().reset();
        let mut client = Client::connect(&simulator).await;
        client.send("gone", &marked(&scenario)).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(simulator.control().stats()["streams"]["open"], 1, "{scenario}");
        drop(client);
        let dropped = Instant::now();
        loop {
            let stats = simulator.control().stats();
            if stats["streams"]["open"] == 0 {
                let close = &stats["closed_by_client"][0];
                assert_eq!(close["token"], "gone");
                let after = close["after_ms"].as_u64().unwrap();
                assert!((50..1000).contains(&after), "{scenario}: closed after {after} ms");
                assert!(close["events"].as_u64().unwrap() >= before_events);
                assert_eq!(stats["streams"]["closed_by_client"], 1);
                assert_eq!(stats["streams"]["completed"], 0);
                break;
            }
            assert!(dropped.elapsed() < Duration::from_millis(500), "{scenario}: not noticed");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_all_is_counted() {
    let simulator = simulator();
    let mut client = Client::connect(&simulator).await;
    for n in 0..100 {
        let answer = client.chat(if n % 4 == 0 { "sim-429" } else { "a" }, &marked(&json!({ "text": "x" }))).await;
        assert_eq!(answer.end, End::Whole);
    }
    client.request("GET", "/_sim/stats?bodies=1", &[], "").await;
    let stats = client.read().await.json();
    assert_eq!(stats["connections"], json!({ "open": 1, "open_max": 1, "accepted": 1 }));
    assert_eq!(stats["requests"], json!({ "POST /generateAssistantResponse": 100 }));
    assert_eq!(stats["calls_by_token"], json!({ "a": 75, "sim-429": 25 }));
    let streams = &stats["streams"];
    assert_eq!((&streams["completed"], &streams["answered_otherwise"]), (&json!(75), &json!(25)));
    assert_eq!((&streams["open"], &streams["open_max"], &streams["events"]), (&json!(0), &json!(1), &json!(75 * 4)));
    assert_eq!(stats["last"].as_array().map(Vec::len), Some(64));
    let last = &stats["last"][63];
    assert_eq!((&last["method"], &last["target"]), (&json!("POST"), &json!("/generateAssistantResponse")));
    assert_eq!(last["headers"]["authorization"], "Bearer a");
    assert_eq!(last["body"], marked(&json!({ "text": "x" })).to_string());
    client.request("POST", "/_sim/reset", &[], "").await;
    client.read().await;
    let stats = simulator.control().stats();
    assert_eq!((&stats["streams"]["completed"], &stats["connections"]["open"]), (&json!(0), &json!(1)));
    assert!(stats.get("last").is_none());
    client.request("POST", "/_sim/script", &[], r#"{"token":"a","scenarios":["413"]}"#).await;
    assert_eq!(client.read().await.status, 200);
    assert_eq!(client.chat("a", &body("Hi")).await.status, 413);
    client.request("POST", "/_sim/script", &[], r#"{"tokens":"a"}"#).await;
    let answer = client.read().await;
    assert!(answer.status == 400 && answer.text().contains("script.token"), "{}", answer.text());
}

#[tokio::test]
async fn refresh_tokens_rotate_and_each_refusal_has_a_name() {
    let simulator = simulator();
    let mut client = Client::connect(&simulator).await;
    let mut refresh = async |path: &str, body: Value| {
        client.request("POST", path, &[("content-type", "application/json")], &body.to_string()).await;
        let answer = client.read().await;
        (answer.status, answer.json(), answer.headers.get("x-amzn-errortype").cloned())
    };
    let (status, first, _) = refresh("/refreshToken", json!({ "refreshToken": "old" })).await;
    let expected = json!({
        "accessToken": "sim-ok.1.old", "refreshToken": "old~1", "expiresIn": 3600, "profileArn": PROFILE_ARN,
    });
    assert_eq!((status, first), (200, expected));
    let (status, again, _) = refresh("/refreshToken", json!({ "refreshToken": "old" })).await;
    assert_eq!((status, again), (400, json!({ "message": "Invalid refresh token" })), "it was replaced");
    let idc = |token: &str| json!({ "refreshToken": token, "clientId": "c", "clientSecret": "s", "grantType": "refresh_token" });
    let (status, second, _) = refresh("/token", idc("old~1")).await;
    assert_eq!((status, &second["refreshToken"], &second["profileArn"]), (200, &json!("old~2"), &Value::Null));
    assert_ne!(second["idToken"], second["accessToken"]);

    let mut form = idc("x");
    form["grant_type"] = form["grantType"].take();
    assert_eq!(refresh("/token", form).await.0, 400, "snake case");
    for (name, status, kind) in [
        ("dead", 400, Some("InvalidGrantException")),
        ("client-expired", 401, Some("InvalidClientException")),
        ("slow-down", 400, Some("SlowDownException")),
        ("401", 401, None),
        ("500", 500, None),
        ("keep", 200, None),
    ] {
        let (answered, body, error_type) = refresh("/token", idc(&format!("sim-refresh-{name}.alice"))).await;
        assert_eq!((answered, error_type.as_deref()), (status, kind), "{name}: {body}");
        if name == "keep" {
            assert!(body.get("refreshToken").is_none());
        }
    }
    let answers = json!([{ "status": 500 }, null, { "access_token": "mine", "refresh_token": "r", "expires_in": 7, "wait_ms": 50 }]);
    simulator.control().script(json!({ "refresh_token": "r", "answers": answers })).unwrap();
    assert_eq!(refresh("/refreshToken", json!({ "refreshToken": "r" })).await.0, 500);
    assert_eq!(refresh("/refreshToken", json!({ "refreshToken": "r" })).await.1["refreshToken"], "r~4");
    let (status, third, _) = refresh("/refreshToken", json!({ "refreshToken": "r" })).await;
    assert_eq!(status, 400, "retired, whatever the script says: {third}");
    let stats = simulator.control().stats();
    assert_eq!((&stats["refresh_calls"]["old"], &stats["refresh_calls"]["r"]), (&json!(2), &json!(3)));
    assert_eq!(
        stats["refreshed"][0],
        json!({ "used": "old", "refresh_token": "old~1", "access_token": "sim-ok.1.old" })
    );
}

#[tokio::test]
async fn a_refresh_token_works_once_and_an_access_token_ends() {
    let simulator = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let simulator = simulator.world(json!(["any-client", "one-time-tokens-1", { "refresh_ms": 50 }])).unwrap();
    let simulator = simulator.spawn().unwrap();
    let refresh = async |path: &str, token: &str| {
        let body = json!({ "refreshToken": token, "clientId": "c", "clientSecret": "s", "grantType": "refresh_token" });
        let mut client = Client::connect(&simulator).await;
        client.request("POST", path, &[("content-type", "application/json")], &body.to_string()).await;
        let answer = client.read().await;
        (answer.status, answer.headers.get("x-amzn-errortype").cloned(), answer.json())
    };
    for (path, refused, root) in
        [("/refreshToken", None, "alice"), ("/token", Some("InvalidGrantException"), "sim-acct-builder.bob")]
    {
        // At the same time: one of them gets it.
        let since = Instant::now();
        let (one, other) = tokio::join!(refresh(path, root), refresh(path, root));
        assert!(since.elapsed() >= Duration::from_millis(50));
        let (granted, dead) = if one.0 == 200 { (one, other) } else { (other, one) };
        assert_eq!((granted.0, dead.0, dead.1.as_deref()), (200, 400, refused), "{}", dead.2);
        assert_eq!(granted.2["expiresIn"], 1);
        let access = granted.2["accessToken"].as_str().unwrap().to_owned();
        let next = granted.2["refreshToken"].as_str().unwrap().to_owned();
        let listed = simulator.control().accounts()[root].clone();
        let expected = json!({
            "refreshes": 1, "dead_refreshes": 1, "expired_calls": 0, "refresh_token": next, "access_token": access,
            "refreshed_ms": listed["refreshed_ms"],
        });
        assert_eq!(listed, expected);

        let mut asked = body("Hi");
        if root.starts_with("sim-acct") {
            asked["profileArn"] = "arn:aws:codewhisperer:us-east-1:638616132270:profile/AAAACCCCXXXX".into();
        }
        assert_eq!(chat(&simulator, &access, &asked).await.status, 200);
        tokio::time::sleep_until((since + Duration::from_millis(1200)).into()).await;
        let answer = chat(&simulator, &access, &asked).await;
        assert_eq!(answer.status, 403);
        assert!(answer.text().contains("ExpiredToken"), "{}", answer.text());
        assert_eq!(simulator.control().accounts()[root]["expired_calls"], 1);
        assert_eq!(refresh(path, &next).await.0, 200);
        assert_eq!(refresh(path, &next).await.0, 400);
    }
    // The connection breaks in the only moment at which that costs the login.
    simulator.control().script(json!({ "refresh_token": "carol", "answers": ["drop", "lost"] })).unwrap();
    for _ in 0..2 {
        let mut client = Client::connect(&simulator).await;
        let kind = [("content-type", "application/json")];
        client.request("POST", "/refreshToken", &kind, r#"{"refreshToken":"carol"}"#).await;
        assert_eq!(client.read().await.status, 0, "no answer");
    }
    let mut client = Client::connect(&simulator).await;
    client.request("GET", "/_sim/accounts", &[], "").await;
    let carol = client.read().await.json()["carol"].clone();
    assert_eq!((&carol["refreshes"], &carol["dead_refreshes"]), (&json!(1), &json!(0)), "{carol}");
    assert_eq!(refresh("/refreshToken", "carol").await.0, 400);
    assert_eq!(refresh("/refreshToken", carol["refresh_token"].as_str().unwrap()).await.0, 200);
}

#[tokio::test]
async fn usage_profiles_and_models_are_answered() {
    let simulator = simulator();
    let mut client = Client::connect(&simulator).await;
    let mut ask = async |method: &str, target: &str, operation: &str, token: &str| {
        let (bearer, operation) = (format!("Bearer {token}"), format!("AmazonCodeWhispererService.{operation}"));
        let json = ("content-type", "application/x-amz-json-1.0");
        let headers = [("authorization", bearer.as_str()), json, ("x-amz-target", operation.as_str())];
        client.request(method, target, &headers[..if method == "POST" { 3 } else { 1 }], "{}").await;
        let answer = client.read().await;
        (answer.status, answer.json())
    };
    let usage = "/getUsageLimits?isEmailRequired=true&origin=AI_EDITOR&resourceType=AGENTIC_REQUEST";
    let (status, answer) = ask("GET", usage, "", "a").await;
    assert_eq!((status, &answer["usageBreakdownList"][0]["usageLimit"]), (200, &json!(1000)));
    assert_eq!(ask("GET", usage, "", "sim-402").await.1["usageBreakdownList"][0]["currentUsage"], 1000);
    let encoded = PROFILE_ARN.replace(':', "%3A").replace('/', "%2F");
    assert_eq!(ask("GET", &format!("{usage}&profileArn={encoded}"), "", "a").await.0, 200);
    let (status, answer) = ask("GET", &format!("{usage}&profileArn=arn"), "", "a").await;
    assert_eq!((status, &answer["message"]), (400, &json!("Invalid profileArn.")));
    assert_eq!(ask("GET", usage, "", "sim-429").await.0, 200, "only chat is throttled");
    assert_eq!(ask("GET", usage, "", "sim-suspended").await.0, 403, "suspended everywhere");
    simulator.control().script(json!({ "token": "a", "on": "usage", "scenarios": ["429"] })).unwrap();
    assert_eq!(ask("GET", usage, "", "a").await.0, 429);

    let (_, answer) = ask("POST", "/", "ListAvailableProfiles", "a").await;
    assert_eq!(answer["profiles"][0]["arn"], PROFILE_ARN);
    assert_eq!(ask("POST", "/", "ListAvailableProfiles", "sim-no-profile").await.1, json!({ "profiles": [] }));
    assert_eq!(ask("POST", "/", "ListAvailableProfiles", "sim-builder-id").await.0, 403);
    let (_, answer) = ask("POST", "/", "ListAvailableModels", "a").await;
    assert_eq!(answer["models"][0]["modelId"], "auto");
    assert_eq!(answer["defaultModel"]["modelId"], "claude-sonnet-4.5");
    assert_eq!(ask("GET", "/ListAvailableModels?origin=AI_EDITOR", "", "a").await.1, answer);
}

#[tokio::test]
async fn shutdown_lets_an_answer_end_and_drop_does_not() {
    let simulator = simulator();
    let mut idle = Client::connect(&simulator).await;
    idle.chat("a", &marked(&json!({ "text": "x" }))).await;
    let mut busy = Client::connect(&simulator).await;
    busy.send("a", &marked(&json!({ "count": 10, "gap_ms": 30 }))).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let addr = simulator.addr();
    let (answer, ()) = tokio::join!(busy.read(), simulator.shutdown());
    assert_eq!((answer.end, answer.events().len()), (End::Whole, 13));
    assert_eq!(idle.read().await.status, 0, "idle connections are closed");
    assert!(TcpStream::connect(addr).await.is_err());

    let simulator = self::simulator();
    let mut busy = Client::connect(&simulator).await;
    busy.send("a", &marked(&json!({ "end": "hang" }))).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    drop(simulator);
    assert_ne!(busy.read().await.end, End::Whole);
}

#[tokio::test]
async fn many_streams_run_at_once() {
    let simulator = simulator();
    let request = marked(&json!({ "count": 20, "first_ms": 1500, "gap_ms": 10, "usage": false }));
    let expected: String = (0..20).map(|n| format!("{n} ")).collect();
    let streams = (0..200).map(|_| chat(&simulator, "a", &request));
    for answer in futures_util::future::join_all(streams).await {
        assert_eq!((answer.end, text_of(&answer.events())), (End::Whole, expected.clone()));
    }
    let stats = simulator.control().stats();
    assert_eq!((&stats["streams"]["completed"], &stats["streams"]["open_max"]), (&json!(200), &json!(200)));
}

/// As Kiro after its 60 s; a connection on which an answer runs doesn't idle.
#[tokio::test]
async fn a_connection_that_idles_is_closed_and_one_at_work_is_not_k67() {
    let simulator = simulator();
    simulator.control().world(json!({ "idle_ms": 300 })).unwrap();
    let began = Instant::now();
    let mut client = Client::connect(&simulator).await;
    let slow = marked(&json!({ "steps": [{ "text": "a" }, { "wait_ms": 900 }, { "text": "b" }] }));
    for _ in 0..2 {
        let answer = client.chat("token", &slow).await;
        assert_eq!((answer.status, answer.end), (200, End::Whole));
    }
    assert!(began.elapsed() >= Duration::from_millis(1_800));
    assert_eq!(client.socket.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(began.elapsed() >= Duration::from_millis(2_050), "{:?}", began.elapsed());
    assert_eq!(simulator.control().stats()["connections"]["open"], 0);
}
