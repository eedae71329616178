//! What an event-stream frame from Kiro means (K29–K38).

use std::borrow::Cow;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fault::{Exception, Fault};
use crate::proto::eventstream::Frame;
use crate::proto::json::{self, Literal};
use crate::proto::said::{KnownSecrets, Said};

/// Bytes that are read of an unknown event's name.
const MAX_NAME: usize = 1_024;
/// What a broken payload is called (K35).
const UNREADABLE: &str = "the payload of an event is not as the model says";
/// A longer tool id or name breaks the payload, because finished ids are remembered whole. In bytes.
const MAX_TOOL_NAME: usize = 1_024;

/// The meaning of one frame (TS1).
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// A piece of the answer, or an event that could have carried one.
    Content(Content<'a>),
    /// Everything but content: usage, and events that are only counted.
    Telemetry(Telemetry),
    /// An exception or error frame (K38). After a complete answer it may be a ghost (K36).
    Exception(Fault),
    /// `ContentLengthExceededException`: the output limit, no fault (K37).
    OutputLimit,
    /// `invalidStateEvent`, a broken payload (K35), an unknown message type (K29). Never a ghost.
    Fault(Fault),
}

/// The events that can commit an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Content<'a> {
    /// assistantResponseEvent; empty when its `content` is (TS7).
    Text(Text<'a>),
    /// reasoningContentEvent.
    Reasoning(Reasoning<'a>),
    /// toolUseEvent.
    Tool(Tool<'a>),
}

/// A string member as it stands in the payload.
#[derive(Debug, Clone, PartialEq)]
pub enum Text<'a> {
    /// May be copied into another JSON string (TS23).
    Literal(Literal<'a>),
    /// The content of a string literal that a parser accepted; it may hold halves of surrogate pairs (K34).
    Raw(Cow<'a, str>),
}

/// reasoningContentEvent: those of its three members that came and aren't empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reasoning<'a> {
    /// A piece of the thought.
    pub text: Option<Text<'a>>,
    /// A piece of its signature.
    pub signature: Option<Cow<'a, str>>,
    /// A redacted thought, base64.
    pub redacted: Option<Cow<'a, str>>,
}

/// toolUseEvent: a piece of a tool's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool<'a> {
    /// `toolUseId`, on every piece (K32).
    pub id: Cow<'a, str>,
    /// `name`, on every piece.
    pub name: Cow<'a, str>,
    /// The piece.
    pub input: Input<'a>,
    /// `stop`: it was the last one.
    pub stop: bool,
}

/// The input that a toolUseEvent brings.
#[derive(Debug, Clone, PartialEq)]
pub enum Input<'a> {
    /// None, or an empty string.
    Nothing,
    /// A piece of JSON text.
    Piece(Text<'a>),
    /// An object or array: the whole input, as compact JSON (K33).
    Whole(String),
}

/// Events for usage, the log and the metrics only.
#[derive(Debug, Clone, PartialEq)]
pub enum Telemetry {
    /// contextUsageEvent.
    ContextUsage {
        /// `contextUsagePercentage`: total tokens ÷ window × 100.
        percentage: Option<f64>,
    },
    /// metadataEvent.
    Metadata {
        /// `tokenUsage`, when it holds both of the required counts as integers (TU2).
        counts: Option<TokenCounts>,
        /// `tokenUsage.contextUsagePercentage`.
        percentage: Option<f64>,
        /// `stopReason`, where it is one that ends an answer otherwise than usual (TS38); every other value is ignored.
        stop: Option<UnusualStop>,
    },
    /// meteringEvent.
    Metering {
        /// `usage`, in the unit it names (credits).
        usage: Option<f64>,
    },
    /// An event of the model, or a protocol frame, that we don't use.
    Known,
    /// An event that isn't in the model, by its type.
    Unknown(Said),
}

/// metadataEvent's `stopReason`, in any case (TS15, TS38).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnusualStop {
    /// `MAX_TOKENS`.
    MaxTokens,
    /// `CONTENT_FILTERED`, `GUARDRAIL_INTERVENED`.
    Filtered,
    /// `MODEL_CONTEXT_WINDOW_EXCEEDED`.
    WindowExceeded,
}

/// metadataEvent's `tokenUsage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCounts {
    /// `uncachedInputTokens`.
    pub uncached_input: u64,
    /// `outputTokens`.
    pub output: u64,
    /// `cacheReadInputTokens`, or 0.
    pub cache_read: u64,
    /// `cacheWriteInputTokens`, or 0.
    pub cache_write: u64,
}

/// Reads the frames of a stream.
#[derive(Debug, Default)]
pub struct Reader {
    /// The header section of the last content event. A frame with the same section is the same kind of event.
    headers: Vec<u8>,
    /// Its type.
    content: ContentType,
    invalid_utf8: u64,
    /// Id and name of the tool whose piece came last; no id once it has ended (TS39).
    open_tool: (String, String),
    /// The secrets of the call that asked for the stream.
    known: KnownSecrets,
}

#[derive(Debug, Clone, Copy, Default)]
enum ContentType {
    #[default]
    Text,
    Reasoning,
    Tool,
}

impl Reader {
    /// The meaning of a frame. Total: an unreadable one is a [`Fault`].
    #[inline]
    pub fn event<'a>(&mut self, frame: &Frame<'a>) -> Event<'a> {
        let headers = frame.raw_headers();
        // No content event has an empty section.
        if headers == &self.headers[..] && !headers.is_empty() {
            return self.content(self.content, frame.payload());
        }
        self.any_event(frame)
    }

    /// Payloads so far that held invalid UTF-8 where we had to look; it was read as U+FFFD (TS2).
    pub fn invalid_utf8(&self) -> u64 {
        self.invalid_utf8
    }

    /// From here on the events belong to a call that was made with these secrets: no fault and no name shows any of
    /// them.
    pub fn set_known(&mut self, known: KnownSecrets) {
        self.known = known;
    }

    /// The frames of another stream follow: no tool of the last one is open (TS39).
    pub fn begin_stream(&mut self) {
        self.open_tool.0.clear();
    }

    fn any_event<'a>(&mut self, frame: &Frame<'a>) -> Event<'a> {
        match self.read_event(frame) {
            Event::Exception(fault) => Event::Exception(fault.knowing(&self.known)),
            Event::Fault(fault) => Event::Fault(fault.knowing(&self.known)),
            event => event,
        }
    }

    fn read_event<'a>(&mut self, frame: &Frame<'a>) -> Event<'a> {
        let message_type = frame.text(":message-type");
        let event_type = frame.text(":event-type");
        match (message_type, event_type) {
            (Some("event") | None, Some(name)) => {
                let content = match name {
                    "assistantResponseEvent" => ContentType::Text,
                    "reasoningContentEvent" => ContentType::Reasoning,
                    "toolUseEvent" => ContentType::Tool,
                    _ => return self.other_event(name, frame.payload()),
                };
                self.headers.clear();
                self.headers.extend_from_slice(frame.raw_headers());
                self.content = content;
                self.content(content, frame.payload())
            }
            (Some("exception"), _) => Event::from_exception(frame.text(":exception-type"), frame.payload()),
            (Some("error"), _) => {
                Exception::from_error_frame(frame.text(":error-code"), frame.text(":error-message")).into()
            }
            (Some("event"), None) => Event::broken("an event frame without :event-type"),
            (None, None) => Event::broken("a frame without :message-type and :event-type"),
            (Some(_), _) => Event::broken("a frame of unknown :message-type"),
        }
    }

    #[inline]
    fn content<'a>(&mut self, content: ContentType, payload: &'a [u8]) -> Event<'a> {
        let read: fn(Payload<'_>) -> Option<Event<'_>> = match content {
            ContentType::Text => match copyable_text(payload) {
                Some(literal) => return Event::Content(Content::Text(Text::Literal(literal))),
                None => read_text,
            },
            ContentType::Reasoning => read_reasoning,
            ContentType::Tool => return self.tool(payload),
        };
        Event::from_payload(read, payload, &mut self.invalid_utf8)
    }
}

impl Reader {
    fn other_event<'a>(&mut self, name: &'a str, payload: &'a [u8]) -> Event<'a> {
        let read: fn(Payload<'_>) -> Option<Event<'_>> = match name {
            "contextUsageEvent" => return self.note(read_context_usage, payload),
            "metadataEvent" => return self.note(read_metadata, payload),
            "meteringEvent" => return self.note(read_metering, payload),
            "invalidStateEvent" => read_invalid_state,
            "error" => return Event::from_exception(Some(name), payload),
            "initial-response"
            | "messageMetadataEvent"
            | "followupPromptEvent"
            | "codeReferenceEvent"
            | "supplementaryWebLinksEvent"
            | "citationEvent"
            | "documentCitationEvent"
            | "codeEvent"
            | "intentsEvent"
            | "interactionComponentsEvent"
            | "toolResultEvent"
            | "dryRunSucceedEvent" => return Event::Telemetry(Telemetry::Known),
            _ => {
                let end = name.floor_char_boundary(MAX_NAME);
                return Event::Telemetry(Telemetry::Unknown(Said::new(&name[..end], &self.known)));
            }
        };
        Event::from_payload(read, payload, &mut self.invalid_utf8)
    }
}

impl Reader {
    /// A note about an answer; one that can't be read counts as absent (TS40).
    fn note<'a>(&mut self, read: fn(Payload<'_>) -> Option<Event<'_>>, payload: &'a [u8]) -> Event<'a> {
        match Event::from_payload(read, payload, &mut self.invalid_utf8) {
            Event::Fault(_) => Event::Telemetry(Telemetry::Known),
            note => note,
        }
    }

    /// A piece of a tool's input. One without id or name belongs to the tool of the piece before, if that has not ended
    /// (TS39).
    fn tool<'a>(&mut self, payload: &'a [u8]) -> Event<'a> {
        let mut event = Event::from_payload(read_tool, payload, &mut self.invalid_utf8);
        let Event::Content(Content::Tool(piece)) = &mut event else { return event };
        let (id, name) = &mut self.open_tool;
        if piece.id.is_empty() || piece.name.is_empty() {
            if id.is_empty() {
                return Event::broken(UNREADABLE);
            }
            if piece.id.is_empty() {
                piece.id = Cow::Owned(id.clone());
            }
            if piece.name.is_empty() {
                piece.name = Cow::Owned(name.clone());
            }
        } else if **id != *piece.id {
            // Most pieces are of the tool of the piece before: nothing is copied.
            (*id, *name) = (piece.id.to_string(), piece.name.to_string());
        }
        if piece.stop {
            id.clear();
        }
        event
    }
}

impl<'a> Event<'a> {
    /// An event that we act on, by the reader of its type.
    fn from_payload(read: fn(Payload<'_>) -> Option<Event<'_>>, payload: &'a [u8], invalid_utf8: &mut u64) -> Self {
        if let Some(event) = read(Payload::Flat(payload)) {
            return event;
        }
        // A structure without members may come as an empty payload.
        let payload = if payload.is_empty() { b"{}" } else { payload };
        let event = match std::str::from_utf8(payload) {
            Ok(payload) => read(Payload::Any(payload)),
            Err(_) => {
                *invalid_utf8 += 1;
                read(Payload::Any(&String::from_utf8_lossy(payload))).map(Event::into_owned)
            }
        };
        event.unwrap_or_else(|| Self::broken(UNREADABLE))
    }

    fn from_exception(name: Option<&str>, payload: &[u8]) -> Self {
        Exception::from_frame(name, payload).into()
    }

    fn broken(what: &str) -> Self {
        Self::Fault(Fault::protocol(what))
    }

    /// The same event, free of the frame it came in.
    fn into_owned<'b>(self) -> Event<'b> {
        match self {
            Self::Content(content) => Event::Content(content.into_owned()),
            Self::Telemetry(note) => Event::Telemetry(note),
            Self::Exception(fault) => Event::Exception(fault),
            Self::OutputLimit => Event::OutputLimit,
            Self::Fault(fault) => Event::Fault(fault),
        }
    }
}

impl From<Exception> for Event<'_> {
    fn from(exception: Exception) -> Self {
        match exception {
            Exception::OutputLimit => Self::OutputLimit,
            Exception::Fault(fault) => Self::Exception(fault),
        }
    }
}

impl Content<'_> {
    /// The same content, free of the frame it came in, so that it can wait in the queue (TS14).
    pub fn into_owned<'b>(self) -> Content<'b> {
        match self {
            Self::Text(text) => Content::Text(text.into_owned()),
            Self::Reasoning(reasoning) => Content::Reasoning(Reasoning {
                text: reasoning.text.map(Text::into_owned),
                signature: reasoning.signature.map(own),
                redacted: reasoning.redacted.map(own),
            }),
            Self::Tool(tool) => Content::Tool(Tool {
                id: own(tool.id),
                name: own(tool.name),
                input: match tool.input {
                    Input::Nothing => Input::Nothing,
                    Input::Piece(text) => Input::Piece(text.into_owned()),
                    Input::Whole(json) => Input::Whole(json),
                },
                stop: tool.stop,
            }),
        }
    }

    /// Bytes of its strings.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Reasoning(Reasoning { text, signature, redacted }) => {
                text.as_ref().map_or(0, Text::len)
                    + signature.as_ref().map_or(0, |signature| signature.len())
                    + redacted.as_ref().map_or(0, |redacted| redacted.len())
            }
            Self::Tool(tool) => {
                let input = match &tool.input {
                    Input::Nothing => 0,
                    Input::Piece(text) => text.len(),
                    Input::Whole(json) => json.len(),
                };
                tool.id.len() + tool.name.len() + input
            }
        }
    }

    /// Whether it is empty: such an event is a note (TS7). A tool's piece never is one.
    pub fn is_empty(&self) -> bool {
        !matches!(self, Self::Tool(_)) && self.len() == 0
    }
}

impl Text<'_> {
    /// The decoded text; `half` as in [`json::decode`].
    pub fn decode(&self, half: &mut Option<u16>) -> Cow<'_, str> {
        match self {
            Self::Literal(literal) => json::decode(literal.as_str(), half),
            Self::Raw(raw) => json::decode(raw, half),
        }
    }

    /// Its bytes in the payload.
    pub fn len(&self) -> usize {
        match self {
            Self::Literal(literal) => literal.as_bytes().len(),
            Self::Raw(raw) => raw.len(),
        }
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn into_owned<'b>(self) -> Text<'b> {
        match self {
            Self::Literal(literal) => Text::Raw(Cow::Owned(literal.as_str().to_owned())),
            Self::Raw(raw) => Text::Raw(own(raw)),
        }
    }
}

fn own<'b>(text: Cow<'_, str>) -> Cow<'b, str> {
    Cow::Owned(text.into_owned())
}

/// TS23: the text of a payload that is, byte for byte, `{"content":"LIT"}` or `{"content":"LIT","modelId":"ID"}`, if
/// LIT isn't empty and may be copied. Everything else takes the slow path.
#[inline]
fn copyable_text(payload: &[u8]) -> Option<Literal<'_>> {
    let (literal, rest) = Literal::split(payload.strip_prefix(b"{\"content\":\"")?)?;
    if rest != b"}" {
        let id = rest.strip_prefix(b",\"modelId\":\"")?.strip_suffix(b"\"}")?;
        // A model id that isn't plain ASCII is left to the parser as well.
        if id.iter().any(|byte| !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\')) {
            return None;
        }
    }
    (!literal.is_empty()).then_some(literal)
}

/// A payload on its way to its members.
#[derive(Clone, Copy)]
enum Payload<'a> {
    /// Read only if it is as simple as payloads usually are (see [`flat_members`]).
    Flat(&'a [u8]),
    /// Read with a parser.
    Any(&'a str),
}

/// A member of a payload.
#[derive(Clone, Copy)]
enum Member<'a> {
    /// A string that may be copied.
    Literal(Literal<'a>),
    /// Any value, as JSON.
    Json(&'a str),
}

fn read_text(payload: Payload<'_>) -> Option<Event<'_>> {
    let [content] = payload.members(["content"])?;
    // `null` counts as empty (K33), no member at all is a broken payload (K35).
    let text = match content? {
        Member::Json("null") => Text::Raw(Cow::Borrowed("")),
        // TS23 names the payloads whose text is copied; this isn't one of them.
        content => Text::Raw(Cow::Borrowed(content.raw_string()?)),
    };
    Some(Event::Content(Content::Text(text)))
}

fn read_reasoning(payload: Payload<'_>) -> Option<Event<'_>> {
    let [text, signature, redacted] = payload.members(["text", "signature", "redactedContent"])?;
    Some(Event::Content(Content::Reasoning(Reasoning {
        text: optional(text, Member::text)?.filter(|text| !text.is_empty()),
        signature: optional(signature, Member::string)?.filter(|signature| !signature.is_empty()),
        redacted: optional(redacted, Member::string)?.filter(|redacted| !redacted.is_empty()),
    })))
}

fn read_tool(payload: Payload<'_>) -> Option<Event<'_>> {
    let [id, name, input, stop] = payload.members(["toolUseId", "name", "input", "stop"])?;
    let input = match present(input) {
        None => Input::Nothing,
        Some(Member::Json(value)) if value.starts_with(['{', '[']) => Input::Whole(json::compact(value)),
        Some(value) => Some(value.text()?).filter(|text| !text.is_empty()).map_or(Input::Nothing, Input::Piece),
    };
    let stop = match present(stop) {
        None | Some(Member::Json("false")) => false,
        Some(Member::Json("true")) => true,
        Some(_) => return None,
    };
    // An absent one is filled in, or the payload is broken (TS39).
    let [id, name] =
        [optional(id, Member::string)?.unwrap_or_default(), optional(name, Member::string)?.unwrap_or_default()];
    if id.len() > MAX_TOOL_NAME || name.len() > MAX_TOOL_NAME {
        return None;
    }
    Some(Event::Content(Content::Tool(Tool { id, name, input, stop })))
}

fn read_context_usage(payload: Payload<'_>) -> Option<Event<'_>> {
    let [percentage] = payload.members(["contextUsagePercentage"])?;
    Some(Event::Telemetry(Telemetry::ContextUsage { percentage: number(percentage) }))
}

fn read_metadata(payload: Payload<'_>) -> Option<Event<'_>> {
    let [usage, stop_reason] = payload.members(["tokenUsage", "stopReason"])?;
    let names = [
        "uncachedInputTokens",
        "outputTokens",
        "cacheReadInputTokens",
        "cacheWriteInputTokens",
        "contextUsagePercentage",
    ];
    let [uncached_input, output, cache_read, cache_write, percentage] = match usage {
        Some(Member::Json(usage)) => Payload::Any(usage).members(names).unwrap_or_default(),
        _ => Default::default(),
    };
    let counts = number(uncached_input).zip(number(output)).map(|(uncached_input, output)| TokenCounts {
        uncached_input,
        output,
        cache_read: number(cache_read).unwrap_or(0),
        cache_write: number(cache_write).unwrap_or(0),
    });
    let stop = stop_reason.and_then(Member::string).and_then(|reason| unusual_stop(&reason));
    Some(Event::Telemetry(Telemetry::Metadata { counts, percentage: number(percentage), stop }))
}

fn unusual_stop(reason: &str) -> Option<UnusualStop> {
    const REASONS: [(&str, UnusualStop); 4] = [
        ("MAX_TOKENS", UnusualStop::MaxTokens),
        ("CONTENT_FILTERED", UnusualStop::Filtered),
        ("GUARDRAIL_INTERVENED", UnusualStop::Filtered),
        ("MODEL_CONTEXT_WINDOW_EXCEEDED", UnusualStop::WindowExceeded),
    ];
    REASONS.iter().find(|(known, _)| reason.eq_ignore_ascii_case(known)).map(|(_, stop)| *stop)
}

fn read_metering(payload: Payload<'_>) -> Option<Event<'_>> {
    let [usage] = payload.members(["usage"])?;
    Some(Event::Telemetry(Telemetry::Metering { usage: number(usage) }))
}

fn read_invalid_state(payload: Payload<'_>) -> Option<Event<'_>> {
    let [reason, message] = payload.members(["reason", "message"])?;
    let text = |member: Option<Member<'_>>| member.and_then(Member::string).map(Cow::into_owned);
    Some(Event::Fault(Fault::invalid_state(text(reason), text(message).unwrap_or_default())))
}

/// Null counts as absent (TS2).
fn present(member: Option<Member<'_>>) -> Option<Member<'_>> {
    member.filter(|member| !matches!(member, Member::Json("null")))
}

/// A member of another type breaks the payload.
fn optional<'a, T>(member: Option<Member<'a>>, read: fn(Member<'a>) -> Option<T>) -> Option<Option<T>> {
    match present(member) {
        None => Some(None),
        Some(member) => read(member).map(Some),
    }
}

fn number<T: std::str::FromStr>(member: Option<Member<'_>>) -> Option<T> {
    match member {
        Some(Member::Json(value)) => value.parse().ok(),
        _ => None,
    }
}

impl<'a> Member<'a> {
    fn text(self) -> Option<Text<'a>> {
        match self {
            Self::Literal(literal) => Some(Text::Literal(literal)),
            Self::Json(_) => {
                let raw = self.raw_string()?;
                Some(Literal::new(raw.as_bytes()).map_or(Text::Raw(Cow::Borrowed(raw)), Text::Literal))
            }
        }
    }

    fn string(self) -> Option<Cow<'a, str>> {
        self.raw_string().map(json::decode_whole)
    }

    /// The content of the string literal.
    fn raw_string(self) -> Option<&'a str> {
        match self {
            Self::Literal(literal) => Some(literal.as_str()),
            Self::Json(value) => value.strip_prefix('"')?.strip_suffix('"'),
        }
    }
}

impl<'a> Payload<'a> {
    fn members<const N: usize>(self, names: [&str; N]) -> Option<[Option<Member<'a>>; N]> {
        match self {
            Self::Flat(payload) => flat_members(payload, names),
            Self::Any(payload) => members(payload, names),
        }
    }
}

/// The named members of an object without blanks whose keys are plain ASCII and whose values are strings that may be
/// copied, `true`, `false` or `null`: as [`members`] gives them, without a parser. None for every other text.
fn flat_members<'a, const N: usize>(payload: &'a [u8], names: [&str; N]) -> Option<[Option<Member<'a>>; N]> {
    let mut values = [None; N];
    let mut rest = payload.strip_prefix(b"{")?;
    loop {
        let (key, after) = Literal::split(rest.strip_prefix(b"\"")?)?;
        // The parser takes keys with escapes.
        if key.as_bytes().contains(&b'\\') {
            return None;
        }
        let value;
        (value, rest) = match after.strip_prefix(b":")? {
            [b'"', string @ ..] => {
                let (literal, after) = Literal::split(string)?;
                (Member::Literal(literal), after)
            }
            [b't', b'r', b'u', b'e', after @ ..] => (Member::Json("true"), after),
            [b'f', b'a', b'l', b's', b'e', after @ ..] => (Member::Json("false"), after),
            [b'n', b'u', b'l', b'l', after @ ..] => (Member::Json("null"), after),
            _ => return None,
        };
        if let Some(place) = names.iter().position(|name| name.as_bytes() == key.as_bytes())
            && let Some(place) = values.get_mut(place)
        {
            *place = Some(value);
        }
        match rest {
            [b',', after @ ..] => rest = after,
            [b'}'] => return Some(values),
            _ => return None,
        }
    }
}

/// The JSON of the named members of an object; none if the text is anything but an object. Of equal keys the last
/// counts, unknown ones are skipped (TS2). Nothing is decoded: half a surrogate pair is no error anywhere (K34).
fn members<'a, const N: usize>(payload: &'a str, names: [&str; N]) -> Option<[Option<Member<'a>>; N]> {
    let mut parser = serde_json::Deserializer::from_str(payload);
    let members = parser.deserialize_map(Members { names: &names }).ok()?;
    parser.end().ok()?;
    Some(members)
}

struct Members<'n, const N: usize> {
    names: &'n [&'n str; N],
}

impl<'de, const N: usize> Visitor<'de> for Members<'_, N> {
    type Value = [Option<Member<'de>>; N];

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = [None; N];
        while let Some(place) = map.next_key_seed(Key { names: self.names })? {
            match values.get_mut(place) {
                Some(value) => *value = Some(Member::Json(map.next_value::<&RawValue>()?.get())),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(values)
    }
}

/// A key as its place among the names; `N` for another one.
struct Key<'n, const N: usize> {
    names: &'n [&'n str; N],
}

impl<'de, const N: usize> DeserializeSeed<'de> for Key<'_, N> {
    type Value = usize;

    fn deserialize<D: serde::Deserializer<'de>>(self, key: D) -> Result<usize, D::Error> {
        // As bytes: a key may hold half a surrogate pair, which isn't a string.
        key.deserialize_bytes(self)
    }
}

impl<const N: usize> Visitor<'_> for Key<'_, N> {
    type Value = usize;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, key: &[u8]) -> Result<usize, E> {
        Ok(self.names.iter().position(|name| name.as_bytes() == key).unwrap_or(N))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &'static str, payload: &'static [u8]) -> Event<'static> {
        let read: fn(Payload<'_>) -> Option<Event<'_>> = match name {
            "assistantResponseEvent" => read_text,
            _ => return Reader::default().other_event(name, payload),
        };
        Event::from_payload(read, payload, &mut 0)
    }

    /// TV113: which payloads are copied.
    #[test]
    fn only_plain_payloads_are_copied_tv113() {
        let fast: [&[u8]; 7] = [
            br#"{"content":"a\u003cb\n\u00e9\/"}"#,
            "{\"content\":\"😀 é\"}".as_bytes(),
            br#"{"content":"\ud83d\ude00"}"#,
            br#"{"content":"x","modelId":"m"}"#,
            br#"{"content":"x","modelId":"claude-sonnet-4.5"}"#,
            "{\"content\":\"x\u{2028}\u{feff}\u{7f}\"}".as_bytes(),
            "{\"content\":\"x\u{2028}\",\"modelId\":\"m\"}".as_bytes(),
        ];
        for payload in fast {
            let literal = copyable_text(payload).unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(payload)));
            let value: serde_json::Value = serde_json::from_slice(payload).unwrap();
            assert_eq!(literal.decode(), value["content"].as_str().unwrap());
        }
        let slow: [&[u8]; 22] = [
            br#"{"content":""}"#,
            br#"{ "content":"x"}"#,
            br#"{"content": "x"}"#,
            br#"{"content":"x"} "#,
            br#"{"modelId":"m","content":"x"}"#,
            br#"{"content":"x","foo":1}"#,
            br#"{"content":"x","content":"y"}"#,
            br#"{"content":"x","modelId":"m","content":"y"}"#,
            br#"{"content":"x","modelId":"a\"b"}"#,
            br#"{"content":"x","modelId":"a\\"}"#,
            b"{\"content\":\"x\",\"modelId\":\"a\x01\"}",
            b"{\"content\":\"x\",\"modelId\":\"a\xff\"}",
            br#"{"content":"x","modelId":null}"#,
            br#"{"content":"\ud83d"}"#,
            br#"{"content":"\ude00"}"#,
            b"{\"content\":\"a\nb\"}",
            b"{\"content\":\"a\x01b\"}",
            br#"{"content":"\x"}"#,
            br#"{"content":"\u12G4"}"#,
            b"{\"content\":\"\xc3(\"}",
            br#"{"content":null}"#,
            b"{}",
        ];
        for payload in slow {
            assert_eq!(copyable_text(payload), None, "{}", String::from_utf8_lossy(payload));
        }
    }

    #[test]
    fn invalid_utf8_is_replaced_and_counted_ts2() {
        let mut invalid = 0;
        let event = Event::from_payload(read_text, b"{\"content\":\"\xc3(\"}", &mut invalid);
        assert_eq!(event, Event::Content(Content::Text(Text::Raw("\u{fffd}(".into()))));
        assert_eq!(invalid, 1);
        // An event that isn't looked into isn't counted.
        let mut reader = Reader::default();
        reader.other_event("codeEvent", b"\xff");
        assert_eq!(reader.invalid_utf8(), 0);
    }

    /// The reading without a parser equals the parser's.
    #[test]
    fn flat_payloads_are_read_as_the_parser_reads_them_ts2() {
        let payloads = [
            r#"{"content":"x"}"#,
            r#"{"content":"a\u003cb\n\ud83d\ude00","modelId":"m"}"#,
            r#"{"modelId":"m","content":null}"#,
            r#"{"content":"x","content":null}"#,
            r#"{"other":true,"content":"x","more":false}"#,
            r#"{"text":"t","signature":"s\/+","redactedContent":"AAEC"}"#,
            r#"{"text":"","signature":null}"#,
            r#"{"toolUseId":"a\u0062","name":"f","input":"{\"x\":1}","stop":true}"#,
            r#"{"toolUseId":"a","name":"f","input":"","stop":false}"#,
            r#"{"toolUseId":"a","name":"f","input":null,"stop":null,"input":"x"}"#,
            r#"{"toolUseId":"a","name":"f","stop":"true"}"#,
            r#"{"toolUseId":null,"name":"f"}"#,
            r#"{"stopReason":"Max_Tokens"}"#,
            r#"{"reason":"r","message":"m"}"#,
        ];
        let readers: [fn(Payload<'_>) -> Option<Event<'_>>; 7] = [
            read_text,
            read_reasoning,
            read_tool,
            read_context_usage,
            read_metadata,
            read_metering,
            read_invalid_state,
        ];
        for payload in payloads {
            assert!(flat_members(payload.as_bytes(), [""]).is_some(), "{payload}");
            for read in readers {
                assert_eq!(read(Payload::Flat(payload.as_bytes())), read(Payload::Any(payload)), "{payload}");
            }
        }
        let not_flat = [
            "",
            "{}",
            "[]",
            r#"{"content":"x"} "#,
            r#"{"content":"x",}"#,
            r#"{"content" :"x"}"#,
            r#"{"c\u006fntent":"x"}"#,
            r#"{"content":"\ud83d"}"#,
            r#"{"content":1}"#,
            r#"{"content":truer}"#,
            r#"{"input":{}}"#,
            r#"{"content":"x""#,
            r#"{"content":"x"}{"#,
        ];
        for payload in not_flat {
            assert!(flat_members(payload.as_bytes(), ["content"]).is_none(), "{payload}");
        }
    }

    #[test]
    fn every_event_of_the_model_is_known() {
        for name in [
            "messageMetadataEvent initial-response followupPromptEvent codeReferenceEvent supplementaryWebLinksEvent",
            "citationEvent documentCitationEvent codeEvent intentsEvent interactionComponentsEvent toolResultEvent",
            "dryRunSucceedEvent",
        ]
        .join(" ")
        .split(' ')
        {
            assert_eq!(Reader::default().other_event(name, b""), Event::Telemetry(Telemetry::Known), "{name}");
        }
        assert_eq!(event("metricsEvent", b"{}"), Event::Telemetry(Telemetry::Unknown("metricsEvent".into())));
    }

    #[test]
    fn usage_events_are_read() {
        assert_eq!(
            event("contextUsageEvent", br#"{"contextUsagePercentage":12.5}"#),
            Event::Telemetry(Telemetry::ContextUsage { percentage: Some(12.5) })
        );
        let counts = TokenCounts { uncached_input: 1, output: 2, cache_read: 3, cache_write: 4 };
        assert_eq!(
            event(
                "metadataEvent",
                br#"{"tokenUsage":{"uncachedInputTokens":1,"outputTokens":2,"totalTokens":10,"cacheReadInputTokens":3,
                    "cacheWriteInputTokens":4,"contextUsagePercentage":5,"normalizedTokenUsage":0.1}}"#
            ),
            Event::Telemetry(Telemetry::Metadata { counts: Some(counts), percentage: Some(5.0), stop: None })
        );
        assert_eq!(
            event("meteringEvent", br#"{"usage":0.25,"unit":"credit","unitPlural":"credits"}"#),
            Event::Telemetry(Telemetry::Metering { usage: Some(0.25) })
        );
    }

    /// An `error` that comes as an event is the exception it is in the model.
    #[test]
    fn an_error_that_comes_as_an_event_is_an_exception() {
        let Event::Exception(fault) = event("error", br#"{"message":"m"}"#) else { panic!("an exception") };
        assert_eq!(fault.kind, crate::proto::kiro::fault::FaultKind::ServerError);
    }
}
