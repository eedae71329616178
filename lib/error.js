'use strict'

const BRAND = Symbol.for('kiro-messages.KiroError')

/** The native side's further facts of a failure, for kiro-messages/aiclient only. */
let detailOf

/**
 * The error of every failed call. Declared in src/addon/types.d.ts.
 *
 * `fault` is the native side's description of a failure (src/addon/message.rs). It stays data until this makes an error of
 * it, in the function that the caller awaits, so that the stack names the caller (N42).
 */
class KiroError extends Error {
  #headers
  #detail
  #cause

  static {
    detailOf = (error) => (typeof error === 'object' && error !== null && #detail in error ? error.#detail : {})
  }

  constructor(fault, cause) {
    super(fault.message, cause === undefined ? undefined : { cause })
    if (fault.code === 'KIRO_CANCELLED') {
      Object.defineProperty(this, 'name', { value: 'AbortError', configurable: true, writable: true })
    }
    this.code = fault.code
    this.status = fault.status
    this.type = fault.type
    this.origin = fault.origin
    this.retryable = fault.retryable
    if (fault.retryAfterMs != null) this.retryAfterMs = fault.retryAfterMs
    if (fault.requestId != null) this.requestId = fault.requestId
    if (fault.accountId != null) this.accountId = fault.accountId
    this.#headers = fault.headers ?? {}
    this.#cause = fault.cause ?? undefined
    this.#detail = fault.detail ?? {}
    // Again, because the first line of the stack holds the name.
    Error.captureStackTrace(this, KiroError)
  }

  static is(value) {
    if (typeof value !== 'object' || value === null) return false
    // An error that came from another thread has lost its class and its symbols.
    return value[BRAND] === true || (typeof value.code === 'string' && /^KIRO_[A-Z_]+$/.test(value.code) && Number.isInteger(value.status))
  }

  toJSON() {
    const body = { type: 'error', error: { type: this.type, message: this.message } }
    if (this.#cause !== undefined) body.error.details = { error_code: this.#cause }
    if (this.requestId !== undefined) body.request_id = this.requestId
    return body
  }

  toResponse() {
    const headers = { 'content-type': 'application/json', ...this.#headers }
    if (this.requestId !== undefined) headers['request-id'] = this.requestId
    return { status: this.status, headers, body: JSON.stringify(this) }
  }
}

Object.defineProperties(KiroError.prototype, {
  name: { value: 'KiroError', configurable: true, writable: true },
  [BRAND]: { value: true },
})

/** A panic, or another impossible failure (N53). Its text may quote anything, so it isn't repeated (N41). */
const DEFECT = {
  code: 'KIRO_INTERNAL',
  status: 500,
  type: 'api_error',
  origin: 'internal',
  retryable: false,
  message: 'a defect of kiro-messages ended this call',
}

/** A failed call's fault as an error whose stack begins at the called method (N42). */
function errorOf(fault) {
  if (fault instanceof KiroError || fault instanceof TypeError) return fault
  const error = new KiroError(fault instanceof Error ? DEFECT : fault)
  Error.captureStackTrace(error, errorOf)
  return error
}

/** The caller has aborted (N34). */
function cancelled(reason, requestId) {
  return new KiroError(
    {
      code: 'KIRO_CANCELLED',
      status: 499,
      type: 'api_error',
      origin: 'client',
      retryable: false,
      message: 'the call was aborted',
      requestId,
    },
    reason,
  )
}

/** A mistake at the start. */
function configError(message) {
  return new KiroError({ code: 'KIRO_CONFIG', status: 500, type: 'api_error', origin: 'client', retryable: false, message })
}

module.exports = { DEFECT, KiroError, cancelled, configError, detailOf, errorOf }
