//! The check of structured output (TR62, TS37). The schema is a client's, so its cost is bounded before it is used.

use std::collections::HashMap;

use jsonschema::PatternOptions;
use serde_json::Value;

use super::job::run_heavy;
use crate::proto::messages::error::ErrorType;
use crate::proto::messages::request::RequestError;
use crate::proto::translate::structured::AnswerCheck;

/// The most parts of a schema, with each reference counted as what it refers to.
const MAX_PARTS: u64 = 5_000;
/// The most that parts of the schema times values of a reply may be.
const MAX_WORK: u64 = 20_000_000;
/// From this much work on, other streams of the thread go elsewhere first.
const HEAVY_WORK: u64 = 500_000;
/// Steps that a pattern with look-around or back references may take back.
const BACKTRACKS: usize = 100_000;

/// The check of a reply against this schema.
///
/// # Errors
/// 400 at `output_config.format.schema`: it isn't a schema, refers to itself or to somewhere else, or is too large.
pub(super) fn answer_check(schema: &str) -> Result<AnswerCheck, RequestError> {
    let schema: Value = serde_json::from_str(schema).map_err(|error| refused(&error.to_string()))?;
    let parts = Parts { root: &schema, of_reference: HashMap::new() }.count(&schema, true).map_err(refused)?;
    if parts > MAX_PARTS {
        return Err(refused(&format!("at most {MAX_PARTS} parts, with what its references refer to")));
    }
    let options = jsonschema::options().offline();
    let options = options.with_pattern_options(PatternOptions::fancy_regex().backtrack_limit(BACKTRACKS));
    let validator = options.build(&schema).map_err(|error| refused(&error.to_string()))?;
    Ok(AnswerCheck::new(move |value| {
        let work = parts.saturating_mul(values(value));
        if work > MAX_WORK {
            return Err("it is too large".to_owned());
        }
        let check = || validator.validate(value).map_err(|error| error.to_string());
        if work > HEAVY_WORK { run_heavy(usize::MAX, check) } else { check() }
    }))
}

fn refused(sentence: &str) -> RequestError {
    const LONGEST: usize = 300;
    RequestError {
        kind: ErrorType::InvalidRequest,
        path: "output_config.format.schema".to_owned(),
        sentence: sentence.chars().filter(|char| !char.is_control()).take(LONGEST).collect(),
        cause: None,
    }
}

/// How many values a value is.
fn values(value: &Value) -> u64 {
    1 + match value {
        Value::Array(elements) => elements.iter().map(values).sum(),
        Value::Object(members) => members.values().map(values).sum::<u64>(),
        _ => 0,
    }
}

/// Counts a schema with its references. A schema of a few hundred bytes can refer to itself so that checking takes
/// forever, so none may; Anthropic's API refuses recursive schemas too.
struct Parts<'s> {
    root: &'s Value,
    /// The parts behind each reference; none while they are being counted.
    of_reference: HashMap<&'s str, Option<u64>>,
}

impl<'s> Parts<'s> {
    fn count(&mut self, schema: &'s Value, is_root: bool) -> Result<u64, &'static str> {
        let mut parts: u64 = 1;
        match schema {
            Value::Array(elements) => {
                for element in elements {
                    parts = parts.saturating_add(self.count(element, false)?);
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    let more = match (name.as_str(), member) {
                        ("$ref", Value::String(reference)) => self.behind(reference)?,
                        ("$dynamicRef" | "$recursiveRef", Value::String(_)) => {
                            return Err("dynamic references aren't served");
                        }
                        ("$id", Value::String(_)) if !is_root => return Err("an inner $id isn't served"),
                        _ => self.count(member, false)?,
                    };
                    parts = parts.saturating_add(more);
                }
            }
            _ => {}
        }
        Ok(parts)
    }

    fn behind(&mut self, reference: &'s str) -> Result<u64, &'static str> {
        match self.of_reference.get(reference) {
            Some(Some(parts)) => return Ok(*parts),
            Some(None) => return Err("recursive references aren't served"),
            None => {}
        }
        let pointer = reference.strip_prefix('#').filter(|pointer| pointer.is_empty() || pointer.starts_with('/'));
        let pointer = pointer.ok_or("only references such as #/$defs/name are served")?;
        if pointer.contains('%') {
            return Err("only references such as #/$defs/name are served");
        }
        let target = self.root.pointer(pointer).ok_or("a reference leads nowhere")?;
        self.of_reference.insert(reference, None);
        let parts = self.count(target, pointer.is_empty())?;
        self.of_reference.insert(reference, Some(parts));
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sentence(schema: &Value) -> Option<String> {
        answer_check(&schema.to_string()).err().map(|error| error.to_string())
    }

    #[test]
    fn a_reply_is_checked_against_the_schema_ts37() {
        let schema = json!({
            "type": "object", "required": ["title"], "additionalProperties": false,
            "properties": { "title": { "$ref": "#/$defs/text" } },
            "$defs": { "text": { "type": "string", "maxLength": 5 } },
        });
        let check = answer_check(&schema.to_string()).unwrap();
        assert_eq!(check.find(r#"{"title":"A"}"#), Ok(r#"{"title":"A"}"#));
        for wrong in [r#"{"title":"ABCDEF"}"#, r#"{"title":1}"#, "{}", r#"{"title":"A","more":1}"#, "[]"] {
            assert!(check.find(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn schemas_that_cost_too_much_are_refused_tr62() {
        let mut doubling = serde_json::Map::new();
        for n in 0..30 {
            let next = json!({ "$ref": format!("#/$defs/d{}", n + 1) });
            doubling.insert(format!("d{n}"), json!({ "allOf": [next, next] }));
        }
        doubling.insert("d30".into(), json!({ "type": "integer" }));
        for (schema, why) in [
            (json!({ "$defs": doubling, "$ref": "#/$defs/d0" }), "at most 5000 parts"),
            (json!({ "$ref": "#" }), "recursive"),
            (json!({ "anyOf": [{ "items": { "$ref": "#" } }, { "type": "string" }] }), "recursive"),
            (json!({ "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }), "recursive"),
            (json!({ "$ref": "https://example.com/x.json" }), "only references such as"),
            (json!({ "$ref": "file:///etc/passwd" }), "only references such as"),
            (json!({ "$dynamicRef": "#x" }), "dynamic"),
            (json!({ "properties": { "x": { "$id": "y" } } }), "inner $id"),
            (json!({ "$ref": "#/$defs/none" }), "leads nowhere"),
            (json!({ "type": "strong" }), "strong"),
            (json!({ "type": "string", "pattern": "(" }), ""),
        ] {
            let said = sentence(&schema).unwrap_or_else(|| panic!("{schema} passes"));
            assert!(said.starts_with("output_config.format.schema: ") && said.contains(why), "{said}");
        }
        assert_eq!(sentence(&json!({ "$id": "https://a.test/s", "type": "object" })), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test measures")]
    fn a_check_takes_bounded_time_ts37() {
        let alternatives: Vec<_> = (0..2_000).map(|n| json!({ "const": n })).collect();
        let check = answer_check(&json!({ "items": { "anyOf": alternatives } }).to_string()).unwrap();
        let began = std::time::Instant::now();
        assert_eq!(check.find(&format!("[{}1]", "-1,".repeat(200_000))), Err("it is too large".to_owned()));
        let backtracking = answer_check(&json!({ "type": "string", "pattern": "^(a+)+\\1$" }).to_string()).unwrap();
        assert!(backtracking.find(&format!("\"{}b\"", "a".repeat(3_000))).is_err());
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }
}
