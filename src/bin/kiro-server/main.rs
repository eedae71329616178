//! `kiro-server`: the standalone face.

fn main() {}
