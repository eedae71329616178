//! JSON as text. Nothing is decoded that is only copied, and nothing changes but what must.
//!
//! - [`Literal`] and its neighbours: the inside of a string, checked, decoded, written.
//! - [`Completeness`], [`compact`]: a text that is looked through.
//! - [`tree`]: a request body, and where each of its values lies.
//! - [`object`]: a record, and how to change one member of it.

mod literal;
pub mod object;
mod scan;
pub mod tree;

pub(crate) use literal::unescape;
pub use literal::{Literal, decode, decode_whole, escape, without_lone_halves};
pub use scan::{Completeness, compact};
