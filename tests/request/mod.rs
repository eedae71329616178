//! The vectors of the request half: their notation, and what the translator makes of each.

use std::fs;
use std::path::{Path, PathBuf};

use kiro_messages::proto::messages::request::{Purpose, Request, RequestError};
use kiro_messages::proto::translate::edits::edit;
use kiro_messages::proto::translate::ids::{ClientContext, IdContext, IdSecret, ids};
use kiro_messages::proto::translate::model::{Fallback, Models};
use kiro_messages::proto::translate::request::{
    CachePoints, Context, LeaveOut, MAX_CACHE_POINTS, Replay, SystemPlace, Translated, translate,
};
use serde_json::{Map, Value, json};

pub const RANDOM_ID: &str = "00000000-0000-4000-8000-000000000001";
const CONTINUATION_ID: &str = "00000000-0000-4000-8000-000000000002";
const FILES: [&str; 3] = ["vectors.txt", "more.txt", "acceptance.txt"];

/// Where the vectors are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/request")
}

/// A vector: its rules and its cases.
pub struct Vector {
    pub id: String,
    pub rules: Vec<String>,
    pub title: String,
    pub cases: Vec<Case>,
}

/// One `<` with its `>`.
pub struct Case {
    pub given: String,
    pub expected: String,
    settings: Vec<String>,
    /// What a client sends.
    pub body: Vec<u8>,
}

pub fn vectors() -> Vec<Vector> {
    let mut vectors: Vec<Vector> = Vec::new();
    for file in FILES {
        let text = fs::read_to_string(folder().join(file)).unwrap();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(given) = line.strip_prefix("< ") {
                vectors.last_mut().unwrap().cases.push(Case::new(given));
            } else if let Some(expected) = line.strip_prefix("> ") {
                vectors.last_mut().unwrap().cases.last_mut().unwrap().expected = expected.to_owned();
            } else {
                let (id, rest) = line.split_once(" [").unwrap_or_else(|| panic!("{file}: {line}"));
                let (rules, title) = rest.split_once("] ").unwrap_or_else(|| panic!("{file}: {line}"));
                let rules = rules.split(' ').map(str::to_owned).collect();
                let (id, title) = (id.to_owned(), title.to_owned());
                vectors.push(Vector { id, rules, title, cases: Vec::new() });
            }
        }
    }
    vectors
}

impl Vector {
    /// `tv03-system-one-message`; several cases are told apart by letters, settings stand behind: `tv50a-….cache`.
    pub fn name_of(&self, place: usize) -> String {
        let letters: String = self.id.chars().take_while(char::is_ascii_alphabetic).collect();
        let number: u32 = self.id[letters.len()..].parse().unwrap();
        let letter = match self.cases.len() {
            1 => String::new(),
            _ => char::from(b'a' + u8::try_from(place).unwrap()).to_string(),
        };
        let title = self.title.split([':', ';', '(', ',']).next().unwrap();
        let words: Vec<_> = title
            .split(|char: char| !char.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .take(6)
            .map(str::to_lowercase)
            .collect();
        let settings: String = self.cases[place].settings.iter().map(|setting| format!(".{setting}")).collect();
        format!("{}{number:02}{letter}-{}{settings}", letters.to_lowercase(), words.join("-"))
    }
}

impl Case {
    fn new(given: &str) -> Self {
        let (settings, body) = match given.strip_prefix("bytes") {
            Some(bytes) => (vec![], bytes.trim_start().as_bytes().to_vec()),
            None => {
                let at = given.find('{').unwrap_or_else(|| panic!("no body: {given}"));
                (given[..at].split_whitespace().map(str::to_owned).collect(), expand(&given[at..]))
            }
        };
        Self { given: given.to_owned(), expected: String::new(), settings, body }
    }

    fn has(&self, setting: &str) -> bool {
        self.settings.iter().any(|given| given == setting)
    }

    fn value_of(&self, setting: &str) -> Option<&str> {
        self.settings.iter().find_map(|given| given.strip_prefix(setting)?.strip_prefix('='))
    }

    /// The body of an error of which the vector says all: `err STATUS TYPE MESSAGE`, where the message has its sentence.
    pub fn error_body(&self) -> Option<String> {
        let (_, error) = self.expected.strip_prefix("err ")?.split_once(' ')?;
        let (kind, message) = error.split_once(' ').filter(|(_, message)| message.contains(": "))?;
        let message = serde_json::to_string(message).unwrap();
        Some(format!(r#"{{"type":"error","error":{{"type":"{kind}","message":{message}}},"request_id":"req_1"}}"#))
    }

    /// What becomes of it.
    pub fn run(&self) -> Result<Translated, RequestError> {
        let purpose = if self.has("count") { Purpose::CountTokens } else { Purpose::Messages };
        let source = bytes::Bytes::from(self.body.clone());
        let mut request = Request::parse(&source, purpose)?;
        if self.has("off") {
            request.without_search()?;
        }
        edit(&mut request);
        let fields = Models::from_json(
            br#"[{"kiro_id":"claude-sonnet-4.5","names":["claude-sonnet-4-5"],"display_name":"d","created":"2025-09-29T00:00:00Z","window":172500,"max_output":64000,"thinking":"fields","efforts":["low","medium","high","xhigh","max"],"default_effort":"high","types":["adaptive"],"display":["summarized","omitted"]}]"#,
        )
        .unwrap();
        translate(
            &request,
            &Context {
                models: if self.has("fields") { &fields } else { Models::embedded() },
                fallback: self.value_of("fallback").map(|name| Fallback { name, for_any: false }),
                system_text: if self.has("fold") { SystemPlace::Fold } else { SystemPlace::Pair },
                cache_points: match () {
                    () if self.has("cache") => CachePoints::Client,
                    () if self.has("auto") => CachePoints::Auto,
                    () => CachePoints::Off,
                },
                cache_limit: match self.value_of("points") {
                    _ if self.has("pointless") => 0,
                    Some(points) => points.parse().unwrap(),
                    None => MAX_CACHE_POINTS,
                },
                other_model_id: false,
                ids: &ids(
                    &request,
                    &IdContext {
                        secret: &IdSecret::of_text("the secret of the vectors"),
                        caller: ClientContext {
                            session: self.value_of("header"),
                            gateway_session: self.value_of("session"),
                            key: self.value_of("key").map(|key| [key.as_bytes()[0]; 32]),
                        },
                        random: (!self.has("derive")).then_some([RANDOM_ID, CONTINUATION_ID]),
                    },
                ),
                replay: if self.has("own") { Replay::Everything } else { Replay::Nothing },
                source: Some(&source),
                pictures: None,
                leave_out: LeaveOut {
                    reasoning: self.has("plain"),
                    empty_thoughts: self.has("textless"),
                    schema_keywords: self.has("bare"),
                },
            },
        )
    }
}

/// The client body that the notation stands for, as bytes.
fn expand(notation: &str) -> Vec<u8> {
    // A lone surrogate is nothing serde_json would read: a private character stands in for it.
    let notation = notation.replace(r"\ud83d", "\u{e000}");
    let Value::Object(given) = serde_json::from_str(&notation).unwrap_or_else(|error| panic!("{error}: {notation}"))
    else {
        panic!("{notation}");
    };
    let mut body = Map::new();
    for (key, value) in [("model", json!("claude-sonnet-4-5")), ("max_tokens", json!(1000))] {
        if !given.contains_key(key) {
            body.insert(key.to_owned(), value);
        }
    }
    for (key, value) in given {
        match (&*key, value) {
            (_, Value::String(absent)) if absent == "$absent" => {}
            ("m", Value::Array(messages)) => {
                body.insert("messages".to_owned(), messages.into_iter().map(message).collect());
            }
            ("tools", Value::Array(tools)) => {
                body.insert(key, tools.into_iter().map(tool).collect());
            }
            (_, value) => {
                body.insert(key, value);
            }
        }
    }
    serde_json::to_string(&body).unwrap().replace('\u{e000}', r"\ud83d").into_bytes()
}

fn message(notation: Value) -> Value {
    let Value::Object(object) = &notation else { return notation };
    match object.iter().next() {
        Some((key, content)) if object.len() == 1 => {
            let role = match &**key {
                "u" => "user",
                "a" => "assistant",
                "s" => "system",
                _ => return notation,
            };
            json!({"role": role, "content": content_of(content.clone())})
        }
        _ => notation,
    }
}

fn content_of(notation: Value) -> Value {
    match notation {
        Value::Array(blocks) => blocks.into_iter().map(block).collect(),
        other => other,
    }
}

fn block(notation: Value) -> Value {
    if notation.is_string() {
        return json!({"type": "text", "text": notation});
    }
    let item = |list: &Value, place: usize| list.get(place).cloned();
    let data = |value: Option<Value>| match value {
        Some(Value::String(name)) if name == "$P" => json!("iVBORw0KGgo="),
        Some(Value::String(name)) if name == "$J" => json!("/9j/4AAQ"),
        other => other.unwrap_or_default(),
    };
    if let Some(list) = notation.get("use") {
        return json!({"type": "tool_use", "id": item(list, 0), "name": item(list, 1), "input": item(list, 2)});
    }
    if let Some(list) = notation.get("res") {
        let content = content_of(item(list, 1).unwrap_or_default());
        let mut result = json!({"type": "tool_result", "tool_use_id": item(list, 0), "content": content});
        if let Some(is_error) = item(list, 2) {
            result["is_error"] = is_error;
        }
        return result;
    }
    if let Some(list) = notation.get("img") {
        let source = json!({"type": "base64", "media_type": item(list, 0), "data": data(item(list, 1))});
        return json!({"type": "image", "source": source});
    }
    if let Some(list) = notation.get("doc") {
        let source = json!({"type": "base64", "media_type": item(list, 1), "data": data(item(list, 2))});
        return json!({"type": "document", "title": item(list, 0), "source": source});
    }
    if let Some(list) = notation.get("th") {
        let mut thinking = json!({"type": "thinking", "thinking": item(list, 0)});
        if let Some(signature) = item(list, 1) {
            thinking["signature"] = signature;
        }
        return thinking;
    }
    notation
}

fn tool(notation: Value) -> Value {
    match notation {
        Value::String(name) => json!({"name": name, "description": "d", "input_schema": {"type": "object"}}),
        other => other,
    }
}
