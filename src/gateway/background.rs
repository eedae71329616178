//! A gateway's background tasks. They end when it is closed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::keys::{FIRST_KEY_INTERVAL, KeysFile};
use super::models::ModelsFile;
use super::shared::Shared;
use crate::config::Config;
use crate::proto::translate::model::Naming;
use crate::upstream::Upstream;

/// How often the client keys and the models file are read again (R57).
const WATCH_INTERVAL: Duration = Duration::from_secs(5);
/// How often idle upstream connections and resting ways are checked.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Closes upstream connections that were idle for too long, opens some ahead of need (K143), and probes the ways that
/// rest.
pub(super) async fn sweep(shared: Weak<Shared>, upstream: Arc<Upstream>, stop: CancellationToken) {
    let mut opening = JoinSet::new();
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let swept = tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => true,
            () = upstream.wanted() => false,
        };
        let Some(now) = shared.upgrade().map(|shared| shared.pool.now()) else { return };
        while opening.try_join_next().is_some() {}
        if swept {
            upstream.sweep();
            for probe in upstream.probes() {
                opening.spawn(probe);
            }
        }
        for connection in upstream.ahead(now) {
            opening.spawn(connection);
        }
    }
}

/// Follows changes of the client keys and of the models file.
pub(super) async fn watch_keys_and_models(
    shared: Weak<Shared>,
    mut keys_file: Option<KeysFile>,
    mut models_file: Option<ModelsFile>,
    stop: CancellationToken,
) {
    let Some(mut store) = shared.upgrade().map(|shared| shared.store.watch()) else { return };
    loop {
        store.mark_unchanged();
        let (pause, is_known) = {
            let Some(shared) = shared.upgrade() else { return };
            shared.keys.look_in(&shared.store, &shared.config.store, || shared.pool.now()).await;
            if let Some(keys) = keys_file.as_mut().and_then(KeysFile::look) {
                shared.keys.set_file(keys);
            }
            if let Some(models) = models_file.as_mut().and_then(ModelsFile::look) {
                shared.set_table(models.with_naming(naming(&shared.config)));
            }
            match shared.keys.are_known() {
                true => (WATCH_INTERVAL, true),
                false => (FIRST_KEY_INTERVAL, false),
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            // The store is reached: the first clients need not wait for the keys.
            Ok(()) = store.changed(), if !is_known => {}
        }
    }
}

/// The meaning of names under these settings (TR36, TR38).
pub(super) fn naming(config: &Config) -> Naming {
    Naming { refuse_unknown: !config.model_unknown_passes, auto: config.model_auto.clone() }
}
