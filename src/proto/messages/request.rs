//! The Messages API request: parsed into a value that is valid when it exists.

use std::borrow::Cow;
use std::fmt;

use super::error::{ApiError, ErrorType};

/// What the request is for: decides whether `max_tokens` is required (M21, M65).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `POST /v1/messages`.
    Messages,
    /// `POST /v1/messages/count_tokens`: `max_tokens` is neither required nor looked at.
    CountTokens,
}

/// How the operator's text joins the client's system prompt (N13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemMode {
    /// After the client's text, on a line of its own; in its place when the client's is empty.
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
}

impl RequestError {
    /// The error as the client sees it: `{path}: {sentence}`.
    pub fn api_error(&self) -> ApiError {
        ApiError::new(self.kind, self.to_string())
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.sentence)
    }
}

impl std::error::Error for RequestError {}

/// A valid request of the Messages API, borrowed from the bytes of its body.
#[derive(Debug)]
pub struct Request<'a> {
    model: Cow<'a, str>,
    stream: bool,
}

impl<'a> Request<'a> {
    /// Reads and checks a body: JSON first, then the fields in the order of messages-api.md sections 2.1–2.3.
    ///
    /// # Errors
    /// The first rule that the body breaks (M18–M50), except "model known", which is the translator's (TR6).
    pub fn parse(body: &'a [u8], purpose: Purpose) -> Result<Self, RequestError> {
        let _ = (body, purpose);
        Err(RequestError { kind: ErrorType::InvalidRequest, path: "body".into(), sentence: "not valid JSON".into() })
    }

    /// The client's model name, untouched: answers echo it.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether the client asked for a stream of events.
    pub fn stream(&self) -> bool {
        self.stream
    }

    /// Whether thinking is on (TR12): `thinking.type` is `enabled`, `adaptive` or `between_tools`.
    pub fn thinking_on(&self) -> bool {
        false
    }

    /// The client's conversation id (M34, TR5): from `metadata.user_id`, else from the header; `None` asks for a
    /// random one.
    pub fn conversation_id(&self, session_header: Option<&str>) -> Option<String> {
        let _ = session_header;
        None
    }

    /// Applies the operator's system text (N13).
    pub fn apply_system(&mut self, mode: SystemMode, text: &str) {
        let _ = (mode, text);
    }
}
