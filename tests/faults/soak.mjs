// Random faults for as long as one likes: two servers and the Node.js service on one Redis, an upstream whose refresh tokens
// work once, and an hour of life in two seconds. At the end every account has its login, every count is exact, and memory,
// descriptors and tasks are what they were.
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import path from 'node:path'
import { root } from '../../scripts/steps.mjs'
import { Stage, eventually, id, login, numberOf, sleep } from './kit.mjs'
import { body } from './load.mjs'

const ACCOUNTS = 12
const RATE = 12
const LIFE = 2
const MB = 2 ** 20
/** Longer than idle connections to upstream are kept. */
const IDLE = 17_000
/** An answer that breaks off in the middle, now and then: that is what upstream does. */
const SCENARIO = (n) => (n % 40 === 11 ? { count: 8, gap_ms: 10, end: 'cut' } : { count: 12, gap_ms: 15 })
/** What may be said while faults go on. What a request must not say: that all accounts are unhealthy, or nothing. */
const TRUE_SENTENCES = /broke off|connection|Kiro|time|shutting|stopp|restart|store|refresh|network|cut|ended/i
/** A server that is down for a restart. */
const RESTARTS = /ECONNREFUSED|ECONNRESET|socket hang up|broke off/

/** Runs for `seconds`; `seed` is the order of the faults. Resolves with what was wrong. */
export async function soak({ binary, seconds, seed, say = console.log }) {
  const house = new House(binary, seed, say)
  try {
    return await house.run(seconds)
  } finally {
    for (const wrong of await house.stage.end()) say(`at the end: ${wrong}`)
  }
}

/** mulberry32. */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

class House {
  wrong = []
  happened = new Map()
  /** The faults, each with its begin. */
  story = []
  /** Restarts of server 1: from when to when. */
  restarts = []
  uncertain = 0

  constructor(binary, seed, say) {
    Object.assign(this, { say, random: generator(seed), stage: new Stage(binary) })
  }

  between(least, most) {
    return least + this.random() * (most - least)
  }

  async open() {
    const { stage } = this
    this.upstream = await stage.upstream({ life: LIFE })
    // Confirmed writes outlive a SIGKILL: the log is written before the answer.
    this.redis = await stage.redis({ accounts: ACCOUNTS, life: LIFE, args: ['--appendonly', 'yes', '--appendfsync', 'no'] })
    this.seeds = new Map((await this.redis.accounts()).map(({ id, record }) => [id, record]))
    this.toUpstream = [await stage.proxy(this.upstream.port), await stage.proxy(this.upstream.port)]
    this.toRedis = [await stage.proxy(this.redis.port), await stage.proxy(this.redis.port)]
    this.servers = [await this.server(0), await this.server(1)]
    this.node = await NodeService.start(stage, this.redis, this.upstream)
    await this.nodeIsBusy()
    const targets = this.servers.map(({ port, headers }) => ({ port, headers }))
    this.load = stage.load(targets, { rate: RATE, scenario: SCENARIO, timeoutMs: 120_000 })
  }

  server(n, port = 0) {
    const origin = this.upstream.url
    // Refreshes go straight to upstream: a connection that breaks between its answer and us costs any client the login.
    const env = {
      REDIS_URL: `redis://127.0.0.1:${this.toRedis[n].port}`,
      KIRO_SOCIAL_REFRESH_URL: `${origin}/refreshToken`,
      KIRO_IDC_REFRESH_URL: `${origin}/token`,
      KIRO_FIRST_EVENT_TIMEOUT: '5s',
      KIRO_IDLE_TIMEOUT: '5s',
      KIRO_HEALTH_COOLDOWN: '2s',
      KIRO_MAX_INFLIGHT_PER_ACCOUNT: '1',
      KIRO_ACCOUNT_WAIT: '20s',
    }
    return this.stage.server({ store: this.redis, upstream: this.upstream, upstreamPort: this.toUpstream[n].port, env, port, name: `server-${n}` })
  }

  /** Each takes its time and leaves things as they were. */
  faults = {
    'Redis takes no writes': async () => {
      // The Node.js service keeps its writes in an outage, but a refused one ends it.
      await this.node.order('idle')
      await this.redis.fill()
      await sleep(this.between(500, 8000))
      await this.redis.makeRoom()
      await this.nodeIsBusy()
    },
    'Redis pauses': async () => {
      const ms = Math.round(this.between(500, 6000))
      this.redis.call('CLIENT', 'PAUSE', String(ms), 'ALL').catch(() => {})
      await sleep(ms)
    },
    'redis-server stands still': async () => {
      this.redis.signal('SIGSTOP')
      await sleep(this.between(300, 6000))
      this.redis.signal('SIGCONT')
    },
    'redis-server is killed': async () => {
      await this.redis.kill()
      await sleep(this.between(100, 4000))
      await this.redis.launch()
    },
    'Redis is slow': () => this.through(this.toRedis, { delayMs: this.between(50, 300), jitter: 0.5, loss: 0.02 }, 5000),
    'connections to Redis break': async () => {
      for (let n = 0; n < 6; n++) {
        this.any(this.toRedis).reset()
        await sleep(this.between(100, 900))
      }
    },
    'one server cannot reach Redis': async () => {
      const proxy = this.any(this.toRedis)
      await proxy.refuse()
      await sleep(this.between(500, 6000))
      await proxy.accept()
    },
    'the cable to Redis is pulled': () => this.through([this.any(this.toRedis)], { silent: true }, 5000),
    'one server cannot reach Kiro': async () => {
      const proxy = this.any(this.toUpstream)
      await proxy.refuse()
      await sleep(this.between(300, 5000))
      await proxy.accept()
    },
    'Kiro is far away': () => this.through(this.toUpstream, { delayMs: this.between(50, 300), jitter: 0.7, loss: 0.02 }, 5000),
    'connections to Kiro break': async () => {
      for (let n = 0; n < 3; n++) {
        this.any(this.toUpstream).reset()
        await sleep(this.between(300, 900))
      }
    },
    'the cable to Kiro is pulled': () => this.through([this.any(this.toUpstream)], { silent: true }, 4000),
    'Kiro answers 500': () => this.inWorld('500', 3000),
    'one account gets 429': async () => {
      const theirs = await this.upstream.accounts()
      const token = this.any(Object.values(theirs))?.access_token
      if (token) await this.upstream.script({ token, scenarios: ['429'], times: 5 })
    },
    'a refresh takes seconds': () => this.inWorld({ refresh_ms: Math.round(this.between(500, 4000)) }, 6000),
    'a server stands still': async () => {
      const { process } = this.any(this.servers)
      process.signal('SIGSTOP')
      await sleep(this.between(200, 4000))
      process.signal('SIGCONT')
    },
    'a server restarts': async () => {
      const began = performance.now()
      const old = this.servers[1]
      const ended = await old.process.stop()
      if (ended.code !== 0) this.wrong.push(`server-1 stopped with ${JSON.stringify(ended)}\n${old.process.tail()}`)
      this.uncertain += old.uncertain()
      this.stage.servers.splice(this.stage.servers.indexOf(old), 1)
      this.servers[1] = await this.server(1, old.port)
      this.restarts.push([began, performance.now()])
    },
    'clients go away': async () => {
      for (let n = 0; n < 20; n++) {
        const server = this.any(this.servers)
        const abort = new AbortController()
        this.aborted = (this.aborted ?? 0) + 1
        fetch(server.url('/v1/messages'), { method: 'POST', headers: server.headers, body: body({ count: 100, gap_ms: 50 }), signal: abort.signal })
          .then((response) => response.body.getReader().read())
          .catch(() => {})
        await sleep(this.between(5, 100))
        abort.abort()
      }
    },
    'the Node.js service writes the pool anew': () => this.node.order('rewrite', { gap_ms: Math.round(this.between(0, 300)) }),
    'the Node.js service starts anew': () => this.node.order('start'),
    'a person edits an account': () => this.node.order('edit', { uuid: this.anId(), fields: { customName: `name ${this.random()}` } }),
    'the Node.js service refreshes an account': async () => {
      const uuid = id(2 * Math.floor(this.between(0, ACCOUNTS / 2)))
      await this.node.order('hold_token', { uuid })
      await this.node.order('refresh', { uuid })
    },
    'the Node.js service writes an old token': async () => {
      const uuid = this.anId()
      await this.node.order('hold_token', { uuid })
      await sleep(this.between(100, 6000))
      await this.node.order('save_token', { uuid })
    },
    nothing: () => sleep(3000),
  }

  nodeIsBusy() {
    return this.node.order('busy', { every_ms: 60, uuids: Array.from({ length: ACCOUNTS }, (_, n) => id(n)) })
  }

  any(list) {
    return list[Math.floor(this.random() * list.length)]
  }

  anId() {
    return id(Math.floor(this.random() * ACCOUNTS))
  }

  async through(proxies, how, most) {
    for (const proxy of proxies) Object.assign(proxy, how)
    await sleep(this.between(500, most))
    for (const proxy of proxies) Object.assign(proxy, { delayMs: 0, loss: 0, silent: false })
  }

  async inWorld(world, most) {
    await this.upstream.world(world)
    await sleep(this.between(300, most))
    await this.upstream.world(null)
  }

  /** How the server that never restarts is doing while nothing happens. */
  async sample() {
    await this.load.pause()
    await sleep(IDLE)
    const [server] = this.servers
    const sample = { memory: server.memory(), files: server.files(), tasks: await server.metric('kiro_tasks_alive') }
    this.load.resume()
    return sample
  }

  async run(seconds) {
    await this.open()
    const began = performance.now()
    const left = () => seconds - (performance.now() - began) / 1000
    const names = Object.keys(this.faults)
    const calmEvery = Math.max(60, seconds / 10)
    const samples = []
    let nextCalm = calmEvery / 2
    while (left() > 0) {
      const name = this.any(names)
      this.happened.set(name, (this.happened.get(name) ?? 0) + 1)
      this.story.push([performance.now(), name])
      // One that hangs is a fault of this program or of the server: either is to be seen.
      const done = await Promise.race([this.faults[name]().then(() => true), sleep(120_000)])
      if (!done) this.wrong.push(`"${name}" did not end`)
      await sleep(this.between(0, 1500))
      if (seconds - left() > nextCalm) {
        nextCalm += calmEvery
        samples.push(await this.sample())
        const { outcomes } = this.load
        const failed = outcomes.filter(({ ok }) => !ok).length
        const { refreshes, dead } = await this.upstream.refreshes()
        this.say(`${Math.round(seconds - left())} s: ${outcomes.length} requests, ${failed} failed, ${refreshes} refreshes, ${dead} dead, ${this.figures(samples.at(-1))}`)
      }
      if (this.wrong.length > 0) break
    }
    samples.push(await this.sample())
    await this.judge(samples)
    return this.wrong
  }

  figures({ memory, files, tasks }) {
    return `${Math.round(memory / MB)} MiB, ${files} files, ${tasks} tasks`
  }

  expect(is, otherwise) {
    if (!is) this.wrong.push(otherwise)
  }

  async judge(samples) {
    await this.node.order('idle')
    await this.node.order('drained')
    const outcomes = await this.load.stop()
    const failures = new Map()
    const told = (outcome) => outcome.says !== undefined && TRUE_SENTENCES.test(outcome.says) && !/no healthy/i.test(outcome.says)
    const inRestart = ({ began, at }) => this.restarts.some(([from, to]) => at >= from && began <= to + 1000)
    for (const outcome of outcomes.filter(({ ok }) => !ok)) {
      const kind = outcome.says ?? `lost: ${outcome.lost}`
      const expected = told(outcome) || (outcome.lost && RESTARTS.test(outcome.lost) && inRestart(outcome))
      const entry = failures.get(kind) ?? { times: 0, expected }
      failures.set(kind, { times: entry.times + 1, expected: entry.expected && expected })
      if (!expected) {
        const { began, at, server } = outcome
        const during = this.story.filter(([from]) => from <= at).slice(-2).map(([from, name]) => `"${name}" ${Math.round(at - from)} ms before`)
        this.say(`  ${kind} after ${Math.round(at - began)} ms, server ${this.servers.indexOf(server)}: ${during.join(', ')}`)
      }
    }
    for (const [kind, { times, expected }] of failures) {
      this.say(`  ${expected ? 'by design' : 'WRONG'}: ${times} × ${kind}`)
      this.expect(expected, `${times} × ${kind}`)
    }
    this.say(`  faults: ${[...this.happened].map(([name, times]) => `${name} ${times}`).join(' · ')}`)

    for (const { process } of this.servers) this.expect(process.ended === null, `${process.name} ended: ${JSON.stringify(process.ended)}\n${process.tail()}`)
    const works = (theirs, account) => theirs[login(numberOf(account))]?.refresh_token ?? login(numberOf(account))
    const lost = async () => {
      const [accounts, theirs] = await Promise.all([this.redis.accounts(), this.upstream.accounts()])
      return accounts.filter(({ id, token }) => token?.refreshToken !== works(theirs, id)).map(({ id, token }) => `${numberOf(id)}: ${token?.refreshToken}, ${works(theirs, id)} works`)
    }
    await eventually(async () => (await lost()).length === 0, 15_000, 200)
    this.expect((await lost()).length === 0, `logins are lost: ${(await lost()).join('; ')}`)
    // And every one of them still serves.
    const all = await this.redis.accounts()
    this.expect(all.length === ACCOUNTS, `${all.length} of ${ACCOUNTS} accounts are in the store`)
    const health = (await this.servers[0].health()).body
    this.expect(health.accounts?.healthy === ACCOUNTS, `/health: ${JSON.stringify(health)}`)

    // Uses end in the store before the servers do; then everything adds up.
    for (const { process } of this.servers) this.expect((await process.stop()).code === 0, `${process.name} does not stop`)
    for (const server of this.servers) this.uncertain += server.uncertain()
    const { journal } = await this.node.order('journaled')
    const uses = (text) => Number((text && JSON.parse(text).usageCount) ?? 0)
    const theirs = journal.filter(({ uuid }) => uuid).reduce((sum, { before, after }) => sum + uses(after) - uses(before), 0)
    const there = (await this.redis.accounts()).reduce((sum, { record }) => sum + Number(record.usageCount ?? 0), 0)
    const ours = outcomes.filter(({ ok, text }) => ok || /"type":"content_block_delta"/.test(text ?? '')).length
    const aborted = this.aborted ?? 0
    this.expect(
      there - theirs <= ours + aborted + this.cutOff(outcomes) && there - theirs >= ours - this.uncertain,
      `the store counts ${there}: ${theirs} of the Node.js service, ${there - theirs} of ours instead of ${ours} (${this.uncertain} uncertain, ${aborted} aborted)`,
    )
    const [first, last] = [samples[0], samples.at(-1)]
    this.say(`  counts: ${there - theirs} ours (${ours} streams seen, ${aborted} aborted, ${this.uncertain} uncertain), ${theirs} the Node.js service's`)
    this.say(`  first: ${this.figures(first)}; last: ${this.figures(last)}`)
    this.expect(last.memory <= first.memory * 1.3 + 16 * MB, `memory grew: ${this.figures(first)} to ${this.figures(last)}`)
    this.expect(last.files <= first.files + 8, `descriptors grew: ${this.figures(first)} to ${this.figures(last)}`)
    this.expect(last.tasks <= first.tasks + 8, `tasks grew: ${this.figures(first)} to ${this.figures(last)}`)
  }

  /** Requests whose answer we never saw: their stream may have begun. */
  cutOff(outcomes) {
    return outcomes.filter(({ lost }) => lost && RESTARTS.test(lost)).length
  }
}

/** tests/coexist/node-service.mjs, one order at a time. */
class NodeService {
  static async start(stage, redis, upstream) {
    const service = new NodeService()
    const program = path.join(root, 'tests', 'coexist', 'node-service.mjs')
    service.child = spawn(process.execPath, [program, `redis://127.0.0.1:${redis.port}`, `${upstream.url}/refreshToken`], { stdio: ['pipe', 'pipe', 'inherit'] })
    stage.after(() => service.child.kill('SIGKILL'))
    service.replies = createInterface({ input: service.child.stdout })[Symbol.asyncIterator]()
    await service.order('load')
    return service
  }

  async order(what, options = {}) {
    this.child.stdin.write(`${JSON.stringify({ do: what, ...options })}\n`)
    const { value } = await this.replies.next()
    const reply = value === undefined ? { error: 'it ended' } : JSON.parse(value)
    if (reply.error) throw new Error(`the Node.js service, ${what}: ${reply.error}`)
    return reply
  }
}
