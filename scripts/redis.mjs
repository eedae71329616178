// redis-server for the tests: there, or installed by the system's own package manager, or told how.
import { spawnSync } from 'node:child_process'
import { run } from './steps.mjs'

const has = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0

export async function needRedis() {
  if (has('redis-server')) return true
  console.log('redis-server is missing')
  if (process.platform === 'linux' && process.getuid() === 0 && has('apt-get')) {
    const env = { DEBIAN_FRONTEND: 'noninteractive' }
    await run('apt-get', ['update', '-q'], { env })
    await run('apt-get', ['install', '-y', '-q', '--no-install-recommends', 'redis-server'], { env })
  } else if (process.platform === 'darwin' && has('brew')) {
    await run('brew', ['install', 'redis'])
  }
  if (has('redis-server')) return true
  console.error('The tests start a redis-server of their own. Install one: apt install redis-server, or brew install redis.')
  return false
}
