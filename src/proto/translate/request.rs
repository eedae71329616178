//! Messages request to Kiro request (TR).
//!
//! The order of work is TR1's. The client's messages are grouped into turns that alternate (TR8); what repairs them
//! (TR15–TR18) only marks and empties, so that they keep alternating.

mod documents;
mod turns;

use std::collections::HashSet;
use std::sync::Arc;

use self::documents::Documents;
use self::turns::{PastThinking, Turn};
use super::model::{Model, Models, ThinkingStyle};
use super::tools::{Declared, ToolNames, upstream_name};
use crate::proto::json::tree::Text;
use crate::proto::kiro::request::{AssistantMessage, Body, Content, Conversation, Message as KiroMessage, UserMessage};
use crate::proto::messages::error::ErrorType;
use crate::proto::messages::request::{
    Content as BlockContent, Effort, Message, Request, RequestError, Role, Thinking, ToolChoice, quotable,
    without_dropped_prefill,
};

/// Cache points upstream takes (TR32).
const MAX_CACHE_POINTS: usize = 4;
/// Most tokens of thinking that are asked for (TR12).
const MAX_THINKING: u64 = 24_576;
/// How many messages at the end of the history keep their images (TR26).
const MESSAGES_WITH_IMAGES: usize = 5;
/// The assistant's half of the system pair (TR11).
const SYSTEM_REPLY: Text<'static> = Text::constant("I will follow these instructions.");
/// The current message after a prefill (TR9), and a user message of which nothing is left (TR13).
const CONTINUE: Text<'static> = Text::constant("Continue");

/// What the translator needs beside the request: settings, and what a pure function can't make up itself.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The model table (TR6).
    pub models: &'a Models,
    /// `KIRO_MODEL_FALLBACK`: the name of the row for unknown names that begin with `claude`; `None`: 404.
    pub fallback: Option<&'a str>,
    /// `KIRO_CACHE_POINTS=on` (TR32).
    pub cache_points: bool,
    /// The header `x-claude-code-session-id` (TR5).
    pub session_header: Option<&'a str>,
    /// A random v4 UUID, used when the request carries no conversation id (TR5).
    pub random_conversation_id: &'a str,
    /// A random v4 UUID of this client request, the same on every attempt (TR5).
    pub continuation_id: &'a str,
    /// Write the body without any `reasoningContent`, after fault `ThinkingSignature` (TR31).
    pub without_reasoning: bool,
}

/// A translated request, and what the answer's translation needs to know about it.
#[derive(Debug, Clone)]
pub struct Translated {
    /// The Kiro request.
    pub body: Body,
    /// The row of the model table.
    pub model: Arc<Model>,
    /// `additionalModelRequestFields`, a JSON object (TR12).
    pub model_fields: Option<String>,
    /// Upstream's tool names back to the client's (TR20).
    pub tool_names: ToolNames,
    /// The conversation id that was sent (TR5).
    pub conversation_id: String,
    /// Whether thinking is on (TR12).
    pub thinking: bool,
    /// Whether any `reasoningContent` was sent, so that TR31 has something to leave out.
    pub sent_reasoning: bool,
    /// Types of the tools that were dropped because they run on Anthropic's side (TR19): one warning.
    pub dropped_server_tools: Vec<String>,
}

/// Translates a valid request.
///
/// # Errors
/// Only one: 404 `not_found_error` at `model` for a name that the table doesn't hold (M20, TR6).
pub fn translate(request: &Request<'_>, ctx: &Context<'_>) -> Result<Translated, RequestError> {
    let model = resolve_model(request, ctx.models, ctx.fallback)?;
    let declared = Declared::of(request);

    let messages = without_dropped_prefill(&request.messages);
    let leading_systems = messages.iter().take_while(|message| message.role == Role::System).count();
    let (leading, messages) = messages.split_at(leading_systems);
    let turns = turns::turns(messages, &request.json, &declared);

    let used = names_in_use(&turns);
    let (tools, tool_names) = declared.for_request(&request.tool_choice, &used);
    let system = system_text(request, leading, model.thinking, !tools.is_empty());

    let past_thinking = match (request.thinking_on(), ctx.without_reasoning) {
        (false, _) => PastThinking::Dropped,
        (true, false) => PastThinking::Native,
        (true, true) => PastThinking::WithoutNative,
    };
    let mut documents = Documents::of(&turns);
    let has_prefill = matches!(turns.last(), Some(Turn::Assistant(_)));
    let history_len = turns.len() - usize::from(!has_prefill);
    let mut messages: Vec<_> = turns
        .into_iter()
        .enumerate()
        .map(|(place, turn)| match turn {
            Turn::User(turn) => {
                let keeps_images = place + MESSAGES_WITH_IMAGES >= history_len;
                KiroMessage::User(turn.message(keeps_images, &mut documents))
            }
            Turn::Assistant(turn) => KiroMessage::Assistant(turn.message(past_thinking)),
        })
        .collect();
    let current = match messages.pop() {
        Some(KiroMessage::User(message)) => message,
        prefill => {
            messages.extend(prefill);
            UserMessage { content: CONTINUE.into(), ..UserMessage::default() }
        }
    };
    let sent_reasoning = messages
        .iter()
        .any(|message| matches!(message, KiroMessage::Assistant(AssistantMessage { reasoning: Some(_), .. })));

    let conversation_id =
        request.conversation_id(ctx.session_header).unwrap_or_else(|| ctx.random_conversation_id.to_owned());
    let mut conversation = Conversation {
        continuation_id: ctx.continuation_id,
        conversation_id: &conversation_id,
        model_id: &model.kiro_id,
        history: messages,
        current,
        tools,
    };
    conversation.current.documents = documents.into_sent();
    add_system(&mut conversation, system);
    limit_cache_points(&mut conversation, if ctx.cache_points { MAX_CACHE_POINTS } else { 0 });

    // What we add is about as long as the client's own member names, and 100 bytes a history message.
    let size = request.json.text_len() + 100 * conversation.history.len() + 4096;
    Ok(Translated {
        body: conversation.body(size),
        model_fields: model_fields(request, model.thinking),
        model,
        tool_names,
        thinking: request.thinking_on(),
        sent_reasoning,
        dropped_server_tools: request.server_tools.iter().map(|kind| kind.to_string()).collect(),
        conversation_id,
    })
}

/// The row of the model table that a request asks for.
///
/// # Errors
/// 404 `not_found_error` at `model`, with the names that are known (M20).
pub fn resolve_model(
    request: &Request<'_>,
    models: &Models,
    fallback: Option<&str>,
) -> Result<Arc<Model>, RequestError> {
    models.resolve(request.model(), fallback).cloned().ok_or_else(|| {
        let unknown = match quotable(request.model()) {
            Some(name) => format!("unknown model {name}"),
            None => "unknown model".to_owned(),
        };
        let known: Vec<_> = models.list().map(|row| row.listed_name()).collect();
        RequestError {
            kind: ErrorType::NotFound,
            path: "model".to_owned(),
            sentence: format!("{unknown}. Known: {}", known.join(", ")),
            cause: None,
        }
    })
}

/// Client's names of the tools that remaining tool uses call, in order of first use (TR23).
fn names_in_use<'r>(turns: &[Turn<'r>]) -> Vec<&'r str> {
    let mut seen = HashSet::new();
    let uses = turns.iter().filter_map(|turn| match turn {
        Turn::Assistant(turn) => Some(&turn.uses),
        Turn::User(_) => None,
    });
    uses.flatten().map(|tool_use| tool_use.name).filter(|name| seen.insert(*name)).collect()
}

/// The system text and whether the client wants a cache point on it.
struct System<'r> {
    text: Content<'r>,
    cached: bool,
}

/// TR11: thinking prefix, the client's system, tool_choice's sentence.
fn system_text<'r>(
    request: &'r Request<'_>,
    leading: &'r [Message<'_>],
    style: ThinkingStyle,
    has_tools: bool,
) -> System<'r> {
    let leading_blocks = leading.iter().flat_map(|message| &message.blocks);
    let client: Vec<_> = (request.system.iter().map(|system| (&system.text, system.cached)))
        .chain(leading_blocks.filter_map(|block| match &block.content {
            BlockContent::Text(text) => Some((text, block.cached)),
            _ => None,
        }))
        .collect();

    let mut text = Content::default();
    if style == ThinkingStyle::Prefix
        && let Some(prefix) = thinking_prefix(request)
        && !client.iter().any(|(text, _)| text.contains("<thinking_mode>") || text.contains("<max_thinking_length>"))
    {
        text.line(Text::new(prefix));
    }
    for (piece, _) in client.iter().filter(|(piece, _)| !piece.is_empty()) {
        text.line(piece.by_ref());
    }
    if let Some(sentence) = tool_choice_sentence(&request.tool_choice, has_tools) {
        text.line(Text::new(sentence));
    }
    System { text, cached: client.iter().any(|(_, cached)| *cached) }
}

/// TR12: how thinking is asked for in the system text.
fn thinking_prefix(request: &Request<'_>) -> Option<String> {
    match request.thinking {
        Thinking::Off => None,
        Thinking::Enabled { budget } => {
            let length = budget.min(MAX_THINKING);
            Some(format!("<thinking_mode>enabled</thinking_mode><max_thinking_length>{length}</max_thinking_length>"))
        }
        Thinking::Adaptive | Thinking::BetweenTools => {
            let effort = request.effort.unwrap_or(Effort::High).as_str();
            Some(format!("<thinking_mode>adaptive</thinking_mode><thinking_effort>{effort}</thinking_effort>"))
        }
    }
}

/// TR12: how thinking is asked for in a member of its own.
fn model_fields(request: &Request<'_>, style: ThinkingStyle) -> Option<String> {
    if style != ThinkingStyle::Fields {
        return None;
    }
    let effort = match request.thinking {
        Thinking::Off => return None,
        Thinking::Enabled { budget: ..4_096 } => Effort::Low,
        Thinking::Enabled { budget: ..16_384 } => Effort::Medium,
        Thinking::Enabled { .. } => Effort::High,
        Thinking::Adaptive | Thinking::BetweenTools => request.effort.unwrap_or(Effort::High),
    };
    let effort = effort.as_str();
    Some(format!(
        r#"{{"thinking":{{"type":"adaptive","display":"summarized"}},"output_config":{{"effort":"{effort}"}}}}"#
    ))
}

/// TR24: upstream has no member for `tool_choice`.
fn tool_choice_sentence(choice: &ToolChoice<'_>, has_tools: bool) -> Option<String> {
    match choice {
        ToolChoice::Auto => None,
        ToolChoice::Any => Some("You must call at least one of the tools in your next reply.".to_owned()),
        ToolChoice::Tool(name) => {
            Some(format!("You must call the tool \"{}\" in your next reply.", upstream_name(name)))
        }
        ToolChoice::None => has_tools.then(|| "Do not call any tool in your next reply.".to_owned()),
    }
}

/// TR11: without history in front of the current text, else as a pair of its own in front of everything. A blank
/// text is none: upstream takes no blank message.
fn add_system<'r>(conversation: &mut Conversation<'r>, system: System<'r>) {
    if system.text.is_blank() {
        return;
    }
    if conversation.history.is_empty() {
        let user = std::mem::replace(&mut conversation.current.content, system.text);
        conversation.current.content.append(Text::BLANK_LINE);
        conversation.current.content.extend(user);
        return;
    }
    let pair = [
        KiroMessage::User(UserMessage { content: system.text, cache_point: system.cached, ..UserMessage::default() }),
        KiroMessage::Assistant(AssistantMessage { content: SYSTEM_REPLY.into(), ..AssistantMessage::default() }),
    ];
    conversation.history.splice(0..0, pair);
}

/// TR32: only the last ones stay.
fn limit_cache_points(conversation: &mut Conversation<'_>, most: usize) {
    conversation.cache_points().rev().filter(|point| **point).skip(most).for_each(|point| *point = false);
}
