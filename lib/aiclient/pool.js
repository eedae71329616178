'use strict'

/** The host's pool manager, which it replaces on reload: asked for at each use (N10), and never trusted to be there. */

const { TYPE, isKiro } = require('./names.js')

/** Null when there is none. */
function poolManagerOf(host) {
  try {
    return host?.getPoolManager?.() ?? null
  } catch (error) {
    complain('getPoolManager', error)
    return null
  }
}

/**
 * The pool in which the pool manager has the account, and the account there; null: it lacks accounts that were added
 * elsewhere (N18).
 */
function found(manager, uuid) {
  const pools = manager?.providerPools ?? {}
  for (const type of poolsIn(pools)) {
    const entry = pools[type].find((entry) => (entry?.uuid ?? entry?.config?.uuid) === uuid)
    if (entry !== undefined) return { type, entry }
  }
  return null
}

/** Kiro's pools, the plain name first. */
function poolsIn(pools) {
  const named = Object.keys(pools).filter((type) => isKiro(type) && Array.isArray(pools[type]))
  return named.sort((a, b) => Number(b === TYPE) - Number(a === TYPE))
}

/** The pool that `auto` can only mean: no other one of the host has an account. Null: the host must choose (N81). */
function onlyPool(manager) {
  const pools = manager?.providerPools ?? {}
  const filled = Object.keys(pools).filter((type) => Array.isArray(pools[type]) && pools[type].length > 0)
  return filled.length === 1 && isKiro(filled[0]) ? filled[0] : null
}

/**
 * Calls a method of the pool manager. False when it isn't there or throws. Nobody awaits its promise, as in the host
 * itself, but a rejection is reported.
 */
function call(manager, method, ...args) {
  if (typeof manager?.[method] !== 'function') return false
  try {
    const done = manager[method](...args)
    if (typeof done?.catch === 'function') done.catch((error) => complain(method, error))
    return true
  } catch (error) {
    complain(method, error)
    return false
  }
}

/** A function of the host's failed: its log says so, and the request goes on (N14). */
function complain(what, error) {
  console.error(`[kiro-messages] ${what}:`, error)
}

/** Members that could not be had, of which the log says so. */
const broken = new Set()

/** A function that the host lends, undefined without one. */
function hookOf(host, name) {
  const hook = memberOf(host, name)
  return typeof hook === 'function' ? hook.bind(host) : undefined
}

/**
 * A member of the host. It may be a getter that asks the host's plugins at each request: one that throws gives none, the log
 * says so once, and the request goes on (N14).
 */
function memberOf(host, name) {
  try {
    return host[name]
  } catch (error) {
    if (!broken.has(name)) complain(name, error)
    broken.add(name)
    return undefined
  }
}

/** Calls a hook of the host's. Its failure is only logged, now or when its promise rejects. */
function tell(name, hook) {
  try {
    const done = hook()
    if (typeof done?.catch === 'function') done.catch((error) => complain(name, error))
  } catch (error) {
    complain(name, error)
  }
}

module.exports = { poolManagerOf, found, onlyPool, call, complain, hookOf, memberOf, tell }
