//! Web search between both sides: the query, the filter of domains, and the text of the results (TR53, TR54).

use std::borrow::Cow;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::tools::upstream_id;
use crate::proto::json::tree::{JsonTree, Value, ValueKind};
use crate::proto::kiro::search::MAX_QUERY;
use crate::proto::messages::request::SearchTool;
use crate::proto::messages::search::{Hit, SearchCode, SearchOutcome, snippet_of};
use crate::proto::record::hex;

/// Longest text of one search's results, in characters.
const MAX_TEXT: usize = 20_000;

/// In front of the ids that clients see of searches, and of those that upstream gives calls.
const CLIENTS: &str = "srvtoolu_";
const UPSTREAMS: &str = "tooluse_";

/// The id of a search's use block (TS30): upstream's without `tooluse_` where clients take that, else one made of its
/// hash.
pub(super) fn use_id(id: &str, message_id: &str) -> String {
    let own = id.strip_prefix(UPSTREAMS).unwrap_or(id);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if (1..=64).contains(&own.len()) && own.bytes().all(is_plain) {
        return format!("{CLIENTS}{own}");
    }
    let digest = Sha256::new().chain_update(message_id).chain_update(id).finalize();
    format!("{CLIENTS}{}", hex(digest.get(..12).unwrap_or_default()))
}

/// The id upstream knows a search by (TR52): that of its block, turned back.
pub(super) fn upstream_use_id(id: &str) -> Cow<'_, str> {
    match id.strip_prefix(CLIENTS) {
        Some(own) => upstream_id(&format!("{UPSTREAMS}{own}")).into_owned().into(),
        None => upstream_id(id),
    }
}

/// The query that goes upstream: the model's, without blanks around it, cut at the last blank before 200 characters.
/// None when nothing is left: there is no call, and the outcome is [`SearchCode::InvalidToolInput`] (TR54).
pub fn query(given: &str) -> Option<&str> {
    let given = given.trim();
    let query = match given.char_indices().nth(MAX_QUERY) {
        None => given,
        Some((end, next)) => {
            let cut = &given[..end];
            match cut.rfind(char::is_whitespace) {
                Some(blank) if !next.is_whitespace() => cut[..blank].trim_end(),
                _ => cut,
            }
        }
    };
    Some(query).filter(|query| !query.is_empty())
}

/// The query in a tool use's input, as JSON text (TR54).
pub fn query_of_input(input: &str) -> Option<String> {
    query_of(Some(JsonTree::parse(input.as_bytes()).ok()?.root()))
}

/// The same, of a use in history.
pub(super) fn query_of(input: Option<Value<'_, '_>>) -> Option<String> {
    query(&input?.member("query")?.text()?.decode()).map(str::to_owned)
}

/// Leaves out the results that the client doesn't want to see (TR54).
pub fn filter(hits: &mut Vec<Hit>, tool: &SearchTool) {
    hits.retain(|hit| {
        let is_below = |domain: &String| is_at(&hit.url, domain);
        (tool.allowed_domains.is_empty() || tool.allowed_domains.iter().any(is_below))
            && !tool.blocked_domains.iter().any(is_below)
    });
}

/// Whether an address lies at a domain or below it, and below its path, in which a `*` stands for anything.
fn is_at(url: &str, domain: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let (wanted, prefix) = domain.split_once('/').unwrap_or((domain, ""));
    let wanted = wanted.trim_end_matches('.').to_ascii_lowercase();
    let is_host = host.strip_suffix(&wanted).is_some_and(|before| before.is_empty() || before.ends_with('.'));
    let path = path.strip_prefix('/').unwrap_or(path);
    let is_path = match prefix.split_once('*') {
        Some((before, behind)) => path.strip_prefix(before).is_some_and(|rest| rest.contains(behind)),
        None => path.starts_with(prefix),
    };
    is_host && is_path
}

/// The text of a search's results for the model, the same when they are new and when history holds them (TR53).
pub(super) fn text(query: &str, outcome: &SearchOutcome) -> String {
    let hits = match outcome {
        Err(code) => return format!("The search failed: {}.", code.as_str()),
        Ok(hits) if hits.is_empty() => return "No results.".to_owned(),
        Ok(hits) => hits,
    };
    let mut text = format!("Web search results for \"{query}\":");
    let mut left = MAX_TEXT.saturating_sub(text.chars().count());
    let mut one = String::new();
    for (place, Hit { url, title, snippet, page_age }) in hits.iter().enumerate() {
        one.clear();
        // Writing into a String can't fail.
        let _ = write!(one, "\n\n[{}] {title}\n{url}", place + 1);
        if let Some(age) = page_age {
            let _ = write!(one, " · {age}");
        }
        if !snippet.is_empty() {
            let _ = write!(one, "\n{snippet}");
        }
        let Some(rest) = left.checked_sub(one.chars().count()) else { break };
        left = rest;
        text.push_str(&one);
    }
    text
}

/// The outcome that a `web_search_tool_result` block's `content` holds. A part that can't be read counts as absent
/// (TR52).
pub(super) fn outcome_of(content: Value<'_, '_>) -> SearchOutcome {
    let string = |of: Value<'_, '_>, name: &str| {
        let member = of.member(name).filter(|member| member.kind() == ValueKind::String)?;
        Some(member.text()?.into_decoded().into_owned())
    };
    if content.kind() != ValueKind::Array {
        let code = string(content, "error_code").unwrap_or_default();
        let known = SearchCode::ALL.into_iter().find(|known| known.as_str() == code);
        return Err(known.unwrap_or(SearchCode::Unavailable));
    }
    let hits = content.elements().filter(|hit| hit.kind() == ValueKind::Object);
    let hits = hits.filter_map(|hit| {
        let url = string(hit, "url")?;
        let encrypted = string(hit, "encrypted_content");
        Some(Hit {
            title: string(hit, "title").unwrap_or_else(|| url.clone()),
            url,
            snippet: encrypted.and_then(|encrypted| snippet_of(&encrypted)).unwrap_or_default(),
            page_age: string(hit, "page_age"),
        })
    });
    Ok(hits.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_is_cut_at_the_last_blank_before_200_characters_a148_tr54() {
        assert_eq!(query(" x y\n"), Some("x y"));
        assert_eq!(query(" \n "), None);
        let long = "word ".repeat(60);
        assert_eq!(query(&long).map(str::len), Some(199));
        assert_eq!(query(&format!("{} b", "é".repeat(200))), Some(&*"é".repeat(200)));
        assert_eq!(query(&"é".repeat(300)).map(|query| query.chars().count()), Some(200));
        for (input, expected) in [
            (r#"{"query":" x "}"#, Some("x")),
            // Half of a surrogate pair, and a number that we don't take.
            (r#"{"query":"x\ud83d","n":1e999}"#, Some("x\u{fffd}")),
            (r#"{"query":"\u0020\n"}"#, None),
            (r#"{"query":1}"#, None),
            (r#"{"query":" "}"#, None),
            (r#"{"q":"x"}"#, None),
            ("[]", None),
            (r#"{"query":"x"#, None),
        ] {
            assert_eq!(query_of_input(input).as_deref(), expected, "{input}");
        }
    }

    #[test]
    fn ids_of_searches_lead_back_ts30_tr52() {
        assert_eq!(use_id("tooluse_A1", "m"), "srvtoolu_A1");
        assert_eq!(upstream_use_id("srvtoolu_A1"), "tooluse_A1");
        let other = use_id("call-1", "m");
        assert_eq!(other.len(), "srvtoolu_".len() + 24);
        assert_ne!(other, use_id("call-1", "n"));
        assert_eq!(upstream_use_id(&other), other.replace("srvtoolu_", "tooluse_"));
        assert_eq!(upstream_use_id("other"), "other");
    }

    fn at(url: &str) -> Hit {
        Hit { url: url.to_owned(), ..Hit::default() }
    }

    #[test]
    fn domains_hold_for_hosts_below_and_paths_below_a145_a146_tr54() {
        let kept = |allowed: &[&str], blocked: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|&domain| domain.to_owned()).collect();
            let tool = SearchTool {
                allowed_domains: owned(allowed),
                blocked_domains: owned(blocked),
                ..SearchTool::default()
            };
            let urls = [
                "https://a.test/x/y",
                "http://www.A.test:8080",
                "https://ba.test/x",
                "https://a.test.evil/",
                "https://b.test?a.test",
            ];
            let mut hits: Vec<Hit> = urls.map(at).into();
            filter(&mut hits, &tool);
            hits.iter().map(|hit| urls.iter().position(|url| *url == hit.url).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(kept(&[], &[]), [0, 1, 2, 3, 4]);
        assert_eq!(kept(&["a.test"], &[]), [0, 1]);
        assert_eq!(kept(&["A.TEST/x", "b.test"], &[]), [0, 4]);
        assert_eq!(kept(&[], &["a.test/x", "evil"]), [1, 2, 4]);
        assert_eq!(kept(&["c.test"], &[]), [0; 0]);
        assert_eq!(kept(&["a.test/*"], &[]), [0, 1]);
        assert_eq!(kept(&["a.test/*/y", "a.test/*/x"], &[]), [0]);
        assert_eq!(kept(&["a.test/x*z", "b.test/"], &[]), [4]);
        assert_eq!(kept(&[], &["a.test/*"]), [2, 3, 4]);
    }

    #[test]
    fn only_whole_results_that_fit_are_told_tr53() {
        let hits = |count| vec![Hit { title: "T".into(), snippet: "é".repeat(2_000), ..at("https://a.test/") }; count];
        assert_eq!(
            text("x", &Ok(hits(1))),
            format!("Web search results for \"x\":\n\n[1] T\nhttps://a.test/\n{}", "é".repeat(2_000))
        );
        let ten = text("x", &Ok(hits(10)));
        assert!(ten.chars().count() <= MAX_TEXT && ten.contains("\n[9] ") && !ten.contains("\n[10] "));
        assert_eq!(text("x", &Ok(vec![])), "No results.");
        assert_eq!(text("x", &Err(SearchCode::MaxUsesExceeded)), "The search failed: max_uses_exceeded.");
    }

    proptest! {
        #[test]
        fn any_query_and_domain_keep_the_limits_tr54(given in ".{0,400}", url in ".{0,60}", domain in ".{1,20}") {
            if let Some(query) = query(&given) {
                prop_assert!(query.chars().count() <= MAX_QUERY && !query.trim().is_empty());
                prop_assert!(given.contains(query));
            }
            let _ = is_at(&url, &domain);
        }
    }
}
