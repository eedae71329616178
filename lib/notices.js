'use strict'

const { EventEmitter } = require('node:events')
const { NOTICE, enter } = require('./bell.js')

/** The events of a gateway, see `GatewayEvents`. */
const EVENTS = new Set(['accountEjected', 'tokenRefreshed', 'modelReplaced', 'storeLost', 'storeBack'])

/**
 * The receivers of a gateway's notices: its listeners and its `recordOutcome`. The gateway holds this, the bell only
 * weakly, so that neither a listener nor a recorder keeps a forgotten gateway alive (N54).
 */
class Ears {
  /** The native gateway, once it is connected. */
  #native = null
  /** Outcomes from before: calls at the start can fail while the gateway still connects. */
  #early = []
  #emitter = new EventEmitter()
  #record
  #warned = false

  constructor(record) {
    this.#record = record
  }

  /** The number under which the native side addresses this. */
  listen() {
    return enter(new Line(this))
  }

  /** The gateway is connected, and takes answers. */
  serve(native) {
    this.#native = native
    for (const notice of this.#early.splice(0)) this.hear(notice)
  }

  /** Sets the recorder, unless there is one. */
  recordBy(record) {
    if (this.#record !== undefined) return
    this.#record = record
    this.#native.recordOutcomes()
  }

  on(event, listener) {
    this.#emitter.on(known(event), callable(listener))
  }

  once(event, listener) {
    this.#emitter.once(known(event), callable(listener))
  }

  off(event, listener) {
    this.#emitter.off(known(event), callable(listener))
  }

  hear(notice) {
    const { event, value, number, ...outcome } = notice
    // One tick later: an exception of a listener is an uncaughtException and harms no stream (N22).
    if (event !== undefined) process.nextTick(() => this.#emitter.emit(event, value))
    else if (this.#native === null) this.#early.push(notice)
    else this.#native.answered(number, this.#recorded(outcome))
  }

  #recorded({ at, until, ...rest }) {
    const outcome = { ...rest, at: new Date(at) }
    if (until !== undefined) outcome.until = new Date(until)
    try {
      return this.#record(outcome) === true
    } catch (error) {
      // Then the gateway writes it. It warns once that the recorder is broken.
      if (!this.#warned) process.emitWarning(`recordOutcome threw: ${error?.message}`, { code: 'KIRO_RECORD_OUTCOME' })
      this.#warned = true
      return false
    }
  }
}

/** The bell's part of it. Ends with the native gateway. */
class Line {
  id = 0
  held = false
  #ears

  constructor(ears) {
    this.#ears = new WeakRef(ears)
  }

  receive(kind, bytes) {
    if (kind === NOTICE) this.#ears.deref()?.hear(JSON.parse(bytes))
  }
}

function known(event) {
  if (EVENTS.has(event)) return event
  throw new TypeError(`event must be one of ${[...EVENTS].join(', ')}`)
}

function callable(listener) {
  if (typeof listener === 'function') return listener
  throw new TypeError('listener must be a function')
}

module.exports = { Ears }
