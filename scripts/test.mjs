// npm test: sets up what is missing and runs everything.
//
//   npm test                  all of it
//   npm test -- --lint        with the gates of `npm run lint`, as CI does
//   npm test -- --node-only   only the JavaScript tests, on a fresh debug build
//   npm test -- stream        only the JavaScript test files whose name has `stream` in it
//   npm run coverage          all of it, instrumented, and which lines it reached (scripts/coverage.mjs)
import { readdirSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { nodeTests, twice } from './again.mjs'
import { build } from './build.mjs'
import { instrumented, nodeReport, prepare, report } from './coverage.mjs'
import { lint } from './lint.mjs'
import { need } from './needs.mjs'
import { conclude, installPackages, needRust, root, run, serverBinary, totals } from './steps.mjs'
import { faults } from './test-faults.mjs'

const started = Date.now()
const flags = process.argv.slice(2).filter((arg) => arg.startsWith('--'))
const words = process.argv.slice(2).filter((arg) => !arg.startsWith('--'))
const nodeOnly = flags.includes('--node-only') || words.length > 0

needRust()
const coverage = flags.includes('--coverage') && (await prepare())
// Every process from here on is measured.
if (coverage) Object.assign(process.env, instrumented())
const built = (await installPackages()) && (await need('redis-server')) && (await build(false))
let ok = built
// A part that fails doesn't hold the others up: one run shows everything that is wrong.
if (built && !nodeOnly) {
  // Many of these tests wait: for a time-out, a retry, another process. With two threads they would wait in turn.
  const env = { RUST_TEST_THREADS: process.env.RUST_TEST_THREADS ?? String(Math.max(4, os.availableParallelism())) }
  const cargo = (options, ...more) => run('cargo', ['test', '--no-fail-fast', '--features', 'server', ...more], options)
  const passed = await twice(
    (listen) => cargo({ env, listen }),
    (line) => /^test (\S+) \.\.\. FAILED$/.exec(line)?.[1],
    (names) => cargo({ env: { RUST_TEST_THREADS: '1' } }, '--', '--exact', ...names),
  )
  ok = passed && ok
}
if (built) {
  const files = readdirSync(path.join(root, '__test__'))
    .filter((name) => name.endsWith('.test.mjs') && (words.length === 0 || words.some((word) => name.includes(word))))
    .map((name) => path.join('__test__', name))
  const measured = ['--experimental-test-coverage', '--test-reporter=lcov', `--test-reporter-destination=${nodeReport}`]
  const node = (files, ...more) => nodeTests(files, { flags: more })
  if (coverage) {
    // Bars for memory hold without V8's counters beside each thread.
    const isBar = (file) => file.endsWith('life.test.mjs')
    ok = (await node(files.filter((file) => !isBar(file)), ...measured)) && ok
    ok = (await node(files.filter(isBar))) && ok
  } else {
    ok = (await node(files)) && ok
  }
  if (!nodeOnly) await faults({ size: 'short', binary: serverBinary() })
  if (coverage) {
    for (const name of Object.keys(instrumented())) delete process.env[name]
    await report()
  }
  if (flags.includes('--lint')) await lint()
}
if (flags.includes('--coverage') && !coverage) ok = false
if (ok && totals.passed === 0) ok = false
conclude(ok, started)
