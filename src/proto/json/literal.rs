//! The inside of a JSON string: checked, decoded, written. All escapes are read and made here.

use std::borrow::Cow;

use bytes::BufMut;
use memchr::memchr;

/// The content of a JSON string literal (without its quotes) that can be copied into another JSON text as it stands:
/// valid UTF-8, nothing that JSON wants escaped, every escape whole, no surrogate half without its other half (TS23).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Literal<'a>(&'a [u8]);

impl<'a> Literal<'a> {
    /// Checks what stands between the quotes.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let (literal, rest) = Self::scan(bytes)?;
        rest.is_empty().then_some(literal)
    }

    /// Splits `bytes`, which begin behind an opening quote, at the closing one: the literal, and what follows the quote.
    #[inline]
    pub fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (literal, rest) = Self::scan(bytes)?;
        Some((literal, rest.get(1..)?))
    }

    /// Whole characters and escapes of literals that were checked, one behind the other.
    pub(crate) fn part(bytes: &'a [u8]) -> Self {
        debug_assert!(Self::new(bytes).is_some(), "{bytes:?}");
        Self(bytes)
    }

    /// The bytes between the quotes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether it stands for no text at all.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// What stands between the quotes, as text.
    pub fn as_str(self) -> &'a str {
        // Checked when it was made.
        std::str::from_utf8(self.0).unwrap_or_default()
    }

    /// The text it stands for.
    pub fn decode(self) -> Cow<'a, str> {
        decode(self.as_str(), &mut None)
    }

    /// Up to the first quote, or to the end.
    #[inline]
    fn scan(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let mut at = 0;
        let mut high = 0;
        loop {
            let rest = &bytes[at..];
            let (run, seen) = plain_run(rest);
            at += run;
            high |= seen;
            match rest.get(run) {
                None | Some(b'"') => break,
                Some(b'\\') => at += whole_escape(&rest[run..])?,
                Some(_) => return None,
            }
        }
        let (literal, rest) = bytes.split_at(at);
        if high != 0 {
            std::str::from_utf8(literal).ok()?;
        }
        Some((Self(literal), rest))
    }
}

impl std::fmt::Debug for Literal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Literal({})", self.as_str())
    }
}

/// Decodes the content of a string literal that a JSON parser accepted.
///
/// `half` is the high surrogate that the text before it ended with; it is joined with a low one at the beginning, and a
/// high one at the end is left there for the next text. Any other unpaired half becomes U+FFFD (TS2). An empty text
/// changes nothing.
pub fn decode<'a>(raw: &'a str, half: &mut Option<u16>) -> Cow<'a, str> {
    if half.is_none() && memchr(b'\\', raw.as_bytes()).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len() + char::REPLACEMENT_CHARACTER.len_utf8());
    let mut rest = raw;
    while !rest.is_empty() {
        let run = memchr(b'\\', rest.as_bytes()).unwrap_or(rest.len());
        if run > 0 {
            text.extend(half.take().map(|_| char::REPLACEMENT_CHARACTER));
            text.push_str(&rest[..run]);
            rest = &rest[run..];
            continue;
        }
        let (unit, length) = escaped_unit(rest.as_bytes());
        rest = rest.get(length..).unwrap_or_default();
        match (half.take(), unit) {
            (Some(high), 0xDC00..=0xDFFF) => text.push(join(high, unit)),
            (before, _) => {
                text.extend(before.map(|_| char::REPLACEMENT_CHARACTER));
                match unit {
                    0xD800..=0xDBFF => *half = Some(unit),
                    _ => text.push(char_of(unit)),
                }
            }
        }
    }
    Cow::Owned(text)
}

/// Decodes the content of a string literal on its own: no neighbouring text can complete half a surrogate pair.
pub fn decode_whole(raw: &str) -> Cow<'_, str> {
    let mut half = None;
    let text = decode(raw, &mut half);
    match half {
        None => text,
        Some(_) => Cow::Owned(text.into_owned() + char::REPLACEMENT_CHARACTER.encode_utf8(&mut [0; 4])),
    }
}

/// Appends a text as the content of a string literal: only `"`, `\` and U+0000–U+001F are escaped (TR4).
pub fn escape(text: &str, out: &mut impl BufMut) {
    escape_with(text, |piece| out.put_slice(piece.as_bytes()));
}

/// As [`escape`], piece by piece.
#[inline]
pub(super) fn escape_with(text: &str, mut put: impl FnMut(&str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let (plain, behind) = rest.split_at(plain_run(rest.as_bytes()).0);
        put(plain);
        let Some(&byte) = behind.as_bytes().first() else { return };
        rest = &behind[1..];
        match byte {
            b'"' => put("\\\""),
            b'\\' => put("\\\\"),
            b'\n' => put("\\n"),
            b'\r' => put("\\r"),
            b'\t' => put("\\t"),
            0x08 => put("\\b"),
            0x0C => put("\\f"),
            control => put(&format!("\\u{control:04x}")),
        }
    }
}

/// A JSON text in which every escape of an unpaired surrogate half is `\ufffd`, so that every reader accepts it. Any other
/// text is taken too, and stays what it is: no JSON.
pub fn without_lone_halves(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let mut out = String::new();
    let (mut from, mut at) = (0, 0);
    while let Some(found) = memchr(b'\\', bytes.get(at..).unwrap_or_default()) {
        at += found;
        at += match whole_escape(&bytes[at..]) {
            Some(length) => length,
            None if !bytes[at..].starts_with(b"\\u") || hex_unit(&bytes[at..]).is_none() => 1,
            None => {
                out.push_str(&json[from..at]);
                out.push_str("\\ufffd");
                from = at + HEX_ESCAPE;
                HEX_ESCAPE
            }
        };
    }
    if out.is_empty() {
        return Cow::Borrowed(json);
    }
    out.push_str(json.get(from..).unwrap_or_default());
    Cow::Owned(out)
}

/// `\uXXXX`
const HEX_ESCAPE: usize = 6;
const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// How many bytes from the start need no escape in a string (not `"`, not `\`, not under 0x20). The second number isn't
/// zero when bytes above 0x7F are among them.
#[inline(always)]
pub(super) fn plain_run(bytes: &[u8]) -> (usize, u64) {
    let mut run = 0;
    let mut high = 0;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        let quotes = word ^ (ONES * b'"' as u64);
        let slashes = word ^ (ONES * b'\\' as u64);
        // The lowest flag is exact; a borrow can only raise false ones above it.
        let controls = word.wrapping_sub(ONES * 0x20) & !word;
        let stops = (quotes.wrapping_sub(ONES) & !quotes | slashes.wrapping_sub(ONES) & !slashes | controls) & HIGHS;
        if stops != 0 {
            let here = stops.trailing_zeros();
            high |= word & HIGHS & (1_u64 << here).wrapping_sub(1);
            return (run + here as usize / 8, high);
        }
        high |= word & HIGHS;
        run += 8;
    }
    for &byte in rest {
        if byte == b'"' || byte == b'\\' || byte < 0x20 {
            break;
        }
        high |= u64::from(byte & 0x80);
        run += 1;
    }
    (run, high)
}

/// The length of the escape that `bytes` begin with, a surrogate pair as one; none if it isn't whole or stands for half a
/// character.
fn whole_escape(bytes: &[u8]) -> Option<usize> {
    match *bytes.get(1)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(2),
        b'u' => match hex_unit(bytes)? {
            0xD800..=0xDBFF => {
                let low = bytes.get(HEX_ESCAPE..).filter(|low| low.starts_with(b"\\u")).and_then(hex_unit)?;
                (0xDC00..=0xDFFF).contains(&low).then_some(2 * HEX_ESCAPE)
            }
            0xDC00..=0xDFFF => None,
            _ => Some(HEX_ESCAPE),
        },
        _ => None,
    }
}

/// The character of the escape that a checked literal begins with, a surrogate pair as one, and its length. A half without
/// the other is U+FFFD (TR4).
pub(crate) fn unescape(escape: &[u8]) -> (char, usize) {
    let (unit, length) = escaped_unit(escape);
    if let 0xD800..=0xDBFF = unit
        && let Some(rest) = escape.get(length..).filter(|rest| rest.starts_with(b"\\u"))
        && let Some(low @ 0xDC00..=0xDFFF) = hex_unit(rest)
    {
        return (join(unit, low), 2 * HEX_ESCAPE);
    }
    (char_of(unit), length)
}

/// The UTF-16 unit of the escape that `bytes` begin with, and its length. Anything else counts as U+FFFD.
#[inline]
pub(crate) fn escaped_unit(bytes: &[u8]) -> (u16, usize) {
    match bytes.get(1) {
        Some(b'u') => (hex_unit(bytes).unwrap_or(0xFFFD), HEX_ESCAPE),
        letter => (letter.and_then(|&letter| short_escape(letter)).map_or(0xFFFD, u16::from), 2),
    }
}

/// What the escape of two bytes with that second byte stands for.
#[inline]
pub(crate) fn short_escape(letter: u8) -> Option<u8> {
    match letter {
        b'b' => Some(0x08),
        b'f' => Some(0x0C),
        b'n' => Some(b'\n'),
        b'r' => Some(b'\r'),
        b't' => Some(b'\t'),
        b'"' | b'\\' | b'/' => Some(letter),
        _ => None,
    }
}

/// The four hex digits behind `\u`.
fn hex_unit(bytes: &[u8]) -> Option<u16> {
    bytes.get(2..HEX_ESCAPE)?.iter().try_fold(0, |unit, &digit| {
        let value = char::from(digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(value).ok()?)
    })
}

fn char_of(unit: u16) -> char {
    char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// `high` and `low` are halves of one character.
fn join(high: u16, low: u16) -> char {
    char::decode_utf16([high, low]).next().and_then(Result::ok).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(pieces: &[&str]) -> (Vec<String>, Option<u16>) {
        let mut half = None;
        (pieces.iter().map(|piece| decode(piece, &mut half).into_owned()).collect(), half)
    }

    #[test]
    fn literals_that_may_be_copied_ts23() {
        for good in [
            "",
            "Hi",
            "a long plain run of text, longer than one word",
            r#"a\u003cb\n\u00e9\/\"\\\b\f\r\t"#,
            "😀 é \u{2028} \u{7f} \u{feff}",
            r"\ud83d\ude00",
            r"\uD83D\uDE00 and \uFFFF",
        ] {
            assert!(Literal::new(good.as_bytes()).is_some(), "{good}");
            let quoted = format!("\"{good}\"");
            let expected: String = serde_json::from_str(&quoted).unwrap();
            assert_eq!(Literal::new(good.as_bytes()).unwrap().decode(), expected);
            for pad in 0..9 {
                let padded = format!("{}{good}\"rest", "x".repeat(pad));
                let (literal, rest) = Literal::split(padded.as_bytes()).unwrap();
                assert_eq!((literal.as_bytes().len(), rest), (pad + good.len(), &b"rest"[..]));
            }
        }
    }

    #[test]
    fn literals_that_may_not_ts23() {
        let bad: [&[u8]; 14] = [
            br"\ud83d",
            br"\ude00",
            br"\ud83dx",
            br"\ud83d\n",
            br"\ud83d\u0041",
            br"\ude00\ud83d",
            br"\x",
            br"\u12G4",
            br"\u12",
            br"\",
            b"a\nb",
            b"a\x01b",
            b"\xc3(",
            b"a\"b",
        ];
        for bad in bad {
            for pad in 0..9 {
                let padded = [&b"yyyyyyyy"[..pad], bad].concat();
                assert!(Literal::new(&padded).is_none(), "{}", String::from_utf8_lossy(&padded));
            }
        }
        assert!(Literal::split(b"never closed").is_none());
    }

    #[test]
    fn every_byte_is_found_at_every_place_of_a_word() {
        for byte in 0..=255_u8 {
            for place in 0..16 {
                let mut bytes = [b'a'; 20];
                bytes[place] = byte;
                let stops = byte < 0x20 || byte == b'"' || byte == b'\\';
                let (run, high) = plain_run(&bytes);
                assert_eq!(run, if stops { place } else { 20 }, "{byte:#x} at {place}");
                assert_eq!(high != 0, byte >= 0x80);
            }
        }
        // A byte above 0x7F behind the stop isn't among the plain ones.
        assert_eq!(plain_run("ab\"é12345678".as_bytes()), (2, 0));
    }

    #[test]
    fn halves_are_joined_across_texts_or_replaced_ts2() {
        assert_eq!(decoded(&[r"a\ud83d", r"\ude00b"]), (vec!["a".into(), "😀b".into()], None));
        assert_eq!(decoded(&[r"a\ud83d", "b"]), (vec!["a".into(), "\u{fffd}b".into()], None));
        assert_eq!(decoded(&[r"a\ud83d", r"\nb"]), (vec!["a".into(), "\u{fffd}\nb".into()], None));
        assert_eq!(decoded(&[r"\ud83d\ud83d", r"\ude00"]), (vec!["\u{fffd}".into(), "😀".into()], None));
        assert_eq!(decoded(&[r"\ude00\ud83d"]), (vec!["\u{fffd}".into()], Some(0xD83D)));
        assert_eq!(decoded(&[r"\ud83d", "", r"\ude00"]), (vec!["".into(), "".into(), "😀".into()], None));
        assert_eq!(decode_whole(r"a\ud83d"), "a\u{fffd}");
        assert_eq!(decode_whole(r"a\n"), "a\n");
    }

    #[test]
    fn escape_is_what_a_parser_reads_back() {
        let all: String = (0..0x300).filter_map(char::from_u32).chain("\u{2028}\u{feff}😀</script>".chars()).collect();
        let mut out = vec![b'"'];
        escape(&all, &mut out);
        out.push(b'"');
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), all);
        let mut out = Vec::new();
        escape("<a href=\"x\">\n\u{1f}\u{0}é", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), r#"<a href=\"x\">\n\u001f\u0000é"#);
    }

    #[test]
    fn lone_halves_are_replaced_and_nothing_else() {
        assert_eq!(without_lone_halves(r#"{"a":"\ud83d\ude00\n\\ud83d"}"#), r#"{"a":"\ud83d\ude00\n\\ud83d"}"#);
        assert_eq!(
            without_lone_halves(r#"{"a\ude00":"\ud83dx\ud83d","b":"é"}"#),
            r#"{"a\ufffd":"\ufffdx\ufffd","b":"é"}"#
        );
    }
}
