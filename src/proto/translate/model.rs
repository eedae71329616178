//! The model table (TR6).

use std::sync::Arc;

/// The models that can be asked for: a data table, embedded and replaceable (`KIRO_MODELS_FILE`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Models {
    rows: Vec<Arc<Model>>,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Upstream's `modelId`.
    pub kiro_id: String,
    /// The names it answers to, lower case; the first is the one that `/v1/models` lists.
    pub names: Vec<String>,
    /// For people, in `/v1/models`.
    pub display_name: String,
    /// RFC 3339 date and time, `/v1/models`' `created_at`.
    pub created: String,
    /// Context window in tokens (TU4).
    pub window: u64,
    /// Most output tokens, shown by `/v1/models` only.
    pub max_output: u64,
    /// How thinking is asked for (TR12).
    pub thinking: ThinkingStyle,
}

/// How thinking is asked for (TR12).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ThinkingStyle {
    /// Tags in front of the system text.
    #[default]
    Prefix,
    /// `additionalModelRequestFields`.
    Fields,
}

impl Models {
    /// The table that is built in.
    pub fn embedded() -> &'static Self {
        static EMBEDDED: std::sync::LazyLock<Models> = std::sync::LazyLock::new(Models::default);
        &EMBEDDED
    }

    /// A table from its JSON file.
    ///
    /// # Errors
    /// What is wrong, and in which row.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let _ = json;
        Err("not a table of models".into())
    }

    /// The row of a client's model name; `fallback` names the row for unknown `claude…` names.
    pub fn resolve(&self, client_name: &str, fallback: Option<&str>) -> Option<&Arc<Model>> {
        let _ = fallback;
        self.rows.iter().find(|row| row.names.iter().any(|name| name == client_name))
    }

    /// The rows for `/v1/models` (M66): newest first, then by first name.
    pub fn list(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.rows.iter()
    }
}
