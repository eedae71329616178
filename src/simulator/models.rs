//! The models of the simulated Kiro, what each takes in `additionalModelRequestFields`, and how it refuses the rest.
//!
//! It has a table of its own (K123), so that it can disagree with the gateway's.

use serde_json::{Map, Value, json};

use super::fields::Fields;

/// How a request makes a model think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    None,
    /// By a line in front of the system text; the thought comes in `<thinking>` tags.
    Prefix,
    /// By `thinking` and `output_config`.
    Fields,
    Both,
    /// By `reasoning`; the thought comes encrypted.
    Reasoning,
}

/// One model.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub id: String,
    pub window: u64,
    pub output: u64,
    pub style: Style,
    /// It thinks unless the request says no.
    pub always: bool,
    /// Whether ListAvailableModels names it; chat takes it all the same.
    pub listed: bool,
    /// JSON Schema of `additionalModelRequestFields`; none: the model takes no fields.
    pub schema: Option<Value>,
}

const UP_TO_MAX: &[&str] = &["low", "medium", "high", "xhigh", "max"];
const CLAUDE_4: &[&str] = &["low", "medium", "high", "max"];

/// Id, window, output, style, whether it thinks unless told otherwise.
const TODAY: &[(&str, u64, u64, Style, bool)] = &[
    ("auto", 1_000_000, 64_000, Style::None, false),
    ("claude-opus-5.5", 1_000_000, 128_000, Style::Fields, true),
    ("claude-sonnet-5.5", 1_000_000, 128_000, Style::Fields, true),
    ("claude-haiku-5.5", 1_000_000, 128_000, Style::None, false),
    ("claude-fable-5.1", 1_000_000, 128_000, Style::Fields, true),
    ("claude-fable-5", 1_000_000, 128_000, Style::Fields, true),
    ("claude-opus-5", 1_000_000, 128_000, Style::Fields, false),
    ("claude-sonnet-5", 1_000_000, 128_000, Style::Fields, false),
    ("claude-opus-4.8", 1_000_000, 128_000, Style::Fields, false),
    ("claude-opus-4.7", 1_000_000, 128_000, Style::Fields, false),
    ("claude-opus-4.6", 1_000_000, 64_000, Style::Both, false),
    ("claude-sonnet-4.6", 1_000_000, 64_000, Style::Both, false),
    ("claude-sonnet-4.5", 200_000, 64_000, Style::Prefix, false),
    ("claude-opus-4.5", 200_000, 64_000, Style::Prefix, false),
    ("claude-haiku-4.5", 200_000, 64_000, Style::Prefix, false),
    ("claude-sonnet-4", 200_000, 64_000, Style::Prefix, false),
    ("gpt-5.6-sol", 272_000, 128_000, Style::Reasoning, false),
    ("gpt-5.6-terra", 272_000, 128_000, Style::Reasoning, false),
    ("gpt-5.6-luna", 272_000, 128_000, Style::Reasoning, false),
    ("kimi-k3", 200_000, 64_000, Style::None, false),
    ("deepseek-3.2", 200_000, 64_000, Style::None, false),
    ("glm-5", 200_000, 64_000, Style::None, false),
    ("minimax-m2.5", 200_000, 64_000, Style::None, false),
    ("minimax-m2.1", 200_000, 64_000, Style::None, false),
    ("qwen3-coder-next", 200_000, 64_000, Style::None, false),
];
/// Old ids: not listed, taken all the same.
const HIDDEN: &[&str] = &["CLAUDE_SONNET_4_20250514_V1_0", "CLAUDE_3_7_SONNET_20250219_V1_0"];

/// The models of November 2026.
pub(super) fn today() -> Vec<Model> {
    let listed = TODAY.iter().map(|&(id, window, output, style, always)| Model {
        id: id.to_owned(),
        window,
        output,
        style,
        always,
        listed: true,
        schema: schema(id, style, always),
    });
    listed.chain(HIDDEN.iter().map(|id| hidden(id))).collect()
}

/// The list of December 2025; chat took every id there.
pub(super) fn of_2025() -> Vec<Model> {
    let listed = ["claude-sonnet-4.5", "claude-haiku-4.5", "claude-opus-4.6"];
    let mut models: Vec<Model> = today().into_iter().filter(|model| listed.contains(&model.id.as_str())).collect();
    models.sort_by_key(|model| listed.iter().position(|id| *id == model.id));
    models.iter_mut().for_each(|model| model.schema = None);
    models
}

fn hidden(id: &str) -> Model {
    let (window, output, style) = (200_000, 64_000, Style::Prefix);
    Model { id: id.to_owned(), window, output, style, always: false, listed: false, schema: None }
}

fn schema(id: &str, style: Style, always: bool) -> Option<Value> {
    let effort = |efforts: &[&str], default: &str| json!({ "type": "object", "properties": { "effort": { "type": "string", "enum": efforts, "default": default } } });
    let properties = match style {
        Style::None | Style::Prefix => return None,
        Style::Reasoning => {
            json!({ "reasoning": effort(&["none", "low", "medium", "high", "xhigh", "max"], "medium") })
        }
        Style::Both => json!({
            "thinking": { "type": "object", "properties": { "type": { "type": "string", "enum": ["adaptive", "disabled"] } } },
            "output_config": effort(CLAUDE_4, "high"),
        }),
        Style::Fields => {
            let types: &[&str] = if always { &["adaptive"] } else { &["adaptive", "disabled"] };
            let default = if id == "claude-opus-5.5" { "medium" } else { "high" };
            let mut properties = json!({
                "thinking": { "type": "object", "properties": {
                    "type": { "type": "string", "enum": types },
                    "display": { "type": "string", "enum": ["summarized", "omitted"] },
                } },
                "output_config": effort(UP_TO_MAX, default),
            });
            if id.ends_with("-5.5") {
                properties["max_tokens"] = json!({ "type": "integer", "minimum": 1024, "maximum": 128_000 });
            }
            properties
        }
    };
    Some(json!({ "type": "object", "additionalProperties": false, "properties": properties }))
}

impl Model {
    /// Reads an entry of a list: the id of a known model, or `{"id", "window"?, "output"?, "schema"?}`.
    pub fn read(value: Value) -> Result<Self, String> {
        let map = match value {
            Value::String(id) => return Ok(Self::known(&id)),
            Value::Object(map) => map,
            other => return Err(format!("a model is an id or an object, not {other}")),
        };
        let mut fields = Fields::new("model", map);
        let mut model = Self::known(&fields.need::<String>("id")?);
        model.window = fields.take("window")?.unwrap_or(model.window);
        model.output = fields.take("output")?.unwrap_or(model.output);
        if let Some(schema) = fields.take::<Option<Map<String, Value>>>("schema")? {
            model.set_schema(schema.map(Value::Object));
        }
        fields.finish()?;
        Ok(model)
    }

    /// A model of the table, or a new one that takes the usual fields.
    fn known(id: &str) -> Self {
        let id = id.to_owned();
        let known = today().into_iter().find(|model| model.id == id);
        let listed = true;
        match known {
            Some(model) => Self { listed, ..model },
            None => {
                let schema = schema("", Style::Fields, false);
                Self { id, window: 1_000_000, output: 128_000, style: Style::Fields, always: false, listed, schema }
            }
        }
    }

    pub fn set_schema(&mut self, schema: Option<Value>) {
        let has = |name: &str| schema.as_ref().is_some_and(|schema| schema["properties"].get(name).is_some());
        self.style = match self.style {
            _ if has("reasoning") => Style::Reasoning,
            Style::Both if has("thinking") => Style::Both,
            _ if has("thinking") => Style::Fields,
            Style::Prefix | Style::Both => Style::Prefix,
            _ => Style::None,
        };
        self.schema = schema;
    }

    /// The entry of ListAvailableModels (K124).
    pub fn entry(&self) -> Value {
        let mut entry = json!({
            "modelId": self.id, "modelName": self.id, "description": "A simulated model",
            "rateMultiplier": 1.0, "rateUnit": "credit", "supportedInputTypes": ["TEXT", "IMAGE"],
            "tokenLimits": { "maxInputTokens": self.window, "maxOutputTokens": self.output },
            "promptCaching": {
                "supportsPromptCaching": true, "maximumCacheCheckpointsPerRequest": 4, "minimumTokensPerCacheCheckpoint": 1024,
            },
        });
        if let Some(schema) = &self.schema {
            entry["additionalModelRequestFieldsSchema"] = schema.clone();
        }
        entry
    }

    /// The model's verdict on `additionalModelRequestFields`; `refused` are names of members and values that it doesn't
    /// know, whatever its schema says.
    ///
    /// # Errors
    /// The text of the 400 (K128).
    pub fn judge(&self, fields: &Value, refused: &[String]) -> Result<(), String> {
        let Some(schema) = &self.schema else {
            return Err("additionalModelRequestFields is not supported for this model".to_owned());
        };
        let wrong = match fields {
            Value::Object(map) if map.is_empty() => Some("must not be empty".to_owned()),
            fields => mistake(schema, fields, "$", refused),
        };
        wrong.map_or(Ok(()), |wrong| Err(format!("Invalid additionalModelRequestFields: {wrong}")))
    }
}

/// The first violation of the schema in `value`, in the words of upstream's validator.
fn mistake(schema: &Value, value: &Value, path: &str, refused: &[String]) -> Option<String> {
    let is_refused = |name: &str| refused.iter().any(|refused| refused == name);
    if let Some(kind) = schema["type"].as_str() {
        let fits = match kind {
            "object" => value.is_object(),
            "string" => value.is_string(),
            "integer" => value.is_u64() || value.is_i64(),
            _ => true,
        };
        if !fits {
            return Some(format!("{path}: {value} found, {kind} expected"));
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        let left: Vec<&Value> = values.iter().filter(|value| !value.as_str().is_some_and(is_refused)).collect();
        if !left.contains(&value) {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            return Some(format!("{path}: does not have a value in the enumeration [{}]", left.join(", ")));
        }
    }
    if let Some(max) = schema["maximum"].as_u64().filter(|max| value.as_u64().is_some_and(|value| value > *max)) {
        return Some(format!("{path}: must have a maximum value of {max}"));
    }
    if let Some(min) = schema["minimum"].as_u64().filter(|min| value.as_u64().is_some_and(|value| value < *min)) {
        return Some(format!("{path}: must have a minimum value of {min}"));
    }
    let (properties, members) = (schema["properties"].as_object()?, value.as_object()?);
    members.iter().find_map(|(name, value)| match properties.get(name).filter(|_| !is_refused(name)) {
        Some(schema) => mistake(schema, value, &format!("{path}.{name}"), refused),
        None => Some(format!(
            "property '{name}' is not defined in the schema and the schema does not allow additional properties"
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_checked_against_the_schema_with_upstreams_texts() {
        let model = |id: &str| Model::known(id);
        let judge = |id: &str, fields: Value| model(id).judge(&fields, &[]).err();
        let good = json!({ "thinking": { "type": "adaptive", "display": "summarized" }, "output_config": { "effort": "xhigh" } });
        assert_eq!(judge("claude-opus-5", good.clone()), None);
        assert_eq!(judge("claude-opus-9.9", good.clone()), None, "a model that isn't in the table yet");
        assert_eq!(judge("gpt-5.6-sol", json!({ "reasoning": { "effort": "none" } })), None);
        assert_eq!(judge("claude-opus-5.5", json!({ "max_tokens": 1024 })), None);
        for (id, fields, text) in [
            ("claude-sonnet-4.5", good.clone(), "additionalModelRequestFields is not supported for this model"),
            ("claude-opus-5", json!({}), "Invalid additionalModelRequestFields: must not be empty"),
            ("claude-opus-4.6", good.clone(), "property 'display' is not defined in the schema"),
            (
                "claude-opus-4.6",
                json!({ "output_config": { "effort": "xhigh" } }),
                "the enumeration [\"low\", \"medium\", \"high\", \"max\"]",
            ),
            (
                "claude-opus-5.5",
                json!({ "thinking": { "type": "disabled" } }),
                "$.thinking.type: does not have a value",
            ),
            ("claude-opus-5.5", json!({ "max_tokens": 500_000 }), "$.max_tokens: must have a maximum value of 128000"),
            ("claude-opus-5.5", json!({ "max_tokens": 1 }), "must have a minimum value of 1024"),
            ("claude-opus-5", json!({ "max_tokens": 2000 }), "property 'max_tokens' is not defined in the schema"),
            ("gpt-5.6-sol", good.clone(), "property 'thinking' is not defined in the schema"),
            ("claude-opus-5", json!([]), "$: [] found, object expected"),
        ] {
            let said = judge(id, fields.clone()).unwrap_or_default();
            assert!(said.contains(text) && said.contains("additionalModelRequestFields"), "{id} {fields}: {said}");
        }
        let refused = ["xhigh".to_owned(), "display".to_owned()];
        let said = model("claude-opus-5").judge(&good, &refused).unwrap_err();
        assert!(said.contains("property 'display'"), "{said}");
    }
}
