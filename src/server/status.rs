//! The status page: one HTML page without external resources, and its numbers by SSE, once a second.
//!
//! Read-only, from memory, without secrets. The page's own script and style are named by their hash in the content security
//! policy, so nothing else can run in it.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Response};
use sha2::{Digest, Sha256};

use super::body::{EVENT_STREAM, ResponseBody};
use super::events::Events;
use crate::gateway::Gateway;

const PAGE: &str = include_str!("status.html");

/// Makes a browser ask for a name and a password. The password is the key; the name doesn't matter.
pub(super) const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"kiro-server\", charset=\"UTF-8\"");

/// `GET /status`.
pub(super) fn page() -> Response<ResponseBody> {
    static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| HeaderValue::from_str(&policy(PAGE)).ok());
    let mut response = Response::new(ResponseBody::full(Bytes::from_static(PAGE.as_bytes())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Some(policy) = &*POLICY {
        headers.insert(CONTENT_SECURITY_POLICY, policy.clone());
    }
    private(headers);
    response
}

/// `GET /status/events`.
pub(super) fn events(gateway: &Gateway) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::status(Events::new(gateway.clone())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, EVENT_STREAM);
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    private(headers);
    response
}

/// The key as a browser sends it: the password of `Authorization: Basic`, whatever the name.
pub(super) fn password(headers: &HeaderMap) -> Option<String> {
    let (scheme, value) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

/// No cache may keep it, and no other site may embed it.
fn private(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
}

fn policy(page: &str) -> String {
    let hash = |element: &str| {
        let text = between(page, &format!("<{element}>"), &format!("</{element}>")).unwrap_or_default();
        format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
    };
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        hash("script"),
        hash("style"),
    )
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_its_policy_allows_nothing_else() {
        for outside in ["http://", "https://", "//cdn", "@import", "url("] {
            let found = PAGE.replace("http://www.w3.org/2000/svg", "").contains(outside);
            assert!(!found, "{outside} in the page");
        }
        for element in ["<script", "<style"] {
            assert_eq!(PAGE.matches(element).count(), 1, "the policy knows one {element}>");
        }
        assert!(!PAGE.contains(" style=") && !PAGE.contains(" onclick="), "inline attributes are not allowed");
        let policy = policy(PAGE);
        assert!(
            policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert_ne!(policy.matches("sha256-47DEQpj8HBSa").count(), 2, "hashes of nothing");
        assert!(page().headers().contains_key(CONTENT_SECURITY_POLICY));
    }

    #[test]
    fn the_password_is_the_key_whatever_the_name() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            password(&headers)
        };
        assert_eq!(with(&format!("Basic {}", STANDARD.encode("any:k:1"))).as_deref(), Some("k:1"));
        assert_eq!(with(&format!("basic {}", STANDARD.encode(":k"))).as_deref(), Some("k"));
        assert_eq!(with(&format!("Bearer {}", STANDARD.encode(":k"))), None);
        assert_eq!(with("Basic ???"), None);
        assert_eq!(with(&format!("Basic {}", STANDARD.encode("k"))), None);
    }
}
