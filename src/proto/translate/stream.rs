//! Kiro events to Messages events: the state machine (TS).
