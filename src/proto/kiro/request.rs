//! The body of a Kiro request, ready to be sent.
