// Python packages of the tests: pinned, each set in an environment of its own.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { run } from './steps.mjs'

/** The least that the pinned packages take. */
const PYTHON = [3, 11]
const windows = process.platform === 'win32'

/** The Python of the environment at `folder`, which has exactly the packages of `requirements`; undefined when that failed. */
export async function pythonWith(requirements, folder) {
  const python = find()
  const own = windows ? path.join(folder, 'Scripts', 'python.exe') : path.join(folder, 'bin', 'python')
  const wanted = `${python}\n${readFileSync(requirements, 'utf8')}`
  const done = await unlessDone(path.join(folder, '.kiro-messages'), wanted, async () => {
    rmSync(folder, { recursive: true, force: true })
    mkdirSync(path.dirname(folder), { recursive: true })
    const install = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '-r', requirements]
    return (await run(python, ['-m', 'venv', folder])) && (await run(own, install))
  })
  return done ? own : undefined
}

/** Does the work unless the file at `mark` says that it was done for the same `input`. */
export async function unlessDone(mark, input, work) {
  if (existsSync(mark) && readFileSync(mark, 'utf8') === input) return true
  if (!(await work())) return false
  writeFileSync(mark, input)
  return true
}

function find() {
  const check = `import sys, venv, ensurepip; sys.exit(sys.version_info < (${PYTHON.join(', ')}))`
  const found = (windows ? ['python', 'python3'] : ['python3', 'python']).find(
    (name) => spawnSync(name, ['-c', check], { stdio: 'ignore' }).status === 0,
  )
  if (found) return found
  console.error(
    `Python ${PYTHON.join('.')} or newer with its venv module is missing (on Debian: python3 and python3-venv).`,
  )
  console.log('0 passed, 1 failed')
  process.exit(1)
}
