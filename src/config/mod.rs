//! Configuration: the settings as given ([`RawConfig`]) and resolved ([`Config`]).
//!
//! Every setting is one row of [`SETTINGS`]: its environment name, its flag, its name in JavaScript, its default in the
//! form that a person would write, its meaning. `--help`, `--print-config`, `docs/configuration.md` and every error are
//! made from that table; no default stands anywhere else.

mod error;
mod forms;
mod raw;
mod table;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::policy::select::Strategy;
use crate::proto::kiro::client_identity;
use crate::proto::kiro::external::Hosts;
use crate::proto::kiro::route::Shape;
use crate::proto::translate::request::{CachePoints, SystemPlace};
use crate::proto::translate::usage::UsageSplit;
use crate::secret::Secret;

/// The row of a name. A name without one doesn't compile.
macro_rules! key {
    ($env:literal) => {
        const { table::setting($env) }
    };
}

pub use crate::proto::kiro::route::{DEFAULT_MANAGEMENT_URL, DEFAULT_RUNTIME_URL, DEFAULT_UPSTREAM_URL};
pub use error::ConfigError;
pub use forms::{Form, is_below_floor, parse_duration, parse_version};
pub use raw::{RawConfig, Source, nearest};
pub use table::{Group, SETTINGS, Setting};

/// Which face resolves the configuration: some defaults differ (`KIRO_STORE_WAIT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// The addon, inside somebody's process.
    Addon,
    /// `kiro-server`.
    Server,
}

/// Where Redis is: a URL, or the parts that are read when `REDIS_URL` is unset (R2).
#[derive(Debug, Clone)]
pub enum RedisAddress {
    /// `REDIS_URL`; may hold a password.
    Url(Secret),
    /// `REDIS_HOST` and its siblings.
    Parts {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// Password, none when unset.
        password: Option<Secret>,
        /// Database number.
        db: i64,
    },
}

impl RedisAddress {
    /// Without user, password and parameters.
    pub fn shown(&self) -> String {
        match self {
            Self::Url(url) => without_secrets(url.expose()).unwrap_or_else(|| "REDIS_URL".to_owned()),
            Self::Parts { host, port, db, .. } => format!("redis://{host}:{port}/{db}"),
        }
    }
}

/// A URL without user, password and parameters; none where it has no scheme.
pub fn without_secrets(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    Some(format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host)))
}

/// Where accounts and tokens live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreKind {
    /// The shared Redis.
    Redis,
    /// The embedded file store at this path.
    File(PathBuf),
    /// The pool file of a Node.js service without Redis.
    Aiclient(PathBuf),
}

impl StoreKind {
    /// What brings an account into an empty pool: the service's pool file is never written by us (R104).
    pub const fn cure(&self) -> &'static str {
        match self {
            Self::Redis | Self::File(_) => "`kiro-server accounts login` or `accounts add` brings one",
            Self::Aiclient(_) => "add one in the Node.js service",
        }
    }
}

/// What answers requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamKind {
    /// Kiro.
    Kiro,
    /// The built-in simulated upstream.
    Simulator,
}

/// When large pictures are made smaller (`KIRO_IMAGE_FIT`, TR67).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFit {
    /// After Kiro has refused them.
    Auto,
    /// Before they go out.
    Always,
    /// Never.
    Off,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person.
    Pretty,
}

/// The resolved configuration. Field by field it is [`SETTINGS`], whose rows say units, defaults and meaning.
#[derive(Debug, Clone)]
pub struct Config {
    /// `KIRO_HOST` and `KIRO_PORT`.
    pub listen: SocketAddr,
    /// `KIRO_API_KEY`.
    pub api_key: Option<Secret>,
    /// `KIRO_API_KEYS_FILE`.
    pub api_keys_file: Option<PathBuf>,
    /// `KIRO_ALLOW_ANONYMOUS`.
    pub allow_anonymous: bool,
    /// `REDIS_URL`, or `REDIS_HOST` and its siblings.
    pub redis: RedisAddress,
    /// `REDIS_KEY_PREFIX`.
    pub redis_key_prefix: String,
    /// `KIRO_REDIS_POOL_SIZE`.
    pub redis_pool_size: usize,
    /// `KIRO_STORE`.
    pub store: StoreKind,
    /// Whether a store was named. Without one the simulator brings an account of its own.
    pub store_said: bool,
    /// Whether the store is only read, and changes stay in memory (R110). [`crate::simulator::attach`] sets it.
    pub store_only_read: bool,
    /// `KIRO_STORE_WAIT`.
    pub store_wait: Duration,
    /// `KIRO_UPSTREAM`.
    pub upstream: UpstreamKind,
    /// `KIRO_UPSTREAM_URL`.
    pub upstream_url: String,
    /// `KIRO_UPSTREAM_API`: the shapes that may be used, the preferred one first; twice the same: only that one.
    pub upstream_api: [Shape; 2],
    /// `KIRO_RUNTIME_URL`.
    pub runtime_url: String,
    /// `KIRO_MANAGEMENT_URL`.
    pub management_url: String,
    /// `KIRO_EXTERNAL_IDP_HOSTS`.
    pub external_idp_hosts: Hosts,
    /// `KIRO_API_REGIONS`; never empty.
    pub api_regions: Vec<String>,
    /// `KIRO_BUILDER_ID_PROFILE_ARN`; empty: none.
    pub builder_id_profile_arn: String,
    /// `KIRO_SOCIAL_PROFILE_ARN`; empty: none.
    pub social_profile_arn: String,
    /// `KIRO_PORTAL_URL`.
    pub portal_url: String,
    /// `KIRO_SOCIAL_REFRESH_URL`.
    pub social_refresh_url: String,
    /// `KIRO_IDC_REFRESH_URL`.
    pub idc_refresh_url: String,
    /// `KIRO_CLIENT_VERSION`.
    pub client_version: String,
    /// Version of the IDE's agent in the user-agent headers of shape `runtime` (K103).
    pub client_agent_version: String,
    /// `KIRO_PROXY_URL`; may hold a password.
    pub proxy_url: Option<Secret>,
    /// `NODE_EXTRA_CA_CERTS`.
    pub extra_ca_certs: Option<PathBuf>,
    /// `KIRO_MAX_CONNS`.
    pub max_conns: usize,
    /// `KIRO_MAX_INFLIGHT_PER_ACCOUNT`.
    pub max_inflight_per_account: Option<usize>,
    /// `KIRO_ACCOUNT_RPM`: conversations a minute and account; 0: no limit.
    pub account_rpm: u32,
    /// `KIRO_SUSPICION_BRAKE` (K92).
    pub suspicion_brake: bool,
    /// `KIRO_STRATEGY`.
    pub strategy: Strategy,
    /// `KIRO_MAX_ATTEMPTS`.
    pub max_attempts: u32,
    /// `KIRO_FAILOVER_TIME`.
    pub failover_time: Duration,
    /// `KIRO_HEALTH_COOLDOWN`.
    pub health_cooldown: Duration,
    /// `KIRO_ACCOUNT_WAIT`.
    pub account_wait: Duration,
    /// `KIRO_ACCOUNT_CACHE_TTL`.
    pub account_cache_ttl: Duration,
    /// `KIRO_REFRESH_THRESHOLD`.
    pub refresh_threshold: Duration,
    /// `KIRO_CONNECT_TIMEOUT`.
    pub connect_timeout: Duration,
    /// `KIRO_FIRST_EVENT_TIMEOUT`.
    pub first_event_timeout: Duration,
    /// `KIRO_UPSTREAM_KEEP_IDLE`; zero: no idle connection is kept.
    pub keep_idle: Duration,
    /// `KIRO_IDLE_TIMEOUT`.
    pub idle_timeout: Duration,
    /// `KIRO_EARLY_HEADERS`.
    pub early_headers: Duration,
    /// `KIRO_PING_INTERVAL`.
    pub ping_interval: Duration,
    /// `KIRO_MAX_REQUEST_BODY`, bytes.
    pub max_request_body: usize,
    /// `KIRO_MAX_REQUEST_MEMORY`, bytes; none: a quarter of what there is.
    pub max_request_memory: Option<usize>,
    /// `KIRO_USAGE_SPLIT`.
    pub usage_split: UsageSplit,
    /// `KIRO_MODELS_FILE`.
    pub models_file: Option<PathBuf>,
    /// `KIRO_MODEL_FALLBACK`.
    pub model_fallback: Option<String>,
    /// `KIRO_MODEL_UNKNOWN=pass`.
    pub model_unknown_passes: bool,
    /// `KIRO_MODEL_AUTO`; none: Kiro's own `auto`.
    pub model_auto: Option<String>,
    /// `KIRO_WEB_SEARCH=on`.
    pub web_search: bool,
    /// `KIRO_WEB_SEARCH_TIMEOUT`.
    pub web_search_timeout: Duration,
    /// `KIRO_WEB_SEARCH_MAX_ROUNDS`: upstream answers of a message, at least 1.
    pub web_search_max_rounds: u32,
    /// `KIRO_MODEL_DISCOVERY=on`.
    pub model_discovery: bool,
    /// `KIRO_USAGE_INTERVAL`; zero: never.
    pub usage_interval: Duration,
    /// `KIRO_MODELS_LIST=all`.
    pub models_list_all: bool,
    /// `KIRO_MAX_TOKENS=forward`.
    pub forward_max_tokens: bool,
    /// `KIRO_IMAGE_FIT`.
    pub image_fit: ImageFit,
    /// `KIRO_CACHE_POINTS`.
    pub cache_points: CachePoints,
    /// `KIRO_AFFINITY=conversation` (R101).
    pub affinity: bool,
    /// `KIRO_CONVERSATION_ID=derive`.
    pub derive_conversation_id: bool,
    /// `KIRO_ID_SECRET`; none: the store has it (R103).
    pub id_secret: Option<Secret>,
    /// `KIRO_SYSTEM_TEXT`.
    pub system_text: SystemPlace,
    /// `KIRO_MAX_CLIENT_CONNS`.
    pub max_client_conns: usize,
    /// `KIRO_HEADER_TIMEOUT`; zero: none.
    pub header_timeout: Duration,
    /// `KIRO_BODY_TIMEOUT`; zero: none.
    pub body_timeout: Duration,
    /// `KIRO_WRITE_TIMEOUT`; zero: none.
    pub write_timeout: Duration,
    /// `KIRO_TLS_CERT` and `KIRO_TLS_KEY`.
    pub tls: Option<TlsFiles>,
    /// `KIRO_REUSE_PORT`.
    pub reuse_port: bool,
    /// `KIRO_GRACEFUL_TIMEOUT`.
    pub graceful_timeout: Duration,
    /// `KIRO_LOG_LEVEL`.
    pub log_level: String,
    /// `KIRO_LOG_FORMAT`; none: by whether it is a terminal.
    pub log_format: Option<LogFormat>,
    /// `KIRO_PROFILE_ADDR`.
    pub profile_addr: Option<SocketAddr>,
    /// `KIRO_STATE_DIR`.
    pub state_dir: Option<PathBuf>,
    /// `KIRO_DEBUG_DUMP_DIR`.
    pub debug_dump_dir: Option<PathBuf>,
    /// `KIRO_WEBHOOK_URL`: where notices go.
    pub webhook_url: Option<Secret>,
    /// `KIRO_WEBHOOK_SECRET`: signs notices.
    pub webhook_secret: Option<Secret>,
    /// `KIRO_WEBHOOK_MIN_ACCOUNTS`: fewer that can serve are worth a notice.
    pub webhook_min_accounts: usize,
}

/// Where the server's certificate lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// `KIRO_TLS_CERT`.
    pub cert: PathBuf,
    /// `KIRO_TLS_KEY`.
    pub key: PathBuf,
}

impl RawConfig {
    /// Parses every value.
    ///
    /// # Errors
    /// The first value in a wrong form, with the name that it was given under.
    #[expect(clippy::too_many_lines, reason = "a line for each setting")]
    pub fn resolve(&self, face: Face) -> Result<Config, ConfigError> {
        let redis = if self.is_said(key!("REDIS_URL")) || !self.is_said_any_redis_part() {
            RedisAddress::Url(Secret::new(self.text(key!("REDIS_URL"))?))
        } else {
            RedisAddress::Parts {
                host: self.text(key!("REDIS_HOST"))?,
                port: self.integer(key!("REDIS_PORT"))?,
                password: self.secret(key!("REDIS_PASSWORD"))?,
                db: self.integer(key!("REDIS_DB"))?,
            }
        };
        let host_text = self.text(key!("KIRO_HOST"))?;
        let host: IpAddr = match host_text.as_str() {
            "localhost" => IpAddr::from([127, 0, 0, 1]),
            text => text
                .trim_start_matches('[')
                .trim_end_matches(']')
                .parse()
                .map_err(|_| self.refuse(key!("KIRO_HOST"), "an IP address such as 127.0.0.1, 0.0.0.0 or ::1"))?,
        };
        let store = match self.text(key!("KIRO_STORE"))?.as_str() {
            "redis" => StoreKind::Redis,
            text => match text.split_once(':') {
                Some(("file", path)) if !path.is_empty() => StoreKind::File(PathBuf::from(path)),
                Some(("aiclient", path)) if !path.is_empty() => StoreKind::Aiclient(PathBuf::from(path)),
                _ => return Err(self.refuse(key!("KIRO_STORE"), &Form::Store.allowed())),
            },
        };
        let store_wait = match (self.is_said(key!("KIRO_STORE_WAIT")), face) {
            (true, _) => self.duration(key!("KIRO_STORE_WAIT"))?,
            (false, Face::Addon) => Duration::from_secs(5),
            (false, Face::Server) => Duration::ZERO,
        };
        Ok(Config {
            listen: SocketAddr::new(host, self.integer(key!("KIRO_PORT"))?),
            api_key: self.secret(key!("KIRO_API_KEY"))?,
            api_keys_file: self.path(key!("KIRO_API_KEYS_FILE"))?,
            allow_anonymous: self.switch(key!("KIRO_ALLOW_ANONYMOUS"))?,
            redis,
            redis_key_prefix: self.text(key!("REDIS_KEY_PREFIX"))?,
            redis_pool_size: self.integer(key!("KIRO_REDIS_POOL_SIZE"))?,
            store,
            store_said: self.is_said(key!("KIRO_STORE"))
                || self.is_said(key!("REDIS_URL"))
                || self.is_said_any_redis_part(),
            store_only_read: false,
            store_wait,
            upstream: match self.text(key!("KIRO_UPSTREAM"))?.as_str() {
                "simulator" => UpstreamKind::Simulator,
                _ => UpstreamKind::Kiro,
            },
            upstream_url: self.text(key!("KIRO_UPSTREAM_URL"))?,
            upstream_api: match self.text(key!("KIRO_UPSTREAM_API"))?.as_str() {
                "q" => [Shape::Q; 2],
                "runtime" => [Shape::Runtime; 2],
                "q,runtime" => [Shape::Q, Shape::Runtime],
                "runtime,q" => [Shape::Runtime, Shape::Q],
                _ => client_identity::SHAPES,
            },
            runtime_url: self.text(key!("KIRO_RUNTIME_URL"))?,
            management_url: self.text(key!("KIRO_MANAGEMENT_URL"))?,
            // Its form was checked when it was read.
            external_idp_hosts: Hosts::parse(&self.text(key!("KIRO_EXTERNAL_IDP_HOSTS"))?).unwrap_or_default(),
            api_regions: self
                .text(key!("KIRO_API_REGIONS"))?
                .split(',')
                .map(|region| region.trim().to_owned())
                .collect(),
            builder_id_profile_arn: self.text(key!("KIRO_BUILDER_ID_PROFILE_ARN"))?,
            social_profile_arn: self.text(key!("KIRO_SOCIAL_PROFILE_ARN"))?,
            portal_url: self.text(key!("KIRO_PORTAL_URL"))?,
            social_refresh_url: self.text(key!("KIRO_SOCIAL_REFRESH_URL"))?,
            idc_refresh_url: self.text(key!("KIRO_IDC_REFRESH_URL"))?,
            client_version: self.text(key!("KIRO_CLIENT_VERSION"))?,
            client_agent_version: self.text(key!("KIRO_CLIENT_AGENT_VERSION"))?,
            proxy_url: self.secret(key!("KIRO_PROXY_URL"))?,
            extra_ca_certs: self.path(key!("NODE_EXTRA_CA_CERTS"))?,
            max_conns: self.integer(key!("KIRO_MAX_CONNS"))?,
            max_inflight_per_account: Some(self.integer(key!("KIRO_MAX_INFLIGHT_PER_ACCOUNT"))?)
                .filter(|most| *most > 0),
            account_rpm: self.integer(key!("KIRO_ACCOUNT_RPM"))?,
            suspicion_brake: self.text(key!("KIRO_SUSPICION_BRAKE"))? == "on",
            strategy: match self.text(key!("KIRO_STRATEGY"))?.as_str() {
                "least-busy" => Strategy::LeastBusy,
                "sticky" => Strategy::Sticky,
                _ => Strategy::RoundRobin,
            },
            max_attempts: self.integer(key!("KIRO_MAX_ATTEMPTS"))?,
            failover_time: self.duration(key!("KIRO_FAILOVER_TIME"))?,
            health_cooldown: self.duration(key!("KIRO_HEALTH_COOLDOWN"))?,
            account_wait: self.duration(key!("KIRO_ACCOUNT_WAIT"))?,
            account_cache_ttl: self.duration(key!("KIRO_ACCOUNT_CACHE_TTL"))?,
            refresh_threshold: self.duration(key!("KIRO_REFRESH_THRESHOLD"))?,
            connect_timeout: self.duration(key!("KIRO_CONNECT_TIMEOUT"))?,
            first_event_timeout: self.duration(key!("KIRO_FIRST_EVENT_TIMEOUT"))?,
            keep_idle: self.duration(key!("KIRO_UPSTREAM_KEEP_IDLE"))?,
            idle_timeout: self.duration(key!("KIRO_IDLE_TIMEOUT"))?,
            early_headers: self.duration(key!("KIRO_EARLY_HEADERS"))?,
            ping_interval: self.duration(key!("KIRO_PING_INTERVAL"))?,
            max_request_body: self.bytes(key!("KIRO_MAX_REQUEST_BODY"))?,
            max_request_memory: self.optional_bytes(key!("KIRO_MAX_REQUEST_MEMORY"))?,
            usage_split: match self.text(key!("KIRO_USAGE_SPLIT"))?.as_str() {
                "none" => UsageSplit::None,
                _ => UsageSplit::Ratio,
            },
            models_file: self.path(key!("KIRO_MODELS_FILE"))?,
            model_fallback: self.optional(key!("KIRO_MODEL_FALLBACK"))?,
            model_unknown_passes: self.text(key!("KIRO_MODEL_UNKNOWN"))? == "pass",
            model_auto: self.optional(key!("KIRO_MODEL_AUTO"))?.filter(|name| name != "auto"),
            web_search: self.text(key!("KIRO_WEB_SEARCH"))? == "on",
            web_search_timeout: self.duration(key!("KIRO_WEB_SEARCH_TIMEOUT"))?,
            web_search_max_rounds: self.integer(key!("KIRO_WEB_SEARCH_MAX_ROUNDS"))?,
            model_discovery: self.text(key!("KIRO_MODEL_DISCOVERY"))? == "on",
            usage_interval: self.duration(key!("KIRO_USAGE_INTERVAL"))?,
            models_list_all: self.text(key!("KIRO_MODELS_LIST"))? == "all",
            forward_max_tokens: self.text(key!("KIRO_MAX_TOKENS"))? == "forward",
            image_fit: match self.text(key!("KIRO_IMAGE_FIT"))?.as_str() {
                "always" => ImageFit::Always,
                "off" => ImageFit::Off,
                _ => ImageFit::Auto,
            },
            cache_points: match self.text(key!("KIRO_CACHE_POINTS"))?.as_str() {
                "client" | "on" => CachePoints::Client,
                "auto" => CachePoints::Auto,
                _ => CachePoints::Off,
            },
            affinity: self.text(key!("KIRO_AFFINITY"))? == "conversation",
            derive_conversation_id: self.text(key!("KIRO_CONVERSATION_ID"))? == "derive",
            id_secret: self.id_secret()?,
            system_text: match self.text(key!("KIRO_SYSTEM_TEXT"))?.as_str() {
                "fold" => SystemPlace::Fold,
                _ => SystemPlace::Pair,
            },
            max_client_conns: self.integer(key!("KIRO_MAX_CLIENT_CONNS"))?,
            header_timeout: self.duration(key!("KIRO_HEADER_TIMEOUT"))?,
            body_timeout: self.duration(key!("KIRO_BODY_TIMEOUT"))?,
            write_timeout: self.duration(key!("KIRO_WRITE_TIMEOUT"))?,
            tls: self.tls_files()?,
            reuse_port: self.switch(key!("KIRO_REUSE_PORT"))?,
            graceful_timeout: self.duration(key!("KIRO_GRACEFUL_TIMEOUT"))?,
            log_level: self.text(key!("KIRO_LOG_LEVEL"))?,
            log_format: self.optional(key!("KIRO_LOG_FORMAT"))?.map(|word| match word.as_str() {
                "pretty" => LogFormat::Pretty,
                _ => LogFormat::Json,
            }),
            profile_addr: self.address(key!("KIRO_PROFILE_ADDR"))?,
            state_dir: self.path(key!("KIRO_STATE_DIR"))?,
            debug_dump_dir: self.path(key!("KIRO_DEBUG_DUMP_DIR"))?,
            webhook_url: self.webhook_url()?,
            webhook_secret: self.secret(key!("KIRO_WEBHOOK_SECRET"))?,
            webhook_min_accounts: self.integer(key!("KIRO_WEBHOOK_MIN_ACCOUNTS"))?,
        })
    }

    fn is_said_any_redis_part(&self) -> bool {
        [key!("REDIS_HOST"), key!("REDIS_PORT"), key!("REDIS_PASSWORD"), key!("REDIS_DB")]
            .iter()
            .any(|part| self.is_said(part))
    }

    /// A shorter secret could be guessed (R103).
    fn id_secret(&self) -> Result<Option<Secret>, ConfigError> {
        match self.text(key!("KIRO_ID_SECRET"))? {
            text if text.is_empty() => Ok(None),
            text if text.chars().count() < 16 => {
                Err(ConfigError::new("KIRO_ID_SECRET: must have at least 16 characters"))
            }
            text => Ok(Some(Secret::new(text))),
        }
    }

    /// Its path often is a credential, so it is never shown.
    fn webhook_url(&self) -> Result<Option<Secret>, ConfigError> {
        let url = self.secret(key!("KIRO_WEBHOOK_URL"))?;
        match url {
            Some(url) if !Form::Url(&["http", "https"]).fits(url.expose()) => {
                Err(ConfigError::new("KIRO_WEBHOOK_URL: must be a URL that begins with http:// or https://"))
            }
            url => Ok(url),
        }
    }

    fn tls_files(&self) -> Result<Option<TlsFiles>, ConfigError> {
        match (self.path(key!("KIRO_TLS_CERT"))?, self.path(key!("KIRO_TLS_KEY"))?) {
            (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(ConfigError::new("KIRO_TLS_KEY: is missing; KIRO_TLS_CERT needs it")),
            (None, Some(_)) => Err(ConfigError::new("KIRO_TLS_CERT: is missing; KIRO_TLS_KEY needs it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::address::ALLOWED;

    fn env(pairs: &[(&str, &str)]) -> RawConfig {
        RawConfig::from_env(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn the_client_version_has_a_form_and_the_default_is_new_enough_a79_k101_k102() {
        for (text, fits) in [
            ("1.1.70", true),
            ("0.11.133", true),
            ("9999.9999.99999", true),
            ("1.0", false),
            ("vv", false),
            ("", false),
            ("1.1.70.1", false),
            ("1.1.", false),
            ("10000.1.1", false),
            ("1.1.100000", false),
            ("1.1.7a", false),
        ] {
            let mut raw = RawConfig::default();
            raw.set_option("clientVersion", text).unwrap();
            let resolved = raw.resolve(Face::Server);
            assert_eq!(resolved.is_ok(), fits, "{text}");
            if let Err(error) = resolved {
                assert!(error.to_string().contains("clientVersion"), "{error}");
            }
        }
        assert!(!is_below_floor(client_identity::VERSION) && !is_below_floor(client_identity::VERSION_FLOOR));
        assert!(is_below_floor("0.8.140") && is_below_floor("0.11.132") && !is_below_floor("0.12.0"));
        assert!(client_identity::CHECKED.parse::<jiff::civil::Date>().is_ok());
    }

    #[test]
    fn every_default_resolves() {
        let config = RawConfig::default().resolve(Face::Server).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8081");
        assert_eq!(config.store_wait, Duration::ZERO);
        assert_eq!(config.max_request_body, 32 * 1024 * 1024);
        assert_eq!(RawConfig::default().resolve(Face::Addon).unwrap().store_wait, Duration::from_secs(5));
    }

    #[test]
    fn flag_beats_environment_beats_alias_beats_file() {
        let mut raw = env(&[("KIRO_PORT", "2"), ("GO_KIRO_PORT", "3"), ("GO_KIRO_HEALTH_COOLDOWN", "1m30s")]);
        raw.read_toml("port = 4\nmax-attempts = 7", "x.toml").unwrap();
        assert_eq!(raw.resolve(Face::Server).unwrap().listen.port(), 2);
        assert_eq!(raw.resolve(Face::Server).unwrap().health_cooldown, Duration::from_secs(90));
        assert_eq!(raw.resolve(Face::Server).unwrap().max_attempts, 7);
        raw.set_flag("port", "1").unwrap();
        assert_eq!(raw.resolve(Face::Server).unwrap().listen.port(), 1);
    }

    #[test]
    fn any_pool_size_of_the_predecessor_is_accepted() {
        let size = |name, value| env(&[(name, value)]).resolve(Face::Server).map(|config| config.redis_pool_size);
        assert_eq!(size("GO_KIRO_REDIS_POOL_SIZE", "200").unwrap(), 64);
        assert_eq!(size("GO_KIRO_REDIS_POOL_SIZE", "20").unwrap(), 20);
        assert!(size("KIRO_REDIS_POOL_SIZE", "200").is_err() && size("GO_KIRO_REDIS_POOL_SIZE", "many").is_err());
    }

    #[test]
    fn the_predecessors_spelling_of_a_value_is_for_its_names_only() {
        let config = |name, value| env(&[(name, value)]).resolve(Face::Server);
        assert_eq!(config("GO_KIRO_GRACEFUL_TIMEOUT", "45").unwrap().graceful_timeout, Duration::from_secs(45));
        assert_eq!(config("GO_KIRO_HEALTH_COOLDOWN", "90").unwrap().health_cooldown, Duration::from_secs(90));
        assert_eq!(config("GO_KIRO_HEALTH_COOLDOWN", "0").unwrap().health_cooldown, Duration::ZERO);
        assert_eq!(config("GO_KIRO_HEALTH_COOLDOWN", "1m").unwrap().health_cooldown, Duration::from_secs(60));
        assert!(config("GO_KIRO_LOG_LEVEL", "WARN").is_ok());
        for (name, value) in [
            ("GO_KIRO_LOG_LEVEL", "LOUD"),
            ("GO_KIRO_HEALTH_COOLDOWN", "-5"),
            ("KIRO_LOG_LEVEL", "WARN"),
            ("KIRO_HEALTH_COOLDOWN", "90"),
        ] {
            assert!(config(name, value).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn a_wrong_value_names_key_value_and_form() {
        let error = env(&[("KIRO_HEALTH_COOLDOWN", "soon")]).resolve(Face::Server).unwrap_err().to_string();
        assert_eq!(error, "KIRO_HEALTH_COOLDOWN: \"soon\" is not allowed; must be a duration such as 500ms, 5s or 2m");
        let error = env(&[("KIRO_UPSTREAM_URL", "http://example.org/x")]).resolve(Face::Server).unwrap_err();
        assert!(error.to_string().contains("https://"), "{error}");
    }

    #[test]
    fn an_unknown_option_names_the_nearest() {
        let error = RawConfig::default().set_option("redisUlr", "x").unwrap_err().to_string();
        assert_eq!(error, "redisUlr: unknown option; did you mean redisUrl?");
    }

    #[test]
    fn a_store_is_named_without_its_password() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("rediss://user:hush@host:1/3", "rediss://host:1/3"),
            ("redis://:hu@sh@host", "redis://host"),
            ("redis+unix:///run/redis.sock?pass=hush", "redis+unix:///run/redis.sock"),
            ("hush", "REDIS_URL"),
        ] {
            assert_eq!(RedisAddress::Url(Secret::new(url)).shown(), shown);
        }
    }

    #[test]
    fn every_time_in_javascript_is_a_number_of_milliseconds() {
        for setting in SETTINGS.iter().filter(|setting| setting.form.is_duration()) {
            let name = setting.js();
            assert!(name.ends_with("Ms"));
            let mut raw = RawConfig::default();
            raw.set_option(&name, "3600000").unwrap();
            raw.duration(setting).unwrap();
        }
    }

    #[test]
    fn options_take_milliseconds_and_bytes() {
        let mut raw = RawConfig::default();
        raw.set_option("pingIntervalMs", "250").unwrap();
        raw.set_option("maxRequestBody", "1000").unwrap();
        let config = raw.resolve(Face::Addon).unwrap();
        assert_eq!(config.ping_interval, Duration::from_millis(250));
        assert_eq!(config.max_request_body, 1000);
        assert!(raw.set_option("pingIntervalMs", "soon").is_err());
    }

    #[test]
    fn a_time_below_its_least_is_refused() {
        let ttl = |text: &str| {
            let said = [("KIRO_ACCOUNT_CACHE_TTL".to_owned(), text.to_owned())];
            RawConfig::from_env(said).resolve(Face::Addon).map_err(|error| error.to_string())
        };
        assert!(ttl("50ms").is_ok());
        for short in ["1ms", "0", "49ms"] {
            assert!(ttl(short).unwrap_err().contains("at least 50ms"));
        }
    }

    #[test]
    fn an_address_that_no_token_may_go_to_is_refused_k12() {
        for setting in ["UPSTREAM_URL", "RUNTIME_URL", "MANAGEMENT_URL", "SOCIAL_REFRESH_URL", "IDC_REFRESH_URL"] {
            let setting = format!("KIRO_{setting}");
            for url in
                ["https://u@example.org/", "https://{zone}.example.org/", "https://a:port/", "http://example.org/"]
            {
                let error = env(&[(&setting, url)]).resolve(Face::Server).unwrap_err().to_string();
                assert!(error.starts_with(&setting) && error.ends_with(ALLOWED), "{error}");
            }
            assert!(env(&[(&setting, "http://LOCALHOST:1/")]).resolve(Face::Server).is_ok());
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let raw = env(&[("KIRO_API_KEY", "k-1"), ("REDIS_URL", "redis://:pw@h")]);
        let text = format!("{:?} {:?}", raw.shown(), raw.resolve(Face::Server).unwrap());
        assert!(!text.contains("k-1") && !text.contains("pw@h"), "{text}");
    }

    #[test]
    fn no_mistake_repeats_a_password() {
        let refused = |pairs: &[(&str, &str)]| env(pairs).resolve(Face::Server).unwrap_err().to_string();
        let toml = |text: &str| RawConfig::default().read_toml(text, "x.toml").unwrap_err().to_string();
        for error in [
            toml("port = 1\napi-key = \"sekret\n"),
            toml("redis-url = redis://:sekret@h\n"),
            toml("api-key = [\"sekret\"]"),
            refused(&[("KIRO_STORE", "redis://:sekret@h")]),
            refused(&[("KIRO_STORE", "me:sek/sekret@h:6379")]),
            refused(&[("KIRO_UPSTREAM_URL", "http://me:sek/sekret@example.org/")]),
            refused(&[("KIRO_UPSTREAM_URL", "https://me:sekret@example.org/")]),
            refused(&[("KIRO_PROXY_URL", "me:sekret@h")]),
        ] {
            assert!(!error.contains("sek"), "{error}");
        }
        assert!(toml("port = 1\napi-key = \"sekret\n").starts_with("x.toml: line 2, column "));
        let proxy = env(&[("KIRO_PROXY_URL", "http://me:sek/sekret@h:1")]).shown();
        assert!(proxy.iter().any(|(_, text, _)| text == "http://(redacted)@h:1"), "{proxy:?}");
    }

    #[test]
    fn a_changed_secret_counts_as_a_difference() {
        let (old, new) = (env(&[("KIRO_API_KEY", "a"), ("KIRO_PORT", "8081")]), env(&[("KIRO_API_KEY", "b")]));
        assert_eq!(new.differing(&old), ["KIRO_API_KEY"]);
    }

    #[test]
    fn redis_parts_count_only_without_a_url() {
        let parts = env(&[("REDIS_HOST", "h"), ("REDIS_DB", "3")]).resolve(Face::Server).unwrap();
        assert!(matches!(parts.redis, RedisAddress::Parts { ref host, db: 3, .. } if host == "h"));
        let url = env(&[("REDIS_HOST", "h"), ("REDIS_URL", "redis://u")]).resolve(Face::Server).unwrap();
        assert!(matches!(url.redis, RedisAddress::Url(_)));
    }
}
