//! Messages request to Kiro request (TR).

use std::sync::Arc;

use super::model::{Model, Models};
use super::tools::ToolNames;
use crate::proto::kiro::request::Body;
use crate::proto::messages::error::ErrorType;
use crate::proto::messages::request::{Request, RequestError};

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
    let _ = ctx;
    Err(RequestError {
        kind: ErrorType::NotFound,
        path: "model".into(),
        sentence: format!("unknown model '{}'", request.model()),
    })
}
