//! The Messages API's error types and error body.
