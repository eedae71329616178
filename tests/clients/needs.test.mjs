// C1–C19 with the TypeScript SDK: each thing that it requires or breaks on. A real answer of the
// server is spoilt on its way, and the SDK must fail as the specification says; unspoilt, it must pass. When an update of
// the SDK makes one of these fail, the requirement has changed: look it up before touching the expectation.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import Anthropic from '@anthropic-ai/sdk'
import { PNG, ask, rejection, serve, tool } from './kit.mjs'

const TEXT = { text: 'Hello there.', pieces: 3 }
const TOOL = { tools: [{ id: 'tooluse_1', name: 'f', input: { path: 'a', text: 'lo' }, pieces: 4 }] }
const THOUGHT = { thinking: 'Hm.', signature: 'sig', text: 'Yes.' }

test('a block without an event line is dropped (C1)', async (t) => {
  const send = await spoiled(t, TEXT, (events) => events.map(({ data }) => ({ data })))
  await assert.rejects(send(), /request ended without sending any chunks/)
})

test('a message_start without content or without usage fails (C2)', async (t) => {
  for (const member of ['content', 'usage']) {
    const send = await spoiled(t, TEXT, (events) =>
      change(events, 'message_start', ({ message }) => delete message[member]),
    )
    await assert.rejects(send(), broken, member)
  }
})

test('a second message_start fails (C3)', async (t) => {
  const send = await spoiled(t, TEXT, ([start, ...rest]) => [start, start, ...rest])
  await assert.rejects(send(), /Unexpected event order, got message_start/)
})

test('a message_delta without usage fails (C4)', async (t) => {
  const send = await spoiled(t, TEXT, (events) => change(events, 'message_delta', (event) => delete event.usage))
  await assert.rejects(send(), broken)
})

test('without message_stop the stream fails (C5)', async (t) => {
  const send = await spoiled(t, TEXT, (events) => without(events, 'message_stop'))
  await assert.rejects(send(), /stream ended without producing a Message/)
})

test('without message_delta the message has no stop reason (C6)', async (t) => {
  const send = await spoiled(t, TEXT, (events) => without(events, 'message_delta'))
  assert.equal((await send()).stop_reason, null)
})

test('a gap in the indices loses the text, and a delta before its start fails (C7)', async (t) => {
  const gap = await spoiled(t, TEXT, (events) =>
    events.map((event) =>
      'index' in event.data ? { ...event, data: { ...event.data, index: event.data.index + 1 } } : event,
    ),
  )
  assert.deepEqual((await gap()).content, [{ type: 'text', text: '' }])
  const early = await spoiled(t, TEXT, (events) => without(events, 'content_block_start'))
  await assert.rejects(early(), broken)
})

test('a thinking block that starts without thinking shows `undefined` (C8)', async (t) => {
  const send = await spoiled(t, THOUGHT, (events) =>
    change(events, 'content_block_start', ({ content_block: block }) => delete block.thinking),
  )
  assert.equal((await send()).content[0].thinking, 'undefinedHm.')
})

test('a tool_use that starts without input and gets none has no input (C9)', async (t) => {
  const send = await spoiled(t, { tools: [{ id: 'tooluse_1', name: 'f' }] }, (events) =>
    without(
      change(events, 'content_block_start', ({ content_block: block }) => delete block.input),
      'content_block_delta',
    ),
  )
  assert.ok(!('input' in (await send()).content[0]))
})

test('wrong tool JSON throws, cut tool JSON is silently a part (C10)', async (t) => {
  const wrong = await spoiled(t, TOOL, (events) => deltas(events, ['{"path":', 'nonsense']))
  const error = await rejection(wrong().then((message) => message.content[0].input))
  assert.match(error.message, /JSON/i)
  const cut = await spoiled(t, TOOL, (events) => deltas(events, ['{"path":"a","te']))
  const { input } = (await cut()).content[0]
  assert.ok(JSON.stringify(input) === '{"path":"a"}' || JSON.stringify(input) === '{}', JSON.stringify(input))
})

test('pings, unknown events and unknown deltas are ignored (C11)', async (t) => {
  const ping = { event: 'ping', data: { type: 'ping' } }
  const odd = { event: 'telemetry', data: { type: 'telemetry', n: 1 } }
  const send = await spoiled(t, TEXT, (events) =>
    events.flatMap((event) => [
      event,
      ping,
      odd,
      ...(event.event === 'content_block_delta'
        ? [{ ...event, data: { ...event.data, delta: { type: 'glitter_delta', glitter: 1 } } }]
        : []),
    ]),
  )
  assert.equal((await send()).content[0].text, TEXT.text)
})

test('an error event is an APIError with a type and without a status (C12)', async (t) => {
  const send = await spoiled(t, TEXT, ([start]) => [
    start,
    {
      event: 'error',
      data: { type: 'error', error: { type: 'overloaded_error', message: 'Busy.' }, request_id: 'req_x' },
    },
  ])
  const error = await rejection(send())
  assert.ok(error instanceof Anthropic.APIError)
  assert.equal(error.status, undefined)
  assert.equal(error.type, 'overloaded_error')
})

test('counts in message_delta replace those of the start, null and missing ones don’t (C13)', async (t) => {
  const send = await spoiled(t, TEXT, (events) =>
    change(
      change(events, 'message_start', ({ message }) =>
        Object.assign(message.usage, { input_tokens: 1, cache_read_input_tokens: 2, cache_creation_input_tokens: 3 }),
      ),
      'message_delta',
      (event) => (event.usage = { input_tokens: 11, cache_read_input_tokens: null, output_tokens: 5 }),
    ),
  )
  const { usage } = await send()
  assert.deepEqual(
    [usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens, usage.output_tokens],
    [11, 2, 3, 5],
  )
})

test('a signature_delta replaces the signature (C14)', async (t) => {
  const send = await spoiled(t, THOUGHT, (events) =>
    events.flatMap((event) => {
      if (event.data.delta?.type !== 'signature_delta') return [event]
      return ['si', 'g'].map((signature) => ({
        ...event,
        data: { ...event.data, delta: { type: 'signature_delta', signature } },
      }))
    }),
  )
  assert.equal((await send()).content[0].signature, 'g')
})

test('200 with an error body is taken for a message; JSON under another type is a string (C15)', async (t) => {
  const house = await serve(t)
  const answer = (body, type) => async () => new Response(body, { status: 200, headers: { 'content-type': type } })
  const error = '{"type":"error","error":{"type":"api_error","message":"x"}}'
  const taken = await house.client({ fetch: answer(error, 'application/json') }).messages.create(ask('Hi'))
  assert.equal(taken.type, 'error')
  const text = await house.client({ fetch: answer('{"type":"message"}', 'text/plain') }).messages.create(ask('Hi'))
  assert.equal(typeof text, 'string')
})

test('the server’s own errors have their request-id and the class of their status (C16)', async (t) => {
  const house = await serve(t, { accounts: ['sim-529'] })
  const error = await rejection(house.client().messages.create(ask('Hi')))
  assert.equal(error.constructor, Anthropic.OverloadedError)
  assert.equal(error.requestID, error.headers.get('request-id'))
  const empty = await serve(t, { accounts: [] })
  assert.equal(
    (await rejection(empty.client().messages.create(ask('Hi')))).constructor,
    Anthropic.ServiceUnavailableError,
  )
})

test('x-should-retry wins over the status, and a positive retry-after is obeyed (C17)', async (t) => {
  const house = await serve(t)
  const counted = (headers) => {
    let calls = 0
    const fetch = async () => {
      calls += 1
      return new Response('{"type":"error","error":{"type":"overloaded_error","message":"x"}}', {
        status: 503,
        headers: { 'content-type': 'application/json', ...headers },
      })
    }
    return { client: house.client({ fetch, maxRetries: 1 }), calls: () => calls }
  }
  const never = counted({ 'x-should-retry': 'false', 'retry-after': '1' })
  await rejection(never.client.messages.create(ask('Hi')))
  assert.equal(never.calls(), 1)
  const later = counted({ 'retry-after': '1' })
  const began = performance.now()
  await rejection(later.client.messages.create(ask('Hi')))
  assert.equal(later.calls(), 2)
  assert.ok(performance.now() - began >= 990, 'waited')
})

test('above a minute of rest the server says that a retry won’t help (C17, M61)', async (t) => {
  const house = await serve(t, { accounts: ['sim-429-retry-after-1800'] })
  const client = house.client({ maxRetries: 2 })
  const began = performance.now()
  for (const status of [429, 500]) {
    const error = await rejection(client.messages.create(ask('Hi')))
    assert.equal(error.status, status)
    assert.match(error.headers.get('retry-after'), /^(1800|179\d)$/)
    assert.equal(error.headers.get('x-should-retry'), 'false')
  }
  assert.ok(performance.now() - began < 5000, 'it didn’t sleep')
})

test('without stream the SDK itself refuses a large max_tokens (C18)', async (t) => {
  const house = await serve(t)
  const client = house.client()
  await assert.rejects(
    async () => client.messages.create(ask('Hi', { max_tokens: 21_334 })),
    /[Ss]treaming is required/,
  )
  assert.equal((await client.messages.create(ask('Hi', { max_tokens: 21_333 }))).type, 'message')
  assert.equal((await client.messages.stream(ask('Hi', { max_tokens: 64_000 })).finalMessage()).type, 'message')
  assert.equal(
    (await client.messages.create(ask('Hi', { max_tokens: 1_000_000 }), { timeout: 10_000 })).type,
    'message',
  )
})

test('line separators inside the JSON split no line (C19)', async (t) => {
  const house = await serve(t)
  const text = 'a\u2028b\u2029c\u0085d\u000be\u000cf'
  await house.script({ text })
  assert.equal(await house.client().messages.stream(ask('Hi')).finalText(), text)
})

/** A client whose streams are the server's answer to `scenario`, changed by `change`; sends one request. */
async function spoiled(t, scenario, change) {
  const house = await serve(t)
  await house.script(scenario, scenario)
  const request = ask(
    [
      {
        role: 'user',
        content: [
          { type: 'text', text: 'Go.' },
          { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } },
        ],
      },
    ],
    {
      tools: [tool('f')],
      thinking: { type: 'adaptive' },
    },
  )
  // First as it is: what the change breaks must have been whole.
  const whole = await house.client().messages.stream(request).finalMessage()
  assert.ok(whole.content.length > 0 && whole.stop_reason)
  const spoil = async (input, init) => {
    const response = await house.checkedFetch(input, init)
    const events = (await response.text())
      .split('\n\n')
      .filter(Boolean)
      .map((block) => /^event: (?<event>.*)\ndata: (?<data>.*)$/.exec(block).groups)
      .map(({ event, data }) => ({ event, data: JSON.parse(data) }))
    const lines = change(events).map(
      ({ event, data }) => `${event ? `event: ${event}\n` : ''}data: ${JSON.stringify(data)}\n\n`,
    )
    return new Response(lines.join(''), { headers: { 'content-type': 'text/event-stream' } })
  }
  return () => house.client({ fetch: spoil, logLevel: 'off' }).messages.stream(request).finalMessage()
}

/** The SDK stumbled over what was missing. */
function broken(error) {
  return error instanceof Anthropic.AnthropicError && error.cause instanceof TypeError
}

/** `edit`s the data of the first event called `name`. */
function change(events, name, edit) {
  edit(events.find(({ event }) => event === name).data)
  return events
}

function without(events, name) {
  return events.filter(({ event }) => event !== name)
}

/** The same stream with other pieces of tool input. */
function deltas(events, pieces) {
  const first = events.findIndex(({ event }) => event === 'content_block_delta')
  const { data } = events[first]
  const rest = without(events, 'content_block_delta')
  rest.splice(
    first,
    0,
    ...pieces.map((partial_json) => ({
      event: 'content_block_delta',
      data: { ...data, delta: { type: 'input_json_delta', partial_json } },
    })),
  )
  return rest
}
