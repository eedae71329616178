// The programs in examples/ run as they stand.
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { ask, events, start, textOf, until } from './support/stack.mjs'

const root = path.join(import.meta.dirname, '..')
const example = (t, name, ...args) =>
  start(t, process.execPath, [path.join('examples', name), ...args], { cwd: root, env: { KIRO_UPSTREAM: 'simulator' } })

test('examples/stream.mjs', async (t) => {
  const child = example(t, 'stream.mjs', 'hello')
  assert.deepEqual(await child.ended, { code: 0, signal: null }, child.output)
  assert.match(child.output, /simulated[\s\S]*\(complete, \d+ output tokens, \d+ ms\)/)
})

test('examples/http-server.mjs', async (t) => {
  const child = example(t, 'http-server.mjs', '0')
  const url = await until(() => /http:\S+/.exec(child.output)?.[0], 'the server to listen')
  const answer = await fetch(url, { method: 'POST', body: JSON.stringify(ask({ text: 'x' }, { stream: true })) })
  assert.equal(textOf(events(Buffer.from(await answer.arrayBuffer()))), 'x')
  assert.equal((await fetch(new URL('/other', url))).status, 404)
  child.kill('SIGTERM')
  assert.deepEqual(await child.ended, { code: 0, signal: null }, child.output)
})
