//! Which ways rest, for those who ask, and the probes of them.

use std::sync::Arc;
use std::time::Duration;

use super::route::Route;
use super::ways::WayNames;
use super::{Upstream, host_of};

/// Time for one probe. A new one begins each second, so that a lost packet of one delays none of the others.
const PROBE_WITHIN: Duration = Duration::from_secs(5);

impl Upstream {
    /// Whether this machine can't connect to this URL through this proxy of an account, or through the configured one:
    /// then a request on that way fails at once.
    pub fn is_cut_off(&self, url: &str, proxy: Option<&str>) -> bool {
        let way = self.way_names(host_of(url), proxy);
        let inside = self.reached.inside();
        way.all().any(|name| inside.0.rests(name).is_some())
    }

    /// Whether any way rests; nearly always none does.
    pub fn is_any_cut_off(&self) -> bool {
        self.reached.inside().0.resting().next().is_some()
    }

    /// The name of a way: the host, and the proxy before it, an account's own or that of the configuration.
    pub(crate) fn way(&self, host: &str, proxy: Option<&str>) -> String {
        self.way_names(host, proxy).shown
    }

    fn way_names(&self, host: &str, proxy: Option<&str>) -> WayNames {
        WayNames::new(host, proxy.or(self.proxy.as_ref().map(|proxy| proxy.url.as_str())))
    }

    /// Probes of the resting ways, so that a server without requests notices an open one, too. Run them once a second;
    /// each ends within five.
    pub fn probes(self: &Arc<Self>) -> impl Iterator<Item = impl Future<Output = ()> + Send + 'static> {
        let routes: Vec<Route> = self.reached.inside().1.values().cloned().collect();
        let upstream = self.clone();
        routes.into_iter().map(move |route| upstream.clone().probe(route))
    }

    async fn probe(self: Arc<Self>, route: Route) {
        let began = self.reached.now();
        let connecting = self.connector.connect(&route, &self.opened_ahead);
        match tokio::time::timeout(PROBE_WITHIN, connecting).await {
            Ok(Ok(io)) => {
                self.connections.keep(&route, io);
                self.reached.made(&route);
            }
            Ok(Err(error)) => drop(self.reached.failed(&route, &error, began)),
            Err(_) => {}
        }
    }
}
