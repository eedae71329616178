// Streams as JavaScript sees them (N30–N36).
import assert from 'node:assert/strict'
import { getEventListeners, once } from 'node:events'
import { Readable } from 'node:stream'
import { describe, test } from 'node:test'
import { KiroError } from 'kiro-messages'
import { accounts, ask, collect, events, gateway, rejection, server, simulator, sleep, textOf, until, withoutIds } from './support/stack.mjs'

test('a stream has a head, events and a summary', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t)
  const gate = await gateway(t, sim, pool)
  const stream = await gate.streamMessages(ask({ text: 'one two three', pieces: 3 }), { requestId: 'req.of-mine_1' })
  assert.equal(stream.requestId, 'req.of-mine_1')
  assert.deepEqual(stream.headers, {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache',
    'x-accel-buffering': 'no',
    'request-id': 'req.of-mine_1',
  })
  const bytes = await collect(stream)
  const list = events(bytes)
  assert.equal(list[0].type, 'message_start')
  assert.equal(list.at(-1).type, 'message_stop')
  assert.equal(textOf(list), 'one two three')
  const summary = await stream.summary
  assert.equal(summary.outcome, 'complete')
  assert.equal(summary.stopReason, 'end_turn')
  assert.equal(summary.accountId, pool.ids[0])
  assert.equal(summary.requestId, 'req.of-mine_1')
  assert.equal(summary.model, 'claude-sonnet-4-6')
  assert.equal(summary.attempts, 1)
  assert.equal(summary.bytes, bytes.length)
  assert.deepEqual(summary.usage, list.find((event) => event.type === 'message_delta').usage)
  assert.deepEqual(await stream.next(), { value: undefined, done: true })
})

test('what has no effect is named beside the answer, not in it (M80)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const request = { ...ask({ text: 'x' }), container: 'c', speed: 'fast' }
  const stream = await gate.streamMessages(request)
  assert.deepEqual(stream.ignored, ['container', 'speed'])
  assert.equal(stream.headers['x-kiro-ignored'], 'container, speed')
  await collect(stream)
  assert.deepEqual((await stream.summary).ignored, ['container', 'speed'])
  const message = await gate.createMessage(request)
  assert.deepEqual(message.ignored, ['container', 'speed'])
  assert.ok(!JSON.stringify(message).includes('ignored'))
  const plain = await gate.createMessage(ask({ text: 'x' }))
  assert.deepEqual(plain.ignored, [])
})

test('a request may be text, bytes or an object; anything else is a TypeError that names it (N21)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const text = JSON.stringify(ask({ text: 'é' }))
  for (const request of [text, Buffer.from(text), new TextEncoder().encode(text), JSON.parse(text)]) {
    assert.equal(textOf(events(await collect(await gate.streamMessages(request)))), 'é')
  }
  for (const request of [undefined, null, 5, true]) {
    const error = await rejection(gate.streamMessages(request))
    assert.ok(error instanceof TypeError && error.message.startsWith('request'), error.message)
  }
  const bad = [
    ['options', 'x'],
    ['options.signal', { signal: {} }],
    ['options.requestId', { requestId: 5 }],
    ['options.headers', { headers: 'x' }],
  ]
  for (const [name, options] of bad) {
    const error = await rejection(gate.createMessage(text, options))
    assert.ok(error instanceof TypeError && error.message.startsWith(name), error.message)
  }
  assert.throws(() => gate.countTokensSync(1), TypeError)
})

test('createMessage folds; countTokens agrees with message_start', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const request = ask({ text: 'folded', pieces: 4, tool: { name: 'look', input: { a: [1, 'é'] }, pieces: 3 } })
  request.tools = [{ name: 'look', input_schema: { type: 'object' } }]
  const message = await gate.createMessage(request)
  assert.equal(message.type, 'message')
  assert.equal(message.stop_reason, 'tool_use')
  assert.deepEqual(
    message.content.map(({ type, text, name, input }) => ({ type, text, name, input })),
    [
      { type: 'text', text: 'folded', name: undefined, input: undefined },
      { type: 'tool_use', text: undefined, name: 'look', input: { a: [1, 'é'] } },
    ],
  )
  const count = await gate.countTokens(request)
  assert.deepEqual(gate.countTokensSync(request), count)
  const { usage } = events(await collect(await gate.streamMessages(request)))[0].message
  assert.equal(usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens, count.input_tokens)
})

test('10,000 deltas cut at every border arrive as kiro-server sends them, whole events a Buffer (case 3)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t)
  const gate = await gateway(t, sim, pool)
  const { url } = await server(t, sim, pool)
  // 1 to 4 bytes a character; 10,000 pieces, and writes that fall anywhere in frames and characters.
  const text = 'aé漢😀'.repeat(5000)
  const request = ask({ text, pieces: 10_000, write_bytes: 997 })
  const parts = []
  for await (const buffer of await gate.streamMessages(request)) {
    assert.equal(buffer.subarray(-2).toString(), '\n\n')
    parts.push(buffer)
  }
  const ours = Buffer.concat(parts)
  const answer = await fetch(`${url}/v1/messages`, { method: 'POST', body: JSON.stringify({ ...request, stream: true }) })
  const theirs = Buffer.from(await answer.arrayBuffer())
  assert.equal(withoutIds(ours), withoutIds(theirs))
  const list = events(ours)
  assert.equal(list.filter((event) => event.type === 'content_block_delta').length, 10_000)
  assert.equal(textOf(list), text)
})

test('a reader that sleeps holds 64 KiB and a chunk, upstream stands still, the rest comes whole (case 4)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const piece = `${'x'.repeat(4000)}{n}`
  const stream = await gate.streamMessages(ask({ text: piece, count: 2500 }))
  const first = await stream.next()
  gc()
  const heap = process.memoryUsage()
  await sleep(1000)
  gc()
  const before = (await sim.stats()).streams.events
  const held = process.memoryUsage().arrayBuffers - heap.arrayBuffers
  assert.ok(held < 256 * 1024, `${held} bytes in Buffers`)
  // Others are served while this one sleeps.
  const others = await Promise.all(
    Array.from({ length: 5 }, async (_, n) => events(await collect(await gate.streamMessages(ask({ text: `other ${n}` }))))),
  )
  assert.deepEqual(others.map(textOf), Array.from({ length: 5 }, (_, n) => `other ${n}`))
  const between = (await sim.stats()).streams
  await sleep(500)
  const after = (await sim.stats()).streams
  assert.equal(after.events, between.events, 'upstream stands still')
  assert.ok(before < 2500, 'upstream was stopped before its end')
  const bytes = Buffer.concat([first.value, await collect(stream)])
  const text = textOf(events(bytes))
  assert.equal(text, Array.from({ length: 2500 }, (_, n) => piece.replace('{n}', n)).join(''))
})

test('break frees the upstream connection within 100 ms, also while upstream is silent (case 5)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t)
  const gate = await gateway(t, sim, pool)
  const took = []
  // A busy machine may be late once; what is slow by itself is slow each time.
  for (let round = 1; round <= 5 && !(took.at(-1) < 100); round++) {
    const stream = await gate.streamMessages(ask({ steps: [{ text: 'abc', pieces: 3 }, { wait_ms: 30_000 }, { text: 'never' }] }))
    let seen = ''
    for await (const buffer of stream) {
      seen += textOf(events(buffer))
      if (seen === 'abc') break
    }
    const left = performance.now()
    await until(async () => (await sim.stats()).streams.closed_by_client === round, 'the upstream connection to close')
    took.push(performance.now() - left)
    const summary = await stream.summary
    assert.equal(summary.outcome, 'cancelled')
    assert.equal(summary.error, undefined)
    assert.deepEqual(await stream.next(), { value: undefined, done: true })
  }
  assert.ok(took.at(-1) < 100, `${took} ms`)
  assert.equal((await sim.stats()).streams.open, 0)
  assert.deepEqual(gate.health().accounts, { total: 1, healthy: 1 })
})

describe('abort (case 6, N34)', () => {
  test('before the call: no upstream call', async (t) => {
    const sim = await simulator(t)
    const gate = await gateway(t, sim, accounts(t))
    const reason = new Error('changed my mind')
    for (const call of ['streamMessages', 'createMessage']) {
      const error = await rejection(gate[call](ask(), { signal: AbortSignal.abort(reason) }))
      aborted(error, reason)
    }
    assert.equal((await sim.stats()).requests['POST /generateAssistantResponse'], undefined)
  })

  test('before the first event', async (t) => {
    const sim = await simulator(t)
    const gate = await gateway(t, sim, accounts(t))
    for (const call of ['streamMessages', 'createMessage']) {
      const abort = new AbortController()
      const pending = rejection(gate[call](ask({ first_ms: 30_000 }), { signal: abort.signal }))
      await until(async () => (await sim.stats()).streams.open === 1, 'the call to reach upstream')
      const at = performance.now()
      abort.abort()
      aborted(await pending, abort.signal.reason)
      assert.ok(performance.now() - at < 100)
      await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be dropped', 100)
    }
  })

  test('between deltas, with and without a waiting next()', async (t) => {
    const sim = await simulator(t)
    const gate = await gateway(t, sim, accounts(t))
    for (const waiting of [true, false]) {
      const abort = new AbortController()
      const stream = await gate.streamMessages(ask({ text: '{n} ', count: 1000, gap_ms: 100 }), { signal: abort.signal })
      await stream.next()
      const next = waiting ? rejection(stream.next()) : null
      abort.abort('enough')
      aborted(await (next ?? rejection(stream.next())), 'enough')
      assert.deepEqual(await stream.next(), { value: undefined, done: true })
      assert.equal((await stream.summary).outcome, 'cancelled')
      await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be dropped', 100)
    }
  })

  test('after the end: nothing', async (t) => {
    const sim = await simulator(t)
    const gate = await gateway(t, sim, accounts(t))
    const abort = new AbortController()
    const stream = await gate.streamMessages(ask({ text: 'x' }), { signal: abort.signal })
    await collect(stream)
    abort.abort()
    assert.deepEqual(await stream.next(), { value: undefined, done: true })
    assert.equal((await stream.summary).outcome, 'complete')
  })

  test('1,000 calls on one signal leave no listener and no warning', async (t) => {
    const sim = await simulator(t)
    const gate = await gateway(t, sim, accounts(t))
    const { signal } = new AbortController()
    let listeners = 0
    const { addEventListener, removeEventListener } = signal
    signal.addEventListener = (...args) => (listeners++, addEventListener.apply(signal, args))
    signal.removeEventListener = (...args) => (listeners--, removeEventListener.apply(signal, args))
    const warnings = []
    const warn = (warning) => warnings.push(warning.name)
    process.on('warning', warn)
    for (let n = 0; n < 500; n++) {
      await collect(await gate.streamMessages(ask({ text: 'x' }), { signal }))
      await gate.createMessage(ask({ text: 'x' }), { signal })
    }
    process.off('warning', warn)
    assert.equal(listeners, 0)
    assert.deepEqual(warnings, [])
  })

  test('one signal for many calls at once: no warning, each is aborted, none listens any more', async (t) => {
    const sim = await simulator(t)
    const gate = await gateway(t, sim, accounts(t))
    const abort = new AbortController()
    const { signal } = abort
    const warnings = []
    const warn = (warning) => warnings.push(warning.name)
    process.on('warning', warn)
    const slow = ask({ text: '{n} ', count: 1000, gap_ms: 100 })
    const streams = await Promise.all(Array.from({ length: 15 }, () => gate.streamMessages(slow, { signal })))
    const left = streams.splice(0, 5)
    for (const stream of left) stream.cancel()
    const pending = Array.from({ length: 15 }, () => rejection(gate.createMessage(slow, { signal })))
    assert.equal(getEventListeners(signal, 'abort').length, 1)
    await until(async () => (await sim.stats()).streams.open === 25, 'all calls to reach upstream')
    abort.abort('enough')
    for (const error of await Promise.all(pending)) aborted(error, 'enough')
    for (const stream of streams) assert.equal((await stream.summary).outcome, 'cancelled')
    await new Promise(setImmediate)
    process.off('warning', warn)
    assert.equal(getEventListeners(signal, 'abort').length, 0)
    assert.deepEqual(warnings, [])
    await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be dropped')
  })

  function aborted(error, cause) {
    assert.equal(error.name, 'AbortError')
    assert.equal(error.code, 'KIRO_CANCELLED')
    assert.equal(error.status, 499)
    assert.equal(error.cause, cause)
    assert.ok(error instanceof KiroError)
  }
})

test('the first account is limited, the second good: nothing of it is seen (case 7)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t, 'sim-429.a', 'sim-ok.b'))
  const attempts = []
  for (let n = 0; n < 2; n++) {
    const stream = await gate.streamMessages(ask({ text: 'fine' }))
    const list = events(await collect(stream))
    assert.equal(list.filter((event) => event.type === 'message_start').length, 1)
    assert.equal(textOf(list), 'fine')
    attempts.push((await stream.summary).attempts)
  }
  assert.deepEqual(attempts, [2, 1], 'the conversation stays where it was answered')
})

test('every account is limited (case 8)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t, 'a', 'b')
  const limited = { http: { status: 429, type: 'ThrottlingException', message: 'slow down', headers: { 'retry-after': '7' } } }
  for (const token of ['a', 'b']) await sim.script({ token, scenarios: [limited], forever: true })
  const gate = await gateway(t, sim, pool)
  const error = await rejection(gate.streamMessages(ask()))
  assert.equal(error.code, 'KIRO_RATE_LIMITED')
  assert.equal(error.status, 429)
  assert.equal(error.type, 'rate_limit_error')
  assert.equal(error.origin, 'upstream')
  assert.equal(error.retryable, true)
  assert.ok(error.retryAfterMs > 6000 && error.retryAfterMs <= 7000, `${error.retryAfterMs}`)
  assert.match(error.requestId, /^req_/)
  const { status, headers, body } = error.toResponse()
  assert.equal(status, 429)
  assert.equal(headers['retry-after'], '7')
  assert.equal(headers['request-id'], error.requestId)
  assert.deepEqual(JSON.parse(body), {
    type: 'error',
    error: { type: 'rate_limit_error', message: error.message },
    request_id: error.requestId,
  })
  assert.ok(error.stack.includes(import.meta.url), 'the stack names the caller')
  assert.ok(!/slow down|simulated/i.test(error.stack), "none of upstream's words")
})

test('cut in mid-content: one event: error, nothing thrown (case 9, N36)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const cut = ask({ text: 'half of it', pieces: 4, end: 'cut' })
  const stream = await gate.streamMessages(cut)
  const types = events(await collect(stream)).map((event) => event.type)
  assert.equal(types.filter((type) => type === 'error').length, 1)
  assert.equal(types.at(-1), 'error')
  assert.ok(!types.includes('message_stop'))
  const summary = await stream.summary
  assert.equal(summary.outcome, 'error')
  assert.ok(summary.error instanceof KiroError)
  assert.equal(summary.error.code, 'KIRO_UPSTREAM')
  const error = await rejection(gate.createMessage(cut))
  assert.equal(error.code, 'KIRO_UPSTREAM')
  assert.equal(error.status, 500)
})

test('500 streams at once, 20 ms a delta: all whole, the event loop stays free (case 11)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const { monitorEventLoopDelay } = await import('node:perf_hooks')
  const delay = monitorEventLoopDelay({ resolution: 1 })
  delay.enable()
  const texts = await Promise.all(
    Array.from({ length: 500 }, async () =>
      textOf(events(await collect(await gate.streamMessages(ask({ text: '{n} ', count: 25, gap_ms: 20 }))))),
    ),
  )
  delay.disable()
  const whole = Array.from({ length: 25 }, (_, n) => `${n} `).join('')
  assert.deepEqual([...new Set(texts)], [whole])
  t.diagnostic(`event loop delay: p50 ${ms(delay.percentile(50))}, p99 ${ms(delay.percentile(99))}, max ${ms(delay.max)}`)
})

const ms = (ns) => `${(ns / 1e6).toFixed(1)} ms`

test('one consumer: a second iterator is a TypeError, several next() are answered in order (N35)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const stream = await gate.streamMessages(ask({ text: 'abcdef', pieces: 6, gap_ms: 10 }))
  const iterator = stream[Symbol.asyncIterator]()
  assert.throws(() => stream[Symbol.asyncIterator](), { name: 'TypeError', message: 'the stream is being read already' })
  const results = await Promise.all(Array.from({ length: 40 }, () => iterator.next()))
  const bytes = Buffer.concat(results.filter(({ done }) => !done).map(({ value }) => value))
  assert.equal(textOf(events(bytes)), 'abcdef')
  const firstDone = results.findIndex(({ done }) => done)
  assert.ok(firstDone > 0 && results.slice(firstDone).every(({ done }) => done))
})

test('a stream that has ended says so to a second reader (N35)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const ended = { name: 'TypeError', message: 'the stream has ended: it can be read once' }
  const again = async (stream) => {
    assert.throws(() => stream[Symbol.asyncIterator](), ended)
    if ('pipeTo' in stream) await assert.rejects(stream.pipeTo({ writeHead() {} }), ended)
  }
  for (const open of [() => gate.streamMessages(ask({ text: 'x' })), () => gate.streamEvents(ask({ text: 'x' }))]) {
    const read = await open()
    for await (const _ of read);
    await again(read)
    const left = await open()
    for await (const _ of left) break
    await again(left)
  }
  // The last Buffer waits to be read: it hasn't ended for its reader.
  const waiting = await gate.streamMessages(ask({ text: 'x' }))
  waiting[Symbol.asyncIterator]()
  await waiting.summary
  assert.throws(() => waiting[Symbol.asyncIterator](), /is being read already/)
})

test('the other kinds of stream keep cancelling prompt (N30, N33)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const endless = ask({ text: '{n} ', count: 100_000, gap_ms: 50 })
  const readable = Readable.from(await gate.streamMessages(endless))
  await once(readable, 'data')
  readable.destroy()
  const web = ReadableStream.from(await gate.streamMessages(endless)).getReader()
  await web.read()
  await web.cancel()
  const stream = await gate.streamMessages(endless)
  await stream.next()
  const pending = stream.next()
  stream.cancel()
  assert.deepEqual(await pending, { value: undefined, done: true })
  await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be dropped', 200)
})

test('streams dropped unread are cancelled at garbage collection (case 35 in small, N54)', async (t) => {
  assert.equal(typeof gc, 'function', 'run with --expose-gc')
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  // Dropped in every way: unread, read once, and with a signal that lives on.
  const { signal } = new AbortController()
  await (async () => {
    for (let n = 0; n < 30; n++) {
      const stream = await gate.streamMessages(ask({ text: '{n} ', count: 100_000, gap_ms: 1000 }), n % 3 === 2 ? { signal } : {})
      if (n % 3 === 1) await stream.next()
    }
  })()
  assert.equal((await sim.stats()).streams.open, 30)
  await until(async () => {
    gc()
    return (await sim.stats()).streams.open === 0
  }, 'garbage collection to close 30 streams')
})
