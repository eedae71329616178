//! InvokeMCP (K7): one tool, `web_search`, whose results are made from the query.

use std::time::Duration;

use serde_json::{Value, json};

use super::reply::HttpReply;
use super::world::{Search, SimWorld};

/// The answer to a call, and the query of its search.
pub(super) struct McpAnswer {
    pub reply: HttpReply,
    pub query: Option<String>,
    /// Before the answer.
    pub wait: Duration,
}

/// Answers `tools/list` and `tools/call`.
pub(super) fn answer(request: &Value, world: &SimWorld) -> McpAnswer {
    let wait = if let Search::Slow(ms) = world.search { Duration::from_millis(ms) } else { Duration::ZERO };
    let id = &request["id"];
    let plain = |reply| McpAnswer { reply, query: None, wait };
    let failed = |code: i64, message: &str| {
        HttpReply::json(200, &json!({ "id": id, "jsonrpc": "2.0", "error": { "code": code, "message": message } }))
    };
    let result = |result: Value| HttpReply::json(200, &json!({ "id": id, "jsonrpc": "2.0", "result": result }));
    if request["jsonrpc"] != "2.0" || !id.is_string() {
        return plain(failed(-32600, "Invalid request"));
    }
    let arguments = &request["params"]["arguments"];
    match request["method"].as_str() {
        Some("initialize") => {
            let server = json!({ "name": "simulated", "version": "1" });
            plain(result(
                json!({ "protocolVersion": "2025-03-26", "capabilities": { "tools": {} }, "serverInfo": server }),
            ))
        }
        Some("tools/list") => {
            let schema = json!({
                "type": "object", "properties": { "query": { "type": "string" } }, "required": ["query"],
            });
            let tool =
                json!({ "name": "web_search", "description": "Searches the web (simulated).", "inputSchema": schema });
            plain(result(json!({ "tools": [tool] })))
        }
        Some("tools/call") if request["params"]["name"] == "web_search" => match arguments["query"].as_str() {
            Some(query) if !query.trim().is_empty() && query.chars().count() <= 200 => {
                let reply = found(query, world, &result, &failed);
                McpAnswer { reply, query: Some(query.to_owned()), wait }
            }
            _ => plain(failed(-32602, "Invalid params: query is 1 to 200 characters")),
        },
        _ => plain(failed(-32601, "Method not found")),
    }
}

fn found(
    query: &str,
    world: &SimWorld,
    result: &dyn Fn(Value) -> HttpReply,
    failed: &dyn Fn(i64, &str) -> HttpReply,
) -> HttpReply {
    let text = |text: String, is_error: bool| {
        result(json!({ "content": [{ "type": "text", "text": text }], "isError": is_error }))
    };
    let answer = |results: Value, count: usize| {
        text(json!({ "results": results, "totalResults": count, "query": query, "error": null }).to_string(), false)
    };
    match world.search {
        Search::Rate => HttpReply::error(429, "ThrottlingException", None, "Too many requests."),
        Search::Forbidden => {
            HttpReply::error(403, "AccessDeniedException", None, "User is not authorized to make this call.")
        }
        Search::Error => HttpReply::error(500, "InternalServerException", None, "The search failed."),
        Search::Invalid => failed(-32602, "Invalid params"),
        Search::BadJson => text("{\"results\":[".to_owned(), false),
        Search::Empty => answer(json!([]), 0),
        Search::Null => answer(Value::Null, 0),
        Search::Found | Search::Slow(_) => {
            let word: String = query.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
            let results: Vec<Value> =
                (1..=world.results.min(10)).map(|n| one(query, &word.to_lowercase(), n)).collect();
            let count = results.len();
            answer(results.into(), count)
        }
    }
}

fn one(query: &str, word: &str, n: usize) -> Value {
    let domain = format!("site{n}.test");
    json!({
        "title": format!("{query} ({n})"), "url": format!("https://{domain}/{word}"),
        "snippet": format!("What a simulated page {n} says about {query}."),
        // 5 October 2026, and the days before.
        "publishedDate": 1_791_158_400_000_i64 - 86_400_000 * (n as i64 - 1),
        "domain": domain, "id": format!("sim-{n}"), "maxVerbatimWordLimit": 200, "publicDomain": false,
    })
}
