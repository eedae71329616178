//! Routes, keys, SSE bodies and drain: the HTTP face.
