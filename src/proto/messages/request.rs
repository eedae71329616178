//! The Messages API request: parsed into a value that is valid when it exists.

mod edits;
mod ignored;
mod media;
mod offer;
mod passed;
mod read;
mod search;
mod settle;

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;

pub(crate) use self::edits::{CLEAR_THINKING, CLEAR_TOOL_USES, ClearToolUses, Edit, Inputs, Trigger};
pub use self::ignored::Ignored;
pub(crate) use self::media::{DocumentFormat, ImageFormat, decoded_len};
pub use self::passed::{PASSED_TOOLS, PassedTool, TOOL_SEARCHES};
pub use self::search::{SearchTool, UserLocation};
use super::error::{ApiError, Cause, ErrorType};
use crate::proto::effort::Effort;
use crate::proto::json::tree::{JsonTree, Text, ValueId, ValueKind};
use crate::proto::messages::search::WEB_SEARCH;

/// Most messages of a request (M13).
pub const MAX_MESSAGES: usize = 100_000;
/// Most base64 documents of the last user turn (M15), and of a Kiro request (K21, TR27).
pub const MAX_DOCUMENTS: usize = 5;
/// Most stop sequences, and the longest one in characters (M82).
pub const MAX_STOP_SEQUENCES: usize = 16;
/// See [`MAX_STOP_SEQUENCES`].
pub const MAX_STOP_SEQUENCE: usize = 256;
/// Longest schema of structured output (TR62), compact, in bytes.
pub const MAX_SCHEMA: usize = 64 << 10;
/// Longest tool name in characters (M16).
pub const MAX_TOOL_NAME: usize = 256;

/// The client's request with further messages at its end, for the next upstream answer of the same message (TS33).
/// `messages`: JSON objects with commas between. None when the body has no array `messages` with a message in it.
pub fn with_messages(body: &[u8], messages: &[u8]) -> Option<Vec<u8>> {
    let tree = JsonTree::parse(body).ok()?;
    let array = tree.root().member("messages")?;
    array.elements().next()?;
    let end = array.span().end.checked_sub(1)?;
    Some([body.get(..end)?, b",", messages, body.get(end..)?].concat())
}

/// The purpose of a request: decides whether `max_tokens` is required (M21, M65).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `POST /v1/messages`.
    Messages,
    /// The same for a host program that lets `max_tokens` be absent or null (N96).
    Lenient,
    /// `POST /v1/messages/count_tokens`: `max_tokens` is optional and ignored.
    CountTokens,
}

/// How the operator's text joins the client's system prompt (N13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemMode {
    /// After the client's text, on a line of its own. An empty client text is replaced.
    Append,
    /// In place of the client's text.
    Overwrite,
}

/// Why a request is refused (M19): a path into the client's JSON and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    /// `error.type` of the answer; its usual status is the answer's status.
    pub kind: ErrorType,
    /// Dots and zero-based indices: `messages.0.content.1.source.media_type`; `body` for the whole.
    pub path: String,
    /// What is wrong at that place, without a full stop.
    pub sentence: String,
    /// The cause, where a client's program needs more than the type.
    pub cause: Option<Cause>,
}

impl RequestError {
    /// The error as the client sees it: `{path}: {sentence}`.
    pub fn api_error(&self) -> ApiError {
        ApiError { cause: self.cause, ..ApiError::new(self.kind, self.to_string()) }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.sentence)
    }
}

impl std::error::Error for RequestError {}

/// A valid request of the Messages API, borrowed from the bytes of its body.
///
/// Valid means: every rule of contract/messages.md holds, except "model known" (M20), which needs the model
/// table. Text stays in the body's own JSON literals until its characters are needed.
#[derive(Debug)]
pub struct Request<'a> {
    /// Client-owned JSON (tool inputs, schemas) is kept here.
    pub(crate) json: JsonTree<'a>,
    pub(crate) model: Cow<'a, str>,
    pub(crate) stream: bool,
    pub(crate) system: Vec<SystemText<'a>>,
    pub(crate) messages: Vec<Message<'a>>,
    /// Those that the next reply may use: `tools`, as system messages changed them (M69).
    pub(crate) tools: Vec<Tool<'a>>,
    /// Types of the tools that can't be served (M73).
    pub(crate) server_tools: Vec<Cow<'a, str>>,
    pub(crate) tool_choice: ToolChoice<'a>,
    pub(crate) thinking: Thinking,
    /// `thinking.display`.
    pub(crate) display: Option<Display>,
    /// `max_tokens`; absent only where tokens are counted, or where a host program allows it (N96).
    pub(crate) max_tokens: Option<u64>,
    /// `output_config.effort`, of the last system message of this turn that has one (M70), else the request's.
    pub(crate) effort: Option<Effort>,
    /// The JSON schema of the answer's text (TR62), an object.
    pub(crate) schema: Option<ValueId>,
    /// `stop_sequences` (M82).
    pub(crate) stop_sequences: Vec<Cow<'a, str>>,
    /// `metadata.user_id`.
    pub(crate) user_id: Option<Text<'a>>,
    /// `context_management`, until it is performed (TR55); none where the request has none.
    pub(crate) edits: Option<Vec<Edit>>,
    /// What became of it, a JSON object (M77).
    pub(crate) applied_edits: Option<String>,
    /// Accepted, and without effect (M80).
    pub(crate) ignored: Ignored,
}

impl<'a> Request<'a> {
    /// Reads and checks a body: JSON first, then the fields in the order of contract/messages.md (M1).
    ///
    /// # Errors
    /// The first rule that the body breaks (M12, M13, M15, M16, M18–M50), except "model known", which is the
    /// translator's (TR6).
    pub fn parse(body: &'a [u8], purpose: Purpose) -> Result<Self, RequestError> {
        read::request(body, purpose)
    }

    /// The client's model name, untouched: answers echo it.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Asks for another model.
    pub fn set_model(&mut self, name: String) {
        self.model = Cow::Owned(name);
    }

    /// Whether the client asked for a stream of events.
    pub fn stream(&self) -> bool {
        self.stream
    }

    /// The JSON schema that its answer must be valid against (TR62), compact.
    pub fn schema(&self) -> Option<String> {
        let mut schema = String::new();
        self.json.value(self.schema?).write(&mut schema);
        Some(schema)
    }

    /// Its stop sequences (M82): at most 16.
    pub fn stop_sequences(&self) -> Vec<String> {
        self.stop_sequences.iter().map(|sequence| sequence.clone().into_owned()).collect()
    }

    /// The client's conversation id (M34, TR5): `session_id` when `metadata.user_id` is JSON with one, else the 36
    /// characters after `session_` in it, else the header's value; each only if it is a UUID. `None` asks for a
    /// derived one (TR48).
    pub fn conversation_id(&self, session_header: Option<&str>) -> Option<String> {
        let user_id = self.user_id.as_ref().map(Text::decode).unwrap_or_default();
        session_member(&user_id)
            .or_else(|| after_session(&user_id).map(str::to_owned))
            .or_else(|| session_header.filter(|id| is_uuid(id)).map(str::to_owned))
    }

    /// Whether the request has `context_management`, and nothing was done about it yet.
    pub fn has_edits(&self) -> bool {
        self.edits.is_some()
    }

    /// What `context_management` has done, as `message_delta` has it (M77); none without one.
    pub fn applied_edits(&self) -> Option<&str> {
        self.applied_edits.as_deref()
    }

    /// Whether an assistant has said something before.
    pub fn has_history(&self) -> bool {
        self.messages.iter().any(|message| message.role == Role::Assistant)
    }

    /// The web search that the model may use: of two tools with its name the first counts (M50, M87).
    pub fn search(&self) -> Option<&SearchTool> {
        self.tools.iter().find(|tool| tool.name == WEB_SEARCH)?.search.as_deref()
    }

    /// Drops Anthropic's web search, as other tools that only Anthropic could run (`KIRO_WEB_SEARCH=off`, M49).
    ///
    /// # Errors
    /// It is the only tool, or `tool_choice` needs it.
    pub fn without_search(&mut self) -> Result<(), RequestError> {
        let mut alone = None;
        self.tools.retain_mut(|tool| match tool.search.take() {
            None => true,
            Some(search) => {
                alone = alone.take().or(search.alone.then(|| search.kind.clone()));
                self.ignored.add_named(&search.path, &search.kind);
                self.server_tools.push(search.kind.into());
                false
            }
        });
        match alone {
            Some(kind) => Err(read::only_server_tools(&kind)),
            None => read::check_tool_choice(&self.tool_choice, &self.tools),
        }
    }

    /// Its images, in order.
    pub(crate) fn images(&self) -> Vec<&Image<'a>> {
        let mut found = Vec::new();
        self.messages.iter().for_each(|message| images_of(&message.blocks, &mut found));
        found
    }

    /// Applies the operator's system text (N13). Appended to a string it stands after a line break, appended to an
    /// array it is one more text block: both give the same prompt, since text blocks are joined by line breaks
    /// (TR11).
    pub fn apply_system(&mut self, mode: SystemMode, text: &str) {
        if mode == SystemMode::Overwrite {
            self.system.clear();
        }
        self.system.push(SystemText { text: Text::new(text.to_owned()), cached: false });
    }

    /// The system prompt as one text, its blocks joined by line breaks; empty without one.
    pub fn system_text(&self) -> String {
        join(self.system.iter().map(|block| &block.text))
    }

    /// What the user said last: the text blocks of the last user message, joined by line breaks.
    pub fn prompt_text(&self) -> String {
        let last = self.messages.iter().rfind(|message| message.role == Role::User);
        join(last.into_iter().flat_map(|message| &message.blocks).filter_map(|block| match &block.content {
            Content::Text(text) => Some(text),
            _ => None,
        }))
    }
}

fn join<'t>(texts: impl Iterator<Item = &'t Text<'t>>) -> String {
    texts.map(Text::decode).collect::<Vec<_>>().join("\n")
}

/// A block of the system prompt.
#[derive(Debug)]
pub(crate) struct SystemText<'a> {
    pub text: Text<'a>,
    pub cached: bool,
}

#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub role: Role,
    /// String content is one text block; empty text blocks are still there.
    pub blocks: Vec<Block<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    User,
    Assistant,
    System,
}

#[derive(Debug)]
pub(crate) struct Block<'a> {
    pub content: Content<'a>,
    /// Has `cache_control`.
    pub cached: bool,
}

#[derive(Debug)]
pub(crate) enum Content<'a> {
    Text(Text<'a>),
    Image(Image<'a>),
    Document(Document<'a>),
    SearchResult(SearchResult<'a>),
    ToolUse(ToolUse<'a>),
    ToolResult(ToolResult<'a>),
    /// `server_tool_use` of `web_search` (TR52). `input` is an object.
    SearchUse {
        id: Cow<'a, str>,
        input: Option<ValueId>,
    },
    /// `web_search_tool_result` (TR52).
    SearchResults {
        id: Cow<'a, str>,
        content: ValueId,
    },
    /// An empty signature means none.
    Thinking {
        text: Text<'a>,
        signature: Text<'a>,
    },
    RedactedThinking {
        data: Text<'a>,
    },
    /// A tool that a search has found (TR59): a text before the request is whole.
    ToolReference(Cow<'a, str>),
    /// The names of the tools that a search at Anthropic has found: nothing of it goes out.
    ToolsFound(Vec<Cow<'a, str>>),
    /// A summary of the conversation before it (TR57); an older or an empty one counts for nothing.
    Summary(Text<'a>),
    /// A block of another service's server tool (M76): accepted and dropped.
    Foreign,
}

#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// As its bytes show; none of those that upstream takes, in an earlier message (TR67).
    pub format: Option<ImageFormat>,
    /// Checked base64.
    pub data: Text<'a>,
    /// Where its data stands: `messages.0.content.1.source.data`.
    pub path: String,
    /// It stands in the user's last message.
    pub is_newest: bool,
}

#[derive(Debug)]
pub(crate) struct Document<'a> {
    pub title: Option<Text<'a>>,
    pub source: DocumentSource<'a>,
}

#[derive(Debug)]
pub(crate) enum DocumentSource<'a> {
    /// `data` is checked base64.
    Base64 {
        format: DocumentFormat,
        data: Text<'a>,
    },
    Text(Text<'a>),
    /// Text and image blocks.
    Content(Vec<Block<'a>>),
}

#[derive(Debug)]
pub(crate) struct SearchResult<'a> {
    pub title: Text<'a>,
    pub source: Text<'a>,
    pub texts: Vec<Text<'a>>,
    /// One of the texts has `cache_control`.
    pub cached: bool,
}

#[derive(Debug)]
pub(crate) struct ToolUse<'a> {
    pub id: Cow<'a, str>,
    pub name: Cow<'a, str>,
    /// An object; `None` stands for `{}` (TR14).
    pub input: Option<ValueId>,
    /// In its place what clearing has left, a compact object (TR55).
    pub cleared: Option<String>,
}

#[derive(Debug)]
pub(crate) struct ToolResult<'a> {
    pub id: Cow<'a, str>,
    /// Texts, images, documents, search results, foreign blocks.
    pub content: Vec<Block<'a>>,
    pub is_error: bool,
}

/// A tool that the client runs (M48).
#[derive(Debug, Default)]
pub(crate) struct Tool<'a> {
    pub name: Cow<'a, str>,
    pub description: Option<Text<'a>>,
    /// An object; `None` stands for `{}`.
    pub schema: Option<ValueId>,
    /// In its place a published one, compact JSON (M73).
    pub published: Option<&'static str>,
    /// Objects (TR58).
    pub examples: Vec<ValueId>,
    /// Declared once something refers to it (TR59).
    pub deferred: bool,
    pub cached: bool,
    /// It is Anthropic's web search (M87). Its description and schema are ours.
    pub search: Option<Box<SearchTool>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice<'a> {
    Auto,
    Any,
    /// A declared client tool.
    Tool(Cow<'a, str>),
    None,
}

/// `thinking` (M26).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// The request doesn't say.
    Absent,
    /// `disabled`.
    Disabled,
    /// `enabled`.
    Enabled {
        /// `budget_tokens`.
        budget: u64,
    },
    /// `adaptive`.
    Adaptive,
    /// `between_tools`.
    BetweenTools,
}

impl Thinking {
    /// Whether thinking is on (TR12): neither `disabled` nor absent.
    pub const fn is_on(self) -> bool {
        !matches!(self, Self::Absent | Self::Disabled)
    }
}

/// `thinking.display` (M26).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Display {
    /// The thought's text is delivered.
    Summarized,
    /// Its signature alone is.
    Omitted,
}

impl Display {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Summarized, Self::Omitted];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Summarized => "summarized",
            Self::Omitted => "omitted",
        }
    }
}

/// The images in blocks and in those that they hold, in order.
fn images_of<'r, 'a>(blocks: &'r [Block<'a>], found: &mut Vec<&'r Image<'a>>) {
    for block in blocks {
        match &block.content {
            Content::Image(image) => found.push(image),
            Content::ToolResult(result) => images_of(&result.content, found),
            Content::Document(Document { source: DocumentSource::Content(blocks), .. }) => images_of(blocks, found),
            _ => {}
        }
    }
}

impl Message<'_> {
    /// Whether nothing is left once empty text blocks are gone (M36, TR7).
    pub fn is_empty(&self) -> bool {
        self.blocks.iter().all(Block::is_empty_text)
    }

    /// Whether TR9 drops it when it is the last message and an assistant's: empty, or its whole content is `{`.
    pub fn is_droppable_prefill(&self) -> bool {
        let mut blocks = self.blocks.iter().filter(|block| !block.is_empty_text());
        match (blocks.next(), blocks.next()) {
            (None, _) => true,
            (Some(Block { content: Content::Text(text), .. }), None) => text.is("{"),
            _ => false,
        }
    }
}

impl Block<'_> {
    /// Whether it or a block inside has `cache_control`.
    pub fn is_cached(&self) -> bool {
        let inside = match &self.content {
            Content::ToolResult(result) => result.content.iter().any(Block::is_cached),
            Content::Document(Document { source: DocumentSource::Content(blocks), .. }) => {
                blocks.iter().any(Block::is_cached)
            }
            Content::SearchResult(result) => result.cached,
            _ => false,
        };
        self.cached || inside
    }

    /// Whether it is more than an empty text, a block that is dropped, or a part of a search.
    pub fn says_something(&self) -> bool {
        let is_dropped =
            matches!(self.content, Content::Foreign | Content::SearchUse { .. } | Content::SearchResults { .. });
        !is_dropped && !self.is_empty_text()
    }

    pub fn is_empty_text(&self) -> bool {
        matches!(&self.content, Content::Text(text) if text.is_empty())
    }
}

/// The messages that are translated: all but a last assistant message that TR9 drops.
pub(crate) fn without_dropped_prefill<'r, 'a>(messages: &'r [Message<'a>]) -> &'r [Message<'a>] {
    match messages.split_last() {
        Some((last, before)) if last.role == Role::Assistant && last.is_droppable_prefill() => before,
        _ => messages,
    }
}

/// A client's value in quotes, if it is a short name (M19).
pub(crate) fn quotable(value: &str) -> Option<String> {
    let is_short = value.chars().nth(64).is_none();
    // Invisible characters, and those that change the direction of others, could make the sentence say something else.
    let is_printable = |char: char| !char.is_control() && !char.escape_debug().eq(char.escape_unicode());
    (is_short && value.chars().all(is_printable)).then(|| format!("'{value}'"))
}

fn session_member(user_id: &str) -> Option<String> {
    if !user_id.trim_start().starts_with('{') {
        return None;
    }
    let json = JsonTree::parse(user_id.as_bytes()).ok()?;
    let session = json.root().member("session_id").filter(|value| value.kind() == ValueKind::String)?;
    Some(session.text()?.into_decoded().into_owned()).filter(|id| is_uuid(id))
}

fn after_session(user_id: &str) -> Option<&str> {
    const MARK: &str = "session_";
    // `get` answers None when 36 bytes end inside a character (M34's multi-byte text).
    user_id
        .match_indices(MARK)
        .find_map(|(at, _)| user_id.get(at + MARK.len()..at + MARK.len() + 36).filter(|id| is_uuid(id)))
}

/// 8-4-4-4-12 hex digits of either case.
pub(crate) fn is_uuid(id: &str) -> bool {
    id.len() == 36
        && id.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_added_at_the_end_ts33() {
        let add = |body: &str| with_messages(body.as_bytes(), b"M").map(|new| String::from_utf8(new).unwrap());
        assert_eq!(add(r#"{"messages":[{"a":[1]} ], "z":[]}"#).unwrap(), r#"{"messages":[{"a":[1]} ,M], "z":[]}"#);
        // Of equal keys the last one counts, as everywhere.
        assert_eq!(add(r#"{"messages":[1],"messages":[2]}"#).unwrap(), r#"{"messages":[1],"messages":[2,M]}"#);
        for other in ["", "{}", r#"{"messages":{}}"#, r#"{"messages":[]}"#, r#"{"messages":"x"}"#] {
            assert_eq!(add(other), None, "{other}");
        }
    }

    #[test]
    fn only_a_uuid_is_a_conversation_id_m34() {
        assert!(is_uuid("13e2a96f-2434-496b-8db1-e2c1f1306470"));
        assert!(is_uuid("0B5E7C1A-1111-4222-8333-444455556666"));
        assert!(!is_uuid("13e2a96f-2434-496b-8db1-e2c1f130647"));
        assert!(!is_uuid("13e2a96f 2434-496b-8db1-e2c1f1306470"));
        assert!(!is_uuid("13e2a96f-2434-496b-8db1-e2c1f130647g"));
        assert_eq!(after_session("会session_é"), None);
        assert_eq!(after_session("session_会会会会会会会会会会会会会"), None);
        assert_eq!(
            after_session("session_no session_13e2a96f-2434-496b-8db1-e2c1f1306470"),
            Some("13e2a96f-2434-496b-8db1-e2c1f1306470")
        );
    }

    #[test]
    fn quotes_short_printable_names_only_m19() {
        assert_eq!(quotable("x"), Some("'x'".into()));
        assert_eq!(quotable(&"é".repeat(64)).map(|text| text.chars().count()), Some(66));
        assert_eq!(quotable(&"é".repeat(65)), None);
        assert_eq!(quotable("it's \"漢字\" \\ 😀"), Some("'it's \"漢字\" \\ 😀'".into()));
        for hidden in ["a\nb", "\0", "a\u{202e}b", "a\u{2028}b", "\u{feff}a", "a\u{200b}b", "\u{e000}", "\u{85}"] {
            assert_eq!(quotable(hidden), None, "{hidden:?}");
        }
    }
}
