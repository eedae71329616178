//! Folding a stream of events into one message.
