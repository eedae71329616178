//! The Messages API's stream events.
