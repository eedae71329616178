// The programs in examples/ run as they stand.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { ask, events, freePort, start, textOf, until } from './support/stack.mjs'

const root = path.join(import.meta.dirname, '..')
const example = (t, name, args = [], options = {}) =>
  start(t, process.execPath, [path.join('examples', name), ...args], { cwd: root, env: { KIRO_UPSTREAM: 'simulator' }, ...options })

/** Starts a server of examples/ on a free port, and ends it as its operator would. */
async function serving(t, name, use) {
  const child = example(t, name, ['0'])
  const url = await until(() => /http:\S+/.exec(child.output)?.[0], `${name} to listen`, 20_000)
  await use(url, child)
  child.kill('SIGTERM')
  assert.deepEqual(await child.ended, { code: 0, signal: null }, child.output)
  return child.output
}

const post = (url, body) => fetch(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })
const streamed = async (url) => textOf(events(Buffer.from(await (await post(url, ask({ text: 'é x', pieces: 3 }, { stream: true }))).arrayBuffer())))

test('examples/stream.mjs', async (t) => {
  const child = example(t, 'stream.mjs', ['hello'])
  assert.deepEqual(await child.ended, { code: 0, signal: null }, child.output)
  assert.match(child.output, /simulated[\s\S]*\(complete, \d+ output tokens, \d+ ms\)/)
})

test('examples/http-server.mjs', async (t) => {
  await serving(t, 'http-server.mjs', async (url) => {
    assert.equal(await streamed(url), 'é x')
    assert.equal((await fetch(new URL('/other', url))).status, 404)
  })
})

test('examples/express.mjs', async (t) => {
  const output = await serving(t, 'express.mjs', async (url) => {
    assert.equal(await streamed(url), 'é x')
    assert.deepEqual(await (await post(new URL('/echo', url), { a: 1 })).json(), { a: 1 })
    assert.equal((await fetch(new URL('/other', url))).status, 404)
  })
  assert.match(output, /POST \/v1\/messages/)
})

test('examples/fastify.mjs', async (t) => {
  await serving(t, 'fastify.mjs', async (url) => {
    assert.equal(await streamed(url), 'é x')
    assert.deepEqual(await (await post(new URL('/echo', url), { a: 1 })).json(), { a: 1 })
    assert.equal((await fetch(new URL('/kiro/v1/models', url))).status, 200)
    assert.equal((await fetch(new URL('/other', url))).status, 404)
  })
})

test('examples/drop-in.mjs', async (t) => {
  const output = await serving(t, 'drop-in.mjs', async (url, child) => {
    assert.equal(await streamed(url), 'é x')
    await until(() => child.output.includes('was used') && child.output.includes('a plugin counts one request'))
    const answer = await (await post(url.replace('messages', 'chat/completions'), { ...ask({ text: 'as an object' }), max_tokens: undefined })).json()
    assert.equal(answer.choices[0].message.content, 'as an object')
    // N90: a client whose model can't be changed gets the service's default one.
    const other = await post(url.replace('messages', 'chat/completions'), { model: 'gpt-4o', messages: [{ role: 'user', content: 'x' }] })
    assert.equal(other.status, 200)
    const refused = await post(url.replace('messages', 'chat/completions'), { model: 'gpt-4o', messages: [] })
    assert.equal(refused.status, 400)
  })
  assert.equal(output.match(/was used/g).length, 1, 'what the adapter does is the service’s to record')
})

test('examples/chat.mjs', async (t) => {
  const child = example(t, 'chat.mjs', [], { stdin: 'pipe' })
  const scenario = { thinking: 'which dice?', text: 'Let me throw.', tool: { name: 'dice', input: { count: 2, sides: 6 }, pieces: 3 } }
  child.stdin.write(`[[sim ${JSON.stringify(scenario)}]]\n`)
  await until(() => /dice\(\{"count":2,"sides":6\}\) → \[\d,\d\]/.test(child.output), `the tool:\n${child.output}`, 20_000)
  await until(() => /simulated/.test(child.output), 'the answer to what the tool gave')
  child.stdin.end('[[sim "400"]]\n')
  assert.deepEqual(await child.ended, { code: 0, signal: null }, child.output)
  assert.match(child.output, /which dice\?[\s\S]*Let me throw\.[\s\S]*dice\(/)
  assert.match(child.output, /KIRO_INVALID_REQUEST: /)
})

test('every sample of the package’s own page runs as it stands (N73)', async (t) => {
  const page = readFileSync(path.join(root, 'npm/README.md'), 'utf8')
  const samples = [...page.matchAll(/^```js\n(.*?)^```/gms)].map(([, code]) => code)
  const sample = (call) => samples.find((code) => code.includes(call))
  const run = (code) => start(t, process.execPath, ['--input-type=module', '-e', code], { cwd: import.meta.dirname })
  /** What it prints, when it ends by itself. */
  const printed = async (code) => {
    const child = run(code)
    assert.deepEqual(await child.ended, { code: 0, signal: null }, child.output)
    return child.output
  }
  assert.match(await printed(sample('createMessage')), /^\w[^{}]* simulated/)
  assert.match(await printed(sample('streamEvents')), /^\w[^{}]* simulated/)
  assert.match(await printed(sample('countTokens')), /^\d+\n$/)
  assert.match(await printed(sample('KiroError.is')), /^KIRO_INVALID_REQUEST 400 /)
  for (const call of ['gateway.handler()', 'gateway.listen(']) {
    const port = await freePort()
    const child = run(sample(call).replaceAll('8081', String(port)))
    await until(() => child.output.includes(`http://127.0.0.1:${port}`), `${call}:\n${child.output}`, 20_000)
    assert.equal(await streamed(`http://127.0.0.1:${port}/v1/messages`), 'é x')
    child.kill('SIGKILL')
  }
  assert.equal(samples.length, 6)
})
