// The arguments of calls: bytes of every kind, and options with a slip of the pen.
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import vm from 'node:vm'
import { KiroGateway } from 'kiro-messages'
import { accounts, ask, gateway, listening, simulator } from './support/stack.mjs'

test('a body is text, bytes of any kind or a plain object; anything else is named (N70, D13)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const request = ask({ text: 'hello' })
  const text = JSON.stringify(request)
  const bytes = new TextEncoder().encode(text)
  const shared = new SharedArrayBuffer(bytes.length)
  new Uint8Array(shared).set(bytes)
  // In the middle of a larger memory, and with an even number of bytes for the view of 16 bits.
  const around = new Uint8Array([...Buffer.from('xxxx'), ...bytes, ...Buffer.from(bytes.length % 2 ? ' ' : '  '), 120])
  const length = bytes.length + (bytes.length % 2 ? 1 : 2)
  const given = {
    text,
    Buffer: Buffer.from(text),
    Uint8Array: around.subarray(4, 4 + length),
    ArrayBuffer: bytes.buffer.slice(0, bytes.length),
    SharedArrayBuffer: shared,
    DataView: new DataView(around.buffer, 4, length),
    Uint16Array: new Uint16Array(around.buffer, 4, length / 2),
    'another realm': vm.runInNewContext('JSON.parse(text)', { text }),
    'bytes of another realm': vm.runInNewContext('Uint8Array.from(list).buffer', { list: [...bytes] }),
    'no prototype': Object.assign(Object.create(null), request),
  }
  const { input_tokens: tokens } = gate.countTokensSync(request)
  for (const [kind, body] of Object.entries(given)) {
    assert.equal(gate.countTokensSync(body).input_tokens, tokens, kind)
    assert.equal((await gate.createMessage(body)).content[0].text, 'hello', kind)
  }
  class Conversation {}
  const refused = [
    [undefined, 'undefined'],
    [null, 'null'],
    [5, 'a number'],
    [5n, 'a bigint'],
    [() => {}, 'a function'],
    [[request], 'an array'],
    [Promise.resolve(request), 'a Promise'],
    [new Map(), 'a Map'],
    [new Blob([text]), 'a Blob'],
    [new String(text), 'a String'],
    [new Conversation(), 'a Conversation'],
    [Object.create(request), 'an Object'],
  ]
  for (const [body, name] of refused) {
    const message = `request must be a string, bytes or a plain object, not ${name}`
    const wanted = { name: 'TypeError', message }
    assert.throws(() => gate.countTokensSync(body), wanted)
    assert.throws(() => gate.streamEvents(body), wanted)
    for (const call of ['streamMessages', 'createMessage', 'countTokens']) await assert.rejects(gate[call](body), wanted)
  }
})

test('a parser of the program around may leave bytes of any kind (N70)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const handle = gate.handler()
  const port = await listening(
    t,
    createServer(async (req, res) => {
      const pieces = await req.toArray()
      req.body = new Uint8Array(Buffer.concat(pieces)).buffer
      handle(req, res)
    }),
  )
  const answer = await fetch(`http://127.0.0.1:${port}/v1/messages`, { method: 'POST', body: JSON.stringify(ask({ text: 'hi' })) })
  assert.equal((await answer.json()).content[0].text, 'hi')
})

test('an unknown option of a call is refused, with the one that was meant (N71)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t)
  const gate = await gateway(t, sim, pool)
  const [id] = pool.ids
  const onCode = () => {}
  const slips = [
    [(options) => gate.createMessage(ask(), options), { accountID: id }, 'accountID', 'accountId'],
    [(options) => gate.streamMessages(ask(), options), { sginal: AbortSignal.abort() }, 'sginal', 'signal'],
    [(options) => gate.streamMessages(ask(), options), { coalesce: false }, 'coalesce', undefined],
    [async (options) => gate.streamEvents(ask(), options), { coalesc: false }, 'coalesc', 'coalesce'],
    [(options) => gate.usageLimits(id, options), { accountId: id }, 'accountId', undefined],
    [(options) => gate.login({ method: 'builder-id', onCode, ...options }), { startURL: 'https://x' }, 'startURL', 'startUrl'],
    [(options) => gate.importAccounts('.', options), { dryrun: true }, 'dryrun', 'dryRun'],
    [async (options) => gate.handler(options), { apiKey: 'k' }, 'apiKey', undefined],
    [async (options) => gate.handler(options), { basepath: '/k' }, 'basepath', 'basePath'],
    [(options) => gate.listen(options), { prot: 0 }, 'prot', 'port'],
    [(options) => gate.close(options), { gracems: 5 }, 'gracems', 'graceMs'],
  ]
  for (const [call, options, name, meant] of slips) {
    const hint = meant === undefined ? '' : `; did you mean ${meant}?`
    await assert.rejects(call(options), { code: 'KIRO_CONFIG', message: `${name}: unknown option${hint}` })
  }
  // What isn't set isn't there.
  assert.ok((await gate.createMessage(ask(), { accountID: undefined, requestId: undefined })).id)
})

test('a file store without its folder is an error at connect() (N71)', async (t) => {
  const folder = mkdtempSync(path.join(tmpdir(), 'kiro-test-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const missing = path.join(folder, 'typo', 'accounts.json')
  const error = await KiroGateway.connect({ env: {}, upstream: 'simulator', store: `file:${missing}` }).catch((error) => error)
  assert.equal(error.code, 'KIRO_CONFIG')
  assert.match(error.message, /^store: .*typo is no folder$/)
  // A file that isn't there yet is an empty pool.
  const fresh = path.join(folder, 'fresh.json')
  const gate = await KiroGateway.connect({ env: {}, upstream: 'simulator', store: `file:${fresh}`, storeWaitMs: 0 })
  await gate.close()
})
