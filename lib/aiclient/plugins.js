'use strict'

/** What the host's plugins get of a request of point B and of its answer (N84, N85, N99). */

const { hookOf, memberOf, tell } = require('./pool.js')

/** Who may listen to an answer; see `exchange` in lib/handler.js. */
const EARS = ['fed', 'hear', 'head', 'bytes', 'summary', 'end']

/**
 * Lets those who want it see the answer, by `terms` of its exchange. `bytes` takes the whole answer through JavaScript: it
 * is set only for a listener that reads it. Returns the facts of the answer, whole when it has ended.
 */
function watch(terms, listener, host, type) {
  const facts = { fromProvider: 'claude', toProvider: type, outcome: 'cancelled', isStream: false, status: 0 }
  const all = [factsOf(facts, host), bodiesOf(facts, host, terms), listener, pluginsOf(facts, host)].filter((ears) => ears !== undefined)
  for (const name of EARS) {
    const calls = all.map((ears) => ears[name]).filter((call) => call !== undefined)
    if (calls.length > 0) terms[name] = (...args) => calls.forEach((call) => call(...args))
  }
  return facts
}

/** Keeps the facts of the answer for `onContentGenerated`. One small text an answer, and nothing an event. */
function factsOf(facts, host) {
  if (hookOf(host, 'onContentGenerated') === undefined) return undefined
  return {
    head: (status, headers) => {
      facts.status = status
      facts.isStream = isStreamed(headers)
      facts.requestId = valueOf(headers, 'request-id')
      if (status >= 400) facts.outcome = 'error'
    },
    summary: (text) => {
      const { accountId: uuid, model, outcome, stopReason, usage, durationMs } = JSON.parse(text)
      Object.assign(facts, { uuid, model, outcome, stopReason, usage, durationMs })
    },
  }
}

/** Keeps the request's body for `onContentGenerated`, while the host says that a plugin reads it. It is parsed once, at the end. */
function bodiesOf(facts, host, { names, system }) {
  if (memberOf(host, 'requestBodies') !== true || hookOf(host, 'onContentGenerated') === undefined) return undefined
  const parts = []
  return {
    fed: (buffer) => parts.push(buffer),
    end: () => {
      const body = jsonOf(parts)
      if (body !== undefined) Object.assign(facts, { originalRequestBody: body, processedRequestBody: asServed(body, names, system) })
    },
  }
}

/** Undefined for what is no JSON object: the client was told. */
function jsonOf(parts) {
  try {
    const body = JSON.parse(Buffer.concat(parts).toString('utf8'))
    return typeof body === 'object' && body !== null ? body : undefined
  } catch {
    return undefined
  }
}

/** The body with what the gateway has put into it: the model of a custom one, and the system-prompt file (N13, N98). */
function asServed(body, names, system) {
  const at = names.findIndex((name, n) => n % 2 === 0 && name === body.model)
  const model = at < 0 ? {} : { model: names[at + 1] }
  return { ...body, ...model, ...(system && { system: withSystem(body.system, system) }) }
}

function withSystem(own, { mode, text }) {
  if (mode !== 'append' || own === undefined || own === null || own.length === 0) return text
  return Array.isArray(own) ? [...own, { type: 'text', text }] : `${own}\n${text}`
}

/** Plugins that read answers: each event, or the whole message. They see it; they can't change it. */
function pluginsOf({ fromProvider, toProvider }, host) {
  const [onStreamChunk, onUnaryResponse] = [hookOf(host, 'onStreamChunk'), hookOf(host, 'onUnaryResponse')]
  if (onStreamChunk === undefined && onUnaryResponse === undefined) return undefined
  let streamed = false
  let whole = false
  const about = { fromProvider, toProvider, model: null, requestId: null }
  const chunk = (event) => {
    if (event.type === 'message_start') about.model = event.message.model
    tell('onStreamChunk', () => onStreamChunk({ nativeChunk: event, chunkToSend: event, ...about }))
  }
  const message = (answer) => {
    about.model = answer.model
    tell('onUnaryResponse', () => onUnaryResponse({ nativeResponse: answer, clientResponse: answer, ...about }))
  }
  return {
    head: (status, headers) => {
      streamed = status === 200 && isStreamed(headers)
      whole = status === 200 && !streamed
      about.requestId = valueOf(headers, 'request-id')
    },
    // Each Buffer of a stream holds whole events; a message is one Buffer.
    bytes: (buffer) => {
      if (streamed && onStreamChunk !== undefined) eventsOf(buffer.toString('utf8')).forEach(chunk)
      else if (whole && onUnaryResponse !== undefined) message(JSON.parse(buffer.toString('utf8')))
    },
  }
}

function isStreamed(headers) {
  return valueOf(headers, 'content-type')?.startsWith('text/event-stream') === true
}

function valueOf(headers, wanted) {
  return headers.find(([name]) => name === wanted)?.[1]
}

/** The data of SSE events. Not by `.` and `$`: to them U+2028 ends a line, and in JSON it may stand as it is (TS23). */
function eventsOf(sse) {
  return sse.split('\n').flatMap((line) => (line.startsWith('data: ') ? [JSON.parse(line.slice('data: '.length))] : []))
}

module.exports = { watch }
