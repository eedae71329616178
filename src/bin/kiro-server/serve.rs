//! Serves, and drains at the end.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ArgMatches;
use kiro_messages::config::{Config, UpstreamKind};
use kiro_messages::gateway::Gateway;
use kiro_messages::server::{self, Listening};
use kiro_messages::simulator::Simulator;
use kiro_messages::store::{Pending, Status};
use tokio::sync::watch;

use super::output::{EXIT_CONFIG, complain};
use super::reload::Reload;

/// How long a start waits for the store's first answer before the port is opened.
const STORE_WORD_WITHIN: Duration = Duration::from_millis(500);

/// How long a start on a socket that others may serve too waits for the first snapshot and the client key.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(10);

/// How long idle connections are kept while draining: a request may be on its way on one. It is answered with
/// `connection: close`.
const LINGER: Duration = Duration::from_secs(2);

/// How long connections are kept beyond the grace time for clients that still read.
const UNREAD_AFTER_GRACE: Duration = Duration::from_secs(3);

/// How long the end may take beyond the grace time: connections that nobody reads, traces, files.
const END_AFTER_GRACE: Duration = Duration::from_secs(30);

/// How long an end that must not wait any more may take.
const END_WITHIN: Duration = Duration::from_secs(1);

/// The exit code of a stop that lost a login (R33).
const EXIT_LOST: u8 = 3;

/// How long a start that fails waits for a token that is just being renewed.
const RENEWAL_WITHIN: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT, then drains, and runs `at_last`; a second signal ends at once.
pub async fn serve(mut config: Config, again: Reload, at_last: impl FnOnce() + Send + 'static) -> ExitCode {
    allow_open_files();
    let (sockets, shared) = match sockets(&config) {
        Ok(sockets) => sockets,
        Err(error) => return refuse(&error.to_string()),
    };
    // The address decides whether it may serve without a key (R57).
    if let Some(address) = widest(&sockets) {
        config.listen = address;
    }
    let _simulated = match simulated_upstream(&mut config).await {
        Ok(simulated) => simulated,
        Err(error) => return refuse(&format!("the simulated upstream could not be started: {error}")),
    };
    let gateway = match Gateway::start(config).await {
        Ok(gateway) => gateway,
        Err(error) => return refuse(error.message()),
    };
    match run(&gateway, sockets, shared, again, at_last).await {
        Ok(code) => code,
        Err(why) => {
            // A token that is being renewed is saved first: upstream doesn't know the old one any more.
            gateway.close(RENEWAL_WITHIN).await;
            refuse(&why)
        }
    }
}

/// From a gateway that runs to the end; the error is why it can't serve.
async fn run(
    gateway: &Gateway,
    sockets: Vec<TcpListener>,
    shared: bool,
    again: Reload,
    at_last: impl FnOnce() + Send + 'static,
) -> Result<ExitCode, String> {
    let config = gateway.config();
    let grace = config.graceful_timeout;
    // On an open address nobody is served without a client key in the store.
    let open = !config.listen.ip().to_canonical().is_loopback() && !config.allow_anonymous;
    let needs_key = open && config.api_key.is_none();
    if needs_key {
        // A reachable store says at once whether there is a key. For another one we wait with the port open, answering
        // 503 (R54).
        tokio::select! {
            biased;
            why = start_failed(gateway, needs_key) => return Err(why),
            () = store_answers(gateway) => {}
        }
    }
    if shared {
        // Another server may answer meanwhile, so a client that comes early must get no 503. With SO_REUSEPORT none
        // comes before we listen; on a socket that listens already it waits in the queue.
        let known = async { tokio::join!(gateway.pool().first_snapshot(), gateway.key_known()) };
        if tokio::time::timeout(SNAPSHOT_WAIT, known).await.is_err() {
            tracing::warn!("serving without the store: it could not be reached within {SNAPSHOT_WAIT:?}");
        }
    }
    let mut stop = StopSignals::catch(grace + END_AFTER_GRACE);
    let hangup = Hangup::catch();
    // Before anybody is served: an address that can't be bound ends the start.
    let _debugging = match config.profile_addr {
        None => None,
        Some(address) => {
            let debugging = server::debug(gateway.clone(), address).await;
            let debugging = debugging.map_err(|error| format!("KIRO_PROFILE_ADDR: {address}: {error}"))?;
            tracing::info!(address = %debugging.address(), "profiles and tasks under /debug");
            Some(debugging)
        }
    };
    let listening = server::serve(gateway.clone(), sockets).map_err(|error| error.to_string())?;
    tracing::info!(
        address = %listening.address(),
        tls = listening.tls().is_some(),
        version = env!("CARGO_PKG_VERSION"),
        upstream = if gateway.is_simulated() { "simulator" } else { "kiro" },
        "listening"
    );
    systemd::ready();
    tokio::select! {
        biased;
        () = stop.signal(1) => {}
        why = start_failed(gateway, needs_key) => return Err(why),
        () = warn_when_open(gateway) => {}
        () = reload(hangup, &listening, again) => {}
    }
    systemd::stopping();
    tracing::info!(grace_seconds = grace.as_secs(), streams = gateway.in_flight(), "stopping: open streams may finish");
    let end = async {
        let left = drain(&listening, gateway, grace).await;
        if let Err(error) = tokio::task::spawn_blocking(at_last).await {
            tracing::error!(%error, "the last work of the server failed");
        }
        left
    };
    let left = tokio::select! {
        left = end => left,
        () = stop.signal(2) => {
            tracing::warn!("second signal: ending at once");
            return Ok(ExitCode::FAILURE);
        }
    };
    if !left.lost.is_empty() {
        tracing::error!(
            logins = left.lost.len(),
            "stopped; accounts whose new tokens could not be saved must log in again"
        );
        return Ok(ExitCode::from(EXIT_LOST));
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Refuses new connections at once. Requests that were just on their way on open connections are answered; then the
/// gateway takes no more, and streams end with the grace time. Returns what could not be written.
async fn drain(listening: &Listening, gateway: &Gateway, grace: Duration) -> Pending {
    let linger = LINGER.min(grace);
    listening.refuse(linger);
    let close = async {
        // No connection is left to wait for.
        tokio::time::timeout(linger, listening.drain()).await.unwrap_or_default();
        gateway.close(grace - linger).await
    };
    let drained = async {
        if tokio::time::timeout(grace + UNREAD_AFTER_GRACE, listening.drain()).await.is_err() {
            tracing::warn!("connections that nobody reads are dropped");
        }
    };
    tokio::join!(drained, close).1
}

/// The sockets that systemd (or another parent) listens on already (`LISTEN_FDS`), else one of our own; and whether
/// another process may serve on them as well.
fn sockets(config: &Config) -> io::Result<(Vec<TcpListener>, bool)> {
    let inherited = systemd::sockets()?;
    if !inherited.is_empty() {
        return Ok((inherited, true));
    }
    let address = config.listen;
    let bound = server::bind(address, config.reuse_port);
    Ok((vec![bound.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?], config.reuse_port))
}

/// The address that most people can reach.
fn widest(sockets: &[TcpListener]) -> Option<SocketAddr> {
    let addresses = sockets.iter().filter_map(|socket| socket.local_addr().ok());
    addresses.min_by_key(|address| address.ip().to_canonical().is_loopback())
}

/// A stream holds two files open, and systems allow 1,024 until a program asks for more.
fn allow_open_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
            tracing::warn!(%error, limit = limit.current, "the limit of open files stays low");
        }
    }
}

/// Handles SIGHUP: reads the configuration and the certificate again. Never ends.
async fn reload(mut hangup: Hangup, listening: &Listening, again: Reload) {
    let again = Arc::new(Mutex::new(again));
    let tls = listening.tls();
    loop {
        hangup.signal().await;
        let (again, tls) = (again.clone(), tls.clone());
        // On another thread: a hanging file system must not block the signals that end us.
        let read = tokio::task::spawn_blocking(move || {
            again.lock().unwrap_or_else(PoisonError::into_inner).again();
            match tls.map(|tls| tls.reload()) {
                Some(Ok(())) => tracing::info!("the certificate was read again"),
                Some(Err(error)) => tracing::error!(%error, "the certificate was not replaced"),
                None => {}
            }
        });
        if let Err(error) = read.await {
            tracing::error!(%error, "nothing was read again");
        }
    }
}

/// Runs the simulated upstream until a signal.
pub async fn simulate(options: &ArgMatches) -> ExitCode {
    let text = options.get_one::<String>("listen").map_or("127.0.0.1:8090", String::as_str);
    let Ok(address) = text.parse::<SocketAddr>() else {
        return refuse(&format!("--listen: {text:?} is not an address such as 127.0.0.1:8090"));
    };
    let mut stop = StopSignals::catch(END_AFTER_GRACE);
    let worlds: Vec<&str> = options.get_many::<String>("world").into_iter().flatten().map(String::as_str).collect();
    let simulator = match Simulator::bind(address).map(|simulator| simulator.world(worlds)) {
        Ok(Err(error)) => return refuse(&format!("--world: {error}")),
        Ok(Ok(simulator)) => Ok(simulator),
        Err(error) => Err(error),
    };
    match simulator.and_then(Simulator::spawn) {
        Ok(running) => {
            tracing::info!(address = %running.addr(), "simulating upstream");
            stop.signal(1).await;
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&format!("{address}: {error}")),
    }
}

async fn simulated_upstream(config: &mut Config) -> std::io::Result<Option<kiro_messages::simulator::Attached>> {
    match config.upstream {
        UpstreamKind::Kiro => Ok(None),
        UpstreamKind::Simulator => kiro_messages::simulator::attach(config).await.map(Some),
    }
}

/// Resolves when the start fails although it didn't wait for the store: the store refuses us, or the client key (R49),
/// or it holds no client key and one is needed (R57). Returns the sentence for the operator.
async fn start_failed(gateway: &Gateway, needs_key: bool) -> String {
    let no_key = async {
        gateway.key_known().await;
        if !needs_key || !gateway.is_open() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        refused = gateway.pool().refused() => refused.to_string(),
        refused = gateway.key_refused() => format!("the client key can't be read: {refused}"),
        () = no_key => "no client key: set KIRO_API_KEY (or REQUIRED_API_KEY in the store's config), or --allow-anonymous to \
            serve everybody who can reach the address"
            .to_owned(),
    }
}

/// Resolves soon: when the store was asked for the client key, can't be reached, or takes too long.
async fn store_answers(gateway: &Gateway) {
    let away = async {
        let mut status = gateway.store().watch();
        // An error means that the store is gone with the gateway.
        drop(status.wait_for(|status| matches!(status, Status::Connecting(Some(_)) | Status::Away(_))).await);
    };
    tokio::select! {
        () = away => {}
        () = gateway.key_known() => {}
        () = tokio::time::sleep(STORE_WORD_WITHIN) => {}
    }
}

/// Warns, once it is known, that everybody who can reach the address is served without a client key.
async fn warn_when_open(gateway: &Gateway) {
    gateway.key_known().await;
    if gateway.is_open() {
        let served = if gateway.config().listen.ip().to_canonical().is_loopback() {
            "every program on this machine is served, and everybody whom a proxy on it lets through"
        } else {
            "everybody who can reach the address is served"
        };
        tracing::warn!("no client key is configured: {served}; set KIRO_API_KEY");
    }
    std::future::pending().await
}

fn refuse(message: &str) -> ExitCode {
    complain(message);
    ExitCode::from(EXIT_CONFIG)
}

/// SIGTERM and SIGINT, kept from the moment it is made. That is before the server says that it listens, so a signal
/// right after the start is a clean end too.
///
/// A thread of its own receives them, since a signal must end the process even when all other threads hang. One second
/// after the second signal, or after an end that took longer than `patience`, this thread ends the process.
struct StopSignals {
    /// How many came. None: without handlers the signals have their default action, which ends the process as well.
    heard: Option<watch::Receiver<u32>>,
}

impl StopSignals {
    fn catch(patience: Duration) -> Self {
        Self { heard: Self::watch(patience).ok() }
    }

    fn watch(patience: Duration) -> io::Result<watch::Receiver<u32>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = {
            let _entered = runtime.enter();
            Signals::new()?
        };
        let (tell, heard) = watch::channel(0);
        let work = async move {
            signals.next().await;
            tell.send_replace(1);
            if tokio::time::timeout(patience, signals.next()).await.is_err() {
                tracing::error!("the end takes too long: ending at once");
            }
            tell.send_replace(2);
            tokio::time::sleep(END_WITHIN).await;
            std::process::exit(1)
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(work))?;
        Ok(heard)
    }

    /// Resolves when `count` signals have come.
    async fn signal(&mut self, count: u32) {
        if let Some(heard) = &mut self.heard
            && heard.wait_for(|heard| *heard >= count).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

#[cfg(unix)]
struct Signals([tokio::signal::unix::Signal; 2]);

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        // A file that may not grow (RLIMIT_FSIZE) is a failed write, and not the end of every stream. tokio keeps a
        // handler for good.
        drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]))
    }

    async fn next(&mut self) {
        let [terminate, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// SIGHUP, kept like [`StopSignals`]: by default it would end the process.
struct Hangup {
    #[cfg(unix)]
    signal: Option<tokio::signal::unix::Signal>,
}

impl Hangup {
    #[cfg(unix)]
    fn catch() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        Self { signal: signal(SignalKind::hangup()).ok() }
    }

    #[cfg(unix)]
    async fn signal(&mut self) {
        let Some(signal) = &mut self.signal else { return std::future::pending().await };
        if signal.recv().await.is_none() {
            std::future::pending().await
        }
    }

    #[cfg(not(unix))]
    fn catch() -> Self {
        Self {}
    }

    #[cfg(not(unix))]
    async fn signal(&mut self) {
        std::future::pending().await
    }
}

/// The protocol with systemd: notifications, and the sockets that it hands down. Without systemd it does nothing.
mod systemd {
    use std::io;
    use std::net::TcpListener;

    #[cfg(unix)]
    pub fn sockets() -> io::Result<Vec<TcpListener>> {
        let mut handed = listenfd::ListenFd::from_env();
        let mut sockets = Vec::new();
        for n in 0..handed.len() {
            let socket = handed.take_tcp_listener(n).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("LISTEN_FDS: {error}; sockets of streams (ListenStream=) are wanted"),
                )
            })?;
            sockets.extend(socket);
        }
        Ok(sockets)
    }

    #[cfg(unix)]
    pub fn ready() {
        tell(sd_notify::NotifyState::Ready);
    }

    #[cfg(unix)]
    pub fn stopping() {
        tell(sd_notify::NotifyState::Stopping);
    }

    #[cfg(unix)]
    fn tell(state: sd_notify::NotifyState<'_>) {
        if let Err(error) = sd_notify::notify(&[state]) {
            tracing::warn!(%error, "NOTIFY_SOCKET");
        }
    }

    #[cfg(not(unix))]
    pub fn sockets() -> io::Result<Vec<TcpListener>> {
        Ok(Vec::new())
    }

    #[cfg(not(unix))]
    pub fn ready() {}

    #[cfg(not(unix))]
    pub fn stopping() {}
}
