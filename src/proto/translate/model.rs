//! The model table (TR6).

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;

/// The models that can be asked for: a data table, embedded and replaceable (`KIRO_MODELS_FILE`).
///
/// Its JSON is an array of rows, see [`Model`]:
/// ```json
/// [{"kiro_id": "claude-sonnet-4.5", "names": ["claude-sonnet-4-5", "auto"], "display_name": "Claude Sonnet 4.5",
///   "created": "2025-09-29T00:00:00Z", "window": 172500, "max_output": 64000, "thinking": "prefix"}]
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Models {
    /// Newest first, then by first name.
    rows: Vec<Arc<Model>>,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Upstream's `modelId`.
    pub kiro_id: String,
    /// The names it answers to: lower case, without a date at the end, hyphens instead of dots between digits. The
    /// first is the one that `/v1/models` lists.
    pub names: Vec<String>,
    /// For people, in `/v1/models`.
    pub display_name: String,
    /// RFC 3339 date and time, `created_at` in `/v1/models`.
    pub created: String,
    /// Context window in tokens (TU4).
    pub window: u64,
    /// Most output tokens; only `/v1/models` shows it.
    pub max_output: u64,
    /// How thinking is asked for (TR12); [`ThinkingStyle::Prefix`] when the row doesn't say.
    #[serde(default)]
    pub thinking: ThinkingStyle,
}

/// How thinking is asked for (TR12).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
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
        // A broken table would be empty: the test below keeps it whole.
        static EMBEDDED: LazyLock<Models> =
            LazyLock::new(|| Models::from_json(include_bytes!("models.json")).unwrap_or_default());
        &EMBEDDED
    }

    /// A table from its JSON file.
    ///
    /// # Errors
    /// What is wrong, and in which row.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let mut rows: Vec<Arc<Model>> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if rows.is_empty() {
            return Err("the table has no row".to_owned());
        }
        let mut names = HashSet::new();
        for (place, row) in rows.iter().enumerate() {
            check(row).map_err(|problem| format!("row {place}: {problem}"))?;
            if let Some(name) = row.names.iter().find(|name| !names.insert(name.to_owned())) {
                return Err(format!("row {place}: the name '{name}' occurs twice"));
            }
        }
        rows.sort_by_key(|row| (Reverse(creation(row).ok()), row.names.first().cloned()));
        Ok(Self { rows })
    }

    /// The row of a client's model name; `fallback` names the row for unknown `claude…` names.
    ///
    /// Names are compared whole, never in part: `opus-5` isn't `opus-4-5`.
    pub fn resolve(&self, client_name: &str, fallback: Option<&str>) -> Option<&Arc<Model>> {
        let name = normalise(client_name);
        self.find(&name).or_else(|| {
            let fallback = fallback.filter(|_| name.starts_with("claude"))?;
            self.find(&normalise(fallback))
        })
    }

    /// The rows for `/v1/models` (M66): newest first, then by first name; only those whose first name begins with
    /// `claude`.
    pub fn list(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.rows.iter().filter(|row| row.listed_name().starts_with("claude"))
    }

    fn find(&self, name: &str) -> Option<&Arc<Model>> {
        let equal = |name: &str| self.rows.iter().find(|row| row.names.iter().any(|own| own == name));
        equal(name).or_else(|| equal(undated(name)?))
    }
}

impl Model {
    /// The name that `/v1/models` lists.
    pub fn listed_name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

/// Lower case, without `[1m]`, hyphens for dots between digits.
fn normalise(name: &str) -> String {
    let lower = name.trim().to_ascii_lowercase();
    let name = lower.strip_suffix("[1m]").unwrap_or(&lower);
    let digit = |at: usize| name.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    name.char_indices()
        .map(|(at, char)| if char == '.' && at > 0 && digit(at - 1) && digit(at + 1) { '-' } else { char })
        .collect()
}

/// The name without `-latest` or a date at its end, if it has one.
fn undated(name: &str) -> Option<&str> {
    if let Some(name) = name.strip_suffix("-latest") {
        return Some(name);
    }
    let (name, date) = name.rsplit_once('-')?;
    (date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

fn check(row: &Model) -> Result<(), String> {
    if row.kiro_id.is_empty() {
        return Err("'kiro_id' is empty".to_owned());
    }
    if row.names.is_empty() {
        return Err("'names' is empty".to_owned());
    }
    if let Some(name) = row.names.iter().find(|name| name.is_empty() || normalise(name) != **name) {
        return Err(format!("the name '{name}' can't be asked for: write it as '{}'", normalise(name)));
    }
    if row.window == 0 || row.max_output == 0 {
        return Err("'window' and 'max_output' must be at least 1".to_owned());
    }
    creation(row).map(|_| ()).map_err(|error| format!("'created' is no RFC 3339 date and time: {error}"))
}

fn creation(row: &Model) -> Result<jiff::Timestamp, jiff::Error> {
    row.created.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tr6_the_embedded_table_is_whole() {
        let table = Models::from_json(include_bytes!("models.json")).unwrap();
        assert_eq!(&table, Models::embedded());
        assert_eq!(table.rows.len(), 11);
        assert!(table.rows.iter().all(|row| row.thinking == ThinkingStyle::Prefix && row.max_output == 64_000));
    }

    #[test]
    fn m66_lists_newest_first_and_only_claude() {
        let row = |name: &str, created: &str| {
            format!(
                r#"{{"kiro_id":"k","names":["{name}"],"display_name":"d","created":"{created}","window":1,"max_output":1}}"#
            )
        };
        let rows = [
            row("claude-b", "2025-01-01T00:00:00Z"),
            row("claude-a", "2025-01-01T00:00:00Z"),
            row("auto", "2026-01-01T00:00:00Z"),
            row("claude-c", "2026-01-01T00:00:00+02:00"),
        ];
        let table = Models::from_json(format!("[{}]", rows.join(",")).as_bytes()).unwrap();
        let listed: Vec<_> = table.list().map(|row| row.listed_name()).collect();
        assert_eq!(listed, ["claude-c", "claude-a", "claude-b"]);
    }

    #[test]
    fn tr6_a_broken_table_names_its_row() {
        let good = r#"{"kiro_id":"k","names":["a"],"display_name":"d","created":"2025-01-01T00:00:00Z","window":1,"max_output":1}"#;
        assert!(Models::from_json(format!("[{good}]").as_bytes()).is_ok());
        for (broken, says) in [
            (String::new(), "EOF"),
            ("[]".into(), "no row"),
            (format!("[{good},{good}]"), "row 1: the name 'a' occurs twice"),
            (format!("[{}]", good.replace("\"a\"", "\"A.b\"")), "row 0: the name 'A.b' can't be asked for"),
            (format!("[{}]", good.replace("[\"a\"]", "[]")), "'names' is empty"),
            (format!("[{}]", good.replace("\"k\"", "\"\"")), "'kiro_id' is empty"),
            (format!("[{}]", good.replace("\"window\":1", "\"window\":0")), "at least 1"),
            (format!("[{}]", good.replace("2025-01-01T00:00:00Z", "2025")), "'created'"),
            (format!("[{}]", good.replace("window", "windows")), "unknown field `windows`"),
        ] {
            let error = Models::from_json(broken.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{broken}: {error}");
        }
    }

    #[test]
    fn tr6_names_are_compared_whole() {
        let table = Models::embedded();
        for unknown in
            ["", "opus-5", "claude-opus", "claude-opus-5-", "claude-opus-5-2026072", "x-claude-opus-5", "[1m]"]
        {
            assert_eq!(table.resolve(unknown, None), None, "{unknown}");
        }
        assert_eq!(table.resolve(" Claude-Opus-4.5[1M] ", None).map(|row| &*row.kiro_id), Some("claude-opus-4.5"));
        assert_eq!(table.resolve("gpt-4o", Some("claude-opus-5")), None);
        assert_eq!(table.resolve("claude-x", Some("nonsense")), None);
    }
}
