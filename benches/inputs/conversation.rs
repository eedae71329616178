//! A coding agent's conversation: prose, tool calls, long results.

use serde_json::{Value, json};

pub const ENGLISH: &str = "The cache is keyed by the hash of the request, so two callers that ask for the same page at the \
    same moment share one fetch. I looked at the log of last night: the retries all came from a single worker, and \
    each of them waited the full thirty seconds before it gave up.\n\n";
pub const CODE: &str = "    pub fn insert(&mut self, key: K, value: V) -> Option<V> {\n        let hash = \
    self.hasher.hash_one(&key);\n        match self.table.find(hash, |(k, _)| *k == key) {\n            \
    Some(bucket) => Some(std::mem::replace(&mut bucket.1, value)),\n            None => { self.table.insert(hash, \
    (key, value)); None }\n        }\n    }\n\n    // \"quoted\" and <tagged>\n";
pub const CHINESE: &str = "缓存以请求的哈希值为键，因此同一时刻请求同一页面的两个调用者只会触发一次读取。\n";

/// A request of about `size` bytes, with 40 tools.
pub fn conversation(size: usize) -> Value {
    let tools: Vec<Value> = (0..40).map(tool).collect();
    let mut messages = vec![json!({"role": "user", "content": "Please find out why the retries are so slow."})];
    let mut written = 100_000;
    let mut turn = 0;
    while written < size {
        let result = format!("{}{}", CODE.repeat(8 + turn % 13), if turn % 5 == 0 { CHINESE } else { ENGLISH });
        written += result.len() * 21 / 20 + 700;
        messages.push(json!({"role": "assistant", "content": [
            {"type": "text", "text": ENGLISH},
            {"type": "tool_use", "id": format!("toolu_{turn:024}"), "name": format!("tool_{}", turn % 40),
             "input": {"path": format!("/src/module_{turn}/file.rs"), "pattern": "fn \\w+<T>", "limit": 200, "context": 3}},
        ]}));
        messages.push(json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": format!("toolu_{turn:024}"), "content": result},
        ]}));
        turn += 1;
    }
    json!({
        "model": "claude-sonnet-4-5", "max_tokens": 32000, "stream": true,
        "system": [{"type": "text", "text": ENGLISH.repeat(40), "cache_control": {"type": "ephemeral"}}],
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "metadata": {"user_id": "{\"device_id\":\"d\",\"session_id\":\"13e2a96f-2434-496b-8db1-e2c1f1306470\"}"},
        "tools": tools, "messages": messages,
    })
}

fn tool(number: usize) -> Value {
    let properties: serde_json::Map<String, Value> = (0..6)
        .map(|place| {
            let property = json!({"type": "string", "description": "What to look for, as a regular expression.",
                "enum": ["content", "files_with_matches", "count"], "default": "content"});
            (format!("property_{place}"), property)
        })
        .collect();
    json!({
        "name": format!("tool_{number}"),
        "description": ENGLISH.repeat(3),
        "input_schema": {
            "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "properties": properties,
            "required": ["property_0"], "additionalProperties": false,
        },
    })
}
