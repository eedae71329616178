// kiro-messages/aiclient in the service's current line (3.x): a pool file, a registry of adapter classes, plugins, pools with
// a suffix, `auto` (N81–N85).
import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { before, test } from 'node:test'
import { createKiroAdapterClass, createKiroHandler } from 'kiro-messages/aiclient'
import { TYPE } from './support/host.mjs'
import { Plugins, PoolFileManager, Registry, home, poolsService } from './support/pools-host.mjs'
import { ask, events, folder, gateway, simulator, textOf, unique, until, wholeFile } from './support/stack.mjs'

const TEAM = `${TYPE}-team`
const file = wholeFile()
let sim

before(async () => {
  sim = await simulator(file)
})

/** The service with both drop-in points, as docs/drop-in.md has them for this line. */
async function stage(t, pools, { config, lends, gate } = {}) {
  const stage = { registry: new Registry(), plugins: new Plugins() }
  // Before the folder goes.
  t.after(() => stage.manager.written())
  stage.place = home(t, pools)
  stage.manager = new PoolFileManager(stage.place.file)
  const { place, plugins } = stage
  stage.lent = {
    getPoolManager: () => stage.manager,
    getServiceInstances: () => stage.registry.instances,
    onContentGenerated: (config, answer) => plugins.executeHook('onContentGenerated', { ...config, ...answer }),
    get onStreamChunk() {
      return plugins.wants('onStreamChunk') ? (chunk) => plugins.executeHook('onStreamChunk', chunk) : undefined
    },
    get onUnaryResponse() {
      return plugins.wants('onUnaryResponse') ? (answer) => plugins.executeHook('onUnaryResponse', answer) : undefined
    },
    ...lends,
  }
  if (gate) stage.lent.gateway = stage.gate = await gateway(t, sim, storeOf(t, place), gate)
  stage.registry.registerAdapter(TYPE, createKiroAdapterClass(stage.lent))
  stage.registry.registerAdapter('openai-custom', class {})
  stage.host = await poolsService(t, {
    manager: () => stage.manager,
    registry: stage.registry,
    plugins,
    kiro: createKiroHandler(stage.lent),
    config: { PROVIDER_POOLS_FILE_PATH: place.file, MODEL_PROVIDER: TYPE, ...config },
  })
  return stage
}

/** The same accounts in a store of ours, for a host that lends its own gateway. */
function storeOf(t, place) {
  const records = Object.entries(place.read()).flatMap(([type, list]) => (type.startsWith(TYPE) ? list : []))
  const accounts = Object.fromEntries(records.map((record) => [record.uuid, record]))
  const tokens = Object.fromEntries(records.map((record) => [record.uuid, JSON.parse(place.token(record))]))
  const store = path.join(folder(t), 'accounts.json')
  writeFileSync(store, JSON.stringify({ accounts, tokens }), { mode: 0o600 })
  return { options: { store: `file:${store}` } }
}

const post = ({ url }, body, path = `/${TYPE}/v1/messages`, headers = {}) =>
  fetch(url + path, { method: 'POST', headers, body: JSON.stringify(body) })
const read = async (answer) => events(Buffer.from(await answer.arrayBuffer()))
const stream = (scenario, more) => ask(scenario, { stream: true, ...more })
const methods = (manager) => manager.take().map(([method, type, uuid]) => [method, type, uuid])

test('point A is a class in the registry, one adapter an account, and a pool with a suffix has it too (N81, N82)', async (t) => {
  const { host, place, registry, manager } = await stage(t, { [TYPE]: [unique('ok')], [TEAM]: [unique('ok')] }, { gate: { affinity: 'off' } })
  const chat = (provider) => post(host, { model: 'claude-sonnet-4-6', messages: ask({ text: provider }).messages }, `/${provider}/v1/chat/completions`)
  for (const provider of [TYPE, TEAM]) {
    const answer = await (await chat(provider)).json()
    assert.equal(answer.content[0].text, provider)
    const [uuid] = place.ids[provider]
    assert.ok(registry.instances[provider + uuid] instanceof registry.classOf(TYPE))
    assert.deepEqual(methods(manager), [['markProviderHealthy', provider, uuid]])
  }
  assert.equal(registry.classOf(TYPE), registry.classOf(TEAM))
})

test('a refresh says whether there was one, and the pool of the account is told (N83)', async (t) => {
  const { host, place, registry, manager } = await stage(t, { [TYPE]: [unique('ok')], [TEAM]: [unique('ok'), [unique('ok'), 'sim-refresh-dead']] }, { gate: {} })
  const [good, dead] = place.ids[TEAM]
  const adapter = registry.adapter({ uuid: good, MODEL_PROVIDER: TEAM })
  assert.equal(await adapter.refreshToken(), false, 'its token lives for a day')
  await host.refresh(TEAM, good)
  assert.deepEqual(methods(manager), [['resetProviderRefreshStatus', TEAM, good]])
  assert.equal((await sim.stats()).refresh_calls[`refresh-${good}`], 1)
  await assert.rejects(host.refresh(TEAM, dead))
  assert.deepEqual(methods(manager).at(-1), ['markProviderUnhealthyImmediately', TEAM, dead])
})

test('point B takes a pool with a suffix, and `auto` where it can only mean Kiro; all others are the service’s (N81)', async (t) => {
  const { host, manager, lent } = await stage(t, { [TYPE]: [unique('ok')], 'openai-custom': [] }, { gate: {} })
  for (const [path, headers] of [
    [`/${TYPE}/v1/messages`], ['/v1/messages'], ['/auto/v1/messages?beta=true'], ['/v1/messages', { 'model-provider': 'auto' }], [`/${TEAM}/v1/messages`],
  ]) {
    assert.equal(textOf(await read(await post(host, stream({ text: path }), path, headers))), path)
  }
  assert.equal(host.ownBody, undefined, 'the service read none of them')
  assert.ok((await (await post(host, ask(), `/${TYPE}/v1/messages/count_tokens`)).json()).input_tokens > 0)
  assert.equal(host.ownCounts, 0, 'before its own count_tokens')
  // Another pool has an account: the service must choose, and its choice may be point A.
  manager.providerPools['openai-custom'] = [{ uuid: 'other', isHealthy: true }]
  assert.equal((await (await post(host, ask({ text: 'x' }), '/auto/v1/messages')).json()).content[0].text, 'x')
  assert.equal(host.ownBody.model, 'claude-sonnet-4-6')
  const kiro = createKiroHandler(lent)
  for (const provider of ['openai-custom', 'claude-custom', 'claude-kiro-oauthx', 'claude-kiro-oauth-', 'auto']) {
    assert.equal(await kiro({ method: 'POST', url: '/v1/messages' }, null, { MODEL_PROVIDER: provider }), false, provider)
  }
})

test('onContentGenerated gets the facts of the answer beside the configuration (N84)', async (t) => {
  const { host, place, plugins } = await stage(t, { [TYPE]: [unique('ok')] }, { gate: {} })
  const heard = []
  plugins.use({ onContentGenerated: (about) => heard.push(about) })
  const whole = await (await post(host, ask({ text: 'whole' }), undefined, { 'x-api-key': 'mine' })).json()
  const list = await read(await post(host, stream({ text: 'streamed' }), undefined, { 'x-api-key': 'mine' }))
  const refused = await post(host, { model: 'claude-sonnet-4-6', messages: 'no' })
  await until(() => heard.length === 3, 'three answers')
  assert.deepEqual(heard.map(({ isStream, status, outcome }) => [isStream, status, outcome]), [[false, 200, 'complete'], [true, 200, 'complete'], [false, 400, 'error']])
  for (const about of heard.slice(0, 2)) {
    const { uuid, model, potluckApiKey, fromProvider, toProvider, stopReason } = about
    assert.deepEqual({ uuid, model, potluckApiKey, fromProvider, toProvider, stopReason }, {
      uuid: place.ids[TYPE][0], model: 'claude-sonnet-4-6', potluckApiKey: 'mine', fromProvider: 'claude', toProvider: TYPE, stopReason: 'end_turn',
    })
    assert.match(about.requestId, /^req_/)
    assert.ok(about.durationMs >= 0)
  }
  assert.equal(heard[0].usage.output_tokens, whole.usage.output_tokens)
  assert.equal(heard[1].usage.output_tokens, list.find(({ type }) => type === 'message_delta').usage.output_tokens)
  assert.equal(heard[2].requestId, refused.headers.get('request-id'))
})

test('plugins that read answers get each event, or the whole message; without one nothing is parsed (N85)', async (t) => {
  const { host, plugins } = await stage(t, { [TYPE]: [unique('ok')] }, { gate: {} })
  const text = 'wörds \u2028 漢字'
  const body = stream({ text, pieces: 7 })
  const parse = JSON.parse
  let parsed = 0
  JSON.parse = (text, ...rest) => {
    if (String(text).includes('content_block')) parsed += 1
    return parse(text, ...rest)
  }
  const without = await (await post(host, body)).text().finally(() => (JSON.parse = parse))
  assert.equal(parsed, 0)

  const chunks = []
  const answers = []
  plugins.use({ onStreamChunk: (chunk) => chunks.push(chunk) })
  plugins.use({ onUnaryResponse: (answer) => answers.push(answer), onStreamChunk: () => Promise.reject(new Error('a plugin that fails')) })
  const said = console.error
  console.error = () => {}
  t.after(() => (console.error = said))
  const list = await read(await post(host, body))
  assert.deepEqual(chunks.map(({ nativeChunk }) => nativeChunk), list)
  assert.equal(textOf(events(Buffer.from(without))), textOf(list))
  assert.ok(chunks.every(({ chunkToSend, model, fromProvider, toProvider }) => chunkToSend && model === 'claude-sonnet-4-6' && fromProvider === 'claude' && toProvider === TYPE))
  assert.match(chunks[0].requestId, /^req_/)
  assert.deepEqual(answers, [])
  chunks.length = 0
  const whole = await (await post(host, ask({ text }))).json()
  assert.deepEqual([answers.length, answers[0].nativeResponse, chunks.length], [1, whole, 0])
  assert.equal((await post(host, { messages: 'no' })).status, 400)
  assert.equal(answers.length, 1, 'an error is no answer')
})

test('limits of an account hold at both points together, and a full queue answers 429 (N86)', async (t) => {
  const { host, gate } = await stage(t, { [TYPE]: [[unique('ok'), undefined, { concurrencyLimit: 2, queueLimit: 1 }]] }, { gate: {} })
  const slow = (name) => stream({ steps: [{ text: name }, { wait_ms: 700 }, { text: name }] })
  const chat = post(host, { model: 'claude-sonnet-4-6', stream: true, messages: slow('a').messages }, `/${TYPE}/v1/chat/completions`)
  const running = [chat, post(host, slow('b'))]
  await until(() => gate.accounts()[0].inFlight === 2, 'one at each point')
  const third = post(host, slow('c'))
  await until(() => /kiro_account_waits_total 1/.test(gate.metrics()), 'the third to wait')
  const fourth = await post(host, slow('d'))
  assert.equal(fourth.status, 429)
  assert.equal((await fourth.json()).error.type, 'rate_limit_error')
  for (const answer of await Promise.all([...running, third])) {
    assert.equal(answer.status, 200)
    await answer.text()
  }
  await until(() => gate.accounts()[0].inFlight === 0, 'all to end')
})
