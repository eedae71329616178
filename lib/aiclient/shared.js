'use strict'

/** The gateways of a process that `kiro-messages/aiclient` connects when the host brings none (N4). */

const path = require('node:path')
const { configError } = require('../error.js')
const { KiroGateway } = require('../gateway.js')

/** The provider's name, everywhere in the host. */
const TYPE = 'claude-kiro-oauth'

/** After a failed connect the next call tries again, but not sooner. */
const AGAIN_AFTER_MS = 1000

/** A store that is the host's pool file. */
const POOL_FILE = 'aiclient:'

/** The options of configure(). */
let configured = null
/** The store and the proxy, as the host's configurations named them so far. */
let seen = {}
/** By pool of the host; one for all when the accounts are in Redis. */
const places = new Map()
/** Told of each gateway. The last host counts: it is made anew on reload. */
let opener = null

/** Whether a provider of the host is Kiro: its name, or that with a suffix (N81). */
function isKiro(provider) {
  return provider === TYPE || (typeof provider === 'string' && /^claude-kiro-oauth-./.test(provider))
}

function configure(options) {
  if (typeof options !== 'object' || options === null) throw new TypeError('options must be an object')
  if (isConnected()) throw configError('configure() must come before the first call: the gateway is connected')
  configured = { ...options }
}

/** Remembers what a configuration of the host says about the store; bare account records say nothing. */
function see(config) {
  if (configured !== null || isConnected()) return
  const { redis, PROVIDER_POOLS_FILE_PATH: file, PROXY_URL, PROXY_ENABLED_PROVIDERS } = config
  if (typeof redis === 'object' && redis !== null && redis.enabled !== false) {
    const { url, host, port, password, db, keyPrefix } = redis
    // A URL stands alone, as it does for the host.
    const server = given({ redisUrl: url })
    const parts = given({ redisHost: host, redisPort: port, redisPassword: password, redisDb: db })
    const where = server.redisUrl === undefined ? parts : server
    if (Object.keys(where).length > 0) seen = { ...seen, where }
    if (given({ keyPrefix }).keyPrefix !== undefined) seen = { ...seen, prefix: { redisKeyPrefix: keyPrefix } }
  }
  // The host reads it from its working folder.
  if (typeof file === 'string' && file !== '') seen = { ...seen, poolFile: path.resolve(file) }
  const enabled = typeof PROXY_ENABLED_PROVIDERS === 'string' ? PROXY_ENABLED_PROVIDERS.split(/\s*,\s*/) : PROXY_ENABLED_PROVIDERS
  const through = Array.isArray(enabled) && enabled.some(isKiro)
  if (through && typeof PROXY_URL === 'string' && PROXY_URL !== '') seen = { ...seen, proxy: { proxyUrl: PROXY_URL } }
}

function given(object) {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined && value !== null && value !== ''))
}

/** The store as text, where something says that it is the host's pool file. */
function poolFile() {
  if (configured !== null) return fileOf(configured.store ?? (configured.env ?? process.env).KIRO_STORE)
  const { KIRO_STORE, REDIS_URL, REDIS_HOST } = process.env
  if (KIRO_STORE) return fileOf(KIRO_STORE)
  const isRedis = seen.where !== undefined || seen.prefix !== undefined || REDIS_URL || REDIS_HOST
  return isRedis || seen.poolFile === undefined ? null : POOL_FILE + seen.poolFile
}

function fileOf(store) {
  return typeof store === 'string' && store.startsWith(POOL_FILE) ? store : null
}

function options(pool) {
  const file = poolFile()
  const store = file === null ? {} : { store: storeOf(file, pool) }
  if (configured !== null) return { ...configured, ...store }
  const { where, prefix, proxy } = seen
  // Parts count only without a URL, and the environment may name one.
  const env = where !== undefined && where.redisUrl === undefined ? { ...process.env, REDIS_URL: undefined } : process.env
  return { ...where, ...prefix, ...proxy, ...store, env }
}

/** The pool file has a list for each pool; requests to one use no account of another (N81). */
function storeOf(file, pool) {
  return file.includes('#') ? file : `${file}#${pool}`
}

/** The place of a pool's gateway. In Redis there is one pool. */
function placeOf(pool) {
  const key = poolFile() === null ? TYPE : pool
  let place = places.get(key)
  if (place === undefined) places.set(key, (place = { connecting: null, connected: null, failure: null, failedAt: -Infinity }))
  return place
}

function isConnected() {
  return [...places.values()].some(({ connecting }) => connecting !== null)
}

/** The process's gateway for a pool, connected at the first call. */
async function sharedGateway(pool) {
  const place = placeOf(pool)
  if (place.connecting === null) {
    if (performance.now() - place.failedAt < AGAIN_AFTER_MS) throw place.failure
    place.connecting = KiroGateway.connect(options(pool)).then(
      (gateway) => {
        place.connected = gateway
        opener?.(gateway)
        return gateway
      },
      (error) => {
        place.connecting = null
        place.failure = error
        place.failedAt = performance.now()
        throw error
      },
    )
  }
  return place.connecting
}

/** Calls `tell` with each gateway of the process, now or when it is there. */
function whenShared(tell) {
  opener = tell
  for (const { connected } of places.values()) if (connected !== null) tell(connected)
}

/** Closes the process's gateways, if there are any; the next call would connect another. */
async function close(options) {
  const open = [...places.values()].map(({ connecting }) => connecting)
  places.clear()
  await Promise.all(
    open.map(async (connecting) => {
      const gateway = await connecting?.catch(() => null)
      await gateway?.close(options)
    }),
  )
}

/** Gateways that a host gave as promises, once they are there. */
const settled = new WeakMap()

/** The host as it was given, once it is known to be one. */
function hostOf(host) {
  if (typeof host !== 'object' || host === null) throw new TypeError('host must be an object')
  const { modelFallback, lenient } = host
  const named = modelFallback === undefined || modelFallback === null || (typeof modelFallback === 'string' && modelFallback !== '')
  if (!named) throw new TypeError('host.modelFallback must be the name of a model, or null')
  if (lenient !== undefined && typeof lenient !== 'boolean') throw new TypeError('host.lenient must be a boolean')
  return host
}

/** The gateway to be used for a host and a pool of it: the host's own, or the process's. */
async function gatewayOf(host, pool = TYPE) {
  const own = host?.gateway
  if (own === undefined || own === null) return sharedGateway(pool)
  const gateway = await own
  if (!(gateway instanceof KiroGateway)) throw new TypeError('host.gateway must be a KiroGateway, or a promise of one')
  if (gateway !== own) settled.set(own, gateway)
  return gateway
}

/** The same without waiting; null while it isn't there. */
function gatewayNow(host, pool = TYPE) {
  const own = host?.gateway
  if (own === undefined || own === null) return placeOf(pool).connected
  return own instanceof KiroGateway ? own : (settled.get(own) ?? null)
}

module.exports = { TYPE, isKiro, configure, close, see, hostOf, gatewayOf, gatewayNow, whenShared }
