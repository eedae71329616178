//! Tool names, descriptions and schemas (TR19–TR24).

/// Upstream tool names back to the client's (TR20): holds only the names that had to be changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolNames {
    /// (upstream, client)
    changed: Vec<(String, String)>,
}

impl ToolNames {
    /// The client's name of a tool; a name that wasn't changed passes through.
    pub fn client_name<'a>(&'a self, upstream: &'a str) -> &'a str {
        self.changed.iter().find(|(changed, _)| changed == upstream).map_or(upstream, |(_, client)| client)
    }
}

impl<U: Into<String>, C: Into<String>> FromIterator<(U, C)> for ToolNames {
    fn from_iter<I: IntoIterator<Item = (U, C)>>(pairs: I) -> Self {
        Self { changed: pairs.into_iter().map(|(upstream, client)| (upstream.into(), client.into())).collect() }
    }
}
