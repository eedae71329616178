//! The request half over any bytes: the entry of the fuzz target `request` and of `tests/request_fuzz.rs`.

use std::collections::HashSet;
use std::sync::LazyLock;

use kiro_messages::proto::kiro::request::Form;
use kiro_messages::proto::kiro::route::Shape;
use kiro_messages::proto::messages::request::{Purpose, Request};
use kiro_messages::proto::translate::edits::edit;
use kiro_messages::proto::translate::estimate::request_tokens;
use kiro_messages::proto::translate::ids::{ConversationKey, Ids};
use kiro_messages::proto::translate::model::{Fallback, Models};
use kiro_messages::proto::translate::request::{
    CachePoints, Context, LeaveOut, MAX_CACHE_POINTS, Replay, SystemPlace, translate,
};
use serde_json::Value;

const FORM: Form<'_> = Form { profile_arn: Some("arn"), ..Form::full(Shape::Q) };

static IDS: LazyLock<Ids> = LazyLock::new(|| Ids {
    conversation: "00000000-0000-4000-8000-000000000001".into(),
    continuation: "00000000-0000-4000-8000-000000000002".into(),
    key: ConversationKey::default(),
});

/// Any bytes as a body.
pub fn run(data: &[u8]) {
    let mut messages = Request::parse(data, Purpose::Messages);
    let mut counted = Request::parse(data, Purpose::CountTokens);
    [&mut messages, &mut counted].into_iter().flatten().for_each(edit);
    if messages.is_ok() {
        assert!(counted.is_ok(), "count_tokens asks for less");
    }
    // Keys with this in them are serde_json's own: they turn an object into something else.
    if data.windows(10).any(|key| key == b"serde_json") {
        return;
    }
    check_json(data, messages.as_ref().err().map(ToString::to_string));
    if let Ok(request) = counted {
        assert!(request_tokens(&request) > 0);
        check(&request);
    }
}

/// The Kiro body of a valid request, after these checks: it is the same every time, it is what upstream takes, and
/// TR31 leaves out reasoning and nothing else.
pub fn check(request: &Request<'_>) -> Value {
    let context = Context {
        models: Models::embedded(),
        fallback: Some(Fallback { name: "claude-sonnet-4-5", for_any: false }),
        system_text: SystemPlace::Pair,
        cache_points: CachePoints::Client,
        cache_limit: MAX_CACHE_POINTS,
        ids: &IDS,
        replay: Replay::Everything,
        source: None,
        pictures: None,
        leave_out: LeaveOut::default(),
        other_model_id: false,
    };
    let Ok(translated) = translate(request, &context) else { return Value::Null };
    let bytes = translated.body.render(&FORM);
    assert_eq!(translate(request, &context).unwrap().body.render(&FORM), bytes, "deterministic");
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    check_body(&body);

    let plain =
        translate(request, &Context { leave_out: LeaveOut { reasoning: true, ..LeaveOut::default() }, ..context })
            .unwrap();
    assert!(!plain.sent_reasoning);
    let mut without = body.clone();
    let mut plain: Value = serde_json::from_slice(&plain.body.render(&FORM)).unwrap();
    for (message, plain) in history_mut(&mut without).iter_mut().zip(history_mut(&mut plain)) {
        let Some(message) = message.get_mut("assistantResponseMessage").and_then(Value::as_object_mut) else {
            continue;
        };
        let had_reasoning = message.remove("reasoningContent").is_some();
        // TR13: nothing is left, where a blank stood for the reasoning and not for itself.
        let content = &mut plain["assistantResponseMessage"]["content"];
        if had_reasoning && message["content"] == " " && !message.contains_key("toolUses") && *content == "OK" {
            *content = " ".into();
        }
    }
    assert_eq!(plain, without, "TR31");
    body
}

/// Ours and serde_json's reading agree on what is JSON. Allowed differences: surrogate halves (TR4) and depth (M12).
fn check_json(data: &[u8], refusal: Option<String>) {
    let refused = refusal.is_some_and(|refusal| refusal.starts_with("body: not valid JSON"));
    match serde_json::from_slice::<Value>(data) {
        Ok(_) => assert!(!refused, "JSON was refused"),
        Err(error) if error.to_string().contains("recursion limit") => {}
        // It has no other name for a low half, or a high half without its low one.
        Err(error) if error.to_string().contains("surrogate") || error.to_string().contains("hex escape") => {}
        Err(error) => {
            let refused = Request::parse(data, Purpose::Messages).is_err();
            assert!(refused, "no JSON was accepted: {error}");
        }
    }
}

fn check_body(body: &Value) {
    let state = body["conversationState"].as_object().unwrap();
    no_nulls(body);
    assert_eq!(state["conversationId"], IDS.conversation);
    let current = &state["currentMessage"]["userInputMessage"];
    let context = &current["userInputMessageContext"];

    let mut declared = HashSet::new();
    let mut cache_points = 0;
    for tool in list(context.get("tools")) {
        assert!(tool.get("cachePoint").is_none(), "TR50");
        let spec = &tool["toolSpecification"];
        let name = spec["name"].as_str().unwrap();
        assert!((1..=64).contains(&name.len()), "TR20: {name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)), "TR20: {name}");
        assert!(declared.insert(name), "TR19: {name} twice");
        let description = spec["description"].as_str().unwrap();
        assert!(!description.trim().is_empty() && description.chars().count() <= 10_240, "TR21");
        assert_eq!(spec["inputSchema"]["json"]["type"], "object", "TR22");
    }

    let history = list(state.get("history"));
    assert_eq!(history.len() % 2, 0, "TR10");
    let mut asked: Vec<&str> = Vec::new();
    for (place, message) in history.iter().chain([&state["currentMessage"]]).enumerate() {
        if place % 2 == 1 {
            let message = &message["assistantResponseMessage"];
            assert!(!message["content"].as_str().unwrap().is_empty(), "TR3");
            asked =
                list(message.get("toolUses")).iter().map(|tool_use| tool_use["toolUseId"].as_str().unwrap()).collect();
            for tool_use in list(message.get("toolUses")) {
                assert!(tool_use["input"].is_object(), "TR14");
                assert!(declared.contains(tool_use["name"].as_str().unwrap()), "TR23: {}", tool_use["name"]);
            }
            cache_points += usize::from(message.get("cachePoint").is_some());
            continue;
        }
        let message = &message["userInputMessage"];
        assert!(!message["content"].as_str().unwrap().trim().is_empty(), "TR13");
        assert!(message["modelId"].is_string() && message["origin"] == "AI_EDITOR", "TR2");
        let is_current = place == history.len();
        assert!(is_current || message.get("documents").is_none(), "TR27");
        assert!(list(message.get("documents")).len() <= 5, "TR27");
        assert!(message.get("images").is_none() || place + 5 >= history.len(), "TR26");
        let results = list(message["userInputMessageContext"].get("toolResults"));
        let mut answered: Vec<&str> = results.iter().map(|result| result["toolUseId"].as_str().unwrap()).collect();
        answered.sort_unstable();
        asked.sort_unstable();
        assert_eq!(answered, asked, "TR18: each tool use has one result in the next message, and no other");
        assert!(answered.windows(2).all(|pair| pair[0] != pair[1]), "TR15, TR18");
        asked.clear();
        cache_points += usize::from(message.get("cachePoint").is_some());
    }
    assert!(cache_points <= 4, "TR32");
    let names: HashSet<_> = list(current.get("documents")).iter().map(|document| document["name"].as_str()).collect();
    assert_eq!(names.len(), list(current.get("documents")).len(), "TR27");
}

/// TR3, outside of what the client owns.
fn no_nulls(value: &Value) {
    match value {
        Value::Null => panic!("TR3: null"),
        Value::Array(list) => {
            assert!(!list.is_empty(), "TR3: an empty list");
            list.iter().for_each(no_nulls);
        }
        Value::Object(object) => {
            assert!(!object.is_empty(), "TR3: an empty object");
            object.iter().filter(|(key, _)| *key != "input" && *key != "json").for_each(|(_, value)| no_nulls(value));
        }
        _ => {}
    }
}

fn list(value: Option<&Value>) -> &[Value] {
    value.map_or(&[], |value| value.as_array().unwrap())
}

fn history_mut(body: &mut Value) -> &mut [Value] {
    match body["conversationState"].get_mut("history") {
        Some(Value::Array(history)) => history,
        _ => &mut [],
    }
}
