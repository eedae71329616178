'use strict'

/** What this process runs on, and the package that holds its binaries (N61, N62). Loads none of them. */

/**
 * The libc is asked of Node.js itself and of what is loaded already: no program is started, no file is trusted.
 * `others`: packages that are worth a try where that question has no answer.
 */
function describe() {
  const { platform, arch } = process
  let abi = platform === 'win32' ? '-msvc' : ''
  if (platform === 'linux') abi = isMusl() ? '-musl' : '-gnu'
  const name = (abi) => `kiro-messages-${platform}-${arch}${abi}`
  const others = platform === 'linux' ? [name(abi === '-musl' ? '-gnu' : '-musl')] : []
  return { platform, arch, abi, package: name(abi), others }
}

/** What to say when nothing fits or is there. */
function missing({ platform, arch, abi, package: wanted }, what, tried) {
  const libc = platform === 'linux' ? `, ${abi === '-musl' ? 'musl' : 'glibc'}` : ''
  return [
    `${what} for ${platform} ${arch}${libc}: ${wanted} was wanted.`,
    ...tried.map((reason) => `  tried: ${reason}`),
    'What may help:',
    `  - installed with --omit=optional or --no-optional? Install again without it, or: npm install ${wanted}`,
    '  - node_modules or lock file from another platform? Remove both and install again on this one.',
    '  - platform not supported? Run kiro-server, or its container image, and talk to it over HTTP.',
  ].join('\n')
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

module.exports = { describe, missing }
