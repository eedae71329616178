// Clients: they don't read, go away, half-close, send too much, too slowly or nonsense.
import { randomBytes } from 'node:crypto'
import http from 'node:http'
import { connect } from 'node:net'
import { eventually, sleep } from '../kit.mjs'
import { STREAM, ask, body, textOf } from '../load.mjs'

const kind = 'client'
const MB = 1_000_000

/** A request as bytes. */
function raw(server, sent, more = '') {
  const headers = Object.entries(server.headers).map(([name, value]) => `${name}: ${value}\r\n`).join('')
  return `POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\n${headers}content-length: ${Buffer.byteLength(sent)}\r\n${more}\r\n${sent}`
}

export const rows = [
  {
    kind,
    name: '28 MB bodies with a wrong key from fetch, each hears 401',
    load: '100 bodies, two at a time, beside 10 requests/s',
    short: true,
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600 })
      const load = t.stage.load(server, { rate: 10 })
      const sent = Buffer.alloc(28 * MB, 0x20)
      const post = async (path, headers, bytes = sent) => {
        const outcome = { began: performance.now() }
        try {
          const response = await fetch(server.url(path), { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: bytes })
          const { error } = await response.json()
          Object.assign(outcome, { status: response.status, says: `${response.status}: ${error.message}` })
        } catch (error) {
          outcome.lost = `${error.message}: ${error.cause?.code ?? error.cause?.message}`
        }
        return { ...outcome, at: performance.now() }
      }
      const times = t.of({ short: 10, normal: 100 })
      const left = Array.from({ length: times })
      const work = async () => {
        while (left.pop() === undefined && left.length >= 0 && t.uploads < times) {
          t.uploads += 1
          t.take([await post('/v1/messages', { 'x-api-key': 'wrong' })], { says: /^401: ./ })
        }
      }
      t.uploads = 0
      await Promise.all([work(), work()])
      for (let n = 0; n < 3; n++) t.take([await post('/v1/nothing', server.headers)], { says: /^404: ./ })
      const tooLarge = Buffer.alloc(34 * MB, 0x20)
      for (let n = 0; n < 3; n++) t.take([await post('/v1/messages', server.headers, tooLarge)], { says: /^413: ./ })
      t.expect(t.designed === times + 6, `${t.designed} of ${times + 6} uploads heard why they were refused`)
      t.take(await load.stop())
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: '30 clients do not read their answers of 40 MB',
    load: '30 of them beside 15 requests/s, KIRO_WRITE_TIMEOUT 3 s',
    short: true,
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600, env: { KIRO_WRITE_TIMEOUT: '3s' } })
      const load = t.stage.load(server, { rate: 15 })
      const huge = { count: 20_000, text: 'x'.repeat(2000) }
      // Megabytes go into the system's buffers before anybody has to wait: slow in a debug build.
      const stalled = t.of({ short: 6, normal: 30 })
      const sockets = Array.from({ length: stalled }, () => {
        const socket = connect(server.port, '127.0.0.1')
        socket.on('error', () => {})
        socket.pause()
        socket.write(raw(server, body(huge)))
        return socket
      })
      await sleep(2000)
      const held = server.memory()
      t.note(`${Math.round(held / 2 ** 20)} MiB while they were held`)
      t.expect(held < 400 * 2 ** 20, `${Math.round(held / 2 ** 20)} MiB`)
      const free = async () => (await server.metric('kiro_requests_in_flight')) <= 10 && (await upstream.stats()).streams.open <= 12
      t.expect(await eventually(free, t.bar(30_000), 200), `their places are held: ${(await upstream.stats()).streams.open} streams are open`)
      sockets.forEach((socket) => socket.destroy())
      t.take(await load.stop())
      await t.whole({ store, upstream, more: stalled })
    },
  },
  {
    kind,
    name: 'clients that half-close after the request (nc -N)',
    load: '20 of them beside 10 requests/s',
    short: true,
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600 })
      const load = t.stage.load(server, { rate: 10 })
      const halfClose = () =>
        new Promise((resolve) => {
          const began = performance.now()
          let text = ''
          const socket = connect({ port: server.port, host: '127.0.0.1', allowHalfOpen: true })
          socket.setEncoding('utf8')
          socket.on('data', (chunk) => (text += chunk))
          socket.on('error', () => {})
          socket.on('end', () => socket.destroy())
          socket.on('close', () => {
            const got = [...text.matchAll(/"text_delta","text":"([^"]*)"/g)].map(([, piece]) => piece).join('')
            const ok = got === textOf(STREAM) && text.includes('message_stop')
            resolve({ began, at: performance.now(), ...(ok ? { ok } : { lost: `got ${text.length} characters` }) })
          })
          socket.end(raw(server, body(STREAM), 'connection: close\r\n'))
        })
      t.take(await Promise.all(Array.from({ length: 20 }, halfClose)))
      t.take(await load.stop())
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'clients go away in the middle',
    load: '40 of them a second beside 20 requests/s',
    async run(t) {
      const { upstream, store, server } = await t.place({ accounts: 6, life: 3600 })
      const idle = server.sockets()
      const load = t.stage.load(server, { rate: 20 })
      let gone = 0
      const go = () => {
        const request = http.request({ host: '127.0.0.1', port: server.port, method: 'POST', path: '/v1/messages', headers: server.headers })
        request.on('error', () => {})
        request.on('response', (response) => response.once('data', () => response.destroy()))
        request.end(body({ count: 300, gap_ms: 50 }))
        // Some before there is an answer.
        if (gone++ % 3 === 0) setTimeout(() => request.destroy(), 5 * Math.random())
      }
      const going = setInterval(go, 25)
      await sleep(6000)
      clearInterval(going)
      t.take(await load.stop())
      const closed = async () => (await upstream.stats()).streams.open === 0
      t.expect(await eventually(closed, 3000), `${(await upstream.stats()).streams.open} streams of clients that went away are open`)
      const back = await eventually(() => server.sockets() <= idle + 8, 20_000, 200)
      t.expect(back, `${server.sockets()} sockets are open, ${idle} before`)
      t.note(`${gone} clients went away`)
      await t.whole({ store, upstream, more: gone })
    },
  },
  {
    kind,
    name: '300 clients that send a byte a second',
    load: '300 of them beside 20 requests/s, KIRO_HEADER_TIMEOUT and KIRO_BODY_TIMEOUT 3 s',
    async run(t) {
      const env = { KIRO_HEADER_TIMEOUT: '3s', KIRO_BODY_TIMEOUT: '3s' }
      const { upstream, store, server } = await t.place({ life: 3600, env })
      const load = t.stage.load(server, { rate: 20 })
      let open = 300
      const sockets = Array.from({ length: open }, (_, n) => {
        const socket = connect(server.port, '127.0.0.1')
        const message = n % 2 === 0 ? 'POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\n' : raw(server, body(STREAM))
        // Every other one is done with its head.
        let at = n % 2 === 0 ? 0 : message.indexOf('\r\n\r\n') + 4
        if (at > 0) socket.write(message.slice(0, at))
        const drip = setInterval(() => at < message.length && socket.write(message[at++]), 1000)
        socket.on('error', () => {})
        socket.on('data', () => {})
        socket.on('close', () => {
          open -= 1
          clearInterval(drip)
        })
        return socket
      })
      t.stage.after(() => sockets.forEach((socket) => socket.destroy()))
      t.expect(await eventually(() => open === 0, 20_000, 200), `${open} of them are still there`)
      t.take(await load.stop())
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: 'noise, and bodies that are no JSON',
    load: '200 of each beside 20 requests/s',
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600 })
      const load = t.stage.load(server, { rate: 20 })
      const noise = () =>
        new Promise((resolve) => {
          const socket = connect(server.port, '127.0.0.1', () => socket.end(randomBytes(2000)))
          socket.on('error', () => {})
          socket.on('data', () => {})
          socket.on('close', resolve)
          socket.setTimeout(5000, () => socket.destroy())
        })
      for (let n = 0; n < 10; n++) await Promise.all(Array.from({ length: 20 }, noise))
      const nonsense = ['{', '[]', 'null', '"x"', '{"model":1}', '{"messages":[]}', '['.repeat(100_000), randomBytes(3000).toString('latin1'), `{"a":${'9'.repeat(100_000)}}`, '']
      for (let n = 0; n < 200; n++) {
        t.take([await ask(server, { sent: nonsense[n % nonsense.length] })], { says: /./ })
      }
      t.expect(t.designed === 200, `${t.designed} of 200 were told what is wrong`)
      t.take(await load.stop())
      await t.whole({ store, upstream })
    },
  },
  {
    kind,
    name: '40,000 tool calls that are never closed',
    load: '10,000, then 40,000, beside 10 requests/s',
    async run(t) {
      const { upstream, store, server } = await t.place({ life: 3600, env: { KIRO_MAX_REQUEST_BODY: '64MiB' } })
      const load = t.stage.load(server, { rate: 10 })
      const tools = [{ name: 't', description: 'a tool', input_schema: { type: 'object' } }]
      const time = async (count) => {
        const calls = Array.from({ length: count }, (_, n) => ({ name: 't', id: `tooluse_${n}`, input: {}, stop: 'never' }))
        const outcome = await ask(server, { sent: body({ tools: calls, usage: true }, { tools }), timeoutMs: 120_000 })
        t.take([outcome], { says: /tool|too many|too large/i })
        return outcome.ms
      }
      const few = await time(10_000)
      const many = await time(40_000)
      t.note(`${Math.round(few)} ms for 10,000, ${Math.round(many)} ms for 40,000`)
      t.expect(many < 8 * few + 1000, `${Math.round(many)} ms for 40,000, ${Math.round(few)} ms for 10,000`)
      t.take(await load.stop())
      await t.whole({ store, upstream, more: 2, missing: 2 })
    },
  },
]
