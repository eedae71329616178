// The table: a line a row on the terminal, and docs/reliability.md.
import { readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { root } from '../../scripts/steps.mjs'

const DOC = path.join(root, 'docs', 'reliability.md')
const BEGIN = '<!-- the table: written by npm run test:faults -->'
const END = '<!-- end of the table -->'

/** passed, failed or skipped. */
export function judge(result) {
  if (result.problems.length > 0) return 'failed'
  return result.skipped ? 'skipped' : 'passed'
}

/** A result on the terminal. */
export function lines(result) {
  const { row, requests, designed, failed, lost, skipped, notes, problems, logs } = result
  const word = { passed: 'ok', failed: 'FAILED', skipped: 'skipped' }[judge(result)]
  const figures = skipped ?? `${requests} requests, ${designed} failed by design, ${failed} failed, ${lost} lost, ${recovered(result)}`
  const said = [...notes, ...problems.map((problem) => `! ${problem}`), ...(logs ? [logs] : [])]
  return [`${word}: ${row.kind}: ${row.name} (${result.seconds.toFixed(1)} s): ${figures}`, ...said.map((text) => indent(text))].join('\n')
}

/** Writes the table of docs/reliability.md anew; the rest of the page is written by people. */
export function write(results, { size, debug }) {
  const page = readFileSync(DOC, 'utf8')
  const [before, after] = [page.slice(0, page.indexOf(BEGIN)), page.slice(page.indexOf(END) + END.length)]
  const date = new Date().toISOString().slice(0, 10)
  const machine = `${os.availableParallelism()} cores (${os.arch()}), ${Math.round(os.totalmem() / 2 ** 30)} GiB, Linux ${os.release().split('.').slice(0, 2).join('.')}, Node.js ${process.versions.node.split('.')[0]}`
  const run = `Last run: ${date}, a ${debug ? 'debug' : 'release'} build, ${size} length, ${machine}; client, upstream and Redis on the same machine.`
  const head = ['fault', 'load', 'requests', 'failed by design', 'failed', 'lost', 'recovered after']
  const table = [head, head.map(() => '---'), ...results.map(cells)].map((cells) => `| ${cells.join(' | ')} |`).join('\n')
  writeFileSync(DOC, `${before}${BEGIN}\n${run}\n\n${table}\n${END}${after}`)
}

function cells(result) {
  const { row, requests, designed, failed, lost, skipped, notes } = result
  const fault = `**${row.kind}**: ${row.name}${notes.length > 0 ? `; ${notes.join('; ')}` : ''}`
  if (skipped) return [fault, row.load, `not run: ${skipped}`, '', '', '', '']
  const bad = judge(result) === 'failed' ? ' **(row failed)**' : ''
  return [fault + bad, row.load, requests, designed, failed, lost, recovered(result)]
}

function recovered({ recoveredMs }) {
  return recoveredMs === 0 ? 'at once' : `${(recoveredMs / 1000).toFixed(1)} s`
}

function indent(text) {
  return text.split('\n').map((line) => `    ${line}`).join('\n')
}
