'use strict'

/** The provider's names in the host. */

/** The provider's name, everywhere in the host. */
const TYPE = 'claude-kiro-oauth'

/** Whether a provider of the host is Kiro: its name, or that with a suffix (N81). */
function isKiro(provider) {
  return provider === TYPE || (typeof provider === 'string' && /^claude-kiro-oauth-./.test(provider))
}

module.exports = { TYPE, isKiro }
