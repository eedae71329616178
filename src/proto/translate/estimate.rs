//! The token estimator (TU5–TU7).

use super::search::{outcome_of, text};
use crate::proto::json::tree::{Sink, Text, Value};
use crate::proto::json::unescape;
use crate::proto::kiro::search::{DESCRIPTION, SCHEMA};
use crate::proto::messages::request::{Block, Content, Document, DocumentSource, Request, decoded_len};
use crate::simd::{BLOCK, Wide, stops, wide};

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
const LANES: usize = 32;

/// Bytes of a text that are laid out and weighed in one go.
const PART: usize = 7 * LANES;

/// A part of a text: in front of it a character of the class before it, behind it spaces up to whole lanes.
type Window = [u8; 1 + PART + LANES];

const EMPTY: Window = [b' '; 1 + PART + LANES];

/// A character of each class.
const REPRESENTATIVE: [u8; CLASSES] = [b' ', b'a', b'A', b'0', b'+'];

/// What a character weighs less behind one of its own kind; another number for each kind, so that it tells the kind.
///
/// Without a table and without a branch, so that the compiler takes many characters in one go: sums of what each condition
/// adds, because there is no instruction for a choice, and comparisons of signed bytes, because there are no others.
/// Control characters count as blanks here, as do bytes outside ASCII.
#[inline(always)]
fn less(byte: u8) -> u8 {
    LESS_SIGN
        .wrapping_add(when(is_letter(byte), LESS_LETTER.wrapping_sub(LESS_SIGN)))
        .wrapping_add(when(is_digit(byte), LESS_DIGIT.wrapping_sub(LESS_SIGN)))
        .wrapping_add(when(is_blank(byte), 0_u8.wrapping_sub(LESS_SIGN)))
}

/// [`ASCII`] in the same way, of a character and the one before it with what [`less`] says of both.
#[inline(always)]
fn lane([before, byte]: [u8; 2], [less_before, less]: [u8; 2]) -> u8 {
    let upper_after_lower = (less == LESS_LETTER) & (less == less_before) & (!byte & before & 0x20 != 0);
    (weight::LETTER as u8)
        .wrapping_add(when(less == LESS_SIGN, (weight::SIGN - weight::LETTER) as u8))
        .wrapping_add(when(less == LESS_DIGIT, (weight::DIGIT - weight::LETTER) as u8))
        .wrapping_add(when(less != less_before, less))
        .wrapping_add(when(upper_after_lower, (weight::UPPER_AFTER_LOWER - weight::LETTER) as u8))
        .wrapping_add(when(byte == b'\n', (weight::LINE_FEED - weight::BLANK) as u8))
}

#[inline(always)]
fn when(condition: bool, adds: u8) -> u8 {
    if condition { adds } else { 0 }
}

/// The upper end of the range is moved to that of signed bytes.
#[inline(always)]
fn is_letter(byte: u8) -> bool {
    (byte | 0x20).wrapping_add(0x7f - b'z') as i8 > (0x7f - b'z' + b'a' - 1) as i8
}

#[inline(always)]
fn is_digit(byte: u8) -> bool {
    byte.wrapping_add(0x7f - b'9') as i8 > (0x7f - b'9' + b'0' - 1) as i8
}

#[inline(always)]
fn is_blank(byte: u8) -> bool {
    byte as i8 <= b' ' as i8
}

const LESS_SIGN: u8 = (weight::FIRST_SIGN - weight::SIGN) as u8;
const LESS_LETTER: u8 = (weight::WORD_START - weight::LETTER) as u8;
const LESS_DIGIT: u8 = (weight::FIRST_DIGIT - weight::DIGIT) as u8;
const _: () = assert!(weight::LETTER == weight::BLANK);

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
        wide(Plain(self, text.as_bytes()));
    }

    /// Counts the content of a JSON string literal (without its quotes) as the continuation of the current piece:
    /// an escape counts as the character it stands for (TS23), an unpaired surrogate as U+FFFD.
    ///
    /// Calls may cut a literal between characters, but not inside an escape, inside UTF-8, or between the two
    /// escapes of a pair. Other bytes give some count, never a failure.
    pub fn literal(&mut self, literal: &[u8]) {
        wide(Escaped(self, literal));
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

    /// Adds the first characters of a window.
    #[inline(always)]
    fn weigh(&mut self, window: &mut Window, length: usize) {
        window[0] = REPRESENTATIVE[self.before as usize];
        if let Some(behind) = lanes_mut(window, 1 + length) {
            *behind = [b' '; LANES];
        }
        // In a pass of its own: each is read twice.
        let mut lesses = EMPTY;
        let blocks = (0..length).step_by(LANES);
        lesses[0] = less(window[0]);
        for from in blocks.clone() {
            let (Some(lesses), Some(block)) = (lanes_mut(&mut lesses, from + 1), lanes(window, from + 1)) else {
                break;
            };
            for (to, &byte) in lesses.iter_mut().zip(block) {
                *to = less(byte);
            }
        }
        let mut sum = 0;
        for from in blocks {
            let at = |all, place| lanes(all, place).zip(lanes(all, place + 1));
            let (Some((before, block)), Some((less_before, less))) = (at(window, from), at(&lesses, from)) else {
                break;
            };
            let mut weights = [0; LANES];
            for (at, weight) in weights.iter_mut().enumerate() {
                *weight = lane([before[at], block[at]], [less_before[at], less[at]]);
            }
            sum += weights.iter().map(|&weight| u64::from(weight)).sum::<u64>();
        }
        let text = &window[1..];
        if !text[..length].is_ascii() {
            for (at, &byte) in text[..length].iter().enumerate().filter(|(_, byte)| **byte >= 0x80) {
                // Those that follow the first byte of a character add nothing.
                let weight = if byte < 0xc0 { 0 } else { wide_weight(byte, &text[at + 1..]) };
                sum = sum + u64::from(weight) - u64::from(weight::BLANK);
            }
        }
        let padding = length.next_multiple_of(LANES) - length;
        self.add(sum - padding as u64 * u64::from(weight::BLANK));
        self.before = class(window[length]);
    }

    /// Adds characters by the table.
    fn one_by_one(&mut self, bytes: &[u8]) {
        for (at, &byte) in bytes.iter().enumerate() {
            if byte < 0x80 {
                self.add(u64::from(ASCII[self.before as usize][byte as usize]));
            } else if byte >= 0xc0 {
                // The first byte of a character outside ASCII; those that follow it add nothing.
                self.add(u64::from(wide_weight(byte, &bytes[at + 1..])));
            }
            self.before = class(byte);
        }
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

/// A text to be counted.
struct Plain<'e>(&'e mut Estimator, &'e [u8]);

impl Wide for Plain<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self) {
        let Self(estimator, mut rest) = self;
        let mut window = EMPTY;
        while !rest.is_empty() {
            let (part, behind) = rest.split_at(fill(&mut window, rest));
            match part.iter().fold(false, |odd, &byte| odd | is_odd(byte)) {
                true => estimator.one_by_one(part),
                false => estimator.weigh(&mut window, part.len()),
            }
            rest = behind;
        }
    }
}

/// A literal to be counted.
struct Escaped<'e>(&'e mut Estimator, &'e [u8]);

impl Wide for Escaped<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self) {
        let Self(estimator, mut rest) = self;
        let mut window = EMPTY;
        while !rest.is_empty() {
            let mut length = fill(&mut window, rest);
            let surplus = spread_escapes(&mut window, &mut length);
            if length == 0 {
                let (char, escape) = unescape(rest);
                estimator.one_by_one(char.encode_utf8(&mut [0; 4]).as_bytes());
                rest = rest.get(escape..).unwrap_or_default();
                continue;
            }
            estimator.weigh(&mut window, length);
            estimator.hundredths -= surplus;
            rest = &rest[length..];
        }
    }
}

impl Sink for Estimator {
    fn put(&mut self, text: &str) {
        self.text(text);
    }
}

#[inline(always)]
fn lanes(window: &Window, at: usize) -> Option<&[u8; LANES]> {
    window.get(at..)?.first_chunk()
}

#[inline(always)]
fn lanes_mut(window: &mut Window, at: usize) -> Option<&mut [u8; LANES]> {
    window.get_mut(at..)?.first_chunk_mut()
}

/// The class of a character by any byte of it.
fn class(byte: u8) -> Class {
    CLASS.get(usize::from(byte)).copied().unwrap_or_default()
}

/// Whether it is a control character that counts as a sign.
fn is_odd(byte: u8) -> bool {
    byte < b' ' && !matches!(byte, b'\n' | b'\t' | b'\r')
}

/// Puts the first part of a text into a window; its length.
#[inline(always)]
fn fill(window: &mut Window, text: &[u8]) -> usize {
    let length = whole_characters(text);
    window[1..=length].copy_from_slice(&text[..length]);
    length
}

/// How many bytes a part of a text takes: not half a character.
fn whole_characters(text: &[u8]) -> usize {
    if text.len() <= PART {
        return text.len();
    }
    (PART - 3..=PART).rev().find(|&end| text[end] & 0xc0 != 0x80).unwrap_or(PART)
}

/// Makes of each escape in a window two characters that weigh, beside a surplus, what it stands for, and that have the same
/// effect on their neighbours: of a blank two blanks, of a sign two signs, the first of which is the backslash. The window
/// ends before an escape that is something else, or not whole. Gives the surplus.
#[inline(always)]
fn spread_escapes(window: &mut Window, length: &mut usize) -> u64 {
    let mut surplus = 0;
    // Behind the last escape.
    let mut behind = 1;
    for from in (1..=*length).step_by(BLOCK) {
        let mut stops = lanes(window, from).map_or(0, stops);
        while stops != 0 {
            let at = from + stops.trailing_zeros() as usize;
            stops &= stops - 1;
            if at < behind || window[at] != b'\\' {
                continue;
            }
            let (first, second, adds) = match window[at + 1] {
                _ if at >= *length => (0, 0, 0),
                b'n' => (b' ', b'\n', weight::BLANK),
                b't' | b'r' => (b' ', b' ', weight::BLANK),
                byte @ (b'"' | b'\\' | b'/') => (b'\\', byte, weight::SIGN),
                _ => (0, 0, 0),
            };
            if adds == 0 {
                *length = (*length).min(at - 1);
                return surplus;
            }
            window[at] = first;
            window[at + 1] = second;
            surplus += u64::from(adds);
            behind = at + 2;
        }
    }
    surplus
}

const _: () = assert!(LANES == BLOCK);

/// The weight of a character outside ASCII, by its first byte and what follows.
fn wide_weight(first: u8, rest: &[u8]) -> u16 {
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
                if !is_odd(before) && !is_odd(byte) {
                    assert_eq!(
                        u16::from(lane([before, byte], [before, byte].map(less))),
                        weight,
                        "{before:#x} {byte:#x}"
                    );
                }
            }
        }
        let text = "fn main() {\n\tlet getUserName2 = \"Ünïcode 你好，世界。\"; // 😀 42\r\n}  ".repeat(3);
        for from in (0..text.len()).filter(|&from| text.is_char_boundary(from)) {
            for to in (from..text.len()).filter(|&to| text.is_char_boundary(to)) {
                let (mut at_once, mut one_by_one) = (Estimator::default(), Estimator::default());
                at_once.text(&text[from..to]);
                one_by_one.one_by_one(&text.as_bytes()[from..to]);
                assert_eq!(at_once, one_by_one, "{}", &text[from..to]);
            }
        }
    }

    #[test]
    fn a_long_literal_counts_as_its_text_tu5() {
        let text = "fn\tmain() {\r\n\"a\\b\" \"\"Ünïcode 你好，世界。\n\n😀/ 42\u{1}}  getUserName2\u{b}x".repeat(9);
        for from in (0..text.len()).filter(|&from| text.is_char_boundary(from)) {
            let text = &text[from..];
            let (mut literal, mut plain, mut one_by_one) =
                (Estimator::default(), Estimator::default(), Estimator::default());
            literal.literal(Text::new(text).literal().as_bytes());
            plain.text(text);
            one_by_one.one_by_one(text.as_bytes());
            assert_eq!((&literal, &plain), (&one_by_one, &one_by_one), "{text}");
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
