//! The state of a gateway, shared by all of its calls.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::bodies::RequestMemory;
use super::budget::ByteBudget;
use super::conversations::Conversations;
use super::dump::Dumps;
use super::ends::AnswerEnds;
use super::keys::Keys;
use super::open_streams::OpenStreams;
use super::search::Searches;
use super::turns::Turns;
use crate::config::{Config, UpstreamKind};
use crate::credentials::Credentials;
use crate::error::{Code, Error};
use crate::metrics::Metrics;
use crate::policy::names::PassedNames;
use crate::pool::{AccountView, Pool};
use crate::proto::translate::model::Models;
use crate::store::Store;
use crate::upstream::Upstream;

/// The pool, the upstream and everything between, shared by all calls. Cheap to clone.
///
/// A gateway that is dropped without [`Gateway::close`] lives until its streams end and then goes without the final
/// flush.
#[derive(Clone)]
pub struct Gateway {
    pub(super) shared: Arc<Shared>,
    /// Ends the background task with the last clone.
    pub(super) _watch: Arc<DropGuard>,
}

pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) pool: Pool,
    pub(super) credentials: Credentials,
    pub(super) upstream: Arc<Upstream>,
    /// The file's table, or the embedded one.
    pub(super) table: Mutex<Models>,
    /// The table that resolves names: `table`, and models that only accounts' catalogues have.
    pub(super) models: ArcSwap<Models>,
    /// Accounts to be asked for their models; `None`: `KIRO_MODEL_DISCOVERY=off`.
    pub(super) discovery: Option<Arc<Turns>>,
    /// Accounts to be asked for their usage (K146); `None`: `KIRO_USAGE_INTERVAL=0s`.
    pub(super) usage: Option<Arc<Turns>>,
    /// Names that pass to upstream by a rule and not by the table (TR36, K89).
    pub(super) names: Mutex<PassedNames>,
    pub(super) keys: Keys,
    pub(super) conversations: Arc<Conversations>,
    pub(super) metrics: Metrics,
    pub(super) ends: AnswerEnds,
    /// `KIRO_DEBUG_DUMP_DIR`.
    pub(super) dumps: Option<Dumps>,
    /// The bytes that all answers together hold (TS25).
    // Bound: bytes of all answers together, beyond 256 KiB of each | stream::MAX_HELD bytes | an answer that finds no room ends with 529
    pub(super) answers: ByteBudget,
    /// The bytes that all requests together hold (M90).
    pub(super) requests: RequestMemory,
    /// Places for work over long bodies: what it takes beside the bodies is given back at its end.
    pub(super) heavy_places: Semaphore,
    pub(super) in_flight: Arc<AtomicUsize>,
    pub(super) streams: OpenStreams,
    pub(super) searches: Searches,
    pub(super) closing: AtomicBool,
    pub(super) closed: CancellationToken,
    pub(super) began: Instant,
    /// Places for requests whose pictures are made smaller (TR67).
    pub(super) picture_places: Arc<Semaphore>,
    /// When an account of another region was last tried for the client version (K105).
    pub(super) other_region: Mutex<Option<Instant>>,
}

impl Gateway {
    /// Whether calls are taken at all.
    pub(crate) fn open(&self) -> Result<(), Error> {
        if self.shared.closing.load(Ordering::Acquire) {
            Err(Error::new(Code::Closed, "the gateway is closed"))
        } else {
            Ok(())
        }
    }
}

impl Shared {
    /// `simulator` while answers are simulated.
    pub(super) fn upstream_word(&self) -> Option<&'static str> {
        (self.config.upstream == UpstreamKind::Simulator).then_some("simulator")
    }

    /// Whether this machine can't connect on any way of the account.
    pub(super) fn is_cut_off(&self, view: &AccountView) -> bool {
        let proxy = view.proxy_url().map(|url| url.expose());
        let region = view.region();
        let mut shapes = view.shapes(region).iter();
        self.upstream.is_any_cut_off()
            && shapes.all(|shape| self.upstream.is_cut_off(&view.chat_url(*shape, region), proxy))
    }
}
