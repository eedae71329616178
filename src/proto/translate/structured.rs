//! Structured output (TR62, TS37): the JSON in a reply, and what the next request says when there is none.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::proto::json;

/// The longest reply that JSON is looked for in, in bytes (TS37). It is what the next request holds of a longer one.
pub const MAX_JSON: usize = 1 << 20;
/// Brackets that the first object or array is looked for at.
const MOST_BRACKETS: usize = 16;
/// The most that is said of what is wrong, in characters.
const MAX_COMPLAINT: usize = 1_000;
const FENCE: &str = "```";

type Check = dyn Fn(&Value) -> Result<(), String> + Send + Sync;

/// Checks a JSON value against the request's schema: what is wrong with it, in a sentence.
#[derive(Clone)]
pub struct AnswerCheck(Arc<Check>);

impl AnswerCheck {
    /// A check by this function.
    pub fn new(check: impl Fn(&Value) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(check))
    }

    /// The JSON text in a reply, if it is right; else what is wrong.
    pub fn find<'t>(&self, reply: &'t str) -> Result<&'t str, String> {
        let mut wrong = None;
        for candidate in [Some(reply.trim()), inside_of_fence(reply), first_value(reply)].into_iter().flatten() {
            let Ok(value) = serde_json::from_str::<Value>(&json::without_lone_halves(candidate)) else { continue };
            match (self.0)(&value) {
                Ok(()) => return Ok(candidate),
                Err(sentence) => wrong = wrong.or(Some(sentence)),
            }
        }
        Err(wrong.unwrap_or_else(|| "it holds no JSON value".to_owned()))
    }
}

impl fmt::Debug for AnswerCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnswerCheck")
    }
}

impl PartialEq for AnswerCheck {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for AnswerCheck {}

/// A reply that wasn't right, for the next requests of its message.
#[derive(Debug)]
pub struct Rejected {
    /// The reply.
    pub reply: String,
    /// What is wrong with it.
    pub complaint: String,
    /// Bytes of the blocks in front of it, once they are known.
    pub at: Option<usize>,
}

impl Rejected {
    /// The messages that go behind the client's, as JSON objects with commas between. `content`: the blocks of the
    /// message, the first time those in front of the reply.
    pub fn messages(&mut self, content: &[u8]) -> Vec<u8> {
        let at = *self.at.get_or_insert(content.len());
        let (content, behind) = content.split_at_checked(at).unwrap_or((content, &[]));
        let complaint: String = self.complaint.chars().take(MAX_COMPLAINT).collect();
        let mut out = b"{\"role\":\"assistant\",\"content\":[".to_vec();
        out.extend_from_slice(content);
        // Upstream takes no blank message.
        let reply = if self.reply.trim().is_empty() { "(empty)" } else { &self.reply };
        out.extend_from_slice(if content.is_empty() { b"" } else { b"," });
        out.extend_from_slice(b"{\"type\":\"text\",\"text\":\"");
        json::escape(reply, &mut out);
        out.extend_from_slice(b"\"}");
        // Not the user's: what lasts until the user's next message stays (M70), and upstream knows no difference (M35).
        out.extend_from_slice(b"]},{\"role\":\"system\",\"content\":\"");
        json::escape(&format!("Your reply can't be used: {complaint}. Reply again."), &mut out);
        out.extend_from_slice(b"\"}");
        let behind = behind.strip_prefix(b",").unwrap_or(behind);
        if !behind.is_empty() {
            out.extend_from_slice(b",{\"role\":\"assistant\",\"content\":[");
            out.extend_from_slice(behind);
            out.extend_from_slice(b"]}");
        }
        out
    }
}

/// The sentence that asks for the JSON (TR62).
pub fn sentence(schema: &str) -> String {
    format!(
        "Reply with a single JSON value that is valid against this JSON Schema, without any other text and without a code \
         fence: {schema}"
    )
}

/// Inside of the only code fence.
fn inside_of_fence(reply: &str) -> Option<&str> {
    let mut parts = reply.split(FENCE);
    let (_, inside, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    // The rest of the fence's line names a language.
    let (language, rest) = inside.split_once('\n').unwrap_or(("", inside));
    Some(if language.trim().chars().all(char::is_alphanumeric) { rest.trim() } else { inside.trim() })
}

/// The first complete object or array.
fn first_value(reply: &str) -> Option<&str> {
    reply.match_indices(['{', '[']).take(MOST_BRACKETS).find_map(|(at, _)| {
        let mut values = serde_json::Deserializer::from_str(&reply[at..]).into_iter::<&RawValue>();
        values.next()?.ok().map(RawValue::get)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Right is any object with a string `title`.
    fn check() -> AnswerCheck {
        AnswerCheck::new(|value| match value["title"].is_string() {
            true => Ok(()),
            false => Err("no title".to_owned()),
        })
    }

    #[test]
    fn the_json_is_found_wherever_it_stands_ts37() {
        let title = r#"{"title":"A"}"#;
        for reply in [
            title.to_owned(),
            format!(" \n{title}\n"),
            format!("```json\n{title}\n```"),
            format!("Here it is:\n```\n{title}\n```\nDone."),
            format!("```{title}```"),
            format!("The title [sic] is {title}, as {{asked}}."),
            format!("{{\"other\":1}}\n```json\n{title}\n```"),
        ] {
            assert_eq!(check().find(&reply), Ok(title), "{reply}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_ts37() {
        for (reply, wrong) in [
            ("", "it holds no JSON value"),
            ("No.", "it holds no JSON value"),
            (r#"{"title":"A"#, "it holds no JSON value"),
            (r#"{"name":"A"}"#, "no title"),
            // No escape of JSON's: the client's parser wouldn't take it.
            (r#"{"title":"C:\programs"}"#, "it holds no JSON value"),
            (r#"{"title":"\u12"}"#, "it holds no JSON value"),
            ("```\n{\"title\":1}\n```", "no title"),
            ("[[[[", "it holds no JSON value"),
        ] {
            assert_eq!(check().find(reply), Err(wrong.to_owned()), "{reply}");
        }
        let long = "[".repeat(1 << 20);
        assert!(check().find(&long).is_err());
    }

    /// A reply may be anything: backslashes in front of characters of several bytes, for example.
    #[test]
    fn a_reply_that_is_no_json_breaks_nothing_ts37() {
        for reply in ["\\in 中文 \\in", "C:\\é: \\é", "\\u12 中 \\ud83d", "\\", "```\n\\中\\中\n```"] {
            assert_eq!(check().find(reply), Err("it holds no JSON value".to_owned()), "{reply}");
            let found = check().find(&format!(r#"{reply} {{"title":"\ud83d"}}"#)).map(str::to_owned);
            assert!(found.is_ok_and(|found| found.ends_with(r#"{"title":"\ud83d"}"#)), "{reply}");
        }
    }

    const PIECES: &[&str] =
        &["\\", "\\", "\\ud83d", "\\u", "a", "é", "中", "😀", "\"", "{", "}", "[", "`", "```", "\n", "{\"title\":1}"];

    proptest! {
        #[test]
        fn any_reply_is_judged_ts37(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..20)) {
            let reply = pieces.concat();
            if let Ok(found) = check().find(&reply) {
                let found: Result<&RawValue, _> = serde_json::from_str(found);
                prop_assert!(found.is_ok(), "{}", reply);
            }
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_still_json_ts37() {
        assert!(check().find(r#"{"title":"\ud83d"}"#).is_ok());
    }

    #[test]
    fn the_next_request_holds_the_reply_and_the_complaint_ts37() {
        let complaint = "\"a\" is no \"b\"";
        let rejected = |reply: &str| Rejected { reply: reply.into(), complaint: complaint.into(), at: None };
        let messages = |reply, content: &[u8]| -> Value {
            serde_json::from_slice(&[b"[", &rejected(reply).messages(content)[..], b"]"].concat()).unwrap()
        };
        let text = |text| serde_json::json!({ "type": "text", "text": text });
        let both = messages("a\"b", br#"{"type":"text","text":"x"}"#);
        assert_eq!(both[0]["content"], serde_json::json!([text("x"), text("a\"b")]));
        assert_eq!(both[1]["content"], r#"Your reply can't be used: "a" is no "b". Reply again."#);
        assert_eq!(messages("a", b"")[0]["content"], serde_json::json!([text("a")]));
        assert_eq!(messages(" ", b"")[0]["content"], serde_json::json!([text("(empty)")]));

        let mut rejected = rejected("a");
        let first = rejected.messages(br#"{"type":"text","text":"x"}"#);
        let third = rejected.messages(br#"{"type":"text","text":"x"},{"type":"text","text":"y"}"#);
        let behind = br#",{"role":"assistant","content":[{"type":"text","text":"y"}]}"#;
        assert_eq!(third, [&first[..], behind].concat(), "in the rounds behind it too");
    }
}
