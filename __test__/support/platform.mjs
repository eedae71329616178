// What the package must do in every runtime and on every platform (scripts/test-platforms.mjs runs this in a folder where it
// is installed): one line a step, `ok` or `FAILED`. After `leaving` nothing keeps the process, although a gateway is open.
//
//   node platform.mjs [streams at once] [factor for every time limit]
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import process from 'node:process'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { KiroError, KiroGateway } from 'kiro-messages'

const [STREAMS, SLOW] = [process.argv[2] ?? '200', process.argv[3] ?? '1'].map(Number)
const SECOND = 1000 * SLOW

const ask = (scenario) => ({
  model: 'claude-sonnet-4-5',
  max_tokens: 20_000,
  messages: [{ role: 'user', content: `[[sim ${JSON.stringify(scenario)}]]` }],
})
const endless = ask({ text: '{n} ', count: 100_000, gap_ms: 20 })
const textOf = (sse) =>
  [...sse.matchAll(/^data: (\{"type":"content_block_delta".*)$/gm)].map(([, data]) => JSON.parse(data).delta.text).join('')
const whole = (count) => Array.from({ length: count }, (_, n) => `${n} é漢😀 `).join('')
const long = (count) => ask({ count, text: '{n} é漢😀 ' })

async function read(stream) {
  const parts = []
  for await (const bytes of stream) parts.push(bytes)
  return Buffer.concat(parts).toString('utf8')
}

const post = (url, body, signal) => fetch(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body), signal })

/** Ends when nothing is in flight any more, as `/metrics` has it. */
async function idle(gateway) {
  const streams = () => Number(/^kiro_streams_open(?:\{[^}]*\})? (\d+)/m.exec(gateway.metrics())?.[1] ?? 0)
  for (const end = Date.now() + 5 * SECOND; streams() > 0; await sleep(20)) assert.ok(Date.now() < end, `${streams()} streams are still open`)
}

/** A server, over HTTP: an answer as a stream and as one message, and a client that goes away. */
async function serves(gateway, url) {
  const streamed = await post(url, { ...long(200), stream: true })
  assert.equal(streamed.headers.get('content-type').split(';')[0], 'text/event-stream')
  assert.equal(textOf(await streamed.text()), whole(200))
  const { content } = await (await post(url, ask({ text: 'as one' }))).json()
  assert.equal(content[0].text, 'as one')
  const wrong = await post(url, {})
  assert.equal(wrong.status, 400)
  assert.equal((await wrong.json()).error.type, 'invalid_request_error')
  const abort = new AbortController()
  const left = await post(url, { ...endless, stream: true }, abort.signal)
  const reader = left.body.getReader()
  await reader.read()
  abort.abort()
  await reader.read().catch(() => {})
  await idle(gateway)
}

const steps = {
  async connect() {
    await using(async (gateway) => {
      assert.ok(gateway.listModels().length > 0)
      const message = await gateway.createMessage(ask({ text: 'é漢😀' }))
      assert.equal(message.content[0].text, 'é漢😀')
      assert.ok((await gateway.countTokens(ask({ text: 'x' }))).input_tokens > 0)
      await assert.rejects(gateway.createMessage('{}'), (error) => error instanceof KiroError && error.code === 'KIRO_INVALID_REQUEST')
    })
  },

  async stream() {
    await using(async (gateway) => {
      const stream = await gateway.streamMessages(long(1000))
      assert.equal(textOf(await read(stream)), whole(1000))
      assert.equal((await stream.summary).outcome, 'complete')
      let text = ''
      for await (const event of gateway.streamEvents(long(1000))) text += event.delta?.text ?? ''
      assert.equal(text, whole(1000))
    })
  },

  async abort() {
    await using(async (gateway) => {
      const abort = new AbortController()
      const stream = await gateway.streamMessages(endless, { signal: abort.signal })
      await stream.next()
      const waiting = read(stream)
      const at = Date.now()
      abort.abort(new Error('mine'))
      await assert.rejects(waiting, (error) => error.name === 'AbortError' && error.cause.message === 'mine')
      for await (const _ of await gateway.streamMessages(endless)) break
      await idle(gateway)
      assert.ok(Date.now() - at < SECOND, `${Date.now() - at} ms`)
    })
  },

  async 'handler()'() {
    await using(async (gateway) => {
      const server = createServer(gateway.handler())
      server.listen(0, '127.0.0.1')
      await once(server, 'listening')
      await serves(gateway, `http://127.0.0.1:${server.address().port}/v1/messages`)
      server.closeAllConnections()
      server.close()
    })
  },

  async 'listen()'() {
    await using(async (gateway) => {
      const server = await gateway.listen({ port: 0 })
      await serves(gateway, `http://127.0.0.1:${server.port}/v1/messages`)
      await server.close(0)
    })
  },

  async [`${STREAMS} streams`]() {
    await using(async (gateway) => {
      const body = ask({ count: 50, text: '{n} é漢😀 ', gap_ms: 5 })
      const texts = await Promise.all(Array.from({ length: STREAMS }, async () => textOf(await read(await gateway.streamMessages(body)))))
      assert.deepEqual([...new Set(texts)], [whole(50)])
      await idle(gateway)
    })
  },

  async 'worker thread'() {
    const program = `
      import { parentPort } from 'node:worker_threads'
      import { KiroGateway } from 'kiro-messages'
      const gateway = await KiroGateway.connect({ env: {}, upstream: 'simulator' })
      let text = ''
      for await (const event of gateway.streamEvents(${JSON.stringify(long(100))})) text += event.delta?.text ?? ''
      await gateway.close()
      parentPort.postMessage(text)`
    const { writeFileSync } = await import('node:fs')
    const file = new URL('worker.mjs', import.meta.url)
    writeFileSync(file, program)
    const worker = new Worker(file)
    const text = await new Promise((resolve, reject) => {
      worker.once('message', resolve)
      worker.once('error', reject)
      worker.once('exit', (code) => reject(new Error(`the thread ended with ${code} before its message`)))
    })
    assert.equal(text, whole(100))
    await worker.terminate()
  },
}

/** A gateway for a step. */
async function using(use) {
  const gateway = await KiroGateway.connect({ env: {}, upstream: 'simulator' })
  try {
    await use(gateway)
  } finally {
    await gateway.close({ graceMs: 0 })
  }
}

let failed = false
for (const [name, step] of Object.entries(steps)) {
  const began = Date.now()
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('it took too long')), 30 * SECOND)
  })
  try {
    await Promise.race([step(), late])
    console.log(`ok ${name} (${Date.now() - began} ms)`)
  } catch (error) {
    failed = true
    console.log(`FAILED ${name}: ${String(error?.stack ?? error).replaceAll('\n', '\n  ')}`)
  }
  clearTimeout(timer)
}
const open = await KiroGateway.connect({ env: {}, upstream: 'simulator' })
await open.createMessage(ask({ text: 'x' }))
await open.streamMessages(endless)
process.exitCode = failed ? 1 : 0
console.log('leaving')
