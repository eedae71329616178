'use strict'

const { forget, onAbort } = require('./abort.js')
const { native, bell, begin, once, release } = require('./bell.js')
const { bytesOf } = require('./bytes.js')
const { KiroError, cancelled, configError, errorOf } = require('./error.js')
const { MessageStream, StreamCall } = require('./stream.js')
const { EventCall, EventStream } = require('./events.js')
const { Ears } = require('./notices.js')
const { listen } = require('./listen.js')
const { optionsOf } = require('./options.js')
const { handler } = require('./handler.js')

/** The options of a call (src/addon/types.d.ts). */
const CALL = ['signal', 'requestId', 'headers', 'accountId', 'system', 'record', 'modelFallback']
const LOGIN = ['method', 'startUrl', 'region', 'name', 'replace', 'force', 'check', 'onCode', 'signal']
const IMPORT = ['base', 'only', 'key', 'name', 'dryRun', 'offline', 'signal']

/** Only connect() makes one. */
const KEY = Symbol('connect')

/** The native half of a gateway, for the rest of lib/. */
let nativeOf
/** Makes a function the `recordOutcome` of a gateway that has none. */
let recordBy

/** Documented in src/addon/gateway.rs and src/addon/types.d.ts, from which index.d.ts is made. */
class KiroGateway {
  #native
  #ears

  static {
    nativeOf = (gateway) => gateway.#native
    recordBy = (gateway, record) => gateway.#ears.recordBy(record)
  }

  constructor(key, handle, ears) {
    if (key !== KEY) throw new TypeError('use KiroGateway.connect()')
    this.#native = handle
    this.#ears = ears
    // A gateway belongs to its thread: a function can't be cloned, so postMessage() is a DataCloneError (N50).
    Object.defineProperty(this, 'thread', { value: () => {}, enumerable: true })
  }

  static async connect(options = {}) {
    if (typeof options !== 'object' || options === null) throw new TypeError('options must be an object')
    const { env = process.env, recordOutcome, ...settings } = options
    if (typeof env !== 'object' || env === null) throw new TypeError('options.env must be an object')
    if (recordOutcome !== undefined && typeof recordOutcome !== 'function') {
      throw new TypeError('options.recordOutcome must be a function')
    }
    const given = pairs(settings, (name, value) => configError(`${name}: ${value} is not allowed; must be text, a number or a boolean`))
    const around = pairs(env, (name) => new TypeError(`options.env.${name} must be a string`))
    const ears = new Ears(recordOutcome)
    let handle
    await result((id) => {
      const records = recordOutcome !== undefined
      handle = native.KiroGateway.connect(bell, id, given, around, ears.listen(), records)
    })
    ears.serve(handle)
    return new KiroGateway(KEY, handle, ears)
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

  streamEvents(request, options = {}) {
    const body = Buffer.from(bytesOf(request))
    const how = callOf(options, [...CALL, 'coalesce'])
    const { coalesce = true } = options
    if (typeof coalesce !== 'boolean') throw new TypeError('options.coalesce must be a boolean')
    return new EventStream(() => {
      if (how.signal?.aborted) throw cancelled(how.signal.reason)
      const call = new EventCall(how.signal, coalesce)
      try {
        begin(call, (id) => this.#native.streamMessages(bell, id, body, how.native))
      } catch (error) {
        call.unlisten()
        throw errorOf(error)
      }
      return call
    })
  }

  async createMessage(request, options) {
    const body = bytesOf(request)
    const how = callOf(options)
    if (how.signal?.aborted) throw cancelled(how.signal.reason)
    const text = await result((id) => this.#native.createMessage(bell, id, body, how.native), how.signal)
    const message = JSON.parse(text)
    // Beside the message, not of it: a copy or its JSON is what the Messages API has.
    Object.defineProperty(message, 'ignored', { value: message.ignored ?? [], enumerable: false })
    return message
  }

  async countTokens(request) {
    const body = bytesOf(request)
    return JSON.parse(await result((id) => this.#native.countTokens(bell, id, body)))
  }

  countTokensSync(request) {
    const body = bytesOf(request)
    const { fault, ...count } = read(() => this.#native.countTokensSync(body))
    if (fault !== undefined) throw new KiroError(fault)
    return count
  }

  listModels() {
    return read(() => this.#native.listModels())
  }

  accounts() {
    return read(() => this.#native.accounts())
  }

  credential(accountId) {
    const id = text(accountId, 'accountId', true)
    return read(() => this.#native.credential(id))
  }

  async refresh(accountId) {
    const id = text(accountId, 'accountId', true)
    return JSON.parse(await result((call) => this.#native.refresh(bell, call, id)))
  }

  async usageLimits(accountId, options = {}) {
    const id = text(accountId, 'accountId', true)
    const { signal } = callOf(options, ['signal'])
    if (signal?.aborted) throw cancelled(signal.reason)
    return JSON.parse(await result((call) => this.#native.usageLimits(bell, call, id), signal))
  }

  async login(options) {
    const { method, startUrl, region, name, replace, force, check, onCode, signal } = optionsOf(options, LOGIN)
    signalOf(signal)
    if (typeof onCode !== 'function') throw new TypeError('options.onCode must be a function')
    const how = {
      method: text(method, 'options.method', true),
      startUrl: text(startUrl, 'options.startUrl'),
      region: text(region, 'options.region'),
      name: text(name, 'options.name'),
      replace: text(replace, 'options.replace'),
      force: flag(force, 'options.force', false),
      check: flag(check, 'options.check', true),
    }
    if (signal?.aborted) throw cancelled(signal.reason)
    // An exception of onCode is the caller's own error, and nobody will sign in.
    let thrown
    const head = (code, cancel) => {
      try {
        onCode(JSON.parse(code))
      } catch (error) {
        thrown = { error }
        cancel()
      }
    }
    try {
      return JSON.parse(await result((call) => this.#native.login(bell, call, how), signal, head))
    } catch (error) {
      throw thrown === undefined ? error : thrown.error
    }
  }

  async importAccounts(path, options = {}) {
    const { base, only, key, name, dryRun, offline, signal } = optionsOf(options, IMPORT)
    signalOf(signal)
    const from = text(path, 'path', true)
    if (only !== undefined && !(Number.isInteger(only) && only >= 1 && only <= 0xffffffff)) {
      throw new TypeError('options.only must be an integer from 1')
    }
    const how = {
      base: text(base, 'options.base'),
      only,
      key: text(key, 'options.key'),
      name: text(name, 'options.name'),
      dryRun: flag(dryRun, 'options.dryRun', false),
      offline: flag(offline, 'options.offline', false),
    }
    if (signal?.aborted) throw cancelled(signal.reason)
    return JSON.parse(await result((call) => this.#native.importAccounts(bell, call, from, how), signal))
  }

  health() {
    return read(() => this.#native.health())
  }

  metrics() {
    try {
      return this.#native.metrics()
    } catch (error) {
      throw errorOf(error)
    }
  }

  handler(options) {
    return handler(this.#native, options)
  }

  async listen(options = {}) {
    const { host, port } = optionsOf(options, ['host', 'port'])
    text(host, 'options.host')
    if (port !== undefined && !(Number.isInteger(port) && port >= 0 && port <= 65_535)) {
      throw new TypeError('options.port must be an integer from 0 to 65535')
    }
    try {
      return await listen((id) => this.#native.listen(bell, id, host, port))
    } catch (fault) {
      throw errorOf(fault)
    }
  }

  on(event, listener) {
    this.#ears.on(event, listener)
    return this
  }

  once(event, listener) {
    this.#ears.once(event, listener)
    return this
  }

  off(event, listener) {
    this.#ears.off(event, listener)
    return this
  }

  async close(options = {}) {
    const { graceMs } = optionsOf(options, ['graceMs'])
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

/**
 * The one result of a call, its failure as an error with the caller's stack (N42). `head` gets the facts that come
 * before, and a function that ends the call.
 */
async function result(start, signal, head) {
  let cancel
  try {
    return await once(
      (id) => {
        start(id)
        if (signal === undefined) return
        cancel = () => bell.cancel(id)
        onAbort(signal, cancel)
      },
      (bytes, id) => head(bytes, () => bell.cancel(id)),
    )
  } catch (fault) {
    if (fault.code === 'KIRO_CANCELLED' && signal?.aborted) throw cancelled(signal.reason, fault.requestId)
    throw errorOf(fault)
  } finally {
    if (cancel !== undefined) forget(signal, cancel)
  }
}

/** Reads the store now; false when it can't be read. */
async function readStore(gateway) {
  return JSON.parse(await result((id) => nativeOf(gateway).readStore(bell, id)))
}

/** The one result of a call that needs no waiting. */
function read(text) {
  try {
    return JSON.parse(text())
  } catch (error) {
    throw errorOf(error)
  }
}

function callOf(options = {}, known = CALL) {
  const { signal, requestId, headers, accountId, system, record, modelFallback } = optionsOf(options, known)
  signalOf(signal)
  if (record !== undefined && typeof record !== 'boolean') throw new TypeError('options.record must be a boolean')
  const { mode, text: words } = systemOf(system)
  return {
    signal,
    native: {
      requestId: text(requestId, 'options.requestId'),
      session: headerOf(headers, 'x-claude-code-session-id'),
      gatewaySession: headerOf(headers, 'x-session-id'),
      clientKey: headerOf(headers, 'x-api-key') ?? headerOf(headers, 'authorization'),
      accountId: text(accountId, 'options.accountId'),
      system: words,
      overwrite: mode === 'overwrite',
      record: record !== false,
      modelFallback: text(modelFallback, 'options.modelFallback'),
    },
  }
}

function systemOf(system = {}) {
  if (typeof system !== 'object' || system === null) throw new TypeError('options.system must be an object')
  const { mode, text: words } = system
  if (mode !== undefined || words !== undefined) {
    if (mode !== 'append' && mode !== 'overwrite') {
      throw new TypeError("options.system.mode must be 'append' or 'overwrite'")
    }
    text(words, 'options.system.text', true)
  }
  return system
}

function signalOf(signal) {
  if (signal !== undefined && !(typeof signal?.addEventListener === 'function' && typeof signal.aborted === 'boolean')) {
    throw new TypeError('options.signal must be an AbortSignal')
  }
}

function flag(value, name, usual) {
  if (value === undefined) return usual
  if (typeof value !== 'boolean') throw new TypeError(`${name} must be a boolean`)
  return value
}

function text(value, name, required = false) {
  if ((value === undefined && !required) || typeof value === 'string') return value
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

/** Values with one clear text. `null` or an object would become a text too, and then perhaps a client key. */
const PLAIN = new Set(['string', 'number', 'bigint', 'boolean'])

/** A flat list of names and values as text; undefined values are left out. `refused(name, what)` makes an error. */
function pairs(object, refused) {
  const flat = []
  for (const [name, value] of Object.entries(object)) {
    if (value === undefined) continue
    if (!PLAIN.has(typeof value)) throw refused(name, value === null ? 'null' : `a value of type ${typeof value}`)
    flat.push(name, String(value))
  }
  return flat
}

module.exports = { KiroGateway, nativeOf, readStore, recordBy }
