//! The model table (TR6).
