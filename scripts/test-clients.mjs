// npm run test:clients: the real clients against kiro-server and its simulated upstream (tests/clients/README.md).
//
//   npm run test:clients                   all of it, on a release build
//   npm run test:clients -- --dev          on a debug build
//   npm run test:clients -- --server FILE  on this binary
//   npm run test:clients -- sdk errors     only the suites whose name has one of these words in it
import { existsSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { nodeTests } from './again.mjs'
import { pythonWith, unlessDone } from './python.mjs'
import { conclude, root, run, serverUnderTest, totals } from './steps.mjs'

const SUITES = path.join('tests', 'clients')
const CACHE = path.join(root, '.cache', 'clients')
const VENV = path.join(CACHE, 'python')

const started = Date.now()
const { values, positionals: words } = parseArgs({
  options: { dev: { type: 'boolean', default: false }, server: { type: 'string' } },
  allowPositionals: true,
})

const venvPython = (await installNode()) && (await pythonWith(path.join(root, SUITES, 'requirements.txt'), VENV))
let ok = Boolean(venvPython)
const server = ok && (await serverUnderTest(values))
ok = Boolean(server)
if (ok) {
  isolate()
  const env = { CLIENTS_KIRO_SERVER: server }
  const suites = readdirSync(path.join(root, SUITES)).filter(
    (name) => words.length === 0 || words.some((word) => name.includes(word)),
  )
  const node = suites.filter((name) => name.endsWith('.test.mjs')).map((name) => path.join(SUITES, name))
  const pytest = suites.filter((name) => /^test_.*\.py$/.test(name)).map((name) => path.join(SUITES, name))
  if (node.length > 0) ok = await nodeTests(node, { flags: ['--test-concurrency=2'], env })
  if (pytest.length > 0) ok = (await runPytest(pytest, env)) && ok
  if (totals.passed === 0) ok = false
}
conclude(ok, started)

/** Exactly the packages of the lock file, in tests/clients/node_modules. */
function installNode() {
  const lock = readFileSync(path.join(root, SUITES, 'package-lock.json'), 'utf8')
  return unlessDone(path.join(root, SUITES, 'node_modules', '.kiro-messages'), `${process.version}\n${lock}`, () =>
    run('npm', ['ci', '--prefix', SUITES, '--no-audit', '--no-fund']),
  )
}

/** Nothing of the caller's own set-up may reach a client: no key, no address, no proxy, no tracing. */
function isolate() {
  for (const name of Object.keys(process.env)) {
    if (/^(ANTHROPIC|CLAUDE|AI_GATEWAY|LANGSMITH|LANGCHAIN|OTEL|PYTEST)_|_proxy$/i.test(name)) delete process.env[name]
  }
  process.env.PYTHONDONTWRITEBYTECODE = '1'
}

async function runPytest(files, env) {
  const report = path.join(CACHE, 'pytest.xml')
  rmSync(report, { force: true })
  const quiet = ['-p', 'no:cacheprovider', '--tb=short', '--no-header', '-q', `--junitxml=${report}`]
  const passed = await run(venvPython, ['-m', 'pytest', ...quiet, ...files], { env })
  if (!existsSync(report)) return false
  const suite = /<testsuite\b[^>]*>/.exec(readFileSync(report, 'utf8'))[0]
  const [tests, failures, errors, skipped] = ['tests', 'failures', 'errors', 'skipped'].map((name) =>
    Number(new RegExp(`\\b${name}="(\\d+)"`).exec(suite)[1]),
  )
  totals.passed += tests - failures - errors - skipped
  totals.failed += failures + errors
  totals.skipped += skipped
  return passed
}
