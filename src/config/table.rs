//! The table of settings: `--help`, `docs/configuration.md` and `GatewayOptions` show its rows in this order.

use super::Form;
use crate::proto::kiro::route::{DEFAULT_MANAGEMENT_URL, DEFAULT_RUNTIME_URL, DEFAULT_UPSTREAM_URL};
use crate::proto::kiro::{client_identity, portal, profile};

/// The groups in which settings are shown, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The dozen settings that most people need.
    First,
    /// Which account answers, and when it rests.
    Accounts,
    /// Redis and the file.
    Store,
    /// Names of models, and what clients see of them.
    Models,
    /// The way to Kiro.
    Upstream,
    /// The HTTP server.
    Server,
    /// Limits: requests and clients that are too large or too slow are refused.
    Limits,
    /// Logs, profiles, dumps.
    Logs,
    /// Each overrides a fact about Kiro.
    Hatches,
}

impl Group {
    /// All of them, in order.
    pub const ALL: [Group; 9] = [
        Group::First,
        Group::Accounts,
        Group::Store,
        Group::Models,
        Group::Upstream,
        Group::Server,
        Group::Limits,
        Group::Logs,
        Group::Hatches,
    ];

    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::First => "What most people set",
            Group::Accounts => "Accounts",
            Group::Store => "Store",
            Group::Models => "Models",
            Group::Upstream => "Upstream",
            Group::Server => "Server",
            Group::Limits => "Limits",
            Group::Logs => "Logs and profiles",
            Group::Hatches => "Escape hatches",
        }
    }

    /// The settings of this group, in order.
    pub fn settings(self) -> impl Iterator<Item = &'static Setting> {
        SETTINGS.iter().filter(move |setting| setting.group == self)
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The name in the environment; also the setting's identity.
    pub env: &'static str,
    /// The predecessor's name, accepted as an alias.
    pub alias: Option<&'static str>,
    /// The name on the command line, without dashes; none: environment and file only.
    pub flag: Option<&'static str>,
    /// The default as text; `""` means none.
    pub default: &'static str,
    /// The value of a flag without one; none: the flag needs a value.
    pub bare: Option<&'static str>,
    /// The form of a value.
    pub form: Form,
    /// Its meaning, in a sentence.
    pub meaning: &'static str,
    /// Where it is shown.
    pub group: Group,
    /// The fact about Kiro that an escape hatch overrides: the beginning of its row in `docs/kiro.md`, without backticks.
    pub overrides: Option<&'static str>,
}

impl Setting {
    /// The name in JavaScript: the environment name in camelCase. Durations end in `Ms`.
    pub fn js(&self) -> String {
        let name = self.env.trim_start_matches("KIRO_").trim_start_matches("NODE_").to_ascii_lowercase();
        let mut words = name.split('_');
        let mut js = words.next().unwrap_or_default().to_owned();
        for word in words {
            js.extend(word.chars().enumerate().map(|(at, c)| if at == 0 { c.to_ascii_uppercase() } else { c }));
        }
        if self.form.is_duration() { js + "Ms" } else { js }
    }

    /// The key in the TOML file: the flag's name, also for a setting without a flag.
    pub fn file_key(&self) -> String {
        if let Some(flag) = self.flag {
            return flag.to_owned();
        }
        self.env.strip_prefix("KIRO_").unwrap_or(self.env).to_ascii_lowercase().replace('_', "-")
    }

    const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }

    const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }

    const fn bare(mut self, value: &'static str) -> Self {
        self.bare = Some(value);
        self
    }

    const fn means(mut self, meaning: &'static str) -> Self {
        self.meaning = meaning;
        self
    }

    const fn overrides(mut self, fact: &'static str) -> Self {
        self.overrides = Some(fact);
        self
    }
}

const fn row(group: Group, env: &'static str, form: Form, default: &'static str) -> Setting {
    let bare = if matches!(form, Form::Switch) { Some("true") } else { None };
    Setting { env, alias: None, flag: None, default, bare, form, meaning: "", group, overrides: None }
}

/// The row of a name. In a `const` an unknown name doesn't compile.
pub(super) const fn setting(env: &str) -> &'static Setting {
    let mut at = 0;
    while !same(SETTINGS[at].env.as_bytes(), env.as_bytes()) {
        at += 1;
    }
    &SETTINGS[at]
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// Every setting, group by group: the ones that most people need first, escape hatches last.
pub const SETTINGS: &[Setting] = &[
    row(Group::First, "KIRO_HOST", Form::Text, "127.0.0.1")
        .flag("host")
        .alias("GO_KIRO_HOST")
        .means("Address to listen on."),
    row(Group::First, "KIRO_PORT", Form::Integer(0, 65_535), "8081")
        .flag("port")
        .alias("GO_KIRO_PORT")
        .means("Port to listen on; 0 takes a free one and logs it."),
    row(Group::First, "KIRO_API_KEY", Form::Secret, "").flag("api-key").alias("GO_KIRO_API_KEY").means(
        "Key that clients must send. Empty: the store's config has it (REQUIRED_API_KEY, else apiKey), \
             read again every 5 s.",
    ),
    row(Group::First, "KIRO_TLS_CERT", Form::Text, "")
        .flag("tls-cert")
        .means("PEM file with the certificate and its chain: the server speaks TLS only. Read again on SIGHUP."),
    row(Group::First, "KIRO_TLS_KEY", Form::Text, "")
        .flag("tls-key")
        .means("PEM file with the certificate's private key."),
    row(Group::First, "KIRO_STORE", Form::Store, "redis")
        .flag("store")
        .means(
            "Where accounts live: redis; file:PATH (JSON, mode 0600) for one machine without Redis; \
             aiclient:configs/provider_pools.json for the pool file of a Node.js service, which is read and never written.",
        ),
    row(Group::First, "REDIS_URL", Form::Secret, "redis://127.0.0.1:6379")
        .flag("redis-url")
        .means("Redis: redis://, rediss://, redis+unix://, Sentinel and Cluster URLs."),
    row(Group::First, "KIRO_STATE_DIR", Form::Text, "").means(
        "Folder for refreshed tokens that the store can't take at the moment, so that a restart loses no \
             login. Mode 0600, deleted once they are saved. Without it they wait in memory only.",
    ),
    row(Group::First, "KIRO_UPSTREAM", Form::Word(&["kiro", "simulator"]), "kiro")
        .flag("upstream")
        .means("kiro, or simulator: the built-in simulated upstream, to try everything without an account."),
    row(Group::First, "KIRO_PROXY_URL", Form::Url(&["http", "https", "socks5", "socks5h"]), "")
        .flag("proxy-url")
        .means("Proxy towards Kiro."),
    row(Group::First, "KIRO_MODEL_FALLBACK", Form::Text, "")
        .means("Model for a claude-* name that can't pass, or that upstream has refused. Empty: 404."),
    row(Group::First, "KIRO_LOG_LEVEL", Form::Word(&["error", "warn", "info", "debug", "trace", "off"]), "info")
        .flag("log-level")
        .alias("GO_KIRO_LOG_LEVEL")
        .means("Least level that is logged."),
    row(Group::Accounts, "KIRO_STRATEGY", Form::Word(&["round-robin", "least-busy", "sticky"]), "round-robin")
        .flag("strategy")
        .means("How an account is chosen; sticky: by conversation."),
    row(Group::Accounts, "KIRO_MAX_INFLIGHT_PER_ACCOUNT", Form::Integer(0, 1_000_000), "0")
        .means("Requests that may run at once on one account in this process; 0: no limit."),
    row(Group::Accounts, "KIRO_ACCOUNT_RPM", Form::Integer(0, 600), "0")
        .means("Conversations that may begin in a minute on one account in this process; 0: no limit."),
    row(Group::Accounts, "KIRO_ACCOUNT_WAIT", Form::Duration, "0s")
        .means("How long a request may wait for an account. 0s: it fails at once."),
    row(Group::Accounts, "KIRO_MAX_ATTEMPTS", Form::Integer(1, 100), "3").means(
        "How many accounts may fail for upstream's reasons before the first content. An account that \
             refuses for a reason of its own doesn't count.",
    ),
    row(Group::Accounts, "KIRO_FAILOVER_TIME", Form::Duration, "15s")
        .means("How long after its first attempt a request may move to another account."),
    row(Group::Accounts, "KIRO_HEALTH_COOLDOWN", Form::Duration, "60s")
        .alias("GO_KIRO_HEALTH_COOLDOWN")
        .means("How long a cooled-down account rests when upstream gives no Retry-After."),
    row(Group::Accounts, "KIRO_REFRESH_THRESHOLD", Form::Duration, "5m")
        .means("An access token that expires within this time is refreshed in the background."),
    row(Group::Accounts, "KIRO_EXTERNAL_IDP_HOSTS", Form::ProviderHosts, "").means(
        "Further hosts of identity providers that may be sent the refresh token of an organisation's account: names or \
         suffixes, beside those of Microsoft Entra ID and Okta. Neither the store nor a record can add one.",
    ),
    row(Group::Accounts, "KIRO_USAGE_INTERVAL", Form::Duration, "15m").means(
        "How often Kiro is asked, in the background, what an account that is used has left of its credits. 0s: never.",
    ),
    row(Group::Accounts, "KIRO_ACCOUNT_CACHE_TTL", Form::DurationFrom(50), "5s")
        .means("Age at which the snapshot of accounts is read again in the background; at least 50ms."),
    row(Group::Store, "REDIS_HOST", Form::Text, "127.0.0.1").means("Redis host; read only when REDIS_URL is unset."),
    row(Group::Store, "REDIS_PORT", Form::Integer(1, 65_535), "6379")
        .means("Redis port; read only when REDIS_URL is unset."),
    row(Group::Store, "REDIS_PASSWORD", Form::Secret, "").means("Redis password; read only when REDIS_URL is unset."),
    row(Group::Store, "REDIS_DB", Form::Integer(0, 65_535), "0")
        .means("Redis database; read only when REDIS_URL is unset."),
    row(Group::Store, "REDIS_KEY_PREFIX", Form::Text, "aiclient:")
        .flag("redis-key-prefix")
        .means("Prefix of every key in Redis."),
    row(Group::Store, "KIRO_REDIS_POOL_SIZE", Form::Integer(1, 64), "4")
        .flag("redis-pool-size")
        .alias("GO_KIRO_REDIS_POOL_SIZE")
        .means("Multiplexed connections to Redis; each carries many commands at once."),
    row(Group::Store, "KIRO_STORE_WAIT", Form::Duration, "").flag("store-wait").means(
        "How long the start waits for the first snapshot of accounts. 0s: it doesn't, and requests get 503 \
             until it is there. Default 5s in the addon, 0s in the server.",
    ),
    row(Group::Store, "KIRO_ID_SECRET", Form::Secret, "")
        .means("Secret of derived ids, at least 16 characters. Empty: all processes of the store share one."),
    row(Group::Models, "KIRO_WEB_SEARCH", Form::Word(&["on", "off"]), "on")
        .means("Serve Anthropic's tool web_search through Kiro's own search; off drops it, and refuses it alone."),
    row(Group::Models, "KIRO_WEB_SEARCH_MAX_ROUNDS", Form::Integer(1, 100), "10").means(
        "How many upstream answers a message with searches may take; then it pauses with pause_turn, and the client \
             goes on by sending it back.",
    ),
    row(Group::Models, "KIRO_MODELS_FILE", Form::Text, "")
        .flag("models-file")
        .means("JSON model table in place of the embedded one; read again when it changes."),
    row(Group::Models, "KIRO_MODEL_AUTO", Form::Text, "auto")
        .means("What the model name auto means: auto is Kiro's own choice, else a name of the table."),
    row(Group::Models, "KIRO_MODELS_LIST", Form::Word(&["claude", "all"]), "claude")
        .means("What /v1/models shows: Claude models, or other vendors' too."),
    row(Group::Models, "KIRO_USAGE_SPLIT", Form::Word(&["ratio", "none"]), "ratio").means(
        "How an estimated input count is shown: ratio splits it 1:2:25 into input, cache creation and \
             cache read (not a measurement); none doesn't.",
    ),
    row(Group::Upstream, "NODE_EXTRA_CA_CERTS", Form::Text, "")
        .means("PEM file of further certificate authorities that may sign upstream's certificate."),
    row(Group::Upstream, "KIRO_CONNECT_TIMEOUT", Form::Duration, "10s")
        .means("Limit for TCP and TLS towards upstream."),
    row(Group::Upstream, "KIRO_FIRST_EVENT_TIMEOUT", Form::Duration, "120s")
        .means("Limit from the end of the request to upstream's first event."),
    row(Group::Upstream, "KIRO_UPSTREAM_KEEP_IDLE", Form::Duration, "55s").means(
        "How long an idle connection to upstream is kept, which closes it at about 60 s. 0: each request makes a new \
             one.",
    ),
    row(Group::Upstream, "KIRO_IDLE_TIMEOUT", Form::Duration, "300s")
        .means("Limit between two chunks of upstream's answer. There is no limit for the whole answer."),
    row(Group::Server, "KIRO_API_KEYS_FILE", Form::Text, "").flag("api-keys-file").means(
        "JSON file with named client keys, which are valid beside the single one; read again within 5 s of a change. \
             The command `keys add` writes it. With Redis, named keys may lie there too.",
    ),
    row(Group::Server, "KIRO_ALLOW_ANONYMOUS", Form::Switch, "false")
        .flag("allow-anonymous")
        .means("Serve without a client key, on an address other than loopback too."),
    row(Group::Server, "KIRO_EARLY_HEADERS", Form::Duration, "15s")
        .means("After this time without an event, a stream begins with 200 and message_start, then pings."),
    row(Group::Server, "KIRO_PING_INTERVAL", Form::Duration, "15s")
        .means("After this time without other bytes, a stream gets an SSE ping."),
    row(Group::Server, "KIRO_REUSE_PORT", Form::Switch, "false").flag("reuse-port").means(
        "Several servers may listen on the port (SO_REUSEPORT), so that a new one can start before the old \
             one stops.",
    ),
    row(Group::Server, "KIRO_GRACEFUL_TIMEOUT", Form::Duration, "30s")
        .alias("GO_KIRO_GRACEFUL_TIMEOUT")
        .means("On shutdown, open streams may finish within this time; then each ends with an SSE error event."),
    row(Group::Limits, "KIRO_WEB_SEARCH_TIMEOUT", Form::Duration, "30s")
        .means("Longest time of one web search, with its repeats; the answer goes on without it."),
    row(Group::Limits, "KIRO_MAX_CONNS", Form::Integer(1, 1_000_000), "4096")
        .flag("max-conns")
        .means("Upstream requests that may run at once in this process; one more gets 529 at once."),
    row(Group::Limits, "KIRO_MAX_CLIENT_CONNS", Form::Integer(1, 1_000_000), "16384")
        .flag("max-client-conns")
        .means("Client connections that may be open at once; one more gets 503 and is closed."),
    row(Group::Limits, "KIRO_MAX_REQUEST_BODY", Form::Bytes, "32MiB")
        .alias("GO_KIRO_MAX_REQUEST_BODY")
        .means("Size of a request body; a larger one gets 413."),
    row(Group::Limits, "KIRO_MAX_REQUEST_MEMORY", Form::Bytes, "").means(
        "What the bodies of all requests together may take until their answers begin, a body twice until it is \
             translated. One more waits for KIRO_BODY_TIMEOUT and then gets 529. Default: a quarter of the memory that \
             the process may take (cgroup, address space, machine).",
    ),
    row(Group::Limits, "KIRO_HEADER_TIMEOUT", Form::Duration, "75s").means(
        "A client connection without a complete request head for this time is closed, an idle one too. \
             Longer than proxies keep idle connections (60 s), so that they close first. 0: never.",
    ),
    row(Group::Limits, "KIRO_BODY_TIMEOUT", Form::Duration, "30s").means(
        "A request body may pause this long, and must come at 1 KiB/s or faster after it; else 408. 0: \
             never.",
    ),
    row(Group::Limits, "KIRO_WRITE_TIMEOUT", Form::Duration, "60s").means(
        "A client that takes no byte of its answer for this time is disconnected, and its upstream request \
             ends. 0: never.",
    ),
    row(Group::Logs, "KIRO_LOG_FORMAT", Form::Word(&["json", "pretty"]), "")
        .flag("log-format")
        .means("json or pretty. Default: pretty on a terminal, else json."),
    row(Group::Logs, "KIRO_PROFILE_ADDR", Form::Address, "").flag("profile").bare("127.0.0.1:8082").means(
        "Serve /debug/pprof/profile?seconds=N and /debug/tasks there; other machines need the client key. \
             kiro-server only; the flag alone means 127.0.0.1:8082.",
    ),
    row(Group::Logs, "KIRO_WEBHOOK_URL", Form::Secret, "").means(
        "Gets a small JSON POST when an account is ejected, suspended, out of quota, suspicious or back, and for the pool, the \
             client version and the store. An http:// or https:// URL.",
    ),
    row(Group::Logs, "KIRO_WEBHOOK_SECRET", Form::Secret, "")
        .means("Signs these notices: x-webhook-signature is sha256= and the HMAC-SHA-256 of the body in hex."),
    row(Group::Logs, "KIRO_WEBHOOK_MIN_ACCOUNTS", Form::Integer(0, 1_000_000), "0")
        .means("Send a notice when fewer accounts than this can serve; 0: only when none can."),
    row(Group::Logs, "KIRO_DEBUG_DUMP_DIR", Form::Text, "").means(
        "Folder for failed requests as files: prompts included, tokens taken out. The newest 100 are kept, \
             at most 256 MiB.",
    ),
    row(Group::Hatches, "KIRO_CLIENT_VERSION", Form::Version, client_identity::VERSION)
        .means("Version of Kiro's IDE in the user-agent headers. Kiro refuses old ones.")
        .overrides("Clients older than IDE 0.11.133 are refused, on every call"),
    row(Group::Hatches, "KIRO_CLIENT_AGENT_VERSION", Form::Version, client_identity::AGENT_VERSION)
        .means("Version of the IDE's agent in the user-agent headers of runtime.{region}.kiro.dev.")
        .overrides("Each call has user agents of its own, with Kiro's name and version in them"),
    row(Group::Hatches, "KIRO_UPSTREAM_API", Form::Word(&["auto", "q", "runtime", "q,runtime", "runtime,q"]), "auto")
        .means("Which of Kiro's two wire shapes are used, the preferred one first; auto is q,runtime.")
        .overrides("Shape q: paths on q.{region}.amazonaws.com"),
    row(Group::Hatches, "KIRO_UPSTREAM_URL", Form::UpstreamUrl, DEFAULT_UPSTREAM_URL)
        .flag("upstream-url")
        .means(
            "Where shape q sends requests; {region} is filled in for each account. Changed alone, everything \
             goes to this one host.",
        )
        .overrides("Shape q: paths on q.{region}.amazonaws.com"),
    row(Group::Hatches, "KIRO_RUNTIME_URL", Form::UpstreamUrl, DEFAULT_RUNTIME_URL)
        .means("Where shape runtime sends requests.")
        .overrides(
            "Shape runtime: the root path and a target on runtime.{region}.kiro.dev and \
             management.{region}.kiro.dev",
        ),
    row(Group::Hatches, "KIRO_MANAGEMENT_URL", Form::UpstreamUrl, DEFAULT_MANAGEMENT_URL)
        .means("Where shape runtime asks for usage, models and profiles.")
        .overrides(
            "Shape runtime: the root path and a target on runtime.{region}.kiro.dev and \
             management.{region}.kiro.dev",
        ),
    row(Group::Hatches, "KIRO_API_REGIONS", Form::Regions, "us-east-1,eu-central-1,us-gov-west-1,us-gov-east-1")
        .means(
            "Regions in which Kiro answers. Any other region in an account's records only says where it signs \
             in.",
        )
        .overrides("Kiro answers in us-east-1, eu-central-1 and the two GovCloud regions"),
    row(Group::Hatches, "KIRO_PORTAL_URL", Form::UpstreamUrl, portal::DEFAULT_PORTAL_URL)
        .means("Kiro's page for a sign-in with a browser (`accounts login --browser`).")
        .overrides("A browser signs in at app.kiro.dev/signin, which returns to one of ten ports of localhost"),
    row(
        Group::Hatches,
        "KIRO_SOCIAL_REFRESH_URL",
        Form::UpstreamUrl,
        "https://prod.{region}.auth.desktop.kiro.dev/refreshToken",
    )
    .means("Where social accounts refresh their token.")
    .overrides(
        "Tokens are renewed at prod.{region}.auth.desktop.kiro.dev (social) and \
             oidc.{region}.amazonaws.com (IdC)",
    ),
    row(Group::Hatches, "KIRO_IDC_REFRESH_URL", Form::UpstreamUrl, "https://oidc.{region}.amazonaws.com/token")
        .means("Where IdC accounts refresh their token.")
        .overrides(
            "Tokens are renewed at prod.{region}.auth.desktop.kiro.dev (social) and \
             oidc.{region}.amazonaws.com (IdC)",
        ),
    row(Group::Hatches, "KIRO_BUILDER_ID_PROFILE_ARN", Form::ProfileArn, profile::BUILDER_ID_PROFILE)
        .means("Kiro's fixed profile for AWS Builder IDs. Empty: send none.")
        .overrides("Most accounts need a profileArn; which one depends on the kind of login"),
    row(Group::Hatches, "KIRO_SOCIAL_PROFILE_ARN", Form::ProfileArn, profile::SOCIAL_PROFILE)
        .means("Kiro's fixed profile for Google and GitHub accounts. Empty: send none.")
        .overrides("Most accounts need a profileArn; which one depends on the kind of login"),
    row(Group::Hatches, "KIRO_MODEL_DISCOVERY", Form::Word(&["on", "off"]), "on")
        .means("Ask Kiro which models an account has, in the background, after its first answer and then hourly.")
        .overrides("The list of models is the account's own, with windows and schemas of fields"),
    row(Group::Hatches, "KIRO_MODEL_UNKNOWN", Form::Word(&["pass", "refuse"]), "pass")
        .means(
            "A Claude name that the table doesn't have: pass sends it upstream in the form of Kiro's ids, \
             refuse answers 404.",
        )
        .overrides("Ids are written claude-opus-5.5"),
    row(Group::Hatches, "KIRO_MAX_TOKENS", Form::Word(&["forward", "ignore"]), "forward")
        .means(
            "forward: keep a request's max_tokens, upstream where the model has a place for it, else by ending the \
             answer. ignore: neither.",
        )
        .overrides("max_tokens is taken by 5.5"),
    row(Group::Hatches, "KIRO_CACHE_POINTS", Form::Word(&["off", "client", "on", "auto"]), "off")
        .means(
            "Cache points upstream. client (on is its old name): where the client set cache_control; auto: \
             behind the system text and the last answer.",
        )
        .overrides("A picture may stand beside a tool's result; documents and cache points are taken on messages"),
    row(Group::Hatches, "KIRO_IMAGE_FIT", Form::Word(&["auto", "always", "off"]), "auto")
        .means(
            "Pictures above 1,568 pixels a side or 400,000 characters. auto: made smaller once Kiro has refused \
             them; always: made smaller before they go out; off: never touched.",
        )
        .overrides("Pictures are taken up to a size that reports don't agree about"),
    row(Group::Hatches, "KIRO_AFFINITY", Form::Word(&["conversation", "off"]), "conversation")
        .means(
            "conversation: a conversation stays with its account while that one can serve; off: each request \
             takes the next one.",
        )
        .overrides("The same beginning on the same account costs fewer credits, on another account it doesn't"),
    row(Group::Hatches, "KIRO_CONVERSATION_ID", Form::Word(&["derive", "random"]), "derive")
        .means(
            "For a client that names no conversation. derive: the same id for each of its turns; random: a new \
             one each time.",
        )
        .overrides("The same beginning on the same account costs fewer credits, on another account it doesn't"),
    row(Group::Hatches, "KIRO_SYSTEM_TEXT", Form::Word(&["pair", "fold"]), "pair")
        .means(
            "Where the system text goes. pair: a message of its own in front of everything; fold: into the \
             first user message.",
        )
        .overrides("The system text belongs into the first pair of the history"),
    row(Group::Hatches, "KIRO_SUSPICION_BRAKE", Form::Word(&["on", "off"]), "on")
        .means("Slow the whole pool down when several accounts come under suspicion.")
        .overrides("suspicious activity holds for a day and more, and reaches other accounts behind one address"),
];
