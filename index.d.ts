/**
 * Anthropic's Messages API in front of Kiro, inside a Node.js process.
 *
 * @packageDocumentation
 */

import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http'

/**
 * The options of {@link KiroGateway.connect}. A name is that of the environment variable in camelCase; milliseconds end in
 * `Ms`, sizes are bytes. An option beats the environment, which beats the default. An unknown name or a bad value is
 * refused with a {@link KiroError} `KIRO_CONFIG` that names it.
 */
export interface GatewayOptions {
  // What most people set

  /**
   * Address to listen on.
   * Environment: `KIRO_HOST`.
   * @default 127.0.0.1
   */
  host?: string
  /**
   * Port to listen on; 0 takes a free one and logs it.
   * Environment: `KIRO_PORT`.
   * @default 8081
   */
  port?: number
  /**
   * Key that clients must send. Empty: the store's config has it (REQUIRED_API_KEY, else apiKey), read again every 5 s.
   * Environment: `KIRO_API_KEY`.
   */
  apiKey?: string
  /**
   * PEM file with the certificate and its chain: the server speaks TLS only. Read again on SIGHUP.
   * Environment: `KIRO_TLS_CERT`.
   */
  tlsCert?: string
  /**
   * PEM file with the certificate's private key.
   * Environment: `KIRO_TLS_KEY`.
   */
  tlsKey?: string
  /**
   * Where accounts live: redis; file:PATH (JSON, mode 0600) for one machine without Redis; aiclient:configs/provider_pools.json for the pool file of a Node.js service, which is read and never written.
   * Environment: `KIRO_STORE`.
   * @default redis
   */
  store?: 'redis' | `file:${string}` | `aiclient:${string}`
  /**
   * Redis: redis://, rediss://, redis+unix://, Sentinel and Cluster URLs.
   * Environment: `REDIS_URL`.
   * @default redis://127.0.0.1:6379
   */
  redisUrl?: string
  /**
   * Folder for refreshed tokens that the store can't take at the moment, so that a restart loses no login. Mode 0600, deleted once they are saved. Without it they wait in memory only.
   * Environment: `KIRO_STATE_DIR`.
   */
  stateDir?: string
  /**
   * kiro, or simulator: the built-in simulated upstream, to try everything without an account.
   * Environment: `KIRO_UPSTREAM`.
   * @default kiro
   */
  upstream?: 'kiro' | 'simulator'
  /**
   * Proxy towards Kiro.
   * Must be a URL that begins with http://, https://, socks5://, socks5h://.
   * Environment: `KIRO_PROXY_URL`.
   */
  proxyUrl?: string
  /**
   * Model for a claude-* name that can't pass, or that upstream has refused. Empty: 404.
   * Environment: `KIRO_MODEL_FALLBACK`.
   */
  modelFallback?: string
  /**
   * Least level that is logged.
   * Environment: `KIRO_LOG_LEVEL`.
   * @default info
   */
  logLevel?: 'error' | 'warn' | 'info' | 'debug' | 'trace' | 'off'

  // Accounts

  /**
   * How an account is chosen; sticky: by conversation.
   * Environment: `KIRO_STRATEGY`.
   * @default round-robin
   */
  strategy?: 'round-robin' | 'least-busy' | 'sticky'
  /**
   * Requests that may run at once on one account in this process; 0: no limit.
   * Environment: `KIRO_MAX_INFLIGHT_PER_ACCOUNT`.
   * @default 0
   */
  maxInflightPerAccount?: number
  /**
   * Conversations that may begin in a minute on one account in this process; 0: no limit.
   * Environment: `KIRO_ACCOUNT_RPM`.
   * @default 0
   */
  accountRpm?: number
  /**
   * How long a request may wait for an account. 0s: it fails at once.
   * Environment: `KIRO_ACCOUNT_WAIT`.
   * @default 0
   */
  accountWaitMs?: number
  /**
   * How many accounts may fail for upstream's reasons before the first content. An account that refuses for a reason of its own doesn't count.
   * Environment: `KIRO_MAX_ATTEMPTS`.
   * @default 3
   */
  maxAttempts?: number
  /**
   * How long after its first attempt a request may move to another account.
   * Environment: `KIRO_FAILOVER_TIME`.
   * @default 15000
   */
  failoverTimeMs?: number
  /**
   * How long a cooled-down account rests when upstream gives no Retry-After.
   * Environment: `KIRO_HEALTH_COOLDOWN`.
   * @default 60000
   */
  healthCooldownMs?: number
  /**
   * An access token that expires within this time is refreshed in the background.
   * Environment: `KIRO_REFRESH_THRESHOLD`.
   * @default 300000
   */
  refreshThresholdMs?: number
  /**
   * Further hosts of identity providers that may be sent the refresh token of an organisation's account: names or suffixes, beside those of Microsoft Entra ID and Okta. Neither the store nor a record can add one.
   * Must be a comma list of host names such as sso.example.org, or suffixes such as .auth.example.org; `only:` in front replaces the built-in ones.
   * Environment: `KIRO_EXTERNAL_IDP_HOSTS`.
   */
  externalIdpHosts?: string
  /**
   * How often Kiro is asked, in the background, what an account that is used has left of its credits. 0s: never.
   * Environment: `KIRO_USAGE_INTERVAL`.
   * @default 900000
   */
  usageIntervalMs?: number
  /**
   * Age at which the snapshot of accounts is read again in the background; at least 50ms.
   * Environment: `KIRO_ACCOUNT_CACHE_TTL`.
   * @default 5000
   */
  accountCacheTtlMs?: number

  // Store

  /**
   * Redis host; read only when REDIS_URL is unset.
   * Environment: `REDIS_HOST`.
   * @default 127.0.0.1
   */
  redisHost?: string
  /**
   * Redis port; read only when REDIS_URL is unset.
   * Environment: `REDIS_PORT`.
   * @default 6379
   */
  redisPort?: number
  /**
   * Redis password; read only when REDIS_URL is unset.
   * Environment: `REDIS_PASSWORD`.
   */
  redisPassword?: string
  /**
   * Redis database; read only when REDIS_URL is unset.
   * Environment: `REDIS_DB`.
   * @default 0
   */
  redisDb?: number
  /**
   * Prefix of every key in Redis.
   * Environment: `REDIS_KEY_PREFIX`.
   * @default aiclient:
   */
  redisKeyPrefix?: string
  /**
   * Multiplexed connections to Redis; each carries many commands at once.
   * Environment: `KIRO_REDIS_POOL_SIZE`.
   * @default 4
   */
  redisPoolSize?: number
  /**
   * How long the start waits for the first snapshot of accounts. 0s: it doesn't, and requests get 503 until it is there. Default 5s in the addon, 0s in the server.
   * Environment: `KIRO_STORE_WAIT`.
   */
  storeWaitMs?: number
  /**
   * Secret of derived ids, at least 16 characters. Empty: all processes of the store share one.
   * Environment: `KIRO_ID_SECRET`.
   */
  idSecret?: string

  // Models

  /**
   * Serve Anthropic's tool web_search through Kiro's own search; off drops it, and refuses it alone.
   * Environment: `KIRO_WEB_SEARCH`.
   * @default on
   */
  webSearch?: 'on' | 'off'
  /**
   * How many upstream answers a message with searches may take; then it pauses with pause_turn, and the client goes on by sending it back.
   * Environment: `KIRO_WEB_SEARCH_MAX_ROUNDS`.
   * @default 10
   */
  webSearchMaxRounds?: number
  /**
   * JSON model table in place of the embedded one; read again when it changes.
   * Environment: `KIRO_MODELS_FILE`.
   */
  modelsFile?: string
  /**
   * What the model name auto means: auto is Kiro's own choice, else a name of the table.
   * Environment: `KIRO_MODEL_AUTO`.
   * @default auto
   */
  modelAuto?: string
  /**
   * What /v1/models shows: Claude models, or other vendors' too.
   * Environment: `KIRO_MODELS_LIST`.
   * @default claude
   */
  modelsList?: 'claude' | 'all'
  /**
   * How an estimated input count is shown: ratio splits it 1:2:25 into input, cache creation and cache read (not a measurement); none doesn't.
   * Environment: `KIRO_USAGE_SPLIT`.
   * @default ratio
   */
  usageSplit?: 'ratio' | 'none'

  // Upstream

  /**
   * PEM file of further certificate authorities that may sign upstream's certificate.
   * Environment: `NODE_EXTRA_CA_CERTS`.
   */
  extraCaCerts?: string
  /**
   * Limit for TCP and TLS towards upstream.
   * Environment: `KIRO_CONNECT_TIMEOUT`.
   * @default 10000
   */
  connectTimeoutMs?: number
  /**
   * Limit from the end of the request to upstream's first event.
   * Environment: `KIRO_FIRST_EVENT_TIMEOUT`.
   * @default 120000
   */
  firstEventTimeoutMs?: number
  /**
   * How long an idle connection to upstream is kept, which closes it at about 60 s. 0: each request makes a new one.
   * Environment: `KIRO_UPSTREAM_KEEP_IDLE`.
   * @default 55000
   */
  upstreamKeepIdleMs?: number
  /**
   * Limit between two chunks of upstream's answer. There is no limit for the whole answer.
   * Environment: `KIRO_IDLE_TIMEOUT`.
   * @default 300000
   */
  idleTimeoutMs?: number

  // Server

  /**
   * JSON file with named client keys, which are valid beside the single one; read again within 5 s of a change. The command `keys add` writes it. With Redis, named keys may lie there too.
   * Environment: `KIRO_API_KEYS_FILE`.
   */
  apiKeysFile?: string
  /**
   * Serve without a client key, on an address other than loopback too.
   * Environment: `KIRO_ALLOW_ANONYMOUS`.
   * @default false
   */
  allowAnonymous?: boolean
  /**
   * After this time without an event, a stream begins with 200 and message_start, then pings.
   * Environment: `KIRO_EARLY_HEADERS`.
   * @default 15000
   */
  earlyHeadersMs?: number
  /**
   * After this time without other bytes, a stream gets an SSE ping.
   * Environment: `KIRO_PING_INTERVAL`.
   * @default 15000
   */
  pingIntervalMs?: number
  /**
   * Several servers may listen on the port (SO_REUSEPORT), so that a new one can start before the old one stops.
   * Environment: `KIRO_REUSE_PORT`.
   * @default false
   */
  reusePort?: boolean
  /**
   * On shutdown, open streams may finish within this time; then each ends with an SSE error event.
   * Environment: `KIRO_GRACEFUL_TIMEOUT`.
   * @default 30000
   */
  gracefulTimeoutMs?: number

  // Limits

  /**
   * Longest time of one web search, with its repeats; the answer goes on without it.
   * Environment: `KIRO_WEB_SEARCH_TIMEOUT`.
   * @default 30000
   */
  webSearchTimeoutMs?: number
  /**
   * Upstream requests that may run at once in this process; one more gets 529 at once.
   * Environment: `KIRO_MAX_CONNS`.
   * @default 4096
   */
  maxConns?: number
  /**
   * Client connections that may be open at once; one more gets 503 and is closed.
   * Environment: `KIRO_MAX_CLIENT_CONNS`.
   * @default 16384
   */
  maxClientConns?: number
  /**
   * Size of a request body; a larger one gets 413.
   * Environment: `KIRO_MAX_REQUEST_BODY`.
   * @default 32MiB
   */
  maxRequestBody?: number | string
  /**
   * What the bodies of all requests together may take until their answers begin, a body twice until it is translated. One more waits for KIRO_BODY_TIMEOUT and then gets 529. Default: a quarter of the memory that the process may take (cgroup, address space, machine).
   * Environment: `KIRO_MAX_REQUEST_MEMORY`.
   */
  maxRequestMemory?: number | string
  /**
   * A client connection without a complete request head for this time is closed, an idle one too. Longer than proxies keep idle connections (60 s), so that they close first. 0: never.
   * Environment: `KIRO_HEADER_TIMEOUT`.
   * @default 75000
   */
  headerTimeoutMs?: number
  /**
   * A request body may pause this long, and must come at 1 KiB/s or faster after it; else 408. 0: never.
   * Environment: `KIRO_BODY_TIMEOUT`.
   * @default 30000
   */
  bodyTimeoutMs?: number
  /**
   * A client that takes no byte of its answer for this time is disconnected, and its upstream request ends. 0: never.
   * Environment: `KIRO_WRITE_TIMEOUT`.
   * @default 60000
   */
  writeTimeoutMs?: number

  // Logs and profiles

  /**
   * json or pretty. Default: pretty on a terminal, else json.
   * Environment: `KIRO_LOG_FORMAT`.
   */
  logFormat?: 'json' | 'pretty'
  /**
   * Serve /debug/pprof/profile?seconds=N and /debug/tasks there; other machines need the client key. kiro-server only; the flag alone means 127.0.0.1:8082.
   * Must be an address such as 127.0.0.1:8082.
   * Environment: `KIRO_PROFILE_ADDR`.
   */
  profileAddr?: string
  /**
   * Gets a small JSON POST when an account is ejected, suspended, out of quota, suspicious or back, and for the pool, the client version and the store. An http:// or https:// URL.
   * Environment: `KIRO_WEBHOOK_URL`.
   */
  webhookUrl?: string
  /**
   * Signs these notices: x-webhook-signature is sha256= and the HMAC-SHA-256 of the body in hex.
   * Environment: `KIRO_WEBHOOK_SECRET`.
   */
  webhookSecret?: string
  /**
   * Send a notice when fewer accounts than this can serve; 0: only when none can.
   * Environment: `KIRO_WEBHOOK_MIN_ACCOUNTS`.
   * @default 0
   */
  webhookMinAccounts?: number
  /**
   * Folder for failed requests as files: prompts included, tokens taken out. The newest 100 are kept, at most 256 MiB.
   * Environment: `KIRO_DEBUG_DUMP_DIR`.
   */
  debugDumpDir?: string

  // Escape hatches

  /**
   * Version of Kiro's IDE in the user-agent headers. Kiro refuses old ones.
   * Must be a version such as 1.1.70.
   * Overrides (docs/kiro.md): Clients older than IDE 0.11.133 are refused, on every call.
   * Environment: `KIRO_CLIENT_VERSION`.
   * @default 1.1.70
   */
  clientVersion?: string
  /**
   * Version of the IDE's agent in the user-agent headers of runtime.{region}.kiro.dev.
   * Must be a version such as 1.1.70.
   * Overrides (docs/kiro.md): Each call has user agents of its own, with Kiro's name and version in them.
   * Environment: `KIRO_CLIENT_AGENT_VERSION`.
   * @default 0.66.7
   */
  clientAgentVersion?: string
  /**
   * Which of Kiro's two wire shapes are used, the preferred one first; auto is q,runtime.
   * Overrides (docs/kiro.md): Shape q: paths on q.{region}.amazonaws.com.
   * Environment: `KIRO_UPSTREAM_API`.
   * @default auto
   */
  upstreamApi?: 'auto' | 'q' | 'runtime' | 'q,runtime' | 'runtime,q'
  /**
   * Where shape q sends requests; {region} is filled in for each account. Changed alone, everything goes to this one host.
   * Must be an https:// URL without a user name (http:// only to a loopback address).
   * Overrides (docs/kiro.md): Shape q: paths on q.{region}.amazonaws.com.
   * Environment: `KIRO_UPSTREAM_URL`.
   * @default https://q.{region}.amazonaws.com/generateAssistantResponse
   */
  upstreamUrl?: string
  /**
   * Where shape runtime sends requests.
   * Must be an https:// URL without a user name (http:// only to a loopback address).
   * Overrides (docs/kiro.md): Shape runtime: the root path and a target on runtime.{region}.kiro.dev and management.{region}.kiro.dev.
   * Environment: `KIRO_RUNTIME_URL`.
   * @default https://runtime.{region}.kiro.dev/
   */
  runtimeUrl?: string
  /**
   * Where shape runtime asks for usage, models and profiles.
   * Must be an https:// URL without a user name (http:// only to a loopback address).
   * Overrides (docs/kiro.md): Shape runtime: the root path and a target on runtime.{region}.kiro.dev and management.{region}.kiro.dev.
   * Environment: `KIRO_MANAGEMENT_URL`.
   * @default https://management.{region}.kiro.dev
   */
  managementUrl?: string
  /**
   * Regions in which Kiro answers. Any other region in an account's records only says where it signs in.
   * Must be a comma list of regions such as us-east-1,eu-central-1.
   * Overrides (docs/kiro.md): Kiro answers in us-east-1, eu-central-1 and the two GovCloud regions.
   * Environment: `KIRO_API_REGIONS`.
   * @default us-east-1,eu-central-1,us-gov-west-1,us-gov-east-1
   */
  apiRegions?: string
  /**
   * Kiro's page for a sign-in with a browser (`accounts login --browser`).
   * Must be an https:// URL without a user name (http:// only to a loopback address).
   * Overrides (docs/kiro.md): A browser signs in at app.kiro.dev/signin, which returns to one of ten ports of localhost.
   * Environment: `KIRO_PORTAL_URL`.
   * @default https://app.kiro.dev/signin
   */
  portalUrl?: string
  /**
   * Where social accounts refresh their token.
   * Must be an https:// URL without a user name (http:// only to a loopback address).
   * Overrides (docs/kiro.md): Tokens are renewed at prod.{region}.auth.desktop.kiro.dev (social) and oidc.{region}.amazonaws.com (IdC).
   * Environment: `KIRO_SOCIAL_REFRESH_URL`.
   * @default https://prod.{region}.auth.desktop.kiro.dev/refreshToken
   */
  socialRefreshUrl?: string
  /**
   * Where IdC accounts refresh their token.
   * Must be an https:// URL without a user name (http:// only to a loopback address).
   * Overrides (docs/kiro.md): Tokens are renewed at prod.{region}.auth.desktop.kiro.dev (social) and oidc.{region}.amazonaws.com (IdC).
   * Environment: `KIRO_IDC_REFRESH_URL`.
   * @default https://oidc.{region}.amazonaws.com/token
   */
  idcRefreshUrl?: string
  /**
   * Kiro's fixed profile for AWS Builder IDs. Empty: send none.
   * Must be a profile's ARN (arn:…:codewhisperer:…), or empty.
   * Overrides (docs/kiro.md): Most accounts need a profileArn; which one depends on the kind of login.
   * Environment: `KIRO_BUILDER_ID_PROFILE_ARN`.
   * @default arn:aws:codewhisperer:us-east-1:638616132270:profile/AAAACCCCXXXX
   */
  builderIdProfileArn?: string
  /**
   * Kiro's fixed profile for Google and GitHub accounts. Empty: send none.
   * Must be a profile's ARN (arn:…:codewhisperer:…), or empty.
   * Overrides (docs/kiro.md): Most accounts need a profileArn; which one depends on the kind of login.
   * Environment: `KIRO_SOCIAL_PROFILE_ARN`.
   * @default arn:aws:codewhisperer:us-east-1:699475941385:profile/EHGA3GRVQMUK
   */
  socialProfileArn?: string
  /**
   * Ask Kiro which models an account has, in the background, after its first answer and then hourly.
   * Overrides (docs/kiro.md): The list of models is the account's own, with windows and schemas of fields.
   * Environment: `KIRO_MODEL_DISCOVERY`.
   * @default on
   */
  modelDiscovery?: 'on' | 'off'
  /**
   * A Claude name that the table doesn't have: pass sends it upstream in the form of Kiro's ids, refuse answers 404.
   * Overrides (docs/kiro.md): Ids are written claude-opus-5.5.
   * Environment: `KIRO_MODEL_UNKNOWN`.
   * @default pass
   */
  modelUnknown?: 'pass' | 'refuse'
  /**
   * forward: keep a request's max_tokens, upstream where the model has a place for it, else by ending the answer. ignore: neither.
   * Overrides (docs/kiro.md): max_tokens is taken by 5.5.
   * Environment: `KIRO_MAX_TOKENS`.
   * @default forward
   */
  maxTokens?: 'forward' | 'ignore'
  /**
   * Cache points upstream. client (on is its old name): where the client set cache_control; auto: behind the system text and the last answer.
   * Overrides (docs/kiro.md): A picture may stand beside a tool's result; documents and cache points are taken on messages.
   * Environment: `KIRO_CACHE_POINTS`.
   * @default off
   */
  cachePoints?: 'off' | 'client' | 'on' | 'auto'
  /**
   * Pictures above 1,568 pixels a side or 400,000 characters. auto: made smaller once Kiro has refused them; always: made smaller before they go out; off: never touched.
   * Overrides (docs/kiro.md): Pictures are taken up to a size that reports don't agree about.
   * Environment: `KIRO_IMAGE_FIT`.
   * @default auto
   */
  imageFit?: 'auto' | 'always' | 'off'
  /**
   * conversation: a conversation stays with its account while that one can serve; off: each request takes the next one.
   * Overrides (docs/kiro.md): The same beginning on the same account costs fewer credits, on another account it doesn't.
   * Environment: `KIRO_AFFINITY`.
   * @default conversation
   */
  affinity?: 'conversation' | 'off'
  /**
   * For a client that names no conversation. derive: the same id for each of its turns; random: a new one each time.
   * Overrides (docs/kiro.md): The same beginning on the same account costs fewer credits, on another account it doesn't.
   * Environment: `KIRO_CONVERSATION_ID`.
   * @default derive
   */
  conversationId?: 'derive' | 'random'
  /**
   * Where the system text goes. pair: a message of its own in front of everything; fold: into the first user message.
   * Overrides (docs/kiro.md): The system text belongs into the first pair of the history.
   * Environment: `KIRO_SYSTEM_TEXT`.
   * @default pair
   */
  systemText?: 'pair' | 'fold'
  /**
   * Slow the whole pool down when several accounts come under suspicion.
   * Overrides (docs/kiro.md): suspicious activity holds for a day and more, and reaches other accounts behind one address.
   * Environment: `KIRO_SUSPICION_BRAKE`.
   * @default on
   */
  suspicionBrake?: 'on' | 'off'

  // What only JavaScript has

  /** The environment to read. Pass `{}` to ignore it. @default process.env */
  env?: Record<string, string | undefined>
  /**
   * Sees each outcome, on this thread, before it is written to an account's record. Return `true` when you have recorded
   * it yourself: then the gateway doesn't write it. After anything else, a promise or a throw included, it does.
   *
   * Not called for calls pinned with `accountId`, for calls with `record: false`, and for uses that ended in somebody
   * else's fault: the gateway counts those by itself. @default none
   */
  recordOutcome?: (outcome: Outcome) => boolean | void
}

/** The options of a call, beside its request. */
export interface CallOptions {
  /** Aborts at any time. The listener on it is removed when the call ends. */
  signal?: AbortSignal
  /** Goes into logs and into `request-id`; `[A-Za-z0-9._-]{1,128}`, else a new one is made. */
  requestId?: string
  /** The client's headers, in any case. `x-claude-code-session-id`, else `x-session-id`, keeps a conversation together; a client key tells clients apart. */
  headers?: IncomingHttpHeaders | Record<string, string>
  /**
   * Use this account only: no selection, no failover, whatever the account's state. One forced refresh and one more try
   * when its token is rejected. While a `Retry-After` of upstream runs on it, it fails at once with `KIRO_RATE_LIMITED`.
   * Such a call records no outcome.
   */
  accountId?: string
  /**
   * The operator's system text. `append`: after the request's own, on a line of its own (another text block where that is
   * an array); alone when the request has none. `overwrite`: in its place. @default none
   */
  system?: { mode: 'append' | 'overwrite'; text: string }
  /** Record the outcome on the account. @default true */
  record?: boolean
  /**
   * The model that serves any name which isn't known, in place of `modelFallback` of the gateway, which is for `claude…`
   * names alone. @default none
   */
  modelFallback?: string
}

/** The options of {@link KiroGateway.streamEvents}. */
export interface EventOptions extends CallOptions {
  /**
   * Waiting deltas of one block are joined into one: the same text, fewer objects. `false`: one event for each delta
   * that was sent. @default true
   */
  coalesce?: boolean
}

/** JSON text (a string or bytes: taken as it is, not parsed in JavaScript), or a plain object. */
export type MessagesInput = string | ArrayBufferView | ArrayBufferLike | MessagesRequest

/** A request whose tokens are counted: only the input counts, so `max_tokens` may be missing. */
export type CountTokensInput = string | ArrayBufferView | ArrayBufferLike | CountTokensRequest

/** What counts of a {@link MessagesRequest}, which may be given whole. */
export type CountTokensRequest = Omit<MessagesRequest, 'max_tokens'> & { max_tokens?: number }

// Methods that lib/ adds to the class below.
export interface KiroGateway extends AsyncDisposable {
  /**
   * Streams an answer as parsed events. It starts at the first `next()`, so the call itself throws only for arguments of a
   * wrong type. It throws a `KiroError` where the bytes of {@link KiroGateway.streamMessages} carry `event: error`, and
   * where that call would reject.
   *
   * ```js
   * for await (const event of gateway.streamEvents(request)) {
   *   if (event.type === 'content_block_delta' && event.delta.type === 'text_delta') process.stdout.write(event.delta.text)
   * }
   * ```
   */
  streamEvents(request: MessagesInput, options?: EventOptions): EventStream
  /**
   * Calls `listener` for each event from now on, in order, one tick after it happened. A listener that throws ends in
   * `uncaughtException`, as any EventEmitter's, and harms no stream. Listeners don't keep the process alive.
   */
  on<E extends keyof GatewayEvents>(event: E, listener: (event: GatewayEvents[E]) => void): this
  /** The same, for the next event only. */
  once<E extends keyof GatewayEvents>(event: E, listener: (event: GatewayEvents[E]) => void): this
  /** Calls `listener` no more. */
  off<E extends keyof GatewayEvents>(event: E, listener: (event: GatewayEvents[E]) => void): this
  /**
   * A request handler for `node:http`, Express and Fastify's raw objects. It serves what `kiro-server` serves:
   * `POST /v1/messages`, `count_tokens`, `GET /v1/models` and one of them, `/health`, `/health/live`, `/metrics`, `/status`,
   * `/api/event_logging/…`, and the same below `/claude-kiro-oauth`. Other paths go to `next`, or are answered with 404 when there is none. Uses `req.body` when a
   * parser has read the request already. With a parser such as `express.json()` in front, what it refuses never comes here:
   * Express answers broken JSON, and bodies of more than its `limit` (100 KB), in its own words. Put the handler before it,
   * give it `express.raw({ type: () => true, limit: '32mb' })` in its place, or no parser on these paths.
   *
   * A streamed answer costs this thread only its head and its end: on Unix, over plain HTTP/1.1, a thread of ours writes
   * the bytes between to the client's socket, and `socket.bytesWritten` doesn't count them. All of it goes through
   * `res.write` with a wrapped `write`, a compression middleware, TLS, HTTP/2 or `socket.setTimeout()`, which would
   * otherwise be bypassed.
   *
   * ```js
   * http.createServer(gateway.handler()).listen(8081)
   * ```
   */
  handler(options?: HandlerOptions): RequestHandler
  /** Closes with the default grace time. */
  [Symbol.asyncDispose](): Promise<void>
}

export interface HandlerOptions {
  /** The path below which it serves, such as `/kiro`. @default '' */
  basePath?: string
  /**
   * `key`: as the server, with the client key of the configuration. Without a configured key only this machine is served,
   * unless `allowAnonymous` is set. `none`: the caller has checked it. @default 'key'
   */
  auth?: 'key' | 'none'
}

export interface ListenOptions {
  /** An address or a name. @default the option `host` */
  host?: string
  /** 0 takes a free one. @default the option `port` */
  port?: number
}

/** A server on the addon's own threads. */
export interface GatewayServer extends AsyncDisposable {
  /** The address it listens on. */
  readonly host: string
  readonly port: number
  /**
   * Refuses new connections at once. Running requests may finish within `graceMs`, then streams end with `event: error`
   * and other requests with 503. Resolves when the last connection is closed. The gateway goes on; its own `close` closes
   * its servers too. @default gracefulTimeoutMs
   */
  close(graceMs?: number): Promise<void>
}

/** Resolves when the answer has ended or its connection has closed; a closed connection cancels the upstream request. */
export type RequestHandler = (
  req: IncomingMessage,
  res: ServerResponse,
  next?: (error?: unknown) => void,
) => Promise<void>

/**
 * The SSE bytes of one answer, for one consumer. Each Buffer holds whole events, at least one, and is yours to keep.
 *
 * Upstream is read ahead by at most 64 KiB. Leaving a `for await` loop, {@link MessageStream.cancel}, an aborted signal
 * and garbage collection all drop the upstream request. For another kind of stream: `Readable.from(stream)`,
 * `ReadableStream.from(stream)`.
 */
export interface MessageStream extends AsyncIterableIterator<Buffer> {
  readonly requestId: string
  /** To be sent with status 200. */
  readonly headers: Record<string, string>
  /** Features of the request that were accepted and have no effect, such as `tools.0.strict`; at most 16. */
  readonly ignored: readonly string[]
  /** Settles when the stream has ended in any way. Never rejects. */
  readonly summary: Promise<StreamSummary>
  /** Writes head and body to a response, waiting where it must; a response that closes cancels the stream. */
  pipeTo(res: ServerResponse): Promise<StreamSummary>
  /** Stops now; the iteration ends. The same as `return()`. */
  cancel(): void
  next(): Promise<IteratorResult<Buffer, undefined>>
  return(): Promise<IteratorResult<Buffer, undefined>>
  [Symbol.asyncIterator](): this
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * The events of one answer, for one consumer. Leaving a `for await` loop, an aborted signal and garbage collection drop the
 * upstream request; one that was never asked for an event has none.
 */
export interface EventStream extends AsyncIterableIterator<StreamEvent> {
  next(): Promise<IteratorResult<StreamEvent, undefined>>
  return(): Promise<IteratorResult<StreamEvent, undefined>>
  [Symbol.asyncIterator](): this
  [Symbol.asyncDispose](): Promise<void>
}

/** An event of the Messages API, in its order; an `error` event is thrown instead. */
export type StreamEvent =
  /** The first event; `content` is empty, `usage` holds the estimate of the input. */
  | { type: 'message_start'; message: Message }
  | { type: 'content_block_start'; index: number; content_block: ContentBlock }
  | { type: 'content_block_delta'; index: number; delta: ContentBlockDelta }
  | { type: 'content_block_stop'; index: number }
  /** How the answer ended; `usage` holds the final figures. */
  | {
      type: 'message_delta'
      delta: { stop_reason: StopReason | null; stop_sequence: string | null }
      usage: Usage
      context_management?: ContextManagementReport
    }
  | { type: 'message_stop' }
  /** Nothing was sent for `pingIntervalMs`. */
  | { type: 'ping' }

export type ContentBlockDelta =
  | { type: 'text_delta'; text: string }
  | { type: 'thinking_delta'; thinking: string }
  /** Once, before its block ends. */
  | { type: 'signature_delta'; signature: string }
  /** A piece of the JSON of a tool's input. */
  | { type: 'input_json_delta'; partial_json: string }

/** The result of a stream. */
export interface StreamSummary {
  requestId: string
  /** The account of the last attempt. */
  accountId: string | null
  /** The model as the request named it. */
  model: string
  /** The model as upstream names it. */
  kiroModel: string | null
  outcome: 'complete' | 'error' | 'cancelled'
  stopReason: StopReason | null
  usage: Usage | null
  /** Accounts tried. */
  attempts: number
  /** Bytes of SSE. */
  bytes: number
  firstEventMs: number | null
  durationMs: number
  /** As in {@link MessageStream.ignored}. */
  ignored: string[]
  /** The name of the client's key, where it has a named one (`apiKeysFile`). */
  key?: string
  error?: KiroError
}

/** What `context_management` has cleared; edits that changed nothing aren't in it. */
export interface ContextManagementReport {
  applied_edits: (
    | { type: 'clear_tool_uses_20250919'; cleared_tool_uses: number; cleared_input_tokens: number }
    | { type: 'clear_thinking_20251015'; cleared_thinking_turns: number; cleared_input_tokens: number }
  )[]
}

/** The estimate of a request's input. */
export interface TokenCount {
  /** After the edits of `context_management`. */
  input_tokens: number
  /** Only of a request that has it. */
  context_management?: { original_input_tokens: number }
}

/** Token counts. The three of input add up to the whole input; `usageSplit` says how they are split. */
export interface Usage {
  input_tokens: number
  cache_creation_input_tokens: number
  cache_read_input_tokens: number
  output_tokens: number
  /** Only where the web search tool is declared: searches that upstream answered. */
  server_tool_use?: { web_search_requests: number; web_fetch_requests: number }
}

/** Why an answer ended. `pause_turn`: send it back as it is, and the model goes on. */
export type StopReason =
  | 'end_turn'
  | 'tool_use'
  | 'max_tokens'
  | 'stop_sequence'
  | 'pause_turn'
  | 'refusal'
  | 'model_context_window_exceeded'

/** The named members, and any others that the Messages API has there. */
type Open<T> = T | (T & { [name: string]: unknown })

/** A request of the Messages API. Unknown members are accepted and ignored. */
export interface MessagesRequest {
  model: string
  max_tokens: number
  messages: MessageParam[]
  system?: string | TextBlockParam[]
  tools?: ToolParam[]
  tool_choice?: { type: 'auto' | 'any' | 'tool' | 'none'; name?: string; disable_parallel_tool_use?: boolean }
  thinking?: { type: 'enabled' | 'adaptive' | 'disabled' | 'between_tools'; budget_tokens?: number; display?: string | null }
  metadata?: { user_id?: string | null }
  stream?: boolean
  temperature?: number
  top_p?: number
  top_k?: number
  stop_sequences?: string[]
  output_config?: { effort?: string | null; format?: object | null } | null
  cache_control?: object | null
  container?: unknown
  context_management?: object | null
  diagnostics?: object | null
  inference_geo?: string | null
  mcp_servers?: object[]
  service_tier?: string
  speed?: string | null
}

export interface MessageParam {
  role: 'user' | 'assistant' | 'system'
  content: string | ContentBlockParam[]
}

export type TextBlockParam = Open<{ type: 'text'; text: string }>

/** A block of content by its `type`: text, image, document, tool_use, tool_result, thinking and the others. */
export type ContentBlockParam = TextBlockParam | Open<{ type: string }>

/**
 * A tool of the caller's, or one of Anthropic's by its `type`: `web_search_…` is served through Kiro's own search (`webSearch`),
 * `bash_…`, `text_editor_…` and `memory_…` go out as ordinary tools. The others are left out, and refused when no tool is left.
 */
export type ToolParam = Open<ClientTool> | Open<{ type: string; name?: string }>

export interface ClientTool {
  type?: 'custom' | null
  name: string
  description?: string
  input_schema?: object | null
}

export type ContentBlock =
  | { type: 'text'; text: string }
  | { type: 'thinking'; thinking: string; signature: string }
  | { type: 'redacted_thinking'; data: string }
  | { type: 'tool_use'; id: string; name: string; input: unknown }
  | { type: 'server_tool_use'; id: string; name: 'web_search'; caller: { type: 'direct' }; input: unknown }
  | {
      type: 'web_search_tool_result'
      tool_use_id: string
      caller: { type: 'direct' }
      content: WebSearchResult[] | { type: 'web_search_tool_result_error'; error_code: WebSearchErrorCode }
    }

/** What a web search found. */
export interface WebSearchResult {
  type: 'web_search_result'
  url: string
  title: string
  /** For the model: send it back as it is. */
  encrypted_content: string
  page_age: string | null
}

export type WebSearchErrorCode = 'invalid_tool_input' | 'unavailable' | 'max_uses_exceeded' | 'too_many_requests'

/** A whole answer. */
export interface Message {
  id: string
  type: 'message'
  role: 'assistant'
  model: string
  content: ContentBlock[]
  stop_reason: StopReason | null
  stop_sequence: string | null
  usage: Usage
  /** Only of a request that has `context_management`. */
  context_management?: ContextManagementReport
  /** As in {@link MessageStream.ignored}; in an answer of `createMessage` only, and not enumerable. */
  readonly ignored?: readonly string[]
}

export interface ModelInfo {
  type: 'model'
  id: string
  display_name: string
  /** RFC 3339. */
  created_at: string
  /** Context window, tokens. */
  max_input_tokens: number
  /** Most output tokens. */
  max_tokens: number
}

/** The body of `GET /health`. */
export interface Health {
  /** `degraded`: something is wrong, and it may serve all the same (`canServe`). */
  status: 'healthy' | 'degraded'
  /** Whether some account could serve a request sent now: `GET /health` is 200 then, else 503. */
  canServe: boolean
  /** The store, also when it is a file. */
  redis: 'connected' | 'disconnected'
  accounts: { total: number; healthy: number }
  /** Seconds since the start. */
  uptime: number
  version: string
  /** Present while answers are simulated. */
  upstream?: 'simulator'
  /** Every host of Kiro's that was called, with the state of its circuit. */
  hosts?: Record<string, 'closed' | 'half-open' | 'open'>
  /** Whether Kiro takes the client version in the user agents; `since` is RFC 3339. */
  clientVersion: { value: string; refused: boolean; since?: string }
  /** Refreshed tokens that wait to be saved: without `stateDir` they end with the process. */
  unsavedTokens: number
  /** `stateDir`, where they are kept meanwhile; `broken`: the last one could not be kept. */
  journal: 'off' | 'ok' | 'broken'
}

/** One account, without secrets. */
export interface AccountInfo {
  id: string
  /** Its display name. */
  name: string | null
  /** How its access token is renewed; an API key isn't. */
  method: 'social' | 'idc' | 'external' | 'api-key'
  /** Whose account it is; `unsure`: a Builder ID or one of an organisation, its records don't say which. */
  kind: 'social' | 'builder-id' | 'enterprise' | 'external' | 'api-key' | 'unsure'
  /** The region in which Kiro is asked for it. */
  region: string
  /** Its profile: its own, one that was found, Kiro's fixed one, or none; `missing`: it needs one. */
  profile: 'own' | 'listed' | 'service' | 'none' | 'missing'
  /**
   * `healthy` and `half-open` (one request at a time, a success heals) are selected; `stale` (its token needs a refresh)
   * only when none of these is left. `cooling` and `quota` come back at `until`, `ejected` when a person acts;
   * `disabled` is switched off; `unusable` has no readable record or no credential; `no-profile`: Kiro has no profile for it as far
   * as this process knows, and it is looked for again.
   */
  state: 'healthy' | 'stale' | 'half-open' | 'cooling' | 'no-profile' | 'quota' | 'ejected' | 'disabled' | 'unusable'
  /** RFC 3339: the end of a rest or of a used-up quota. */
  until: string | null
  /** RFC 3339: when the access token expires; null for API keys and when it is unknown. */
  expiresAt: string | null
  /** RFC 3339: when the client registration of an `idc` account ends. Its token can't be renewed afterwards. */
  registrationExpiresAt: string | null
  /** This process's requests on it. */
  inFlight: number
  /** Why it is unusable. */
  problem?: string
}

/** Who signs in, and the callbacks that show the person where. */
export interface LoginOptions {
  method: 'builder-id' | 'google' | 'github' | 'idc'
  /** Where the organisation signs in; for `idc`. */
  startUrl?: string
  /** Region of the Identity Center; without it, it is looked for. */
  region?: string
  /** A name for lists. */
  name?: string
  /** The id of the account whose credential is replaced: it keeps id and name, its mark is lifted. */
  replace?: string
  /** With `replace`: another user may take the account over. @default false */
  force?: boolean
  /** Ask Kiro for the account's profile and plan afterwards. @default true */
  check?: boolean
  /** Gets the code, once. What it throws rejects the login, and the wait ends. */
  onCode: (code: LoginCode) => void
  /** Ends the wait for the person. */
  signal?: AbortSignal
}

/** What a person must open. */
export interface LoginCode {
  userCode: string
  verificationUri: string
  /** The same with the code in it. Always https, on a host of AWS or Kiro. */
  verificationUriComplete: string
  /** RFC 3339. */
  expiresAt: string
}

export interface LoginResult {
  account: AccountInfo
  /** The subscription's title; null where Kiro wasn't asked, gave no answer, or named none. */
  plan: string | null
  /** Credits. */
  used: number | null
  limit: number | null
  /** Sentences for the person. */
  warnings: string[]
}

export interface ImportOptions {
  /** What relative paths of a `provider_pools.json` begin with. @default the folder above its `configs` */
  base?: string
  /** The n-th account alone, from 1. */
  only?: number
  /** The account with this name or key alone. */
  key?: string
  /** A name for the only account. */
  name?: string
  /** Writes nothing. @default false */
  dryRun?: boolean
  /** Doesn't ask Kiro for the profile of a single account. @default false */
  offline?: boolean
  /** Ends it; accounts that were added so far stay. */
  signal?: AbortSignal
}

export interface ImportResult {
  accounts: ImportedAccount[]
  /** Sentences for the person, of all of them. */
  warnings: string[]
}

export type ImportedAccount =
  | {
      /** Its name or number in the source. */
      source: string
      outcome: 'added' | 'would-add'
      /** null: it would be added. */
      id: string | null
      name: string | null
      method: AccountInfo['method']
      /** RFC 3339. */
      expiresAt: string | null
      warnings: string[]
    }
  | { source: string; outcome: 'duplicate'; id: string }
  | { source: string; outcome: 'failed'; error: string }

/** The tokens of an account: secrets. */
export interface Credential {
  /** The bearer token; the API key where the account has one. */
  accessToken: string
  refreshToken: string | null
  /** RFC 3339. */
  expiresAt: string | null
  profileArn: string | null
}

/** Upstream's `getUsageLimits`, as it came: everything may be missing. */
export interface UsageLimits {
  /** Seconds since 1970. */
  nextDateReset?: number
  daysUntilReset?: number
  subscriptionInfo?: { subscriptionTitle?: string; type?: string; [name: string]: unknown }
  userInfo?: { email?: string; userId?: string; [name: string]: unknown }
  usageBreakdownList?: {
    resourceType?: string
    currentUsage?: number
    currentUsageWithPrecision?: number
    usageLimit?: number
    usageLimitWithPrecision?: number
    [name: string]: unknown
  }[]
  [name: string]: unknown
}

/** The outcome of an attempt, or of a refused refresh, for an account's record. */
export type Outcome =
  | {
      /** A use that went well. */
      kind: 'success'
      accountId: string
      at: Date
      /** Whether it lifts the marks of the record. A success that doesn't is a bare count. */
      heals: boolean
      /** Whether it was the one request that a half-open account gets. */
      halfOpen: boolean
      /** A probe by the gateway itself, which isn't a use of the account. */
      probe: boolean
    }
  /** A failure that counts, below the number that makes the account rest. */
  | { kind: 'failure'; accountId: string; at: Date; cause: string }
  /** The account rests, or its quota is used up, until then. */
  | { kind: 'coolDown' | 'quota'; accountId: string; at: Date; until: Date; message: string }
  /** The account is out until a person acts. */
  | { kind: 'ejected'; accountId: string; at: Date; message: string }

/** The events of {@link KiroGateway.on}. */
export interface GatewayEvents {
  /** The account is out until a person acts. */
  accountEjected: { accountId: string; message: string }
  /** The account has a new access token; {@link KiroGateway.credential} has it. */
  tokenRefreshed: { accountId: string; expiresAt: string | null; method: 'social' | 'idc' | 'external' }
  /**
   * An unknown model's name (in quotes) is served by another model (`modelFallback`); once a day for each name.
   */
  modelReplaced: { model: string; instead: string }
  /** The store can't be reached any more; the gateway serves on with the last snapshot. */
  storeLost: { cause: string }
  /** The store is back: how long it was away, and how many waiting records were written. */
  storeBack: { awayMs: number; written: number }
}

/** Codes are stable: programs branch on them, never on `message`. */
export type KiroErrorCode =
  /** The request's shape, or upstream's 400; the message names the JSON path. Status 400. */
  | 'KIRO_INVALID_REQUEST'
  /** The message begins with `prompt is too long: `. Status 400. */
  | 'KIRO_PROMPT_TOO_LONG'
  /** The client's key, where a handler asks for one. Status 401. */
  | 'KIRO_AUTHENTICATION'
  /** No such model, route or account. Status 404. */
  | 'KIRO_NOT_FOUND'
  /** The body is over `maxRequestBody`. Status 413. */
  | 'KIRO_REQUEST_TOO_LARGE'
  /** Every attempt was rate limited; `retryAfterMs` says when to come back. Status 429, retryable. */
  | 'KIRO_RATE_LIMITED'
  /** Aborted by the caller. `name` is `AbortError`, `cause` the signal's reason. Status 499. */
  | 'KIRO_CANCELLED'
  /** Upstream failed, was cut or refused the accounts that were tried. Status 500, retryable. */
  | 'KIRO_UPSTREAM'
  /** The last attempt ran into one of the time limits. Status 504, retryable. */
  | 'KIRO_UPSTREAM_TIMEOUT'
  /** A defect of this package. Status 500. */
  | 'KIRO_INTERNAL'
  /** Kiro refuses this program's client version: update it, or set `clientVersion`. Status 500. */
  | 'KIRO_CLIENT_REFUSED'
  /** No account can be chosen now. Status 503, retryable. */
  | 'KIRO_NO_ACCOUNT'
  /** The store has not been reached yet. Status 503, retryable. */
  | 'KIRO_STORE_UNAVAILABLE'
  /**
   * Upstream has no capacity for the model, `maxConns` is reached, or there is no memory for the request (`maxRequestMemory`) or
   * the answer. Status 529, retryable.
   */
  | 'KIRO_OVERLOADED'
  /** Calls pinned to an account: its credentials were refused. Status 401. */
  | 'KIRO_ACCOUNT_UNAUTHORIZED'
  /** Calls pinned to an account: it may not do this. Status 403. */
  | 'KIRO_ACCOUNT_FORBIDDEN'
  /** Calls pinned to an account: it is suspended. Status 403. */
  | 'KIRO_ACCOUNT_SUSPENDED'
  /** Calls pinned to an account: its quota is used up. Status 402. */
  | 'KIRO_QUOTA_EXHAUSTED'
  /** The gateway was closed. Status 503. */
  | 'KIRO_CLOSED'
  /** A mistake in the options or the environment. Status 500. */
  | 'KIRO_CONFIG'
  /** No native binary fits this platform. Status 500. */
  | 'KIRO_BINDING_NOT_FOUND'

/** The error of every failed call. It holds no token, no key and no text of a prompt. */
export declare class KiroError extends Error {
  private constructor()
  readonly code: KiroErrorCode
  /** The HTTP status that belongs to it, 400–599. */
  readonly status: number
  /** Anthropic's error type, such as `rate_limit_error`. */
  readonly type: string
  /** Who must act. */
  readonly origin: 'client' | 'upstream' | 'internal'
  /** Whether the same call may succeed later. */
  readonly retryable: boolean
  /** When a retry is worthwhile, if that is known. */
  readonly retryAfterMs?: number
  readonly requestId?: string
  readonly accountId?: string
  /** Whether a value is a KiroError, also of another copy of this package or from another thread. */
  static is(value: unknown): value is KiroError
  /** The body of the Messages API for it. */
  toJSON(): { type: 'error'; error: { type: string; message: string; details?: { error_code: string } }; request_id?: string }
  /** An HTTP answer for it, `retry-after` and `x-should-retry` included. */
  toResponse(): { status: number; headers: Record<string, string>; body: string }
}

/**
 * The way to Kiro: a pool of accounts, failover between them, and the streams that are open.
 *
 * Everything happens on threads of its own; this thread gets finished bytes. A gateway belongs to the thread that
 * connected it. It doesn't keep the process alive by itself: a call that is awaited does.
 *
 * ```js
 * import { KiroGateway } from 'kiro-messages'
 *
 * const gateway = await KiroGateway.connect({ store: 'file:accounts.json' })
 * const stream = await gateway.streamMessages({
 *   model: 'claude-sonnet-4-5',
 *   max_tokens: 1024,
 *   messages: [{ role: 'user', content: 'Hello' }],
 * })
 * for await (const bytes of stream) process.stdout.write(bytes)
 * await gateway.close() // TypeScript, and Node.js 24, have `await using` for it
 * ```
 */
export declare class KiroGateway {
  private constructor()
  /**
   * Reads the configuration, connects the store, warms the upstream pool.
   *
   * Rejects with `KIRO_CONFIG` when an option or a variable is wrong, with `KIRO_STORE_UNAVAILABLE` when the store
   * can't be reached within `storeWaitMs` (0: doesn't wait; calls fail with that code until the store is there).
   */
  static connect(options?: GatewayOptions): Promise<KiroGateway>
  /**
   * Streams an answer. Resolves when the status is known: at the first upstream event, or after `earlyHeadersMs`.
   * Until then it fails over silently to other accounts, and at the end rejects with a `KiroError`. `stream` in the
   * request is taken as true.
   *
   * From then on nothing throws: a failure of upstream is one `event: error`, and then the stream ends, as the
   * Messages API has it.
   */
  streamMessages(request: MessagesInput, options?: CallOptions): Promise<MessageStream>
  /** The whole answer as one message. Any failure rejects. `stream` in the request is taken as false. */
  createMessage(request: MessagesInput, options?: CallOptions): Promise<Message>
  /** Estimates the input tokens of a request, off this thread. Nothing is sent anywhere. */
  countTokens(request: CountTokensInput): Promise<TokenCount>
  /** The same on this thread: about 1 ms per 100 KB. */
  countTokensSync(request: CountTokensInput): TokenCount
  /** The models that can be asked for, newest first. */
  listModels(): ModelInfo[]
  /** The body of `GET /health`, from memory. */
  health(): Health
  /** The body of `GET /metrics`: OpenMetrics text. */
  metrics(): string
  /** The accounts as this process sees them, sorted by id. From memory, without secrets. */
  accounts(): AccountInfo[]
  /** The tokens of an account, from memory; null when there is no such account. No other call shows a secret. */
  credential(accountId: string): Credential | null
  /**
   * Refreshes the access token of an account now, and resolves with its expiry. Within 30 s after a success it
   * returns that one's.
   *
   * Rejects with `KIRO_NOT_FOUND` for an unknown account, `KIRO_ACCOUNT_UNAUTHORIZED` when the refresh was refused,
   * `KIRO_UPSTREAM` or `KIRO_UPSTREAM_TIMEOUT` when it could not be asked for.
   */
  refresh(accountId: string): Promise<{ expiresAt: string | null }>
  /**
   * An account's usage: upstream's `getUsageLimits`, as it came. It changes nothing on the account, unless upstream
   * says that the account is suspended.
   *
   * Rejects with `KIRO_NOT_FOUND` for an unknown account, else as a call pinned to the account does.
   */
  usageLimits(accountId: string, options?: { signal?: AbortSignal }): Promise<UsageLimits>
  /**
   * Signs a person in by device code (AWS Builder ID, Google, GitHub, IAM Identity Center): `onCode` gets what he must
   * open, on any machine, and the promise resolves when he is done and the account is in the store, serving. Looks up
   * its profile and plan, unless `check` is false.
   *
   * Aborting `signal` ends the wait for the person; nothing is kept then. A login that has come already is kept all the
   * same, so that it isn't lost. Rejects with `KIRO_ACCOUNT_UNAUTHORIZED` when it was refused, came too late, or is
   * another user's than `replace`'s; `KIRO_UPSTREAM` when the sign-in's host can't be reached;
   * `KIRO_STORE_UNAVAILABLE` when the store takes no writes; `KIRO_NOT_FOUND` for an unknown `replace`.
   *
   * Browser and other providers: `npx kiro-messages accounts login --browser`.
   *
   * ```js
   * const { account } = await gateway.login({
   *   method: 'builder-id',
   *   onCode: ({ verificationUriComplete, userCode }) => console.log(verificationUriComplete, userCode),
   * })
   * ```
   */
  login(options: LoginOptions): Promise<LoginResult>
  /**
   * Takes over the sessions of other programs from a file or a folder, as `npx kiro-messages accounts add --from` does:
   * Kiro's token files, the Node.js service's `provider_pools.json`, `credentials.json` of other gateways, API keys
   * one a line. The source is only read. They serve at once.
   *
   * A bad account doesn't stop the others: look at each `outcome`. Rejects with `KIRO_INVALID_REQUEST` when the path
   * holds nothing that can be taken over, or is kiro-cli's database, which only the command line reads;
   * `KIRO_STORE_UNAVAILABLE` when the store can't be used.
   */
  importAccounts(path: string, options?: ImportOptions): Promise<ImportResult>
  /**
   * Serves on an address, from threads of its own: no JavaScript runs for a request. The routes are those of
   * {@link KiroGateway.handler}. Keeps the process alive until it is closed.
   *
   * Rejects with `KIRO_CONFIG` when the address can't be used, or when other machines could reach it while no client
   * key is configured and `allowAnonymous` isn't set.
   */
  listen(options?: ListenOptions): Promise<GatewayServer>
  /**
   * No new calls from here on. Open streams may finish within `graceMs` (0: they are cut now), then each ends with
   * `event: error`; then counters and tokens are written and connections closed. May be called again.
   */
  close(options?: { /** @default gracefulTimeoutMs */ graceMs?: number }): Promise<void>
}
