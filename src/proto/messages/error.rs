//! The Messages API's error types and error body.

use bytes::BufMut;

use crate::proto::json;

/// Error text of any origin is cut here before it leaves (TS25), in characters.
pub const MAX_MESSAGE_CHARS: usize = 1_000;

/// `error.type` of an error body or of an SSE `error` event (contract/messages.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorType {
    /// `invalid_request_error`: the request can't be served as it is.
    InvalidRequest,
    /// `authentication_error`: the client's own key is missing or wrong.
    Authentication,
    /// `permission_error`: part of the API's vocabulary, never sent for an account's trouble (M60).
    Permission,
    /// `billing_error`: part of the API's vocabulary, never sent for an account's trouble (M60).
    Billing,
    /// `not_found_error`: unknown path or model.
    NotFound,
    /// `request_too_large`: the body is over the limit, ours or upstream's.
    RequestTooLarge,
    /// `rate_limit_error`: every attempt was rate limited.
    RateLimit,
    /// `api_error`: our bug, or upstream failed.
    Api,
    /// `overloaded_error`: no account, no capacity, shutdown.
    Overloaded,
    /// `timeout_error`: connect, first event or idle time ran out.
    Timeout,
}

impl ErrorType {
    /// Every type, in the order of declaration.
    pub const ALL: [Self; 10] = [
        Self::InvalidRequest,
        Self::Authentication,
        Self::Permission,
        Self::Billing,
        Self::NotFound,
        Self::RequestTooLarge,
        Self::RateLimit,
        Self::Api,
        Self::Overloaded,
        Self::Timeout,
    ];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request_error",
            Self::Authentication => "authentication_error",
            Self::Permission => "permission_error",
            Self::Billing => "billing_error",
            Self::NotFound => "not_found_error",
            Self::RequestTooLarge => "request_too_large",
            Self::RateLimit => "rate_limit_error",
            Self::Api => "api_error",
            Self::Overloaded => "overloaded_error",
            Self::Timeout => "timeout_error",
        }
    }

    /// The HTTP status that goes with the type when nothing more special is known.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Authentication => 401,
            Self::Billing => 402,
            Self::Permission => 403,
            Self::NotFound => 404,
            Self::RequestTooLarge => 413,
            Self::RateLimit => 429,
            Self::Api => 500,
            Self::Overloaded => 529,
            Self::Timeout => 504,
        }
    }
}

impl std::fmt::Display for ErrorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A cause that a client's program must distinguish within its type: `error.details.error_code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The request wants its conversation held on the server (`thread`), which nothing here does (M68). Clients that
    /// know the code send the whole conversation instead, and every later one too.
    ThreadUnsupported,
}

impl Cause {
    /// The value of `error_code`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ThreadUnsupported => "thread_unsupported_request",
        }
    }
}

/// An error as a client sees it. Before the headers are out it has a status; type and sentence it always has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status of the answer; without meaning in an SSE `error` event.
    pub status: u16,
    /// `error.type`.
    pub kind: ErrorType,
    /// `error.message`: one English sentence for a person, without secrets (M63).
    pub message: String,
    /// `error.details.error_code`; almost never there.
    pub cause: Option<Cause>,
}

impl ApiError {
    /// An error with the usual status of its type; a message over [`MAX_MESSAGE_CHARS`] is cut (TS25).
    pub fn new(kind: ErrorType, message: impl Into<String>) -> Self {
        Self::with_status(kind.status(), kind, message)
    }

    /// An error whose status isn't the usual one of its type (503 `overloaded_error`, 405 `invalid_request_error`).
    pub fn with_status(status: u16, kind: ErrorType, message: impl Into<String>) -> Self {
        Self { status, kind, message: bounded(message.into()), cause: None }
    }

    /// The error body, also the `data` of an SSE `error` event:
    /// `{"type":"error","error":{"type":…,"message":…},"request_id":…}`, in `error` also `details` when there is a cause.
    pub fn body(&self, request_id: &str) -> Vec<u8> {
        let mut body = Vec::with_capacity(128 + self.message.len());
        write_error(self, request_id, &mut body);
        body
    }
}

/// The error body (contract/messages.md), also the `data` of an `error` event.
pub(super) fn write_error(error: &ApiError, request_id: &str, out: &mut impl BufMut) {
    out.put_slice(b"{\"type\":\"error\",\"error\":{\"type\":\"");
    out.put_slice(error.kind.as_str().as_bytes());
    out.put_slice(b"\",\"message\":\"");
    json::escape(&error.message, out);
    out.put_slice(b"\"");
    if let Some(cause) = error.cause {
        out.put_slice(b",\"details\":{\"error_code\":\"");
        out.put_slice(cause.as_str().as_bytes());
        out.put_slice(b"\"}");
    }
    out.put_slice(b"},\"request_id\":\"");
    json::escape(request_id, out);
    out.put_slice(b"\"}");
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status, self.kind, self.message)
    }
}

impl std::error::Error for ApiError {}

/// Cuts a text to [`MAX_MESSAGE_CHARS`] characters, in place.
pub fn bounded(mut text: String) -> String {
    if text.len() > MAX_MESSAGE_CHARS
        && let Some((at, _)) = text.char_indices().nth(MAX_MESSAGE_CHARS)
    {
        text.truncate(at);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_names_its_cause_m68() {
        let mut error = ApiError::new(ErrorType::InvalidRequest, "thread: not here");
        error.cause = Some(Cause::ThreadUnsupported);
        assert_eq!(
            String::from_utf8(error.body("req_1")).unwrap(),
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"thread: not here","details":{"error_code":"thread_unsupported_request"}},"request_id":"req_1"}"#
        );
    }

    #[test]
    fn body_has_the_members_in_order() {
        let error = ApiError::with_status(503, ErrorType::Overloaded, "No healthy accounts available \"now\"");
        assert_eq!(
            String::from_utf8(error.body("req_1")).unwrap(),
            r#"{"type":"error","error":{"type":"overloaded_error","message":"No healthy accounts available \"now\""},"request_id":"req_1"}"#
        );
    }

    #[test]
    fn error_text_is_cut_at_a_character_ts25() {
        let error = ApiError::new(ErrorType::Api, "é".repeat(MAX_MESSAGE_CHARS + 1));
        assert_eq!(error.message, "é".repeat(MAX_MESSAGE_CHARS));
        assert_eq!(ApiError::new(ErrorType::Api, "x".repeat(1_000)).message.len(), 1_000);
    }

    #[test]
    fn every_type_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = ErrorType::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(names.len(), ErrorType::ALL.len());
    }
}
