'use strict'

/** Point B: the provider's work for POST /v1/messages. Documented in main.d.ts. */

const { KiroError } = require('../error.js')
const { nativeOf } = require('../gateway.js')
const { exchange } = require('../handler.js')
const { isKiroAdapter } = require('./adapter.js')
const { addressesOf, lendToAll } = require('./addresses.js')
const { booksOf } = require('./books.js')
const { customNames, fallbackOf } = require('./models.js')
const { TYPE, isKiro } = require('./names.js')
const { watch } = require('./plugins.js')
const { hookOf, onlyPool, poolManagerOf, tell } = require('./pool.js')
const { gatewayOf, hostOf, isPool, see, whenShared } = require('./shared.js')

const MESSAGES = '/v1/messages'
const COUNT_TOKENS = '/v1/messages/count_tokens'

/** Characters of an answer that are kept for the prompt log. */
const LOGGED = 4 * 1024 * 1024

function createKiroHandler(host) {
  hostOf(host)
  // From the first moment on, so that the host misses no outcome of the gateway (N18).
  if (host.gateway == null) whenShared((gateway) => booksOf(gateway).open(host))
  return async (req, res, config) => {
    const route = routeOf(req)
    if (route === null) return false
    if (typeof config !== 'object' || config === null) throw new TypeError('config must be an object')
    const type = poolOf(config, host)
    if (type === null) return false
    see(config)
    // A name that nobody has is no provider of ours: the host says so itself.
    if (!(await isPool(host, type))) return false
    let gateway
    try {
      gateway = await gatewayOf(host, type)
    } catch (error) {
      if (await leadsElsewhere(host, config, type)) return false
      refuse(res, error)
      return true
    }
    lendToAll(gateway, addressesOf(config))
    if (hasFallback(config, type) && gateway.health().accounts.healthy === 0 && (await leadsElsewhere(host, config, type))) return false
    booksOf(gateway).open(host)
    await answer(gateway, req, res, { ...route, type }, config, host)
    return true
  }
}

/** The host may have stripped the provider off the path, or not. */
function routeOf({ method, url }) {
  if (method !== 'POST') return null
  const [, provider] = url.split('/', 2)
  const target = isKiro(provider) ? url.slice(provider.length + 1) : url
  const [route] = target.split('?', 1)
  return route === MESSAGES || route === COUNT_TOKENS ? { route, target } : null
}

/** The host's pool that a request goes to; null: another provider's, or the host must choose (N81). */
function poolOf({ MODEL_PROVIDER: provider }, host) {
  if (provider === undefined || provider === null) return TYPE
  if (isKiro(provider)) return provider
  return provider === 'auto' ? onlyPool(poolManagerOf(host)) : null
}

/** Other providers are named. Whether the host gets to them is another question. */
function hasFallback({ providerFallbackChain }, type) {
  const chain = providerFallbackChain?.[type]
  return Array.isArray(chain) && chain.length > 0
}

/**
 * Whether the host would get anywhere with the request (N93): its own `getApiService` is asked, which it would call next.
 * In some versions that throws before it looks at the chain, in others it finds the adapter of another provider. Nothing
 * of the body was read, so it may still go there.
 */
async function leadsElsewhere(host, config, type) {
  const getApiService = hasFallback(config, type) ? hookOf(host, 'getApiService') : undefined
  if (getApiService === undefined) return false
  try {
    // A copy: it may write its choice there.
    const found = await getApiService({ ...config })
    const service = found?.service ?? found
    return typeof service === 'object' && service !== null && !isKiroAdapter(service)
  } catch {
    return false
  }
}

async function answer(gateway, req, res, { route, target, type }, config, host) {
  const terms = { target, trusted: true, admits, modelFallback: fallbackOf(host, gateway), lenient: host.lenient, names: customNames(config) }
  let told
  if (route === MESSAGES) {
    terms.system = systemOf(config)
    told = watch(terms, ears(config, host), host, type)
  }
  const reached = await exchange(nativeOf(gateway), req, res, terms)
  if (route !== MESSAGES) return
  terms.end?.()
  if (reached) tell('onContentGenerated', () => hookOf(host, 'onContentGenerated')?.(config, told))
}

/** The host has set CORS; the connection is its server's (N15). */
function admits(name) {
  return name !== 'connection' && !name.startsWith('access-control-')
}

/** The host's system-prompt file (N13). */
function systemOf({ SYSTEM_PROMPT_FILE_PATH, SYSTEM_PROMPT_CONTENT, SYSTEM_PROMPT_MODE }) {
  if (!SYSTEM_PROMPT_FILE_PATH || typeof SYSTEM_PROMPT_CONTENT !== 'string') return undefined
  return { mode: SYSTEM_PROMPT_MODE === 'append' ? 'append' : 'overwrite', text: SYSTEM_PROMPT_CONTENT }
}

/** The texts that the host wants; without a wish nothing is read for it (N14). */
function ears(config, host) {
  const logPrompt = (config.PROMPT_LOG_MODE ?? 'none') === 'none' ? undefined : hookOf(host, 'logPrompt')
  const onSystemPrompt = hookOf(host, 'onSystemPrompt')
  if (logPrompt === undefined && onSystemPrompt === undefined) return undefined
  const hear = ({ system, prompt }) => {
    if (onSystemPrompt !== undefined) tell('onSystemPrompt', () => onSystemPrompt(system))
    if (logPrompt !== undefined) tell('logPrompt', () => logPrompt('input', prompt, config))
  }
  if (logPrompt === undefined) return { hear }
  const said = new Said()
  return {
    hear,
    head: (status, headers) => said.begin(headers),
    bytes: (buffer) => said.take(buffer),
    end: () => tell('logPrompt', () => logPrompt('output', said.text(), config)),
  }
}

/** The text of an answer, read only for the prompt log. */
class Said {
  #streamed = false
  #parts = []
  #length = 0

  begin(headers) {
    this.#streamed = headers.some(([name, value]) => name === 'content-type' && value.startsWith('text/event-stream'))
  }

  take(buffer) {
    if (this.#length >= LOGGED) return
    // Each Buffer of a stream holds whole events.
    const part = this.#streamed ? textOfEvents(buffer.toString('utf8')) : buffer.toString('utf8')
    this.#length += part.length
    this.#parts.push(part)
  }

  text() {
    const whole = this.#parts.join('')
    if (this.#streamed || whole === '') return whole
    const { content, error } = JSON.parse(whole)
    if (error !== undefined) return error.message
    return content.map((block) => block.text ?? '').join('')
  }
}

function textOfEvents(sse) {
  let text = ''
  // Not by `.` and `$`: to them U+2028 ends a line, and in JSON it may stand as it is (TS23).
  for (const line of sse.split('\n')) {
    if (!/^data: \{"type":"(?:content_block_delta|error)"/.test(line)) continue
    const event = JSON.parse(line.slice('data: '.length))
    text += event.delta?.text ?? event.error?.message ?? ''
  }
  return text
}

/** There is no gateway to answer. */
function refuse(res, error) {
  if (!KiroError.is(error)) throw error
  const { status, headers, body } = error.toResponse()
  const ours = Object.entries(headers).filter(([name]) => !res.hasHeader(name))
  res.writeHead(status, Object.fromEntries(ours))
  res.end(body)
}

module.exports = { createKiroHandler }
