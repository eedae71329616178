// Life and death of what the addon makes (cases 32, 35; N31, N50, N54, N55).
//
// `npm run soak` runs the leak tests at their full size, on the release build (scripts/soak.mjs).
import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { createServer, request as httpRequest } from 'node:http'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { KiroGateway } from 'kiro-messages'
import { accounts, ask, collect, events, gateway, redis, redisAccounts, simulator, sleep, textOf, until } from './support/stack.mjs'

const MAIN = new URL('../lib/main.js', import.meta.url).pathname
const MIB = 1024 * 1024
const SOAK = process.env.KIRO_TEST_STREAMS !== undefined
const STREAMS = Number(process.env.KIRO_TEST_STREAMS ?? 2000)
const ENDLESS = ask({ text: '{n} ', count: 1_000_000, gap_ms: 20 })
const SLOW = ask({ text: '{n} ', count: 1_000_000, gap_ms: 1000 })

/** Resident memory when garbage is gone. */
async function resident() {
  for (let n = 0; n < 4; n++) {
    gc()
    await sleep(20)
  }
  return process.memoryUsage().rss
}

/**
 * By how much a round lets the resident memory grow. A leak does it again in every round, a heap that warms up once: Node.js
 * 22 takes 7 MiB for its first hundred empty threads and 1 for the next. So a round over the limit may be repeated twice.
 */
async function growth(limit, round) {
  let grown = Infinity
  for (let n = 0; n < 3 && grown >= limit; n++) {
    const before = await resident()
    await round()
    grown = (await resident()) - before
  }
  return grown
}

const noStream = (sim, what, ms = 5000) => until(async () => (await sim.stats()).streams.open === 0, what, ms)

test('100 threads that stream are terminated; the main thread streams on (case 32)', { timeout: 120_000 }, async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t)
  // Without the connections that outlive the requests they were made for.
  const gate = await gateway(t, sim, pool, { upstreamKeepIdleMs: 0, usageIntervalMs: 0 })
  const program = `
    const { parentPort, workerData } = require('node:worker_threads')
    const { KiroGateway } = require(workerData.main)
    KiroGateway.connect(workerData.options).then(async (gateway) => {
      const stream = await gateway.streamMessages(workerData.request)
      let count = 0
      for await (const bytes of stream) if (count++ === 1) parentPort.postMessage(bytes)
    })`
  const workerData = { main: MAIN, options: { env: {}, ...pool.options, ...sim.options }, request: ENDLESS }
  const one = async () => {
    const worker = new Worker(program, { eval: true, workerData })
    const [bytes] = await once(worker, 'message')
    await worker.terminate()
    return bytes
  }
  const ours = await gate.streamMessages(ask({ text: '{n} ', count: 200, gap_ms: 50 }))
  const reading = collect(ours)
  // The first of them bring the thread stacks and heaps that are used again.
  for (let n = 0; n < 3; n++) await Promise.all(Array.from({ length: 4 }, one))
  let kept
  const grown = await growth(20 * MIB, async () => {
    for (let n = 0; n < 22; n++) [kept] = await Promise.all(Array.from({ length: 4 }, one))
  })
  assert.match(Buffer.from(kept).toString(), /^event: /)
  assert.equal(textOf(events(await reading)), Array.from({ length: 200 }, (_, n) => `${n} `).join(''))
  t.diagnostic(`resident memory grew by ${(grown / MIB).toFixed(1)} MiB over 88 threads`)
  assert.ok(grown < 20 * MIB, `${grown / MIB} MiB`)
  await noStream(sim, 'the threads to drop upstream', 1000)
  // A connection of a pool goes with its gateway, whose last task may take a moment. One of ours is that on which the
  // account was asked for its models.
  await until(async () => (await sim.stats()).connections.open <= 4, 'their connections to close', 3000)
})

test(`${STREAMS} streams, ended and dropped in every way: memory and handles stay flat (case 35)`, { timeout: 3_600_000 }, async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const short = JSON.stringify(ask({ text: 'short' }))
  const open = JSON.stringify(SLOW)
  const piped = createServer(gate.handler()).listen(0, '127.0.0.1')
  await once(piped, 'listening')
  t.after(() => piped.close())
  const { signal } = new AbortController()
  const ways = [
    async () => void (await collect(await gate.streamMessages(short))),
    async () => void (await gate.createMessage(short, { signal })),
    async () => {
      for await (const _ of await gate.streamMessages(open)) break
    },
    async () => (await gate.streamMessages(open)).cancel(),
    // Nobody holds these any more: garbage collection ends them.
    async () => void (await gate.streamMessages(open, { signal })),
    async () => void (await (await gate.streamMessages(open)).next()),
    async () => void (await gate.streamEvents(open).next()),
    async () => {
      for await (const _ of gate.streamEvents(short));
    },
    async () => {
      const abort = new AbortController()
      const stream = await gate.streamMessages(open, { signal: abort.signal })
      const next = stream.next()
      abort.abort()
      await next.catch(() => {})
    },
    async () => {
      const abort = new AbortController()
      const call = gate.createMessage(open, { signal: abort.signal })
      setImmediate(() => abort.abort())
      await call.catch(() => {})
    },
    async () => {
      const { port } = piped.address()
      const req = httpRequest({ port, path: '/v1/messages', method: 'POST', agent: false })
      req.on('error', () => {}).end(JSON.stringify({ ...JSON.parse(open), stream: true }))
      const [res] = await once(req, 'response')
      res.on('error', () => {})
      res.destroy()
    },
  ]
  let done = 0
  const run = async (until) => {
    await Promise.all(
      Array.from({ length: 20 }, async () => {
        while (done < until) {
          await ways[done++ % ways.length]()
          if (done % 200 === 0) gc()
        }
      }),
    )
    gc()
    await sleep(50)
    gc()
    await noStream(sim, 'all streams to end', 20_000)
  }
  const fds = () => readdirSync('/proc/self/fd').length
  await run(Math.min(1000, STREAMS / 2))
  const first = { fds: fds(), handles: process.getActiveResourcesInfo().length }
  const size = STREAMS - done
  const grown = (await growth(10 * MIB, () => run(done + size))) / MIB
  const last = { fds: fds(), handles: process.getActiveResourcesInfo().length }
  t.diagnostic(`resident memory after ${STREAMS}: ${grown.toFixed(1)} MiB more than after the first 1,000`)
  assert.ok(grown < 10, `${grown} MiB`)
  assert.ok(last.fds <= first.fds + 25, `file descriptors ${first.fds} → ${last.fds}`)
  assert.ok(last.handles <= first.handles + 25, `handles ${first.handles} → ${last.handles}`)
  const { accounts: counts } = gate.health()
  assert.deepEqual(counts, { total: 1, healthy: 1 })
  assert.equal(gate.accounts()[0].inFlight, 0)
})

test('1,000 streams dropped unread are closed by garbage collection (case 35)', { timeout: 120_000 }, async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  await (async () => {
    const open = JSON.stringify(ask({ text: '{n} ', count: 1_000_000, gap_ms: 500 }))
    for (let n = 0; n < 10; n++) await Promise.all(Array.from({ length: 100 }, () => gate.streamMessages(open)))
  })()
  assert.ok((await sim.stats()).streams.open_max > 100)
  await until(async () => {
    gc()
    return (await sim.stats()).streams.open === 0
  }, 'garbage collection to close 1,000 streams', 20_000)
  assert.equal(gate.accounts()[0].inFlight, 0)
})

const UNREAD = SOAK ? 1000 : 300

test(`${UNREAD} streams that nobody reads hold 64 KiB each, and no more (N31)`, { timeout: 120_000 }, async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  // 160 KB a stream: what isn't taken waits in the sockets between.
  const offer = JSON.stringify(ask({ text: `${'x'.repeat(2000)}{n}`, count: 80 }))
  const before = await resident()
  const streams = []
  for (let n = 0; n < UNREAD / 50; n++) {
    streams.push(...(await Promise.all(Array.from({ length: 50 }, () => gate.streamMessages(offer)))))
  }
  let last = -1
  await until(
    async () => {
      await sleep(300)
      gc() // batches that were copied from
      const { arrayBuffers } = process.memoryUsage()
      const still = arrayBuffers === last
      last = arrayBuffers
      return still
    },
    'the queues to fill',
    60_000,
  )
  const grown = (await resident()) - before
  t.diagnostic(`Buffers ${(last / 1024 / UNREAD).toFixed(1)} KiB, resident memory ${(grown / 1024 / UNREAD).toFixed(1)} KiB a stream`)
  // 64 KiB and the chunk that went over it, in the queue; beside it what a stream costs.
  assert.ok(last > UNREAD * 40 * 1024, `${last / 1024} KiB in Buffers: they are read ahead`)
  assert.ok(last < UNREAD * 100 * 1024, `${last / 1024} KiB in Buffers`)
  assert.ok(grown < UNREAD * 300 * 1024, `${grown / 1024} KiB resident`)
  // Late readers get the whole of it.
  for (const stream of streams.splice(0, 20)) assert.equal(textOf(events(await collect(stream))).length, 80 * 2000 + 150)
  for (const stream of streams) stream.cancel()
  await noStream(sim, 'all to be dropped', 20_000)
})

test('a gateway that nobody holds closes, whatever listens on it; its streams end first (N54)', async (t) => {
  const sim = await simulator(t)
  const server = await redis(t)
  const pool = await redisAccounts(t, server)
  const client = await server.client(t)
  const connected = async () => Number(/connected_clients:(\d+)/.exec(await client('INFO', 'clients'))[1])
  const before = await connected()
  const stream = await (async () => {
    const gate = await KiroGateway.connect({ env: {}, ...pool.options, ...sim.options, recordOutcome: () => void gate })
    gate.on('tokenRefreshed', () => gate.health()).on('storeLost', () => gate.health())
    return gate.streamMessages(ask({ text: '{n} ', count: 10, gap_ms: 50 }))
  })()
  gc()
  await sleep(50)
  gc()
  assert.ok((await connected()) > before)
  assert.equal(textOf(events(await collect(stream))), Array.from({ length: 10 }, (_, n) => `${n} `).join(''))
  await until(async () => {
    gc()
    return (await connected()) === before
  }, 'its connections to Redis to close')
})

test('Buffers are copies that outlive stream and gateway, and no external memory of ours (N54)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const buffers = []
  for (const text of ['small', 'large '.repeat(20_000)]) {
    for await (const buffer of await gate.streamMessages(ask({ text }))) buffers.push(buffer)
  }
  const texts = buffers.map(String)
  await gate.close({ graceMs: 0 })
  for (let n = 0; n < 5; n++) gc()
  assert.deepEqual(buffers.map(String), texts)
  // What Electron forbids, memory that V8 didn't allocate, can't be transferred.
  for (const { buffer } of buffers) {
    if (buffer.byteLength > 0) assert.doesNotThrow(() => structuredClone(buffer, { transfer: [buffer] }))
  }
})

test('transferring a Buffer to another thread takes no other Buffer along (N54)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const { port1, port2 } = new MessageChannel()
  t.after(() => port1.close())
  port2.start()
  const text = { text: '{n} ', count: 30, gap_ms: 5 }
  const [giver, keeper] = await Promise.all([ask(text), ask(text)].map((request) => gate.streamMessages(request)))
  for await (const bytes of giver) {
    try {
      port1.postMessage(bytes, [bytes.buffer])
    } catch (error) {
      // Where memory is shared, newer versions refuse what older ones copy.
      assert.equal(error.name, 'DataCloneError')
    }
    // So that the next batch has something of both.
    const busy = performance.now() + 20
    while (performance.now() < busy);
  }
  assert.equal(textOf(events(await collect(keeper))), Array.from({ length: 30 }, (_, n) => `${n} `).join(''))
})

test('child_process.fork: each process has its own gateway (N55)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t)
  const gate = await gateway(t, sim, pool)
  const stream = await gate.streamMessages(ask({ text: '{n} ', count: 20, gap_ms: 50 }))
  const options = { env: {}, ...pool.options, ...sim.options }
  const child = fork(new URL('./support/child.mjs', import.meta.url), [JSON.stringify({ options, request: ask({ text: 'forked' }) })])
  const [said] = await once(child, 'message')
  assert.equal(said, 'forked')
  const [code] = await once(child, 'exit')
  assert.equal(code, 0)
  assert.equal(events(await collect(stream)).at(-1).type, 'message_stop')
})

test('cluster: workers share a port, each with its own gateway (N55)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t)
  const options = { env: {}, ...pool.options, ...sim.options }
  const primary = fork(new URL('./support/cluster.mjs', import.meta.url), [JSON.stringify({ options })])
  t.after(() => primary.kill('SIGKILL'))
  const [port] = await once(primary, 'message')
  const pids = new Set()
  for (let n = 0; n < 6; n++) {
    const answer = await fetch(`http://127.0.0.1:${port}/v1/messages`, {
      method: 'POST',
      headers: { connection: 'close' },
      body: JSON.stringify(ask({ text: 'from a worker' })),
    })
    pids.add(answer.headers.get('x-pid'))
    assert.equal((await answer.json()).content[0].text, 'from a worker')
  }
  assert.equal(pids.size, 2)
  primary.send('end')
  const [code] = await once(primary, 'exit')
  assert.equal(code, 0)
})
