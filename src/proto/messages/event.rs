//! The Messages API's stream events.

use super::error::ApiError;
use super::search::SearchOutcome;
use crate::proto::json::Literal;

/// One event of a Messages stream (M53, M54), borrowed from the state machine that makes it.
#[derive(Debug, Clone, Copy)]
pub enum StreamEvent<'a> {
    /// `message_start`: first, and once.
    MessageStart {
        /// `msg_…`.
        id: &'a str,
        /// The model as the client named it.
        model: &'a str,
        /// An estimate; output is 0 (TU8).
        usage: Usage,
    },
    /// `content_block_start`.
    BlockStart {
        /// Counts from 0, without gaps (TS4).
        index: u32,
        /// Its first form.
        block: Block<'a>,
    },
    /// `content_block_delta`.
    BlockDelta {
        /// The open block.
        index: u32,
        /// Of the open block's kind.
        delta: Delta<'a>,
    },
    /// `content_block_stop`.
    BlockStop {
        /// The open block.
        index: u32,
    },
    /// `message_delta`.
    MessageDelta {
        /// Why the answer ended.
        stop_reason: StopReason,
        /// The stop sequence that ended it (M82).
        stop_sequence: Option<&'a str>,
        /// The final figures.
        usage: Usage,
        /// Searches that upstream answered (TU10); none where the tool isn't declared.
        searches: Option<u32>,
        /// What `context_management` has done, a JSON object (M77); none where the request has none.
        context_management: Option<&'a str>,
    },
    /// `message_stop`: the last event of a good answer.
    MessageStop,
    /// `ping`.
    Ping,
    /// `error`: the last event of a failed answer.
    Error {
        /// The error as the client reads it.
        error: &'a ApiError,
        /// `req_…`.
        request_id: &'a str,
    },
}

/// Where stream events go: SSE bytes, or the fold of a non-streaming answer.
pub trait Sink {
    /// Takes the next event. Events come in the order of the grammar (M53).
    fn event(&mut self, event: StreamEvent<'_>);
}

/// The first form of a content block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block<'a> {
    /// `text`.
    Text,
    /// `thinking`.
    Thinking,
    /// `redacted_thinking`, whole: it has no deltas.
    RedactedThinking {
        /// Base64, as upstream gave it.
        data: &'a str,
    },
    /// `tool_use` with the input `{}`; the real one comes in deltas.
    ToolUse {
        /// As upstream gave it.
        id: &'a str,
        /// As the client declared it.
        name: &'a str,
    },
    /// `server_tool_use` of `web_search`, else as a `tool_use` (TS30).
    SearchUse {
        /// `srvtoolu_…`.
        id: &'a str,
    },
    /// `web_search_tool_result`, whole: it has no deltas (TS32).
    SearchResults {
        /// Of its [`Block::SearchUse`].
        id: &'a str,
        /// What was found.
        outcome: &'a SearchOutcome,
    },
}

/// A piece of a content block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delta<'a> {
    /// `text_delta`.
    Text(Piece<'a>),
    /// `thinking_delta`.
    Thinking(Piece<'a>),
    /// `signature_delta`: the whole signature, since clients replace it (C14).
    Signature(&'a str),
    /// `input_json_delta`: a piece of JSON text.
    InputJson(Piece<'a>),
}

/// Text on its way into a JSON string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Decoded; escaped when it is written.
    Plain(&'a str),
    /// The content of a JSON string literal, copied as it stands (TS23).
    Literal(Literal<'a>),
}

impl Piece<'_> {
    /// Whether it is no text at all.
    pub fn is_empty(self) -> bool {
        match self {
            Self::Plain(text) => text.is_empty(),
            Self::Literal(literal) => literal.is_empty(),
        }
    }
}

/// Why an answer ended. No other value is ever produced (TS15, M57).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// `end_turn`.
    EndTurn,
    /// `tool_use`: at least one tool block was sent.
    ToolUse,
    /// `max_tokens`: the output limit, or a tool's input that was cut.
    MaxTokens,
    /// `stop_sequence` (M82).
    StopSequence,
    /// `refusal`: upstream filtered the answer (TS38).
    Refusal,
    /// `model_context_window_exceeded` (TS38).
    WindowExceeded,
    /// `pause_turn`: the model would search on, but a message has only so many rounds (TS35).
    PauseTurn,
}

impl StopReason {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EndTurn => "end_turn",
            Self::ToolUse => "tool_use",
            Self::MaxTokens => "max_tokens",
            Self::StopSequence => "stop_sequence",
            Self::Refusal => "refusal",
            Self::WindowExceeded => "model_context_window_exceeded",
            Self::PauseTurn => "pause_turn",
        }
    }
}

/// The four counts, in tokens; all are always sent, also when 0 (TU1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Input that was neither written to nor read from a cache.
    pub input_tokens: u64,
    /// Input written to the cache.
    pub cache_creation_input_tokens: u64,
    /// Input read from the cache.
    pub cache_read_input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
}

impl Usage {
    /// The sum (TU10).
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            cache_creation_input_tokens: self
                .cache_creation_input_tokens
                .saturating_add(other.cache_creation_input_tokens),
            cache_read_input_tokens: self.cache_read_input_tokens.saturating_add(other.cache_read_input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
        }
    }
}
