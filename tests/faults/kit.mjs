// The processes of a row: kiro-servers, the simulated upstream whose refresh tokens work once, redis-server, proxies that go
// wrong. All in a folder of the row's own, ended with it.
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, constants, mkdirSync, mkdtempSync, openSync, readFileSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { answers, freePort } from '../../scripts/steps.mjs'
import { Load } from './load.mjs'
import { Proxy } from './proxy.mjs'

export { has } from '../../scripts/needs.mjs'

export { sleep }
export const KEY = 'faults-key-1'
export const POOL = 'aiclient:pools:claude-kiro-oauth'
const TOKENS = 'aiclient:tokens:claude-kiro-oauth:'
const STARTS_WITHIN = 30_000
const PAGE = 4096

export const id = (n) => `${String(n).padStart(8, '0')}-0000-4000-8000-000000000000`
/** The number of an account's id. */
export const numberOf = (id) => Number(id.slice(0, 8))
/** The first refresh token of an account: the simulator's name of its login. */
export const login = (n) => `login-${n}`

/** Tries `is` until it gives something; undefined when it didn't within the time. */
export async function eventually(is, withinMs, everyMs = 50) {
  const deadline = performance.now() + withinMs
  for (;;) {
    const found = await is()
    if (found) return found
    if (performance.now() > deadline) return undefined
    await sleep(everyMs)
  }
}

/** Account `n` and its token record. An access token lives for `life` seconds, 0: it has ended. */
export function account(n, { life = 2, method = n % 2 === 0 ? 'social' : 'IdC' } = {}) {
  const registration = method === 'IdC' ? { clientId: `client-${n}`, clientSecret: 'secret-of-a-client' } : {}
  return {
    record: { uuid: id(n), isHealthy: true, usageCount: 0, errorCount: 0, KIRO_TOKEN_FILE_PATH: `redis:tokens:claude-kiro-oauth:${id(n)}` },
    token: {
      accessToken: `start-${n}`,
      refreshToken: login(n),
      expiresAt: new Date(Date.now() + life * 1000).toISOString(),
      authMethod: method,
      region: 'us-east-1',
      profileArn: 'arn:aws:codewhisperer:us-east-1:000000000000:profile/SIMULATED',
      ...registration,
    },
  }
}

export class Stage {
  #ends = []

  constructor(binary) {
    this.binary = binary
    this.folder = mkdtempSync(path.join(tmpdir(), 'kiro-faults-'))
    this.servers = []
  }

  /** What is to be done at the end, the last first. */
  after(end) {
    this.#ends.push(end)
  }

  async end() {
    const wrong = []
    for (const end of this.#ends.toReversed()) await Promise.resolve(end()).catch((error) => wrong.push(String(error)))
    rmSync(this.folder, { recursive: true, force: true })
    return wrong
  }

  /** Access tokens live for `life` seconds. */
  async upstream({ life = 2, worlds = [] } = {}) {
    const all = [`one-time-tokens-${life}`, ...worlds].flatMap((world) => ['--world', world])
    const process = await Process.start(this, 'upstream', this.binary, ['simulate', '--listen', '127.0.0.1:0', ...all])
    return new Upstream(process)
  }

  async redis({ accounts = 4, args = [], life } = {}) {
    const store = await RedisStore.start(this, args)
    const writes = store.admin.pipeline()
    for (let n = 0; n < accounts; n++) {
      const { record, token } = account(n, { life })
      writes.hset(POOL, id(n), JSON.stringify(record)).set(TOKENS + id(n), JSON.stringify(token))
    }
    await writes.exec()
    return store
  }

  /** A file store, by default in the row's folder. */
  file({ accounts = 4, life, folder = this.folder } = {}) {
    const content = { accounts: {}, tokens: {} }
    for (let n = 0; n < accounts; n++) {
      const { record, token } = account(n, { life })
      delete record.KIRO_TOKEN_FILE_PATH
      content.accounts[id(n)] = record
      content.tokens[id(n)] = token
    }
    const store = new FileStore(path.join(folder, 'accounts.json'))
    writeFileSync(store.file, JSON.stringify(content), { mode: 0o600 })
    return store
  }

  /**
   * A kiro-server that has its accounts. `by` is a command that runs it, such as prlimit; `upstreamPort` where it finds
   * upstream, when that is a proxy. Without `key` it serves everybody on loopback. `waits: false`: it need only listen.
   */
  async server({ store, upstream, upstreamPort = upstream.port, env = {}, by = [], key = KEY, stderr, port = 0, waits = true, name = `server-${this.servers.length}` }) {
    const state = path.join(this.folder, `${name}-state`)
    mkdirSync(state, { recursive: true, mode: 0o700 })
    const origin = `http://127.0.0.1:${upstreamPort}`
    const settings = {
      ...store.settings,
      KIRO_PORT: String(stderr === undefined ? port : port || (await freePort())),
      ...(key ? { KIRO_API_KEY: key } : {}),
      KIRO_UPSTREAM_URL: `${origin}/generateAssistantResponse`,
      KIRO_SOCIAL_REFRESH_URL: `${origin}/refreshToken`,
      KIRO_IDC_REFRESH_URL: `${origin}/token`,
      KIRO_MODEL_DISCOVERY: 'off',
      KIRO_ACCOUNT_CACHE_TTL: '500ms',
      KIRO_STATE_DIR: state,
      ...env,
    }
    const process = await Process.start(this, name, this.binary, [], { env: settings, by, stderr, port: Number(settings.KIRO_PORT) })
    const server = new Server(process, key)
    this.servers.push(server)
    if (waits && !(await eventually(async () => (await server.health())?.body.accounts?.total > 0, STARTS_WITHIN))) {
      throw new Error(`${name} has no accounts: ${JSON.stringify(await server.health())}\n${process.tail()}`)
    }
    // The store's client key is read beside the accounts.
    if (waits && !key) await eventually(async () => (await fetch(server.url('/v1/messages'), { method: 'POST', body: '{}' })).status !== 503, STARTS_WITHIN)
    return server
  }

  async proxy(port) {
    const proxy = await Proxy.to(port)
    this.after(() => proxy.end())
    return proxy
  }

  load(servers, options) {
    const load = new Load([servers].flat(), options)
    this.after(() => load.stop())
    return load
  }
}

/** A process of the row. `lines` is what it said. */
class Process {
  lines = []
  /** How it ended, once it has. */
  ended = null
  wanted = false

  static async start(stage, name, command, args, { env = {}, by = [], stderr, port } = {}) {
    const process = new Process()
    const all = [...by, command, ...args]
    const clean = { PATH: globalThis.process.env.PATH, HOME: stage.folder, KIRO_LOG_FORMAT: 'json', ...env }
    process.name = name
    process.child = spawn(all[0], all.slice(1), { env: clean, stdio: ['ignore', 'ignore', stderr ?? 'pipe'] })
    process.pid = process.child.pid
    process.exit = new Promise((resolve) => {
      process.child.on('error', (error) => resolve((process.ended = { code: null, signal: null, error: String(error) })))
      process.child.on('exit', (code, signal) => resolve((process.ended = { code, signal })))
    })
    stage.after(() => process.kill())
    if (stderr === undefined) process.#read()
    const listens = () => (stderr === undefined ? process.port : answers(port).then((does) => does && (process.port = port)))
    if (!(await eventually(async () => process.ended ?? (await listens()), STARTS_WITHIN, 10)) || process.ended) {
      throw new Error(`${name} does not listen (${JSON.stringify(process.ended)}):\n${process.tail()}`)
    }
    return process
  }

  #read() {
    let rest = ''
    this.child.stderr.setEncoding('utf8')
    this.child.stderr.on('data', (chunk) => {
      const lines = (rest + chunk).split('\n')
      rest = lines.pop()
      for (const line of lines) {
        const address = this.port === undefined && /"address":"[^"]*:(\d+)"/.exec(line)
        if (address) this.port = Number(address[1])
        this.lines.push(line)
      }
    })
  }

  signal(name) {
    this.child.kill(name)
  }

  /** SIGTERM, and how it ended. */
  async stop(withinMs = 40_000) {
    this.wanted = true
    this.signal('SIGTERM')
    return (await Promise.race([this.exit, sleep(withinMs)])) ?? { hangs: true }
  }

  async kill() {
    this.wanted = true
    if (this.ended === null) {
      this.signal('SIGCONT')
      this.signal('SIGKILL')
    }
    await this.exit
  }

  /** Its last lines that aren't about requests that went well. */
  tail(lines = 12) {
    return this.lines.filter((line) => !/"stop_reason":"end_turn"/.test(line)).slice(-lines).join('\n')
  }
}

class Server {
  constructor(process, key) {
    this.process = process
    this.port = process.port
    this.headers = { 'content-type': 'application/json', ...(key ? { 'x-api-key': key } : {}) }
  }

  get pid() {
    return this.process.pid
  }

  url(path = '') {
    return `http://127.0.0.1:${this.port}${path}`
  }

  /** `/health` and its status; undefined when nothing answers. */
  async health(path = '/health') {
    try {
      const response = await fetch(this.url(path), { signal: AbortSignal.timeout(5000) })
      return { status: response.status, body: await response.json() }
    } catch {
      return undefined
    }
  }

  /** The sum of a metric's series; NaN when there is none. */
  async metric(name, labels = '') {
    const response = await fetch(this.url('/metrics'), { headers: this.headers })
    const lines = (await response.text()).split('\n').filter((line) => line.startsWith(name) && /[{ ]/.test(line[name.length]) && line.includes(labels))
    return lines.length === 0 ? NaN : lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
  }

  /** Resident memory in bytes. */
  memory() {
    return Number(readFileSync(`/proc/${this.pid}/statm`, 'utf8').split(' ')[1]) * PAGE
  }

  /** Bytes handed to write() so far, sockets' among them. */
  written() {
    return Number(/^wchar: (\d+)/m.exec(readFileSync(`/proc/${this.pid}/io`, 'utf8'))[1])
  }

  files() {
    return readdirSync(`/proc/${this.pid}/fd`).length
  }

  sockets() {
    const target = (fd) => {
      try {
        return readlinkSync(`/proc/${this.pid}/fd/${fd}`)
      } catch {
        return ''
      }
    }
    return readdirSync(`/proc/${this.pid}/fd`).filter((fd) => target(fd).startsWith('socket:')).length
  }

  /** Uses that it said to be uncertain: their reply was lost and another process has written since (R22). */
  uncertain() {
    const lines = this.process.lines.filter((line) => line.includes('uses count as written'))
    return lines.reduce((sum, line) => sum + JSON.parse(line).uses, 0)
  }
}

class Upstream {
  constructor(process) {
    this.process = process
    this.port = process.port
    this.url = `http://127.0.0.1:${process.port}`
  }

  async #get(path) {
    return (await fetch(this.url + path)).json()
  }

  stats() {
    return this.#get('/_sim/stats')
  }

  async bodies() {
    return (await this.#get('/_sim/stats?bodies=1')).last
  }

  /** What became of each login. */
  accounts() {
    return this.#get('/_sim/accounts')
  }

  async script(script) {
    const response = await fetch(`${this.url}/_sim/script`, { method: 'POST', body: JSON.stringify(script) })
    if (response.status !== 200) throw new Error(await response.text())
  }

  world(world) {
    return this.script({ world })
  }

  /** Refreshes and dead ones, all accounts together. */
  async refreshes() {
    const all = Object.values(await this.accounts())
    const sum = (key) => all.reduce((total, one) => total + one[key], 0)
    return { refreshes: sum('refreshes'), dead: sum('dead_refreshes'), expired: sum('expired_calls') }
  }
}

/** A store's end state: each account's count and refresh token. */
class RedisStore {
  static async start(stage, args) {
    const store = new RedisStore()
    store.stage = stage
    store.port = await freePort()
    store.socket = path.join(stage.folder, `redis-${store.port}.sock`)
    const where = ['--port', String(store.port), '--unixsocket', store.socket, '--dir', stage.folder]
    store.args = [...where, '--save', '', '--enable-debug-command', 'yes', '--loglevel', 'warning', ...args]
    stage.after(() => store.kill())
    await store.launch()
    return store
  }

  async launch() {
    this.child = spawn('redis-server', this.args, { stdio: 'ignore' })
    this.exit = new Promise((resolve) => this.child.on('exit', resolve))
    if (!(await eventually(() => answers(this.port), STARTS_WITHIN, 10))) throw new Error('redis-server does not listen')
    this.admin = new Redis(this.socket, { maxRetriesPerRequest: null, retryStrategy: () => 50 })
    this.admin.on('error', () => {})
    await this.admin.ping()
  }

  get settings() {
    return { REDIS_URL: `redis://127.0.0.1:${this.throughPort ?? this.port}` }
  }

  signal(name) {
    this.child.kill(name)
  }

  async kill() {
    this.admin.disconnect()
    this.signal('SIGCONT')
    this.signal('SIGKILL')
    await this.exit
  }

  call(...words) {
    return this.admin.call(...words)
  }

  /** The store refuses to write: it is full. */
  async fill() {
    await this.call('CONFIG', 'SET', 'maxmemory-policy', 'noeviction', 'maxmemory', '1')
  }

  async makeRoom() {
    await this.call('CONFIG', 'SET', 'maxmemory', '0')
  }

  async accounts() {
    const [records, keys] = [await this.admin.hgetall(POOL), await this.admin.keys(`${TOKENS}*`)]
    const tokens = keys.length === 0 ? [] : await this.admin.mget(keys)
    const byId = new Map(keys.map((key, n) => [key.slice(TOKENS.length), JSON.parse(tokens[n])]))
    return Object.entries(records).map(([id, record]) => ({ id, record: JSON.parse(record), token: byId.get(id) }))
  }
}

class FileStore {
  constructor(file) {
    this.file = file
  }

  get settings() {
    return { KIRO_STORE: `file:${this.file}` }
  }

  /** `through`: how to read the file, when it is in another mount namespace. */
  async accounts(file = this.file) {
    const { accounts, tokens } = JSON.parse(readFileSync(file, 'utf8'))
    return Object.entries(accounts).map(([id, record]) => ({ id, record, token: tokens[id] }))
  }
}

/** A pipe that nobody reads, for a process's standard error. */
export function pipeThatNobodyReads(stage) {
  const file = path.join(stage.folder, 'pipe')
  spawnSync('mkfifo', [file])
  // Reading and writing: an open that waits for nobody, and no SIGPIPE.
  const fd = openSync(file, constants.O_RDWR | constants.O_NONBLOCK)
  const blocking = openSync(file, constants.O_WRONLY)
  stage.after(() => [fd, blocking].forEach(closeSync))
  return blocking
}
