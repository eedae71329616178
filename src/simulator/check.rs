//! Reads a chat request as upstream does, and refuses what upstream refuses: the simulator must not accept a body that
//! Kiro would not (kiro-upstream.md §4).

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::scenario::HttpReply;

/// What the simulator has to know of a request that is well formed.
#[derive(Debug, PartialEq)]
pub(super) struct Prompt {
    /// The text of the current message.
    pub content: String,
    pub conversation_id: Option<String>,
    pub profile_arn: Option<String>,
    /// The history holds `reasoningContent`.
    pub has_reasoning: bool,
}

/// Checks a request body.
///
/// # Errors
/// The 400 that upstream would give; its message ends with the place, which upstream's doesn't.
pub(super) fn read(body: &[u8]) -> Result<Prompt, HttpReply> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| refusal("REQUEST_BODY_INVALID_JSON", "Improperly formed request.", &error.to_string()))?;
    prompt(&body).map_err(|Refusal { reason, place }| {
        let message = match reason {
            "TOOL_USE_RESULT_MISMATCH" | "TOOL_CONFIG_MISSING" | "TOOL_DUPLICATE" => "Invalid tool use format.",
            _ => "Improperly formed request.",
        };
        refusal(reason, message, &place)
    })
}

struct Refusal {
    reason: &'static str,
    place: String,
}

fn refusal(reason: &str, message: &str, place: &str) -> HttpReply {
    HttpReply::error(400, "ValidationException", Some(reason), &format!("{message} (simulator: {place})"))
}

fn invalid<T>(place: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason: "REQUEST_BODY_INVALID", place: place.into() })
}

fn prompt(body: &Value) -> Result<Prompt, Refusal> {
    let state = object(body.get("conversationState"), "conversationState")?;
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
    let mut answered = Message::default();
    let mut uses_tools = false;
    let mut has_reasoning = false;
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
        has_reasoning |= message.has_reasoning;
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
        return Err(Refusal { reason: "TOOL_CONFIG_MISSING", place: format!("{place} declares no tools") });
    }
    Ok(Prompt { content: current.content, conversation_id, profile_arn, has_reasoning })
}

#[derive(Default)]
struct Message {
    content: String,
    /// Of a user message its results', of an assistant's its uses'.
    tool_ids: Vec<String>,
    tools: Vec<String>,
    has_reasoning: bool,
}

fn user(message: &Value, place: &str) -> Result<Message, Refusal> {
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
    let mut read = Message { content: content.to_owned(), ..Message::default() };
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

fn tools(context: &Map<String, Value>, place: &str) -> Result<Vec<String>, Refusal> {
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
            return Err(Refusal { reason: "TOOL_SCHEMA_INVALID", place: format!("{place}.inputSchema.json") });
        }
        names.push(name.to_owned());
    }
    let mut seen = HashSet::new();
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(name) => Err(Refusal { reason: "TOOL_DUPLICATE", place: format!("{place}.tools: `{name}` twice") }),
        None => Ok(names),
    }
}

fn assistant(message: &Value, place: &str) -> Result<Message, Refusal> {
    let Some(fields) = message.get("assistantResponseMessage") else {
        return invalid(format!("{place} is no assistantResponseMessage"));
    };
    let place = format!("{place}.assistantResponseMessage");
    let fields = object(Some(fields), &place)?;
    let mut read = Message { content: text(fields, &place, "content")?.to_owned(), ..Message::default() };
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
                optional_text(object(Some(thought), &place)?, &place, "signature")?;
            }
            (None, Some(Value::String(_))) => {}
            _ => return invalid(format!("{place} is neither reasoningText nor redactedContent")),
        }
        read.has_reasoning = true;
    }
    Ok(read)
}

/// Every tool use has its result in the next message, and every result its use in the one before.
fn pair(before: &Message, user: &Message, place: &str) -> Result<(), Refusal> {
    let (mut uses, mut results) = (before.tool_ids.clone(), user.tool_ids.clone());
    uses.sort_unstable();
    results.sort_unstable();
    if uses == results {
        return Ok(());
    }
    Err(Refusal { reason: "TOOL_USE_RESULT_MISMATCH", place: format!("{place}: uses {uses:?}, results {results:?}") })
}

fn object<'a>(value: Option<&'a Value>, place: &str) -> Result<&'a Map<String, Value>, Refusal> {
    match value {
        Some(Value::Object(map)) => Ok(map),
        Some(_) => invalid(format!("{place} is no object")),
        None => invalid(format!("{place} is missing")),
    }
}

fn text<'a>(map: &'a Map<String, Value>, place: &str, key: &str) -> Result<&'a str, Refusal> {
    match map.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => invalid(format!("{place}.{key} is no string")),
        None => invalid(format!("{place}.{key} is missing")),
    }
}

fn optional_text(map: &Map<String, Value>, place: &str, key: &str) -> Result<Option<String>, Refusal> {
    if map.contains_key(key) { text(map, place, key).map(|text| Some(text.to_owned())) } else { Ok(None) }
}

fn one_of(map: &Map<String, Value>, place: &str, key: &str, allowed: &[&str], needed: bool) -> Result<(), Refusal> {
    if !needed && !map.contains_key(key) {
        return Ok(());
    }
    let value = text(map, place, key)?;
    if allowed.contains(&value) { Ok(()) } else { invalid(format!("{place}.{key} is `{value}`")) }
}

/// Absent, or not empty (K18).
fn optional_list<'a>(map: &'a Map<String, Value>, place: &str, key: &str) -> Result<Option<&'a [Value]>, Refusal> {
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
        let expected = Prompt {
            content: "now".to_owned(),
            conversation_id: Some("c".to_owned()),
            profile_arn: Some("arn".to_owned()),
            has_reasoning: true,
        };
        assert_eq!(read(request().to_string().as_bytes()).ok(), Some(expected));
    }

    #[test]
    fn what_upstream_refuses_is_refused_with_its_reason_and_the_place() {
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
            let refused = read(body.to_string().as_bytes()).unwrap_err();
            let answer: Value = serde_json::from_slice(&refused.body).unwrap();
            assert_eq!((refused.status, &answer["reason"]), (400, &json!(reason)), "{place}: {answer}");
        }

        let mut body = request();
        let context = body.pointer_mut(&context).unwrap();
        context["tools"] = json!([context["tools"][0], context["tools"][0]]);
        assert!(
            String::from_utf8_lossy(&read(body.to_string().as_bytes()).unwrap_err().body).contains("TOOL_DUPLICATE")
        );
        let mut body = request();
        body.pointer_mut(&format!("{current}/userInputMessageContext"))
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove("tools");
        let missing = read(body.to_string().as_bytes()).unwrap_err();
        assert!(String::from_utf8_lossy(&missing.body).contains("TOOL_CONFIG_MISSING"));
        assert!(String::from_utf8_lossy(&read(b"{").unwrap_err().body).contains("REQUEST_BODY_INVALID_JSON"));
    }
}
