//! Messages request to Kiro request (TR).
//!
//! TR1 gives the order of work. The client's messages are grouped into alternating turns (TR8). Repairs (TR15–TR18)
//! only mark and empty turns, so they keep alternating.

mod documents;
mod turns;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use self::turns::{CONTINUE, Images, PastThinking, Seen, Turn};
use super::fields::{Asked, thinking_prefix};
use super::ids::Ids;
use super::model::{Fallback, Model, Models, Resolved};
use super::pictures::{PictureForm, Pictures};
use super::schema::{bare, is_bare};
use super::structured;
use super::tools::{Declared, ToolNames, upstream_name};
use crate::proto::json::tree::Text;
use crate::proto::kiro::request::{
    AssistantMessage, Content, Conversation, HistoryMessage, KiroBody, Tool as KiroTool, UserMessage,
};
use crate::proto::messages::error::ErrorType;
use crate::proto::messages::request::{
    Content as BlockContent, Display, Ignored, Message, Request, RequestError, Role, SearchTool, ToolChoice,
    UserLocation, quotable, without_dropped_prefill,
};
use crate::proto::messages::search::WEB_SEARCH;

/// Cache points upstream takes (TR50).
pub const MAX_CACHE_POINTS: usize = 4;
/// A client's system text with one of these asks for thinking itself (TR40).
const TAGS: [&str; 2] = ["<thinking_mode>", "<max_thinking_length>"];
/// How many messages at the end of the history keep their images (TR26).
const MESSAGES_WITH_IMAGES: usize = 5;
/// The assistant's half of the system pair (TR46).
const SYSTEM_REPLY: Text<'static> = Text::constant("I will follow these instructions.");

/// The translator's inputs beside the request: settings, and everything that a pure function can't make itself.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The model table (TR6).
    pub models: &'a Models,
    /// `KIRO_MODEL_FALLBACK`, or a host program's: the model for unknown names; `None`: 404.
    pub fallback: Option<Fallback<'a>>,
    /// `KIRO_SYSTEM_TEXT` (TR46).
    pub system_text: SystemPlace,
    /// `KIRO_CACHE_POINTS` (TR50).
    pub cache_points: CachePoints,
    /// Most cache points that go out, at most [`MAX_CACHE_POINTS`]; 0: none. The model's row may allow fewer.
    pub cache_limit: usize,
    /// The conversation's and the continuation's id (TR48, TR49).
    pub ids: &'a Ids,
    /// Which signed thinking of history may go out (TR44).
    pub replay: Replay<'a>,
    /// The bytes that the request was read from: long texts in the body are slices of it. Without it they are copied.
    pub source: Option<&'a Bytes>,
    /// What to leave out of the body, after upstream refused it.
    pub leave_out: LeaveOut,
    /// The large pictures and the form in which they go out; none: all as they are (TR67).
    pub pictures: Option<(&'a Pictures, PictureForm)>,
    /// The older id of the model's row (K123), for accounts that don't know the other.
    pub other_model_id: bool,
}

/// Where the system text goes (`KIRO_SYSTEM_TEXT`, TR46).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SystemPlace {
    /// `pair`: a user message of its own with an acknowledgement, in front of everything.
    #[default]
    Pair,
    /// `fold`: in front of the first user message's text.
    Fold,
}

/// Which cache points go out (`KIRO_CACHE_POINTS`, TR50).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CachePoints {
    /// None.
    #[default]
    Off,
    /// Those that the client set.
    Client,
    /// Ours: behind the system text and behind the last assistant message.
    Auto,
}

/// Which signed or redacted thinking of history may go out: that which the same account made with this model (TR44).
#[derive(Clone, Copy, Default)]
pub enum Replay<'a> {
    /// None.
    #[default]
    Nothing,
    /// All of it.
    Everything,
    /// Thinking for which this returns true. Its arguments are the model's `kiro_id` and the [`signature_id`] of the
    /// signature or of a redacted thought's data.
    ///
    /// [`signature_id`]: super::ids::signature_id
    Those(&'a dyn Fn(&str, u64) -> bool),
}

impl Replay<'_> {
    /// Whether the thought of this signature goes to this model.
    fn may(&self, kiro_id: &str, signature: u64) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Those(those) => those(kiro_id, signature),
        }
    }
}

impl fmt::Debug for Replay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Everything => "Everything",
            Self::Those(_) => "Those",
        })
    }
}

/// The parts of the body that a repair leaves out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeaveOut {
    /// Every `reasoningContent` (TR31).
    pub reasoning: bool,
    /// Signed thinking without text (TR44).
    pub empty_thoughts: bool,
    /// Keywords of tools' schemas that not every upstream knows (TR64).
    pub schema_keywords: bool,
}

/// A translated request, with the inputs of the answer's translation.
#[derive(Debug, Clone)]
pub struct Translated {
    /// The Kiro request.
    pub body: KiroBody,
    /// The row of the model table.
    pub model: Arc<Model>,
    /// Upstream's tool names back to the client's (TR20).
    pub tool_names: ToolNames,
    /// Whether thinking is on (TR12).
    pub thinking: bool,
    /// What the client asked for, for the fields of each attempt (TR40).
    pub asked: Asked,
    /// Whether any `reasoningContent` was sent, so that TR31 has something to leave out.
    pub sent_reasoning: bool,
    /// Whether signed thinking was sent that has no text (TR44).
    pub sent_empty_thoughts: bool,
    /// Whether signed thinking was kept back because it isn't this account's (TR44).
    pub withheld_reasoning: bool,
    /// The images that were sent: where their data stands in the client's request (TR67).
    pub sent_images: Vec<String>,
    /// How many cache points were sent (TR50, K131).
    pub sent_cache_points: usize,
    /// Whether a tool's schema was sent with keywords that a repair can leave out (TR64).
    pub sent_schema_keywords: bool,
    /// The web search that the model may use (M87).
    pub search: Option<SearchTool>,
    /// Types of the tools that were dropped because they run on Anthropic's side (TR19): one warning.
    pub dropped_server_tools: Vec<String>,
    /// Features of the request without effect (M80).
    pub ignored: Ignored,
}

/// Translates a valid request.
///
/// # Errors
/// Only 404 `not_found_error` at `model`, for a name that the table doesn't hold (M20, TR6).
pub fn translate(request: &Request<'_>, ctx: &Context<'_>) -> Result<Translated, RequestError> {
    let Resolved { row: model, thinks } = resolve_model(request, ctx.models, ctx.fallback)?;
    let asked = Asked::of(request, thinks);
    let declared = Declared::of(request);

    let messages = without_dropped_prefill(&request.messages);
    let leading_systems = messages.iter().take_while(|message| message.role == Role::System).count();
    let (leading, messages) = messages.split_at(leading_systems);
    let turns = turns::turns(messages, &request.json, &declared);

    // The message goes on behind its searches: what `tool_choice` asked for is done (TR51).
    let goes_on = matches!(messages.last(), Some(message) if message.role == Role::Assistant)
        && matches!(turns.last(), Some(Turn::User(_)));
    let used = names_in_use(&turns);
    let (mut tools, tool_names) = declared.for_request(&request.tool_choice, &used);
    let sent_schema_keywords = keep_keywords(&mut tools, !ctx.leave_out.schema_keywords);
    let system = system_text(request, leading, &asked, &model);

    let may = |signature: u64| !ctx.leave_out.reasoning && ctx.replay.may(&model.kiro_id, signature);
    let mut past_thinking = PastThinking {
        is_on: asked.thinks(),
        tags: model.thinking.by_prefix(),
        empty: model.display.contains(&Display::Omitted) && !ctx.leave_out.empty_thoughts,
        may: &may,
        seen: Seen::default(),
    };
    let mut images = Images { large: ctx.pictures, sent: Vec::new() };
    let mut documents = turns::documents(&turns);
    let has_prefill = matches!(turns.last(), Some(Turn::Assistant(_)));
    let history_len = turns.len() - usize::from(!has_prefill);
    let mut messages: Vec<_> = turns
        .into_iter()
        .enumerate()
        .map(|(place, turn)| match turn {
            Turn::User(turn) => {
                let keeps_images = place + MESSAGES_WITH_IMAGES >= history_len;
                HistoryMessage::User(turn.message(keeps_images, &mut images, &mut documents))
            }
            Turn::Assistant(turn) => HistoryMessage::Assistant(turn.message(&mut past_thinking)),
        })
        .collect();
    let current = match messages.pop() {
        Some(HistoryMessage::User(message)) => message,
        prefill => {
            messages.extend(prefill);
            UserMessage { content: CONTINUE.into(), ..UserMessage::default() }
        }
    };
    let seen = past_thinking.seen;

    let mut conversation = Conversation {
        model_id: model.alt.as_deref().filter(|_| ctx.other_model_id).unwrap_or(&model.kiro_id),
        continuation_id: &ctx.ids.continuation,
        conversation_id: &ctx.ids.conversation,
        history: messages,
        current,
        tools,
    };
    conversation.current.documents = documents.into_sent();
    add_sentences(&mut conversation, request, goes_on);
    let system_message = place_system(&mut conversation, system, ctx.system_text);
    let row_limit = model.cache.as_ref().and_then(|cache| usize::try_from(cache.points).ok());
    let cache_limit = ctx.cache_limit.min(row_limit.unwrap_or(MAX_CACHE_POINTS));
    let sent_cache_points = set_cache_points(&mut conversation, ctx.cache_points, cache_limit, system_message);

    // What we add is about as long as the client's own member names, and 100 bytes a history message.
    let size = request.json.text_len() + 100 * conversation.history.len() + 4096;
    Ok(Translated {
        body: conversation.body(ctx.source, size),
        model,
        tool_names,
        thinking: asked.thinks(),
        asked,
        sent_reasoning: seen.sent,
        sent_empty_thoughts: seen.sent_empty,
        withheld_reasoning: seen.withheld,
        sent_images: images.sent,
        sent_cache_points,
        sent_schema_keywords,
        search: request.search().cloned(),
        dropped_server_tools: request.server_tools.iter().map(|kind| kind.to_string()).collect(),
        ignored: request.ignored.clone(),
    })
}

/// Leaves out the keywords of schemas that not every upstream knows, unless they are kept (TR64). Returns whether there
/// are some.
fn keep_keywords(tools: &mut [KiroTool<'_>], kept: bool) -> bool {
    if !kept {
        tools.iter_mut().for_each(|tool| tool.schema = bare(&tool.schema).into());
    }
    kept && tools.iter().any(|tool| !is_bare(&tool.schema))
}

/// The row of the model table that a request asks for.
///
/// # Errors
/// 404 `not_found_error` at `model`, with the names that are known (M20).
pub fn resolve_model(
    request: &Request<'_>,
    models: &Models,
    fallback: Option<Fallback<'_>>,
) -> Result<Resolved, RequestError> {
    models.resolve(request.model(), fallback).ok_or_else(|| {
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

/// Where the user is, which upstream's search doesn't take (TR53).
fn near(location: &UserLocation) -> Option<String> {
    let UserLocation { city, region, country, timezone } = location;
    let place: Vec<_> = [city, region, country].into_iter().flatten().map(String::as_str).collect();
    match (place.join(", "), timezone) {
        (place, None) if place.is_empty() => None,
        (place, Some(zone)) if place.is_empty() => Some(format!("The user's time zone is {zone}.")),
        (place, None) => Some(format!("The user is near {place}.")),
        (place, Some(zone)) => Some(format!("The user is near {place} ({zone}).")),
    }
}

/// The thinking prefix and the client's system text (TR46); nothing in it changes from turn to turn. A cache marker on
/// a tool counts as one on it (TR50).
fn system_text<'r>(request: &'r Request<'_>, leading: &'r [Message<'_>], asked: &Asked, model: &Model) -> System<'r> {
    let leading_blocks = leading.iter().flat_map(|message| &message.blocks);
    let client: Vec<_> = (request.system.iter().map(|system| (&system.text, system.cached)))
        .chain(leading_blocks.filter_map(|block| match &block.content {
            BlockContent::Text(text) => Some((text, block.cached)),
            _ => None,
        }))
        .collect();

    let mut text = Content::default();
    let has_tags = || client.iter().any(|(text, _)| TAGS.iter().any(|tag| text.contains(tag)));
    if let Some(prefix) = thinking_prefix(asked, model).filter(|_| !has_tags()) {
        text.line(Text::new(prefix));
    }
    for (piece, _) in client.iter().filter(|(piece, _)| !piece.is_empty()) {
        text.line(piece.by_ref());
    }
    if let Some(place) = request.search().and_then(|search| search.location.as_ref()).and_then(near) {
        text.line(Text::new(place));
    }
    let cached = client.iter().any(|(_, cached)| *cached) || request.tools.iter().any(|tool| tool.cached);
    System { text, cached }
}

/// The sentence that stands for `tool_choice` (TR24): upstream has no member for it.
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

/// Adds the sentences about this turn at the end of the current message (TR47).
fn add_sentences(conversation: &mut Conversation<'_>, request: &Request<'_>, goes_on: bool) {
    let has_tools = !conversation.tools.is_empty();
    let is_done = match &request.tool_choice {
        ToolChoice::Any => goes_on,
        ToolChoice::Tool(name) => goes_on && name == WEB_SEARCH,
        ToolChoice::Auto | ToolChoice::None => false,
    };
    let tool_choice = tool_choice_sentence(&request.tool_choice, has_tools).filter(|_| !is_done);
    let structured = request.schema().map(|schema| structured::sentence(&schema));
    for sentence in [tool_choice, structured].into_iter().flatten() {
        conversation.current.content.append(Text::BLANK_LINE);
        conversation.current.content.append(Text::new(sentence));
    }
}

/// Puts the system text in its place (TR46). A blank one is left out: upstream takes no blank message. Returns whether
/// the first user message holds it.
fn place_system<'r>(conversation: &mut Conversation<'r>, system: System<'r>, place: SystemPlace) -> bool {
    let is_blank = system.text.is_blank();
    match place {
        SystemPlace::Pair if is_blank => {}
        SystemPlace::Pair => {
            let user = UserMessage { content: system.text, cache_point: system.cached, ..UserMessage::default() };
            let assistant = AssistantMessage { content: SYSTEM_REPLY.into(), ..AssistantMessage::default() };
            let pair = [HistoryMessage::User(user), HistoryMessage::Assistant(assistant)];
            conversation.history.splice(0..0, pair);
        }
        SystemPlace::Fold => {
            let first = conversation.first_user();
            first.cache_point |= system.cached;
            if !is_blank {
                let user = std::mem::replace(&mut first.content, system.text);
                first.content.append(Text::BLANK_LINE);
                first.content.extend(user);
            }
        }
    }
    !is_blank
}

/// Keeps the last cache points, or sets two of our own instead (TR50). Returns their number.
fn set_cache_points(conversation: &mut Conversation<'_>, which: CachePoints, limit: usize, has_system: bool) -> usize {
    let most = if which == CachePoints::Client { limit.min(MAX_CACHE_POINTS) } else { 0 };
    conversation.cache_points().rev().filter(|point| **point).skip(most).for_each(|point| *point = false);
    if which == CachePoints::Auto {
        let last_reply = conversation.history.iter_mut().rev().find_map(|message| match message {
            HistoryMessage::Assistant(message) => Some(message),
            HistoryMessage::User(_) => None,
        });
        if let Some(message) = last_reply.filter(|_| limit > 0) {
            message.cache_point = true;
        }
        if has_system && limit > 1 {
            conversation.first_user().cache_point = true;
        }
    }
    conversation.cache_points().filter(|point| **point).count()
}
