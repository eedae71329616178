//! One answer of the simulator: a [`Scenario`] is read from JSON and holds the frames ready to send.

use std::ops::Range;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::check::Prompt;
use super::presets;
use super::wire::{IdeVersion, Wire};
use super::world::{EndNote, SimWorld, Thinking};
use crate::proto::eventstream::{HeaderValue, encode};
use crate::proto::kiro::route::Operation;

/// Percentage of the context window that an answer reports unless it says otherwise.
const DEFAULT_PERCENT: f64 = 1.25;
/// Output tokens that an answer reports, if the world has such figures.
const DEFAULT_OUTPUT: u64 = 64;
/// The thought of a simulated model.
const DEFAULT_THOUGHT: &str = "This thought is simulated, as the answer below it is.";
const DEFAULT_TEXT: &str = "Hello! This answer is simulated: no model wrote it, and no account was used. It comes from \
    the simulator of kiro-messages, in twenty pieces of text, as Kiro would send them. With a real account in the \
    store and the simulator switched off, the same request goes to Kiro.";
const DEFAULT_PIECES: usize = 20;
const DEFAULT_GAP: Duration = Duration::from_millis(10);

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
        let mut script = Builder::default();
        // The text is a constant that fits into a frame.
        script.think(None, 1);
        let written = script.texts(DEFAULT_TEXT, DEFAULT_PIECES, None).and_then(|()| script.usage(&Value::Bool(true)));
        let reply = match written {
            Ok(()) => {
                Reply::Stream(script.finish(ScriptPace { gap: DEFAULT_GAP, ..ScriptPace::default() }, End::Clean))
            }
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
            Self::OwnArn(own) => body(&|_| (arn == Some(super::PROFILE_ARN)) == *own),
            Self::AnyArn(any) => arn.is_some() == *any,
            Self::ServiceArn(service) => arn.is_some_and(super::accounts::is_service_arn) == *service,
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

#[derive(Clone, Debug)]
pub(super) struct HttpReply {
    pub status: u16,
    /// A value may hold `{date+N}`: the HTTP date N seconds from now.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl HttpReply {
    /// An answer in the shape of upstream's errors.
    pub fn error(status: u16, kind: &str, reason: Option<&str>, message: &str) -> Self {
        let mut body = json!({ "message": message });
        if let Some(reason) = reason {
            body["reason"] = reason.into();
        }
        Self::json(status, &body).with("x-amzn-errortype", kind)
    }

    /// A failure of the simulator's own, or of how it is used.
    pub fn failure(status: u16, message: &str) -> Self {
        Self::json(status, &json!({ "message": message }))
    }

    pub fn json(status: u16, body: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { status, headers, body: body.to_string().into() }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The error in the form of shape `runtime` (K114): its name stands in the body and not in a header.
    pub fn named_in_body(mut self) -> Self {
        let Some(place) = self.headers.iter().position(|(name, _)| name == "x-amzn-errortype") else { return self };
        let (_, kind) = self.headers.remove(place);
        if let Ok(Value::Object(mut body)) = serde_json::from_slice(&self.body) {
            body.entry("__type").or_insert_with(|| format!("com.amazon.kiro.runtimeservice#{kind}").into());
            self.body = Value::Object(body).to_string().into();
        }
        self
    }

    fn read(map: Map<String, Value>) -> Result<Self, String> {
        let mut fields = Fields::new("http", map);
        let status = fields.take("status")?.unwrap_or(200);
        if !(200..=599).contains(&status) {
            return Err(format!("`http.status` is from 200 to 599, not {status}"));
        }
        let kind: Option<String> = fields.take("type")?;
        let message: Option<String> = fields.take("message")?;
        let reason: Option<Value> = fields.take("reason")?;
        let headers: Map<String, Value> = fields.take("headers")?.unwrap_or_default();
        let body = match fields.take::<Value>("body")? {
            Some(Value::String(text)) => text,
            Some(body) => body.to_string(),
            None => {
                let mut body = json!({ "message": message.unwrap_or_else(|| format!("Simulated status {status}.")) });
                if let Some(reason) = reason {
                    body["reason"] = reason;
                }
                body.to_string()
            }
        };
        fields.finish()?;
        let mut reply = Self { status, headers: Vec::new(), body: body.into() };
        if let Some(kind) = kind {
            reply = reply.with("x-amzn-errortype", &kind);
        }
        for (name, value) in headers {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if http::HeaderName::try_from(&name).is_err() || http::HeaderValue::try_from(&value).is_err() {
                return Err(format!("`http.headers.{name}` is no header"));
            }
            reply = reply.with(&name.to_ascii_lowercase(), &value);
        }
        if reply.headers.iter().all(|(name, _)| name != "content-type") {
            reply = reply.with("content-type", "application/json");
        }
        Ok(reply)
    }
}

/// A stream of frames: what is sent, at which pace, and how it ends.
#[derive(Clone, Debug)]
pub(super) struct StreamScript {
    /// The frames of all [`ScriptStep::Event`]s, back to back.
    pub wire: Bytes,
    pub steps: Vec<ScriptStep>,
    pub pace: ScriptPace,
    pub end: End,
    /// This many bytes are sent at most; then the end comes.
    pub limit: Option<u64>,
    /// The response shall have a `content-length`: [`length`](Self::length).
    with_length: bool,
    /// All the bytes, when the response shall have a `content-length`.
    pub length: Option<u64>,
}

/// The parts of the request and the world that [`StreamScript::stage`] needs.
pub(super) struct Stage<'a> {
    pub world: &'a SimWorld,
    /// The protocol's own first frame comes before the answer's (K114).
    pub has_initial_response: bool,
    pub thought: Thought,
    /// Makes a signature that is bound to the request and to the signature before it, which may be empty.
    pub sign: &'a dyn Fn(&str) -> String,
    pub credits: f64,
    /// The model's window.
    pub window: u64,
}

/// How the request asks the model to show its thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thought {
    None,
    /// Events, with or without their text.
    Events {
        omitted: bool,
    },
    /// Text between tags.
    Tags,
    /// One event with an encrypted thought.
    Encrypted,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum ScriptStep {
    /// Frames that were made for this one request.
    Frames(Bytes),
    /// The model's thought, if it is asked for; [`StreamScript::stage`] makes the frames.
    Think {
        text: String,
        /// At least this many, or as many as the world has.
        segments: usize,
    },
    /// The events at the end; [`StreamScript::stage`] makes the frames.
    Notes(Notes),
    /// One frame, or bytes that aren't a frame.
    Event(Range<usize>),
    /// Text events that differ in their running number, written when they are sent.
    Numbered(Numbered),
    Wait(Duration),
}

/// The events at the end of an answer (K31).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Notes {
    percent: Figure,
    metadata: Figure,
    metering: Figure,
    /// The answer holds a tool use.
    tools: bool,
}

/// The content of an event at the end.
#[derive(Clone, Debug, PartialEq)]
enum Figure {
    /// There is no such event.
    None,
    /// The world's usual figures.
    Usual,
    Given(Value),
}

/// Text events with a running number in place of `{n}`, from 0.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Numbered {
    pub count: u64,
    /// The parts of the payload between the numbers.
    parts: Vec<String>,
}

impl Numbered {
    /// Appends the frame of event `n` to `out`.
    pub fn write(&self, n: u64, out: &mut Vec<u8>) -> Result<(), String> {
        frame(&EVENT.map(|(name, value)| (name, value.into())), self.parts.join(&n.to_string()).as_bytes(), out)
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ScriptPace {
    /// From the head of the response to the first event.
    pub first: Duration,
    /// Between writes.
    pub gap: Duration,
    /// Events a write, each written by itself. None: one when there is a gap, else as many as fit.
    pub burst: Option<usize>,
    /// Bytes a write: every write is cut into pieces of this size, each written by itself.
    pub write_bytes: Option<usize>,
    /// Between these pieces.
    pub write_gap: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The last chunk, or the content length reached (K30).
    Clean,
    /// The connection closes, the last chunk missing.
    Cut,
    /// The connection is reset.
    Reset,
    /// Nothing more comes; the connection stays open.
    Hang,
}

impl StreamScript {
    fn read(fields: &mut Fields) -> Result<Self, String> {
        let has_gap = fields.has("gap_ms");
        let mut pace = ScriptPace {
            first: fields.millis("first_ms")?.unwrap_or_default(),
            gap: fields.millis("gap_ms")?.unwrap_or_default(),
            burst: fields.positive("burst")?,
            write_bytes: fields.positive("write_bytes")?,
            write_gap: fields.millis("write_gap_ms")?.unwrap_or_default(),
        };
        let limit = fields.take("limit_bytes")?;
        let with_length: bool = fields.take("content_length")?.unwrap_or(false);
        let end_name: String = fields.take("end")?.unwrap_or_else(|| "clean".to_owned());
        let (end, flaw) = match end_name.as_str() {
            "clean" => (End::Clean, None),
            "cut" => (End::Cut, None),
            "reset" => (End::Reset, None),
            "hang" => (End::Hang, None),
            "leftover" | "corrupt_crc" | "corrupt_prelude" | "corrupt_length" => (End::Clean, Some(end_name.as_str())),
            other => return Err(format!("`end` is none of {ENDS}: `{other}`")),
        };
        let complete = end == End::Clean && flaw.is_none() && !fields.has("exception") && !fields.has("error");
        let mut builder = Builder::default();
        builder.verbs(fields)?;
        let steps: Option<Vec<Map<String, Value>>> = fields.take("steps")?;
        let has_steps = steps.is_some();
        if builder.steps.is_empty() && complete && !has_steps {
            builder.think(None, 1);
            builder.texts(DEFAULT_TEXT, DEFAULT_PIECES, None)?;
            if !has_gap && pace.burst.is_none() {
                pace.gap = DEFAULT_GAP;
            }
        }
        for (n, step) in steps.into_iter().flatten().enumerate() {
            let before = builder.steps.len();
            let mut step = Fields::new(&format!("{}.steps[{n}]", fields.place), step);
            builder.verbs(&mut step)?;
            if let Some(usage) = step.take("usage")? {
                builder.usage(&usage)?;
            }
            builder.failures(&mut step)?;
            step.finish()?;
            if builder.steps.len() == before {
                return Err(format!("`{}` sends nothing", step.place));
            }
        }
        match fields.take("usage")? {
            Some(usage) => builder.usage(&usage)?,
            None if complete && !has_steps => builder.usage(&Value::Bool(true))?,
            None => {}
        }
        builder.failures(fields)?;
        if let Some(flaw) = flaw {
            builder.flawed(flaw)?;
        }
        let mut script = builder.finish(pace, end);
        script.limit = limit;
        script.with_length = with_length;
        Ok(script)
    }

    /// Makes the frames that depend on the request and the world.
    ///
    /// # Errors
    /// A sentence, when a text doesn't fit into a frame.
    pub fn stage(&mut self, stage: &Stage<'_>) -> Result<(), String> {
        let mut steps = Vec::with_capacity(self.steps.len() + 3);
        if stage.has_initial_response && !self.steps.is_empty() {
            steps.push(ScriptStep::Frames(event_frame("initial-response", &json!({}))?));
        }
        for step in self.steps.drain(..) {
            match step {
                ScriptStep::Think { text, segments } => {
                    for (name, payload) in stage.thoughts(&text, segments) {
                        steps.push(ScriptStep::Frames(event_frame(name, &payload)?));
                    }
                }
                ScriptStep::Notes(notes) => {
                    for (name, payload) in stage.notes(notes) {
                        steps.push(ScriptStep::Frames(event_frame(name, &payload)?));
                    }
                }
                step => steps.push(step),
            }
        }
        self.steps = steps;
        self.length = if self.with_length { Some(self.total()?) } else { None };
        Ok(())
    }

    fn total(&self) -> Result<u64, String> {
        let mut total = self.wire.len() as u64;
        let mut scratch = Vec::new();
        for step in &self.steps {
            match step {
                ScriptStep::Frames(frames) => total += frames.len() as u64,
                ScriptStep::Numbered(numbered) => {
                    for n in 0..numbered.count {
                        scratch.clear();
                        numbered.write(n, &mut scratch)?;
                        total += scratch.len() as u64;
                    }
                }
                ScriptStep::Event(_) | ScriptStep::Wait(_) | ScriptStep::Think { .. } | ScriptStep::Notes(_) => {}
            }
        }
        Ok(total)
    }
}

impl Stage<'_> {
    fn thoughts(&self, text: &str, segments: usize) -> Vec<(&'static str, Value)> {
        const NAME: &str = "reasoningContentEvent";
        let text = if text.is_empty() { DEFAULT_THOUGHT } else { text };
        let kind = self.world.thinking;
        match self.thought {
            Thought::None => Vec::new(),
            _ if kind == Thinking::None => Vec::new(),
            Thought::Tags => {
                let text = format!("<thinking>\n{text}\n</thinking>\n\n");
                vec![("assistantResponseEvent", text_payload(&text, None))]
            }
            Thought::Encrypted => {
                vec![(NAME, json!({ "redactedContent": BASE64_STANDARD.encode((self.sign)("")) }))]
            }
            Thought::Events { omitted } => {
                let segments = segments.max(self.world.segments);
                let mut events = Vec::new();
                let mut signature = String::new();
                for segment in cut(text, segments) {
                    if !omitted && kind != Thinking::SignatureOnly {
                        events.push((NAME, json!({ "text": segment })));
                    }
                    if kind != Thinking::Unsigned {
                        signature = (self.sign)(&signature);
                        events.push((NAME, json!({ "signature": signature })));
                    }
                }
                events
            }
        }
    }

    fn notes(&self, notes: Notes) -> Vec<(&'static str, Value)> {
        let Notes { percent, metadata, metering, tools } = notes;
        let event = |note: &EndNote| match note {
            EndNote::Context => {
                let percent = match &percent {
                    Figure::None => return None,
                    Figure::Usual => DEFAULT_PERCENT.into(),
                    Figure::Given(percent) => percent.clone(),
                };
                Some(("contextUsageEvent", json!({ "contextUsagePercentage": percent })))
            }
            EndNote::Metadata => {
                let payload = match &metadata {
                    Figure::None => return None,
                    Figure::Given(metadata) => metadata.clone(),
                    Figure::Usual => {
                        let mut payload = json!({});
                        if self.world.is_today {
                            payload["stopReason"] = if tools { "TOOL_USE" } else { "END_TURN" }.into();
                        }
                        if self.world.tokens {
                            let window = self.world.usage_window.unwrap_or(self.window) as f64;
                            let total = (window * DEFAULT_PERCENT / 100.0).round() as u64;
                            payload["tokenUsage"] = json!({
                                "uncachedInputTokens": total.saturating_sub(DEFAULT_OUTPUT), "outputTokens": DEFAULT_OUTPUT,
                                "totalTokens": total,
                            });
                        }
                        payload
                    }
                };
                Some(("metadataEvent", payload))
            }
            EndNote::Metering => {
                let credits = match &metering {
                    Figure::None => return None,
                    Figure::Usual => self.credits.into(),
                    Figure::Given(credits) => credits.clone(),
                };
                Some(("meteringEvent", json!({ "usage": credits, "unit": "credit", "unitPlural": "credits" })))
            }
        };
        self.world.end.iter().filter_map(event).collect()
    }
}

fn event_frame(name: &str, payload: &Value) -> Result<Bytes, String> {
    let mut headers = EVENT;
    headers[1].1 = name;
    let mut out = Vec::new();
    frame(&headers.map(|(name, value)| (name, value.into())), payload.to_string().as_bytes(), &mut out)?;
    Ok(out.into())
}

const ENDS: &str = "clean, cut, reset, hang, leftover, corrupt_crc, corrupt_prelude, corrupt_length";
/// The headers of a text event.
const EVENT: [(&str, &str); 3] =
    [(":message-type", "event"), (":event-type", "assistantResponseEvent"), (":content-type", "application/json")];

/// Writes the frames of a script.
#[derive(Default)]
struct Builder {
    wire: Vec<u8>,
    steps: Vec<ScriptStep>,
    /// A tool use was written.
    tools: bool,
}

impl Builder {
    /// All events of `fields` except usage and failures, in a fixed order: thinking, redacted thinking, text, tools,
    /// literal events, silence, raw bytes.
    fn verbs(&mut self, fields: &mut Fields) -> Result<(), String> {
        let pieces = fields.positive("pieces")?.unwrap_or(1);
        let tags: bool = fields.take("tags")?.unwrap_or(false);
        let thinking: Option<String> = fields.take("thinking")?;
        let signature: Option<String> = fields.take("signature")?;
        let signature_pieces = fields.positive("signature_pieces")?.unwrap_or(1);
        let segments = fields.positive("segments")?;
        match fields.take::<Value>("think")? {
            None if segments.is_some() => self.think(None, segments.unwrap_or(1)),
            None | Some(Value::Bool(false)) => {}
            Some(Value::Bool(true)) => self.think(None, segments.unwrap_or(1)),
            Some(Value::String(text)) => self.think(Some(text), segments.unwrap_or(1)),
            Some(_) => return Err(format!("`{}.think` is text, true or false", fields.place)),
        }
        let redacted: Option<String> = fields.take("redacted")?;
        let mut text: Option<String> = fields.take("text")?;
        let count: Option<u64> = fields.take("count")?;
        let model: Option<String> = fields.take("model")?;
        match thinking {
            Some(thinking) if tags => {
                text = Some(format!("<thinking>\n{thinking}\n</thinking>\n\n{}", text.unwrap_or_default()));
            }
            Some(thinking) => {
                for piece in cut(&thinking, pieces) {
                    self.event("reasoningContentEvent", &json!({ "text": piece }))?;
                }
            }
            None if tags => return Err(format!("`{}.tags` needs `thinking`", fields.place)),
            None => {}
        }
        for piece in signature.iter().flat_map(|signature| cut(signature, signature_pieces)) {
            self.event("reasoningContentEvent", &json!({ "signature": piece }))?;
        }
        if let Some(redacted) = redacted {
            self.event("reasoningContentEvent", &json!({ "redactedContent": redacted }))?;
        }
        match (text, count) {
            (text, Some(count)) => self.numbered(text.as_deref().unwrap_or("{n} "), count, model.as_deref())?,
            (Some(text), None) => self.texts(&text, pieces, model.as_deref())?,
            (None, None) if model.is_some() => return Err(format!("`{}.model` needs `text`", fields.place)),
            (None, None) => {}
        }
        self.tools(fields)?;
        self.literal(fields)?;
        if let Some(wait) = fields.millis("wait_ms")? {
            self.steps.push(ScriptStep::Wait(wait));
        }
        if let Some(bytes) = fields.take::<String>("bytes")? {
            let bytes = BASE64_STANDARD.decode(&bytes).map_err(|_| format!("`{}.bytes` is no base64", fields.place))?;
            self.raw(&bytes);
        }
        if let Some(how) = fields.take::<String>("corrupt")? {
            self.flawed(&format!("corrupt_{how}"))?;
        }
        Ok(())
    }

    /// `exception` and `error`, which end an answer.
    fn failures(&mut self, fields: &mut Fields) -> Result<(), String> {
        match fields.take::<Value>("exception")? {
            None => {}
            Some(Value::String(kind)) => self.exception(&kind, &json!({ "message": "Simulated exception." }))?,
            Some(Value::Object(map)) => {
                let mut exception = Fields::new(&format!("{}.exception", fields.place), map);
                let kind: String = exception.need("type")?;
                let message: String = exception.take("message")?.unwrap_or_else(|| "Simulated exception.".to_owned());
                let reason: Option<String> = exception.take("reason")?;
                exception.finish()?;
                let mut payload = json!({ "message": message });
                if let Some(reason) = reason {
                    payload["reason"] = reason.into();
                }
                self.exception(&kind, &payload)?;
            }
            Some(_) => return Err(format!("`{}.exception` is a type or an object", fields.place)),
        }
        if let Some(map) = fields.take::<Map<String, Value>>("error")? {
            let mut error = Fields::new(&format!("{}.error", fields.place), map);
            let code: String = error.need("code")?;
            let message: String = error.take("message")?.unwrap_or_else(|| "Simulated error.".to_owned());
            error.finish()?;
            let headers = [(":message-type", "error"), (":error-code", &code), (":error-message", &message)];
            self.frame(&headers.map(|(name, value)| (name, value.into())), b"")?;
        }
        Ok(())
    }

    fn exception(&mut self, kind: &str, payload: &Value) -> Result<(), String> {
        let headers =
            [(":message-type", "exception"), (":exception-type", kind), (":content-type", "application/json")];
        self.frame(&headers.map(|(name, value)| (name, value.into())), payload.to_string().as_bytes())
    }

    fn think(&mut self, text: Option<String>, segments: usize) {
        self.steps.push(ScriptStep::Think { text: text.unwrap_or_default(), segments });
    }

    fn texts(&mut self, text: &str, pieces: usize, model: Option<&str>) -> Result<(), String> {
        for piece in cut(text, pieces) {
            self.event("assistantResponseEvent", &text_payload(piece, model))?;
        }
        Ok(())
    }

    fn numbered(&mut self, text: &str, count: u64, model: Option<&str>) -> Result<(), String> {
        let payload = text_payload(text, model).to_string();
        let numbered = Numbered { count, parts: payload.split("{n}").map(str::to_owned).collect() };
        // A text that is too long fails here and not in mid-answer: this is the longest number.
        numbered.write(u64::MAX, &mut Vec::new())?;
        self.steps.push(ScriptStep::Numbered(numbered));
        Ok(())
    }

    fn tools(&mut self, fields: &mut Fields) -> Result<(), String> {
        let mut tools: Vec<Map<String, Value>> = fields.take("tools")?.unwrap_or_default();
        tools.extend(fields.take::<Map<String, Value>>("tool")?);
        let interleave: bool = fields.take("interleave")?.unwrap_or(false);
        let place = fields.place.clone();
        self.tools |= !tools.is_empty();
        let mut events: Vec<Vec<Value>> = Vec::new();
        for (n, tool) in tools.into_iter().enumerate() {
            events.push(tool_events(&mut Fields::new(&format!("{place}.tools[{n}]"), tool), n)?);
        }
        if interleave {
            let longest = events.iter().map(Vec::len).max().unwrap_or(0);
            for n in 0..longest {
                for event in events.iter().filter_map(|events| events.get(n)) {
                    self.event("toolUseEvent", event)?;
                }
            }
        } else {
            for event in events.iter().flatten() {
                self.event("toolUseEvent", event)?;
            }
        }
        Ok(())
    }

    /// `event` with `payload` or `raw`, or `headers` with them.
    fn literal(&mut self, fields: &mut Fields) -> Result<(), String> {
        let event: Option<String> = fields.take("event")?;
        let headers: Option<Map<String, Value>> = fields.take("headers")?;
        let payload: Option<Value> = fields.take("payload")?;
        let raw: Option<String> = fields.take("raw")?;
        let place = &fields.place;
        let payload = match (payload, raw) {
            (Some(_), Some(_)) => return Err(format!("`{place}` has both `payload` and `raw`")),
            (Some(payload), None) => Some(payload.to_string()),
            (None, raw) => raw,
        };
        let headers: Vec<(String, String)> = match (event, headers) {
            (Some(_), Some(_)) => return Err(format!("`{place}` has both `event` and `headers`")),
            (None, None) if payload.is_some() => {
                return Err(format!("`{place}` has a payload, but neither `event` nor `headers`"));
            }
            (None, None) => return Ok(()),
            (Some(event), None) => {
                let mut headers = EVENT.map(|(name, value)| (name.to_owned(), value.to_owned()));
                headers[1].1 = event;
                headers.into()
            }
            (None, Some(map)) => {
                let text = |(name, value): (String, Value)| match value {
                    Value::String(value) => Ok((name, value)),
                    _ => Err(format!("`{place}.headers.{name}` is no string")),
                };
                map.into_iter().map(text).collect::<Result<_, _>>()?
            }
        };
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), HeaderValue::Text(value.as_str()))).collect();
        self.frame(&headers, payload.unwrap_or_default().as_bytes())
    }

    /// The events at the end of an answer: `true` for all three, or an object that says which.
    fn usage(&mut self, usage: &Value) -> Result<(), String> {
        let given = |value: Option<Value>| value.map_or(Figure::None, Figure::Given);
        let (percent, metadata, metering) = match usage {
            Value::Bool(false) => return Ok(()),
            Value::Bool(true) => (Figure::Usual, Figure::Usual, Figure::Usual),
            Value::Object(map) => {
                let mut fields = Fields::new("usage", map.clone());
                let percent = fields.take::<Value>("percent")?;
                let tokens = fields.take::<Value>("tokens")?;
                let stop_reason = fields.take::<Value>("stop_reason")?;
                let metering = fields.take::<Value>("metering")?;
                fields.finish()?;
                let mut metadata = Map::new();
                metadata.extend(tokens.map(|tokens| ("tokenUsage".to_owned(), tokens)));
                metadata.extend(stop_reason.map(|reason| ("stopReason".to_owned(), reason)));
                (given(percent), given((!metadata.is_empty()).then_some(Value::Object(metadata))), given(metering))
            }
            _ => return Err("`usage` is true, false or an object".to_owned()),
        };
        self.steps.push(ScriptStep::Notes(Notes { percent, metadata, metering, tools: self.tools }));
        Ok(())
    }

    /// Bytes that every reader refuses: half a frame, or a broken one.
    fn flawed(&mut self, flaw: &str) -> Result<(), String> {
        let mut frame = Vec::new();
        let payload = text_payload("These bytes are broken on purpose.", None).to_string();
        self::frame(&EVENT.map(|(name, value)| (name, value.into())), payload.as_bytes(), &mut frame)?;
        let len = frame.len();
        match flaw {
            "leftover" => frame.truncate(len / 2),
            "corrupt_crc" => frame[len - 1] ^= 0xff,
            "corrupt_prelude" => frame[8] ^= 0xff,
            "corrupt_length" => frame[..4].fill(0xff),
            other => return Err(format!("nothing can be broken like this: `{other}`")),
        }
        self.raw(&frame);
        Ok(())
    }

    fn event(&mut self, name: &str, payload: &Value) -> Result<(), String> {
        let mut headers = EVENT;
        headers[1].1 = name;
        self.frame(&headers.map(|(name, value)| (name, value.into())), payload.to_string().as_bytes())
    }

    fn frame(&mut self, headers: &[(&str, HeaderValue<'_>)], payload: &[u8]) -> Result<(), String> {
        let start = self.wire.len();
        frame(headers, payload, &mut self.wire)?;
        self.steps.push(ScriptStep::Event(start..self.wire.len()));
        Ok(())
    }

    fn raw(&mut self, bytes: &[u8]) {
        let start = self.wire.len();
        self.wire.extend_from_slice(bytes);
        self.steps.push(ScriptStep::Event(start..self.wire.len()));
    }

    fn finish(self, pace: ScriptPace, end: End) -> StreamScript {
        StreamScript {
            wire: self.wire.into(),
            steps: self.steps,
            pace,
            end,
            limit: None,
            with_length: false,
            length: None,
        }
    }
}

fn frame(headers: &[(&str, HeaderValue<'_>)], payload: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    encode(headers, payload, out).map_err(|error| format!("no frame can hold this: {error}"))
}

fn text_payload(text: &str, model: Option<&str>) -> Value {
    match model {
        Some(model) => json!({ "content": text, "modelId": model }),
        None => json!({ "content": text }),
    }
}

/// The events of one tool use, as upstream sends them (K32): name and id on every one.
fn tool_events(fields: &mut Fields, n: usize) -> Result<Vec<Value>, String> {
    let id = fields.take("id")?.unwrap_or_else(|| format!("tooluse_simulated_{}", n + 1));
    let name: String = fields.need("name")?;
    let input: Option<Value> = fields.take("input")?;
    let pieces = fields.positive("pieces")?.unwrap_or(1);
    let as_object: bool = fields.take("object")?.unwrap_or(false);
    let open: bool = fields.take("open")?.unwrap_or(true);
    let stop: String = fields.take("stop")?.unwrap_or_else(|| "own".to_owned());
    let place = fields.place.clone();
    fields.finish()?;

    let event = |input: Option<Value>| {
        let mut event = json!({ "toolUseId": id, "name": name });
        if let Some(input) = input {
            event["input"] = input;
        }
        event
    };
    let mut events = Vec::new();
    if open {
        events.push(event(None));
    }
    match input {
        None => {}
        Some(input) if as_object => events.push(event(Some(input))),
        Some(Value::String(text)) => events.extend(cut(&text, pieces).map(|piece| event(Some(piece.into())))),
        Some(input) => events.extend(cut(&input.to_string(), pieces).map(|piece| event(Some(piece.into())))),
    }
    match (stop.as_str(), events.last_mut()) {
        ("never", _) => {}
        ("last", Some(last)) => last["stop"] = true.into(),
        ("own" | "last", _) => {
            let mut last = event(None);
            last["stop"] = true.into();
            events.push(last);
        }
        (other, _) => return Err(format!("`{place}.stop` is `own`, `last` or `never`, not `{other}`")),
    }
    Ok(events)
}

/// Cuts `text` into `pieces` parts of about equal length, between characters; fewer when it has fewer characters, and
/// one empty one when it has none.
fn cut(text: &str, pieces: usize) -> impl Iterator<Item = &str> {
    let starts: Vec<usize> = text.char_indices().map(|(start, _)| start).chain([text.len()]).collect();
    let chars = starts.len() - 1;
    let pieces = pieces.min(chars).max(1);
    (0..pieces).map(move |n| &text[starts[n * chars / pieces]..starts[(n + 1) * chars / pieces]])
}

/// The members of an object, taken one by one. A member that is left is an error that names it.
pub(super) struct Fields {
    place: String,
    map: Map<String, Value>,
}

impl Fields {
    pub fn new(place: &str, map: Map<String, Value>) -> Self {
        Self { place: place.to_owned(), map }
    }

    fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A member; with an `Option` for T, null differs from absent.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        let Some(value) = self.map.shift_remove(key) else { return Ok(None) };
        serde_json::from_value(value).map(Some).map_err(|error| format!("`{}.{key}`: {error}", self.place))
    }

    pub fn need<T: DeserializeOwned>(&mut self, key: &str) -> Result<T, String> {
        self.take(key)?.ok_or_else(|| format!("`{}.{key}` is missing", self.place))
    }

    pub fn millis(&mut self, key: &str) -> Result<Option<Duration>, String> {
        Ok(self.take(key)?.map(Duration::from_millis))
    }

    pub fn positive(&mut self, key: &str) -> Result<Option<usize>, String> {
        match self.take(key)? {
            Some(0) => Err(format!("`{}.{key}` is at least 1", self.place)),
            number => Ok(number),
        }
    }

    pub fn finish(&self) -> Result<(), String> {
        match self.map.keys().next() {
            Some(key) => Err(format!("unknown key `{key}` in `{}`", self.place)),
            None => Ok(()),
        }
    }
}
