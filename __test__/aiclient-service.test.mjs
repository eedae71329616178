// kiro-messages/aiclient in the service as it was seen to behave (N90–N97): names that nobody knows, its health check, an
// empty pool, addresses of its configuration, requests that leave something out, many streams at once.
import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { createKiroAdapter, createKiroHandler } from 'kiro-messages/aiclient'
import { root, serverBinary } from '../scripts/steps.mjs'
import { dropInFile } from './support/drop-in.mjs'
import { BAD_CREDENTIAL, TYPE } from './support/host.mjs'
import { ask, drain, events, folder, rejection, simulator, start, textOf, unique, until } from './support/stack.mjs'

const { sim, stage } = await dropInFile()

const MODEL = 'claude-sonnet-4-6'
const post = (host, path, body) => fetch(`${host.url}/${TYPE}${path}`, { method: 'POST', body: JSON.stringify(body) })
const read = async (answer) => events(Buffer.from(await answer.arrayBuffer()))

/** What is said to the log meanwhile. */
function listen(t, method) {
  const said = []
  t.mock.method(console, method, (...args) => said.push(args.join(' ')))
  return said
}

test('a name that nobody knows is served by the default at both points, with one line in the log; null refuses it (N90)', async (t) => {
  const said = listen(t, 'warn')
  const { host, lent, gate, pool } = await stage(t, [unique('ok')])
  const asked = async () => JSON.parse((await sim.chats()).at(-1).body).conversationState.currentMessage.userInputMessage.modelId
  const body = ask({ text: 'served' }, { model: 'gpt-4o' })
  const chat = { model: 'gpt-4o', messages: body.messages }
  for (const [path, sent] of [
    ['/v1/messages', body],
    ['/v1/messages', { ...body, stream: true }],
    ['/v1/chat/completions', chat],
    ['/v1/chat/completions', { ...chat, stream: true }],
  ]) {
    const answer = await post(host, path, sent)
    assert.equal(answer.status, 200, path)
    assert.match(await answer.text(), /served/)
    assert.equal(await asked(), 'claude-sonnet-4.5')
  }
  const counted = await post(host, '/v1/messages/count_tokens', { model: 'gpt-4o', messages: body.messages })
  assert.ok((await counted.json()).input_tokens > 0)
  const echoed = await (await post(host, '/v1/messages', body)).json()
  assert.equal(echoed.model, 'gpt-4o', 'the client’s own string')
  await until(() => said.length > 0, 'the log line')
  assert.deepEqual(said.splice(0), ["[kiro-messages] model 'gpt-4o' is not known: claude-sonnet-4-5 serves it"])

  lent.modelFallback = 'claude-haiku-4-5'
  assert.equal((await post(host, '/v1/messages', { ...body, model: 'o9' })).status, 200)
  assert.equal(await asked(), 'claude-haiku-4.5')
  // Known names stay what they are.
  assert.equal((await post(host, '/v1/messages', { ...body, model: 'claude-opus-4-5' })).status, 200)
  assert.equal(await asked(), 'claude-opus-4.5')
  lent.modelFallback = null
  assert.equal((await post(host, '/v1/messages', body)).status, 404)
  assert.equal((await post(host, '/v1/messages/count_tokens', body)).status, 404)
  const refused = await rejection(createKiroAdapter({ uuid: pool.ids[0] }, lent).generateContent('gpt-4o', body))
  assert.deepEqual([refused.status, refused.response.status], [400, 400])
  assert.equal(gate.accounts()[0].state, 'healthy')

  const set = await stage(t, [unique('ok')], { options: { modelFallback: 'claude-opus-4-5' } })
  assert.equal((await post(set.host, '/v1/messages', body)).status, 200)
  assert.equal(await asked(), 'claude-opus-4.5', 'the gateway’s setting, for any name here')
  for (const modelFallback of ['', 1, {}]) {
    assert.throws(() => createKiroHandler({ modelFallback }), /host.modelFallback/)
    assert.throws(() => createKiroAdapter({ uuid: 'a' }, { modelFallback }), /host.modelFallback/)
  }
})

test('a name that upstream refuses goes on as the default, pinned and not (N90)', async (t) => {
  const said = listen(t, 'warn')
  const { host, lent, pool } = await stage(t, [unique('ok')], { options: { modelDiscovery: 'off' } })
  const body = ask(undefined, { model: 'claude-opus-8' })
  assert.equal((await (await post(host, '/v1/messages', body)).json()).model, 'claude-opus-8')
  const message = await createKiroAdapter({ uuid: pool.ids[0] }, lent).generateContent('claude-opus-9', ask())
  assert.equal(message.type, 'message')
  await until(() => said.length === 2, 'a line for each')
  assert.match(said[1], /'claude-opus-9' is not known: claude-sonnet-4-5 serves it/)
})

test('whatever fails, the adapter throws it with a status; no error is an answer (N90)', async (t) => {
  for (const preset of ['400', '401', '402', '403', '404', '429', '500', '529', 'drop-reset', 'corrupt', 'suspended']) {
    const { lent, pool } = await stage(t, [[unique(preset), 'sim-refresh-dead']], { lends: { getPoolManager: () => null } })
    const adapter = createKiroAdapter({ uuid: pool.ids[0] }, lent)
    const error = await rejection(adapter.generateContent(MODEL, ask({ text: 'x' })))
    const streamed = await drain(adapter.generateContentStream(MODEL, ask({ text: 'x' })))
    assert.deepEqual(streamed.list, [], preset)
    for (const { status, response } of [error, streamed.error]) {
      assert.ok(Number.isInteger(status) && status >= 400 && status < 600, `${preset}: ${status}`)
      assert.equal(response.status, status)
      assert.equal(response.data.type, 'error')
    }
  }
})

test('every name that the service lists is listed and served (N91)', async (t) => {
  const { host } = await stage(t, [unique('ok')])
  const { models } = await (await fetch(`${host.url}/${TYPE}/v1/models`)).json()
  const names = models.map(({ name }) => name)
  assert.deepEqual(names, [...new Set(names)])
  for (const name of ['claude-haiku-4-5', 'claude-opus-4-5-20251101', 'claude-sonnet-4-5-20250929', 'claude-sonnet-4-20250514', 'claude-3-7-sonnet-20250219', 'claude-opus-5']) {
    assert.ok(names.includes(name), name)
  }
})

test('messages of 401 and 403 carry the status, no other message does (N92)', async (t) => {
  const faults = [
    [unique('401'), 401, 'sim-refresh-dead'],
    [unique('suspended'), 403],
    [unique('403'), 403],
    [unique('402'), 402],
    [unique('429'), 429],
    [unique('500'), 500],
    [unique('404'), 500],
  ]
  const { lent, pool } = await stage(t, faults.map(([token, , refresh]) => (refresh === undefined ? token : [token, refresh])), { lends: { modelFallback: null } })
  const carries = ({ message, status }) => assert.equal(BAD_CREDENTIAL.test(message), status === 401 || status === 403, `${status} ${message}`)
  for (const [n, [, status]] of faults.entries()) {
    const adapter = createKiroAdapter({ uuid: pool.ids[n] }, lent)
    const error = await rejection(adapter.generateContent(MODEL, ask({ text: 'x' })))
    assert.equal(error.status, status)
    carries(error)
    assert.doesNotMatch(error.response.data.error.message, /\(40[13]\)$/, 'the client’s message is what it was')
    carries(await rejection(adapter.getUsageLimits()).catch(() => error))
  }
  // A client's own words are no judgement on an account.
  for (const model of ['gpt-403', '401', 'Unauthorized', 'x Forbidden y 403 z 401']) {
    carries(await rejection(createKiroAdapter({ uuid: pool.ids[0] }, lent).generateContent(model, ask({ text: 'x' }))))
  }
  const unknown = await rejection(createKiroAdapter({ uuid: '401' }, lent).generateContent(MODEL, ask()))
  assert.equal(unknown.status, 401)
  carries(unknown)
})

test('the service’s health check of a bad account leaves our mark its words, and asks once (N92)', async (t) => {
  const { host, pool, manager } = await stage(t, [unique('suspended'), [unique('401'), 'sim-refresh-dead'], unique('402')])
  const [suspended, dead, quota] = pool.ids
  for (const [id, words] of [
    [suspended, /^ejected: .*suspended/],
    [dead, /^ejected: refresh token rejected \([0-9a-f]{8}\)/],
    [quota, /^quota exhausted until \d{4}-\d\d-01T/],
  ]) {
    await host.check(id)
    await manager.written()
    const record = await pool.account(id)
    assert.match(record.lastErrorMessage, words)
    assert.equal(record.isHealthy, false)
  }
  const { calls_by_token } = await sim.stats()
  const token = (await pool.token(suspended)).accessToken
  assert.equal(calls_by_token[token], 1, 'it knows a bad credential at once')
})

test('an adapter of an empty pool says so as the handler does, lists models, and serves once there is an account (N95)', async (t) => {
  const { host, lent, pool, manager, record, gate } = await stage(t, [])
  const sentence = (await (await post(host, '/v1/messages', ask())).json()).error.message
  for (const path of ['/v1/chat/completions']) {
    for (const stream of [true, false]) {
      const answer = await post(host, path, { model: MODEL, messages: [{ role: 'user', content: 'x' }], stream })
      assert.equal(answer.status, 503)
      assert.equal((await answer.json()).error.message, sentence)
    }
  }
  assert.match(sentence, /pools:claude-kiro-oauth/, 'where accounts are expected')
  assert.equal((await fetch(`${host.url}/${TYPE}/v1/models`)).status, 200)
  for (const config of [{}, { uuid: undefined }, { uuid: null }, { uuid: '' }]) {
    const adapter = createKiroAdapter({ ...config, MODEL_PROVIDER: TYPE }, lent)
    assert.equal(adapter.isExpiryDateNear(), false)
    assert.ok(adapter.countTokens(ask()).input_tokens > 0)
    await adapter.refreshToken()
    assert.equal((await rejection(adapter.forceRefreshToken())).status, 503)
    assert.match((await rejection(adapter.getUsageLimits())).message, /^API call failed: 503 - \S/)
    const { error } = await drain(adapter.generateContentStream(MODEL, ask()))
    assert.deepEqual([error.status, error.skipErrorCount, error.shouldSwitchCredential, error.credentialMarkedUnhealthy], [503, true, false, false])
  }
  assert.throws(() => createKiroAdapter({ uuid: 7 }, lent), TypeError)
  assert.deepEqual(manager.take(), [])

  const [id] = pool.ids
  await pool.write(id, record)
  await until(() => gate.health().accounts.healthy === 1, 'the snapshot')
  assert.equal((await createKiroAdapter({}, lent).generateContent(MODEL, ask({ text: 'now' }))).content[0].text, 'now')
  await until(async () => (await pool.account(id)).usageCount === 1, 'the gateway to count it', 6000)
})

test('addresses of the service’s configuration hold from the first request, for all accounts; records win (N94)', async (t) => {
  const [base, its] = [await simulator(t), await simulator(t)]
  const config = { KIRO_BASE_URL: base.options.upstreamUrl, KIRO_REFRESH_URL: base.options.socialRefreshUrl }
  const { host, pool, gate, record } = await stage(t, [unique('401'), 'sim-ok', 'sim-ok'], { config, options: { affinity: 'off' } })
  const [, , own] = pool.ids
  await pool.write(own, { ...(await pool.account(own)), KIRO_BASE_URL: its.options.upstreamUrl })
  await until(async () => {
    await (await post(host, '/v1/messages', ask({ text: 'x' }, { stream: true }))).text()
    return gate.accounts().every(({ inFlight }) => inFlight === 0) && ((await its.stats()).requests['POST /generateAssistantResponse'] ?? 0) > 0
  }, 'each account to serve')
  const calls = async (at, what) => (await at.stats()).requests[what] ?? 0
  assert.ok((await calls(base, 'POST /generateAssistantResponse')) >= 2)
  assert.equal(await calls(base, 'POST /refreshToken'), 1, 'the rejected token was renewed there')
  const tokens = await Promise.all(pool.ids.map(async (id) => (await pool.token(id)).accessToken))
  const elsewhere = (await sim.stats()).calls_by_token
  assert.deepEqual(tokens.filter((token) => token !== 'sim-ok' && elsewhere[token]), [])

  // One that comes later, and a configuration that changes.
  const late = record.uuid.replace(/^../, 'ff')
  const token = unique('ok')
  await pool.writeToken(late, { ...(await pool.token(own)), accessToken: token })
  await pool.write(late, { ...record, uuid: late })
  await until(() => gate.accounts().length === 4, 'the snapshot')
  const served = async (at) => (await at.stats()).calls_by_token[token] ?? 0
  await until(async () => {
    await (await post(host, '/v1/messages', ask({ text: 'y' }, { stream: true }))).text()
    return (await served(base)) > 0
  }, 'the new account to serve')
  host.config = { KIRO_BASE_URL: its.options.upstreamUrl }
  await until(async () => {
    await (await post(host, '/v1/messages', ask({ text: 'z' }, { stream: true }))).text()
    return (await served(its)) > 0
  }, 'the changed address')
  host.config = {}
  await until(async () => {
    await (await post(host, '/v1/messages', ask({ text: 'z' }, { stream: true }))).text()
    return (await served(sim)) > 0
  }, 'the gateway’s own again')
})

test('a lenient handler takes a request without max_tokens as the adapter does; any other refuses it (N96)', async (t) => {
  const { host, lent } = await stage(t, [unique('ok')], { options: { modelDiscovery: 'off' } })
  const { max_tokens: _, ...body } = ask({ text: 'fine' })
  for (const missing of [body, { ...body, max_tokens: null }]) {
    lent.lenient = undefined
    const refused = await post(host, '/v1/messages', missing)
    assert.equal(refused.status, 400)
    assert.match((await refused.json()).error.message, /^max_tokens: /)
    lent.lenient = true
    assert.equal((await (await post(host, '/v1/messages', missing)).json()).content[0].text, 'fine')
    assert.equal(textOf(await read(await post(host, '/v1/messages', { ...missing, stream: true }))), 'fine')
  }
  const sent = async () => /"max_tokens":(\d+)/.exec((await sim.chats()).at(-1).body)?.[1]
  assert.equal((await post(host, '/v1/messages', { ...body, model: 'claude-opus-5-5' })).status, 200)
  assert.equal(await sent(), undefined, 'the maximum isn’t said: it is what upstream takes without')
  assert.equal((await post(host, '/v1/messages', { ...body, model: 'claude-opus-5-5', max_tokens: 2000 })).status, 200)
  assert.equal(await sent(), '2000')
  for (const wrong of [0, 'x', 1.5]) assert.equal((await post(host, '/v1/messages', { ...body, max_tokens: wrong })).status, 400)
  for (const lenient of ['yes', 1, null]) assert.throws(() => createKiroHandler({ lenient }), /host.lenient/)
})

test('500 streams at once through point B: none fails, and it keeps up with kiro-server (N97)', { skip: process.platform !== 'linux' && 'it reads /proc' }, async (t) => {
  const bench = start(t, process.execPath, ['bench/drop-in.mjs', '--profile', 'debug', '--quick'], { cwd: root })
  assert.deepEqual(await bench.ended, { code: 0, signal: null }, bench.output)
  assert.match(bench.output, /failed streams, missing events: 0,/)
  t.diagnostic(bench.output.trim())
})

test('an account that our command line adds serves, is lost when the service rewrites its pool, and is brought back (R106)', async (t) => {
  const { host, pool, manager, gate } = await stage(t, ['sim-ok'])
  const key = folder()
  const command = async (...args) => {
    const child = start(t, serverBinary(), ['accounts', ...args], { env: { ...pool.env, ...sim.env }, cwd: key })
    const { code } = await child.ended
    assert.equal(code, 0, child.output)
  }
  const token = { accessToken: unique('ok'), refreshToken: unique('refresh'), expiresAt: new Date(Date.now() + 86_400_000).toISOString(), authMethod: 'social', profileArn: 'arn:aws:codewhisperer:us-east-1:000000000000:profile/OTHER', region: 'us-east-1' }
  writeFileSync(`${key}/token.json`, JSON.stringify(token))
  await command('add', '--from', `${key}/token.json`, '--offline')
  const added = await until(() => gate.accounts().map(({ id }) => id).find((id) => !pool.ids.includes(id)), 'the account')
  const served = async () => {
    const answer = await post(host, '/v1/messages', ask({ text: 'x' }, { stream: true, system: unique('') }))
    assert.equal(textOf(await read(answer)), 'x')
  }
  await until(async () => (await served(), (await sim.stats()).calls_by_token[token.accessToken] > 0), 'it to serve')
  await manager.written()

  await manager.rewrite()
  await until(() => gate.accounts().length === 1, 'the loss to be seen')
  await served()
  assert.ok(await pool.token(added), 'its token is still there')
  // The service reloads its pool, as its UI can; then the account is in its memory too.
  await command('restore', added.slice(0, 8))
  manager.providerPools[TYPE].push(await pool.account(added))
  await manager.rewrite()
  await until(() => gate.accounts().length === 2, 'the account to be back')
  await served()
})
