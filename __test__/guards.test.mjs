// What the server owes itself against its clients, in listen() and handler() as in kiro-server.
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer, request as httpRequest } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { connect } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { connect as connectTls } from 'node:tls'
import { accounts, ask, folder, gateway, listening, rejection, simulator, sleep, until } from './support/stack.mjs'

const MESSAGES = '/v1/messages'

/** A server around a gateway's handler. */
async function serve(t, gate, create = createServer) {
  const handle = gate.handler()
  return listening(t, create((req, res) => handle(req, res)))
}

/** The ports of a gateway by either way. */
async function both(t, options) {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t), options)
  const server = await gate.listen({ port: 0, host: '127.0.0.1' })
  t.after(() => server.close(0))
  return { sim, gate, ports: { 'listen()': server.port, 'handler()': await serve(t, gate) } }
}

/** Sends all of it, and only then looks whether there is an answer, as Python's http.client does. */
function sendAll(port, key, bytes) {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1')
    let said = ''
    const piece = Buffer.alloc(256 * 1024, 32)
    socket.pause()
    socket.on('error', reject)
    socket.on('data', (chunk) => {
      said += chunk
      if (said.includes('"request_id"')) resolve(said)
    })
    socket.on('end', () => resolve(said))
    socket.write(`POST ${MESSAGES} HTTP/1.1\r\nhost: localhost\r\nx-api-key: ${key}\r\ncontent-length: ${bytes}\r\n\r\n`)
    const more = () => {
      if (bytes <= 0) return socket.resume()
      bytes -= piece.length
      socket.write(piece, more)
    }
    more()
  })
}

test('early answers to big uploads arrive', { timeout: 120_000 }, async (t) => {
  const { ports } = await both(t, { apiKey: 'right' })
  const body = Buffer.alloc(28 * 1024 * 1024, 32)
  for (const [way, port] of Object.entries(ports)) {
    const url = `http://127.0.0.1:${port}${MESSAGES}`
    for (let n = 0; n < 20; n++) {
      const answer = await fetch(url, { method: 'POST', headers: { 'x-api-key': 'wrong' }, body })
      assert.equal((await answer.json()).error.type, 'authentication_error', way)
    }
    for (const [key, bytes, status] of [
      ['wrong', body.length, 401],
      ['right', 40 * 1024 * 1024, 413],
    ]) {
      const said = await sendAll(port, key, bytes)
      assert.equal(said.slice(9, 12), String(status), `${way}: ${said}`)
    }
  }
})

test('named keys are right on both ways, and have their limits (R108, M88)', async (t) => {
  const sha256 = (key) => createHash('sha256').update(key).digest('hex')
  const apiKeysFile = join(folder(), 'keys.json')
  const keys = [{ name: 'a', sha256: sha256('k-a'), rpm: 2 }, { name: 'b', sha256: sha256('k-b'), enabled: false }]
  writeFileSync(apiKeysFile, JSON.stringify({ keys }))
  const { ports } = await both(t, { apiKey: 'single', apiKeysFile })
  const statuses = async (port, key) => {
    const url = `http://127.0.0.1:${port}${MESSAGES}`
    const answer = await fetch(url, { method: 'POST', headers: { 'x-api-key': key }, body: JSON.stringify(ask()) })
    return [answer.status, (await answer.json()).error?.type]
  }
  // The limit is the key's, whatever way it came.
  for (const port of Object.values(ports)) {
    assert.deepEqual(await statuses(port, 'k-a'), [200, undefined])
    assert.deepEqual(await statuses(port, 'single'), [200, undefined])
    assert.deepEqual(await statuses(port, 'k-b'), [401, 'authentication_error'])
  }
  for (const port of Object.values(ports)) assert.deepEqual(await statuses(port, 'k-a'), [429, 'rate_limit_error'])
  const broken = await rejection(gateway(t, await simulator(t), accounts(t), { apiKeysFile: '/nowhere/keys.json' }))
  assert.equal(broken.code, 'KIRO_CONFIG')
  assert.match(broken.message, /KIRO_API_KEYS_FILE: \/nowhere\/keys.json: /)
})

test('without a key other sites are not served, and nobody gets CORS headers', async (t) => {
  const { ports } = await both(t)
  for (const [way, port] of Object.entries(ports)) {
    const get = async (path, headers) => {
      const req = httpRequest({ host: '127.0.0.1', port, path, headers }).end()
      const [res] = await once(req, 'response')
      res.resume()
      await once(res, 'end')
      const cors = Object.keys(res.headers).filter((name) => name.startsWith('access-control-'))
      assert.deepEqual(cors, [], `${way} ${path}`)
      return res.statusCode
    }
    for (const path of ['/health', '/metrics', '/status', '/v1/models']) {
      const what = `${way} ${path}`
      assert.equal(await get(path, { host: 'localhost' }), 200, what)
      assert.equal(await get(path, { host: 'localhost', origin: 'https://example.com' }), 401, what)
      assert.equal(await get(path, { host: 'rebound.example' }), 401, what)
      assert.equal(await get(path, { host: 'localhost', 'sec-fetch-site': 'cross-site' }), 401, what)
    }
  }
})

test('a client that takes no byte of a stream is dropped, a slow one is not', { timeout: 120_000 }, async (t) => {
  const { gate, ports } = await both(t, { writeTimeoutMs: 1500 })
  const psk = Buffer.from('00112233445566778899aabbccddeeff', 'hex')
  const secret = { ciphers: 'PSK', maxVersion: 'TLSv1.2', minVersion: 'TLSv1.2' }
  const tls = await serve(t, gate, (on) => createTlsServer({ ...secret, pskCallback: () => psk }, on))
  const open = {
    ...Object.fromEntries(Object.entries(ports).map(([way, port]) => [way, () => connect(port, '127.0.0.1')])),
    'handler() over TLS': () =>
      connectTls({ ...secret, port: tls, host: '127.0.0.1', pskCallback: () => ({ psk, identity: 'a' }), checkServerIdentity: () => undefined }),
  }
  const body = JSON.stringify(ask({ text: 'x'.repeat(2000), count: 40_000 }, { stream: true }))
  const head = `POST ${MESSAGES} HTTP/1.1\r\nhost: localhost\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n`
  const streams = async () => Number(/^kiro_streams_open (\d+)/m.exec(gate.metrics())[1])
  for (const [way, start] of Object.entries(open)) {
    const silent = start()
    silent.on('error', () => {})
    silent.write(head + body)
    silent.pause()
    await until(async () => (await streams()) === 1, `${way}: a stream`)
    await until(async () => (await streams()) === 0, `${way}: nobody reads`, 15_000)
    silent.destroy()

    const slow = start()
    let closed = false
    slow.on('error', () => {})
    slow.on('close', () => (closed = true))
    slow.write(head + body)
    const began = Date.now()
    // Node.js takes 64 KiB at a time.
    while (Date.now() - began < 5000) {
      for (let n = 0; n < 8; n++) if (slow.read() === null) await once(slow, 'readable')
      await sleep(200)
    }
    assert.equal(closed, false, `${way}: a slow reader was cut`)
    assert.equal(await streams(), 1, way)
    slow.destroy()
    await until(async () => (await streams()) === 0, `${way}: it is gone`)
  }
})
