//! One client of a streaming endpoint, strict about what it is sent: it asks the simulator for numbered events and
//! wants every one of them back, in order, unchanged, between a proper beginning and a proper end.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use kiro_messages::proto::eventstream::Decoder;
use memchr::memmem;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

#[path = "../../benches/inputs/conversation.rs"]
mod conversation;

use conversation::conversation;

/// After the running number in every text event. With it a frame has about 150 bytes, as frames on the wire do.
const REST: &str = " and a piece of the answer ";

/// The protocol of the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// `POST /v1/messages`: SSE comes back.
    Messages,
    /// `POST /generateAssistantResponse`: frames come back. For the simulator, bare or behind a proxy.
    Kiro,
}

/// The request of every stream.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `host:port`, without TLS.
    pub authority: String,
    pub face: Face,
    /// Text events a stream.
    pub events: u64,
    /// Events a write; none: as the simulator likes.
    pub burst: Option<u64>,
    /// Before the first event.
    pub first: Duration,
    /// Between two writes.
    pub gap: Duration,
    /// Filler in the prompt, in bytes; of a conversation, all of it.
    pub prompt: usize,
    /// A coding agent's conversation with tools, instead of one message.
    pub conversation: bool,
    /// The client key, or upstream's access token.
    pub key: Option<String>,
    /// A stream that takes longer has failed.
    pub timeout: Duration,
}

/// The result of one stream.
#[derive(Debug, Default)]
pub struct Outcome {
    /// From the start (making a connection included) to the first text event.
    pub first_event: Option<Duration>,
    /// Text events that came, in order.
    pub deltas: u64,
    /// Between two reads that brought some.
    pub gaps: Vec<Duration>,
    /// A few words, when it failed.
    pub failure: Option<String>,
}

/// A connection that is kept, and what is sent on it.
pub struct Client {
    plan: Plan,
    path: &'static str,
    /// The request around its running number.
    body: [Bytes; 2],
    sender: Option<http1::SendRequest<Full<Bytes>>>,
    /// Drives it, and ends with the client.
    connection: JoinSet<hyper::Result<()>>,
}

impl Client {
    pub fn new(plan: Plan) -> Self {
        let (path, body) = request(&plan);
        Self { plan, path, body, sender: None, connection: JoinSet::new() }
    }

    /// Runs one stream; calls `on_first` at its first text event.
    pub async fn stream(&mut self, on_first: impl FnOnce()) -> Outcome {
        let mut outcome = Outcome::default();
        let limit = self.plan.timeout;
        outcome.failure = match tokio::time::timeout(limit, self.run(&mut outcome, on_first)).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some(format!("not over after {limit:?}")),
        };
        if outcome.failure.is_some() {
            self.sender = None;
        }
        outcome
    }

    #[expect(clippy::disallowed_methods, reason = "measuring is what this is for")]
    async fn run(&mut self, outcome: &mut Outcome, on_first: impl FnOnce()) -> Result<(), String> {
        let began = Instant::now();
        let mut on_first = Some(on_first);
        let mut request = hyper::Request::post(self.path)
            .header(HOST, &self.plan.authority)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "*/*");
        if self.plan.face == Face::Kiro {
            // The simulator refuses clients that aren't Kiro's.
            let ide = format!("KiroIDE-9.9.9-{}", "0a".repeat(32));
            let sdk = "aws-sdk-js/1.0.34";
            let api = "lang/js md/nodejs#24.18.0 api/codewhispererstreaming#1.0.34 m/E";
            request = request.header("user-agent", format!("{sdk} ua/2.1 os/linux#6.1 {api} {ide}"));
            request = request.header("x-amz-user-agent", format!("{sdk} {ide}"));
        }
        let request = match &self.plan.key {
            Some(key) => request.header(AUTHORIZATION, format!("Bearer {key}")),
            None => request,
        };
        let request = request.body(Full::new(self.next_body())).map_err(said("request"))?;
        let response = self.sender().await?.send_request(request).await.map_err(said("send"))?;
        if response.status() != 200 {
            return Err(format!("status {}", response.status().as_u16()));
        }
        let mut check = Check::new(self.plan.face);
        let mut body = response.into_body();
        let mut last = None;
        while let Some(frame) = body.frame().await {
            let Ok(chunk) = frame.map_err(said("body"))?.into_data() else { continue };
            let pushed = check.push(chunk);
            if check.deltas() > outcome.deltas && !self.plan.gap.is_zero() {
                let now = Instant::now();
                outcome.gaps.extend(last.replace(now).map(|last: Instant| now - last));
            }
            outcome.deltas = check.deltas();
            if outcome.deltas > 0
                && let Some(on_first) = on_first.take()
            {
                outcome.first_event = Some(began.elapsed());
                on_first();
            }
            pushed?;
        }
        check.finish()?;
        match outcome.deltas {
            deltas if deltas == self.plan.events => Ok(()),
            _ => Err("events are missing".to_owned()),
        }
    }

    /// Each request is a conversation of its own, as those of many people are: the gateway keeps one with its account.
    fn next_body(&self) -> Bytes {
        static CONVERSATIONS: AtomicU64 = AtomicU64::new(0);
        let number = CONVERSATIONS.fetch_add(1, Ordering::Relaxed).to_string();
        [&self.body[0], number.as_bytes(), &self.body[1]].concat().into()
    }

    async fn sender(&mut self) -> Result<&mut http1::SendRequest<Full<Bytes>>, String> {
        let usable = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let stream = TcpStream::connect(&self.plan.authority).await.map_err(said("connect"))?;
            stream.set_nodelay(true).map_err(said("connect"))?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(said("connect"))?;
            // When it fails, the request that runs on it fails.
            self.connection = JoinSet::new();
            self.connection.spawn(connection);
            self.sender = Some(sender);
        }
        self.sender.as_mut().ok_or_else(|| "no connection".to_owned())
    }
}

fn said<E: Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Stands where the running number goes.
const NUMBER: &str = "\u{1}";

fn request(plan: &Plan) -> (&'static str, [Bytes; 2]) {
    let mut scenario = json!({
        "text": format!("{{n}}{REST}"),
        "count": plan.events,
        "first_ms": plan.first.as_millis() as u64,
        "gap_ms": plan.gap.as_millis() as u64,
    });
    if let Some(burst) = plan.burst {
        scenario["burst"] = burst.into();
    }
    if plan.conversation && plan.face == Face::Messages {
        let mut body = conversation(plan.prompt);
        body["max_tokens"] = 100_000_000.into();
        body["thinking"] = json!({ "type": "disabled" });
        if let Some(last) = body["messages"].as_array_mut().and_then(|all| all.last_mut()) {
            let text = json!({ "type": "text", "text": format!("{NUMBER} [[sim {scenario}]]") });
            if let Some(blocks) = last["content"].as_array_mut() {
                blocks.push(text);
            }
        }
        return ("/v1/messages", parted(&body));
    }
    let filler = "the quick brown fox jumps over the lazy dog\n".bytes().cycle().take(plan.prompt);
    let prompt = format!("{NUMBER} [[sim {scenario}]] {}", String::from_utf8_lossy(&filler.collect::<Vec<u8>>()));
    match plan.face {
        Face::Messages => {
            let body = json!({
                "model": "claude-sonnet-4-5",
                "max_tokens": 100_000_000,
                "stream": true,
                "messages": [{ "role": "user", "content": prompt }],
            });
            ("/v1/messages", parted(&body))
        }
        Face::Kiro => {
            let message = json!({ "content": prompt, "modelId": "claude-sonnet-4.5", "origin": "AI_EDITOR" });
            let body = json!({ "conversationState": {
                "conversationId": "6f1c2f7e-3e1a-4b63-9d0a-0c3c1f6c8a11",
                "chatTriggerType": "MANUAL",
                "currentMessage": { "userInputMessage": message },
            }});
            ("/generateAssistantResponse", parted(&body))
        }
    }
}

/// The JSON before and behind the running number.
fn parted(body: &Value) -> [Bytes; 2] {
    let text = body.to_string();
    let (before, behind) = text.split_once("\\u0001").unwrap_or((&text, ""));
    [before, behind].map(|part| Bytes::copy_from_slice(part.as_bytes()))
}

/// Reads an answer as it comes and says what is wrong with it.
enum Check {
    Sse(SseCheck),
    Frames(FrameCheck),
}

impl Check {
    fn new(face: Face) -> Self {
        match face {
            Face::Messages => Self::Sse(SseCheck::default()),
            Face::Kiro => Self::Frames(FrameCheck { decoder: Decoder::new(), numbers: Numbers::default() }),
        }
    }

    fn push(&mut self, chunk: Bytes) -> Result<(), String> {
        match self {
            Self::Sse(check) => check.push(&chunk),
            Self::Frames(check) => check.push(chunk),
        }
    }

    fn finish(&self) -> Result<(), String> {
        match self {
            Self::Sse(check) => check.finish(),
            Self::Frames(check) => check.decoder.finish().map_err(said("frames")),
        }
    }

    fn deltas(&self) -> u64 {
        match self {
            Self::Sse(check) => check.numbers.next,
            Self::Frames(check) => check.numbers.next,
        }
    }
}

/// The running number that has to come next.
#[derive(Default)]
struct Numbers {
    next: u64,
}

impl Numbers {
    /// `text` is one text event, to its last byte.
    fn take(&mut self, text: &[u8]) -> Result<(), String> {
        let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number =
            text[..digits].iter().fold(0_u64, |n, digit| n.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
        if digits == 0 || number != self.next {
            return Err("an event is out of order".to_owned());
        }
        if &text[digits..] != REST.as_bytes() {
            return Err("an event is not what was sent".to_owned());
        }
        self.next += 1;
        Ok(())
    }
}

struct FrameCheck {
    decoder: Decoder,
    numbers: Numbers,
}

impl FrameCheck {
    fn push(&mut self, chunk: Bytes) -> Result<(), String> {
        self.decoder.push(chunk);
        while let Some(frame) = self.decoder.next().map_err(said("frames"))? {
            match frame.text(":event-type") {
                Some("assistantResponseEvent") => {
                    let text =
                        frame.payload().strip_prefix(b"{\"content\":\"").and_then(|text| text.strip_suffix(b"\"}"));
                    self.numbers.take(text.ok_or("an event of another shape")?)?;
                }
                Some("contextUsageEvent" | "metadataEvent" | "meteringEvent") => {}
                _ => return Err("an event that was not asked for".to_owned()),
            }
        }
        Ok(())
    }
}

/// Where in `message_start … message_stop` an answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Before,
    Message,
    Block,
    AfterBlock,
    AfterDelta,
    Stopped,
}

#[derive(Default)]
struct SseCheck {
    /// An event that isn't whole yet.
    rest: Vec<u8>,
    place: Place,
    numbers: Numbers,
}

impl SseCheck {
    fn push(&mut self, chunk: &[u8]) -> Result<(), String> {
        if self.rest.is_empty() {
            let read = self.events(chunk)?;
            self.rest.extend_from_slice(&chunk[read..]);
        } else {
            self.rest.extend_from_slice(chunk);
            let whole = std::mem::take(&mut self.rest);
            let read = self.events(&whole)?;
            self.rest.extend_from_slice(&whole[read..]);
        }
        Ok(())
    }

    /// How many bytes of `text` were whole events.
    fn events(&mut self, text: &[u8]) -> Result<usize, String> {
        let mut start = 0;
        while let Some(length) = memmem::find(&text[start..], b"\n\n") {
            self.event(&text[start..start + length])?;
            start += length + 2;
        }
        Ok(start)
    }

    fn event(&mut self, event: &[u8]) -> Result<(), String> {
        const DELTA: &[u8] = b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
            \"delta\":{\"type\":\"text_delta\",\"text\":\"";
        if let Some(delta) = event.strip_prefix(DELTA) {
            if self.place != Place::Block {
                return Err("a delta outside of its block".to_owned());
            }
            return self.numbers.take(delta.strip_suffix(b"\"}}").ok_or("a delta of another shape")?);
        }
        let name = event.strip_prefix(b"event: ").and_then(|rest| rest.split(|byte| *byte == b'\n').next());
        self.place = match (self.place, name.unwrap_or_default()) {
            (place, b"ping") if place != Place::Stopped => place,
            (Place::Before, b"message_start") => Place::Message,
            (Place::Message, b"content_block_start") => Place::Block,
            (Place::Block, b"content_block_stop") => Place::AfterBlock,
            (Place::AfterBlock, b"message_delta") => Place::AfterDelta,
            (Place::AfterDelta, b"message_stop") => Place::Stopped,
            (_, b"error") => return Err("an error event".to_owned()),
            (place, name) => return Err(format!("`{}` in {place:?}", String::from_utf8_lossy(name))),
        };
        Ok(())
    }

    fn finish(&self) -> Result<(), String> {
        match (self.place, self.rest.is_empty()) {
            (Place::Stopped, true) => Ok(()),
            (Place::Stopped, false) => Err("bytes after the end".to_owned()),
            (place, _) => Err(format!("ended in {place:?}")),
        }
    }
}
