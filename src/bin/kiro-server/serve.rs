//! Serving, and letting go.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use kiro_messages::config::{Config, UpstreamKind};
use kiro_messages::gateway::Gateway;
use kiro_messages::server::listen;
use kiro_messages::simulator::Simulator;
use kiro_messages::store::Status;

use super::EXIT_CONFIG;

/// How long a start waits for a word of the store before the port is opened.
const STORE_WORD_WITHIN: Duration = Duration::from_millis(500);

/// Serves until SIGTERM or SIGINT, then drains; a second signal ends at once.
pub async fn serve(mut config: Config) -> ExitCode {
    let simulated = match simulated_upstream(&mut config).await {
        Ok(simulated) => simulated,
        Err(error) => return refuse(&format!("the simulated upstream could not be started: {error}")),
    };
    let grace = config.graceful_timeout;
    let address = config.listen;
    let gateway = match Gateway::start(config).await {
        Ok(gateway) => gateway,
        Err(error) => return refuse(error.message()),
    };
    // Nobody is served on an open address unless the store holds a client key.
    let open = !address.ip().to_canonical().is_loopback() && !gateway.config().allow_anonymous;
    let needs_key = open && gateway.config().api_key.is_none();
    if needs_key {
        // A store that is there says at once whether there is a key. One that isn't is waited for with the port open,
        // answering 503 (R54).
        tokio::select! {
            biased;
            why = start_failed(&gateway, needs_key) => return refuse(&why),
            () = store_answers(&gateway) => {}
        }
    }
    let mut stop = Stop::catch();
    let listening = match listen(gateway.clone(), address).await {
        Ok(listening) => listening,
        Err(error) => return refuse(&format!("{address}: {error}")),
    };
    tracing::info!(
        address = %listening.address(),
        version = env!("CARGO_PKG_VERSION"),
        upstream = if simulated.is_some() { "simulator" } else { "kiro" },
        "listening"
    );
    tokio::select! {
        biased;
        () = stop.signal() => {}
        why = start_failed(&gateway, needs_key) => return refuse(&why),
        () = warn_when_open(&gateway) => {}
    }
    tracing::info!(grace_seconds = grace.as_secs(), streams = gateway.in_flight(), "stopping: open streams may finish");
    tokio::select! {
        () = async { tokio::join!(listening.drain(), gateway.close(grace)); } => {}
        () = stop.signal() => {
            tracing::warn!("second signal: ending at once");
            return ExitCode::FAILURE;
        }
        () = tokio::time::sleep(grace + Duration::from_secs(3)) => {
            tracing::warn!("connections are dropped that nobody reads");
        }
    }
    tracing::info!("stopped");
    ExitCode::SUCCESS
}

/// Runs the simulated upstream until a signal.
pub async fn simulate(options: &ArgMatches) -> ExitCode {
    let text = options.get_one::<String>("listen").map_or("127.0.0.1:8090", String::as_str);
    let Ok(address) = text.parse::<SocketAddr>() else {
        return refuse(&format!("--listen: {text:?} is not an address such as 127.0.0.1:8090"));
    };
    let mut stop = Stop::catch();
    match Simulator::bind(address).and_then(Simulator::spawn) {
        Ok(running) => {
            tracing::info!(address = %running.addr(), "simulating upstream");
            stop.signal().await;
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

/// Resolves when the start fails although it didn't wait for the store: it refuses us (R49), or it holds no client key and
/// one is needed (R57). The answer is what to tell the operator.
async fn start_failed(gateway: &Gateway, needs_key: bool) -> String {
    let no_key = async {
        gateway.key_known().await;
        if !needs_key || !gateway.is_open() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        refused = gateway.pool().refused() => refused.to_string(),
        () = no_key => "no client key: set KIRO_API_KEY (or REQUIRED_API_KEY in the store's config), or --allow-anonymous to \
            serve everybody who can reach the address"
            .to_owned(),
    }
}

/// Resolves when the store was asked for the client key or can't be reached; in any case soon.
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

/// Without a client key everybody who can reach the address is served: said once it is known.
async fn warn_when_open(gateway: &Gateway) {
    gateway.key_known().await;
    if gateway.is_open() {
        tracing::warn!("no client key is configured: everybody who can reach the address is served");
    }
    std::future::pending().await
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("kiro-server: {message}");
    ExitCode::from(EXIT_CONFIG)
}

/// SIGTERM and SIGINT, kept from the moment it is made: before anybody is told that the server listens, so that a signal
/// right after the start is a clean end too.
struct Stop {
    /// None: without handlers the signals have their default action, which ends the process as well.
    #[cfg(unix)]
    signals: Option<[tokio::signal::unix::Signal; 2]>,
}

impl Stop {
    #[cfg(unix)]
    fn catch() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = signal(SignalKind::terminate()).and_then(|first| Ok([first, signal(SignalKind::interrupt())?]));
        Self { signals: signals.ok() }
    }

    #[cfg(unix)]
    async fn signal(&mut self) {
        let Some([terminate, interrupt]) = &mut self.signals else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn catch() -> Self {
        Self {}
    }

    #[cfg(not(unix))]
    async fn signal(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
