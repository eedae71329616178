// Accounts from JavaScript: outcomes, events, tokens, quota (contract/node.md; cases 36, 38).
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { test } from 'node:test'
import { KiroError, KiroGateway } from 'kiro-messages'
import { accounts, ask, collect, gateway, listening, redis, redisAccounts, simulator, sleep, until } from './support/stack.mjs'

const require = createRequire(import.meta.url)

const failure = (promise) => promise.then(() => assert.fail('did not reject'), (error) => error)
const run = async (gate, request = ask({ text: 'x' }), options) => collect(await gate.streamMessages(request, options))

test('accounts(), credential(), refresh() and usageLimits() answer', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t, 'sim-ok', 'sim-402')
  const gate = await gateway(t, sim, pool)
  const [good] = pool.ids
  const list = gate.accounts()
  assert.deepEqual(list.map(({ id }) => id), [...pool.ids].sort())
  const { expiresAt, ...rest } = list.find(({ id }) => id === good)
  const kind = { method: 'social', kind: 'social', region: 'us-east-1', profile: 'own' }
  assert.deepEqual(rest, { id: good, name: null, ...kind, state: 'healthy', until: null, registrationExpiresAt: null, inFlight: 0 })
  const held = gate.credential(good)
  assert.equal(held.accessToken, 'sim-ok')
  assert.equal(held.refreshToken, `refresh-${good}`)
  assert.equal(held.expiresAt, expiresAt)
  assert.match(held.profileArn, /^arn:/)
  assert.equal(gate.credential('nobody'), null)
  const told = []
  gate.on('tokenRefreshed', (event) => told.push(event))
  const [first, second] = await Promise.all([gate.refresh(good), gate.refresh(good)])
  assert.deepEqual(first, second)
  assert.equal(gate.credential(good).expiresAt, first.expiresAt)
  assert.notEqual(gate.credential(good).accessToken, 'sim-ok')
  assert.equal((await sim.stats()).requests['POST /refreshToken'], 1)
  await until(() => told.length === 1, 'tokenRefreshed')
  assert.deepEqual(told, [{ accountId: good, expiresAt: first.expiresAt, method: 'social' }])
  const limits = await gate.usageLimits(good)
  assert.ok(Array.isArray(limits.usageBreakdownList), JSON.stringify(limits))
  for (const call of [() => gate.refresh('nobody'), () => gate.usageLimits('nobody')]) {
    const error = await failure(call())
    assert.ok(error instanceof KiroError)
    assert.equal(error.code, 'KIRO_NOT_FOUND')
    assert.equal(error.accountId, 'nobody')
    assert.ok(error.stack.includes(import.meta.filename), error.stack)
  }
  const aborted = await failure(gate.usageLimits(good, { signal: AbortSignal.abort() }))
  assert.equal(aborted.name, 'AbortError')
})

test('arguments of the wrong type are TypeErrors that name them (N21)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const thrown = [
    ['accountId', () => gate.credential(5)],
    ['event', () => gate.on('nothing', () => {})],
    ['event', () => gate.off(undefined, () => {})],
    ['listener', () => gate.once('storeLost', 'x')],
    ['options', () => gate.handler(null)],
    ['options', () => gate.handler('/kiro')],
    ['basePath', () => gate.handler({ basePath: 5 })],
    ['auth', () => gate.handler({ auth: null })],
  ]
  for (const [name, call] of thrown) {
    assert.throws(call, (error) => error instanceof TypeError && error.message.startsWith(name))
  }
  const rejected = [
    ['accountId', () => gate.refresh()],
    ['accountId', () => gate.usageLimits({})],
    ['options', () => gate.usageLimits('x', 5)],
    ['options.signal', () => gate.usageLimits('x', { signal: 5 })],
    ['options.accountId', () => gate.createMessage(ask(), { accountId: 5 })],
    ['options.system', () => gate.createMessage(ask(), { system: 'x' })],
    ['options.record', () => gate.createMessage(ask(), { record: 1 })],
    ['options', () => gate.close(5)],
    ['graceMs', () => gate.close({ graceMs: '1' })],
    ['options', () => KiroGateway.connect(5)],
    ['options.env', () => KiroGateway.connect({ env: 5 })],
    ['options.recordOutcome', () => KiroGateway.connect({ recordOutcome: 5 })],
  ]
  for (const [name, call] of rejected) {
    const error = await failure(call())
    assert.ok(error instanceof TypeError && error.message.startsWith(name), `${name}: ${error}`)
  }
})

test('KiroError.is is false for anything but a KiroError, and never throws', () => {
  for (const value of [undefined, null, 'KIRO_CONFIG', {}, new Error('x'), { code: Symbol('x') }, { code: 'KIRO_CONFIG' }]) {
    assert.equal(KiroError.is(value), false)
  }
  assert.equal(KiroError.is({ code: 'KIRO_CONFIG', status: 500 }), true)
})

test('usage that isn’t JSON is upstream’s failure, and no error quotes it (N41, N42)', async (t) => {
  const answers = ['<html>not for you</html>', '', '{"daysUntilReset":3']
  const upstream = createServer((req, res) => {
    req.resume()
    res.end(answers.at(0))
  })
  const port = await listening(t, upstream)
  const pool = accounts(t)
  const upstreamUrl = `http://127.0.0.1:${port}/generateAssistantResponse`
  const gate = await gateway(t, { options: { upstreamUrl } }, pool)
  while (answers.length > 0) {
    const error = await failure(gate.usageLimits(pool.ids[0]))
    assert.equal(error.code, 'KIRO_UPSTREAM', String(error))
    assert.doesNotMatch(String(error.stack), /html|not for you|daysUntilReset/)
    answers.shift()
  }
})

test('an exception of the native side is KIRO_INTERNAL and shows no content (N53, N42)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const native = require('../lib/native.js')
  const whole = Object.getOwnPropertyDescriptors(native.KiroGateway.prototype)
  t.after(() => Object.defineProperties(native.KiroGateway.prototype, whole))
  for (const name of ['health', 'metrics', 'accounts', 'listModels', 'countTokensSync', 'streamMessages', 'createMessage', 'handle']) {
    native.KiroGateway.prototype[name] = () => {
      throw new Error('panicked at the secret')
    }
  }
  const calls = {
    health: () => gate.health(),
    metrics: () => gate.metrics(),
    accounts: () => gate.accounts(),
    listModels: () => gate.listModels(),
    countTokensSync: () => gate.countTokensSync('{}'),
    streamMessages: () => gate.streamMessages('{}'),
    streamEvents: () => gate.streamEvents('{}').next(),
    createMessage: () => gate.createMessage('{}'),
  }
  for (const [name, call] of Object.entries(calls)) {
    const error = await failure((async () => call())())
    assert.ok(error instanceof KiroError && error instanceof Error, `${name}: ${error}`)
    assert.match(error.stack, /\n    at /, name)
    assert.equal(error.code, 'KIRO_INTERNAL')
    assert.ok(!error.stack.includes('secret') && error.cause === undefined, error.stack)
  }
  const listening = createServer(gate.handler()).listen(0, '127.0.0.1')
  await once(listening, 'listening')
  t.after(() => listening.close())
  const answer = await fetch(`http://127.0.0.1:${listening.address().port}/v1/messages`, { method: 'POST', body: '{}' })
  assert.equal(answer.status, 500)
  assert.equal((await answer.json()).error.type, 'api_error')
})

test('recordOutcome sees every outcome; what it records the gateway does not write (R35)', async (t) => {
  const sim = await simulator(t)
  const server = await redis(t)
  const pool = await redisAccounts(t, server, 'a', 'b')
  const [a, b] = pool.ids
  const seen = []
  const recordOutcome = (outcome) => {
    seen.push(outcome)
    if (outcome.accountId === b) throw new Error('the recorder is broken')
    return true
  }
  const warned = []
  const onWarning = (warning) => warned.push(warning)
  process.on('warning', onWarning)
  t.after(() => process.off('warning', onWarning))
  const gate = await gateway(t, sim, pool, { recordOutcome, maxAttempts: 1, affinity: 'off' })
  for (let n = 0; n < 4; n++) await run(gate)
  await sim.script({ token: 'a', scenarios: ['429-retry-after-30'], forever: true })
  await sim.script({ token: 'b', scenarios: ['500'], forever: true })
  for (let n = 0; n < 2; n++) await failure(gate.streamMessages(ask()))
  // Neither pinned calls nor those that ask for it are recorded.
  await failure(gate.createMessage(ask(), { accountId: b }))
  await failure(gate.createMessage(ask(), { record: false }))
  await gate.close()
  const kinds = (id) => seen.filter(({ accountId }) => accountId === id).map(({ kind }) => kind)
  assert.deepEqual(kinds(a), ['success', 'success', 'coolDown'])
  // Both requests end here: an account that is rate limited uses up no attempt (K137).
  assert.deepEqual(kinds(b), ['success', 'success', 'failure', 'failure'])
  const [success] = seen
  assert.ok(success.at instanceof Date && Math.abs(success.at - Date.now()) < 60_000)
  assert.deepEqual([success.heals, success.halfOpen, success.probe], [true, false, false])
  const rest = seen.find(({ kind }) => kind === 'coolDown')
  assert.ok(rest.until instanceof Date && rest.until > rest.at)
  assert.match(rest.message, /^cool-down until \d{4}-/)
  assert.ok(seen.find(({ kind }) => kind === 'failure').cause.length > 0)
  // a's were recorded here, b's by the gateway.
  assert.equal((await pool.account(a)).usageCount, 0)
  assert.equal((await pool.account(a)).isHealthy, true)
  const record = await pool.account(b)
  assert.equal(record.usageCount, 2)
  assert.equal(record.errorCount, 2)
  await sleep(0)
  assert.deepEqual(warned.map(({ code }) => code), ['KIRO_RECORD_OUTCOME'], 'told once')
})

test('an outcome from before the gateway is connected waits for it (R35)', () => {
  const { Ears } = require('../lib/notices.js')
  const order = []
  const ears = new Ears(({ kind }) => order.push(kind) > 0)
  ears.hear({ number: 1, kind: 'ejected', accountId: 'a', at: 0, message: 'x' })
  ears.hear({ number: 2, kind: 'failure', accountId: 'a', at: 0, cause: 'x' })
  assert.deepEqual(order, [])
  ears.serve({ answered: (number, recorded) => order.push([number, recorded]) })
  ears.hear({ number: 3, kind: 'success', accountId: 'a', at: 0, heals: true, halfOpen: false, probe: false })
  assert.deepEqual(order, ['ejected', [1, true], 'failure', [2, true], 'success', [3, true]])
})

test('ejected accounts are reported, and usageLimits ejects a suspended one (N22, K62)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t, 'sim-suspended', 'sim-ok')
  const gate = await gateway(t, sim, pool)
  const told = []
  gate.on('accountEjected', (event) => told.push(event))
  const error = await failure(gate.usageLimits(pool.ids[0]))
  assert.equal(error.code, 'KIRO_ACCOUNT_SUSPENDED')
  assert.equal(error.status, 403)
  assert.equal(error.accountId, pool.ids[0])
  await until(() => told.length === 1, 'accountEjected')
  assert.equal(told[0].accountId, pool.ids[0])
  assert.match(told[0].message, /^ejected: /)
  assert.equal(gate.accounts().find(({ id }) => id === pool.ids[0]).state, 'ejected')
})

test('Redis stopped and started: storeLost, storeBack once each, requests are served throughout (case 36)', async (t) => {
  const sim = await simulator(t)
  const server = await redis(t)
  const pool = await redisAccounts(t, server)
  const gate = await gateway(t, sim, pool)
  const told = []
  gate.on('storeLost', (event) => told.push(['storeLost', event]))
  gate.on('storeBack', (event) => told.push(['storeBack', event]))
  gate.on('storeLost', () => {
    // Harms nothing, see the test below.
  })
  const running = run(gate, ask({ text: '{n} ', count: 100, gap_ms: 30 }))
  await run(gate)
  await until(async () => (await pool.account(pool.ids[0])).usageCount === 1, 'the first use to be written')
  await (await server.client(t))('SAVE')
  server.child.kill('SIGKILL')
  await server.child.ended
  await until(() => told.length === 1, 'storeLost')
  for (let n = 0; n < 3; n++) await run(gate)
  assert.equal(gate.health().redis, 'disconnected')
  assert.equal(gate.health().status, 'degraded')
  const again = await redis(t, server.port, server.cwd)
  await until(() => told.length === 2, 'storeBack')
  await run(gate)
  assert.ok((await running).toString().includes('message_stop'))
  await gate.close()
  assert.deepEqual(told.map(([name]) => name), ['storeLost', 'storeBack'])
  const [[, lost], [, back]] = told
  assert.deepEqual(Object.keys(lost), ['cause'])
  assert.ok(lost.cause.length > 0)
  assert.ok(back.awayMs > 0 && back.awayMs < 60_000 && back.written >= 1, JSON.stringify(back))
  const record = JSON.parse(
    await (await again.client(t))('HGET', `${pool.options.redisKeyPrefix}pools:claude-kiro-oauth`, pool.ids[0]),
  )
  assert.equal(record.usageCount, 6, 'nothing was lost or counted twice')
})

test('a listener that throws is an uncaughtException and harms no stream (N22, case 36)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t)
  const gate = await gateway(t, sim, pool)
  const order = []
  const caught = new Promise((resolve) => {
    process.setUncaughtExceptionCaptureCallback((error) => {
      process.setUncaughtExceptionCaptureCallback(null)
      resolve(error)
    })
  })
  gate.once('tokenRefreshed', () => {
    order.push('once')
    throw new Error('mine')
  })
  const dropped = () => order.push('off')
  gate.on('tokenRefreshed', dropped).off('tokenRefreshed', dropped)
  const running = run(gate, ask({ text: '{n} ', count: 20, gap_ms: 10 }))
  await gate.refresh(pool.ids[0])
  assert.equal((await caught).message, 'mine')
  assert.deepEqual(order, ['once'])
  assert.ok((await running).toString().includes('message_stop'))
})

test('pinned calls: this account and no other, whatever its state, with its own errors (N5)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t, 'a', 'b')
  const [a, b] = pool.ids
  const gate = await gateway(t, sim, pool)
  for (let n = 0; n < 4; n++) {
    const stream = await gate.streamMessages(ask({ text: 'x' }), { accountId: b })
    await collect(stream)
    const { accountId, attempts } = await stream.summary
    assert.deepEqual([accountId, attempts], [b, 1])
  }
  assert.deepEqual((await sim.stats()).calls_by_token, { b: 4 })
  for (const [scenario, code, status] of [
    ['402', 'KIRO_QUOTA_EXHAUSTED', 402],
    ['suspended', 'KIRO_ACCOUNT_SUSPENDED', 403],
    ['403', 'KIRO_ACCOUNT_FORBIDDEN', 403],
    ['500', 'KIRO_UPSTREAM', 500],
    ['429-retry-after-20', 'KIRO_RATE_LIMITED', 429],
  ]) {
    await fetch(`${sim.url}/_sim/reset`, { method: 'POST' })
    await sim.script({ token: 'a', scenarios: [scenario, scenario] })
    const error = await failure(gate.createMessage(ask(), { accountId: a }))
    assert.deepEqual([error.code, error.status, error.accountId], [code, status, a], error.message)
  }
  // Nothing was recorded; the Retry-After holds all the same.
  assert.equal(gate.accounts().find(({ id }) => id === a).state, 'cooling')
  const calls = (await sim.stats()).calls_by_token.a
  const held = await failure(gate.createMessage(ask(), { accountId: a }))
  assert.equal(held.code, 'KIRO_RATE_LIMITED')
  assert.ok(held.retryAfterMs > 10_000 && held.retryAfterMs <= 20_000)
  assert.equal((await sim.stats()).calls_by_token.a, calls, 'upstream was not asked')
  const unknown = await failure(gate.createMessage(ask(), { accountId: 'nobody' }))
  assert.equal(unknown.code, 'KIRO_NOT_FOUND')
})

test('a pinned call with a rejected token: one forced refresh, one more try; refused: 401 (N5, N8)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t, 'a', 'b')
  const [a, b] = pool.ids
  const gate = await gateway(t, sim, pool)
  await sim.script([{ token: 'a', scenarios: ['401'], forever: true }, { token: 'b', scenarios: ['401'], forever: true }])
  await sim.script({ refresh_token: `refresh-${b}`, answers: ['dead'], forever: true })
  assert.equal((await gate.createMessage(ask({ text: 'renewed' }), { accountId: a })).content[0].text, 'renewed')
  const error = await failure(gate.createMessage(ask(), { accountId: b }))
  assert.deepEqual([error.code, error.status, error.type], ['KIRO_ACCOUNT_UNAUTHORIZED', 401, 'authentication_error'])
})

test("the operator's system text: append and overwrite; string, blocks, none", async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const blocks = [{ type: 'text', text: 'Theirs.' }]
  const cases = [
    ['append', 'Theirs.', 'Theirs.\nOurs.'],
    ['append', blocks, /Theirs\.\s+Ours\./],
    ['append', undefined, 'Ours.'],
    ['overwrite', 'Theirs.', 'Ours.'],
    ['overwrite', blocks, 'Ours.'],
    ['overwrite', undefined, 'Ours.'],
  ]
  for (const [mode, system, wanted] of cases) {
    await gate.createMessage(ask({ text: 'x' }, { system }), { system: { mode, text: 'Ours.' } })
    const { history, currentMessage } = JSON.parse((await sim.chats()).at(-1).body).conversationState
    const prompt = (history?.[0] ?? currentMessage).userInputMessage.content
    if (wanted instanceof RegExp) assert.match(prompt, wanted)
    else assert.ok(prompt.includes(wanted), `${mode} ${JSON.stringify(system)}: ${prompt}`)
    if (mode === 'overwrite') assert.ok(!prompt.includes('Theirs'), prompt)
  }
})
