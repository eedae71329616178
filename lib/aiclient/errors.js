'use strict'

/** Failures as the host reads them (N8, N9). */

const { KiroError, detailOf } = require('../error.js')
const { booksOf } = require('./books.js')
const { poolManagerOf, call } = require('./pool.js')

/** Always 400: the only status that the host treats as the client's fault. */
const CLIENT = new Set(['KIRO_INVALID_REQUEST', 'KIRO_PROMPT_TOO_LONG', 'KIRO_REQUEST_TOO_LARGE', 'KIRO_NOT_FOUND'])
/** Every account would fail alike. */
const OURS = new Set(['KIRO_NO_ACCOUNT', 'KIRO_STORE_UNAVAILABLE', 'KIRO_CLOSED', 'KIRO_CONFIG', 'KIRO_INTERNAL', 'KIRO_BINDING_NOT_FOUND', 'KIRO_CANCELLED'])

/** An error of an attempt before the commit, told to the pool manager where the table of N8 says so. */
function beforeCommit(error, { type, uuid }, host, gateway) {
  const { status, switches, mark } = judge(error)
  // A refused refresh has ejected the account; if the books are open, the host knows.
  const known = error?.code === 'KIRO_ACCOUNT_UNAUTHORIZED' && gateway !== null && booksOf(gateway).wasTold(uuid, detailOf(error).mark?.message)
  const marked = known || (mark !== undefined && mark(poolManagerOf(host), type, { uuid }))
  return decorate(error, status, {
    // The one exception: the host counts it.
    skipErrorCount: error?.code !== 'KIRO_ACCOUNT_FORBIDDEN',
    shouldSwitchCredential: switches,
    credentialMarkedUnhealthy: marked,
  })
}

/** With any other flags the host would try another account, and a second `message_start` would follow. */
function afterCommit(error) {
  const { status } = judge(error)
  return decorate(error, status, { skipErrorCount: true, shouldSwitchCredential: false, credentialMarkedUnhealthy: false })
}

/** Without flags: for calls that aren't generations. */
function plain(error) {
  return decorate(error, judge(error).status, {})
}

/** The table. `mark` tells the pool manager and says whether the account is marked unhealthy now (N10). */
function judge(error) {
  const { fault, account, mark } = detailOf(error)
  const code = error?.code
  if (account === 'unknown' || account === 'no-token') return { status: 401, switches: true, mark: needsRefresh }
  if (CLIENT.has(code)) return { status: 400, switches: false }
  if (OURS.has(code) || fault === 'Endpoint') return { status: error.status, switches: false }
  switch (code) {
    case 'KIRO_ACCOUNT_UNAUTHORIZED':
      return { status: 401, switches: true, mark: mark == null ? needsRefresh : unhealthy(mark) }
    case 'KIRO_ACCOUNT_SUSPENDED':
      return { status: 403, switches: true, mark: unhealthy(mark) }
    case 'KIRO_ACCOUNT_FORBIDDEN':
      return { status: 403, switches: true }
    case 'KIRO_QUOTA_EXHAUSTED':
      return { status: 402, switches: true, mark: resting(mark) }
    case 'KIRO_RATE_LIMITED':
      return { status: 429, switches: true }
    case 'KIRO_OVERLOADED':
      // Without a fault of upstream's it is our own limit.
      return { status: 529, switches: fault != null }
    case 'KIRO_UPSTREAM_TIMEOUT':
      return { status: 504, switches: true }
    case 'KIRO_UPSTREAM':
      return { status: 500, switches: true }
    default:
      // Without a fault of upstream's it is a defect.
      return { status: 500, switches: false }
  }
}

/** The host queues a refresh for it. That is no mark of ill health. */
function needsRefresh(manager, type, account) {
  call(manager, 'markProviderNeedRefresh', type, account)
  return false
}

function unhealthy(mark) {
  return (manager, type, account) => call(manager, 'markProviderUnhealthyImmediately', type, account, mark.message)
}

function resting(mark) {
  return (manager, type, account) =>
    call(manager, 'markProviderUnhealthyWithRecoveryTime', type, account, mark.message, new Date(mark.until))
}

/** The host reads own enumerable properties: without a number in `status` it would take our `code` for one. */
function decorate(error, status, flags) {
  const target = error instanceof Error ? error : new Error(String(error))
  target.status = status
  Object.assign(target, { response: { status, data: bodyOf(target) }, ...flags })
  target.message = wordsFor(status, detailOf(target).mark?.message ?? target.message)
  return target
}

/**
 * The message as the host judges it: it takes a credential for bad when the text says 401 or 403, and writes the text
 * over the mark that we have set (N92).
 */
function wordsFor(status, message) {
  if (status === 401 || status === 403) return `${message} (${status})`
  return message.replace(/\b40[13]\b/g, (code) => `${code[0]}\u2060${code.slice(1)}`).replace(/Unauthorized|Forbidden/g, (word) => word.toLowerCase())
}

/** The error as clients see it. */
function bodyOf(error) {
  if (KiroError.is(error) && typeof error.toJSON === 'function') return error.toJSON()
  return { type: 'error', error: { type: 'api_error', message: 'an internal error of kiro-messages' } }
}

function invalid(message) {
  return new KiroError({
    code: 'KIRO_INVALID_REQUEST',
    status: 400,
    type: 'invalid_request_error',
    origin: 'client',
    retryable: false,
    message,
  })
}

/** For calls that need an account, of an adapter that was made without one (N95). */
function withoutAccount() {
  return new KiroError({
    code: 'KIRO_NO_ACCOUNT',
    status: 503,
    type: 'overloaded_error',
    origin: 'internal',
    retryable: true,
    message: 'this adapter has no account: the pool was empty when it was made',
  })
}

module.exports = { beforeCommit, afterCommit, plain, invalid, withoutAccount }
