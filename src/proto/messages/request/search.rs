//! Anthropic's tool `web_search` in a request (M87).

use super::value::{Path, Result, array, fields, integer_from, not_empty_string, object, required, string};
use crate::proto::json::tree::{Text, Value};
use crate::proto::messages::search::WEB_SEARCH;

/// How the client wants the web to be searched (M87).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchTool {
    /// `type`: `web_search_20250305`, or a later one.
    pub kind: String,
    /// Most searches of a message.
    pub max_uses: Option<u64>,
    /// Only these domains, each with or without a path. Empty: all.
    pub allowed_domains: Vec<String>,
    /// None of these. Empty when `allowed_domains` isn't.
    pub blocked_domains: Vec<String>,
    /// Where the user is.
    pub location: Option<UserLocation>,
    /// Where it stands in the client's JSON.
    pub(crate) path: String,
    /// The list of tools held none of the client's.
    pub(crate) alone: bool,
}

/// `user_location`; everything in it is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserLocation {
    /// `city`.
    pub city: Option<String>,
    /// `region`.
    pub region: Option<String>,
    /// `country`.
    pub country: Option<String>,
    /// `timezone`.
    pub timezone: Option<String>,
}

/// Whether it is the `type` of a web search that is served: `web_search_20250305` or a later date.
pub(super) fn is_search(kind: &str) -> bool {
    kind.strip_prefix("web_search_")
        .is_some_and(|date| date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit()) && date >= "20250305")
}

/// Reads a tool of this type.
pub(super) fn read_search(kind: &str, tool: Value<'_, '_>, at: Path<'_>) -> Result<SearchTool> {
    let [name, max_uses, allowed, blocked, location, callers] =
        fields(tool, ["name", "max_uses", "allowed_domains", "blocked_domains", "user_location", "allowed_callers"]);
    let name_at = at.field("name");
    if !string(required(name, name_at)?, name_at)?.is(WEB_SEARCH) {
        return Err(name_at.error(format!("must be '{WEB_SEARCH}'")));
    }
    let max_uses = max_uses.map(|uses| integer_from(1, uses, at.field("max_uses"))).transpose()?;
    let allowed_domains = domains(allowed, at.field("allowed_domains"))?;
    let blocked_at = at.field("blocked_domains");
    let blocked_domains = domains(blocked, blocked_at)?;
    if !allowed_domains.is_empty() && !blocked_domains.is_empty() {
        return Err(blocked_at.error("not together with allowed_domains"));
    }
    let location = location.map(|location| user_location(location, at.field("user_location"))).transpose()?;
    if let Some(callers) = callers {
        let at = at.field("allowed_callers");
        let mut direct = false;
        for (index, caller) in array(callers, at)?.elements().enumerate() {
            direct |= string(caller, at.index(index))?.is("direct");
        }
        if !direct {
            return Err(at.error("code execution isn't served, allow 'direct'"));
        }
    }
    // Anthropic filters the results of these by running code.
    if kind >= "web_search_20260209" {
        at.field("type").ignored_as(kind);
    }
    let (kind, path) = (kind.to_owned(), at.to_string());
    Ok(SearchTool { kind, max_uses, allowed_domains, blocked_domains, location, path, alone: false })
}

fn domains(list: Option<Value<'_, '_>>, at: Path<'_>) -> Result<Vec<String>> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let read = |(index, domain)| {
        let at = at.index(index);
        let domain = not_empty_string(domain, at)?;
        let (host, path) = domain.split_once('/').unwrap_or((&domain, ""));
        if domain.contains("://") {
            return Err(at.error("must be a domain without a scheme"));
        }
        if host.contains('*') || path.matches('*').count() > 1 {
            return Err(at.error("may have one '*', in its path; a domain holds for all below it"));
        }
        Ok(domain.into_owned())
    };
    array(list, at)?.elements().enumerate().map(read).collect()
}

fn user_location(location: Value<'_, '_>, at: Path<'_>) -> Result<UserLocation> {
    let [kind, city, region, country, timezone] =
        fields(object(location, at)?, ["type", "city", "region", "country", "timezone"]);
    let kind_at = at.field("type");
    if !string(required(kind, kind_at)?, kind_at)?.is("approximate") {
        return Err(kind_at.error("must be 'approximate'"));
    }
    let text = |value: Option<Value<'_, '_>>, name| {
        let text = value.map(|value| string(value, at.field(name)).map(Text::into_decoded)).transpose()?;
        Ok(text.filter(|text| !text.trim().is_empty()).map(Into::into))
    };
    Ok(UserLocation {
        city: text(city, "city")?,
        region: text(region, "region")?,
        country: text(country, "country")?,
        timezone: text(timezone, "timezone")?,
    })
}
