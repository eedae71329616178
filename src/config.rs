//! Configuration: what was said and what it resolves to. Every default lives here.
