/**
 * The existing Node.js service's way to Kiro: two functions in place of its own client. What to change there, and how
 * to take it back, is in docs/drop-in.md.
 *
 * Both share one gateway per process, or one for each pool of a pool file. It is connected at the first call that needs
 * it: with what {@link configure} was given, else with `config.redis` and `PROXY_URL` of any configuration seen so far,
 * else with the environment. Where a configuration names a pool file (`PROVIDER_POOLS_FILE_PATH`) and no Redis, it is that file, and a gateway for each pool. A
 * connect that failed is tried again at the next call, after at least a second.
 *
 * @packageDocumentation
 */

import type { IncomingMessage, ServerResponse } from 'node:http'
import type { GatewayOptions, KiroGateway, Message, StreamEvent, Usage } from '../../index.js'

/**
 * Says how the process's gateway is to be connected. Must come before the first call; throws `KIRO_CONFIG` after it.
 */
export declare function configure(options: GatewayOptions): void

/**
 * Closes the process's gateway, if there is one: for the end of the process, so that the last counters are saved. The
 * next call would connect another.
 */
export declare function close(options?: {
  /** How long open streams may finish. @default gracefulTimeoutMs */
  graceMs?: number
}): Promise<void>

/**
 * The adapter for the provider `claude-kiro-oauth`, to be returned by the service's adapter factory. Synchronous and
 * cheap: no IO, nothing to close.
 *
 * `config` is the account's record, alone or merged over the service's configuration. Without a `uuid` in it, as the
 * service makes one while its pool is empty, the gateway selects the accounts.
 */
export declare function createKiroAdapter(config: KiroConfig, host?: Host): KiroAdapter

/**
 * The same as a class, for a service whose adapter factory is a registry:
 *
 * ```js
 * registerAdapter('claude-kiro-oauth', createKiroAdapterClass(kiroHost))
 * ```
 */
export declare function createKiroAdapterClass(host?: Host): new (config: KiroConfig) => KiroAdapter

/**
 * The work for `POST /v1/messages` and `POST /v1/messages/count_tokens` of the provider, with or without the provider
 * in the path. To be called where the service would handle the request, after its authentication and CORS:
 *
 * ```js
 * if (await kiro(req, res, config)) return
 * ```
 *
 * Resolves with true when it has answered. With false, `req` and `res` are as they were: for other paths, for other
 * providers in `config.MODEL_PROVIDER` (`auto` is Kiro's when no other pool has an account), for names with a suffix that
 * neither the pool manager nor the pool file has, and when no
 * account can be selected while `config.providerFallbackChain` names other providers and {@link Host.getApiService} finds
 * one.
 */
export declare function createKiroHandler(
  host: Host,
): (req: IncomingMessage, res: ServerResponse, config: Record<string, unknown>) => Promise<boolean>

/** The account's id, where there is an account, and whatever else the service has there. */
export interface KiroConfig {
  uuid?: string | null
  [name: string]: unknown
}

/** The service's objects. All are optional; each is asked for at use and never kept. */
export interface Host {
  /** The gateway to use in place of the process's own. */
  gateway?: KiroGateway | Promise<KiroGateway>
  /** The pool manager: outcomes are reported to it, so that the service's memory and UI stay right. */
  getPoolManager?(): object | null | undefined
  /** The service's adapters by provider and account: an old client among them gets the tokens that we refresh. */
  getServiceInstances?(): Record<string, unknown>
  /**
   * The service's own choice of an adapter, for requests without a usable account: point B gives such a request back only
   * when this finds an adapter that isn't ours, instead of throwing. Gets a copy of the configuration.
   */
  getApiService?(config: Record<string, unknown>): unknown
  /**
   * The model that serves names which aren't known; the log says so once a day for each name. Null: such names are
   * refused. @default the gateway's `modelFallback`, else `claude-sonnet-4-5`
   */
  modelFallback?: string | null
  /** Point B takes a request without `max_tokens`, as point A does: it is the model's maximum. @default false */
  lenient?: boolean
  /** Called once for each messages request that reached the gateway, after its answer. */
  onContentGenerated?(config: object, answer: KiroAnswer): unknown
  /**
   * `answer` of `onContentGenerated` has the request's bodies too. Each is then kept until its answer ends, and parsed once.
   * Read at each request: a getter can say it only while a plugin reads them. @default false
   */
  readonly requestBodies?: boolean
  /** Gets each event of a streamed answer. Read at each request: give it only while somebody wants the events. */
  onStreamChunk?(chunk: { nativeChunk: StreamEvent; chunkToSend: StreamEvent } & KiroRoute): unknown
  /** The same for whole messages. */
  onUnaryResponse?(answer: { nativeResponse: Message; clientResponse: Message } & KiroRoute): unknown
  /** Gets the system text of each request, as the client sent it; empty when there is none. */
  onSystemPrompt?(text: string): unknown
  /** The prompt log, where `config.PROMPT_LOG_MODE` is not `none`: the last user message, then the answer's text. */
  logPrompt?(kind: 'input' | 'output', text: string, config: object): unknown
}

/** Where an answer comes from, in the service's words. */
export interface KiroRoute {
  fromProvider: 'claude'
  /** `claude-kiro-oauth`, or that with a suffix. */
  toProvider: string
  model: string | null
  requestId: string | null
}

/** How a request at point B ended. What is optional is missing when there was no answer of upstream's. */
export interface KiroAnswer {
  fromProvider: 'claude'
  toProvider: string
  isStream: boolean
  requestId?: string
  /** 0 when the client left before there was one. */
  status: number
  outcome: 'complete' | 'error' | 'cancelled'
  /** The account. */
  uuid?: string | null
  model?: string
  stopReason?: string | null
  usage?: Usage | null
  durationMs?: number
  /** What the client sent, with {@link Host.requestBodies}; missing when that was no JSON. */
  originalRequestBody?: Record<string, unknown>
  /** The same as it was served: with the model of a custom one, and with the system-prompt file. */
  processedRequestBody?: Record<string, unknown>
}

/**
 * A call of the service for one account. Nothing is selected and nothing is recorded here: the service chose the
 * account, and marks the failures that it sees. Errors are `KiroError`s that are {@link HostError}s too.
 */
export interface KiroAdapter {
  /** The whole answer. */
  generateContent(model: string, body: KiroBody): Promise<Message>
  /**
   * The answer as events. The call itself never throws; it starts at the first `next()`. Nothing comes out before the
   * first content: until then the service may try another account.
   */
  generateContentStream(model: string, body: KiroBody): AsyncIterableIterator<StreamEvent>
  /** The models that can be asked for, and all names that the service lists itself. */
  listModels(): Promise<{ models: { name: string }[] }>
  /** A local estimate, at once. */
  countTokens(body: object): { input_tokens: number }
  /** Refreshes the access token when it expires within `refreshThresholdMs`; resolves with whether it did. */
  refreshToken(): Promise<boolean>
  /** Refreshes the access token now; rejects when upstream refuses. */
  forceRefreshToken(): Promise<true>
  /** Whether the access token expires within `refreshThresholdMs`; false when that is unknown. */
  isExpiryDateNear(): boolean
  /** The answer of upstream's `getUsageLimits`. Errors read `API call failed: <status> - <message>`. */
  getUsageLimits(): Promise<unknown>
}

/**
 * A request of the Messages API. It is not changed. `max_tokens` may be missing or too large: it becomes the model's
 * maximum. `signal` aborts the request and is not sent.
 */
export interface KiroBody {
  messages?: unknown
  signal?: AbortSignal
  [name: string]: unknown
}

/** The members of an error that the service reads. */
export interface HostError extends Error {
  status: number
  response: { status: number; data: { type: 'error'; error: { type: string; message: string; details?: { error_code: string } }; request_id?: string } }
  /** The service must not count it on the account. */
  skipErrorCount?: boolean
  /** The service may try another account. */
  shouldSwitchCredential?: boolean
  /** The pool manager was told already. */
  credentialMarkedUnhealthy?: boolean
}
