'use strict'

const { hold, release } = require('./bell.js')
const { errorOf } = require('./error.js')
const { StreamCall, own, second, unreachable } = require('./stream.js')

/** `event: name\ndata: {json}\n\n`, nothing else (M54). */
const DATA = '\ndata: '
const END = '\n\n'

/**
 * The beginning and the end of a delta that can be joined with its neighbours; between is the inside of a JSON string.
 */
const DELTA =
  /^\{"type":"content_block_delta","index":\d+,"delta":\{"type":"(?:text_delta","text|thinking_delta","thinking|input_json_delta","partial_json)":"/
const TAIL = '"}}'

/** The meaning of an `event: error` whose stream ends without a summary. */
const UPSTREAM = { code: 'KIRO_UPSTREAM', status: 500, origin: 'upstream', retryable: true }

/** A stream whose bytes are read as events. It throws where the bytes carry `event: error`. */
class EventCall extends StreamCall {
  /** Events that were read and not yet taken, and their number of bytes. */
  events = []
  #at = 0
  #size = 0
  #coalesce
  #failed = null

  constructor(signal, coalesce) {
    super(signal)
    this.#coalesce = coalesce
    // A failure before the head is thrown by next(); nobody asks for the head itself.
    this.opened.catch(() => {})
  }

  /** A stream that was never started and is over. */
  static over() {
    const call = new EventCall()
    call.closed = true
    return call
  }

  deliver(bytes, small) {
    if (this.waiting.length === 0) return this.queue.push(own(bytes, small))
    this.#read([bytes])
    this.#serve()
  }

  next(owner) {
    const event = this.#take()
    if (event !== undefined) return Promise.resolve({ value: event, done: false })
    if (this.failure === null && (this.ended || this.closed)) return Promise.resolve({ value: undefined, done: true })
    return this.#later(owner)
  }

  /** Asynchronous, so that the stack of a failure names the caller (N42). */
  async #later(owner) {
    try {
      return await new Promise((resolve, reject) => {
        if (this.failure === null) {
          hold(this)
          this.waiting.push({ resolve, reject, owner })
        } else {
          reject(this.failure)
          this.failure = null
        }
      })
    } catch (fault) {
      throw errorOf(fault)
    }
  }

  /** The next event of those that are here. */
  #take() {
    if (this.#at === this.events.length) {
      if (this.queue.length === 0) return undefined
      this.#read(this.queue.splice(0))
    }
    const event = this.events[this.#at++]
    if (this.#at === this.events.length) {
      this.events = []
      this.#at = 0
      this.report(this.#size)
      this.#size = 0
      if (this.ended && this.queue.length === 0) this.unlisten()
    }
    return event
  }

  #serve() {
    while (this.waiting.length > 0) {
      const event = this.#take()
      if (event === undefined) return
      this.waiting.shift().resolve({ value: event, done: false })
    }
    release(this)
  }

  /** Buffers end with an event, so what they hold is whole characters. */
  #read(buffers) {
    let text = ''
    for (const bytes of buffers) {
      this.#size += bytes.length
      text += bytes.toString('utf8')
    }
    // Deltas that wait to be joined: their beginning, and the insides of their strings.
    let head = ''
    let inside = ''
    let at = 0
    while (at < text.length) {
      const from = text.indexOf(DATA, at) + DATA.length
      const to = text.indexOf(END, from)
      at = to + END.length
      const json = text.slice(from, to)
      const begin = this.#coalesce ? DELTA.exec(json)?.[0] : undefined
      if (begin !== undefined && json.endsWith(TAIL)) {
        if (begin !== head) {
          this.#flush(head, inside)
          head = begin
          inside = ''
        }
        inside += json.slice(begin.length, -TAIL.length)
        continue
      }
      this.#flush(head, inside)
      head = inside = ''
      this.#push(JSON.parse(json))
    }
    this.#flush(head, inside)
  }

  #flush(head, inside) {
    if (head !== '') this.#push(JSON.parse(head + inside + TAIL))
  }

  #push(event) {
    // The summary brings the whole error.
    if (event.type === 'error') this.#failed = { ...UPSTREAM, ...event.error }
    else this.events.push(event)
  }

  lost() {
    // Comes with finish().
  }

  finish(summary) {
    // Thrown after the remaining events, in the words of the summary, which say more than the event.
    const failure = summary.error ?? this.#failed
    if (failure !== null && !this.closed) this.break({ ...failure })
    super.finish(summary)
  }

  isRead() {
    return super.isRead() && this.events.length === 0
  }

  cancel() {
    this.events = []
    this.#at = 0
    super.cancel()
  }
}

/** Declared in src/addon/types.d.ts. */
class EventStream {
  #open
  #call = null
  #read = false

  /** `open()` makes the call and starts it; called once, by the first next(). */
  constructor(open) {
    this.#open = open
  }

  next() {
    if (this.#call === null) {
      try {
        this.#call = this.#open()
      } catch (error) {
        this.#call = EventCall.over()
        return Promise.reject(error)
      }
      unreachable.register(this, this.#call, this)
    }
    return this.#call.next(this)
  }

  return(value) {
    unreachable.unregister(this)
    if (this.#call === null) this.#call = EventCall.over()
    else this.#call.cancel()
    return Promise.resolve({ value, done: true })
  }

  [Symbol.asyncIterator]() {
    if (this.#read) throw second(this.#call)
    this.#read = true
    return this
  }

  async [Symbol.asyncDispose]() {
    await this.return()
  }
}

module.exports = { EventCall, EventStream }
