'use strict'

const { native } = require('./bell.js')
const { configError } = require('./error.js')

/**
 * The options of a call. A name that isn't `known` is refused as connect() refuses it (N71): a pinned call must not go to
 * any account because of one letter. One whose value is undefined counts as absent.
 */
function optionsOf(options, known) {
  if (typeof options !== 'object' || options === null) throw new TypeError('options must be an object')
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined && !known.includes(name)) {
      throw configError(`${name}: unknown option${native.KiroGateway.nearest(name, known)}`)
    }
  }
  return options
}

module.exports = { optionsOf }
