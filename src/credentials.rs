//! Access tokens: single-flight refresh and background renewal.
