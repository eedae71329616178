// The server itself: stopped, killed, frozen, or with a log that nobody reads.
import { eventually, pipeThatNobodyReads, sleep } from '../kit.mjs'
import { STREAM } from '../load.mjs'

const kind = 'process'

export const rows = [
  {
    kind,
    name: 'nobody reads standard error for 60 s, then SIGTERM',
    load: '100 requests/s',
    alone: true,
    short: true,
    async run(t) {
      const stderr = pipeThatNobodyReads(t.stage)
      const { upstream, store, server } = await t.place({ accounts: 6, life: 12, stderr, env: { KIRO_LOG_LEVEL: 'debug' } })
      const load = t.stage.load(server, { rate: t.of({ short: 50, normal: 100 }) })
      await sleep(1000 * t.of({ short: 8, normal: 60 }))
      const live = await server.health()
      t.expect(live?.status === 200, `/health: ${JSON.stringify(live)}`)
      const outcomes = t.take(await load.stop())
      const slow = outcomes.filter(({ ms }) => ms > 20_000).length
      t.expect(slow === 0, `${slow} streams stood still`)
      await t.whole({ store, upstream })
      const began = performance.now()
      const ended = await server.process.stop()
      t.expect(ended.code === 0, `SIGTERM: ${JSON.stringify(ended)}`)
      t.note(`SIGTERM took ${((performance.now() - began) / 1000).toFixed(1)} s`)
      t.expect(performance.now() - began < t.bar(10_000), 'it was slow to stop')
    },
  },
  {
    kind,
    name: 'SIGTERM under load, ten times, the next server takes over (SO_REUSEPORT)',
    load: '40 requests/s',
    alone: true,
    short: true,
    async run(t) {
      const upstream = await t.stage.upstream()
      const store = await t.stage.redis({ accounts: 6 })
      const options = { store, upstream, env: { KIRO_REUSE_PORT: 'true' } }
      let server = await t.stage.server(options)
      const { port, headers } = server
      const load = t.stage.load({ port, headers }, { rate: 40 })
      for (let n = 0; n < t.of({ short: 2, normal: 10 }); n++) {
        await sleep(700)
        const next = await t.stage.server({ ...options, port })
        const ended = await server.process.stop()
        t.expect(ended.code === 0, `server ${n} ended: ${JSON.stringify(ended)}`)
        server = next
      }
      await sleep(500)
      t.take(await load.stop())
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'SIGTERM with streams that do not end: each is told',
    load: '40 streams of 60 s, KIRO_GRACEFUL_TIMEOUT 2 s',
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600, env: { KIRO_GRACEFUL_TIMEOUT: '2s' } })
      const load = t.stage.load(server, { rate: 40, scenario: { count: 600, gap_ms: 100 } })
      await sleep(1000)
      const ending = load.stop()
      await sleep(500)
      const began = performance.now()
      const ended = await server.process.stop()
      t.expect(ended.code === 0 && performance.now() - began < 6000, `${JSON.stringify(ended)} after ${performance.now() - began} ms`)
      t.take(await ending, { says: /shut|stopp|restart/i })
      await t.whole({ store, upstream, counted: null })
    },
  },
  {
    kind,
    name: 'SIGKILL under load, five times',
    load: '40 requests/s on two servers, one is killed',
    async run(t) {
      const upstream = await t.stage.upstream({ life: 3600 })
      const store = await t.stage.redis({ accounts: 6, life: 3600 })
      const other = await t.stage.server({ store, upstream })
      const others = t.stage.load(other, { rate: 20 })
      let [missing, killed] = [0, 0]
      for (let n = 0; n < 5; n++) {
        const server = await t.stage.server({ store, upstream, name: 'victim' })
        const load = t.stage.load(server, { rate: 20 })
        await sleep(2000)
        await server.process.kill()
        const died = performance.now()
        const outcomes = await load.stop()
        killed += outcomes.filter(({ ok }) => !ok).length
        // What went well in its last second may not be counted; nor what it was just ending.
        missing += outcomes.filter(({ ok, text, at }) => at > died - 1000 && (ok || text?.includes('content_block_delta'))).length
        t.take(outcomes.filter(({ began }) => began < died), { breaks: /ECONNRESET|ECONNREFUSED|broke off|socket hang up/ })
      }
      t.over()
      t.take(await others.stop())
      t.note(`${killed} streams died with their server, of ${missing} uses of the last seconds some are not counted`)
      await t.whole({ store, upstream, missing, more: killed })
    },
  },
  {
    kind,
    name: 'the server stands still for 5 s (SIGSTOP)',
    load: '20 requests/s',
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 6 })
      const load = t.stage.load(server, { rate: 20 })
      await sleep(1500)
      server.process.signal('SIGSTOP')
      await sleep(5000)
      server.process.signal('SIGCONT')
      t.over()
      await sleep(3000)
      t.take(await load.stop())
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'more requests than KIRO_MAX_CONNS',
    load: '100 requests/s for 40 places',
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 6, life: 3600, env: { KIRO_MAX_CONNS: '40' } })
      const load = t.stage.load(server, { rate: 100, scenario: { ...STREAM, gap_ms: 50 } })
      await sleep(5000)
      t.take(await load.stop(), { says: /overload|too many|busy|in flight|at once|limit/i })
      const streams = t.requests - t.designed
      t.expect(streams > 150, `only ${streams} got through`)
      await t.whole({ store, upstream })
      t.expect(await eventually(async () => (await upstream.stats()).streams.open === 0, 3000), 'streams stayed open')
    },
  },
]

