'use strict'

const { KiroError } = require('./error.js')

/** The binary of this platform, by way of index.js, which napi generates. */
module.exports = load()

function load() {
  const platform = describe()
  const tried = []
  for (const from of ['../index.js', platform.package]) {
    // The second only matters where index.js was wrong about the libc: it believes /usr/bin/ldd (N62).
    try {
      return require(from)
    } catch (error) {
      tried.push(...reasons(error))
    }
  }
  throw notFound(platform, tried)
}

/** What this process runs on. The libc is asked of Node.js itself, and of what is loaded already; no program is started. */
function describe() {
  const { platform, arch } = process
  let abi = platform === 'win32' ? '-msvc' : ''
  if (platform === 'linux') abi = isMusl() ? '-musl' : '-gnu'
  return { platform, arch, abi, package: `kiro-messages-${platform}-${arch}${abi}` }
}

function isMusl() {
  const { report } = process
  if (report === undefined) return false
  const network = report.excludeNetwork
  // Else it looks up the name of every peer.
  report.excludeNetwork = true
  const { header, sharedObjects = [] } = report.getReport()
  report.excludeNetwork = network
  return !header.glibcVersionRuntime && sharedObjects.some((file) => /ld-musl-|libc\.musl-/.test(file))
}

/** index.js chains the failures of its attempts as causes. */
function reasons(error) {
  const list = []
  for (let cause = error; cause instanceof Error && list.length < 10; cause = cause.cause) {
    list.push(cause.message.split('\n', 1)[0])
  }
  return [...new Set(list)]
}

function notFound({ platform, arch, abi, package: wanted }, tried) {
  const libc = platform === 'linux' ? `, ${abi === '-musl' ? 'musl' : 'glibc'}` : ''
  return new KiroError({
    code: 'KIRO_BINDING_NOT_FOUND',
    status: 500,
    type: 'api_error',
    origin: 'client',
    retryable: false,
    message: [
      `no native binary could be loaded for ${platform} ${arch}${libc}: ${wanted} was wanted.`,
      ...tried.map((reason) => `  tried: ${reason}`),
      'What may help:',
      `  - installed with --omit=optional or --no-optional? Install again without it, or: npm install ${wanted}`,
      '  - node_modules or lock file from another platform? Remove both and install again on this one.',
      '  - platform not supported? Run kiro-server, or its container image, and talk to it over HTTP.',
    ].join('\n'),
  })
}
