//! The Node.js face: converts and nothing else.

mod settings;
