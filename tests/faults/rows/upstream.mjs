// Kiro itself: it fails, breaks off, never ends, says too much.
import http from 'node:http'
import { gzipSync } from 'node:zlib'
import { eventually, sleep } from '../kit.mjs'
import { STREAM, ask, body } from '../load.mjs'

const kind = 'upstream'
const BROKE = /broke off|ended|cut|closed|reset|incomplete|connection|stream/i

/** With everybody resting somebody is asked all the same. */
function nobodyIsRefused(t, outcomes) {
  t.expect(!outcomes.some(({ says }) => /no healthy/i.test(says ?? '')), '"no healthy accounts" was said')
}

export const rows = [
  {
    kind,
    name: '5 % of the answers break in the middle',
    load: '100 requests/s',
    alone: true,
    short: true,
    async run(t) {
      const rate = t.of({ short: 40, normal: 100 })
      const { upstream, store, server } = await t.place({ accounts: 10, life: 3600 })
      const breaks = (n) => n % 20 === 7
      const scenario = (n) => (breaks(n) ? { ...STREAM, count: 8, end: n % 40 === 7 ? 'cut' : 'reset' } : STREAM)
      const load = t.stage.load(server, { rate, scenario })
      await sleep(1000 * t.of({ short: 10, normal: 45, long: 600 }))
      const outcomes = await load.stop()
      t.take(outcomes.filter(({ n }) => breaks(n)), { says: BROKE })
      // Nobody else notices.
      t.take(outcomes.filter(({ n }) => !breaks(n)))
      const share = (t.designed + t.failed) / t.requests
      t.note(`${(share * 100).toFixed(1)} % of the requests saw an error`)
      t.expect(share <= 0.06, `${(share * 100).toFixed(1)} % of the requests saw an error`)
      nobodyIsRefused(t, outcomes)
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'every call is answered 500 for 4 s',
    load: '30 requests/s',
    short: true,
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 6, life: 3600 })
      const load = t.stage.load(server, { rate: 30 })
      await sleep(1500)
      await upstream.world('500')
      await sleep(4000)
      await upstream.world(null)
      t.over()
      await sleep(3000)
      const outcomes = t.take(await load.stop(), { says: /Kiro|upstream|unexpected error/i })
      nobodyIsRefused(t, outcomes)
      t.within(1500)
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'one account of four: 429, suspended, out of quota, drops the connection',
    load: '30 requests/s',
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 8, life: 3600 })
      const faults = ['429', 'suspended', '402', 'drop']
      for (const [n, fault] of faults.entries()) await upstream.script({ token: `start-${n}`, scenarios: [fault], forever: true })
      const load = t.stage.load(server, { rate: 30 })
      await sleep(6000)
      t.take(await load.stop())
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'all events came, and upstream does not close',
    load: '10 requests/s',
    short: true,
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600 })
      const load = t.stage.load(server, { rate: 10, scenario: { ...STREAM, usage: true, end: 'hang' } })
      await sleep(3000)
      const outcomes = t.take(await load.stop())
      const longest = Math.max(...outcomes.map(({ ms }) => ms))
      t.note(`the longest took ${(longest / 1000).toFixed(1)} s`)
      t.expect(longest < t.bar(8000), `one took ${longest} ms`)
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'an answer of 100 MB to a client that wants it in one piece',
    load: '2 of them beside 15 requests/s',
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600 })
      const load = t.stage.load(server, { rate: 15 })
      let most = 0
      const watch = setInterval(() => (most = Math.max(most, server.memory())), 50)
      t.stage.after(() => clearInterval(watch))
      // Literal events of 256 KB: the simulator holds each scenario in memory.
      const huge = { count: 400, text: 'x'.repeat(256 * 1024) }
      const sent = body(huge, { stream: false })
      const outcomes = await Promise.all([1, 2].map(() => ask(server, { sent, timeoutMs: 120_000 })))
      t.take(outcomes, { says: /too (large|long|big)|64 MiB|larger than/i })
      t.expect(t.designed === 2, `a folded answer of 100 MB ended in ${JSON.stringify(outcomes.map(({ status, text }) => [status, text?.slice(0, 200)]))}`)
      t.note(`the server needed ${Math.round(most / 2 ** 20)} MiB`)
      t.expect(most < 600 * 2 ** 20, `the server needed ${Math.round(most / 2 ** 20)} MiB`)
      t.take(await load.stop())
      await t.whole({ store, upstream, more: 2 })
    },
  },
  {
    kind,
    name: 'an error body is compressed',
    load: '20 requests',
    short: true,
    async run(t) {
      const said = 'The input is too long for this model, says a compressed sentence.'
      const crooked = http.createServer((request, response) => {
        request.resume()
        const headers = { 'content-type': 'application/json', 'content-encoding': 'gzip', 'x-amzn-errortype': 'ValidationException' }
        request.on('end', () => response.writeHead(400, headers).end(gzipSync(JSON.stringify({ message: said }))))
      })
      await new Promise((resolve) => crooked.listen(0, '127.0.0.1', resolve))
      t.stage.after(() => {
        crooked.closeAllConnections()
        return new Promise((resolve) => crooked.close(resolve))
      })
      const { upstream, store, server } = await t.place({ life: 3600, upstreamPort: crooked.address().port })
      for (let n = 0; n < 20; n++) t.take([await ask(server, { sent: body(STREAM) })], { says: /^[\x20-\x7e…’“”—–]+$/ })
      t.expect(t.designed === 20, 'not every request heard that it was refused')
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'the refresh endpoint takes 3 s, then fails half of the time',
    load: '20 requests/s, an hour of life is 2 s',
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 8 })
      const load = t.stage.load(server, { rate: 20 })
      await sleep(1000)
      await upstream.world({ refresh_ms: 3000 })
      await sleep(5000)
      await upstream.world({ refresh_ms: 0 })
      const failing = async (n) => {
        const token = (await upstream.accounts())[`login-${n}`]?.refresh_token ?? `login-${n}`
        await upstream.script({ refresh_token: token, answers: ['500', '429', '500'] })
      }
      for (const n of [0, 1, 2, 3]) await failing(n)
      await sleep(5000)
      t.over()
      await sleep(2000)
      t.take(await load.stop())
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'a token lives 2 s',
    load: '20 requests/s',
    short: true,
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 4, life: 2, worlds: [] })
      const load = t.stage.load(server, { rate: 20 })
      await sleep(8000)
      t.take(await load.stop())
      const { refreshes, expired } = await upstream.refreshes()
      t.note(`${refreshes} refreshes in 8 s of 4 accounts`)
      t.expect(refreshes <= 4 * 8 * 2, `${refreshes} refreshes of 4 accounts in 8 s`)
      t.expect(expired <= 20, `${expired} calls with a token that had ended`)
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'a refresh token is used up and the answer is lost (not survived: that account logs in again)',
    load: '20 requests/s',
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 4 })
      const load = t.stage.load(server, { rate: 20 })
      await upstream.script({ refresh_token: 'login-0', answers: ['lost'] })
      const isLost = async () => (await upstream.accounts())['login-0']?.refreshes === 1
      t.expect(await eventually(isLost, 20_000), 'account 0 was not refreshed')
      await sleep(6000)
      t.take(await load.stop())
      // Asked again a few times, since a refusal may be a mistake; then it rests as one that must log in.
      await t.whole({ store, upstream, lostLogins: [0], dead: 6 })
    },
  },
]
