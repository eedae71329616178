//! The Messages API: what a client sends and what it gets back.

pub mod error;
pub mod event;
pub mod request;
pub mod response;
pub mod search;
pub mod sse;
