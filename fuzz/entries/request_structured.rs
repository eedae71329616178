//! The request half over valid requests of every kind, with all that clients send and some that they shouldn't: the
//! entry of the fuzz target `request_structured` and of `tests/request_fuzz.rs`.

use kiro_messages::proto::messages::request::{Purpose, Request};
use serde_json::{Map, Value, json};

/// Any bytes as the recipe of a request. What it says must arrive: every user text, every assistant text, every
/// result, every paired tool use, every image that isn't old.
pub fn run(data: &[u8]) {
    let mut recipe = Recipe { bytes: data, marks: 0, results: 0 };
    let request = recipe.request();
    let body = serde_json::to_vec(&request).unwrap();
    let parsed = match Request::parse(&body, Purpose::Messages) {
        Ok(parsed) => parsed,
        Err(error) => {
            // The only things that the recipe gets wrong.
            let known =
                ["must not be empty", "first message must be 'user'", "must hold a 'user' message", "at most 5"];
            assert!(known.iter().any(|known| error.sentence.contains(known)), "{error}\n{request}");
            return;
        }
    };
    let translated = crate::request::check(&parsed);
    let text = translated["conversationState"].to_string();
    let mut times = vec![0; recipe.marks];
    for (at, _) in text.match_indices("mark") {
        let number: String = text[at + 4..].chars().take_while(char::is_ascii_digit).collect();
        times[number.parse::<usize>().unwrap()] += 1;
    }
    assert!(times.iter().all(|times| *times == 1), "{times:?}\n{request}\n{translated}");
}

struct Recipe<'a> {
    bytes: &'a [u8],
    /// How many texts there are that must arrive, once each.
    marks: usize,
    results: usize,
}

impl Recipe<'_> {
    fn request(&mut self) -> Value {
        let mut request = Map::new();
        request.insert("model".into(), "claude-sonnet-4-5".into());
        request.insert("max_tokens".into(), 100.into());
        match self.choice(4) {
            0 => drop(request.insert("system".into(), self.mark().into())),
            1 => drop(
                request.insert("system".into(), json!([{"type": "text", "text": self.mark(), "cache_control": {}}])),
            ),
            _ => {}
        }
        let tools: Vec<Value> = (0..self.choice(4)).map(|_| self.tool()).collect();
        let has_client_tool = tools.iter().any(|tool| tool.get("type").is_none());
        if tools.is_empty() || has_client_tool {
            request.insert("tools".into(), tools.into());
        }
        match self.choice(6) {
            0 if has_client_tool => drop(request.insert("tool_choice".into(), json!({"type": "any"}))),
            1 => drop(request.insert("tool_choice".into(), json!({"type": "none"}))),
            _ => {}
        }
        match self.choice(4) {
            0 => drop(request.insert("thinking".into(), json!({"type": "enabled", "budget_tokens": 2000}))),
            1 => drop(request.insert("thinking".into(), json!({"type": "adaptive"}))),
            _ => {}
        }
        let mut messages = vec![json!({"role": "user", "content": self.mark()})];
        while !self.bytes.is_empty() && messages.len() < 40 {
            messages.push(self.message());
        }
        request.insert("messages".into(), messages.into());
        request.into()
    }

    fn message(&mut self) -> Value {
        let role = ["user", "assistant", "user", "assistant", "system"][self.choice(5)];
        let content: Value = match self.choice(6) {
            0 => self.mark().into(),
            1 if role == "assistant" => "{".into(),
            2 if role == "assistant" => (0..self.choice(12)).map(|_| self.search_or_text()).collect(),
            _ => {
                let mut blocks: Vec<Value> = (0..self.choice(5)).filter_map(|_| self.block(role)).collect();
                if role != "assistant" && blocks.is_empty() {
                    blocks.push(json!({"type": "text", "text": self.mark()}));
                }
                blocks.into()
            }
        };
        json!({"role": role, "content": content})
    }

    fn block(&mut self, role: &str) -> Option<Value> {
        let mut block = match (role, self.choice(8)) {
            ("system", _) | (_, 0) => json!({"type": "text", "text": self.mark()}),
            (_, 1) => json!({"type": "text", "text": self.one_of(&["", " ", "\n"])}),
            ("user", 2) => self.image(),
            ("user", 3) => self.document(),
            ("user", 4) => {
                let texts = [json!({"type": "text", "text": self.mark()})];
                json!({"type": "search_result", "title": self.mark(), "source": self.mark(), "content": texts})
            }
            ("user", _) => self.result(),
            (_, 2) => json!({"type": "thinking", "thinking": "t", "signature": self.one_of(&["", "s"])}),
            (_, 3) => json!({"type": "redacted_thinking", "data": "AAEC"}),
            (_, 4) => self.search(),
            _ => self.tool_use(),
        };
        if self.choice(8) == 0 {
            block["cache_control"] = json!({"type": "ephemeral"});
        }
        Some(block)
    }

    fn tool(&mut self) -> Value {
        let name = self.name();
        match self.choice(16) {
            0..4 => json!({"type": "web_search_20250305", "name": "web_search"}),
            4 => json!({"name": name}),
            5 => json!({"name": name, "description": " ", "input_schema": null}),
            6 => {
                json!({"name": name, "description": "d", "input_schema": {"required": ["p", 3, "$q"], "properties": {"p": {}, "$q": {}}}})
            }
            7 => {
                json!({"name": name, "description": "é".repeat(10_300), "input_schema": {"properties": [], "anyOf": [null, {"x": null}]}})
            }
            _ => json!({"name": name, "description": "d", "input_schema": {"type": "object"}, "cache_control": {}}),
        }
    }

    fn tool_use(&mut self) -> Value {
        let id = format!("t{}", self.choice(4));
        let input = match self.choice(5) {
            0 => Value::Null,
            1 => json!({}),
            2 => json!({"raw_arguments": self.one_of(&["{\"p\"", ":1}", "{}", "["])}),
            _ => json!({"p": 1.5, "null": null, "list": []}),
        };
        json!({"type": "tool_use", "id": id, "name": self.name(), "input": input})
    }

    fn search_or_text(&mut self) -> Value {
        match self.choice(3) {
            0 => json!({"type": "text", "text": self.mark()}),
            _ => self.search(),
        }
    }

    /// A search, or the results of one, perhaps without each other.
    fn search(&mut self) -> Value {
        let id = format!("srvtoolu_{}", self.choice(3));
        let hit = json!({"type": "web_search_result", "url": "https://a.test/", "title": "T", "encrypted_content": "k1.e30", "page_age": null});
        match self.choice(8) {
            0 => json!({"type": "server_tool_use", "id": "s", "name": "n", "input": {}}),
            1 => json!({"type": "server_tool_use", "id": id, "name": "web_search", "input": {}}),
            2..5 => json!({"type": "server_tool_use", "id": id, "name": "web_search", "input": {"query": "q"}}),
            5 => json!({"type": "web_search_tool_result", "tool_use_id": id, "content": {"error_code": "unavailable"}}),
            _ => json!({"type": "web_search_tool_result", "tool_use_id": id, "content": [hit]}),
        }
    }

    /// Ids are few, so that pairs come about. A result that isn't the only one of its id may vanish, so only those
    /// with an id of their own must arrive.
    fn result(&mut self) -> Value {
        self.results += 1;
        let id = format!("t{}", self.choice(4));
        let is_error = self.choice(2) == 0;
        let content = match self.choice(5) {
            0 => Value::Null,
            1 => "result".into(),
            2 => json!([self.image()]),
            3 => {
                let alone = format!("alone{}", self.results);
                return json!({"type": "tool_result", "tool_use_id": alone, "content": [{"type": "text", "text": self.mark()}, self.image()]});
            }
            _ => json!([{"type": "text", "text": "a"}, {"type": "tool_reference"}, {"type": "text", "text": ""}]),
        };
        json!({"type": "tool_result", "tool_use_id": id, "content": content, "is_error": is_error})
    }

    fn image(&mut self) -> Value {
        let (media_type, data) =
            [("image/png", "iVBORw0KGgo="), ("image/jpeg", "/9j/4AAQ"), ("image/gif", "R0lGODlh")][self.choice(3)];
        json!({"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}})
    }

    fn document(&mut self) -> Value {
        let title = [Value::Null, "".into(), "r.pdf".into(), "r".into(), "报告.pdf".into()][self.choice(5)].clone();
        let source = match self.choice(4) {
            0 => json!({"type": "text", "media_type": "text/plain", "data": self.mark()}),
            1 => json!({"type": "content", "content": [{"type": "text", "text": self.mark()}, self.image()]}),
            _ => json!({"type": "base64", "media_type": "text/csv", "data": "YQ=="}),
        };
        json!({"type": "document", "title": title, "source": source})
    }

    fn name(&mut self) -> &'static str {
        [
            "f",
            "g",
            "get.weather",
            "会",
            "a very long name of a tool that upstream would never take as it stands, would it",
        ][self.choice(5)]
    }

    /// A text that occurs nowhere else, with characters that need care.
    fn mark(&mut self) -> String {
        self.marks += 1;
        format!("mark{}é<>&.", self.marks - 1)
    }

    fn one_of(&mut self, names: &[&'static str]) -> &'static str {
        names[self.choice(names.len())]
    }

    fn choice(&mut self, count: usize) -> usize {
        let Some((byte, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        usize::from(*byte) % count
    }
}
