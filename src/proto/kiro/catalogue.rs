//! An account's catalogue: what ListAvailableModels says of the models it may use (K124).
//!
//! Everything in an answer is optional. An unreadable value counts as absent; a model without an id is left out.

use serde::Deserialize;
use serde_json::Value;

use crate::proto::effort::Effort;
use crate::proto::messages::request::Display;

/// Most models of one account that are kept.
pub const MAX_MODELS: usize = 256;
/// Longest id, name or `nextToken` that is kept, in bytes.
const MAX_TEXT: usize = 4096;

/// The models that an account may use, as far as upstream lists them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    models: Vec<Listed>,
    default_model: Option<String>,
}

/// One model of a catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// `modelId`.
    pub kiro_id: String,
    /// `modelName`, for people.
    pub name: Option<String>,
    /// `rateMultiplier`: credits of a request beside those of the plan's ordinary model, as upstream writes it.
    pub rate: Option<String>,
    /// `tokenLimits.maxInputTokens`.
    pub window: Option<u64>,
    /// `tokenLimits.maxOutputTokens`.
    pub max_output: Option<u64>,
    /// Whether `supportedInputTypes` has `IMAGE`.
    pub images: Option<bool>,
    /// `promptCaching`.
    pub caching: Option<Caching>,
    /// `additionalModelRequestFieldsSchema`, when it declares anything at all.
    pub fields: Option<FieldsSchema>,
}

/// `promptCaching` of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caching {
    /// `supportsPromptCaching`.
    pub supported: Option<bool>,
    /// `maximumCacheCheckpointsPerRequest`.
    pub most_points: Option<u64>,
    /// `minimumTokensPerCacheCheckpoint`.
    pub min_tokens: Option<u64>,
}

impl Caching {
    /// Most cache points of a request (TR50): 0 when caching isn't supported, no limit when the catalogue names none.
    pub fn points(&self) -> usize {
        match (self.supported, self.most_points) {
            (Some(false), _) => 0,
            (_, most) => most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX),
        }
    }
}

/// What a model takes in `additionalModelRequestFields` (K126). A member that isn't declared is refused upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldsSchema {
    /// `thinking`.
    pub thinking: Option<ThinkingSchema>,
    /// The effort of `output_config`, or of `reasoning`.
    pub effort: Option<EffortSchema>,
    /// `max_tokens`: least and most.
    pub max_tokens: Option<(Option<u64>, Option<u64>)>,
}

/// `properties.thinking`; the catalogue doesn't say which values a `None` list has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThinkingSchema {
    /// `type`.
    pub types: Option<Vec<ThinkingType>>,
    /// `display`; empty when `thinking` is described without it.
    pub display: Option<Vec<Display>>,
}

/// `properties.output_config.properties.effort`, or that of `reasoning`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EffortSchema {
    /// The member that holds it.
    pub field: EffortField,
    /// `enum`; `None`: the catalogue doesn't say.
    pub levels: Option<Vec<Effort>>,
    /// `default`.
    pub default: Option<Effort>,
}

/// The member of `additionalModelRequestFields` that carries the effort.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffortField {
    /// `output_config`, beside `thinking`.
    #[default]
    OutputConfig,
    /// `reasoning`, in place of both.
    Reasoning,
}

/// A value of `thinking.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThinkingType {
    /// Upstream decides how much.
    Adaptive,
    /// With a budget; never sent, catalogues may name it.
    Enabled,
    /// Off.
    Disabled,
    /// Between tool calls too.
    BetweenTools,
}

impl ThinkingType {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Adaptive, Self::Enabled, Self::Disabled, Self::BetweenTools];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::BetweenTools => "between_tools",
        }
    }
}

impl Catalogue {
    /// Takes the models of one page, and gives the token of the next one.
    ///
    /// # Errors
    /// The answer isn't a JSON object. Models taken before stay.
    pub fn add_page(&mut self, answer: &[u8]) -> Result<Option<String>, NotACatalogue> {
        let page: Value = serde_json::from_slice(answer).map_err(|_| NotACatalogue)?;
        let page = page.as_object().ok_or(NotACatalogue)?;
        for model in page.get("models").and_then(Value::as_array).into_iter().flatten() {
            if self.models.len() == MAX_MODELS {
                break;
            }
            if let Some(model) = Listed::of(model).filter(|model| self.get(&model.kiro_id).is_none()) {
                self.models.push(model);
            }
        }
        if let Some(default) = page.get("defaultModel") {
            self.default_model = text(default).or_else(|| text(default.get("modelId")?)).or(self.default_model.take());
        }
        Ok(page.get("nextToken").and_then(text).filter(|_| self.models.len() < MAX_MODELS))
    }

    /// The models, in upstream's order.
    pub fn models(&self) -> &[Listed] {
        &self.models
    }

    /// The id of the model that upstream takes when a request names none.
    pub fn default_model(&self) -> Option<&str> {
        self.default_model.as_deref()
    }

    /// The model of an id, in any case.
    pub fn get(&self, kiro_id: &str) -> Option<&Listed> {
        self.models.iter().find(|model| model.kiro_id.eq_ignore_ascii_case(kiro_id))
    }
}

/// The answer isn't a catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotACatalogue;

impl Listed {
    fn of(model: &Value) -> Option<Self> {
        let limit = |name: &str| model.get("tokenLimits")?.get(name).and_then(positive);
        let images = model.get("supportedInputTypes").and_then(Value::as_array).filter(|types| !types.is_empty());
        Some(Self {
            kiro_id: text(model.get("modelId")?)?,
            name: model.get("modelName").and_then(text),
            rate: model.get("rateMultiplier").filter(|rate| rate.is_number()).map(Value::to_string),
            window: limit("maxInputTokens"),
            max_output: limit("maxOutputTokens"),
            images: images
                .map(|types| types.iter().filter_map(Value::as_str).any(|word| word.eq_ignore_ascii_case("image"))),
            caching: model.get("promptCaching").filter(|caching| caching.is_object()).map(|caching| Caching {
                supported: caching.get("supportsPromptCaching").and_then(Value::as_bool),
                most_points: caching.get("maximumCacheCheckpointsPerRequest").and_then(number),
                min_tokens: caching.get("minimumTokensPerCacheCheckpoint").and_then(number),
            }),
            fields: model.get("additionalModelRequestFieldsSchema").and_then(FieldsSchema::of),
        })
    }
}

impl FieldsSchema {
    /// A JSON Schema, as object or as JSON text; one without `properties` says nothing.
    pub fn of(schema: &Value) -> Option<Self> {
        let parsed: Value;
        let schema = match schema {
            Value::String(text) => {
                parsed = serde_json::from_str(text).ok()?;
                &parsed
            }
            schema => schema,
        };
        let properties = schema.get("properties")?.as_object()?;
        let effort = |name: &str, field: EffortField| {
            let effort = properties.get(name)?.get("properties")?.get("effort")?;
            let default = effort.get("default").and_then(Value::as_str).and_then(Effort::of);
            Some(EffortSchema { field, levels: words(effort, Effort::of), default })
        };
        Some(Self {
            thinking: properties.get("thinking").map(ThinkingSchema::of),
            effort: effort("output_config", EffortField::OutputConfig)
                .or_else(|| effort("reasoning", EffortField::Reasoning)),
            max_tokens: properties
                .get("max_tokens")
                .map(|limits| (limits.get("minimum").and_then(number), limits.get("maximum").and_then(positive))),
        })
    }
}

impl ThinkingSchema {
    fn of(thinking: &Value) -> Self {
        let Some(properties) = thinking.get("properties").and_then(Value::as_object) else { return Self::default() };
        let known_type = |word: &str| ThinkingType::ALL.into_iter().find(|known| known.as_str() == word);
        let known_display = |word: &str| Display::ALL.into_iter().find(|known| known.as_str() == word);
        Self {
            types: properties.get("type").and_then(|kind| words(kind, known_type)),
            display: match properties.get("display") {
                Some(display) => words(display, known_display),
                None => Some(Vec::new()),
            },
        }
    }
}

/// The words of an `enum`, or of a `const`, that are known to us.
fn words<T>(schema: &Value, known: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    if let Some(only) = schema.get("const").and_then(Value::as_str) {
        return Some(known(only).into_iter().collect());
    }
    let all = schema.get("enum")?.as_array()?;
    Some(all.iter().filter_map(Value::as_str).filter_map(known).collect())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty() && text.len() <= MAX_TEXT).map(str::to_owned)
}

/// A whole number, also one that is written as a float.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let float = value.as_f64().filter(|float| float.fract() == 0.0 && (0.0..9e15).contains(float))?;
        Some(float as u64)
    })
}

fn positive(value: &Value) -> Option<u64> {
    number(value).filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(pages: &[&str]) -> (Catalogue, Option<String>) {
        let mut catalogue = Catalogue::default();
        let mut next = None;
        for page in pages {
            next = catalogue.add_page(page.as_bytes()).unwrap();
        }
        (catalogue, next)
    }

    #[test]
    fn reads_an_answer_k124() {
        let (read, next) = catalogue(&[r#"{"models":[{"modelId":"claude-opus-5.5","modelName":"Claude Opus 5.5",
            "rateMultiplier":2.2,"rateUnit":"credit","supportedInputTypes":["TEXT","IMAGE"],
            "tokenLimits":{"maxInputTokens":1000000,"maxOutputTokens":128000.0},
            "promptCaching":{"supportsPromptCaching":true,"maximumCacheCheckpointsPerRequest":4,"minimumTokensPerCacheCheckpoint":1024},
            "additionalModelRequestFieldsSchema":{"type":"object","properties":{
              "thinking":{"type":"object","properties":{"type":{"enum":["adaptive","x"]},"display":{"enum":["summarized","omitted"]}}},
              "output_config":{"type":"object","properties":{"effort":{"enum":["low","medium","high","xhigh","max"],"default":"medium"}}},
              "max_tokens":{"type":"integer","minimum":1024,"maximum":128000}}}}],
            "defaultModel":{"modelId":"auto"},"nextToken":"t"}"#]);
        assert_eq!(next.as_deref(), Some("t"));
        assert_eq!(read.default_model(), Some("auto"));
        let model = read.get("Claude-Opus-5.5").unwrap();
        assert_eq!((model.window, model.max_output, model.images), (Some(1_000_000), Some(128_000), Some(true)));
        assert_eq!(model.rate.as_deref(), Some("2.2"));
        assert_eq!(model.caching.unwrap().most_points, Some(4));
        let fields = model.fields.as_ref().unwrap();
        let thinking = fields.thinking.as_ref().unwrap();
        assert_eq!(thinking.types.as_deref(), Some(&[ThinkingType::Adaptive][..]));
        assert_eq!(thinking.display.as_deref(), Some(&Display::ALL[..]));
        let effort = fields.effort.as_ref().unwrap();
        assert_eq!((effort.field, effort.default), (EffortField::OutputConfig, Some(Effort::Medium)));
        assert_eq!(effort.levels.as_deref(), Some(&Effort::ASKED[..]));
        assert_eq!(fields.max_tokens, Some((Some(1024), Some(128_000))));
    }

    #[test]
    fn a_schema_may_be_text_and_everything_may_be_absent_k124() {
        let schema = r#"{\"properties\":{\"reasoning\":{\"properties\":{\"effort\":{\"enum\":[\"none\",\"max\"]}}}}}"#;
        let page = format!(
            r#"{{"models":[{{"modelId":"gpt-5.6-sol","additionalModelRequestFieldsSchema":"{schema}"}},{{"modelId":"bare"}},
                {{"modelName":"no id"}},{{"modelId":""}},null,
                {{"modelId":"odd","tokenLimits":[],"promptCaching":7,"supportedInputTypes":null,"additionalModelRequestFieldsSchema":"{{"}}],
                "defaultModel":"bare","nextToken":null}}"#
        );
        let (read, next) = catalogue(&[&page]);
        assert_eq!(next, None);
        assert_eq!(
            read.models().iter().map(|model| &*model.kiro_id).collect::<Vec<_>>(),
            ["gpt-5.6-sol", "bare", "odd"]
        );
        assert_eq!(read.default_model(), Some("bare"));
        let fields = read.get("gpt-5.6-sol").unwrap().fields.as_ref().unwrap();
        assert_eq!(fields.thinking, None);
        let effort = fields.effort.as_ref().unwrap();
        assert_eq!((effort.field, effort.default), (EffortField::Reasoning, None));
        assert_eq!(effort.levels.as_deref(), Some(&[Effort::None, Effort::Max][..]));
        let odd = read.get("odd").unwrap();
        assert_eq!((odd.window, odd.caching, odd.images, &odd.fields), (None, None, None, &None));
        for none in ["", "[]", "7", "null", "{"] {
            assert_eq!(Catalogue::default().add_page(none.as_bytes()), Err(NotACatalogue), "{none}");
        }
        assert_eq!(catalogue(&["{}", r#"{"models":null}"#]).0, Catalogue::default());
    }

    #[test]
    fn pages_add_up_and_have_a_bound_k124() {
        let page = |from: usize, to: usize| {
            let models: Vec<_> = (from..to).map(|n| format!(r#"{{"modelId":"m{n}"}}"#)).collect();
            format!(r#"{{"models":[{}],"nextToken":"n"}}"#, models.join(","))
        };
        let (read, next) = catalogue(&[&page(0, 50), &page(40, 100)]);
        assert_eq!((read.models().len(), next.as_deref()), (100, Some("n")));
        let (read, next) = catalogue(&[&page(0, 200), &page(200, 400)]);
        assert_eq!((read.models().len(), next), (MAX_MODELS, None));
    }

    #[test]
    fn a_schema_that_names_no_members_says_nothing_and_an_empty_one_that_nothing_goes_k126() {
        let of = |text: &str| FieldsSchema::of(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"type":"object"}"#), None);
        assert_eq!(of(r#"{"properties":{}}"#), Some(FieldsSchema::default()));
        let thinking = |text: &str| of(text).unwrap().thinking.unwrap();
        assert_eq!(thinking(r#"{"properties":{"thinking":{"type":"object"}}}"#), ThinkingSchema::default());
        let only = thinking(r#"{"properties":{"thinking":{"properties":{"type":{"const":"adaptive"}}}}}"#);
        assert_eq!(only.types.as_deref(), Some(&[ThinkingType::Adaptive][..]));
        assert_eq!(only.display.as_deref(), Some(&[][..]));
    }
}
