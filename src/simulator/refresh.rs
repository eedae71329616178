//! Token refresh (K51–K61, K82), as strict as the real endpoints.

use std::time::Duration;

use http::HeaderMap;
use serde_json::{Map, Value, json};

use super::accounts::SimAccount;
use super::arns::{PROFILE_ARN, SOCIAL_ARN};
use super::refresh_answer::{RefreshAnswer, refresh_preset};
use super::reply::HttpReply;
use super::state::SimState;
use super::world::WrongRegion;

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

impl RefreshAnswer {
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
