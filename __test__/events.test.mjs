// streamEvents (N36; cases 9, 10).
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { KiroError } from 'kiro-messages'
import { accounts, ask, collect, drain, events, gateway, simulator, sleep, until, withoutIds } from './support/stack.mjs'

const TOOLS = ['weather', 'clock'].map((name) => ({ name, description: name, input_schema: { type: 'object' } }))
const EVERYTHING = ask(
  {
    thinking: 'Let "me" see,\nstep by step \\ ',
    signature: 'c2lnbmF0dXJl',
    text: 'Two halves, "é" and 漢😀\u2028. '.repeat(40),
    tools: [
      { id: 'tooluse_w', name: 'weather', input: { city: 'Zürich', days: [1, 2, 3], deep: { er: null } }, pieces: 9 },
      { id: 'tooluse_c', name: 'clock', input: { zone: 'U"T\\C' }, pieces: 4 },
    ],
    interleave: true,
    pieces: 60,
  },
  { tools: TOOLS, thinking: { type: 'enabled', budget_tokens: 2048 }, max_tokens: 4096 },
)

/** Block by block: its start and everything its deltas add up to. */
function blocks(list) {
  const found = []
  for (const { type, index, content_block: block, delta } of list) {
    if (type === 'content_block_start') found[index] = { block, text: '', thinking: '', json: '', signature: '' }
    if (type !== 'content_block_delta') continue
    found[index].text += delta.text ?? ''
    found[index].thinking += delta.thinking ?? ''
    found[index].json += delta.partial_json ?? ''
    found[index].signature += delta.signature ?? ''
  }
  return found
}

const parsed = (list) => JSON.parse(withoutIds(JSON.stringify(list)))

test('the events are those of the bytes; put together they say the same (case 10)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const bytes = events(await collect(await gate.streamMessages(EVERYTHING)))
  const plain = await drain(gate.streamEvents(EVERYTHING, { coalesce: false }))
  assert.equal(plain.error, null)
  assert.deepEqual(parsed(plain.list), parsed(bytes))
  const joined = await drain(gate.streamEvents(EVERYTHING))
  assert.equal(joined.error, null)
  assert.deepEqual(blocks(joined.list), blocks(bytes))
  assert.ok(joined.list.length < bytes.length / 2, `${joined.list.length} of ${bytes.length} events`)
  const others = (list) => parsed(list.filter(({ type }) => type !== 'content_block_delta'))
  assert.deepEqual(others(joined.list), others(bytes))
})

test('a reader that keeps up gets each delta by itself; a slow one gets them together (case 10, N32)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const slow = ask({ text: '{n} ', count: 40, gap_ms: 20 })
  const keepsUp = (await drain(gate.streamEvents(slow))).list.filter(({ type }) => type === 'content_block_delta')
  assert.ok(keepsUp.length > 5, `${keepsUp.length}`)
  let count = 0
  let text = ''
  for await (const event of gate.streamEvents(slow)) {
    if (event.type !== 'content_block_delta') continue
    count += 1
    text += event.delta.text
    await sleep(250)
  }
  assert.ok(count < keepsUp.length, `${count} < ${keepsUp.length}`)
  assert.equal(text, Array.from({ length: 40 }, (_, n) => `${n} `).join(''))
})

test('streamEvents throws where the bytes carry event: error (case 9)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const { list, error } = await drain(gate.streamEvents(ask({ text: 'half of it', pieces: 4, end: 'cut' }), { coalesce: false }))
  assert.ok(error instanceof KiroError)
  assert.equal(error.code, 'KIRO_UPSTREAM')
  assert.equal(error.status, 500)
  assert.match(error.requestId, /^req_/)
  assert.ok(error.stack.includes(import.meta.filename), `the stack names the caller:\n${error.stack}`)
  assert.equal(blocks(list)[0].text, 'half of it')
  assert.ok(!list.some(({ type }) => type === 'error' || type === 'message_stop'))
})

test('streamEvents starts at the first next(), and a failure before the head is thrown there', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const unknown = gate.streamEvents({ ...ask(), model: 'gpt-4o' })
  const idle = gate.streamEvents(ask())
  await sleep(50)
  assert.deepEqual((await sim.stats()).requests, {}, 'nothing was sent')
  const error = await unknown.next().catch((error) => error)
  assert.ok(error instanceof KiroError)
  assert.equal(error.code, 'KIRO_NOT_FOUND')
  assert.ok(error.stack.includes(import.meta.filename), error.stack)
  assert.deepEqual(await unknown.next(), { value: undefined, done: true })
  assert.deepEqual(await idle.return(), { value: undefined, done: true })
  assert.deepEqual(await idle.next(), { value: undefined, done: true })
  assert.deepEqual((await sim.stats()).requests, {})
  for (const [name, call] of [
    ['request', () => gate.streamEvents(5)],
    ['options', () => gate.streamEvents(ask(), 5)],
    ['options.coalesce', () => gate.streamEvents(ask(), { coalesce: 'yes' })],
    ['options.system', () => gate.streamEvents(ask(), { system: 'x' })],
    ['options.system.mode', () => gate.streamEvents(ask(), { system: { mode: 'x', text: '' } })],
    ['options.system.text', () => gate.streamEvents(ask(), { system: { mode: 'append' } })],
  ]) {
    assert.throws(call, (thrown) => thrown instanceof TypeError && thrown.message.startsWith(name))
  }
})

test('aborting events: before the call, before the first, between two, after the end (case 6)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const reason = new Error('mine')
  const early = gate.streamEvents(ask(), { signal: AbortSignal.abort(reason) })
  const aborted = async (promise) => {
    const error = await promise.then(() => assert.fail('did not reject'), (error) => error)
    assert.equal(error.name, 'AbortError')
    assert.equal(error.code, 'KIRO_CANCELLED')
    assert.equal(error.cause, reason)
  }
  await aborted(early.next())
  assert.deepEqual(await early.next(), { value: undefined, done: true })
  assert.deepEqual((await sim.stats()).requests, {})
  const silent = new AbortController()
  const first = gate.streamEvents(ask({ first_ms: 60_000 }), { signal: silent.signal })
  const pending = first.next()
  setTimeout(() => silent.abort(reason), 50)
  await aborted(pending)
  const between = new AbortController()
  const stream = gate.streamEvents(ask({ text: '{n} ', count: 10_000, gap_ms: 20 }), { signal: between.signal })
  await stream.next()
  between.abort(reason)
  await aborted(stream.next())
  assert.deepEqual(await stream.next(), { value: undefined, done: true })
  const late = new AbortController()
  assert.equal((await drain(gate.streamEvents(ask({ text: 'x' }), { signal: late.signal }))).error, null)
  late.abort()
  await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be dropped', 500)
})

test('events have one consumer; several next() are answered in order; break and garbage drop upstream (N33, N35, N54)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const stream = gate.streamEvents(ask({ text: 'abcdef', pieces: 6, gap_ms: 5 }), { coalesce: false })
  const iterator = stream[Symbol.asyncIterator]()
  assert.throws(() => stream[Symbol.asyncIterator](), TypeError)
  const results = await Promise.all(Array.from({ length: 40 }, () => iterator.next()))
  assert.equal(blocks(results.filter(({ done }) => !done).map(({ value }) => value))[0].text, 'abcdef')
  const firstDone = results.findIndex(({ done }) => done)
  assert.ok(firstDone > 0 && results.slice(firstDone).every(({ done }) => done))
  const endless = ask({ text: '{n} ', count: 100_000, gap_ms: 30 })
  for await (const event of gate.streamEvents(endless)) if (event.type === 'content_block_delta') break
  await until(async () => (await sim.stats()).streams.open === 0, 'break to drop upstream', 500)
  await (async () => {
    for (let n = 0; n < 10; n++) await gate.streamEvents(endless).next()
  })()
  await until(async () => {
    gc()
    return (await sim.stats()).streams.open === 0
  }, 'garbage collection to drop upstream')
})

test('events that nobody takes stop upstream at 64 KiB (N31)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const piece = `${'x'.repeat(4000)}{n}`
  const stream = gate.streamEvents(ask({ text: piece, count: 2500 }), { coalesce: false })
  await stream.next()
  let sent = -1
  await until(async () => {
    await sleep(100)
    const { events } = (await sim.stats()).streams
    const still = events === sent
    sent = events
    return still
  }, 'upstream to stand still', 10_000)
  assert.ok(sent < 2500, `${sent} events sent`)
  const { list } = await drain(stream)
  assert.equal(blocks([{ type: 'content_block_start', index: 0 }, ...list])[0].text.length, 2500 * 4000 + 8890)
})
