//! Stream events as SSE bytes.
