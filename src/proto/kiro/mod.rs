//! Kiro's wire: request body, events, faults, tokens.

pub mod event;
pub mod fault;
pub mod request;
pub mod token;
