//! The model table: its rows (K123) and how a client's name finds one (TR35–TR38).

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;

use crate::proto::effort::Effort;
pub use crate::proto::kiro::catalogue::{EffortField, ThinkingType};
use crate::proto::messages::request::Display;

/// The models that can be asked for: a data table, embedded and replaceable (`KIRO_MODELS_FILE`), and beside it the
/// models that accounts were found to have ([`Models::with_found`]).
///
/// Its JSON is an array of rows, see [`Model`]:
/// ```json
/// [{"kiro_id": "claude-opus-5", "names": ["claude-opus-5"], "display_name": "Claude Opus 5",
///   "created": "2026-07-24T00:00:00Z", "window": 1000000, "max_output": 128000, "thinking": "fields",
///   "types": ["adaptive", "disabled"]}]
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Models {
    /// Newest first, then by first name.
    rows: Vec<Arc<Model>>,
    naming: Naming,
}

/// The settings that say what a name means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Naming {
    /// `KIRO_MODEL_UNKNOWN=refuse`: Claude names that the table doesn't hold don't go upstream (TR36).
    pub refuse_unknown: bool,
    /// `KIRO_MODEL_AUTO`: the name that `auto` stands for; `None`, and `auto`: Kiro's own (TR38).
    pub auto: Option<String>,
}

/// The row that a client's name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The row; made up for this request when the name was passed through ([`Model::passed`]).
    pub row: Arc<Model>,
    /// The name ended in `-thinking`: thinking is `{type: adaptive}` unless the request says something itself (TR35).
    pub thinks: bool,
}

/// The model for names that the table doesn't hold and that may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fallback<'a> {
    /// The name of its row.
    pub name: &'a str,
    /// It stands in for every name (N90); else only for those that begin with `claude` (TR36).
    pub for_any: bool,
}

/// One row of the table (K123).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Row")]
pub struct Model {
    /// Upstream's `modelId`.
    pub kiro_id: String,
    /// Upstream's older id of the same model, for accounts without `kiro_id`.
    pub alt: Option<String>,
    /// The names it answers to, in any case. The first is the one that `/v1/models` lists.
    pub names: Vec<String>,
    /// For people, in `/v1/models`.
    pub display_name: String,
    /// RFC 3339 date and time, `created_at` in `/v1/models`.
    pub created: String,
    /// Context window in tokens (TU4).
    pub window: u64,
    /// Most output tokens; only `/v1/models` shows it.
    pub max_output: u64,
    /// How thinking is asked for (TR40).
    pub thinking: ThinkingStyle,
    /// The member that carries the effort.
    pub field: EffortField,
    /// The efforts that upstream takes; none: it is never sent.
    pub efforts: Vec<Effort>,
    /// The effort of a request that thinks and names none.
    pub default_effort: Option<Effort>,
    /// The values of `thinking.type` that upstream takes; none: the member is never sent.
    pub types: Vec<ThinkingType>,
    /// The values of `thinking.display` that upstream takes; none: the member is never sent.
    pub display: Vec<Display>,
    /// The window that upstream's percentage refers to (TU2), when it is another one. In tokens.
    pub usage_window: Option<u64>,
    /// Least and most `max_tokens`, where upstream has a place for it (TR43).
    pub max_tokens: Option<[u64; 2]>,
    /// Whether it takes images.
    pub images: bool,
    /// The limits of its prompt cache.
    pub cache: Option<CacheLimits>,
    /// Whether `/v1/models` may show it.
    pub listed: bool,
    /// No account's catalogue overrides the row (K126).
    pub pin: bool,
    /// Made up for a name that the table doesn't hold (TR36): upstream decides.
    pub passed: bool,
}

/// A row of the file. Missing columns have the values of a row without native thinking. A row that asks by fields and
/// names none has the fields that such rows sent before there were columns for them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    kiro_id: String,
    alt: Option<String>,
    names: Vec<String>,
    display_name: String,
    created: String,
    window: u64,
    max_output: u64,
    #[serde(default)]
    thinking: ThinkingStyle,
    #[serde(default)]
    field: EffortField,
    efforts: Option<Vec<Effort>>,
    default_effort: Option<Effort>,
    types: Option<Vec<ThinkingType>>,
    display: Option<Vec<Display>>,
    usage_window: Option<u64>,
    max_tokens: Option<[u64; 2]>,
    images: Option<bool>,
    cache: Option<CacheLimits>,
    listed: Option<bool>,
    #[serde(default)]
    pin: bool,
}

/// How thinking is asked for (TR40).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThinkingStyle {
    /// Not at all.
    None,
    /// Tags in front of the system text.
    #[default]
    Prefix,
    /// `additionalModelRequestFields`.
    Fields,
    /// Both of them.
    Both,
}

impl ThinkingStyle {
    /// Whether `additionalModelRequestFields` ask for it.
    pub const fn by_fields(self) -> bool {
        matches!(self, Self::Fields | Self::Both)
    }

    /// Whether tags in front of the system text ask for it.
    pub const fn by_prefix(self) -> bool {
        matches!(self, Self::Prefix | Self::Both)
    }
}

/// The limits of a model's prompt cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheLimits {
    /// Most cache points in a request; 0: none at all.
    pub points: u64,
    /// Least tokens in front of one.
    #[serde(default)]
    pub min_tokens: u64,
}

/// A model of an account's catalogue, reduced to the columns of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundModel<'a> {
    /// Upstream's `modelId`.
    pub kiro_id: &'a str,
    /// For people.
    pub display_name: Option<&'a str>,
    /// Context window in tokens.
    pub window: Option<u64>,
    /// Most output tokens.
    pub max_output: Option<u64>,
}

impl From<Row> for Model {
    fn from(row: Row) -> Self {
        let by_fields = row.thinking.by_fields();
        let claude = by_fields && row.field == EffortField::OutputConfig;
        let efforts = row.efforts.unwrap_or_else(|| if by_fields { Effort::ASKED.to_vec() } else { Vec::new() });
        Self {
            default_effort: row.default_effort.or_else(|| efforts.contains(&Effort::High).then_some(Effort::High)),
            efforts,
            types: row.types.unwrap_or_else(|| if claude { vec![ThinkingType::Adaptive] } else { Vec::new() }),
            display: row.display.unwrap_or_else(|| match row.thinking {
                ThinkingStyle::Fields if claude => Display::ALL.to_vec(),
                _ => Vec::new(),
            }),
            kiro_id: row.kiro_id,
            alt: row.alt,
            names: row.names,
            display_name: row.display_name,
            created: row.created,
            window: row.window,
            max_output: row.max_output,
            thinking: row.thinking,
            field: row.field,
            usage_window: row.usage_window,
            max_tokens: row.max_tokens,
            images: row.images.unwrap_or(true),
            cache: row.cache,
            listed: row.listed.unwrap_or(true),
            pin: row.pin,
            passed: false,
        }
    }
}

/// Most rows that accounts' catalogues add, in all.
const MOST_FOUND: usize = 1024;
/// `created` of a model without a date.
const UNKNOWN_DATE: &str = "1970-01-01T00:00:00Z";
/// Longest family in a name that passes, so that remembered names stay short.
const MOST_LETTERS: usize = 32;
/// The name of Kiro's own choice (TR38).
const AUTO: &str = "auto";

impl Models {
    /// The table that is built in.
    pub fn embedded() -> &'static Self {
        // A broken table would be empty; a test below keeps it whole.
        static EMBEDDED: LazyLock<Models> =
            LazyLock::new(|| Models::from_json(include_bytes!("models.json")).unwrap_or_default());
        &EMBEDDED
    }

    /// A table from its JSON file.
    ///
    /// # Errors
    /// The mistake, and its row.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let rows: Vec<Arc<Model>> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if rows.is_empty() {
            return Err("the table has no row".to_owned());
        }
        let mut names = HashSet::new();
        for (place, row) in rows.iter().enumerate() {
            check(row).map_err(|problem| format!("row {place}: {problem}"))?;
            if let Some(name) = row.names.iter().find(|name| !names.insert(name.to_ascii_lowercase())) {
                return Err(format!("row {place}: the name '{name}' occurs twice"));
            }
        }
        Ok(Self::sorted(rows, Naming::default()))
    }

    /// The same table under these settings.
    #[must_use]
    pub fn with_naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// The same table with one more row for each model that has none (TR37, M86), at most 1,024. Of several models with
    /// one id the first counts.
    #[must_use]
    pub fn with_found<'a>(&self, found: impl IntoIterator<Item = FoundModel<'a>>) -> Self {
        let mut rows = self.rows.clone();
        let mut seen = HashSet::new();
        for model in found {
            let id = model.kiro_id.to_ascii_lowercase();
            let hyphens = hyphened(&id);
            if seen.len() == MOST_FOUND {
                break;
            }
            if !id.is_empty() && self.find(&id).or_else(|| self.find(&hyphens)).is_none() && seen.insert(id) {
                rows.push(Arc::new(self.row_of(&model, hyphens)));
            }
        }
        Self::sorted(rows, self.naming.clone())
    }

    fn sorted(mut rows: Vec<Arc<Model>>, naming: Naming) -> Self {
        rows.sort_by_key(|row| (Reverse(creation(row).ok()), row.names.first().cloned()));
        Self { rows, naming }
    }

    /// The row of a client's model name (TR35–TR38). `fallback` has the row for names that the table doesn't hold and
    /// that may not pass (TR36).
    ///
    /// Names are compared whole, never in part: `opus-5` isn't `opus-4-5`.
    pub fn resolve(&self, client_name: &str, fallback: Option<Fallback<'_>>) -> Option<Resolved> {
        let auto = self.naming.auto.as_deref();
        self.look_up(client_name, auto).or_else(|| {
            let fallback = fallback.filter(|fallback| fallback.for_any || starts_with_claude(client_name.trim()))?;
            self.look_up(fallback.name, auto)
        })
    }

    /// The same table for a name that upstream has refused lately: no name passes (TR36, K89).
    #[must_use]
    pub fn refusing_unknown(&self) -> Self {
        let naming = Naming { refuse_unknown: true, ..self.naming.clone() };
        Self { rows: self.rows.clone(), naming }
    }

    /// The rows for `/v1/models` (M66): newest first, then by first name; only those whose first name begins with
    /// `claude`.
    pub fn list(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.list_all().filter(|row| row.listed_name().starts_with("claude"))
    }

    /// As [`Models::list`], and other vendors' models too (`KIRO_MODELS_LIST=all`, TR37).
    pub fn list_all(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.rows.iter().filter(|row| row.listed)
    }

    /// TR35, and TR36 for unknown names; `auto` is the name that `auto` stands for.
    fn look_up(&self, client_name: &str, auto: Option<&str>) -> Option<Resolved> {
        let whole = client_name.trim().to_ascii_lowercase();
        let (mut name, mut thinks) = (whole.as_str(), false);
        loop {
            if let Some(meant) = auto.filter(|_| name == AUTO) {
                let found = self.look_up(meant, None)?;
                return Some(Resolved { thinks: thinks || found.thinks, ..found });
            }
            if let Some(row) = self.find(name).or_else(|| self.find(&hyphened(name))) {
                return Some(Resolved { row: row.clone(), thinks });
            }
            let Some((shorter, ending)) = cut(name) else { break };
            thinks |= ending == Ending::Thinking;
            name = shorter;
        }
        if self.naming.refuse_unknown {
            return None;
        }
        let name = hyphened(name);
        let version = Version::of(&name)?;
        Some(Resolved { row: Arc::new(self.passed(&name, version)), thinks })
    }

    /// The row of a lower-case name: a name of its own, else its id, else its older id.
    fn find(&self, name: &str) -> Option<&Arc<Model>> {
        let equal = |own: &String| own.eq_ignore_ascii_case(name);
        (self.rows.iter().find(|row| row.names.iter().any(equal)))
            .or_else(|| self.rows.iter().find(|row| equal(&row.kiro_id)))
            .or_else(|| self.rows.iter().find(|row| row.alt.as_ref().is_some_and(equal)))
    }

    /// The row for a name that passes (TR36): as the nearest older model of the family.
    fn passed(&self, name: &str, version: Version<'_>) -> Model {
        Model {
            kiro_id: version.kiro_id(),
            names: vec![name.to_owned()],
            display_name: version.kiro_id(),
            passed: true,
            ..self.properties_for(Some(version))
        }
    }

    /// The row for a model of a catalogue.
    fn row_of(&self, model: &FoundModel<'_>, hyphens: String) -> Model {
        let is_claude = starts_with_claude(model.kiro_id);
        let version = Version::of(&hyphens);
        let like = match version {
            None if !is_claude => Model {
                window: 200_000,
                max_output: 64_000,
                thinking: ThinkingStyle::None,
                efforts: Vec::new(),
                default_effort: None,
                types: Vec::new(),
                display: Vec::new(),
                ..Self::like_nothing()
            },
            _ => self.properties_for(version),
        };
        Model {
            kiro_id: model.kiro_id.to_owned(),
            names: vec![if is_claude { hyphens } else { model.kiro_id.to_owned() }],
            display_name: model.display_name.unwrap_or(model.kiro_id).to_owned(),
            window: model.window.unwrap_or(like.window),
            max_output: model.max_output.unwrap_or(like.max_output),
            ..like
        }
    }

    /// The properties of the family's highest version up to this one, else those of a current model.
    fn properties_for(&self, version: Option<Version<'_>>) -> Model {
        let nearest = version.and_then(|wanted| {
            let of = |row: &Arc<Model>| {
                let version = row.names.iter().find_map(|name| Some(Version::of(name)?.number));
                version.filter(|number| *number <= wanted.number)
            };
            let family = self.rows.iter().filter(|row| row.names.iter().any(|name| wanted.is_family_of(name)));
            family.filter_map(|row| Some((of(row)?, row))).max_by_key(|(number, _)| *number)
        });
        let like = nearest.map_or_else(Self::like_nothing, |(_, row)| Model::clone(row));
        Model {
            alt: None,
            created: UNKNOWN_DATE.to_owned(),
            usage_window: None,
            listed: true,
            pin: false,
            passed: false,
            ..like
        }
    }

    fn like_nothing() -> Model {
        Model::from(Row {
            kiro_id: String::new(),
            alt: None,
            names: Vec::new(),
            display_name: String::new(),
            created: UNKNOWN_DATE.to_owned(),
            window: 1_000_000,
            max_output: 128_000,
            thinking: ThinkingStyle::Fields,
            field: EffortField::OutputConfig,
            efforts: None,
            default_effort: None,
            types: None,
            display: None,
            usage_window: None,
            max_tokens: None,
            images: None,
            cache: None,
            listed: None,
            pin: false,
        })
    }
}

impl Model {
    /// The name that `/v1/models` lists.
    pub fn listed_name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// The name in metrics: the listed one; `other` for unknown names.
    pub fn label(&self) -> &str {
        if self.passed { "other" } else { self.listed_name() }
    }

    /// The window that upstream's percentage refers to (TU2), in tokens.
    pub fn usage_window(&self) -> u64 {
        self.usage_window.unwrap_or(self.window)
    }
}

/// A name of the form that passes: `claude-<letters>-<1–2 digits>[-<1–2 digits>]` (TR36).
#[derive(Debug, Clone, Copy)]
struct Version<'n> {
    family: &'n str,
    number: (u8, Option<u8>),
}

impl<'n> Version<'n> {
    fn of(name: &'n str) -> Option<Self> {
        let mut parts = name.strip_prefix("claude-")?.split('-');
        let family = parts.next().filter(|family| (1..=MOST_LETTERS).contains(&family.len()))?;
        if !family.bytes().all(|byte| byte.is_ascii_lowercase()) {
            return None;
        }
        let major = number(parts.next()?)?;
        let minor = match parts.next() {
            Some(minor) => Some(number(minor)?),
            None => None,
        };
        parts.next().is_none().then_some(Self { family, number: (major, minor) })
    }

    fn is_family_of(&self, name: &str) -> bool {
        Version::of(name).is_some_and(|other| other.family == self.family)
    }

    fn kiro_id(&self) -> String {
        match self.number {
            (major, None) => format!("claude-{}-{major}", self.family),
            (major, Some(minor)) => format!("claude-{}-{major}.{minor}", self.family),
        }
    }
}

/// One or two digits.
fn number(digits: &str) -> Option<u8> {
    let plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[derive(PartialEq, Eq)]
enum Ending {
    Thinking,
    Other,
}

/// The name without its ending, if it has one of those that don't name a model (TR35).
fn cut(name: &str) -> Option<(&str, Ending)> {
    if let Some(name) = name.strip_suffix("-thinking") {
        return Some((name, Ending::Thinking));
    }
    let date = |name: &str| {
        let (_, date) = name.rsplit_once('-')?;
        (date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit())).then_some(9)
    };
    let other = name.strip_suffix("[1m]").or_else(|| name.strip_suffix("-latest"));
    let other = other.or_else(|| name.get(..name.len() - date(name)?))?;
    Some((other, Ending::Other))
}

/// Hyphens for dots between digits.
fn hyphened(name: &str) -> String {
    let digit = |at: usize| name.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    name.char_indices()
        .map(|(at, char)| if char == '.' && at > 0 && digit(at - 1) && digit(at + 1) { '-' } else { char })
        .collect()
}

fn starts_with_claude(name: &str) -> bool {
    name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("claude"))
}

fn check(row: &Model) -> Result<(), String> {
    if row.kiro_id.is_empty() {
        return Err("'kiro_id' is empty".to_owned());
    }
    if row.names.is_empty() {
        return Err("'names' is empty".to_owned());
    }
    if let Some(name) = row.names.iter().find(|name| name.is_empty() || name.trim() != **name) {
        return Err(format!("the name '{name}' can't be asked for: it is empty or has blanks around it"));
    }
    if row.window == 0 || row.max_output == 0 || row.usage_window == Some(0) {
        return Err("'window', 'usage_window' and 'max_output' must be at least 1".to_owned());
    }
    if row.max_tokens.is_some_and(|[min, max]| min == 0 || min > max) {
        return Err("'max_tokens' must be [least, most] from 1 up".to_owned());
    }
    if row.default_effort.is_some_and(|level| !row.efforts.contains(&level)) {
        return Err("'default_effort' is not one of 'efforts'".to_owned());
    }
    creation(row).map(|_| ()).map_err(|error| format!("'created' is no RFC 3339 date and time: {error}"))
}

fn creation(row: &Model) -> Result<jiff::Timestamp, jiff::Error> {
    row.created.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(models: &Models, name: &str) -> Option<String> {
        models.resolve(name, None).map(|found| found.row.kiro_id.clone())
    }

    #[test]
    fn the_embedded_table_is_whole_k123() {
        let table = Models::from_json(include_bytes!("models.json")).unwrap();
        assert_eq!(&table, Models::embedded());
        assert_eq!(table.rows.len(), 26);
        let row = |id: &str| table.rows.iter().find(|row| row.kiro_id == id).unwrap();
        let all = &Effort::ASKED[..];
        for (id, style, window, output, efforts, default, types, display) in [
            ("claude-opus-5.5", ThinkingStyle::Fields, 1_000_000, 128_000, all, Some(Effort::Medium), 1, 2),
            ("claude-sonnet-5.5", ThinkingStyle::Fields, 1_000_000, 128_000, all, Some(Effort::High), 1, 2),
            ("claude-haiku-5.5", ThinkingStyle::None, 1_000_000, 128_000, &[][..], None, 0, 0),
            ("claude-fable-5.1", ThinkingStyle::Fields, 1_000_000, 128_000, all, Some(Effort::High), 1, 2),
            ("claude-opus-5", ThinkingStyle::Fields, 1_000_000, 128_000, all, Some(Effort::High), 2, 2),
            (
                "claude-opus-4.6",
                ThinkingStyle::Both,
                1_000_000,
                64_000,
                &[all[0], all[1], all[2], all[4]][..],
                Some(Effort::High),
                2,
                0,
            ),
            ("claude-haiku-4.5", ThinkingStyle::Prefix, 200_000, 64_000, &[][..], None, 0, 0),
            ("gpt-5.6-sol", ThinkingStyle::Fields, 272_000, 128_000, &Effort::ALL[..], Some(Effort::High), 0, 0),
        ] {
            let row = row(id);
            assert_eq!((row.thinking, row.window, row.max_output), (style, window, output), "{id}");
            assert_eq!((&*row.efforts, row.default_effort), (efforts, default), "{id}");
            assert_eq!((row.types.len(), row.display.len()), (types, display), "{id}");
        }
        assert_eq!(row("claude-opus-5.5").max_tokens, Some([1024, 128_000]));
        assert_eq!(row("claude-sonnet-4").alt.as_deref(), Some("CLAUDE_SONNET_4_20250514_V1_0"));
        let listed: Vec<_> = table.list().map(|row| row.listed_name()).collect();
        assert_eq!(listed.len(), 15, "{listed:?}");
        assert!(!listed.contains(&"claude-3-7-sonnet") && !listed.contains(&"auto"));
        assert_eq!(table.list_all().count(), 24);
    }

    #[test]
    fn old_files_stay_valid_k123() {
        let old = r#"[{"kiro_id":"k","names":["claude-k"],"display_name":"d","created":"2025-01-01T00:00:00Z","window":9,"max_output":1},
            {"kiro_id":"f","names":["claude-f"],"display_name":"d","created":"2025-01-01T00:00:00Z","window":9,"max_output":1,"thinking":"fields"}]"#;
        let table = Models::from_json(old.as_bytes()).unwrap();
        let prefix = table.resolve("claude-k", None).unwrap().row;
        assert_eq!(
            (prefix.thinking, prefix.field, prefix.usage_window()),
            (ThinkingStyle::Prefix, EffortField::OutputConfig, 9)
        );
        assert!(prefix.efforts.is_empty() && prefix.types.is_empty() && prefix.display.is_empty());
        assert!(prefix.listed && prefix.images && !prefix.pin && !prefix.passed && prefix.max_tokens.is_none());
        // What such a row sent before there were columns.
        let fields = table.resolve("claude-f", None).unwrap().row;
        assert_eq!((fields.efforts.len(), fields.default_effort), (5, Some(Effort::High)));
        assert_eq!((&*fields.types, fields.display.len()), (&[ThinkingType::Adaptive][..], 2));
    }

    #[test]
    fn lists_newest_first_and_only_claude_m66() {
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
    fn a_broken_table_names_its_row_tr6_k123() {
        let good = r#"{"kiro_id":"k","names":["a"],"display_name":"d","created":"2025-01-01T00:00:00Z","window":1,"max_output":1}"#;
        assert!(Models::from_json(format!("[{good}]").as_bytes()).is_ok());
        let with = |more: &str| format!("[{}]", good.replace('}', &format!(",{more}}}")));
        for (broken, says) in [
            (String::new(), "EOF"),
            ("[]".into(), "no row"),
            (format!("[{good},{good}]"), "row 1: the name 'a' occurs twice"),
            (format!("[{good},{}]", good.replace("\"a\"", "\"A\"")), "row 1: the name 'A' occurs twice"),
            (format!("[{}]", good.replace("\"a\"", "\" a\"")), "row 0: the name ' a' can't be asked for"),
            (format!("[{}]", good.replace("[\"a\"]", "[]")), "'names' is empty"),
            (format!("[{}]", good.replace("\"k\"", "\"\"")), "'kiro_id' is empty"),
            (format!("[{}]", good.replace("\"window\":1", "\"window\":0")), "at least 1"),
            (format!("[{}]", good.replace("2025-01-01T00:00:00Z", "2025")), "'created'"),
            (format!("[{}]", good.replace("window", "windows")), "unknown field `windows`"),
            (with(r#""thinking":"tags""#), "unknown variant `tags`"),
            (with(r#""efforts":["huge"]"#), "unknown variant `huge`"),
            (with(r#""efforts":["low"],"default_effort":"high""#), "'default_effort' is not one"),
            (with(r#""max_tokens":[2,1]"#), "'max_tokens' must be"),
            (with(r#""usage_window":0"#), "at least 1"),
            (with(r#""cache":{"points":4,"x":1}"#), "unknown field `x`"),
        ] {
            let error = Models::from_json(broken.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{broken}: {error}");
        }
        let all = with(
            r#""alt":"o","thinking":"both","field":"reasoning","efforts":["none","max"],"default_effort":"max","types":["adaptive","between_tools"],"display":["omitted"],"usage_window":2,"max_tokens":[1,2],"images":false,"cache":{"points":4,"min_tokens":1024},"listed":false,"pin":true"#,
        );
        let row = Models::from_json(all.as_bytes()).unwrap().resolve("O", None).unwrap().row;
        assert_eq!((row.usage_window(), row.cache.unwrap().points, row.pin, row.images), (2, 4, true, false));
    }

    #[test]
    fn names_are_compared_whole_tr6_tr35() {
        let table = Models::embedded();
        for unknown in [
            "",
            "opus-5",
            "claude-opus",
            "claude-opus-5-",
            "claude-opus-5-2026072",
            "x-claude-opus-5",
            "[1m]",
            "-thinking",
            "claude-opus-5-fast",
            "-20260101",
            "claude-opus-5.",
            "claude--5",
            "claude-opus-123",
            "claude-opus-5-1-2",
            "claude-Ópus-5",
            "claude-opus-५",
        ] {
            assert_eq!(table.resolve(unknown, None), None, "{unknown}");
        }
        assert_eq!(id(table, " Claude-Opus-4.5[1M] ").as_deref(), Some("claude-opus-4.5"));
        let fallback = |name, for_any| Some(Fallback { name, for_any });
        assert_eq!(table.resolve("gpt-4o", fallback("claude-opus-5", false)), None);
        assert_eq!(table.resolve("claude-x", fallback("nonsense", false)), None);
        assert_eq!(table.resolve("gpt-4o", fallback("nonsense", true)), None);
    }

    #[test]
    fn a_hosts_fallback_stands_in_for_every_unknown_name_n90() {
        let table = Models::embedded();
        let fallback = Some(Fallback { name: "claude-sonnet-4-5", for_any: true });
        for (name, id) in [
            ("gpt-4o", "claude-sonnet-4.5"),
            ("claude-x", "claude-sonnet-4.5"),
            ("", "claude-sonnet-4.5"),
            ("claude-opus-5", "claude-opus-5"),
            ("claude-opus-7", "claude-opus-7"),
            ("glm-5", "glm-5"),
        ] {
            assert_eq!(table.resolve(name, fallback).unwrap().row.kiro_id, id, "{name}");
        }
    }

    /// The names of the vectors, and their rows (TV55, TV123).
    #[test]
    fn todays_names_find_their_rows_tv123_tv55_a93() {
        let table = Models::embedded();
        for (name, kiro_id) in [
            ("claude-opus-4-1-20250805", Some("claude-opus-4.1")),
            ("claude-opus-4", Some("claude-opus-4")),
            ("claude-fable-5-1", Some("claude-fable-5.1")),
            ("claude-haiku-5-5-thinking[1m]", Some("claude-haiku-5.5")),
            ("claude-opus-5.5", Some("claude-opus-5.5")),
            ("claude-3-5-haiku-20241022", None),
            ("sonnet", None),
            ("gpt-4o", None),
            ("claude-opus-5-5", Some("claude-opus-5.5")),
            ("claude-opus-5-5[1m]", Some("claude-opus-5.5")),
            ("Claude-Opus-5-5-latest", Some("claude-opus-5.5")),
            ("claude-opus-5-5-20260901", Some("claude-opus-5.5")),
            ("claude-sonnet-4-20250514", Some("claude-sonnet-4")),
            ("claude_sonnet_4_20250514_v1_0", Some("claude-sonnet-4")),
            ("claude-3-7-sonnet-latest", Some("CLAUDE_3_7_SONNET_20250219_V1_0")),
            ("CLAUDE_SONNET_4_5_20250929_V1_0", Some("claude-sonnet-4.5")),
            ("auto", Some("auto")),
        ] {
            assert_eq!(id(table, name).as_deref(), kiro_id, "{name}");
        }
    }

    #[test]
    fn a_name_may_ask_for_thinking_a94_tr35() {
        let table = Models::embedded();
        for (name, thinks) in [
            ("claude-sonnet-5", false),
            ("claude-sonnet-5-thinking", true),
            ("Claude-Sonnet-5-Thinking-20260630[1m]", true),
            ("claude-sonnet-5-latest", false),
        ] {
            let found = table.resolve(name, None).unwrap();
            assert_eq!(
                (&*found.row.kiro_id, found.thinks, found.row.passed),
                ("claude-sonnet-5", thinks, false),
                "{name}"
            );
        }
        // A name that the table holds whole keeps its ending.
        let own = r#"[{"kiro_id":"k","names":["x-thinking"],"display_name":"d","created":"2025-01-01T00:00:00Z","window":1,"max_output":1}]"#;
        assert!(!Models::from_json(own.as_bytes()).unwrap().resolve("x-thinking", None).unwrap().thinks);
        assert!(table.resolve("claude-opus-7-thinking", None).unwrap().thinks);
    }

    #[test]
    fn unknown_claude_names_pass_with_the_properties_of_the_nearest_older_one_a95_tr36() {
        let table = Models::embedded();
        let passed = |name: &str| table.resolve(name, None).unwrap().row;
        let six = passed("claude-opus-6");
        assert_eq!((&*six.kiro_id, six.passed, six.listed_name()), ("claude-opus-6", true, "claude-opus-6"));
        assert_eq!((six.default_effort, six.max_tokens), (Some(Effort::Medium), Some([1024, 128_000])), "as Opus 5.5");
        assert_eq!((six.label(), passed("claude-opus-5").label()), ("other", "claude-opus-5"));
        let between = passed("claude-opus-5-3");
        assert_eq!(
            (&*between.kiro_id, between.types.len(), between.max_tokens),
            ("claude-opus-5.3", 2, None),
            "as Opus 5"
        );
        let poet = passed("claude-poet-7-1-20270101");
        assert_eq!((&*poet.kiro_id, poet.window, poet.max_output), ("claude-poet-7.1", 1_000_000, 128_000));
        assert_eq!((poet.thinking, poet.types.len()), (ThinkingStyle::Fields, 1));
        // Older than every row of its family.
        assert_eq!(passed("claude-opus-4-1").thinking, ThinkingStyle::Fields);
    }

    #[test]
    fn unknown_names_may_be_refused_a96_tr36() {
        let table = Models::embedded().clone().with_naming(Naming { refuse_unknown: true, auto: None });
        assert_eq!(id(&table, "claude-opus-6"), None);
        assert_eq!(id(&table, "claude-poet-7-1-20270101"), None);
        assert_eq!(id(&table, "claude-opus-5-5").as_deref(), Some("claude-opus-5.5"));
        // The fallback serves names that may not pass, and names that upstream has refused.
        let fallback = |table: &Models, name: &str| {
            let fallback = Some(Fallback { name: "claude-opus-4-5", for_any: false });
            table.resolve(name, fallback).map(|found| found.row.kiro_id.clone())
        };
        assert_eq!(fallback(&table, "claude-opus-4").as_deref(), Some("claude-opus-4.5"));
        assert_eq!(fallback(&table, "gpt-4o"), None);
        let usual = Models::embedded();
        assert_eq!(fallback(usual, "claude-opus-4").as_deref(), Some("claude-opus-4"));
        assert_eq!(fallback(usual, "claude-3-5-haiku").as_deref(), Some("claude-opus-4.5"));
        assert_eq!(fallback(&usual.refusing_unknown(), "claude-opus-4").as_deref(), Some("claude-opus-4.5"));
    }

    #[test]
    fn other_models_are_found_by_their_id_a97_tr37() {
        let table = Models::embedded();
        assert_eq!(id(table, "gpt-5.6-sol").as_deref(), Some("gpt-5.6-sol"));
        assert_eq!(id(table, "GPT-5.6-Sol").as_deref(), Some("gpt-5.6-sol"));
        assert_eq!(id(table, "gpt-5.7-sol"), None);
        let found =
            |id| FoundModel { kiro_id: id, display_name: Some("GPT-5.7"), window: Some(400_000), max_output: None };
        let table = table.with_found([found("gpt-5.7-Sol"), found("gpt-5.7-sol"), found("GPT-5.6-sol")]);
        let row = table.resolve("GPT-5.7-sol", None).unwrap().row;
        assert_eq!((&*row.kiro_id, row.window, row.max_output), ("gpt-5.7-Sol", 400_000, 64_000));
        assert_eq!((row.thinking, &*row.display_name), (ThinkingStyle::None, "GPT-5.7"));
        assert_eq!(table.rows.len(), 27);
        assert!(
            table.list_all().any(|row| row.kiro_id == "gpt-5.7-Sol")
                && table.list().all(|row| row.kiro_id != "gpt-5.7-Sol")
        );
    }

    #[test]
    fn auto_stands_for_the_configured_name_a98_tr38() {
        let with = |auto: &str| {
            Models::embedded().clone().with_naming(Naming { refuse_unknown: false, auto: Some(auto.to_owned()) })
        };
        assert_eq!(id(Models::embedded(), "Auto").as_deref(), Some("auto"));
        for (auto, kiro_id) in [
            ("claude-sonnet-4-5", Some("claude-sonnet-4.5")),
            ("auto", Some("auto")),
            ("auto[1m]", Some("auto")),
            ("nonsense", None),
        ] {
            assert_eq!(id(&with(auto), "auto").as_deref(), kiro_id, "{auto}");
            assert_eq!(id(&with(auto), "auto-latest").as_deref(), kiro_id, "{auto}");
        }
        assert!(with("claude-sonnet-5-thinking").resolve("auto", None).unwrap().thinks);
    }

    #[test]
    fn a_model_of_a_catalogue_gets_a_row_m86() {
        let found = |id, window| FoundModel { kiro_id: id, display_name: None, window, max_output: None };
        let table = Models::embedded()
            .with_found([found("claude-opus-9.9", Some(2_000_000)), found("claude-opus-5.5", Some(1))]);
        let row = table.resolve("claude-opus-9-9", None).unwrap().row;
        assert_eq!(
            (row.listed_name(), &*row.kiro_id, row.window, row.passed),
            ("claude-opus-9-9", "claude-opus-9.9", 2_000_000, false)
        );
        assert_eq!((&*row.created, row.default_effort), ("1970-01-01T00:00:00Z", Some(Effort::Medium)));
        assert_eq!(table.list().last().map(|row| row.listed_name()), Some("claude-opus-9-9"));
        assert_eq!(table.list().count(), 16);
        let many: Vec<_> = (0..2000).map(|n| format!("claude-x{n}")).collect();
        let table = Models::embedded().with_found(many.iter().map(|id| found(id, None)));
        assert_eq!(table.rows.len(), 26 + MOST_FOUND);
    }
}
