//! The Messages API request: parsed into a value that is valid when it exists.

mod edits;
mod ignored;
mod media;
mod offer;
mod parts;
mod passed;
mod read;
mod search;
mod settle;
mod value;

use std::borrow::Cow;

use serde::Deserialize;

pub(crate) use self::edits::{CLEAR_THINKING, CLEAR_TOOL_USES, ClearToolUses, Edit, Inputs, Trigger};
pub use self::ignored::Ignored;
pub(crate) use self::media::{DocumentFormat, decoded_len};
use self::offer::{check_tool_choice, only_server_tools};
use self::parts::images_of;
pub(crate) use self::parts::{
    Block, Content, Document, DocumentSource, Image, Message, Role, SearchResult, SystemText, Tool, ToolChoice,
    ToolResult, ToolUse, without_dropped_prefill,
};
pub use self::passed::{PASSED_TOOLS, PassedTool, TOOL_SEARCHES};
pub use self::search::{SearchTool, UserLocation};
pub use self::value::RequestError;
pub(crate) use self::value::quotable;
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
    /// Where the schema stands in the client's JSON.
    pub(crate) schema_path: &'static str,
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

    /// Where that schema stands in the client's JSON.
    pub fn schema_path(&self) -> &'static str {
        self.schema_path
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
            Some(kind) => Err(only_server_tools(&kind)),
            None => check_tool_choice(&self.tool_choice, &self.tools),
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
}
