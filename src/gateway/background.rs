//! A gateway's background tasks. They end when it is closed.

use std::sync::Weak;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::keys::FIRST_KEY_INTERVAL;
use super::models::ModelsFile;
use crate::config::Config;
use crate::proto::translate::model::Naming;
use crate::upstream::Upstream;

/// How often the client key and the models file are read again (R57).
const WATCH_INTERVAL: Duration = Duration::from_secs(5);
/// How often idle upstream connections and resting ways are checked.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Closes upstream connections that were idle for too long, and probes the ways that rest.
pub(super) async fn sweep(upstream: Weak<Upstream>, stop: CancellationToken) {
    let mut probes = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
        let Some(upstream) = upstream.upgrade() else { return };
        upstream.sweep();
        while probes.try_join_next().is_some() {}
        for probe in upstream.probes() {
            probes.spawn(probe);
        }
    }
}

/// Follows changes of the client key and of the models file.
pub(super) async fn watch_key_and_models(
    shared: Weak<Shared>,
    mut models_file: Option<ModelsFile>,
    stop: CancellationToken,
) {
    loop {
        let pause = {
            let Some(shared) = shared.upgrade() else { return };
            shared.look_for_key().await;
            if let Some(models) = models_file.as_mut().and_then(ModelsFile::look) {
                shared.set_table(models.with_naming(naming(&shared.config)));
            }
            if shared.keys.is_known() { WATCH_INTERVAL } else { FIRST_KEY_INTERVAL }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The meaning of names under these settings (TR36, TR38).
pub(super) fn naming(config: &Config) -> Naming {
    Naming { refuse_unknown: !config.model_unknown_passes, auto: config.model_auto.clone() }
}
