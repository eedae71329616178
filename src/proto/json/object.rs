//! A JSON object seen as text: where each member lies, and how to change one without touching the rest (R19).

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use super::literal::{decode_whole, escape_with};
use super::scan::{Spelling, Stop, ValueKind, Visit, scan};

/// What may stand around a value.
const BLANKS: [char; 4] = [' ', '\t', '\n', '\r'];

/// Why a text is not a usable record (R9). Holds places, never values (R6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Longer than the limit, in bytes.
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Not UTF-8; the first bad byte is at this offset.
    NotUtf8 {
        /// Offset in bytes.
        at: usize,
    },
    /// Not JSON; the first wrong byte is at this offset.
    NotJson {
        /// Offset in bytes.
        at: usize,
    },
    /// JSON, but not an object.
    NotObject,
    /// Objects and arrays nested deeper than the limit.
    TooDeep {
        /// The limit; the outermost object counts as 1.
        limit: usize,
    },
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { limit } => write!(f, "longer than {limit} bytes"),
            Self::NotUtf8 { at } => write!(f, "not UTF-8 at byte {at}"),
            Self::NotJson { at } => write!(f, "not JSON at byte {at}"),
            Self::NotObject => f.write_str("not a JSON object"),
            Self::TooDeep { limit } => write!(f, "nested deeper than {limit}"),
        }
    }
}

impl std::error::Error for Unusable {}

/// What a text may be at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Length in bytes.
    pub bytes: usize,
    /// Nesting; the outermost object counts as 1.
    pub depth: usize,
}

/// The limits of one record (R9): 1 MiB, 64 deep.
pub const RECORD: Limits = Limits { bytes: 1 << 20, depth: 64 };

/// A valid JSON object and the places of its top-level members, in the order of the text.
#[derive(Clone)]
pub struct Object<'a> {
    text: &'a str,
    members: Vec<Member>,
    /// Offset right behind the `{`.
    open: usize,
}

#[derive(Clone)]
struct Member {
    name: Range<usize>,
    value: Range<usize>,
}

impl<'a> Object<'a> {
    /// Reads a text that must be one JSON object within `limits`, white space around it allowed.
    pub fn parse(text: &'a [u8], limits: Limits) -> Result<Self, Unusable> {
        if text.len() > limits.bytes {
            return Err(Unusable::TooLong { limit: limits.bytes });
        }
        let text = std::str::from_utf8(text).map_err(|error| Unusable::NotUtf8 { at: error.valid_up_to() })?;
        let members = Parts::of(text, limits.depth)?;
        let object = text.trim_start_matches(BLANKS);
        let open = text.len() - object.len() + 1;
        if object.starts_with('{') { Ok(Self { text, members, open }) } else { Err(Unusable::NotObject) }
    }

    /// Every member in the order of the text, names unescaped, doubled names included.
    pub fn members(&self) -> impl Iterator<Item = (Cow<'a, str>, Json<'a>)> + '_ {
        self.members.iter().map(|member| (unescape(&self.text[member.name.clone()]), self.json(member)))
    }

    /// The value of the last member of that name (R10).
    pub fn last(&self, name: &str) -> Option<Json<'a>> {
        self.find(name).map(|member| self.json(member))
    }

    /// The text with the last member of each name replaced, or with new members behind the last one (R19).
    ///
    /// Values are raw JSON. All other bytes stay.
    pub fn with<'e>(&self, edits: impl IntoIterator<Item = (&'e str, String)>) -> Vec<u8> {
        let mut replaced: Vec<(Range<usize>, String)> = Vec::new();
        let mut appended: Vec<(&str, String)> = Vec::new();
        for (name, value) in edits {
            match self.find(name) {
                Some(member) => replaced.push((member.value.clone(), value)),
                None => appended.push((name, value)),
            }
        }
        replaced.sort_by_key(|(span, _)| span.start);
        let end = self.members.last().map_or(self.open, |member| member.value.end);
        let mut out = String::with_capacity(self.text.len() + 64);
        let mut at = 0;
        for (span, value) in &replaced {
            out.push_str(&self.text[at..span.start]);
            out.push_str(value);
            at = span.end;
        }
        out.push_str(&self.text[at..end]);
        for (index, (name, value)) in appended.iter().enumerate() {
            if index > 0 || !self.members.is_empty() {
                out.push(',');
            }
            out.push_str(&quote(name));
            out.push(':');
            out.push_str(value);
        }
        out.push_str(&self.text[end..]);
        out.into_bytes()
    }

    /// The text without any member of that name. All other members stay byte for byte.
    pub fn without(&self, name: &str) -> Vec<u8> {
        let mut out = String::with_capacity(self.text.len());
        out.push_str(&self.text[..self.open]);
        let first_lead = self.open..self.members.first().map_or(self.open, |member| member.name.start);
        let mut end = self.open;
        for member in &self.members {
            if !self.is_named(member, name) {
                // The lead holds the comma and the white space in front of a member; the first one has no comma.
                let lead = if out.len() == self.open { first_lead.clone() } else { end..member.name.start };
                out.push_str(&self.text[lead]);
                out.push_str(&self.text[member.name.start..member.value.end]);
            }
            end = member.value.end;
        }
        out.push_str(&self.text[end..]);
        out.into_bytes()
    }

    fn find(&self, name: &str) -> Option<&Member> {
        self.members.iter().rev().find(|member| self.is_named(member, name))
    }

    fn is_named(&self, member: &Member, name: &str) -> bool {
        unescape(&self.text[member.name.clone()]) == name
    }

    fn json(&self, member: &Member) -> Json<'a> {
        Json(&self.text[member.value.clone()])
    }
}

/// One JSON value as text, without white space around it. Only made from text that a scan found valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Json<'a>(&'a str);

impl<'a> Json<'a> {
    /// The value of a text that must be one JSON value at most 64 deep.
    pub fn parse(text: &'a str) -> Option<Self> {
        Parts::of(text, RECORD.depth).ok()?;
        Some(Self(text.trim_matches(BLANKS)))
    }

    /// The bytes of the value.
    pub fn raw(self) -> &'a str {
        self.0
    }

    /// Whether it is `null`.
    pub fn is_null(self) -> bool {
        self.0 == "null"
    }

    /// A boolean, and only that.
    pub fn boolean(self) -> Option<bool> {
        match self.0 {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// The digits of a number, and only of that.
    pub fn number(self) -> Option<&'a str> {
        self.0.starts_with(|c: char| c == '-' || c.is_ascii_digit()).then_some(self.0)
    }

    /// The unescaped text of a string, and only of that. A lone surrogate escape becomes U+FFFD.
    pub fn string(self) -> Option<Cow<'a, str>> {
        self.0.starts_with('"').then(|| unescape(self.0))
    }

    /// The elements of an array, and only of that.
    pub fn elements(self) -> Option<Vec<Json<'a>>> {
        let elements = self.0.starts_with('[').then(|| Parts::of(self.0, usize::MAX))?.ok()?;
        Some(elements.into_iter().map(|element| Json(&self.0[element.value])).collect())
    }
}

/// A string as a JSON literal: minimal escapes, UTF-8 as it is (R25).
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    escape_with(text, |piece| out.push_str(piece));
    out.push('"');
    out
}

/// The text of a valid string literal, quotes included in `literal`.
fn unescape(literal: &str) -> Cow<'_, str> {
    decode_whole(&literal[1..literal.len() - 1])
}

/// What lies directly inside the outermost container.
#[derive(Default)]
struct Parts {
    /// How many containers are open.
    depth: usize,
    /// The name of the member whose value comes; nothing in an array.
    name: Range<usize>,
    /// Where a value begins that is a container.
    start: usize,
    found: Vec<Member>,
}

impl Parts {
    fn of(text: &str, depth: usize) -> Result<Vec<Member>, Unusable> {
        let mut parts = Self::default();
        match scan(text, depth, &mut parts) {
            Ok(()) => Ok(parts.found),
            Err((Stop::Syntax, at)) => Err(Unusable::NotJson { at }),
            Err((Stop::TooDeep, _)) => Err(Unusable::TooDeep { limit: depth }),
        }
    }

    fn value(&mut self, value: Range<usize>) {
        if self.depth == 1 {
            self.found.push(Member { name: self.name.clone(), value });
        }
    }
}

impl Visit for Parts {
    fn leaf(&mut self, _: ValueKind, span: Range<usize>, _: Spelling) {
        self.value(span);
    }

    fn key(&mut self, span: Range<usize>, _: Spelling) {
        if self.depth == 1 {
            self.name = span;
        }
    }

    fn open(&mut self, _: ValueKind, at: usize) {
        if self.depth == 1 {
            self.start = at;
        }
        self.depth += 1;
    }

    fn close(&mut self, end: usize) {
        self.depth -= 1;
        self.value(self.start..end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Object<'_>, Unusable> {
        Object::parse(text.as_bytes(), RECORD)
    }

    #[test]
    fn only_an_object_is_a_record() {
        assert!(parse(" {\"a\" : 1 }\n").is_ok());
        for text in ["[]", "null", "1", "\"x\"", " true "] {
            assert_eq!(parse(text).err(), Some(Unusable::NotObject), "{text}");
        }
        for text in [
            "",
            "not json",
            "{",
            "{\"a\":1,}",
            "{\"a\":01}",
            "{\"a\":1}x",
            "{'a':1}",
            "{\"a\":\"\u{1}\"}",
            "\u{feff}{}",
        ] {
            assert!(matches!(parse(text).err(), Some(Unusable::NotJson { .. })), "{text}");
        }
        assert_eq!(Object::parse(b"{\"a\":\"\xff\"}", RECORD).err(), Some(Unusable::NotUtf8 { at: 6 }));
    }

    #[test]
    fn limits_are_one_mebibyte_and_64_levels() {
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(RECORD.bytes - 8));
        assert!(parse(&long).is_ok());
        assert_eq!(parse(&format!("{long} ")).err(), Some(Unusable::TooLong { limit: RECORD.bytes }));
        let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert!(parse(&nested(64)).is_ok());
        assert_eq!(parse(&nested(65)).err(), Some(Unusable::TooDeep { limit: 64 }));
    }

    #[test]
    fn grammar_agrees_with_serde_json() {
        let texts = [
            "{\"a\":-0.5e+3,\"b\":[{},[],[1,2]],\"c\":{\"d\":null}}",
            "{\"a\":-}",
            "{\"a\":1.}",
            "{\"a\":1e}",
            "{\"a\":.5}",
            "{\"a\":+1}",
            "{\"a\":tru}",
            "{\"a\":[1 2]}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u00g0\"}",
            "{\"a\" 1}",
            "{,}",
            "{\"a\":1}{}",
            "{\"\":0}",
            "{\"a\":[,]}",
            "{\"a\":\"\\\"\"}",
        ];
        for text in texts {
            assert_eq!(parse(text).is_ok(), serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn strings_are_unescaped() {
        let object = parse(r#"{"a":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\ud83dx\ude00"}"#).unwrap();
        assert_eq!(object.last("a").unwrap().string().unwrap(), "\"\\/\u{8}\u{c}\n\r\té😀\u{fffd}x\u{fffd}");
        assert_eq!(quote("a\"b\\c\n\u{1}é😀/"), "\"a\\\"b\\\\c\\n\\u0001é😀/\"");
    }

    #[test]
    fn edits_keep_all_other_bytes() {
        let object = parse("{ \"a\" : 1 , \"a\":2,\"b\":[ ] }").unwrap();
        assert_eq!(object.with([("c", "3".into()), ("a", "9".into())]), b"{ \"a\" : 1 , \"a\":9,\"b\":[ ],\"c\":3 }");
        assert_eq!(parse("{ }").unwrap().with([("c", "3".into()), ("d", "4".into())]), b"{\"c\":3,\"d\":4 }");
        assert_eq!(object.without("a"), b"{ \"b\":[ ] }");
        assert_eq!(object.without("b"), b"{ \"a\" : 1 , \"a\":2 }");
        assert_eq!(parse("{\n  \"a\": 1,\n  \"b\": 2\n}").unwrap().without("b"), b"{\n  \"a\": 1\n}");
        assert_eq!(parse("{\"a\":1}").unwrap().without("a"), b"{}");
    }
}
