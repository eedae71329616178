// The two ways of a streamed answer in handler(): straight to the client's socket (src/addon/outlet.rs), and through
// res.write where somebody stands in between. The same bytes, the same bounds, the same ends (N15–N17, N30–N33).
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { Agent, createServer, request as httpRequest } from 'node:http'
import { createServer as createHttp2Server, connect as connectHttp2 } from 'node:http2'
import { createServer as createTlsServer, request as tlsRequest } from 'node:https'
import { connect } from 'node:net'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { leave } from './support/leaving.mjs'
import { accounts, ask, collect, events, gateway, listening, simulator, sleep, textOf, until, withoutIds } from './support/stack.mjs'

const MESSAGES = '/v1/messages'
/** Nobody writes to a socket of Windows behind libuv's back. */
const direct = process.platform !== 'win32'

/** A server around a gateway's handler, and for each answer how much of it went through `res.write`. */
async function serve(t, gate, { create = createServer, around = () => {} } = {}) {
  const handle = gate.handler()
  const seen = []
  const server = create(async (req, res) => {
    const answer = { written: 0, handled: false, res }
    seen.push(answer)
    around(req, res)
    const { socket } = req
    const before = socket.bytesWritten
    res.on('close', () => (answer.written = socket.bytesWritten - before))
    await handle(req, res)
    answer.handled = true
  })
  return { port: await listening(t, server), seen, listening: server }
}

async function stack(t, options, more) {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t), more)
  return { sim, gate, ...(await serve(t, gate, options)) }
}

/** One answer by node:http. */
async function post(port, body, { agent, request = httpRequest, ...more } = {}) {
  const req = request({ host: '127.0.0.1', port, path: MESSAGES, method: 'POST', agent, ...more })
  req.end(JSON.stringify(body))
  const [res] = await once(req, 'response')
  return { res, bytes: await collect(res) }
}

const LONG = { text: 'é{n} ', count: 400, write_bytes: 701 }
const longText = Array.from({ length: 400 }, (_, n) => `é${n} `).join('')

/** Somebody who wants to see each write. */
function wrapped(_, res) {
  const write = res.write
  res.write = (...args) => write.apply(res, args)
}

test('an answer goes straight to the socket, through res.write where that is wrapped: the same bytes', async (t) => {
  const plain = await stack(t)
  const other = await serve(t, plain.gate, { around: wrapped })
  const [a, b] = [await post(plain.port, ask(LONG, { stream: true })), await post(other.port, ask(LONG, { stream: true }))]
  assert.equal(textOf(events(a.bytes)), longText)
  assert.equal(withoutIds(a.bytes), withoutIds(b.bytes))
  assert.deepEqual(Object.keys(a.res.headers), Object.keys(b.res.headers))
  assert.equal(a.res.headers['transfer-encoding'], 'chunked')
  await until(() => other.seen[0].written > b.bytes.length)
  if (direct) await until(() => plain.seen[0].written > 0 && plain.seen[0].written < 1000, 'only the head to be node’s')
})

test('TLS, HTTP/2, a time-out of the socket and a flush get the whole answer', { timeout: 30_000 }, async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  // A shared key does without a certificate.
  const psk = { psk: Buffer.from('00112233445566778899aabbccddeeff', 'hex'), identity: 'test' }
  const tls = { ciphers: 'PSK', maxVersion: 'TLSv1.2', minVersion: 'TLSv1.2' }
  const https = await serve(t, gate, { create: (on) => createTlsServer({ ...tls, pskCallback: () => psk.psk }, on) })
  const secured = { ...tls, request: tlsRequest, pskCallback: () => psk, checkServerIdentity: () => undefined }
  const timed = await serve(t, gate, {
    create: (on) => Object.assign(createServer(on), { timeout: 60_000 }),
  })
  const flushes = []
  const flushed = await serve(t, gate, { around: (_, res) => (res.flush = () => flushes.push(1)) })
  for (const [what, { port, seen }, more] of [
    ['TLS', https, secured],
    ['a time-out', timed, {}],
    ['a flush', flushed, {}],
  ]) {
    const { bytes } = await post(port, ask(LONG, { stream: true }), more)
    assert.equal(textOf(events(bytes)), longText, what)
    await until(() => seen[0].written > bytes.length, what)
  }
  assert.ok(flushes.length > 0)

  const h2 = await serve(t, gate, { create: createHttp2Server })
  const session = connectHttp2(`http://127.0.0.1:${h2.port}`)
  t.after(() => session.destroy())
  const stream = session.request({ ':method': 'POST', ':path': MESSAGES })
  stream.end(JSON.stringify(ask(LONG, { stream: true })))
  assert.equal(textOf(events(await collect(stream))), longText)
})

test('one connection: answer after answer, also asked for together, and an HTTP/1.0 client', async (t) => {
  const { port, seen } = await stack(t)
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  t.after(() => agent.destroy())
  for (let n = 0; n < 3; n++) {
    const { bytes } = await post(port, ask({ text: `answer ${n}` }, { stream: true }), { agent })
    assert.equal(textOf(events(bytes)), `answer ${n}`)
  }
  assert.equal(new Set(seen.map(({ res }) => res.req.socket)).size, 1, 'one connection')

  const raw = (version, body, more = '') =>
    `POST ${MESSAGES} HTTP/${version}\r\nhost: localhost\r\ncontent-length: ${Buffer.byteLength(body)}\r\n${more}\r\n${body}`
  const say = async (text) => {
    const socket = connect(port, '127.0.0.1')
    socket.write(text)
    return (await collect(socket)).toString()
  }
  // The first is slow: the second's answer must wait for its end.
  const slow = raw('1.1', JSON.stringify(ask({ text: 's{n} ', count: 5, gap_ms: 60 }, { stream: true })))
  const fast = raw('1.1', JSON.stringify(ask({ text: 'fast' }, { stream: true })), 'connection: close\r\n')
  const both = await say(slow + fast)
  assert.equal(both.match(/HTTP\/1\.1 200 OK/g).length, 2)
  assert.ok(both.indexOf('"s4 "') < both.indexOf('"fast"'))
  assert.ok(both.indexOf('message_stop') < both.lastIndexOf('HTTP/1.1 200 OK'))
  assert.match(both, /\r\n0\r\n\r\nHTTP\/1\.1 200 OK[^]*\r\n0\r\n\r\n$/)

  const old = await say(raw('1.0', JSON.stringify(ask(LONG, { stream: true }))))
  const [head, body] = old.split('\r\n\r\n')
  assert.doesNotMatch(head, /transfer-encoding/i)
  assert.equal(textOf(events(Buffer.from(body))), longText)
})

test('an answer that ends its connection says nothing of that over HTTP/2 (N15)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t), { maxRequestBody: 1000 })
  const warnings = []
  const warn = (warning) => warnings.push(warning.message)
  process.on('warning', warn)
  t.after(() => process.off('warning', warn))
  const { port } = await serve(t, gate, { create: createHttp2Server })
  const session = connectHttp2(`http://127.0.0.1:${port}`)
  t.after(() => session.destroy())
  const stream = session.request({ ':method': 'POST', ':path': MESSAGES })
  stream.end('x'.repeat(5000))
  const [headers] = await once(stream, 'response')
  assert.equal(headers[':status'], 413)
  assert.equal(JSON.parse(await collect(stream)).error.type, 'request_too_large')
  assert.deepEqual(warnings, [])
})

test('a connection that closes takes along the answers that wait behind another one (N17)', { timeout: 30_000 }, async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t), { maxInflightPerAccount: 100 })
  const warnings = []
  const warn = (warning) => warnings.push(warning.message)
  process.on('warning', warn)
  t.after(() => process.off('warning', warn))
  const { port, seen } = await serve(t, gate)
  const client = connect(port, '127.0.0.1')
  t.after(() => client.destroy())
  // More than 64 KiB each: nobody takes the bytes of those that wait.
  const body = JSON.stringify(ask({ text: 'x'.repeat(1000), pieces: 2, count: 1000, gap_ms: 5 }, { stream: true }))
  const request = `POST ${MESSAGES} HTTP/1.1\r\nhost: localhost\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
  client.write(request.repeat(15))
  client.resume()
  await until(async () => (await sim.stats()).streams.open === 15, '15 streams')
  client.destroy()
  await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be closed')
  await until(() => seen.every(({ handled }) => handled), 'the handlers to end')
  assert.equal(gate.accounts()[0].inFlight, 0)
  assert.deepEqual(warnings, [])
})

test('a thread that ends takes its answers along: none looks whole (N50)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t)
  const worker = new Worker(
    `const { createServer } = require('node:http')
     const { parentPort, workerData } = require('node:worker_threads')
     const { KiroGateway } = require(workerData.main)
     KiroGateway.connect(workerData.options).then((gate) => {
       const server = createServer(gate.handler()).listen(0, '127.0.0.1', () => parentPort.postMessage(server.address().port))
     })`,
    {
      eval: true,
      workerData: { main: new URL('../lib/main.js', import.meta.url).pathname, options: { env: {}, ...pool.options, ...sim.options } },
    },
  )
  const [port] = await once(worker, 'message')
  const broken = Array.from({ length: 5 }, () =>
    assert.rejects(post(port, ask({ text: '{n} ', count: 1000, gap_ms: 5 }, { stream: true }))),
  )
  for (const each of broken) each.catch(() => {})
  await until(async () => (await sim.stats()).streams.open === 5)
  await sleep(50)
  await worker.terminate()
  await Promise.all(broken)
  await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be dropped', 1000)
})

for (const [way, around] of [
  ['the socket', undefined],
  ['res.write', wrapped],
]) {
  test(`by ${way}, upstream stands still for a client that doesn't read, and is dropped with it (N16, N17)`, async (t) => {
    const { sim, port, seen, gate } = await stack(t, { around })
    await leave(sim, { port }, (count) => until(() => seen[count - 1].handled))
    assert.deepEqual(gate.health().accounts, { total: 1, healthy: 1 })
  })

  test(`by ${way}, a client that pauses gets everything (N16)`, async (t) => {
    const { port } = await stack(t, { around })
    const piece = `${'y'.repeat(4000)}{n}`
    const req = httpRequest({ port, path: MESSAGES, method: 'POST' })
    req.end(JSON.stringify(ask({ text: piece, count: 3000 }, { stream: true })))
    const [res] = await once(req, 'response')
    await sleep(500)
    const text = textOf(events(await collect(res)))
    assert.ok(text === Array.from({ length: 3000 }, (_, n) => piece.replace('{n}', n)).join(''))
  })

  test(`by ${way}, an answer that the program destroys takes its upstream along`, async (t) => {
    const { sim, port, seen } = await stack(t, { around })
    const answer = post(port, ask({ text: '{n} ', count: 1000, gap_ms: 20 }, { stream: true }))
    const broken = assert.rejects(answer)
    broken.catch(() => {})
    await until(() => seen[0]?.res.headersSent)
    await sleep(50)
    seen[0].res.destroy()
    await broken
    await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be dropped', 1000)
    await until(() => seen[0].handled)
  })

  test(`by ${way}, closing the gateway ends a stream with its error, also one that nobody reads yet`, async (t) => {
    const { sim, port, gate } = await stack(t, { around })
    const reading = post(port, ask({ text: '{n} ', count: 1000, gap_ms: 20 }, { stream: true }))
    const body = JSON.stringify(ask({ text: `${'x'.repeat(4000)}{n}`, count: 50_000 }, { stream: true }))
    const unread = connect(port, '127.0.0.1')
    unread.pause()
    const head = `POST ${MESSAGES} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: ${Buffer.byteLength(body)}`
    unread.write(`${head}\r\n\r\n${body}`)
    await until(async () => (await sim.stats()).streams.open === 2)
    await sleep(300)
    const closing = gate.close({ graceMs: 100 })
    const list = events((await reading).bytes)
    assert.equal(list.at(-1).type, 'error')
    await sleep(200)
    // It comes late, and still sees how its answer ended.
    const rest = (await collect(unread)).toString()
    await closing
    assert.equal((await sim.stats()).streams.open, 0)
    assert.ok(rest.includes('\nevent: error\n'), rest.slice(-300))
    assert.ok(!rest.includes('message_stop'))
  })
}
