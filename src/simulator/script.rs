//! A stream of frames as a scenario says it, ready to send but for what [`Stage`](super::stage::Stage) adds.

use std::ops::Range;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::proto::eventstream::{HeaderValue, encode};

/// Percentage of the context window that an answer reports unless it says otherwise.
pub(super) const DEFAULT_PERCENT: f64 = 1.25;
/// Output tokens that an answer reports, if the world has such figures.
pub(super) const DEFAULT_OUTPUT: u64 = 64;
const DEFAULT_TEXT: &str = "Hello! This answer is simulated: no model wrote it, and no account was used. It comes from \
    the simulator of kiro-messages, in twenty pieces of text, as Kiro would send them. With a real account in the \
    store and the simulator switched off, the same request goes to Kiro.";
const DEFAULT_PIECES: usize = 20;
const DEFAULT_GAP: Duration = Duration::from_millis(10);

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
    pub(super) with_length: bool,
    /// All the bytes, when the response shall have a `content-length`.
    pub length: Option<u64>,
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
    pub percent: Figure,
    pub metadata: Figure,
    pub metering: Figure,
    /// The answer holds a tool use.
    pub tools: bool,
}

/// The content of an event at the end.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Figure {
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
    /// The answer to a prompt that asks for nothing else.
    ///
    /// # Errors
    /// Never: its text is a constant that fits into a frame.
    pub fn demo() -> Result<Self, String> {
        let mut script = Builder::default();
        script.think(None, 1);
        script.texts(DEFAULT_TEXT, DEFAULT_PIECES, None)?;
        script.usage(&Value::Bool(true))?;
        Ok(script.finish(ScriptPace { gap: DEFAULT_GAP, ..ScriptPace::default() }, End::Clean))
    }

    pub fn read(fields: &mut Fields) -> Result<Self, String> {
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

    pub(super) fn total(&self) -> Result<u64, String> {
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

pub(super) fn event_frame(name: &str, payload: &Value) -> Result<Bytes, String> {
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

pub(super) fn text_payload(text: &str, model: Option<&str>) -> Value {
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
pub(super) fn cut(text: &str, pieces: usize) -> impl Iterator<Item = &str> {
    let starts: Vec<usize> = text.char_indices().map(|(start, _)| start).chain([text.len()]).collect();
    let chars = starts.len() - 1;
    let pieces = pieces.min(chars).max(1);
    (0..pieces).map(move |n| &text[starts[n * chars / pieces]..starts[(n + 1) * chars / pieces]])
}
