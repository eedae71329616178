//! What the tests of the response half share: the notation of the vectors, a driver that feeds a pipeline in any way,
//! and a reader of SSE that knows the grammar.

use bytes::{Bytes, BytesMut};
use kiro_messages::proto::eventstream::{HeaderValue, encode};
use kiro_messages::proto::kiro::fault::Fault;
use kiro_messages::proto::messages::error::{ApiError, ErrorType};
use kiro_messages::proto::messages::search::{Hit, SearchCode, SearchOutcome};
use kiro_messages::proto::pipeline::{Extras, Mode, Pipeline, Settings, Step, StopSequences, UsageSplit};
use serde_json::Value;
use serde_json::value::RawValue;

// ---- Inputs -------------------------------------------------------------------------------------------------------

/// What happens to a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    Frame(Frame),
    End,
    Cut,
    EarlyStart,
    Ping,
    Restart,
    GiveUp,
    Shutdown,
    /// The outcomes of a round's searches, and whether another round may follow.
    Searched(Vec<SearchOutcome>, bool),
}

/// A frame by what it says.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    Event {
        name: String,
        payload: Vec<u8>,
    },
    Exception {
        name: String,
        payload: Vec<u8>,
    },
    Error {
        code: String,
        message: String,
    },
    /// An event frame without `:message-type`.
    Untyped {
        name: String,
        payload: Vec<u8>,
    },
    /// A frame of another message type.
    Other {
        message_type: String,
    },
    /// An event whose checksum is wrong.
    Corrupt,
}

impl Frame {
    pub fn event(name: &str, payload: impl Into<Vec<u8>>) -> Self {
        Self::Event { name: name.into(), payload: payload.into() }
    }

    pub fn text(content: &str) -> Self {
        Self::event("assistantResponseEvent", format!("{{\"content\":{}}}", Value::from(content)))
    }

    pub fn wire(&self) -> Vec<u8> {
        self.numbered(None)
    }

    /// With a number as one more header.
    fn numbered(&self, number: Option<usize>) -> Vec<u8> {
        let mut wire = Vec::new();
        let text = |name: &'static str, value| (name, HeaderValue::Text(value));
        let (mut headers, payload): (Vec<_>, &[u8]) = match self {
            Self::Event { name, payload } => {
                let json = text(":content-type", "application/json");
                (vec![text(":message-type", "event"), text(":event-type", name), json], payload)
            }
            Self::Untyped { name, payload } => (vec![text(":event-type", name)], payload),
            Self::Exception { name, payload } => {
                let json = text(":content-type", "application/json");
                (vec![text(":message-type", "exception"), text(":exception-type", name), json], payload)
            }
            Self::Error { code, message } => {
                let code = text(":error-code", code);
                (vec![text(":message-type", "error"), code, text(":error-message", message)], b"")
            }
            Self::Other { message_type } => (vec![text(":message-type", message_type)], b"{}"),
            Self::Corrupt => {
                let headers = [text(":message-type", "event"), text(":event-type", "assistantResponseEvent")];
                (headers.to_vec(), b"{\"content\":\"lost\"}")
            }
        };
        headers.extend(number.map(|number| ("number", HeaderValue::I64(number as i64))));
        encode(&headers, payload, &mut wire).unwrap();
        if *self == Self::Corrupt {
            *wire.last_mut().unwrap() ^= 1;
        }
        wire
    }
}

/// A fault such as the driver makes when the connection breaks.
pub fn cut() -> Fault {
    Fault::network("connection reset")
}

// ---- Cases --------------------------------------------------------------------------------------------------------

/// One case of a vector.
#[derive(Debug, Clone)]
pub struct Case {
    /// `TV85.2`: the second case of TV85; the only one has no number.
    pub name: String,
    /// The rules the vector stands under.
    pub rules: Vec<String>,
    pub title: String,
    pub thinking: bool,
    pub omitted: bool,
    pub search: bool,
    pub split: UsageSplit,
    pub tool_names: Vec<(String, String)>,
    pub stop_sequences: Vec<String>,
    pub max_tokens: Option<u64>,
    pub inputs: Vec<Input>,
    /// The views: events, `use …`, `fold …`.
    pub expected: Vec<String>,
}

impl Case {
    pub fn settings(&self, mode: Mode) -> Settings {
        Settings {
            message_id: "msg_1".into(),
            request_id: "req_1".into(),
            model: "claude-sonnet-4-5".into(),
            thinking: self.thinking,
            drop_thinking_text: self.omitted,
            tool_names: self.tool_names.iter().cloned().collect(),
            window: 172_500,
            usage_window: 172_500,
            usage_split: self.split,
            input_estimate: 10,
            mode,
            extras: Extras {
                search: self.search,
                stop_sequences: StopSequences::new(self.stop_sequences.clone()),
                max_tokens: self.max_tokens,
                ..Extras::default()
            },
        }
    }

    pub fn pipeline(&self) -> Pipeline {
        Pipeline::new(self.settings(Mode::Stream))
    }

    /// All cases of `tests/golden/response/vectors.txt`.
    pub fn all() -> Vec<Self> {
        parse_vectors(include_str!("../golden/response/vectors.txt"))
    }
}

pub fn parse_vectors(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let (mut rules, mut vector, mut title) = (Vec::new(), String::new(), String::new());
    for line in text.lines() {
        if let Some(names) = line.strip_prefix("# ") {
            rules = names.split(' ').map(str::to_owned).collect();
        } else if rules.is_empty() || line.is_empty() || line.ends_with('.') {
            continue;
        } else if let Some(expected) = line.strip_prefix(">").map(str::trim_start) {
            let case = cases.last_mut().unwrap();
            assert!(case.expected.is_empty(), "two expectations: {line}");
            case.expected = expected.split(" ;; ").map(str::to_owned).collect();
        } else {
            let input = match line.strip_prefix("< ") {
                Some(input) => input,
                None => {
                    let (head, input) = line.split_once(" < ").unwrap_or_else(|| panic!("no input: {line}"));
                    let (name, rest) = head.split_once(' ').unwrap();
                    (vector, title) = (name.into(), rest.into());
                    input
                }
            };
            let number = cases.iter().filter(|case| case.name.split('.').next() == Some(&vector)).count() + 1;
            let mut case = parse_case(input);
            case.name = if number == 1 { vector.clone() } else { format!("{vector}.{number}") };
            case.rules = rules.clone();
            case.title = title.clone();
            cases.push(case);
        }
    }
    cases
}

fn parse_case(text: &str) -> Case {
    let mut case = Case {
        name: String::new(),
        rules: Vec::new(),
        title: String::new(),
        thinking: false,
        omitted: false,
        search: false,
        split: UsageSplit::Ratio,
        tool_names: Vec::new(),
        stop_sequences: Vec::new(),
        max_tokens: None,
        inputs: Vec::new(),
        expected: Vec::new(),
    };
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let word = rest.split(' ').next().unwrap();
        match word {
            "think" => case.thinking = true,
            "omit" => case.omitted = true,
            "search" => case.search = true,
            // Only for the reader: another upstream answer begins.
            "|" => {}
            "none" => case.split = UsageSplit::None,
            _ if word.starts_with("stops=") => case.stop_sequences = serde_json::from_str(&word[6..]).unwrap(),
            _ if word.starts_with("max=") => case.max_tokens = Some(word[4..].parse().unwrap()),
            _ if case.inputs.is_empty() && word.contains('=') && !word.contains(['"', '{']) => {
                let (upstream, client) = word.split_once('=').unwrap();
                case.tool_names.push((upstream.into(), client.into()));
            }
            _ => {
                let (input, after) = parse_input(rest);
                case.inputs.push(input);
                assert!(after.is_empty() || after.starts_with(' '), "{rest}");
                rest = after.trim_start();
                continue;
            }
        }
        rest = rest[word.len()..].trim_start();
    }
    case
}

fn parse_input(text: &str) -> (Input, &str) {
    let words = [
        ("@start", Input::EarlyStart),
        ("@ping", Input::Ping),
        ("@restart", Input::Restart),
        ("@give-up", Input::GiveUp),
        ("@stop", Input::Shutdown),
    ];
    for (word, input) in words {
        if let Some(rest) = text.strip_prefix(word) {
            return (input, rest);
        }
    }
    let (kind, rest) = text.split_at(1);
    let (frame, rest) = match kind {
        "S" => {
            let (list, rest) = json_prefix(rest);
            let outcomes: Vec<Value> = serde_json::from_str(list).unwrap();
            let last = rest.strip_prefix('!');
            let outcomes = outcomes.iter().map(outcome).collect();
            return (Input::Searched(outcomes, last.is_none()), last.unwrap_or(rest));
        }
        "Z" => return (Input::End, rest),
        "K" => return (Input::Cut, rest),
        "A" => {
            let (payload, rest) = payload(rest, |content| format!("{{\"content\":{content}}}"));
            (Frame::event("assistantResponseEvent", payload), rest)
        }
        "R" => {
            let (payload, rest) = payload(rest, |list| members(list, &["text", "signature"]));
            (Frame::event("reasoningContentEvent", payload), rest)
        }
        "T" => {
            let (payload, rest) = payload(rest, |list| members(list, &["toolUseId", "name", "input", "stop"]));
            (Frame::event("toolUseEvent", payload), rest)
        }
        "C" => {
            let end = rest.find(' ').unwrap_or(rest.len());
            let payload = format!("{{\"contextUsagePercentage\":{}}}", &rest[..end]);
            (Frame::event("contextUsageEvent", payload), &rest[end..])
        }
        "M" => {
            let (payload, rest) = payload(rest, str::to_owned);
            (Frame::event("metadataEvent", payload), rest)
        }
        "I" => {
            let (payload, rest) = payload(rest, str::to_owned);
            (Frame::event("invalidStateEvent", payload), rest)
        }
        "G" => (Frame::event("meteringEvent", r#"{"usage":0.5,"unit":"credit","unitPlural":"credits"}"#), rest),
        "N" => (Frame::event("initial-response", "{}"), rest),
        "B" => (Frame::Corrupt, rest),
        "U" | "V" | "X" | "E" => {
            let rest = rest.strip_prefix(':').unwrap();
            let at = rest.find(['{', '\'', '"']).unwrap_or(rest.len());
            let (name, rest) = rest.split_at(at);
            let name = name.to_owned();
            if kind == "E" {
                let (raw, rest) = json_prefix(rest);
                (Frame::Error { code: name, message: serde_json::from_str(raw).unwrap() }, rest)
            } else {
                let (payload, rest) = payload(rest, str::to_owned);
                let frame = match kind {
                    "U" => Frame::Event { name, payload },
                    "V" => Frame::Untyped { name, payload },
                    _ => Frame::Exception { name, payload },
                };
                (frame, rest)
            }
        }
        "F" => {
            let (message_type, rest) = payload(rest, str::to_owned);
            (Frame::Other { message_type: String::from_utf8(message_type).unwrap() }, rest)
        }
        _ => panic!("unknown input: {text}"),
    };
    (Input::Frame(frame), rest)
}

/// So many results, or a code.
fn outcome(value: &Value) -> SearchOutcome {
    match value.as_str() {
        Some("too_many_requests") => Err(SearchCode::TooManyRequests),
        Some("max_uses_exceeded") => Err(SearchCode::MaxUsesExceeded),
        Some(_) => Err(SearchCode::Unavailable),
        None => {
            Ok(vec![
                Hit { url: "https://a.test/".into(), title: "T".into(), snippet: "snip".into(), page_age: None };
                usize::try_from(value.as_u64().unwrap()).unwrap()
            ])
        }
    }
}

/// The payload at the beginning of a text: an object literally, `'…'` as bytes, any other JSON by way of `make`.
fn payload(text: &str, make: impl FnOnce(&str) -> String) -> (Vec<u8>, &str) {
    if let Some(quoted) = text.strip_prefix('\'') {
        let (bytes, rest) = quoted.split_once('\'').unwrap();
        return (unescape_bytes(bytes), rest);
    }
    let (json, rest) = json_prefix(text);
    (if json.starts_with('{') { json.to_owned() } else { make(json) }.into_bytes(), rest)
}

/// The JSON value at the beginning of a text, as it stands there.
fn json_prefix(text: &str) -> (&str, &str) {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let value = values.next().unwrap().unwrap_or_else(|error| panic!("{error}: {text}"));
    (value.get(), &text[values.byte_offset()..])
}

/// `["a",null]` as an object with these names; items left out at the end are absent.
fn members(list: &str, names: &[&str]) -> String {
    let values: Vec<&RawValue> = serde_json::from_str(list).unwrap();
    let members: Vec<String> = names.iter().zip(values).map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// `\xNN` is that byte, everything else itself.
fn unescape_bytes(text: &str) -> Vec<u8> {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(hex, 16).unwrap());
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}

/// A text or a thought as events of so many UTF-16 units of its JSON string each; other inputs as they are.
pub fn in_pieces(input: &Input, size: usize) -> Vec<Input> {
    let whole = || vec![input.clone()];
    let Input::Frame(Frame::Event { name, payload }) = input else { return whole() };
    let key = match name.as_str() {
        "assistantResponseEvent" => "content",
        "reasoningContentEvent" => "text",
        _ => return whole(),
    };
    let text = |payload: &[u8]| {
        let payload = std::str::from_utf8(payload).ok()?;
        serde_json::from_str::<&serde_json::value::RawValue>(payload).ok()?;
        Some(payload.strip_prefix(&format!("{{\"{key}\":\""))?.strip_suffix("\"}")?.to_owned())
    };
    let Some(text) = text(payload).filter(|text| !text.contains("\",\"")) else { return whole() };
    let units: Vec<String> = units(&text).into_iter().flat_map(halves).collect();
    let event = |piece: &[String]| Input::Frame(Frame::event(name, format!("{{\"{key}\":\"{}\"}}", piece.concat())));
    units.chunks(size).map(event).collect()
}

/// A character that takes two UTF-16 units, as the escapes of both; every other unit as it is.
fn halves(unit: &str) -> Vec<String> {
    let mut buffer = [0; 2];
    match unit.chars().next().map(|character| &*character.encode_utf16(&mut buffer)) {
        Some(pair @ [_, _]) => pair.iter().map(|half| format!("\\u{half:04x}")).collect(),
        _ => vec![unit.to_owned()],
    }
}

/// The units of a string literal: characters and escapes; the empty literal is one.
fn units(literal: &str) -> Vec<&str> {
    let mut units = Vec::new();
    let mut rest = literal;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '\\' if rest[1..].starts_with('u') => 6.min(rest.len()),
            '\\' => 2.min(rest.len()),
            _ => first.len_utf8(),
        };
        let (unit, after) = rest.split_at(length);
        units.push(unit);
        rest = after;
    }
    if units.is_empty() { vec![""] } else { units }
}

// ---- Driving ------------------------------------------------------------------------------------------------------

/// How the bytes of neighbouring frames reach the pipeline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Chunks {
    /// One chunk for all frames up to the next other input.
    Whole,
    PerFrame,
    PerByte,
    /// Two chunks.
    Split(usize),
    /// One chunk, in which no two frames have the same header section: what is known of one says nothing of the next.
    Unlike,
}

/// What came out, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Out {
    Bytes(Vec<u8>),
    Fault(String),
    Failed(String),
    Done,
    Searches,
    NextRound,
    Refused,
}

/// Feeds a pipeline with all inputs.
pub fn drive(pipeline: &mut Pipeline, inputs: &[Input], chunks: Chunks) -> Vec<Out> {
    let mut run = Run { pipeline, buffer: BytesMut::new(), outs: Vec::new(), is_over: false };
    let mut wire = Vec::new();
    for (place, input) in inputs.iter().enumerate() {
        if let Input::Frame(frame) = input {
            let number = (chunks == Chunks::Unlike).then_some(place);
            wire.extend_from_slice(&frame.numbered(number));
            if chunks == Chunks::PerFrame {
                run.push(&std::mem::take(&mut wire));
            }
            continue;
        }
        run.bytes(&std::mem::take(&mut wire), chunks);
        run.input(input);
    }
    run.bytes(&wire, chunks);
    run.outs
}

struct Run<'p> {
    pipeline: &'p mut Pipeline,
    buffer: BytesMut,
    outs: Vec<Out>,
    /// The message goes on with another upstream answer: nothing more of this one is fed.
    is_over: bool,
}

impl Run<'_> {
    fn bytes(&mut self, wire: &[u8], chunks: Chunks) {
        match chunks {
            Chunks::PerByte => wire.iter().for_each(|&byte| self.push(&[byte])),
            Chunks::Split(at) => {
                let (first, second) = wire.split_at(at.min(wire.len()));
                self.push(first);
                self.push(second);
            }
            Chunks::Whole | Chunks::PerFrame | Chunks::Unlike => self.push(wire),
        }
    }

    fn push(&mut self, chunk: &[u8]) {
        if !chunk.is_empty() && !self.is_over {
            let step = self.pipeline.push(Bytes::copy_from_slice(chunk), &mut self.buffer);
            self.is_over = step == Step::NextRound;
            self.step(step);
        }
    }

    fn input(&mut self, input: &Input) {
        self.is_over = false;
        let out = &mut self.buffer;
        match input {
            Input::Frame(_) => unreachable!("fed as bytes"),
            Input::End => {
                let step = self.pipeline.finish(out);
                self.step(step);
            }
            Input::Cut => {
                let step = self.pipeline.abort(cut(), out);
                self.step(step);
            }
            Input::EarlyStart => self.pipeline.early_start(out),
            Input::Ping => self.pipeline.ping(out),
            Input::Restart => {
                if self.pipeline.restart().is_err() {
                    self.outs.push(Out::Refused);
                }
            }
            Input::GiveUp => self.pipeline.give_up(&ApiError::new(ErrorType::Overloaded, "No healthy accounts"), out),
            Input::Shutdown => self.pipeline.shutdown(out),
            Input::Searched(outcomes, may_go_on) => {
                let step = self.pipeline.searched(outcomes, *may_go_on, out);
                self.step(step);
            }
        }
        self.take();
    }

    fn step(&mut self, step: Step) {
        self.take();
        match step {
            Step::Continue => {}
            Step::Fault(fault) => self.outs.push(Out::Fault(fault.kind.to_string())),
            Step::Failed(fault) => self.outs.push(Out::Failed(fault.kind.to_string())),
            Step::Unfit => self.outs.push(Out::Fault("unfit".into())),
            Step::TooLong => panic!("no test folds so much"),
            Step::Done if self.outs.contains(&Out::Done) => {}
            Step::Done => self.outs.push(Out::Done),
            Step::Searches => self.outs.push(Out::Searches),
            Step::NextRound => self.outs.push(Out::NextRound),
        }
    }

    /// Neighbouring bytes are one piece, so that equal streams compare equal however they were cut.
    fn take(&mut self) {
        let bytes = self.buffer.split();
        match self.outs.last_mut() {
            _ if bytes.is_empty() => {}
            Some(Out::Bytes(before)) => before.extend_from_slice(&bytes),
            _ => self.outs.push(Out::Bytes(bytes.to_vec())),
        }
    }
}

/// All bytes that came out.
pub fn bytes_of(outs: &[Out]) -> Vec<u8> {
    let bytes = outs.iter().filter_map(|out| if let Out::Bytes(bytes) = out { Some(&bytes[..]) } else { None });
    bytes.collect::<Vec<_>>().concat()
}

// ---- Reading SSE --------------------------------------------------------------------------------------------------

/// The events of an SSE text, each with its JSON. Strict: M54's form and nothing else.
pub fn parse_sse(bytes: &[u8]) -> Vec<(String, Value)> {
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(!text.contains('\r'), "a carriage return: {text}");
    let mut events = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (event, after) = rest.split_once("\n\n").unwrap_or_else(|| panic!("no empty line: {rest}"));
        let (name, data) = event.split_once('\n').unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        let data = data.strip_prefix("data: ").unwrap();
        assert!(data.starts_with(&format!("{{\"type\":\"{name}\"")), "type isn't first: {data}");
        let json: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
        assert_eq!(json["type"], name.as_str());
        events.push((name, json));
        rest = after;
    }
    events
}

/// How a stream stands after its last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing came.
    Empty,
    /// It could go on.
    Running,
    /// message_stop.
    Finished,
    /// error.
    Failed,
}

/// Checks M53's grammar, TS26, TS42: one message_start first, indices 0, 1, 2 …, one block open at a time and each closed
/// once, deltas of the block's kind, none of them empty, pings only in between, nothing behind the end. Only a tool may
/// be open at an `error`, and one closed in the middle of its input is followed by `max_tokens` alone.
pub fn check_grammar(events: &[(String, Value)]) -> Ending {
    let mut ending = Ending::Empty;
    let mut open: Option<(&str, usize, bool)> = None;
    let mut next = 0;
    let mut stop_reason: Option<&str> = None;
    let (mut input, mut torn) = (String::new(), false);
    for (name, json) in events {
        let context = || format!("{name} of {events:#?}");
        assert!(!torn || matches!(name.as_str(), "ping" | "message_delta" | "message_stop"), "{}", context());
        match (ending, name.as_str()) {
            (Ending::Empty, "message_start") => {
                assert_eq!(json["message"]["content"], Value::Array(vec![]));
                assert_eq!(json["message"]["usage"].as_object().unwrap().len(), 4);
                ending = Ending::Running;
                continue;
            }
            (Ending::Running, _) => {}
            _ => panic!("{}", context()),
        }
        if stop_reason.is_some() {
            assert_eq!(name, "message_stop", "{}", context());
        }
        match name.as_str() {
            "ping" => assert_eq!(json.as_object().unwrap().len(), 1),
            "content_block_start" => {
                assert!(open.is_none(), "{}", context());
                assert_eq!(json["index"], next, "{}", context());
                open = Some((json["content_block"]["type"].as_str().unwrap(), 0, false));
                input.clear();
            }
            "content_block_delta" => {
                let (kind, deltas, signed) = open.as_mut().unwrap_or_else(|| panic!("{}", context()));
                assert_eq!(json["index"], next, "{}", context());
                assert!(!*signed, "{}", context());
                let (delta, member) = match (*kind, json["delta"]["type"].as_str().unwrap()) {
                    ("text", "text_delta") => ("text_delta", "text"),
                    ("thinking", "thinking_delta") => ("thinking_delta", "thinking"),
                    ("thinking", "signature_delta") => ("signature_delta", "signature"),
                    ("tool_use" | "server_tool_use", "input_json_delta") => ("input_json_delta", "partial_json"),
                    other => panic!("{other:?}: {}", context()),
                };
                assert_ne!(json["delta"][member].as_str().unwrap(), "", "{}", context());
                *signed = delta == "signature_delta";
                *deltas += 1;
                input.push_str(json["delta"]["partial_json"].as_str().unwrap_or_default());
            }
            "content_block_stop" => {
                let (kind, deltas, _) = open.take().unwrap_or_else(|| panic!("{}", context()));
                assert_eq!(json["index"], next, "{}", context());
                let is_whole = matches!(kind, "redacted_thinking" | "web_search_tool_result");
                assert_eq!(deltas == 0, is_whole, "{}", context());
                torn = matches!(kind, "tool_use" | "server_tool_use") && !is_complete_json(&input);
                next += 1;
            }
            "message_delta" => {
                assert!(open.is_none(), "{}", context());
                let searches = usize::from(!json["usage"]["server_tool_use"].is_null());
                assert_eq!(json["usage"].as_object().unwrap().len(), 4 + searches);
                stop_reason = json["delta"]["stop_reason"].as_str();
                let known = ["end_turn", "tool_use", "max_tokens", "stop_sequence", "pause_turn"];
                assert!(stop_reason.is_some_and(|reason| known.contains(&reason)), "{}", context());
                let has_sequence = json["delta"]["stop_sequence"].is_string();
                assert_eq!(has_sequence, stop_reason == Some("stop_sequence"), "{}", context());
                assert!(!torn || stop_reason == Some("max_tokens"), "{}", context());
            }
            "message_stop" => {
                assert!(stop_reason.is_some(), "{}", context());
                ending = Ending::Finished;
            }
            "error" => {
                assert!(open.is_none_or(|(kind, ..)| kind.ends_with("tool_use")), "{}", context());
                assert_eq!(json["request_id"], "req_1");
                ending = Ending::Failed;
            }
            _ => panic!("{}", context()),
        }
    }
    ending
}

/// The events in the notation of the vectors.
pub fn notation(outs: &[Out]) -> String {
    let mut parts = Vec::new();
    for out in outs {
        match out {
            Out::Bytes(bytes) => parts.extend(parse_sse(bytes).iter().map(|(name, json)| event_notation(name, json))),
            Out::Fault(kind) => parts.push(format!("fault {kind}")),
            Out::Refused => parts.push("refused".into()),
            Out::Failed(_) | Out::Done | Out::Searches | Out::NextRound => {}
        }
    }
    parts.join(" · ")
}

fn event_notation(name: &str, json: &Value) -> String {
    let index = &json["index"];
    let string = |value: &Value| value.as_str().unwrap().to_owned();
    match name {
        "message_start" => "start".into(),
        "content_block_start" => {
            let block = &json["content_block"];
            match block["type"].as_str().unwrap() {
                "tool_use" => format!("+{index} tool {} {}", string(&block["id"]), string(&block["name"])),
                "redacted_thinking" => format!("+{index} redacted {}", string(&block["data"])),
                "server_tool_use" => {
                    assert_eq!(block["caller"], serde_json::json!({ "type": "direct" }));
                    format!("+{index} server tool {} {}", string(&block["id"]), string(&block["name"]))
                }
                "web_search_tool_result" => {
                    let content = &block["content"];
                    let found = match content.as_array() {
                        Some(hits) => hits.len().to_string(),
                        None => string(&content["error_code"]),
                    };
                    format!("+{index} results {} {found}", string(&block["tool_use_id"]))
                }
                kind => format!("+{index} {kind}"),
            }
        }
        "content_block_delta" => {
            let delta = &json["delta"];
            match delta["type"].as_str().unwrap() {
                "text_delta" => format!("{index}{}", delta["text"]),
                "thinking_delta" => format!("{index}{}", delta["thinking"]),
                "input_json_delta" => format!("{index}{}", delta["partial_json"]),
                "signature_delta" => format!("{index}sig{}", delta["signature"]),
                other => panic!("{other}"),
            }
        }
        "content_block_stop" => format!("-{index}"),
        "message_delta" => {
            let sequence = &json["delta"]["stop_sequence"];
            let sequence = if sequence.is_null() { String::new() } else { sequence.to_string() };
            format!("={}{sequence}", string(&json["delta"]["stop_reason"]))
        }
        "message_stop" => "stop".into(),
        "error" => format!("!{}", string(&json["error"]["type"])),
        other => other.into(),
    }
}

/// `use [input,creation,read,output]` of message_delta.
pub fn usage_notation(outs: &[Out]) -> Option<String> {
    let events = parse_sse(&bytes_of(outs));
    let usage = &events.iter().find(|(name, _)| name == "message_delta")?.1["usage"];
    Some(format!(
        "use [{},{},{},{}]",
        usage["input_tokens"],
        usage["cache_creation_input_tokens"],
        usage["cache_read_input_tokens"],
        usage["output_tokens"]
    ))
}

/// The stream with a block's deltas joined, in notation: what doesn't depend on how the text was cut.
pub fn joined(outs: &[Out]) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut text = String::new();
    for out in outs {
        match out {
            Out::Bytes(bytes) => {
                for (name, json) in parse_sse(bytes) {
                    let delta = &json["delta"];
                    let piece = ["text", "thinking", "partial_json"].iter().find_map(|member| delta[*member].as_str());
                    if let Some(piece) = piece {
                        text.push_str(piece);
                        continue;
                    }
                    if !text.is_empty() {
                        parts.push(std::mem::take(&mut text));
                    }
                    parts.push(event_notation(&name, &json));
                }
            }
            other => parts.push(format!("{other:?}")),
        }
    }
    parts
}

/// The content that a fold of the stream gives, computed from the SSE alone: what a client puts together (TS24).
pub fn fold_of_stream(events: &[(String, Value)]) -> Vec<Value> {
    let mut content: Vec<Value> = Vec::new();
    let mut input = String::new();
    for (name, json) in events {
        match name.as_str() {
            "content_block_start" => {
                content.push(json["content_block"].clone());
                input.clear();
            }
            "content_block_delta" => {
                let block = content.last_mut().unwrap();
                let delta = &json["delta"];
                for member in ["text", "thinking"] {
                    if let Some(piece) = delta[member].as_str() {
                        block[member] = Value::from(format!("{}{piece}", block[member].as_str().unwrap()));
                    }
                }
                if let Some(signature) = delta["signature"].as_str() {
                    block["signature"] = Value::from(signature);
                }
                input.push_str(delta["partial_json"].as_str().unwrap_or_default());
            }
            "content_block_stop" if content.last().unwrap()["type"].as_str().unwrap().ends_with("tool_use") => {
                if is_complete_json(&input) {
                    content.last_mut().unwrap()["input"] = match serde_json::from_str::<Value>(&without_halves(&input))
                    {
                        Ok(value @ Value::Object(_)) => value,
                        _ => serde_json::json!({ "raw_arguments": input }),
                    };
                } else {
                    content.pop();
                }
            }
            _ => {}
        }
    }
    content
}

/// JSON text whose escapes of unpaired surrogate halves are U+FFFD: by way of UTF-16, as a client's reader has it.
fn without_halves(json: &str) -> String {
    let mut text = String::new();
    let mut halves: Vec<u16> = Vec::new();
    let flush = |halves: &mut Vec<u16>, text: &mut String| {
        let characters = char::decode_utf16(halves.drain(..)).map(|half| half.unwrap_or(char::REPLACEMENT_CHARACTER));
        text.extend(characters);
    };
    for unit in units(json) {
        let half = unit.strip_prefix("\\u").and_then(|hex| u16::from_str_radix(hex, 16).ok());
        match half {
            Some(half @ 0xD800..=0xDFFF) => halves.push(half),
            _ => {
                flush(&mut halves, &mut text);
                text.push_str(unit);
            }
        }
    }
    flush(&mut halves, &mut text);
    text
}

/// TS13's words, written down once more: begins with a bracket, that bracket is closed again, only blanks follow.
fn is_complete_json(text: &str) -> bool {
    let blank = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let mut characters = text.trim_matches(blank).chars();
    let mut depth = match characters.next() {
        Some('{' | '[') => 1_u32,
        _ => return false,
    };
    while depth > 0 {
        match characters.next() {
            None => return false,
            Some('{' | '[') => depth += 1,
            Some('}' | ']') => depth -= 1,
            Some('"') => loop {
                match characters.next() {
                    None => return false,
                    Some('\\') => drop(characters.next()),
                    Some('"') => break,
                    Some(_) => {}
                }
            },
            Some(_) => {}
        }
    }
    characters.next().is_none()
}
