//! Answers of a refresh endpoint, as scripts and presets say them.

use std::time::Duration;

use serde_json::{Value, json};

use super::fields::Fields;
use super::reply::HttpReply;

/// One answer of a refresh endpoint. Its JSON is described in the [module's docs](super).
#[derive(Clone, Debug)]
pub(super) struct RefreshAnswer {
    /// Before the answer.
    pub wait: Duration,
    /// The connection ends without an answer.
    pub drop: bool,
    /// The connection ends when the refresh token is used up.
    pub lose: bool,
    /// Instead of tokens.
    pub refusal: Option<HttpReply>,
    pub access_token: Option<Option<String>>,
    pub refresh_token: Option<Option<String>>,
    pub expires_in: Option<Value>,
    pub profile_arn: Option<Option<String>>,
}

impl RefreshAnswer {
    pub fn from_value(value: Value) -> Result<Self, String> {
        let map = match value {
            Value::Object(map) => map,
            Value::String(name) => {
                return refresh_preset(&name).ok_or_else(|| format!("no refresh is called `{name}`"))?;
            }
            other => return Err(format!("a refresh answer is an object or the name of a preset, not {other}")),
        };
        let mut fields = Fields::new("refresh", map);
        let status: Option<u16> = fields.take("status")?;
        let kind: Option<String> = fields.take("type")?;
        let error: Option<String> = fields.take("error")?;
        let message: Option<String> = fields.take("message")?;
        let body: Option<Value> = fields.take("body")?;
        let refusal = match (status, body) {
            (status, Some(body)) => Some(HttpReply::json(status.unwrap_or(200), &body)),
            (None, None) if error.is_none() && message.is_none() && kind.is_none() => None,
            (status, None) => {
                let body = match (error, message) {
                    (Some(error), message) => json!({ "error": error, "error_description": message }),
                    (None, message) => json!({ "message": message.unwrap_or_else(|| "Simulated refusal.".to_owned()) }),
                };
                Some(HttpReply::json(status.unwrap_or(400), &body))
            }
        };
        let refusal = match (refusal, kind) {
            (Some(refusal), Some(kind)) => Some(refusal.with("x-amzn-errortype", &kind)),
            (refusal, _) => refusal,
        };
        let answer = Self {
            wait: fields.millis("wait_ms")?.unwrap_or_default(),
            drop: fields.take("drop")?.unwrap_or(false),
            lose: fields.take("lose")?.unwrap_or(false),
            refusal,
            access_token: fields.take("access_token")?,
            refresh_token: fields.take("refresh_token")?,
            expires_in: fields.take("expires_in")?,
            profile_arn: fields.take("profile_arn")?,
        };
        fields.finish()?;
        Ok(answer)
    }

    pub fn plain() -> Self {
        Self {
            wait: Duration::ZERO,
            drop: false,
            lose: false,
            refusal: None,
            access_token: None,
            refresh_token: None,
            expires_in: None,
            profile_arn: None,
        }
    }
}

/// Refresh answers by name. As a refresh token, one has `sim-refresh-` in front and may have `.anything` behind it.
pub(super) const REFRESH_PRESETS: &[(&str, &str)] = &[
    (
        "dead",
        r#"{"status":400,"type":"InvalidGrantException","error":"invalid_grant","message":"Invalid refresh token provided"}"#,
    ),
    ("dead-by-message", r#"{"status":400,"message":"Invalid refresh token"}"#),
    (
        "expired",
        r#"{"status":400,"type":"ExpiredTokenException","error":"expired_token","message":"Token is expired"}"#,
    ),
    (
        "client-expired",
        r#"{"status":401,"type":"InvalidClientException","error":"invalid_client","message":"Client registration has expired"}"#,
    ),
    (
        "client-unauthorized",
        r#"{"status":400,"type":"UnauthorizedClientException","error":"unauthorized_client","message":"Unauthorized client"}"#,
    ),
    ("slow-down", r#"{"status":400,"type":"SlowDownException","error":"slow_down","message":"Slow down"}"#),
    ("401", r#"{"status":401,"message":"Bad credentials"}"#),
    ("403", r#"{"status":403,"message":"Forbidden"}"#),
    ("404", r#"{"status":404,"message":"Not found"}"#),
    ("429", r#"{"status":429,"message":"Too many requests"}"#),
    ("500", r#"{"status":500,"message":"Internal server error"}"#),
    ("no-access-token", r#"{"access_token":null}"#),
    ("empty-access-token", r#"{"access_token":""}"#),
    ("keep", r#"{"refresh_token":null}"#),
    ("no-expiry", r#"{"expires_in":null}"#),
    ("short", r#"{"expires_in":2}"#),
    ("no-arn", r#"{"profile_arn":null}"#),
    ("slow", r#"{"wait_ms":2000}"#),
    ("hang", r#"{"wait_ms":86400000}"#),
    ("drop", r#"{"drop":true}"#),
    ("lost", r#"{"lose":true}"#),
];

pub(super) fn refresh_preset(name: &str) -> Option<Result<RefreshAnswer, String>> {
    let (_, json) = REFRESH_PRESETS.iter().find(|(preset, _)| *preset == name)?;
    let value = serde_json::from_str(json).map_err(|error| error.to_string());
    Some(value.and_then(RefreshAnswer::from_value))
}
