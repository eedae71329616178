//! The Messages API request: parsed into a value that is valid when it exists.
