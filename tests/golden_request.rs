//! The request half against its vectors: `tests/golden/request/vectors.txt` (the contract's),
//! `more.txt` (ours) and `acceptance.txt` (cases A3–A49), the golden files next to them, and the table of
//! rules.
//!
//! `KIRO_BLESS=1 cargo test --test golden_request` writes the golden files and the table anew; look at the difference
//! before you commit it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "test code")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiro_messages::proto::kiro::request::Form;
use kiro_messages::proto::kiro::route::Shape;
use kiro_messages::proto::messages::request::{Purpose, Request, RequestError};
use kiro_messages::proto::translate::fields::{Abilities, RefusedFields, model_fields};
use kiro_messages::proto::translate::ids::{Caller, IdContext, IdSecret, ids};
use kiro_messages::proto::translate::model::Models;
use kiro_messages::proto::translate::request::{
    CachePoints, Context, LeaveOut, MAX_CACHE_POINTS, Replay, SystemPlace, Translated, translate,
};
use serde_json::{Map, Value, json};

#[path = "support/rules.rs"]
mod rules;

use rules::{Half, blessing, sort_key};

const RANDOM_ID: &str = "00000000-0000-4000-8000-000000000001";
const CONTINUATION_ID: &str = "00000000-0000-4000-8000-000000000002";
const FILES: [&str; 3] = ["vectors.txt", "more.txt", "acceptance.txt"];

#[test]
fn vectors_hold() {
    let mut failures = Vec::new();
    let mut by_rule: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut cases = 0;
    for vector in vectors() {
        let mut verdict = "ok";
        // The conversation id of the case before.
        let mut before = Value::Null;
        for case in &vector.cases {
            cases += 1;
            if let Err(problem) = case.check(&mut before) {
                verdict = "FAILED";
                failures
                    .push(format!("{} {}\n< {}\n> {}\n{problem}", vector.id, vector.title, case.given, case.expected));
            }
        }
        for rule in &vector.rules {
            by_rule.entry(sort_key(rule)).or_default().push(format!("{} {verdict}", vector.id));
        }
    }
    for (rule, results) in by_rule {
        println!("{}: {}", rule.replace(' ', ""), results.join(", "));
    }
    assert!(failures.is_empty(), "{} of {cases} cases failed\n\n{}", failures.len(), failures.join("\n\n"));
    assert!(cases > 300, "only {cases} cases were found");
}

#[test]
fn golden_files_are_current() {
    let mut expected = BTreeMap::new();
    for vector in &vectors() {
        for (place, case) in vector.cases.iter().enumerate() {
            let name = vector.file_name(place);
            let outcome = case.run();
            assert!(expected.insert(format!("{name}.request.json"), case.body.clone()).is_none(), "{name} twice");
            match outcome {
                Ok(translated) => expected.insert(format!("{name}.kiro.json"), rendered(&translated, None)),
                Err(error) => expected.insert(format!("{name}.error.json"), error.api_error().body("req_1")),
            };
        }
    }
    let found: BTreeMap<String, Vec<u8>> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    if blessing() {
        found.keys().filter(|name| !expected.contains_key(*name)).for_each(|name| {
            fs::remove_file(folder().join(name)).unwrap();
        });
        expected.iter().for_each(|(name, bytes)| fs::write(folder().join(name), bytes).unwrap());
        return;
    }
    for (name, bytes) in &expected {
        let golden = found.get(name).unwrap_or_else(|| panic!("{name} is missing: KIRO_BLESS=1 writes it"));
        assert_eq!(String::from_utf8_lossy(golden), String::from_utf8_lossy(bytes), "{name}");
    }
    let stale: Vec<_> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
    assert!(stale.is_empty(), "no vector gives {stale:?}");
}

/// `tests/golden/rules.request.txt`: which vectors and which tests hold each rule of the request half.
#[test]
fn every_rule_is_held_by_something() {
    const OURS: [&str; 10] = [
        "src/proto/json/tree",
        "src/proto/messages/request",
        "src/proto/kiro/request",
        "src/proto/translate/request",
        "src/proto/translate/tools",
        "src/proto/translate/model",
        "src/proto/translate/fields",
        "src/proto/translate/estimate",
        "tests/request_",
        "tests/estimate_",
    ];
    Half {
        name: "request",
        rules: own_rules(),
        vectors: vectors().into_iter().map(|vector| (vector.id, vector.rules)).collect(),
        letters: &["tr", "tu", "tv", "m", "a", "k", "n"],
        owns: |file| OURS.iter().any(|ours| file.starts_with(ours)),
    }
    .check();
}

/// The rules that the request half answers for.
fn own_rules() -> Vec<String> {
    let range = |letters: &'static str, from: u32, to: u32| (from..=to).map(move |number| format!("{letters}{number}"));
    let mut rules: Vec<_> = range("TR", 1, 43).chain(range("TU", 5, 7)).chain(range("M", 12, 50)).collect();
    // Headers and routes, as far as they are about requests, are the server's.
    rules.extend(range("M", 68, 70).chain(range("K", 17, 19)));
    rules.extend(range("TR", 44, 44).chain(range("TR", 46, 50)));
    rules.extend(["M65", "K21", "K131", "TRAP39", "TRAP40"].map(str::to_owned));
    rules
}

fn rendered(translated: &Translated, profile_arn: Option<&str>) -> Vec<u8> {
    // As for an account of which nothing is known.
    let abilities = Abilities::of(&translated.model, None, RefusedFields::default());
    let model_fields = model_fields(&translated.asked, &abilities);
    let model_fields = model_fields.as_deref();
    translated.body.render(&Form { model_fields, profile_arn, ..Form::full(Shape::Q) }).to_vec()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/request")
}

struct Vector {
    id: String,
    rules: Vec<String>,
    title: String,
    cases: Vec<Case>,
}

/// One `<` with its `>`.
struct Case {
    given: String,
    expected: String,
    settings: Vec<String>,
    body: Vec<u8>,
}

fn vectors() -> Vec<Vector> {
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
    fn file_name(&self, place: usize) -> String {
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

    fn run(&self) -> Result<Translated, RequestError> {
        let purpose = if self.has("count") { Purpose::CountTokens } else { Purpose::Messages };
        let request = Request::parse(&self.body, purpose)?;
        let fields = Models::from_json(
            br#"[{"kiro_id":"claude-sonnet-4.5","names":["claude-sonnet-4-5"],"display_name":"d","created":"2025-09-29T00:00:00Z","window":172500,"max_output":64000,"thinking":"fields","efforts":["low","medium","high","xhigh","max"],"default_effort":"high","types":["adaptive"],"display":["summarized","omitted"]}]"#,
        )
        .unwrap();
        translate(
            &request,
            &Context {
                models: if self.has("fields") { &fields } else { Models::embedded() },
                fallback: self.value_of("fallback"),
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
                        caller: Caller {
                            session: self.value_of("header"),
                            gateway_session: self.value_of("session"),
                            key: self.value_of("key").map(|key| [key.as_bytes()[0]; 32]),
                        },
                        random: (!self.has("derive")).then_some([RANDOM_ID, CONTINUATION_ID]),
                    },
                ),
                replay: if self.has("own") { Replay::Everything } else { Replay::Nothing },
                leave_out: LeaveOut { reasoning: self.has("plain"), empty_thoughts: self.has("textless") },
            },
        )
    }

    fn check(&self, before: &mut Value) -> Result<(), String> {
        let outcome = self.run();
        if let Some(expected) = self.expected.strip_prefix("err ") {
            return match outcome {
                Ok(_) => Err("it was accepted".to_owned()),
                Err(error) => {
                    let api = error.api_error();
                    let actual = format!("{} {} {}", api.status, api.kind, error.path);
                    let in_full = format!("{actual}: {}", error.sentence);
                    if [&*actual, &*in_full].contains(&expected) { Ok(()) } else { Err(format!("  {in_full}")) }
                }
            };
        }
        let translated = outcome.map_err(|error| format!("  refused: {error}"))?;
        let bytes = rendered(&translated, Some("arn"));
        let raw = std::str::from_utf8(&bytes).map_err(|error| error.to_string())?;
        let body: Value = serde_json::from_str(raw).map_err(|error| format!("  no JSON: {error}\n  {raw}"))?;
        let short = Short::of(&body).map_err(|problem| format!("  {problem}\n  {raw}"))?;
        for part in self.expected.split(" ;; ") {
            short.check(part, raw, before).map_err(|actual| format!("  {part}\n  but {actual}"))?;
        }
        *before = short.top.get("conversationId").cloned().unwrap_or_default();
        Ok(())
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

/// A Kiro body in the notation's short form, checked for what holds in every body.
struct Short {
    current: Value,
    history: Value,
    /// `[name, description, schema]` each.
    tools: Value,
    model: String,
    top: Map<String, Value>,
}

impl Short {
    fn of(body: &Value) -> Result<Self, String> {
        let mut body = object(body)?;
        let mut top = object(&body.remove("conversationState").ok_or("no conversationState")?)?;
        let order: Vec<_> = top.keys().cloned().collect();
        let in_order =
            ["agentContinuationId", "agentTaskType", "chatTriggerType", "conversationId", "currentMessage", "history"];
        if !in_order.starts_with(&order.iter().map(String::as_str).collect::<Vec<_>>()) {
            return Err(format!("TR2: {order:?}"));
        }
        body.remove("additionalModelRequestFields");
        if body.remove("profileArn") != Some(json!("arn")) || !body.is_empty() {
            return Err(format!("TR2: {body:?}"));
        }
        let current = object(&top.remove("currentMessage").unwrap())?;
        let mut current = object(current.get("userInputMessage").ok_or("the current message is no user's")?)?;
        let mut context = current.get("userInputMessageContext").map_or(Ok(Map::new()), object)?;
        let tools = context.remove("tools").map_or(Ok(json!(0)), |tools| short_tools(&tools))?;
        if !context.is_empty() {
            current.insert("userInputMessageContext".to_owned(), Value::Object(context));
        } else {
            current.remove("userInputMessageContext");
        }
        let model = current.get("modelId").and_then(Value::as_str).ok_or("no modelId")?.to_owned();
        let history = match top.remove("history") {
            None => json!(0),
            Some(history) => {
                let history = list(&history)?;
                if history.len() % 2 == 1 {
                    return Err("TR10: the history doesn't end with an assistant's message".to_owned());
                }
                let messages: Result<Vec<_>, String> = history
                    .iter()
                    .enumerate()
                    .map(|(place, message)| match place % 2 {
                        0 => short_user(&message["userInputMessage"], &model),
                        _ => short_assistant(&message["assistantResponseMessage"]),
                    })
                    .collect();
                Value::Array(messages?)
            }
        };
        Ok(Self { current: short_user(&Value::Object(current), &model)?, history, tools, model, top })
    }

    /// Whether a part of the expectation holds; if not, what there is instead.
    fn check(&self, part: &str, raw: &str, before: &Value) -> Result<(), String> {
        let (what, expected) = part.split_once(' ').unwrap_or((part, ""));
        let parsed = || -> Value { serde_json::from_str(expected).unwrap_or_else(|error| panic!("{part}: {error}")) };
        let same = |expected: Value, actual: &Value| {
            // As text where the order of keys counts.
            let text = |value: &Value| serde_json::to_string(value).unwrap();
            let equal = expected == *actual && (what != "tools" || text(&expected) == text(actual));
            if equal { Ok(()) } else { Err(actual.to_string()) }
        };
        match what {
            "ok" => Ok(()),
            "cur" => same(parsed(), &self.current),
            "his" => same(parsed(), &self.history),
            "tools" => {
                let expected = parsed();
                match expected.get(0).is_some_and(Value::is_string) {
                    false => same(expected, &self.tools),
                    true => {
                        let tools = self.tools.as_array().cloned().unwrap_or_default();
                        let name = |tool: &Value| tool.get(0).unwrap_or(tool).clone();
                        same(expected, &tools.iter().map(name).collect())
                    }
                }
            }
            "top" => {
                for (key, value) in object(&parsed())? {
                    let actual = self.top.get(&key).unwrap_or(&Value::Null);
                    let is_derived = actual.as_str().is_some_and(|id| {
                        id.len() == 36 && &id[14..15] == "4" && "89ab".contains(&id[19..20]) && id != RANDOM_ID
                    });
                    match value.as_str() {
                        Some("RANDOM") => same(json!(RANDOM_ID), actual)?,
                        Some("SAME") => same(before.clone(), actual)?,
                        Some("DERIVED") if is_derived => {}
                        Some("OTHER") if is_derived && actual != before => {}
                        _ => same(value, actual)?,
                    }
                }
                Ok(())
            }
            "raw" if raw.contains(expected) => Ok(()),
            "raw" => Err(raw.to_owned()),
            "model" if self.model == expected => Ok(()),
            "model" => Err(self.model.clone()),
            _ => panic!("{part}: no such part"),
        }
    }
}

fn short_tools(tools: &Value) -> Result<Value, String> {
    list(tools)?
        .iter()
        .map(|tool| {
            let mut tool = object(&object(tool)?.remove("toolSpecification").ok_or("no toolSpecification")?)?;
            let schema = object(&tool.remove("inputSchema").unwrap_or_default())?.remove("json").unwrap_or_default();
            object(&schema)?;
            Ok(json!([tool.remove("name"), tool.remove("description"), schema]))
        })
        .collect()
}

fn short_user(message: &Value, model: &str) -> Result<Value, String> {
    let mut message = object(message)?;
    if message.remove("modelId") != Some(json!(model)) || message.remove("origin") != Some(json!("AI_EDITOR")) {
        return Err("TR2: modelId and origin stand on every user message".to_owned());
    }
    let mut short = json!({"u": content(&mut message)?});
    if let Some(images) = message.remove("images") {
        short["img"] = list(&images)?.iter().map(|image| image["format"].clone()).collect();
    }
    if let Some(documents) = message.remove("documents") {
        short["doc"] = list(&documents)?.iter().map(|document| json!([document["name"], document["format"]])).collect();
    }
    if let Some(context) = message.remove("userInputMessageContext") {
        short["res"] = list(&context["toolResults"])?
            .iter()
            .map(|result| {
                let (id, text) = (&result["toolUseId"], &result["content"][0]["text"]);
                match result["status"].as_str() {
                    Some("success") => json!([id, text]),
                    status => json!([id, text, status]),
                }
            })
            .collect();
    }
    with_cache_point(short, message)
}

fn short_assistant(message: &Value) -> Result<Value, String> {
    let mut message = object(message)?;
    let mut short = json!({"a": content(&mut message)?});
    if let Some(uses) = message.remove("toolUses") {
        short["use"] = list(&uses)?
            .iter()
            .map(|tool_use| {
                object(&tool_use["input"])?;
                Ok(json!([tool_use["toolUseId"], tool_use["name"], tool_use["input"]]))
            })
            .collect::<Result<_, String>>()?;
    }
    if let Some(reasoning) = message.remove("reasoningContent") {
        short["rc"] = reasoning;
    }
    with_cache_point(short, message)
}

fn with_cache_point(mut short: Value, mut rest: Map<String, Value>) -> Result<Value, String> {
    if let Some(point) = rest.remove("cachePoint") {
        short["cp"] = json!(if point == json!({"type": "default"}) { 1 } else { 0 });
    }
    if rest.is_empty() { Ok(short) } else { Err(format!("members nobody knows: {rest:?}")) }
}

fn content(message: &mut Map<String, Value>) -> Result<Value, String> {
    let content = message.remove("content").unwrap_or_default();
    if content.as_str().is_none_or(str::is_empty) { Err("TR3: empty content".to_owned()) } else { Ok(content) }
}

fn object(value: &Value) -> Result<Map<String, Value>, String> {
    value.as_object().cloned().ok_or_else(|| format!("no object: {value}"))
}

/// A list that isn't empty (TR3).
fn list(value: &Value) -> Result<&Vec<Value>, String> {
    value.as_array().filter(|list| !list.is_empty()).ok_or_else(|| format!("TR3: no list, or an empty one: {value}"))
}
