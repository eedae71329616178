// Requests at a steady rate, whatever becomes of those before, and a judgement of each. The load generator of the benchmarks
// (examples/load) counts events a second; this one keeps the sentence of every request that failed, and tells a failure
// that was said from an answer that was lost.
import { randomUUID } from 'node:crypto'
import http from 'node:http'

/** 20 events in 200 ms. */
export const STREAM = { count: 20, gap_ms: 10 }
/**
 * Connections are kept for less than the 75 s after which the server closes an idle one: who uses one in that very moment is
 * reset, by any server.
 */
const KEPT = { keepAlive: true, maxSockets: Infinity, timeout: 30_000 }
export const MODEL = 'claude-sonnet-4-5'

/** What a scenario with `count` says. */
export function textOf({ count, text = '{n} ' }) {
  return Array.from({ length: count }, (_, n) => text.replaceAll('{n}', n)).join('')
}

/** The body of a request for a scenario of the simulator; no two are one conversation. */
export function body(scenario, more = {}) {
  const content = `${randomUUID()} [[sim ${JSON.stringify(scenario)}]]`
  return JSON.stringify({ model: MODEL, max_tokens: 4096, stream: true, messages: [{ role: 'user', content }], ...more })
}

export class Load {
  outcomes = []
  #running = new Set()
  #agents = new Map()
  #timer
  #turn = 0

  /**
   * `rate` requests a second by turns to `servers`. `scenario` is the simulator's, or a function of the request's number;
   * `expects` the text that must come, by default what the scenario's `count` says. After `timeoutMs` an answer is lost.
   */
  constructor(servers, { rate = 20, scenario = STREAM, expects, timeoutMs = 60_000 } = {}) {
    Object.assign(this, { servers, rate, scenario, expects, timeoutMs })
    this.startedAt = performance.now()
    this.#timer = setInterval(() => this.#due(), Math.min(1000 / rate, 20))
  }

  #due() {
    if (this.paused) return
    while ((performance.now() - this.startedAt) / 1000 * this.rate >= this.#turn) {
      const server = this.servers[this.#turn % this.servers.length]
      const n = this.#turn++
      const scenario = typeof this.scenario === 'function' ? this.scenario(n) : this.scenario
      const request = this.ask(server, scenario).then((outcome) => this.outcomes.push({ n, ...outcome }))
      this.#running.add(request)
      request.finally(() => this.#running.delete(request))
    }
  }

  /** One request beside the rate; not counted. */
  async ask(server, scenario, more = {}) {
    const expects = this.expects?.(scenario) ?? (scenario.count === undefined ? undefined : textOf(scenario))
    if (!this.#agents.has(server)) this.#agents.set(server, new http.Agent(KEPT))
    const { agent = this.#agents.get(server), timeoutMs = this.timeoutMs, ...rest } = more
    return ask(server, { agent, expects, timeoutMs, sent: body(scenario), ...rest })
  }

  /** No further ones until `resume`; resolves when nothing is under way, and every connection is closed. */
  async pause() {
    this.paused = performance.now()
    while (this.#running.size > 0) await Promise.all(this.#running)
    for (const agent of this.#agents.values()) agent.destroy()
  }

  resume() {
    this.startedAt += performance.now() - this.paused
    this.paused = undefined
  }

  /** No further ones; resolves when every answer is there or lost. */
  async stop() {
    clearInterval(this.#timer)
    while (this.#running.size > 0) await Promise.all(this.#running)
    for (const agent of this.#agents.values()) agent.destroy()
    this.seconds = (performance.now() - this.startedAt) / 1000
    return this.outcomes
  }
}

/**
 * One request and what came of it: `ok`; or `says`, the sentence of an error that was told; or `lost`, how the answer
 * broke off, came wrong, or didn't come.
 */
export function ask(server, { sent, agent, expects, headers = {}, method = 'POST', path = '/v1/messages', timeoutMs = 60_000 }) {
  const began = performance.now()
  return new Promise((resolve) => {
    let text = ''
    let status
    const end = (outcome) => {
      clearTimeout(late)
      const at = performance.now()
      resolve({ server, began, at, ms: at - began, status, text, ...outcome })
    }
    const request = http.request({ host: '127.0.0.1', port: server.port, method, path, agent, headers: { ...server.headers, ...headers } })
    const late = setTimeout(() => {
      end({ lost: `no end within ${timeoutMs} ms` })
      request.destroy()
    }, timeoutMs)
    request.on('error', (error) => end({ lost: error.code ?? error.message }))
    request.on('response', (response) => {
      status = response.statusCode
      response.setEncoding('utf8')
      response.on('data', (chunk) => (text += chunk))
      response.on('error', (error) => end({ lost: `broke off: ${error.code ?? error.message}` }))
      response.on('end', () => end(response.complete ? judge(status, text, expects) : { lost: 'broke off' }))
    })
    request.end(sent)
  })
}

function judge(status, text, expects) {
  if (status !== 200) {
    const { error } = json(text) ?? {}
    return error?.message ? { says: error.message, type: error.type } : { lost: `a ${status} that says nothing: ${text.slice(0, 200)}` }
  }
  if (!text.startsWith('event:')) {
    const answer = json(text)
    const got = answer?.content?.map((block) => block.text ?? '').join('')
    return answer && (expects === undefined || got === expects) ? { ok: true } : { lost: 'a wrong answer' }
  }
  const events = text.split('\n').filter((line) => line.startsWith('data: ')).map((line) => json(line.slice(6)))
  const error = events.find((event) => event?.type === 'error')?.error
  if (error) return { says: error.message, type: error.type }
  if (events.at(-1)?.type !== 'message_stop') return { lost: 'ended in the middle without a word' }
  const got = events.map((event) => event.delta?.text ?? '').join('')
  return expects === undefined || got === expects ? { ok: true } : { lost: `another text: ${got.slice(0, 80)}` }
}

function json(text) {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
