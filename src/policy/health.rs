//! The state of an account's health and its transitions.
