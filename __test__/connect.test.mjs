// Connecting and closing (cases 2 and 34).
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { KiroError, KiroGateway } from 'kiro-messages'
import {
  accounts,
  ask,
  collect,
  events,
  freePort,
  gateway,
  redis,
  redisAccounts,
  simulator,
  sleep,
  textOf,
  until,
} from './support/stack.mjs'

const refused = (options) =>
  KiroGateway.connect(options).then(
    () => assert.fail('did not reject'),
    (error) => error,
  )

test('a mistake in the options is KIRO_CONFIG and named (case 2)', async () => {
  const mistakes = [
    [{ redisUlr: 'redis://x' }, /^redisUlr: .*redisUrl/],
    [{ strategy: 'random' }, /strategy.*random.*round-robin/],
    [{ maxConns: 0 }, /maxConns.*0/],
    [{ healthCooldownMs: -5 }, /healthCooldownMs/],
    [{ env: { KIRO_MAX_CONNS: 'many' } }, /KIRO_MAX_CONNS.*many/],
    // Each of these has a text too, and `null` would be a client key like any other.
    [{ apiKey: null }, /^apiKey: null /],
    [{ apiKey: {} }, /^apiKey: .*object/],
    [{ apiKey: ['key'] }, /^apiKey: .*object/],
    [{ apiKey: () => 'key' }, /^apiKey: .*function/],
    [{ redisKeyPrefix: Symbol('x') }, /^redisKeyPrefix: .*symbol/],
  ]
  for (const [options, message] of mistakes) {
    const error = await refused({ env: {}, ...options })
    assert.ok(error instanceof KiroError)
    assert.equal(error.code, 'KIRO_CONFIG')
    assert.equal(error.status, 500)
    assert.match(error.message, message)
  }
  assert.ok((await refused(5)) instanceof TypeError)
  const error = await refused({ upstream: 'simulator', env: { KIRO_API_KEY: null } })
  assert.ok(error instanceof TypeError && error.message.startsWith('options.env.KIRO_API_KEY'), String(error))
  assert.throws(() => new KiroGateway(), TypeError)
})

test('Redis down: KIRO_STORE_UNAVAILABLE after storeWaitMs, 5 s unless said (case 2)', async () => {
  const redisUrl = `redis://127.0.0.1:${await freePort()}`
  const slow = (async () => {
    const began = performance.now()
    return [await refused({ env: {}, redisUrl }), performance.now() - began]
  })()
  const began = performance.now()
  const soon = await refused({ env: {}, redisUrl, storeWaitMs: 200 })
  assert.equal(soon.code, 'KIRO_STORE_UNAVAILABLE')
  assert.equal(soon.status, 503)
  assert.equal(soon.retryable, true)
  assert.ok(Math.abs(performance.now() - began - 200) < 300)
  const [error, took] = await slow
  assert.equal(error.code, 'KIRO_STORE_UNAVAILABLE')
  assert.ok(Math.abs(took - 5000) < 500, `${took} ms`)
})

test('storeWaitMs 0 resolves at once and serves within 1 s of Redis being there (case 2)', async (t) => {
  const sim = await simulator(t)
  const port = await freePort()
  const began = performance.now()
  const store = { redisUrl: `redis://127.0.0.1:${port}`, redisKeyPrefix: 'p:' }
  // The accounts come a moment after Redis: a snapshot may fall between, and the next one must not be 5 s away.
  const gate = await gateway(t, sim, { options: store }, { storeWaitMs: 0, accountCacheTtlMs: 200 })
  assert.ok(performance.now() - began < 500)
  const early = await gate.createMessage(ask()).catch((error) => error)
  assert.equal(early.code, 'KIRO_STORE_UNAVAILABLE')
  const server = await redis(t, port)
  const up = performance.now()
  const client = await server.client(t)
  const pool = await redisAccounts(t, server)
  await client('RENAME', `${pool.options.redisKeyPrefix}pools:claude-kiro-oauth`, 'p:pools:claude-kiro-oauth')
  await client(
    'RENAME',
    `${pool.options.redisKeyPrefix}tokens:claude-kiro-oauth:${pool.ids[0]}`,
    `p:tokens:claude-kiro-oauth:${pool.ids[0]}`,
  )
  await until(() => gate.createMessage(ask({ text: 'x' })).then(() => true, () => false), 'the first answer', 3000)
  assert.ok(performance.now() - up < 1500, `${performance.now() - up} ms`)
})

test("upstream: 'simulator' needs no account and no store", async () => {
  const gate = await KiroGateway.connect({ env: {}, upstream: 'simulator' })
  assert.equal(gate.health().upstream, 'simulator')
  const message = await gate.createMessage(ask())
  assert.match(message.content[0].text, /simulated/)
  assert.ok(gate.listModels().some((model) => model.id === 'claude-sonnet-4-5'))
  assert.match(gate.metrics(), /# EOF\n$/)
  await gate.close({ graceMs: 0 })
})

test('close lets streams end, cuts the others, writes the counters, and is idempotent (case 34)', async (t) => {
  const sim = await simulator(t)
  const server = await redis(t)
  const pool = await redisAccounts(t, server)
  const gate = await gateway(t, sim, pool)
  const short = ask({ text: '{n} ', count: 5, gap_ms: 20 })
  const long = ask({ text: '{n} ', count: 1000, gap_ms: 50 })
  const streams = await Promise.all([...Array(5).fill(short), ...Array(4).fill(long)].map((request) => gate.streamMessages(request)))
  // One that nobody reads, with more than a queue holds.
  const unread = await gate.streamMessages(ask({ text: `${'x'.repeat(4000)}{n}`, count: 100_000, gap_ms: 1 }))
  const reading = streams.map(collect)
  const began = performance.now()
  const closing = gate.close({ graceMs: 1000 })
  for (const call of ['streamMessages', 'createMessage', 'countTokens']) {
    const error = await gate[call](short).catch((error) => error)
    assert.equal(error.code, 'KIRO_CLOSED')
    assert.equal(error.status, 503)
  }
  await closing
  assert.ok(performance.now() - began < 4000, `${performance.now() - began} ms`)
  await gate.close()
  const answers = (await Promise.all(reading)).map(events)
  for (const list of answers.slice(0, 5)) {
    assert.equal(textOf(list), '0 1 2 3 4 ')
    assert.equal(list.at(-1).type, 'message_stop')
  }
  for (const list of [...answers.slice(5), events(await collect(unread))]) {
    assert.equal(list.at(-1).type, 'error')
    assert.equal(list.at(-1).error.type, 'overloaded_error')
    assert.ok(!list.some((event) => event.type === 'message_stop'))
  }
  const account = await pool.account(pool.ids[0])
  assert.equal(account.usageCount, 5)
  assert.equal(account.errorCount, 0)
  assert.equal((await sim.stats()).streams.open, 0)
})

test('two gateways in one process share nothing but the runtime (N55)', async (t) => {
  const sim = await simulator(t)
  const one = await gateway(t, sim, accounts(t, 'sim-ok.one'))
  const two = await gateway(t, sim, accounts(t, 'sim-ok.two'))
  await one.createMessage(ask({ text: 'x' }))
  await one.close({ graceMs: 0 })
  await two.createMessage(ask({ text: 'x' }))
  assert.deepEqual((await sim.stats()).calls_by_token, { 'sim-ok.one': 1, 'sim-ok.two': 1 })
  await sleep(0)
})

test('a gateway cannot be posted to another thread (N50)', async () => {
  const gate = await KiroGateway.connect({ env: {}, upstream: 'simulator' })
  assert.throws(() => structuredClone(gate), { name: 'DataCloneError' })
  await gate.close({ graceMs: 0 })
})
