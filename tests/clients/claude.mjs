// Claude Code as the suites run it: the program of the npm package for this platform (package-lock.json pins it), or the one
// that CLIENTS_CLAUDE_CODE names. It has a home of its own, and its way out is a proxy that refuses: whatever it tries to
// reach but the server under test fails the test.
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { KEY } from './kit.mjs'

const name = `@anthropic-ai/claude-code-${process.platform}-${process.arch}`
const packaged = fileURLToPath(new URL(`node_modules/${name}/claude`, import.meta.url))
const program = process.env.CLIENTS_CLAUDE_CODE ?? packaged

/** Why Claude Code can't be run here; false where it can. A program that was named must run. */
export const skip = missing()

function missing() {
  const env = { PATH: process.env.PATH, HOME: tmpdir() }
  const { status, error, stderr } = spawnSync(program, ['--version'], { encoding: 'utf8', env })
  if (status === 0) return false
  const why = existsSync(program) ? `it doesn't run: ${error ?? stderr}` : `there is no ${program}`
  if (program !== packaged) throw new Error(`CLIENTS_CLAUDE_CODE: ${why}`)
  return `Claude Code (${name} of npm) can't be had on this machine: ${why}`
}

/** A folder that goes with the test. */
export function folder(t, name = 'work') {
  const made = mkdtempSync(path.join(tmpdir(), `kiro-claude-${name}-`))
  // What was just killed may still write into it.
  t.after(() => rmSync(made, { recursive: true, force: true, maxRetries: 5 }))
  return made
}

/** Starts it; `ended` resolves to its code and all that it said. */
export async function start(t, house, args, { cwd = folder(t), stdin = 'ignore', env = {} } = {}) {
  const home = folder(t, 'home')
  const outside = await refusingProxy(house)
  const between = await listener(house)
  const model = args.includes('--model') ? [] : ['--model', 'claude-sonnet-5-5']
  const child = spawn(program, [...args, ...model], {
    cwd,
    stdio: [stdin, 'pipe', 'pipe'],
    env: {
      PATH: process.env.PATH,
      HOME: home,
      CLAUDE_CONFIG_DIR: path.join(home, '.claude'),
      ANTHROPIC_BASE_URL: between.url,
      ANTHROPIC_AUTH_TOKEN: KEY,
      CLAUDE_CODE_AUTO_MODE_SERVER: '0',
      CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
      DISABLE_AUTOUPDATER: '1',
      HTTP_PROXY: outside.url,
      HTTPS_PROXY: outside.url,
      NO_PROXY: '127.0.0.1',
      ...env,
    },
  })
  house.clients.push(() => child.kill('SIGKILL'))
  let said = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text) => (said += text))
  const ended = new Promise((resolve, reject) =>
    child.once('error', reject).once('close', (code) => resolve({ code, said })),
  )
  return { child, requests: between.requests, ended: ended.finally(() => assert.deepEqual(outside.tried, [], 'it tried to reach the internet')) }
}

/** Print mode: one prompt, one answer. */
export async function print(t, house, args, options) {
  return (await start(t, house, ['-p', ...args], options)).ended
}

/** A session of several turns, as the Agent SDK has it: a line of JSON per message, both ways. */
export async function session(t, house, args = [], options = {}) {
  const lines = ['--input-format', 'stream-json', '--output-format', 'stream-json', '--verbose', '--include-partial-messages']
  const { child, ended, requests } = await start(t, house, ['-p', ...lines, ...args], { ...options, stdin: 'pipe' })
  const seen = []
  const waiting = new Set()
  createInterface(child.stdout).on('line', (line) => {
    seen.push(JSON.parse(line))
    for (const look of waiting) look()
  })
  const send = (message) => child.stdin.write(`${JSON.stringify(message)}\n`)
  return {
    seen,
    requests,
    say: (content) => send({ type: 'user', message: { role: 'user', content }, parent_tool_use_id: null }),
    /** What it answers to a request of the Agent SDK: `interrupt`, `initialize`. */
    async control(request) {
      const id = randomUUID()
      send({ type: 'control_request', request_id: id, request })
      const { response } = await this.until(({ response }) => response?.request_id === id)
      assert.equal(response.subtype, 'success', JSON.stringify(response))
      return response.response
    },
    /** The first message behind the place `from` that `fits`. */
    until(fits, from = 0) {
      return new Promise((resolve, reject) => {
        const look = () => {
          const found = seen.slice(from).find(fits)
          if (!found) return
          waiting.delete(look)
          resolve(found)
        }
        waiting.add(look)
        ended.then(({ said }) => reject(new Error(`Claude Code ended before that:\n${said.slice(-4000)}`)), reject)
        look()
      })
    },
    /** What it answers to `content`: the `result` of the turn. */
    async turn(content) {
      const from = seen.length
      this.say(content)
      return this.until(({ type }) => type === 'result', from)
    },
    async end() {
      child.stdin.end()
      return (await ended).code
    },
  }
}

/** Stands between Claude Code and the server: notes what is asked, and holds each answer against the contract. */
async function listener(house) {
  const requests = []
  const url = await listen(house, createServer(async (request, response) => {
    const { method, url, headers } = request
    const body = Buffer.concat(await request.toArray())
    requests.push({ method, url, headers, body: body.length > 0 ? JSON.parse(body) : undefined })
    const { host, connection, 'content-length': length, ...sent } = headers
    const gone = new AbortController()
    response.once('close', () => gone.abort())
    try {
      const init = { method, headers: sent, signal: gone.signal, ...(body.length > 0 && { body }) }
      const answer = await (method === 'POST' ? house.checkedFetch : fetch)(house.url + url, init)
      response.writeHead(answer.status, Object.fromEntries(answer.headers))
      response.flushHeaders()
      if (answer.body) await pipeline(Readable.fromWeb(answer.body), response)
      else response.end()
    } catch {
      // The one side has gone; so does the other.
      response.destroy()
    }
  }))
  return { requests, url }
}

/** A proxy that lets nothing through, and what was asked of it. */
async function refusingProxy(house) {
  const tried = []
  const server = createServer((request, response) => {
    tried.push(`${request.method} ${request.url}`)
    response.writeHead(502).end()
  })
  server.on('connect', (request, socket) => {
    tried.push(`CONNECT ${request.url}`)
    socket.on('error', () => {}).end('HTTP/1.1 502 Bad Gateway\r\n\r\n')
  })
  return { tried, url: await listen(house, server) }
}

async function listen(house, server) {
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  house.clients.push(() => {
    server.close()
    server.closeAllConnections()
  })
  return `http://127.0.0.1:${server.address().port}`
}
