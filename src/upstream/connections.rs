//! Idle connections to upstream, kept for a time (K67).

use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::route::Route;
use crate::policy::idle::IdleConnections;

/// Keeps the idle connections.
pub(super) struct Connections {
    began: Instant,
    inside: Mutex<IdleConnections<Route, Socket>>,
    /// Rung when a connection is to be opened ahead at once.
    bell: Notify,
}

impl Connections {
    /// `keep`: how long a connection idles at most; zero: none is kept.
    pub(super) fn new(keep: Duration) -> Self {
        Self { began: Instant::now(), inside: Mutex::new(IdleConnections::new(keep)), bell: Notify::new() }
    }

    fn inside(&self) -> (MutexGuard<'_, IdleConnections<Route, Socket>>, Duration) {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        // Times grow in the order of the lock.
        let now = self.began.elapsed();
        (inside, now)
    }

    /// An idle connection that still looks open, and how long it has idled.
    pub(super) fn idle(&self, route: &Route) -> Option<(Socket, Duration)> {
        let (mut inside, now) = self.inside();
        inside.take(route, now, is_quiet)
    }

    /// Takes back a connection without a running request.
    pub(super) fn keep(&self, route: &Route, io: Socket) {
        let (mut inside, now) = self.inside();
        inside.keep(route, io, now);
    }

    /// A connection that had been idle for `age` was closed before it answered.
    pub(super) fn died(&self, route: &Route, age: Duration) {
        let (mut inside, now) = self.inside();
        inside.died(route, age, now);
    }

    /// A request chose this way before any other.
    pub(super) fn chosen(&self, route: &Route) {
        let (mut inside, now) = self.inside();
        inside.chosen(route, now);
    }

    /// A request is coming, on the way that was chosen last or else on this one.
    pub(super) fn wants(&self, otherwise: impl FnOnce() -> Option<Route>) {
        let (mut inside, now) = self.inside();
        let mut likely = inside.likely(now);
        if likely.is_none() {
            drop(inside);
            likely = otherwise();
            inside = self.inside().0;
        }
        if likely.is_some_and(|route| inside.wants(&route, now)) {
            self.bell.notify_one();
        }
    }

    /// Resolves when a connection is to be opened ahead at once.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    /// Closes idle connections that are too old, or that upstream has closed. Call it once a second.
    pub(super) fn sweep(&self) {
        let (mut inside, now) = self.inside();
        inside.sweep(now, is_quiet);
    }

    /// See [`IdleConnections::due`].
    pub(super) fn due(&self, may: impl Fn(&Route) -> bool) -> Vec<Route> {
        let (mut inside, now) = self.inside();
        inside.due(now, may)
    }

    /// A connection that was due is there, or couldn't be made.
    pub(super) fn opened(&self, route: &Route, made: Option<Socket>) {
        let (mut inside, now) = self.inside();
        inside.opened(route, made, now);
    }

    /// Idle connections now.
    pub(super) fn count(&self) -> usize {
        self.inside().0.count()
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
