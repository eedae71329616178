//! What an event-stream frame from Kiro means.
