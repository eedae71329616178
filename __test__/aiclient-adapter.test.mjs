// kiro-messages/aiclient, point A: the adapter in the existing service (N3–N11; cases 16 to 24).
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { createKiroAdapter } from 'kiro-messages/aiclient'
import { KiroError } from 'kiro-messages'
import { dropInFile } from './support/drop-in.mjs'
import { PoolManager, TYPE, service } from './support/host.mjs'
import { ask, collect, drain, events, gateway, redisAccounts, rejection, simulator, sleep, start, textOf, unique, until } from './support/stack.mjs'

const { sim, server } = await dropInFile()

/** Accounts with these access tokens, a gateway on them, the service's pool manager, and what the service lends. */
async function stage(t, tokens, options = {}) {
  const pool = await redisAccounts(t, server, ...tokens)
  const gate = await gateway(t, sim, pool, options)
  const records = await Promise.all(pool.ids.map((id) => pool.account(id)))
  const stage = { pool, gate, manager: new PoolManager(records, pool) }
  stage.host = { gateway: gate, getPoolManager: () => stage.manager }
  stage.adapter = (id = pool.ids[0], host = stage.host) => createKiroAdapter({ uuid: id, MODEL_PROVIDER: TYPE }, host)
  return stage
}

const MODEL = 'claude-sonnet-4-6'

const post = (url, path, body) => fetch(url + path, { method: 'POST', body: JSON.stringify(body) })
const callsOf = async (token) => (await sim.stats()).calls_by_token[token] ?? 0

test('an unknown model: the call does not throw, the first next() rejects with 400, the service does nothing (case 16)', async (t) => {
  const { adapter, manager, host: lent } = await stage(t, ['sim-ok', 'sim-ok'])
  lent.modelFallback = null
  const body = ask({ text: 'x' })
  const stream = adapter().generateContentStream('claude-nope', body)
  const error = await rejection(stream.next())
  assert.ok(error instanceof KiroError)
  assert.equal(error.status, 400)
  assert.equal(error.response.status, 400)
  assert.deepEqual(error.response.data, JSON.parse(JSON.stringify(error)))
  for (const name of ['status', 'response', 'skipErrorCount', 'shouldSwitchCredential', 'credentialMarkedUnhealthy']) {
    assert.ok(Object.keys(error).includes(name), `${name} is an own enumerable property`)
  }
  assert.deepEqual([error.skipErrorCount, error.shouldSwitchCredential, error.credentialMarkedUnhealthy], [true, false, false])
  assert.deepEqual(await stream.next(), { value: undefined, done: true })

  const host = await service(t, { manager: () => manager, adapterOf: ({ uuid }) => adapter(uuid) })
  for (const more of [{ stream: true }, {}]) {
    const answer = await post(host.url, `/${TYPE}/v1/messages`, { ...body, ...more, model: 'claude-nope' })
    assert.equal(answer.status, 400)
    assert.equal((await answer.json()).type, 'error')
  }
  assert.equal(host.log.length, 2, 'no second attempt')
  assert.deepEqual(manager.take(), [])
})

test('upstream failures switch accounts silently: one message_start, no mark (case 17)', async (t) => {
  for (const [preset, status] of [
    ['429', 429],
    ['500', 500],
    ['529', 529],
    ['capacity', 529],
    ['drop-reset', 500],
    ['reset', null],
    ['corrupt', 500],
  ]) {
    const { adapter, manager, gate } = await stage(t, [unique(preset), 'sim-ok'])
    if (status !== null) {
      const error = await rejection(adapter().generateContent(MODEL, ask({ text: 'x' })))
      assert.equal(error.status, status, preset)
      assert.deepEqual([error.skipErrorCount, error.shouldSwitchCredential, error.credentialMarkedUnhealthy], [true, true, false], preset)
    }
    const host = await service(t, { manager: () => manager, adapterOf: ({ uuid }) => adapter(uuid) })
    const answer = await post(host.url, `/${TYPE}/v1/messages`, ask({ text: 'good' }, { stream: true }))
    const list = events(Buffer.from(await answer.arrayBuffer()))
    if (preset !== 'reset') {
      // That one fails after its first words.
      assert.equal(textOf(list), 'good', preset)
      assert.equal(list.filter(({ type }) => type === 'message_start').length, 1, preset)
      assert.deepEqual(manager.take().map(([method]) => method), ['markProviderHealthy'], preset)
    }
    assert.deepEqual(gate.health().accounts.total, 2)
  }
})

test('a running Retry-After fails at once with 429, and no outcome is recorded (N5)', async (t) => {
  const token = unique('429-retry-after-30')
  const { adapter, pool } = await stage(t, [token])
  const first = await rejection(adapter().generateContent(MODEL, ask({ text: 'x' })))
  assert.equal(first.status, 429)
  const began = performance.now()
  const second = await rejection(adapter().generateContent(MODEL, ask({ text: 'x' })))
  assert.equal(second.status, 429)
  assert.ok(second.retryAfterMs > 25_000 && second.retryAfterMs <= 30_000, `${second.retryAfterMs}`)
  assert.ok(performance.now() - began < 500)
  assert.equal(await callsOf(token), 1, 'upstream was asked once')
  await sleep(1300)
  const { usageCount, errorCount, isHealthy } = await pool.account(pool.ids[0])
  assert.deepEqual({ usageCount, errorCount, isHealthy }, { usageCount: 0, errorCount: 0, isHealthy: true })
})

test('a pinned request ignores marks, and a rejected token is refreshed once (N5)', async (t) => {
  const { adapter, pool } = await stage(t, [unique('401')], { accountCacheTtlMs: 100 })
  const [id] = pool.ids
  await pool.write(id, { ...(await pool.account(id)), isHealthy: false, errorCount: 10, lastErrorTime: new Date().toISOString(), lastErrorMessage: 'ejected: by hand' })
  await sleep(300)
  const message = await adapter().generateContent(MODEL, ask({ text: 'after a refresh' }))
  assert.equal(message.content[0].text, 'after a refresh')
  assert.equal((await sim.stats()).refresh_calls[`refresh-${id}`], 1)
})

test('the pool manager is told first of a 402 and a suspension; without one the flag stays false (case 18, N10)', async (t) => {
  const { adapter, manager, pool, gate } = await stage(t, [unique('402'), unique('suspended'), unique('403')])
  const [quota, suspended, forbidden] = pool.ids
  const paid = await rejection(adapter(quota).generateContent(MODEL, ask({ text: 'x' })))
  assert.equal(paid.status, 402)
  assert.deepEqual([paid.skipErrorCount, paid.shouldSwitchCredential, paid.credentialMarkedUnhealthy], [true, true, true])
  const now = new Date()
  const next = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() + 1, 1))
  const [[method, uuid, message, at], ...none] = manager.take()
  assert.deepEqual([method, uuid, none], ['markProviderUnhealthyWithRecoveryTime', quota, []])
  assert.ok(at instanceof Date)
  assert.equal(at.toISOString(), next.toISOString())
  assert.equal(message, `quota exhausted until ${next.toISOString()}: MONTHLY_REQUEST_COUNT`)

  const stream = await drain(adapter(suspended).generateContentStream(MODEL, ask({ text: 'x' })))
  assert.deepEqual(stream.list, [])
  assert.equal(stream.error.status, 403)
  assert.deepEqual([stream.error.skipErrorCount, stream.error.shouldSwitchCredential, stream.error.credentialMarkedUnhealthy], [true, true, true])
  const [[mark, who, why]] = manager.take()
  assert.deepEqual([mark, who], ['markProviderUnhealthyImmediately', suspended])
  assert.match(why, /^ejected: .*suspended/)

  // Any other 403 is the service's to count.
  const refused = await rejection(adapter(forbidden).generateContent(MODEL, ask({ text: 'x' })))
  assert.deepEqual([refused.status, refused.skipErrorCount, refused.shouldSwitchCredential], [403, false, true])
  assert.deepEqual(manager.take(), [])

  for (const host of [{ gateway: gate }, { gateway: gate, getPoolManager: () => null }, { gateway: gate, getPoolManager: () => assert.fail('not today') }]) {
    const said = console.error
    console.error = () => {}
    const error = await rejection(adapter(suspended, host).generateContent(MODEL, ask({ text: 'x' }))).finally(() => (console.error = said))
    assert.equal(error.status, 403)
    assert.equal(error.credentialMarkedUnhealthy, false)
  }
})

test('rejected tokens: refused for good, failed in passing, no credential, no such account (N8)', async (t) => {
  const { adapter, manager, pool, gate } = await stage(t, [[unique('401'), 'sim-refresh-dead'], unique('401'), unique('ok'), unique('ok')], { accountCacheTtlMs: 100 })
  const [dead, passing, empty, stale] = pool.ids
  await pool.writeToken(passing, { ...(await pool.token(passing)), refreshToken: 'sim-refresh-500' })
  await pool.writeToken(empty, { authMethod: 'social' })
  await pool.writeToken(stale, { ...(await pool.token(stale)), refreshToken: 'sim-refresh-500.x', expiresAt: new Date(Date.now() - 1000).toISOString() })
  await until(() => gate.accounts().find(({ id }) => id === empty).state === 'unusable', 'the snapshot')
  const seen = async (uuid) => {
    const error = await rejection(adapter(uuid).generateContent(MODEL, ask({ text: 'x' })))
    return [error.status, error.skipErrorCount, error.shouldSwitchCredential, error.credentialMarkedUnhealthy, manager.take().map(([method]) => method)]
  }
  assert.deepEqual(await seen(dead), [401, true, true, true, ['markProviderUnhealthyImmediately']])
  for (const uuid of [passing, empty, stale, randomUUID()]) {
    assert.deepEqual(await seen(uuid), [401, true, true, false, ['markProviderNeedRefresh']], uuid)
  }
})

test('a failure that every account would have does not switch: our own limit, a wrong address, the store (N8)', async (t) => {
  const { adapter, gate, pool, manager } = await stage(t, ['sim-ok', unique('404')], { maxConns: 1 })
  const [good, wrong] = pool.ids
  const flags = ({ status, skipErrorCount, shouldSwitchCredential, credentialMarkedUnhealthy }) => [status, skipErrorCount, shouldSwitchCredential, credentialMarkedUnhealthy]
  assert.deepEqual(flags(await rejection(adapter(wrong).generateContent(MODEL, ask({ text: 'x' })))), [500, true, false, false])
  const slow = adapter(good).generateContentStream(MODEL, ask({ first_ms: 60_000 }))
  const waiting = slow.next()
  await until(() => gate.accounts().some(({ inFlight }) => inFlight === 1), 'the first call')
  assert.deepEqual(flags(await rejection(adapter(good).generateContent(MODEL, ask({ text: 'x' })))), [529, true, false, false])
  await slow.return()
  assert.deepEqual(await waiting, { value: undefined, done: true }, 'what is pending settles')
  assert.deepEqual(manager.take(), [])
  const closed = await stage(t, ['sim-ok'])
  await closed.gate.close({ graceMs: 0 })
  assert.deepEqual(flags(await rejection(closed.adapter().generateContent(MODEL, ask({ text: 'x' })))), [503, true, false, false])
})

test('an error after thoughts only: one event: error, no second account, no second message_start (case 19, N9)', async (t) => {
  const tokens = [unique('ok'), unique('ok')]
  const { adapter, manager } = await stage(t, tokens)
  const broken = ask({ thinking: 'hm, let me think', pieces: 3, end: 'cut', usage: false }, { thinking: { type: 'enabled', budget_tokens: 2048 }, max_tokens: 4096 })
  const { list, error } = await drain(adapter().generateContentStream(MODEL, broken))
  assert.equal(list[0].type, 'message_start')
  assert.ok(list.some(({ delta }) => delta?.thinking))
  assert.deepEqual([error.skipErrorCount, error.shouldSwitchCredential, error.credentialMarkedUnhealthy], [true, false, false])

  const host = await service(t, { manager: () => manager, adapterOf: ({ uuid }) => adapter(uuid) })
  const answer = await post(host.url, `/${TYPE}/v1/messages`, { ...broken, stream: true })
  const seen = events(Buffer.from(await answer.arrayBuffer()))
  const count = (type) => seen.filter((event) => event.type === type).length
  assert.deepEqual([count('message_start'), count('error'), count('message_stop')], [1, 1, 0])
  assert.equal(seen.at(-1).type, 'error')
  assert.deepEqual(await Promise.all(tokens.map(callsOf)), [2, 0])
  assert.deepEqual(manager.take(), [])
})

test('nothing comes out before the commit, not even after earlyHeadersMs, and then no second message_start (N6)', async (t) => {
  const { adapter } = await stage(t, [unique('ok')], { earlyHeadersMs: 50, pingIntervalMs: 50 })
  const late = adapter().generateContentStream(MODEL, ask({ steps: [{ wait_ms: 400 }, { text: 'late' }], usage: true }))
  const began = performance.now()
  const first = await late.next()
  assert.equal(first.value.type, 'message_start')
  assert.ok(performance.now() - began > 350, 'together with the first content')
  const second = await late.next()
  assert.equal(second.value.type, 'content_block_start')
  const { list } = await drain(late)
  assert.equal(textOf(list), 'late')
  // A failure there is one before the commit, with everything that the service may do then.
  const cut = await drain(adapter().generateContentStream(MODEL, ask({ first_ms: 300, limit_bytes: 0, text: 'x', end: 'cut' })))
  assert.deepEqual(cut.list, [])
  assert.deepEqual([cut.error.skipErrorCount, cut.error.shouldSwitchCredential], [true, true])
  // An empty answer has its message_start too.
  const { list: empty } = await drain(adapter().generateContentStream(MODEL, ask({ steps: [] })))
  if (empty.length > 0) assert.equal(empty[0].type, 'message_start')
})

test('countTokens answers at once, listModels and isExpiryDateNear have their shapes (case 20)', async (t) => {
  const { adapter, pool, gate } = await stage(t, ['sim-ok', 'sim-ok'], { accountCacheTtlMs: 100 })
  const count = adapter().countTokens({ messages: [{ role: 'user', content: 'Hello there' }] })
  assert.equal(typeof count.then, 'undefined')
  assert.ok(Number.isInteger(count.input_tokens) && count.input_tokens > 0)
  assert.deepEqual(count, await gate.countTokens({ model: MODEL, messages: [{ role: 'user', content: 'Hello there' }] }))
  assert.throws(() => adapter().countTokens({ messages: 'no' }), { status: 400 })
  const { models } = await adapter().listModels()
  assert.ok(models.length > 3)
  for (const model of models) assert.deepEqual(Object.keys(model), ['name'])
  assert.ok(models.some(({ name }) => name === 'claude-sonnet-4-5'))
  assert.equal(adapter().isExpiryDateNear(), false)
  assert.equal(adapter(randomUUID()).isExpiryDateNear(), false, 'unknown is not near')
  const [, soon] = pool.ids
  await pool.writeToken(soon, { ...(await pool.token(soon)), expiresAt: new Date(Date.now() + 299_000).toISOString(), refreshToken: 'sim-refresh-hang.x' })
  await until(() => adapter(soon).isExpiryDateNear() === true, 'the snapshot')
})

test('getUsageLimits is what upstream answered; its errors read as the usage page shows them', async (t) => {
  const { adapter, pool } = await stage(t, ['sim-ok', unique('suspended')])
  const limits = await adapter().getUsageLimits()
  assert.ok(Array.isArray(limits.usageBreakdownList), JSON.stringify(limits).slice(0, 200))
  const error = await rejection(adapter(pool.ids[1]).getUsageLimits())
  assert.match(error.message, /^API call failed: 403 - \S/)
})

test('a thousand adapters cost next to nothing, share one gateway, and know it from any configuration (case 21, N3)', async (t) => {
  const pool = await redisAccounts(t, server, 'sim-ok')
  const { redisUrl, redisKeyPrefix } = pool.options
  const program = (body) => `
    import assert from 'node:assert/strict'
    import { createKiroAdapter, configure, close } from 'kiro-messages/aiclient'
    const uuid = ${JSON.stringify(pool.ids[0])}
    const full = { uuid, MODEL_PROVIDER: 'claude-kiro-oauth', redis: ${JSON.stringify({ enabled: true, url: redisUrl, keyPrefix: redisKeyPrefix })}, big: 'x'.repeat(10_000) }
    const ask = ${JSON.stringify(ask({ text: 'hi' }))}
    ${body}`
  const run = async (body, env = {}) => {
    const child = start(t, process.execPath, ['--expose-gc', '--input-type=module', '-e', program(body)], { cwd: import.meta.dirname, env: { ...sim.env, ...env } })
    assert.deepEqual(await child.ended, { code: 0, signal: null }, child.output)
    return child.output
  }
  const [flat, configured] = await Promise.all([
    run(`
      const adapters = []
      for (let n = 0; n < 1000; n++) adapters.push(createKiroAdapter({ ...full }))
      const answer = await createKiroAdapter({ uuid }).generateContent('claude-sonnet-4-5', ask)
      assert.equal(answer.content[0].text, 'hi', 'a bare configuration')
      adapters.length = 0
      for (let n = 0; n < 3; n++) { gc(); await new Promise((go) => setTimeout(go, 30)) }
      const before = process.memoryUsage().heapUsed
      const handles = process.getActiveResourcesInfo().length
      const kept = []
      for (let n = 0; n < 1000; n++) kept.push(createKiroAdapter({ ...full }))
      gc()
      const thousand = process.memoryUsage().heapUsed - before
      assert.ok(thousand < 1024 * 1024, \`\${thousand} bytes for a thousand\`)
      assert.equal(Object.hasOwn(kept[0], 'config') || 'config' in kept[0] || 'kiroApiService' in kept[0], false)
      kept.length = 0
      for (let round = 0; round < 10; round++) {
        for (let n = 0; n < 1000; n++) createKiroAdapter({ ...full, big: 'y'.repeat(1000) })
        gc()
      }
      await new Promise((go) => setTimeout(go, 30))
      gc()
      assert.ok(process.memoryUsage().heapUsed - before < 300_000, \`\${process.memoryUsage().heapUsed - before} bytes left\`)
      assert.equal(process.getActiveResourcesInfo().length, handles)
      assert.throws(() => configure({}), { code: 'KIRO_CONFIG' })
      await close()
      console.log('flat')`),
    run(`
      configure({ redisUrl: ${JSON.stringify(redisUrl)}, redisKeyPrefix: ${JSON.stringify(redisKeyPrefix)} })
      await createKiroAdapter({ uuid }).generateContent('claude-sonnet-4-5', ask)
      await close({ graceMs: 0 })
      console.log('configured')`),
  ])
  assert.match(flat, /flat/)
  assert.match(configured, /configured/)
})

test('a connect that failed is tried again, after a second (N4)', async (t) => {
  const port = server.port
  const program = `
    import assert from 'node:assert/strict'
    import { createKiroAdapter, configure } from 'kiro-messages/aiclient'
    configure({ redisUrl: 'redis://127.0.0.1:1', storeWaitMs: 100, env: {} })
    const adapter = createKiroAdapter({ uuid: 'a' })
    const fails = async () => { try { await adapter.listModels() } catch (error) { return error.code } }
    const began = performance.now()
    assert.equal(await fails(), 'KIRO_STORE_UNAVAILABLE')
    const first = performance.now() - began
    assert.ok(first >= 90, 'it waited for the store')
    const again = performance.now()
    assert.equal(await fails(), 'KIRO_STORE_UNAVAILABLE')
    assert.ok(performance.now() - again < 60, 'not tried again at once')
    configure({ redisUrl: 'redis://127.0.0.1:${port}', redisKeyPrefix: 'none:', env: {} })
    await new Promise((go) => setTimeout(go, 1000))
    assert.ok((await adapter.listModels()).models.length > 0)
    process.exit(0)`
  const child = start(t, process.execPath, ['--input-type=module', '-e', program], { cwd: import.meta.dirname })
  assert.deepEqual(await child.ended, { code: 0, signal: null }, child.output)
})

test('a caller that leaves while the gateway connects waits no longer, nor does one that left before (N33, N34)', { timeout: 20_000 }, async () => {
  // Never there, as with a store that doesn't answer.
  const away = () => {
    const host = { asked: 0 }
    Object.defineProperty(host, 'gateway', { get: () => (host.asked++, new Promise(() => {})) })
    return { host, adapter: createKiroAdapter({ uuid: 'a' }, host) }
  }
  const cancelled = ({ code, status, skipErrorCount }) => assert.deepEqual([code, status, skipErrorCount], ['KIRO_CANCELLED', 499, true])
  const before = away()
  const body = ask(undefined, { signal: AbortSignal.abort() })
  cancelled(await rejection(before.adapter.generateContent(MODEL, body)))
  cancelled(await rejection(before.adapter.generateContentStream(MODEL, body).next()))

  const meanwhile = new AbortController()
  const { host, adapter } = away()
  const whole = adapter.generateContent(MODEL, ask(undefined, { signal: meanwhile.signal }))
  const events = adapter.generateContentStream(MODEL, ask(undefined, { signal: meanwhile.signal })).next()
  await until(() => host.asked > 1)
  meanwhile.abort()
  cancelled(await rejection(whole))
  cancelled(await rejection(events))

  const left = adapter.generateContentStream(MODEL, ask())
  const pending = [left.next(), left.next()]
  assert.deepEqual(await left.return(), { value: undefined, done: true })
  assert.deepEqual(await Promise.all(pending), Array(2).fill({ value: undefined, done: true }))
})

test('addresses of the configuration apply to this account, and to no other (N4)', async (t) => {
  const { pool, host, adapter } = await stage(t, ['sim-ok', 'sim-ok'])
  const other = await simulator(t)
  const [mine, its] = pool.ids
  const config = { uuid: mine, MODEL_PROVIDER: TYPE, KIRO_BASE_URL: other.options.upstreamUrl, KIRO_REFRESH_URL: other.options.socialRefreshUrl }
  const elsewhere = createKiroAdapter(config, host)
  await elsewhere.generateContent(MODEL, ask({ text: 'x' }))
  await elsewhere.forceRefreshToken()
  await adapter(its).generateContent(MODEL, ask({ text: 'x' }))
  const { requests } = await other.stats()
  // The account's models and what it has left may be asked for in the background (K146).
  for (const call of ['POST / ListAvailableModels', 'GET /getUsageLimits']) delete requests[call]
  assert.deepEqual(requests, { 'POST /generateAssistantResponse': 1, 'POST /refreshToken': 1 })
})

test('max_tokens of the converters, none at all, a signal, a frozen body (case 22)', async (t) => {
  const { adapter, gate } = await stage(t, [unique('ok')])
  const text = async (body) => textOf((await drain(adapter().generateContentStream(MODEL, body))).list)
  const body = ask({ text: 'fine' })
  const frozen = Object.freeze({ ...body, messages: Object.freeze([Object.freeze(body.messages[0])]) })
  assert.equal(await text(frozen), 'fine')
  assert.equal(await text({ ...body, max_tokens: 200_000 }), 'fine')
  const { max_tokens: _, ...without } = body
  assert.equal(await text(without), 'fine')
  assert.equal(await text({ ...body, max_tokens: null }), 'fine')
  assert.equal((await adapter().generateContent(MODEL, { ...without, stream: true })).type, 'message')
  assert.equal((await adapter().generateContent(MODEL, { ...without, model: 'gpt-4o' })).model, MODEL, 'the model of the call counts')

  const going = new AbortController()
  const held = Object.freeze({ ...ask({ steps: [{ text: 'a' }, { wait_ms: 60_000 }] }), signal: going.signal })
  const stream = adapter().generateContentStream(MODEL, held)
  assert.equal((await stream.next()).value.type, 'message_start')
  setTimeout(() => going.abort(new Error('enough')), 50)
  const { error } = await drain(stream)
  assert.equal(error.name, 'AbortError')
  assert.deepEqual([error.status, error.cause.message, error.skipErrorCount, error.shouldSwitchCredential], [499, 'enough', true, false])
  await until(() => gate.accounts().every(({ inFlight }) => inFlight === 0), 'upstream to be dropped', 1000)
  const before = await rejection(adapter().generateContent(MODEL, { ...body, signal: AbortSignal.abort() }))
  assert.deepEqual([before.code, before.status], ['KIRO_CANCELLED', 499])

  const gemini = await rejection(adapter().generateContent(MODEL, { contents: [{ parts: [{ text: 'hi' }] }] }))
  assert.deepEqual([gemini.status, gemini.skipErrorCount, gemini.shouldSwitchCredential], [400, true, false])
  for (const wrong of [null, undefined, 'x']) assert.equal((await rejection(adapter().generateContent(MODEL, wrong))).status, 400)
})

test('a client of OpenAI gets the same text and tool arguments through the converters; pings do not disturb (case 23, N7)', async (t) => {
  const { adapter, manager, gate } = await stage(t, [unique('ok')], { pingIntervalMs: 30 })
  const host = await service(t, { manager: () => manager, adapterOf: ({ uuid }) => adapter(uuid) })
  const input = { city: 'Zürich — 漢字 😀', days: [1, 2, 3], nested: { deep: true } }
  // 1 to 4 bytes a character, cut at every border, with a silence in it for pings.
  const scenario = {
    steps: [
      { text: 'aé漢😀 {n} ', count: 300 },
      { wait_ms: 150 },
      { tool: { id: 'tooluse_1', name: 'weather', input, pieces: 17 } },
      { tool: { id: 'tooluse_2', name: 'clock', input: { zone: 'UTC' }, pieces: 3 } },
    ],
    write_bytes: 7,
    usage: true,
  }
  const tools = [{ type: 'function', function: { name: 'weather', description: 'w', parameters: { type: 'object', properties: {} } } }, { type: 'function', function: { name: 'clock', parameters: { type: 'object' } } }]
  const body = ask(scenario)
  const source = events(await collect(await gate.streamMessages({ ...body, tools: tools.map(({ function: f }) => ({ name: f.name, input_schema: f.parameters })) })))
  assert.ok(source.some(({ type }) => type === 'ping'))
  const answer = await post(host.url, `/${TYPE}/v1/chat/completions`, { model: MODEL, stream: true, messages: [{ role: 'system', content: 'be kind' }, ...body.messages], tools })
  const chunks = (await answer.text()).split('\n\n').filter((line) => line.startsWith('data: {')).map((line) => JSON.parse(line.slice(6)))
  const text = chunks.map(({ choices }) => choices[0].delta.content ?? '').join('')
  assert.equal(text, textOf(source))
  assert.equal(text, Array.from({ length: 300 }, (_, n) => `aé漢😀 ${n} `).join(''))
  const calls = []
  for (const { choices } of chunks) {
    for (const { index, id, function: f } of choices[0].delta.tool_calls ?? []) {
      calls[index] ??= { id, name: f.name, arguments: '' }
      calls[index].arguments += f.arguments
    }
  }
  assert.deepEqual(calls.map(({ name, arguments: json }) => [name, JSON.parse(json)]), [['weather', input], ['clock', { zone: 'UTC' }]])
  assert.ok(calls.every(({ id }) => id))
  assert.equal(chunks.at(-1).choices[0].finish_reason, 'tool_calls')
  assert.ok(chunks.at(-1).usage.completion_tokens > 0)
  assert.deepEqual(host.log, [])
})

test('ten forced refreshes at once and one from another process: upstream sees one; each process tells its host (case 24, N11)', async (t) => {
  const { adapter, manager, pool } = await stage(t, [unique('ok')])
  const [id] = pool.ids
  const second = start(
    t,
    process.execPath,
    [
      '--input-type=module',
      '-e',
      `import { createKiroAdapter, configure, close } from 'kiro-messages/aiclient'
       configure(${JSON.stringify({ ...pool.options, ...sim.options, env: {} })})
       const told = []
       const host = { getPoolManager: () => ({ resetProviderRefreshStatus: (...args) => told.push(args) }) }
       const adapter = createKiroAdapter({ uuid: ${JSON.stringify(id)} }, host)
       await adapter.listModels()
       process.stdout.write('ready\\n')
       process.stdin.once('data', async () => {
         try { await adapter.forceRefreshToken() } finally { console.log(JSON.stringify(told)); await close({ graceMs: 0 }); process.exit() }
       })`,
    ],
    { cwd: import.meta.dirname, stdin: 'pipe' },
  )
  await until(() => second.output.includes('ready'), 'the second process', 20_000)
  second.stdin.write('go\n')
  await Promise.all(Array.from({ length: 10 }, () => adapter(id).forceRefreshToken()))
  assert.deepEqual(await second.ended, { code: 0, signal: null }, second.output)
  assert.equal((await sim.stats()).refresh_calls[`refresh-${id}`], 1)
  assert.deepEqual(manager.take(), [['resetProviderRefreshStatus', id]])
  assert.match(second.output, new RegExp(`\\[\\["${TYPE}","${id}"\\]\\]`))
  assert.notEqual((await pool.token(id)).refreshToken, `refresh-${id}`)
})
