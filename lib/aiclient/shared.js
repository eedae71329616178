'use strict'

/** The one gateway of a process that `kiro-messages/aiclient` connects when the host brings none (N4). */

const { configError } = require('../error.js')
const { KiroGateway } = require('../gateway.js')

/** The provider's name, everywhere in the host. */
const TYPE = 'claude-kiro-oauth'

/** After a failed connect the next call tries again, but not sooner. */
const AGAIN_AFTER_MS = 1000

/** The options of configure(). */
let configured = null
/** Redis and the proxy, as the host's configurations named them so far. */
let seen = {}
let connecting = null
let connected = null
let failure = null
let failedAt = -Infinity
/** Told of the gateway as soon as it is there. */
const waiting = new Set()

function configure(options) {
  if (typeof options !== 'object' || options === null) throw new TypeError('options must be an object')
  if (connecting !== null) throw configError('configure() must come before the first call: the gateway is connected')
  configured = { ...options }
}

/** Remembers what a configuration of the host says about the store; bare account records say nothing. */
function see(config) {
  if (connecting !== null || configured !== null) return
  const { redis, PROXY_URL, PROXY_ENABLED_PROVIDERS } = config
  if (typeof redis === 'object' && redis !== null) {
    const { url, host, port, password, db, keyPrefix } = redis
    // A URL stands alone, as it does for the host.
    const server = given({ redisUrl: url })
    const parts = given({ redisHost: host, redisPort: port, redisPassword: password, redisDb: db })
    const where = server.redisUrl === undefined ? parts : server
    if (Object.keys(where).length > 0) seen = { ...seen, where }
    if (given({ keyPrefix }).keyPrefix !== undefined) seen = { ...seen, prefix: { redisKeyPrefix: keyPrefix } }
  }
  const enabled = typeof PROXY_ENABLED_PROVIDERS === 'string' ? PROXY_ENABLED_PROVIDERS.split(/\s*,\s*/) : PROXY_ENABLED_PROVIDERS
  const through = Array.isArray(enabled) && enabled.includes(TYPE)
  if (through && typeof PROXY_URL === 'string' && PROXY_URL !== '') seen = { ...seen, proxy: { proxyUrl: PROXY_URL } }
}

function given(object) {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined && value !== null && value !== ''))
}

function options() {
  if (configured !== null) return configured
  const { where, prefix, proxy } = seen
  // Parts count only without a URL, and the environment may name one.
  const env = where !== undefined && where.redisUrl === undefined ? { ...process.env, REDIS_URL: undefined } : process.env
  return { ...where, ...prefix, ...proxy, env }
}

/** The process's gateway, connected at the first call. */
async function sharedGateway() {
  if (connecting === null) {
    if (performance.now() - failedAt < AGAIN_AFTER_MS) throw failure
    connecting = KiroGateway.connect(options()).then(
      (gateway) => {
        connected = gateway
        for (const tell of waiting) tell(gateway)
        waiting.clear()
        return gateway
      },
      (error) => {
        connecting = null
        failure = error
        failedAt = performance.now()
        throw error
      },
    )
  }
  return connecting
}

/** Calls `tell` with the process's gateway when it is there. */
function whenShared(tell) {
  if (connected !== null) tell(connected)
  else waiting.add(tell)
}

/** Closes the process's gateway, if there is one; the next call would connect another. */
async function close(options) {
  if (connecting === null) return
  const gateway = await connecting.catch(() => null)
  connecting = connected = null
  await gateway?.close(options)
}

/** Gateways that a host gave as promises, once they are there. */
const settled = new WeakMap()

/** The gateway to be used for a host: its own, or the process's. */
async function gatewayOf(host) {
  const own = host?.gateway
  if (own === undefined || own === null) return sharedGateway()
  const gateway = await own
  if (!(gateway instanceof KiroGateway)) throw new TypeError('host.gateway must be a KiroGateway, or a promise of one')
  if (gateway !== own) settled.set(own, gateway)
  return gateway
}

/** The same without waiting; null while it isn't there. */
function gatewayNow(host) {
  const own = host?.gateway
  if (own === undefined || own === null) return connected
  return own instanceof KiroGateway ? own : (settled.get(own) ?? null)
}

module.exports = { TYPE, configure, close, see, gatewayOf, gatewayNow, whenShared }
