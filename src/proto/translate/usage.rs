//! Usage figures: sources, split, shape (TU1–TU4, TU8).
