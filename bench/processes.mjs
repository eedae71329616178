// The processes of a measurement: started in a temporary folder, watched through /proc, ended with the run.
import { spawn } from 'node:child_process'
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import path from 'node:path'
import { answers, freePort } from '../scripts/steps.mjs'
import { sum } from './measure.mjs'

const TICKS_PER_SECOND = 100 // USER_HZ, a constant of Linux' interface
const PAGE = 4096

/** Everything started here; `end()` stops it and removes the folder. */
export class House {
  constructor() {
    this.folder = mkdtempSync(path.join(tmpdir(), 'kiro-bench-'))
    this.children = []
  }

  /** The simulated upstream, which everybody measured here talks to: also a binary from before Kiro refused it (--beside). */
  async simulator(binary) {
    const port = await freePort()
    await this.#start('simulator', binary, ['simulate', '--listen', `127.0.0.1:${port}`, '--world', 'any-version', '--world', 'any-client'], {}, port)
    return port
  }

  /** `kiro-server` on the embedded file store, with one account that stays fresh. */
  async server(name, binary, upstreamPort, env = {}) {
    const port = await freePort()
    const store = path.join(this.folder, `${name}.json`)
    writeFileSync(store, JSON.stringify(accounts()), { mode: 0o600 })
    const settings = {
      KIRO_STORE: `file:${store}`,
      KIRO_UPSTREAM_URL: `http://127.0.0.1:${upstreamPort}/generateAssistantResponse`,
      KIRO_PORT: String(port),
      KIRO_MAX_CONNS: '16384',
      KIRO_LOG_FORMAT: 'json',
      ...env,
    }
    const began = performance.now()
    const child = await this.#start(name, binary, [], settings, port)
    const startMs = performance.now() - began
    await until(async () => (await fetch(`http://127.0.0.1:${port}/health`)).ok, `${name} on port ${port} can't serve`)
    return new Subject(name, port, { child, startMs })
  }

  /** nginx as it usually stands in front of a streaming service: a worker a core, no buffering in either direction, connections kept. */
  async nginx(upstreamPort) {
    const port = await freePort()
    const folder = path.join(this.folder, `nginx-${port}`)
    mkdirSync(folder)
    const config = path.join(folder, 'nginx.conf')
    writeFileSync(
      config,
      `daemon off;
worker_processes ${availableParallelism()};
worker_rlimit_nofile 20000;
pid ${folder}/nginx.pid;
error_log ${folder}/nginx.log;
events { worker_connections 16384; }
http {
  access_log ${folder}/nginx.access.log;
  client_body_temp_path ${folder}/body;
  proxy_temp_path ${folder}/proxy;
  fastcgi_temp_path ${folder}/fastcgi;
  uwsgi_temp_path ${folder}/uwsgi;
  scgi_temp_path ${folder}/scgi;
  keepalive_requests 1000000;
  upstream kiro {
    server 127.0.0.1:${upstreamPort};
    keepalive 512;
    keepalive_requests 1000000;
  }
  server {
    listen 127.0.0.1:${port} backlog=4096;
    location / {
      proxy_pass http://kiro;
      proxy_http_version 1.1;
      proxy_set_header Connection '';
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 300s;
      client_max_body_size 32m;
    }
  }
}
`,
    )
    const child = await this.#start('nginx', 'nginx', ['-p', folder, '-c', config], {}, port)
    const pids = () =>
      readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim().split(' ').filter(Boolean).map(Number)
    return new Subject('nginx', port, { child, pids })
  }

  async #start(name, command, args, env, port) {
    const log = openSync(path.join(this.folder, `${name}.log`), 'a')
    const clean = Object.fromEntries(Object.entries(process.env).filter(([key]) => !/^(GO_)?KIRO_|^REDIS_/.test(key)))
    const child = spawn(command, args, { env: { ...clean, ...env }, stdio: ['ignore', log, log] })
    closeSync(log)
    this.adopt(child, name)
    await Promise.race([listening(port), child.ended])
    return child
  }

  /** Ends a process with the run; `child.ended` rejects when it ends before. */
  adopt(child, name) {
    this.children.push(child)
    const ended = new Promise((resolve, reject) => {
      child.on('error', reject)
      child.on('exit', (code, signal) => {
        if (child.wanted) resolve()
        else reject(new Error(`${name} ended (${signal ?? code}):\n${this.log(name)}`))
      })
    })
    child.ended = ended
    ended.catch(() => {}) // Looked at when something is wanted of it.
  }

  /** The last lines that a process wrote. */
  log(name) {
    const file = path.join(this.folder, `${name}.log`)
    return (existsSync(file) ? readFileSync(file, 'utf8') : '').split('\n').slice(-15).join('\n')
  }

  /** Stops one subject before the end of the run. */
  async stop({ child }) {
    this.children = this.children.filter((other) => other !== child)
    await stop(child)
  }

  async end() {
    await Promise.all(this.children.map(stop))
    rmSync(this.folder, { recursive: true, force: true })
  }
}

/** Something that is measured. */
export class Subject {
  constructor(name, port, { child, pids = () => [child.pid], startMs }) {
    this.name = name
    this.port = port
    this.child = child
    this.pids = pids
    this.startMs = startMs
  }

  /** User and system time so far, in seconds. */
  cpu() {
    return sum(this.pids(), (pid) => {
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')
      return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND
    })
  }

  /** Resident memory in bytes. */
  rss() {
    return sum(this.pids(), (pid) => Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[1]) * PAGE)
  }
}

/** A file store with one account that stays fresh. */
export function accounts() {
  const id = '00000000-0000-4000-8000-00000000bec4'
  const token = {
    accessToken: 'bench-access',
    refreshToken: 'bench',
    expiresAt: '2099-01-01T00:00:00.000Z',
    authMethod: 'social',
    region: 'us-east-1',
    profileArn: 'arn:aws:codewhisperer:us-east-1:000000000000:profile/BENCH',
  }
  return { accounts: { [id]: { uuid: id, isHealthy: true } }, tokens: { [id]: token } }
}

function listening(port) {
  return until(() => answers(port), `nobody listens on port ${port}`)
}

async function until(condition, otherwise) {
  const deadline = performance.now() + 10_000
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(otherwise)
    await new Promise((resolve) => setTimeout(resolve, 1))
  }
}

async function stop(child) {
  child.wanted = true
  child.kill('SIGTERM')
  const late = setTimeout(() => child.kill('SIGKILL'), 3000)
  await child.ended.catch(() => {})
  clearTimeout(late)
}
