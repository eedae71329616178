//! Serving, and letting go.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use kiro_messages::config::{Config, UpstreamKind};
use kiro_messages::gateway::Gateway;
use kiro_messages::server::listen;
use kiro_messages::simulator::Simulator;

use super::EXIT_CONFIG;

/// How long a start on an open address waits to learn whether there is a client key.
const KEY_WAIT: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT, then drains; a second signal ends at once.
pub async fn serve(mut config: Config) -> ExitCode {
    let simulated = match simulated_upstream(&mut config).await {
        Ok(simulated) => simulated,
        Err(error) => return refuse(&format!("the simulated upstream could not be started: {error}")),
    };
    let grace = config.graceful_timeout;
    let address = config.listen;
    let loopback = address.ip().to_canonical().is_loopback();
    let gateway = match Gateway::start(config).await {
        Ok(gateway) => gateway,
        Err(error) => return refuse(error.message()),
    };
    if !loopback && !gateway.config().allow_anonymous && gateway.config().api_key.is_none() {
        // Not reached in time: it listens, and answers 503 until a key is known.
        let known = tokio::time::timeout(KEY_WAIT, gateway.key_known()).await.is_ok();
        if known && gateway.is_open() {
            return refuse(
                "no client key: set KIRO_API_KEY (or REQUIRED_API_KEY in the store's config), or --allow-anonymous to serve \
                 everybody who can reach the address",
            );
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
        () = stop.signal() => {}
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
