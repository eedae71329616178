//! The check of structured output (TR62, TS37). The schema is a client's, so its cost is bounded before it is used.

use std::collections::HashMap;

use jsonschema::PatternOptions;
use serde_json::Value;

use super::heavy::run_heavy;
use crate::proto::messages::error::ErrorType;
use crate::proto::messages::request::{Request, RequestError};
use crate::proto::translate::structured::AnswerCheck;

/// The most parts of a schema, with each reference counted as what it refers to.
const MAX_PARTS: u64 = 5_000;
/// How deep a schema may be, with what its references refer to: it is compiled and checked recursively.
const MAX_DEPTH: u64 = 128;
/// The most that all patterns of a schema may be when they are compiled, in bytes.
const MAX_PATTERNS: u64 = 2 << 20;
/// The most that parts of the schema times values of a reply may be.
const MAX_WORK: u64 = 20_000_000;
/// From this much work on, other streams of the thread go elsewhere first.
const HEAVY_WORK: u64 = 500_000;
/// Most characters that are said of a schema that is refused.
const LONGEST_SENTENCE: usize = 300;
/// Steps that a pattern with look-around or back references may take back.
const BACKTRACKS: usize = 100_000;

/// The check of replies to this request; none where no JSON is asked for.
///
/// # Errors
/// 400 where the schema stands: it isn't one, refers to itself or to somewhere else, or is too large.
pub(super) fn check_of(request: &Request<'_>) -> Result<Option<AnswerCheck>, RequestError> {
    let Some(schema) = request.schema() else { return Ok(None) };
    answer_check(&schema).map(Some).map_err(|sentence| RequestError {
        kind: ErrorType::InvalidRequest,
        path: request.schema_path().to_owned(),
        sentence: sentence.chars().filter(|char| !char.is_control()).take(LONGEST_SENTENCE).collect(),
        cause: None,
    })
}

/// The check of a reply against this schema, or why it can't be used.
fn answer_check(schema: &str) -> Result<AnswerCheck, String> {
    let schema: Value = serde_json::from_str(schema).map_err(|error| error.to_string())?;
    let mut counting = Parts { root: &schema, of_reference: HashMap::new(), patterns: 0 };
    let Size { parts, depth } = counting.count(&schema, true)?;
    if parts > MAX_PARTS || depth > MAX_DEPTH {
        return Err(format!("at most {MAX_PARTS} parts and {MAX_DEPTH} levels, with what its references refer to"));
    }
    // Each has an equal share of what all may need.
    let of_each = MAX_PATTERNS / counting.patterns.max(1);
    let patterns = PatternOptions::fancy_regex().backtrack_limit(BACKTRACKS);
    let patterns = patterns.size_limit(usize::try_from(of_each).unwrap_or(usize::MAX));
    let options = jsonschema::options().offline().with_pattern_options(patterns);
    let build = || options.build(&schema).map_err(|error| error.to_string());
    let validator = if counting.patterns > 0 { run_heavy(usize::MAX, build) } else { build() }?;
    Ok(AnswerCheck::new(move |value| {
        let work = parts.saturating_mul(values(value));
        if work > MAX_WORK {
            return Err("it is too large".to_owned());
        }
        let check = || validator.validate(value).map_err(|error| error.to_string());
        if work > HEAVY_WORK { run_heavy(usize::MAX, check) } else { check() }
    }))
}

/// How many values a value is.
fn values(value: &Value) -> u64 {
    1 + match value {
        Value::Array(elements) => elements.iter().map(values).sum(),
        Value::Object(members) => members.values().map(values).sum::<u64>(),
        _ => 0,
    }
}

/// How large a schema is, with what its references refer to.
#[derive(Clone, Copy)]
struct Size {
    parts: u64,
    depth: u64,
}

/// Counts a schema with its references. A schema of a few hundred bytes can refer to itself so that checking takes
/// forever, so none may; Anthropic's API refuses recursive schemas too.
struct Parts<'s> {
    root: &'s Value,
    /// The size behind each reference; none while it is being counted.
    of_reference: HashMap<&'s str, Option<Size>>,
    /// Regular expressions.
    patterns: u64,
}

impl<'s> Parts<'s> {
    fn count(&mut self, schema: &'s Value, is_root: bool) -> Result<Size, &'static str> {
        let mut size = Size { parts: 1, depth: 0 };
        let mut add = |more: Size| {
            size.parts = size.parts.saturating_add(more.parts);
            size.depth = size.depth.max(more.depth);
        };
        match schema {
            Value::Array(elements) => {
                for element in elements {
                    add(self.count(element, false)?);
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    add(match (name.as_str(), member) {
                        ("$ref", Value::String(reference)) => self.behind(reference)?,
                        ("$dynamicRef" | "$recursiveRef", Value::String(_)) => {
                            return Err("dynamic references aren't served");
                        }
                        ("$id", Value::String(_)) if !is_root => return Err("an inner $id isn't served"),
                        _ => self.count(member, false)?,
                    });
                    self.patterns += match (name.as_str(), member) {
                        ("pattern", Value::String(pattern)) => automata(pattern),
                        ("patternProperties", Value::Object(of)) => of.keys().map(|pattern| automata(pattern)).sum(),
                        _ => 0,
                    };
                }
            }
            _ => {}
        }
        size.depth += 1;
        Ok(size)
    }

    fn behind(&mut self, reference: &'s str) -> Result<Size, &'static str> {
        match self.of_reference.get(reference) {
            Some(Some(size)) => return Ok(*size),
            Some(None) => return Err("recursive references aren't served"),
            None => {}
        }
        // A long chain of references must not exhaust the stack here either.
        if self.of_reference.values().filter(|size| size.is_none()).count() as u64 > MAX_DEPTH {
            return Err("references are nested too deep");
        }
        let pointer = reference.strip_prefix('#').filter(|pointer| pointer.is_empty() || pointer.starts_with('/'));
        let pointer = pointer.ok_or("only references such as #/$defs/name are served")?;
        if pointer.contains('%') {
            return Err("only references such as #/$defs/name are served");
        }
        let target = self.root.pointer(pointer).ok_or("a reference leads nowhere")?;
        self.of_reference.insert(reference, None);
        let size = self.count(target, pointer.is_empty())?;
        self.of_reference.insert(reference, Some(size));
        Ok(size)
    }
}

/// Automata that a pattern is compiled to, at most: around look-arounds, back references and possessive repetitions
/// it is cut, and each piece counts by itself.
fn automata(pattern: &str) -> u64 {
    let bytes = pattern.as_bytes();
    let cuts = bytes.windows(2).filter(|pair| match pair {
        [b'(', b'?'] | [b'+' | b'*' | b'?' | b'}', b'+'] => true,
        [b'\\', of] => of.is_ascii_digit() || b"kgKG".contains(of),
        _ => false,
    });
    1 + cuts.count() as u64 - pattern.matches("(?:").count() as u64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sentence(schema: &Value) -> Option<String> {
        answer_check(&schema.to_string()).err()
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

    /// So many schemas, each that many levels deep, that refer to the next one.
    fn chain(links: usize, levels: usize) -> Value {
        let mut defs = serde_json::Map::new();
        for n in 0..links {
            let last = json!({ "$ref": format!("#/$defs/a{}", n + 1) });
            defs.insert(format!("a{n}"), (0..levels).fold(last, |inner, _| json!({ "not": inner })));
        }
        defs.insert(format!("a{links}"), json!({ "type": "integer" }));
        json!({ "$ref": "#/$defs/a0", "$defs": defs })
    }

    #[test]
    fn the_deepest_schema_fits_on_the_stack_of_a_thread_tr62() {
        // Half of what tokio gives its own.
        let thread = std::thread::Builder::new().stack_size(1 << 20);
        let check = thread.spawn(|| {
            let schema = chain(1, 118);
            answer_check(&schema.to_string()).unwrap().find("1").is_ok()
        });
        assert!(check.unwrap().join().unwrap(), "an even number of negations");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test measures")]
    fn patterns_that_cost_too_much_are_refused_tr62() {
        let began = std::time::Instant::now();
        let many: Vec<_> =
            (0..800).map(|n| json!({ "pattern": format!("(\\w{{20}}|\\W{{{}}}){{20}}", 20 + n) })).collect();
        assert!(sentence(&json!({ "allOf": many })).is_some());
        let looking: String = (0..2_000).map(|n| format!("(?=\\W{{{}}})", 300 + n)).collect();
        assert!(sentence(&json!({ "pattern": looking })).is_some());
        let named: serde_json::Map<_, _> =
            (0..800).map(|n| (format!("(\\W{{20}}){{{}}}", 20 + n), json!({}))).collect();
        assert!(sentence(&json!({ "patternProperties": named })).is_some());
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());

        let email = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$";
        let uuid = "^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12})$";
        let patterns = [email, uuid, "^.{1,80}$"].into_iter().cycle().take(40).enumerate();
        let usual: serde_json::Map<_, _> =
            patterns.map(|(n, pattern)| (format!("p{n}"), json!({ "type": "string", "pattern": pattern }))).collect();
        assert_eq!(sentence(&json!({ "type": "object", "properties": usual })), None);
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
            (chain(8, 118), "128 levels"),
            (chain(2_000, 1), "nested too deep"),
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
            assert!(said.contains(why), "{said}");
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
