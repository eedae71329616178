//! One process of the gateway on a Redis: its pool, its credentials and what it told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiro_messages::config::{Config, Face, RawConfig};
use kiro_messages::credentials::Credentials;
use kiro_messages::policy::health::HealthState;
use kiro_messages::pool::{Hooks, Pool, PoolEvent, Wanted};
use kiro_messages::proto::kiro::fault::{Fault, FaultKind};
use kiro_messages::secret::Secret;
use kiro_messages::store::{RedisAddress as Server, RedisConfig, Store, StoreConfig};
use kiro_messages::upstream::Upstream;
use redis::Commands as _;
use tokio::time::timeout;

use super::accounts::{POOL, record};
use super::address::Address;
use super::clock::Time;
use super::redis_server::RedisServer;

pub const COUNTER: &str = "aiclient:kiro:round-robin-counter";
/// A token that lives for a day after T0.
pub const LIVE: &str =
    r#"{"accessToken":"live","refreshToken":"r","expiresAt":"2026-11-24T10:00:00.000Z","authMethod":"social"}"#;

pub fn lock_key(id: &str) -> String {
    format!("aiclient:token-lock:claude-kiro-oauth:{id}")
}

/// One process, as far as the store can tell.
pub struct Instance {
    pub pool: Pool,
    pub credentials: Credentials,
    pub events: Arc<Mutex<Vec<PoolEvent>>>,
}

impl Instance {
    pub async fn start(server: &RedisServer, time: &Time, options: &[(&str, &str)]) -> Self {
        Self::hosted(server, time, options, None).await
    }

    /// With a host program that may record outcomes itself.
    pub async fn hosted(
        server: &RedisServer,
        time: &Time,
        options: &[(&str, &str)],
        record: Option<kiro_messages::pool::Recorder>,
    ) -> Self {
        let store = StoreConfig::Redis(RedisConfig {
            server: Server::Url(Secret::new(server.url())),
            key_prefix: "aiclient:".to_owned(),
            connections: 2,
        });
        let store = Store::connect(&store).await.unwrap();
        let config = config(options);
        let events = Arc::<Mutex<Vec<_>>>::default();
        let heard = events.clone();
        let hooks = Hooks { record, event: Some(Arc::new(move |event| heard.lock().unwrap().push(event))) };
        let pool = Pool::start(store, &config, time.clock(), hooks);
        timeout(Duration::from_secs(5), pool.first_snapshot()).await.expect("a first snapshot");
        let upstream = Arc::new(Upstream::new(&config).unwrap());
        let credentials = Credentials::start(pool.clone(), upstream, &config);
        Self { pool, credentials, events }
    }

    pub fn state(&self, id: &str) -> HealthState {
        self.pool.accounts().into_iter().find(|info| &*info.id == id).expect("the account").state
    }

    pub fn selected(&self) -> String {
        self.pool.select(&Wanted::default()).unwrap().account().id().to_string()
    }

    /// The token for one request of account `id`.
    pub async fn token_of(&self, id: &str) -> Result<String, Fault> {
        let wanted = Wanted { only: Some(id), ..Wanted::default() };
        let lease = self.pool.select(&wanted).map_err(|none| Fault::network(none.to_string()))?;
        self.credentials.access_token(&lease).await.map(|token| token.expose().to_owned())
    }

    /// Everything pending is in the store.
    pub async fn written(&self) {
        let left = self.pool.flush(Duration::from_secs(5)).await;
        assert!(left.is_empty(), "{left:?}");
    }

    pub async fn close(self) {
        self.credentials.close(Duration::from_secs(20)).await;
        assert!(self.pool.close(Duration::from_secs(5)).await.is_empty());
    }
}

pub fn config(options: &[(&str, &str)]) -> Config {
    let mut raw = RawConfig::default();
    for (name, value) in options {
        raw.set_option(name, value).unwrap();
    }
    raw.resolve(Face::Server).unwrap()
}

pub fn fault(kind: FaultKind, status: u16) -> Fault {
    Fault { kind, status: Some(status), reason: None, message: Default::default(), retry_after: None }
}

/// What the reset button of the Node.js service's UI writes (R15).
pub fn ui_reset(redis: &mut redis::Connection, id: &str) {
    let mut fields: BTreeMap<String, serde_json::Value> = serde_json::from_str(&record(redis, id)).unwrap();
    for (name, value) in [
        ("isHealthy", serde_json::json!(true)),
        ("errorCount", serde_json::json!(0)),
        ("refreshCount", serde_json::json!(0)),
        ("needsRefresh", serde_json::json!(false)),
        ("lastErrorTime", serde_json::Value::Null),
    ] {
        fields.insert(name.to_owned(), value);
    }
    redis.hset::<_, _, _, ()>(POOL, id, serde_json::to_string(&fields).unwrap()).unwrap();
}

pub fn expired(address: &Address) -> (String, &'static str) {
    (
        format!(r#"{{"KIRO_REFRESH_URL":"{}/r"}}"#, address.url),
        r#"{"accessToken":"old","refreshToken":"refresh-1","expiresAt":"2026-11-23T09:00:00.000Z","authMethod":"social","region":"us-east-1"}"#,
    )
}

pub fn usage(record: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(record).unwrap()["usageCount"].as_u64().unwrap()
}
