//! The response half as one sans-IO object: upstream bytes in, SSE bytes out.
