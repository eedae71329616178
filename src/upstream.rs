//! The HTTP client towards Kiro: built once, timeouts by name.
