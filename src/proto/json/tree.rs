//! A request body's JSON: one pass checks it and notes where every value is; nothing is decoded.
//!
//! A body is mostly text that goes out as it came in. So strings stay literals, client-owned JSON stays bytes, and
//! both are copied; only a literal whose spelling TR4 wouldn't give (`\u003c`, `\/`) is decoded and spelled anew.
//!
//! - The grammar is RFC 8259's, nothing more. Containers nest at most [`MAX_DEPTH`] deep (M12).
//! - Of equal keys the last one's value counts, at the first one's place, as in JavaScript.
//! - An unpaired surrogate escape reads as U+FFFD (TR4).
//! - Memory: 16 bytes a value, usually a twentieth of the text and never more than 16 MiB (M91).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use super::literal::{decode_whole, escape_with, plain_run, unescape};
pub use super::scan::ValueKind;
use super::scan::{Spelling, Stop, Visit, scan};

/// Containers nest at most this deep (M12).
pub const MAX_DEPTH: usize = 128;

/// Values of a text, keys counted too (M91): a body of 28 MB reaches it with 27 bytes a value.
pub const MAX_VALUES: usize = 1 << 20;

/// Why a text isn't accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonError {
    /// Not JSON, or not UTF-8.
    Syntax {
        /// Line of the first wrong byte, from 1.
        line: usize,
        /// Column of the first wrong byte in characters, from 1.
        column: usize,
    },
    /// More than [`MAX_DEPTH`] containers inside each other.
    TooDeep,
    /// More than [`MAX_VALUES`] values.
    TooMany,
    /// A text of 4 GiB or more: positions are 32 bits wide.
    TooLong,
}

/// A checked JSON text and the places of its values.
#[derive(Debug)]
pub struct JsonTree<'a> {
    text: &'a str,
    nodes: Vec<Node>,
}

/// The name of a value inside its [`JsonTree`]; stays valid as long as that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueId(u32);

/// A value inside a [`JsonTree`].
#[derive(Debug, Clone, Copy)]
pub struct Value<'j, 'a> {
    json: &'j JsonTree<'a>,
    index: u32,
}

/// Takes text that is written piece by piece.
pub trait Sink {
    /// Takes the next piece.
    fn put(&mut self, text: &str);
}

impl Sink for String {
    fn put(&mut self, text: &str) {
        self.push_str(text);
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, text: &str) {
        self.extend_from_slice(text.as_bytes());
    }
}

#[derive(Debug, Clone, Copy)]
struct Node {
    /// Byte offsets of the value, quotes and brackets included.
    start: u32,
    end: u32,
    /// Index of the first node that isn't inside this value.
    next: u32,
    kind: ValueKind,
    /// Of a string.
    spelling: Spelling,
    /// Of a container: its bytes are exactly what `write` would give.
    exact: bool,
    /// Of an object: a key occurs more than once.
    doubled: bool,
}

impl Node {
    /// The string that this is, in its text.
    fn text<'a>(&self, text: &'a str) -> Text<'a> {
        let literal = text.get(self.start as usize + 1..self.end as usize - 1).unwrap_or_default();
        Text { literal: Cow::Borrowed(literal), spelling: self.spelling }
    }
}

impl<'a> JsonTree<'a> {
    /// Checks a whole text.
    ///
    /// # Errors
    /// [`JsonError`]; of several problems the first in the text, but bad UTF-8 before all others.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, JsonError> {
        if u32::try_from(bytes.len()).is_err() {
            return Err(JsonError::TooLong);
        }
        let text = match simdutf8::compat::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => return Err(syntax_error(bytes, error.valid_up_to())),
        };
        let nodes = Vec::with_capacity(bytes.len() / 256 + 16);
        let mut builder = Builder { text, nodes, open: Vec::with_capacity(16), blemishes: 0, over: false };
        match scan(text, MAX_DEPTH, &mut builder) {
            Ok(()) if builder.over => Err(JsonError::TooMany),
            Ok(()) => Ok(Self { text, nodes: builder.nodes }),
            Err((Stop::Syntax, at)) => Err(syntax_error(bytes, at)),
            Err((Stop::TooDeep, _)) => Err(JsonError::TooDeep),
        }
    }

    /// The outermost value.
    pub fn root(&self) -> Value<'_, 'a> {
        Value { json: self, index: 0 }
    }

    /// A value of this text by its name.
    pub fn value(&self, id: ValueId) -> Value<'_, 'a> {
        Value { json: self, index: id.0 }
    }

    /// Length of the text in bytes.
    pub fn text_len(&self) -> usize {
        self.text.len()
    }
}

impl<'j, 'a> Value<'j, 'a> {
    /// Its name, for keeping.
    pub fn id(self) -> ValueId {
        ValueId(self.index)
    }

    /// What it is.
    pub fn kind(self) -> ValueKind {
        self.node().kind
    }

    /// Where it stands in the text, in bytes.
    pub fn span(self) -> std::ops::Range<usize> {
        let node = self.node();
        node.start as usize..node.end as usize
    }

    /// Its bytes as they came.
    pub fn raw(self) -> &'a str {
        self.json.text.get(self.span()).unwrap_or_default()
    }

    /// The text, if it is a string.
    pub fn text(self) -> Option<Text<'a>> {
        let node = self.node();
        (node.kind == ValueKind::String).then(|| node.text(self.json.text))
    }

    /// The truth value, if it is one.
    pub fn bool(self) -> Option<bool> {
        (self.kind() == ValueKind::Bool).then(|| self.raw() == "true")
    }

    /// The elements of an array; nothing for any other kind.
    pub fn elements(self) -> impl Iterator<Item = Value<'j, 'a>> + Clone {
        let node = self.node();
        let (mut at, end) = if node.kind == ValueKind::Array { (self.index + 1, node.next) } else { (0, 0) };
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let value = Value { json: self.json, index: at };
                at = value.node().next;
                value
            })
        })
    }

    /// Keys and values of an object; nothing for any other kind. Each key comes once: of equal ones at the first
    /// one's place with the last one's value.
    pub fn members(self) -> Members<'j, 'a> {
        let node = self.node();
        let (at, end) = if node.kind == ValueKind::Object { (self.index + 1, node.next) } else { (0, 0) };
        let straight = Members(MembersForm::AsWritten { json: self.json, at, end });
        if !node.doubled {
            return straight;
        }
        let mut last: BTreeMap<Cow<'a, str>, (usize, Text<'a>, Value<'j, 'a>)> = BTreeMap::new();
        for (place, (key, value)) in straight.enumerate() {
            last.entry(key.clone().into_decoded()).and_modify(|entry| entry.2 = value).or_insert((place, key, value));
        }
        let mut members: Vec<_> = last.into_values().collect();
        members.sort_unstable_by_key(|(place, ..)| *place);
        let distinct: Vec<_> = members.into_iter().map(|(_, key, value)| (key, value)).collect();
        Members(MembersForm::Distinct(distinct.into_iter()))
    }

    /// The value of a key of an object, null included.
    pub fn member(self, name: &str) -> Option<Value<'j, 'a>> {
        self.members().find(|(key, _)| key.is(name)).map(|(_, value)| value)
    }

    /// Writes it as compact JSON in TR4's spelling: key order and the spelling of numbers stay.
    pub fn write(self, out: &mut impl Sink) {
        let node = self.node();
        match node.kind {
            ValueKind::Array if !node.exact => {
                out.put("[");
                for (place, element) in self.elements().enumerate() {
                    if place > 0 {
                        out.put(",");
                    }
                    element.write(out);
                }
                out.put("]");
            }
            ValueKind::Object if !node.exact => {
                out.put("{");
                for (place, (key, value)) in self.members().enumerate() {
                    if place > 0 {
                        out.put(",");
                    }
                    key.write_quoted(out);
                    out.put(":");
                    value.write(out);
                }
                out.put("}");
            }
            ValueKind::String => {
                if let Some(text) = self.text() {
                    text.write_quoted(out);
                }
            }
            _ => out.put(self.raw()),
        }
    }

    fn node(self) -> Node {
        // An index only ever comes from the scanner that made the nodes.
        self.json.nodes[self.index as usize]
    }
}

/// Keys and values of an object, see [`Value::members`].
#[derive(Debug, Clone)]
pub struct Members<'j, 'a>(MembersForm<'j, 'a>);

#[derive(Debug, Clone)]
enum MembersForm<'j, 'a> {
    AsWritten { json: &'j JsonTree<'a>, at: u32, end: u32 },
    Distinct(std::vec::IntoIter<(Text<'a>, Value<'j, 'a>)>),
}

impl<'j, 'a> Iterator for Members<'j, 'a> {
    type Item = (Text<'a>, Value<'j, 'a>);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            MembersForm::AsWritten { json, at, end } => {
                if at >= end {
                    return None;
                }
                let key = Value { json, index: *at }.text()?;
                let value = Value { json, index: *at + 1 };
                *at = value.node().next;
                Some((key, value))
            }
            MembersForm::Distinct(members) => members.next(),
        }
    }
}

/// The content of a string in the form of a JSON literal without its quotes.
#[derive(Debug, Clone)]
pub struct Text<'a> {
    literal: Cow<'a, str>,
    spelling: Spelling,
}

impl<'a> Text<'a> {
    /// Text of our own, from characters.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        let text = text.into();
        if plain_run(text.as_bytes()).0 == text.len() {
            return Self { literal: text, spelling: Spelling::Plain };
        }
        let mut literal = String::with_capacity(text.len() + 16);
        escape_with(&text, |piece| literal.push_str(piece));
        Self { literal: Cow::Owned(literal), spelling: Spelling::Escaped }
    }

    /// The line break that joins texts.
    pub const LINE_BREAK: Text<'static> = Text { literal: Cow::Borrowed("\\n"), spelling: Spelling::Escaped };

    /// The blank line that separates texts.
    pub const BLANK_LINE: Text<'static> = Text { literal: Cow::Borrowed("\\n\\n"), spelling: Spelling::Escaped };

    /// A constant that needs no escapes.
    pub(crate) const fn constant(text: &'static str) -> Text<'static> {
        Text { literal: Cow::Borrowed(text), spelling: Spelling::Plain }
    }

    /// The same text, borrowed from this one.
    pub fn by_ref(&self) -> Text<'_> {
        Text { literal: Cow::Borrowed(&self.literal), spelling: self.spelling }
    }

    /// Whether it has no character.
    pub fn is_empty(&self) -> bool {
        self.literal.is_empty()
    }

    /// Whether it has no character but white space.
    pub fn is_blank(&self) -> bool {
        self.chars().all(char::is_whitespace)
    }

    /// Whether it is exactly this text.
    pub fn is(&self, text: &str) -> bool {
        match self.spelling {
            Spelling::Plain => self.literal == text,
            _ => self.decode() == text,
        }
    }

    /// Whether a text occurs in it; the text must have no character that is ever escaped.
    pub fn contains(&self, text: &str) -> bool {
        match self.spelling {
            Spelling::Odd => self.decode().contains(text),
            _ => memchr::memmem::find(self.literal.as_bytes(), text.as_bytes()).is_some(),
        }
    }

    /// The first characters of it, at most this many.
    pub fn truncated(&self, most: usize) -> Text<'_> {
        // A literal is at least as long as its text.
        if self.literal.len() <= most {
            return self.by_ref();
        }
        let mut chars = self.chars();
        let cut = chars.by_ref().take(most).count() == most;
        let kept = if cut { self.literal.len() - chars.rest.len() } else { self.literal.len() };
        Text { literal: Cow::Borrowed(self.literal.get(..kept).unwrap_or_default()), spelling: self.spelling }
    }

    /// The literal as it stands: valid JSON between quotes, in any spelling.
    pub fn literal(&self) -> &str {
        &self.literal
    }

    /// The characters.
    pub fn chars(&self) -> Chars<'_> {
        Chars { rest: &self.literal }
    }

    /// The text itself.
    pub fn decode(&self) -> Cow<'_, str> {
        self.by_ref().into_decoded()
    }

    /// The text itself; nothing is copied when the literal is plain.
    pub fn into_decoded(self) -> Cow<'a, str> {
        match self.spelling {
            Spelling::Plain => self.literal,
            _ => Cow::Owned(decode_whole(&self.literal).into_owned()),
        }
    }

    /// The text itself, piece by piece: nothing is put together.
    pub fn decode_into(&self, mut take: impl FnMut(&str)) {
        let mut rest = &*self.literal;
        while let Some(found) = memchr::memchr(b'\\', rest.as_bytes()) {
            take(rest.get(..found).unwrap_or_default());
            rest = rest.get(found..).unwrap_or_default();
            let (char, length) = unescape(rest.as_bytes());
            take(char.encode_utf8(&mut [0; 4]));
            rest = rest.get(length..).unwrap_or_default();
        }
        take(rest);
    }

    /// Writes the literal in TR4's spelling: only `"`, `\` and U+0000–U+001F are escaped.
    pub fn write(&self, out: &mut impl Sink) {
        if self.spelling < Spelling::Odd {
            return out.put(&self.literal);
        }
        // Only `\u` and `\/` are spelled anew; everything up to the next of them is copied at once.
        let literal = &*self.literal;
        let (mut copied, mut at) = (0, 0);
        while let Some(found) = memchr::memchr(b'\\', literal.as_bytes().get(at..).unwrap_or_default()) {
            at += found;
            if let Some(b'u' | b'/') = literal.as_bytes().get(at + 1) {
                out.put(literal.get(copied..at).unwrap_or_default());
                let (char, length) = unescape(literal.as_bytes().get(at..).unwrap_or_default());
                escape_with(char.encode_utf8(&mut [0; 4]), |piece| out.put(piece));
                at += length;
                copied = at;
            } else {
                at += 2;
            }
        }
        out.put(literal.get(copied..).unwrap_or_default());
    }

    /// As [`write`](Self::write), between quotes.
    pub fn write_quoted(&self, out: &mut impl Sink) {
        out.put("\"");
        self.write(out);
        out.put("\"");
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.decode() == other.decode()
    }
}

/// The characters of a [`Text`].
#[derive(Debug, Clone)]
pub struct Chars<'t> {
    rest: &'t str,
}

impl Iterator for Chars<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let first = self.rest.chars().next()?;
        let (char, length) = if first == '\\' { unescape(self.rest.as_bytes()) } else { (first, first.len_utf8()) };
        self.rest = self.rest.get(length..).unwrap_or_default();
        Some(char)
    }
}

fn syntax_error(bytes: &[u8], at: usize) -> JsonError {
    let before = bytes.get(..at).unwrap_or(bytes);
    let line_start = memchr::memrchr(b'\n', before).map_or(0, |line_feed| line_feed + 1);
    JsonError::Syntax {
        line: memchr::memchr_iter(b'\n', before).count() + 1,
        // Characters: every byte but UTF-8's continuation bytes.
        column: before.iter().skip(line_start).filter(|&&byte| byte & 0xc0 != 0x80).count() + 1,
    }
}

/// Builds the nodes while a scan runs.
struct Builder<'a> {
    text: &'a str,
    nodes: Vec<Node>,
    open: Vec<Open>,
    /// Counts what `write` would write differently: blanks, odd literals, doubled keys.
    blemishes: u32,
    /// There are more values than may be: no more are noted.
    over: bool,
}

/// A container that isn't closed yet.
struct Open {
    node: u32,
    blemishes: u32,
    /// One bit a hash of the keys so far, and whether one was met twice.
    keys: u64,
    maybe_doubled: bool,
}

impl Visit for Builder<'_> {
    fn leaf(&mut self, kind: ValueKind, span: Range<usize>, spelling: Spelling) {
        self.blemishes += u32::from(spelling == Spelling::Odd);
        self.push(kind, span, spelling);
    }

    fn key(&mut self, span: Range<usize>, spelling: Spelling) {
        let key = self.text.as_bytes().get(span.start + 1..span.end - 1).unwrap_or_default();
        if let Some(open) = self.open.last_mut() {
            let hash = match key {
                [first, .., last] => 7 * usize::from(*first) + 31 * usize::from(*last) + key.len(),
                [only] => usize::from(*only),
                [] => 0,
            };
            let bit = 1 << (hash % 64);
            open.maybe_doubled |= spelling == Spelling::Odd || open.keys & bit != 0;
            open.keys |= bit;
        }
        self.leaf(ValueKind::String, span, spelling);
    }

    fn open(&mut self, kind: ValueKind, at: usize) {
        let node = self.push(kind, at..at + 1, Spelling::Plain);
        self.open.push(Open { node, blemishes: self.blemishes, keys: 0, maybe_doubled: false });
    }

    fn close(&mut self, end: usize) {
        let Some(open) = self.open.pop().filter(|_| !self.over) else { return };
        let doubled = open.maybe_doubled && self.has_doubled_keys(open.node);
        if doubled {
            self.blemishes += 1;
        }
        let next = self.nodes.len() as u32;
        if let Some(node) = self.nodes.get_mut(open.node as usize) {
            node.end = end as u32;
            node.next = next;
            node.exact = self.blemishes == open.blemishes;
            node.doubled = doubled;
        }
    }

    fn blanks(&mut self) {
        self.blemishes += 1;
    }
}

impl Builder<'_> {
    /// Whether an object that has just ended has a key twice.
    fn has_doubled_keys(&self, object: u32) -> bool {
        let mut keys = Vec::new();
        let mut at = object as usize + 1;
        while let (Some(key), Some(value)) = (self.nodes.get(at), self.nodes.get(at + 1)) {
            keys.push(key.text(self.text).into_decoded());
            at = value.next as usize;
        }
        keys.sort_unstable();
        keys.windows(2).any(|pair| pair[0] == pair[1])
    }

    fn push(&mut self, kind: ValueKind, span: Range<usize>, spelling: Spelling) -> u32 {
        // Offsets fit: `parse` has checked the length, and a value takes at least one byte.
        let index = self.nodes.len() as u32;
        let (start, end) = (span.start as u32, span.end as u32);
        self.over |= self.nodes.len() >= MAX_VALUES;
        if !self.over {
            self.nodes.push(Node { start, end, next: index + 1, kind, spelling, exact: true, doubled: false });
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value as Serde};

    use super::*;

    fn written(json: &str) -> String {
        let tree = JsonTree::parse(json.as_bytes()).unwrap();
        let mut out = String::new();
        tree.root().write(&mut out);
        out
    }

    #[test]
    fn writes_compactly_in_the_least_spelling_tr4() {
        for (json, expected) in [
            (" { } ", "{}"),
            ("[ ]", "[]"),
            (r#"[1.0,1e3,-0,12345678901234567890]"#, r#"[1.0,1e3,-0,12345678901234567890]"#),
            ("{ \"b\" : [ 1 , true ] ,\n\t\"a\" : null }", r#"{"b":[1,true],"a":null}"#),
            (r#""\u003c\/\u00e9\u000a\u0022\u005C\u0001\u001f""#, r#""</é\n\"\\\u0001\u001f""#),
            (r#""\ud83d\ude00 \ud83d \ude00 \ud83d\ud83d\ude00""#, "\"😀 \u{fffd} \u{fffd} \u{fffd}😀\""),
            (r#"{"a":1,"b":2,"\u0061":3}"#, r#"{"a":3,"b":2}"#),
            (r#"{"x":{"a":[],"a":{"b":1,"b":2}}}"#, r#"{"x":{"a":{"b":2}}}"#),
        ] {
            assert_eq!(written(json), expected, "{json}");
        }
    }

    #[test]
    fn refuses_anything_but_json_m18() {
        for json in [
            "",
            " ",
            "{",
            "[",
            "]",
            "{]",
            "[}",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{1:1}",
            "1 2",
            "\"",
            "\"\\",
            "\"\\u",
            "\"\\u12",
            "\"\\u123g\"",
            "\"\\x\"",
            "\"\n\"",
            "\"\0\"",
            "-",
            "01",
            "1.",
            ".5",
            "1e",
            "1e+",
            "+1",
            "0x1",
            "tru",
            "True",
            "nul",
            "NaN",
            "'a'",
            "[1 2]",
            "{\"a\" 1}",
            "\u{feff}1",
            "1\u{c}",
        ] {
            assert!(JsonTree::parse(json.as_bytes()).is_err(), "{json:?}");
            assert!(serde_json::from_str::<Serde>(json).is_err(), "{json:?}");
        }
    }

    #[test]
    fn depth_is_counted_in_containers_m12() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(JsonTree::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(JsonTree::parse(nested(MAX_DEPTH + 1).as_bytes()).unwrap_err(), JsonError::TooDeep);
        // Side by side isn't deep.
        assert!(JsonTree::parse(format!("[{}1]", "[[]],".repeat(1000)).as_bytes()).is_ok());
    }

    #[test]
    fn the_number_of_values_is_bounded_m91() {
        let list = |values: usize| format!("[{}0]", "0,".repeat(values - 2));
        assert_eq!(JsonTree::parse(list(MAX_VALUES).as_bytes()).unwrap().root().elements().count(), MAX_VALUES - 1);
        assert_eq!(JsonTree::parse(list(MAX_VALUES + 1).as_bytes()).unwrap_err(), JsonError::TooMany);
        // Keys count, and what isn't JSON is said first.
        let object = |members: usize| format!("{{\"\":0{}}}", ",\"\":0".repeat(members - 1));
        assert!(JsonTree::parse(object(MAX_VALUES / 2 - 1).as_bytes()).is_ok());
        assert_eq!(JsonTree::parse(object(MAX_VALUES / 2).as_bytes()).unwrap_err(), JsonError::TooMany);
        assert!(matches!(JsonTree::parse(&list(MAX_VALUES * 2).as_bytes()[1..]), Err(JsonError::Syntax { .. })));
    }

    #[test]
    fn strings_end_at_every_place_of_a_word() {
        for length in 0..40 {
            for special in ["\"", "\\", "\u{1}", "\u{1f}"] {
                let text =
                    format!("{}{special}{}", "é".repeat(length / 2) + &"x".repeat(length % 2), "y".repeat(length));
                let json = serde_json::to_string(&text).unwrap();
                let tree = JsonTree::parse(json.as_bytes()).unwrap();
                assert_eq!(tree.root().text().unwrap().decode(), text);
                assert_eq!(written(&json), json);
            }
            for raw in 0..0x20_u8 {
                let json = format!("\"{}{}{}\"", "x".repeat(length), char::from(raw), "y".repeat(length));
                assert!(JsonTree::parse(json.as_bytes()).is_err(), "{json:?}");
            }
        }
    }

    #[test]
    fn many_keys_are_told_apart() {
        let object = |count: usize| {
            let members: Vec<_> = (0..count).map(|n| format!("\"k{n}\":{n}")).collect();
            format!("{{{}}}", members.join(","))
        };
        let distinct = object(5_000);
        assert_eq!(written(&distinct), distinct);
        let doubled = format!("{},\"k7\":\"last\"}}", distinct.strip_suffix('}').unwrap());
        assert_eq!(written(&doubled), distinct.replace("\"k7\":7,", "\"k7\":\"last\","));
        let tree = JsonTree::parse(doubled.as_bytes()).unwrap();
        assert_eq!(tree.root().members().count(), 5_000);
        assert_eq!(tree.root().member("k7").unwrap().raw(), "\"last\"");
    }

    #[test]
    fn text_is_cut_and_searched_by_characters() {
        let json = r#""a\u00e9\ud83d\ude00\n<thinking_mode>""#;
        let tree = JsonTree::parse(json.as_bytes()).unwrap();
        let text = tree.root().text().unwrap();
        assert_eq!(text.chars().collect::<String>(), "aé😀\n<thinking_mode>");
        for (most, expected) in [(0, ""), (2, "aé"), (3, "aé😀"), (4, "aé😀\n"), (19, "aé😀\n<thinking_mode>")]
        {
            assert_eq!(text.truncated(most).decode(), expected);
        }
        assert!(text.contains("<thinking_mode>") && !text.contains("<max"));
        assert!(Text::new("x\n<max>").contains("<max>"));
        assert!(Text::new(" \n\u{a0}").is_blank() && !Text::new(" x").is_blank() && Text::new("").is_blank());
        assert_eq!(Text::new("a\"\\\n\u{1}é").literal(), r#"a\"\\\n\u0001é"#);
    }

    /// Any JSON value, with awkward strings and numbers.
    fn any_json() -> impl Strategy<Value = Serde> {
        let string = prop_oneof!["[a-c]{0,3}", any::<String>(), Just("<&>\u{2028}\u{7f}/".to_owned())];
        let leaf = prop_oneof![
            Just(Serde::Null),
            any::<bool>().prop_map(Serde::from),
            any::<i64>().prop_map(Serde::from),
            any::<f64>().prop_map(Serde::from),
            string.clone().prop_map(Serde::from),
        ];
        leaf.prop_recursive(5, 60, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Serde::from),
                prop::collection::vec((string.clone(), inner), 0..6)
                    .prop_map(|members| Serde::Object(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_text_decodes_the_same_in_pieces(text in any::<String>(), ascii in any::<bool>()) {
            let mut json = serde_json::to_string(&text).unwrap();
            if ascii {
                json = json.chars().map(|c| if c.is_ascii() { c.to_string() } else { format!("\\u{:04x}", c as u32 & 0xffff) }).collect();
            }
            let tree = JsonTree::parse(json.as_bytes()).unwrap();
            let literal = tree.root().text().unwrap();
            let mut pieces = String::new();
            literal.decode_into(|piece| pieces.push_str(piece));
            prop_assert_eq!(pieces, literal.decode());
        }

        #[test]
        fn writes_what_serde_writes_tr4(value in any_json(), pretty in any::<bool>()) {
            let compact = serde_json::to_string(&value).unwrap();
            let given = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { compact.clone() };
            prop_assert_eq!(written(&given), compact);
        }

        #[test]
        fn accepts_what_serde_accepts_m18(value in any_json(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
            let mut bytes = serde_json::to_vec(&value).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            let ours = JsonTree::parse(&bytes);
            match serde_json::from_slice::<Serde>(&bytes) {
                Ok(theirs) => {
                    let mut out = String::new();
                    ours.unwrap().root().write(&mut out);
                    // As values: serde_json spells exponents anew.
                    prop_assert_eq!(serde_json::from_str::<Serde>(&out).unwrap(), theirs);
                }
                // Half a surrogate pair isn't an error here (TR4).
                Err(error) if error.to_string().contains("surrogate") || error.to_string().contains("hex escape") => {}
                Err(_) => prop_assert!(ours.is_err()),
            }
        }
    }
}
