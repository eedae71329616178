//! The table of settings.

use super::Form;
use crate::proto::kiro::{client_identity, profile};

/// One row of the configuration table.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The name in the environment; also the setting's identity.
    pub env: &'static str,
    /// The predecessor's name, accepted as an alias.
    pub alias: Option<&'static str>,
    /// The name on the command line, without dashes; none: environment and file only.
    pub flag: Option<&'static str>,
    /// The name in JavaScript. Durations end in `Ms`.
    pub js: &'static str,
    /// The default as text; `""` means none.
    pub default: &'static str,
    /// What the flag says when it stands without a value; none: it needs one.
    pub bare: Option<&'static str>,
    /// What a value must look like.
    pub form: Form,
    /// What it means, in a sentence.
    pub meaning: &'static str,
}

impl Setting {
    /// The key in the TOML file: the JavaScript name's words in kebab-case without `Ms`, as the flag has it.
    pub fn file_key(&self) -> String {
        if let Some(flag) = self.flag {
            return flag.to_owned();
        }
        self.env.strip_prefix("KIRO_").unwrap_or(self.env).to_ascii_lowercase().replace('_', "-")
    }
}

const fn row(
    env: &'static str,
    flag: &'static str,
    js: &'static str,
    default: &'static str,
    form: Form,
    meaning: &'static str,
) -> Setting {
    let bare = if matches!(form, Form::Switch) { Some("true") } else { None };
    Setting {
        env,
        alias: None,
        flag: if flag.is_empty() { None } else { Some(flag) },
        js,
        default,
        bare,
        form,
        meaning,
    }
}

const fn bare(mut setting: Setting, value: &'static str) -> Setting {
    setting.bare = Some(value);
    setting
}

const fn alias(mut setting: Setting, alias: &'static str) -> Setting {
    setting.alias = Some(alias);
    setting
}

/// Default of `KIRO_UPSTREAM_URL`.
pub const DEFAULT_UPSTREAM_URL: &str = "https://q.{region}.amazonaws.com/generateAssistantResponse";
/// Default of `KIRO_RUNTIME_URL`.
pub const DEFAULT_RUNTIME_URL: &str = "https://runtime.{region}.kiro.dev/";
/// Default of `KIRO_MANAGEMENT_URL`.
pub const DEFAULT_MANAGEMENT_URL: &str = "https://management.{region}.kiro.dev";

/// Every setting. The order is that of `--help`.
pub const SETTINGS: &[Setting] = &[
    alias(row("KIRO_HOST", "host", "host", "127.0.0.1", Form::Text, "Listen address."), "GO_KIRO_HOST"),
    alias(
        row(
            "KIRO_PORT",
            "port",
            "port",
            "8081",
            Form::Integer(0, 65_535),
            "Listen port; 0 takes a free one and logs it.",
        ),
        "GO_KIRO_PORT",
    ),
    alias(
        row(
            "KIRO_API_KEY",
            "api-key",
            "apiKey",
            "",
            Form::Secret,
            "Client key. Empty: read from the store's config (REQUIRED_API_KEY, then apiKey), again every 5 s.",
        ),
        "GO_KIRO_API_KEY",
    ),
    row(
        "KIRO_ALLOW_ANONYMOUS",
        "allow-anonymous",
        "allowAnonymous",
        "false",
        Form::Switch,
        "Serve without any client key on an address other than loopback.",
    ),
    row(
        "REDIS_URL",
        "redis-url",
        "redisUrl",
        "redis://127.0.0.1:6379",
        Form::Secret,
        "Redis: redis://, rediss://, redis+unix://, Sentinel and Cluster URLs.",
    ),
    row("REDIS_HOST", "", "redisHost", "127.0.0.1", Form::Text, "Redis host; read only when REDIS_URL is unset."),
    row(
        "REDIS_PORT",
        "",
        "redisPort",
        "6379",
        Form::Integer(1, 65_535),
        "Redis port; read only when REDIS_URL is unset.",
    ),
    row("REDIS_PASSWORD", "", "redisPassword", "", Form::Secret, "Redis password; read only when REDIS_URL is unset."),
    row("REDIS_DB", "", "redisDb", "0", Form::Integer(0, 65_535), "Redis database; read only when REDIS_URL is unset."),
    row(
        "REDIS_KEY_PREFIX",
        "redis-key-prefix",
        "redisKeyPrefix",
        "aiclient:",
        Form::Text,
        "Put in front of every key.",
    ),
    alias(
        row(
            "KIRO_REDIS_POOL_SIZE",
            "redis-pool-size",
            "redisPoolSize",
            "4",
            Form::Integer(1, 64),
            "Multiplexed connections to Redis; each carries many commands at once.",
        ),
        "GO_KIRO_REDIS_POOL_SIZE",
    ),
    row(
        "KIRO_STORE",
        "store",
        "store",
        "redis",
        Form::Store,
        "Where accounts live: redis, or file:PATH (JSON, mode 0600) for one machine without Redis.",
    ),
    row(
        "KIRO_STORE_WAIT",
        "store-wait",
        "storeWaitMs",
        "",
        Form::Duration,
        "How long start-up waits for the first snapshot; 0s: serve 503 until it is there. Default 5s in the addon, 0s in the server.",
    ),
    row(
        "KIRO_UPSTREAM",
        "upstream",
        "upstream",
        "kiro",
        Form::Word(&["kiro", "simulator"]),
        "kiro, or simulator: the built-in simulated upstream, for a first try without an account.",
    ),
    row(
        "KIRO_UPSTREAM_URL",
        "upstream-url",
        "upstreamUrl",
        DEFAULT_UPSTREAM_URL,
        Form::UpstreamUrl,
        "Where answers come from in shape q; {region} is filled per account. Changed alone, everything goes to this one host.",
    ),
    row(
        "KIRO_UPSTREAM_API",
        "",
        "upstreamApi",
        "auto",
        Form::Word(&["auto", "q", "runtime", "q,runtime", "runtime,q"]),
        "Which of Kiro's two wire shapes are used, the preferred one first; auto is q,runtime.",
    ),
    row(
        "KIRO_RUNTIME_URL",
        "",
        "runtimeUrl",
        DEFAULT_RUNTIME_URL,
        Form::UpstreamUrl,
        "Where answers come from in shape runtime.",
    ),
    row(
        "KIRO_MANAGEMENT_URL",
        "",
        "managementUrl",
        DEFAULT_MANAGEMENT_URL,
        Form::UpstreamUrl,
        "Where usage, models and profiles are asked for in shape runtime.",
    ),
    row(
        "KIRO_API_REGIONS",
        "",
        "apiRegions",
        "us-east-1,eu-central-1,us-gov-west-1,us-gov-east-1",
        Form::Regions,
        "Regions in which Kiro answers; another region in an account's records says only where it signs in.",
    ),
    row(
        "KIRO_BUILDER_ID_PROFILE_ARN",
        "",
        "builderIdProfileArn",
        profile::BUILDER_ID_PROFILE,
        Form::ProfileArn,
        "Kiro's fixed profile for AWS Builder IDs; empty: none is sent.",
    ),
    row(
        "KIRO_SOCIAL_PROFILE_ARN",
        "",
        "socialProfileArn",
        profile::SOCIAL_PROFILE,
        Form::ProfileArn,
        "Kiro's fixed profile for Google and GitHub accounts; empty: none is sent.",
    ),
    row(
        "KIRO_SOCIAL_REFRESH_URL",
        "",
        "socialRefreshUrl",
        "https://prod.{region}.auth.desktop.kiro.dev/refreshToken",
        Form::UpstreamUrl,
        "Where social accounts refresh their token.",
    ),
    row(
        "KIRO_IDC_REFRESH_URL",
        "",
        "idcRefreshUrl",
        "https://oidc.{region}.amazonaws.com/token",
        Form::UpstreamUrl,
        "Where IdC accounts refresh their token.",
    ),
    row(
        "KIRO_CLIENT_VERSION",
        "",
        "clientVersion",
        client_identity::VERSION,
        Form::Version,
        "Version of Kiro's IDE in the user-agent headers. Kiro refuses old ones.",
    ),
    row(
        "KIRO_CLIENT_AGENT_VERSION",
        "",
        "clientAgentVersion",
        client_identity::AGENT_VERSION,
        Form::Version,
        "Version of the IDE's agent in the user-agent headers of runtime.{region}.kiro.dev.",
    ),
    row(
        "KIRO_PROXY_URL",
        "proxy-url",
        "proxyUrl",
        "",
        Form::Url(&["http", "https", "socks5", "socks5h"]),
        "Proxy towards upstream.",
    ),
    row(
        "NODE_EXTRA_CA_CERTS",
        "",
        "extraCaCerts",
        "",
        Form::Text,
        "PEM file of certificate authorities that upstream may also be signed by.",
    ),
    alias(
        row(
            "KIRO_MAX_CONNS",
            "max-conns",
            "maxConns",
            "4096",
            Form::Integer(1, 1_000_000),
            "Upstream requests in flight in this process; over it: 529 at once.",
        ),
        "GO_KIRO_MAX_CONNS",
    ),
    row(
        "KIRO_MAX_INFLIGHT_PER_ACCOUNT",
        "",
        "maxInflightPerAccount",
        "0",
        Form::Integer(0, 1_000_000),
        "Requests in flight on one account in this process; 0: no limit.",
    ),
    row(
        "KIRO_ACCOUNT_RPM",
        "",
        "accountRpm",
        "0",
        Form::Integer(0, 600),
        "Conversations a minute on one account in this process; 0: no limit.",
    ),
    row(
        "KIRO_SUSPICION_BRAKE",
        "",
        "suspicionBrake",
        "on",
        Form::Word(&["on", "off"]),
        "Slow the whole pool down when several accounts come under suspicion.",
    ),
    row(
        "KIRO_STRATEGY",
        "strategy",
        "strategy",
        "round-robin",
        Form::Word(&["round-robin", "least-busy", "sticky"]),
        "How an account is chosen; sticky: by conversation.",
    ),
    row(
        "KIRO_MAX_ATTEMPTS",
        "",
        "maxAttempts",
        "3",
        Form::Integer(1, 100),
        "Accounts that may fail for upstream's reasons before the first content. One that says no for itself uses none up.",
    ),
    row(
        "KIRO_FAILOVER_TIME",
        "",
        "failoverTimeMs",
        "15s",
        Form::Duration,
        "How long after its first attempt a request may begin with another account.",
    ),
    alias(
        row(
            "KIRO_HEALTH_COOLDOWN",
            "",
            "healthCooldownMs",
            "60s",
            Form::Duration,
            "How long a cooled-down account rests when upstream gives no Retry-After.",
        ),
        "GO_KIRO_HEALTH_COOLDOWN",
    ),
    row(
        "KIRO_ACCOUNT_WAIT",
        "",
        "accountWaitMs",
        "0s",
        Form::Duration,
        "How long a request may wait for an account instead of failing at once.",
    ),
    row(
        "KIRO_ACCOUNT_CACHE_TTL",
        "",
        "accountCacheTtlMs",
        "5s",
        Form::Duration,
        "Age at which the account snapshot is refreshed in the background; less than 50ms counts as that.",
    ),
    row(
        "KIRO_REFRESH_THRESHOLD",
        "",
        "refreshThresholdMs",
        "5m",
        Form::Duration,
        "Refresh in the background when the access token expires sooner.",
    ),
    row("KIRO_CONNECT_TIMEOUT", "", "connectTimeoutMs", "10s", Form::Duration, "TCP and TLS towards upstream."),
    row(
        "KIRO_FIRST_EVENT_TIMEOUT",
        "",
        "firstEventTimeoutMs",
        "120s",
        Form::Duration,
        "From the request sent to the first upstream event.",
    ),
    row(
        "KIRO_IDLE_TIMEOUT",
        "",
        "idleTimeoutMs",
        "300s",
        Form::Duration,
        "Between upstream chunks; there is no total limit.",
    ),
    row(
        "KIRO_EARLY_HEADERS",
        "",
        "earlyHeadersMs",
        "15s",
        Form::Duration,
        "When no event came for so long: 200, message_start, then pings.",
    ),
    row(
        "KIRO_PING_INTERVAL",
        "",
        "pingIntervalMs",
        "15s",
        Form::Duration,
        "An SSE ping when nothing else was sent for so long.",
    ),
    alias(
        row("KIRO_MAX_REQUEST_BODY", "", "maxRequestBody", "32MiB", Form::Bytes, "Larger request bodies: 413."),
        "GO_KIRO_MAX_REQUEST_BODY",
    ),
    row(
        "KIRO_USAGE_SPLIT",
        "",
        "usageSplit",
        "ratio",
        Form::Word(&["ratio", "none"]),
        "How an estimated input count is shown: ratio apportions it 1:2:25 to input, cache creation and cache read (not a measurement); none doesn't.",
    ),
    row(
        "KIRO_MODELS_FILE",
        "models-file",
        "modelsFile",
        "",
        Form::Text,
        "JSON model table in place of the embedded one; reloaded on change.",
    ),
    row(
        "KIRO_MODEL_FALLBACK",
        "",
        "modelFallback",
        "",
        Form::Text,
        "Model used for a claude-* name that can't pass, or that upstream has refused; none: 404.",
    ),
    row(
        "KIRO_MODEL_UNKNOWN",
        "",
        "modelUnknown",
        "pass",
        Form::Word(&["pass", "refuse"]),
        "A Claude name that the table doesn't hold: pass sends it upstream in the form of Kiro's ids, refuse answers 404.",
    ),
    row(
        "KIRO_MODEL_AUTO",
        "",
        "modelAuto",
        "auto",
        Form::Text,
        "What the model name auto means: auto is Kiro's own choice, or a name of the table.",
    ),
    row(
        "KIRO_MODEL_DISCOVERY",
        "",
        "modelDiscovery",
        "on",
        Form::Word(&["on", "off"]),
        "Ask Kiro which models an account has, in the background, after its first answer and then hourly.",
    ),
    row(
        "KIRO_MODELS_LIST",
        "",
        "modelsList",
        "claude",
        Form::Word(&["claude", "all"]),
        "What /v1/models shows: Claude models, or other vendors' too.",
    ),
    row(
        "KIRO_MAX_TOKENS",
        "",
        "maxTokens",
        "forward",
        Form::Word(&["forward", "ignore"]),
        "forward: keep a request's max_tokens, upstream where the model has a place for it.",
    ),
    row(
        "KIRO_CACHE_POINTS",
        "",
        "cachePoints",
        "off",
        Form::Word(&["off", "client", "on", "auto"]),
        "Cache points upstream: client (on is its old name): where the client set cache_control; auto: behind the system text and the last answer.",
    ),
    row(
        "KIRO_AFFINITY",
        "",
        "affinity",
        "conversation",
        Form::Word(&["conversation", "off"]),
        "conversation: a conversation stays with its account while that one can serve; off: each request takes the next one.",
    ),
    row(
        "KIRO_CONVERSATION_ID",
        "",
        "conversationId",
        "derive",
        Form::Word(&["derive", "random"]),
        "Where a client names no conversation: derive, the same id for each of its turns; random, a new one each time.",
    ),
    row(
        "KIRO_ID_SECRET",
        "",
        "idSecret",
        "",
        Form::Secret,
        "Secret of derived ids, at least 16 characters. Empty: one that all processes of the store share.",
    ),
    row(
        "KIRO_SYSTEM_TEXT",
        "",
        "systemText",
        "pair",
        Form::Word(&["pair", "fold"]),
        "Where the system text goes: pair, a message of its own in front of everything; fold, into the first user message.",
    ),
    row(
        "KIRO_MAX_CLIENT_CONNS",
        "max-client-conns",
        "maxClientConns",
        "16384",
        Form::Integer(1, 1_000_000),
        "Client connections open at once; one more gets 503 and is closed.",
    ),
    row(
        "KIRO_HEADER_TIMEOUT",
        "",
        "headerTimeoutMs",
        "75s",
        Form::Duration,
        "A client connection on which no complete request head came for so long is closed, an idle one too. Longer than \
         proxies keep idle connections (60 s), so that they close first. 0: never.",
    ),
    row(
        "KIRO_BODY_TIMEOUT",
        "",
        "bodyTimeoutMs",
        "30s",
        Form::Duration,
        "A request body may pause for so long, and after that time must have come at 1 KiB/s or faster; else 408. 0: never.",
    ),
    row(
        "KIRO_WRITE_TIMEOUT",
        "",
        "writeTimeoutMs",
        "60s",
        Form::Duration,
        "A client that takes no byte of its answer for so long is let go, and the call of upstream with it. 0: never.",
    ),
    row(
        "KIRO_TLS_CERT",
        "tls-cert",
        "tlsCert",
        "",
        Form::Text,
        "PEM file with the certificate and its chain: the server speaks TLS only. Read again on SIGHUP.",
    ),
    row("KIRO_TLS_KEY", "tls-key", "tlsKey", "", Form::Text, "PEM file with the certificate's private key."),
    row(
        "KIRO_REUSE_PORT",
        "reuse-port",
        "reusePort",
        "false",
        Form::Switch,
        "Several servers may listen on the port (SO_REUSEPORT), so that a new one can start before the old one stops.",
    ),
    alias(
        row(
            "KIRO_GRACEFUL_TIMEOUT",
            "",
            "gracefulTimeoutMs",
            "30s",
            Form::Duration,
            "On shutdown open streams may finish for so long; then each ends with an SSE error event.",
        ),
        "GO_KIRO_GRACEFUL_TIMEOUT",
    ),
    alias(
        row(
            "KIRO_LOG_LEVEL",
            "log-level",
            "logLevel",
            "info",
            Form::Word(&["error", "warn", "info", "debug", "trace", "off"]),
            "What is logged.",
        ),
        "GO_KIRO_LOG_LEVEL",
    ),
    row(
        "KIRO_LOG_FORMAT",
        "log-format",
        "logFormat",
        "",
        Form::Word(&["json", "pretty"]),
        "json, or pretty. Default: pretty on a terminal, else json.",
    ),
    bare(
        row(
            "KIRO_PROFILE_ADDR",
            "profile",
            "profileAddr",
            "",
            Form::Address,
            "Serve /debug/pprof/profile?seconds=N and /debug/tasks there; from other machines they need the client key. \
             kiro-server only; the flag alone means 127.0.0.1:8082.",
        ),
        "127.0.0.1:8082",
    ),
    row(
        "KIRO_STATE_DIR",
        "",
        "stateDir",
        "",
        Form::Text,
        "Folder for refreshed tokens that the store does not take just now, so that a restart loses no login; mode 0600, \
         gone once they are saved. Without it they wait in memory only.",
    ),
    row(
        "KIRO_DEBUG_DUMP_DIR",
        "",
        "debugDumpDir",
        "",
        Form::Text,
        "Folder for failed requests as files, prompts included, tokens taken out; the newest 100 are kept, 256 MiB in all.",
    ),
];

pub(super) fn setting(env: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.env == env)
}
