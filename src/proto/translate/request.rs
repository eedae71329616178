//! Messages request to Kiro request (TR).
