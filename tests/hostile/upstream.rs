//! An upstream that answers with given bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use kiro_messages::proto::eventstream::{HeaderValue, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The steps of a connection, in order; after the last one it is closed.
#[derive(Clone, Debug)]
pub enum Act {
    Say(Vec<u8>),
    Wait(Duration),
    /// The same bytes, this many times or until the client stops reading.
    Repeat(Vec<u8>, usize),
    /// Nothing is said any more, and the connection stays until the other side goes.
    Stay,
    /// Closes with a reset.
    Reset,
}

pub struct Upstream {
    pub address: String,
    /// Bytes that were taken from us.
    pub taken: Arc<AtomicU64>,
    /// Connections that are open.
    pub open: Arc<AtomicUsize>,
}

impl Upstream {
    /// `answer` is asked with the request's head for each request.
    pub async fn start(answer: impl Fn(&str) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (taken, open) = (Arc::<AtomicU64>::default(), Arc::<AtomicUsize>::default());
        let answer = Arc::new(answer);
        let (all, count) = (taken.clone(), open.clone());
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (answer, all, count) = (answer.clone(), all.clone(), count.clone());
                tokio::spawn(async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    let _gone = serve(connection, &*answer, &all).await;
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, taken, open }
    }

    /// The settings that lead everything there.
    pub fn settings(&self) -> [(&'static str, String); 1] {
        [("KIRO_UPSTREAM_URL", format!("http://{}/generateAssistantResponse", self.address))]
    }
}

async fn serve(
    mut connection: TcpStream,
    answer: &(dyn Fn(&str) -> Vec<Act> + Send + Sync),
    taken: &AtomicU64,
) -> std::io::Result<()> {
    let mut seen = Vec::new();
    let head = loop {
        if let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if connection.read_buf(&mut seen).await? == 0 {
            return Ok(());
        }
    };
    let text = String::from_utf8_lossy(&seen[..head]).into_owned();
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    while seen.len() < head + length.unwrap_or(0) {
        connection.read_buf(&mut seen).await?;
    }
    for act in answer(&text) {
        match act {
            Act::Say(bytes) => {
                connection.write_all(&bytes).await?;
                taken.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            }
            Act::Repeat(bytes, times) => {
                for _ in 0..times {
                    connection.write_all(&bytes).await?;
                    taken.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                }
            }
            Act::Wait(time) => tokio::time::sleep(time).await,
            Act::Stay => {
                while connection.read_buf(&mut seen).await? > 0 {
                    seen.clear();
                }
                return Ok(());
            }
            Act::Reset => {
                connection.set_zero_linger()?;
                return Ok(());
            }
        }
    }
    connection.shutdown().await
}

/// A whole answer with a body, closed behind it.
pub fn answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<Act> {
    let body = body.as_ref();
    let mut bytes = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut bytes = (bytes + "\r\n").into_bytes();
    bytes.extend_from_slice(body);
    vec![Act::Say(bytes)]
}

/// The head of an event stream that ends with the connection.
pub fn stream_head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\nconnection: close\r\n\r\n".to_vec()
}

pub fn event(name: &str, payload: &str) -> Vec<u8> {
    frame(&[(":message-type", "event"), (":event-type", name)], payload)
}

pub fn text(text: &str) -> Vec<u8> {
    event("assistantResponseEvent", &serde_json::json!({ "content": text }).to_string())
}

pub fn frame(headers: &[(&str, &str)], payload: &str) -> Vec<u8> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, HeaderValue::Text(value))).collect();
    let mut bytes = Vec::new();
    encode(&headers, payload.as_bytes(), &mut bytes).unwrap();
    bytes
}
