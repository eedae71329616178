//! Faults as the client sees them: API error type, status and sentence.
