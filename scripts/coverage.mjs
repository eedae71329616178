// npm run coverage: which lines of src/ and lib/ the tests reach.
//
//   npm run coverage             every suite, instrumented; then the table, target/coverage/index.html and lcov.info
//   npm run coverage -- --report only the table, of what the last run left
//
// The crate alone is instrumented (scripts/instrumented.sh): dependencies are those of every other build. The addon and
// kiro-server are built the same way, so that the JavaScript suites and whole processes count too; a process that is killed
// leaves nothing. lib/ is measured by Node.js itself. `tests/coverage.txt` holds the committed share and what no test reaches.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { need } from './needs.mjs'
import { isProgram, root, run, target, totals } from './steps.mjs'

const folder = path.join(target, 'coverage')
const raw = path.join(folder, 'raw')
/** What Node.js writes about lib/. */
export const nodeReport = path.join(folder, 'node.info')
/** By how many points the share may fall. */
const SLACK = 0.5

/** Whether a run has all it needs: a place for its figures, and llvm-tools that can read this rustc's output. */
export async function prepare() {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(raw, { recursive: true })
  if (tool('llvm-cov') || (await run('rustup', ['component', 'add', 'llvm-tools']))) return true
  // A toolchain without rustup, or out of rustup's reach: use the system's tools of the same LLVM.
  const version = llvm()
  return need({
    name: `llvm-cov-${version}`,
    apt: `llvm-${version}`,
    brew: `llvm@${version}`,
    why: 'Coverage is read by the llvm-tools of the toolchain (rustup component add llvm-tools), or of its LLVM',
  })
}

/** The environment of a run: programs compiled in it count their lines, and write the figures to its folder. */
export function instrumented() {
  return {
    RUSTC_WORKSPACE_WRAPPER: path.join(root, 'scripts', 'instrumented.sh'),
    // Processes of one binary add to at most eight files.
    LLVM_PROFILE_FILE: path.join(raw, '%8m.profraw'),
  }
}

/** A program of the toolchain's llvm-tools, or of the system's LLVM of the same version. */
function tool(name) {
  const libraries = asked('rustc', '--print', 'target-libdir').trim()
  const system = `${name}-${llvm()}`
  const own = path.join(libraries, '..', 'bin', name)
  if (existsSync(own)) return own
  return asked(system, '--version') === '' ? undefined : system
}

/** The major version of rustc's LLVM. */
function llvm() {
  return /^LLVM version: (\d+)/m.exec(asked('rustc', '-vV'))?.[1]
}

/** A program's output; empty when it isn't installed. */
function asked(program, ...args) {
  return spawnSync(program, args, { cwd: root, encoding: 'utf8' }).stdout ?? ''
}

/** Merges the figures of a run, shows them, and counts as one test whether the share holds. */
export async function report() {
  const merged = path.join(folder, 'merged.profdata')
  // A process that a test starts with an empty environment writes to its working folder.
  const astray = readdirSync(root).filter((name) => name.endsWith('.profraw'))
  astray.forEach((name) => renameSync(path.join(root, name), path.join(raw, name)))
  const profiles = readdirSync(raw).map((name) => path.join(raw, name))
  const merge = ['merge', '--sparse', '--failure-mode=all', '-o', merged, ...profiles]
  const ok = spawnSync(tool('llvm-profdata'), merge, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] }).status === 0
  const binaries = ok ? await instrumentedBinaries() : []
  if (binaries.length === 0) {
    totals.failed += 1
    return
  }
  const objects = binaries.slice(1).flatMap((binary) => ['-object', binary])
  const exported = ['export', '--format=lcov', `--instr-profile=${merged}`, binaries[0], ...objects, '--sources', path.join(root, 'src')]
  const { stdout } = spawnSync(tool('llvm-cov'), exported, { encoding: 'utf8', maxBuffer: 1 << 30, stdio: ['ignore', 'pipe', 'inherit'] })
  const node = existsSync(nodeReport) ? readFileSync(nodeReport, 'utf8') : ''
  conclude(files(new Map([...read(stdout), ...read(node)])))
}

/** Everything that cargo has linked for the tests. */
async function instrumentedBinaries() {
  const found = new Set()
  const hear = (line) => {
    const { reason, executable, filenames = [], target: { kind = [] } = {} } = JSON.parse(line)
    if (reason !== 'compiler-artifact') return
    if (executable) found.add(executable)
    if (kind.includes('cdylib')) filenames.filter((file) => /\.(so|dylib)$/.test(file)).forEach((file) => found.add(file))
  }
  const args = ['test', '--no-run', '--features', 'server', '--message-format', 'json-render-diagnostics']
  const ok = await run('cargo', args, { env: instrumented(), hear, quiet: true })
  return ok ? [...found].filter((file) => file.startsWith(target)) : []
}

/** An lcov text: for each file how often each line was reached. */
function read(lcov) {
  const found = new Map()
  let lines
  for (const line of lcov.split('\n')) {
    const [, word, rest] = /^(SF|DA):(.*)$/.exec(line) ?? []
    if (word === 'SF') found.set(path.relative(root, path.resolve(root, rest)).replaceAll('\\', '/'), (lines = new Map()))
    if (word !== 'DA') continue
    const [number, count] = rest.split(',').map(Number)
    lines.set(number, Math.max(count, lines.get(number) ?? 0))
  }
  return found
}

/**
 * The program's files as they were measured: `{ name, text, lines }`, where `lines` holds what counts. Tests don't. Of lib/
 * every file counts that is there, and no line without code: Node.js counts comments too, and knows only what was loaded.
 */
function files(measured) {
  const scripts = readdirSync(path.join(root, 'lib'), { recursive: true })
    .filter((name) => /\.m?js$/.test(name))
    .map((name) => `lib/${name.replaceAll('\\', '/')}`)
  const rust = [...measured.keys()].filter((name) => /^src\/.*\.rs$/.test(name) && !/(^|\/)tests(\.rs|\/)/.test(name))
  return [...rust, ...scripts].sort().map((name) => {
    const text = readFileSync(path.join(root, name), 'utf8').split('\n')
    const given = measured.get(name) ?? new Map(text.map((_, at) => [at + 1, 0]))
    const isTest = testLines(text)
    const counts = ([number]) =>
      name.startsWith('lib/') ? !/^\s*(\/\/.*|\/?\*.*|'use strict'|[)}\]; ,]*)$/.test(text[number - 1] ?? '') : !isTest(number)
    return { name, text, lines: new Map([...given].filter(counts)) }
  })
}

/** Whether a line belongs to a `#[cfg(test)]` item: from it to the brace that closes it, in the same column. */
function testLines(text) {
  const inside = new Set()
  text.forEach((line, at) => {
    if (!/^\s*#\[cfg\(test\)\]/.test(line) || inside.has(at + 1)) return
    const column = line.search(/\S/)
    const end = text.findIndex((later, place) => place > at && later.search(/\S/) === column && /^\s*[}][;,)]*$|;$/.test(later))
    for (let place = at; place <= end; place++) inside.add(place + 1)
  })
  return (number) => inside.has(number)
}

/**
 * `tests/coverage.txt`: `share 97.3`, and entries `FILE: WORDS: REASON`. What is left out is the line with the words, and the
 * block that it opens; `*` is the whole file.
 */
function committed() {
  const entries = []
  let share
  for (const line of readFileSync(path.join(root, 'tests', 'coverage.txt'), 'utf8').split('\n')) {
    if (line === '' || line.startsWith('#')) continue
    if (line.startsWith('share ')) {
      share = Number(line.slice(6))
      continue
    }
    const [name, words, ...reason] = line.split(' | ')
    if (reason.length !== 1) throw new Error(`tests/coverage.txt: not FILE | WORDS | REASON: ${line}`)
    entries.push({ name, words, line })
  }
  return { share, entries }
}

/** The lines of an entry. */
function spoken(text, words) {
  if (words === '*') return text.map((_, at) => at + 1)
  return text.flatMap((line, at) => {
    if (!line.includes(words)) return []
    const column = line.search(/\S/)
    const opens = text.slice(at + 1).find((later) => later.trim() !== '')?.search(/\S/) > column
    const end = opens ? text.findIndex((later, place) => place > at && later.trim() !== '' && later.search(/\S/) <= column && !/^\s*\)/.test(later)) : at
    return Array.from({ length: end - at + 1 }, (_, more) => at + 1 + more)
  })
}

function conclude(all) {
  const { share: least, entries } = committed()
  const stale = []
  for (const { name, words, line } of entries) {
    const file = all.find((one) => one.name === name)
    const left = file ? spoken(file.text, words).filter((number) => file.lines.get(number) === 0) : []
    if (left.length === 0) stale.push(line)
    left.forEach((number) => file.lines.delete(number))
  }
  const rooms = new Map()
  for (const file of all) {
    const parts = file.name.split('/')
    const room = parts.length > 2 ? `${parts[0]}/${parts[1]}` : parts[0]
    rooms.set(room, [...(rooms.get(room) ?? []), file])
  }
  const rows = [...rooms].sort(([a], [b]) => a.localeCompare(b)).map(([room, of]) => ({ room, ...sum(of) }))
  const total = sum(all)
  console.log('\nlines of src/ and lib/ that tests reach')
  for (const { room, lines, reached } of [...rows, { room: 'all', ...total }]) {
    console.log(`${room.padEnd(28)}${String(reached).padStart(7)} of ${String(lines).padStart(6)}${percent(reached, lines).padStart(9)} %`)
  }
  console.log('\nmost of what is not reached')
  const worst = [...all].sort((a, b) => missed(b).length - missed(a).length).slice(0, 12)
  for (const file of worst) console.log(`${file.name}: ${ranges(missed(file)).join(' ')}`)
  writeFileSync(path.join(folder, 'lcov.info'), all.map(lcov).join(''))
  pages(all)
  console.log(`\n${path.relative(root, path.join(folder, 'index.html'))}, lcov.info beside it`)
  const share = Number(percent(total.reached, total.lines))
  for (const line of stale) console.log(`FAILED: tests/coverage.txt: tests reach this, or it is gone: ${line}`)
  const holds = share >= least - SLACK && stale.length === 0
  totals[holds ? 'passed' : 'failed'] += 1
  const fell = share < least - SLACK ? `, by more than ${SLACK} points below` : '; committed:'
  console.log(`${holds ? 'ok' : 'FAILED'}: coverage: ${share} %${fell} ${least} % (tests/coverage.txt)`)
}

function sum(of) {
  const lines = of.reduce((sum, file) => sum + file.lines.size, 0)
  return { lines, reached: lines - of.reduce((sum, file) => sum + missed(file).length, 0) }
}

function missed(file) {
  return [...file.lines].filter(([, count]) => count === 0).map(([number]) => number)
}

function percent(part, of) {
  return (of === 0 ? 100 : (100 * part) / of).toFixed(2)
}

/** `3 7-9 12`. */
function ranges(numbers) {
  const found = []
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = found.at(-1)
    if (last && last[1] === number - 1) last[1] = number
    else found.push([number, number])
  }
  return found.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`))
}

function lcov({ name, lines }) {
  const rows = [...lines].sort(([a], [b]) => a - b).map(([number, count]) => `DA:${number},${count}\n`)
  return `SF:${name}\n${rows.join('')}end_of_record\n`
}

/** index.html, and one page for each file. */
function pages(all) {
  const style = '<meta charset="utf-8"><style>body{font:14px/1.4 monospace;margin:2em}td{padding:0 1em}pre{margin:0}.no{background:#fbb}.yes{background:#dfd}</style>'
  const page = (name) => `${name.replaceAll('/', '.')}.html`
  const escaped = (text) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
  const rows = all.map((file) => {
    const { lines, reached } = sum([file])
    const shown = file.text.map((line, at) => {
      const count = file.lines.get(at + 1)
      const mark = count === undefined ? '' : count === 0 ? ' class="no"' : ' class="yes"'
      return `<pre${mark}>${String(at + 1).padStart(5)} ${escaped(line)}</pre>`
    })
    writeFileSync(path.join(folder, page(file.name)), `<!doctype html>${style}<title>${file.name}</title><h1>${file.name}</h1>${shown.join('\n')}\n`)
    return `<tr><td><a href="${page(file.name)}">${file.name}</a><td>${reached} of ${lines}<td>${percent(reached, lines)} %`
  })
  writeFileSync(path.join(folder, 'index.html'), `<!doctype html>${style}<title>Coverage</title><table>${rows.join('\n')}</table>\n`)
}

if (isProgram(import.meta.url)) {
  if (process.argv.includes('--report')) {
    await report()
    process.exit(totals.failed === 0 ? 0 : 1)
  }
  const suites = spawnSync(process.execPath, [fileURLToPath(new URL('test.mjs', import.meta.url)), '--coverage'], { stdio: 'inherit' })
  process.exit(suites.status ?? 1)
}
