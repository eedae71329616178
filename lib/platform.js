'use strict'

/** This process's platform, and the package with its binaries (N61, N62). Loads none of them. */

/**
 * The libc is read from Node.js itself and from the loaded libraries: no program is started, no file is trusted.
 * `others`: packages to try when the libc stays unknown.
 */
function describe() {
  const { platform, arch } = process
  let abi = platform === 'win32' ? '-msvc' : ''
  if (platform === 'linux') abi = isMusl() ? '-musl' : '-gnu'
  const name = (abi) => `kiro-messages-${platform}-${arch}${abi}`
  const others = platform === 'linux' ? [name(abi === '-musl' ? '-gnu' : '-musl')] : []
  return { platform, arch, abi, package: name(abi), others }
}

/** The error when no package fits or is installed. */
function missing({ platform, arch, abi, package: wanted }, what, tried) {
  const libc = platform === 'linux' ? `, ${abi === '-musl' ? 'musl' : 'glibc'}` : ''
  return [
    `${what} for ${platform} ${arch}${libc}: ${wanted} was wanted.`,
    ...tried.map((reason) => `  tried: ${reason}`),
    'What may help:',
    ...('Deno' in globalThis ? ['  - Deno loads a native binary only with --allow-ffi'] : []),
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
  try {
    const { header, sharedObjects = [] } = report.getReport()
    return !header.glibcVersionRuntime && sharedObjects.some((file) => /ld-musl-|libc\.musl-/.test(file))
  } catch {
    // Deno asks for a permission (--allow-sys) before it says. Both are tried then.
    return false
  } finally {
    report.excludeNetwork = network
  }
}

module.exports = { describe, missing }
