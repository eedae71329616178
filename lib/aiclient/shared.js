'use strict'

/** The gateways of a process that `kiro-messages/aiclient` connects when the host brings none (N4). */

const { readFile } = require('node:fs/promises')
const path = require('node:path')
const { KiroError, configError, detailOf } = require('../error.js')
const { native } = require('../bell.js')
const { KiroGateway } = require('../gateway.js')
const { TYPE, isKiro } = require('./names.js')
const { complain, poolManagerOf } = require('./pool.js')

/** After a failed connect the next call tries again, but not sooner. */
const AGAIN_AFTER_MS = 1000

/** How often at most a pool file is read for the pools that it has. */
const LOOK_AFTER_MS = 1000

/** The most gateways of a process, one for each pool: a bound for a host that takes any name for a pool. */
const MAX_POOLS = 64

/** A store that is the host's pool file. */
const POOL_FILE = 'aiclient:'

/** The options of configure(). */
let configured = null
/** The store and the proxy, as the host's configurations named them so far. */
let seen = {}
/** By pool of the host; one for all when the accounts are in Redis. */
const places = new Map()
/** The last read of the pool file for its pools. */
let look = { file: null, at: -Infinity, names: null }
/** Whether the log says that there are too many pools. */
let crowded = false
/** Told of each gateway. The last host counts: it is made anew on reload. */
let opener = null

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

/** `{ path, list }` where something says that the store is the host's pool file; `list` where that names one (N80). */
function poolFile() {
  if (configured !== null) return fileOf(configured.store ?? (configured.env ?? process.env).KIRO_STORE)
  const { KIRO_STORE, REDIS_URL, REDIS_HOST } = process.env
  if (KIRO_STORE) return fileOf(KIRO_STORE)
  const isRedis = seen.where !== undefined || seen.prefix !== undefined || REDIS_URL || REDIS_HOST
  return isRedis || seen.poolFile === undefined ? null : { path: seen.poolFile, list: null }
}

function fileOf(store) {
  if (typeof store !== 'string' || !store.startsWith(POOL_FILE)) return null
  const rest = store.slice(POOL_FILE.length)
  const at = rest.lastIndexOf('#')
  const list = rest.slice(at + 1)
  // Any other `#` is part of the path.
  return at >= 0 && isKiro(list) && !/[/\\]/.test(list) ? { path: rest.slice(0, at), list } : { path: rest, list: null }
}

function options(pool) {
  const file = poolFile()
  // Requests to one pool use no account of another (N81).
  const store = file === null ? {} : { store: `${POOL_FILE}${file.path}#${file.list ?? pool}` }
  if (configured !== null) return { ...configured, ...store }
  const { where, prefix, proxy } = seen
  // Parts count only without a URL, and the environment may name one.
  const env = where !== undefined && where.redisUrl === undefined ? { ...process.env, REDIS_URL: undefined } : process.env
  return { ...where, ...prefix, ...proxy, ...store, env }
}

/** The pool whose gateway serves a pool: its own in a pool file. In Redis there is one, and a store may name one list. */
function keyOf(pool) {
  const file = poolFile()
  return file === null || file.list !== null ? TYPE : pool
}

/** The place of a pool's gateway. */
function placeOf(pool) {
  const key = keyOf(pool)
  let place = places.get(key)
  if (place === undefined) places.set(key, (place = { connecting: null, connected: null, failure: null, failedAt: -Infinity }))
  return place
}

function isConnected() {
  return [...places.values()].some(({ connecting }) => connecting !== null)
}

/**
 * Whether a gateway serves a pool, or would: the plain name, or one that the host's pool manager or its pool file has. A
 * client may name any other, and each would be a gateway for nobody (N81).
 */
async function isPool(host, pool) {
  if (host?.gateway != null || pool === TYPE) return true
  const key = keyOf(pool)
  if (key === TYPE || places.has(key)) return true
  const pools = poolManagerOf(host)?.providerPools
  const named = (pools != null && Object.hasOwn(pools, pool) && Array.isArray(pools[pool])) || (await listed(poolFile().path)).has(pool)
  // Others may have come meanwhile.
  if (!named || places.has(key) || places.size < MAX_POOLS) return named
  if (!crowded) complain('pools', new Error(`there are gateways for ${MAX_POOLS} pools: no more are served`))
  crowded = true
  return false
}

/** The pools that the pool file has. */
function listed(file) {
  const now = performance.now()
  if (look.file !== file || now - look.at >= LOOK_AFTER_MS) look = { file, at: now, names: poolsOf(file) }
  return look.names
}

/** None where it can't be read: the host may be writing it, and is asked first. */
async function poolsOf(file) {
  try {
    return new Set(Object.keys(JSON.parse(await readFile(file, 'utf8'))))
  } catch {
    return new Set()
  }
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

/** What a host may lend (main.d.ts). */
const MEMBERS = [
  'gateway',
  'getPoolManager',
  'getServiceInstances',
  'getApiService',
  'modelFallback',
  'lenient',
  'onContentGenerated',
  'requestBodies',
  'onStreamChunk',
  'onUnaryResponse',
  'onSystemPrompt',
  'logPrompt',
]
/** Hosts whose members were looked at: there is an adapter for each account. */
const known = new WeakSet()

/** A member that nobody asks for may be one that is mistyped. The host may have more of its own, so it is no error. */
function doubt(host) {
  if (known.has(host)) return
  known.add(host)
  for (const name of Object.keys(host)) {
    if (MEMBERS.includes(name)) continue
    console.warn(`[kiro-messages] host.${name}: unknown member${native.KiroGateway.nearest(name, MEMBERS)}`)
  }
}

/** The host as it was given, once it is known to be one. */
function hostOf(host) {
  if (typeof host !== 'object' || host === null) throw new TypeError('host must be an object')
  const { modelFallback, lenient } = host
  const named = modelFallback === undefined || modelFallback === null || (typeof modelFallback === 'string' && modelFallback !== '')
  if (!named) throw new TypeError('host.modelFallback must be the name of a model, or null')
  if (lenient !== undefined && typeof lenient !== 'boolean') throw new TypeError('host.lenient must be a boolean')
  doubt(host)
  return host
}

/** The gateway to be used for a host and a pool of it: the host's own, or the process's. */
async function gatewayOf(host, pool = TYPE) {
  const own = host?.gateway
  if (own === undefined || own === null) {
    if (!(await isPool(host, pool))) throw noPool()
    return sharedGateway(pool).catch((error) => Promise.reject(unmade(error)))
  }
  const gateway = await Promise.resolve(own).catch((error) => Promise.reject(unmade(error)))
  if (!(gateway instanceof KiroGateway)) throw new TypeError('host.gateway must be a KiroGateway, or a promise of one')
  if (gateway !== own) settled.set(own, gateway)
  return gateway
}

/** Failures that the log has. */
const logged = new WeakSet()

/**
 * A gateway couldn't be made. The reason may name paths and addresses of this machine, and what points throw goes to
 * clients: it is in the log, once, and they get a sentence without it.
 */
function unmade(error) {
  if (!KiroError.is(error)) return error
  if (!logged.has(error)) complain('connect', error)
  logged.add(error)
  const { code, status, type, origin, retryable, retryAfterMs } = error
  const { headers } = error.toResponse?.() ?? {}
  const message = 'The gateway to Kiro is not ready; the log of the service says why'
  return new KiroError({ code, status, type, origin, retryable, retryAfterMs, headers, detail: detailOf(error), message })
}

/** For adapters of a pool that the host doesn't have: as with an empty one, no other account would do better (N95). */
function noPool() {
  const message = 'There are no accounts: the service has no such pool'
  return new KiroError({ code: 'KIRO_NO_ACCOUNT', status: 503, type: 'overloaded_error', origin: 'internal', retryable: true, message })
}

/** The same without waiting; null while it isn't there. */
function gatewayNow(host, pool = TYPE) {
  const own = host?.gateway
  if (own === undefined || own === null) return places.get(keyOf(pool))?.connected ?? null
  return own instanceof KiroGateway ? own : (settled.get(own) ?? null)
}

module.exports = { configure, close, see, hostOf, gatewayOf, gatewayNow, isPool, whenShared }
