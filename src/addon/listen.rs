//! `listen()`: the server inside the process, on threads of its own. JavaScript hears when it listens and when it has
//! ended.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use napi_derive::napi;
use serde_json::json;
use tokio::sync::watch;

use super::bell::{MessageKind, OpenCall};
use super::live::LiveGateway;
use super::{call, message};
use crate::error::{Code, Error};
use crate::server::{self, Listening};

/// A server that listens.
/// @internal
#[napi]
pub struct NativeServer {
    ending: GraceSender,
    /// `gracefulTimeoutMs`
    grace: Duration,
}

/// The grace time of a server's end, once it is set.
pub(crate) type GraceSender = watch::Sender<Option<Duration>>;

#[napi]
impl NativeServer {
    /// Its call ends with it.
    #[napi(catch_unwind, skip_typescript)]
    pub fn close(&self, grace_ms: Option<f64>) {
        let grace = grace_ms.map_or(self.grace, millis);
        self.ending.send_replace(Some(grace));
    }
}

impl NativeServer {
    pub(crate) fn new(grace: Duration) -> (Self, watch::Receiver<Option<Duration>>) {
        let (ending, end) = watch::channel(None);
        (Self { ending, grace }, end)
    }
}

/// Serves until `end` says so, or until its gateway closes.
pub(crate) async fn serve(
    slot: Arc<OpenCall>,
    gateway: LiveGateway,
    at: (Option<String>, Option<u16>),
    mut ends: [watch::Receiver<Option<Duration>>; 2],
) {
    let listening = match bind(&gateway, at).await {
        Ok(listening) => listening,
        Err(error) => return call::fail(&slot, &error, None),
    };
    let address = listening.address();
    let head = json!({ "host": address.ip().to_string(), "port": address.port() });
    slot.post(MessageKind::Head, message::text(&head));
    let [server, with_gateway] = &mut ends;
    let work = async {
        let grace = tokio::select! {
            grace = said(server) => grace,
            grace = said(with_gateway) => grace,
        };
        listening.close(grace).await;
    };
    tokio::select! {
        () = work => {}
        // Its JavaScript thread goes away (N50).
        () = slot.cancelled() => listening.abort(),
    }
    slot.post(MessageKind::End, Bytes::new());
}

async fn bind(gateway: &LiveGateway, (host, port): (Option<String>, Option<u16>)) -> Result<Listening, Error> {
    gateway.open()?;
    let given = gateway.config().listen;
    let host = host.unwrap_or_else(|| given.ip().to_string());
    let port = port.unwrap_or(given.port());
    let refused = |why: io::Error| Error::new(Code::Config, format!("listen on {host} port {port}: {why}"));
    let address: SocketAddr = tokio::net::lookup_host((host.as_str(), port))
        .await
        .and_then(|mut found| found.next().ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(refused)?;
    let config = gateway.config();
    if !address.ip().to_canonical().is_loopback() && !config.allow_anonymous && gateway.is_open() {
        return Err(Error::new(
            Code::Config,
            format!(
                "listen on {host}: no client key: set apiKey (or REQUIRED_API_KEY in the store's config), or allowAnonymous \
                 to serve everybody who can reach the address"
            ),
        ));
    }
    server::listen((**gateway).clone(), address).await.map_err(refused)
}

/// Never resolves when the sender is gone.
async fn said(end: &mut watch::Receiver<Option<Duration>>) -> Duration {
    match end.wait_for(Option::is_some).await.map(|grace| *grace) {
        Ok(Some(grace)) => grace,
        _ => pending().await,
    }
}

/// A day is as good as for ever, and the clock can still be added to it.
pub(crate) fn millis(ms: f64) -> Duration {
    Duration::from_millis(ms.clamp(0.0, 86_400_000.0) as u64)
}
