// Attacks: by web pages, by what upstream says, by who guesses keys.
import { connect } from 'node:net'
import { sleep } from '../kit.mjs'
import { STREAM, ask, body } from '../load.mjs'

const kind = 'attack'
const ROUTES = [
  ['POST', '/v1/messages'],
  ['POST', '/v1/messages/count_tokens'],
  ['GET', '/v1/models'],
  ['GET', '/health'],
  ['GET', '/metrics'],
  ['GET', '/status'],
  ['OPTIONS', '/v1/messages'],
]

export const rows = [
  {
    kind,
    name: 'a web page uses a local server without a key (foreign Origin, foreign Host)',
    load: `${ROUTES.length} routes, 4 ways, beside 10 requests/s`,
    short: true,
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600, key: null })
      const load = t.stage.load(server, { rate: 10 })
      const ways = [
        { origin: 'https://evil.example', 'content-type': 'text/plain' },
        { origin: 'null', 'content-type': 'application/json' },
        { host: 'evil.example:8081' },
        { host: 'evil.example', origin: 'http://evil.example' },
      ]
      for (const [method, path] of ROUTES) {
        for (const headers of ways) {
          const outcome = await ask(server, { method, path, headers, sent: method === 'POST' ? body(STREAM) : undefined })
          t.take([outcome], { says: /origin|host|web page|browser|other site/i })
          t.expect([401, 403].includes(outcome.status), `${method} ${path} from ${JSON.stringify(headers)}: ${outcome.status}`)
        }
      }
      const cors = await fetch(server.url('/v1/models'), { headers: { origin: 'https://evil.example' } })
      t.expect(cors.headers.get('access-control-allow-origin') === null, 'a foreign page may read the answer')
      for (const host of ['localhost', `127.0.0.1:${server.port}`, '[::1]:8081']) t.take([await ask(server, { headers: { host }, sent: body(STREAM) })])
      t.take(await load.stop())
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'upstream repeats the access token, an ARN and an address in its errors',
    load: '40 requests, four kinds of error',
    short: true,
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 1, life: 3600, env: { KIRO_LOG_LEVEL: 'debug', KIRO_HEALTH_COOLDOWN: '50ms' } })
      const arn = 'arn:aws:codewhisperer:us-east-1:111122223333:profile/SECRETPROFILE'
      const message = `Bearer start-0 of someone@example.com with ${arn} is not welcome`
      const scenarios = [
        { http: { status: 400, type: 'ValidationException', message } },
        { http: { status: 400, body: `<html>${message}</html>` } },
        { text: 'half ', pieces: 2, exception: { type: 'ValidationException', message } },
        { http: { status: 418, body: { __type: 'Odd', message } } },
      ]
      for (let n = 0; n < 40; n++) {
        const outcome = await ask(server, { sent: body(scenarios[n % 4]) })
        t.take([outcome], { says: /./ })
        t.expect(!/start-0|someone@example|111122223333|SECRETPROFILE/.test(outcome.text), `the client reads ${outcome.text.slice(0, 300)}`)
        await sleep(60)
      }
      const log = server.process.lines.find((line) => /start-0|someone@example|111122223333|SECRETPROFILE/.test(line))
      t.expect(!log, `the log reads ${log?.slice(0, 300)}`)
      await t.whole({ store, upstream, counted: null })
    },
  },
  {
    kind,
    name: 'wrong keys by the hundred',
    load: '200 a second beside 20 requests/s',
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600 })
      const load = t.stage.load(server, { rate: 20 })
      const guesses = t.stage.load({ port: server.port, headers: { 'content-type': 'application/json' } }, { rate: 200 })
      await sleep(5000)
      t.take(await guesses.stop(), { says: /key/i })
      const outcomes = t.take(await load.stop())
      const slowest = Math.max(...outcomes.map(({ ms }) => ms))
      t.expect(slowest < 5000, `a good client waited ${slowest} ms`)
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'two requests in one (both lengths, two lengths, bare line ends)',
    load: '6 kinds, 10 times',
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600 })
      const key = `x-api-key: ${server.headers['x-api-key']}\r\n`
      const hidden = 'GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n'
      const head = (lines, rest) => `POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\n${key}${lines}\r\n${rest}`
      const attacks = [
        head('content-length: 4\r\ntransfer-encoding: chunked\r\n', `0\r\n\r\n${hidden}`),
        head('content-length: 0\r\ncontent-length: 40\r\n', hidden),
        head('transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n', `0\r\n\r\n${hidden}`),
        head('transfer-encoding : chunked\r\n', `0\r\n\r\n${hidden}`),
        head('content-length: +5\r\n', hidden),
        head('transfer-encoding: xchunked\r\n', `0\r\n\r\n${hidden}`),
      ]
      const answers = (attack) =>
        new Promise((resolve) => {
          let text = ''
          const socket = connect(server.port, '127.0.0.1', () => socket.write(attack))
          socket.setEncoding('utf8')
          socket.on('data', (chunk) => (text += chunk))
          socket.on('error', () => {})
          socket.on('close', () => resolve(text))
          setTimeout(() => socket.destroy(), 700)
        })
      for (let n = 0; n < 60; n++) {
        const text = await answers(attacks[n % 6])
        const statuses = [...text.matchAll(/^HTTP\/1\.1 (\d+)/gm)].map(([, status]) => status)
        t.expect(!statuses.includes('200'), `attack ${n % 6} got through: ${statuses}`)
        t.take([{ says: `${statuses}`, began: 0, at: 0 }], { says: /^4\d\d(,4\d\d)*$/ })
      }
      const after = t.stage.load(server, { rate: 20 })
      await sleep(1000)
      t.take(await after.stop())
      await t.whole({ store, upstream })
    },
  },
]
