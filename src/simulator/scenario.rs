//! One answer of the simulator: a [`Scenario`] is read from JSON and holds the frames ready to send.

use std::time::Duration;

use serde_json::{Map, Value};

use super::arns::{PROFILE_ARN, is_service_arn};
use super::check::Prompt;
use super::fields::Fields;
use super::presets;
use super::reply::HttpReply;
use super::script::StreamScript;
use super::wire::{IdeVersion, Wire};
use crate::proto::kiro::route::Operation;

/// One answer of the simulated upstream. The JSON it is read from is described in the [module's docs](super).
#[derive(Clone, Debug)]
pub struct Scenario {
    pub(super) when: When,
    pub(super) everywhere: bool,
    /// The differences of the world for this request.
    pub(super) world: Option<Value>,
    /// Before the head of the response.
    pub(super) head: Duration,
    pub(super) reply: Reply,
}

impl Scenario {
    /// Reads a scenario: an object, or a string that names a preset.
    ///
    /// # Errors
    /// A sentence that names the key which is unknown or wrong.
    pub fn from_json(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(|error| format!("scenario is not JSON: {error}")).and_then(Self::from_value)
    }

    /// As [`from_json`](Self::from_json).
    ///
    /// # Errors
    /// A sentence that names the key which is unknown or wrong.
    pub fn from_value(value: Value) -> Result<Self, String> {
        match value {
            Value::Object(map) => Self::read(map),
            Value::String(name) => Self::preset(&name).ok_or_else(|| format!("no preset is called `{name}`"))?,
            other => Err(format!("a scenario is an object or the name of a preset, not {other}")),
        }
    }

    /// The preset of that name, with or without `sim-` in front.
    ///
    /// # Errors
    /// A sentence, when its parameter makes no scenario.
    pub fn preset(name: &str) -> Option<Result<Self, String>> {
        presets::find(name.strip_prefix("sim-").unwrap_or(name)).map(Self::from_value)
    }

    /// The answer to a prompt that asks for nothing else.
    pub(super) fn demo() -> Self {
        let reply = match StreamScript::demo() {
            Ok(script) => Reply::Stream(script),
            Err(message) => Reply::Http(HttpReply::failure(500, &message)),
        };
        Self { when: When::default(), everywhere: false, world: None, head: Duration::ZERO, reply }
    }

    /// It answers nothing by itself.
    pub(super) fn is_usual(&self) -> bool {
        matches!(self.reply, Reply::Usual)
    }

    /// Whether it is for this request.
    pub(super) fn applies(&self, facts: &RequestFacts<'_>) -> bool {
        self.when.holds(facts)
    }

    /// Whether it is for this kind of call, unless its condition says otherwise.
    pub(super) fn covers(&self, call: Operation) -> bool {
        self.everywhere
            || if self.when.calls.is_empty() { call == Operation::Chat } else { self.when.calls.contains(&call) }
    }

    fn read(map: Map<String, Value>) -> Result<Self, String> {
        let mut fields = Fields::new("scenario", map);
        let mut when = When::read(fields.take("when")?)?;
        let everywhere = fields.take("everywhere")?.unwrap_or(false);
        let head = fields.millis("head_ms")?.unwrap_or_default();
        let world = fields.take("world")?;
        let reply = if let Some(http) = fields.take::<Map<String, Value>>("http")? {
            Reply::Http(HttpReply::read(http)?)
        } else if fields.take::<bool>("gone")? == Some(true) {
            Reply::Http(HttpReply::error(410, "GoneException", None, "This endpoint is gone."))
        } else if fields.take::<bool>("deprecated")? == Some(true) {
            let message = "This endpoint is deprecated and no longer available.";
            Reply::Http(HttpReply::error(403, "AccessDeniedException", None, message))
        } else if let Some(throttle) = fields.take::<Value>("throttle")? {
            if let Value::Object(throttle) = throttle {
                let mut throttle = Fields::new("throttle", throttle);
                when.set_shape(throttle.take("shape")?)?;
                throttle.finish()?;
            }
            let message = "Too many requests, please wait before trying again.";
            Reply::Http(HttpReply::error(429, "ThrottlingException", None, message).with("retry-after", "7"))
        } else if let Some(how) = fields.take::<String>("drop")? {
            match how.as_str() {
                "close" => Reply::Drop { reset: false },
                "reset" => Reply::Drop { reset: true },
                other => return Err(format!("`drop` is `close` or `reset`, not `{other}`")),
            }
        } else if world.is_some() && fields.is_empty() {
            Reply::Usual
        } else {
            Reply::Stream(StreamScript::read(&mut fields)?)
        };
        fields.finish()?;
        Ok(Self { when, everywhere, world, head, reply })
    }
}

/// The facts of a request when its scenario is chosen.
pub(super) struct RequestFacts<'a> {
    pub wire: &'a Wire,
    /// The version that its user agent names.
    pub version: Option<IdeVersion>,
    pub profile_arn: Option<&'a str>,
    /// The prompt of a readable chat request.
    pub prompt: Option<&'a Prompt>,
    pub body_len: usize,
}

/// Which requests a scenario is for; the others are answered as if it weren't there. All conditions must hold.
#[derive(Clone, Debug, Default)]
pub(super) struct When {
    calls: Vec<Operation>,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug)]
enum Condition {
    Host(String),
    Shape(String),
    Region(String),
    VersionBelow(IdeVersion),
    /// The body's `profileArn` is the simulator's own, or isn't.
    OwnArn(bool),
    /// There is any ARN, or none.
    AnyArn(bool),
    /// It is one of Kiro's own for Builder ID and social accounts, or isn't.
    ServiceArn(bool),
    BodyOver(usize),
    Model(String),
    /// One of these names is a member of the body or of its `conversationState`.
    Members(Vec<String>),
    /// One of these names is a member of `additionalModelRequestFields`.
    FieldNames(Vec<String>),
    Round(usize),
    /// The current message's text holds it.
    Says(String),
    ImageOver(usize),
    /// Whether the body holds …
    Reasoning(bool),
    Fields(bool),
    CachePoints(bool),
    Documents(bool),
    ResultImages(bool),
    SchemaKeywords(bool),
}

impl When {
    fn read(when: Option<Value>) -> Result<Self, String> {
        let map = match when {
            None => return Ok(Self::default()),
            Some(Value::Object(map)) => map,
            Some(Value::String(name)) if ["reasoning", "no_profile_arn"].contains(&name.as_str()) => {
                Map::from_iter([(name, Value::Bool(true))])
            }
            Some(other) => return Err(format!("`when` is `reasoning`, `no_profile_arn` or an object, not {other}")),
        };
        let mut fields = Fields::new("when", map);
        let calls = match fields.take::<Value>("call")? {
            None => Vec::new(),
            Some(Value::Array(names)) => names.iter().map(call).collect::<Result<_, _>>()?,
            Some(name) => vec![call(&name)?],
        };
        let mut when = Self { calls, conditions: Vec::new() };
        when.set_shape(fields.take("shape")?)?;
        let below: Option<String> = fields.take("version_below")?;
        let below = below.map(|text| IdeVersion::read(&text).ok_or_else(|| format!("`when.version_below`: `{text}`")));
        let given = match fields.take::<Value>("fields")? {
            None => None,
            Some(Value::Bool(any)) => Some(Condition::Fields(any)),
            Some(names) => {
                let names = serde_json::from_value(names).map_err(|error| format!("`when.fields`: {error}"))?;
                Some(Condition::FieldNames(names))
            }
        };
        let conditions = [
            fields.take("host")?.map(Condition::Host),
            fields.take("region")?.map(Condition::Region),
            below.transpose()?.map(Condition::VersionBelow),
            fields.take::<bool>("no_profile_arn")?.map(|is_other| Condition::OwnArn(!is_other)),
            fields.take("profile_arn")?.map(Condition::AnyArn),
            fields.take("service_arn")?.map(Condition::ServiceArn),
            fields.take("body_over")?.map(Condition::BodyOver),
            fields.take("model")?.map(Condition::Model),
            fields.take("members")?.map(Condition::Members),
            given,
            fields.take("round")?.map(Condition::Round),
            fields.take("says")?.map(Condition::Says),
            fields.take("image_over")?.map(Condition::ImageOver),
            fields.take("reasoning")?.map(Condition::Reasoning),
            fields.take("cache_points")?.map(Condition::CachePoints),
            fields.take("documents")?.map(Condition::Documents),
            fields.take("result_images")?.map(Condition::ResultImages),
            fields.take("schema_keywords")?.map(Condition::SchemaKeywords),
        ];
        when.conditions.extend(conditions.into_iter().flatten());
        fields.finish()?;
        Ok(when)
    }

    fn set_shape(&mut self, shape: Option<String>) -> Result<(), String> {
        match shape {
            Some(shape) if shape != "q" && shape != "runtime" => {
                Err(format!("a shape is `q` or `runtime`, not `{shape}`"))
            }
            shape => {
                self.conditions.extend(shape.map(Condition::Shape));
                Ok(())
            }
        }
    }

    fn holds(&self, facts: &RequestFacts<'_>) -> bool {
        let is_call = self.calls.is_empty() || facts.wire.call.is_some_and(|call| self.calls.contains(&call));
        is_call && self.conditions.iter().all(|condition| condition.holds(facts))
    }
}

fn call(name: &Value) -> Result<Operation, String> {
    let calls = [Operation::Chat, Operation::Mcp, Operation::Usage, Operation::Models, Operation::Profiles];
    let found = calls.into_iter().find(|call| name.as_str() == Some(call.as_str()));
    found.ok_or_else(|| format!("a call is chat, mcp, usage, models or profiles, not {name}"))
}

impl Condition {
    fn holds(&self, facts: &RequestFacts<'_>) -> bool {
        let (wire, arn) = (facts.wire, facts.profile_arn);
        let body = |has: &dyn Fn(&Prompt) -> bool| facts.prompt.is_some_and(has);
        match self {
            Self::Host(name) => wire.host.as_str() == name || wire.name == *name,
            Self::Shape(shape) => wire.shape().as_str() == shape,
            Self::Region(region) => wire.region.as_ref() == Some(region),
            Self::VersionBelow(version) => facts.version.is_some_and(|sent| sent < *version),
            // Without a readable body the condition doesn't hold.
            Self::OwnArn(own) => body(&|_| (arn == Some(PROFILE_ARN)) == *own),
            Self::AnyArn(any) => arn.is_some() == *any,
            Self::ServiceArn(service) => arn.is_some_and(is_service_arn) == *service,
            Self::BodyOver(len) => facts.body_len > *len,
            Self::Model(id) => body(&|prompt| prompt.model.as_ref() == Some(id)),
            Self::Members(names) => body(&|prompt| names.iter().any(|name| prompt.members.contains(name))),
            Self::FieldNames(names) => body(&|prompt| {
                let fields = prompt.fields.as_ref().and_then(Value::as_object);
                fields.is_some_and(|fields| names.iter().any(|name| fields.contains_key(name)))
            }),
            Self::Round(round) => body(&|prompt| prompt.round == *round),
            Self::Says(text) => body(&|prompt| prompt.content.contains(text)),
            Self::ImageOver(len) => body(&|prompt| prompt.largest_image > *len),
            Self::Reasoning(has) => body(&|prompt| prompt.thoughts.is_empty() != *has),
            Self::Fields(has) => body(&|prompt| prompt.fields.is_some() == *has),
            Self::CachePoints(has) => body(&|prompt| (prompt.cache_points > 0) == *has),
            Self::Documents(has) => body(&|prompt| prompt.has_documents == *has),
            Self::ResultImages(has) => body(&|prompt| prompt.has_result_images == *has),
            Self::SchemaKeywords(has) => body(&|prompt| prompt.has_schema_keywords == *has),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// The answer without the scenario.
    Usual,
    Stream(StreamScript),
    Http(HttpReply),
    /// The connection ends without a byte of response.
    Drop {
        reset: bool,
    },
}
