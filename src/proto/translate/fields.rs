//! Thinking, effort and `max_tokens` on their way upstream (TR39–TR43), and the lessons of upstream's refusals (K129).
//!
//! The request says what the client [`Asked`]; the account says what the model takes, its [`Abilities`]. So the fields
//! are made for each attempt; the prefix of the system text is made once, by the table's row.

use serde_json::Value;

use super::model::{EffortField, Model, ThinkingStyle, ThinkingType};
use crate::proto::effort::Effort;
use crate::proto::kiro::catalogue::Listed;
use crate::proto::messages::request::{Display, Request, Thinking};

/// Most tokens of thinking that the tags ask for (TR40).
const MAX_THINKING: u64 = 24_576;

/// What a request says about thinking, effort and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// `thinking`; [`Thinking::Adaptive`] for a name that ends in `-thinking` when the request has none (TR35).
    pub thinking: Thinking,
    /// `thinking.display`.
    pub display: Option<Display>,
    /// `output_config.effort`.
    pub effort: Option<Effort>,
    /// `max_tokens`; none with `KIRO_MAX_TOKENS=ignore`.
    pub max_tokens: Option<u64>,
}

impl Asked {
    /// Reads it from a request; `name_thinks`: its model's name ends in `-thinking`.
    pub fn of(request: &Request<'_>, name_thinks: bool) -> Self {
        Self {
            thinking: match request.thinking {
                Thinking::Absent if name_thinks => Thinking::Adaptive,
                said => said,
            },
            display: request.display,
            effort: request.effort,
            max_tokens: request.max_tokens,
        }
    }

    /// Whether thinking is on.
    pub const fn thinks(&self) -> bool {
        self.thinking.is_on()
    }

    /// The effort that was asked for, in words or by the budget (TR39).
    fn level(&self) -> Option<Effort> {
        match (self.effort, self.thinking) {
            (Some(effort), _) => Some(effort),
            (None, Thinking::Enabled { budget: ..4_096 }) => Some(Effort::Low),
            (None, Thinking::Enabled { budget: ..16_384 }) => Some(Effort::Medium),
            (None, Thinking::Enabled { budget: ..64_000 }) => Some(Effort::High),
            (None, Thinking::Enabled { .. }) => Some(Effort::XHigh),
            (None, _) => None,
        }
    }
}

/// What a model takes when an account asks for it: per property what the account's refusals taught, else its catalogue,
/// else the table's row (K126).
#[derive(Debug, Clone, Copy)]
pub struct Abilities<'a> {
    /// Context window in tokens: the limit.
    pub window: u64,
    /// The window that upstream's percentage refers to, in tokens (TU2).
    pub usage_window: u64,
    /// Most output tokens.
    pub max_output: u64,
    /// Most cache points, as far as the account's catalogue says (TR50); the row's limit stands beside it.
    pub cache_points: usize,
    style: ThinkingStyle,
    field: EffortField,
    efforts: &'a [Effort],
    default_effort: Option<Effort>,
    types: &'a [ThinkingType],
    display: &'a [Display],
    /// Least and most, where `max_tokens` has a place.
    max_tokens: Option<(u64, u64)>,
    refused: RefusedFields,
}

impl<'a> Abilities<'a> {
    /// Merges the sources; `listed` is the model's entry in the account's catalogue. A pinned row ignores it.
    pub fn of(row: &'a Model, listed: Option<&'a Listed>, refused: RefusedFields) -> Self {
        let listed = listed.filter(|_| !row.pin);
        let mut abilities = Self {
            window: listed.and_then(|listed| listed.window).unwrap_or(row.window),
            usage_window: listed.and_then(|listed| listed.window).unwrap_or_else(|| row.usage_window()),
            max_output: listed.and_then(|listed| listed.max_output).unwrap_or(row.max_output),
            cache_points: listed.and_then(|listed| listed.caching).map_or(usize::MAX, |caching| caching.points()),
            style: row.thinking,
            field: row.field,
            efforts: &row.efforts,
            default_effort: row.default_effort,
            types: &row.types,
            display: &row.display,
            max_tokens: row.max_tokens.map(|[min, max]| (min, max)),
            refused,
        };
        let Some(schema) = listed.and_then(|listed| listed.fields.as_ref()) else { return abilities };
        // A member that a schema doesn't declare is refused.
        match &schema.thinking {
            Some(thinking) => {
                abilities.types = thinking.types.as_deref().unwrap_or(abilities.types);
                abilities.display = thinking.display.as_deref().unwrap_or(abilities.display);
            }
            None => (abilities.types, abilities.display) = (&[], &[]),
        }
        match &schema.effort {
            Some(effort) => {
                abilities.field = effort.field;
                abilities.efforts = effort.levels.as_deref().unwrap_or(abilities.efforts);
                abilities.default_effort = effort.default.or(abilities.default_effort);
            }
            None => abilities.efforts = &[],
        }
        abilities.max_tokens =
            schema.max_tokens.map(|(min, max)| (min.unwrap_or(1), max.unwrap_or(abilities.max_output)));
        if row.thinking == ThinkingStyle::None && schema.thinking.is_some() {
            abilities.style = ThinkingStyle::Fields;
        }
        if abilities.field == EffortField::Reasoning {
            abilities.style = ThinkingStyle::Fields;
        }
        abilities
    }

    /// The highest accepted level that isn't above this one, else the lowest (TR39). `none` isn't a level here: only
    /// `disabled` asks for it.
    fn clamped(&self, level: Effort) -> Option<Effort> {
        let taken = || self.taken().filter(|taken| *taken != Effort::None);
        taken().filter(|taken| *taken <= level).max().or_else(|| taken().min())
    }

    fn taken(&self) -> impl Iterator<Item = Effort> {
        let below = self.refused.efforts_from;
        self.efforts.iter().copied().filter(move |level| below.is_none_or(|below| *level < below))
    }

    /// The value of `thinking.type`.
    fn thinking_type(&self, thinking: Thinking) -> Option<ThinkingType> {
        let wanted: &[ThinkingType] = match thinking {
            Thinking::Absent => &[],
            Thinking::Disabled => &[ThinkingType::Disabled],
            Thinking::BetweenTools => &[ThinkingType::BetweenTools, ThinkingType::Adaptive],
            Thinking::Adaptive | Thinking::Enabled { .. } => &[ThinkingType::Adaptive],
        };
        let takes = self.style.by_fields() && !self.refused.thinking;
        wanted.iter().copied().find(|kind| takes && self.types.contains(kind))
    }

    /// The value of `thinking.display` (TR42). Where upstream can't omit the text, the gateway does.
    fn display(&self, asked: Option<Display>) -> Option<Display> {
        if self.refused.display {
            return None;
        }
        let takes = |display: Display| self.display.contains(&display).then_some(display);
        match asked {
            Some(Display::Omitted) => takes(Display::Omitted).or_else(|| takes(Display::Summarized)),
            Some(Display::Summarized) | None => takes(Display::Summarized),
        }
    }

    /// The effort to send: the one asked for, or the default when only thinking was asked for.
    fn effort(&self, asked: &Asked, kind: Option<ThinkingType>) -> Option<Effort> {
        if self.refused.effort {
            return None;
        }
        let by_fields = self.style.by_fields() && asked.thinks();
        let level = if by_fields {
            asked.level().or(self.default_effort).unwrap_or(Effort::High)
        } else {
            // Where tags ask for thinking, a budget isn't an effort.
            asked.effort?
        };
        self.clamped(if kind == Some(ThinkingType::BetweenTools) { level.min(Effort::High) } else { level })
    }

    fn reasoning(&self, asked: &Asked) -> Option<Effort> {
        let off = asked.thinking == Thinking::Disabled && self.taken().any(|level| level == Effort::None);
        if off && !self.refused.effort { Some(Effort::None) } else { self.effort(asked, None) }
    }

    /// Whether upstream itself keeps this `max_tokens`: it has a place for it, or for one below it (M83).
    pub fn keeps(&self, max_tokens: u64) -> bool {
        let place = self.max_tokens.filter(|_| !self.refused.max_tokens && !self.refused.all);
        place.is_some_and(|(min, _)| max_tokens >= self.refused.least_tokens.unwrap_or(min))
    }

    fn max_tokens(&self, asked: Option<u64>) -> Option<u64> {
        let (min, max) = self.max_tokens.filter(|_| !self.refused.max_tokens)?;
        let min = self.refused.least_tokens.unwrap_or(min);
        let max = self.refused.most_tokens.unwrap_or(max);
        asked.filter(|asked| *asked < max).map(|asked| asked.max(min)).filter(|sent| *sent <= max)
    }
}

/// The JSON of `additionalModelRequestFields` (TR40–TR43); none when it would be empty, which upstream refuses.
pub fn model_fields(asked: &Asked, abilities: &Abilities<'_>) -> Option<String> {
    if abilities.refused.all {
        return None;
    }
    let mut members = Vec::with_capacity(3);
    match abilities.field {
        EffortField::OutputConfig => {
            let kind = abilities.thinking_type(asked.thinking);
            if let Some(kind) = kind {
                let display = abilities.display(asked.display).filter(|_| kind != ThinkingType::Disabled);
                let display = display.map(|display| format!(r#","display":"{}""#, display.as_str()));
                let display = display.unwrap_or_default();
                members.push(format!(r#""thinking":{{"type":"{}"{display}}}"#, kind.as_str()));
            }
            if let Some(effort) = abilities.effort(asked, kind) {
                members.push(format!(r#""output_config":{{"effort":"{}"}}"#, effort.as_str()));
            }
        }
        EffortField::Reasoning => {
            if let Some(effort) = abilities.reasoning(asked) {
                members.push(format!(r#""reasoning":{{"effort":"{}"}}"#, effort.as_str()));
            }
        }
    }
    if let Some(tokens) = abilities.max_tokens(asked.max_tokens) {
        members.push(format!(r#""max_tokens":{tokens}"#));
    }
    (!members.is_empty()).then(|| format!("{{{}}}", members.join(",")))
}

/// The tags in front of the system text (TR40), for rows that ask by them. They are left out when the client's system has
/// such tags itself.
pub fn thinking_prefix(asked: &Asked, row: &Model) -> Option<String> {
    if !row.thinking.by_prefix() {
        return None;
    }
    let length = match (asked.thinking, row.thinking) {
        (Thinking::Absent | Thinking::Disabled, _) => return None,
        (Thinking::Enabled { budget }, _) => budget.min(MAX_THINKING),
        (Thinking::Adaptive | Thinking::BetweenTools, ThinkingStyle::Both) => {
            let level = asked.level().or(row.default_effort).unwrap_or(Effort::High);
            let effort = Abilities::of(row, None, RefusedFields::default()).clamped(level).unwrap_or(level).as_str();
            return Some(format!("<thinking_mode>adaptive</thinking_mode><thinking_effort>{effort}</thinking_effort>"));
        }
        // These models know only the other form.
        (Thinking::Adaptive | Thinking::BetweenTools, _) => match asked.effort {
            Some(Effort::None | Effort::Low) => 4_000,
            Some(Effort::Medium) => 10_000,
            Some(Effort::High) | None => 16_000,
            Some(Effort::XHigh | Effort::Max) => MAX_THINKING,
        },
    };
    Some(format!("<thinking_mode>enabled</thinking_mode><max_thinking_length>{length}</max_thinking_length>"))
}

/// The parts of `additionalModelRequestFields` that upstream has refused, for one model of an account on one shape
/// (K129). It lasts an hour, as everything learned of the account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RefusedFields {
    /// The whole of it.
    pub all: bool,
    /// `thinking`.
    pub thinking: bool,
    /// `thinking.display`.
    pub display: bool,
    /// `output_config`, or `reasoning`.
    pub effort: bool,
    /// `max_tokens`.
    pub max_tokens: bool,
    /// This effort and those above it.
    pub efforts_from: Option<Effort>,
    /// Fewer `max_tokens` than these.
    pub least_tokens: Option<u64>,
    /// More `max_tokens` than these.
    pub most_tokens: Option<u64>,
}

/// The subject of a refusal, for the log and the metric (`member`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedMember {
    /// The whole of it.
    All,
    /// `thinking`.
    Thinking,
    /// `thinking.display`.
    Display,
    /// The effort, in `output_config` or `reasoning`.
    Effort,
    /// `max_tokens`.
    MaxTokens,
}

impl RefusedMember {
    /// The word in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Thinking => "thinking",
            Self::Display => "display",
            Self::Effort => "effort",
            Self::MaxTokens => "max_tokens",
        }
    }
}

impl RefusedFields {
    /// Upstream takes no part of it.
    pub const ALL: Self = Self {
        all: true,
        thinking: false,
        display: false,
        effort: false,
        max_tokens: false,
        efforts_from: None,
        least_tokens: None,
        most_tokens: None,
    };

    /// Learns from a refusal (fault `ModelFields`) of a call that sent `sent`, the JSON of [`model_fields`]; `again`:
    /// it is the request's second. The next fields always differ from `sent`.
    pub fn learn(&self, message: &str, sent: &str, again: bool) -> (Self, RefusedMember) {
        let everything = (Self { all: true, ..*self }, RefusedMember::All);
        let Ok(sent) = serde_json::from_str::<Value>(sent) else { return everything };
        if again {
            return everything;
        }
        let lower = message.to_ascii_lowercase();
        let level = ["output_config", "reasoning"].iter().find_map(|member| sent.get(member)?.get("effort")?.as_str());
        let tokens = sent.get("max_tokens").and_then(Value::as_u64);
        let named = named(message, &sent);

        if let Some(level) = level.and_then(Effort::of)
            && (lower.contains("enum") || lower.contains("must be one of"))
            && (lower.contains("effort") || matches!(named, None | Some(RefusedMember::Effort)))
        {
            return (Self { efforts_from: Some(level), ..*self }, RefusedMember::Effort);
        }
        if let Some(tokens) = tokens {
            if let Some(most) = number_after(&lower, "maximum value of ").filter(|most| *most < tokens) {
                return (Self { most_tokens: Some(most), ..*self }, RefusedMember::MaxTokens);
            }
            if let Some(least) = number_after(&lower, "minimum value of ").filter(|least| *least > tokens) {
                return (Self { least_tokens: Some(least), ..*self }, RefusedMember::MaxTokens);
            }
        }
        match named {
            Some(RefusedMember::Thinking) => (Self { thinking: true, ..*self }, RefusedMember::Thinking),
            Some(RefusedMember::Display) => (Self { display: true, ..*self }, RefusedMember::Display),
            Some(RefusedMember::Effort) => (Self { effort: true, ..*self }, RefusedMember::Effort),
            Some(RefusedMember::MaxTokens) => (Self { max_tokens: true, ..*self }, RefusedMember::MaxTokens),
            Some(RefusedMember::All) | None => everything,
        }
    }
}

/// The first sent member that a message names, in quotes or else as the last name of a `$.a.b` path.
fn named(message: &str, sent: &Value) -> Option<RefusedMember> {
    let has = |path: &str| sent.pointer(path).is_some();
    let effort = has("/output_config") || has("/reasoning");
    let members = [
        ("thinking", has("/thinking"), RefusedMember::Thinking),
        ("type", has("/thinking"), RefusedMember::Thinking),
        ("display", has("/thinking/display"), RefusedMember::Display),
        ("output_config", effort, RefusedMember::Effort),
        ("reasoning", effort, RefusedMember::Effort),
        ("effort", effort, RefusedMember::Effort),
        ("max_tokens", has("/max_tokens"), RefusedMember::MaxTokens),
    ];
    let quote = |char: char| matches!(char, '\'' | '"' | '`');
    let place = |name: &str, in_quotes: bool| {
        message.match_indices(name).map(|(at, _)| at).find(|at| {
            let before = message.get(..*at).and_then(|text| text.chars().next_back());
            let mut after = message.get(at + name.len()..).unwrap_or_default().chars();
            let (next, second) = (after.next(), after.next());
            let goes_on = |char: char| char.is_ascii_alphanumeric() || char == '_';
            if in_quotes {
                before.is_some_and(|char| quote(char) || char == '.') && next.is_some_and(quote)
            } else {
                before == Some('.') && !next.is_some_and(goes_on) && !(next == Some('.') && second.is_some_and(goes_on))
            }
        })
    };
    let first = |in_quotes: bool| {
        let places = members.iter().filter(|(_, sent, _)| *sent);
        places.filter_map(|(name, _, member)| Some((place(name, in_quotes)?, *member))).min_by_key(|(at, _)| *at)
    };
    first(true).or_else(|| first(false)).map(|(_, member)| member)
}

fn number_after(text: &str, words: &str) -> Option<u64> {
    let (_, rest) = text.split_once(words)?;
    rest.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::kiro::catalogue::Catalogue;
    use crate::proto::translate::model::Models;

    const PLAIN: Asked = Asked { thinking: Thinking::Absent, display: None, effort: None, max_tokens: None };
    const ADAPTIVE: Asked = Asked { thinking: Thinking::Adaptive, ..PLAIN };

    fn budget(budget: u64) -> Asked {
        Asked { thinking: Thinking::Enabled { budget }, ..PLAIN }
    }

    fn learned(model: &str, asked: Asked, refused: RefusedFields) -> String {
        let row = Models::embedded().resolve(model, None).unwrap().row;
        model_fields(&asked, &Abilities::of(&row, None, refused)).unwrap_or_default()
    }

    fn sent(model: &str, asked: Asked) -> String {
        learned(model, asked, RefusedFields::default())
    }

    fn prefix(model: &str, asked: Asked) -> String {
        let row = Models::embedded().resolve(model, None).unwrap().row;
        thinking_prefix(&asked, &row).unwrap_or_default()
    }

    fn with_schema(model: &str, schema: &str, asked: Asked) -> String {
        let row = Models::embedded().resolve(model, None).unwrap().row;
        let id = &row.kiro_id;
        let page = format!(
            r#"{{"models":[{{"modelId":"{id}","tokenLimits":{{"maxInputTokens":7}},"additionalModelRequestFieldsSchema":{schema}}}]}}"#
        );
        let mut catalogue = Catalogue::default();
        catalogue.add_page(page.as_bytes()).unwrap();
        let abilities = Abilities::of(&row, catalogue.get(id), RefusedFields::default());
        assert_eq!((abilities.window, abilities.usage_window), (7, 7));
        model_fields(&asked, &abilities).unwrap_or_default()
    }

    #[test]
    fn thinking_is_asked_for_by_fields_a103_tr40() {
        let asked = Asked { effort: Some(Effort::XHigh), ..ADAPTIVE };
        let fields = r#"{"thinking":{"type":"adaptive","display":"summarized"},"output_config":{"effort":"xhigh"}}"#;
        assert_eq!(sent("claude-opus-5", asked), fields);
        assert_eq!(prefix("claude-opus-5", asked), "");
        // Without an effort the row's default goes out.
        assert!(sent("claude-opus-5", ADAPTIVE).ends_with(r#""output_config":{"effort":"high"}}"#));
        assert!(sent("claude-opus-5-5", ADAPTIVE).ends_with(r#""output_config":{"effort":"medium"}}"#));
        // No row takes between_tools.
        assert_eq!(sent("claude-opus-5", Asked { thinking: Thinking::BetweenTools, ..asked }), fields);
    }

    #[test]
    fn a_row_may_ask_for_thinking_both_ways_a104_tr40() {
        let asked = Asked { effort: Some(Effort::XHigh), ..ADAPTIVE };
        assert_eq!(
            sent("claude-opus-4-6", asked),
            r#"{"thinking":{"type":"adaptive"},"output_config":{"effort":"high"}}"#
        );
        assert_eq!(
            prefix("claude-opus-4-6", asked),
            "<thinking_mode>adaptive</thinking_mode><thinking_effort>high</thinking_effort>"
        );
        assert_eq!(
            prefix("claude-opus-4-6", budget(2000)),
            "<thinking_mode>enabled</thinking_mode><max_thinking_length>2000</max_thinking_length>"
        );
        assert_eq!(prefix("claude-opus-4-6", PLAIN), "");
    }

    #[test]
    fn prefix_rows_know_the_enabled_form_a105_tv121_tr40() {
        let length = |asked| {
            let prefix = prefix("claude-sonnet-4-5", asked);
            let length = prefix.strip_prefix("<thinking_mode>enabled</thinking_mode><max_thinking_length>")?;
            Some(length.strip_suffix("</max_thinking_length>")?.to_owned())
        };
        for (effort, expected) in [
            (Some(Effort::Low), "4000"),
            (Some(Effort::Medium), "10000"),
            (Some(Effort::High), "16000"),
            (None, "16000"),
            (Some(Effort::XHigh), "24576"),
            (Some(Effort::Max), "24576"),
        ] {
            assert_eq!(length(Asked { effort, ..ADAPTIVE }).as_deref(), Some(expected), "{effort:?}");
            let between = Asked { thinking: Thinking::BetweenTools, effort, ..PLAIN };
            assert_eq!(length(between).as_deref(), Some(expected), "{effort:?}");
        }
        assert_eq!(length(Asked { effort: Some(Effort::Low), ..budget(2048) }).as_deref(), Some("2048"));
        assert_eq!(length(budget(90_000)).as_deref(), Some("24576"));
        assert_eq!(length(PLAIN), None);
        assert_eq!(length(Asked { thinking: Thinking::Disabled, ..PLAIN }), None);
        let asked = Asked { effort: Some(Effort::Low), max_tokens: Some(64_000), ..ADAPTIVE };
        assert_eq!(sent("claude-sonnet-4-5", asked), "");
    }

    #[test]
    fn a_row_without_thinking_asks_for_none_a106_tr40() {
        assert_eq!(sent("claude-haiku-5-5", Asked { effort: Some(Effort::High), ..ADAPTIVE }), "");
        assert_eq!(prefix("claude-haiku-5-5", ADAPTIVE), "");
    }

    #[test]
    fn an_effort_goes_out_without_thinking_a107_tv124_tr40() {
        let asked = Asked { effort: Some(Effort::Low), ..PLAIN };
        assert_eq!(sent("claude-opus-5", asked), r#"{"output_config":{"effort":"low"}}"#);
        assert_eq!(sent("claude-opus-5", PLAIN), "");
        let off = Asked { thinking: Thinking::Disabled, ..asked };
        assert_eq!(sent("claude-opus-5", off), r#"{"thinking":{"type":"disabled"},"output_config":{"effort":"low"}}"#);
        assert_eq!(sent("claude-opus-5-5", off), r#"{"output_config":{"effort":"low"}}"#);
    }

    #[test]
    fn thinking_is_switched_off_only_where_the_model_takes_it_a108_tr41() {
        let off = Asked { thinking: Thinking::Disabled, ..PLAIN };
        assert_eq!(sent("claude-opus-5", off), r#"{"thinking":{"type":"disabled"}}"#);
        for always in ["claude-opus-5-5", "claude-sonnet-5-5", "claude-fable-5", "claude-fable-5-1"] {
            assert_eq!(sent(always, off), "", "{always}");
        }
    }

    #[test]
    fn a_budget_becomes_an_effort_a109_tr39() {
        for (tokens, effort) in [
            (2048, "low"),
            (4095, "low"),
            (4096, "medium"),
            (8000, "medium"),
            (16_384, "high"),
            (31_999, "high"),
            (64_000, "xhigh"),
            (90_000, "xhigh"),
        ] {
            assert!(
                sent("claude-opus-5", budget(tokens)).ends_with(&format!(r#"{{"effort":"{effort}"}}}}"#)),
                "{tokens}"
            );
        }
        assert!(sent("claude-opus-5", Asked { effort: Some(Effort::Max), ..budget(2048) }).contains("max"));
    }

    #[test]
    fn display_goes_out_only_where_the_model_takes_it_a110_a111_tr42() {
        let omitted = Asked { display: Some(Display::Omitted), ..ADAPTIVE };
        assert!(sent("claude-opus-5", omitted).contains(r#""display":"omitted""#));
        assert!(!sent("claude-opus-4-6", omitted).contains("display"));
        let only = |word: &str| {
            let schema = format!(
                r#"{{"properties":{{"thinking":{{"properties":{{"type":{{"enum":["adaptive"]}},"display":{{"enum":["{word}"]}}}}}}}}}}"#
            );
            move |asked| with_schema("claude-opus-5", &schema, asked)
        };
        assert!(only("summarized")(omitted).contains(r#""display":"summarized""#));
        assert_eq!(only("omitted")(ADAPTIVE), r#"{"thinking":{"type":"adaptive"}}"#);
    }

    #[test]
    fn max_tokens_go_out_within_the_models_limits_a115_a116_tr43() {
        let tokens = |model, tokens| sent(model, Asked { max_tokens: Some(tokens), ..PLAIN });
        assert_eq!(tokens("claude-opus-5-5", 512), r#"{"max_tokens":1024}"#);
        assert_eq!(tokens("claude-opus-5-5", 64_000), r#"{"max_tokens":64000}"#);
        assert_eq!(tokens("claude-opus-5-5", 128_000), "");
        assert_eq!(tokens("claude-opus-5-5", 500_000), "");
        assert_eq!(tokens("claude-sonnet-4-5", 64_000), "");
        assert_eq!(tokens("claude-opus-5", 64_000), "");
    }

    #[test]
    fn the_effort_goes_out_as_reasoning_where_the_row_says_so_a117_tr40() {
        let max = Asked { effort: Some(Effort::Max), ..PLAIN };
        assert_eq!(sent("gpt-5.6-sol", max), r#"{"reasoning":{"effort":"max"}}"#);
        let off = Asked { thinking: Thinking::Disabled, ..PLAIN };
        assert_eq!(sent("gpt-5.6-sol", off), r#"{"reasoning":{"effort":"none"}}"#);
        assert_eq!(sent("gpt-5.6-sol", PLAIN), "");
        assert_eq!(sent("gpt-5.6-sol", budget(2048)), r#"{"reasoning":{"effort":"low"}}"#);
        assert_eq!(sent("gpt-5.6-sol", ADAPTIVE), r#"{"reasoning":{"effort":"high"}}"#);
    }

    #[test]
    fn the_catalogue_comes_before_the_row_k126() {
        let thinking = r#""thinking":{"properties":{"type":{"enum":["adaptive","between_tools"]}}}"#;
        let effort = r#""output_config":{"properties":{"effort":{"enum":["low","medium"],"default":"low"}}}"#;
        let both = format!(r#"{{"properties":{{{thinking},{effort},"max_tokens":{{"minimum":10,"maximum":20}}}}}}"#);
        let asked = Asked { effort: Some(Effort::Max), max_tokens: Some(15), ..ADAPTIVE };
        assert_eq!(
            with_schema("claude-opus-5", &both, asked),
            r#"{"thinking":{"type":"adaptive"},"output_config":{"effort":"medium"},"max_tokens":15}"#
        );
        assert!(with_schema("claude-opus-5", &both, ADAPTIVE).ends_with(r#"{"effort":"low"}}"#));
        // A row without thinking learns it; what a schema doesn't declare stays away.
        assert!(with_schema("claude-haiku-5-5", &both, ADAPTIVE).starts_with(r#"{"thinking":{"type":"adaptive"}"#));
        assert_eq!(with_schema("claude-opus-5", r#"{"properties":{}}"#, asked), "");
        assert_eq!(
            with_schema("claude-opus-5", &format!(r#"{{"properties":{{{effort}}}}}"#), asked),
            r#"{"output_config":{"effort":"medium"}}"#
        );
        // A prefix row asks by its prefix; an effort that the client names goes out.
        assert_eq!(
            with_schema("claude-sonnet-4-5", &both, asked),
            r#"{"output_config":{"effort":"medium"},"max_tokens":15}"#
        );
        let between = Asked { thinking: Thinking::BetweenTools, ..asked };
        assert!(with_schema("claude-opus-5", &both, between).contains(r#""type":"between_tools""#));
        // No schema: the row.
        assert_eq!(with_schema("claude-opus-5", "null", PLAIN), "");
        assert!(with_schema("claude-opus-5", "null", asked).contains("max"));
    }

    #[test]
    fn between_tools_has_no_more_than_high_tr40() {
        let schema = r#"{"properties":{"thinking":{"properties":{"type":{"enum":["between_tools"]}}},"output_config":{"properties":{"effort":{"enum":["low","high","max"]}}}}}"#;
        let asked = Asked { thinking: Thinking::BetweenTools, effort: Some(Effort::Max), ..PLAIN };
        assert_eq!(
            with_schema("claude-opus-5", schema, asked),
            r#"{"thinking":{"type":"between_tools"},"output_config":{"effort":"high"}}"#
        );
        // A row that leaves `thinking` out and sends the effort alone.
        assert_eq!(
            with_schema("claude-opus-5", schema, Asked { effort: Some(Effort::Max), ..ADAPTIVE }),
            r#"{"output_config":{"effort":"max"}}"#
        );
    }

    #[test]
    fn a_pinned_row_is_not_overridden_k126() {
        let file = r#"[{"kiro_id":"k","names":["claude-k"],"display_name":"d","created":"2025-01-01T00:00:00Z","window":9,"max_output":1,"thinking":"fields","pin":true}]"#;
        let row = Models::from_json(file.as_bytes()).unwrap().resolve("claude-k", None).unwrap().row;
        let mut catalogue = Catalogue::default();
        let page = r#"{"models":[{"modelId":"k","tokenLimits":{"maxInputTokens":7},"additionalModelRequestFieldsSchema":{"properties":{}}}]}"#;
        catalogue.add_page(page.as_bytes()).unwrap();
        let abilities = Abilities::of(&row, catalogue.get("k"), RefusedFields::default());
        assert_eq!(abilities.window, 9);
        assert!(model_fields(&ADAPTIVE, &abilities).is_some());
        // What upstream refused counts all the same.
        assert_eq!(model_fields(&ADAPTIVE, &Abilities::of(&row, None, RefusedFields::ALL)), None);
    }

    #[test]
    fn after_a_refusal_of_everything_no_fields_go_out_a113_k129() {
        let fields = sent("claude-opus-5", ADAPTIVE);
        for message in [
            "additionalModelRequestFields is not supported for this model",
            "Invalid additionalModelRequestFields: something new",
            "Invalid additionalModelRequestFields: property 'max_output_tokens' is not defined in the schema",
        ] {
            let (refused, member) = RefusedFields::default().learn(message, &fields, false);
            assert_eq!((refused.all, member.as_str()), (true, "all"), "{message}");
            assert_eq!(learned("claude-opus-5", ADAPTIVE, refused), "");
        }
    }

    #[test]
    fn the_next_lower_effort_is_tried_a114_k129() {
        let asked = Asked { effort: Some(Effort::XHigh), ..ADAPTIVE };
        let mut refused = RefusedFields::default();
        for (from, to) in [("xhigh", "high"), ("high", "medium"), ("medium", "low"), ("low", "")] {
            let fields = learned("claude-opus-5", asked, refused);
            assert!(fields.contains(&format!(r#""effort":"{from}""#)), "{fields}");
            let message = r#"Invalid additionalModelRequestFields: $.output_config.effort: does not have a value in the enumeration ["low"]"#;
            let member;
            (refused, member) = refused.learn(message, &fields, false);
            assert_eq!(member, RefusedMember::Effort);
            let fields = learned("claude-opus-5", asked, refused);
            assert_eq!(fields.contains(&format!(r#""effort":"{to}""#)), !to.is_empty(), "{fields}");
            assert_eq!(fields.contains("effort"), !to.is_empty(), "{fields}");
        }
        let message = "Invalid additionalModelRequestFields: effort must be one of low, medium";
        let (refused, _) = RefusedFields::default().learn(message, r#"{"reasoning":{"effort":"max"}}"#, false);
        assert_eq!(refused.efforts_from, Some(Effort::Max));
    }

    #[test]
    fn refusals_teach_a_property_a_limit_or_everything_k129() {
        let asked = Asked { max_tokens: Some(64_000), ..ADAPTIVE };
        let fields = sent("claude-opus-5-5", asked);
        let after = |message: &str| {
            let (refused, member) = RefusedFields::default().learn(message, &fields, false);
            (learned("claude-opus-5-5", asked, refused), member.as_str())
        };
        let thinking = r#""thinking":{"type":"adaptive","display":"summarized"}"#;
        let (effort, tokens) = (r#""output_config":{"effort":"medium"}"#, r#""max_tokens":64000"#);
        assert_eq!(fields, format!("{{{thinking},{effort},{tokens}}}"));
        let undefined = |name: &str| {
            format!(
                "Invalid additionalModelRequestFields: property '{name}' is not defined in the schema and the schema does not allow additional properties"
            )
        };
        assert_eq!(after(&undefined("thinking")), (format!("{{{effort},{tokens}}}"), "thinking"));
        assert_eq!(
            after(&undefined("display")).0,
            format!(r#"{{"thinking":{{"type":"adaptive"}},{effort},{tokens}}}"#)
        );
        assert_eq!(after(&undefined("output_config")), (format!("{{{thinking},{tokens}}}"), "effort"));
        assert_eq!(after(&undefined("max_tokens")), (format!("{{{thinking},{effort}}}"), "max_tokens"));
        let path = |text: &str| after(&format!("Invalid additionalModelRequestFields: {text}"));
        assert_eq!(path("$.thinking: property 'display' is not defined in the schema").1, "display");
        assert_eq!(path("$.thinking.display: is not defined").1, "display");
        assert_eq!(path("$.thinking: doesn't fit").1, "thinking");
        assert_eq!(path("$.thinking.type: must be one of [\"x\"]").1, "thinking");
        assert_eq!(
            path("$.max_tokens: must have a maximum value of 32000"),
            (format!("{{{thinking},{effort}}}"), "max_tokens")
        );
        assert_eq!(
            path("$.max_tokens: must have a minimum value of 65000").0,
            format!(r#"{{{thinking},{effort},"max_tokens":65000}}"#)
        );
        // A limit that was kept: without the member.
        assert_eq!(
            path("$.max_tokens: must have a maximum value of 128000"),
            (format!("{{{thinking},{effort}}}"), "max_tokens")
        );
        let (refused, _) = RefusedFields::default().learn(&undefined("thinking"), &fields, true);
        assert!(refused.all);
    }
}
