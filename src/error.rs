//! One error with blame, verdict and a stable code.
