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
  // <settings>
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
