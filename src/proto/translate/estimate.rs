//! The token estimator (TU5–TU7).

use super::search::{outcome_of, text};
use crate::proto::json::tree::{Sink, Text, Value};
use crate::proto::json::unescape;
use crate::proto::kiro::search::{DESCRIPTION, SCHEMA};
use crate::proto::messages::request::{Block, Content, Document, DocumentSource, Request, decoded_len};

/// Counts tokens of text without a tokenizer: a weight per character by its class and the class before it (TU5).
///
/// One pass, no allocation; sums are exact, in hundredths of a token. Text comes in pieces. Cutting a piece between any
/// two characters makes no difference; the first character of a piece counts as if a blank stood before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Estimator {
    hundredths: u64,
    before: Class,
}

/// Classes of characters: the next character's weight depends on them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    /// Blanks, everything outside ASCII, and the start of a piece.
    #[default]
    Blank,
    Lower,
    Upper,
    Digit,
    /// Any other ASCII character.
    Sign,
}

const CLASSES: usize = 5;

/// Weights in hundredths of a token: a first fit, kept as long as the calibration holds (TU6).
mod weight {
    pub const WORD_START: u16 = 94;
    pub const UPPER_AFTER_LOWER: u16 = 105;
    pub const LETTER: u16 = 3;
    pub const FIRST_DIGIT: u16 = 95;
    pub const DIGIT: u16 = 45;
    pub const FIRST_SIGN: u16 = 88;
    pub const SIGN: u16 = 14;
    pub const LINE_FEED: u16 = 72;
    pub const BLANK: u16 = 3;
    pub const IDEOGRAPH: u16 = 74;
    pub const CJK_PUNCTUATION: u16 = 180;
    pub const KANA_HANGUL: u16 = 80;
    pub const TWO_BYTES: u16 = 40;
    pub const THREE_BYTES: u16 = 120;
    pub const FOUR_BYTES: u16 = 250;

    pub const MESSAGE: u64 = 400;
    pub const TOOL_PART: u64 = 800;
    pub const IMAGE: u64 = 160_000;
    pub const DOCUMENT: u64 = 150_000;
    pub const DOCUMENT_TEXT_BYTE: u64 = 25;
}

/// The class of each ASCII character.
const CLASS: [Class; 128] = {
    let mut classes = [Class::Sign; 128];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'\n' | b' ' | b'\t' | b'\r' => Class::Blank,
            b'a'..=b'z' => Class::Lower,
            b'A'..=b'Z' => Class::Upper,
            b'0'..=b'9' => Class::Digit,
            _ => Class::Sign,
        };
        byte += 1;
    }
    classes
};

/// The weight of each ASCII character after each class.
const ASCII: [[u16; 128]; CLASSES] = {
    let mut weights = [[0; 128]; CLASSES];
    let befores = [Class::Blank, Class::Lower, Class::Upper, Class::Digit, Class::Sign];
    let mut before = 0;
    while before < CLASSES {
        let mut byte = 0;
        while byte < 128 {
            weights[before][byte] = match (CLASS[byte], befores[before]) {
                (Class::Blank, _) if byte as u8 == b'\n' => weight::LINE_FEED,
                (Class::Blank, _) => weight::BLANK,
                (Class::Upper, Class::Lower) => weight::UPPER_AFTER_LOWER,
                (Class::Lower | Class::Upper, Class::Lower | Class::Upper) => weight::LETTER,
                (Class::Lower | Class::Upper, _) => weight::WORD_START,
                (Class::Digit, Class::Digit) => weight::DIGIT,
                (Class::Digit, _) => weight::FIRST_DIGIT,
                (Class::Sign, Class::Sign) => weight::SIGN,
                (Class::Sign, _) => weight::FIRST_SIGN,
            };
            byte += 1;
        }
        before += 1;
    }
    weights
};

/// Characters that are weighed at once.
const LANES: usize = 16;

const SPACES: u64 = u64::from_le_bytes([b' '; 8]);

/// A character of each class.
const REPRESENTATIVE: [u8; CLASSES] = [b' ', b'a', b'A', b'0', b'+'];

/// [`ASCII`] without a table and without a branch, so that the compiler weighs many characters in one go: a sum of what
/// each of a few conditions adds, because it has no instruction for a choice.
#[inline(always)]
fn lane(before: u8, byte: u8) -> u8 {
    let when = |condition: bool, adds: u16| if condition { adds as u8 } else { 0 };
    let letter = |byte: u8| (byte | 0x20).wrapping_sub(b'a') < 26;
    let digit = |byte: u8| byte.wrapping_sub(b'0') < 10;
    let blank = |byte: u8| (byte == b' ') | (byte.wrapping_sub(b'\t') < 2) | (byte == b'\r');
    let by_kind = |byte: u8, [sign, of_letter, of_digit, of_blank]: [u16; 4]| {
        (sign as u8)
            .wrapping_add(when(letter(byte), of_letter.wrapping_sub(sign)))
            .wrapping_add(when(digit(byte), of_digit.wrapping_sub(sign)))
            .wrapping_add(when(blank(byte), of_blank.wrapping_sub(sign)))
    };
    let first = by_kind(byte, FIRST);
    let (less, less_before) = (by_kind(byte, LESS), by_kind(before, LESS));
    let upper_after_lower = (byte.wrapping_sub(b'A') < 26) & (before.wrapping_sub(b'a') < 26);
    first
        .wrapping_sub(if less == less_before { less } else { 0 })
        .wrapping_add(when(upper_after_lower, weight::UPPER_AFTER_LOWER - weight::LETTER))
        .wrapping_add(when(byte == b'\n', weight::LINE_FEED - weight::BLANK))
}

/// The weights of a sign, a letter, a digit and a blank behind another kind of character.
const FIRST: [u16; 4] = [weight::FIRST_SIGN, weight::WORD_START, weight::FIRST_DIGIT, weight::BLANK];
/// What each weighs less behind its own kind; another number for each, so that it tells the kind.
const LESS: [u16; 4] =
    [weight::FIRST_SIGN - weight::SIGN, weight::WORD_START - weight::LETTER, weight::FIRST_DIGIT - weight::DIGIT, 0];

/// The sum of all lanes, without taking them out one by one.
#[inline(always)]
fn sum_lanes(lanes: [u8; LANES]) -> u64 {
    const EVEN: u128 = 0x00ff_00ff_00ff_00ff_00ff_00ff_00ff_00ff;
    let lanes = u128::from_le_bytes(lanes);
    let pairs = (lanes & EVEN) + ((lanes >> 8) & EVEN);
    let fours = (pairs as u64) + ((pairs >> 64) as u64);
    fours.wrapping_mul(0x0001_0001_0001_0001) >> 48
}

/// A lane holds a byte.
const _: () = {
    let mut before = 0;
    while before < CLASSES {
        let mut byte = 0;
        while byte < 128 {
            assert!(ASCII[before][byte] <= u8::MAX as u16);
            byte += 1;
        }
        before += 1;
    }
};

impl Estimator {
    /// Counts text as the continuation of the current piece.
    pub fn text(&mut self, text: &str) {
        self.run(text.as_bytes());
    }

    /// Counts the content of a JSON string literal (without its quotes) as the continuation of the current piece:
    /// an escape counts as the character it stands for (TS23), an unpaired surrogate as U+FFFD.
    ///
    /// Calls may cut a literal between characters, but not inside an escape, inside UTF-8, or between the two
    /// escapes of a pair. Other bytes give some count, never a failure.
    pub fn literal(&mut self, literal: &[u8]) {
        let mut rest = literal;
        while let Some(at) = memchr::memchr(b'\\', rest) {
            let (run, escape) = rest.split_at(at);
            self.run(run);
            let simple = match escape.get(1) {
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(&byte @ (b'"' | b'\\' | b'/')) => byte,
                _ => {
                    rest = self.escape(escape);
                    continue;
                }
            };
            self.one_by_one(&[simple], 1);
            rest = &escape[2..];
        }
        self.run(rest);
    }

    /// Counts the escape at the beginning, and returns the rest.
    fn escape<'e>(&mut self, escape: &'e [u8]) -> &'e [u8] {
        let (char, length) = unescape(escape);
        self.one_by_one(char.encode_utf8(&mut [0; 4]).as_bytes(), 1);
        escape.get(length..).unwrap_or_default()
    }

    /// Ends the current piece: the next character has nothing before it.
    pub fn end_piece(&mut self) {
        self.before = Class::Blank;
    }

    /// Adds a fixed amount, in hundredths of a token.
    pub fn add(&mut self, hundredths: u64) {
        self.hundredths = self.hundredths.saturating_add(hundredths);
    }

    /// The exact sum so far, in hundredths of a token.
    pub fn hundredths(&self) -> u64 {
        self.hundredths
    }

    /// The sum so far in tokens, rounded up.
    pub fn tokens(&self) -> u64 {
        self.hundredths.div_ceil(100)
    }

    fn run(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(block) = rest.first_chunk::<LANES>() {
            if block.is_ascii() {
                self.add_block(block, 0);
            } else {
                self.one_by_one(rest, LANES);
            }
            rest = &rest[LANES..];
        }
        if let (Some(first), Some(last)) = (rest.first_chunk::<8>(), rest.last_chunk::<8>())
            && rest.is_ascii()
        {
            // The two overlap; spaces come behind them.
            let padding = LANES - rest.len();
            let beyond = 8 * padding as u32;
            let last = (u128::from(u64::from_le_bytes(*last)) | u128::from(SPACES) << 64) >> beyond;
            let block = u128::from(u64::from_le_bytes(*first)) | last << 64;
            self.add_block(&block.to_le_bytes(), padding);
        } else {
            self.one_by_one(rest, rest.len());
        }
    }

    /// Adds ASCII characters; the last `padding` ones are spaces that aren't there.
    #[inline]
    fn add_block(&mut self, block: &[u8; LANES], padding: usize) {
        let mut before = [0; LANES];
        before[0] = REPRESENTATIVE[self.before as usize];
        before[1..].copy_from_slice(&block[..LANES - 1]);
        let mut weights = [0; LANES];
        for ((weight, &before), &byte) in weights.iter_mut().zip(&before).zip(block) {
            *weight = lane(before, byte);
        }
        self.add(sum_lanes(weights) - padding as u64 * u64::from(weight::BLANK));
        self.before = CLASS[usize::from(block[LANES - 1 - padding] & 0x7f)];
    }

    /// Adds the characters that begin in the first `count` bytes.
    fn one_by_one(&mut self, bytes: &[u8], count: usize) {
        let mut sum = 0_u64;
        let mut before = self.before;
        for (at, &byte) in bytes.iter().enumerate().take(count) {
            if byte < 0x80 {
                sum += u64::from(ASCII[before as usize][byte as usize]);
                before = CLASS[byte as usize];
            } else if byte >= 0xc0 {
                // The first byte of a character outside ASCII; those that follow it add nothing.
                sum += u64::from(wide(byte, bytes.get(at + 1..).unwrap_or_default()));
                before = Class::Blank;
            }
        }
        self.before = before;
        self.add(sum);
    }

    fn piece(&mut self, text: &Text<'_>) {
        self.literal(text.literal().as_bytes());
        self.end_piece();
    }

    /// A name of our own reading.
    fn plain_piece(&mut self, text: &str) {
        self.text(text);
        self.end_piece();
    }

    /// Client-owned JSON, compact; `None` stands for `{}`.
    fn json_piece(&mut self, value: Option<Value<'_, '_>>) {
        match value {
            Some(value) => value.write(self),
            None => self.text("{}"),
        }
        self.end_piece();
    }
}

impl Sink for Estimator {
    fn put(&mut self, text: &str) {
        self.text(text);
    }
}

/// The weight of a character outside ASCII, by its first byte and what follows.
fn wide(first: u8, rest: &[u8]) -> u16 {
    let bits = |byte: Option<&u8>| u32::from(byte.copied().unwrap_or_default() & 0x3f);
    match first {
        0xc0..0xe0 => weight::TWO_BYTES,
        0xe0..0xf0 => {
            let scalar = u32::from(first & 0x0f) << 12 | bits(rest.first()) << 6 | bits(rest.get(1));
            match scalar {
                0x3400..=0x4dbf | 0x4e00..=0x9fff => weight::IDEOGRAPH,
                0x3000..=0x303f | 0xff00..=0xffef => weight::CJK_PUNCTUATION,
                0x3040..=0x30ff | 0xac00..=0xd7af => weight::KANA_HANGUL,
                _ => weight::THREE_BYTES,
            }
        }
        _ => {
            let plane = u32::from(first & 0x07) << 2 | bits(rest.first()) >> 4;
            if matches!(plane, 2 | 3) { weight::IDEOGRAPH } else { weight::FOUR_BYTES }
        }
    }
}

/// The estimate of a whole request in tokens, at least 1 (TU7): `count_tokens`, and the total of `message_start`.
///
/// Counts what the client sent (tools of Anthropic's own and foreign blocks aside), not what goes upstream.
pub fn request_tokens(request: &Request<'_>) -> u64 {
    let mut sum = Estimator::default();
    for system in &request.system {
        sum.piece(&system.text);
    }
    for message in &request.messages {
        sum.add(weight::MESSAGE);
        message.blocks.iter().for_each(|block| count_block(block, request, &mut sum));
    }
    if let Some(schema) = request.schema() {
        sum.plain_piece(&schema);
    }
    for tool in &request.tools {
        sum.add(weight::TOOL_PART);
        sum.plain_piece(&tool.name);
        if let Some(description) = &tool.description {
            sum.piece(description);
        }
        match (&tool.search, tool.published) {
            (Some(_), _) => [DESCRIPTION, SCHEMA].into_iter().for_each(|text| sum.plain_piece(text)),
            (None, Some(schema)) => sum.plain_piece(schema),
            (None, None) => sum.json_piece(tool.schema.map(|schema| request.json.value(schema))),
        }
        tool.examples.iter().for_each(|example| sum.json_piece(Some(request.json.value(*example))));
    }
    sum.tokens().max(1)
}

/// The weight of a block, in hundredths of a token.
pub(super) fn block_hundredths(block: &Block<'_>, request: &Request<'_>) -> u64 {
    let mut sum = Estimator::default();
    count_block(block, request, &mut sum);
    sum.hundredths()
}

fn count_block(block: &Block<'_>, request: &Request<'_>, sum: &mut Estimator) {
    match &block.content {
        Content::Text(text) | Content::Thinking { text, .. } => sum.piece(text),
        Content::Image(_) => sum.add(weight::IMAGE),
        Content::Document(document) => count_document(document, request, sum),
        Content::SearchResult(result) => {
            [&result.title, &result.source].into_iter().chain(&result.texts).for_each(|text| sum.piece(text));
        }
        Content::ToolUse(tool_use) => {
            sum.add(weight::TOOL_PART);
            sum.plain_piece(&tool_use.name);
            match &tool_use.cleared {
                Some(left) => sum.plain_piece(left),
                None => sum.json_piece(tool_use.input.map(|input| request.json.value(input))),
            }
        }
        Content::ToolResult(result) => {
            sum.add(weight::TOOL_PART);
            result.content.iter().for_each(|block| count_block(block, request, sum));
        }
        Content::SearchUse { input, .. } => {
            sum.add(weight::TOOL_PART);
            sum.json_piece(input.map(|input| request.json.value(input)));
        }
        Content::SearchResults { content, .. } => {
            sum.add(weight::TOOL_PART);
            sum.plain_piece(&text("", &outcome_of(request.json.value(*content))));
        }
        Content::ToolReference(name) => sum.plain_piece(name),
        Content::RedactedThinking { .. } | Content::ToolsFound(_) | Content::Summary(_) | Content::Foreign => {}
    }
}

fn count_document(document: &Document<'_>, request: &Request<'_>, sum: &mut Estimator) {
    match &document.source {
        DocumentSource::Base64 { format, data } => {
            let bytes = decoded_len(&data.decode()) as u64;
            sum.add(match format.is_text() {
                true => weight::DOCUMENT_TEXT_BYTE * bytes,
                false => weight::DOCUMENT.max(100 * bytes / 30),
            });
        }
        DocumentSource::Text(text) => sum.piece(text),
        DocumentSource::Content(blocks) => blocks.iter().for_each(|block| count_block(block, request, sum)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::messages::request::Purpose;

    const TV115: [(&str, u64, u64); 8] = [
        ("", 0, 0),
        ("a", 94, 1),
        ("Hello, world!", 391, 4),
        ("getUserName2", 423, 5),
        (r#"{"city":"Paris","days":3}"#, 931, 10),
        (r#"fn main() { println!("{}", 42); }"#, 1019, 11),
        ("你好，世界。", 656, 7),
        ("日本語のテキスト", 622, 7),
    ];

    #[test]
    fn sums_are_exact_tu5_tv115() {
        for (text, hundredths, tokens) in TV115 {
            let mut estimator = Estimator::default();
            estimator.text(text);
            assert_eq!((estimator.hundredths(), estimator.tokens()), (hundredths, tokens), "{text}");
        }
    }

    #[test]
    fn many_characters_at_once_count_as_one_by_one() {
        for before in 0..128_u8 {
            for byte in 0..128_u8 {
                let weight = ASCII[CLASS[usize::from(before)] as usize][usize::from(byte)];
                assert_eq!(u16::from(lane(before, byte)), weight, "{before:#x} {byte:#x}");
            }
        }
        let text = "fn main() {\n\tlet getUserName2 = \"Ünïcode 你好，世界。\"; // 😀 42\r\n}  ".repeat(3);
        for from in (0..text.len()).filter(|&from| text.is_char_boundary(from)) {
            for to in (from..text.len()).filter(|&to| text.is_char_boundary(to)) {
                let (mut at_once, mut one_by_one) = (Estimator::default(), Estimator::default());
                at_once.text(&text[from..to]);
                one_by_one.one_by_one(&text.as_bytes()[from..to], usize::MAX);
                assert_eq!(at_once, one_by_one, "{}", &text[from..to]);
            }
        }
    }

    #[test]
    fn the_same_at_every_cut_and_as_a_literal_tu5_tv115() {
        for (text, hundredths, _) in TV115 {
            let mut in_chars = Estimator::default();
            text.chars().for_each(|char| in_chars.text(char.encode_utf8(&mut [0; 4])));
            assert_eq!(in_chars.hundredths(), hundredths, "{text}");
            let mut literal = Estimator::default();
            literal.literal(Text::new(text).literal().as_bytes());
            assert_eq!(literal.hundredths(), hundredths, "{text}");
            let mut escaped = Estimator::default();
            text.encode_utf16().for_each(|unit| escaped.literal(format!("\\u{unit:04x}").as_bytes()));
            assert_eq!(escaped.hundredths(), hundredths, "{text}");
        }
        let mut streamed = Estimator::default();
        streamed.text("Hello, wor");
        streamed.text("ld!");
        assert_eq!(streamed.hundredths(), 391);
    }

    #[test]
    fn every_row_of_the_table_of_weights_counts_tu5() {
        for (text, hundredths) in [
            ("aB", 94 + 105),
            ("AB", 94 + 3),
            ("1a", 95 + 94),
            ("a1", 94 + 95),
            ("12", 95 + 45),
            ("+-", 88 + 14),
            ("\u{7f}\u{1}", 88 + 14),
            ("+ -", 88 + 3 + 88),
            ("\n\t\r ", 72 + 9),
            ("㐀龿𠀀", 3 * 74),
            ("\u{2ffff}\u{3ffff}", 2 * 74),
            ("\u{40000}😀", 2 * 250),
            ("、！", 2 * 180),
            ("あ한", 2 * 80),
            ("éß", 2 * 40),
            ("€\u{fffd}", 2 * 120),
            ("éa", 40 + 94),
            ("aéb", 94 + 40 + 94),
        ] {
            let mut estimator = Estimator::default();
            estimator.text(text);
            assert_eq!(estimator.hundredths(), hundredths, "{text:?}");
        }
    }

    #[test]
    fn escapes_count_as_their_characters_tu5() {
        for (literal, text) in [
            (r#"a\nb\t\"\\\/\b\f\r"#, "a\nb\t\"\\/\u{8}\u{c}\r"),
            (r"\ud83d\ude00x", "😀x"),
            (r"\ud83dx\ude00", "\u{fffd}x\u{fffd}"),
            (r"\u00e9\u4F60", "é你"),
        ] {
            let (mut escaped, mut plain) = (Estimator::default(), Estimator::default());
            escaped.literal(literal.as_bytes());
            plain.text(text);
            assert_eq!(escaped, plain, "{literal}");
        }
        // No literal at all: any count, no failure.
        for broken in [&b"\\"[..], b"\\u12", b"\\u12\xff", b"\xe4", b"\xf0\x9f", b"\x80\x80", b"\\\xe4\xbd\xa0"] {
            Estimator::default().literal(broken);
        }
    }

    fn tokens(body: &str) -> u64 {
        request_tokens(&Request::parse(body.as_bytes(), Purpose::CountTokens).unwrap())
    }

    #[test]
    fn whole_requests_are_counted_tu7_tv116() {
        let body = |rest: &str, more: &str| {
            format!(
                r#"{{"model":"m"{rest},"messages":[{{"role":"user","content":[{{"type":"text","text":"Hello, world!"}}{more}]}}]}}"#
            )
        };
        assert_eq!(tokens(r#"{"model":"m","messages":[{"role":"user","content":"Hello, world!"}]}"#), 8);
        assert_eq!(tokens(&body("", "")), 8);
        assert_eq!(tokens(&body(r#","system":"a""#, "")), 9);
        let png = r#",{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}}"#;
        assert_eq!(tokens(&body(r#","system":"a""#, png)), 1609);
        let format = r#","output_config":{"format":{"type":"json_schema","schema":{ "type": "object" }}}"#;
        let mut schema = Estimator::default();
        schema.text(r#"{"type":"object"}"#);
        assert_eq!(tokens(&body(format, "")), (790 + schema.hundredths()).div_ceil(100));
    }

    #[test]
    fn every_kind_of_block_is_counted_tu7_m65() {
        let hundredths = |role: &str, blocks: &str| {
            let lead = if role == "user" { "" } else { r#"{"role":"user","content":"a"},"# };
            let body = format!(r#"{{"model":"m","messages":[{lead}{{"role":"{role}","content":[{blocks}]}}]}}"#);
            let request = Request::parse(body.as_bytes(), Purpose::CountTokens).unwrap();
            let mut sum = Estimator::default();
            let last = request.messages.last().unwrap();
            last.blocks.iter().for_each(|block| count_block(block, &request, &mut sum));
            sum.hundredths()
        };
        let base64 = |media_type: &str, data: &str| {
            format!(r#"{{"type":"document","source":{{"type":"base64","media_type":"{media_type}","data":"{data}"}}}}"#)
        };
        for (role, blocks, expected) in [
            ("user", r#"{"type":"text","text":"a"},{"type":"text","text":"a"}"#.to_owned(), 2 * 94),
            ("assistant", r#"{"type":"thinking","thinking":"a","signature":"zzzz"}"#.into(), 94),
            ("assistant", r#"{"type":"redacted_thinking","data":"zzzz"}"#.into(), 0),
            // `{}`; then `{"a":1}`, which stands there with blanks and an odd spelling.
            ("assistant", r#"{"type":"tool_use","id":"t","name":"a"}"#.into(), 800 + 94 + 102),
            (
                "assistant",
                r#"{"type":"tool_use","id":"t","name":"a","input":{ "\u0061" : 1 }}"#.into(),
                800 + 94 + (88 + 14 + 94 + 88 + 14 + 95 + 88),
            ),
            ("user", r#"{"type":"tool_result","tool_use_id":"t"}"#.into(), 800),
            ("user", r#"{"type":"tool_result","tool_use_id":"t","content":"a"}"#.into(), 800 + 94),
            (
                "user",
                r#"{"type":"search_result","title":"a","source":"a","content":[{"type":"text","text":"a"}]}"#.into(),
                3 * 94,
            ),
            ("user", base64("text/csv", "YWJj"), 3 * 25),
            ("user", base64("application/pdf", "YWI="), 150_000),
            ("user", base64("application/pdf", &"YWJj".repeat(20_000)), 100 * 60_000 / 30),
            ("user", r#"{"type":"document","source":{"type":"text","data":"a"}}"#.into(), 94),
            ("user", r#"{"type":"document","source":{"type":"content","content":"a"}}"#.into(), 94),
            ("user", r#"{"type":"container_upload","file_id":"f"}"#.into(), 0),
        ] {
            assert_eq!(hundredths(role, &blocks), expected, "{blocks}");
        }
        let tools = r#"{"model":"m","tools":[{"name":"a","description":"a"},{"name":"a","input_schema":{"a":1}},{"type":"computer_20250124"}],"messages":[{"role":"user","content":"a"}]}"#;
        let first = 800 + 94 + 94 + 102;
        let second = 800 + 94 + (88 + 14 + 94 + 88 + 14 + 95 + 88);
        assert_eq!(tokens(tools), (400 + 94 + first + second as u64).div_ceil(100));
    }
}
