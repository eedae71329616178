// npm run bench:instructions: how many instructions a fixed input takes, by valgrind's callgrind. The machine may be busy:
// the count is the same.
//
//   npm run bench:instructions             beside those of bench/instructions/counts.json; more than 5 % up fails, and so does
//                                          what costs more than its share of another case
//   npm run bench:instructions -- --save   these are the ones from now on
//   npm run bench:instructions -- text     one case, with the functions that it spends most in
//
// Another compiler makes other code, so that counts are only compared with those of the same one.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { need } from './needs.mjs'
import { conclude, isProgram, needRust, root, run, skip, target, totals } from './steps.mjs'

const KEPT = path.join(root, 'bench', 'instructions', 'counts.json')
/** What one unit is, and two numbers of units whose difference is counted. */
const CASES = {
  text: { unit: 'text delta', counts: [20_000, 120_000] },
  tool: { unit: 'piece of a tool input', counts: [20_000, 120_000] },
  stops: { unit: 'text delta with 16 stop sequences', counts: [20_000, 120_000], atMost: { ratio: 1.3, of: 'text' } },
  request: { unit: 'request of 1 MB with 40 tools', counts: [1, 5] },
  tokens: { unit: 'estimate of its tokens', counts: [1, 5] },
}
const MOST_UP = 1.05

/** Counts, prints the table, judges. */
export async function instructions({ save = false, only } = {}) {
  if (process.platform !== 'linux') {
    skip('callgrind is for Linux')
    return true
  }
  if (!(await need({ name: 'valgrind', apt: 'valgrind', brew: 'valgrind', why: 'It counts instructions' }))) return false
  const folder = path.join(target, 'instructions')
  const manifest = path.join(root, 'bench', 'instructions', 'Cargo.toml')
  if (!(await run('cargo', ['build', '-q', '--release', '--locked', '--manifest-path', manifest, '--target-dir', folder]))) return false
  const binary = path.join(folder, 'release', 'kiro-messages-instructions')
  const kept = JSON.parse(readFileSync(KEPT, 'utf8'))
  const compiler = `${rustc()}, ${process.arch}`
  const comparable = kept.compiler === compiler
  const counts = {}
  const rows = [['', 'instructions a', 'now', 'kept', '']]
  for (const [name, { unit, counts: [few, many], atMost }] of Object.entries(CASES)) {
    if (only && name !== only) continue
    counts[name] = Math.round((count(binary, name, many) - count(binary, name, few, only === name)) / (many - few))
    const ratio = comparable && kept.counts[name] ? counts[name] / kept.counts[name] : undefined
    const holds = ratio === undefined || ratio <= MOST_UP
    if (ratio !== undefined) totals[holds ? 'passed' : 'failed'] += 1
    rows.push([holds ? ' ' : '✗', unit, `${counts[name]}`, `${kept.counts[name] ?? '–'}`, ratio ? `${ratio.toFixed(3)} ×` : ''])
    if (atMost && counts[atMost.of]) {
      const share = counts[name] / counts[atMost.of]
      const fits = share <= atMost.ratio
      totals[fits ? 'passed' : 'failed'] += 1
      rows.push([fits ? ' ' : '✗', `${unit}, beside a ${CASES[atMost.of].unit}`, `${share.toFixed(2)} ×`, `${atMost.ratio} ×`, ''])
    }
  }
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)))
  for (const row of rows) console.log(row.map((cell, column) => cell.padEnd(widths[column])).join('  ').trimEnd())
  if (save) writeFileSync(KEPT, `${JSON.stringify({ compiler, counts: { ...kept.counts, ...counts } }, null, 2)}\n`)
  else if (!comparable) skip(`kept by ${kept.compiler}, and this is ${compiler}`)
  return true
}

/** Instructions of the whole process. */
function count(binary, name, units, explain = false) {
  const work = mkdtempSync(path.join(tmpdir(), 'kiro-instructions-'))
  try {
    const out = path.join(work, 'callgrind')
    const done = spawnSync('valgrind', ['--tool=callgrind', `--callgrind-out-file=${out}`, binary, name, String(units)], { encoding: 'utf8' })
    const found = /Collected : (\d+)/.exec(done.stderr)
    if (done.status !== 0 || !found) throw new Error(`callgrind: ${done.stderr}`)
    if (explain) console.log(spawnSync('callgrind_annotate', ['--threshold=85', out], { encoding: 'utf8' }).stdout)
    return Number(found[1])
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

function rustc() {
  return spawnSync('rustc', ['--version'], { encoding: 'utf8' }).stdout.trim()
}

if (isProgram(import.meta.url)) {
  const started = Date.now()
  needRust()
  const words = process.argv.slice(2)
  conclude(await instructions({ save: words.includes('--save'), only: words.find((word) => word in CASES) }), started)
}
