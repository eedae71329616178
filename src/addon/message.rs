//! The JSON that crosses to JavaScript beside the bytes of answers: a few short texts a call.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Origin};
use crate::gateway::SummaryCell;

/// What lib/error.js makes a KiroError of.
pub(crate) fn fault(error: &Error, request_id: Option<&str>) -> Value {
    let headers: Map<_, _> = error.headers().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    json!({
        "code": error.code().as_str(),
        "status": error.status(),
        "type": error.error_type().as_str(),
        "origin": match error.origin() {
            Origin::Client => "client",
            Origin::Upstream => "upstream",
            Origin::Internal => "internal",
        },
        "retryable": error.retryable(),
        "message": error.message(),
        "retryAfterMs": error.retry_after().map(|after| after.as_millis() as u64),
        "requestId": request_id,
        "headers": headers,
    })
}

/// `StreamSummary`.
pub(crate) fn summary(cell: &SummaryCell) -> Value {
    let mut summary = json!({
        "requestId": cell.request_id(),
        "accountId": null,
        "model": cell.model(),
        "kiroModel": cell.kiro_model(),
        "outcome": "cancelled",
        "stopReason": null,
        "usage": null,
        "attempts": 0,
        "bytes": 0,
        "firstEventMs": null,
        "durationMs": 0,
    });
    let Some(end) = cell.ended() else { return summary };
    summary["accountId"] = json!(end.account_id);
    summary["outcome"] = json!(end.outcome.as_str());
    summary["stopReason"] = json!(end.stop_reason);
    summary["usage"] = end.usage.map_or(Value::Null, |usage| {
        json!({
            "input_tokens": usage.input_tokens,
            "cache_creation_input_tokens": usage.cache_creation_input_tokens,
            "cache_read_input_tokens": usage.cache_read_input_tokens,
            "output_tokens": usage.output_tokens,
        })
    });
    summary["attempts"] = json!(end.attempts);
    summary["bytes"] = json!(end.bytes);
    summary["firstEventMs"] = json!(end.first_event.map(|d| d.as_millis() as u64));
    summary["durationMs"] = json!(end.duration.as_millis() as u64);
    if let Some(error) = &end.error {
        summary["error"] = fault(error, Some(cell.request_id()));
    }
    summary
}

/// The text of a value that can't fail to be one.
pub(crate) fn text(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}
