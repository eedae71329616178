//! The calls of an account: token refresh (K51–K61), usage (K62, K63), profiles (K79) and models (K124).

use jiff::Timestamp;
use std::time::Duration;

use http::HeaderMap;
use serde_json::{Map, Value, json};

use super::scenario::{Fields, HttpReply};
use super::state::SimState;
use super::wire::is_region;
use super::world::{SimWorld, WrongRegion};
use crate::proto::kiro::route::Operation;

/// The profile that the simulator knows, and gives to social refreshes.
pub const PROFILE_ARN: &str = "arn:aws:codewhisperer:us-east-1:000000000000:profile/SIMULATED";
/// Kiro's own profile of Builder ID accounts (K77).
pub(super) const BUILDER_ID_ARN: &str = "arn:aws:codewhisperer:us-east-1:638616132270:profile/AAAACCCCXXXX";
/// Kiro's own profile of social accounts (K77).
pub(super) const SOCIAL_ARN: &str = "arn:aws:codewhisperer:us-east-1:699475941385:profile/EHGA3GRVQMUK";
const NOT_AUTHORIZED: &str = "User is not authorized to make this call.";
const INVALID_TOKEN: &str = "The bearer token included in the request is invalid.";
const EXPIRED_TOKEN: &str = "ExpiredToken: the security token included in the request is expired";
const BUILDER_ID: &str = "AWS Builder ID is not supported for this operation.";

/// Whether an ARN is one of Kiro's own.
pub(super) fn is_service_arn(arn: &str) -> bool {
    [BUILDER_ID_ARN, SOCIAL_ARN].contains(&arn)
}

/// The kind that an access token `sim-acct-KIND[-REGION][.x]` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SimKind {
    Builder,
    /// A service ARN is refused as "not authorized".
    BuilderStrict,
    /// A service ARN is refused as an invalid token.
    BuilderStrictToken,
    Social,
    Enterprise,
    /// Two profiles, the first refused.
    Enterprise2,
    External,
    /// An enterprise account that no profile was given.
    NoProfile,
    Key,
}

/// Longer names first, because some begin with a shorter one.
const KINDS: &[(&str, SimKind)] = &[
    ("builder-strict-token", SimKind::BuilderStrictToken),
    ("builder-strict", SimKind::BuilderStrict),
    ("builder", SimKind::Builder),
    ("social", SimKind::Social),
    ("enterprise2", SimKind::Enterprise2),
    ("enterprise", SimKind::Enterprise),
    ("external", SimKind::External),
    ("noprofile", SimKind::NoProfile),
    ("key", SimKind::Key),
];

/// An account of a kind, in a region.
#[derive(Clone, Copy, Debug)]
pub(super) struct SimAccount<'a> {
    kind: SimKind,
    region: &'a str,
}

impl<'a> SimAccount<'a> {
    /// The account of an access token; none for tokens of another form.
    ///
    /// # Errors
    /// A sentence, when the form is right and the kind or the region isn't.
    pub fn of(token: &'a str) -> Result<Option<Self>, String> {
        let Some(rest) = token.strip_prefix("sim-acct-") else { return Ok(None) };
        let name = rest.split(['.', '~', '@']).next().unwrap_or(rest);
        for (word, kind) in KINDS {
            let Some(region) = name.strip_prefix(word) else { continue };
            return match region.strip_prefix('-') {
                None if region.is_empty() => Ok(Some(Self { kind: *kind, region: "us-east-1" })),
                Some(region) if is_region(region) => Ok(Some(Self { kind: *kind, region })),
                _ => continue,
            };
        }
        Err(format!("no kind of account is called `{name}`"))
    }

    /// Its profiles, and whether each lets it in.
    fn profiles(&self, world: &SimWorld) -> Vec<(String, bool)> {
        if let Some(profiles) = &world.profiles {
            let arn = |profile: &Value| profile["arn"].as_str().unwrap_or_default().to_owned();
            let is_active = |profile: &Value| profile["status"].as_str().is_none_or(|status| status == "ACTIVE");
            return profiles.iter().map(|profile| (arn(profile), is_active(profile))).collect();
        }
        match self.kind {
            SimKind::Enterprise | SimKind::External => vec![(enterprise_arn(self.region), true)],
            SimKind::Enterprise2 => {
                vec![(numbered_arn(self.region, "AAAA1"), false), (numbered_arn(self.region, "CCCC3"), true)]
            }
            _ => Vec::new(),
        }
    }

    /// Whether a call is served: the header `tokentype`, the region and the ARN fit the account.
    ///
    /// # Errors
    /// Upstream's answer, in its ambiguous words (K78).
    pub fn admits(
        &self,
        call: Operation,
        region: Option<&str>,
        arn: Option<&str>,
        token_type: Option<&str>,
        world: &SimWorld,
    ) -> Result<(), HttpReply> {
        let forbidden = |message: &str| Err(HttpReply::error(403, "AccessDeniedException", None, message));
        let invalid = |message: &str| Err(HttpReply::error(400, "ValidationException", None, message));
        let wanted = match self.kind {
            SimKind::External => Some("EXTERNAL_IDP"),
            SimKind::Key => Some("API_KEY"),
            _ => None,
        };
        if token_type != wanted {
            return forbidden(if self.kind == SimKind::External { "Invalid token" } else { INVALID_TOKEN });
        }
        if let Some(region) = region.filter(|region| *region != self.region) {
            let is_elsewhere = arn.and_then(|arn| arn.split(':').nth(3)).is_some_and(|own| own != region);
            return if is_elsewhere { invalid("Improperly formed request.") } else { forbidden(NOT_AUTHORIZED) };
        }
        let talks = matches!(call, Operation::Chat | Operation::Mcp);
        match (self.kind, arn) {
            (SimKind::Builder, Some(BUILDER_ID_ARN)) | (SimKind::Social, Some(SOCIAL_ARN)) => Ok(()),
            (SimKind::Builder | SimKind::Social, None) if talks && world.is_today => {
                invalid("profileArn is required for this request.")
            }
            (SimKind::BuilderStrict, Some(BUILDER_ID_ARN)) => forbidden(NOT_AUTHORIZED),
            (SimKind::BuilderStrictToken, Some(BUILDER_ID_ARN)) => forbidden(INVALID_TOKEN),
            (SimKind::Builder | SimKind::BuilderStrict | SimKind::BuilderStrictToken | SimKind::Social, None) => Ok(()),
            (SimKind::Builder | SimKind::BuilderStrict | SimKind::BuilderStrictToken | SimKind::Social, Some(_)) => {
                invalid("Invalid profileArn.")
            }
            (SimKind::Key, None) => Ok(()),
            (SimKind::Key, Some(_)) => forbidden(NOT_AUTHORIZED),
            (_, Some(arn)) if is_service_arn(arn) => forbidden(INVALID_TOKEN),
            (SimKind::NoProfile, _) => forbidden(NOT_AUTHORIZED),
            (_, Some(arn)) if self.profiles(world).iter().any(|(own, lets_in)| own == arn && *lets_in) => Ok(()),
            (_, None) if !talks => Ok(()),
            _ => forbidden(NOT_AUTHORIZED),
        }
    }

    /// K79, from `start` on.
    pub fn list_profiles(
        &self,
        region: Option<&str>,
        token_type: Option<&str>,
        start: usize,
        world: &SimWorld,
    ) -> HttpReply {
        match self.kind {
            SimKind::Builder | SimKind::BuilderStrict | SimKind::BuilderStrictToken => {
                return HttpReply::error(403, "AccessDeniedException", None, BUILDER_ID);
            }
            SimKind::Social | SimKind::Key => {
                return HttpReply::error(403, "AccessDeniedException", None, NOT_AUTHORIZED);
            }
            _ => {}
        }
        let is_blind = self.kind == SimKind::External && token_type != Some("EXTERNAL_IDP");
        if is_blind || region.is_some_and(|region| region != self.region) {
            return HttpReply::json(200, &json!({ "profiles": [] }));
        }
        let listed = world.profiles.clone().unwrap_or_else(|| {
            let entry = |(n, (arn, _)): (usize, (String, bool))| {
                json!({ "arn": arn, "profileName": format!("simulated {}", n + 1), "status": "ACTIVE", "profileType": "KIRO" })
            };
            self.profiles(world).into_iter().enumerate().map(entry).collect()
        });
        let page = world.profiles_page.unwrap_or(listed.len().max(1));
        paged("profiles", &listed, page, start, json!({}))
    }
}

/// One page of a list, with the number of the next one's first entry as `nextToken`.
fn paged(name: &str, all: &[Value], page: usize, start: usize, mut body: Value) -> HttpReply {
    let end = all.len().min(start.saturating_add(page));
    body[name] = all.get(start..end).unwrap_or_default().into();
    if end < all.len() {
        body["nextToken"] = end.to_string().into();
    }
    HttpReply::json(200, &body)
}

/// The profile of a simulated enterprise in a region.
fn enterprise_arn(region: &str) -> String {
    numbered_arn(region, if region == "us-east-1" { "EEEE1" } else { "EEEE2" })
}

fn numbered_arn(region: &str, name: &str) -> String {
    let partition = if region.starts_with("us-gov-") { "aws-us-gov" } else { "aws" };
    format!("arn:{partition}:codewhisperer:{region}:111122223333:profile/{name}")
}

/// The account of a token, before and after refreshes.
pub(super) fn identity(token: &str) -> &str {
    if token.starts_with("sim-acct-") {
        return token.split('~').next().unwrap_or(token);
    }
    let refreshed = token.strip_prefix("sim-ok.").and_then(|rest| rest.split_once('.'));
    match refreshed {
        Some((number, root)) if number.bytes().all(|byte| byte.is_ascii_digit()) => root,
        _ => token,
    }
}

/// The three kinds of refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefreshMethod {
    Social,
    Idc,
    /// At an organisation's own provider (K82).
    External,
}

impl RefreshMethod {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Social => "social",
            Self::Idc => "idc",
            Self::External => "external",
        }
    }
}

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

    fn plain() -> Self {
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

    /// The answer. New tokens are counted and the old refresh token retires.
    pub fn reply(&self, method: RefreshMethod, used: &str, state: &mut SimState) -> HttpReply {
        if let Some(refusal) = &self.refusal {
            return refusal.clone();
        }
        if state.is_spent(used) {
            return dead(method);
        }
        state.issued += 1;
        let n = state.issued;
        let root = used.split('~').next().unwrap_or(used);
        let account = SimAccount::of(root).ok().flatten();
        let usual = match (account, root.split_once('@')) {
            (None, _) => format!("sim-ok.{n}.{root}"),
            (Some(_), None) => format!("{root}~{n}"),
            // The refresh token decides the identity's region.
            (Some(_), Some((name, rest))) => {
                format!("{name}{}~{n}", rest.find('.').map_or("", |dot| &rest[dot..]))
            }
        };
        let access_token = self.access_token.clone().unwrap_or(Some(usual));
        let refresh_token = self.refresh_token.clone().unwrap_or_else(|| Some(format!("{root}~{n}")));
        let expires_in = self.expires_in.clone().unwrap_or_else(|| state.world.token_life.unwrap_or(3600).into());
        let profile_arn = match method {
            RefreshMethod::Social => self
                .profile_arn
                .clone()
                .unwrap_or_else(|| Some(if account.is_some() { SOCIAL_ARN } else { PROFILE_ARN }.to_owned())),
            RefreshMethod::Idc | RefreshMethod::External => self.profile_arn.clone().flatten(),
        };
        let life = state.world.token_life.map(Duration::from_secs);
        state.refreshed(used, refresh_token.as_deref(), access_token.as_deref(), life);
        let [access, refresh, expires] = match method {
            RefreshMethod::Social | RefreshMethod::Idc => ["accessToken", "refreshToken", "expiresIn"],
            RefreshMethod::External => ["access_token", "refresh_token", "expires_in"],
        };
        let mut body = Map::new();
        body.extend(access_token.map(|token| (access.to_owned(), token.into())));
        body.extend(refresh_token.map(|token| (refresh.to_owned(), token.into())));
        if !expires_in.is_null() {
            body.insert(expires.to_owned(), expires_in);
        }
        body.extend(profile_arn.map(|arn| ("profileArn".to_owned(), arn.into())));
        match method {
            RefreshMethod::Social => {}
            RefreshMethod::Idc => {
                body.insert("tokenType".to_owned(), "Bearer".into());
                body.insert("idToken".to_owned(), "not-an-access-token".into());
            }
            RefreshMethod::External => {
                body.insert("token_type".to_owned(), "Bearer".into());
                body.insert("id_token".to_owned(), "not-an-access-token".into());
            }
        }
        HttpReply::json(200, &Value::Object(body))
    }
}

/// A well-formed refresh request.
#[derive(Debug)]
pub(super) struct RefreshRequest {
    pub refresh_token: String,
    pub answer: RefreshAnswer,
}

/// Reads the body of a refresh: JSON in camelCase (K52, K53), and a form at a provider (K82).
pub(super) fn refresh_request(
    method: RefreshMethod,
    headers: &HeaderMap,
    body: &[u8],
    region: Option<&str>,
    state: &mut SimState,
) -> Result<RefreshRequest, HttpReply> {
    let fields: Value = match method {
        RefreshMethod::Social | RefreshMethod::Idc => {
            serde_json::from_slice(body).map_err(|error| malformed(&format!("not JSON: {error}")))?
        }
        RefreshMethod::External => provider_form(headers, body)?,
    };
    let need = |key: &str| match fields.get(key).and_then(Value::as_str) {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(malformed(&format!("`{key}` is missing"))),
    };
    let [token, client, grant] = match method {
        RefreshMethod::Social | RefreshMethod::Idc => ["refreshToken", "clientId", "grantType"],
        RefreshMethod::External => ["refresh_token", "client_id", "grant_type"],
    };
    let refresh_token = need(token)?;
    if method != RefreshMethod::Social {
        need(client)?;
        if need(grant)? != "refresh_token" {
            return Err(malformed(&format!("`{grant}` is not refresh_token")));
        }
    }
    if method == RefreshMethod::Idc {
        need("clientSecret")?;
    }
    state.refresh_called(&refresh_token);
    if let Some(identity) = refresh_token.split_once('@').and_then(|(_, rest)| rest.split(['.', '~']).next())
        && refresh_token.starts_with("sim-acct-")
        && region.is_some_and(|region| region != identity)
    {
        return Err(elsewhere(state.world.wrong_region, identity));
    }
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
    ("lost", r#"{"lose":true}"#),
];

fn refresh_preset(name: &str) -> Option<Result<RefreshAnswer, String>> {
    let (_, json) = REFRESH_PRESETS.iter().find(|(preset, _)| *preset == name)?;
    let value = serde_json::from_str(json).map_err(|error| error.to_string());
    Some(value.and_then(RefreshAnswer::from_value))
}

/// The form that a provider takes (K82): these members in this order, and none of Kiro's own headers.
fn provider_form(headers: &HeaderMap, body: &[u8]) -> Result<Value, HttpReply> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if text("content-type") != "application/x-www-form-urlencoded" || text("accept") != "application/json" {
        return Err(malformed("content-type or accept"));
    }
    let version = text("user-agent").strip_prefix("KiroIDE-").unwrap_or_default();
    if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(malformed("user-agent"));
    }
    let known = ["content-type", "accept", "user-agent", "host", "content-length", "accept-encoding"];
    if let Some(name) = headers.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(malformed(&format!("header {name}")));
    }
    let members: Vec<_> = form_urlencoded::parse(body).collect();
    let names: Vec<_> = members.iter().map(|(name, _)| &**name).collect();
    if !["grant_type", "refresh_token", "client_id", "scope"].starts_with(&names) || names.len() < 3 {
        return Err(malformed("the members of the form"));
    }
    Ok(members.iter().map(|(name, value)| (name.to_string(), Value::from(&**value))).collect::<Map<_, _>>().into())
}

fn malformed(why: &str) -> HttpReply {
    let body =
        json!({ "error": "invalid_request", "error_description": format!("Invalid request (simulator: {why})") });
    HttpReply::json(400, &body).with("x-amzn-errortype", "InvalidRequestException")
}

/// A refresh where the identity isn't known (K76).
fn elsewhere(how: WrongRegion, region: &str) -> HttpReply {
    let (status, kind, error, text) = match how {
        WrongRegion::InvalidGrant => (400, "InvalidGrantException", "invalid_grant", "Invalid refresh token provided"),
        WrongRegion::InvalidRequest => (400, "InvalidRequestException", "invalid_request", "Invalid token provided"),
        WrongRegion::InvalidClient => (401, "InvalidClientException", "invalid_client", "Invalid client"),
        WrongRegion::Named => (400, "InvalidRequestRegionException", "invalid_request", "Wrong region"),
    };
    let mut body = json!({ "error": error, "error_description": text });
    if how == WrongRegion::Named {
        body["region"] = region.into();
        body["endpoint"] = format!("https://oidc.{region}.amazonaws.com").into();
    }
    HttpReply::json(status, &body).with("x-amzn-errortype", kind)
}

fn dead(method: RefreshMethod) -> HttpReply {
    match method {
        RefreshMethod::Social => HttpReply::json(400, &json!({ "message": "Invalid refresh token" })),
        RefreshMethod::Idc => {
            let body = json!({ "error": "invalid_grant", "error_description": "Invalid refresh token provided" });
            HttpReply::json(400, &body).with("x-amzn-errortype", "InvalidGrantException")
        }
        RefreshMethod::External => {
            let said = "AADSTS700082: The refresh token of someone@example.org has expired.";
            HttpReply::json(400, &json!({ "error": "invalid_grant", "error_description": said }))
        }
    }
}

/// The answer to an expired access token.
pub(super) fn expired() -> HttpReply {
    HttpReply::error(403, "ExpiredTokenException", None, EXPIRED_TOKEN)
}

/// The answer to a request without a bearer token.
pub(super) fn no_bearer() -> HttpReply {
    HttpReply::error(403, "AccessDeniedException", None, INVALID_TOKEN)
}

/// The usage of an account (K62, K63): a little; all of it for the tokens `sim-402…` and `sim-overage…`; what was used
/// of what, in a world that counts credits. Another ARN than ours is refused.
pub(super) fn usage(token: &str, profile_arn: Option<&str>, quota: Option<(f64, f64)>) -> HttpReply {
    let is_known = |arn| arn == PROFILE_ARN || is_service_arn(arn);
    if !token.starts_with("sim-acct-") && profile_arn.is_some_and(|arn| !is_known(arn)) {
        return HttpReply::error(400, "ValidationException", None, "Invalid profileArn.");
    }
    let is_full = ["sim-402", "sim-overage"].iter().any(|prefix| token.starts_with(prefix));
    let (used, limit) = quota.unwrap_or((if is_full { 1000.0 } else { 125.5 }, 1000.0));
    let (reset, more) = match quota {
        Some(_) => (Timestamp::now().as_second() as f64 + 9.0 * 86_400.0, "EXPIRED"),
        None => (1_798_761_600.0, "ACTIVE"),
    };
    HttpReply::json(
        200,
        &json!({
            "nextDateReset": reset,
            "daysUntilReset": 9,
            "subscriptionInfo": {
                "subscriptionTitle": "KIRO PRO (simulated)", "type": "Q_DEVELOPER_STANDALONE_PRO",
                "upgradeCapability": "UPGRADE_CAPABLE", "overageCapability": "OVERAGE_CAPABLE",
            },
            "userInfo": { "email": "simulated@example.com", "userId": "d-0000000000.simulated" },
            "usageBreakdownList": [{
                "resourceType": "AGENTIC_REQUEST", "displayName": "Credit", "unit": "INVOCATIONS", "currency": "USD",
                "currentUsage": used as u64, "currentUsageWithPrecision": used,
                "usageLimit": limit as u64, "usageLimitWithPrecision": limit,
                "currentOverages": 0, "overageCap": 10_000, "overageRate": 0.04, "overageCharges": 0.0,
                "nextDateReset": reset,
                "freeTrialInfo": {
                    "freeTrialStatus": more, "freeTrialExpiry": 1_798_761_600.0,
                    "currentUsage": 10, "currentUsageWithPrecision": 10.25, "usageLimit": 500, "usageLimitWithPrecision": 500.0,
                },
                "bonuses": [
                    { "bonusCode": "SIMULATED", "status": more, "currentUsage": 5.0, "usageLimit": 50.0, "expiresAt": 1_798_761_600.0 },
                    { "bonusCode": "OVER", "status": "EXPIRED", "currentUsage": 5.0, "usageLimit": 50.0, "expiresAt": 1_700_000_000.0 },
                ],
            }],
        }),
    )
}

/// Chat's refusal of an account without credits.
pub(super) fn used_up() -> HttpReply {
    let message = "You have reached the limit.";
    HttpReply::error(402, "ServiceQuotaExceededException", Some("MONTHLY_REQUEST_COUNT"), message)
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

/// K124, from `start` on.
pub(super) fn models(asked: usize, start: usize, world: &SimWorld) -> HttpReply {
    let listed: Vec<Value> =
        world.models.iter().filter(|model| model.listed).map(super::models::Model::entry).collect();
    let default = listed.iter().find(|model| model["modelId"] == "claude-sonnet-4.5").or(listed.first()).cloned();
    let mut body = json!({});
    if let Some(default) = default {
        body["defaultModel"] = default;
    }
    paged("models", &listed, world.models_page.unwrap_or(asked), start, body)
}
