'use strict'

const { ServerResponse } = require('node:http')
const { Socket } = require('node:net')
const { bell } = require('./bell.js')

/**
 * Answers that wait for another one on their connection, by connection: Node.js tells them nothing when it closes. One
 * listener a connection, however many wait.
 */
const behind = new WeakMap()

function watch(socket, onClose) {
  let waiting = behind.get(socket)
  if (waiting === undefined) {
    behind.set(socket, (waiting = new Set()))
    socket.once('close', () => {
      for (const tell of [...waiting]) tell()
    })
  }
  waiting.add(onClose)
}

/**
 * Writes an answer to a node:http response with back-pressure, and cancels it when the response closes (N15–N17).
 * Resolves when the response has been ended or has closed. Never rejects.
 */
class Sink {
  #res
  #cancel
  #report
  #waiting = []
  #blocked = false
  #last = false
  #ended = false
  /** `KIRO_WRITE_TIMEOUT` in milliseconds; 0: none. */
  #limit = 0
  #stuck = null
  #wrote = false
  #done
  /** The connection, if another answer comes before this one. */
  #connection = null
  #onClose = () => this.closed()
  #onDrain = () => this.#drain()

  /** `report(bytes)` is called for bytes handed to `res`, `cancel()` when `res` wants no more. */
  constructor(res, report, cancel) {
    this.#res = res
    this.#report = report
    this.#cancel = cancel
    this.done = new Promise((resolve) => {
      this.#done = resolve
    })
    res.on('close', this.#onClose)
    res.on('error', this.#onClose)
    if (res.socket === null && res.req?.socket && !res.closed) {
      this.#connection = res.req.socket
      watch(this.#connection, this.#onClose)
    }
    if (res.destroyed || res.closed || this.#connection?.destroyed) queueMicrotask(this.#onClose)
  }

  /** Milliseconds after which a client that takes no byte is dropped. */
  within(limit) {
    this.#limit = limit
  }

  /** Headers that are set on the response already are the surrounding program's (CORS): kept, never doubled. */
  head(status, headers) {
    const res = this.#res
    if (res.headersSent || this.#ended) return
    // HTTP/2 has no such header; Node.js would leave it out with a warning on stderr.
    const foreign = res.req?.httpVersionMajor === 2 ? 'connection' : null
    const ours = {}
    for (const [name, value] of headers) if (name !== foreign && !res.hasHeader(name)) ours[name] = value
    res.writeHead(status, ours)
    // Together with the first bytes when they are there already, else at once.
    queueMicrotask(() => {
      if (!this.#wrote && !this.#ended) res.flushHeaders()
    })
  }

  /**
   * Sends the head, and returns the descriptor of the socket to which the native side may write the body
   * (src/addon/outlet.rs). -1 when that would bypass something: TLS, HTTP/2, compression, a wrapped `write`, a socket
   * that counts idle time, an answer that waits for another one on its connection.
   */
  descriptor() {
    const res = this.#res
    if (this.#ended || !(res instanceof ServerResponse) || res.write !== ServerResponse.prototype.write) return -1
    const { socket } = res
    if (!(socket instanceof Socket) || socket.encrypted || socket.write !== Socket.prototype.write) return -1
    if (socket.timeout > 0 || typeof res.flush === 'function') return -1
    this.#wrote = true
    res.flushHeaders()
    if (socket.destroyed || res.writableLength > 0) return -1
    return socket._handle?.fd ?? -1
  }

  write(bytes) {
    if (this.#ended) return
    if (this.#blocked) this.#waiting.push(bytes)
    else this.#put(bytes)
  }

  #put(bytes) {
    const res = this.#res
    this.#wrote = true
    this.#report(bytes.length)
    if (!res.write(bytes)) {
      this.#blocked = true
      res.on('drain', this.#onDrain)
      this.#watch()
    }
    // A compression middleware holds SSE back otherwise.
    if (typeof res.flush === 'function') res.flush()
  }

  /** While Node.js waits for the client. Any bytes that the system takes count, also fewer than all that wait. */
  #watch() {
    if (!(this.#limit > 0)) return
    let before = waitingIn(this.#res)
    this.#stuck = setTimeout(() => {
      const now = waitingIn(this.#res)
      if (now === before) return this.#res.destroy()
      before = now
      this.#stuck.refresh()
    }, this.#limit)
  }

  #drain() {
    clearTimeout(this.#stuck)
    this.#res.removeListener('drain', this.#onDrain)
    this.#blocked = false
    while (!this.#blocked && this.#waiting.length > 0) this.#put(this.#waiting.shift())
    if (!this.#blocked && this.#last) this.#finish()
  }

  /** No more bytes will come. */
  end() {
    this.#last = true
    if (!this.#blocked) this.#finish()
  }

  #finish() {
    if (this.#ended) return
    this.#ended = true
    this.#detach()
    this.#res.end()
    this.#done()
  }

  /** Nobody reads the response any more. */
  closed() {
    if (this.#ended) return
    this.#ended = true
    this.#waiting = []
    this.#detach()
    this.#cancel()
    this.#done()
  }

  /** The answer was cancelled from our side: no more bytes follow. */
  cancelled() {
    if (this.#ended) return
    this.#ended = true
    this.#detach()
    this.#res.destroy()
    this.#done()
  }

  #detach() {
    clearTimeout(this.#stuck)
    this.#res.removeListener('close', this.#onClose)
    this.#res.removeListener('error', this.#onClose)
    this.#res.removeListener('drain', this.#onDrain)
    if (this.#connection !== null) behind.get(this.#connection).delete(this.#onClose)
  }
}

/**
 * The bytes that Node.js and the system haven't sent yet, if they say so. The system's part changes with each byte that
 * the client takes, Node.js's own only after megabytes.
 */
function waitingIn(res) {
  const handle = res.stream === undefined ? res.socket?._handle : res.stream.session?.socket?._handle
  const system = Number.isInteger(handle?.fd) ? bell.unsent(handle.fd) : -1
  return `${res.writableLength} ${res.stream?.bufferSize} ${handle?.writeQueueSize} ${system}`
}

/** Sends an open StreamCall to `res`. */
function pipe(call, res, head) {
  const sink = new Sink(
    res,
    (length) => call.report(length),
    () => call.cancel(),
  )
  sink.done.then(() => call.unlisten())
  if (call.closed) {
    // Cancelled on its way here, and its bytes are dropped: no answer, rather than an empty one that looks whole.
    sink.cancelled()
    return sink.done
  }
  sink.head(head.status, head.headers)
  for (const bytes of call.queue.splice(0)) sink.write(bytes)
  call.sink = sink
  if (call.ended) sink.end()
  return sink.done
}

module.exports = { Sink, pipe }
