//! What stops a command: Ctrl-C, and on Unix SIGTERM and a terminal that is closed.

use std::future::Future;
use std::io;

/// The exit code of a command that was stopped.
pub const STOPPED: u8 = 130;

/// From here on they end what [`Stops::unless`] waits for and nothing else.
#[cfg(unix)]
pub struct Stops([tokio::signal::unix::Signal; 3]);
#[cfg(not(unix))]
pub struct Stops;

impl Stops {
    #[cfg(unix)]
    pub fn catch() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    #[cfg(not(unix))]
    pub fn catch() -> io::Result<Self> {
        Ok(Self)
    }

    /// None: stopped. What is done at the same moment counts.
    pub async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        #[cfg(unix)]
        let stopped = async {
            let [interrupt, terminate, hang_up] = &mut self.0;
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} _ = hang_up.recv() => {} }
        };
        #[cfg(not(unix))]
        let stopped = tokio::signal::ctrl_c();
        tokio::select! {
            biased;
            done = work => Some(done),
            _ = stopped => None,
        }
    }
}
