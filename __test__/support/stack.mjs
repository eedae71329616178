// What the tests stand on: a simulated upstream, accounts for it, gateways, kiro-server, a private redis-server.
// Everything that is started here ends with the test that asked for it.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort, serverBinary } from '../../scripts/steps.mjs'

export { freePort, sleep }

/** The environment without anything that configures us. */
const CLEAN = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(GO_)?KIRO_|^REDIS_/.test(name)))

/** Waits until `condition()` gives something, and gives that. */
export async function until(condition, what = 'it', ms = 5000) {
  const deadline = performance.now() + ms
  for (;;) {
    const value = await condition()
    if (value) return value
    if (performance.now() > deadline) assert.fail(`waited ${ms} ms for ${what}`)
    await sleep(5)
  }
}

/** Stands for a whole file where a helper wants a test: what it starts ends after the file's last test. */
export function wholeFile() {
  const ends = []
  after(async () => {
    for (const end of ends.reverse()) await end()
  })
  return { after: (end) => ends.push(end) }
}

const folders = []
process.on('exit', () => {
  for (const dir of folders) rmSync(dir, { recursive: true, force: true })
})

/** An empty folder. It goes with the process: a test's hooks run in their order, so what writes there ends later. */
export function folder() {
  const dir = mkdtempSync(path.join(tmpdir(), 'kiro-test-'))
  folders.push(dir)
  return dir
}

/** Runs a program until the test ends; what it writes is shown when it fails. */
export function start(t, command, args, { env = {}, cwd, stdin = 'ignore' } = {}) {
  assert.ok(existsSync(command) || !path.isAbsolute(command), `${command} is not built: npm run build:debug`)
  const child = spawn(command, args, { cwd, env: { ...CLEAN, ...env }, stdio: [stdin, 'pipe', 'pipe'] })
  child.output = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (child.output += chunk))
  child.ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve({ code, signal })))
  t.after(async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
    await child.ended
  })
  return child
}

/** The port of a server of node:http and the like, on loopback until the test ends. */
export async function listening(t, server) {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections?.()
    server.close()
  })
  return server.address().port
}

/** The simulated upstream, alone. */
export async function simulator(t) {
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  const child = start(t, serverBinary(), ['simulate', '--listen', `127.0.0.1:${port}`])
  await answers(`${url}/_sim/stats`, child)
  const stats = async (query = '') => (await fetch(`${url}/_sim/stats${query}`)).json()
  return {
    url,
    stats,
    /** The last requests, bodies parsed. */
    requests: async () => (await stats('?bodies=1')).last,
    /** Those for an answer alone: accounts are asked for their models in the background. */
    chats: async () => (await stats('?bodies=1')).last.filter(({ target }) => target === '/generateAssistantResponse'),
    /** Queues answers: see docs/simulator.md. */
    script: async (script) => {
      const answer = await fetch(`${url}/_sim/script`, { method: 'POST', body: JSON.stringify(script) })
      assert.equal(answer.status, 200, await answer.text())
    },
    /** What a gateway or a server needs to know of it. */
    options: {
      upstreamUrl: `${url}/generateAssistantResponse`,
      socialRefreshUrl: `${url}/refreshToken`,
      idcRefreshUrl: `${url}/token`,
    },
    env: {
      KIRO_UPSTREAM_URL: `${url}/generateAssistantResponse`,
      KIRO_SOCIAL_REFRESH_URL: `${url}/refreshToken`,
      KIRO_IDC_REFRESH_URL: `${url}/token`,
    },
  }
}

/** A file store with an account for each access token. */
export function accounts(t, ...tokens) {
  const { ids, store } = records(tokens)
  const file = path.join(folder(), 'accounts.json')
  writeFileSync(file, JSON.stringify(store), { mode: 0o600 })
  return { ids, file, options: { store: `file:${file}` }, env: { KIRO_STORE: `file:${file}` } }
}

/** The same in a redis-server (see `redis`). */
export async function redisAccounts(t, server, ...tokens) {
  const { ids, store } = records(tokens)
  const redisKeyPrefix = `test-${randomUUID()}:`
  const client = await server.client(t)
  for (const id of ids) {
    await client('HSET', `${redisKeyPrefix}pools:claude-kiro-oauth`, id, JSON.stringify(store.accounts[id]))
    await client('SET', `${redisKeyPrefix}tokens:claude-kiro-oauth:${id}`, JSON.stringify(store.tokens[id]))
  }
  return {
    ids,
    options: { redisUrl: server.url, redisKeyPrefix },
    env: { REDIS_URL: server.url, REDIS_KEY_PREFIX: redisKeyPrefix },
    /** The account's record as it lies there. */
    account: async (id) => JSON.parse(await client('HGET', `${redisKeyPrefix}pools:claude-kiro-oauth`, id)),
    write: (id, record) => client('HSET', `${redisKeyPrefix}pools:claude-kiro-oauth`, id, JSON.stringify(record)),
    /** As E4 has it: empty for a moment. */
    rewrite: async (records) => {
      await client('DEL', `${redisKeyPrefix}pools:claude-kiro-oauth`)
      for (const record of records) await client('HSET', `${redisKeyPrefix}pools:claude-kiro-oauth`, record.uuid, JSON.stringify(record))
    },
    remove: (id) => client('HDEL', `${redisKeyPrefix}pools:claude-kiro-oauth`, id),
    /** The same of its tokens. */
    token: async (id) => JSON.parse(await client('GET', `${redisKeyPrefix}tokens:claude-kiro-oauth:${id}`)),
    writeToken: (id, token) => client('SET', `${redisKeyPrefix}tokens:claude-kiro-oauth:${id}`, JSON.stringify(token)),
  }
}

/** Ids are in the order of the tokens: the pool asks accounts in the order of their ids (R36). */
const nthId = (n) => n.toString(16).padStart(2, '0') + randomUUID().slice(2)

/** Records as they lie in a store (R70). A token is an access token, or that and a refresh token. */
function records(tokens) {
  const ids = (tokens.length > 0 ? tokens : ['sim-ok']).map((token, n) => [nthId(n), ...[token].flat()])
  const expiresAt = new Date(Date.now() + 86_400_000).toISOString()
  const account = (uuid) => ({ uuid, isHealthy: true, usageCount: 0, errorCount: 0 })
  const token = (uuid, accessToken, refreshToken = `refresh-${uuid}`) => ({
    accessToken,
    refreshToken,
    expiresAt,
    authMethod: 'social',
    profileArn: 'arn:aws:codewhisperer:us-east-1:000000000000:profile/SIMULATED',
    region: 'us-east-1',
  })
  return {
    ids: ids.map(([uuid]) => uuid),
    store: {
      accounts: Object.fromEntries(ids.map(([uuid]) => [uuid, account(uuid)])),
      tokens: Object.fromEntries(ids.map(([uuid, ...held]) => [uuid, token(uuid, ...held)])),
    },
  }
}

/** A gateway on the simulator; closed at the end, in case the test didn't. */
export async function gateway(t, sim, pool, options = {}) {
  // Here, so that tests of the server alone do without the addon.
  const { KiroGateway } = await import('kiro-messages')
  const connected = await KiroGateway.connect({ env: {}, ...pool.options, ...sim.options, ...options })
  t.after(() => connected.close({ graceMs: 0 }))
  return connected
}

/** kiro-server on the simulator. */
export async function server(t, sim, pool, env = {}, port) {
  port ??= await freePort()
  const url = `http://127.0.0.1:${port}`
  const child = start(t, serverBinary(), ['--port', String(port)], { env: { ...pool.env, ...sim.env, ...env } })
  await answers(`${url}/health`, child)
  return { url, child }
}

/** A redis-server of the test's own. With the port and the folder of one that has ended, it comes back. */
export async function redis(t, port, cwd = folder()) {
  port ??= await freePort()
  const child = start(t, 'redis-server', ['--port', String(port), '--save', '', '--appendonly', 'no', '--bind', '127.0.0.1'], {
    cwd,
  })
  await until(() => child.output.includes('Ready to accept connections'), 'redis-server')
  return { url: `redis://127.0.0.1:${port}`, port, child, cwd, client: (t) => redisClient(t, port) }
}

/** Enough of a Redis client for a test: one command after the other, simple replies. */
async function redisClient(t, port) {
  const socket = connect(port, '127.0.0.1')
  await once(socket, 'connect')
  t.after(() => socket.destroy())
  let text = ''
  let answer
  socket.setEncoding('utf8').on('data', (chunk) => {
    text += chunk
    const [head, ...rest] = text.split('\r\n')
    const body = rest.join('\r\n')
    if (rest.length === 0) return
    if (head[0] === '$' && head !== '$-1') {
      const length = Number(head.slice(1))
      if (Buffer.byteLength(body) < length + 2) return
      answer(Buffer.from(body).subarray(0, length).toString())
    } else answer(head === '$-1' ? null : head.slice(1))
    text = ''
  })
  let last = Promise.resolve()
  const ask = (args) => {
    const got = new Promise((resolve) => (answer = resolve))
    socket.write(`*${args.length}\r\n${args.map((arg) => `$${Buffer.byteLength(arg)}\r\n${arg}\r\n`).join('')}`)
    return got
  }
  return (...args) => (last = last.then(() => ask(args)))
}

async function answers(url, child) {
  let ended = null
  child.ended.then((how) => (ended = how))
  await until(
    async () => {
      assert.equal(ended, null, `ended before it listened:\n${child.output}`)
      return (await fetch(url).catch(() => null))?.ok
    },
    `${url}\n${child.output}`,
    20_000,
  )
}

/** A request whose answer is the scenario's (docs/simulator.md). */
export function ask(scenario, more = {}) {
  const content = scenario === undefined ? 'hello' : `[[sim ${JSON.stringify(scenario)}]]`
  return { model: 'claude-sonnet-4-6', max_tokens: 100_000_000, messages: [{ role: 'user', content }], ...more }
}

/** All bytes of a stream. */
export async function collect(stream) {
  const buffers = []
  for await (const buffer of stream) buffers.push(Buffer.from(buffer))
  return Buffer.concat(buffers)
}

/** SSE bytes as events, strictly as M54 has them. */
export function events(bytes) {
  const text = bytes.toString('utf8')
  assert.ok(text === '' || text.endsWith('\n\n'), 'events end with an empty line')
  return text
    .split('\n\n')
    .slice(0, -1)
    .map((block) => {
      const [event, data, ...rest] = block.split('\n')
      assert.deepEqual(rest, [], 'one data line')
      assert.match(event, /^event: \w+$/)
      const parsed = JSON.parse(data.slice('data: '.length))
      assert.equal(parsed.type, event.slice('event: '.length))
      return parsed
    })
}

/** The text of an answer's events. */
export function textOf(list) {
  return list.map((event) => event.delta?.text ?? '').join('')
}

/** The same bytes, whatever ids, estimates of time and the like were drawn for them. */
export function withoutIds(bytes) {
  return bytes.toString('utf8').replace(/"(msg|req)_\w+"/g, '"$1_…"')
}

/** All of an iterable, and the error that it ended in. */
export async function drain(iterable) {
  const list = []
  try {
    for await (const event of iterable) list.push(event)
  } catch (error) {
    return { list, error }
  }
  return { list, error: null }
}

/** What a promise rejects with; fails when it doesn't. */
export async function rejection(promise) {
  return promise.then(
    () => assert.fail('did not reject'),
    (error) => error,
  )
}

/** An access token of this preset that no other test has. */
export const unique = (preset) => `sim-${preset}.${randomUUID().slice(0, 8)}`

/** Headers that say what the answer is; the rest is the connection's or the framework's. */
export function meaning(headers) {
  const own = /^(content-type|cache-control|x-accel-buffering|access-control-|x-should-retry|retry-after|allow$|request-id)/
  return Object.fromEntries(
    [...headers].filter(([name]) => own.test(name)).map(([name, value]) => [name, name === 'request-id' ? 'req' : value]),
  )
}
