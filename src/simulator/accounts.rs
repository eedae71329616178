//! What belongs to an account: token refresh (kiro-upstream.md §9), usage (§10), profiles and models (§11).

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::scenario::{Fields, HttpReply};
use super::state::State;

/// The profile that the simulator knows, and gives to social refreshes.
pub const PROFILE_ARN: &str = "arn:aws:codewhisperer:us-east-1:000000000000:profile/SIMULATED";
const INVALID_TOKEN: &str = "The bearer token included in the request is invalid.";
const BUILDER_ID: &str = "AWS Builder ID is not supported for this operation.";

/// The two kinds of refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Social,
    Idc,
}

/// One answer of a refresh endpoint. Its JSON is described in the [module's docs](super).
#[derive(Clone, Debug)]
pub(super) struct RefreshAnswer {
    /// Before the answer.
    pub wait: Duration,
    /// The connection ends without an answer.
    pub drop: bool,
    /// Instead of tokens.
    refusal: Option<HttpReply>,
    access_token: Option<Option<String>>,
    refresh_token: Option<Option<String>>,
    expires_in: Option<Value>,
    profile_arn: Option<Option<String>>,
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
            refusal,
            access_token: fields.take("access_token")?,
            refresh_token: fields.take("refresh_token")?,
            expires_in: fields.take("expires_in")?,
            profile_arn: fields.take("profile_arn")?,
        };
        fields.finish()?;
        Ok(answer)
    }

    fn plain() -> Self {
        Self {
            wait: Duration::ZERO,
            drop: false,
            refusal: None,
            access_token: None,
            refresh_token: None,
            expires_in: None,
            profile_arn: None,
        }
    }

    /// What goes back; new tokens are counted and the old refresh token retires.
    pub fn reply(&self, method: Method, used: &str, state: &mut State) -> HttpReply {
        if let Some(refusal) = &self.refusal {
            return refusal.clone();
        }
        if state.retired.contains(used) {
            return dead(method);
        }
        state.issued += 1;
        let n = state.issued;
        let root = used.split('~').next().unwrap_or(used);
        let access_token = self.access_token.clone().unwrap_or_else(|| Some(format!("sim-ok.{n}.{root}")));
        let refresh_token = self.refresh_token.clone().unwrap_or_else(|| Some(format!("{root}~{n}")));
        let expires_in = self.expires_in.clone().unwrap_or_else(|| 3600.into());
        let profile_arn = match method {
            Method::Social => self.profile_arn.clone().unwrap_or_else(|| Some(PROFILE_ARN.to_owned())),
            Method::Idc => self.profile_arn.clone().flatten(),
        };
        if refresh_token.as_deref().is_some_and(|new| new != used) {
            state.retired.insert(used.to_owned());
        }
        state.counts.refreshed.push(json!({
            "used": used, "refresh_token": refresh_token, "access_token": access_token,
        }));
        let mut body = Map::new();
        body.extend(access_token.map(|token| ("accessToken".to_owned(), token.into())));
        body.extend(refresh_token.map(|token| ("refreshToken".to_owned(), token.into())));
        if !expires_in.is_null() {
            body.insert("expiresIn".to_owned(), expires_in);
        }
        body.extend(profile_arn.map(|arn| ("profileArn".to_owned(), arn.into())));
        if method == Method::Idc {
            body.insert("tokenType".to_owned(), "Bearer".into());
            body.insert("idToken".to_owned(), "not-an-access-token".into());
        }
        HttpReply::json(200, &Value::Object(body))
    }
}

/// A refresh request that is as it has to be.
#[derive(Debug)]
pub(super) struct RefreshRequest {
    pub refresh_token: String,
    pub answer: RefreshAnswer,
}

/// Reads the body of a refresh: JSON in camelCase (K52, K53), never a form.
pub(super) fn refresh_request(method: Method, body: &[u8], state: &mut State) -> Result<RefreshRequest, HttpReply> {
    let fields: Value = serde_json::from_slice(body).map_err(|error| malformed(&format!("not JSON: {error}")))?;
    let need = |key: &str| match fields.get(key).and_then(Value::as_str) {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(malformed(&format!("`{key}` is missing"))),
    };
    let refresh_token = need("refreshToken")?;
    if method == Method::Idc {
        need("clientId")?;
        need("clientSecret")?;
        if need("grantType")? != "refresh_token" {
            return Err(malformed("`grantType` is not refresh_token"));
        }
    }
    *state.counts.refresh_calls.entry(refresh_token.clone()).or_default() += 1;
    let preset = || refresh_preset(refresh_token.split(['.', '~']).next()?.strip_prefix("sim-refresh-")?);
    let answer = match state.scripted_refresh(&refresh_token) {
        Some(scripted) => scripted.unwrap_or_else(RefreshAnswer::plain),
        None => match preset() {
            Some(preset) => preset.map_err(|error| malformed(&error))?,
            None => RefreshAnswer::plain(),
        },
    };
    Ok(RefreshRequest { refresh_token, answer })
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
];

fn refresh_preset(name: &str) -> Option<Result<RefreshAnswer, String>> {
    let (_, json) = REFRESH_PRESETS.iter().find(|(preset, _)| *preset == name)?;
    let value = serde_json::from_str(json).map_err(|error| error.to_string());
    Some(value.and_then(RefreshAnswer::from_value))
}

fn malformed(why: &str) -> HttpReply {
    let body =
        json!({ "error": "invalid_request", "error_description": format!("Invalid request (simulator: {why})") });
    HttpReply::json(400, &body).with("x-amzn-errortype", "InvalidRequestException")
}

fn dead(method: Method) -> HttpReply {
    match method {
        Method::Social => HttpReply::json(400, &json!({ "message": "Invalid refresh token" })),
        Method::Idc => {
            let body = json!({ "error": "invalid_grant", "error_description": "Invalid refresh token provided" });
            HttpReply::json(400, &body).with("x-amzn-errortype", "InvalidGrantException")
        }
    }
}

/// The answer to a request without a bearer token.
pub(super) fn no_bearer() -> HttpReply {
    HttpReply::error(403, "AccessDeniedException", None, INVALID_TOKEN)
}

/// K62, K63: an account that has used a little; all of it for the tokens `sim-402…` and `sim-overage…`. An ARN other
/// than ours is refused.
pub(super) fn usage(token: &str, profile_arn: Option<&str>) -> HttpReply {
    if profile_arn.is_some_and(|arn| arn != PROFILE_ARN) {
        return HttpReply::error(400, "ValidationException", None, "Invalid profileArn.");
    }
    let is_full = ["sim-402", "sim-overage"].iter().any(|prefix| token.starts_with(prefix));
    let used = if is_full { 1000.0 } else { 125.5 };
    HttpReply::json(
        200,
        &json!({
            "nextDateReset": 1_798_761_600.0,
            "daysUntilReset": 9,
            "subscriptionInfo": {
                "subscriptionTitle": "KIRO PRO (simulated)", "type": "Q_DEVELOPER_STANDALONE_PRO",
                "upgradeCapability": "UPGRADE_CAPABLE", "overageCapability": "OVERAGE_CAPABLE",
            },
            "userInfo": { "email": "simulated@example.com", "userId": "d-0000000000.simulated" },
            "usageBreakdownList": [{
                "resourceType": "AGENTIC_REQUEST", "displayName": "Credit", "unit": "INVOCATIONS", "currency": "USD",
                "currentUsage": used as u64, "currentUsageWithPrecision": used,
                "usageLimit": 1000, "usageLimitWithPrecision": 1000.0,
                "currentOverages": 0, "overageCap": 10_000, "overageRate": 0.04, "overageCharges": 0.0,
                "nextDateReset": 1_798_761_600.0,
                "freeTrialInfo": {
                    "freeTrialStatus": "ACTIVE", "freeTrialExpiry": 1_798_761_600.0,
                    "currentUsage": 10, "currentUsageWithPrecision": 10.25, "usageLimit": 500, "usageLimitWithPrecision": 500.0,
                },
                "bonuses": [
                    { "bonusCode": "SIMULATED", "status": "ACTIVE", "currentUsage": 5.0, "usageLimit": 50.0, "expiresAt": 1_798_761_600.0 },
                    { "bonusCode": "OVER", "status": "EXPIRED", "currentUsage": 5.0, "usageLimit": 50.0, "expiresAt": 1_700_000_000.0 },
                ],
            }],
        }),
    )
}

/// K64: one profile; none for the tokens `sim-no-profile…`, a refusal for `sim-builder-id…`.
pub(super) fn profiles(token: &str) -> HttpReply {
    if token.starts_with("sim-builder-id") {
        return HttpReply::error(403, "AccessDeniedException", None, BUILDER_ID);
    }
    let profiles = if token.starts_with("sim-no-profile") {
        json!([])
    } else {
        json!([{ "arn": PROFILE_ARN, "profileName": "simulated", "status": "ACTIVE", "profileType": "KIRO" }])
    };
    HttpReply::json(200, &json!({ "profiles": profiles }))
}

/// K65.
pub(super) fn models() -> HttpReply {
    let model = |id: &str, name: &str, window: u64| {
        json!({
            "modelId": id, "modelName": name, "description": "A simulated model", "rateMultiplier": 1.0, "rateUnit": "credit",
            "supportedInputTypes": ["TEXT", "IMAGE"],
            "tokenLimits": { "maxInputTokens": window, "maxOutputTokens": 64_000 },
            "promptCaching": {
                "supportsPromptCaching": true, "maximumCacheCheckpointsPerRequest": 4, "minimumTokensPerCacheCheckpoint": 1024,
            },
        })
    };
    let models = [
        model("claude-sonnet-4.5", "Claude Sonnet 4.5", 200_000),
        model("claude-haiku-4.5", "Claude Haiku 4.5", 200_000),
        model("claude-opus-4.6", "Claude Opus 4.6", 1_000_000),
    ];
    HttpReply::json(200, &json!({ "models": models, "defaultModel": models[0] }))
}
