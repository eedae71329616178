/**
 * Anthropic's Messages API in front of Kiro, inside a Node.js process.
 *
 * @packageDocumentation
 */

/**
 * What {@link KiroGateway.connect} takes. A name is that of the environment variable in camelCase; milliseconds end in
 * `Ms`, sizes are bytes. An option beats the environment, which beats the default. An unknown name or a bad value is
 * refused with a {@link KiroError} `KIRO_CONFIG` that names it.
 */
export interface GatewayOptions {
  // <settings>
  /** The environment to read. Pass `{}` to ignore it. @default process.env */
  env?: Record<string, string | undefined>
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
  /** No account can be chosen now. Status 503, retryable. */
  | 'KIRO_NO_ACCOUNT'
  /** The store has not been reached yet. Status 503, retryable. */
  | 'KIRO_STORE_UNAVAILABLE'
  /** Upstream has no capacity for the model, or `maxConns` is reached. Status 529, retryable. */
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

/** What every failed call ends in. It holds no token, no key and no text of a prompt. */
export declare class KiroError extends Error {
  private constructor()
  readonly code: KiroErrorCode
  /** The HTTP status that belongs to it, 400–599. */
  readonly status: number
  /** Anthropic's error type, such as `rate_limit_error`. */
  readonly type: string
  /** Whose turn it is. */
  readonly origin: 'client' | 'upstream' | 'internal'
  /** Whether the same call may succeed later. */
  readonly retryable: boolean
  /** When it is worth to come back, where that is known. */
  readonly retryAfterMs?: number
  readonly requestId?: string
  readonly accountId?: string
  /** Whether a value is a KiroError, also of another copy of this package or from another thread. */
  static is(value: unknown): value is KiroError
  /** The body of the Messages API for it. */
  toJSON(): { type: 'error'; error: { type: string; message: string }; request_id?: string }
  /** An HTTP answer for it, `retry-after` and `x-should-retry` included. */
  toResponse(): { status: number; headers: Record<string, string>; body: string }
}
