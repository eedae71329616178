//! The gateway that the calls hold.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::notifier::Notifier;
use crate::config::{Config, StoreKind, UpstreamKind};
use crate::error::{Code, Error};
use crate::gateway::Gateway;
use crate::simulator::{self, Attached};

/// How long `connect` waits for the client key, once the accounts are there.
const KEY_WAIT: Duration = Duration::from_secs(1);

/// A gateway, and its simulated upstream if it has one. Each call holds it, so that both live until the last call has
/// ended, also when JavaScript has dropped the gateway (N54).
#[derive(Clone)]
pub(crate) struct LiveGateway {
    gateway: Gateway,
    pub(super) notifier: Arc<Notifier>,
    _simulated: Option<Arc<Attached>>,
}

impl LiveGateway {
    pub(super) async fn start(mut config: Config, notifier: Arc<Notifier>) -> std::result::Result<Self, Error> {
        has_folder(&config.store).await?;
        let simulated = match config.upstream {
            UpstreamKind::Kiro => None,
            UpstreamKind::Simulator => {
                let attached = simulator::attach(&mut config).await.map_err(|error| {
                    Error::new(Code::Config, format!("the simulated upstream could not be started: {error}"))
                })?;
                Some(Arc::new(attached))
            }
        };
        let wait = config.store_wait.min(KEY_WAIT);
        let gateway = Gateway::start_with(config, Gateway::wall_clock(), notifier.hooks()).await?;
        // The accounts are known. The client key comes from the same store: without it a handler answers its first
        // requests with 503, as it must when the key doesn't come.
        let _known = tokio::time::timeout(wait, gateway.key_known()).await;
        Ok(Self { gateway, notifier, _simulated: simulated })
    }
}

impl Deref for LiveGateway {
    type Target = Gateway;

    fn deref(&self) -> &Gateway {
        &self.gateway
    }
}

/// A mistyped path would be an empty pool, and its logins written nowhere (N71).
async fn has_folder(store: &StoreKind) -> std::result::Result<(), Error> {
    let (StoreKind::File(path) | StoreKind::Aiclient(path)) = store else { return Ok(()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !tokio::fs::metadata(folder).await.is_ok_and(|folder| folder.is_dir()) => {
            Err(Error::new(Code::Config, format!("store: {} is no folder", folder.display())))
        }
        _ => Ok(()),
    }
}
