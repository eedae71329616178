//! Results of a web search as the client reads them (TS32).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BufMut;
use serde::{Deserialize, Serialize};

use crate::proto::json;

/// The name of the tool.
pub const WEB_SEARCH: &str = "web_search";
/// What stands in front of our `encrypted_content` (TS32).
const OURS: &str = "k1.";

/// What a search found, or why it found nothing.
pub type SearchOutcome = Result<Vec<Hit>, SearchCode>;

/// One result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hit {
    /// http or https.
    pub url: String,
    /// The page's title.
    pub title: String,
    /// A piece of the page's text; empty where it isn't known.
    pub snippet: String,
    /// When the page was published, as `October 5, 2026`.
    pub page_age: Option<String>,
}

/// Why a search failed. `query_too_long` and `request_too_large` are never produced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SearchCode {
    /// `invalid_tool_input`: the model gave no query.
    InvalidToolInput,
    /// `unavailable`: upstream's search failed.
    Unavailable,
    /// `max_uses_exceeded`: the client's limit is reached.
    MaxUsesExceeded,
    /// `too_many_requests`: upstream limits the accounts.
    TooManyRequests,
}

impl SearchCode {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::InvalidToolInput, Self::Unavailable, Self::MaxUsesExceeded, Self::TooManyRequests];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidToolInput => "invalid_tool_input",
            Self::Unavailable => "unavailable",
            Self::MaxUsesExceeded => "max_uses_exceeded",
            Self::TooManyRequests => "too_many_requests",
        }
    }
}

/// Writes the `content` of a `web_search_tool_result` block (TS32).
pub(super) fn write_content(outcome: &SearchOutcome, out: &mut impl BufMut) {
    let hits = match outcome {
        Ok(hits) => hits,
        Err(code) => {
            out.put_slice(b"{\"type\":\"web_search_tool_result_error\",\"error_code\":\"");
            out.put_slice(code.as_str().as_bytes());
            return out.put_slice(b"\"}");
        }
    };
    out.put_u8(b'[');
    for (place, Hit { url, title, snippet, page_age }) in hits.iter().enumerate() {
        if place > 0 {
            out.put_u8(b',');
        }
        out.put_slice(b"{\"type\":\"web_search_result\",\"url\":\"");
        json::escape(url, out);
        out.put_slice(b"\",\"title\":\"");
        json::escape(title, out);
        out.put_slice(b"\",\"encrypted_content\":\"");
        out.put_slice(encrypted(snippet).as_bytes());
        out.put_slice(b"\",\"page_age\":");
        match page_age {
            Some(age) => {
                out.put_u8(b'"');
                json::escape(age, out);
                out.put_u8(b'"');
            }
            None => out.put_slice(b"null"),
        }
        out.put_u8(b'}');
    }
    out.put_u8(b']');
}

#[derive(Serialize, Deserialize)]
struct Content {
    /// The snippet.
    t: String,
}

/// A snippet as `encrypted_content`. It needs no key, so it survives restarts and works on every instance (TS32).
fn encrypted(snippet: &str) -> String {
    let content = serde_json::to_vec(&Content { t: snippet.to_owned() }).unwrap_or_default();
    format!("{OURS}{}", URL_SAFE_NO_PAD.encode(content))
}

/// The snippet in our `encrypted_content`; none in any other, nor in one that was cut (TS32).
pub fn snippet_of(encrypted_content: &str) -> Option<String> {
    let content = URL_SAFE_NO_PAD.decode(encrypted_content.strip_prefix(OURS)?).ok()?;
    serde_json::from_slice(&content).ok().map(|Content { t }| t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snippet_survives_its_way_through_the_client_ts32() {
        assert_eq!(encrypted("snip"), "k1.eyJ0Ijoic25pcCJ9");
        for snippet in ["", "snip", "\"é\\ 会\n"] {
            assert_eq!(snippet_of(&encrypted(snippet)).as_deref(), Some(snippet));
        }
        for other in ["", "k1.", "k1.e", "EqgfCioIARgBIiQ3YTAw", "k1.eyJ0Ijoic25pcC", "k1.eyJ0IjoxfQ"] {
            assert_eq!(snippet_of(other), None, "{other}");
        }
    }

    #[test]
    fn content_is_what_the_api_says_ts32() {
        let mut out = Vec::new();
        let hit = Hit { url: "https://a.test/".into(), title: "T".into(), snippet: "snip".into(), page_age: None };
        write_content(&Ok(vec![hit.clone(), Hit { page_age: Some("October 5, 2026".into()), ..hit }]), &mut out);
        let hit = r#"{"type":"web_search_result","url":"https://a.test/","title":"T","encrypted_content":"k1.eyJ0Ijoic25pcCJ9","page_age":"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("[{hit}null}},{hit}\"October 5, 2026\"}}]"));
        let mut out = Vec::new();
        write_content(&Err(SearchCode::TooManyRequests), &mut out);
        assert_eq!(out, br#"{"type":"web_search_tool_result_error","error_code":"too_many_requests"}"#);
    }
}
