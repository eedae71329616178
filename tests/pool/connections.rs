//! Connections to upstream under the pool: kept ones that die, and redirects.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kiro_messages::proto::kiro::fault::{Fault, FaultKind};
use kiro_messages::secret::Secret;
use kiro_messages::upstream::Upstream;
use tokio::net::TcpListener;

use super::instance::config;

/// A server that reads requests and answers each from its script; with none, it closes without an answer.
struct Wire {
    url: String,
    heard: Arc<Mutex<Vec<(usize, String)>>>,
}

impl Wire {
    /// `answer` gets the number of the connection and of the request on it.
    async fn start(answer: impl Fn(usize, usize) -> Option<String> + Send + Sync + 'static) -> Self {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/generateAssistantResponse", listener.local_addr().unwrap());
        let heard = Arc::<Mutex<Vec<_>>>::default();
        let (kept, answer) = (heard.clone(), Arc::new(answer));
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((mut socket, _)) = listener.accept().await else { return };
                let (kept, answer) = (kept.clone(), answer.clone());
                tokio::spawn(async move {
                    for request in 0.. {
                        let mut text = String::new();
                        // The test's bodies are `{}`.
                        while !text.ends_with("\r\n\r\n{}") {
                            let mut bytes = [0; 4096];
                            match socket.read(&mut bytes).await {
                                Ok(count @ 1..) => text.push_str(std::str::from_utf8(&bytes[..count]).unwrap()),
                                _ => return,
                            }
                        }
                        kept.lock().unwrap().push((connection, text));
                        let Some(answer) = answer(connection, request) else { return };
                        socket.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Self { url, heard }
    }

    async fn ask(&self, upstream: &Upstream) -> Result<(), Fault> {
        let target = kiro_messages::upstream::ChatTarget {
            account: "account-1".into(),
            url: self.url.clone(),
            token: Secret::new("bearer"),
            machine_id: "m".into(),
            shape: kiro_messages::proto::kiro::route::Shape::Q,
            token_type: None,
            proxy: None,
        };
        let mut body = upstream.generate(&target, vec![Bytes::from_static(b"{}")].into()).await?;
        while let Some(chunk) = std::future::poll_fn(|cx| body.poll_chunk(cx)).await {
            chunk.map_err(|_| Fault::network("cut"))?;
        }
        Ok(())
    }

    fn connections(&self) -> Vec<usize> {
        self.heard.lock().unwrap().iter().map(|(connection, _)| *connection).collect()
    }
}

const EMPTY_STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\ncontent-length: 0\r\n\r\n";

/// K69: a connection that upstream has given up is no attempt; one that dies when it is new is.
#[tokio::test(flavor = "multi_thread")]
async fn a_reused_connection_that_dies_unanswered_is_replaced_k69() {
    let upstream = Upstream::new(&config(&[])).unwrap();
    let old =
        Wire::start(|connection, request| (connection > 0 || request == 0).then(|| EMPTY_STREAM.to_owned())).await;
    old.ask(&upstream).await.unwrap();
    old.ask(&upstream).await.unwrap();
    assert_eq!(old.connections(), [0, 0, 1], "once more, on a fresh connection");
    let ids: Vec<String> = old.heard.lock().unwrap().iter().map(|(_, text)| text.clone()).collect();
    let id = |text: &str| text.lines().find(|line| line.starts_with("amz-sdk-invocation-id")).unwrap().to_owned();
    assert_ne!(id(&ids[1]), id(&ids[2]), "K113: new per attempt");

    let upstream = Upstream::new(&config(&[])).unwrap();
    let fresh = Wire::start(|_, _| None).await;
    assert_eq!(fresh.ask(&upstream).await.unwrap_err().kind, FaultKind::Network);
    assert_eq!(fresh.connections(), [0]);
}

/// K13: when an answer names another address, the token isn't sent there.
#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_never_followed_k13() {
    let elsewhere = Wire::start(|_, _| Some(EMPTY_STREAM.to_owned())).await;
    let upstream = Upstream::new(&config(&[])).unwrap();
    for status in ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"] {
        let to = elsewhere.url.clone();
        let here =
            Wire::start(move |_, _| Some(format!("HTTP/1.1 {status}\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")))
                .await;
        here.ask(&upstream).await.unwrap_err();
    }
    assert!(elsewhere.heard.lock().unwrap().is_empty());
}
