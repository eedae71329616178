//! Messages ⇄ Kiro: wire format to wire format, pure.

pub mod edits;
pub mod estimate;
pub mod fault;
pub mod fields;
pub mod ids;
pub mod limit;
pub mod model;
pub mod pictures;
pub mod request;
mod schema;
pub mod search;
pub mod stop;
pub mod stream;
pub mod structured;
pub mod thinking;
pub mod tools;
pub mod usage;
