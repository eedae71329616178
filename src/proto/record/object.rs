//! A JSON object seen as text: where each member lies, and how to change one without touching the rest (R19).

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

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
        let mut scanner = Scanner::new(text, limits.depth);
        scanner.space();
        let mut members = Vec::new();
        let open = scanner.at + 1;
        if scanner.peek() == Some(b'{') {
            scanner.object(1, &mut |name, value| members.push(Member { name, value }))?;
            scanner.end()?;
            return Ok(Self { text, members, open });
        }
        scanner.value(0)?;
        scanner.end()?;
        Err(Unusable::NotObject)
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
        let text = text.trim_matches([' ', '\t', '\n', '\r']);
        let mut scanner = Scanner::new(text, RECORD.depth);
        scanner.value(0).ok()?;
        scanner.end().ok()?;
        Some(Self(text))
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
        if !self.0.starts_with('[') {
            return None;
        }
        let mut elements = Vec::new();
        let mut scanner = Scanner::new(self.0, usize::MAX);
        scanner.array(1, &mut |span| elements.push(Json(&self.0[span]))).ok()?;
        Some(elements)
    }
}

/// A string as a JSON literal: minimal escapes, UTF-8 as it is (R25).
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The text of a valid string literal, quotes included in `literal`.
fn unescape(literal: &str) -> Cow<'_, str> {
    let inner = &literal[1..literal.len() - 1];
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = rest.as_bytes()[at + 1];
        rest = &rest[at + 2..];
        match escape {
            b'b' => out.push('\u{8}'),
            b'f' => out.push('\u{c}'),
            b'n' => out.push('\n'),
            b'r' => out.push('\r'),
            b't' => out.push('\t'),
            b'u' => {
                let unit = hex(rest);
                rest = &rest[4..];
                let low = rest.strip_prefix("\\u").map(hex).filter(|low| (0xdc00..0xe000).contains(low));
                match (unit, low) {
                    (0xd800..0xdc00, Some(low)) => {
                        let code = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                        out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                        rest = &rest[6..];
                    }
                    _ => out.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
                }
            }
            other => out.push(char::from(other)),
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Four hex digits that a scan has checked.
fn hex(digits: &str) -> u32 {
    digits.get(..4).and_then(|four| u32::from_str_radix(four, 16).ok()).unwrap_or(0xfffd)
}

/// Checks JSON grammar (RFC 8259) and finds spans.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
}

type Span = Range<usize>;

impl<'a> Scanner<'a> {
    fn new(text: &'a str, depth: usize) -> Self {
        Self { text: text.as_bytes(), at: 0, depth }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn wrong(&self) -> Unusable {
        Unusable::NotJson { at: self.at }
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn end(&mut self) -> Result<(), Unusable> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.wrong()) }
    }

    fn expect(&mut self, byte: u8) -> Result<(), Unusable> {
        if self.peek() != Some(byte) {
            return Err(self.wrong());
        }
        self.at += 1;
        Ok(())
    }

    fn nest(&self, depth: usize) -> Result<(), Unusable> {
        if depth > self.depth { Err(Unusable::TooDeep { limit: self.depth }) } else { Ok(()) }
    }

    /// One value inside `depth` containers. Not by recursion: a file holds records of any depth (R9).
    fn value(&mut self, depth: usize) -> Result<(), Unusable> {
        // What is open inside this value: true for an object.
        let mut open = Vec::new();
        loop {
            match self.peek() {
                Some(byte @ (b'{' | b'[')) => {
                    self.nest(depth + open.len() + 1)?;
                    let is_object = byte == b'{';
                    self.at += 1;
                    self.space();
                    if self.peek() != Some(if is_object { b'}' } else { b']' }) {
                        open.push(is_object);
                        self.name_if(is_object)?;
                        continue;
                    }
                    self.at += 1;
                }
                Some(b'"') => self.string()?,
                Some(b't') => self.word(b"true")?,
                Some(b'f') => self.word(b"false")?,
                Some(b'n') => self.word(b"null")?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => return Err(self.wrong()),
            }
            loop {
                let Some(&is_object) = open.last() else { return Ok(()) };
                self.space();
                if self.peek() == Some(b',') {
                    self.at += 1;
                    self.space();
                    self.name_if(is_object)?;
                    break;
                }
                self.expect(if is_object { b'}' } else { b']' })?;
                open.pop();
            }
        }
    }

    /// A member's name and what separates it from its value, inside an object.
    fn name_if(&mut self, is_object: bool) -> Result<(), Unusable> {
        if is_object {
            self.string()?;
            self.space();
            self.expect(b':')?;
            self.space();
        }
        Ok(())
    }

    fn object(&mut self, depth: usize, member: &mut dyn FnMut(Span, Span)) -> Result<(), Unusable> {
        self.nest(depth)?;
        self.expect(b'{')?;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            let name = self.at;
            self.string()?;
            let name = name..self.at;
            self.space();
            self.expect(b':')?;
            self.space();
            let value = self.at;
            self.value(depth)?;
            member(name, value..self.at);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => return self.expect(b'}'),
            }
        }
    }

    fn array(&mut self, depth: usize, element: &mut dyn FnMut(Span)) -> Result<(), Unusable> {
        self.nest(depth)?;
        self.expect(b'[')?;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            let value = self.at;
            self.value(depth)?;
            element(value..self.at);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => return self.expect(b']'),
            }
        }
    }

    fn string(&mut self) -> Result<(), Unusable> {
        self.expect(b'"')?;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                        Some(b'u') => {
                            self.at += 1;
                            for _ in 0..4 {
                                if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                                    return Err(self.wrong());
                                }
                                self.at += 1;
                            }
                        }
                        _ => return Err(self.wrong()),
                    }
                }
                Some(byte) if byte >= b' ' => self.at += 1,
                _ => return Err(self.wrong()),
            }
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Unusable> {
        for byte in word {
            self.expect(*byte)?;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Unusable> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Unusable> {
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(self.wrong());
        }
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
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
