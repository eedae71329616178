// The store: what it refuses, how slow it is, whether it is there at all.
import { rmSync, mkdirSync } from 'node:fs'
import path from 'node:path'
import { eventually, sleep } from '../kit.mjs'

const kind = 'store'
/** An hour of life is 2 s. No two requests at once on an account, so that all are used and each is refreshed. */
const BUSY = { life: 2, env: { KIRO_MAX_INFLIGHT_PER_ACCOUNT: '1', KIRO_ACCOUNT_WAIT: '10s' } }

/**
 * Where Redis says nothing at all, a lock that was taken and whose answer was lost stays its 30 s, which is a day here: tokens
 * live longer then, and any account may serve.
 */
const CALM = { life: 12 }

/** Nothing fails while the store goes through something, nothing is lost after it. */
function unnoticed({ name, short, seconds = 6, load = 20, args, through, missing, pace = BUSY, begin, end }) {
  return {
    kind,
    name,
    short,
    load: `${load} requests/s, an hour of life is ${pace.life} s`,
    async run(t) {
      const upstream = await t.stage.upstream({ life: pace.life })
      const store = await t.stage.redis({ accounts: 12, args: args?.(t), life: pace.life })
      const proxy = through && (await t.stage.proxy(store.port))
      if (proxy) store.throughPort = proxy.port
      const server = await t.stage.server({ store, upstream, ...pace })
      const running = t.stage.load(server, { rate: load })
      await sleep(1500)
      const before = (await upstream.refreshes()).refreshes
      await begin({ t, store, proxy, server })
      await sleep(1000 * seconds)
      const { refreshes } = await upstream.refreshes()
      await end({ t, store, proxy, server })
      t.over()
      await sleep(2500)
      t.take(await running.stop())
      t.note(`${refreshes - before} refreshes meanwhile`)
      await t.whole({ store, upstream, missing })
    },
  }
}

/** The server ends while the store takes no writes: what waits for it is in the journal. */
function restart({ name, short, how }) {
  return {
    kind,
    name,
    short,
    load: '20 requests/s before and after, an hour of life is 2 s',
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 12, ...BUSY, name: 'server' })
      const first = t.stage.load(server, { rate: 20 })
      await sleep(1000)
      await store.fill()
      await sleep(t.of({ short: 4000, normal: 8000 }))
      t.take(await first.stop())
      const { refreshes } = await upstream.refreshes()
      await sleep(300)
      await how(server)
      const next = await t.stage.server({ store, upstream, ...BUSY, name: 'server' })
      t.over()
      const second = t.stage.load(next, { rate: 20 })
      await sleep(3000)
      await store.makeRoom()
      await sleep(2000)
      t.take(await second.stop())
      t.note(`${refreshes} refreshes before the restart`)
      // The uses of the outage went with the process: said in docs/reliability.md.
      await t.whole({ store, upstream, counted: null })
    },
  }
}

export const rows = [
  {
    kind,
    name: 'Redis takes no writes (OOM) for 200 refreshes',
    load: '20 requests/s, an hour of life is 2 s',
    short: true,
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 12, ...BUSY })
      const load = t.stage.load(server, { rate: 20 })
      await sleep(1000)
      await store.fill()
      const before = (await upstream.refreshes()).refreshes
      const wanted = t.of({ short: 50, normal: 200, long: 1000 })
      const cycles = async () => (await upstream.refreshes()).refreshes - before
      const enough = await eventually(async () => (await cycles()) >= wanted, t.of({ short: 25_000, normal: 90_000, long: 400_000 }), 200)
      t.note(`${await cycles()} refreshes while nothing could be saved`)
      t.expect(enough, `${wanted} refreshes did not happen`)
      await store.makeRoom()
      t.over()
      await sleep(2000)
      t.take(await load.stop())
      await t.whole({ store, upstream })
      t.expect(t.savedMs <= t.bar(5000), `the tokens were in the store after ${Math.round(t.savedMs)} ms`)
    },
  },
  restart({ name: 'the server is stopped while Redis takes no writes', short: true, how: (server) => server.process.stop() }),
  restart({ name: 'the server is killed while Redis takes no writes', how: (server) => server.process.kill() }),
  unnoticed({
    name: 'CLIENT PAUSE for 6 s, three times',
    pace: CALM,
    seconds: 21,
    begin: async ({ store, t }) => {
      const pause = () => store.call('CLIENT', 'PAUSE', '6000', 'ALL').catch(() => {})
      pause()
      const again = setInterval(pause, 7000)
      setTimeout(() => clearInterval(again), 15_000)
      t.stage.after(() => clearInterval(again))
    },
    end: () => {},
  }),
  unnoticed({
    name: 'redis-server stands still for 8 s (SIGSTOP)',
    pace: CALM,
    short: true,
    seconds: 8,
    begin: ({ store }) => store.signal('SIGSTOP'),
    end: ({ store }) => store.signal('SIGCONT'),
  }),
  unnoticed({
    name: 'redis-server is killed and comes back after 6 s',
    args: () => ['--appendonly', 'yes', '--appendfsync', 'always'],
    begin: ({ store }) => store.kill(),
    end: ({ store }) => store.launch(),
  }),
  unnoticed({
    name: 'Redis is a read-only replica for 8 s',
    seconds: 8,
    begin: ({ store }) => store.call('REPLICAOF', '127.0.0.1', '1'),
    end: ({ store }) => store.call('REPLICAOF', 'NO', 'ONE'),
  }),
  unnoticed({
    name: 'Redis refuses writes because it cannot save (MISCONF)',
    args: (t) => {
      const folder = path.join(t.stage.folder, 'data')
      mkdirSync(folder)
      return ['--dir', folder]
    },
    async begin({ t, store }) {
      rmSync(path.join(t.stage.folder, 'data'), { recursive: true })
      await store.call('CONFIG', 'SET', 'save', '3600 1', 'stop-writes-on-bgsave-error', 'yes')
      await store.call('BGSAVE')
      const failed = async () => (await store.call('INFO', 'persistence')).includes('rdb_last_bgsave_status:err')
      t.expect(await eventually(failed, 3000), 'Redis saved although its folder is gone')
    },
    end: ({ store }) => store.call('CONFIG', 'SET', 'stop-writes-on-bgsave-error', 'no'),
  }),
  unnoticed({
    name: 'scripts are forbidden (NOPERM) for 6 s',
    pace: CALM,
    begin: ({ store }) => store.call('ACL', 'SETUSER', 'default', '-@scripting'),
    end: ({ store }) => store.call('ACL', 'SETUSER', 'default', '+@all'),
  }),
  unnoticed({
    name: 'the password was changed (NOAUTH) for 6 s',
    async begin({ store }) {
      await store.call('CONFIG', 'SET', 'requirepass', 'another')
      await store.call('CLIENT', 'KILL', 'TYPE', 'normal')
    },
    end: ({ store }) => store.call('CONFIG', 'SET', 'requirepass', ''),
  }),
  unnoticed({
    name: 'Redis answers 300 ms late and loses packets',
    pace: CALM,
    short: true,
    through: true,
    begin({ proxy }) {
      Object.assign(proxy, { delayMs: 300, jitter: 0.5, loss: 0.05 })
    },
    end({ proxy }) {
      Object.assign(proxy, { delayMs: 0, loss: 0 })
    },
  }),
  unnoticed({
    name: 'connections to Redis break every 400 ms for 10 s',
    through: true,
    seconds: 10,
    begin({ t, proxy }) {
      proxy.breaking = setInterval(() => proxy.reset(), 400)
      t.stage.after(() => clearInterval(proxy.breaking))
    },
    end: ({ proxy }) => clearInterval(proxy.breaking),
  }),
  unnoticed({
    name: 'the cable to Redis is pulled for 8 s (half-open)',
    pace: CALM,
    through: true,
    seconds: 8,
    begin({ proxy }) {
      proxy.silent = true
    },
    end({ proxy }) {
      proxy.silent = false
    },
  }),
  {
    kind,
    name: 'two servers refresh the same accounts while Redis stumbles',
    load: '2 × 10 requests/s, an hour of life is 2 s',
    async run(t) {
      const { upstream, store, servers } = await t.place({ accounts: 12, servers: 2, ...BUSY })
      const load = t.stage.load(servers, { rate: 20 })
      for (let n = 0; n < 6; n++) {
        await sleep(1000)
        await store.fill()
        await sleep(700)
        await store.makeRoom()
        store.call('CLIENT', 'PAUSE', '500', 'ALL').catch(() => {})
      }
      t.over()
      await sleep(2500)
      t.take(await load.stop())
      // Without writes, neither learns the other's new token: the second one asks with the used-up token, once.
      await t.whole({ store, upstream, dead: 6 * 12 })
    },
  },
]
