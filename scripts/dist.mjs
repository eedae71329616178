// Builds both binaries of a platform as they are published, into npm/<platform>/.
//
//   node scripts/dist.mjs                      for this machine
//   node scripts/dist.mjs --target TRIPLE      for another target of package.json's list
//   node scripts/dist.mjs --target TRIPLE --zig
//                                              by cargo-zigbuild: on one Linux machine every Linux target, and glibc 2.17
//                                              whatever the machine's own is
//
// Two builds, because the addon wants neither the command line nor the server's allocator, and the server no Node.js.
import { copyFileSync } from 'node:fs'
import { homedir } from 'node:os'
import path from 'node:path'
import { spawnSync } from 'node:child_process'
import { parseArgs } from 'node:util'
import { platforms } from './packages.mjs'
import { isProgram, needRust, root, run, target as targetFolder } from './steps.mjs'

/** What the server that is published can do: traces too, which stay off until an address is named (OTEL_EXPORTER_OTLP_ENDPOINT). */
export const SERVER_FEATURES = 'server,otel'
/** The oldest glibc that Node.js 20 runs on has more; this is what Rust itself asks for (N62). */
const GLIBC = '2.17'
/** Node.js 20 needs no less. */
const MACOS = '11.0'

export async function dist(triple, { zig = false } = {}) {
  const platform = platforms.find((platform) => platform.triple === triple)
  if (platform === undefined) throw new Error(`${triple} is none of ours: ${platforms.map((p) => p.triple).join(', ')}`)
  const cargo = [...auditable(), zig ? 'zigbuild' : 'build']
  const named = zig && triple.endsWith('linux-gnu') ? `${triple}.${GLIBC}` : triple
  const common = [...cargo, '--release', '--locked', '--target', named]
  const server = [...common, '--no-default-features', '--features', SERVER_FEATURES, '--bin', 'kiro-server']
  // A shared library can't hold musl itself, a program had better.
  const shared = triple.includes('musl') ? ['-C', 'target-feature=-crt-static'] : []
  if (!(await run('cargo', [...common, '--lib'], { env: environment(triple, shared) }))) return false
  const [library, program] = built(triple)
  copyFileSync(library, path.join(root, 'npm', platform.folder, platform.addon))
  if (!(await run('cargo', server, { env: environment(triple, []) }))) return false
  copyFileSync(program, path.join(root, 'npm', platform.folder, platform.server))
  return true
}

/** Where cargo-auditable is installed, the binaries hold the list of the crates that they are made of. */
function auditable() {
  return spawnSync('cargo', ['auditable', '--version'], { cwd: root }).status === 0 ? ['auditable'] : []
}

/** No path of this machine gets into the binaries, and nothing that only this machine has. */
function environment(triple, flags) {
  const cargoHome = process.env.CARGO_HOME ?? path.join(homedir(), '.cargo')
  const prefixes = [[homedir(), '/home'], [cargoHome, '/cargo'], [targetFolder, '/target'], [root.replace(/\/$/, ''), '/kiro-messages']]
  for (const [from] of prefixes) {
    if (from.includes(' ')) throw new Error(`${from}: a path with a space can't be kept out of the binaries, build elsewhere`)
  }
  const rust = [...prefixes.map(([from, to]) => `--remap-path-prefix=${from}=${to}`), ...flags]
  if (triple.endsWith('windows-msvc')) rust.push('-C', 'target-feature=+crt-static')
  const env = { RUSTFLAGS: rust.join(' '), MACOSX_DEPLOYMENT_TARGET: MACOS, CARGO_PROFILE_RELEASE_STRIP: 'symbols' }
  if (!triple.endsWith('windows-msvc')) env.CFLAGS = prefixes.map(([from, to]) => `-ffile-prefix-map=${from}=${to}`).join(' ')
  return env
}

function built(triple) {
  const folder = path.join(targetFolder, triple, 'release')
  if (triple.includes('windows')) return [path.join(folder, 'kiro_messages.dll'), path.join(folder, 'kiro-server.exe')]
  const suffix = triple.includes('darwin') ? 'dylib' : 'so'
  return [path.join(folder, `libkiro_messages.${suffix}`), path.join(folder, 'kiro-server')]
}

/** This machine's own. */
export function hostTriple() {
  const { platform, arch } = process
  const cpu = { x64: 'x86_64', arm64: 'aarch64' }[arch]
  const musl = platform === 'linux' && !process.report.getReport().header.glibcVersionRuntime
  const system = { linux: `unknown-linux-${musl ? 'musl' : 'gnu'}`, darwin: 'apple-darwin', win32: 'pc-windows-msvc' }[platform]
  return `${cpu}-${system}`
}

if (isProgram(import.meta.url)) {
  const { values } = parseArgs({ options: { target: { type: 'string' }, zig: { type: 'boolean', default: false } } })
  needRust()
  process.exit((await dist(values.target ?? hostTriple(), values)) ? 0 : 1)
}
