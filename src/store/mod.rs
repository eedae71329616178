//! Accounts and tokens, where several processes share them.

pub mod file;
pub mod redis;
