'use strict'

const { native, bell, begin, once, release } = require('./bell.js')
const { KiroError, cancelled } = require('./error.js')
const { MessageStream, StreamCall } = require('./stream.js')
const { handler } = require('./handler.js')

/** Nobody but connect() makes one. */
const KEY = Symbol('connect')

/** Documented in src/addon/gateway.rs and src/addon/types.d.ts, from which index.d.ts is made. */
class KiroGateway {
  #native

  constructor(key, handle) {
    if (key !== KEY) throw new TypeError('use KiroGateway.connect()')
    this.#native = handle
    // A gateway belongs to its thread: a function can't be cloned, so postMessage() is a DataCloneError (N50).
    Object.defineProperty(this, 'thread', { value: () => {}, enumerable: true })
  }

  static async connect(options = {}) {
    if (typeof options !== 'object' || options === null) throw new TypeError('options must be an object')
    const { env = process.env, ...settings } = options
    let handle
    await result((id) => {
      handle = native.KiroGateway.connect(bell, id, pairs(settings), pairs(env))
    })
    return new KiroGateway(KEY, handle)
  }

  async streamMessages(request, options) {
    const body = bytesOf(request)
    const how = callOf(options)
    if (how.signal?.aborted) throw cancelled(how.signal.reason)
    const call = new StreamCall(how.signal)
    try {
      begin(call, (id) => this.#native.streamMessages(bell, id, body, how.native))
      return new MessageStream(call, await call.opened)
    } catch (fault) {
      call.unlisten()
      throw errorOf(fault)
    } finally {
      release(call)
    }
  }

  async createMessage(request, options) {
    const body = bytesOf(request)
    const how = callOf(options)
    if (how.signal?.aborted) throw cancelled(how.signal.reason)
    const text = await result((id) => this.#native.createMessage(bell, id, body, how.native), how.signal)
    return JSON.parse(text)
  }

  async countTokens(request) {
    const body = bytesOf(request)
    return JSON.parse(await result((id) => this.#native.countTokens(bell, id, body)))
  }

  countTokensSync(request) {
    const { fault, ...count } = JSON.parse(this.#native.countTokensSync(bytesOf(request)))
    if (fault !== undefined) throw new KiroError(fault)
    return count
  }

  listModels() {
    return JSON.parse(this.#native.listModels())
  }

  health() {
    return JSON.parse(this.#native.health())
  }

  metrics() {
    return this.#native.metrics()
  }

  handler(options) {
    return handler(this.#native, options)
  }

  async close(options = {}) {
    const { graceMs } = options
    if (graceMs !== undefined && !(Number.isFinite(graceMs) && graceMs >= 0)) {
      throw new TypeError('graceMs must be a number of milliseconds')
    }
    await result((id) => this.#native.close(bell, id, graceMs))
  }

  async [Symbol.asyncDispose]() {
    await this.close()
  }

  [Symbol.for('nodejs.util.inspect.custom')]() {
    return 'KiroGateway {}'
  }
}

/** The one result of a call, its failure as an error with the caller's stack (N42). */
async function result(start, signal) {
  let onAbort
  try {
    return await once((id) => {
      start(id)
      if (signal === undefined) return
      onAbort = () => bell.cancel(id)
      signal.addEventListener('abort', onAbort, { once: true })
    })
  } catch (fault) {
    if (fault.code === 'KIRO_CANCELLED' && signal?.aborted) throw cancelled(signal.reason, fault.requestId)
    throw errorOf(fault)
  } finally {
    if (onAbort !== undefined) signal.removeEventListener('abort', onAbort)
  }
}

function errorOf(fault) {
  if (fault instanceof Error) return fault
  const error = new KiroError(fault)
  // The stack begins at the method that was called.
  Error.captureStackTrace(error, errorOf)
  return error
}

/** JSON text as it is, anything else made JSON. The native side copies it before this call returns. */
function bytesOf(request) {
  if (typeof request === 'string') return Buffer.from(request)
  if (Buffer.isBuffer(request)) return request
  if (request instanceof Uint8Array) return Buffer.from(request.buffer, request.byteOffset, request.byteLength)
  if (typeof request === 'object' && request !== null) return Buffer.from(JSON.stringify(request))
  throw new TypeError('request must be a string, a Uint8Array or an object')
}

function callOf(options = {}) {
  if (typeof options !== 'object' || options === null) throw new TypeError('options must be an object')
  const { signal, requestId, headers, accountId, record } = options
  if (signal !== undefined && !(typeof signal?.addEventListener === 'function' && typeof signal.aborted === 'boolean')) {
    throw new TypeError('options.signal must be an AbortSignal')
  }
  return {
    signal,
    native: {
      requestId: text(requestId, 'options.requestId'),
      session: headerOf(headers, 'x-claude-code-session-id'),
      accountId: text(accountId, 'options.accountId'),
      record: record !== false,
    },
  }
}

function text(value, name) {
  if (value === undefined || typeof value === 'string') return value
  throw new TypeError(`${name} must be a string`)
}

function headerOf(headers, wanted) {
  if (headers === undefined) return undefined
  if (typeof headers !== 'object' || headers === null) throw new TypeError('options.headers must be an object')
  for (const name of Object.keys(headers)) {
    if (name.toLowerCase() === wanted) return String(headers[name])
  }
  return undefined
}

/** A flat list of names and values as text; what is undefined was not said. */
function pairs(object) {
  const flat = []
  for (const [name, value] of Object.entries(object)) {
    if (value !== undefined) flat.push(name, String(value))
  }
  return flat
}

module.exports = { KiroGateway }
