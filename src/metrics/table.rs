//! The metrics' names: the contract of `/metrics`, `docs/metrics.md` and dashboards.

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only goes up; `rate()` it.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets with upper bounds, a sum and a count.
    Histogram,
}

impl MetricKind {
    /// The word after `# TYPE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One label of a metric.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its possible values.
    pub values: &'static str,
}

/// One metric, under the name that a query uses: counters end in `_total`, seconds and bytes stand in the name.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// The full name.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its labels; a histogram's `le` is understood.
    pub labels: &'static [Label],
    /// Its meaning, in a sentence without a full stop: the `# HELP` line.
    pub help: &'static str,
}

impl Description {
    /// Name and unit, separate as in OpenMetrics.
    pub(super) fn parts(&self) -> (&'static str, Option<&'static str>) {
        let base = match self.kind {
            MetricKind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            MetricKind::Gauge | MetricKind::Histogram => self.name,
        };
        for unit in ["seconds", "bytes"] {
            if let Some(stem) = base.strip_suffix(unit).and_then(|stem| stem.strip_suffix('_')) {
                return (stem, Some(unit));
            }
        }
        (base, None)
    }
}

macro_rules! metrics {
    ($( $(#[doc = $section:literal])? $ident:ident $name:literal $kind:ident [$($label:literal: $values:literal),*] $help:literal; )*) => {
        $( pub(super) const $ident: Description = Description {
            name: $name,
            kind: MetricKind::$kind,
            labels: &[$(Label { name: $label, values: $values }),*],
            help: $help,
        }; )*

        /// Every metric, in the order of `docs/metrics.md`.
        pub const METRICS: &[Description] = &[$($ident),*];
    };
}

metrics! {
    REQUESTS "kiro_requests_total" Counter
        ["outcome": "`complete`; `error`: it failed before or after the first byte; `cancelled`: the caller went away; `refused`: it never got as far as an account", "model": "the model's first known name, `other` for a name that was passed on to upstream, `unknown` when the request named none of the table"]
        "Requests for an answer by how they ended";
    REQUEST_ERRORS "kiro_request_errors_total" Counter
        ["code": "the stable code, such as `KIRO_RATE_LIMITED`; each stands at 0 from the start"]
        "Requests that failed or were refused, by the code that the log line has";
    REFUSED "kiro_http_refused_total" Counter
        ["route": "`messages`, `count_tokens`, `models`, `metrics`, `status`, `other`", "status": "the HTTP status"]
        "HTTP requests that the server turned away before the gateway saw them: unknown path, wrong key, body too large";
    TOKENS "kiro_tokens_total" Counter
        ["model": "as above", "direction": "`input` (cached tokens too), `output`"]
        "Tokens of complete answers, as the client got them";
    CREDITS "kiro_credits_total" Counter
        ["model": "as above"]
        "Credits of complete answers as Kiro metered them, in its own unit; answers without a figure add nothing";
    WITHOUT_END "kiro_stream_without_end_total" Counter
        ["shape": "`q`, `runtime`; each stands at 0 from the start"]
        "Complete answers whose stream ended properly, but without counts, percentage and credits: some may have been cut";
    IN_FLIGHT "kiro_requests_in_flight" Gauge [] "Requests for an answer that run now, streamed or not";
    STREAMS_OPEN "kiro_streams_open" Gauge [] "Answers that are being streamed now";
    WAITING "kiro_requests_waiting" Gauge [] "Requests that wait for an account (KIRO_ACCOUNT_WAIT)";
    REQUEST_MEMORY "kiro_request_memory_bytes" Gauge [] "What the bodies of requests take of KIRO_MAX_REQUEST_MEMORY now";
    REQUEST_MEMORY_WAITS "kiro_request_memory_waits_total" Counter
        ["result": "`waited`: there was no room at once; `refused`: nor within KIRO_BODY_TIMEOUT"]
        "Requests that found no room for their bodies";
    AFFINITY "kiro_affinity_total" Counter
        ["result": "`home`: the account that the conversation is with; `older`: one that it was with; `moved`: another one; `new`: a new conversation, or one that is not known any more"]
        "Answers by what their account was to the conversation (KIRO_AFFINITY)";
    REASONING "kiro_reasoning_total" Counter
        ["result": "`sent`: it went upstream; `left_out`: another account or model made it, or nobody knows; `refused`: upstream refused a signature and the call was made again without"]
        "Requests with signed thinking in their history by what became of it";
    SEARCHES "kiro_web_search_total" Counter
        ["outcome": "`ok`: with results or without any; else the code that the client got: `unavailable`, `too_many_requests`, `invalid_tool_input`; each stands at 0 from the start"]
        "Web searches that were made, by outcome";
    SEARCH_SECONDS "kiro_web_search_seconds" Histogram [] "Time of a web search with its repeats";
    NOTICES "kiro_notices_total" Counter
        ["outcome": "`sent`; `failed`: three tries failed, and it was dropped; each stands at 0 from the start"]
        "Notices to KIRO_WEBHOOK_URL, by outcome";
    WAITS "kiro_account_waits_total" Counter [] "Requests that had to wait for an account";
    FIRST_EVENT "kiro_first_event_seconds" Histogram [] "From a request's arrival to its first upstream event";
    FIRST_CONTENT "kiro_first_content_seconds" Histogram [] "From a request's arrival to its first content: text, thought or tool use";
    DURATION "kiro_request_duration_seconds" Histogram [] "From a request's arrival to the end of its answer";
    OVERHEAD "kiro_gateway_overhead_seconds" Histogram []
        "What the gateway itself took of a request: its duration without the time in which upstream or the client was waited for";
    ATTEMPTS "kiro_upstream_attempts_total" Counter
        ["outcome": "`ok`: an event stream began; else the class of the fault, such as `RateLimited`; each stands at 0 from the start"]
        "Calls of upstream by what came of them; one whose stream breaks later counts as `ok` and as the fault";
    CONNECTS "kiro_upstream_connects_total" Counter
        ["reason": "`request`: a request waited for it; `ahead`: none did; each stands at 0 from the start"]
        "Connections that were opened towards upstream";
    AHEAD_FAILED "kiro_upstream_ahead_failures_total" Counter [] "Connections that were to be opened ahead of need and could not be";
    IDLE "kiro_upstream_idle_connections" Gauge [] "Connections towards upstream that idle, ready for the next request";
    ACCOUNTS "kiro_accounts" Gauge
        ["state": "`healthy`, `half-open`, `stale`, `cooling`, `no-profile`, `quota`, `ejected`, `disabled`, `unusable`"]
        "Accounts by state; the first three are selected";
    ACCOUNT_IN_FLIGHT "kiro_account_in_flight" Gauge
        ["account": "the first 8 characters of its id"]
        "Requests in flight on each account";
    CREDITS_USED "kiro_account_credits_used" Gauge
        ["account": "the first 8 characters of its id"]
        "Credits that each account has used of its quota, as Kiro said when it was last asked (KIRO_USAGE_INTERVAL); an account that is out until a person acts has none of these three";
    CREDITS_LIMIT "kiro_account_credits_limit" Gauge
        ["account": "as above"]
        "Each account's quota in credits, active trial and bonuses included";
    CREDITS_RESET "kiro_account_credits_reset_time_seconds" Gauge
        ["account": "as above"]
        "When each account's quota starts again, in seconds since 1970";
    CREDITS_UNKNOWN "kiro_accounts_without_credits" Gauge [] "Accounts that may be selected and whose credits aren't known: they weren't used yet, or Kiro gave no answer";
    USAGE_ASKS "kiro_usage_asks_total" Counter
        ["outcome": "`ok`, `failed`; each stands at 0 from the start"]
        "Questions to Kiro about an account's usage, asked in the background";
    BRAKE "kiro_suspicion_brake" Gauge [] "1 while the pool is slowed down because several accounts are under suspicion (KIRO_SUSPICION_BRAKE), else 0";
    REFRESHES "kiro_token_refreshes_total" Counter
        ["outcome": "`refreshed`; `adopted`: another process had done it; `rejected`: refused for good, the account is ejected; `failed`: in passing; `conflict`: another process was faster and ours was dropped; `unsaved`: the new token could not be stored at once"]
        "Token refreshes by outcome";
    SNAPSHOTS "kiro_account_snapshots_total" Counter
        ["outcome": "`ok`, `failed`"]
        "Reads of the accounts from the store";
    REDIS_DURATION "kiro_redis_command_duration_seconds" Histogram [] "Time that Redis commands and pipelines took (with KIRO_STORE=file: operations on the file)";
    REDIS_ERRORS "kiro_redis_errors_total" Counter [] "Redis commands and pipelines that failed, or that had no connection to go out on";
    REDIS_CONNECTED "kiro_redis_connected" Gauge [] "1 while the store can be read, else 0";
    REDIS_QUEUED "kiro_redis_queued_writes" Gauge
        ["kind": "`account`: counters and marks; `token`: a refreshed token that must not get lost"]
        "Records that wait to be written to the store";
    FRAMES "kiro_frames_total" Counter [] "Event-stream frames decoded, counted at the end of a request, like bytes, checksums and unknown events";
    UPSTREAM_READ "kiro_upstream_read_bytes_total" Counter [] "Bytes of event streams read from upstream";
    DOWNSTREAM_WRITTEN "kiro_downstream_written_bytes_total" Counter [] "Bytes of SSE and JSON handed downstream";
    CRC_FAILURES "kiro_frame_crc_failures_total" Counter [] "Frames whose checksum was wrong";
    UNKNOWN_EVENTS "kiro_unknown_events_total" Counter
        ["event": "upstream's name for it; the first 16 names that were seen, then `other`"]
        "Events of a type that the gateway doesn't know and skips";
    TASKS "kiro_tasks_alive" Gauge [] "Tasks alive in the runtime; a connection is one";
    BUILD_INFO "kiro_build_info" Gauge
        ["version": "of this program", "upstream": "`kiro` or `simulator`"]
        "Always 1: what runs here";
    SHAPES "kiro_upstream_shape_total" Counter
        ["shape": "`q` or `runtime`", "outcome": "`ok`: an event stream began; else the fault"]
        "Chat calls of upstream by wire shape";
    CLIENT_KEYS "kiro_client_key_requests_total" Counter
        ["key": "its name; the first 100 that were used, then `other`"]
        "Requests for an answer that a named client key let in";
    CLIENT_KEYS_REFUSED "kiro_client_key_refused_total" Counter
        ["key": "as in `kiro_client_key_requests_total`", "limit": "`max_inflight` or `rpm`"]
        "Requests for an answer that a limit of their client key refused with 429";
    FIELDS_REFUSED "kiro_model_fields_refused_total" Counter
        ["model": "upstream's id; the first 64, then `other`", "member": "`thinking`, `display`, `effort`, `max_tokens` or `all`"]
        "Members of additionalModelRequestFields that upstream refused, after which they are left out or changed";
    HOSTS "kiro_upstream_host_state" Gauge
        ["host": "host and port"]
        "Circuit of an upstream host: 0 closed, 1 half-open, 2 open";
    VERSION_INFO "kiro_client_version_info" Gauge
        ["version": "of Kiro's IDE in the user agents (`KIRO_CLIENT_VERSION`)"]
        "Always 1; the label says what we call ourselves";
    VERSION_REFUSED "kiro_client_version_refused_total" Counter
        ["call": "`chat`, `mcp`, `usage`, `models`, `profiles` or `refresh`", "host": "that refused; the first 64, then `other`"]
        "Calls that upstream refused because of the client version";
    LOG_DROPPED "kiro_log_lines_dropped_total" Counter []
        "Log lines that were dropped because standard error was not read fast enough (kiro-server only)";
    CPU "process_cpu_seconds_total" Counter [] "User and system CPU time of the process (Linux)";
    RESIDENT "process_resident_memory_bytes" Gauge [] "Resident memory of the process (Linux)";
    VIRTUAL "process_virtual_memory_bytes" Gauge [] "Virtual memory of the process (Linux)";
    OPEN_FDS "process_open_fds" Gauge [] "Open file descriptors (Linux)";
    MAX_FDS "process_max_fds" Gauge [] "Most file descriptors that may be open (Linux)";
    THREADS "process_threads" Gauge [] "Threads of the process (Linux)";
    START_TIME "process_start_time_seconds" Gauge [] "When the process started, in seconds since 1970 (Linux)";
}
