'use strict'

/** The host's pool manager, which it replaces on reload: asked for at each use (N10), and never trusted to be there. */

const { TYPE } = require('./shared.js')

/** Null when there is none. */
function poolManagerOf(host) {
  try {
    return host?.getPoolManager?.() ?? null
  } catch (error) {
    complain('getPoolManager', error)
    return null
  }
}

/** Whether the pool manager has the account in memory; it lacks accounts that were added elsewhere (N18). */
function knows(manager, uuid) {
  const list = manager?.providerPools?.[TYPE]
  return Array.isArray(list) && list.some((entry) => (entry?.uuid ?? entry?.config?.uuid) === uuid)
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

module.exports = { poolManagerOf, knows, call, complain }
