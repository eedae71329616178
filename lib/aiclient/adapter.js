'use strict'

/** Point A: the provider's adapter, made by the host's adapter factory. Documented in main.d.ts. */

const { forget, onAbort } = require('../abort.js')
const { native } = require('../bell.js')
const { KiroError, cancelled, detailOf } = require('../error.js')
const { nativeOf, readStore } = require('../gateway.js')
const { addressesOf, lend, lendToAll } = require('./addresses.js')
const { booksOf } = require('./books.js')
const { afterCommit, beforeCommit, invalid, plain, withoutAccount } = require('./errors.js')
const { fallbackOf, maximumOf, namesOf } = require('./models.js')
const { TYPE, isKiro } = require('./names.js')
const { poolManagerOf, call } = require('./pool.js')
const { gatewayNow, gatewayOf, hostOf, see } = require('./shared.js')

/** A model that is always known: estimates don't depend on it. */
const SOME_MODEL = 'claude-sonnet-4-5'
/** The least time between two reads of the store for an account that the snapshot lacks: it may just have been added. */
const READ_AGAIN_MS = 1000

/**
 * Costs an object of four fields: no IO, no timer, no listener, nothing native (N3). No property is named `config` or
 * `kiroApiService`: the host looks for both.
 */
class KiroAdapter {
  #uuid
  /** The pool of the host that the account is in (N81). */
  #type
  #host
  #addresses

  constructor(config, host) {
    if (typeof config !== 'object' || config === null) throw new TypeError('config must be an object')
    const { uuid = null, MODEL_PROVIDER: type } = config
    if (uuid !== null && typeof uuid !== 'string') throw new TypeError('config.uuid must be a string')
    if (host !== undefined) hostOf(host)
    // The host makes an adapter of its configuration alone while its pool is empty (N95).
    this.#uuid = uuid || null
    this.#type = isKiro(type) ? type : TYPE
    this.#host = host
    this.#addresses = addressesOf(config)
    see(config)
  }

  async generateContent(model, body) {
    try {
      const { gateway, request, options } = await this.#prepare(model, body)
      return await this.#again(gateway, () => gateway.createMessage(request, options))
    } catch (error) {
      throw this.#refused(error)
    }
  }

  /** Never throws: the host makes the call outside its try block. */
  generateContentStream(model, body) {
    return new AdapterStream(async () => {
      const { gateway, request, options } = await this.#prepare(model, body)
      return {
        events: () => gateway.streamEvents(request, options),
        again: (work) => this.#again(gateway, work),
      }
    }, (error) => this.#refused(error))
  }

  async listModels() {
    try {
      const gateway = await gatewayOf(this.#host, this.#type)
      return { models: namesOf(gateway).map((name) => ({ name })) }
    } catch (error) {
      throw plain(error)
    }
  }

  /** Synchronous, and so without a gateway: the host doesn't wait for one. */
  countTokens(body) {
    try {
      const { fault, ...count } = JSON.parse(native.KiroGateway.estimateTokens(Buffer.from(JSON.stringify(requestOf(SOME_MODEL, body)))))
      if (fault !== undefined) throw new KiroError(fault)
      return count
    } catch (error) {
      throw plain(error)
    }
  }

  /** Resolves with whether there was one (N83). */
  async refreshToken() {
    // An unknown expiry doesn't count as soon. Only a gateway knows it, so a gateway is asked first.
    const gateway = await gatewayOf(this.#host, this.#type).catch((error) => Promise.reject(plain(error)))
    return this.#uuid !== null && nativeOf(gateway).expiresSoon(this.#uuid) && (await this.forceRefreshToken())
  }

  async forceRefreshToken() {
    try {
      const gateway = await this.#gatewayOfAccount()
      const books = booksOf(gateway)
      const before = books.resets(this.#uuid)
      await this.#again(gateway, () => gateway.refresh(this.#uuid))
      // The books may have seen this very refresh, and then they have told the host (N11).
      if (books.resets(this.#uuid) === before) {
        books.countReset(this.#uuid)
        call(poolManagerOf(this.#host), 'resetProviderRefreshStatus', this.#type, this.#uuid)
      }
      return true
    } catch (error) {
      throw plain(error)
    }
  }

  isExpiryDateNear() {
    const gateway = gatewayNow(this.#host, this.#type)
    return gateway !== null && this.#uuid !== null && nativeOf(gateway).expiresSoon(this.#uuid)
  }

  async getUsageLimits() {
    try {
      const gateway = await this.#gatewayOfAccount()
      return await this.#again(gateway, () => gateway.usageLimits(this.#uuid))
    } catch (error) {
      const told = plain(error)
      told.message = `API call failed: ${told.status} - ${told.message}`
      throw told
    }
  }

  #refused(error) {
    return beforeCommit(error, { type: this.#type, uuid: this.#uuid }, this.#host, gatewayNow(this.#host, this.#type))
  }

  async #prepare(model, body) {
    const request = requestOf(model, body)
    const signal = body.signal instanceof AbortSignal ? body.signal : undefined
    const gateway = await unlessAborted(signal, () => gatewayOf(this.#host, this.#type))
    this.#use(gateway)
    const modelFallback = fallbackOf(this.#host, gateway)
    const most = maximumOf(gateway, request.model, modelFallback)
    const asked = request.max_tokens
    if (asked === undefined || asked === null || asked > most) request.max_tokens = most
    // Without an account the gateway selects one, and records what becomes of it: the host can't (N95).
    const account = this.#uuid === null ? {} : { accountId: this.#uuid, record: false }
    return { gateway, request: JSON.stringify(request), options: { ...account, modelFallback, signal } }
  }

  /** For calls about the account. */
  async #gatewayOfAccount() {
    if (this.#uuid === null) throw withoutAccount()
    const gateway = await gatewayOf(this.#host, this.#type)
    this.#use(gateway)
    return gateway
  }

  /** The addresses of the configuration apply to this account (N4); without one they are the host's own (N94). */
  #use(gateway) {
    if (this.#addresses === null) return
    if (this.#uuid === null) lendToAll(gateway, this.#addresses)
    else lend(gateway, this.#uuid, this.#addresses)
  }

  /** Once more when the snapshot doesn't know the account: the host tries an account as soon as it was added. */
  async #again(gateway, work) {
    try {
      return await work()
    } catch (error) {
      if (!KiroError.is(error) || !isUnknownAccount(error) || !(await readAgain(gateway))) throw error
      return work()
    }
  }
}

/** An answer as events. Nothing comes out before the commit (N6). */
class AdapterStream {
  #prepare
  #refuse
  #opening = null
  #events = null
  /** `message_start`, until something follows it. */
  #start = null
  /** The event after the held-back `message_start`. */
  #next = null
  #committed = false
  #over = false
  #stop
  /** Resolves with return(). */
  #stopped = new Promise((resolve) => {
    this.#stop = resolve
  })
  /** The last next(): they are answered in order. */
  #last = Promise.resolve()

  constructor(prepare, refuse) {
    this.#prepare = prepare
    this.#refuse = refuse
  }

  [Symbol.asyncIterator]() {
    return this
  }

  next() {
    const step = this.#last.then(() => this.#step())
    this.#last = step.catch(() => {})
    return step
  }

  async #step() {
    if (this.#next !== null) return { value: this.#taken(), done: false }
    if (this.#over) return { value: undefined, done: true }
    try {
      const value = await (this.#committed ? this.#event() : this.#first())
      if (value === undefined) this.#over = true
      return { value, done: value === undefined }
    } catch (error) {
      this.#over = true
      throw this.#committed ? afterCommit(error) : this.#refuse(error)
    }
  }

  /** The host wants no more: pending calls settle at once, upstream is dropped. */
  async return(value) {
    this.#over = true
    this.#next = null
    this.#stop()
    await this.#events?.return()
    return { value, done: true }
  }

  async [Symbol.asyncDispose]() {
    await this.return()
  }

  /** Reads until there is content, or the end of an empty answer; then `message_start`. */
  async #first() {
    this.#opening ??= this.#prepare()
    const opened = await Promise.race([this.#opening, this.#stopped])
    if (this.#over) return undefined
    const { events, again } = opened
    return again(async () => {
      if (this.#over) return undefined
      this.#events = events()
      for (;;) {
        const event = await this.#event()
        if (event === undefined || event.type === 'ping') {
          if (event === undefined) return undefined
        } else if (event.type === 'message_start') {
          this.#start = event
        } else {
          this.#committed = true
          this.#next = event
          return this.#start
        }
      }
    })
  }

  async #event() {
    const { value, done } = await this.#events.next()
    return done ? undefined : value
  }

  #taken() {
    const event = this.#next
    this.#next = null
    return event
  }
}

/** The body as the gateway takes it. The host's own stays as it is: it may be frozen, and is used again. */
function requestOf(model, body) {
  if (typeof body !== 'object' || body === null) throw invalid('body: must be an object')
  if (body.contents !== undefined) throw invalid('contents: not supported here, send messages')
  const { signal, ...request } = body
  if (typeof model === 'string' && model !== '') request.model = model
  return request
}

/**
 * Connecting a gateway may take seconds. An aborted call doesn't wait for it; one aborted before asks for none (N34).
 */
async function unlessAborted(signal, start) {
  if (signal === undefined) return start()
  if (signal.aborted) throw cancelled(signal.reason)
  let tell
  const aborted = new Promise((_, reject) => {
    tell = () => reject(cancelled(signal.reason))
    onAbort(signal, tell)
  })
  try {
    return await Promise.race([start(), aborted])
  } finally {
    forget(signal, tell)
  }
}

function isUnknownAccount(error) {
  return detailOf(error).account === 'unknown'
}

const lastRead = new WeakMap()

/** Reads the store, unless that was done a moment ago. */
async function readAgain(gateway) {
  const now = performance.now()
  if (now - (lastRead.get(gateway) ?? -Infinity) < READ_AGAIN_MS) return false
  lastRead.set(gateway, now)
  return readStore(gateway)
}

function createKiroAdapter(config, host) {
  return new KiroAdapter(config, host)
}

/** For a host whose factory is a registry: `registerAdapter('claude-kiro-oauth', createKiroAdapterClass(host))` (N82). */
function createKiroAdapterClass(host) {
  return class extends KiroAdapter {
    constructor(config) {
      super(config, host)
    }
  }
}

/** Whether this is one of ours, among the host's adapters. */
function isKiroAdapter(value) {
  return value instanceof KiroAdapter
}

module.exports = { createKiroAdapter, createKiroAdapterClass, isKiroAdapter }
