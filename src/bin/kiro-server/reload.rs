//! The part of the configuration that SIGHUP changes: the log level. Flags and the environment stay as at the start, so
//! only the config file matters.

use kiro_messages::config::{Config, ConfigError, RawConfig};

use super::log::Log;

/// Reads the configuration again.
pub struct Reload {
    log: Log,
    read: Box<dyn Fn() -> Result<(RawConfig, Config), ConfigError> + Send + Sync>,
    /// The settings of the start. All but the level stay in force until the end.
    raw: RawConfig,
    level: String,
}

impl Reload {
    /// Takes the settings in force, and a way to read them again.
    pub fn new(
        log: Log,
        raw: RawConfig,
        config: &Config,
        read: impl Fn() -> Result<(RawConfig, Config), ConfigError> + Send + Sync + 'static,
    ) -> Self {
        Self { log, read: Box::new(read), raw, level: config.log_level.clone() }
    }

    /// Applies the settings that may change at run time, and names the others. A broken configuration changes nothing.
    pub fn again(&mut self) {
        let (raw, config) = match (self.read)() {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "the configuration was not replaced");
                return;
            }
        };
        if config.log_level != self.level {
            match self.log.set_level(&config.log_level) {
                Ok(()) => {
                    tracing::info!(from = self.level, to = config.log_level, "the log level was changed");
                    self.level = config.log_level;
                }
                Err(error) => tracing::error!(error, "the log level was not changed"),
            }
        } else {
            tracing::info!(log_level = self.level, "the configuration was read again");
        }
        let mut waiting = raw.differing(&self.raw);
        waiting.retain(|name| *name != "KIRO_LOG_LEVEL");
        if !waiting.is_empty() {
            tracing::warn!(settings = waiting.join(","), "changed settings count from the next start on");
        }
    }
}
