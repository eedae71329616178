//! JSON as text: bytes that are only copied are never decoded, and bytes that needn't change stay.
//!
//! - [`Literal`] and its neighbours check, decode and write the inside of a string.
//! - [`Completeness`] and [`compact`] scan a whole text.
//! - [`tree`]: a request body, and where each of its values lies.
//! - `segments`: what is written out of it, without copying the long pieces.
//! - [`object`]: a record, and how to change one member of it.

mod literal;
pub mod object;
mod scan;
pub(crate) mod segments;
pub mod tree;

pub use literal::{Literal, decode, decode_whole, escape, without_lone_halves};
pub(crate) use literal::{escaped_unit, short_escape, unescape};
pub use scan::{Completeness, compact};

/// A file's text without the mark of its encoding that some editors put in front.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}
