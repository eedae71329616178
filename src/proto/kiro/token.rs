//! Shapes of token refresh, for social and IdC accounts (K51–K61).
//!
//! [`request_body`] makes the request (K52, K53). [`read_answer`] classifies the answer: a [`Grant`], or a [`Refusal`] with
//! a variant for each row of K57–K61.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::fault::{Fault, FaultKind};
use crate::proto::record::{Method, Token, is_region};
use crate::proto::said::KnownSecrets;
use crate::secret::Secret;

/// Lifetime of an access token whose answer names none (K54).
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);
/// A longer lifetime is cut to this: nobody issues one, and a wrong number must not last for ever.
const LONGEST_LIFETIME: Duration = Duration::from_secs(366 * 86_400);

/// A fresh access token and what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Never empty.
    pub access_token: Secret,
    /// Absent: the old one stays (K54).
    pub refresh_token: Option<Secret>,
    /// From the time of the answer; [`DEFAULT_LIFETIME`] when the answer has none or one ≤ 0.
    pub lifetime: Duration,
    /// Absent: nothing is erased (K54).
    pub profile_arn: Option<String>,
    /// The region that granted it, when the record names none (K76); it is written there. No answer has it.
    pub idc_region: Option<String>,
}

/// Why there is no new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The refresh token is dead, or the region is the wrong one: both look alike (K57).
    Rejected,
    /// The client registration has expired: sign in again (K58).
    RegistrationExpired,
    /// An external provider refuses the client (K82).
    ClientRefused,
    /// 401 or 403 of the social address: most likely dead; believed at the third in a row (K59).
    Doubtful,
    /// Upstream refuses this program's client version (K104): says nothing of the account.
    ClientVersion,
    /// 429, slow down, 5xx: it passes (K60).
    Passing,
    /// Anything else: as passing, believed at the third in a row (K61).
    Unknown,
}

impl Refusal {
    /// The word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::RegistrationExpired => "registration expired",
            Self::ClientRefused => "client refused",
            Self::Doubtful => "doubtful",
            Self::ClientVersion => "client version refused",
            Self::Passing => "passing",
            Self::Unknown => "unknown",
        }
    }
}

/// The JSON body of a refresh (K52, K53). None when the record lacks what its method needs: a refresh token, and for
/// IdC the client registration too; for an API key, which is never refreshed; and for an external account.
pub fn request_body(token: &Token) -> Option<Vec<u8>> {
    let refresh_token = token.refresh_token.as_ref()?.expose();
    let body = match token.method() {
        Method::Social => serde_json::to_vec(&SocialRequest { refresh_token }),
        Method::Idc => serde_json::to_vec(&IdcRequest {
            refresh_token,
            client_id: token.client_id.as_ref()?.expose(),
            client_secret: token.client_secret.as_ref()?.expose(),
            grant_type: "refresh_token",
        }),
        // An external provider gets its own form at its own address (K84).
        Method::External | Method::ApiKey => return None,
    };
    body.ok()
}

/// Classifies the answer to a refresh. `error_type` is the header `x-amzn-errortype`.
pub fn read_answer(method: Method, status: u16, error_type: Option<&str>, body: &[u8]) -> Result<Grant, Refusal> {
    let answer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    if status == 200 {
        return read_grant(&answer).ok_or(Refusal::Unknown);
    }
    let error = ErrorAnswer { answer: &answer, error_type };
    // K104: before everything else.
    if Fault::from_http(status, error_type, None, body, false, &KnownSecrets::default()).kind
        == FaultKind::ClientVersion
    {
        return Err(Refusal::ClientVersion);
    }
    Err(match status {
        400 if error.is("InvalidGrantException", "invalid_grant") => Refusal::Rejected,
        400 if error.is("ExpiredTokenException", "expired_token") => Refusal::Rejected,
        400 if error.says("invalid refresh token") => Refusal::Rejected,
        // Also what a wrong region looks like (K76).
        400 if method == Method::Idc && error.says("invalid token provided") => Refusal::Rejected,
        400 if error.is("InvalidRequestRegionException", "invalid_request_region") => Refusal::Rejected,
        400 | 401 if error.is("InvalidClientException", "invalid_client") => Refusal::RegistrationExpired,
        400 | 401 if error.is("UnauthorizedClientException", "unauthorized_client") => Refusal::RegistrationExpired,
        400 if error.is("SlowDownException", "slow_down") => Refusal::Passing,
        429 | 500..=599 => Refusal::Passing,
        401 | 403 if method == Method::Social => Refusal::Doubtful,
        _ => Refusal::Unknown,
    })
}

/// The right region, when a refusal names it (K76): a region's name, or none.
pub fn told_region(body: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let region = answer.get("region").and_then(Value::as_str)?;
    is_region(region).then(|| region.to_owned())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SocialRequest<'a> {
    refresh_token: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IdcRequest<'a> {
    refresh_token: &'a str,
    client_id: &'a str,
    client_secret: &'a str,
    grant_type: &'static str,
}

fn read_grant(answer: &Value) -> Option<Grant> {
    let text = |name: &str| answer.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    Some(Grant {
        access_token: Secret::new(text("accessToken")?),
        refresh_token: text("refreshToken").map(Secret::new),
        lifetime: lifetime_of(answer.get("expiresIn")).unwrap_or(DEFAULT_LIFETIME),
        profile_arn: text("profileArn").map(str::to_owned),
        idc_region: None,
    })
}

/// Seconds as a number or as digits (K54); none when they can't be used.
pub(super) fn lifetime_of(seconds: Option<&Value>) -> Option<Duration> {
    let seconds = seconds.and_then(|value| value.as_f64().or_else(|| value.as_str()?.parse().ok()))?;
    let is_said = seconds > 0.0;
    is_said.then(|| Duration::try_from_secs_f64(seconds.min(LONGEST_LIFETIME.as_secs_f64())).ok()).flatten()
}

struct ErrorAnswer<'a> {
    answer: &'a Value,
    error_type: Option<&'a str>,
}

impl ErrorAnswer<'_> {
    /// Whether it is the exception of that name (header, `__type`, `code`) or the OAuth error code of that meaning.
    fn is(&self, exception: &str, code: &str) -> bool {
        let text = |name: &str| self.answer.get(name).and_then(Value::as_str);
        [self.error_type, text("__type"), text("code"), text("error")].into_iter().flatten().any(|found| {
            let name = found.split(':').next().unwrap_or(found).trim();
            let name = name.rsplit_once('#').map_or(name, |(_, name)| name);
            name == exception || name.eq_ignore_ascii_case(code)
        })
    }

    /// Whether one of its texts has these words, in any case.
    fn says(&self, words: &str) -> bool {
        ["message", "Message", "error_description", "error"].iter().any(|name| {
            self.answer.get(name).and_then(Value::as_str).is_some_and(|text| text.to_ascii_lowercase().contains(words))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(record: &str) -> Token {
        Token::parse(record.as_bytes()).unwrap()
    }

    fn body(record: &str) -> Option<String> {
        request_body(&token(record)).map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn bodies_are_camel_case_json_k52_k53_trap_38() {
        assert_eq!(body(r#"{"authMethod":"social","refreshToken":"r\"1"}"#).unwrap(), r#"{"refreshToken":"r\"1"}"#);
        assert_eq!(
            body(r#"{"authMethod":"IdC","refreshToken":"r","clientId":"c","clientSecret":"s"}"#).unwrap(),
            r#"{"refreshToken":"r","clientId":"c","clientSecret":"s","grantType":"refresh_token"}"#
        );
        for lacking in [
            r#"{"authMethod":"social"}"#,
            r#"{"authMethod":"idc","refreshToken":"r","clientId":"c"}"#,
            r#"{"kiroApiKey":"ksk_1","refreshToken":"r"}"#,
            r#"{"authMethod":"external_idp","refreshToken":"r","clientId":"c","tokenEndpoint":"https://login.microsoftonline.com/t"}"#,
            r#"{"authMethod":"AzureAD","refreshToken":"r","clientId":"c","clientSecret":"s"}"#,
        ] {
            assert_eq!(body(lacking), None, "{lacking}");
        }
    }

    #[test]
    fn empty_members_of_a_grant_count_as_absent_k54() {
        let read = |body: &str| read_answer(Method::Social, 200, None, body.as_bytes());
        let grant =
            read(r#"{"accessToken":"a","refreshToken":"","expiresIn":0,"profileArn":"","idToken":"i"}"#).unwrap();
        assert_eq!(
            grant,
            Grant {
                access_token: Secret::new("a"),
                refresh_token: None,
                lifetime: DEFAULT_LIFETIME,
                profile_arn: None,
                idc_region: None
            }
        );
        let grant = read(r#"{"accessToken":"a","refreshToken":"r","expiresIn":1800.5,"profileArn":"arn:x"}"#).unwrap();
        assert_eq!(grant.lifetime, Duration::from_secs_f64(1800.5));
        assert_eq!((grant.refresh_token, grant.profile_arn), (Some(Secret::new("r")), Some("arn:x".into())));
        for (said, seconds) in [("-5", 3600), ("1e300", 366 * 86_400), ("\"60\"", 60), ("null", 3600)] {
            let grant = read(&format!(r#"{{"accessToken":"a","expiresIn":{said}}}"#)).unwrap();
            assert_eq!(grant.lifetime, Duration::from_secs(seconds), "{said}");
        }
        for broken in ["", "[]", r#"{"accessToken":""}"#, r#"{"idToken":"a"}"#, r#"{"accessToken":7}"#] {
            assert_eq!(read(broken), Err(Refusal::Unknown), "{broken}");
        }
    }

    #[test]
    fn a_refusal_may_name_the_right_region_k76_p24() {
        assert_eq!(told_region(br#"{"region":"eu-west-1"}"#).as_deref(), Some("eu-west-1"));
        for body in [&br#"{"region":"evil.org/x"}"#[..], b"{}", b"x", br#"{"region":5}"#] {
            assert_eq!(told_region(body), None);
        }
    }

    #[test]
    fn each_refusal_has_its_meaning_k57_to_k61() {
        use Refusal::{Doubtful, Passing, RegistrationExpired, Rejected, Unknown};
        let (social, idc) = (Method::Social, Method::Idc);
        let table = [
            (idc, 400, None, r#"{"error":"invalid_grant","error_description":"x"}"#, Rejected),
            (idc, 400, Some("InvalidGrantException:http://x"), "{}", Rejected),
            (idc, 400, None, r#"{"__type":"com.amazonaws.sso.oidc#ExpiredTokenException"}"#, Rejected),
            (social, 400, None, r#"{"message":"Invalid refresh token provided"}"#, Rejected),
            (idc, 400, None, r#"{"error":"invalid_request","error_description":"Invalid token provided"}"#, Rejected),
            (social, 400, None, r#"{"error":"invalid_request","error_description":"Invalid token provided"}"#, Unknown),
            (idc, 400, Some("InvalidRequestRegionException"), r#"{"region":"eu-west-1"}"#, Rejected),
            (idc, 401, Some("InvalidClientException"), "{}", RegistrationExpired),
            (idc, 401, None, r#"{"error":"invalid_client"}"#, RegistrationExpired),
            (idc, 400, Some("UnauthorizedClientException"), "not json", RegistrationExpired),
            (social, 401, None, r#"{"message":"Bad credentials"}"#, Doubtful),
            (social, 403, None, "", Doubtful),
            (idc, 401, None, "{}", Unknown),
            (idc, 403, None, "{}", Unknown),
            (social, 429, None, "", Passing),
            (idc, 400, None, r#"{"error":"slow_down"}"#, Passing),
            (social, 500, None, r#"{"error":"invalid_grant"}"#, Passing),
            (social, 503, None, "<html>", Passing),
            (social, 400, None, r#"{"message":"improper"}"#, Unknown),
            (social, 404, None, "", Unknown),
            (social, 302, None, "", Unknown),
            (social, 204, None, "", Unknown),
        ];
        for (method, status, header, body, refusal) in table {
            assert_eq!(
                read_answer(method, status, header, body.as_bytes()),
                Err(refusal),
                "{status} {header:?} {body}"
            );
        }
    }
}
