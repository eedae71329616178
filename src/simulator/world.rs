//! The Kiro that the simulator plays: today's, last winter's, or one with differences by presets.

use std::time::Duration;

use http::HeaderMap;
use serde_json::{Map, Value};

use super::fields::Fields;
use super::models::{self, Model};
use super::presets;
use super::reply::HttpReply;
use super::scenario::Scenario;
use super::wire::{ClientCall, IdeVersion, any_version, client_version};
use crate::proto::kiro::client_identity::VERSION_FLOOR;

/// Kiro's answer to a client that is too old (K104).
const TOO_OLD: &str =
    "This version of Kiro is no longer supported. Please update to the latest version of Kiro to continue.";
/// How long Kiro lets a connection idle (K67).
const IDLE: Duration = Duration::from_secs(60);
/// The name of today's world, which is the default.
pub(super) const TODAY: &str = "2026-11";
/// The name of last winter's.
pub(super) const OF_2025: &str = "2025-12";

/// All differences between simulated Kiros. `docs/simulator.md` describes each key.
#[derive(Clone, Debug)]
pub(super) struct SimWorld {
    /// The names that it was made of.
    pub names: Vec<String>,
    /// Refuses what Kiro refuses since 2026: shapes mixed up, old clients, unknown models and fields.
    pub is_today: bool,
    /// Refuses user agents that Kiro's own clients don't have (K103).
    agents: bool,
    /// The oldest client that is served, by host, region or call, `refresh` among them; the empty name is for all. The
    /// last that fits counts.
    min_version: Vec<(String, Option<IdeVersion>)>,
    pub models: Vec<Model>,
    /// Models on one page of ListAvailableModels, whatever was asked for.
    pub models_page: Option<usize>,
    pub fields_refused: Vec<String>,
    pub bind: Bind,
    pub segments: usize,
    pub thinking: Thinking,
    /// A repeated prompt costs a tenth.
    pub discount: bool,
    /// The credits of each account: answers use them up, and then chat is refused. None: nobody counts.
    pub credits: Option<f64>,
    /// The events at the end of an answer, in their order.
    pub end: Vec<EndNote>,
    /// `metadataEvent` has `tokenUsage`.
    pub tokens: bool,
    /// The window that the percentage refers to, in place of the model's, in tokens.
    pub usage_window: Option<u64>,
    pub profiles: Option<Vec<Value>>,
    pub profiles_page: Option<usize>,
    pub wrong_region: WrongRegion,
    /// Seconds after which access tokens from a refresh end; without it they say an hour and never end.
    pub token_life: Option<u64>,
    /// How long a refresh takes.
    pub refresh_takes: Duration,
    pub search: Search,
    pub results: usize,
    /// A larger chat body is refused.
    pub max_body: Option<usize>,
    /// How long a connection may be idle; then it is closed.
    pub idle: Duration,
    /// Shapes whose hosts have no name that can be found, in-process only.
    pub dns: Vec<String>,
    /// Refusals that come before account and prompt are checked.
    pub rules: Vec<Scenario>,
}

/// The binding of signatures (K130).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bind {
    Off,
    /// The account, when the simulator made it.
    Account,
    /// Account, conversation, model, system text and the signature before it.
    Strict,
}

/// How thought comes when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thinking {
    Signed,
    Unsigned,
    SignatureOnly,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndNote {
    Metadata,
    Context,
    Metering,
}

/// The answer to a refresh in a wrong region (K76).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WrongRegion {
    InvalidGrant,
    InvalidRequest,
    InvalidClient,
    /// InvalidRequestRegionException, which names the right one.
    Named,
}

/// How a web search goes (K7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    Found,
    Rate,
    Forbidden,
    Error,
    Empty,
    BadJson,
    /// This many ms later.
    Slow(u64),
    Invalid,
    Null,
}

impl Default for SimWorld {
    fn default() -> Self {
        Self::today()
    }
}

impl SimWorld {
    pub fn today() -> Self {
        Self {
            names: vec![TODAY.to_owned()],
            is_today: true,
            agents: true,
            min_version: vec![(String::new(), IdeVersion::read(VERSION_FLOOR))],
            models: models::today(),
            models_page: None,
            fields_refused: Vec::new(),
            bind: Bind::Account,
            segments: 1,
            thinking: Thinking::Signed,
            discount: true,
            credits: None,
            end: vec![EndNote::Metadata, EndNote::Context, EndNote::Metering],
            tokens: false,
            usage_window: None,
            profiles: None,
            profiles_page: None,
            wrong_region: WrongRegion::InvalidGrant,
            token_life: None,
            refresh_takes: Duration::ZERO,
            search: Search::Found,
            results: 3,
            max_body: None,
            idle: IDLE,
            dns: Vec::new(),
            rules: Vec::new(),
        }
    }

    fn of_2025() -> Self {
        Self {
            names: vec![OF_2025.to_owned()],
            is_today: false,
            agents: false,
            min_version: Vec::new(),
            models: models::of_2025(),
            bind: Bind::Off,
            thinking: Thinking::None,
            end: vec![EndNote::Context, EndNote::Metadata, EndNote::Metering],
            ..Self::today()
        }
    }

    /// Changes the world: `2026-11` and `2025-12` begin anew, the name of a preset or an object of keys adds to the
    /// present world, a list applies its items in order.
    ///
    /// # Errors
    /// A sentence that names what is unknown or wrong.
    pub fn change(&mut self, change: Value) -> Result<(), String> {
        match change {
            Value::Array(changes) => changes.into_iter().try_for_each(|change| self.change(change)),
            Value::String(name) => {
                match name.as_str() {
                    TODAY => *self = Self::today(),
                    OF_2025 => *self = Self::of_2025(),
                    _ => {
                        let unknown = || format!("no world and no preset is called `{name}`");
                        let preset = presets::find(name.strip_prefix("sim-").unwrap_or(&name)).ok_or_else(unknown)?;
                        self.add(Scenario::from_value(preset)?)?;
                        self.names.push(name);
                    }
                }
                Ok(())
            }
            Value::Object(keys) => self.set(keys),
            other => Err(format!("a world is a name, an object or a list of them, not {other}")),
        }
    }

    /// Takes in a scenario: its differences of the world, and its answer.
    fn add(&mut self, mut scenario: Scenario) -> Result<(), String> {
        if let Some(world) = scenario.world.take() {
            self.change(world)?;
        }
        if !scenario.is_usual() {
            self.rules.push(scenario);
        }
        Ok(())
    }

    fn set(&mut self, keys: Map<String, Value>) -> Result<(), String> {
        let mut fields = Fields::new("world", keys);
        match fields.take::<Value>("min_version")? {
            None => {}
            Some(Value::Object(versions)) => {
                for (name, version) in versions {
                    self.min_version.push((name, self::version(&version)?));
                }
            }
            Some(version) => self.min_version.push((String::new(), self::version(&version)?)),
        }
        self.agents = fields.take("agents")?.unwrap_or(self.agents);
        if let Some(models) = fields.take::<Vec<Value>>("models")? {
            self.models = models.into_iter().map(Model::read).collect::<Result<_, _>>()?;
        }
        for model in fields.take::<Vec<Value>>("more_models")?.into_iter().flatten() {
            self.models.push(Model::read(model)?);
        }
        if let Some(windows) = fields.take("windows")? {
            self.set_windows(windows)?;
        }
        match fields.take::<Option<Map<String, Value>>>("schemas")? {
            None => {}
            Some(None) => self.models.iter_mut().for_each(|model| model.set_schema(None)),
            Some(Some(schemas)) => {
                for (id, schema) in schemas {
                    self.model_mut(&id)?.set_schema((!schema.is_null()).then_some(schema));
                }
            }
        }
        self.models_page = fields.positive("models_page")?.or(self.models_page);
        self.fields_refused.extend(fields.take::<Vec<String>>("fields_refused")?.into_iter().flatten());
        let words = [("off", Bind::Off), ("account", Bind::Account), ("strict", Bind::Strict)];
        word(&mut fields, "bind", &words, &mut self.bind)?;
        self.segments = fields.positive("segments")?.unwrap_or(self.segments);
        let words = [
            ("signed", Thinking::Signed),
            ("unsigned", Thinking::Unsigned),
            ("signature-only", Thinking::SignatureOnly),
            ("none", Thinking::None),
        ];
        word(&mut fields, "thinking", &words, &mut self.thinking)?;
        self.discount = fields.take("discount")?.unwrap_or(self.discount);
        if let Some(credits) = fields.take::<Option<f64>>("credits")? {
            self.credits = credits;
        }
        if let Some(end) = fields.take::<Vec<String>>("end")? {
            self.end = end.iter().map(|name| EndNote::read(name)).collect::<Result<_, _>>()?;
        }
        self.tokens = fields.take("tokens")?.unwrap_or(self.tokens);
        self.usage_window = fields.take("usage_window")?.or(self.usage_window);
        self.profiles = fields.take("profiles")?.or(self.profiles.take());
        self.profiles_page = fields.positive("profiles_page")?.or(self.profiles_page);
        let words = [
            ("invalid_grant", WrongRegion::InvalidGrant),
            ("invalid_request", WrongRegion::InvalidRequest),
            ("invalid_client", WrongRegion::InvalidClient),
            ("named", WrongRegion::Named),
        ];
        word(&mut fields, "wrong_region", &words, &mut self.wrong_region)?;
        if let Some(life) = fields.take::<Option<u64>>("token_life")? {
            self.token_life = life;
        }
        self.refresh_takes = fields.millis("refresh_ms")?.unwrap_or(self.refresh_takes);
        if let Some(search) = fields.take::<String>("search")? {
            self.search = Search::read(&search)?;
        }
        self.results = fields.take("results")?.unwrap_or(self.results);
        self.max_body = fields.positive("max_body")?.or(self.max_body);
        self.idle = fields.millis("idle_ms")?.unwrap_or(self.idle);
        for shape in fields.take::<Vec<String>>("dns")?.into_iter().flatten() {
            if shape != "q" && shape != "runtime" {
                return Err(format!("`world.dns` holds q and runtime, not `{shape}`"));
            }
            self.dns.push(shape);
        }
        for rule in fields.take::<Vec<Value>>("rules")?.into_iter().flatten() {
            self.add(Scenario::from_value(rule)?)?;
        }
        fields.finish()
    }

    /// A window for all models, or for each by its id.
    fn set_windows(&mut self, windows: Value) -> Result<(), String> {
        match windows {
            Value::Object(windows) => {
                for (id, window) in windows {
                    self.model_mut(&id)?.window = whole("windows", &window)?;
                }
            }
            window => {
                let window = whole("windows", &window)?;
                self.models.iter_mut().for_each(|model| model.window = window);
            }
        }
        Ok(())
    }

    fn model_mut(&mut self, id: &str) -> Result<&mut Model, String> {
        if !self.models.iter().any(|model| model.id == id) {
            self.models.push(Model::read(id.into())?);
        }
        self.models.iter_mut().find(|model| model.id == id).ok_or_else(|| format!("no model is called `{id}`"))
    }

    pub fn model(&self, id: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.id == id)
    }

    /// Checks the client's user agents and version (K103, K104). `names` are the host's, the region's and the call's.
    ///
    /// # Errors
    /// The answer to a client that is too old, or to one that Kiro doesn't have.
    pub fn client(
        &self,
        caller: ClientCall,
        names: &[&str],
        headers: &HeaderMap,
    ) -> Result<Option<IdeVersion>, HttpReply> {
        let version = match client_version(caller, headers) {
            Ok(version) => version,
            Err(wrong) if self.agents => {
                let message = format!("(simulator: user-agent) {wrong}");
                return Err(HttpReply::error(400, "ValidationException", None, &message));
            }
            Err(_) => any_version(headers),
        };
        let fits = |name: &str| name.is_empty() || names.contains(&name);
        let oldest = self.min_version.iter().rev().find(|(name, _)| fits(name)).and_then(|(_, version)| *version);
        match (version, oldest) {
            (Some(version), Some(oldest)) if version < oldest => {
                Err(HttpReply::error(400, "ValidationException", None, TOO_OLD))
            }
            _ => Ok(version),
        }
    }
}

impl Search {
    fn read(name: &str) -> Result<Self, String> {
        Ok(match name {
            "found" => Self::Found,
            "rate" => Self::Rate,
            "forbidden" => Self::Forbidden,
            "error" => Self::Error,
            "empty" => Self::Empty,
            "badjson" => Self::BadJson,
            "invalid" => Self::Invalid,
            "null" => Self::Null,
            other => {
                let slow = other.strip_prefix("slow:").and_then(|ms| ms.parse().ok()).map(Self::Slow);
                slow.ok_or_else(|| format!("`world.search` is no way to search: `{other}`"))?
            }
        })
    }
}

impl EndNote {
    fn read(name: &str) -> Result<Self, String> {
        match name {
            "metadata" => Ok(Self::Metadata),
            "context" => Ok(Self::Context),
            "metering" => Ok(Self::Metering),
            _ => Err(format!("`world.end` holds metadata, context and metering, not `{name}`")),
        }
    }
}

fn version(value: &Value) -> Result<Option<IdeVersion>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => IdeVersion::read(text).map(Some).ok_or_else(|| format!("`{text}` is no version")),
        other => Err(format!("`world.min_version` is a version, null or an object of them, not {other}")),
    }
}

fn whole(key: &str, value: &Value) -> Result<u64, String> {
    value.as_u64().ok_or_else(|| format!("`world.{key}`: {value} is no number of tokens"))
}

fn word<T: Copy>(fields: &mut Fields, key: &str, words: &[(&str, T)], place: &mut T) -> Result<(), String> {
    let Some(said) = fields.take::<String>(key)? else { return Ok(()) };
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let found = words.iter().find(|(word, _)| *word == said);
    *place = found.ok_or_else(|| format!("`world.{key}` is one of {}, not `{said}`", known.join(", ")))?.1;
    Ok(())
}
