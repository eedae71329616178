//! The one grammar of JSON (RFC 8259): a scan gives each part of a text to a visitor.

use std::ops::Range;

use memchr::{memchr, memchr2};

use super::literal::{Literal, escaped_unit, plain_run};
use crate::simd::{BLOCK, stops};

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
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

/// How a literal is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Spelling {
    /// Every character stands for itself.
    Plain,
    /// With escapes, exactly as TR4 would write it.
    Escaped,
    /// With `\u` or `\/`: TR4 may write it in another way.
    Odd,
}

/// Why a scan ends early.
pub(super) enum Stop {
    /// The text is no JSON.
    Syntax,
    /// Containers nest deeper than allowed.
    TooDeep,
}

/// Gets the parts of a text in their order. Spans are in bytes, quotes and brackets included.
pub(super) trait Visit {
    /// A value that isn't a container.
    fn leaf(&mut self, kind: ValueKind, span: Range<usize>, spelling: Spelling);
    /// A member's name; its value is next.
    fn key(&mut self, span: Range<usize>, spelling: Spelling);
    /// A container begins.
    fn open(&mut self, kind: ValueKind, at: usize);
    /// The innermost open container has ended.
    fn close(&mut self, end: usize);
    /// There was white space.
    fn blanks(&mut self) {}
}

/// Checks a whole text, white space around its one value allowed. Containers nest at most `depth` deep; nothing here recurses.
///
/// An error comes with the offset of the first wrong byte.
pub(super) fn scan(text: &str, depth: usize, visit: &mut impl Visit) -> Result<(), (Stop, usize)> {
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0, depth, open: Vec::with_capacity(16), visit };
    scanner.document().map_err(|stop| (stop, scanner.at))
}

struct Scanner<'a, V> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    /// What is open, from outside: [`ValueKind::Object`] or [`ValueKind::Array`].
    open: Vec<ValueKind>,
    visit: &'a mut V,
}

impl<V: Visit> Scanner<'_, V> {
    fn document(&mut self) -> Result<(), Stop> {
        self.blanks();
        loop {
            // Here a value must begin.
            let opened = match self.peek() {
                Some(b'"') => {
                    let start = self.at;
                    let spelling = self.string()?;
                    self.visit.leaf(ValueKind::String, start..self.at, spelling);
                    false
                }
                Some(b'{') => self.open(ValueKind::Object)?,
                Some(b'[') => self.open(ValueKind::Array)?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.word(b"true", ValueKind::Bool)?,
                Some(b'f') => self.word(b"false", ValueKind::Bool)?,
                Some(b'n') => self.word(b"null", ValueKind::Null)?,
                _ => return Err(Stop::Syntax),
            };
            if opened {
                continue;
            }
            // Here a value has ended: close what it closes, until another must begin.
            loop {
                self.blanks();
                let Some(&kind) = self.open.last() else {
                    return if self.at == self.bytes.len() { Ok(()) } else { Err(Stop::Syntax) };
                };
                match (self.peek(), kind) {
                    (Some(b','), kind) => {
                        self.at += 1;
                        self.blanks();
                        if kind == ValueKind::Object {
                            self.key()?;
                        }
                        break;
                    }
                    (Some(b'}'), ValueKind::Object) | (Some(b']'), ValueKind::Array) => self.close(),
                    _ => return Err(Stop::Syntax),
                }
            }
        }
    }

    /// Opens a container; true when it isn't empty, so that a value must follow.
    fn open(&mut self, kind: ValueKind) -> Result<bool, Stop> {
        if self.open.len() >= self.depth {
            return Err(Stop::TooDeep);
        }
        self.visit.open(kind, self.at);
        self.open.push(kind);
        self.at += 1;
        self.blanks();
        match (self.peek(), kind) {
            (Some(b'}'), ValueKind::Object) | (Some(b']'), ValueKind::Array) => {
                self.close();
                Ok(false)
            }
            (_, ValueKind::Object) => self.key().map(|()| true),
            _ => Ok(true),
        }
    }

    /// Takes the closing bracket.
    fn close(&mut self) {
        self.at += 1;
        self.open.pop();
        self.visit.close(self.at);
    }

    /// Takes a key and its colon.
    fn key(&mut self) -> Result<(), Stop> {
        if self.peek() != Some(b'"') {
            return Err(Stop::Syntax);
        }
        let start = self.at;
        let spelling = self.string()?;
        self.visit.key(start..self.at, spelling);
        self.blanks();
        if self.peek() != Some(b':') {
            return Err(Stop::Syntax);
        }
        self.at += 1;
        self.blanks();
        Ok(())
    }

    /// Takes a string, from its opening quote.
    fn string(&mut self) -> Result<Spelling, Stop> {
        let mut spelling = Spelling::Plain;
        self.at += 1;
        loop {
            self.blocks(&mut spelling);
            self.at += plain_run(self.bytes.get(self.at..).unwrap_or_default()).0;
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
        Ok(spelling)
    }

    /// Takes plain characters and the common escapes of a string, up to something else or to less than a block.
    fn blocks(&mut self, spelling: &mut Spelling) {
        while let Some(block) = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<BLOCK>) {
            let mut stops = stops(block);
            let mut taken = BLOCK;
            while stops != 0 {
                let here = stops.trailing_zeros() as usize;
                let escaped = self.bytes.get(self.at + here + 1);
                let (b'\\', Some(b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't')) = (block[here], escaped) else {
                    self.at += here;
                    return;
                };
                *spelling = (*spelling).max(Spelling::Escaped);
                stops &= !(0b11 << here);
                // The last one may reach beyond the block.
                taken = taken.max(here + 2);
            }
            self.at += taken;
        }
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
        self.visit.leaf(ValueKind::Number, start..self.at, Spelling::Plain);
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
    fn word(&mut self, word: &[u8], kind: ValueKind) -> Result<bool, Stop> {
        let start = self.at;
        for byte in word {
            if self.peek() != Some(*byte) {
                return Err(Stop::Syntax);
            }
            self.at += 1;
        }
        self.visit.leaf(kind, start..self.at, Spelling::Plain);
        Ok(false)
    }

    fn blanks(&mut self) {
        let from = self.at;
        while self.peek().is_some_and(is_blank) {
            self.at += 1;
        }
        if self.at != from {
            self.visit.blanks();
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }
}

/// A valid JSON text without the blanks between its tokens; keys, order and the spelling of numbers stay.
pub fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut from, mut in_string, mut escaped) = (0, false, false);
    for (at, byte) in json.bytes().enumerate() {
        if in_string {
            (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
        } else if byte == b'"' {
            in_string = true;
        } else if is_blank(byte) {
            out.push_str(&json[from..at]);
            from = at + 1;
        }
    }
    out.push_str(&json[from..]);
    out
}

/// Whether a JSON object or array that comes in pieces is complete: begins with `{` or `[`, that bracket is closed again,
/// only blanks follow (TS13). Counts brackets outside of strings; it doesn't tell good JSON from bad.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Completeness {
    /// Only blanks so far.
    #[default]
    Blank,
    /// Inside the outermost bracket.
    Open {
        /// How many brackets are open, at least one.
        depth: u64,
        /// Inside a string, and whether the next character of it is escaped.
        string: Option<bool>,
    },
    /// The outermost bracket is closed, only blanks followed.
    Complete,
    /// It began with something else, or something followed: it never becomes complete.
    Never,
}

impl Completeness {
    /// Takes the next piece of the text.
    pub fn text(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        while let Some(&byte) = rest.first()
            && *self != Self::Never
        {
            if let Self::Open { string: Some(false), .. } = self {
                // Bytes of a longer UTF-8 sequence mean nothing here.
                let run = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
                if run > 0 {
                    rest = &rest[run..];
                    continue;
                }
            }
            self.byte(byte);
            rest = &rest[1..];
        }
    }

    /// Takes the next piece of the text, given as a literal: an escape counts as what it stands for.
    pub fn literal(&mut self, literal: Literal<'_>) {
        let mut rest = literal.as_bytes();
        while let Some(&byte) = rest.first()
            && *self != Self::Never
        {
            if let Self::Open { string: Some(false), .. } = self {
                // Quotes and backslashes of the text are escapes in the literal.
                let run = memchr(b'\\', rest).unwrap_or(rest.len());
                if run > 0 {
                    rest = &rest[run..];
                    continue;
                }
            }
            let (unit, length) = if byte == b'\\' { escaped_unit(rest) } else { (u16::from(byte), 1) };
            self.byte(u8::try_from(unit).unwrap_or(u8::MAX));
            rest = rest.get(length..).unwrap_or_default();
        }
    }

    /// Whether nothing but blanks came.
    pub fn is_blank(self) -> bool {
        self == Self::Blank
    }

    /// Whether the text is complete.
    pub fn is_complete(self) -> bool {
        self == Self::Complete
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        *self = match *self {
            Self::Open { depth, string: Some(escaped) } => match byte {
                b'"' if !escaped => Self::Open { depth, string: None },
                _ => Self::Open { depth, string: Some(!escaped && byte == b'\\') },
            },
            Self::Open { depth, string: None } => match byte {
                b'"' => Self::Open { depth, string: Some(false) },
                b'{' | b'[' => Self::Open { depth: depth + 1, string: None },
                b'}' | b']' if depth == 1 => Self::Complete,
                b'}' | b']' => Self::Open { depth: depth - 1, string: None },
                _ => return,
            },
            Self::Blank | Self::Complete if is_blank(byte) => return,
            Self::Blank if matches!(byte, b'{' | b'[') => Self::Open { depth: 1, string: None },
            Self::Blank | Self::Complete | Self::Never => Self::Never,
        };
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use super::super::escape;
    use super::super::tree::JsonTree;
    use super::*;

    #[test]
    fn a_string_is_read_alike_wherever_its_escapes_are() {
        let pieces =
            [r#"\""#, r"\\", r"\n", r"\/", r"\u00e9", r"\ud83d\ude00", r"\x", r"\u12", "\"", "\n", "\u{7f}", "é"];
        for first in pieces {
            for second in pieces {
                for at in (0..70).chain([95, 96]) {
                    let json = format!("\"{}{first}{second}{}\"", "a".repeat(at), "b".repeat(70 - at % 70));
                    let (ours, theirs) = (JsonTree::parse(json.as_bytes()), serde_json::from_str::<String>(&json));
                    let ours = ours.ok().and_then(|tree| Some(tree.root().text()?.decode().into_owned()));
                    assert_eq!(ours, theirs.ok(), "{json}");
                }
            }
        }
    }

    #[test]
    fn compact_keeps_strings_order_and_numbers() {
        let json = "{ \"b\" : [ 1.0 , 1e3 ,\n\"x \\\" y \\\\\" , { } ] ,\t\"a\":12345678901234567890 }";
        assert_eq!(compact(json), r#"{"b":[1.0,1e3,"x \" y \\",{}],"a":12345678901234567890}"#);
    }

    #[test]
    fn a_text_is_complete_when_its_first_bracket_is_closed_ts13() {
        let complete = |text: &str| {
            let mut state = Completeness::default();
            state.text(text);
            let mut literal = Vec::new();
            escape(text, &mut literal);
            let mut same = Completeness::default();
            same.literal(Literal::new(&literal).unwrap());
            assert_eq!(state, same, "{text}");
            state
        };
        for whole in ["{}", " [1]\n", r#"{"s":"\"}"}"#, r#"{"a":[{},{"b":"]"}]}"#, r#"{"k":}"#, "{]"] {
            assert!(complete(whole).is_complete(), "{whole}");
        }
        for half in [r#"{"s":"}""#, "{", r#"{"a":{}"#, r#"{"s":"\"}"#, "{}x", "5", "\"{}\"", "{} {}", "}"] {
            assert!(!complete(half).is_complete() && !complete(half).is_blank(), "{half}");
        }
        assert!(complete("").is_blank() && complete(" \r\n\t").is_blank());
    }

    #[test]
    fn completeness_reads_the_escapes_of_a_literal_ts13() {
        let mut state = Completeness::default();
        state.literal(Literal::new(br#"\u007b\"s\":\"\u0022\u007D"#).unwrap());
        assert!(state.is_complete());
    }
}
