//! Reads a request out of checked JSON and refuses it by the first rule it breaks (contract/messages.md).

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;

use super::edits::read_edits;
use super::media::{DocumentFormat, ImageFormat, first_bytes, is_base64};
use super::offer::{Change, Unknown, check_tool_choice, no_tool, offered, only_server_tools};
use super::parts::{
    Block, Content, Document, DocumentSource, Image, Message, Role, SearchResult, SystemText, Tool, ToolChoice,
    ToolResult, ToolUse,
};
use super::passed::{PassedTool, is_tool_search, passed_tool};
use super::search::{is_search, read_search};
use super::settle::{apply_summary, leave_out_empty, references, resolve_references, without_unloaded};
use super::value::{
    Path, Result, array, boolean, fields, integer_from, not_empty_string, object, one_of, quotable, required, string,
};
use super::{
    Display, MAX_MESSAGES, MAX_SCHEMA, MAX_STOP_SEQUENCE, MAX_STOP_SEQUENCES, MAX_TOOL_NAME, Purpose, Request,
    RequestError, Thinking,
};
use crate::proto::effort::Effort;
use crate::proto::json::tree::{JsonError, JsonTree, MAX_VALUES, Text, Value, ValueId, ValueKind};
use crate::proto::messages::error::Cause;
use crate::proto::messages::search::WEB_SEARCH;

impl<'a> Request<'a> {
    /// Reads and checks a body: JSON first, then the fields in the order of contract/messages.md (M1).
    ///
    /// # Errors
    /// The first rule that the body breaks (M12, M13, M15, M16, M18–M50), except "model known", which is the
    /// translator's (TR6).
    pub fn parse(body: &'a [u8], purpose: Purpose) -> std::result::Result<Self, RequestError> {
        request(body, purpose)
    }
}

/// The whole body: JSON, then the top level (M20–M32), then the insides of `messages` (M35–M47) and of `tools`
/// (M48–M50), and last what `tool_choice` says about the tools.
fn request(body: &[u8], purpose: Purpose) -> Result<Request<'_>> {
    let json = json_object(body)?;
    // Before everything else: the rest of such a request is only a piece of a conversation (M68). Counting is harmless.
    if let ([Some(_)], Purpose::Messages | Purpose::Lenient) = (fields(json.root(), ["thread"]), purpose) {
        let error = Path::top("thread").error("conversations are not held here, send all messages without it");
        return Err(RequestError { cause: Some(Cause::ThreadUnsupported), ..error });
    }
    let [model, max_tokens, messages, system, tools, tool_choice, thinking, output_config] = fields(
        json.root(),
        ["model", "max_tokens", "messages", "system", "tools", "tool_choice", "thinking", "output_config"],
    );
    let [stop_sequences, stream, metadata, management] =
        fields(json.root(), ["stop_sequences", "stream", "metadata", "context_management"]);
    let ignored = RefCell::default();
    let top = |name| Path::top(name).noting(&ignored);
    for (name, feature) in WITHOUT_EFFECT.into_iter().zip(fields(json.root(), WITHOUT_EFFECT)) {
        feature.into_iter().for_each(|_| top(name).ignored());
    }

    let at = Path::top("model");
    let model = not_empty_string(required(model, at)?, at)?;
    let at = Path::top("max_tokens");
    let max_tokens = match (purpose, max_tokens) {
        (Purpose::CountTokens, _) => None,
        (Purpose::Lenient, tokens) if tokens.is_none_or(|tokens| tokens.kind() == ValueKind::Null) => None,
        (Purpose::Messages | Purpose::Lenient, tokens) => Some(integer_from(1, required(tokens, at)?, at)?),
    };
    let messages_at = top("messages");
    let messages = array(required(messages, messages_at)?, messages_at)?;
    if messages.elements().next().is_none() {
        return Err(messages_at.error("must not be empty"));
    }
    let system = system.map_or(Ok(Vec::new()), system_prompt)?;
    let tools_at = top("tools");
    let tools = tools.map(|tools| array(tools, tools_at)).transpose()?;
    let tool_choice =
        tool_choice.map_or(Ok(ToolChoice::Auto), |choice| tool_choice_shape(choice, top("tool_choice")))?;
    let (thinking, display) = thinking.map_or(Ok((Thinking::Absent, None)), thinking_mode)?;
    let effort = output_config.map_or(Ok(None), |config| output_effort(config, Path::top("output_config")))?;
    check_sampling(json.root())?;
    let (schema, schema_path) = output_schema(json.root(), output_config)?;
    let stop_sequences = stop_sequences.map_or(Ok(Vec::new()), read_stop_sequences)?;
    let stream = stream.map_or(Ok(false), |stream| boolean(stream, Path::top("stream")))?;
    let user_id = metadata.map_or(Ok(None), metadata_user_id)?;
    no_mcp_servers(json.root())?;
    let edits = management.map(|management| read_edits(management, top("context_management"))).transpose()?;

    let ReadMessages { mut messages, changes, mut server_tools, turn_effort } = read_messages(messages, messages_at)?;
    let mut declared = Vec::new();
    if let Some(tools) = tools {
        let defines_one = changes.iter().any(|change| matches!(change, Change::Define(_)));
        (declared, server_tools) = read_tools(tools, defines_one, server_tools, tools_at)?;
    }
    let tools = usable_tools(declared, changes, &server_tools, &tool_choice, &mut messages, messages_at)?;
    check_tool_choice(&tool_choice, &tools)?;
    apply_summary(&mut messages);
    leave_out_empty(&mut messages);
    let (server_tools, effort) = (server_tools.kinds, turn_effort.or(effort));

    Ok(Request {
        model,
        stream,
        system,
        messages,
        tools,
        server_tools,
        tool_choice,
        thinking,
        display,
        max_tokens,
        effort,
        schema,
        schema_path,
        stop_sequences,
        user_id,
        edits,
        applied_edits: None,
        ignored: ignored.take(),
        json,
    })
}

fn json_object(body: &[u8]) -> Result<JsonTree<'_>> {
    let at = Path::top("body");
    let json = JsonTree::parse(body).map_err(|error| {
        at.error(match error {
            JsonError::Syntax { line, column } => format!("not valid JSON (line {line}, column {column})"),
            JsonError::TooDeep => "nested too deeply".to_owned(),
            JsonError::TooMany => format!("more than {MAX_VALUES} JSON values"),
            JsonError::TooLong => "too long".to_owned(),
        })
    })?;
    if json.root().kind() == ValueKind::Object { Ok(json) } else { Err(at.error("must be a JSON object")) }
}

/// The tools that the next reply may use: as system messages changed them (M69), without deferred ones that nothing
/// refers to (TR59).
fn usable_tools<'a>(
    declared: Vec<Tool<'a>>,
    changes: Vec<Change<'a>>,
    server: &ServerTools<'a>,
    choice: &ToolChoice<'a>,
    messages: &mut [Message<'a>],
    at: Path<'_>,
) -> Result<Vec<Tool<'a>>> {
    let all = || declared.iter().chain(changes.iter().filter_map(Change::defined));
    let mut referred = Vec::new();
    if all().any(|tool| tool.deferred) {
        referred = references(messages);
        referred.extend(changes.iter().filter_map(Change::offer));
        referred.sort_by_key(|(message, _)| *message);
    }
    resolve_references(messages, all().map(|tool| &*tool.name));
    let tools = offered(declared, changes, &server.names).map_err(|Unknown { name, message, block }| {
        let at = at.index(message);
        let at = at.field("content");
        let at = at.index(block);
        at.field("tool").field("name").error(no_tool(&name))
    })?;
    // A web search finds no tools.
    let has = |deferred: bool| tools.iter().any(|tool| tool.deferred == deferred && tool.search.is_none());
    Ok(if has(true) && has(false) && !server.has_tool_search {
        without_unloaded(tools, referred, choice)
    } else {
        tools
    })
}

/// Features that Kiro has nothing for (M75).
const WITHOUT_EFFECT: [&str; 6] = ["container", "service_tier", "speed", "inference_geo", "fallbacks", "compaction"];

// The top level (M20–M32)

fn read_stop_sequences<'a>(sequences: Value<'_, 'a>) -> Result<Vec<Cow<'a, str>>> {
    let at = Path::top("stop_sequences");
    let sequences = array(sequences, at)?;
    if sequences.elements().nth(MAX_STOP_SEQUENCES).is_some() {
        return Err(at.error(format!("at most {MAX_STOP_SEQUENCES}")));
    }
    let read = |(index, sequence)| {
        let at = at.index(index);
        let sequence = not_empty_string(sequence, at)?;
        if sequence.chars().nth(MAX_STOP_SEQUENCE).is_some() {
            return Err(at.error(format!("at most {MAX_STOP_SEQUENCE} characters")));
        }
        if sequence.chars().all(char::is_whitespace) {
            return Err(at.error("must not be white space alone"));
        }
        Ok(sequence)
    };
    sequences.elements().enumerate().map(read).collect()
}

fn system_prompt<'a>(system: Value<'_, 'a>) -> Result<Vec<SystemText<'a>>> {
    let at = Path::top("system");
    match (system.text(), system.kind()) {
        (Some(text), _) => Ok(vec![SystemText { text, cached: false }]),
        (None, ValueKind::Array) => (system.elements().enumerate())
            .map(|(index, block)| {
                let (text, cached) = text_block(block, at.index(index))?;
                Ok(SystemText { text, cached })
            })
            .collect(),
        _ => Err(at.error("must be a string or an array")),
    }
}

fn tool_choice_shape<'a>(choice: Value<'_, 'a>, at: Path<'_>) -> Result<ToolChoice<'a>> {
    let [kind, name, one_at_once] = fields(object(choice, at)?, ["type", "name", "disable_parallel_tool_use"]);
    if one_at_once.and_then(Value::bool) == Some(true) {
        at.field("disable_parallel_tool_use").ignored();
    }
    let kind_at = at.field("type");
    let kind = string(required(kind, kind_at)?, kind_at)?.into_decoded();
    match &*kind {
        "auto" => Ok(ToolChoice::Auto),
        "any" => Ok(ToolChoice::Any),
        "none" => Ok(ToolChoice::None),
        "tool" => {
            let name_at = at.field("name");
            not_empty_string(required(name, name_at)?, name_at).map(ToolChoice::Tool)
        }
        _ => Err(kind_at.error(one_of(["auto", "any", "tool", "none"]))),
    }
}

fn thinking_mode(thinking: Value<'_, '_>) -> Result<(Thinking, Option<Display>)> {
    let at = Path::top("thinking");
    let [kind, budget, display] = fields(object(thinking, at)?, ["type", "budget_tokens", "display"]);
    let kind_at = at.field("type");
    let kind = string(required(kind, kind_at)?, kind_at)?.into_decoded();
    let thinking = match &*kind {
        "enabled" => {
            let at = at.field("budget_tokens");
            Thinking::Enabled { budget: integer_from(1024, required(budget, at)?, at)? }
        }
        "adaptive" => Thinking::Adaptive,
        "disabled" => Thinking::Disabled,
        "between_tools" => Thinking::BetweenTools,
        _ => return Err(kind_at.error(one_of(["enabled", "adaptive", "disabled", "between_tools"]))),
    };
    // Clients try other values and rely on the refusal (TR42).
    let Some(display) = display else { return Ok((thinking, None)) };
    let at = at.field("display");
    let name = string(display, at)?;
    match Display::ALL.into_iter().find(|display| name.is(display.as_str())) {
        Some(display) => Ok((thinking, Some(display))),
        None => Err(at.error(one_of(Display::ALL.map(Display::as_str)))),
    }
}

fn output_effort(config: Value<'_, '_>, at: Path<'_>) -> Result<Option<Effort>> {
    let [effort] = fields(object(config, at)?, ["effort"]);
    let Some(effort) = effort else { return Ok(None) };
    let at = at.field("effort");
    let name = string(effort, at)?;
    match Effort::ASKED.into_iter().find(|effort| name.is(effort.as_str())) {
        Some(effort) => Ok(Some(effort)),
        None => Err(at.error(one_of(Effort::ASKED.map(Effort::as_str)))),
    }
}

fn check_sampling(request: Value<'_, '_>) -> Result<()> {
    let [temperature, top_p, top_k] = fields(request, ["temperature", "top_p", "top_k"]);
    between_0_and_1(temperature, Path::top("temperature"))?;
    between_0_and_1(top_p, Path::top("top_p"))?;
    top_k.map_or(Ok(()), |top_k| integer_from(0, top_k, Path::top("top_k")).map(drop))
}

/// The schema of structured output (TR62) and where it stands; the older `output_format` counts where `output_config`
/// has none.
fn output_schema(body: Value<'_, '_>, config: Option<Value<'_, '_>>) -> Result<(Option<ValueId>, &'static str)> {
    let at = Path::top("output_config");
    let [older] = fields(body, ["output_format"]);
    let [format] = config.map_or([None], |config| fields(config, ["format"]));
    let (format, at, path) = match (format, older) {
        (Some(format), _) => (format, at.field("format"), "output_config.format.schema"),
        (None, Some(older)) => (older, Path::top("output_format"), "output_format.schema"),
        (None, None) => return Ok((None, "")),
    };
    let [kind, schema] = fields(object(format, at)?, ["type", "schema"]);
    let kind_at = at.field("type");
    if !string(required(kind, kind_at)?, kind_at)?.is("json_schema") {
        return Err(kind_at.error(one_of(["json_schema"])));
    }
    let at = at.field("schema");
    let schema = object(required(schema, at)?, at)?;
    let mut compact = String::new();
    schema.write(&mut compact);
    if compact.len() > MAX_SCHEMA {
        return Err(at.error(format!("at most {MAX_SCHEMA} bytes")));
    }
    Ok((Some(schema.id()), path))
}

fn between_0_and_1(value: Option<Value<'_, '_>>, at: Path<'_>) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    if value.kind() != ValueKind::Number {
        return Err(at.error("must be a number"));
    }
    match value.raw().parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(()),
        _ => Err(at.error("must be between 0 and 1")),
    }
}

fn metadata_user_id<'a>(metadata: Value<'_, 'a>) -> Result<Option<Text<'a>>> {
    let at = Path::top("metadata");
    let [user_id] = fields(object(metadata, at)?, ["user_id"]);
    user_id.map(|user_id| string(user_id, at.field("user_id"))).transpose()
}

/// A client that names servers expects their tools (M75).
fn no_mcp_servers(request: Value<'_, '_>) -> Result<()> {
    let at = Path::top("mcp_servers");
    let [servers] = fields(request, ["mcp_servers"]);
    match servers.map(|servers| array(servers, at)).transpose()? {
        Some(servers) if servers.elements().next().is_some() => {
            Err(at.error("remote MCP servers can't be served through Kiro"))
        }
        _ => Ok(()),
    }
}

// Messages (M35–M47, M69, M70)

/// The messages, and what system messages say beside their text (M69, M70).
#[derive(Default)]
struct ReadMessages<'a> {
    messages: Vec<Message<'a>>,
    changes: Vec<Change<'a>>,
    /// Tools among the changes that only Anthropic could run.
    server_tools: ServerTools<'a>,
    /// The effort of the turn that the next reply ends.
    turn_effort: Option<Effort>,
}

fn read_messages<'a>(messages: Value<'_, 'a>, at: Path<'_>) -> Result<ReadMessages<'a>> {
    let count = messages.elements().count();
    if count > MAX_MESSAGES {
        return Err(at.error(format!("at most {MAX_MESSAGES}")));
    }
    let mut read = ReadMessages { messages: Vec::with_capacity(count), ..ReadMessages::default() };
    let mut user_came = false;
    // The system messages since the last user message whose text lasts until the next one.
    let mut passing = Vec::new();
    let is_users =
        |message: Value<'_, '_>| message.member("role").and_then(Value::text).is_some_and(|role| role.is("user"));
    let newest =
        messages.elements().enumerate().filter(|(_, message)| is_users(*message)).map(|(index, _)| index).last();
    for (index, message) in messages.elements().enumerate() {
        let at = at.index(index).in_history(Some(index) < newest);
        let [role, content] = fields(object(message, at)?, ["role", "content"]);
        let role = read_role(role, at.field("role"))?;
        user_came |= role == Role::User || role == Role::Assistant && is_summarised(content);
        if !user_came && role == Role::Assistant {
            return Err(at.field("role").error("first message must be 'user'"));
        }
        let is_last = index + 1 == count;
        let content_at = at.field("content");
        // Left out (TR65).
        let mut may_be_empty = role == Role::Assistant;
        let blocks = if role == Role::System {
            let (changes, lasts) = (read.changes.len(), system_lasts(message, at)?);
            if !lasts {
                passing.push(index);
            }
            let effort = system_effort(message, at)?;
            read.turn_effort = effort.or(read.turn_effort);
            let blocks = match content {
                None if effort.is_some() => Vec::new(),
                content => system_blocks(required(content, content_at)?, index, &mut read, content_at)?,
            };
            // Claude Code sends `[]` (C40).
            let is_empty_list = content
                .is_some_and(|content| content.kind() == ValueKind::Array && content.elements().next().is_none());
            may_be_empty = effort.is_some() || read.changes.len() > changes || is_empty_list;
            blocks
        } else {
            string_or_blocks(required(content, content_at)?, Holder::Message(role), content_at)?
        };
        match role {
            Role::User => passing.drain(..).for_each(|index: usize| read.messages[index].blocks.clear()),
            Role::Assistant if !is_last => read.turn_effort = None,
            _ => {}
        }
        let message = Message { role, blocks };
        if message.is_empty() && !may_be_empty {
            return Err(content_at.error("must not be empty"));
        }
        read.messages.push(message);
    }
    if !user_came {
        // Only `system` messages: the fault has no index.
        return Err(at.error("must hold a 'user' message"));
    }
    Ok(read)
}

/// Whether content has a summary that a user message is made of (TR57): an answer that holds one may come first.
fn is_summarised(content: Option<Value<'_, '_>>) -> bool {
    let blocks = content.into_iter().filter(|content| content.kind() == ValueKind::Array).flat_map(Value::elements);
    blocks.filter(|block| block.kind() == ValueKind::Object).any(|block| {
        let text = |name| block.member(name).and_then(Value::text);
        text("type").is_some_and(|kind| kind.is("compaction")) && text("content").is_some_and(|text| !text.is_blank())
    })
}

/// Whether a system message's text outlives the next user message (M70).
fn system_lasts(message: Value<'_, '_>, at: Path<'_>) -> Result<bool> {
    let [clear_at] = fields(message, ["clear_at"]);
    let Some(clear_at) = clear_at else { return Ok(true) };
    let at = at.field("clear_at");
    match &*string(clear_at, at)?.into_decoded() {
        "never" => Ok(true),
        "next_user_message" => Ok(false),
        _ => Err(at.error(one_of(["next_user_message", "never"]))),
    }
}

/// The effort that a system message asks for (M70).
fn system_effort(message: Value<'_, '_>, at: Path<'_>) -> Result<Option<Effort>> {
    let [config] = fields(message, ["output_config"]);
    config.map_or(Ok(None), |config| output_effort(config, at.field("output_config")))
}

/// The text of a system message; changes of the tools go where they belong (M69).
fn system_blocks<'a>(
    content: Value<'_, 'a>,
    message: usize,
    read: &mut ReadMessages<'a>,
    at: Path<'_>,
) -> Result<Vec<Block<'a>>> {
    let holder = Holder::Message(Role::System);
    if content.kind() != ValueKind::Array {
        return string_or_blocks(content, holder, at);
    }
    let mut blocks = Vec::new();
    for (index, block) in content.elements().enumerate() {
        let at = at.index(index);
        let [kind] = fields(object(block, at)?, ["type"]);
        let is = |name| kind.and_then(Value::text).is_some_and(|kind| kind.is(name));
        if is("tool_addition") || is("tool_removal") {
            tool_change(block, is("tool_addition"), (message, index), read, at)?;
        } else {
            blocks.push(read_block(block, holder, at)?);
        }
    }
    Ok(blocks)
}

/// A block that offers a tool or withdraws one. Tools behind MCP servers aren't offered, so nothing changes for them.
fn tool_change<'a>(
    change: Value<'_, 'a>,
    adds: bool,
    (message, block): (usize, usize),
    read: &mut ReadMessages<'a>,
    at: Path<'_>,
) -> Result<()> {
    const KINDS: [&str; 4] = ["tool_reference", "tool_definition", "mcp_tool_reference", "mcp_toolset_reference"];
    let [tool, cache_control] = fields(change, ["tool", "cache_control"]);
    let at = at.field("tool");
    let tool = object(required(tool, at)?, at)?;
    let [kind, name, definition] = fields(tool, ["type", "name", "definition"]);
    let kind_at = at.field("type");
    match &*string(required(kind, kind_at)?, kind_at)?.into_decoded() {
        "tool_reference" => {
            let name_at = at.field("name");
            let name = not_empty_string(required(name, name_at)?, name_at)?;
            read.changes.push(if adds { Change::Offer { name, message, block } } else { Change::Withdraw(name) });
        }
        "tool_definition" if adds => {
            let at = at.field("definition");
            if let Some(mut tool) = read_tool(required(definition, at)?, &mut read.server_tools, at)? {
                tool.cached |= cache_control.is_some();
                read.changes.push(Change::Define(tool));
            }
        }
        "mcp_tool_reference" | "mcp_toolset_reference" => {}
        _ if adds => return Err(kind_at.error(one_of(KINDS))),
        _ => return Err(kind_at.error(one_of([KINDS[0], KINDS[2], KINDS[3]]))),
    }
    Ok(())
}

fn read_role(role: Option<Value<'_, '_>>, at: Path<'_>) -> Result<Role> {
    let role = string(required(role, at)?, at)?.into_decoded();
    match &*role {
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "system" => Ok(Role::System),
        _ => Err(at.error(one_of(["user", "assistant", "system"]))),
    }
}

/// The owner of a list of blocks: decides which types it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Message(Role),
    ToolResult,
    Document,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Message(Role::User) => "a user message",
            Self::Message(Role::Assistant) => "an assistant message",
            Self::Message(Role::System) => "a system message",
            Self::ToolResult => "a tool result",
            Self::Document => "a document",
        })
    }
}

/// A string counts as one text block.
fn string_or_blocks<'a>(content: Value<'_, 'a>, holder: Holder, at: Path<'_>) -> Result<Vec<Block<'a>>> {
    match (content.text(), content.kind()) {
        (Some(text), _) => Ok(vec![Block { content: Content::Text(text), cached: false }]),
        (None, ValueKind::Array) => {
            let mut blocks = Vec::with_capacity(content.elements().count());
            for (index, block) in content.elements().enumerate() {
                blocks.push(read_block(block, holder, at.index(index))?);
            }
            Ok(blocks)
        }
        _ => Err(at.error("must be a string or an array")),
    }
}

fn read_block<'a>(block: Value<'_, 'a>, holder: Holder, at: Path<'_>) -> Result<Block<'a>> {
    let [kind, cache_control] = fields(object(block, at)?, ["type", "cache_control"]);
    let kind_at = at.field("type");
    let kind = string(required(kind, kind_at)?, kind_at)?.into_decoded();
    let cached = cache_control.is_some();
    let (user, assistant) = (Holder::Message(Role::User), Holder::Message(Role::Assistant));
    let allowed = match &*kind {
        "text" => true,
        "image" => [user, Holder::ToolResult, Holder::Document].contains(&holder),
        "document" | "search_result" => [user, Holder::ToolResult].contains(&holder),
        "tool_result" => holder == user,
        "tool_use" | "thinking" | "redacted_thinking" => holder == assistant,
        // In system messages they aren't read here (M69).
        "tool_addition" | "tool_removal" => false,
        kind if is_foreign(kind) => [user, assistant, Holder::ToolResult].contains(&holder),
        // Of a result what can be read goes out (M44).
        _ if holder == Holder::ToolResult => true,
        kind => {
            return Err(kind_at.error(match quotable(kind) {
                Some(kind) => format!("unknown block type {kind}"),
                None => "unknown block type".to_owned(),
            }));
        }
    };
    if !allowed {
        return Err(kind_at.error(match quotable(&kind) {
            Some(kind) => format!("{kind} is not allowed in {holder}"),
            None => format!("not allowed in {holder}"),
        }));
    }
    let content = match &*kind {
        "text" => Content::Text(text_field(block, at)?),
        "image" => Content::Image(read_image(block, at)?),
        "document" => Content::Document(read_document(block, at)?),
        "search_result" => Content::SearchResult(read_search_result(block, at)?),
        "tool_use" => Content::ToolUse(read_tool_use(block, at)?),
        "tool_result" => Content::ToolResult(read_tool_result(block, at)?),
        "thinking" => {
            let [text, signature] = fields(block, ["thinking", "signature"]);
            let text_at = at.field("thinking");
            let text = string(required(text, text_at)?, text_at)?;
            let signature =
                signature.map_or(Ok(Text::new("")), |signature| string(signature, at.field("signature")))?;
            Content::Thinking { text, signature }
        }
        "redacted_thinking" => {
            let [data] = fields(block, ["data"]);
            let at = at.field("data");
            Content::RedactedThinking { data: string(required(data, at)?, at)? }
        }
        "server_tool_use" | "web_search_tool_result" if holder == assistant => read_search_block(block),
        "tool_reference" if holder == Holder::ToolResult => {
            let name = block.member("tool_name").and_then(Value::text).filter(|name| !name.is_empty());
            name.map_or(Content::Foreign, |name| Content::ToolReference(name.into_decoded()))
        }
        "tool_search_tool_result" => Content::ToolsFound(tools_found(block)),
        "compaction" if holder == assistant => {
            let [summary] = fields(block, ["content"]);
            Content::Summary(summary.and_then(Value::text).unwrap_or_else(|| Text::new("")))
        }
        kind => {
            // What other blocks hold is history; this one gives the model a file.
            if kind == "container_upload" {
                at.ignored_as(kind);
            }
            Content::Foreign
        }
    };
    Ok(Block { content, cached })
}

/// A use of Anthropic's web search, or its results (TR52). One that can't be read is dropped, as those of other server
/// tools (M46).
fn read_search_block<'a>(block: Value<'_, 'a>) -> Content<'a> {
    let [name, id, input] = fields(block, ["name", "id", "input"]);
    let [of, content] = fields(block, ["tool_use_id", "content"]);
    let text = |value: Option<Value<'_, 'a>>| value.and_then(Value::text).map(Text::into_decoded);
    match (text(id), text(of), content) {
        (_, Some(id), Some(content)) if !id.is_empty() => Content::SearchResults { id, content: content.id() },
        (Some(id), None, None) if !id.is_empty() && text(name).is_some_and(|name| name == WEB_SEARCH) => {
            let input = input.filter(|input| input.kind() == ValueKind::Object).map(Value::id);
            Content::SearchUse { id, input }
        }
        _ => Content::Foreign,
    }
}

/// The names in the result of a search for tools at Anthropic.
fn tools_found<'a>(block: Value<'_, 'a>) -> Vec<Cow<'a, str>> {
    let found = block.member("content").and_then(|content| content.member("tool_references"));
    let names = found.into_iter().flat_map(Value::elements).filter_map(|reference| reference.member("tool_name"));
    names.filter_map(Value::text).map(Text::into_decoded).collect()
}

/// Blocks of other services' server tools (M76), and other blocks that only Anthropic's own answers leave in a history.
fn is_foreign(kind: &str) -> bool {
    matches!(
        kind,
        "container_upload" | "tool_reference" | "compaction" | "browser_state" | "fallback" | "mcp_tool_listing"
    ) || kind.strip_suffix("_tool_use").is_some_and(|service| !service.is_empty())
        || kind.strip_suffix("_tool_result").is_some_and(|service| !service.is_empty())
}

/// A block that must be text (M23, M42).
fn text_block<'a>(block: Value<'_, 'a>, at: Path<'_>) -> Result<(Text<'a>, bool)> {
    let [kind, cache_control] = fields(object(block, at)?, ["type", "cache_control"]);
    let kind_at = at.field("type");
    if !string(required(kind, kind_at)?, kind_at)?.is("text") {
        return Err(kind_at.error("must be 'text'"));
    }
    Ok((text_field(block, at)?, cache_control.is_some()))
}

fn text_field<'a>(block: Value<'_, 'a>, at: Path<'_>) -> Result<Text<'a>> {
    let [text] = fields(block, ["text"]);
    let at = at.field("text");
    string(required(text, at)?, at)
}

fn read_image<'a>(block: Value<'_, 'a>, at: Path<'_>) -> Result<Image<'a>> {
    let [source] = fields(block, ["source"]);
    let at = at.field("source");
    let [kind, media_type, data] = fields(object(required(source, at)?, at)?, ["type", "media_type", "data"]);
    let kind_at = at.field("type");
    match &*string(required(kind, kind_at)?, kind_at)?.into_decoded() {
        "base64" => {}
        kind => return Err(kind_at.error(unfetched(kind).unwrap_or_else(|| "must be 'base64'".to_owned()))),
    }
    let media_type_at = at.field("media_type");
    let media_type = string(required(media_type, media_type_at)?, media_type_at)?;
    let data_at = at.field("data");
    let data = base64(data, data_at)?;
    let format = ImageFormat::of_bytes(&first_bytes(&data.decode()));
    match format {
        Some(format) if media_type.is(format.media_type()) => {}
        Some(ImageFormat::Jpeg) if media_type.is("image/jpg") => {}
        Some(_) => media_type_at.ignored(),
        // A session lives on with what it once sent to another model.
        None if at.is_history() => data_at.ignored(),
        None => return Err(data_at.error("must be a JPEG, PNG, GIF or WebP image")),
    }
    Ok(Image { format, data, path: data_at.to_string(), is_newest: !at.is_history() })
}

fn read_document<'a>(block: Value<'_, 'a>, at: Path<'_>) -> Result<Document<'a>> {
    let [source, title, context, citations] = fields(block, ["source", "title", "context", "citations"]);
    read_citations(citations, at);
    let source_at = at.field("source");
    let source = read_document_source(object(required(source, source_at)?, source_at)?, source_at)?;
    let title = title.map(|title| string(title, at.field("title"))).transpose()?;
    if let Some(context) = context {
        let at = at.field("context");
        string(context, at)?;
        at.ignored();
    }
    Ok(Document { title, source })
}

fn read_document_source<'a>(source: Value<'_, 'a>, at: Path<'_>) -> Result<DocumentSource<'a>> {
    let [kind, media_type, data, content] = fields(source, ["type", "media_type", "data", "content"]);
    let kind_at = at.field("type");
    match &*string(required(kind, kind_at)?, kind_at)?.into_decoded() {
        "base64" => {
            let media_type_at = at.field("media_type");
            let media_type = string(required(media_type, media_type_at)?, media_type_at)?;
            let Some(format) = DocumentFormat::ALL.into_iter().find(|format| media_type.is(format.media_type())) else {
                return Err(media_type_at.error(one_of(DocumentFormat::ALL.map(DocumentFormat::media_type))));
            };
            Ok(DocumentSource::Base64 { format, data: base64(data, at.field("data"))? })
        }
        "text" => {
            let at = at.field("data");
            string(required(data, at)?, at).map(DocumentSource::Text)
        }
        "content" => {
            let at = at.field("content");
            string_or_blocks(required(content, at)?, Holder::Document, at).map(DocumentSource::Content)
        }
        kind => Err(kind_at.error(unfetched(kind).unwrap_or_else(|| one_of(["base64", "text", "content"])))),
    }
}

/// The refusal of a source that lies elsewhere (M40).
fn unfetched(kind: &str) -> Option<String> {
    matches!(kind, "url" | "file").then(|| format!("{kind} sources are not fetched, send base64"))
}

fn base64<'a>(data: Option<Value<'_, 'a>>, at: Path<'_>) -> Result<Text<'a>> {
    let data = string(required(data, at)?, at)?;
    let decoded = data.decode();
    if decoded.is_empty() {
        Err(at.error("must not be empty"))
    } else if decoded.starts_with("data:") {
        Err(at.error("must be base64 without a 'data:' prefix"))
    } else if !is_base64(&decoded) {
        Err(at.error("must be standard base64"))
    } else {
        drop(decoded);
        Ok(data)
    }
}

fn read_search_result<'a>(block: Value<'_, 'a>, at: Path<'_>) -> Result<SearchResult<'a>> {
    let [source, title, content, citations] = fields(block, ["source", "title", "content", "citations"]);
    read_citations(citations, at);
    let (source_at, title_at, content_at) = (at.field("source"), at.field("title"), at.field("content"));
    let source = string(required(source, source_at)?, source_at)?;
    let title = string(required(title, title_at)?, title_at)?;
    let blocks = array(required(content, content_at)?, content_at)?.elements().enumerate();
    let (mut texts, mut cached) = (Vec::new(), false);
    for (index, block) in blocks {
        let (text, is_cached) = text_block(block, content_at.index(index))?;
        texts.push(text);
        cached |= is_cached;
    }
    Ok(SearchResult { title, source, texts, cached })
}

/// Upstream has no citations.
fn read_citations(citations: Option<Value<'_, '_>>, at: Path<'_>) {
    let enabled = citations.and_then(|citations| citations.member("enabled")).and_then(Value::bool);
    if enabled == Some(true) {
        at.field("citations").ignored();
    }
}

fn read_tool_use<'a>(block: Value<'_, 'a>, at: Path<'_>) -> Result<ToolUse<'a>> {
    let [id, name, input] = fields(block, ["id", "name", "input"]);
    let (id_at, name_at) = (at.field("id"), at.field("name"));
    let id = not_empty_string(required(id, id_at)?, id_at)?;
    let name = not_empty_string(required(name, name_at)?, name_at)?;
    let input = input.map(|input| object(input, at.field("input")).map(Value::id)).transpose()?;
    Ok(ToolUse { id, name, input, cleared: None })
}

fn read_tool_result<'a>(block: Value<'_, 'a>, at: Path<'_>) -> Result<ToolResult<'a>> {
    let [id, content, is_error] = fields(block, ["tool_use_id", "content", "is_error"]);
    let id_at = at.field("tool_use_id");
    let id = not_empty_string(required(id, id_at)?, id_at)?;
    let content =
        content.map_or(Ok(Vec::new()), |content| string_or_blocks(content, Holder::ToolResult, at.field("content")))?;
    let is_error = is_error.map_or(Ok(false), |is_error| boolean(is_error, at.field("is_error")))?;
    Ok(ToolResult { id, content, is_error })
}

// Tools (M48, M50, M73, M74)

/// Tools that can't be served.
#[derive(Default)]
struct ServerTools<'a> {
    kinds: Vec<Cow<'a, str>>,
    names: Vec<Cow<'a, str>>,
    /// One of them would search for deferred tools (TR59).
    has_tool_search: bool,
}

/// The tools that the client runs; those that can't be served are added to `server`. Without a tool of the client's Kiro
/// could call nothing, unless a system message `defines_one` (M69).
fn read_tools<'a>(
    tools: Value<'_, 'a>,
    defines_one: bool,
    mut server: ServerTools<'a>,
    at: Path<'_>,
) -> Result<(Vec<Tool<'a>>, ServerTools<'a>)> {
    let (mut client, before) = (Vec::<Tool<'a>>::new(), server.kinds.len());
    for (index, tool) in tools.elements().enumerate() {
        client.extend(read_tool(tool, &mut server, at.index(index))?);
    }
    let alone = !defines_one && client.iter().all(|tool| tool.search.is_some());
    client.iter_mut().filter_map(|tool| tool.search.as_mut()).for_each(|search| search.alone = alone);
    match server.kinds.get(before) {
        Some(kind) if client.is_empty() && !defines_one => Err(only_server_tools(kind)),
        _ => Ok((client, server)),
    }
}

/// A tool that the client runs (M48, M73); one that can't be served is added to `server`.
fn read_tool<'a>(tool: Value<'_, 'a>, server: &mut ServerTools<'a>, at: Path<'_>) -> Result<Option<Tool<'a>>> {
    let [kind, name, schema, description, cache_control] =
        fields(object(tool, at)?, ["type", "name", "input_schema", "description", "cache_control"]);
    let kind = kind.map(|kind| string(kind, at.field("type"))).transpose()?;
    if kind.as_ref().is_some_and(|kind| kind.is("function")) && name.is_none() && schema.is_none() {
        let wanted = "this is OpenAI's form; the Messages API wants name, description and input_schema";
        return Err(at.field("type").error(wanted));
    }
    let cached = cache_control.is_some();
    let read = match kind.filter(|kind| !kind.is("custom")).map(Text::into_decoded) {
        Some(kind) if is_search(&kind) => {
            let search = Some(Box::new(read_search(&kind, tool, at)?));
            return Ok(Some(Tool { name: WEB_SEARCH.into(), cached, search, ..Tool::default() }));
        }
        Some(kind) => match passed_tool(&kind) {
            Some(passed) => {
                let tool = published(passed, name, tool, at)?;
                Tool { cached, ..tool }
            }
            None => {
                at.ignored_as(&kind);
                server.has_tool_search |= is_tool_search(&kind);
                server.kinds.push(kind);
                server.names.extend(name.and_then(Value::text).map(Text::into_decoded));
                return Ok(None);
            }
        },
        None => {
            let name_at = at.field("name");
            let name = not_empty_string(required(name, name_at)?, name_at)?;
            if name.len() > MAX_TOOL_NAME && name.chars().count() > MAX_TOOL_NAME {
                return Err(name_at.error(format!("must have at most {MAX_TOOL_NAME} characters")));
            }
            let schema = schema.map(|schema| object(schema, at.field("input_schema")).map(Value::id)).transpose()?;
            let description = description.map(|text| string(text, at.field("description"))).transpose()?;
            Tool { name, description, schema, cached, ..Tool::default() }
        }
    };
    with_options(read, tool, server, at)
}

/// A tool that is published: its name, schema and description are known (M73, M74).
fn published<'a>(
    passed: &'static PassedTool,
    name: Option<Value<'_, 'a>>,
    tool: Value<'_, 'a>,
    at: Path<'_>,
) -> Result<Tool<'a>> {
    if let Some(name) = name {
        let at = at.field("name");
        if !string(name, at)?.is(passed.name) {
            return Err(at.error(format!("must be '{}'", passed.name)));
        }
    }
    let [most] = fields(tool, ["max_characters"]);
    let most = most.map(|most| integer_from(1, most, at.field("max_characters"))).transpose()?;
    let description = match most {
        Some(most) => Text::new(format!("{} A view shows at most {most} characters.", passed.description)),
        None => Text::constant(passed.description),
    };
    Ok(Tool {
        name: Cow::Borrowed(passed.name),
        description: Some(description),
        published: Some(passed.schema),
        ..Tool::default()
    })
}

/// The options that every tool may have (TR58–TR61).
fn with_options<'a>(
    mut read: Tool<'a>,
    tool: Value<'_, 'a>,
    server: &mut ServerTools<'a>,
    at: Path<'_>,
) -> Result<Option<Tool<'a>>> {
    let [examples, deferred, strict, callers] =
        fields(tool, ["input_examples", "defer_loading", "strict", "allowed_callers"]);
    if let Some(examples) = examples {
        let at = at.field("input_examples");
        let objects = array(examples, at)?.elements().enumerate();
        read.examples =
            objects.map(|(index, example)| object(example, at.index(index)).map(Value::id)).collect::<Result<_>>()?;
    }
    read.deferred = deferred.map_or(Ok(false), |deferred| boolean(deferred, at.field("defer_loading")))?;
    let strict_at = at.field("strict");
    if strict.map_or(Ok(false), |strict| boolean(strict, strict_at))? {
        strict_at.ignored();
    }
    if let Some(callers) = callers {
        let at = at.field("allowed_callers");
        let mut callers = array(callers, at)?.elements().filter_map(Value::text);
        if !callers.any(|caller| caller.is("direct")) {
            // Only code that runs at Anthropic may call it.
            at.ignored();
            server.names.push(read.name);
            return Ok(None);
        }
    }
    Ok(Some(read))
}
