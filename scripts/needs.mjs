// Programs that the tests run: installed already, or by the system's own package manager; else this says how.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { run } from './steps.mjs'

const PROGRAMS = {
  'redis-server': { apt: 'redis-server', brew: 'redis', why: 'The tests start a redis-server of their own' },
  nginx: { apt: 'nginx-light', brew: 'nginx', why: 'deploy/nginx.conf is tested with the real one' },
  promtool: { apt: 'prometheus', brew: 'prometheus', why: 'deploy/alerts.yml is tested with it' },
  chromium: {
    commands: ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'],
    macos: ['/Applications/Google Chrome.app/Contents/MacOS/Google Chrome', '/Applications/Chromium.app/Contents/MacOS/Chromium'],
    apt: 'chromium',
    brew: 'chromium',
    cask: true,
    why: 'The status page is looked at in a real browser',
  },
}

/** The command of a program; undefined when it isn't there. `CHROMIUM=…` names another browser. */
export function find(program) {
  const { commands = [program], macos = [] } = PROGRAMS[program]
  const named = program === 'chromium' && process.env.CHROMIUM ? [process.env.CHROMIUM] : []
  return [...named, ...commands, ...(process.platform === 'darwin' ? macos : [])].find(has)
}

/** Resolves to true when all of them are there, or could be installed: names, or rows as those above with a `name`. */
export async function need(...wanted) {
  const programs = wanted.map((one) => {
    if (typeof one === 'string') return one
    PROGRAMS[one.name] = one
    return one.name
  })
  const missing = programs.filter((program) => find(program) === undefined)
  if (missing.length === 0) return true
  console.log(`missing: ${missing.join(', ')}`)
  if (process.platform === 'linux' && has('apt-get') && (process.getuid() === 0 || withoutPassword())) {
    const env = { DEBIAN_FRONTEND: 'noninteractive' }
    const apt = (...args) => (process.getuid() === 0 ? run('apt-get', args, { env }) : run('sudo', ['-E', 'apt-get', ...args], { env }))
    await apt('update', '-q')
    await apt('install', '-y', '-q', '--no-install-recommends', ...missing.map((program) => PROGRAMS[program].apt))
  } else if (process.platform === 'darwin' && has('brew')) {
    for (const program of missing) {
      await run('brew', ['install', ...(PROGRAMS[program].cask ? ['--cask'] : []), PROGRAMS[program].brew])
    }
  }
  const still = missing.filter((program) => find(program) === undefined)
  for (const program of still) {
    const { why, apt, brew } = PROGRAMS[program]
    console.error(`${program} is missing. ${why}. Install it: apt-get install ${apt}, or brew install ${brew}.`)
  }
  return still.length === 0
}

/** Whether a command is there and runs. */
export function has(command) {
  const asked = { nginx: '-v', openssl: 'version' }[path.basename(command)] ?? '--version'
  const { error, status } = spawnSync(command, [asked], { stdio: 'ignore' })
  return error === undefined && status === 0
}

/** CI machines let their user install packages; elsewhere nobody is asked for a password by a test. */
function withoutPassword() {
  return spawnSync('sudo', ['-n', 'true'], { stdio: 'ignore' }).status === 0
}
