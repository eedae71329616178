'use strict'

const { isAnyArrayBuffer } = require('node:util').types

/** Text and bytes as a Buffer, which shares the memory of bytes; undefined for anything else. */
function textOrBytes(value) {
  if (typeof value === 'string') return Buffer.from(value)
  if (Buffer.isBuffer(value)) return value
  if (ArrayBuffer.isView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength)
  if (isAnyArrayBuffer(value)) return Buffer.from(value)
  return undefined
}

/**
 * A request as JSON (N70): text and bytes as they are, a plain object made JSON. The native side copies it before the call
 * returns.
 */
function bytesOf(request) {
  const bytes = textOrBytes(request)
  if (bytes !== undefined) return bytes
  if (isPlain(request)) return Buffer.from(JSON.stringify(request))
  throw new TypeError(`request must be a string, bytes or a plain object, not ${nameOf(request)}`)
}

/** Of any realm: nothing is above the prototype of `{}` there either. */
function isPlain(value) {
  if (typeof value !== 'object' || value === null) return false
  const above = Object.getPrototypeOf(value)
  return above === null || (Object.getPrototypeOf(above) === null && !Array.isArray(value))
}

/** `undefined`, `a number`, `an array`, `a Promise`. */
function nameOf(value) {
  if (value === undefined || value === null) return String(value)
  const named = typeof value === 'object' ? (Array.isArray(value) ? 'array' : (value.constructor?.name ?? 'object')) : typeof value
  const name = named === '' ? 'object' : named
  return `${/^[aeio]/i.test(name) ? 'an' : 'a'} ${name}`
}

module.exports = { bytesOf, textOrBytes }
