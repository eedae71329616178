//! Ways on which no connection can be made: they rest, and are probed until one can.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Uri;
use tokio::time::Instant;

use super::connections::ServerOrigin;
use super::{Upstream, host_of};
use crate::policy::reach::Reach;
use crate::proto::kiro::fault::Fault;
use crate::proto::said::Said;

/// Time for the probes of all resting ways, once a second.
const LOOK_WITHIN: Duration = Duration::from_millis(900);

/// The ways on which no connection can be made.
pub(super) struct RestingWays {
    began: Instant,
    inside: Mutex<(Reach, HashMap<String, Probe>)>,
}

/// What to connect to, to find out whether a way is open again.
#[derive(Clone)]
pub(super) enum Probe {
    Host(ServerOrigin, Uri),
    Proxy(Uri),
}

impl RestingWays {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), inside: Mutex::default() }
    }

    pub(super) fn inside(&self) -> MutexGuard<'_, (Reach, HashMap<String, Probe>)> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a connection may be tried, and since when.
    pub(super) fn may_try(&self, way: &str) -> Result<Duration, Fault> {
        let now = self.began.elapsed();
        self.inside().0.may_try(way, now).map(|()| now).map_err(|why| no_way(way, &why))
    }

    pub(super) fn failed(&self, way: &str, why: &str, began: Duration, probe: Option<Probe>) -> Fault {
        // The text may come from a proxy or a certificate.
        let why = Said::from(why);
        let why = why.as_str();
        let mut inside = self.inside();
        let (reach, probes) = &mut *inside;
        if reach.failed(way, why, began, self.began.elapsed()) {
            // Ways are forgotten when there are too many.
            probes.retain(|way, _| reach.rests(way).is_some());
            probes.extend(probe.map(|probe| (way.to_owned(), probe)));
            drop(inside);
            tracing::warn!(way, why, "no connection can be made: requests that need one fail at once until it can");
        }
        no_way(way, why)
    }

    pub(super) fn made(&self, way: &str) {
        let mut inside = self.inside();
        let away = inside.0.made(way, self.began.elapsed());
        if let Some(away) = away {
            inside.1.remove(way);
            drop(inside);
            let away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(way, away_ms, "connections can be made again");
        }
    }
}

impl Upstream {
    /// Whether no connection can be made to this URL from here, by this proxy of an account or the one of the
    /// configuration: a request that needs one fails at once.
    pub fn is_cut_off(&self, url: &str, proxy: Option<&str>) -> bool {
        self.reached.inside().0.rests(&self.way(host_of(url), proxy)).is_some()
    }

    /// Whether any way rests; nearly always none does.
    pub fn is_any_cut_off(&self) -> bool {
        self.reached.inside().0.resting().next().is_some()
    }

    /// The name of a way: the host, and the proxy before it, an account's own or that of the configuration.
    pub(crate) fn way(&self, host: &str, proxy: Option<&str>) -> String {
        let own = proxy.map(proxy_of);
        way_of(host, own.as_deref().or(self.proxy.as_deref()))
    }

    /// Probes the ways that rest, so that a server without requests notices an open one, too. To be called once a second;
    /// ends within that.
    pub async fn probe_ways(&self) {
        let resting: Vec<(String, Probe)> = {
            let inside = self.reached.inside();
            inside.1.iter().map(|(way, probe)| (way.clone(), probe.clone())).collect()
        };
        let looks = resting.into_iter().map(|(way, probe)| async move {
            match probe {
                Probe::Host(origin, uri) => {
                    let Ok(io) = self.connections.connect(&origin, &uri).await else { return };
                    self.connections.keep(&origin, io);
                }
                Probe::Proxy(uri) => {
                    if !self.connections.answers(&uri).await {
                        return;
                    }
                }
            }
            self.reached.made(&way);
        });
        let all = futures_util::future::join_all(looks);
        tokio::time::timeout(LOOK_WITHIN, all).await.map(drop).unwrap_or_default();
    }
}

/// Nothing was sent: the fault names the way, and marks no account.
fn no_way(way: &str, why: &str) -> Fault {
    Fault::unreachable(format!("{way}: {why}"))
}

/// The name of a way: its host, and the proxy before it without credentials.
pub(super) fn way_of(host: &str, proxy: Option<&str>) -> String {
    match proxy {
        None => host.to_owned(),
        Some(proxy) => format!("{host} through the proxy {proxy}"),
    }
}

/// Host and port of a proxy's URL, and nothing else of it.
pub(super) fn proxy_of(url: &str) -> String {
    let authority = url.parse::<Uri>().ok().and_then(|uri| uri.authority().cloned());
    authority.map_or_else(
        || "of the account".to_owned(),
        |authority| match authority.port() {
            Some(port) => format!("{}:{port}", authority.host()),
            None => authority.host().to_owned(),
        },
    )
}

/// Where a proxy's host takes connections.
pub(super) fn probe_uri(proxy: &str) -> Option<Uri> {
    format!("http://{}", proxy_of(proxy)).parse().ok()
}
