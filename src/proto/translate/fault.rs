//! Faults as the client sees them: API error type, status and sentence.

use crate::program::said;
use crate::proto::kiro::fault::{Fault, FaultKind};
use crate::proto::messages::error::{ApiError, ErrorType};

/// The size of a prompt beside the window it has to fit into, both in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptSize {
    /// Our estimate of the request (TU7).
    pub estimate: u64,
    /// The model's window (TU4).
    pub window: u64,
}

/// The answer to the client when a fault is final: the column *client* of K45.
///
/// Upstream's text gets through for `BadRequest` (a `ModelFields` that no repair cured is one), `UnknownModel` and
/// `TooLarge` only (K48). The headers (`retry-after`, `x-should-retry`) are the
/// caller's, who knows when the soonest account is back (K47, M61).
pub fn api_error(fault: &Fault, prompt: PromptSize) -> ApiError {
    // Nothing was sent, so Kiro neither refused nor failed.
    if let Some(why) = fault.tokenless()
        && fault.kind != FaultKind::ClientVersion
    {
        let kind = if fault.kind == FaultKind::Timeout { ErrorType::Timeout } else { ErrorType::Api };
        return ApiError::new(kind, format!("The Kiro account has no access token: {why}."));
    }
    match fault.kind {
        // The client's request is fine, and upstream's text wouldn't help its author (K106).
        FaultKind::ClientVersion => ApiError::new(
            ErrorType::Api,
            "the upstream refuses this gateway's client version; its operator must update the gateway or set \
             KIRO_CLIENT_VERSION",
        ),
        FaultKind::PromptTooLong => {
            // Clients compact on exactly this sentence, and need n > max (M62, TR34, TS41).
            if let Some(said) = prompt_too_long(&fault.message) {
                return ApiError::new(ErrorType::InvalidRequest, said);
            }
            let tokens = prompt.estimate.max(prompt.window.saturating_add(1));
            let window = prompt.window;
            ApiError::new(ErrorType::InvalidRequest, format!("prompt is too long: {tokens} tokens > {window} maximum"))
        }
        FaultKind::TooLarge => {
            ApiError::new(ErrorType::RequestTooLarge, upstream_sentence(fault, "The request is too large for Kiro."))
        }
        FaultKind::UnknownModel => {
            ApiError::new(ErrorType::NotFound, upstream_sentence(fault, "Kiro doesn't know this model."))
        }
        FaultKind::ThinkingSignature => ApiError::new(
            ErrorType::InvalidRequest,
            "Kiro refused the signature of a thinking block in the conversation.",
        ),
        FaultKind::ProfileArn => ApiError::new(
            ErrorType::Api,
            said(
                "The Kiro account has no valid profile ARN and none could be looked up: sign in to Kiro again, or run \
                 `kiro-server accounts check`.",
            ),
        ),
        FaultKind::BadRequest | FaultKind::ModelFields => {
            ApiError::new(ErrorType::InvalidRequest, upstream_sentence(fault, "Kiro refused the request."))
        }
        FaultKind::TokenRejected => ApiError::new(ErrorType::Api, "Kiro refused the access token of the account."),
        FaultKind::Suspended => ApiError::new(ErrorType::Api, "The Kiro account is suspended."),
        FaultKind::Forbidden => ApiError::new(ErrorType::Api, "The Kiro account may not make this request."),
        FaultKind::QuotaMonth => {
            ApiError::with_status(503, ErrorType::Overloaded, "The monthly quota of the Kiro account is used up.")
        }
        FaultKind::QuotaDay => {
            ApiError::with_status(503, ErrorType::Overloaded, "The daily quota of the Kiro account is used up.")
        }
        FaultKind::Suspicious | FaultKind::RateLimited => {
            ApiError::new(ErrorType::RateLimit, "Kiro limits the rate of requests; try again later.")
        }
        FaultKind::ModelCapacity => {
            ApiError::new(ErrorType::Overloaded, "Kiro has no capacity for this model at the moment.")
        }
        FaultKind::ServerError => ApiError::new(ErrorType::Api, "Kiro failed while it served the request."),
        // Our own sentence, which names the way.
        FaultKind::Unreachable if !fault.message.is_empty() => {
            ApiError::new(ErrorType::Api, format!("The connection to Kiro failed: {}.", fault.message))
        }
        FaultKind::Network | FaultKind::Unreachable => ApiError::new(ErrorType::Api, "The connection to Kiro failed."),
        FaultKind::Timeout => ApiError::new(ErrorType::Timeout, "Kiro did not answer in time."),
        FaultKind::Protocol => ApiError::new(ErrorType::Api, "Kiro sent an answer that can't be read."),
        FaultKind::Endpoint => ApiError::new(ErrorType::Api, "The address of Kiro is wrong or no longer served."),
    }
}

/// `prompt is too long: N tokens > M maximum` of a longer text (TS41).
fn prompt_too_long(text: &str) -> Option<String> {
    let place = text.to_ascii_lowercase().find("prompt is too long: ")?;
    let rest = text.get(place + "prompt is too long: ".len()..)?;
    let (tokens, rest) = rest.split_once(" tokens > ")?;
    let maximum = rest.split(' ').next()?;
    let is_number = |text: &str| (1..=12).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_said = is_number(tokens) && is_number(maximum) && rest[maximum.len()..].starts_with(" maximum");
    is_said.then(|| format!("prompt is too long: {tokens} tokens > {maximum} maximum"))
}

/// Upstream's own message and reason (K48), or our sentence where it gave no message.
fn upstream_sentence(fault: &Fault, ours: &str) -> String {
    let sentence = if fault.message.trim().is_empty() { ours } else { fault.message.trim() };
    match &fault.reason {
        Some(reason) if !sentence.contains(reason.as_str()) => format!("{sentence} ({reason})"),
        _ => sentence.to_owned(),
    }
}
