//! Kiro's web search: the call of its tool and the answer (K132–K135).

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::fault::{Fault, FaultKind};
use crate::proto::json::object::quote;
use crate::proto::messages::search::{Hit, SearchCode};

/// The tool's description towards the model (K133).
pub const DESCRIPTION: &str = "Searches the web and returns titles, addresses, dates and excerpts of the pages it found. \
     Use it for facts that may have changed since your training, and for what you don't know. Search for one thing at a \
     time, in at most 200 characters.";
/// Its input (K133), compact.
pub const SCHEMA: &str = r#"{"type":"object","properties":{"query":{"type":"string"}},"required":["query"]}"#;
/// Longest query that upstream takes, in characters.
pub const MAX_QUERY: usize = 200;
/// Most bytes of an answer that are read.
pub const MAX_ANSWER: usize = 1024 * 1024;
/// Most results that are kept (K134).
const MAX_HITS: usize = 10;
/// Longest title, address and excerpt of a result, in characters.
const MAX_TITLE: usize = 300;
const MAX_URL: usize = 2048;
const MAX_SNIPPET: usize = 2000;
/// The target that hosts know which don't know `KiroRuntimeService.InvokeMCP` (K132).
pub const OLDER_TARGET: &str = "AmazonCodeWhispererStreamingService.InvokeMCP";

/// The body of a call of upstream's tools (K132). `id` names the call, `params` is JSON; `profile_arn` only where the body
/// has it, in the shape `runtime`.
pub fn body(id: &str, method: &str, params: &str, profile_arn: Option<&str>) -> String {
    let arn = profile_arn.map(|arn| format!(",\"profileArn\":{}", quote(arn))).unwrap_or_default();
    format!("{{\"id\":{},\"jsonrpc\":\"2.0\",\"method\":\"{method}\",\"params\":{params}{arn}}}", quote(id))
}

/// The `params` of a search, a `tools/call` (K132).
pub fn params(query: &str) -> String {
    format!("{{\"name\":\"web_search\",\"arguments\":{{\"query\":{}}}}}", quote(query))
}

/// The id of a call. `random` gives characters of `[0-9A-Za-z]`.
pub fn call_id(mut random: impl FnMut() -> char, now: Timestamp) -> String {
    let mut letters = |count| std::iter::repeat_with(&mut random).take(count).collect::<String>();
    let (long, short) = (letters(22), letters(8));
    format!("web_search_tooluse_{long}_{}_{short}", now.as_millisecond())
}

/// Why an answer with status 200 has no results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoResults {
    /// Upstream has no such tool here: −32601.
    NoTool,
    /// It refuses the query: −32602.
    Refused,
    /// The search itself failed.
    Failed,
    /// It isn't an answer of this protocol, or one with an inner error of upstream's.
    Unreadable,
}

/// The results in an answer (K134).
///
/// # Errors
/// There are none, for one of [`NoResults`]' reasons. An empty list is no error.
pub fn read(answer: &[u8]) -> Result<Vec<Hit>, NoResults> {
    let answer: Value = serde_json::from_slice(answer).map_err(|_| NoResults::Unreadable)?;
    if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
        return Err(match error.get("code").and_then(Value::as_i64) {
            Some(-32601) => NoResults::NoTool,
            Some(-32602) => NoResults::Refused,
            _ => NoResults::Unreadable,
        });
    }
    let result = answer.get("result").ok_or(NoResults::Unreadable)?;
    if result.get("isError").and_then(Value::as_bool) == Some(true) {
        return Err(NoResults::Failed);
    }
    let parts = result.get("content").and_then(Value::as_array).into_iter().flatten();
    let text = parts.filter_map(|part| part.get("text")?.as_str()).next().ok_or(NoResults::Unreadable)?;
    let found: Value = serde_json::from_str(text).map_err(|_| NoResults::Unreadable)?;
    let found = found.as_object().ok_or(NoResults::Unreadable)?;
    // A JSON null and an empty text say that nothing went wrong.
    if found.get("error").is_some_and(|error| !error.is_null() && error != "") {
        return Err(NoResults::Failed);
    }
    let results = found.get("results").and_then(Value::as_array);
    Ok(results.into_iter().flatten().filter_map(hit).take(MAX_HITS).collect())
}

fn hit(result: &Value) -> Option<Hit> {
    let text = |name: &str| result.get(name).and_then(Value::as_str).map(str::trim).unwrap_or_default();
    let url = text("url");
    let has_scheme = |scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let is_address = (has_scheme("http://") || has_scheme("https://"))
        && url.chars().nth(MAX_URL).is_none()
        && !url.contains(|char: char| char.is_whitespace() || char.is_control());
    if !is_address {
        return None;
    }
    let title = Some(one_line(text("title"))).filter(|title| !title.is_empty()).unwrap_or_else(|| url.into());
    let words = result.get("maxVerbatimWordLimit").and_then(Value::as_u64);
    Some(Hit {
        url: url.to_owned(),
        title: first_chars(&title, MAX_TITLE).to_owned(),
        snippet: first_words(first_chars(text("snippet"), MAX_SNIPPET), words).to_owned(),
        page_age: result.get("publishedDate").and_then(Value::as_i64).and_then(day),
    })
}

/// A title is one line of the text that the model reads.
fn one_line(title: &str) -> Cow<'_, str> {
    match title.contains(|char: char| char.is_control()) {
        true => title.replace(|char: char| char.is_control(), " ").into(),
        false => title.into(),
    }
}

fn first_chars(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(end, _)| &text[..end])
}

/// The text up to the end of its `most`th word.
fn first_words(text: &str, most: Option<u64>) -> &str {
    let Some(most) = most.and_then(|most| usize::try_from(most).ok()) else { return text };
    let mut words = 0;
    let mut in_word = false;
    for (at, char) in text.char_indices() {
        if char.is_whitespace() {
            if in_word && words >= most {
                return &text[..at];
            }
            in_word = false;
        } else if !in_word {
            if words >= most {
                return text[..at].trim_end();
            }
            words += 1;
            in_word = true;
        }
    }
    text
}

/// `October 5, 2026`, of milliseconds since 1970.
fn day(milliseconds: i64) -> Option<String> {
    let day = Timestamp::from_millisecond(milliseconds).ok()?.to_zoned(TimeZone::UTC);
    Some(day.strftime("%B %-d, %Y").to_string())
}

/// The step after a search that brought nothing (K135).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Another account, once.
    OtherAccount {
        /// This account isn't asked for ten minutes.
        rests: bool,
        /// For the client, when there is no other.
        code: SearchCode,
    },
    /// The same account, once.
    Again,
    /// The same account with a new token, once.
    Refresh,
    /// The account is suspended: it is marked as such. Another account, once.
    Suspended,
    /// The search has failed.
    Give(SearchCode),
}

impl Step {
    /// The step after a fault. It is total.
    pub fn after(fault: &Fault) -> Self {
        let resting = Self::OtherAccount { rests: true, code: SearchCode::Unavailable };
        match (fault.kind, fault.status) {
            (FaultKind::TokenRejected, _) => Self::Refresh,
            (FaultKind::Suspended, _) => Self::Suspended,
            (FaultKind::ClientVersion | FaultKind::ProfileArn | FaultKind::Endpoint, _) => resting,
            (_, Some(429)) | (FaultKind::RateLimited | FaultKind::Suspicious, _) => {
                Self::OtherAccount { rests: false, code: SearchCode::TooManyRequests }
            }
            (FaultKind::Forbidden | FaultKind::QuotaDay | FaultKind::QuotaMonth, _) | (_, Some(403..=405 | 410)) => {
                resting
            }
            (_, Some(400..=499)) => Self::Give(SearchCode::InvalidToolInput),
            _ => Self::Again,
        }
    }

    /// The step after an answer without results.
    pub fn after_answer(no: NoResults) -> Self {
        match no {
            NoResults::NoTool => Self::OtherAccount { rests: true, code: SearchCode::Unavailable },
            NoResults::Refused => Self::Give(SearchCode::InvalidToolInput),
            NoResults::Failed => Self::Give(SearchCode::Unavailable),
            NoResults::Unreadable => Self::Again,
        }
    }

    /// For the client, when this step can't be taken.
    pub fn code(self) -> SearchCode {
        match self {
            Self::OtherAccount { code, .. } | Self::Give(code) => code,
            Self::Again | Self::Refresh | Self::Suspended => SearchCode::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::proto::said::KnownSecrets;

    #[test]
    fn the_body_is_a_call_of_the_tool_k132() {
        let letters = format!("{}12345678", "a".repeat(22));
        let mut letters = letters.chars();
        let id = call_id(|| letters.next().unwrap(), Timestamp::UNIX_EPOCH);
        assert_eq!(id, "web_search_tooluse_aaaaaaaaaaaaaaaaaaaaaa_0_12345678");
        let plain = r#"{"id":"i","jsonrpc":"2.0","method":"tools/call","params":{"name":"web_search","arguments":{"query":"a \"q\"\n会"}}"#;
        let body = |arn| body("i", "tools/call", &params("a \"q\"\n会"), arn);
        assert_eq!(body(None), format!("{plain}}}"));
        assert_eq!(body(Some("arn")), format!("{plain},\"profileArn\":\"arn\"}}"));
    }

    fn answer(text: &str) -> Vec<u8> {
        json!({ "id": "i", "jsonrpc": "2.0", "result": { "content": [{ "type": "text", "text": text }], "isError": false } })
            .to_string()
            .into_bytes()
    }

    fn results(results: Value) -> Result<Vec<Hit>, NoResults> {
        read(&answer(&json!({ "results": results, "totalResults": 1, "query": "q", "error": null }).to_string()))
    }

    #[test]
    fn results_are_read_and_cut_k134() {
        let full = json!({
            "title": " T\nU ", "url": "https://a.test/x", "snippet": "one two  three", "publishedDate": 1_791_158_400_000_i64,
            "domain": "a.test", "id": "1", "maxVerbatimWordLimit": 2, "publicDomain": false,
        });
        let hit = Hit {
            url: "https://a.test/x".into(),
            title: "T U".into(),
            snippet: "one two".into(),
            page_age: Some("October 5, 2026".into()),
        };
        assert_eq!(results(json!([full])), Ok(vec![hit]));
        let long = json!({ "title": "é".repeat(400), "url": "HTTP://a", "snippet": "会".repeat(3_000), "publishedDate": null });
        let cut = results(json!([long])).unwrap();
        assert_eq!((cut[0].title.chars().count(), cut[0].snippet.chars().count()), (300, 2_000));
        assert_eq!(cut[0].page_age, None);
        assert_eq!(results(Value::from(vec![json!({ "url": "http://a" }); 30])).unwrap().len(), 10);
        assert_eq!(results(json!([{ "url": "http://a" }])).unwrap()[0].title, "http://a");
    }

    #[test]
    fn what_is_no_result_is_left_out_k134() {
        for url in [
            "",
            "ftp://a",
            "javascript:alert(1)",
            "a.test",
            "https://a b",
            "https://a\u{0}",
            &format!("http://{}", "a".repeat(2_048)),
        ] {
            assert_eq!(results(json!([{ "url": url, "title": "T" }])), Ok(vec![]), "{url}");
        }
        for none in [json!(null), json!([]), json!([null, 1, "x", {}])] {
            assert_eq!(results(none.clone()), Ok(vec![]), "{none}");
        }
        assert_eq!(read(&answer("{}")), Ok(vec![]));
    }

    #[test]
    fn an_answer_without_results_says_why_k134_k135() {
        let error =
            |code: i64| json!({ "id": "i", "jsonrpc": "2.0", "error": { "code": code, "message": "m" } }).to_string();
        for (answer, why) in [
            (error(-32601).into_bytes(), NoResults::NoTool),
            (error(-32602).into_bytes(), NoResults::Refused),
            (error(-32603).into_bytes(), NoResults::Unreadable),
            (br#"{"result":{"content":[{"type":"text","text":"{}"}],"isError":true}}"#.to_vec(), NoResults::Failed),
            (answer(r#"{"results":null,"error":"down"}"#), NoResults::Failed),
            (answer("no JSON"), NoResults::Unreadable),
            (answer("[]"), NoResults::Unreadable),
            (br#"{"result":{"content":[]}}"#.to_vec(), NoResults::Unreadable),
            (b"{}".to_vec(), NoResults::Unreadable),
            (b"<html>".to_vec(), NoResults::Unreadable),
            (Vec::new(), NoResults::Unreadable),
        ] {
            assert_eq!(read(&answer), Err(why), "{}", String::from_utf8_lossy(&answer));
        }
    }

    #[test]
    fn every_fault_has_its_step_k135() {
        let fault =
            |status, body: &str| Fault::from_http(status, None, None, body.as_bytes(), false, &KnownSecrets::default());
        let other = |rests, code| Step::OtherAccount { rests, code };
        let rests = other(true, SearchCode::Unavailable);
        for (status, body, step) in [
            (429, r#"{"__type":"ThrottlingException","message":"m"}"#, other(false, SearchCode::TooManyRequests)),
            (403, r#"{"__type":"AccessDeniedException","message":"User is not authorized to make this call."}"#, rests),
            (404, "", rests),
            (405, "", rests),
            (400, r#"{"__type":"UnknownOperationException"}"#, rests),
            (400, r#"{"__type":"ValidationException","message":"profileArn is required for this request."}"#, rests),
            (400, r#"{"__type":"ValidationException","message":"m"}"#, Step::Give(SearchCode::InvalidToolInput)),
            (500, "{}", Step::Again),
            (503, "", Step::Again),
            (200, "<html>", Step::Again),
        ] {
            assert_eq!(Step::after(&fault(status, body)), step, "{status} {body}");
        }
        let of = |kind| Step::after(&Fault { kind, ..Fault::network("m") });
        assert_eq!(of(FaultKind::TokenRejected), Step::Refresh);
        assert_eq!(of(FaultKind::Suspended), Step::Suspended);
        assert_eq!(of(FaultKind::ClientVersion), rests);
        for passing in [FaultKind::Network, FaultKind::Timeout, FaultKind::Unreachable, FaultKind::Protocol] {
            assert_eq!(of(passing), Step::Again, "{passing}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_every_result_keeps_the_limits_k134(
            title in ".{0,400}", url in "(https?://)?.{0,40}", snippet in ".{0,2100}", words in proptest::option::of(0_u64..500),
            date in proptest::option::of(any::<i64>()), bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = read(&bytes);
            let _ = read(&answer(&String::from_utf8_lossy(&bytes)));
            let result = json!({
                "title": title, "url": url, "snippet": snippet, "maxVerbatimWordLimit": words, "publishedDate": date,
            });
            for hit in results(json!([result])).unwrap() {
                prop_assert!(hit.title.chars().count() <= 300 && !hit.title.is_empty());
                prop_assert!(!hit.title.contains('\n'));
                prop_assert!(hit.snippet.chars().count() <= 2_000);
                let most = words.unwrap_or(u64::MAX);
                prop_assert!(hit.snippet.split_whitespace().count() as u64 <= most);
                prop_assert!(snippet.contains(&hit.snippet));
            }
        }
    }
}
