'use strict'

/** Addresses of the host's configuration (N4, N94). An account's own record has its own, and they come first. */

const { nativeOf } = require('../gateway.js')

const NONE = ['', '', '']

/** What each gateway was told last for all accounts. */
const told = new WeakMap()

/** Null when the configuration names none. */
function addressesOf({ KIRO_BASE_URL, KIRO_REFRESH_URL, KIRO_REFRESH_IDC_URL }) {
  const addresses = [KIRO_BASE_URL, KIRO_REFRESH_URL, KIRO_REFRESH_IDC_URL].map((url) => (typeof url === 'string' ? url : ''))
  return addresses.some((url) => url !== '') ? addresses : null
}

/** For one account. */
function lend(gateway, uuid, addresses) {
  nativeOf(gateway).useAddresses(uuid, addresses)
}

/** For all accounts. A configuration that has changed, or names none any more, counts from the next request on. */
function lendToAll(gateway, addresses) {
  const now = (addresses ?? NONE).join('\n')
  if ((told.get(gateway) ?? NONE.join('\n')) === now) return
  told.set(gateway, now)
  nativeOf(gateway).useAddresses(null, addresses ?? NONE)
}

module.exports = { addressesOf, lend, lendToAll }
