//! A few permanent connections, and the state of the server behind them (R2, R49).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::super::{Status, StoreError, StoreErrorKind};
use super::address::{Address, Connection};
use super::error::{classify, is_permission, is_timeout};

/// First pause before a new connection; doubles up to [`MAX_PAUSE`], ±20 %, for ever (R2).
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// The connections and their common state.
pub(super) struct Links {
    address: Address,
    links: Vec<Link>,
    next: AtomicUsize,
    status: watch::Sender<Status>,
    /// A key that never exists.
    probe_key: String,
    /// The key without which nothing works.
    pool_key: String,
}

#[derive(Default)]
struct Link {
    live: ArcSwapOption<Live>,
    /// Highest generation known to be broken: the loss may be reported before the connection is in its place.
    broken: AtomicU64,
    lost: Notify,
}

/// A connection in use.
pub(super) struct Live {
    pub(super) connection: Connection,
    index: usize,
    generation: u64,
}

impl Links {
    /// Starts to connect `count` times. The tasks end when `stop` is cancelled.
    pub(super) fn start(
        address: Address,
        count: usize,
        probe_key: String,
        pool_key: String,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let links = Arc::new(Self {
            address,
            links: (0..count.max(1)).map(|_| Link::default()).collect(),
            next: AtomicUsize::new(0),
            status: watch::Sender::new(Status::Connecting(None)),
            probe_key,
            pool_key,
        });
        for index in 0..links.links.len() {
            let keeping = stop.clone().run_until_cancelled_owned(Arc::clone(&links).keep(index));
            #[expect(
                clippy::disallowed_methods,
                reason = "the store's background task; `stop` ends it with the store"
            )]
            tokio::spawn(keeping);
        }
        links
    }

    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The next live connection, in turn. The error says why there is none.
    pub(super) fn pick(&self) -> Result<Arc<Live>, StoreError> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let live = (0..self.links.len())
            .find_map(|step| self.links[(first.wrapping_add(step)) % self.links.len()].live.load_full());
        live.ok_or_else(|| match &*self.status.borrow() {
            // The command was not sent, whatever happened to earlier ones.
            Status::Connecting(Some(error)) | Status::Away(error) => {
                StoreError { perhaps_done: false, ..error.clone() }
            }
            _ => StoreError::away("not connected"),
        })
    }

    /// A command failed: decides whether the connection, or all of them, must be replaced.
    pub(super) fn failed(&self, live: &Live, error: &StoreError) {
        match error.kind() {
            StoreErrorKind::Away if error.is_perhaps_done() && !is_timeout(error) && !live.connection.is_cluster() => {
                self.lose(live.index, live.generation, error);
            }
            // The server itself, or a node of the cluster, is away: the other connections lead to the same server.
            StoreErrorKind::Away => {
                for (index, link) in self.links.iter().enumerate() {
                    let generation = link.live.load().as_ref().map(|live| live.generation);
                    if let Some(generation) = generation {
                        self.lose(index, generation, error);
                    }
                }
            }
            // A new connection tries the password again. NOPERM would repeat on any connection.
            StoreErrorKind::Refused if !is_permission(error) => self.lose(live.index, live.generation, error),
            _ => {}
        }
    }

    /// The result of a write shows whether the server takes writes at all (R49).
    pub(super) fn wrote(&self, result: Result<(), &StoreError>) {
        self.status.send_if_modified(|status| {
            let next = match (&status, result) {
                (Status::WritesRefused(_), Ok(())) => Status::Connected,
                (Status::Connected, Err(error))
                    if error.kind() == StoreErrorKind::WritesRefused || is_permission(error) =>
                {
                    Status::WritesRefused(error.clone())
                }
                _ => return false,
            };
            *status = next;
            true
        });
    }

    async fn keep(self: Arc<Self>, index: usize) {
        let mut pause = MIN_PAUSE;
        for generation in 1.. {
            match self.connect(index, generation).await {
                Ok((connection, refused)) => {
                    pause = MIN_PAUSE;
                    self.links[index].live.store(Some(Arc::new(Live { connection, index, generation })));
                    self.up(refused);
                    if self.links[index].broken.load(Ordering::SeqCst) >= generation {
                        self.lose(index, generation, &lost());
                    }
                    while self.links[index].live.load().is_some() {
                        self.links[index].lost.notified().await;
                    }
                }
                Err(error) => self.down(&error),
            }
            tokio::time::sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// A new connection, and whether it takes writes.
    async fn connect(
        self: &Arc<Self>,
        index: usize,
        generation: u64,
    ) -> Result<(Connection, Option<StoreError>), StoreError> {
        let links: Weak<Self> = Arc::downgrade(self);
        let lost = move || {
            if let Some(links) = links.upgrade() {
                links.links[index].broken.fetch_max(generation, Ordering::SeqCst);
                links.lose(index, generation, &lost());
            }
        };
        let mut connection = self.address.connect(lost).await?;
        if connection.is_cluster() {
            // The probe below may lie on another node than the pool.
            let mut pool = redis::cmd("HGET");
            pool.arg(&self.pool_key).arg("");
            pool.query_async::<redis::Value>(&mut connection).await.map_err(|error| classify(&error))?;
        }
        let mut probe = redis::cmd("EVAL");
        probe.arg(include_str!("probe.lua")).arg(1).arg(&self.probe_key);
        match probe.query_async::<redis::Value>(&mut connection).await.map_err(|error| classify(&error)) {
            Ok(_) => Ok((connection, None)),
            Err(error) if error.kind() == StoreErrorKind::WritesRefused => Ok((connection, Some(error))),
            Err(error) => Err(error),
        }
    }

    fn lose(&self, index: usize, generation: u64, error: &StoreError) {
        let link = &self.links[index];
        let current = link.live.load();
        if current.as_ref().is_some_and(|live| live.generation == generation) {
            let before = link.live.compare_and_swap(&current, None);
            if before.as_ref().is_some_and(|live| live.generation == generation) {
                link.lost.notify_one();
                self.down(error);
            }
        }
    }

    fn up(&self, refused: Option<StoreError>) {
        self.status.send_if_modified(|status| {
            // The new connection may be lost already; then `down` has set the status.
            if status.is_connected() || self.links.iter().all(|link| link.live.load().is_none()) {
                return false;
            }
            *status = refused.map_or(Status::Connected, Status::WritesRefused);
            true
        });
    }

    fn down(&self, error: &StoreError) {
        self.status.send_if_modified(|status| {
            let next = match status {
                Status::Connecting(_) => Status::Connecting(Some(error.clone())),
                Status::Away(_) => return false,
                _ if self.links.iter().any(|link| link.live.load().is_some()) => return false,
                _ => Status::Away(error.clone()),
            };
            let changed = *status != next;
            *status = next;
            changed
        });
    }
}

fn lost() -> StoreError {
    StoreError::away("connection lost")
}
