//! A gateway on the simulated upstream (`KIRO_UPSTREAM=simulator`).

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::world::TODAY;
use super::{Control, PROFILE_ARN, Running, Simulator};
use crate::config::{Config, StoreKind};

/// A simulated upstream that a configuration points to. Dropping it ends the simulation and removes its simulated
/// account.
#[derive(Debug)]
pub struct Attached {
    running: Running,
    brought: Option<PathBuf>,
}

impl Attached {
    /// Statistics and scripts.
    pub fn control(&self) -> &Control {
        self.running.control()
    }

    /// Where the simulated upstream listens.
    pub fn addr(&self) -> SocketAddr {
        self.running.addr()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(path) = &self.brought {
            for file in [path.clone(), lock_of(path)] {
                // It may be gone already, and a temporary file may stay.
                std::fs::remove_file(file).unwrap_or_default();
            }
        }
    }
}

/// Starts a simulated upstream on a free loopback port and points the configuration to it.
///
/// Without a store in the configuration, or with a file store whose file isn't there, it brings one simulated account in
/// a temporary file: a first try needs nothing at all. A store that was named is only read, and `KIRO_STATE_DIR` not
/// used: real logins stay what they are (R110).
///
/// # Errors
/// The port can't be opened, or the account's file can't be written.
pub async fn attach(config: &mut Config) -> io::Result<Attached> {
    if config.store_said {
        config.store_only_read = true;
        // Tokens that wait there for the real store would go into the simulated one, and be gone.
        config.state_dir = None;
        tracing::info!("KIRO_UPSTREAM is simulator: the store is only read, and what changes stays in memory");
    }
    attach_in(config, TODAY).await
}

/// As [`attach`], in a world of [`Simulator::world`]'s, but the store is written: it must hold no real accounts.
///
/// # Errors
/// As [`attach`], and when there is no such world.
pub async fn attach_in(config: &mut Config, world: impl Into<Value>) -> io::Result<Attached> {
    let simulator = Simulator::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?.world(world);
    let running = simulator.map_err(io::Error::other)?.spawn()?;
    let origin = running.url();
    let port = running.addr().port();
    let gone = running.control().shared.state().world.dns.clone();
    // Kiro's hosts, one for each shape and region, all on this port (RFC 6761). A host that is gone gets an
    // unresolvable name, by https, because http goes only to this machine.
    let host = |name: &str, shape: &str| match gone.iter().any(|gone| gone == shape) {
        true => format!("https://simulated.invalid:{port}"),
        false => format!("http://{name}.{{region}}.localhost:{port}"),
    };
    config.upstream_url = format!("{}/generateAssistantResponse", host("q", "q"));
    config.runtime_url = format!("{}/", host("runtime", "runtime"));
    config.management_url = host("management", "runtime");
    config.social_refresh_url = format!("{origin}/refreshToken");
    config.idc_refresh_url = format!("{origin}/token");
    config.portal_url = format!("{origin}/signin");
    config.external_idp_hosts.add_loopback(&origin);
    let mut brought = None;
    let is_missing = matches!(&config.store, StoreKind::File(path) if !path.exists());
    if !config.store_said || is_missing {
        let path = std::env::temp_dir().join(format!("kiro-simulated-{}.json", uuid::Uuid::new_v4()));
        write_account(&path)?;
        config.store = StoreKind::File(path.clone());
        brought = Some(path);
    }
    Ok(Attached { running, brought })
}

fn write_account(path: &std::path::Path) -> io::Result<()> {
    const ID: &str = "51a10000-0000-4000-8000-000000000001";
    let account = json!({ "uuid": ID, "customName": "simulated", "isHealthy": true, "usageCount": 0, "errorCount": 0 });
    let token = json!({
        "accessToken": "simulated-access", "refreshToken": "simulated-refresh", "authMethod": "social",
        "expiresAt": "2099-01-01T00:00:00.000Z", "profileArn": PROFILE_ARN,
    });
    let text = json!({ "accounts": { ID: account }, "tokens": { ID: token } }).to_string();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}

fn lock_of(path: &std::path::Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}
