//! An HTTP server on loopback that answers each call as a test says: a refresh address, or Kiro's side of an account.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// A refresh call as the address saw it.
pub struct Call {
    pub path: String,
    pub headers: HeaderMap,
    pub body: serde_json::Value,
}

pub type Reply = Pin<Box<dyn Future<Output = (u16, String)> + Send>>;

pub type Answer = Arc<dyn Fn(Arc<Call>) -> Reply + Send + Sync>;

/// A refresh address on loopback.
pub struct Address {
    pub url: String,
    pub calls: Arc<Mutex<Vec<Arc<Call>>>>,
    pub task: tokio::task::JoinHandle<()>,
}

impl Address {
    pub async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Arc<Call>) -> R + Send + Sync + 'static,
        R: Future<Output = (u16, String)> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls = Arc::<Mutex<Vec<_>>>::default();
        let seen = calls.clone();
        let answer: Answer = Arc::new(move |call| Box::pin(answer(call)));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (seen, answer) = (seen.clone(), answer.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let call = Arc::new(Call {
                            path: parts.uri.to_string(),
                            headers: parts.headers,
                            body: serde_json::from_slice(&body).unwrap_or_default(),
                        });
                        seen.lock().unwrap().push(call.clone());
                        let (status, text) = answer(call).await;
                        let response = Response::builder().status(status).body(Full::new(Bytes::from(text)));
                        Ok::<_, std::convert::Infallible>(response.unwrap())
                    }
                });
                tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    // A client that goes away is the client's business.
                    let _ = connection.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { url, calls, task }
    }

    /// Grants `new` and `refresh-2`, for an hour.
    pub async fn granting() -> Self {
        Self::start(|_| async { (200, grant("new", Some("refresh-2"))) }).await
    }

    pub fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    pub fn used(&self) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter_map(|call| Some(call.body.get("refreshToken")?.as_str()?.to_owned())).collect()
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn grant(access: &str, refresh: Option<&str>) -> String {
    let refresh = refresh.map(|refresh| format!(r#","refreshToken":"{refresh}""#)).unwrap_or_default();
    format!(r#"{{"accessToken":"{access}"{refresh},"expiresIn":3600}}"#)
}

pub fn refused() -> (u16, String) {
    (400, r#"{"error":"invalid_grant","error_description":"Invalid refresh token provided"}"#.to_owned())
}
