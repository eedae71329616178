'use strict'

const { performance } = require('node:perf_hooks')
const { bell, DATA, HEAD, END, NOTICE, MORE, REPORT, TURN_MS, begin, release } = require('./bell.js')
const { textOrBytes } = require('./bytes.js')
const { DEFECT } = require('./error.js')
const { optionsOf } = require('./options.js')
const { Sink } = require('./response.js')

/**
 * The routes of the server (src/server/route.rs); `handler.test.mjs` asks for each. `/api/hello` isn't here: like `/` it is
 * the surrounding program's, where that handles it.
 */
const ROUTE =
  /^\/claude-kiro-oauth$|^(?:\/claude-kiro-oauth)?(?:\/v1(?=\/v1\/))?\/(?:v1\/messages(?:\/count_tokens)?|v1\/models(?:\/[^/]+)?|health(?:\/live)?|metrics|status(?:\/events)?|api\/event_logging\/.*)?$/

/** Any other path. */
const NOWHERE = '/-'

const NO_NAMES = []
const NOTHING = Buffer.alloc(0)

const LOOPBACK = /^(?:127\.|::1$|::ffff:127\.)/

/**
 * After an early answer the rest of the request is read, so that a reset doesn't destroy the answer. Bounds: the whole
 * time, a pause, the bytes, and the requests at once. As the standalone server does (src/server/listen.rs).
 */
const LINGER_MS = 30_000
const LINGER_PAUSE_MS = 3000
const LINGER_BYTES = 64 * 1024 * 1024
const MAX_LINGERING = 512

/** How often the system is asked whether a client is there whose body waits. As in the standalone server (src/server/socket.rs). */
const LOOK_MS = 250

/** A body that a parser has left is handed over in pieces of this size, which is what Node.js reads at once. */
const PIECE = 64 * 1024
let lingering = 0

/** The body that a parser has left on the request isn't JSON: it holds a BigInt, say. */
const UNREADABLE = { status: 400, type: 'invalid_request_error', message: 'body: was read, and what is left of it is no JSON' }

/**
 * `(req, res, next)` for node:http, Express and Fastify's raw objects. The native side does what the standalone server
 * does (src/server); this adapts it to node:http. Declared in src/addon/types.d.ts.
 */
function handler(gateway, options = {}) {
  const { basePath = '', auth = 'key' } = optionsOf(options, ['basePath', 'auth'])
  if (typeof basePath !== 'string' || !/^(?:\/.*[^/])?$/.test(basePath)) {
    throw new TypeError("basePath must be a path like '/kiro'")
  }
  if (auth !== 'key' && auth !== 'none') throw new TypeError("auth must be 'key' or 'none'")
  return async (req, res, next) => {
    const target = below(basePath, req.url)
    const path = target?.split('?', 1)[0]
    // '/' belongs to the program around us, if it handles it.
    if (next !== undefined && (target === null || path === '/' || !ROUTE.test(path))) return next()
    // A path outside of basePath that nobody else handles is refused like any unknown path (M5, M7).
    await exchange(gateway, req, res, { target: target ?? NOWHERE, trusted: auth === 'none' })
  }
}

/**
 * Answers one request by the native side. `terms`: `target`, path and query; `trusted`, the key is checked already; and
 * the additions of a surrounding program:
 *
 * - `system`: `{ mode, text }`, the operator's system text (N13)
 * - `modelFallback`: the model for names that aren't known (N90)
 * - `lenient`: whether `max_tokens` may be missing (N96)
 * - `names`: names of models that it made, and what each stands for, in turn (N98)
 * - `admits(name)`: whether a header of the answer may be sent
 * - `hear({ system, prompt })`: told of the request's texts; where it is missing nothing is read for it
 * - `fed(buffer)`: gets the request's body, as it arrives
 * - `head(status, headers)`, `bytes(buffer)`: told of the answer as it is sent; with `bytes` all of it comes this way
 * - `summary(text)`: gets the `StreamSummary` of a message that has an answer of upstream's, as JSON, at its end
 *
 * Resolves when the answer has ended or its connection has closed, with whether the whole request was handed over.
 */
function exchange(gateway, req, res, terms) {
  return new Promise((resolve) => new Exchange(gateway, req, res, terms, resolve))
}

/** One request and its answer. */
class Exchange {
  id = 0
  held = false
  #gateway
  #req
  #res
  #sink
  #taken = 0
  #resolve
  #terms
  #read = false
  #answered = false
  #reached = false
  #over = false
  /** What a parser has left and isn't handed over yet; null: the request is read here. */
  #left = null
  /** While the rest of the request waits with its client. */
  #looks = null
  #onData = (chunk) => {
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk, this.#req.readableEncoding) : chunk
    if (this.#feed(bytes)) return
    // The rest waits with the client, until `MORE` (N16).
    this.#req.pause()
    this.#watch()
  }
  #onEnd = () => this.#fed()
  #onAborted = () => this.#sink.closed()

  constructor(gateway, req, res, terms, resolve) {
    this.#gateway = gateway
    this.#req = req
    this.#res = res
    this.#terms = terms
    this.#resolve = resolve
    this.#sink = new Sink(
      res,
      (length) => this.#report(length),
      () => this.#cancel(),
    )
    this.#sink.done.then(() => this.#finish())
    inTurn(() => this.#begin())
  }

  #begin() {
    // The client may have left while other requests began.
    if (this.#over) return
    const req = this.#req
    const { target, trusted, system, hear, modelFallback, lenient = false, names = NO_NAMES } = this.#terms
    // The surrounding program has read the request. Otherwise `body` means nothing: Express 4 sets it to `{}` when its
    // parsers don't read the request.
    const read = req.readableEnded || (req._readableState?.ended === true && req.readableLength === 0)
    let body = null
    try {
      if (read && req.body !== undefined) body = bodyOf(req.body)
    } catch {
      this.#over = true
      this.#refuse(UNREADABLE)
      return this.#sink.end()
    }
    const head = {
      method: req.method,
      target,
      headers: headersOf(req, read),
      loopback: LOOPBACK.test(req.socket.remoteAddress),
      trusted,
      system: system?.text,
      overwrite: system?.mode === 'overwrite',
      overheard: hear !== undefined,
      summarized: this.#terms.summary !== undefined,
      modelFallback,
      lenient,
      names,
    }
    try {
      begin(this, (id) => this.#gateway.handle(bell, id, head))
    } catch {
      this.#over = true
      this.#refuse(DEFECT)
      return this.#linger()
    }
    if (read) {
      this.#reached = true
      this.#left = body ?? NOTHING
      this.#pour()
    } else {
      req.on('data', this.#onData)
      req.on('end', this.#onEnd)
      req.on('aborted', this.#onAborted)
    }
  }

  receive(kind, bytes) {
    if (kind === DATA) {
      this.#terms.bytes?.(bytes)
      this.#sink.write(bytes)
    } else if (kind === HEAD) {
      this.#answered = true
      const { status, headers, streamed, writeTimeoutMs } = JSON.parse(bytes)
      const { admits, bytes: watched } = this.#terms
      this.#terms.head?.(status, headers)
      this.#sink.head(status, admits === undefined ? headers : headers.filter(([name]) => admits(name)))
      if (streamed) {
        this.#sink.within(writeTimeoutMs)
        const descriptor = watched === undefined ? this.#sink.descriptor() : -1
        bell.lead(this.id, descriptor, this.#res.chunkedEncoding === true)
      }
    } else if (kind === NOTICE) {
      this.#terms.hear(JSON.parse(bytes))
    } else if (kind === MORE) {
      clearInterval(this.#looks)
      if (this.#left === null) this.#req.resume()
      else this.#pour()
    } else {
      this.#over = true
      if (kind !== END) this.#refuse(JSON.parse(bytes))
      else if (bytes.length > 0) this.#terms.summary(bytes.toString('utf8'))
      this.#linger()
    }
  }

  /** False: enough, until `MORE`. */
  #feed(bytes) {
    this.#terms.fed?.(bytes)
    return bell.feed(this.id, bytes)
  }

  /**
   * Node.js sees no end of a connection that it doesn't read, so the system is asked whether the client is there (N17).
   * One that has only ended its half is: `100 Continue`, which every client must skip, comes back as a reset from one that
   * left.
   */
  #watch() {
    const req = this.#req
    const res = this.#res
    if (req.httpVersion !== '1.1') return
    let probed = false
    const look = () => {
      const presence = bell.presence(req.socket._handle?.fd ?? -1)
      if (presence === 'gone') req.socket.destroy()
      if (presence !== 'ended' || probed || res.headersSent) return
      probed = true
      res.writeContinue()
    }
    clearInterval(this.#looks)
    this.#looks = setInterval(look, LOOK_MS).unref()
  }

  /** Hands over what a parser has left, as far as it is wanted. */
  #pour() {
    while (this.#left.length > 0) {
      const piece = this.#left.subarray(0, PIECE)
      this.#left = this.#left.subarray(piece.length)
      if (!this.#feed(piece)) return
    }
    // An empty view of the body would hold all of it until the answer ends.
    this.#left = NOTHING
    this.#fed()
  }

  /** The request is complete. An answer that came before that was not to the whole of it. */
  #fed() {
    this.#read = true
    this.#reached ||= !this.#answered
    bell.fed(this.id)
  }

  /** A defect of ours: every other failure is an answer. */
  #refuse(fault) {
    if (this.#res.headersSent) return this.#res.destroy()
    const body = JSON.stringify({ type: 'error', error: { type: fault.type, message: fault.message } })
    this.#sink.head(fault.status, [['content-type', 'application/json']])
    this.#sink.write(Buffer.from(body))
  }

  /** An answer to half a request, 413 say: a client that still sends would get a reset in its place. */
  #linger() {
    const req = this.#req
    const whole = this.#read || this.#left !== null || req.readableEnded
    if (whole || req.destroyed || lingering >= MAX_LINGERING) return this.#sink.end()
    let left = LINGER_BYTES
    const end = () => {
      lingering--
      clearTimeout(all)
      clearTimeout(pause)
      req.removeListener('data', read)
      req.removeListener('end', end)
      req.removeListener('close', end)
      this.#sink.end()
    }
    const read = (chunk) => {
      left -= chunk.length
      if (left < 0) end()
      else pause.refresh()
    }
    const all = setTimeout(end, LINGER_MS)
    const pause = setTimeout(end, LINGER_PAUSE_MS)
    lingering++
    req.removeListener('data', this.#onData)
    req.on('data', read)
    req.on('end', end)
    req.on('close', end)
    req.resume()
  }

  #report(length) {
    this.#taken += length
    if (this.#taken >= REPORT && !this.#over) {
      bell.taken(this.id, this.#taken)
      this.#taken = 0
    }
  }

  #cancel() {
    if (this.id === 0) this.#over = true
    else if (!this.#over) bell.cancel(this.id)
  }

  #finish() {
    clearInterval(this.#looks)
    this.#req.removeListener('data', this.#onData)
    this.#req.removeListener('end', this.#onEnd)
    this.#req.removeListener('aborted', this.#onAborted)
    // Who is answered while the rest of his request waits would keep his connection.
    if (this.#req.isPaused()) this.#req.resume()
    this.#left &&= NOTHING
    release(this)
    this.#resolve(this.#reached)
  }
}

const waiting = []
let turnBegan = 0

/**
 * Begins a request: now, or after those that wait already. Many that come at once keep the event loop for a millisecond
 * a turn, not for all of them together (N30).
 */
function inTurn(start) {
  if (waiting.length > 0 || turnIsOver()) waiting.push(start)
  else start()
}

function turnIsOver() {
  const now = performance.now()
  if (turnBegan === 0) {
    turnBegan = now
    setImmediate(nextTurn)
  }
  return now - turnBegan > TURN_MS
}

function nextTurn() {
  turnBegan = 0
  while (waiting.length > 0 && !turnIsOver()) waiting.shift()()
}

/** The rest of `url` below `base`; null when it isn't below. */
function below(base, url) {
  if (base === '') return url
  if (!url.startsWith(base)) return null
  const rest = url.slice(base.length)
  if (rest === '') return '/'
  if (rest[0] === '?') return `/${rest}`
  return rest[0] === '/' ? rest : null
}

/**
 * Names and values in turn. Headers about the bytes are left out when a parser has taken them; so are HTTP/2's pseudo
 * headers.
 */
function headersOf({ rawHeaders, httpVersionMajor }, read) {
  if (!read && httpVersionMajor === 1) return rawHeaders
  const kept = []
  for (let n = 0; n < rawHeaders.length; n += 2) {
    const name = rawHeaders[n]
    // The host that the client names decides whether it is served without a key.
    if (name === ':authority') kept.push('host', rawHeaders[n + 1])
    if (name[0] === ':' || (read && /^content-(?:encoding|length)$/i.test(name))) continue
    kept.push(name, rawHeaders[n + 1])
  }
  return kept
}

/** The body as a parser left it on the request. */
function bodyOf(body) {
  return textOrBytes(body) ?? Buffer.from(JSON.stringify(body))
}

module.exports = { handler, exchange }
