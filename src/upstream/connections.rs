//! Idle connections to upstream, kept for a time (K67).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::route::Route;

/// How long an idle connection is kept. Upstream closes it at about 60 s (K67).
pub(super) const POOL_IDLE: Duration = Duration::from_secs(15);
/// The same for surplus connections after a burst of streams.
const SURPLUS_IDLE: Duration = Duration::from_secs(5);
const KEPT_IDLE: usize = 2;
pub(super) const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Keeps the idle connections.
#[derive(Default)]
pub(super) struct Connections {
    /// The most recently used one is at the end and is used next, so that the others age.
    idle: Mutex<HashMap<Route, Vec<Idle>>>,
}

struct Idle {
    io: Socket,
    since: Instant,
}

impl Connections {
    /// An idle connection that still looks open.
    pub(super) fn idle(&self, route: &Route) -> Option<Socket> {
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.get_mut(route)?;
        while let Some(Idle { mut io, since }) = kept.pop() {
            if now - since < POOL_IDLE && is_quiet(&mut io) {
                return Some(io);
            }
        }
        None
    }

    /// Takes back a connection without a running request.
    pub(super) fn keep(&self, route: &Route, io: Socket) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Idle { io, since: Instant::now() };
        match idle.get_mut(route) {
            Some(kept) => kept.push(entry),
            None => drop(idle.insert(route.clone(), vec![entry])),
        }
    }

    /// Closes idle connections that are too old, or that upstream has closed. Call it once a second.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, kept| {
            let mut surplus = kept.len().saturating_sub(KEPT_IDLE);
            kept.retain_mut(|Idle { io, since }| {
                let limit = if surplus > 0 { SURPLUS_IDLE } else { POOL_IDLE };
                surplus = surplus.saturating_sub(1);
                now - *since < limit && is_quiet(io)
            });
            kept.shrink_to(2 * kept.len());
            !kept.is_empty()
        });
    }
}

/// A connection, with or without TLS. Through a proxy with TLS of its own there is one TLS in another.
pub(super) type Socket = Box<dyn Io>;

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Io for T {}

/// Whether neither bytes nor an end have come, as far as the runtime knows. A system call only after a notification.
fn is_quiet(io: &mut Socket) -> bool {
    let mut byte = [0];
    let mut cx = Context::from_waker(Waker::noop());
    // With TLS this reads session tickets, which aren't data.
    Pin::new(io).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
}
