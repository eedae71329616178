//! Reads a chat request as upstream does, and refuses what upstream refuses: the simulator must not accept a body that
//! Kiro would not (contract/kiro.md, "Request body").

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::{Map, Value};

use super::reply::HttpReply;
use crate::proto::kiro::route::Shape;

/// The facts of a well-formed request.
#[derive(Debug, Default)]
pub(super) struct Prompt {
    /// The text of the current message.
    pub content: String,
    pub model: Option<String>,
    pub conversation_id: Option<String>,
    pub profile_arn: Option<String>,
    /// Names of the members of the body and of its `conversationState`.
    pub members: Vec<String>,
    /// `additionalModelRequestFields`.
    pub fields: Option<Value>,
    /// The text of the conversation's first message, where the system text stands.
    pub opening: String,
    /// One for each `reasoningContent` of the history: its signature, when it has one.
    pub thoughts: Vec<Option<String>>,
    pub cache_points: usize,
    pub has_documents: bool,
    /// The current message holds an image beside tool results.
    pub has_result_images: bool,
    /// A tool's schema holds a keyword beside the five that every upstream knows.
    pub has_schema_keywords: bool,
    /// Characters of base64.
    pub largest_image: usize,
    /// 1, and 1 more for each message with tool results at the end.
    pub round: usize,
    /// Tools and messages in order, as a prompt cache compares them.
    pub blocks: Vec<Block>,
}

/// A piece of a prompt: a hash of it and everything before it, and its length in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub hash: u64,
    pub len: u64,
}

/// Checks a request body: by today's rules for a shape, or by last winter's.
///
/// # Errors
/// The 400 that upstream would give; its message ends with the place, which upstream's doesn't.
pub(super) fn read(body: &[u8], today: Option<Shape>) -> Result<Prompt, HttpReply> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| refusal("REQUEST_BODY_INVALID_JSON", "Improperly formed request.", &error.to_string()))?;
    prompt(&body, today).map_err(|BodyRefusal { reason, place }| {
        let message = match reason {
            "TOOL_USE_RESULT_MISMATCH" | "TOOL_CONFIG_MISSING" | "TOOL_DUPLICATE" => "Invalid tool use format.",
            _ => "Improperly formed request.",
        };
        refusal(reason, message, &place)
    })
}

struct BodyRefusal {
    reason: &'static str,
    place: String,
}

fn refusal(reason: &str, message: &str, place: &str) -> HttpReply {
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    HttpReply::error(400, "ValidationException", reason, &format!("{message} (simulator: {place})"))
}

fn invalid<T>(place: impl Into<String>) -> Result<T, BodyRefusal> {
    Err(BodyRefusal { reason: "REQUEST_BODY_INVALID", place: place.into() })
}

fn prompt(body: &Value, today: Option<Shape>) -> Result<Prompt, BodyRefusal> {
    let state = object(body.get("conversationState"), "conversationState")?;
    if let Some(shape) = today {
        shape_rules(body, state, shape)?;
    }
    one_of(state, "conversationState", "chatTriggerType", &["MANUAL", "DIAGNOSTIC", "INLINE_CHAT"], true)?;
    one_of(state, "conversationState", "agentTaskType", &["vibe", "spectask"], false)?;
    let conversation_id = optional_text(state, "conversationState", "conversationId")?;
    optional_text(state, "conversationState", "agentContinuationId")?;
    let profile_arn = match body.get("profileArn") {
        None => None,
        Some(Value::String(arn)) => Some(arn.clone()),
        Some(_) => return invalid("profileArn is no string"),
    };

    let history = optional_list(state, "conversationState", "history")?.unwrap_or_default();
    let mut answered = SeenMessage::default();
    let mut uses_tools = false;
    let mut thoughts = Vec::new();
    for (n, message) in history.iter().enumerate() {
        let place = format!("conversationState.history[{n}]");
        let message = if n % 2 == 0 {
            let message = user(message, &place)?;
            if !message.tools.is_empty() {
                return invalid(format!("{place} declares tools, which only the current message may"));
            }
            pair(&answered, &message, &place)?;
            message
        } else {
            assistant(message, &place)?
        };
        uses_tools |= !message.tool_ids.is_empty();
        thoughts.extend(message.thought.clone());
        answered = message;
    }
    if history.len() % 2 == 1 {
        return invalid("conversationState.history ends with a user message");
    }
    let place = "conversationState.currentMessage";
    let current = match state.get("currentMessage") {
        Some(current) => user(current, place)?,
        None => return invalid(format!("{place} is missing")),
    };
    pair(&answered, &current, place)?;
    if uses_tools && current.tools.is_empty() {
        return Err(BodyRefusal { reason: "TOOL_CONFIG_MISSING", place: format!("{place} declares no tools") });
    }
    let fields = body.get("additionalModelRequestFields").cloned();
    let messages: Vec<&Value> = history.iter().chain(state.get("currentMessage")).collect();
    let blobs = |kind: &'static str| messages.iter().flat_map(move |message| list(user_part(message), kind));
    let current_part = state.get("currentMessage").and_then(user_part);
    let current_context = current_part.and_then(|user| user.get("userInputMessageContext"));
    let rounds = messages.iter().rev().step_by(2);
    let rounds = rounds.take_while(|message| {
        user_part(message).is_some_and(|user| user.get("userInputMessageContext").is_some_and(has_results))
    });
    let members = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>());
    let opening = messages.first().and_then(|first| user_part(first)?["content"].as_str());
    Ok(Prompt {
        model: current_part.and_then(|user| user["modelId"].as_str()).map(str::to_owned),
        conversation_id,
        profile_arn,
        members: members(body).into_iter().flatten().chain(state.keys().cloned()).collect(),
        fields,
        opening: opening.unwrap_or_default().to_owned(),
        thoughts,
        cache_points: messages.iter().filter(|message| has_cache_point(message)).count(),
        has_documents: blobs("documents").next().is_some(),
        has_result_images: current_context.is_some_and(has_results) && list(current_part, "images").next().is_some(),
        has_schema_keywords: list(current_context, "tools")
            .any(|tool| has_keywords(&tool["toolSpecification"]["inputSchema"]["json"])),
        largest_image: blobs("images")
            .filter_map(|image| image["source"]["bytes"].as_str())
            .map(str::len)
            .max()
            .unwrap_or(0),
        round: 1 + rounds.count(),
        blocks: blocks(current_context, &messages),
        content: current.content,
    })
}

/// The refusals of today's Kiro for a body, by shape (K115, TR50).
fn shape_rules(body: &Value, state: &Map<String, Value>, shape: Shape) -> Result<(), BodyRefusal> {
    if body.get("systemPrompt").is_some() || state.contains_key("systemPrompt") {
        return invalid("systemPrompt");
    }
    if shape == Shape::Q && body.get("agentMode").is_some() {
        return invalid("agentMode in a body of shape q");
    }
    if shape == Shape::Q && state.contains_key("rootConversationId") {
        return invalid("conversationState.rootConversationId in a body of shape q");
    }
    if body.get("additionalModelRequestFields").is_some_and(|fields| !fields.is_object()) {
        return invalid("additionalModelRequestFields is no object");
    }
    let current = state.get("currentMessage").and_then(user_part).and_then(|user| user.get("userInputMessageContext"));
    if list(current, "tools").any(|tool| tool.get("cachePoint").is_some()) {
        return Err(BodyRefusal { reason: "", place: "a cachePoint among the tools".to_owned() });
    }
    Ok(())
}

fn user_part(message: &Value) -> Option<&Value> {
    message.get("userInputMessage")
}

fn list<'a>(place: Option<&'a Value>, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    place.and_then(|place| place.get(key)).and_then(Value::as_array).into_iter().flatten()
}

fn has_results(context: &Value) -> bool {
    context.get("toolResults").is_some()
}

fn has_cache_point(message: &Value) -> bool {
    message.as_object().is_some_and(|map| map.values().any(|part| part.get("cachePoint").is_some()))
}

/// Whether a schema holds, at any depth, a keyword that not every upstream knows.
fn has_keywords(schema: &Value) -> bool {
    let Some(schema) = schema.as_object() else { return false };
    schema.iter().any(|(keyword, value)| match keyword.as_str() {
        "type" | "required" | "enum" | "description" => false,
        "properties" => value.as_object().is_some_and(|properties| properties.values().any(has_keywords)),
        "items" => has_keywords(value),
        _ => true,
    })
}

/// Tools first, as models read them, then the messages; each as it will stand in the history of the next turn.
fn blocks(context: Option<&Value>, messages: &[&Value]) -> Vec<Block> {
    let mut hasher = DefaultHasher::new();
    let mut blocks = Vec::with_capacity(messages.len() + 1);
    let mut add = |parts: &[Option<&Value>]| {
        let mut len = 0;
        for part in parts.iter().flatten() {
            match part {
                Value::String(text) => {
                    text.hash(&mut hasher);
                    len += text.chars().count() as u64;
                }
                part => {
                    let text = part.to_string();
                    text.hash(&mut hasher);
                    len += text.chars().count() as u64;
                }
            }
        }
        blocks.push(Block { hash: hasher.finish(), len });
    };
    add(&[context.and_then(|context| context.get("tools"))]);
    for message in messages {
        let user = user_part(message);
        let answer = message.get("assistantResponseMessage");
        let results = user.and_then(|user| user.get("userInputMessageContext")?.get("toolResults"));
        let part = |key: &str| user.or(answer).and_then(|part| part.get(key));
        add(&[part("content"), results, part("images"), part("documents"), part("toolUses"), part("reasoningContent")]);
    }
    blocks
}

#[derive(Default)]
struct SeenMessage {
    content: String,
    /// The ids of a user message's results, or of an assistant message's uses.
    tool_ids: Vec<String>,
    tools: Vec<String>,
    /// There is reasoning, with a signature or without.
    thought: Option<Option<String>>,
}

fn user(message: &Value, place: &str) -> Result<SeenMessage, BodyRefusal> {
    let Some(fields) = message.get("userInputMessage") else {
        return invalid(format!("{place} is no userInputMessage"));
    };
    let place = format!("{place}.userInputMessage");
    let fields = object(Some(fields), &place)?;
    let content = text(fields, &place, "content")?;
    if content.is_empty() {
        return invalid(format!("{place}.content is empty"));
    }
    optional_text(fields, &place, "modelId")?;
    optional_text(fields, &place, "origin")?;
    for (member, formats) in [
        ("images", &["png", "jpeg", "gif", "webp"][..]),
        ("documents", &["pdf", "csv", "doc", "docx", "xls", "xlsx", "html", "txt", "md"]),
    ] {
        for (n, blob) in optional_list(fields, &place, member)?.unwrap_or_default().iter().enumerate() {
            let place = format!("{place}.{member}[{n}]");
            let blob = object(Some(blob), &place)?;
            one_of(blob, &place, "format", formats, true)?;
            if member == "documents" {
                text(blob, &place, "name")?;
            }
            text(object(blob.get("source"), &format!("{place}.source"))?, &place, "bytes")?;
        }
    }
    let mut read = SeenMessage { content: content.to_owned(), ..SeenMessage::default() };
    let Some(context) = fields.get("userInputMessageContext") else { return Ok(read) };
    let place = format!("{place}.userInputMessageContext");
    let context = object(Some(context), &place)?;
    if context.is_empty() {
        return invalid(format!("{place} is empty"));
    }
    read.tools = tools(context, &place)?;
    for (n, result) in optional_list(context, &place, "toolResults")?.unwrap_or_default().iter().enumerate() {
        let place = format!("{place}.toolResults[{n}]");
        let result = object(Some(result), &place)?;
        read.tool_ids.push(text(result, &place, "toolUseId")?.to_owned());
        one_of(result, &place, "status", &["success", "error"], false)?;
        if optional_list(result, &place, "content")?.is_none() {
            return invalid(format!("{place}.content is missing"));
        }
    }
    Ok(read)
}

fn tools(context: &Map<String, Value>, place: &str) -> Result<Vec<String>, BodyRefusal> {
    let mut names = Vec::new();
    for (n, tool) in optional_list(context, place, "tools")?.unwrap_or_default().iter().enumerate() {
        let place = format!("{place}.tools[{n}]");
        if tool.get("cachePoint").is_some() {
            continue;
        }
        let place = format!("{place}.toolSpecification");
        let tool = object(tool.get("toolSpecification"), &place)?;
        let name = text(tool, &place, "name")?;
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
            return invalid(format!("{place}.name is `{name}`"));
        }
        let description = text(tool, &place, "description")?;
        if description.trim().is_empty() || description.chars().count() > 10_240 {
            return invalid(format!("{place}.description is empty or too long"));
        }
        let schema = object(tool.get("inputSchema"), &format!("{place}.inputSchema"))?.get("json");
        if !schema.is_some_and(Value::is_object) {
            return Err(BodyRefusal { reason: "TOOL_SCHEMA_INVALID", place: format!("{place}.inputSchema.json") });
        }
        names.push(name.to_owned());
    }
    let mut seen = HashSet::new();
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(name) => Err(BodyRefusal { reason: "TOOL_DUPLICATE", place: format!("{place}.tools: `{name}` twice") }),
        None => Ok(names),
    }
}

fn assistant(message: &Value, place: &str) -> Result<SeenMessage, BodyRefusal> {
    let Some(fields) = message.get("assistantResponseMessage") else {
        return invalid(format!("{place} is no assistantResponseMessage"));
    };
    let place = format!("{place}.assistantResponseMessage");
    let fields = object(Some(fields), &place)?;
    let mut read = SeenMessage { content: text(fields, &place, "content")?.to_owned(), ..SeenMessage::default() };
    for (n, tool_use) in optional_list(fields, &place, "toolUses")?.unwrap_or_default().iter().enumerate() {
        let place = format!("{place}.toolUses[{n}]");
        let tool_use = object(Some(tool_use), &place)?;
        read.tool_ids.push(text(tool_use, &place, "toolUseId")?.to_owned());
        text(tool_use, &place, "name")?;
        object(tool_use.get("input"), &format!("{place}.input"))?;
    }
    if let Some(reasoning) = fields.get("reasoningContent") {
        let place = format!("{place}.reasoningContent");
        let reasoning = object(Some(reasoning), &place)?;
        match (reasoning.get("reasoningText"), reasoning.get("redactedContent")) {
            (Some(thought), None) => {
                text(object(Some(thought), &place)?, &place, "text")?;
                read.thought = Some(optional_text(object(Some(thought), &place)?, &place, "signature")?);
            }
            (None, Some(Value::String(_))) => read.thought = Some(None),
            _ => return invalid(format!("{place} is neither reasoningText nor redactedContent")),
        }
    }
    Ok(read)
}

/// Every tool use has its result in the next message, and every result its use in the one before.
fn pair(before: &SeenMessage, user: &SeenMessage, place: &str) -> Result<(), BodyRefusal> {
    let (mut uses, mut results) = (before.tool_ids.clone(), user.tool_ids.clone());
    uses.sort_unstable();
    results.sort_unstable();
    if uses == results {
        return Ok(());
    }
    Err(BodyRefusal {
        reason: "TOOL_USE_RESULT_MISMATCH",
        place: format!("{place}: uses {uses:?}, results {results:?}"),
    })
}

fn object<'a>(value: Option<&'a Value>, place: &str) -> Result<&'a Map<String, Value>, BodyRefusal> {
    match value {
        Some(Value::Object(map)) => Ok(map),
        Some(_) => invalid(format!("{place} is no object")),
        None => invalid(format!("{place} is missing")),
    }
}

fn text<'a>(map: &'a Map<String, Value>, place: &str, key: &str) -> Result<&'a str, BodyRefusal> {
    match map.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => invalid(format!("{place}.{key} is no string")),
        None => invalid(format!("{place}.{key} is missing")),
    }
}

fn optional_text(map: &Map<String, Value>, place: &str, key: &str) -> Result<Option<String>, BodyRefusal> {
    if map.contains_key(key) { text(map, place, key).map(|text| Some(text.to_owned())) } else { Ok(None) }
}

fn one_of(map: &Map<String, Value>, place: &str, key: &str, allowed: &[&str], needed: bool) -> Result<(), BodyRefusal> {
    if !needed && !map.contains_key(key) {
        return Ok(());
    }
    let value = text(map, place, key)?;
    if allowed.contains(&value) { Ok(()) } else { invalid(format!("{place}.{key} is `{value}`")) }
}

/// Absent, or not empty (K18).
fn optional_list<'a>(map: &'a Map<String, Value>, place: &str, key: &str) -> Result<Option<&'a [Value]>, BodyRefusal> {
    match map.get(key) {
        None => Ok(None),
        Some(Value::Array(list)) if !list.is_empty() => Ok(Some(list)),
        Some(Value::Array(_)) => invalid(format!("{place}.{key} is empty")),
        Some(_) => invalid(format!("{place}.{key} is no array")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request() -> Value {
        let tool = json!({ "toolSpecification": { "name": "f", "description": "d", "inputSchema": { "json": {} } } });
        json!({
            "conversationState": {
                "chatTriggerType": "MANUAL", "conversationId": "c", "agentTaskType": "vibe",
                "currentMessage": { "userInputMessage": {
                    "content": "now", "modelId": "m", "origin": "AI_EDITOR",
                    "userInputMessageContext": {
                        "tools": [tool],
                        "toolResults": [{ "toolUseId": "t", "content": [{ "text": "r" }], "status": "success" }],
                    },
                } },
                "history": [
                    { "userInputMessage": { "content": "then", "images": [{ "format": "png", "source": { "bytes": "" } }] } },
                    { "assistantResponseMessage": {
                        "content": " ", "toolUses": [{ "toolUseId": "t", "name": "f", "input": {} }],
                        "reasoningContent": { "reasoningText": { "text": "hm", "signature": "s" } },
                    } },
                ],
            },
            "profileArn": "arn",
        })
    }

    #[test]
    fn a_well_formed_request_is_read() {
        let prompt = read(request().to_string().as_bytes(), Some(Shape::Q)).unwrap();
        assert_eq!((prompt.content.as_str(), prompt.opening.as_str(), prompt.round), ("now", "then", 2));
        assert_eq!((prompt.conversation_id.as_deref(), prompt.profile_arn.as_deref()), (Some("c"), Some("arn")));
        assert_eq!((prompt.model.as_deref(), &prompt.thoughts), (Some("m"), &vec![Some("s".to_owned())]));
        assert!(prompt.members.iter().any(|member| member == "agentTaskType"));
        assert!(!prompt.has_documents && !prompt.has_result_images && !prompt.has_schema_keywords);
        assert_eq!((prompt.cache_points, prompt.blocks.len()), (0, 4));
    }

    #[test]
    fn members_of_the_other_shape_are_refused_today() {
        let change = |place: &str, member: &str, value: Value| {
            let mut body = request();
            body.pointer_mut(place).unwrap()[member] = value;
            body.to_string()
        };
        let tools = "/conversationState/currentMessage/userInputMessage/userInputMessageContext";
        let with_point =
            json!([{ "cachePoint": { "type": "default" } }, request().pointer(tools).unwrap()["tools"][0]]);
        for (body, q, runtime) in [
            (change("", "agentMode", json!("vibe")), false, true),
            (change("/conversationState", "rootConversationId", json!("c")), false, true),
            (change("", "systemPrompt", json!("s")), false, false),
            (change("", "additionalModelRequestFields", json!("s")), false, false),
            (change(tools, "tools", with_point), false, false),
        ] {
            assert_eq!(read(body.as_bytes(), Some(Shape::Q)).is_ok(), q, "{body}");
            assert_eq!(read(body.as_bytes(), Some(Shape::Runtime)).is_ok(), runtime, "{body}");
            assert!(read(body.as_bytes(), None).is_ok(), "last winter: {body}");
        }
    }

    #[test]
    fn blocks_of_a_conversation_stay_equal_when_it_goes_on() {
        let first = request();
        let mut second = first.clone();
        let state = second["conversationState"].as_object_mut().unwrap();
        let mut moved = state["currentMessage"].clone();
        moved["userInputMessage"]["userInputMessageContext"].as_object_mut().unwrap().remove("tools");
        let history = state["history"].as_array_mut().unwrap();
        history.extend([moved, json!({ "assistantResponseMessage": { "content": "done" } })]);
        state["currentMessage"]["userInputMessage"]["content"] = "more".into();
        let results = state["currentMessage"]["userInputMessage"]["userInputMessageContext"].as_object_mut().unwrap();
        results.remove("toolResults");
        let blocks = |body: &Value| read(body.to_string().as_bytes(), None).unwrap().blocks;
        let (first, second) = (blocks(&first), blocks(&second));
        assert_eq!((first.len(), second.len()), (4, 6));
        assert_eq!(first[..], second[..4]);
    }

    #[test]
    fn a_bad_request_is_refused_with_upstreams_reason_and_the_place() {
        let current = "/conversationState/currentMessage/userInputMessage";
        let answer = "/conversationState/history/1/assistantResponseMessage";
        let context = format!("{current}/userInputMessageContext");
        let cases = [
            ("/conversationState/chatTriggerType".to_owned(), json!("AUTO"), "REQUEST_BODY_INVALID"),
            (format!("{current}/content"), json!(""), "REQUEST_BODY_INVALID"),
            (format!("{current}/content"), json!(null), "REQUEST_BODY_INVALID"),
            (format!("{current}/modelId"), json!(null), "REQUEST_BODY_INVALID"),
            ("/profileArn".to_owned(), json!(null), "REQUEST_BODY_INVALID"),
            ("/conversationState/history".to_owned(), json!([]), "REQUEST_BODY_INVALID"),
            (
                "/conversationState/history/0".to_owned(),
                json!({ "assistantResponseMessage": {} }),
                "REQUEST_BODY_INVALID",
            ),
            (
                "/conversationState/history/0/userInputMessage/images/0/format".to_owned(),
                json!("jpg"),
                "REQUEST_BODY_INVALID",
            ),
            (format!("{answer}/toolUses/0/input"), json!(null), "REQUEST_BODY_INVALID"),
            (format!("{answer}/toolUses/0/toolUseId"), json!("other"), "TOOL_USE_RESULT_MISMATCH"),
            (format!("{answer}/reasoningContent"), json!({}), "REQUEST_BODY_INVALID"),
            (format!("{context}/toolResults/0/status"), json!("ok"), "REQUEST_BODY_INVALID"),
            (format!("{context}/toolResults"), json!([]), "REQUEST_BODY_INVALID"),
            (format!("{context}/tools/0/toolSpecification/name"), json!("a.b"), "REQUEST_BODY_INVALID"),
            (format!("{context}/tools/0/toolSpecification/description"), json!(" "), "REQUEST_BODY_INVALID"),
            (format!("{context}/tools/0/toolSpecification/inputSchema/json"), json!(null), "TOOL_SCHEMA_INVALID"),
            (context.clone(), json!({}), "REQUEST_BODY_INVALID"),
        ];
        for (place, value, reason) in cases {
            let mut body = request();
            *body.pointer_mut(&place).unwrap() = value;
            let refused = read(body.to_string().as_bytes(), None).unwrap_err();
            let answer: Value = serde_json::from_slice(&refused.body).unwrap();
            assert_eq!((refused.status, &answer["reason"]), (400, &json!(reason)), "{place}: {answer}");
        }

        let mut body = request();
        let context = body.pointer_mut(&context).unwrap();
        context["tools"] = json!([context["tools"][0], context["tools"][0]]);
        assert!(
            String::from_utf8_lossy(&read(body.to_string().as_bytes(), None).unwrap_err().body)
                .contains("TOOL_DUPLICATE")
        );
        let mut body = request();
        body.pointer_mut(&format!("{current}/userInputMessageContext"))
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove("tools");
        let missing = read(body.to_string().as_bytes(), None).unwrap_err();
        assert!(String::from_utf8_lossy(&missing.body).contains("TOOL_CONFIG_MISSING"));
        assert!(String::from_utf8_lossy(&read(b"{", None).unwrap_err().body).contains("REQUEST_BODY_INVALID_JSON"));
    }
}
