//! JSON as it lies in a request body: one checking pass that notes where every value is and decodes nothing.
//!
//! A body is mostly text that goes out as it came in. So strings stay literals, client-owned JSON stays bytes, and
//! both are copied; only a literal whose spelling TR4 wouldn't give (`\u003c`, `\/`) is decoded and spelled anew.
//!
//! - The grammar is RFC 8259's, nothing more. Containers nest at most [`MAX_DEPTH`] deep (M12).
//! - Of equal keys the last one's value counts, at the first one's place, as in JavaScript.
//! - An unpaired surrogate escape reads as U+FFFD (TR4).
//! - Memory: 16 bytes a value, so at most 8 times the text (`[0,0,0…`), usually a twentieth of it.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Containers nest at most this deep (M12).
pub const MAX_DEPTH: usize = 128;

/// Why a text is no JSON that we take.
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
    /// A text of 4 GiB or more: positions are 32 bits wide.
    TooLong,
}

/// A checked JSON text and the places of its values.
#[derive(Debug)]
pub struct Json<'a> {
    text: &'a str,
    nodes: Vec<Node>,
}

/// The name of a value inside its [`Json`]; stays valid as long as that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueId(u32);

/// A value inside a [`Json`].
#[derive(Debug, Clone, Copy)]
pub struct Value<'j, 'a> {
    json: &'j Json<'a>,
    index: u32,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true`, `false`
    Bool,
    /// A number in any spelling.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
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
    kind: Kind,
    /// Of a string.
    spelling: Spelling,
    /// Of a container: its bytes are exactly what `write` would give.
    exact: bool,
    /// Of an object: a key occurs more than once.
    doubled: bool,
}

impl<'a> Json<'a> {
    /// Checks a whole text.
    ///
    /// # Errors
    /// [`JsonError`]; of several problems the first in the text, but bad UTF-8 before all others.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, JsonError> {
        if u32::try_from(bytes.len()).is_err() {
            return Err(JsonError::TooLong);
        }
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => return Err(syntax_error(bytes, error.valid_up_to())),
        };
        let mut scanner = Scanner::new(bytes);
        match scanner.document() {
            Ok(()) => Ok(Self { text, nodes: scanner.nodes }),
            Err(Stop::Syntax) => Err(syntax_error(bytes, scanner.at)),
            Err(Stop::TooDeep) => Err(JsonError::TooDeep),
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
    pub fn kind(self) -> Kind {
        self.node().kind
    }

    /// Its bytes as they came.
    pub fn raw(self) -> &'a str {
        let node = self.node();
        self.json.text.get(node.start as usize..node.end as usize).unwrap_or_default()
    }

    /// The text, if it is a string.
    pub fn text(self) -> Option<Text<'a>> {
        let node = self.node();
        if node.kind != Kind::String {
            return None;
        }
        let literal = self.json.text.get(node.start as usize + 1..node.end as usize - 1).unwrap_or_default();
        Some(Text { literal: Cow::Borrowed(literal), spelling: node.spelling })
    }

    /// The truth value, if it is one.
    pub fn bool(self) -> Option<bool> {
        (self.kind() == Kind::Bool).then(|| self.raw() == "true")
    }

    /// The elements of an array; nothing for any other kind.
    pub fn elements(self) -> impl Iterator<Item = Value<'j, 'a>> + Clone {
        let node = self.node();
        let (mut at, end) = if node.kind == Kind::Array { (self.index + 1, node.next) } else { (0, 0) };
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
        let (at, end) = if node.kind == Kind::Object { (self.index + 1, node.next) } else { (0, 0) };
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
            Kind::Array if !node.exact => {
                out.put("[");
                for (place, element) in self.elements().enumerate() {
                    if place > 0 {
                        out.put(",");
                    }
                    element.write(out);
                }
                out.put("]");
            }
            Kind::Object if !node.exact => {
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
            Kind::String => {
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
    AsWritten { json: &'j Json<'a>, at: u32, end: u32 },
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

/// How a literal is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Spelling {
    /// Every character stands for itself.
    Plain,
    /// With escapes, exactly as TR4 would write it.
    Escaped,
    /// With `\u` or `\/`: not, or perhaps not, as TR4 would write it.
    Odd,
}

impl<'a> Text<'a> {
    /// Text of our own, from characters.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        let text = text.into();
        match text.bytes().any(needs_escape) {
            false => Self { literal: text, spelling: Spelling::Plain },
            true => {
                let mut literal = String::with_capacity(text.len() + 16);
                text.chars().for_each(|char| put_char(char, &mut literal));
                Self { literal: Cow::Owned(literal), spelling: Spelling::Escaped }
            }
        }
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
            _ => {
                let mut decoded = String::with_capacity(self.literal.len());
                let mut rest = &*self.literal;
                while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
                    let (run, escape) = rest.split_at(at);
                    decoded.push_str(run);
                    let (char, length) = unescape(escape);
                    decoded.push(char);
                    rest = escape.get(length..).unwrap_or_default();
                }
                decoded.push_str(rest);
                Cow::Owned(decoded)
            }
        }
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
                let (char, length) = unescape(literal.get(at..).unwrap_or_default());
                put_char(char, out);
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
        let (char, length) = if first == '\\' { unescape(self.rest) } else { (first, first.len_utf8()) };
        self.rest = self.rest.get(length..).unwrap_or_default();
        Some(char)
    }
}

const fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn put_char(char: char, out: &mut impl Sink) {
    match char {
        '"' => out.put("\\\""),
        '\\' => out.put("\\\\"),
        '\n' => out.put("\\n"),
        '\t' => out.put("\\t"),
        '\r' => out.put("\\r"),
        '\u{8}' => out.put("\\b"),
        '\u{c}' => out.put("\\f"),
        '\0'..'\x20' => out.put(&format!("\\u{:04x}", u32::from(char))),
        _ => out.put(char.encode_utf8(&mut [0; 4])),
    }
}

/// The character of the escape that a checked literal begins with, and the escape's length in bytes.
pub(crate) fn unescape(escape: &str) -> (char, usize) {
    let char = match escape.as_bytes().get(1) {
        Some(b'n') => '\n',
        Some(b't') => '\t',
        Some(b'r') => '\r',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'u') => return unescape_unicode(escape),
        Some(&byte) => char::from(byte),
        None => char::REPLACEMENT_CHARACTER,
    };
    (char, 2)
}

fn unescape_unicode(escape: &str) -> (char, usize) {
    let unit = |from: usize| match escape.as_bytes().get(from..from + 6)? {
        [b'\\', b'u', digits @ ..] => {
            digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)?))
        }
        _ => None,
    };
    let Some(first) = unit(0) else { return (char::REPLACEMENT_CHARACTER, escape.len().min(6)) };
    if let (0xd800..0xdc00, Some(second @ 0xdc00..0xe000)) = (first, unit(6)) {
        let scalar = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return (char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 6)
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

/// The checking pass.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    open: Vec<Open>,
    /// Grows with everything that `write` would write differently: blanks, odd literals, doubled keys.
    blemishes: u32,
}

/// A container that isn't closed yet.
struct Open {
    node: u32,
    object: bool,
    blemishes: u32,
    /// One bit a hash of the keys so far, and whether one was met twice.
    keys: u64,
    maybe_doubled: bool,
}

enum Stop {
    Syntax,
    TooDeep,
}

impl<'a> Scanner<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            nodes: Vec::with_capacity(bytes.len() / 64 + 16),
            open: Vec::with_capacity(16),
            blemishes: 0,
        }
    }

    fn document(&mut self) -> Result<(), Stop> {
        self.blanks();
        loop {
            // Here a value must begin.
            let opened = match self.peek() {
                Some(b'"') => self.string()?,
                Some(b'{') => self.open(true)?,
                Some(b'[') => self.open(false)?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.word(b"true", Kind::Bool)?,
                Some(b'f') => self.word(b"false", Kind::Bool)?,
                Some(b'n') => self.word(b"null", Kind::Null)?,
                _ => return Err(Stop::Syntax),
            };
            if opened {
                continue;
            }
            // Here a value has ended: close what it closes, until another must begin.
            loop {
                self.blanks();
                let Some(open) = self.open.last() else {
                    return if self.at == self.bytes.len() { Ok(()) } else { Err(Stop::Syntax) };
                };
                match (self.peek(), open.object) {
                    (Some(b','), object) => {
                        self.at += 1;
                        self.blanks();
                        if object {
                            self.key()?;
                        }
                        break;
                    }
                    (Some(b'}'), true) | (Some(b']'), false) => self.close(),
                    _ => return Err(Stop::Syntax),
                }
            }
        }
    }

    /// Opens a container; whether a value must follow (it isn't empty).
    fn open(&mut self, object: bool) -> Result<bool, Stop> {
        if self.open.len() == MAX_DEPTH {
            return Err(Stop::TooDeep);
        }
        let kind = if object { Kind::Object } else { Kind::Array };
        let node = self.push(kind, self.at, self.at + 1, Spelling::Plain);
        self.open.push(Open { node, object, blemishes: self.blemishes, keys: 0, maybe_doubled: false });
        self.at += 1;
        self.blanks();
        match (self.peek(), object) {
            (Some(b'}'), true) | (Some(b']'), false) => {
                self.close();
                Ok(false)
            }
            (_, true) => self.key().map(|()| true),
            (_, false) => Ok(true),
        }
    }

    /// Takes the closing bracket.
    fn close(&mut self) {
        self.at += 1;
        let Some(open) = self.open.pop() else { return };
        let doubled = open.maybe_doubled && self.has_doubled_keys(open.node);
        if doubled {
            self.blemishes += 1;
        }
        let next = self.nodes.len() as u32;
        if let Some(node) = self.nodes.get_mut(open.node as usize) {
            node.end = self.at as u32;
            node.next = next;
            node.exact = self.blemishes == open.blemishes;
            node.doubled = doubled;
        }
    }

    /// Takes a key and its colon.
    fn key(&mut self) -> Result<(), Stop> {
        if self.peek() != Some(b'"') {
            return Err(Stop::Syntax);
        }
        let from = self.at + 1;
        self.string()?;
        let key = self.bytes.get(from..self.at - 1).unwrap_or_default();
        let odd = self.nodes.last().is_some_and(|node| node.spelling == Spelling::Odd);
        if let Some(open) = self.open.last_mut() {
            let hash = match key {
                [first, .., last] => 7 * usize::from(*first) + 31 * usize::from(*last) + key.len(),
                [only] => usize::from(*only),
                [] => 0,
            };
            let bit = 1 << (hash % 64);
            open.maybe_doubled |= odd || open.keys & bit != 0;
            open.keys |= bit;
        }
        self.blanks();
        if self.peek() != Some(b':') {
            return Err(Stop::Syntax);
        }
        self.at += 1;
        self.blanks();
        Ok(())
    }

    /// Whether an object that has just ended has a key twice.
    fn has_doubled_keys(&self, object: u32) -> bool {
        let mut keys = Vec::new();
        let mut at = object as usize + 1;
        while let (Some(key), Some(value)) = (self.nodes.get(at), self.nodes.get(at + 1)) {
            let literal = self.bytes.get(key.start as usize + 1..key.end as usize - 1).unwrap_or_default();
            let literal = String::from_utf8_lossy(literal);
            keys.push(Text { literal, spelling: key.spelling }.into_decoded());
            at = value.next as usize;
        }
        keys.sort_unstable();
        keys.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// Takes a string; never opens anything.
    fn string(&mut self) -> Result<bool, Stop> {
        let start = self.at;
        let mut spelling = Spelling::Plain;
        self.at += 1;
        loop {
            self.at += ordinary_prefix(self.bytes.get(self.at..).unwrap_or_default());
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => match self.bytes.get(self.at + 1) {
                    Some(b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't') => {
                        spelling = spelling.max(Spelling::Escaped);
                        self.at += 2;
                    }
                    Some(b'/') => {
                        spelling = Spelling::Odd;
                        self.at += 2;
                    }
                    Some(b'u') => {
                        spelling = Spelling::Odd;
                        self.at += 2;
                        for _ in 0..4 {
                            if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                                return Err(Stop::Syntax);
                            }
                            self.at += 1;
                        }
                    }
                    _ => {
                        self.at += 1;
                        return Err(Stop::Syntax);
                    }
                },
                // A control character, or the end.
                _ => return Err(Stop::Syntax),
            }
        }
        self.at += 1;
        if spelling == Spelling::Odd {
            self.blemishes += 1;
        }
        self.push(Kind::String, start, self.at, spelling);
        Ok(false)
    }

    /// Takes a number; never opens anything.
    fn number(&mut self) -> Result<bool, Stop> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        self.push(Kind::Number, start, self.at, Spelling::Plain);
        Ok(false)
    }

    /// Takes at least one digit.
    fn digits(&mut self) -> Result<(), Stop> {
        let from = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == from { Err(Stop::Syntax) } else { Ok(()) }
    }

    /// Takes a word; never opens anything.
    fn word(&mut self, word: &[u8], kind: Kind) -> Result<bool, Stop> {
        let start = self.at;
        for byte in word {
            if self.peek() != Some(*byte) {
                return Err(Stop::Syntax);
            }
            self.at += 1;
        }
        self.push(kind, start, self.at, Spelling::Plain);
        Ok(false)
    }

    fn blanks(&mut self) {
        let from = self.at;
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
        if self.at != from {
            self.blemishes += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn push(&mut self, kind: Kind, start: usize, end: usize, spelling: Spelling) -> u32 {
        // Offsets fit: `parse` has looked at the length, and a value takes at least one byte.
        let index = self.nodes.len() as u32;
        let (start, end) = (start as u32, end as u32);
        self.nodes.push(Node { start, end, next: index + 1, kind, spelling, exact: true, doubled: false });
        index
    }
}

/// How many bytes from the start stand for themselves inside a string: no quote, backslash, control character.
///
/// Eight at a time: a byte under test gives its high bit, and the lowest such bit is exact (a borrow only disturbs
/// the bytes above it).
fn ordinary_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let mut length = 0;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        let quote = word ^ (ONES * b'"' as u64);
        let backslash = word ^ (ONES * b'\\' as u64);
        let special = (quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash)
            | (word.wrapping_sub(ONES * 0x20) & !word);
        if special & HIGH != 0 {
            return length + ((special & HIGH).trailing_zeros() / 8) as usize;
        }
        length += 8;
    }
    length + rest.iter().position(|&byte| needs_escape(byte)).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value as Serde};

    use super::*;

    fn written(json: &str) -> String {
        let tree = Json::parse(json.as_bytes()).unwrap();
        let mut out = String::new();
        tree.root().write(&mut out);
        out
    }

    #[test]
    fn tr4_writes_compactly_in_the_least_spelling() {
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
    fn m18_refuses_what_is_no_json() {
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
            assert!(Json::parse(json.as_bytes()).is_err(), "{json:?}");
            assert!(serde_json::from_str::<Serde>(json).is_err(), "{json:?}");
        }
    }

    #[test]
    fn m12_depth_is_counted_in_containers() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Json::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(Json::parse(nested(MAX_DEPTH + 1).as_bytes()).unwrap_err(), JsonError::TooDeep);
        // Side by side isn't deep.
        assert!(Json::parse(format!("[{}1]", "[[]],".repeat(1000)).as_bytes()).is_ok());
    }

    #[test]
    fn strings_end_at_every_place_of_a_word() {
        for length in 0..40 {
            for special in ["\"", "\\", "\u{1}", "\u{1f}"] {
                let text =
                    format!("{}{special}{}", "é".repeat(length / 2) + &"x".repeat(length % 2), "y".repeat(length));
                let json = serde_json::to_string(&text).unwrap();
                let tree = Json::parse(json.as_bytes()).unwrap();
                assert_eq!(tree.root().text().unwrap().decode(), text);
                assert_eq!(written(&json), json);
            }
            for raw in 0..0x20_u8 {
                let json = format!("\"{}{}{}\"", "x".repeat(length), char::from(raw), "y".repeat(length));
                assert!(Json::parse(json.as_bytes()).is_err(), "{json:?}");
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
        let tree = Json::parse(doubled.as_bytes()).unwrap();
        assert_eq!(tree.root().members().count(), 5_000);
        assert_eq!(tree.root().member("k7").unwrap().raw(), "\"last\"");
    }

    #[test]
    fn text_is_cut_and_searched_by_characters() {
        let json = r#""a\u00e9\ud83d\ude00\n<thinking_mode>""#;
        let tree = Json::parse(json.as_bytes()).unwrap();
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
        fn tr4_writes_what_serde_writes(value in any_json(), pretty in any::<bool>()) {
            let compact = serde_json::to_string(&value).unwrap();
            let given = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { compact.clone() };
            prop_assert_eq!(written(&given), compact);
        }

        #[test]
        fn m18_accepts_what_serde_accepts(value in any_json(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
            let mut bytes = serde_json::to_vec(&value).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            let ours = Json::parse(&bytes);
            match serde_json::from_slice::<Serde>(&bytes) {
                Ok(theirs) => {
                    let mut out = String::new();
                    ours.unwrap().root().write(&mut out);
                    // As values: serde_json spells exponents anew.
                    prop_assert_eq!(serde_json::from_str::<Serde>(&out).unwrap(), theirs);
                }
                // A surrogate half alone is no error here (TR4).
                Err(error) if error.to_string().contains("surrogate") || error.to_string().contains("hex escape") => {}
                Err(_) => prop_assert!(ours.is_err()),
            }
        }
    }
}
