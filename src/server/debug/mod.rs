//! `KIRO_PROFILE_ADDR`: the inside of the process, for debugging. It has an address of its own, so that it can be
//! reached when the service's can't, and so that the service's address never shows it.
//!
//! | path | answer |
//! |---|---|
//! | `/debug/pprof/profile?seconds=N` | CPU profile for `go tool pprof`; `&format=svg`: as a flame graph |
//! | `/debug/tasks` | live tasks, workers and running requests, as JSON |
//!
//! From a loopback address no key is needed, else the client key.

#[cfg(all(unix, feature = "profile"))]
mod cpu;
#[cfg(all(unix, feature = "profile"))]
mod flame;
#[cfg(all(unix, feature = "profile"))]
mod profile;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::listen::Accepting;
use super::site::is_from_elsewhere;
use super::{Route, check_key, query_value};
use crate::gateway::Gateway;

/// Connections at a time; one more waits.
const CONNECTIONS: usize = 32;
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// The length of a profile without `seconds`.
const SECONDS: u64 = 10;
const MAX_SECONDS: u64 = 300;

/// A debug listener; it ends when this is dropped.
pub struct Debugging {
    address: SocketAddr,
    _stop: DropGuard,
}

impl Debugging {
    /// The bound address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Binds and answers until the result is dropped.
///
/// # Errors
/// The address can't be bound.
pub async fn debug(gateway: Gateway, address: SocketAddr) -> io::Result<Debugging> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let stop = CancellationToken::new();
    let desk = Arc::new(Desk { gateway, one_profile: Semaphore::new(1) });
    let tasks = TaskTracker::new();
    tasks.spawn(stop.clone().run_until_cancelled_owned(accept(listener, desk, tasks.clone(), stop.clone())));
    Ok(Debugging { address, _stop: stop.drop_guard() })
}

struct Desk {
    gateway: Gateway,
    one_profile: Semaphore,
}

async fn accept(listener: TcpListener, desk: Arc<Desk>, tasks: TaskTracker, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut accepting = Accepting::new(&listener, "debug connection");
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, peer) = accepting.next().await;
        let served = connection(stream, peer, desk.clone());
        let served = stop.clone().run_until_cancelled_owned(served);
        tasks.spawn(async move {
            served.await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, desk: Arc<Desk>) {
    let loopback = peer.ip().to_canonical().is_loopback();
    let service = service_fn(|request| {
        let desk = &desk;
        async move { Ok::<_, Infallible>(desk.answer(&request, loopback).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "debug connection ended");
    }
}

impl Desk {
    async fn answer<B>(&self, request: &Request<B>, loopback: bool) -> Response<Full<Bytes>> {
        let is_home = loopback && !is_from_elsewhere(request);
        // `--allow-anonymous` opens the service, not this.
        if !is_home && (self.gateway.is_open() || check_key(&self.gateway, request, &Route::Metrics, false).is_err()) {
            return text(StatusCode::UNAUTHORIZED, "from another machine the client key is needed (x-api-key)\n");
        }
        if request.method() != Method::GET {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return refused;
        }
        match request.uri().path() {
            "/debug/pprof/profile" => self.profile(request.uri().query().unwrap_or_default()).await,
            "/debug/tasks" => json(&self.tasks()),
            _ => text(
                StatusCode::NOT_FOUND,
                "/debug/pprof/profile?seconds=10            CPU profile for `go tool pprof`\n\
                 /debug/pprof/profile?seconds=10&format=svg  the same as a flame graph\n\
                 /debug/tasks                                live tasks and requests\n",
            ),
        }
    }

    fn tasks(&self) -> serde_json::Value {
        let runtime = tokio::runtime::Handle::current().metrics();
        let workers = (0..runtime.num_workers()).map(|worker| {
            serde_json::json!({
                "busy_seconds": runtime.worker_total_busy_duration(worker).as_secs_f64(),
                "parks": runtime.worker_park_count(worker),
            })
        });
        serde_json::json!({
            "tasks_alive": runtime.num_alive_tasks(),
            "tasks_queued": runtime.global_queue_depth(),
            "workers": workers.collect::<Vec<_>>(),
            "in_flight": self.gateway.in_flight(),
            "requests": self.gateway.open_requests(),
        })
    }

    async fn profile(&self, query: &str) -> Response<Full<Bytes>> {
        let seconds = match query_value(query, "seconds") {
            None => SECONDS,
            Some(said) => match said.parse() {
                Ok(seconds @ 1..=MAX_SECONDS) => seconds,
                _ => return text(StatusCode::BAD_REQUEST, "seconds: must be a whole number from 1 to 300\n"),
            },
        };
        let svg = match query_value(query, "format").as_deref() {
            None | Some("pprof") => false,
            Some("svg") => true,
            Some(_) => return text(StatusCode::BAD_REQUEST, "format: must be pprof or svg\n"),
        };
        let Ok(_only) = self.one_profile.try_acquire() else {
            return text(StatusCode::CONFLICT, "another profile is being taken\n");
        };
        tracing::info!(seconds, "a CPU profile is being taken");
        taken(seconds, svg).await
    }
}

#[cfg(all(unix, feature = "profile"))]
async fn taken(seconds: u64, svg: bool) -> Response<Full<Bytes>> {
    match cpu::take(Duration::from_secs(seconds), svg).await {
        Ok(profile) => {
            let kind = if svg { "image/svg+xml" } else { "application/vnd.google.protobuf" };
            let mut response = Response::new(Full::new(Bytes::from(profile)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("the profile could not be taken: {error}\n")),
    }
}

#[cfg(not(all(unix, feature = "profile")))]
async fn taken(_seconds: u64, _svg: bool) -> Response<Full<Bytes>> {
    text(StatusCode::NOT_IMPLEMENTED, "this build takes no CPU profiles: feature `profile` on Linux or macOS does\n")
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{value:#}\n"))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
