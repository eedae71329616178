//! The live snapshot of accounts: selection, in-flight counts, health.
