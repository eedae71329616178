// The kept run: one file in bench/results, its chart, and the figures of docs/performance.md and README.md, made from it.
//
//   npm run bench -- --publish     a whole run, and all of that from it
//   node bench/publish.mjs         the figures anew from the file that is there
import { readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { isProgram, root } from '../scripts/steps.mjs'
import { median } from './measure.mjs'

const RESULTS = path.join(root, 'bench', 'results')
const [BEGIN, END] = ['<!-- figures: begin -->', '<!-- figures: end -->']

/** Fewest rounds that have a median: one that is off doesn't become the figure. */
const ROUNDS = 3

/** Why a run, or one that is asked for, may not stand for the project; null: it is whole, at full size, none of it broken. */
export function unfit({ quick, only, rounds, broken = [] }) {
  if (quick) return 'a quick run has a tenth of the load'
  if (only) return `it has only ${only}`
  if (!(rounds >= ROUNDS)) return `it has ${rounds} of at least ${ROUNDS} rounds`
  if (broken.length > 0) return `${broken.map(({ name }) => name).join(', ')} broke`
  return null
}

/** `name`: of the run's file, without its ending. The others go. */
export function publish(name) {
  for (const file of readdirSync(RESULTS)) if (!file.startsWith(`${name}.`)) rmSync(path.join(RESULTS, file))
  const result = JSON.parse(readFileSync(path.join(RESULTS, `${name}.json`), 'utf8'))
  put(path.join(root, 'docs', 'performance.md'), table(name, result))
  put(path.join(root, 'README.md'), sentences(result))
}

/** Writes figures where they stood. */
function put(file, figures) {
  const page = readFileSync(file, 'utf8')
  const [from, to] = [page.indexOf(BEGIN), page.indexOf(END)]
  if (from < 0 || to < from) throw new Error(`${file} has no place for the figures`)
  writeFileSync(file, `${page.slice(0, from)}${BEGIN}\n${figures}\n${page.slice(to)}`)
}

function sentences({ cases, machine }) {
  const of = (name, who, pick) => median(cases[name][who].map(pick))
  const cpu = (name, who) => of(name, who, (f) => f.cpuMicros)
  const p50 = (f) => f.firstEventMs.p50
  const added = median(cases.single['kiro-server'].map((f, round) => p50(f) - p50(cases.single.direct[round])))
  const stream = of('open', 'kiro-server', (f) => f.bytesAStream / 1024)
  const [most, least] = ['addon-trickle', 'addon-burst'].map((name) => of(name, 'addon', (f) => f.mainMicros).toFixed(1))
  return `On ${machine.cores} cores, beside nginx passing the same bytes through unread: ${cpu('burst', 'kiro-server').toFixed(2)} µs of CPU a delta in bursts where nginx spends
${cpu('burst', 'nginx').toFixed(2)}, ${cpu('trickle', 'kiro-server').toFixed(1)} against ${cpu('trickle', 'nginx').toFixed(1)} when deltas come singly on 500 streams, ${added.toFixed(2)} ms more to the first event than a direct call,
${stream.toFixed(0)} KiB a stream at ${cases.open['kiro-server'][0].streams.toLocaleString('en')} open. In Node.js \`handler()\` takes ${least} to ${most} µs of the JavaScript thread a delta, \`listen()\` none.`
}

function table(name, { date, commit, machine, rounds, rows, beside }) {
  const day = new Date(date).toLocaleDateString('en-GB', { day: 'numeric', month: 'long', year: 'numeric', timeZone: 'UTC' })
  const whole = [`[all of it](../bench/results/${name}.json)`, `[as a chart](../bench/results/${name}.svg)`]
  const head = `One run of \`npm run bench\` (${day}${commit === null ? '' : `, commit ${commit.slice(0, 7)}`}, release builds, ${machine.cores} × ${machine.cpu},
medians of ${rounds} rounds): ${whole.join(', ')}.`
  const columns = ['what', 'target', 'measured', ...(beside ? [beside.name] : [])]
  const lines = []
  for (const { what, target, measured, holds } of rows) {
    // The ways into JavaScript have a table of their own (below).
    if (what.startsWith('a chunk of')) continue
    const verdict = holds === false ? `${measured}: **missed**` : measured
    lines.push([what, target, verdict, ...(beside ? [beside.rows.find((row) => row.what === what)?.measured ?? ''] : [])])
  }
  const [titles, ...rest] = [columns, ...lines].map((cells) => `| ${cells.join(' | ')} |`)
  return [head, '', titles, `|${'---|'.repeat(columns.length)}`, ...rest].join('\n')
}

if (isProgram(import.meta.url)) {
  const kept = readdirSync(RESULTS).filter((file) => file.endsWith('.json')).sort().at(-1)
  publish(path.basename(kept, '.json'))
}
