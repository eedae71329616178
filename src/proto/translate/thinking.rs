//! The scanner for thinking tags (TS9–TS12).
