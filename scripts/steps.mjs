// The steps that every script here shares: run a program, show it, count its tests, stop at the first failure. Node
// builtins only, because these scripts install everything else.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readFileSync, realpathSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..')
const windows = process.platform === 'win32'

/** Whether a module is the program itself, and not imported by one. Node.js resolves links in the one address and not in the other. */
export function isProgram(url) {
  const [, program] = process.argv
  return program !== undefined && existsSync(program) && realpathSync(program) === fileURLToPath(url)
}

/** Where cargo puts what it builds. */
export const target = path.resolve(root, process.env.CARGO_TARGET_DIR ?? 'target')

/**
 * What cargo builds for every test, in Rust and in JavaScript. The example is the load generator; what it stands for here
 * is the development dependencies: with them cargo compiles the library exactly as `cargo test --features server` does, and
 * without them once more, since they turn on features of crates that the library uses.
 */
export const UNDER_TEST = ['--features', 'server', '--lib', '--bin', 'kiro-server', '--example', 'load']

/** The server's binary of a cargo profile. */
export function serverBinary(profile = 'debug') {
  return path.join(target, profile, windows ? 'kiro-server.exe' : 'kiro-server')
}

export const totals = { passed: 0, failed: 0, skipped: 0 }

/** Tests that failed beside the others and passed alone (scripts/again.mjs). */
export const flaky = []

/**
 * Runs a command in the repository, shows its output as it comes, and counts the tests it reports. Output that a program
 * is to read goes to `hear`, line by line, instead; `listen` gets the lines that are shown, too.
 * Resolves to true when it ended with 0.
 */
export function run(command, args, { env = {}, quiet = false, hear, listen } = {}) {
  if (!quiet) console.log(`\n$ ${[command, ...args].join(' ')}`)
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'inherit'],
      shell: windows && /^(npm|npx)$/.test(command),
    })
    let rest = ''
    child.stdout.on('data', (chunk) => {
      if (!hear) process.stdout.write(chunk)
      const lines = (rest + chunk).split('\n')
      rest = lines.pop()
      for (const line of lines) {
        listen?.(line)
        ;(hear ?? count)(line)
      }
    })
    child.on('error', (error) => {
      console.error(`${command}: ${error.message}`)
      resolve(false)
    })
    child.on('close', (code) => {
      count(rest)
      resolve(code === 0)
    })
  })
}

/** cargo's "test result: ok. 12 passed; 0 failed; 1 ignored" and node's "ℹ pass 12" or "# pass 12". */
function count(line) {
  const cargo = /^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored/.exec(line)
  if (cargo) {
    totals.passed += Number(cargo[1])
    totals.failed += Number(cargo[2])
    totals.skipped += Number(cargo[3])
  }
  const node = /^(?:#|ℹ) (pass|fail|cancelled|skipped|todo) (\d+)$/.exec(line)
  if (node) {
    const place = { pass: 'passed', fail: 'failed', cancelled: 'failed', skipped: 'skipped', todo: 'skipped' }[node[1]]
    totals[place] += Number(node[2])
  }
}

/** One check that counts as one test. */
export async function check(name, command, args, options) {
  const started = Date.now()
  const ok = await run(command, args, options)
  totals[ok ? 'passed' : 'failed'] += 1
  console.log(`${ok ? 'ok' : 'FAILED'}: ${name} (${seconds(started)})`)
  return ok
}

/** One finding that counts as one test; returns whether it is good. */
export function verdict(good, what, indent = '') {
  totals[good ? 'passed' : 'failed'] += 1
  console.log(`${indent}${good ? 'ok' : 'FAILED'}: ${what.trim()}`)
  return good
}

/** Says and counts what can't be looked at here. */
export function skip(what, indent = '') {
  totals.skipped += 1
  console.log(`${indent}skipped: ${what}`)
}

export function seconds(since) {
  return `${((Date.now() - since) / 1000).toFixed(1)} s`
}

/** Ends the process with what was counted. `ok` false: something failed that was no test. */
export function conclude(ok, started) {
  console.log(`\ntook ${seconds(started)}`)
  for (const name of flaky) console.log(`FLAKY: ${name} failed beside the others and passed alone: mend the test`)
  if (!ok && totals.failed === 0) totals.failed = 1
  const skipped = totals.skipped > 0 ? `, ${totals.skipped} skipped` : ''
  console.log(`${totals.passed} passed, ${totals.failed} failed${skipped}`)
  process.exit(totals.failed === 0 ? 0 : 1)
}

/** The development packages, exactly those of the lock file. */
export async function installPackages() {
  return installed() || run('npm', ['ci', '--no-audit', '--no-fund'])
}

/**
 * Whether node_modules holds what the lock file names. Not by their times: a checkout writes the same lock file anew, and
 * `npm ci` takes node_modules away before it finds that there is no network.
 */
function installed() {
  const [wanted, there] = ['package-lock.json', 'node_modules/.package-lock.json'].map((name) => {
    const file = path.join(root, name)
    return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).packages : {}
  })
  const same = ([name, { version, integrity, optional }]) =>
    there[name] === undefined ? optional === true : there[name].version === version && there[name].integrity === integrity
  const names = Object.entries(wanted).filter(([name]) => name !== '')
  return names.every(same) && Object.keys(there).every((name) => name in wanted)
}

/** Says what is missing and how to get it, and ends the process. */
export function needRust() {
  const cargo = spawnSync('cargo', ['--version'], { encoding: 'utf8' })
  if (cargo.status === 0) return
  console.error('cargo is missing: install Rust (Cargo.toml says which version), then run this again.')
  process.exit(1)
}

/** A port that was free a moment ago. */
export function freePort() {
  return new Promise((resolve, reject) => {
    const probe = createServer()
    probe.on('error', reject)
    probe.listen(0, '127.0.0.1', () => {
      const { port } = probe.address()
      probe.close(() => resolve(port))
    })
  })
}

/** Whether somebody listens on a port of this machine. */
export function answers(port) {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => {
      socket.destroy()
      resolve(true)
    })
    socket.on('error', () => resolve(false))
  })
}

/** The server that a suite runs on: `server` when it names a binary, else one built now; undefined when there is none. */
export async function serverUnderTest({ server, dev }) {
  if (server) {
    const file = path.resolve(server)
    if (existsSync(file)) return file
    console.error(`--server: there is no ${file}`)
    return undefined
  }
  needRust()
  const flags = dev ? UNDER_TEST : ['--release', '--no-default-features', '--features', 'server', '--bin', 'kiro-server']
  const built = await run('cargo', ['build', ...flags])
  return built ? serverBinary(dev ? 'debug' : 'release') : undefined
}
