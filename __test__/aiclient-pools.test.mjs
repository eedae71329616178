// kiro-messages/aiclient in the service's current line (3.x): a pool file, a registry of adapter classes, plugins, pools with
// a suffix, `auto` (N80–N86, N89).
import assert from 'node:assert/strict'
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { before, test } from 'node:test'
import { KiroGateway } from 'kiro-messages'
import { close, createKiroAdapter, createKiroAdapterClass, createKiroHandler } from 'kiro-messages/aiclient'
import { TYPE } from './support/host.mjs'
import { Plugins, PoolFileManager, Registry, home, poolsService } from './support/pools-host.mjs'
import { ask, events, folder, gateway, simulator, sleep, start, textOf, unique, until, wholeFile } from './support/stack.mjs'

const TEAM = `${TYPE}-team`
const file = wholeFile()
let sim

before(async () => {
  sim = await simulator(file)
  // The gateways that the drop-in connects by itself take all but the store from the environment.
  for (const name of ['KIRO_STORE', 'REDIS_URL', 'REDIS_HOST']) delete process.env[name]
  Object.assign(process.env, sim.env, { KIRO_ACCOUNT_CACHE_TTL: '100ms', KIRO_LOG_LEVEL: 'off' })
})

/** The service with both drop-in points, as docs/drop-in.md has them for this line. */
async function stage(t, pools, { config, lends, gate } = {}) {
  const stage = { registry: new Registry(), plugins: new Plugins() }
  // Before the folder goes.
  t.after(async () => {
    await close({ graceMs: 0 })
    await stage.manager.written()
  })
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
  const store = path.join(folder(), 'accounts.json')
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

/** What the host's plugins hear of answers, and the same service without point B. */
async function bothPoints(t, config, lends) {
  const both = await stage(t, { [TYPE]: [unique('ok')] }, { gate: { affinity: 'off' }, config, lends })
  const heard = []
  both.plugins.use({ onContentGenerated: (about) => heard.push(about) })
  const { manager, registry, plugins } = both
  const alone = await poolsService(t, { manager: () => manager, registry, plugins, config: { ...both.host.config } })
  return { ...both, heard, hosts: { A: alone, B: both.host } }
}

test('a custom model is served at B as at A: by the model that it stands for (N98)', async (t) => {
  const customModels = [
    { id: 'my-fast', model: 'claude-haiku-4-5', note: [1] },
    { id: 'my-fast', model: 'claude-opus-4-5' },
    { id: 'claude-opus-4-6', model: 'claude-sonnet-4-5' },
    { id: 'chain', model: 'my-fast' },
    { id: 'alone' },
    { id: 'claude-haiku-4-5' },
    { model: 'no-id' },
    null,
  ]
  const { hosts, heard, lent } = await bothPoints(t, { customModels: customModels.filter((custom) => custom !== null) })
  hosts.B.config.customModels = customModels
  const { warn } = console
  console.warn = () => {}
  t.after(() => (console.warn = warn))
  for (const [name, shown, served] of [
    ['my-fast', 'claude-haiku-4-5', 'claude-haiku-4.5'],
    ['claude-opus-4-6', 'claude-sonnet-4-5', 'claude-sonnet-4.5'],
    ['claude-haiku-4-5', 'claude-haiku-4-5', 'claude-haiku-4.5'],
    // One look: what it gives is a name that nobody knows.
    ['chain', 'my-fast', 'claude-sonnet-4.5'],
    ['alone', 'alone', 'claude-sonnet-4.5'],
    ['claude-opus-4-5', 'claude-opus-4-5', 'claude-opus-4.5'],
  ]) {
    for (const [point, host] of Object.entries(hosts)) {
      const text = `${name} at ${point}`
      const whole = await (await post(host, ask({ text }, { model: name }))).json()
      const [start] = await read(await post(host, stream({ text }, { model: name })))
      assert.deepEqual([whole.model, start.message.model], [shown, shown], text)
      const { body } = (await sim.chats()).at(-1)
      assert.equal(JSON.parse(body).conversationState.currentMessage.userInputMessage.modelId, served, text)
      assert.equal(heard.splice(0).at(-1).model, shown, text)
    }
  }
  assert.equal(hosts.B.ownBody, undefined)
  // An unknown name is refused here, a custom one is not; and the next configuration counts.
  lent.modelFallback = null
  const count = async (name) => (await post(hosts.B, ask({ text: 'x' }, { model: name }), `/${TYPE}/v1/messages/count_tokens`)).status
  assert.deepEqual([await count('alone'), await count('my-fast'), await count('new')], [404, 200, 404])
  hosts.B.config.customModels = [{ id: 'new', model: 'claude-haiku-4-5' }]
  assert.deepEqual([await count('my-fast'), await count('new')], [404, 200])
  // The list of models is the service's own, with what it adds of its own.
  assert.equal(await createKiroHandler(lent)({ method: 'GET', url: '/v1/models' }, null, hosts.B.config), false)
})

test('a plugin gets the bodies of requests at B as at A; without one they are neither kept nor parsed (N99)', async (t) => {
  let wanted = false
  const lends = { get requestBodies() { return wanted } }
  const { hosts, heard, lent } = await bothPoints(t, { customModels: [{ id: 'mine', model: 'claude-haiku-4-5' }] }, {})
  Object.defineProperties(lent, Object.getOwnPropertyDescriptors(lends))
  const text = 'wörds \u2028 漢字'.repeat(20_000)
  const body = stream({ text: 'x' }, { model: 'mine', messages: [...ask({ text: 'x' }).messages, { role: 'assistant', content: 'x' }, { role: 'user', content: text }] })
  const { parse } = JSON
  const { concat } = Buffer
  const watched = async (work) => {
    let parsed = 0
    let copied = 0
    JSON.parse = (text, ...rest) => ((parsed += String(text).includes('漢字') ? 1 : 0), parse(text, ...rest))
    Buffer.concat = (list, ...rest) => ((copied += list.some((part) => part.length > 10_000) ? 1 : 0), concat(list, ...rest))
    await work().finally(() => Object.assign(JSON, { parse }) && Object.assign(Buffer, { concat }))
    return [parsed, copied]
  }
  assert.deepEqual(await watched(async () => read(await post(hosts.B, body))), [0, 0])
  await until(() => heard.length === 1, 'the hook')
  const [without] = heard.splice(0)
  assert.deepEqual([without.model, 'originalRequestBody' in without, 'processedRequestBody' in without], ['claude-haiku-4-5', false, false])

  wanted = true
  await read(await post(hosts.A, body))
  assert.deepEqual(await watched(async () => read(await post(hosts.B, body))), [1, 1])
  await until(() => heard.length === 2, 'both hooks')
  const [atA, atB] = heard.splice(0)
  assert.deepEqual(atB.originalRequestBody, body)
  assert.deepEqual(atB.processedRequestBody, { ...body, model: 'claude-haiku-4-5' })
  for (const name of ['originalRequestBody', 'processedRequestBody', 'model', 'isStream', 'fromProvider', 'toProvider']) assert.deepEqual(atB[name], atA[name], name)
  // The service's system-prompt file is in what was served.
  const files = { SYSTEM_PROMPT_FILE_PATH: 'configs/input_system_prompt.txt', SYSTEM_PROMPT_CONTENT: 'Speak.' }
  const blocks = [{ type: 'text', text: 'Be kind.' }]
  for (const [system, mode, expected] of [
    ['Be kind.', 'append', 'Be kind.\nSpeak.'],
    [blocks, 'append', [...blocks, { type: 'text', text: 'Speak.' }]],
    ['', 'append', 'Speak.'],
    [undefined, 'append', 'Speak.'],
    ['Be kind.', 'overwrite', 'Speak.'],
  ]) {
    Object.assign(hosts.B.config, files, { SYSTEM_PROMPT_MODE: mode })
    await (await post(hosts.B, { ...ask({ text: 'x' }), ...(system !== undefined && { system }) })).text()
    await until(() => heard.length === 1, 'the hook')
    const [{ originalRequestBody, processedRequestBody }] = heard.splice(0)
    assert.deepEqual([originalRequestBody.system, processedRequestBody.system], [system, expected])
  }
  // What is no JSON, and a getter that fails.
  await (await fetch(`${hosts.B.url}/${TYPE}/v1/messages`, { method: 'POST', body: '{"model":' })).text()
  await until(() => heard.length === 1, 'the hook')
  assert.deepEqual([heard[0].status, 'originalRequestBody' in heard.splice(0)[0]], [400, false])
  Object.defineProperty(lent, 'requestBodies', { get: () => lent.plugins.wants() })
  const lines = logged(t)
  for (let n = 0; n < 2; n++) assert.equal((await post(hosts.B, ask({ text: 'x' }))).status, 200)
  assert.equal(lines.filter((line) => line.includes('requestBodies: TypeError')).length, 1)
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

test('a getter for a hook that throws harms no request, and the log says so once (N14, N85)', async (t) => {
  const lends = Object.fromEntries(['onStreamChunk', 'onUnaryResponse', 'onSystemPrompt'].map((name) => [name, undefined]))
  const { host, lent } = await stage(t, { [TYPE]: [unique('ok')] }, { gate: {}, lends, config: { PROMPT_LOG_MODE: 'console' } })
  const plugins = {}
  for (const name of ['onStreamChunk', 'onUnaryResponse', 'onSystemPrompt', 'logPrompt', 'onContentGenerated']) {
    Object.defineProperty(lent, name, { enumerable: true, get: () => (plugins.wants(name) ? () => {} : undefined) })
  }
  const lines = logged(t)
  for (const text of ['one', 'two']) assert.equal(textOf(await read(await post(host, stream({ text })))), text)
  assert.equal((await (await post(host, ask({ text: 'whole' }))).json()).content[0].text, 'whole')
  for (const name of ['onStreamChunk', 'onUnaryResponse', 'onSystemPrompt', 'logPrompt']) {
    assert.equal(lines.filter((line) => line.includes(`${name}: TypeError: plugins.wants`)).length, 1, name)
  }
})

test('a member of the host that nobody asks for is named once, with the one that was meant (N71)', (t) => {
  const { warn } = console
  const lines = []
  console.warn = (line) => lines.push(line)
  t.after(() => (console.warn = warn))
  const host = { getPoolManger: () => null, ofItsOwn: 1, lenient: true }
  createKiroHandler(host)
  createKiroAdapter({}, host)
  assert.deepEqual(lines, ['[kiro-messages] host.getPoolManger: unknown member; did you mean getPoolManager?', '[kiro-messages] host.ofItsOwn: unknown member'])
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

/** A token file without the three values that a refresh may change. */
const withoutTokens = (text) => text.replace(/("(?:accessToken|refreshToken|expiresAt)": )"[^"]*"/g, '$1""')

test('the pool file is found by the service’s configuration; each pool is served by its own accounts (N80, N81)', async (t) => {
  const [plain, team, suspended] = [unique('ok'), unique('ok'), unique('suspended')]
  const { host, place, manager } = await stage(t, { [TYPE]: [plain], [TEAM]: [team], [`${TYPE}-b`]: [suspended], 'openai-custom': [] })
  const others = place.read()
  for (const [provider, token] of [[TYPE, plain], [TEAM, team]]) {
    assert.equal(textOf(await read(await post(host, stream({ text: provider }), `/${provider}/v1/messages`))), provider)
    assert.equal((await sim.stats()).calls_by_token[token], 1)
    await until(() => manager.calls.length > 0, 'the pool manager to be told')
    assert.deepEqual(methods(manager), [['markProviderHealthy', provider, place.ids[provider][0]]])
  }
  const refused = await post(host, stream({ text: 'x' }), `/${TYPE}-b/v1/messages`)
  assert.notEqual(refused.status, 200)
  const { calls_by_token: calls } = await sim.stats()
  assert.deepEqual([calls[plain], calls[team]], [1, 1], 'no account of another pool')
  await until(() => manager.calls.length > 0, 'the mark')
  assert.deepEqual(methods(manager), [['markProviderUnhealthyImmediately', `${TYPE}-b`, place.ids[`${TYPE}-b`][0]]])
  await manager.written()
  const now = place.read()
  assert.deepEqual(Object.keys(now), Object.keys(others))
  assert.deepEqual([TYPE, TEAM, `${TYPE}-b`].map((type) => now[type][0].usageCount), [1, 1, 0])
  assert.match(now[`${TYPE}-b`][0].lastErrorMessage, /^ejected: /)
})

/** The gateways that are connected from now on, each by its store; `instead` takes the place of the connect. */
function connects(t, instead) {
  const { connect } = KiroGateway
  const stores = []
  KiroGateway.connect = (options) => {
    stores.push(options.store)
    return (instead ?? connect).call(KiroGateway, options)
  }
  t.after(() => (KiroGateway.connect = connect))
  return stores
}

/** What is written to the log from now on. */
function logged(t) {
  const { error } = console
  const lines = []
  console.error = (...said) => lines.push(said.map((what) => what?.stack ?? String(what)).join(' '))
  t.after(() => (console.error = error))
  return lines
}

test('a suffix that nobody has makes no gateway: the service answers as for any provider that it lacks (N81)', async (t) => {
  const { host, place, manager, lent } = await stage(t, { [TYPE]: [unique('ok')], [TEAM]: [unique('ok')] })
  const stores = connects(t)
  for (let n = 0; n < 20; n++) {
    const name = `${TYPE}-x${n}`
    const [path, headers] = n % 2 ? [`/${name}/v1/messages`, {}] : ['/v1/messages', { 'model-provider': name }]
    const answer = await post(host, stream({ text: name }), path, headers)
    assert.deepEqual([answer.status, host.ownBody?.model], [503, 'claude-sonnet-4-6'], 'by the service itself')
    await answer.text()
    host.ownBody = undefined
  }
  assert.deepEqual(stores, [])
  // The service makes such an adapter while a pool is empty.
  const lost = createKiroAdapter({ MODEL_PROVIDER: `${TYPE}-x0` }, lent)
  await assert.rejects(lost.generateContent('claude-sonnet-4-6', ask()), { code: 'KIRO_NO_ACCOUNT', status: 503, shouldSwitchCredential: false })
  assert.equal(lost.isExpiryDateNear(), false)
  assert.deepEqual(stores, [])
  // One that only the pool manager has yet, and one that only the file has.
  manager.providerPools[`${TYPE}-new`] = []
  const pools = { ...place.read(), [`${TYPE}-filed`]: [place.add([unique('ok')], TEAM)] }
  writeFileSync(place.file, JSON.stringify(pools))
  assert.equal((await post(host, stream({ text: 'x' }), `/${TYPE}-new/v1/messages`)).status, 503)
  const filed = `/${TYPE}-filed/v1/messages`
  await until(async () => (await post(host, stream({ text: 'filed' }), filed)).status === 200, 'the file to be looked at again')
  assert.deepEqual(stores.map((store) => store.split('#')[1]), [`${TYPE}-new`, `${TYPE}-filed`])
})

test('an empty pool says what brings an account, and no path; the log has it (R56, N80)', async (t) => {
  const { host, place } = await stage(t, { [TYPE]: [] })
  const answer = await post(host, stream({ text: 'x' }))
  const { error } = await answer.json()
  assert.equal(answer.status, 503)
  assert.equal(error.message, 'There are no accounts in the pool file: add one in the Node.js service')
  assert.doesNotMatch(JSON.stringify(error), new RegExp(place.root))
})

test('there is a bound for gateways, whatever the pool manager takes for a pool (N81)', async (t) => {
  const { host, manager } = await stage(t, { [TYPE]: [unique('ok')] })
  const stores = connects(t, () => Promise.reject(Object.assign(new Error('away'), { code: 'KIRO_STORE_UNAVAILABLE', status: 503 })))
  const lines = logged(t)
  for (let n = 0; n < 80; n++) {
    manager.providerPools[`${TYPE}-p${n}`] = []
    await (await post(host, ask(), `/${TYPE}-p${n}/v1/messages`)).text()
  }
  assert.equal(stores.length, 64)
  assert.equal(lines.filter((line) => line.includes('64 pools')).length, 1)
})

test('why a gateway is not there is in the log, and no client sees a path of the machine (N4)', async (t) => {
  process.env.NODE_EXTRA_CA_CERTS = '/etc/ssl/none-of-these.pem'
  t.after(() => delete process.env.NODE_EXTRA_CA_CERTS)
  const { host, place, lent } = await stage(t, { [TYPE]: [unique('ok')] })
  const lines = logged(t)
  const answer = await post(host, stream({ text: 'x' }))
  const said = await answer.text()
  assert.equal(answer.status, 500)
  assert.doesNotMatch(said, /\/etc|NODE_EXTRA/)
  assert.match(said, /the log of the service says why/)
  assert.equal((await post(host, stream({ text: 'y' }))).status, 500)
  const adapter = createKiroAdapter({ uuid: place.ids[TYPE][0], MODEL_PROVIDER: TYPE }, lent)
  const error = await adapter.generateContent('claude-sonnet-4-6', ask()).catch((error) => error)
  assert.deepEqual([error.code, error.status, error.shouldSwitchCredential], ['KIRO_CONFIG', 500, false])
  assert.doesNotMatch(error.message + JSON.stringify(error.response), /\/etc|NODE_EXTRA/)
  const reasons = lines.filter((line) => line.includes('/etc/ssl/none-of-these.pem'))
  assert.equal(reasons.length, 1, 'once for a failure')
})

test('a `#` in the path of the pool file is part of the path, unless a list follows it (N80, N81)', async (t) => {
  const team = unique('ok')
  const pools = { [TYPE]: [unique('suspended')], [TEAM]: [team] }
  const odd = (place) => {
    const link = path.join(folder(), 'a#b')
    symlinkSync(place.root, link)
    return path.join(link, 'configs', 'provider_pools.json')
  }
  const place = home(t, pools)
  const stores = connects(t)
  const { host } = await stage(t, pools, { config: { PROVIDER_POOLS_FILE_PATH: odd(place) } })
  for (const [provider, served] of [[TYPE, false], [TEAM, true]]) {
    const { status } = await post(host, stream({ text: unique('said') }), `/${provider}/v1/messages`)
    assert.equal(status === 200, served, 'each pool by its own accounts')
  }
  assert.deepEqual([(await sim.stats()).calls_by_token[team], stores.length], [1, 2])
  await close({ graceMs: 0 })
  // A list that the store names serves all, with one gateway.
  process.env.KIRO_STORE = `aiclient:${odd(place)}#${TEAM}`
  t.after(() => delete process.env.KIRO_STORE)
  for (const provider of [TYPE, TEAM, `${TYPE}-any`]) assert.equal((await post(host, stream({ text: provider }), `/${provider}/v1/messages`)).status, 200)
  assert.equal(stores.length, 3)
})

test('with Redis in the configuration or the environment, or a store named there, the pool file is left alone (N80)', async (t) => {
  const place = home(t, { [TYPE]: [unique('ok')] })
  const program = (config) => `
    import { createKiroAdapter, close } from 'kiro-messages/aiclient'
    process.chdir(${JSON.stringify(place.root)})
    const config = { uuid: ${JSON.stringify(place.ids[TYPE][0])}, PROVIDER_POOLS_FILE_PATH: 'configs/provider_pools.json', ...${JSON.stringify(config)} }
    const adapter = createKiroAdapter(config)
    process.chdir('/')
    const said = adapter.generateContent('claude-sonnet-4-6', ${JSON.stringify(ask({ text: 'x' }))})
    console.log(await said.then(() => 'served', ({ code }) => code))
    await close()
    process.exit(0)`
  const run = async (config, env = {}) => {
    const more = { ...sim.env, KIRO_STORE_WAIT: '200ms', KIRO_LOG_LEVEL: 'off', ...env }
    const child = start(t, process.execPath, ['--input-type=module', '-e', program(config)], { cwd: import.meta.dirname, env: more })
    await child.ended
    return child.output.trim().split('\n').at(-1)
  }
  const nowhere = { host: '127.0.0.1', port: 1 }
  const seen = await Promise.all([
    run({}), run({ redis: { ...nowhere, enabled: false } }), run({ redis: nowhere }), run({}, { REDIS_URL: 'redis://127.0.0.1:1' }), run({}, { KIRO_STORE: `aiclient:${place.file}` }),
  ])
  assert.deepEqual(seen, ['served', 'served', 'KIRO_STORE_UNAVAILABLE', 'KIRO_STORE_UNAVAILABLE', 'served'])
})

test('an account that the UI adds, disables or resets is served so, and one that rested comes back by itself (N80, N89)', async (t) => {
  process.env.KIRO_HEALTH_COOLDOWN = '300ms'
  t.after(() => delete process.env.KIRO_HEALTH_COOLDOWN)
  const token = unique('ok')
  const { host, place, manager, registry } = await stage(t, { [TYPE]: [token] })
  const [first] = place.ids[TYPE]
  const ok = async (text) => assert.equal(textOf(await read(await post(host, stream({ text })))), text)
  await ok('one')
  await sim.script({ token, scenarios: ['429'] })
  assert.equal((await post(host, stream({ text: 'x' }))).status, 429)
  await until(() => manager.find(TYPE, first).isHealthy === false, 'the mark')
  await until(async () => (await post(host, stream({ text: 'again' }))).status === 200, 'it to come back')
  await until(() => manager.find(TYPE, first).isHealthy === true, 'the host to hear of it')
  // The service's own mark doesn't keep it away for good either.
  manager.markProviderUnhealthyImmediately(TYPE, { uuid: first }, 'Refresh failed: once')
  await manager.written()
  await until(async () => (await post(host, stream({ text: 'healed' }))).status === 200, 'it to come back')
  await until(() => manager.find(TYPE, first).isHealthy === true, 'the host to hear of it')

  const added = unique('ok')
  const record = place.add([added], TYPE)
  manager.add(TYPE, record)
  await manager.written()
  const answer = await registry.adapter({ ...record, MODEL_PROVIDER: TYPE }).generateContent('claude-sonnet-4-6', ask({ text: 'at once' }))
  assert.equal(answer.content[0].text, 'at once')
  manager.edit(TYPE, first, { isDisabled: true })
  await manager.written()
  await sleep(400)
  await ok('by the new one')
  assert.equal((await sim.stats()).calls_by_token[added], 2)
})

test('a stream from before a mark counts once and does not heal (N89, R28)', async (t) => {
  const token = unique('ok')
  const { host, place, manager } = await stage(t, { [TYPE]: [token] })
  const [id] = place.ids[TYPE]
  const long = await post(host, stream({ steps: [{ text: 'a' }, { wait_ms: 1000 }, { text: 'b' }], usage: true }))
  await sim.script({ token, scenarios: ['429'] })
  assert.equal((await post(host, stream({ text: 'x' }))).status, 429)
  await until(() => manager.calls.length > 0, 'the mark')
  assert.deepEqual(methods(manager), [['markProviderUnhealthyImmediately', TYPE, id]])
  assert.equal(textOf(await read(long)), 'ab')
  await until(() => manager.find(TYPE, id).usageCount === 1, 'the bare count')
  assert.deepEqual([methods(manager), manager.find(TYPE, id).isHealthy], [[], false])
  manager.edit(TYPE, id, {})
  await manager.written()
  assert.equal(place.read()[TYPE][0].usageCount, 1)
})

test('200 streams at once: counts exact, one refresh for each token, unknown members byte-equal, no account stuck (N80, N89)', { timeout: 120_000 }, async (t) => {
  const rejected = () => unique('401')
  const { host, place, manager } = await stage(t, { [TYPE]: Array.from({ length: 6 }, rejected), [TEAM]: [rejected(), rejected()], 'openai-custom': [] })
  const before = place.read()
  const records = [TYPE, TEAM].flatMap((type) => before[type].map((record) => ({ type, record, text: place.token(record) })))
  const one = async (n) => {
    const type = n % 4 === 3 ? TEAM : TYPE
    const text = `stream ${n} wörds`
    const body = stream({ text, pieces: 5, gap_ms: 20 })
    // Every fifth through the converters, and so by the adapters.
    const path = n % 5 === 4 ? 'chat/completions' : 'messages'
    const answer = await post(host, body, `/${type}/v1/${path}`)
    const bytes = Buffer.from(await answer.arrayBuffer())
    assert.equal(answer.status, 200, bytes.toString())
    const said = path === 'messages' ? textOf(events(bytes)) : chat(bytes.toString())
    assert.equal(said, text)
    return type
  }
  const types = await Promise.all(Array.from({ length: 200 }, (_, n) => one(n)))
  const counted = (type) => manager.providerPools[type].reduce((sum, { usageCount }) => sum + usageCount, 0)
  for (const type of [TYPE, TEAM]) {
    await until(() => counted(type) === types.filter((one) => one === type).length, `the counts of ${type}: ${counted(type)}`)
  }
  await sleep(300)
  await manager.written()
  const after = place.read()
  const fields = ({ uuid, customName, KIRO_OAUTH_CREDS_FILE_PATH, isDisabled, checkHealth }) => ({ uuid, customName, KIRO_OAUTH_CREDS_FILE_PATH, isDisabled, checkHealth })
  const { refresh_calls: refreshes } = await sim.stats()
  for (const { type, record, text } of records) {
    const now = after[type].find(({ uuid }) => uuid === record.uuid)
    assert.deepEqual(fields(now), fields(record))
    assert.deepEqual([now.isHealthy, now.errorCount, now.usageCount > 0], [true, 0, true], record.uuid)
    assert.equal(refreshes[`refresh-${record.uuid}`], 1, 'one refresh')
    const written = readFileSync(place.tokenFile(record), 'utf8')
    assert.notEqual(written, text)
    assert.equal(withoutTokens(written), withoutTokens(text))
  }
  assert.equal(counted(TYPE) + counted(TEAM), 200)
})

/** The text of chunks of OpenAI's protocol. */
function chat(sse) {
  const lines = sse.split('\n').filter((line) => line.startsWith('data: {'))
  return lines.map((line) => JSON.parse(line.slice('data: '.length)).choices[0].delta.content ?? '').join('')
}
