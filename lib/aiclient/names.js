'use strict'

/** The provider's names in the host. */

/** The provider's name, everywhere in the host. */
const TYPE = 'claude-kiro-oauth'

/** Whether a provider of the host is Kiro: its name, or that with a suffix (N81). */
function isKiro(provider) {
  if (typeof provider !== 'string' || !provider.startsWith(TYPE)) return false
  return provider === TYPE || (provider[TYPE.length] === '-' && provider.length > TYPE.length + 1)
}

module.exports = { TYPE, isKiro }
