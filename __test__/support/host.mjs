// The existing Node.js service, as far as contract/node.md describes it (N2): the order of its request
// handler, its pool manager, how it calls adapters and what it reads of events and errors. Nothing here knows what is
// behind the two drop-in points.
import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { listening } from './stack.mjs'

export const TYPE = 'claude-kiro-oauth'
const BODY_LIMIT = 10 * 1024 * 1024
/** What the service's converters put where a client said nothing. */
const MAX_TOKENS = 200_000
const ATTEMPTS = 3
/** The health check: its model, how often it tries, and the words by which it knows a bad credential. */
const CHECK_MODEL = 'claude-haiku-4-5'
const CHECKS = 2
export const BAD_CREDENTIAL = /\b(401|403)\b|Unauthorized|Forbidden/

/**
 * The pool manager: keeps accounts in memory, writes them to Redis from there, and remembers who called what.
 * `pool` is what redisAccounts() gave; without it nothing is written.
 */
export class PoolManager {
  calls = []
  #pool
  #written = Promise.resolve()

  constructor(records, pool) {
    this.providerPools = { [TYPE]: records.map((record) => ({ ...record })) }
    this.#pool = pool
  }

  /** What was called since the last look, as `name uuid-prefix …`. */
  take() {
    return this.calls.splice(0)
  }

  find(uuid) {
    return this.providerPools[TYPE].find((record) => record.uuid === uuid)
  }

  /** The next healthy account, the one that was used least first (E12). */
  select(tried) {
    const free = this.providerPools[TYPE].filter(({ uuid, isHealthy, isDisabled }) => isHealthy && !isDisabled && !tried.has(uuid))
    return free.sort((a, b) => a.usageCount - b.usageCount)[0]
  }

  markProviderHealthy(type, { uuid }) {
    this.#note('markProviderHealthy', type, uuid)
    const usageCount = (this.find(uuid).usageCount ?? 0) + 1
    this.#change(uuid, { isHealthy: true, errorCount: 0, needsRefresh: false, lastErrorTime: null, lastErrorMessage: null, usageCount })
  }

  markProviderUnhealthy(type, { uuid }, message) {
    this.#note('markProviderUnhealthy', type, uuid, message)
    const record = this.find(uuid)
    const errorCount = (record.errorCount ?? 0) + 1
    this.#change(uuid, { isHealthy: record.isHealthy && errorCount < 3, errorCount, lastErrorTime: new Date().toISOString(), lastErrorMessage: message })
  }

  markProviderUnhealthyImmediately(type, { uuid }, message) {
    this.#note('markProviderUnhealthyImmediately', type, uuid, message)
    this.#change(uuid, { isHealthy: false, errorCount: 10, lastErrorTime: new Date().toISOString(), lastErrorMessage: message })
  }

  markProviderUnhealthyWithRecoveryTime(type, { uuid }, message, at) {
    this.#note('markProviderUnhealthyWithRecoveryTime', type, uuid, message, at)
    this.#change(uuid, { isHealthy: false, lastErrorMessage: message, scheduledRecoveryTime: at.toISOString(), lastErrorTime: new Date().toISOString() })
  }

  markProviderNeedRefresh(type, { uuid }) {
    this.#note('markProviderNeedRefresh', type, uuid)
    this.#change(uuid, { needsRefresh: true })
  }

  resetProviderRefreshStatus(type, uuid) {
    this.#note('resetProviderRefreshStatus', type, uuid)
    this.#change(uuid, { needsRefresh: false, refreshCount: 0 })
  }

  /** The whole pool from memory (E4): what others have added is gone. */
  rewrite() {
    this.#written = this.#written.then(() => this.#pool.rewrite(this.providerPools[TYPE]))
    return this.#written
  }

  /** Everything is in Redis. */
  written() {
    return this.#written
  }

  #note(method, type, uuid, ...rest) {
    assert.equal(type, TYPE)
    this.calls.push([method, uuid, ...rest])
  }

  /** The service's scripts decode the record, change it and write it whole (E2, E5). */
  #change(uuid, fields) {
    const record = this.find(uuid)
    if (record === undefined) return
    Object.assign(record, fields)
    if (this.#pool !== undefined) {
      this.#written = this.#written.then(async () => this.#pool.write(uuid, { ...(await this.#pool.account(uuid)), ...fields }))
    }
  }
}

/**
 * The service. `adapterOf(config)` is its adapter factory (point A), `kiro` its call at point B; both are optional, as the
 * two lines of N1 are. `others` are its adapters for other providers.
 */
export async function service(t, { manager, adapterOf, kiro, config = {}, others = {} }) {
  const host = { manager, log: [], handled: 0, config }
  const adapters = new Map()
  const adapter = (record) => {
    if (!adapters.has(record.uuid)) adapters.set(record.uuid, adapterOf({ ...config, ...record, MODEL_PROVIDER: TYPE }))
    return adapters.get(record.uuid)
  }
  host.adapter = adapter

  /** With an empty pool at its start the service makes an adapter of its configuration alone. */
  const empty = manager().providerPools[TYPE].length === 0 && adapterOf !== undefined ? adapterOf({ ...config, MODEL_PROVIDER: TYPE }) : undefined
  const anyAdapter = () => {
    const record = manager().select(new Set())
    return record === undefined ? empty : adapter(record)
  }
  /** Without an account: the adapter of the start, or another provider's. */
  const elsewhere = () => empty ?? (host.looksAtChain ? others[host.config.providerFallbackChain?.[TYPE]?.[0]] : undefined)

  const server = serverOf(host, handle)

  async function handle(req, res) {
    res.setHeader('Access-Control-Allow-Origin', '*')
    res.setHeader('Access-Control-Allow-Methods', 'GET, POST, PUT, DELETE, OPTIONS')
    res.setHeader('Access-Control-Allow-Headers', 'Content-Type, Authorization, x-goog-api-key, Model-Provider')
    if (req.method === 'OPTIONS') return res.writeHead(204).end()
    const url = new URL(req.url, 'http://host')
    let path = url.pathname
    const current = { ...host.config }
    current.MODEL_PROVIDER = req.headers['model-provider'] ?? TYPE
    if (path.startsWith(`/${TYPE}/`)) path = path.slice(TYPE.length + 1)
    if (path.startsWith('/api/event_logging')) return res.writeHead(200).end('{"success":true}')
    // An auth plugin leaves its mark on the request's configuration.
    current.potluckApiKey = req.headers['x-api-key'] ?? null
    host.lastConfig = current
    if (current.MODEL_PROVIDER === TYPE && kiro !== undefined && (await kiro(req, res, current))) return

    if (path === '/v1/models') return sendJson(res, await anyAdapter().listModels())
    const body = JSON.parse(await readBody(req))
    host.ownBody = body
    if (path === '/v1/messages/count_tokens') return sendJson(res, adapter(manager().select(new Set())).countTokens(body))
    if (path === '/v1/messages') return generate(res, body.model, body, body.stream ? new MessagesOut(res) : null)
    if (path === '/v1/chat/completions') {
      return generate(res, body.model, fromOpenAi(body), body.stream ? new OpenAiOut(res, body.model) : null)
    }
    res.writeHead(404).end()
  }

  const generate = (res, model, body, out) =>
    tryAccounts(res, { log: host.log, manager, type: TYPE, model, body, out, next: (tried) => {
      const record = manager().select(tried)
      return { record, adapter: record === undefined ? elsewhere() : adapter(record), status: 503 }
    } })

  /** What the service does with a failure, in each of the two ways that were seen: a version asks, a version throws. */
  host.getApiService = async ({ providerFallbackChain }) => {
    const record = manager().select(new Set())
    if (record !== undefined) return adapter(record)
    if (!host.looksAtChain) throw new Error('no healthy account')
    return others[providerFallbackChain?.[TYPE]?.[0]]
  }

  /** The UI's health check: a small request, and a judgement by the words of the message. */
  host.check = async (uuid) => {
    const record = manager().find(uuid)
    for (let attempt = 1; ; attempt++) {
      try {
        await adapterOf({ ...record, MODEL_PROVIDER: TYPE }).generateContent(CHECK_MODEL, { messages: [{ role: 'user', content: 'Hi' }], max_tokens: 1 })
        return manager().markProviderHealthy(TYPE, record)
      } catch ({ message }) {
        if (BAD_CREDENTIAL.test(message)) return manager().markProviderUnhealthyImmediately(TYPE, record, message)
        if (attempt < CHECKS) continue
        return manager().markProviderUnhealthy(TYPE, record, message)
      }
    }
  }

  /** The service's refresh queue: the bare record, without Redis settings. */
  host.refresh = async (uuid) => {
    const record = manager().find(uuid)
    try {
      await adapterOf({ ...record, MODEL_PROVIDER: TYPE }).forceRefreshToken()
    } catch (error) {
      manager().markProviderUnhealthyImmediately(TYPE, record, `Refresh failed: ${error.message}`)
    }
  }

  const port = await listening(t, server)
  return Object.assign(host, { url: `http://127.0.0.1:${port}`, port })
}

/** The service's HTTP server: `handle` answers, what it throws becomes an error answer. */
export function serverOf(host, handle) {
  return createServer(async (req, res) => {
    try {
      await handle(req, res)
    } catch (error) {
      host.log.push(error)
      if (!res.headersSent) sendError(res, error)
      else res.end()
    } finally {
      host.handled += 1
      host.listeners = [req, res].flatMap((side) => ['aborted', 'data', 'end', 'close', 'error', 'drain'].map((name) => side.listenerCount(name)))
    }
  })
}

/**
 * One request: account after account until one answers. `next(tried)` gives `{ record, adapter }`, or the `status` when there
 * is no adapter; without a record the failure is final. `occupy(record)` returns what is called when the account is done;
 * `heard` is told of the answer, of each event and of the end.
 */
export async function tryAccounts(res, { log, manager, type, model, body, out, next, occupy, heard }) {
  const tried = new Set()
  for (let attempt = 1; ; attempt++) {
    const { record, adapter, status } = next(tried)
    if (adapter === undefined) return sendError(res, Object.assign(new Error('no account'), { status }))
    tried.add(record?.uuid)
    const leave = occupy?.(record)
    // Outside the try block, as the service has it.
    const stream = out === null ? null : await adapter.generateContentStream(model, body)
    try {
      if (out === null) {
        const answer = await adapter.generateContent(model, body)
        if (heard) await heard.answer(answer)
        sendJson(res, answer)
      } else {
        for await (const event of stream) {
          if (heard) await heard.event(event)
          out.event(event)
        }
        out.end()
      }
      if (record !== undefined) manager().markProviderHealthy(type, record)
      if (heard) await heard.end()
      return
    } catch (error) {
      log.push(error)
      const fail = () => (out?.started ? out.error(error) : sendError(res, error))
      if ((error.status ?? error.code ?? error.response?.status) === 400 || record === undefined) return fail()
      if (!error.skipErrorCount && !error.credentialMarkedUnhealthy) manager().markProviderUnhealthy(type, record, error.message)
      // Thoughts don't count as something that was said: with these flags it would begin again after them.
      const again = (error.shouldSwitchCredential || error.credentialMarkedUnhealthy || !error.skipErrorCount) && !out?.said
      if (again && attempt < ATTEMPTS && next(tried).record !== undefined) continue
      return fail()
    } finally {
      leave?.()
    }
  }
}

export async function readBody(req) {
  const chunks = []
  let size = 0
  for await (const chunk of req) {
    size += chunk.length
    if (size > BODY_LIMIT) throw Object.assign(new Error('body too large'), { status: 413 })
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}

export function sendJson(res, value, status = 200) {
  res.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value))
}

export function sendError(res, error) {
  const status = error.status ?? error.response?.status ?? 500
  sendJson(res, error.response?.data ?? { error: { message: error.message } }, status)
}

/** Events to a client of the same protocol: two writes an event. */
export class MessagesOut {
  started = false
  said = false
  #res

  constructor(res) {
    this.#res = res
  }

  event(event) {
    if (!this.started) this.#res.writeHead(200, { 'content-type': 'text/event-stream' })
    this.started = true
    if (event.type === 'content_block_delta' && event.delta.type === 'text_delta') this.said = true
    this.#res.write(`event: ${event.type}\n`)
    this.#res.write(`data: ${JSON.stringify(event)}\n\n`)
  }

  error(error) {
    this.#res.write('event: error\n')
    this.#res.write(`data: ${JSON.stringify({ type: 'error', error: { type: 'api_error', message: error.message } })}\n\n`)
    this.end()
  }

  end() {
    this.#res.end()
  }
}

/** Events to a client of OpenAI's protocol. Reads what N7 lists, and nothing else. */
export class OpenAiOut {
  started = false
  said = false
  #res
  #model
  #tools = new Map()

  constructor(res, model) {
    this.#res = res
    this.#model = model
  }

  event({ type, index, message, content_block, delta, usage }) {
    switch (type) {
      case 'message_start':
        this.inputTokens = message.usage.input_tokens
        return this.#chunk({ role: 'assistant', content: '' })
      case 'content_block_start': {
        const { type, id, name } = content_block
        if (type !== 'tool_use') return
        this.#tools.set(index, this.#tools.size)
        return this.#chunk({ tool_calls: [{ index: this.#tools.get(index), id, type: 'function', function: { name, arguments: '' } }] })
      }
      case 'content_block_delta': {
        const { type, text, thinking, partial_json } = delta
        if (type === 'text_delta') {
          this.said = true
          return this.#chunk({ content: text })
        }
        if (type === 'thinking_delta') return this.#chunk({ reasoning_content: thinking })
        if (type === 'input_json_delta') {
          return this.#chunk({ tool_calls: [{ index: this.#tools.get(index), function: { arguments: partial_json } }] })
        }
        return
      }
      case 'message_delta': {
        const reason = { tool_use: 'tool_calls', max_tokens: 'length' }[delta.stop_reason] ?? 'stop'
        return this.#chunk({}, reason, { completion_tokens: usage.output_tokens })
      }
      default:
        // Pings and what else there is go no further.
    }
  }

  error(error) {
    this.#write({ error: { message: error.message } })
    this.#res.end()
  }

  end() {
    this.#res.end('data: [DONE]\n\n')
  }

  #chunk(delta, finish_reason = null, usage) {
    this.#write({ object: 'chat.completion.chunk', model: this.#model, choices: [{ index: 0, delta, finish_reason }], ...(usage && { usage }) })
  }

  #write(value) {
    if (!this.started) this.#res.writeHead(200, { 'content-type': 'text/event-stream' })
    this.started = true
    this.#res.write(`data: ${JSON.stringify(value)}\n\n`)
  }
}

export function fromOpenAi({ model, messages, tools }) {
  const system = messages.filter(({ role }) => role === 'system').map(({ content }) => content)
  return {
    model,
    max_tokens: MAX_TOKENS,
    ...(system.length > 0 && { system: system.join('\n') }),
    messages: messages.filter(({ role }) => role !== 'system').map(({ role, content }) => ({ role, content })),
    ...(tools && {
      tools: tools.map(({ function: { name, description, parameters } }) => ({ name, description, input_schema: parameters })),
    }),
  }
}
