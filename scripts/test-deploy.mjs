// npm run test:deploy: the files of deploy/ with the real programs: nginx, promtool, Kubernetes' schemas, and Chromium for the
// status page.
//
//   npm run test:deploy            all of it, on a debug build
//   npm run test:deploy -- nginx   only the files whose name has `nginx` in it
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { nodeTests } from './again.mjs'
import { need } from './needs.mjs'
import { pythonWith } from './python.mjs'
import { UNDER_TEST, conclude, installPackages, needRust, root, run, totals } from './steps.mjs'

const started = Date.now()
const words = process.argv.slice(2)
needRust()
let ok =
  (await need('redis-server', 'nginx', 'promtool', 'chromium')) &&
  (await installPackages()) &&
  (await run('cargo', ['build', ...UNDER_TEST]))
const python = ok && (await pythonWith(path.join(root, 'tests', 'deploy', 'requirements.txt'), path.join(root, '.cache', 'deploy', 'python')))
ok = Boolean(python)
if (ok) {
  const files = readdirSync(path.join(root, 'tests', 'deploy'))
    .filter((name) => name.endsWith('.test.mjs') && (words.length === 0 || words.some((word) => name.includes(word))))
    .map((name) => path.join('tests', 'deploy', name))
  ok = await nodeTests(files, { flags: ['--test-concurrency=2'], env: { DEPLOY_PYTHON: python } })
}
if (ok && totals.passed === 0) ok = false
conclude(ok, started)
