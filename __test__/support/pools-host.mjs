// The current line of the existing Node.js service (3.x), as far as contract/node.md describes it (N80–N86, N89): no Redis, a
// pool file that its pool manager owns and rewrites whole, adapters by a registry of classes, plugins, pools with a suffix,
// `auto`. Nothing here knows what is behind the two drop-in points.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { MessagesOut, OpenAiOut, TYPE, fromOpenAi, readBody, sendJson, serverOf, tryAccounts } from './host.mjs'
import { folder, listening, sleep } from './stack.mjs'

/** The pool manager writes its file this long after a change. */
const SAVE_AFTER_MS = 100

/**
 * The service's folder: `configs/provider_pools.json` and a token file for each account. `pools`: by provider, a list of
 * access tokens, each alone or as `[access token, refresh token, members of the record]`.
 */
export function home(t, pools) {
  const root = folder()
  mkdirSync(path.join(root, 'configs', 'kiro'), { recursive: true })
  const expiresAt = new Date(Date.now() + 86_400_000).toISOString()
  let nth = 0
  const add = ([accessToken, refreshToken, more], type) => {
    // The pool asks accounts in the order of their ids (R36).
    const uuid = (nth++).toString(16).padStart(2, '0') + randomUUID().slice(2)
    const file = `./configs/kiro/${nth}_kiro-auth-token/${nth}_kiro-auth-token.json`
    mkdirSync(path.dirname(path.join(root, file)))
    // What others keep in the file stays, byte by byte.
    const token = `{
  "accessToken": "${accessToken}",
  "refreshToken": "${refreshToken ?? `refresh-${uuid}`}",
  "profileArn": "arn:aws:codewhisperer:us-east-1:000000000000:profile/SIMULATED",
  "expiresAt": "${expiresAt}",
  "authMethod": "social",
  "provider": "Google",
  "theirs": { "deep": [1, 2.50, 1e3, "\\u00fc"],   "big": 12345678901234567890 }
}
`
    writeFileSync(path.join(root, file), token, { mode: 0o600 })
    return { uuid, customName: `${type} ${nth}`, KIRO_OAUTH_CREDS_FILE_PATH: file, isHealthy: true, isDisabled: false, usageCount: 0, errorCount: 0, checkHealth: false, ...more }
  }
  const lists = Object.entries(pools).map(([type, tokens]) => [type, tokens.map((token) => add([token].flat(), type))])
  const file = path.join(root, 'configs', 'provider_pools.json')
  writeFileSync(file, JSON.stringify(Object.fromEntries(lists), null, 2))
  const read = () => JSON.parse(readFileSync(file, 'utf8'))
  const tokenFile = (record) => path.join(root, record.KIRO_OAUTH_CREDS_FILE_PATH)
  return {
    root,
    file,
    read,
    add,
    ids: Object.fromEntries(lists.map(([type, list]) => [type, list.map(({ uuid }) => uuid)])),
    tokenFile,
    token: (record) => readFileSync(tokenFile(record), 'utf8'),
  }
}

/** The pool manager: it keeps its accounts in memory and writes its whole file from there, a little after a change. */
export class PoolFileManager {
  calls = []
  #file
  #saving = null
  #slots = new Map()

  constructor(file) {
    this.#file = file
    this.providerPools = JSON.parse(readFileSync(file, 'utf8'))
  }

  take() {
    return this.calls.splice(0)
  }

  find(type, uuid) {
    return this.providerPools[type]?.find((record) => record.uuid === uuid)
  }

  /** The account that was used least. None when all are away, or at their limits: then `full` is set. */
  select(type, tried) {
    const able = (this.providerPools[type] ?? []).filter(({ uuid, isHealthy, isDisabled }) => isHealthy && !isDisabled && !tried.has(uuid))
    const free = able.filter((record) => !(record.concurrencyLimit > 0) || this.#running(record) < record.concurrencyLimit)
    return { record: free.sort((a, b) => a.usageCount - b.usageCount)[0], full: able.length > 0 && free.length === 0 }
  }

  /** A request of the service's own runs on the account until the returned function is called. */
  occupy({ uuid }) {
    this.#slots.set(uuid, (this.#slots.get(uuid) ?? 0) + 1)
    return () => this.#slots.set(uuid, this.#slots.get(uuid) - 1)
  }

  #running({ uuid }) {
    return this.#slots.get(uuid) ?? 0
  }

  markProviderHealthy(type, { uuid }) {
    this.#note('markProviderHealthy', type, uuid)
    const usageCount = (this.find(type, uuid)?.usageCount ?? 0) + 1
    this.#change(type, uuid, { isHealthy: true, errorCount: 0, needsRefresh: false, lastErrorTime: null, lastErrorMessage: null, usageCount, lastUsed: new Date().toISOString() })
  }

  markProviderUnhealthy(type, { uuid }, message) {
    this.#note('markProviderUnhealthy', type, uuid, message)
    const errorCount = (this.find(type, uuid)?.errorCount ?? 0) + 1
    this.#change(type, uuid, { isHealthy: errorCount < 3, errorCount, lastErrorTime: new Date().toISOString(), lastErrorMessage: message })
  }

  markProviderUnhealthyImmediately(type, { uuid }, message) {
    this.#note('markProviderUnhealthyImmediately', type, uuid, message)
    this.#change(type, uuid, { isHealthy: false, errorCount: 3, lastErrorTime: new Date().toISOString(), lastErrorMessage: message })
  }

  markProviderUnhealthyWithRecoveryTime(type, { uuid }, message, at) {
    this.#note('markProviderUnhealthyWithRecoveryTime', type, uuid, message, at)
    this.#change(type, uuid, { isHealthy: false, lastErrorMessage: message, scheduledRecoveryTime: at.toISOString(), lastErrorTime: new Date().toISOString() })
  }

  markProviderNeedRefresh(type, { uuid }) {
    this.#note('markProviderNeedRefresh', type, uuid)
    this.#change(type, uuid, { needsRefresh: true })
  }

  resetProviderRefreshStatus(type, uuid) {
    this.#note('resetProviderRefreshStatus', type, uuid)
    this.#change(type, uuid, { needsRefresh: false, refreshCount: 0 })
  }

  /** A person adds an account in the UI. */
  add(type, record) {
    this.providerPools[type] = [...(this.providerPools[type] ?? []), record]
    this.#save()
  }

  /** A person edits or resets an account in the UI. */
  edit(type, uuid, fields) {
    this.#change(type, uuid, fields)
  }

  /** Everything is in the file. */
  async written() {
    while (this.#saving !== null) await this.#saving
  }

  #note(method, type, uuid, ...rest) {
    this.calls.push([method, type, uuid, ...rest])
  }

  #change(type, uuid, fields) {
    const record = this.find(type, uuid)
    if (record === undefined) return
    Object.assign(record, fields)
    this.#save()
  }

  /** Whole, from memory: what another program wrote there meanwhile is lost. */
  #save() {
    this.#saving ??= sleep(SAVE_AFTER_MS).then(() => {
      this.#saving = null
      writeFileSync(`${this.#file}.tmp`, JSON.stringify(this.providerPools, null, 2))
      renameSync(`${this.#file}.tmp`, this.#file)
    })
  }
}

/** The registry of adapter classes: a pool with a suffix takes the class of its provider. */
export class Registry {
  #classes = new Map()
  instances = {}

  registerAdapter(provider, Class) {
    this.#classes.set(provider, Class)
  }

  classOf(provider) {
    const base = [...this.#classes.keys()].filter((name) => provider === name || provider.startsWith(`${name}-`))
    return this.#classes.get(base.sort((a, b) => b.length - a.length)[0])
  }

  /** One object for each account, as the service's getServiceAdapter has it. */
  adapter(config) {
    const key = config.MODEL_PROVIDER + (config.uuid ?? '')
    return (this.instances[key] ??= new (this.classOf(config.MODEL_PROVIDER))(config))
  }
}

/** The plugins, and whether one of them has a hook. */
export class Plugins {
  #plugins = []

  use(hooks) {
    this.#plugins.push(hooks)
  }

  wants(hook) {
    return this.#plugins.some((hooks) => typeof hooks[hook] === 'function')
  }

  async executeHook(hook, ...args) {
    for (const hooks of this.#plugins) await hooks[hook]?.(...args)
  }
}

/** The service. `kiro`: its call at point B; point A is what was registered. */
export async function poolsService(t, { manager, registry, plugins = new Plugins(), kiro, config = {} }) {
  const host = { log: [], ownCounts: 0, config, plugins, registry, handled: 0 }

  const server = serverOf(host, handle)

  async function handle(req, res) {
    res.setHeader('Access-Control-Allow-Origin', '*')
    if (req.method === 'OPTIONS') return res.writeHead(204).end()
    const current = { ...host.config }
    const [, first] = new URL(req.url, 'http://host').pathname.split('/')
    const named = req.headers['model-provider'] ?? (first === 'auto' || registry.classOf(first) !== undefined ? first : undefined)
    current.MODEL_PROVIDER = named ?? current.MODEL_PROVIDER ?? TYPE
    // The service strips the provider off the path.
    if (first === current.MODEL_PROVIDER) req.url = req.url.slice(first.length + 1)
    current.potluckApiKey = req.headers['x-api-key'] ?? null
    host.lastConfig = current
    if (kiro !== undefined && (await kiro(req, res, current))) return

    const path = req.url.split('?', 1)[0]
    const body = JSON.parse(await readBody(req))
    host.ownBody = body
    if (path === '/v1/messages/count_tokens') {
      host.ownCounts += 1
      return sendJson(res, { input_tokens: Math.ceil(JSON.stringify(body.messages).length / 4) })
    }
    if (path === '/v1/messages') return generate(res, current, body.model, body, body.stream ? new MessagesOut(res) : null)
    if (path === '/v1/chat/completions') {
      return generate(res, current, body.model, fromOpenAi(body), body.stream ? new OpenAiOut(res, body.model) : null)
    }
    res.writeHead(404).end()
  }

  /** Under `auto`: the first pool whose provider serves Claude models. */
  function poolOf(current) {
    if (current.MODEL_PROVIDER !== 'auto') return current.MODEL_PROVIDER
    return Object.keys(manager().providerPools).find((type) => type.startsWith('claude-'))
  }

  async function generate(res, current, name, body, out) {
    const type = poolOf(current)
    const model = host.config.customModels?.find(({ id }) => id === name)?.model ?? name
    const facts = { fromProvider: out instanceof OpenAiOut ? 'openai' : 'claude', toProvider: type, model, isStream: out !== null }
    const next = (tried) => {
      const { record, full } = manager().select(type, tried)
      const adapter = record && registry.adapter({ ...current, ...record, MODEL_PROVIDER: type })
      return { record, adapter, status: full ? 429 : 503 }
    }
    const heard = {
      answer: (answer) => plugins.executeHook('onUnaryResponse', { nativeResponse: answer, clientResponse: answer, ...facts }),
      event: (event) => plugins.executeHook('onStreamChunk', { nativeChunk: event, chunkToSend: event, ...facts }),
      end: () => plugins.executeHook('onContentGenerated', { ...current, ...facts, originalRequestBody: body, processedRequestBody: { ...body, model } }),
    }
    const occupy = (record) => manager().occupy(record)
    return tryAccounts(res, { log: host.log, manager, type, model, body, out, next, occupy, heard })
  }

  /** The refresh queue of this line: the adapter says whether it refreshed. */
  host.refresh = async (type, uuid) => {
    const record = manager().find(type, uuid)
    try {
      const done = await registry.adapter({ ...host.config, ...record, MODEL_PROVIDER: type }).forceRefreshToken()
      assert.equal(done, true, 'a refresh that is done says so')
    } catch (error) {
      manager().markProviderUnhealthyImmediately(type, record, `Refresh failed: ${error.message}`)
      throw error
    }
  }

  const port = await listening(t, server)
  return Object.assign(host, { url: `http://127.0.0.1:${port}`, port })
}
