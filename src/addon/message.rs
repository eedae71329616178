//! The JSON that crosses to JavaScript beside the bytes of answers: a few short texts for each call.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{AccountFailure, Error, Origin};
use crate::gateway::{FoldedMessage, SummaryCell};
use crate::pool::AccountInfo;
use crate::proto::messages::error::Cause;
use crate::proto::record::{Note, Token, rfc3339};
use crate::secret::Secret;

/// The input of lib/error.js for a KiroError.
pub(crate) fn fault(error: &Error, request_id: Option<&str>) -> Value {
    let api = error.api_error();
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
        "message": api.message,
        "cause": api.cause.map(Cause::as_str),
        "retryAfterMs": error.retry_after().map(|after| after.as_millis() as u64),
        "requestId": request_id,
        "accountId": error.account(),
        "headers": headers,
        "detail": detail(error),
    })
}

/// Facts of a failure for kiro-messages/aiclient only.
fn detail(error: &Error) -> Value {
    let (account, mark) = match error.account_failure() {
        Some(AccountFailure::Unknown) => (Some("unknown"), None),
        Some(AccountFailure::NoToken) => (Some("no-token"), None),
        Some(AccountFailure::Marked(mark)) => (Some("marked"), Some(mark)),
        None => (None, None),
    };
    let mark = mark.map(|mark| {
        let until = match mark {
            Note::Quota { until, .. } | Note::CoolDown { until, .. } => Some(until.as_millisecond()),
            Note::Ejected { .. } | Note::Plain(_) => None,
        };
        json!({ "message": mark.to_string(), "until": until })
    });
    json!({ "fault": error.fault().map(|kind| kind.as_str()), "account": account, "mark": mark })
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
        "ignored": cell.ignored().entries(),
    });
    if let Some(key) = cell.key() {
        summary["key"] = json!(key);
    }
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

/// A whole answer for lib/, with the member `ignored` behind the others when there is something to say (M80).
pub(crate) fn folded(answer: FoldedMessage) -> Bytes {
    let ignored = answer.summary.ignored();
    match answer.body.strip_suffix(b"}") {
        Some(open) if !ignored.entries().is_empty() => {
            [open, b",\"ignored\":", &text(&ignored.entries()), b"}"].concat().into()
        }
        _ => answer.body,
    }
}

/// `AccountInfo`.
pub(crate) fn account(info: &AccountInfo) -> Value {
    let mut account = info.json();
    account["expiresAt"] = json!(info.expires_at.map(rfc3339));
    account["registrationExpiresAt"] = json!(info.registration_expires_at.map(rfc3339));
    account["inFlight"] = json!(info.in_flight);
    if let Some(problem) = &info.problem {
        account["problem"] = json!(problem);
    }
    account
}

/// `Credential`: the one text with secrets in it.
pub(crate) fn credential(token: &Token) -> Value {
    let secret = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
    json!({
        "accessToken": secret(&token.access_token).or_else(|| secret(&token.kiro_api_key)).unwrap_or_default(),
        "refreshToken": secret(&token.refresh_token),
        "expiresAt": token.expires_at.map(rfc3339),
        "profileArn": token.profile_arn,
    })
}

/// The JSON of a value; it can't fail for these types.
pub(crate) fn text(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}
