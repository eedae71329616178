//! What each of Kiro's shapes, accounts and worlds does and refuses (K141).

use kiro_messages::proto::kiro::client_identity::{NODE, VERSION, VERSION_FLOOR};
use kiro_messages::simulator::{PROFILE_ARN, Running, Simulator};
use serde_json::{Value, json};

use super::client::{Answer, Client, agents, body, chat, simulator, text_of};

/// A request as the gateway sends it in shape `runtime`, with some headers changed; an empty value takes one away.
async fn runtime(simulator: &Running, target: &str, changes: &[(&str, &str)], body: &Value) -> Answer {
    let ide = format!("KiroIDE-{VERSION}-{}-KAS/0.66.7", "0a".repeat(32));
    let (api, mode) = match target {
        "KiroControlPlaneBearerService.ListAvailableModels" | "" => ("kirocontrolplanebearer", "N,E"),
        _ => ("kiroruntime", "N"),
    };
    let agent =
        format!("aws-sdk-js/1.0.0 ua/2.1 os/linux#6.1.0 lang/js md/nodejs#{NODE} api/{api}#1.0.0 m/{mode} {ide}");
    let amz = format!("aws-sdk-js/1.0.0 {ide}");
    let host = if api == "kiroruntime" { "runtime.us-east-1.localhost" } else { "management.us-east-1.localhost" };
    let usual = [
        ("host", host),
        ("authorization", "Bearer token"),
        ("content-type", "application/x-amz-json-1.0"),
        ("x-amz-target", target),
        ("user-agent", agent.as_str()),
        ("x-amz-user-agent", amz.as_str()),
    ];
    let changed = |name: &str| changes.iter().find(|(other, _)| *other == name);
    let headers: Vec<(&str, &str)> = usual
        .iter()
        .filter(|(name, _)| changed(name).is_none())
        .chain(changes)
        .filter(|(name, value)| !value.is_empty() && *name != ":path")
        .copied()
        .collect();
    let path = changed(":path").map_or(if target.is_empty() { "/List-Available-Profiles" } else { "/" }, |path| path.1);
    let mut client = Client::connect(simulator).await;
    client.request("POST", path, &headers, &body.to_string()).await;
    client.read().await
}

/// A request of shape `q`, with some headers added to the usual ones.
async fn q(simulator: &Running, method: &str, target: &str, changes: &[(&str, &str)], body: &Value) -> Answer {
    let (path, operation) = target.split_once(' ').unwrap_or((target, ""));
    let kind = if operation.is_empty() { "application/json" } else { "application/x-amz-json-1.0" };
    let usual = [("authorization", "Bearer token"), ("content-type", kind), ("x-amz-target", operation)];
    let changed = |name: &str| changes.iter().any(|(other, _)| *other == name);
    let usual = usual.iter().filter(|(name, value)| !changed(name) && !value.is_empty());
    let headers: Vec<(&str, &str)> = usual.chain(changes).filter(|(_, value)| !value.is_empty()).copied().collect();
    let mut client = Client::connect(simulator).await;
    client.request(method, path, &headers, &body.to_string()).await;
    client.read().await
}

/// Status, reason and whether the message holds `text`.
#[track_caller]
fn refused(answer: &Answer, status: u16, reason: Value, text: &str) {
    let body = answer.json();
    let message = body["message"].as_str().unwrap_or_default();
    assert_eq!((answer.status, &body["reason"]), (status, &reason), "{}", answer.text());
    assert!(message.contains(text), "`{text}` is not in: {message}");
}

const CHAT: &str = "KiroRuntimeService.GenerateAssistantResponse";
const PROFILES: &str = "/ AmazonCodeWhispererService.ListAvailableProfiles";
const MODELS: &str = "/ AmazonCodeWhispererService.ListAvailableModels";
const USAGE: &str = "/getUsageLimits?origin=AI_EDITOR";
const BUILDER_ID: &str = "arn:aws:codewhisperer:us-east-1:638616132270:profile/AAAACCCCXXXX";
const SOCIAL: &str = "arn:aws:codewhisperer:us-east-1:699475941385:profile/EHGA3GRVQMUK";
const E1: &str = "arn:aws:codewhisperer:us-east-1:111122223333:profile/EEEE1";
const E2: &str = "arn:aws:codewhisperer:eu-central-1:111122223333:profile/EEEE2";

#[tokio::test]
async fn each_shape_refuses_the_others_requests_k141() {
    let simulator = simulator();
    let body = body("Hi");
    assert_eq!(q(&simulator, "POST", "/generateAssistantResponse", &[], &body).await.status, 200);
    let by_target = "/ AmazonCodeWhispererStreamingService.GenerateAssistantResponse";
    let agents = agents("/generateAssistantResponse", VERSION);
    let agents = [("user-agent", agents[0].as_str()), ("x-amz-user-agent", agents[1].as_str())];
    assert_eq!(q(&simulator, "POST", by_target, &agents, &body).await.status, 200);
    let answer = runtime(&simulator, CHAT, &[], &body).await;
    let (first, payload) = &answer.events()[0];
    assert_eq!((answer.status, first.as_str(), payload), (200, "initial-response", &json!({})));
    assert_eq!(runtime(&simulator, CHAT, &[("host", "127.0.0.1:1")], &body).await.status, 200, "by the target");
    let models = "KiroControlPlaneBearerService.ListAvailableModels";
    assert_eq!(runtime(&simulator, models, &[], &json!({})).await.status, 200);
    assert_eq!(runtime(&simulator, "", &[], &json!({})).await.status, 200, "profiles");

    let invalid = || json!("REQUEST_BODY_INVALID");
    let path = "/generateAssistantResponse";
    let answer = q(&simulator, "POST", path, &[("x-amz-target", CHAT), ("host", "q.us-east-1.localhost")], &body).await;
    refused(&answer, 400, invalid(), "x-amz-target on a path");
    let answer = runtime(&simulator, CHAT, &[("x-amz-target", ""), (":path", path)], &body).await;
    refused(&answer, 400, invalid(), "a path on the runtime host");
    let answer = runtime(&simulator, CHAT, &[("x-amzn-kiro-agent-mode", "vibe")], &body).await;
    refused(&answer, 400, invalid(), "x-amzn-kiro-agent-mode");
    let answer = runtime(&simulator, CHAT, &[("content-type", "application/json")], &body).await;
    refused(&answer, 415, Value::Null, "application/x-amz-json-1.0");
    let answer = q(&simulator, "POST", path, &[("content-type", "application/x-amz-json-1.0")], &body).await;
    refused(&answer, 415, Value::Null, "application/json");
    for target in ["KiroRuntimeService.Invent", "AmazonCodeWhispererService.ListAvailableModels"] {
        let answer = runtime(&simulator, target, &[], &body).await;
        let kind = answer.json()["__type"].as_str().unwrap().to_owned();
        assert!(answer.status == 404 && kind.ends_with("#UnknownOperationException"), "{target}: {kind}");
        assert!(!answer.headers.contains_key("x-amzn-errortype"));
    }

    for (member, on_q, on_runtime) in [("agentMode", 400, 200), ("systemPrompt", 400, 400)] {
        let mut body = body.clone();
        body[member] = "vibe".into();
        assert_eq!(chat(&simulator, "token", &body).await.status, on_q, "{member}");
        assert_eq!(runtime(&simulator, CHAT, &[], &body).await.status, on_runtime, "{member}");
    }
    let mut with_root = body.clone();
    with_root["conversationState"]["rootConversationId"] = "c".into();
    refused(&chat(&simulator, "token", &with_root).await, 400, invalid(), "rootConversationId");
    assert_eq!(runtime(&simulator, CHAT, &[], &with_root).await.status, 200);
    let mut with_point = body.clone();
    with_point["conversationState"]["currentMessage"]["userInputMessage"]["userInputMessageContext"] =
        json!({ "tools": [{ "cachePoint": { "type": "default" } }] });
    refused(&chat(&simulator, "token", &with_point).await, 400, Value::Null, "Improperly formed request.");
}

#[tokio::test]
async fn old_clients_and_strangers_are_refused_by_call_host_and_account_k141() {
    let simulator = simulator();
    let text = "This version of Kiro is no longer supported. Please update to the latest version of Kiro to continue.";
    let ask = async |target: &str, version: &str, token: &str| {
        let [agent, amz] = agents(target, version);
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("user-agent", &agent), ("x-amz-user-agent", &amz)];
        let (method, body) = match target {
            "/generateAssistantResponse" => ("POST", body("Hi")),
            "/refreshToken" => ("POST", json!({ "refreshToken": "r" })),
            _ => ("GET", Value::Null),
        };
        q(&simulator, method, target, &headers, &body).await
    };
    for target in ["/generateAssistantResponse", "/refreshToken", USAGE, "/ListAvailableModels"] {
        let old = ask(target, "0.8.140", "t").await;
        refused(&old, 400, Value::Null, text);
        assert_eq!(ask(target, VERSION_FLOOR, "t").await.status, 200, "{target}");
        let strange = ask(target, "1.1", "t").await;
        refused(&strange, 400, Value::Null, "(simulator: user-agent)");
    }
    assert_eq!(ask("/generateAssistantResponse", VERSION, "sim-old-version").await.status, 400);
    assert_eq!(ask(USAGE, VERSION, "sim-old-version-usage").await.status, 400);
    assert_eq!(ask("/generateAssistantResponse", VERSION, "sim-old-version-usage").await.status, 200);
    assert_eq!(ask("/generateAssistantResponse", "1.1", "sim-any-client").await.status, 200);

    let control = simulator.control();
    control.world(json!({ "min_version": { "runtime": "9.0.0", "eu-central-1": "9.0.0" } })).unwrap();
    refused(&runtime(&simulator, CHAT, &[], &body("Hi")).await, 400, Value::Null, text);
    assert_eq!(ask("/generateAssistantResponse", VERSION, "t").await.status, 200);
    let elsewhere = [("host", "q.eu-central-1.localhost")];
    refused(
        &q(&simulator, "POST", "/generateAssistantResponse", &elsewhere, &body("Hi")).await,
        400,
        Value::Null,
        text,
    );
    control.script(json!({ "token": "mine", "world": { "min_version": "9.0.0" } })).unwrap();
    assert_eq!(ask("/generateAssistantResponse", VERSION, "mine").await.status, 400);
    control.script(json!({ "token": "mine", "world": null })).unwrap();
    assert_eq!(ask("/generateAssistantResponse", VERSION, "mine").await.status, 200);
}

#[tokio::test]
async fn models_come_by_page_and_account_and_check_their_fields_k141() {
    let simulator = simulator();
    let control = simulator.control();
    let on = |model: &str| {
        let mut body = body("Hi");
        body["conversationState"]["currentMessage"]["userInputMessage"]["modelId"] = model.into();
        body
    };
    let with = |model: &str, fields: Value| {
        let mut body = on(model);
        body["additionalModelRequestFields"] = fields;
        body
    };
    assert_eq!(chat(&simulator, "t", &on("claude-opus-5.5")).await.status, 200);
    let unknown = json!("INVALID_MODEL_ID");
    refused(&chat(&simulator, "t", &on("claude-opus-6")).await, 400, unknown.clone(), "select a different model");
    refused(&chat(&simulator, "sim-free-tier.a", &on("claude-opus-5")).await, 400, unknown, "Invalid model");
    assert_eq!(chat(&simulator, "sim-free-tier.a", &on("claude-opus-4.5")).await.status, 200);

    control.script(json!({ "token": "t", "world": ["new-model", { "models_page": 10 }] })).unwrap();
    let (mut pages, mut ids, mut next) = (0, Vec::new(), None::<String>);
    loop {
        let mut ask = json!({ "origin": "AI_EDITOR", "maxResults": 50 });
        ask["nextToken"] = next.as_deref().into();
        let page = q(&simulator, "POST", MODELS, &[("authorization", "Bearer t")], &ask).await.json();
        pages += 1;
        ids.extend(page["models"].as_array().unwrap().clone());
        match page["nextToken"].as_str() {
            Some(token) => next = Some(token.to_owned()),
            None => break,
        }
    }
    let new = ids.iter().find(|model| model["modelId"] == "claude-opus-9.9").unwrap();
    assert_eq!((pages, &new["tokenLimits"]["maxInputTokens"]), (3, &json!(2_000_000)));
    let opus = ids.iter().find(|model| model["modelId"] == "claude-opus-5.5").unwrap();
    let schema = &opus["additionalModelRequestFieldsSchema"]["properties"];
    assert_eq!(schema["max_tokens"], json!({ "type": "integer", "minimum": 1024, "maximum": 128_000 }));
    assert_eq!(schema["thinking"]["properties"]["type"]["enum"], json!(["adaptive"]));

    let adaptive =
        json!({ "thinking": { "type": "adaptive", "display": "summarized" }, "output_config": { "effort": "xhigh" } });
    for (token, model, fields, text) in [
        ("t", "claude-opus-5", adaptive.clone(), ""),
        ("t", "claude-opus-5", json!({}), "additionalModelRequestFields"),
        ("t", "claude-sonnet-4.5", adaptive.clone(), "additionalModelRequestFields is not supported for this model"),
        ("sim-no-fields", "claude-opus-5", adaptive.clone(), "is not supported for this model"),
        ("sim-fields-strict", "claude-opus-5", adaptive.clone(), "property 'display' is not defined in the schema"),
        (
            "sim-no-xhigh",
            "claude-opus-5",
            adaptive.clone(),
            "$.output_config.effort: does not have a value in the enumeration",
        ),
        ("sim-no-max-tokens", "claude-opus-5.5", json!({ "max_tokens": 2000 }), "property 'max_tokens'"),
    ] {
        let answer = chat(&simulator, token, &with(model, fields)).await;
        match text {
            "" => assert_eq!(answer.status, 200, "{}", answer.text()),
            text => refused(&answer, 400, json!("REQUEST_BODY_INVALID"), text),
        }
    }
    control.script(json!({ "token": "t", "world": { "schemas": { "claude-opus-5": null } } })).unwrap();
    assert_eq!(chat(&simulator, "t", &with("claude-opus-5", adaptive)).await.status, 400);
}

/// What Kiro's accounts, calls and texts are (contract/accounts.md).
#[tokio::test]
async fn each_kind_of_account_has_its_profile_k141() {
    let simulator = simulator();
    let ask = async |token: &str, arn: Option<&str>, token_type: &str, host: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("tokentype", token_type), ("host", host)];
        let mut body = body("Hi");
        if let Some(arn) = arn {
            body["profileArn"] = arn.into();
        }
        let answer = q(&simulator, "POST", "/generateAssistantResponse", &headers, &body).await;
        let message = if answer.status == 200 { String::new() } else { answer.json()["message"].to_string() };
        (answer.status, message)
    };
    const US: &str = "us-east-1.localhost";
    const EU: &str = "q.eu-central-1.localhost";
    let (no, bearer, required) = ("not authorized to make this call", "bearer token", "profileArn is required");
    let a1 = "arn:aws:codewhisperer:us-east-1:111122223333:profile/AAAA1";
    let c3 = "arn:aws:codewhisperer:us-east-1:111122223333:profile/CCCC3";
    for (token, arn, token_type, host, status, text) in [
        ("sim-acct-builder", Some(BUILDER_ID), "", US, 200, ""),
        ("sim-acct-builder.x", None, "", US, 400, required),
        ("sim-acct-builder", Some(SOCIAL), "", US, 400, "Invalid profileArn"),
        ("sim-acct-builder", Some(BUILDER_ID), "API_KEY", US, 403, bearer),
        ("sim-acct-builder-strict", Some(BUILDER_ID), "", US, 403, no),
        ("sim-acct-builder-strict", None, "", US, 200, ""),
        ("sim-acct-builder-strict-token", Some(BUILDER_ID), "", US, 403, bearer),
        ("sim-acct-builder-strict-token.x", None, "", US, 200, ""),
        ("sim-acct-social", Some(SOCIAL), "", US, 200, ""),
        ("sim-acct-social", Some(E1), "", US, 400, "Invalid profileArn"),
        ("sim-acct-enterprise", Some(E1), "", US, 200, ""),
        ("sim-acct-enterprise", Some(E1), "", "127.0.0.1", 200, ""),
        ("sim-acct-enterprise", Some(BUILDER_ID), "", US, 403, bearer),
        ("sim-acct-enterprise", None, "", US, 403, no),
        ("sim-acct-enterprise-eu-central-1.x", Some(E2), "", EU, 200, ""),
        ("sim-acct-enterprise-eu-central-1", Some(E2), "", US, 400, "Improperly formed"),
        ("sim-acct-enterprise-eu-central-1", None, "", US, 403, no),
        ("sim-acct-enterprise2", Some(a1), "", US, 403, no),
        ("sim-acct-enterprise2", Some(c3), "", US, 200, ""),
        ("sim-acct-external", Some(E1), "EXTERNAL_IDP", US, 200, ""),
        ("sim-acct-external", Some(E1), "", US, 403, "Invalid token"),
        ("sim-acct-noprofile", None, "", US, 403, no),
        ("sim-acct-key", None, "API_KEY", US, 200, ""),
        ("sim-acct-key", Some(E1), "API_KEY", US, 403, no),
        ("sim-acct-key", None, "", US, 403, bearer),
        ("sim-acct-noble", None, "", US, 400, "no kind of account"),
    ] {
        let (answered, message) = ask(token, arn, token_type, host).await;
        assert!(answered == status && message.contains(text), "{token} {arn:?} {host}: {answered} {message}");
    }

    let profiles = async |token: &str, host: &str, token_type: &str, body: Value| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("host", host), ("tokentype", token_type)];
        let answer = q(&simulator, "POST", PROFILES, &headers, &body).await;
        (answer.status, answer.json())
    };
    let arns = |(status, body): (u16, Value)| {
        assert_eq!(status, 200, "{body}");
        let profiles = body["profiles"].as_array().unwrap().clone();
        profiles.iter().map(|profile| profile["arn"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = || json!({ "maxResults": 10 });
    let none: [&str; 0] = [];
    assert_eq!(arns(profiles("sim-acct-enterprise", US, "", all()).await), [E1]);
    assert_eq!(arns(profiles("sim-acct-enterprise-eu-central-1", US, "", all()).await), none);
    assert_eq!(arns(profiles("sim-acct-enterprise-eu-central-1", EU, "", all()).await), [E2]);
    assert_eq!(arns(profiles("sim-acct-enterprise2", US, "", all()).await), [a1, c3]);
    assert_eq!(arns(profiles("sim-acct-external", US, "EXTERNAL_IDP", all()).await), [E1]);
    assert_eq!(arns(profiles("sim-acct-external", US, "", all()).await), none);
    assert_eq!(arns(profiles("sim-acct-noprofile", US, "", all()).await), none);
    assert_eq!(profiles("sim-acct-builder", US, "", all()).await.0, 403);
    let listed = json!([{ "arn": a1, "status": "INACTIVE" }, { "arn": E1 }, { "arn": c3, "status": "ACTIVE" }]);
    let world = json!({ "profiles": listed, "profiles_page": 1 });
    simulator.control().script(json!({ "token": "sim-acct-enterprise", "world": world })).unwrap();
    let (_, page) = profiles("sim-acct-enterprise", US, "", all()).await;
    assert_eq!((&page["profiles"][0]["arn"], &page["nextToken"]), (&json!(a1), &json!("1")));
    let (_, page) = profiles("sim-acct-enterprise", US, "", json!({ "nextToken": "2" })).await;
    assert_eq!((&page["profiles"][0]["arn"], &page["nextToken"]), (&json!(c3), &Value::Null));
    assert_eq!(ask("sim-acct-enterprise", Some(a1), "", US).await.0, 403);
    assert_eq!(ask("sim-acct-enterprise", Some(c3), "", US).await.0, 200);

    for (token, arn, status) in [
        ("sim-acct-builder", "", 200),
        ("sim-acct-builder", BUILDER_ID, 200),
        ("sim-acct-social", E1, 400),
        ("sim-acct-enterprise-eu-central-1", "", 403),
        ("sim-usage-without-arn", PROFILE_ARN, 400),
        ("sim-usage-without-arn", "", 200),
        ("sim-usage-needs-arn", "", 400),
        ("sim-usage-needs-arn", PROFILE_ARN, 200),
    ] {
        let bearer = format!("Bearer {token}");
        let target = if arn.is_empty() { USAGE.to_owned() } else { format!("{USAGE}&profileArn={arn}") };
        let answer = q(&simulator, "GET", &target, &[("authorization", &bearer), ("host", US)], &Value::Null).await;
        assert_eq!(answer.status, status, "{token} {arn}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_refresh_in_the_wrong_region_looks_like_a_dead_token_k141() {
    let simulator = simulator();
    let refresh = async |token: &str, region: &str| {
        let body = json!({ "refreshToken": token, "clientId": "c", "clientSecret": "s", "grantType": "refresh_token" });
        let host = format!("oidc.{region}.localhost");
        q(&simulator, "POST", "/token", &[("host", &host)], &body).await
    };
    let token = "sim-acct-enterprise-eu-central-1@us-west-2.x";
    for (how, status, error, kind) in [
        ("invalid_grant", 400, "invalid_grant", "InvalidGrantException"),
        ("invalid_request", 400, "invalid_request", "InvalidRequestException"),
        ("invalid_client", 401, "invalid_client", "InvalidClientException"),
        ("named", 400, "invalid_request", "InvalidRequestRegionException"),
    ] {
        simulator.control().world(json!({ "wrong_region": how })).unwrap();
        let answer = refresh(token, "us-east-1").await;
        assert_eq!((answer.status, &answer.json()["error"]), (status, &json!(error)));
        assert_eq!(answer.headers["x-amzn-errortype"], kind);
        assert_eq!(answer.json()["region"], if how == "named" { json!("us-west-2") } else { Value::Null });
    }
    let tokens = refresh(token, "us-west-2").await.json();
    assert_eq!(tokens["accessToken"], "sim-acct-enterprise-eu-central-1.x~1");
    assert_eq!(tokens["refreshToken"], format!("{token}~1"));
    let again = refresh(&format!("{token}~1"), "us-west-2").await.json();
    assert_eq!(again["accessToken"], "sim-acct-enterprise-eu-central-1.x~2");
}

#[tokio::test]
async fn each_model_thinks_in_its_style_k141() {
    let simulator = simulator();
    let ask = async |token: &str, model: &str, prompt: &str, fields: Value| {
        let mut body = body(prompt);
        body["conversationState"]["currentMessage"]["userInputMessage"]["modelId"] = model.into();
        if !fields.is_null() {
            body["additionalModelRequestFields"] = fields;
        }
        let answer = chat(&simulator, token, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let names = |value: &Value| value.as_object().unwrap().keys().next().cloned();
        let events = answer.events();
        let thoughts = events.iter().filter(|(kind, _)| kind == "reasoningContentEvent");
        let thoughts: Vec<String> = thoughts.filter_map(|(_, payload)| names(payload)).collect();
        (thoughts.join(" "), text_of(&events).contains("<thinking>"))
    };
    let adaptive = |display: &str| json!({ "thinking": { "type": "adaptive", "display": display } });
    let none = Value::Null;
    for (token, model, prompt, fields, thoughts, tags) in [
        ("t", "claude-opus-5", "Hi", adaptive("summarized"), "text signature", false),
        ("t", "claude-opus-5", "Hi", adaptive("omitted"), "signature", false),
        ("t", "claude-opus-5", "Hi", json!({ "output_config": { "effort": "low" } }), "text signature", false),
        ("t", "claude-opus-5", "Hi", json!({ "thinking": { "type": "disabled" } }), "", false),
        ("t", "claude-opus-5", "Hi", none.clone(), "", false),
        ("t", "claude-opus-5.5", "Hi", none.clone(), "text signature", false),
        ("t", "claude-haiku-5.5", "Hi", none.clone(), "", false),
        ("t", "claude-sonnet-4.5", "<thinking_mode>enabled</thinking_mode>Hi", none.clone(), "", true),
        ("t", "claude-sonnet-4.5", "Hi", none.clone(), "", false),
        ("t", "claude-opus-4.6", "Hi", json!({ "thinking": { "type": "adaptive" } }), "text signature", false),
        ("t", "gpt-5.6-sol", "Hi", json!({ "reasoning": { "effort": "max" } }), "redactedContent", false),
        (
            "sim-segments",
            "claude-opus-5",
            "Hi",
            adaptive("summarized"),
            "text signature text signature text signature",
            false,
        ),
        ("sim-signature-only", "claude-opus-5", "Hi", adaptive("summarized"), "signature", false),
        ("sim-no-signature", "claude-opus-5", "Hi", adaptive("summarized"), "text", false),
        ("sim-no-thinking", "claude-opus-5", "Hi", adaptive("summarized"), "", false),
    ] {
        let seen = ask(token, model, prompt, fields.clone()).await;
        assert_eq!(seen, (thoughts.to_owned(), tags), "{token} {model} {fields}");
    }
}

#[tokio::test]
async fn signatures_are_bound_as_the_world_demands_k141() {
    let simulator = simulator();
    let turn = |conversation: &str, thoughts: &[&str]| {
        let mut body = body("next");
        body["conversationState"]["conversationId"] = conversation.into();
        body["conversationState"]["currentMessage"]["userInputMessage"]["modelId"] = "claude-opus-5".into();
        body["additionalModelRequestFields"] = json!({ "thinking": { "type": "adaptive" } });
        let mut history = Vec::new();
        for thought in thoughts {
            history
                .push(json!({ "userInputMessage": { "content": if history.is_empty() { "next" } else { "more" } } }));
            let reasoning = json!({ "reasoningText": { "text": "t", "signature": thought } });
            history.push(json!({ "assistantResponseMessage": { "content": "b", "reasoningContent": reasoning } }));
        }
        if !history.is_empty() {
            body["conversationState"]["history"] = history.into();
        }
        body
    };
    let sign = async |token: &str, body: &Value| {
        let events = chat(&simulator, token, body).await.events();
        let signature = events.iter().find_map(|(_, payload)| payload["signature"].as_str().map(str::to_owned));
        let signature = signature.unwrap();
        assert!(signature.len() == 44 && signature.ends_with('='), "{signature}");
        signature
    };
    let first = sign("a", &turn("c", &[])).await;
    let second = sign("a", &turn("c", &[&first])).await;
    let (reason, bound) = (json!("THINKING_SIGNATURE_INVALID"), "bound to a different conversation");
    refused(&chat(&simulator, "b", &turn("c", &[&first])).await, 400, reason.clone(), "Invalid signature");
    assert_eq!(chat(&simulator, "a", &turn("other", &[&first])).await.status, 200);
    assert_eq!(chat(&simulator, "a", &turn("c", &["foreign"])).await.status, 200);

    simulator.control().world("signature-bound").unwrap();
    assert_eq!(chat(&simulator, "a", &turn("c", &[&first, &second])).await.status, 200);
    refused(&chat(&simulator, "b", &turn("c", &[&first])).await, 400, reason, "Invalid signature");
    for (conversation, thoughts) in [("other", vec![first.as_str()]), ("c", vec!["foreign"]), ("c", vec![&second])] {
        refused(&chat(&simulator, "a", &turn(conversation, &thoughts)).await, 400, Value::Null, bound);
    }
    simulator.control().world("signature-free").unwrap();
    assert_eq!(chat(&simulator, "b", &turn("other", &["foreign", &second])).await.status, 200);
    let answer = chat(&simulator, "sim-no-replay", &turn("c", &["foreign"])).await;
    refused(&answer, 400, Value::Null, bound);
    assert_eq!(chat(&simulator, "sim-no-replay", &turn("c", &[])).await.status, 200);
}

#[tokio::test]
async fn a_repeated_prompt_costs_a_tenth_k141() {
    let simulator = simulator();
    let x = "x".repeat(1000);
    let turn = |turns: usize| {
        let mut body = body(&x);
        let pair = [
            json!({ "userInputMessage": { "content": x } }),
            json!({ "assistantResponseMessage": { "content": "y".repeat(500) } }),
        ];
        let history: Vec<Value> = (0..turns).flat_map(|_| pair.clone()).collect();
        if turns > 0 {
            body["conversationState"]["history"] = history.into();
        }
        body
    };
    let credits = async |token: &str, body: &Value| {
        let events = chat(&simulator, token, body).await.events();
        events.iter().find(|(kind, _)| kind == "meteringEvent").unwrap().1["usage"].as_f64().unwrap()
    };
    let near = |seen: f64, expected: f64| assert!((seen - expected).abs() < 1e-9, "{seen}, not {expected}");
    near(credits("a", &turn(0)).await, 1.0);
    near(credits("a", &turn(1)).await, 0.1 + 1.5);
    near(credits("a", &turn(2)).await, 0.25 + 1.5);
    near(credits("a", &turn(2)).await, 0.4);
    near(credits("b", &turn(2)).await, 4.0);
    near(credits("sim-no-discount", &turn(2)).await, 4.0);
    near(credits("sim-no-discount", &turn(2)).await, 4.0);
}

/// Every preset in which the world differs, as a world and as one account's token: the request that it is about gets
/// what it says, and the plain one doesn't.
#[tokio::test]
async fn each_world_differs_in_one_thing_k141() {
    let plain = body("Hi");
    let change = |pointer: &str, member: &str, value: Value| {
        let mut body = plain.clone();
        body.pointer_mut(pointer).unwrap()[member] = value;
        body
    };
    let user = "/conversationState/currentMessage/userInputMessage";
    let image = |len: usize| json!([{ "format": "png", "source": { "bytes": "A".repeat(len) } }]);
    let tool = |schema: Value| json!({ "tools": [{ "toolSpecification": { "name": "f", "description": "d", "inputSchema": { "json": schema } } }] });
    let context = |value: Value| change(user, "userInputMessageContext", value);
    let object = json!({ "type": "object", "properties": { "pattern": { "type": "string" } } });
    let pattern = json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "x" } } });
    let mut after_tool = context(tool(object.clone()));
    after_tool.pointer_mut(user).unwrap()["images"] = image(4);
    let results = json!([{ "toolUseId": "t", "content": [{ "text": "r" }], "status": "success" }]);
    after_tool.pointer_mut(user).unwrap()["userInputMessageContext"]["toolResults"] = results;
    after_tool["conversationState"]["history"] = json!([
        { "userInputMessage": { "content": "a" } },
        { "assistantResponseMessage": { "content": "b", "toolUses": [{ "toolUseId": "t", "name": "f", "input": {} }] } },
    ]);
    let document = json!([{ "name": "d", "format": "txt", "source": { "bytes": "AAAA" } }]);
    let with_arn = change("", "profileArn", BUILDER_ID.into());
    let continued = change("/conversationState", "agentContinuationId", "c".into());
    let mut full = continued.clone();
    full["agentMode"] = "vibe".into();
    for (world, runtime_only, differs, status, same) in [
        ("gone-q", false, plain.clone(), 410, None),
        ("gone-runtime", true, plain.clone(), 410, None),
        ("deprecated-q", false, plain.clone(), 403, None),
        ("throttled-q", false, plain.clone(), 429, None),
        ("throttled-runtime", true, plain.clone(), 429, None),
        ("wrong-app", false, plain.clone(), 403, None),
        ("no-continuation", true, full, 400, Some(plain.clone())),
        ("needs-arn", false, plain.clone(), 400, Some(with_arn.clone())),
        ("needs-arn-runtime", true, plain.clone(), 400, Some(with_arn.clone())),
        ("no-service-arn", false, with_arn, 403, Some(plain.clone())),
        ("plain-schemas", false, context(tool(pattern)), 400, Some(context(tool(object)))),
        ("no-result-images", false, after_tool, 400, Some(change(user, "images", image(4)))),
        ("no-documents", false, change(user, "documents", document), 400, Some(plain.clone())),
        ("no-cache-points", false, change(user, "cachePoint", json!({ "type": "default" })), 400, Some(plain.clone())),
        ("small-bodies", false, body(&"x".repeat(200_001)), 400, Some(body(&"x".repeat(190_000)))),
        ("small-pictures", false, change(user, "images", image(400_004)), 400, Some(change(user, "images", image(4)))),
        ("suspicious", false, plain.clone(), 429, None),
    ] {
        let simulator = simulator();
        let ask = async |token: &str, runtime_shape: bool, body: &Value| {
            let bearer = format!("Bearer {token}");
            match runtime_shape {
                true => runtime(&simulator, CHAT, &[("authorization", &bearer)], body).await.status,
                false => chat(&simulator, token, body).await.status,
            }
        };
        let token = format!("sim-{world}.someone");
        assert_eq!(ask(&token, runtime_only, &differs).await, status, "{token}");
        assert_eq!(ask("t", runtime_only, &differs).await, 200, "{world} of another account");
        simulator.control().world(world).unwrap();
        assert_eq!(simulator.control().stats()["world"], json!(["2026-11", world]));
        assert_eq!(ask("t", runtime_only, &differs).await, status, "{world}");
        if let Some(same) = same {
            assert_eq!(ask("t", runtime_only, &same).await, 200, "{world}, what it isn't about");
        }
        simulator.control().world(Value::Null).unwrap();
        assert_eq!(ask("t", runtime_only, &differs).await, 200, "taken back");
    }
    let simulator = simulator();
    let gone = q(&simulator, "GET", USAGE, &[("authorization", "Bearer sim-gone-q")], &Value::Null).await;
    assert_eq!(gone.status, 410, "the whole host");
    let answer = chat(&simulator, "sim-throttled-q", &plain).await;
    assert_eq!(answer.headers["retry-after"], "7");
    for (world, expected) in
        [("no-end-events", vec![]), ("other-end-order", vec!["meteringEvent", "metadataEvent", "contextUsageEvent"])]
    {
        let events = chat(&simulator, &format!("sim-{world}"), &plain).await.events();
        let notes: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).skip(20).collect();
        assert_eq!(notes, expected, "{world}");
    }
    for (world, window) in [("token-usage", 200_000.0), ("usage-window", 454_000.0)] {
        let events = chat(&simulator, &format!("sim-{world}"), &plain).await.events();
        let total = events[20].1["tokenUsage"]["totalTokens"].as_f64().unwrap();
        assert_eq!(total, window * 1.25 / 100.0, "{world}");
    }
    for (wrong, named) in [
        (json!("no-such"), "`no-such`"),
        (json!({ "min_version": "1" }), "`1` is no version"),
        (json!({ "bind": "tight" }), "off, account, strict"),
        (json!({ "colour": 1 }), "unknown key `colour` in `world`"),
        (json!({ "rules": [{ "when": { "moon": "full" }, "gone": true }] }), "unknown key `moon` in `when`"),
        (json!([{ "end": ["late"] }]), "`late`"),
    ] {
        assert!(simulator.control().world(wrong.clone()).is_err_and(|error| error.contains(named)), "{wrong}");
    }
}

#[tokio::test]
async fn last_winters_kiro_is_played_k141() {
    let bound = Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let simulator = bound.world("2025-12").unwrap().spawn().unwrap();
    let mut old = body("Hi");
    old["conversationState"]["currentMessage"]["userInputMessage"]["modelId"] = "claude-anything".into();
    old["agentMode"] = "vibe".into();
    let agents = agents("/generateAssistantResponse", "0.8.140");
    let headers = [("user-agent", agents[0].as_str()), ("x-amz-user-agent", ""), ("content-type", "text/plain")];
    let answer = q(&simulator, "POST", "/generateAssistantResponse", &headers, &old).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let kinds: Vec<String> = answer.events().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds[20..], ["contextUsageEvent", "metadataEvent", "meteringEvent"]);
    assert_eq!(runtime(&simulator, CHAT, &[], &body("Hi")).await.status, 404, "there was one host");
    assert_eq!(chat(&simulator, "sim-acct-builder", &body("Hi")).await.status, 200, "no ARN was needed");
    let models = q(&simulator, "POST", MODELS, &[], &json!({})).await.json();
    assert_eq!(models["models"].as_array().map(Vec::len), Some(3));
    assert_eq!(models["models"][0]["modelId"], "claude-sonnet-4.5");
    simulator.control().world("2026-11").unwrap();
    assert_eq!(chat(&simulator, "t", &old).await.status, 400);
    simulator.control().reset();
    assert_eq!(chat(&simulator, "t", &old).await.status, 200, "a reset goes back to the world it began in");
}

#[tokio::test]
async fn web_search_works_on_both_shapes_k141() {
    let simulator = simulator();
    let call = |method: &str, query: Value| {
        let params = json!({ "name": "web_search", "arguments": { "query": query } });
        json!({ "id": "web_search_tooluse_1", "jsonrpc": "2.0", "method": method, "params": params })
    };
    let search = async |token: &str, body: &Value| {
        let bearer = format!("Bearer {token}");
        q(&simulator, "POST", "/mcp", &[("authorization", &bearer)], body).await
    };
    let tools = search("t", &call("tools/list", Value::Null)).await.json();
    assert_eq!(tools["result"]["tools"][0]["name"], "web_search");
    assert_eq!(tools["result"]["tools"][0]["inputSchema"]["required"], json!(["query"]));
    let found = search("t", &call("tools/call", json!("rust"))).await.json();
    assert_eq!((&found["id"], &found["result"]["isError"]), (&json!("web_search_tooluse_1"), &json!(false)));
    let text: Value = serde_json::from_str(found["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!((text["totalResults"].as_u64(), &text["query"]), (Some(3), &json!("rust")));
    assert_eq!(text["results"][0]["url"], "https://site1.test/rust");
    assert_eq!(found, search("t", &call("tools/call", json!("rust"))).await.json(), "always the same");
    assert_eq!(search("t", &call("tools/call", json!(" "))).await.json()["error"]["code"], -32602);
    assert_eq!(search("t", &call("tools/none", json!("x"))).await.json()["error"]["code"], -32601);
    assert_eq!(search("sim-search-down", &call("tools/call", json!("x"))).await.status, 500);

    let mut body = call("tools/call", json!("rust"));
    body["profileArn"] = E1.into();
    let target = "KiroRuntimeService.InvokeMCP";
    let arn = ("x-amzn-kiro-profile-arn", E1);
    assert_eq!(runtime(&simulator, target, &[arn], &body).await.json(), found);
    refused(&runtime(&simulator, target, &[], &body).await, 400, json!("REQUEST_BODY_INVALID"), "header and body");
    assert_eq!(search("sim-acct-builder", &call("tools/call", json!("x"))).await.status, 400, "no ARN");
    for (way, status, holds) in [
        ("rate", 429, "Too many"),
        ("forbidden", 403, "not authorized"),
        ("error", 500, "failed"),
        ("empty", 200, r#"\"totalResults\":0"#),
        ("null", 200, r#"\"results\":null"#),
        ("badjson", 200, r#""{\"results\":[""#),
        ("invalid", 200, "-32602"),
        ("slow:20", 200, "site3.test"),
    ] {
        simulator.control().world(json!({ "search": way })).unwrap();
        let answer = search("t", &call("tools/call", json!("x"))).await;
        assert!(answer.status == status && answer.text().contains(holds), "{way}: {}", answer.text());
    }
    let queries = &simulator.control().stats()["shapes"]["runtime"]["mcp"]["queries"];
    assert_eq!(queries, &json!(["rust"]));
}

#[tokio::test]
async fn statistics_count_by_shape_and_call_k141() {
    let simulator = simulator();
    let mut request = body("Hi");
    request["profileArn"] = PROFILE_ARN.into();
    request["conversationState"]["history"] = json!([
        { "userInputMessage": { "content": "a", "cachePoint": { "type": "default" } } },
        { "assistantResponseMessage": { "content": "b", "reasoningContent": { "reasoningText": { "text": "t", "signature": "s" } } } },
    ]);
    chat(&simulator, "t", &request).await;
    chat(&simulator, "t", &body("Hi")).await;
    runtime(&simulator, CHAT, &[], &request).await;
    q(&simulator, "GET", USAGE, &[], &Value::Null).await;
    q(&simulator, "POST", "/refreshToken", &[], &json!({ "refreshToken": "r" })).await;
    let shapes = &simulator.control().stats()["shapes"];
    let chats = &shapes["q"]["chat"];
    assert_eq!((&chats["count"], &chats["reasoning"], &chats["cache_points"]), (&json!(2), &json!(1), &json!(1)));
    assert_eq!(chats["targets"], json!({ "/generateAssistantResponse": 2 }));
    assert_eq!(chats["hosts"], json!({ "simulator": 2 }));
    assert_eq!(chats["conversations"], json!({ "7a1f6e0c-0000-4000-8000-000000000000": 2 }));
    assert_eq!(chats["models"], json!({ "claude-sonnet-4.5": 2 }));
    let members = ["conversationState", "chatTriggerType", "conversationId", "currentMessage"];
    assert_eq!(chats["members"], json!(members), "the last one's");
    assert_eq!(shapes["runtime"]["chat"]["targets"], json!({ CHAT: 1 }));
    assert_eq!(shapes["runtime"]["chat"]["hosts"], json!({ "runtime.us-east-1.localhost": 1 }));
    assert_eq!(shapes["runtime"]["chat"]["headers"]["x-amz-target"], CHAT);
    assert_eq!((&shapes["q"]["usage"]["count"], &shapes["refresh"]["social"]["count"]), (&json!(1), &json!(1)));
}
