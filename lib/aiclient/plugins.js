'use strict'

/** What the host's plugins get of an answer of point B (N84, N85). */

const { hookOf, tell } = require('./pool.js')

/** Who may listen to an answer; see `exchange` in lib/handler.js. */
const EARS = ['hear', 'head', 'bytes', 'summary', 'end']

/**
 * Lets those who want it see the answer, by `terms` of its exchange. `bytes` takes the whole answer through JavaScript: it
 * is set only for a listener that reads it. Returns the facts of the answer, whole when it has ended.
 */
function watch(terms, listener, host, type) {
  const facts = { fromProvider: 'claude', toProvider: type, outcome: 'cancelled', isStream: false, status: 0 }
  const all = [factsOf(facts, host), listener, pluginsOf(facts, host)].filter((ears) => ears !== undefined)
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
