'use strict'

/** Keeps the host's books: outcomes and refreshed tokens of a gateway, told to its pool manager (N18, N19). */

const { nativeOf, recordBy } = require('../gateway.js')
const { TYPE } = require('./names.js')
const { poolManagerOf, found, call, complain } = require('./pool.js')

const books = new WeakMap()

/** Those of a gateway; closed until somebody opens them. */
function booksOf(gateway) {
  let found = books.get(gateway)
  if (found === undefined) books.set(gateway, (found = new Books(gateway)))
  return found
}

class Books {
  #gateway
  #host = null
  #resets = new Map()
  /** The last ejection that the host was told of, by account. */
  #ejections = new Map()

  constructor(gateway) {
    // A weak reference: the gateway is the key under which this is found, and we must not keep it alive.
    this.#gateway = new WeakRef(gateway)
  }

  /** From now on `host` hears of outcomes. The last host counts: it is made anew on reload. */
  open(host) {
    const first = this.#host === null
    this.#host = host
    if (!first) return
    const gateway = this.#gateway.deref()
    // A gateway that has its own recorder keeps it.
    recordBy(gateway, (outcome) => this.#record(outcome))
    gateway.on('tokenRefreshed', ({ accountId }) => this.#refreshed(accountId))
  }

  /** How often the host was told that an account's refresh is done. */
  resets(uuid) {
    return this.#resets.get(uuid) ?? 0
  }

  countReset(uuid) {
    this.#resets.set(uuid, this.resets(uuid) + 1)
  }

  /** Whether this very ejection was reported to the host. True once, so that the next one is reported again. */
  wasTold(uuid, message) {
    return this.#ejections.get(uuid) === message && this.#ejections.delete(uuid)
  }

  /** The pool manager writes Redis too, so the gateway doesn't where one of these calls was made (R35). */
  #record(outcome) {
    const manager = poolManagerOf(this.#host)
    const { accountId: uuid } = outcome
    const known = found(manager, uuid)
    if (known === null) return false
    const { type } = known
    const account = { uuid }
    switch (outcome.kind) {
      case 'success':
        // The pool manager would heal a mark that is newer than the request. The gateway writes the bare count (R28).
        if (!outcome.heals) return this.#counts(known.entry)
        return call(manager, 'markProviderHealthy', type, account)
      case 'ejected':
        if (!call(manager, 'markProviderUnhealthyImmediately', type, account, outcome.message)) return false
        this.#ejections.set(uuid, outcome.message)
        return true
      case 'coolDown':
        return call(manager, 'markProviderUnhealthyImmediately', type, account, outcome.message)
      case 'quota':
        return call(manager, 'markProviderUnhealthyWithRecoveryTime', type, account, outcome.message, outcome.until)
      default:
        // A merely counted failure: the pool manager is not told, the gateway counts.
        return false
    }
  }

  /**
   * The bare count where the gateway can't write it: the pool file is the host's, which writes it from memory with its
   * next change (N89). False: the gateway writes.
   */
  #counts(entry) {
    const gateway = this.#gateway.deref()
    if (gateway === undefined || nativeOf(gateway).writesAccounts()) return false
    const record = entry.uuid === undefined ? entry.config : entry
    record.usageCount = (Number(record.usageCount) || 0) + 1
    return true
  }

  #refreshed(uuid) {
    const manager = poolManagerOf(this.#host)
    const known = found(manager, uuid)
    if (known !== null) {
      this.countReset(uuid)
      call(manager, 'resetProviderRefreshStatus', known.type, uuid)
    }
    this.#writeBack(known?.type ?? TYPE, uuid)
  }

  /** The host's old client, where one is left, must not refresh with a token that we have used up (N19). */
  #writeBack(type, uuid) {
    try {
      const old = this.#host.getServiceInstances?.()?.[type + uuid]?.kiroApiService
      if (typeof old !== 'object' || old === null) return
      const gateway = this.#gateway.deref()
      const credential = gateway?.credential(uuid)
      if (!credential) return
      old.accessToken = credential.accessToken
      old.refreshToken = credential.refreshToken
      old.expiresAt = credential.expiresAt
      if (credential.profileArn) old.profileArn = credential.profileArn
    } catch (error) {
      complain('getServiceInstances', error)
    }
  }
}

module.exports = { booksOf }
