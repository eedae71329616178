//! What one answer of the simulator looks like: a [`Scenario`] is read from JSON and holds the frames ready to send.

use std::ops::Range;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::presets;
use crate::proto::eventstream::{HeaderValue, encode};

/// Percentage of the context window that an answer reports unless it says otherwise.
const DEFAULT_PERCENT: f64 = 1.25;
/// Credits that an answer reports unless it says otherwise.
const DEFAULT_METERING: f64 = 0.05;
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

    /// The preset of that name, with or without `sim-` in front; `None` when there is none.
    ///
    /// # Errors
    /// A sentence, when its parameter makes no scenario.
    pub fn preset(name: &str) -> Option<Result<Self, String>> {
        presets::find(name.strip_prefix("sim-").unwrap_or(name)).map(Self::from_value)
    }

    /// The answer to a prompt that asks for nothing else.
    pub(super) fn demo() -> Self {
        let mut script = Builder::default();
        // The text is a constant, so nothing of it can be too long for a frame.
        let written = script.texts(DEFAULT_TEXT, DEFAULT_PIECES, None).and_then(|()| script.usage(&Value::Bool(true)));
        let reply = match written {
            Ok(()) => Reply::Stream(script.finish(Pace { gap: DEFAULT_GAP, ..Pace::default() }, End::Clean)),
            Err(message) => Reply::Http(HttpReply::failure(500, &message)),
        };
        Self { when: When::Always, everywhere: false, head: Duration::ZERO, reply }
    }

    fn read(map: Map<String, Value>) -> Result<Self, String> {
        let mut fields = Fields::new("scenario", map);
        let when = match fields.take::<String>("when")?.as_deref() {
            None => When::Always,
            Some("reasoning") => When::Reasoning,
            Some("no_profile_arn") => When::NoProfileArn,
            Some(other) => return Err(format!("`when` is `reasoning` or `no_profile_arn`, not `{other}`")),
        };
        let everywhere = fields.take("everywhere")?.unwrap_or(false);
        let head = fields.millis("head_ms")?.unwrap_or_default();
        let reply = if let Some(http) = fields.take::<Map<String, Value>>("http")? {
            Reply::Http(HttpReply::read(http)?)
        } else if let Some(how) = fields.take::<String>("drop")? {
            match how.as_str() {
                "close" => Reply::Drop { reset: false },
                "reset" => Reply::Drop { reset: true },
                other => return Err(format!("`drop` is `close` or `reset`, not `{other}`")),
            }
        } else {
            Reply::Stream(Script::read(&mut fields)?)
        };
        fields.finish()?;
        Ok(Self { when, everywhere, head, reply })
    }
}

/// Which requests a scenario is for; the others are answered as if it weren't there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Always,
    /// The history holds `reasoningContent`.
    Reasoning,
    /// The body's `profileArn` isn't the one that ListAvailableProfiles gives.
    NoProfileArn,
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Stream(Script),
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
pub(super) struct Script {
    /// The frames of all [`Step::Event`]s, back to back.
    pub wire: Bytes,
    pub steps: Vec<Step>,
    pub pace: Pace,
    pub end: End,
    /// This many bytes are sent at most; then the end comes.
    pub limit: Option<u64>,
    /// All the bytes, when the response shall have a `content-length`.
    pub length: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// One frame, or bytes that are none.
    Event(Range<usize>),
    /// Text events that differ in their running number, written when they are sent.
    Numbered(Numbered),
    Wait(Duration),
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
pub(super) struct Pace {
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

impl Script {
    fn read(fields: &mut Fields) -> Result<Self, String> {
        let has_gap = fields.has("gap_ms");
        let mut pace = Pace {
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
        script.length = if with_length { Some(script.total()?) } else { None };
        Ok(script)
    }

    fn total(&self) -> Result<u64, String> {
        let mut total = self.wire.len() as u64;
        let mut scratch = Vec::new();
        for step in &self.steps {
            if let Step::Numbered(numbered) = step {
                for n in 0..numbered.count {
                    scratch.clear();
                    numbered.write(n, &mut scratch)?;
                    total += scratch.len() as u64;
                }
            }
        }
        Ok(total)
    }
}

const ENDS: &str = "clean, cut, reset, hang, leftover, corrupt_crc, corrupt_prelude, corrupt_length";
/// The headers of a text event.
const EVENT: [(&str, &str); 3] =
    [(":message-type", "event"), (":event-type", "assistantResponseEvent"), (":content-type", "application/json")];

/// Writes the frames of a script.
#[derive(Default)]
struct Builder {
    wire: Vec<u8>,
    steps: Vec<Step>,
}

impl Builder {
    /// Everything that `fields` asks to send but usage and failures, in a fixed order: thinking, redacted thinking,
    /// text, tools, literal events, silence, raw bytes.
    fn verbs(&mut self, fields: &mut Fields) -> Result<(), String> {
        let pieces = fields.positive("pieces")?.unwrap_or(1);
        let tags: bool = fields.take("tags")?.unwrap_or(false);
        let thinking: Option<String> = fields.take("thinking")?;
        let signature: Option<String> = fields.take("signature")?;
        let signature_pieces = fields.positive("signature_pieces")?.unwrap_or(1);
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
            self.steps.push(Step::Wait(wait));
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

    fn texts(&mut self, text: &str, pieces: usize, model: Option<&str>) -> Result<(), String> {
        for piece in cut(text, pieces) {
            self.event("assistantResponseEvent", &text_payload(piece, model))?;
        }
        Ok(())
    }

    fn numbered(&mut self, text: &str, count: u64, model: Option<&str>) -> Result<(), String> {
        let payload = text_payload(text, model).to_string();
        let numbered = Numbered { count, parts: payload.split("{n}").map(str::to_owned).collect() };
        // What is too long fails here and not in mid-answer: no number is longer than this one.
        numbered.write(u64::MAX, &mut Vec::new())?;
        self.steps.push(Step::Numbered(numbered));
        Ok(())
    }

    fn tools(&mut self, fields: &mut Fields) -> Result<(), String> {
        let mut tools: Vec<Map<String, Value>> = fields.take("tools")?.unwrap_or_default();
        tools.extend(fields.take::<Map<String, Value>>("tool")?);
        let interleave: bool = fields.take("interleave")?.unwrap_or(false);
        let place = fields.place.clone();
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

    /// The events at the end of an answer (K31): `true` for all three, or an object that says which.
    fn usage(&mut self, usage: &Value) -> Result<(), String> {
        let (percent, metadata, metering) = match usage {
            Value::Bool(false) => return Ok(()),
            Value::Bool(true) => (Some(DEFAULT_PERCENT.into()), Some(json!({})), Some(DEFAULT_METERING.into())),
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
                (percent, (!metadata.is_empty()).then_some(Value::Object(metadata)), metering)
            }
            _ => return Err("`usage` is true, false or an object".to_owned()),
        };
        if let Some(percent) = percent {
            self.event("contextUsageEvent", &json!({ "contextUsagePercentage": percent }))?;
        }
        if let Some(metadata) = metadata {
            self.event("metadataEvent", &metadata)?;
        }
        if let Some(credits) = metering {
            let metering: Value = json!({ "usage": credits, "unit": "credit", "unitPlural": "credits" });
            self.event("meteringEvent", &metering)?;
        }
        Ok(())
    }

    /// Bytes that no reader takes: half a frame, or one with something wrong in it.
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
        self.steps.push(Step::Event(start..self.wire.len()));
        Ok(())
    }

    fn raw(&mut self, bytes: &[u8]) {
        let start = self.wire.len();
        self.wire.extend_from_slice(bytes);
        self.steps.push(Step::Event(start..self.wire.len()));
    }

    fn finish(self, pace: Pace, end: End) -> Script {
        Script { wire: self.wire.into(), steps: self.steps, pace, end, limit: None, length: None }
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

/// The members of an object, taken one by one; what nobody took is an error that names it.
pub(super) struct Fields {
    place: String,
    map: Map<String, Value>,
}

impl Fields {
    pub fn new(place: &str, map: Map<String, Value>) -> Self {
        Self { place: place.to_owned(), map }
    }

    fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A member; with an `Option` for T, null is told apart from absent.
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
