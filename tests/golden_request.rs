//! The request half against its vectors: `tests/golden/request/vectors.txt` (the contract's), `more.txt` (ours) and
//! `acceptance.txt` (cases A3–A49); what each becomes to the byte stands in `bodies.txt` beside them; and the table of rules.
//!
//! `KIRO_BLESS=1 cargo test --test golden_request` writes that file and the table anew; look at the difference before you
//! commit it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use kiro_messages::proto::kiro::request::Form;
use kiro_messages::proto::kiro::route::Shape;
use kiro_messages::proto::translate::fields::{Abilities, RefusedFields, model_fields};
use kiro_messages::proto::translate::request::Translated;
use serde_json::{Map, Value, json};

mod request;
#[path = "support/rules.rs"]
mod rules;

use request::{Case, RANDOM_ID, folder, vectors};
use rules::{Half, blessing, sort_key};

#[test]
fn every_request_vector_holds() {
    let mut failures = Vec::new();
    let mut by_rule: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut cases = 0;
    for vector in vectors() {
        let mut verdict = "ok";
        // The conversation id of the case before.
        let mut before = Value::Null;
        for case in &vector.cases {
            cases += 1;
            if let Err(problem) = check(case, &mut before) {
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

/// `tests/golden/request/bodies.txt`: what each case becomes, to the byte. An error of which the vector says
/// all isn't there once more.
#[test]
fn bodies_equal_the_golden_ones() {
    let mut expected = String::from(
        "# What each vector becomes, to the byte. Written by KIRO_BLESS=1 cargo test --test golden_request.\n",
    );
    let mut names = BTreeSet::new();
    for vector in &vectors() {
        for (place, case) in vector.cases.iter().enumerate() {
            let name = vector.name_of(place);
            let body = match case.run() {
                Ok(translated) => rendered(&translated, None),
                Err(error) => {
                    let body = error.api_error().body("req_1");
                    if case.error_body().is_some_and(|said| said.as_bytes() == body) {
                        continue;
                    }
                    body
                }
            };
            writeln!(expected, "{name}\n> {}", String::from_utf8(body).unwrap()).unwrap();
            assert!(names.insert(name.clone()), "{name} twice");
        }
    }
    let path = folder().join("bodies.txt");
    if blessing() {
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    for (line, (there, given)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(there, given, "bodies.txt:{}; KIRO_BLESS=1 writes it", line + 1);
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "KIRO_BLESS=1 writes it");
}

/// `tests/golden/rules.request.txt`: which vectors and which tests hold each rule of the request half.
#[test]
fn every_rule_is_held_by_something() {
    const OURS: [&str; 11] = [
        "src/proto/json/tree",
        "src/proto/messages/request",
        "src/proto/kiro/request",
        "src/proto/translate/request",
        "src/proto/translate/search",
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
    rules.extend(range("TR", 44, 44).chain(range("TR", 46, 62)));
    rules.extend(range("TR", 63, 67).chain(range("M", 73, 76)).chain(range("M", 87, 87)));
    rules.extend(["M65", "M82", "K21", "K131", "K133", "TRAP39", "TRAP40"].map(str::to_owned));
    rules
}

fn rendered(translated: &Translated, profile_arn: Option<&str>) -> Vec<u8> {
    // As for an account of which nothing is known.
    let abilities = Abilities::of(&translated.model, None, RefusedFields::default());
    let model_fields = model_fields(&translated.asked, &abilities);
    let model_fields = model_fields.as_deref();
    translated.body.render(&Form { model_fields, profile_arn, ..Form::full(Shape::Q) }).to_vec()
}

/// Whether a case gives what it says; if not, what it gives.
fn check(case: &Case, before: &mut Value) -> Result<(), String> {
    let outcome = case.run();
    if let Some(expected) = case.expected.strip_prefix("err ") {
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
    for part in case.expected.split(" ;; ") {
        short.check(part, raw, before).map_err(|actual| format!("  {part}\n  but {actual}"))?;
    }
    *before = short.top.get("conversationId").cloned().unwrap_or_default();
    Ok(())
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
