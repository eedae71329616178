//! Kiro's wire: request body, events, faults, tokens.

pub mod catalogue;
pub mod client_identity;
pub mod event;
pub mod external;
pub mod fault;
pub mod portal;
pub mod profile;
pub mod request;
pub mod route;
pub mod search;
pub mod sign_in;
pub mod token;
pub mod usage;
