//! What an event-stream frame from Kiro means (kiro-upstream.md sections 5–7).

use std::borrow::Cow;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fault::{Exception, Fault};
use crate::proto::eventstream::Frame;
use crate::proto::json::{self, Literal};

/// The meaning of one frame (TS1).
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// Something of the answer, or an event that could have carried some.
    Content(Content<'a>),
    /// Everything that is no content: usage, and whatever is only counted.
    Note(Note<'a>),
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

/// reasoningContentEvent: whichever of the three came and isn't empty.
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

/// What only usage, the log and the metrics want to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Note<'a> {
    /// contextUsageEvent: total tokens ÷ window × 100, if it said so.
    ContextUsage {
        /// `contextUsagePercentage`.
        percentage: Option<f64>,
    },
    /// metadataEvent.
    Metadata {
        /// `tokenUsage`, when it holds both of the required counts as integers (TU2).
        counts: Option<TokenCounts>,
        /// `tokenUsage.contextUsagePercentage`.
        percentage: Option<f64>,
        /// `stopReason` is `MAX_TOKENS`, in any case; every other value is ignored (TS15).
        max_tokens: bool,
    },
    /// meteringEvent.
    Metering {
        /// `usage`, in the unit it names (credits).
        usage: Option<f64>,
    },
    /// An event of the model, or a protocol frame, that says nothing to us.
    Known,
    /// An event that isn't in the model, by its type.
    Unknown(&'a str),
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

impl<'a> Event<'a> {
    /// Reads a frame. Total: what can't be read is a [`Fault`]. A payload of an event we act on that holds invalid UTF-8
    /// is read with U+FFFD in its place and counted in `invalid_utf8` (TS2).
    #[inline]
    pub fn from_frame(frame: &Frame<'a>, invalid_utf8: &mut u64) -> Self {
        let message_type = frame.text(":message-type");
        let event_type = frame.text(":event-type");
        match (message_type, event_type) {
            (Some("event") | None, Some(name)) => Self::from_event(name, frame.payload(), invalid_utf8),
            (Some("exception"), _) => Self::from_exception(frame.text(":exception-type"), frame.payload()),
            (Some("error"), _) => {
                Exception::from_error_frame(frame.text(":error-code"), frame.text(":error-message")).into()
            }
            (Some("event"), None) => Self::broken("an event frame without :event-type"),
            (None, None) => Self::broken("a frame without :message-type and :event-type"),
            (Some(_), _) => Self::broken("a frame of unknown :message-type"),
        }
    }

    #[inline]
    fn from_event(name: &'a str, payload: &'a [u8], invalid_utf8: &mut u64) -> Self {
        if name == "assistantResponseEvent"
            && let Some(literal) = copyable_text(payload)
        {
            return Self::Content(Content::Text(Text::Literal(literal)));
        }
        Self::from_any_event(name, payload, invalid_utf8)
    }

    fn from_any_event(name: &'a str, payload: &'a [u8], invalid_utf8: &mut u64) -> Self {
        let read: fn(&str) -> Option<Event<'_>> = match name {
            "assistantResponseEvent" => read_text,
            "reasoningContentEvent" => read_reasoning,
            "toolUseEvent" => read_tool,
            "contextUsageEvent" => read_context_usage,
            "metadataEvent" => read_metadata,
            "meteringEvent" => read_metering,
            "invalidStateEvent" => read_invalid_state,
            "error" => return Self::from_exception(Some(name), payload),
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
            | "dryRunSucceedEvent" => return Self::Note(Note::Known),
            _ => return Self::Note(Note::Unknown(name)),
        };
        // A structure without members may be written as nothing at all.
        let payload = if payload.is_empty() { b"{}" } else { payload };
        let event = match String::from_utf8_lossy(payload) {
            Cow::Borrowed(payload) => read(payload),
            Cow::Owned(payload) => {
                *invalid_utf8 += 1;
                read(&payload).map(Event::into_owned)
            }
        };
        event.unwrap_or_else(|| Self::broken("the payload of an event is not as the model says"))
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
            Self::Note(Note::ContextUsage { percentage }) => Event::Note(Note::ContextUsage { percentage }),
            Self::Note(Note::Metadata { counts, percentage, max_tokens }) => {
                Event::Note(Note::Metadata { counts, percentage, max_tokens })
            }
            Self::Note(Note::Metering { usage }) => Event::Note(Note::Metering { usage }),
            Self::Note(Note::Known | Note::Unknown(_)) => Event::Note(Note::Known),
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
    /// The same content, free of the frame it came in: what waits in the queue (TS14).
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

    /// Whether there is nothing in it: such an event is a note (TS7). A tool's piece never is.
    pub fn is_empty(&self) -> bool {
        !matches!(self, Self::Tool(_)) && self.len() == 0
    }
}

impl Text<'_> {
    /// The decoded text; `half` as in [`json::decode`].
    pub fn decode(&self, half: &mut Option<u16>) -> Cow<'_, str> {
        match self {
            Self::Literal(literal) if half.is_none() => literal.decode(),
            Self::Literal(literal) => {
                Cow::Owned(json::decode(&String::from_utf8_lossy(literal.as_bytes()), half).into())
            }
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
            Self::Literal(literal) => Text::Raw(Cow::Owned(String::from_utf8_lossy(literal.as_bytes()).into_owned())),
            Self::Raw(raw) => Text::Raw(own(raw)),
        }
    }
}

fn own<'b>(text: Cow<'_, str>) -> Cow<'b, str> {
    Cow::Owned(text.into_owned())
}

/// TS23: the text of a payload that is, byte for byte, `{"content":"LIT"}` or `{"content":"LIT","modelId":"ID"}`, if LIT
/// isn't empty and may be copied. Everything else takes the slow path.
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

fn read_text(payload: &str) -> Option<Event<'_>> {
    let [content] = members(payload, ["content"])?;
    // `null` counts as empty (K33), no member at all is a broken payload (K35).
    let raw = match content? {
        "null" => "",
        value => string(value)?,
    };
    Some(Event::Content(Content::Text(Text::Raw(Cow::Borrowed(raw)))))
}

fn read_reasoning(payload: &str) -> Option<Event<'_>> {
    let [text, signature, redacted] = members(payload, ["text", "signature", "redactedContent"])?;
    let text = optional_string(text)?.map(text_of);
    let signature = optional_string(signature)?.map(json::decode_whole);
    let redacted = optional_string(redacted)?.map(json::decode_whole);
    Some(Event::Content(Content::Reasoning(Reasoning { text, signature, redacted })))
}

fn read_tool(payload: &str) -> Option<Event<'_>> {
    let [id, name, input, stop] = members(payload, ["toolUseId", "name", "input", "stop"])?;
    let input = match present(input) {
        None | Some("\"\"") => Input::Nothing,
        Some(value) if value.starts_with(['{', '[']) => Input::Whole(json::compact(value)),
        Some(value) => Input::Piece(text_of(string(value)?)),
    };
    let stop = match present(stop) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return None,
    };
    let decoded = |raw| Some(json::decode_whole(string(present(raw)?)?));
    Some(Event::Content(Content::Tool(Tool { id: decoded(id)?, name: decoded(name)?, input, stop })))
}

fn read_context_usage(payload: &str) -> Option<Event<'_>> {
    let [percentage] = members(payload, ["contextUsagePercentage"])?;
    Some(Event::Note(Note::ContextUsage { percentage: number(percentage) }))
}

fn read_metadata(payload: &str) -> Option<Event<'_>> {
    let [usage, stop_reason] = members(payload, ["tokenUsage", "stopReason"])?;
    let [uncached_input, output, cache_read, cache_write, percentage] = present(usage)
        .and_then(|usage| {
            members(
                usage,
                [
                    "uncachedInputTokens",
                    "outputTokens",
                    "cacheReadInputTokens",
                    "cacheWriteInputTokens",
                    "contextUsagePercentage",
                ],
            )
        })
        .unwrap_or_default();
    let integer = |value: Option<&str>| value.and_then(|value| value.parse::<u64>().ok());
    let counts = integer(uncached_input).zip(integer(output)).map(|(uncached_input, output)| TokenCounts {
        uncached_input,
        output,
        cache_read: integer(cache_read).unwrap_or(0),
        cache_write: integer(cache_write).unwrap_or(0),
    });
    let max_tokens = stop_reason.is_some_and(|reason| reason.eq_ignore_ascii_case("\"MAX_TOKENS\""));
    Some(Event::Note(Note::Metadata { counts, percentage: number(percentage), max_tokens }))
}

fn read_metering(payload: &str) -> Option<Event<'_>> {
    let [usage] = members(payload, ["usage"])?;
    Some(Event::Note(Note::Metering { usage: number(usage) }))
}

fn read_invalid_state(payload: &str) -> Option<Event<'_>> {
    let [reason, message] = members(payload, ["reason", "message"])?;
    let decoded = |raw| Some(json::decode_whole(string(present(raw)?)?).into_owned());
    Some(Event::Fault(Fault::invalid_state(decoded(reason), decoded(message).unwrap_or_default())))
}

fn text_of(raw: &str) -> Text<'_> {
    Literal::new(raw.as_bytes()).map_or(Text::Raw(Cow::Borrowed(raw)), Text::Literal)
}

/// The JSON of a member, null counting as absent (TS2).
fn present(value: Option<&str>) -> Option<&str> {
    value.filter(|&value| value != "null")
}

/// The content of a string literal.
fn string(value: &str) -> Option<&str> {
    value.strip_prefix('"')?.strip_suffix('"')
}

/// Absent, null and empty are none; what is there and no string breaks the payload.
fn optional_string(value: Option<&str>) -> Option<Option<&str>> {
    match present(value) {
        None => Some(None),
        Some(value) => Some(Some(string(value)?).filter(|raw| !raw.is_empty())),
    }
}

fn number(value: Option<&str>) -> Option<f64> {
    value.and_then(|value| value.parse().ok())
}

/// The JSON of the named members of an object; none if the text is anything but an object. Of equal keys the last counts,
/// unknown ones are skipped (TS2). Nothing is decoded: half a surrogate pair is no error anywhere (K34).
fn members<'a, const N: usize>(payload: &'a str, names: [&str; N]) -> Option<[Option<&'a str>; N]> {
    let mut parser = serde_json::Deserializer::from_str(payload);
    let members = parser.deserialize_map(Members { names: &names }).ok()?;
    parser.end().ok()?;
    Some(members)
}

struct Members<'n, const N: usize> {
    names: &'n [&'n str; N],
}

impl<'de, const N: usize> Visitor<'de> for Members<'_, N> {
    type Value = [Option<&'de str>; N];

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = [None; N];
        while let Some(place) = map.next_key_seed(Key { names: self.names })? {
            match values.get_mut(place) {
                Some(value) => *value = Some(map.next_value::<&RawValue>()?.get()),
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
        Event::from_any_event(name, payload, &mut 0)
    }

    /// TV113: which payloads are copied.
    #[test]
    fn tv113_raw_copy() {
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
    fn ts2_invalid_utf8_is_replaced_and_counted() {
        let mut invalid = 0;
        let event = Event::from_any_event("assistantResponseEvent", b"{\"content\":\"\xc3(\"}", &mut invalid);
        assert_eq!(event, Event::Content(Content::Text(Text::Raw("\u{fffd}(".into()))));
        assert_eq!(invalid, 1);
        // An event that isn't looked into isn't counted.
        Event::from_any_event("codeEvent", b"\xff", &mut invalid);
        assert_eq!(invalid, 1);
    }

    #[test]
    fn section6_every_event_of_the_model_is_known() {
        for name in [
            "messageMetadataEvent initial-response followupPromptEvent codeReferenceEvent supplementaryWebLinksEvent",
            "citationEvent documentCitationEvent codeEvent intentsEvent interactionComponentsEvent toolResultEvent",
            "dryRunSucceedEvent",
        ]
        .join(" ")
        .split(' ')
        {
            assert_eq!(Event::from_any_event(name, b"", &mut 0), Event::Note(Note::Known), "{name}");
        }
        assert_eq!(event("metricsEvent", b"{}"), Event::Note(Note::Unknown("metricsEvent")));
    }

    #[test]
    fn section6_usage_events() {
        assert_eq!(
            event("contextUsageEvent", br#"{"contextUsagePercentage":12.5}"#),
            Event::Note(Note::ContextUsage { percentage: Some(12.5) })
        );
        let counts = TokenCounts { uncached_input: 1, output: 2, cache_read: 3, cache_write: 4 };
        assert_eq!(
            event(
                "metadataEvent",
                br#"{"tokenUsage":{"uncachedInputTokens":1,"outputTokens":2,"totalTokens":10,"cacheReadInputTokens":3,
                    "cacheWriteInputTokens":4,"contextUsagePercentage":5,"normalizedTokenUsage":0.1}}"#
            ),
            Event::Note(Note::Metadata { counts: Some(counts), percentage: Some(5.0), max_tokens: false })
        );
        assert_eq!(
            event("meteringEvent", br#"{"usage":0.25,"unit":"credit","unitPlural":"credits"}"#),
            Event::Note(Note::Metering { usage: Some(0.25) })
        );
    }

    /// An `error` that comes as an event is the exception it is in the model (section 6).
    #[test]
    fn section6_error_as_an_event_is_an_exception() {
        let Event::Exception(fault) = event("error", br#"{"message":"m"}"#) else { panic!("an exception") };
        assert_eq!(fault.kind, crate::proto::kiro::fault::FaultKind::ServerError);
    }
}
