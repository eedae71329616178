'use strict'

const { forget, onAbort } = require('./abort.js')
const { bell, DATA, HEAD, END, REPORT, hold, release } = require('./bell.js')
const { KiroError, cancelled } = require('./error.js')
const { pipe } = require('./response.js')

/** Cancels the upstream of a collected stream (N54). */
const unreachable = new FinalizationRegistry((call) => call.cancel())

/**
 * The state of a stream. The bell holds this, the user holds the MessageStream, and nothing leads from here to there:
 * otherwise a forgotten stream could never be collected.
 */
class StreamCall {
  id = 0
  held = false
  /** Buffers that no next() has taken yet. */
  queue = []
  /** Calls of next() that wait for a Buffer. */
  waiting = []
  /** Taken, but not yet reported. */
  taken = 0
  /** The last message has come. Buffers may still wait. */
  ended = false
  /** The reader wants no more. */
  closed = false
  /** Thrown once by the next next(), then the stream is just over. */
  failure = null
  requestId = null
  /** Held while the summary is awaited (N51). */
  end = { held: false }
  /** Takes Buffers in place of the queue (pipeTo). */
  sink = null
  signal = null
  onAbort = null

  constructor(signal) {
    this.opened = new Promise((resolve, reject) => {
      this.open = resolve
      this.refuse = reject
    })
    this.settled = new Promise((resolve) => {
      this.settle = resolve
    })
    if (signal !== undefined) {
      this.signal = signal
      this.onAbort = () => this.abort(signal.reason)
      onAbort(signal, this.onAbort)
    }
  }

  receive(kind, bytes, small) {
    if (kind === DATA) {
      if (this.closed) return
      if (this.sink !== null) this.sink.write(bytes)
      else this.deliver(bytes, small)
    } else if (kind === HEAD) {
      const head = JSON.parse(bytes)
      this.requestId = head.requestId
      if (this.waiting.length === 0) release(this)
      this.open(head)
    } else if (kind === END) {
      this.finish(JSON.parse(bytes))
    } else {
      // Before the head this is how the call ends; after it, only a defect of ours comes here.
      const fault = JSON.parse(bytes)
      this.refuse(fault)
      this.lost(fault)
      this.finish({ requestId: this.requestId, outcome: 'error', error: fault })
    }
  }

  deliver(bytes, small) {
    if (this.waiting.length === 0) return this.queue.push(own(bytes, small))
    this.report(bytes.length)
    if (this.waiting.length === 1) release(this)
    this.waiting.shift().resolve({ value: own(bytes, small), done: false })
  }

  /** A defect of ours after the head. */
  lost(fault) {
    if (this.requestId !== null && !this.closed) this.break(new KiroError(fault))
  }

  /** `owner`, whose collection would cancel this, is kept while it waits. */
  next(owner) {
    if (this.queue.length > 0) {
      const bytes = this.queue.shift()
      this.report(bytes.length)
      if (this.ended && this.queue.length === 0) this.unlisten()
      return Promise.resolve({ value: bytes, done: false })
    }
    if (this.failure !== null) {
      const error = this.failure
      this.failure = null
      return Promise.reject(error)
    }
    if (this.ended || this.closed) return Promise.resolve({ value: undefined, done: true })
    hold(this)
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject, owner }))
  }

  /** Reports taken bytes, in steps (N31). */
  report(length) {
    this.taken += length
    if (this.taken >= REPORT && !this.ended) {
      bell.taken(this.id, this.taken)
      this.taken = 0
    }
  }

  /** The reader wants no more: waiting bytes are discarded, upstream is dropped (N33). */
  cancel() {
    if (this.closed) return
    this.closed = true
    this.queue = []
    this.unlisten()
    if (!this.ended) bell.cancel(this.id)
    this.wake()
    this.sink?.cancelled()
  }

  abort(reason) {
    const error = cancelled(reason, this.requestId ?? undefined)
    this.break(error)
    this.refuse(error)
    this.cancel()
  }

  /** The waiting next() rejects, or the next one. */
  break(error) {
    const reader = this.waiting.shift()
    if (reader !== undefined) reader.reject(error)
    else this.failure = error
  }

  finish(summary) {
    this.ended = true
    if (summary.error !== undefined) summary.error = new KiroError(summary.error)
    if (this.sink !== null) this.sink.end()
    else if (this.queue.length === 0) this.unlisten()
    this.wake()
    release(this.end)
    this.settle(summary)
  }

  wake() {
    for (const { resolve } of this.waiting.splice(0)) resolve({ value: undefined, done: true })
    release(this)
  }

  /** Nothing is left for a reader. */
  isRead() {
    return this.closed || (this.ended && this.queue.length === 0 && this.failure === null)
  }

  unlisten() {
    if (this.onAbort === null) return
    forget(this.signal, this.onAbort)
    this.onAbort = null
  }
}

/** Declared in src/addon/types.d.ts. */
class MessageStream {
  #call
  #read = false

  constructor(call, head) {
    this.#call = call
    this.requestId = head.requestId
    this.headers = head.headers
    this.ignored = head.ignored
    unreachable.register(this, call, this)
  }

  get summary() {
    if (!this.#call.ended) hold(this.#call.end)
    return this.#call.settled
  }

  next() {
    return this.#call.next(this)
  }

  return(value) {
    this.cancel()
    return Promise.resolve({ value, done: true })
  }

  cancel() {
    unreachable.unregister(this)
    this.#call.cancel()
  }

  /** For its one reader (N35). */
  #claim() {
    if (this.#read) throw second(this.#call)
    this.#read = true
  }

  async pipeTo(res) {
    if (typeof res?.writeHead !== 'function') throw new TypeError('res must be a ServerResponse')
    this.#claim()
    unreachable.unregister(this)
    const call = this.#call
    // An ended call gets no further message, so nothing would release it.
    if (!call.ended) hold(call)
    await pipe(call, res, { status: 200, headers: Object.entries(this.headers) })
    return this.summary
  }

  [Symbol.asyncIterator]() {
    this.#claim()
    return this
  }

  async [Symbol.asyncDispose]() {
    this.cancel()
  }
}

/** The error for a second reader; a stream of events that was never asked for one has no call. */
function second(call) {
  return new TypeError(call?.isRead() ? 'the stream has ended: it can be read once' : 'the stream is being read already')
}

/**
 * A Buffer that is the user's to keep. Those of a small batch share its memory, as Node's own pool does; from a large
 * one a part is copied out.
 */
function own(bytes, small) {
  return small || bytes.length * 2 >= bytes.buffer.byteLength ? bytes : Buffer.from(bytes)
}

module.exports = { StreamCall, MessageStream, own, second, unreachable }
