// What every JavaScript suite here stands on: a kiro-server of its own behind each test, with a simulated upstream whose
// answers the test sets and whose requests it can read. kit.py is the same for the Python suites.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import Anthropic from '@anthropic-ai/sdk'
import { StreamChecker } from './grammar.mjs'

export const MODEL = 'claude-haiku-4-5'
export const KEY = 'clients-key-1'
const BINARY = process.env.CLIENTS_KIRO_SERVER
const LISTENING_MS = 10_000
const STOPPED_MS = 5_000

/**
 * Starts a server and its upstream; both end with the test `t`, which fails when they don't end well or when a stream
 * that went through `checkedFetch` broke the grammar of M53.
 *
 * `accounts` are access tokens: one that begins with `sim-` chooses what the simulator answers to every request of
 * that account; one that doesn't takes the answers that `script` queues. `env` are settings of docs/configuration.md.
 */
export async function serve(t, { accounts = ['account-0'], env = {} } = {}) {
  const home = mkdtempSync(path.join(tmpdir(), 'kiro-clients-'))
  const store = path.join(home, 'accounts.json')
  writeFileSync(store, JSON.stringify(records(accounts)), { mode: 0o600 })
  const upstream = await launch(['simulate', '--listen', '127.0.0.1:0'], {})
  const server = await launch([], {
    KIRO_PORT: '0',
    KIRO_API_KEY: KEY,
    KIRO_STORE: `file:${store}`,
    KIRO_STORE_WAIT: '5s',
    KIRO_UPSTREAM_URL: `${upstream.url}/generateAssistantResponse`,
    KIRO_SOCIAL_REFRESH_URL: `${upstream.url}/refreshToken`,
    KIRO_GRACEFUL_TIMEOUT: '1s',
    ...env,
  }).catch(async (error) => {
    await upstream.stop()
    throw error
  })
  const house = new House(server.url, upstream.url, accounts)
  house.stop = () => server.stop()
  t.after(async () => {
    // A hook that throws keeps the later ones from running: what would keep this process alive goes first.
    for (const end of house.clients) end()
    const refused = await house.refusedByUpstream().catch((error) => error)
    const ends = await Promise.all([server.stop(), upstream.stop()])
    rmSync(home, { recursive: true, force: true })
    assert.deepEqual(
      ends,
      [0, 0],
      `the server or the simulated upstream ended badly:\n${server.said()}\n${upstream.said()}`,
    )
    assert.deepEqual(refused, [], 'Kiro would refuse what was sent')
    assert.deepEqual(house.violations, [], 'what the server answered breaks the contract')
  })
  return house
}

function records(tokens) {
  const accounts = {}
  const byAccount = {}
  for (const [n, token] of tokens.entries()) {
    // In the order of the tokens: accounts are asked in the order of their ids (R36).
    const uuid = n.toString(16).padStart(2, '0') + randomUUID().slice(2)
    accounts[uuid] = { uuid, isHealthy: true }
    byAccount[uuid] = {
      accessToken: token,
      refreshToken: `refresh-${token}`,
      expiresAt: '2099-01-01T00:00:00.000Z',
      authMethod: 'social',
      profileArn: 'arn:aws:codewhisperer:us-east-1:000000000000:profile/SIMULATED',
    }
  }
  return { accounts, tokens: byAccount }
}

async function launch(args, env) {
  if (!BINARY) throw new Error('start the suites with npm run test:clients')
  // Nothing of the caller's own set-up may reach the server.
  const clean = Object.entries(process.env).filter(([name]) => !/^(GO_)?KIRO_|^REDIS_|_proxy$/i.test(name))
  const child = spawn(BINARY, args, {
    env: { ...Object.fromEntries(clean), KIRO_LOG_FORMAT: 'json', ...env },
    stdio: ['ignore', 'inherit', 'pipe'],
  })
  const ended = new Promise((resolve) => child.once('close', (code, signal) => resolve(code ?? signal)))
  const said = []
  const address = new Promise((resolve, reject) => {
    createInterface(child.stderr).on('line', (line) => {
      said.push(line)
      const listening = /"address":"([^"]+)"/.exec(line)
      if (listening) resolve(listening[1])
    })
    child.once('error', reject)
    ended.then((code) => reject(new Error(`kiro-server ${args.join(' ')} ended with ${code}:\n${said.join('\n')}`)))
    setTimeout(() => reject(new Error(`kiro-server did not listen:\n${said.join('\n')}`)), LISTENING_MS).unref()
  })
  async function stop() {
    child.kill('SIGTERM')
    const timer = setTimeout(() => child.kill('SIGKILL'), STOPPED_MS)
    const code = await ended
    clearTimeout(timer)
    return code
  }
  return { url: `http://${await address}`, stop, said: () => said.join('\n') }
}

class House {
  violations = []
  /** Ends each client that runs as a process of its own. */
  clients = []

  constructor(url, upstreamUrl, accounts) {
    this.url = url
    this.upstreamUrl = upstreamUrl
    this.accounts = accounts
    this.checkedFetch = this.checkedFetch.bind(this)
  }

  /** The TypeScript SDK, without retries unless `options` says otherwise. */
  client(options = {}) {
    return new Anthropic({ baseURL: this.url, apiKey: KEY, maxRetries: 0, fetch: this.checkedFetch, ...options })
  }

  /** Queues answers for the next requests with `account`, in order. */
  async script(...scenarios) {
    await this.scriptFor(this.accounts[0], scenarios)
  }

  async scriptFor(token, scenarios) {
    await this.#control({ token, scenarios })
  }

  /** Queues the answer to the next refresh of the account whose access token is `token` now. */
  async scriptRefresh(token, answer) {
    await this.#control({ refresh_token: `refresh-${token}`, answers: [answer] })
  }

  async #control(script) {
    const answer = await fetch(`${this.upstreamUrl}/_sim/script`, { method: 'POST', body: JSON.stringify(script) })
    assert.equal(answer.status, 200, await answer.text())
  }

  async stats() {
    return (await fetch(`${this.upstreamUrl}/_sim/stats?bodies=1`)).json()
  }

  /** The chat requests that upstream got, parsed, oldest first. */
  async upstream() {
    const { last } = await this.stats()
    return last
      .filter((request) => request.target === '/generateAssistantResponse')
      .map((request) => JSON.parse(request.body))
  }

  /** Queued answers are given to any request: sends each again to a place that checks it. */
  async refusedByUpstream() {
    const refused = []
    for (const body of await this.upstream()) {
      const answer = await fetch(`${this.upstreamUrl}/generateAssistantResponse`, {
        method: 'POST',
        headers: { authorization: 'Bearer sim-any-client', 'content-type': 'application/json' },
        body: JSON.stringify(body),
      })
      if (answer.status === 400) refused.push(await answer.text())
      else await answer.body.cancel()
    }
    return refused
  }

  /** Waits until upstream has seen `count` streams closed by us, and gives what it noted of them. */
  async closes(count, withinMs) {
    const deadline = performance.now() + withinMs
    for (;;) {
      const { closed_by_client: closes } = await this.stats()
      if (closes.length >= count) return closes
      assert.ok(
        performance.now() < deadline,
        `${closes.length} of ${count} upstream streams closed within ${withinMs} ms`,
      )
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
  }

  /** fetch, and every answer is held against the contract: grammar of streams, request-id, members of errors. */
  async checkedFetch(input, init) {
    const response = await fetch(input, init)
    const place = `${init?.method ?? 'GET'} ${new URL(input.url ?? input).pathname} → ${response.status}`
    const wrong = (what) => this.violations.push(`${place}: ${what}`)
    const id = response.headers.get('request-id')
    if (!/^req_[0-9A-Za-z]{24}$/.test(id)) wrong(`request-id ${id} (M5)`)
    if (response.headers.get('access-control-allow-origin') !== '*') wrong('no access-control-allow-origin (M7)')
    const type = response.headers.get('content-type')
    if (type !== 'text/event-stream; charset=utf-8') {
      if (response.status >= 400) {
        const body = JSON.parse(await response.clone().text())
        if (body.type !== 'error' || !body.error.type || !body.error.message)
          wrong(`error body ${JSON.stringify(body)}`)
        if (body.request_id !== id) wrong(`request_id ${body.request_id} is not ${id} (M5)`)
      }
      if (type !== 'application/json') wrong(`content-type ${type} (M6)`)
      return response
    }
    if (response.status !== 200) wrong('a stream with this status (M60)')
    for (const [name, value] of [
      ['cache-control', 'no-cache'],
      ['x-accel-buffering', 'no'],
    ]) {
      if (response.headers.get(name) !== value) wrong(`${name}: ${response.headers.get(name)} (M6)`)
    }
    const checker = new StreamChecker(wrong)
    const checked = response.body.pipeThrough(
      new TransformStream({
        transform(chunk, controller) {
          checker.push(chunk)
          controller.enqueue(chunk)
        },
        flush: () => checker.finish(),
      }),
    )
    return new Response(checked, { status: response.status, headers: response.headers })
  }
}

/** A body for `messages.create` and its kind. */
export function ask(content, more = {}) {
  const messages = Array.isArray(content) && content[0]?.role ? content : [{ role: 'user', content }]
  return { model: MODEL, max_tokens: 1024, messages, ...more }
}

/** A declared tool whose input is free. */
export function tool(name, properties = {}, required = []) {
  return { name, description: `What ${name} does.`, input_schema: { type: 'object', properties, required } }
}

/** What a promise rejects with; fails when it doesn't. */
export async function rejection(promise) {
  const value = await promise.then(
    (value) => ({ value }),
    (error) => ({ error }),
  )
  assert.ok('error' in value, `did not fail, gave ${JSON.stringify(value.value)}`)
  return value.error
}

/** A PNG of one red pixel, whole and valid. */
export const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC'

/** A PDF of one empty page. */
export const PDF = Buffer.from(
  '%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n' +
    '3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n',
).toString('base64')
