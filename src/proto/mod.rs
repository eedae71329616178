//! Pure protocol: no clock, no randomness, no environment, no file, no runtime.
#![forbid(unsafe_code)]

pub mod address;
pub mod effort;
pub mod eventstream;
pub mod json;
pub mod kiro;
pub mod messages;
pub mod pipeline;
pub mod record;
pub mod said;
pub mod translate;
