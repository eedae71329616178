// npm run soak:pool: the bars of the pool and the coexistence tests on the release server, at full size; some four minutes.
//
//   npm run soak:pool                   on a release build
//   npm run soak:pool -- --dev          on a debug build
//   npm run soak:pool -- --server FILE  on this binary
//   npm run soak:pool -- case_36        only the tests whose name has this word in it
import { parseArgs } from 'node:util'
import { need } from './needs.mjs'
import { conclude, installPackages, needRust, run, serverUnderTest, totals } from './steps.mjs'

const started = Date.now()
const { values, positionals: words } = parseArgs({
  options: { dev: { type: 'boolean', default: false }, server: { type: 'string' } },
  allowPositionals: true,
})

needRust()
let ok = (await installPackages()) && (await need('redis-server'))
const server = ok && (await serverUnderTest(values))
ok = Boolean(server)
if (ok) {
  const env = { KIRO_TEST_SERVER: server, KIRO_TEST_FULL_SIZE: '1' }
  const tests = ['--test', 'bars_pool', '--test', 'coexist']
  ok = await run('cargo', ['test', '--features', 'server', ...tests, '--', ...words], { env })
  if (totals.passed === 0) ok = false
}
conclude(ok, started)
