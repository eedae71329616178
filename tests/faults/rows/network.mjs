// The network between a server and Kiro. Two servers share a store: what one can't reach is no trouble of the other's.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import http from 'node:http'
import { connect } from 'node:net'
import path from 'node:path'
import tls from 'node:tls'
import { freePort } from '../../../scripts/steps.mjs'
import { has, sleep } from '../kit.mjs'
import { STREAM } from '../load.mjs'
import { Skip } from '../row.mjs'

const kind = 'network'

/** Server 0 has no way to Kiro for some seconds; server 1 answers everything throughout. */
function oneWithout({ name, short, says, begin, env = {}, by, repair, seconds = 5, accounts = 10, backWithin = 1000 }) {
  return {
    kind,
    name: `${name}: one of two servers`,
    short,
    load: '2 × 15 requests/s on one store',
    async run(t) {
      const upstream = await t.stage.upstream({ life: 60 })
      const store = await t.stage.redis({ accounts, life: 60 })
      const place = await (begin?.({ t, upstream }) ?? {})
      const lonely = await t.stage.server({
        store,
        upstream,
        upstreamPort: place.port,
        by,
        env: { ...env, ...place.env },
      })
      const other = await t.stage.server({ store, upstream })
      const [its, others] = [t.stage.load(lonely, { rate: 15 }), t.stage.load(other, { rate: 15 })]
      await sleep(500)
      await place.fail?.()
      await sleep(1000 * seconds)
      if (repair) {
        await repair(place)
        t.over()
        await sleep(3000)
      }
      const outcomes = await its.stop()
      // Streams that had begun break; who comes then hears what can't be reached.
      t.take(outcomes.filter(({ status }) => status === 200), { says: /^The connection to Kiro failed/ })
      t.take(outcomes.filter(({ status }) => status !== 200), { says })
      t.expect(t.designed > 0, 'the server without a network refused nothing: was there a fault?')
      if (repair) t.within(backWithin + 300)
      const served = (await others.stop()).length
      t.take(others.outcomes)
      t.expect(served > 50, `only ${served} requests at the other server`)
      await t.unmarked(store)
      await t.whole({ store, upstream })
    },
  }
}

/** The sentence names the peer that can't be reached. */
const NAMES_THE_WAY = /127\.0\.0\.1|localhost|nowhere\.invalid|proxy/i

/** TLS in front of upstream, with a certificate that nobody signed. */
async function unsigned({ t, upstream }) {
  if (!has('openssl')) throw new Skip('no openssl to make a certificate with')
  const [key, cert] = ['key.pem', 'cert.pem'].map((name) => path.join(t.stage.folder, name))
  const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost']
  const made = spawnSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', cert, '-days', '2', ...subject])
  if (made.status !== 0) throw new Skip('openssl makes no certificate')
  const server = tls.createServer({ key: readFileSync(key), cert: readFileSync(cert) }, (socket) => {
    const target = connect(upstream.port, '127.0.0.1')
    socket.pipe(target).pipe(socket)
    for (const one of [socket, target]) one.on('error', () => [socket, target].forEach((each) => each.destroy()))
  })
  server.on('tlsClientError', () => {})
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.stage.after(() => new Promise((resolve) => server.close(resolve)))
  const origin = `https://localhost:${server.address().port}`
  return { env: urls(origin) }
}

function urls(origin) {
  return {
    KIRO_UPSTREAM_URL: `${origin}/generateAssistantResponse`,
    KIRO_SOCIAL_REFRESH_URL: `${origin}/refreshToken`,
    KIRO_IDC_REFRESH_URL: `${origin}/token`,
  }
}

/** A web proxy, for http: and by CONNECT. */
function webProxy(port) {
  const server = http.createServer((request, response) => {
    const { hostname, port, pathname, search } = new URL(request.url)
    const onward = http.request({ hostname, port, path: pathname + search, method: request.method, headers: request.headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers)
      answer.pipe(response)
    })
    onward.on('error', () => response.destroy())
    request.pipe(onward)
  })
  server.on('connect', (request, socket) => {
    const target = connect(Number(request.url.split(':')[1]), '127.0.0.1', () => {
      socket.write('HTTP/1.1 200 OK\r\n\r\n')
      socket.pipe(target).pipe(socket)
    })
    for (const one of [socket, target]) one.on('error', () => [socket, target].forEach((each) => each.destroy()))
  })
  return new Promise((resolve) => server.listen(port, '127.0.0.1', () => resolve(server)))
}

const throughProxy = async ({ t, upstream }) => {
  const proxy = await t.stage.proxy(upstream.port)
  return { port: proxy.port, proxy, fail: () => proxy.refuse() }
}

export const rows = [
  oneWithout({
    name: 'upstream refuses connections',
    short: true,
    says: NAMES_THE_WAY,
    begin: throughProxy,
    repair: ({ proxy }) => proxy.accept(),
  }),
  oneWithout({
    name: 'no DNS',
    says: NAMES_THE_WAY,
    begin: () => ({ env: urls('https://nowhere.invalid') }),
  }),
  oneWithout({
    name: 'the web proxy is down (KIRO_PROXY_URL)',
    says: NAMES_THE_WAY,
    async begin({ t }) {
      const port = await freePort()
      const place = { env: { KIRO_PROXY_URL: `http://127.0.0.1:${port}` }, port: undefined, at: port, t }
      return place
    },
    async repair(place) {
      const server = await webProxy(place.at)
      place.t.stage.after(() => {
        server.closeAllConnections()
        return new Promise((resolve) => server.close(resolve))
      })
    },
  }),
  oneWithout({ name: 'a certificate that nobody signed', says: NAMES_THE_WAY, begin: unsigned }),
  {
    kind,
    name: 'no file descriptors (prlimit --nofile): one of two servers',
    load: '60 streams at once on the one, 15 requests/s on the other',
    async run(t) {
      if (!has('prlimit')) throw new Skip('no prlimit')
      const upstream = await t.stage.upstream({ life: 60 })
      const store = await t.stage.redis({ accounts: 10, life: 60 })
      const poor = await t.stage.server({ store, upstream })
      const other = await t.stage.server({ store, upstream })
      const others = t.stage.load(other, { rate: 15 })
      spawnSync('prlimit', [`--nofile=${poor.files() + 40}:`, '--pid', String(poor.pid)])
      const its = t.stage.load(poor, { rate: 60, scenario: { count: 20, gap_ms: 50 }, timeoutMs: 90_000 })
      await sleep(6000)
      spawnSync('prlimit', ['--nofile=4096:', '--pid', String(poor.pid)])
      t.over()
      await sleep(2000)
      // Who isn't accepted waits; who was accepted and can't go on hears why.
      t.take(await its.stop(), { says: /file descriptors|open files|connect/i })
      t.take(await others.stop())
      await t.unmarked(store)
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'upstream is 150 ms away and loses 3 % of the packets',
    load: '20 requests/s',
    short: true,
    async run(t) {
      const { upstream, store, proxy, server } = await t.place({ accounts: 6, proxied: true })
      const load = t.stage.load(server, { rate: 20 })
      Object.assign(proxy, { delayMs: 150, jitter: 0.5, loss: 0.03 })
      await sleep(t.of({ short: 5000, normal: 10_000 }))
      Object.assign(proxy, { delayMs: 0, loss: 0 })
      t.over()
      t.take(await load.stop())
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'every connection to upstream is reset, every 2 s',
    load: '30 requests/s',
    async run(t) {
      const { upstream, store, proxy, server } = await t.place({ accounts: 6, life: 3600, proxied: true })
      const load = t.stage.load(server, { rate: 30 })
      for (let n = 0; n < 5; n++) {
        await sleep(2000)
        proxy.reset()
      }
      t.over()
      await sleep(2000)
      t.take(await load.stop(), { says: /(connection|network|stream|upstream|Kiro).*(broke|cut|reset|closed|lost|ended|failed)|broke off/i })
      const broken = t.designed / t.requests
      t.expect(broken < 0.3, `${Math.round(broken * 100)} % of the requests failed, more than were under way`)
      t.within(500)
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'upstream falls silent with its connections open, for 5 s',
    load: '15 requests/s, KIRO_FIRST_EVENT_TIMEOUT and KIRO_IDLE_TIMEOUT 2 s',
    async run(t) {
      const env = { KIRO_FIRST_EVENT_TIMEOUT: '2s', KIRO_IDLE_TIMEOUT: '2s', KIRO_CONNECT_TIMEOUT: '1s', KIRO_FAILOVER_TIME: '1s' }
      const { upstream, store, proxy, server } = await t.place({ accounts: 6, life: 3600, proxied: true, env })
      const load = t.stage.load(server, { rate: 15, scenario: STREAM })
      await sleep(1500)
      proxy.silent = true
      await sleep(5000)
      proxy.silent = false
      t.over()
      await sleep(4000)
      t.take(await load.stop(), { says: /time|silent|no answer|did not answer|took too long/i })
      t.within(3000)
      await t.whole({ store, upstream })
    },
  },
]
