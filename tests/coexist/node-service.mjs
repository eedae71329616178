// The existing Node.js service as Redis sees it, written from contract/redis.md (E1 to E12) and from nothing else.
//
// A test drives it: one JSON object a line on standard input, one a line back. Every write that reached Redis is in its
// journal with the text that lay there before and after it, so that a test can tell what we lost from what was
// overwritten. It ends with its standard input.
import { randomUUID } from 'node:crypto'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'

const PREFIX = 'aiclient:'
const POOL = `${PREFIX}pools:claude-kiro-oauth`
const TOKENS = 'tokens:claude-kiro-oauth:'
/** E10: more than this is not kept in an outage. */
const QUEUE = 1000

/** E5: decoded and encoded by Lua's cjson. What `set` holds is set, what `add` holds is added to (R25: fails on null). */
const UPDATE_ACCOUNT = `
local before = redis.call('HGET', KEYS[1], ARGV[1])
if not before then return redis.error_reply('no such account') end
local account = cjson.decode(before)
for name, value in pairs(cjson.decode(ARGV[2])) do account[name] = value end
for name, value in pairs(cjson.decode(ARGV[3])) do account[name] = account[name] + value end
local after = cjson.encode(account)
redis.call('HSET', KEYS[1], ARGV[1], after)
return { before, after }`

/** E7, E8: compares with the token that lies there now, not with the one that was used, and writes a missing key too. */
const UPDATE_TOKEN = `
local before = redis.call('GET', KEYS[1])
if before and ARGV[1] ~= '' and cjson.decode(before).refreshToken ~= ARGV[1] then return redis.error_reply('changed') end
redis.call('SET', KEYS[1], ARGV[2])
return { before, ARGV[2] }`

class NodeService {
  /** E1: the truth, as this program sees it: account id to record, token key to record. */
  accounts = new Map()
  tokens = new Map()
  journal = []
  #queue = []
  #draining = false
  #sequence = 0
  #sent = 0
  #busy = null

  constructor(redisUrl, refreshUrl) {
    this.refreshUrl = refreshUrl
    this.redis = new Redis(redisUrl, {
      enableOfflineQueue: false,
      maxRetriesPerRequest: 0,
      retryStrategy: (times) => Math.min(times * 50, 500),
    })
    this.redis.defineCommand('updateAccount', { numberOfKeys: 1, lua: UPDATE_ACCOUNT })
    this.redis.defineCommand('updateToken', { numberOfKeys: 1, lua: UPDATE_TOKEN })
    // An outage shows in every command; the event is for the library's own log.
    this.redis.on('error', () => {})
    this.redis.on('ready', () => this.#drain())
  }

  /** Connected, and the pool read once (E1). */
  async load() {
    if (this.redis.status !== 'ready') await new Promise((resolve) => this.redis.once('ready', resolve))
    this.accounts.clear()
    for (const [uuid, text] of Object.entries(await this.redis.hgetall(POOL))) {
      this.accounts.set(uuid, JSON.parse(text))
    }
    return { accounts: this.accounts.size }
  }

  /** What a start of the service does: E1, then E3. */
  async start() {
    await this.load()
    for (const [uuid, record] of this.accounts) {
      Object.assign(record, { errorCount: 0, usageCount: 0 })
      await this.#update(uuid, { errorCount: 0, usageCount: 0 })
    }
  }

  /** E12, then E2: so many requests that went well, each on the account that this program chooses. */
  async use({ times = 1, uuid }) {
    for (let n = 0; n < times; n++) {
      const chosen = uuid ?? this.#choose()
      const record = this.accounts.get(chosen)
      record.usageCount = (Number(record.usageCount) || 0) + 1
      record.lastUsed = new Date().toISOString()
      record._lastSelectionSeq = ++this.#sequence
      Object.assign(record, { isHealthy: true, errorCount: 0, needsRefresh: false })
      const { usageCount, lastUsed } = record
      await this.#update(chosen, { isHealthy: true, errorCount: 0, needsRefresh: false, usageCount, lastUsed })
    }
  }

  /** `use` again and again in the background, until `idle`. */
  async busy({ every_ms: every, uuids }) {
    const control = { stopped: false, used: 0 }
    const run = async () => {
      while (!control.stopped) {
        await this.use({ uuid: uuids?.[control.used % uuids.length] })
        control.used += 1
        await sleep(every)
      }
    }
    this.#busy = { control, ended: run() }
  }

  async idle() {
    const { control, ended } = this.#busy
    control.stopped = true
    await ended
    return { used: control.used }
  }

  /** E6: out for good. */
  async fail({ uuid, message }) {
    const lastErrorTime = new Date().toISOString()
    const set = { isHealthy: false, lastErrorTime, lastErrorMessage: message }
    const record = this.accounts.get(uuid)
    Object.assign(record, set, { errorCount: (record.errorCount ?? 0) + 1 })
    await this.#update(uuid, set, { errorCount: 1 })
  }

  /** A person saves an account in the UI: every field that is shown, as a string (R11). */
  async edit({ uuid, fields }) {
    const shown = Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, String(value)]))
    Object.assign(this.accounts.get(uuid), shown)
    await this.#update(uuid, shown)
  }

  /** A person resets an account in the UI (R15). */
  async reset({ uuid }) {
    const set = { isHealthy: true, errorCount: 0, refreshCount: 0, needsRefresh: false, lastErrorTime: null }
    Object.assign(this.accounts.get(uuid), set)
    await this.#update(uuid, set)
  }

  /** A person deletes an account in the UI. */
  async remove({ uuid }) {
    const key = this.#tokenKey(uuid)
    this.accounts.delete(uuid)
    this.tokens.delete(key)
    await this.#write(async () => {
      const at = this.#now()
      const [[, before]] = await all(this.redis.multi().hget(POOL, uuid).hdel(POOL, uuid).del(key))
      this.journal.push({ at, uuid, before, after: null })
    })
  }

  /** E4: the whole pool from memory, as DEL and then a separate MULTI. */
  async rewrite({ gap_ms: gap = 0 } = {}) {
    await this.#write(async () => {
      // The old record is read only for the journal, in the same step.
      const deleted = this.#now()
      const [[, old]] = await all(this.redis.multi().hgetall(POOL).del(POOL))
      for (const [uuid, before] of Object.entries(old)) this.journal.push({ at: deleted, uuid, before, after: null })
      await sleep(gap)
      const texts = [...this.accounts].map(([uuid, record]) => [uuid, JSON.stringify(record)])
      const multi = this.redis.multi().hgetall(POOL)
      for (const [uuid, text] of texts) multi.hset(POOL, uuid, text)
      const at = this.#now()
      const [[, there]] = await all(multi)
      for (const [uuid, after] of texts) this.journal.push({ at, uuid, before: there[uuid] ?? null, after })
    })
  }

  /** E7: with the token that is held since it was read first, without the lock. */
  async refresh({ uuid }) {
    const key = this.#tokenKey(uuid)
    const held = await this.#token(key)
    const answer = await fetch(this.refreshUrl, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'user-agent': `KiroIDE-9.9.9-${'0a'.repeat(32)}` },
      body: JSON.stringify({ refreshToken: held.refreshToken }),
    })
    const body = await answer.json()
    if (answer.status !== 200) {
      await this.fail({ uuid, message: `Refresh failed: ${body.message ?? answer.status}` })
      return { refreshed: false, used: held.refreshToken }
    }
    const { accessToken, refreshToken, expiresIn } = body
    // R46: a refresh answer without a refresh token loses the field.
    const record = { ...held, accessToken, refreshToken, expiresAt: new Date(Date.now() + expiresIn * 1000).toISOString() }
    this.tokens.set(key, record)
    await this.#write(async () => {
      const there = await this.redis.get(key)
      const expected = there === null ? '' : (JSON.parse(there).refreshToken ?? '')
      const at = this.#now()
      const [before, after] = await this.redis.updateToken(key, expected, JSON.stringify(record))
      this.journal.push({ at, token: key, before, after })
    })
    return { refreshed: true, used: held.refreshToken, refreshToken: record.refreshToken }
  }

  /** E7, E10: the token that is held goes to Redis once more, whatever lies there by now. */
  async save_token({ uuid }) {
    const key = this.#tokenKey(uuid)
    const text = JSON.stringify(await this.#token(key))
    await this.#write(async () => {
      const at = this.#now()
      const [[, before]] = await all(this.redis.multi().get(key).set(key, text))
      this.journal.push({ at, token: key, before, after: text })
    })
  }

  /** The token is read now and held from here on (E7). */
  async hold_token({ uuid }) {
    const { refreshToken } = await this.#token(this.#tokenKey(uuid))
    return { refreshToken }
  }

  /** E9: another id, the token key stays. */
  async rotate({ uuid }) {
    const other = randomUUID()
    const record = { ...this.accounts.get(uuid), uuid: other }
    this.accounts.delete(uuid)
    this.accounts.set(other, record)
    await this.#write(async () => {
      const after = JSON.stringify(record)
      const at = this.#now()
      const [[, before]] = await all(this.redis.multi().hget(POOL, uuid).hdel(POOL, uuid).hset(POOL, other, after))
      this.journal.push({ at, uuid, before, after: null }, { at, uuid: other, before: null, after })
    })
    return { uuid: other }
  }

  /** How many writes wait for Redis (E10). */
  async queued() {
    return { queued: this.#queue.length, ready: this.redis.status === 'ready' }
  }

  /** When everything that waited has been replayed. */
  async drained() {
    while (this.#queue.length > 0 || this.#draining) await sleep(5)
  }

  /** All writes so far, in their order. */
  async journaled() {
    return { journal: this.journal.toSorted((a, b) => a.at - b.at) }
  }

  #choose() {
    const healthy = [...this.accounts].filter(([, record]) => record.isHealthy && !record.isDisabled)
    const fresh = (record) => Date.now() - Date.parse(record.lastHealthCheckTime ?? 0) < 60_000
    const rank = (record) => [
      record.usageCount === 0 && fresh(record) ? 0 : 1,
      Date.parse(record.lastUsed ?? 0),
      Number(record.usageCount) || 0,
    ]
    const before = (a, b) => a.map((part, n) => part - b[n]).find((difference) => difference !== 0) ?? 0
    return healthy.sort(([, a], [, b]) => before(rank(a), rank(b)))[0][0]
  }

  #tokenKey(uuid) {
    const path = this.accounts.get(uuid).KIRO_TOKEN_FILE_PATH ?? `redis:${TOKENS}${uuid}`
    return PREFIX + path.slice('redis:'.length)
  }

  async #token(key) {
    if (!this.tokens.has(key)) this.tokens.set(key, JSON.parse(await this.redis.get(key)))
    return this.tokens.get(key)
  }

  async #update(uuid, set, add = {}) {
    await this.#write(async () => {
      try {
        const at = this.#now()
        const [before, after] = await this.redis.updateAccount(POOL, uuid, JSON.stringify(set), JSON.stringify(add))
        this.journal.push({ at, uuid, before, after })
      } catch (error) {
        if (error.name !== 'ReplyError') throw error
        // E4: one of its scripts failed.
        if (this.accounts.has(uuid)) await this.rewrite()
      }
    })
  }

  /** The place of a write among all of them: one connection, so they run in the order in which they are sent. */
  #now() {
    return ++this.#sent
  }

  /** Now, or after the outage (E10). */
  async #write(work) {
    if (this.redis.status === 'ready' && !this.#draining && this.#queue.length === 0) {
      try {
        return await work()
      } catch (error) {
        if (error.name === 'ReplyError') throw error
      }
    }
    if (this.#queue.length < QUEUE) this.#queue.push(work)
  }

  async #drain() {
    if (this.#draining) return
    this.#draining = true
    while (this.#queue.length > 0 && this.redis.status === 'ready') {
      try {
        await this.#queue[0]()
      } catch (error) {
        if (error.name !== 'ReplyError') break
      }
      this.#queue.shift()
    }
    this.#draining = false
  }
}

/** The replies of a MULTI; the first error is thrown. */
async function all(multi) {
  const replies = await multi.exec()
  const failed = replies.find(([error]) => error)
  if (failed) throw failed[0]
  return replies
}

const service = new NodeService(process.argv[2], process.argv[3])
for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...options } = JSON.parse(line)
  let reply
  try {
    reply = { ...(await service[name](options)) }
  } catch (error) {
    reply = { error: `${name}: ${error.stack}` }
  }
  process.stdout.write(`${JSON.stringify(reply)}\n`)
}
service.redis.disconnect()
