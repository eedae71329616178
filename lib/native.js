'use strict'

const { version } = require('../package.json')
const { KiroError } = require('./error.js')
const { describe, missing } = require('./platform.js')

/** The binary of this platform. */
module.exports = load()

function load() {
  const platform = describe()
  const tried = []
  for (const candidate of candidates(platform)) {
    try {
      return candidate()
    } catch (error) {
      tried.push(...reasons(error))
    }
  }
  throw notFound(platform, [...new Set(tried)])
}

/**
 * A build in this folder, then the platform's package. index.js, which napi generates, would look for the same, but it
 * trusts /usr/bin/ldd and may start a program to learn the libc (N62). It is only for programs that name a file of
 * their own.
 */
function* candidates({ package: wanted, others }) {
  if (isNamed()) yield () => require('../index.js')
  yield () => require(`../${wanted.replace('kiro-messages-', 'kiro-messages.')}.node`)
  for (const name of [wanted, ...others]) yield () => fromPackage(name)
}

function isNamed() {
  try {
    return Boolean(process.env.NAPI_RS_NATIVE_LIBRARY_PATH)
  } catch {
    // Deno without --allow-env.
    return false
  }
}

/** Another version's binary may lack functions that lib/ calls, so it is refused (N61). */
function fromPackage(name) {
  const binding = require(name)
  const found = require(`${name}/package.json`).version
  if (found !== version) throw new Error(`${name} is of version ${found}, and ${version} is wanted`)
  return binding
}

/** First lines: the rest is where Node.js looked. */
function reasons(error) {
  const list = []
  for (let cause = error; cause instanceof Error && list.length < 10; cause = cause.cause) {
    list.push(cause.message.split('\n', 1)[0])
  }
  return list
}

function notFound(platform, tried) {
  return new KiroError({
    code: 'KIRO_BINDING_NOT_FOUND',
    status: 500,
    type: 'api_error',
    origin: 'client',
    retryable: false,
    message: missing(platform, 'no native binary could be loaded', tried),
  })
}
