//! An HTTP reader of the tests' own: nothing of ours judges what the simulator sends.

use std::collections::HashMap;
use std::io;
use std::time::Instant;

use aws_smithy_eventstream::frame::{DecodedFrame, MessageFrameDecoder};
use aws_smithy_types::event_stream::Message;
use bytes::{Buf, Bytes};
use kiro_messages::proto::kiro::client_identity::{NODE, VERSION};
use kiro_messages::simulator::{Running, Simulator};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub fn simulator() -> Running {
    Simulator::bind("127.0.0.1:0".parse().unwrap()).unwrap().spawn().unwrap()
}

pub fn body(content: &str) -> Value {
    json!({
        "conversationState": {
            "chatTriggerType": "MANUAL", "conversationId": "7a1f6e0c-0000-4000-8000-000000000000",
            "currentMessage": { "userInputMessage": { "content": content, "modelId": "claude-sonnet-4.5", "origin": "AI_EDITOR" } },
        },
    })
}

pub fn marked(scenario: &Value) -> Value {
    body(&format!("Please do this: [[sim {scenario}]]"))
}

/// One answer to a chat request whose prompt holds `scenario`.
pub async fn play(simulator: &Running, scenario: &Value) -> Answer {
    chat(simulator, "token", &marked(scenario)).await
}

pub async fn chat(simulator: &Running, token: &str, body: &Value) -> Answer {
    Client::connect(simulator).await.chat(token, body).await
}

/// The events of an answer that must be whole: type and payload.
pub async fn events(simulator: &Running, scenario: &Value) -> Vec<(String, Value)> {
    let answer = play(simulator, scenario).await;
    assert_eq!((answer.status, answer.end), (200, End::Whole), "{scenario}: {}", answer.text());
    answer.events()
}

/// The text that an answer's events add up to.
pub fn text_of(events: &[(String, Value)]) -> String {
    let texts = events.iter().filter(|(kind, _)| kind == "assistantResponseEvent");
    texts.map(|(_, payload)| payload["content"].as_str().unwrap()).collect()
}

/// What the gateway's user agents look like for a call of shape `q`, by its address.
pub fn agents(target: &str, version: &str) -> [String; 2] {
    let ide = format!("KiroIDE-{version}-{}", "0a".repeat(32));
    let agent = |sdk: &str, api: &str, mode: &str, ide: &str| {
        let os = "linux#6.1.0";
        format!("aws-sdk-js/{sdk} ua/2.1 os/{os} lang/js md/nodejs#{NODE} api/{api}#{sdk} m/{mode} {ide}")
    };
    match target {
        "/generateAssistantResponse" | "/mcp" => {
            [agent("1.0.34", "codewhispererstreaming", "E", &ide), format!("aws-sdk-js/1.0.34 {ide}")]
        }
        "/refreshToken" => [ide, String::new()],
        "/token" => [agent("3.980.0", "sso-oidc", "E", "KiroIDE"), "aws-sdk-js/3.980.0 KiroIDE".to_owned()],
        _ => [agent("1.0.0", "codewhispererruntime", "N,E", &ide), format!("aws-sdk-js/1.0.0 {ide}")],
    }
}

/// Reads one answer after another from a connection, byte by byte as HTTP/1.1 has them.
pub struct Client {
    pub socket: TcpStream,
    pub buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(simulator: &Running) -> Self {
        Self { socket: TcpStream::connect(simulator.addr()).await.unwrap(), buffer: Vec::new() }
    }

    pub async fn chat(&mut self, token: &str, body: &Value) -> Answer {
        self.send(token, body).await;
        self.read().await
    }

    pub async fn send(&mut self, token: &str, body: &Value) {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        self.request("POST", "/generateAssistantResponse", &headers, &body.to_string()).await;
    }

    pub async fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) {
        let mut head = format!("{method} {target} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        let agents = agents(target, VERSION);
        let usual =
            [("host", "simulator"), ("user-agent", agents[0].as_str()), ("x-amz-user-agent", agents[1].as_str())];
        let usual = usual.iter().filter(|(name, _)| headers.iter().all(|(own, _)| own != name));
        for (name, value) in usual.chain(headers) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        self.socket.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
    }

    pub async fn read(&mut self) -> Answer {
        let mut answer =
            Answer { status: 0, headers: HashMap::new(), chunks: Vec::new(), arrived: Vec::new(), end: End::Cut };
        let Some(head) = self.until(b"\r\n\r\n", &mut answer).await else { return answer };
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        answer.status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        answer.headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        if let Some(length) = answer.headers.get("content-length") {
            let length = length.parse().unwrap();
            if let Some(body) = self.exactly(length, &mut answer).await {
                answer.push(body);
                answer.end = End::Whole;
            }
            return answer;
        }
        while let Some(size) = self.until(b"\r\n", &mut answer).await {
            let size = usize::from_str_radix(String::from_utf8(size).unwrap().trim(), 16).unwrap();
            let Some(mut chunk) = self.exactly(size + 2, &mut answer).await else { break };
            if size == 0 {
                answer.end = End::Whole;
                break;
            }
            chunk.truncate(size);
            answer.push(chunk);
        }
        answer
    }

    pub async fn until(&mut self, mark: &[u8], answer: &mut Answer) -> Option<Vec<u8>> {
        loop {
            if let Some(place) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                return Some(self.buffer.drain(..place + mark.len()).collect());
            }
            self.more(answer).await?;
        }
    }

    pub async fn exactly(&mut self, len: usize, answer: &mut Answer) -> Option<Vec<u8>> {
        while self.buffer.len() < len {
            self.more(answer).await?;
        }
        Some(self.buffer.drain(..len).collect())
    }

    /// None when the connection ends.
    pub async fn more(&mut self, answer: &mut Answer) -> Option<()> {
        match self.socket.read_buf(&mut self.buffer).await {
            Ok(0) => None,
            Ok(_) => Some(()),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                answer.end = End::Reset;
                None
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// The body ended as HTTP says.
    Whole,
    /// The connection was closed before.
    Cut,
    Reset,
}

#[derive(Debug)]
pub struct Answer {
    /// 0 when there was none.
    pub status: u16,
    pub headers: HashMap<String, String>,
    /// As the server wrote them.
    pub chunks: Vec<Vec<u8>>,
    pub arrived: Vec<Instant>,
    pub end: End,
}

impl Answer {
    pub fn push(&mut self, chunk: Vec<u8>) {
        self.chunks.push(chunk);
        self.arrived.push(Instant::now());
    }

    pub fn body(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body()).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body()).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    /// Frames as smithy reads them, and how many bytes are left over; an error for what it refuses.
    pub fn decode(&self) -> (Vec<Message>, Result<usize, String>) {
        let mut decoder = MessageFrameDecoder::new();
        let mut buffer = Bytes::from(self.body());
        let mut messages = Vec::new();
        loop {
            let left = buffer.remaining();
            match decoder.decode_frame(&mut buffer) {
                Ok(DecodedFrame::Complete(message)) => messages.push(message),
                Ok(DecodedFrame::Incomplete) => return (messages, Ok(left)),
                Err(error) => return (messages, Err(error.to_string())),
            }
        }
    }

    pub fn messages(&self) -> Vec<Message> {
        let (messages, end) = self.decode();
        assert_eq!(end, Ok(0));
        messages
    }

    pub fn events(&self) -> Vec<(String, Value)> {
        self.messages()
            .iter()
            .map(|message| (header(message, ":event-type").unwrap_or_default(), payload(message)))
            .collect()
    }
}

pub fn header(message: &Message, name: &str) -> Option<String> {
    let header = message.headers().iter().find(|header| header.name().as_str() == name)?;
    Some(header.value().as_string().unwrap().as_str().to_owned())
}

pub fn payload(message: &Message) -> Value {
    serde_json::from_slice(message.payload()).unwrap_or_default()
}
