//! The signals that stop a command: Ctrl-C, and on Unix SIGTERM and a closed terminal.

use std::future::Future;
use std::io;

/// The exit code of a command that was stopped.
pub const STOPPED: u8 = 130;

/// From here on the signals only end the work of [`Stops::unless`].
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

    /// Runs `work` until a signal. None: stopped. A result at the same moment counts.
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
