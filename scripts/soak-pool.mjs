// npm run soak:pool: the bars of the pool and the coexistence tests on the release server, at full size; some four minutes.
//
//   npm run soak:pool                   on a release build
//   npm run soak:pool -- --dev          on a debug build
//   npm run soak:pool -- --server FILE  on this binary
//   npm run soak:pool -- case_36        only the tests whose name has this word in it
import { existsSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { need } from './needs.mjs'
import { conclude, installPackages, needRust, run, serverBinary, totals } from './steps.mjs'

const started = Date.now()
const { values, positionals: words } = parseArgs({
  options: { dev: { type: 'boolean', default: false }, server: { type: 'string' } },
  allowPositionals: true,
})

needRust()
let ok = (await installPackages()) && (await need('redis-server'))
const server = ok && (await binary())
ok = Boolean(server)
if (ok) {
  const env = { KIRO_TEST_SERVER: server, KIRO_TEST_FULL_SIZE: '1' }
  const tests = ['--test', 'bars_pool', '--test', 'coexist']
  ok = await run('cargo', ['test', '--features', 'server', ...tests, '--', ...words], { env })
  if (totals.passed === 0) ok = false
}
conclude(ok, started)

/** The server to test; undefined when it can't be built. */
async function binary() {
  if (values.server) {
    const file = path.resolve(values.server)
    if (existsSync(file)) return file
    console.error(`--server: there is no ${file}`)
    return undefined
  }
  const flags = ['--no-default-features', '--features', 'server', '--bin', 'kiro-server']
  const built = await run('cargo', ['build', ...(values.dev ? [] : ['--release']), ...flags])
  return built ? serverBinary(values.dev ? 'debug' : 'release') : undefined
}
