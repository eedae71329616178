// The gates beside the tests: format, lints, layers, generated files, types. The same here, in CI and in the workflow.
import { spawnSync } from 'node:child_process'
import { build } from './build.mjs'
import { deny } from './deny.mjs'
import { check, conclude, installPackages, isProgram, needRust, root, totals } from './steps.mjs'

/** Crates that the pure core must not pull in (CONTRIBUTING.md: layers 0 to 3). */
const IMPURE = /^(tokio|hyper|reqwest|redis|napi)(-|$)/

export async function lint() {
  const clippy = (...args) => ['clippy', '-q', ...args, '--', '-D', 'warnings']
  await check('format', 'cargo', ['fmt', '--check'])
  await check('the core compiles alone', 'cargo', ['check', '-q', '--no-default-features'])
  pure()
  deny()
  await check('clippy: core', 'cargo', clippy('--no-default-features', '--all-targets'))
  await check('clippy: everything', 'cargo', clippy('--features', 'server', '--all-targets'))
  await check('clippy: traces', 'cargo', clippy('--features', 'server,otel', '--lib', '--bins', '--test', 'traces'))
  await documented('core', '--no-default-features')
  await documented('addon')
  await documented('server', '--features', 'server,otel')
  if (!(await build(false))) totals.failed += 1
  await check('generated files are as committed', 'git', ['diff', '--exit-code', '--stat', 'index.js', 'index.d.ts'])
  for (const resolution of ['node16', 'bundler']) {
    await check(`types: ${resolution}`, 'npx', ['--no-install', 'tsc', '-p', `__test__/types/tsconfig.${resolution}.json`])
  }
  // Features that `npm test` doesn't build: traces run against a collector, and the core by itself, whose tests `npm test`
  // runs with everything around it. They come last: cargo keeps one library of the crate, whatever its features.
  await check('traces', 'cargo', ['test', '-q', '--features', 'server,otel', '--test', 'traces'])
  await check('the core passes its tests alone', 'cargo', ['test', '-q', '--no-default-features'])
}

/** The crate's documentation compiles, and its links resolve. */
async function documented(name, ...features) {
  const env = { RUSTDOCFLAGS: '-D warnings' }
  await check(`documentation: ${name}`, 'cargo', ['doc', '-q', '--no-deps', '--lib', ...features], { env })
}

function pure() {
  const tree = spawnSync('cargo', ['tree', '--no-default-features', '-e', 'normal', '--prefix', 'none'], {
    cwd: root,
    encoding: 'utf8',
  })
  const impure = [...new Set(tree.stdout.split('\n').map((line) => line.split(' ')[0]))].filter((name) => IMPURE.test(name))
  const ok = tree.status === 0 && impure.length === 0
  totals[ok ? 'passed' : 'failed'] += 1
  console.log(`${ok ? 'ok' : 'FAILED'}: no runtime and no IO below the core ${impure.join(' ')}${tree.stderr}`)
}

if (isProgram(import.meta.url)) {
  const started = Date.now()
  needRust()
  const ok = await installPackages()
  if (ok) await lint()
  conclude(ok, started)
}
