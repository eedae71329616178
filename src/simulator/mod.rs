//! The simulated upstream: scenarios in, real frames out.
//!
//! A real HTTP/1.1 server that answers as Kiro does (contract/kiro.md): the answer stream, token refresh, usage,
//! profiles and models, every fault of the fault table, and failures of the wire. It is the upstream of the demo, of
//! the tests and of the benchmarks. `docs/simulator.md` describes every scenario.
//!
//! | request | answer |
//! |---|---|
//! | `POST /generateAssistantResponse` (or `POST /` with that `x-amz-target`) | an event stream, or what the scenario says |
//! | `POST /refreshToken`, `POST /token`, `POST /idp/token` | a social, IdC or external refresh; refresh tokens rotate |
//! | `POST /client/register`, `/device_authorization`, `/oauth/device/…`, `/token` with the device grant | a sign-in by device code |
//! | `GET /getUsageLimits` | usage |
//! | `POST /` with `x-amz-target`, `GET /ListAvailableModels` | profiles, models |
//! | `GET /_sim/stats`, with `?bodies=1` the last requests | what happened so far |
//! | `GET /_sim/accounts` | each account's refreshes, and which of its tokens works |
//! | `POST /_sim/script` | queues answers by access or refresh token |
//! | `POST /_sim/reset` | forgets scripts, tokens and counters |
//!
//! # Which scenario
//! The first of these that exists:
//! 1. the next one queued for the access token (`/_sim/script`);
//! 2. the access token, when it is `sim-` and the name of a preset, perhaps with `.anything` behind it: `sim-429`,
//!    `sim-suspended.alice`; `sim-ok` names no preset;
//! 3. the prompt, when the current message holds `[[sim …]]`: `[[sim {"text":"hello","pieces":5,"gap_ms":20}]]` or
//!    `[[sim "cut"]]`;
//! 4. the default set by `/_sim/script`, else a demo answer that says that it is simulated.
//!
//! A request that Kiro would refuse is refused, unless one of the first two applies.
//!
//! # In a test
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use kiro_messages::simulator::Simulator;
//!
//! let simulator = Simulator::bind("127.0.0.1:0".parse()?)?.spawn()?;
//! let base_url = format!("http://{}", simulator.addr());
//! simulator.control().script(serde_json::json!({ "token": "a", "scenarios": ["429", { "text": "hello" }] }))?;
//! // … send requests to base_url …
//! assert_eq!(simulator.control().stats()["streams"]["open"], 0);
//! simulator.shutdown().await;
//! # Ok(())
//! # }
//! ```

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use connection::{Io, SimConnection};
use state::SimShared;
use world::SimWorld;

mod accounts;
mod arns;
mod attach;
mod check;
mod connection;
mod fields;
mod mcp;
mod models;
mod player;
mod portal;
mod presets;
mod reasoning;
mod refresh;
mod refresh_answer;
mod reply;
mod routes;
mod scenario;
mod script;
mod scripted_sign_in;
mod sign_in;
mod stage;
mod state;
mod wire;
mod world;

pub use arns::PROFILE_ARN;
pub use attach::{Attached, attach, attach_in};
pub use scenario::Scenario;

/// Connections that may wait to be accepted: a load test opens thousands at once.
const BACKLOG: i32 = 4096;

/// A simulated upstream that listens, but doesn't answer yet.
#[derive(Debug)]
pub struct Simulator {
    listener: StdListener,
    addr: SocketAddr,
    shared: Arc<SimShared>,
}

impl Simulator {
    /// Listens on `addr`; port 0 takes a free one. Needs no runtime.
    ///
    /// # Errors
    /// The system's error, for example that the address is in use.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let listener = StdListener::from(socket);
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr, shared: Arc::default() })
    }

    /// Begins in another world than today's: `2025-12`, the name of a preset, an object of keys, or a list of these. A
    /// reset goes back to it.
    ///
    /// # Errors
    /// A sentence that names what is unknown or wrong.
    pub fn world(self, change: impl Into<Value>) -> Result<Self, String> {
        let mut world = SimWorld::today();
        world.change(change.into())?;
        self.shared.state().start_in(world);
        Ok(self)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Statistics and scripts, as `/_sim/…` gives them.
    pub fn control(&self) -> Control {
        Control { shared: Arc::clone(&self.shared) }
    }

    /// Answers until the future is dropped, which closes every connection.
    ///
    /// # Errors
    /// When the listener can't be handed to the runtime.
    pub async fn serve(self) -> io::Result<()> {
        self.serve_until(std::future::pending()).await
    }

    /// Answers until `stop`; then takes no more connections and lets the answers in progress end.
    ///
    /// # Errors
    /// When the listener can't be handed to the runtime.
    pub async fn serve_until(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        let draining = CancellationToken::new();
        let mut connections = JoinSet::new();
        let mut stop = pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) => {
                        connections.spawn(answer(socket, Arc::clone(&self.shared), draining.clone()));
                    }
                    // Out of file descriptors: open connections go on, new ones wait.
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        }
        drop(listener);
        draining.cancel();
        while connections.join_next().await.is_some() {}
        Ok(())
    }

    /// Answers in a task of its own, on the current runtime.
    ///
    /// # Errors
    /// When there is no runtime.
    pub fn spawn(self) -> io::Result<Running> {
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let (addr, control, stop) = (self.addr, self.control(), CancellationToken::new());
        let stopped = stop.clone();
        let task = runtime.spawn(self.serve_until(async move { stopped.cancelled().await }));
        Ok(Running { addr, control, stop, task })
    }
}

/// A simulated upstream that answers in the background. Dropping it closes every connection.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    control: Control,
    stop: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

impl Running {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The origin to give to a client: `http://ADDR`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Statistics and scripts.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Takes no more connections, lets the answers in progress end, and returns when they have.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        // The task ends with the last answer; how it ended says nothing more.
        let _ended = (&mut self.task).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `/_sim/…` without HTTP.
#[derive(Clone, Debug)]
pub struct Control {
    shared: Arc<SimShared>,
}

impl Control {
    /// What happened so far, without the last requests.
    pub fn stats(&self) -> Value {
        self.shared.state().stats(false)
    }

    /// What happened so far, with the last requests: connection, method, target, headers, body.
    pub fn stats_with_bodies(&self) -> Value {
        self.shared.state().stats(true)
    }

    /// Each account by its first refresh token, as `GET /_sim/accounts` gives it: `refreshes`, `dead_refreshes`
    /// (refused: the refresh token was used up), `expired_calls` (refused: the access token had ended), and of its
    /// tokens `refresh_token`, the one that works, and `access_token`, the last.
    pub fn accounts(&self) -> Value {
        self.shared.state().accounts()
    }

    /// Queues answers, as `POST /_sim/script` does.
    ///
    /// # Errors
    /// A sentence that names the key which is unknown or wrong; what stands before it is queued.
    pub fn script(&self, script: Value) -> Result<(), String> {
        self.shared.state().script(script)
    }

    /// Changes the world, of one account or of all: `{"world": …}` of [`script`](Self::script).
    ///
    /// # Errors
    /// A sentence that names what is unknown or wrong.
    pub fn world(&self, change: impl Into<Value>) -> Result<(), String> {
        self.script(serde_json::json!({ "world": change.into() }))
    }

    /// Forgets scripts, tokens, counters and changes of the world. Open connections and answers stay counted.
    pub fn reset(&self) {
        self.shared.state().reset();
    }
}

/// One connection, from its first request to its last.
async fn answer(socket: TcpStream, shared: Arc<SimShared>, draining: CancellationToken) {
    // Nagle's algorithm would hold back the small writes of a stream. A dead socket fails later.
    let _best_effort = socket.set_nodelay(true);
    let connection = Arc::new(SimConnection::open(Arc::clone(&shared)));
    let io = TokioIo::new(Io::new(socket, Arc::clone(&connection)));
    let service = service_fn(|request| {
        let busy = connection.begin();
        let answer = routes::answer(request, Arc::clone(&shared), Arc::clone(&connection));
        async move { Ok::<_, io::Error>(answer.await?.map(|body| busy.until_end_of(body))) }
    });
    let mut served = pin!(http1::Builder::new().serve_connection(io, service));
    // A connection ends as the client or the scenario wants; the counters record how.
    tokio::select! {
        _ended = &mut served => return,
        () = draining.cancelled() => {}
        // As Kiro does (K67).
        () = connection.idled() => {}
    }
    served.as_mut().graceful_shutdown();
    let _ended = served.await;
}
