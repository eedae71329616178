//! The simulated upstream: scenarios in, real frames out.
