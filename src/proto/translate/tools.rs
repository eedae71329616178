//! Tool names, descriptions and schemas (TR19–TR24).
