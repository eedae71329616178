//! The token estimator (TU5–TU7).
