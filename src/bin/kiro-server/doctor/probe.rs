//! Small hand-made requests for `doctor` and `accounts check`: one at a time, counted, and without effect on the pool.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use kiro_messages::policy::learned::Variant;
use kiro_messages::pool::AccountView;
use kiro_messages::proto::eventstream::Decoder;
use kiro_messages::proto::kiro::event::{Content, Event, Reader, Telemetry, Text, TokenCounts};
use kiro_messages::proto::kiro::fault::{Fault, FaultKind};
use kiro_messages::proto::kiro::route::{Operation, Shape};
use kiro_messages::proto::kiro::search;
use kiro_messages::proto::said::KnownSecrets;
use kiro_messages::secret::Secret;
use kiro_messages::upstream::{CallAuth, Upstream};
use serde_json::{Map, Value, json};

/// Most requests of one run (K138).
pub const MOST_REQUESTS: usize = 40;
/// The whole time of one request.
const WITHIN: Duration = Duration::from_secs(120);
/// Most bytes of an answer that are read.
const MAX_ANSWER: usize = 4 << 20;

/// No further request may be made; [`ProbeAccount::stopped`] says why, too.
#[derive(Debug)]
pub struct Stopped {
    /// The account's fault, or that the bound of requests is reached.
    pub fault: Fault,
}

/// The result of a request, unless no further request may be made.
pub type ProbeResult<T> = Result<Result<T, Fault>, Stopped>;

/// One account, as whom requests are made.
pub struct ProbeAccount {
    client: reqwest::Client,
    headers: Vec<((Shape, Operation), HeaderMap)>,
    view: AccountView,
    known: KnownSecrets,
    pause: Duration,
    /// Requests made.
    pub sent: usize,
    /// Why it ended before its end, in a sentence.
    pub stopped: Option<String>,
    /// Client versions that were refused: the call and the shape.
    pub version_refused: Vec<(Operation, Shape)>,
    /// Calls that were answered, or refused for their content: the host accepted the client.
    pub answered: Vec<(Operation, Shape)>,
}

/// The content of a chat answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    /// Characters of text; the text itself is never kept.
    pub text: usize,
    /// The text held a thought in tags.
    pub tags: bool,
    /// The thoughts, each with its signature. Kept to be sent back, never shown.
    pub thoughts: Vec<(String, String)>,
    /// A redacted thought came.
    pub redacted: bool,
    /// The events at the end, in their order.
    pub ends: Vec<&'static str>,
    pub counts: Option<TokenCounts>,
    pub percentage: Option<f64>,
    pub credits: Option<f64>,
}

/// The content of a chat request.
#[derive(Debug, Clone)]
pub struct Ask {
    pub model: String,
    pub conversation: String,
    pub content: String,
    /// Members of the current user message beside `content`.
    pub more: Map<String, Value>,
    pub history: Vec<Value>,
    /// `additionalModelRequestFields`.
    pub fields: Option<Value>,
}

impl Ask {
    pub fn new(model: &str, content: &str) -> Self {
        Self {
            model: model.to_owned(),
            conversation: uuid::Uuid::new_v4().to_string(),
            content: content.to_owned(),
            more: Map::new(),
            history: Vec::new(),
            fields: None,
        }
    }

    pub fn with(mut self, member: &str, value: Value) -> Self {
        self.more.insert(member.to_owned(), value);
        self
    }

    pub fn fields(mut self, fields: Value) -> Self {
        self.fields = Some(fields);
        self
    }

    /// Behind a system text, where the gateway puts it (TR46).
    pub fn under(mut self, text: &str) -> Self {
        let understood = json!({ "assistantResponseMessage": { "content": "I will follow these instructions." } });
        self.history = vec![self.user(text), understood];
        self
    }

    pub fn user(&self, content: &str) -> Value {
        json!({ "userInputMessage": { "content": content, "modelId": self.model, "origin": "AI_EDITOR" } })
    }

    /// The body of K115; `small` leaves out the members of K116.
    fn body(&self, shape: Shape, small: bool, arn: Option<&str>) -> Value {
        let mut user = json!({ "content": self.content, "modelId": self.model, "origin": "AI_EDITOR" });
        if let Value::Object(user) = &mut user {
            user.extend(self.more.clone());
        }
        let mut state = json!({
            "chatTriggerType": "MANUAL",
            "conversationId": self.conversation,
            "currentMessage": { "userInputMessage": user },
        });
        if !self.history.is_empty() {
            state["history"] = json!(self.history);
        }
        let mut body = json!({});
        if !small {
            state["agentContinuationId"] = json!(uuid::Uuid::new_v4().to_string());
            state["agentTaskType"] = json!("vibe");
            if shape == Shape::Runtime {
                state["rootConversationId"] = json!(self.conversation);
                body["agentMode"] = json!("vibe");
            }
        }
        body["conversationState"] = state;
        if let Some(fields) = &self.fields {
            body["additionalModelRequestFields"] = fields.clone();
        }
        if let Some(arn) = arn {
            body["profileArn"] = json!(arn);
        }
        body
    }
}

impl ProbeAccount {
    pub fn new(upstream: &Upstream, view: AccountView, token: &Secret, pause: Duration) -> Result<Self, Fault> {
        let client = upstream.client(view.proxy_url().map(Secret::expose))?;
        let mut headers = Vec::new();
        for shape in Shape::ALL {
            for call in [Operation::Chat, Operation::Mcp, Operation::Usage, Operation::Models] {
                let caller = CallAuth {
                    token,
                    token_type: view.token_type(),
                    machine_id: view.machine_id(),
                    // Each call names its own profile.
                    profile_arn: None,
                };
                headers.push(((shape, call), upstream.identity().headers(shape, call, &caller)?));
            }
        }
        Ok(Self {
            client,
            headers,
            known: KnownSecrets::of_call(token, view.machine_id(), view.id()),
            view,
            pause,
            sent: 0,
            stopped: None,
            version_refused: Vec::new(),
            answered: Vec::new(),
        })
    }

    pub fn view(&self) -> &AccountView {
        &self.view
    }

    /// One chat turn.
    pub async fn chat(&mut self, shape: Shape, small: bool, arn: Option<&str>, ask: &Ask) -> ProbeResult<Chat> {
        let body = ask.body(shape, small, arn).to_string();
        self.call(shape, Operation::Chat, arn, String::new(), Some(body), |answer| read_chat(&answer)).await
    }

    pub async fn usage(&mut self, shape: Shape, arn: Option<&str>) -> ProbeResult<Bytes> {
        let mut query = "?isEmailRequired=true&origin=AI_EDITOR&resourceType=AGENTIC_REQUEST".to_owned();
        if let Some(arn) = arn {
            query.push_str("&profileArn=");
            query.push_str(&arn.replace(':', "%3A").replace('/', "%2F"));
        }
        self.call(shape, Operation::Usage, arn, query, None, Ok).await
    }

    /// One page of ListAvailableModels.
    pub async fn models(&mut self, shape: Shape, arn: Option<&str>, next: Option<&str>) -> ProbeResult<Bytes> {
        let mut body = json!({ "origin": "AI_EDITOR" });
        if let Some(arn) = arn {
            body["profileArn"] = json!(arn);
        }
        if let Some(next) = next {
            body["nextToken"] = json!(next);
        }
        self.call(shape, Operation::Models, arn, String::new(), Some(body.to_string()), Ok).await
    }

    /// A call of upstream's tools (K7), with the body that the gateway's searches have. `params` is JSON.
    pub async fn mcp(&mut self, shape: Shape, arn: Option<&str>, method: &str, params: &str) -> ProbeResult<Value> {
        let id = search::call_id(fastrand::alphanumeric, jiff::Timestamp::now());
        let body = search::body(&id, method, params, arn.filter(|_| shape == Shape::Runtime));
        let read = |answer: Bytes| serde_json::from_slice(&answer).map_err(|_| Fault::protocol("not JSON"));
        self.call(shape, Operation::Mcp, arn, String::new(), Some(body), read).await
    }

    /// The same from another client: `agent` makes its user agents of ours. The result says nothing about our own
    /// version.
    pub async fn usage_as(
        &mut self,
        shape: Shape,
        arn: Option<&str>,
        agent: impl Fn(&str) -> String,
    ) -> ProbeResult<()> {
        let ours = (self.headers.clone(), self.version_refused.clone(), self.answered.clone());
        for (_, headers) in self.headers.iter_mut().filter(|(of, _)| *of == (shape, Operation::Usage)) {
            for name in ["user-agent", "x-amz-user-agent"] {
                let theirs = headers.get(name).and_then(|ours| HeaderValue::from_str(&agent(ours.to_str().ok()?)).ok());
                if let Some(theirs) = theirs {
                    headers.insert(name, theirs);
                }
            }
        }
        let answer = self.usage(shape, arn).await;
        (self.headers, self.version_refused, self.answered) = ours;
        Ok(answer?.map(drop))
    }

    /// One request more, here or as another account in its place: after the pause, and within the bound (K138).
    pub async fn begin(&mut self) -> Result<(), Stopped> {
        if self.sent == MOST_REQUESTS && self.stopped.is_none() {
            self.stopped = Some(format!("{MOST_REQUESTS} requests were made, and there are no more"));
        }
        if let Some(why) = &self.stopped {
            return Err(Stopped { fault: Fault::network(why.clone()) });
        }
        if self.sent > 0 {
            tokio::time::sleep(self.pause).await;
        }
        self.sent += 1;
        Ok(())
    }

    /// `read` parses the answer; a stream may hold a fault, too.
    async fn call<T>(
        &mut self,
        shape: Shape,
        call: Operation,
        arn: Option<&str>,
        query: String,
        body: Option<String>,
        read: impl FnOnce(Bytes) -> Result<T, Fault>,
    ) -> ProbeResult<T> {
        self.begin().await?;
        let answer = match tokio::time::timeout(WITHIN, self.send(shape, call, arn, query, body)).await {
            Ok(answer) => answer.and_then(read),
            Err(_) => Err(Fault::timeout("no whole answer within 120 s")),
        };
        match &answer {
            Err(fault) if fault.kind == FaultKind::ClientVersion => self.version_refused.push((call, shape)),
            Err(fault) if !is_of_the_request(fault) => {}
            _ => self.answered.push((call, shape)),
        }
        // A fault of the account, as opposed to the request, ends the run (K138).
        if let Err(fault) = answer {
            let why = match fault.kind {
                FaultKind::Suspicious => "Kiro finds the account's activity suspicious",
                FaultKind::Suspended => "the account is suspended",
                FaultKind::QuotaMonth | FaultKind::QuotaDay => "the account's quota is used up",
                FaultKind::RateLimited => "the account is rate limited (429)",
                _ => return Ok(Err(fault)),
            };
            self.stopped = Some(why.to_owned());
            return Err(Stopped { fault });
        }
        Ok(answer)
    }

    async fn send(
        &self,
        shape: Shape,
        call: Operation,
        arn: Option<&str>,
        query: String,
        body: Option<String>,
    ) -> Result<Bytes, Fault> {
        // The ARN says where its profile lives (K74); a request without it goes to the same place.
        let variants = self.view.variants();
        let named = |variant: &&Variant| arn.is_some() && variant.arn() == arn;
        let variant = variants.iter().find(named).or_else(|| variants.first());
        let region = variant.map_or_else(|| self.view.region(), |variant| self.view.api_region(variant));
        let url = format!("{}{query}", self.view.url(shape, call, region));
        let mut headers = self
            .headers
            .iter()
            .find(|(of, _)| *of == (shape, call))
            .map(|(_, headers)| headers.clone())
            .unwrap_or_default();
        if let Some(arn) = arn.filter(|_| call == Operation::Mcp).and_then(|arn| HeaderValue::from_str(arn).ok()) {
            headers.insert(HeaderName::from_static("x-amzn-kiro-profile-arn"), arn);
        }
        if let Ok(id) = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()) {
            headers.insert(HeaderName::from_static("amz-sdk-invocation-id"), id);
        }
        let request = match body {
            Some(body) => self.client.post(url).body(body),
            None => self.client.get(url),
        };
        let mut answer = request.headers(headers).send().await.map_err(|error| match error.is_connect() {
            true => Fault::unreachable("could not connect"),
            false => Fault::network("the connection broke before the answer began"),
        })?;
        let status = answer.status().as_u16();
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (error_type, retry_after) = (header("x-amzn-errortype"), header("retry-after"));
        let mut bytes = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(|_| Fault::network("the answer was cut"))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER {
                return Err(Fault::protocol("the answer is too long"));
            }
        }
        if status == 200 {
            return Ok(bytes.freeze());
        }
        let api_key = self.view.is_api_key();
        Err(Fault::from_http(status, error_type.as_deref(), retry_after.as_deref(), &bytes, api_key, &self.known))
    }
}

/// Faults of a request's body: upstream has taken client and token then.
fn is_of_the_request(fault: &Fault) -> bool {
    matches!(
        fault.kind,
        FaultKind::BadRequest
            | FaultKind::ProfileArn
            | FaultKind::UnknownModel
            | FaultKind::ModelFields
            | FaultKind::ThinkingSignature
            | FaultKind::PromptTooLong
            | FaultKind::TooLarge
    )
}

/// Counts the content of an event stream; its text isn't kept.
fn read_chat(answer: &Bytes) -> Result<Chat, Fault> {
    let mut decoder = Decoder::new();
    decoder.push(answer.clone());
    let mut reader = Reader::default();
    let mut chat = Chat::default();
    let mut text = String::new();
    let mut thought = (String::new(), String::new());
    loop {
        let frame = match decoder.next() {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) => return Err(Fault::protocol(error.to_string())),
        };
        match reader.event(&frame) {
            Event::Content(Content::Text(piece)) => text.push_str(&decoded(&piece)),
            Event::Content(Content::Reasoning(reasoning)) => {
                if let Some(piece) = &reasoning.text {
                    if !thought.1.is_empty() {
                        chat.thoughts.push(std::mem::take(&mut thought));
                    }
                    thought.0.push_str(&decoded(piece));
                }
                if let Some(piece) = &reasoning.signature {
                    if thought.1.ends_with('=') && !piece.bytes().all(|byte| byte == b'=') {
                        chat.thoughts.push(std::mem::take(&mut thought));
                    }
                    thought.1.push_str(piece);
                }
                chat.redacted |= reasoning.redacted.is_some();
            }
            Event::Content(Content::Tool(_)) => {}
            Event::Telemetry(Telemetry::ContextUsage { percentage }) => {
                chat.ends.push("context");
                chat.percentage = percentage.or(chat.percentage);
            }
            Event::Telemetry(Telemetry::Metadata { counts, percentage, .. }) => {
                chat.ends.push("metadata");
                chat.counts = counts.or(chat.counts);
                chat.percentage = percentage.or(chat.percentage);
            }
            Event::Telemetry(Telemetry::Metering { usage }) => {
                chat.ends.push("metering");
                chat.credits = usage.or(chat.credits);
            }
            Event::Telemetry(Telemetry::Known | Telemetry::Unknown(_)) => {}
            Event::OutputLimit => break,
            Event::Exception(fault) | Event::Fault(fault) => return Err(fault),
        }
    }
    if thought != Default::default() {
        chat.thoughts.push(thought);
    }
    chat.tags = text.contains("<thinking>");
    chat.text = text.chars().count();
    Ok(chat)
}

fn decoded(text: &Text<'_>) -> String {
    text.decode(&mut None).into_owned()
}

/// A picture of noise, which can't be compressed: a whole PNG of about `base64_length` characters of base64.
pub fn picture(base64_length: usize) -> String {
    let side = ((base64_length as f64 * 0.75 / 3.0).sqrt() as usize).max(1);
    let mut pixels = Vec::with_capacity(side * (3 * side + 1));
    let mut noise = fastrand::Rng::with_seed(1);
    for _ in 0..side {
        pixels.push(0);
        pixels.extend((0..3 * side).map(|_| noise.u8(..)));
    }
    let mut data = vec![0x78, 0x01];
    let blocks = pixels.chunks(0xffff);
    let last = blocks.len().saturating_sub(1);
    for (place, block) in blocks.enumerate() {
        let length = block.len() as u16;
        data.push(u8::from(place == last));
        data.extend(length.to_le_bytes());
        data.extend((!length).to_le_bytes());
        data.extend_from_slice(block);
    }
    let (mut a, mut b) = (1_u32, 0_u32);
    for &byte in &pixels {
        a = (a + u32::from(byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    data.extend((b << 16 | a).to_be_bytes());
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let size = (side as u32).to_be_bytes();
    let head = [&size[..], &size[..], &[8, 2, 0, 0, 0]].concat();
    for (name, data) in [(b"IHDR", &head), (b"IDAT", &data), (b"IEND", &Vec::new())] {
        png.extend((data.len() as u32).to_be_bytes());
        let from = png.len();
        png.extend_from_slice(name);
        png.extend_from_slice(data);
        let checksum = crc32fast::hash(png.get(from..).unwrap_or_default());
        png.extend(checksum.to_be_bytes());
    }
    STANDARD.encode(png)
}
