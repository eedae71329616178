//! JSON string literals as bytes: checked, decoded, written, without a parser around them.

use bytes::BufMut;

/// The content of a JSON string literal (without its quotes) that can be copied into another JSON text as it stands:
/// valid UTF-8, nothing that JSON wants escaped, every escape whole, no surrogate half without its other half (TS23).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Literal<'a>(&'a [u8]);

impl<'a> Literal<'a> {
    /// The bytes between the quotes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether it stands for no text at all.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// Appends a text as the content of a string literal: only `"`, `\` and U+0000–U+001F are escaped (TR4).
pub fn escape(text: &str, out: &mut impl BufMut) {
    let bytes = text.as_bytes();
    let mut from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0x08 => b"\\b",
            0x0C => b"\\f",
            0x00..=0x1F => &[],
            _ => continue,
        };
        out.put_slice(&bytes[from..at]);
        from = at + 1;
        if escape.is_empty() {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.put_slice(b"\\u00");
            out.put_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        } else {
            out.put_slice(escape);
        }
    }
    out.put_slice(&bytes[from..]);
}
