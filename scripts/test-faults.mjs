// npm run test:faults: kiro-server under load and under every kind of fault, with real programs; docs/reliability.md keeps
// the figures.
//
//   npm run test:faults                   on a release build, some ten minutes; writes docs/reliability.md
//   npm run test:faults -- --only redis   only the rows whose name or kind has this word in it; more than one add up
//   npm run test:faults -- --short        the quick ones, two minutes; `npm test` runs them, too
//   npm run test:faults -- --long         at full length: 10 minutes of broken streams, 60 s without a reader of the log
//   npm run test:faults -- --dev          on a debug build
//   npm run test:faults -- --server FILE  on this binary
//   npm run test:faults -- --jobs 1       one row after the other
//   npm run test:faults -- --list         what there is
//
// A row that fails fails the command. What the machine can't do (a tmpfs, a C compiler) is skipped with a line that says so.
// Linux only: it reads /proc.
import os from 'node:os'
import { parseArgs } from 'node:util'
import { need } from './needs.mjs'
import { conclude, installPackages, isProgram, seconds, serverUnderTest, totals } from './steps.mjs'

const word = (row) => `${row.kind}: ${row.name}`.toLowerCase()

if (isProgram(import.meta.url)) await main()

async function main() {
  const started = Date.now()
  const { values: options } = parseArgs({
    options: {
      only: { type: 'string', multiple: true, default: [] },
      short: { type: 'boolean', default: false },
      long: { type: 'boolean', default: false },
      dev: { type: 'boolean', default: false },
      server: { type: 'string' },
      jobs: { type: 'string' },
      list: { type: 'boolean', default: false },
      'no-doc': { type: 'boolean', default: false },
    },
  })
  if (!((await installPackages()) && (await need('redis-server')))) conclude(false, started)
  const size = options.short ? 'short' : options.long ? 'long' : 'normal'
  if (options.list) {
    for (const row of await rowsOf(size, options.only)) console.log(word(row) + (row.short ? ' (short)' : ''))
    return
  }
  const binary = await serverUnderTest(options)
  if (!binary) conclude(false, started)
  const results = await faults({ ...options, size, binary })
  if (size !== 'short' && options.only.length === 0 && !options['no-doc']) {
    const { write } = await import('../tests/faults/report.mjs')
    write(results, { size, debug: options.dev })
  }
  conclude(results.length > 0 || process.platform !== 'linux', started)
}

async function rowsOf(size, only) {
  const { ROWS } = await import('../tests/faults/rows.mjs')
  const fits = (row) => only.length === 0 || only.some((one) => word(row).includes(one.toLowerCase()))
  return ROWS.filter((row) => fits(row) && (size !== 'short' || row.short))
}

/** Runs the rows of a size on a server's binary and counts each as a test. */
export async function faults({ size, only = [], binary, jobs = Math.min(3, os.availableParallelism()) }) {
  if (process.platform !== 'linux') {
    console.log('the fault suite reads /proc: Linux only, nothing was run')
    return []
  }
  const { judge, lines } = await import('../tests/faults/report.mjs')
  const { Run } = await import('../tests/faults/row.mjs')
  const started = Date.now()
  const rows = await rowsOf(size, only)
  const results = new Map()
  const run = async (row) => {
    const result = await new Run(row, { binary, size }).run()
    results.set(row, result)
    totals[judge(result)] += 1
    console.log(lines(result))
  }
  // Those that measure rates or fill the machine run by themselves, the rest beside each other.
  const beside = rows.filter((row) => !row.alone)
  await Promise.all(
    Array.from({ length: Number(jobs) }, async () => {
      for (let row; (row = beside.shift()); ) await run(row)
    }),
  )
  for (const row of rows.filter((row) => row.alone)) await run(row)
  console.log(`\n${rows.length} rows in ${seconds(started)}`)
  return rows.map((row) => results.get(row))
}
