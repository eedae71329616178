// K1a, K3: AWS's own client for Kiro reads the simulator's streams. What it can't read, Kiro doesn't send; so apart from
// scenarios that are broken on purpose it must read everything, and get what the scenario says.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { CodeWhispererStreamingClient, GenerateAssistantResponseCommand, InvokeMCPCommand } from '@aws/codewhisperer-streaming-client'
import { freePort, serverBinary } from '../scripts/steps.mjs'

let simulator
let origin

before(async () => {
  origin = `http://127.0.0.1:${await freePort()}`
  simulator = spawn(serverBinary(), ['simulate', '--listen', origin.slice('http://'.length)], { stdio: 'ignore' })
  const failed = new Promise((_, reject) => simulator.on('error', reject))
  for (;;) {
    const listens = await Promise.race([failed, fetch(`${origin}/_sim/stats`).then(() => true, () => false)])
    if (listens) return
    assert.equal(simulator.exitCode, null, 'the simulator ended')
    await sleep(20)
  }
})

after(() => simulator?.kill())

/** AWS's client, which says who it is as Kiro's own does. */
function connect(token, version = '9.9.9') {
  const client = new CodeWhispererStreamingClient({
    endpoint: origin,
    region: 'us-east-1',
    token: async () => ({ token, expiration: new Date(Date.now() + 3_600_000) }),
    maxAttempts: 1,
  })
  const ide = `KiroIDE-${version}-${'0a'.repeat(32)}`
  const agents = {
    'user-agent': `aws-sdk-js/1.0.34 ua/2.1 os/linux#6.1 lang/js md/nodejs#24.18.0 api/codewhispererstreaming#1.0.34 m/E ${ide}`,
    'x-amz-user-agent': `aws-sdk-js/1.0.34 ${ide}`,
  }
  const speak = (next) => (args) => {
    Object.assign(args.request.headers, agents)
    return next(args)
  }
  client.middlewareStack.add(speak, { step: 'finalizeRequest', priority: 'low' })
  return client
}

/** The events of one answer, as [member of the union, value]. Throws what the client throws, with the events before. */
async function read(scenario, token = 'token', more = {}) {
  const client = connect(token, more.version)
  const content = scenario === undefined ? 'Hello' : `Please: [[sim ${JSON.stringify(scenario)}]]`
  const events = []
  try {
    const answer = await client.send(new GenerateAssistantResponseCommand(request(content, more)))
    assert.equal(answer.$metadata.httpStatusCode, 200)
    assert.equal(answer.conversationId, '7a1f6e0c-0000-4000-8000-000000000000')
    for await (const event of answer.generateAssistantResponseResponse) events.push(...Object.entries(event))
    for (const [name, value] of events) {
      if (name !== 'meteringEvent') continue
      assert.equal(value.usage, [...content].length / 1000)
      value.usage = 'by the prompt'
    }
    return events
  } catch (error) {
    error.eventsBefore = events
    throw error
  } finally {
    client.destroy()
  }
}

function request(content, { model = 'claude-sonnet-4.5', fields } = {}) {
  return {
    ...(fields && { additionalModelRequestFields: fields }),
    conversationState: {
      chatTriggerType: 'MANUAL',
      conversationId: '7a1f6e0c-0000-4000-8000-000000000000',
      currentMessage: { userInputMessage: { content, modelId: model, origin: 'AI_EDITOR' } },
    },
  }
}

const text = (content, more = {}) => ['assistantResponseEvent', { content, ...more }]
const thought = (value) => ['reasoningContentEvent', value]
const tool = (toolUseId, name, more = {}) => ['toolUseEvent', { toolUseId, name, ...more }]
const usage = [
  ['metadataEvent', {}],
  ['contextUsageEvent', { contextUsagePercentage: 1.25 }],
  ['meteringEvent', { usage: 'by the prompt', unit: 'credit', unitPlural: 'credits' }],
]
const numbers = (count) => Array.from({ length: count }, (_, n) => text(`${n} `))

const scenarios = [
  ['text', { text: 'hello' }, [text('hello'), ...usage]],
  ['text in pieces', { text: 'a é 😀 b', pieces: 7, usage: false }, [...'a é 😀 b'].map((c) => text(c))],
  ['text with what JSON escapes', { text: '"\\\n\t\u0001</\u2028' }, [text('"\\\n\t\u0001</\u2028'), ...usage]],
  ['text with a model', { text: 'x', model: 'claude-sonnet-4.5', usage: false }, [text('x', { modelId: 'claude-sonnet-4.5' })]],
  ['numbered events', { count: 100 }, [...numbers(100), ...usage]],
  ['ten thousand events', { count: 10_000, usage: false }, numbers(10_000)],
  ['equal events', { text: 'ha', count: 3, usage: false }, [text('ha'), text('ha'), text('ha')]],
  ['bursts', { count: 10, burst: 4, usage: false }, numbers(10)],
  ['gaps', { count: 5, gap_ms: 5, usage: false }, numbers(5)],
  ['a slow first event', { first_ms: 200, text: 'x', usage: false }, [text('x')]],
  ['a slow head', { head_ms: 200, text: 'x', usage: false }, [text('x')]],
  ['silence', { steps: [{ text: 'a' }, { wait_ms: 100 }, { text: 'b' }] }, [text('a'), text('b')]],
  ['writes of one byte', { text: 'é😀', count: 3, write_bytes: 1 }, [text('é😀'), text('é😀'), text('é😀'), ...usage]],
  ['writes of 7 bytes', { count: 20, write_bytes: 7 }, [...numbers(20), ...usage]],
  ['writes of 100 bytes', { count: 20, write_bytes: 100 }, [...numbers(20), ...usage]],
  ['a content length', { count: 20, content_length: true }, [...numbers(20), ...usage]],
  [
    'a tool, piece by piece',
    { tool: { id: 't', name: 'f', input: { x: 'é' }, pieces: 3 }, usage: false },
    [tool('t', 'f'), tool('t', 'f', { input: '{"x' }), tool('t', 'f', { input: '":"' }), tool('t', 'f', { input: 'é"}' }), tool('t', 'f', { stop: true })],
  ],
  [
    'a tool in one event',
    { tool: { id: 't', name: 'f', input: '{}', open: false, stop: 'last' }, usage: false },
    [tool('t', 'f', { input: '{}', stop: true })],
  ],
  ['a tool that never stops', { tool: { id: 't', name: 'f', input: '{"x', stop: 'never' }, usage: false }, [tool('t', 'f'), tool('t', 'f', { input: '{"x' })]],
  [
    'parallel tools',
    { text: 'go', tools: [{ id: 'a', name: 'f', input: '{}' }, { id: 'b', name: 'g' }] },
    [text('go'), tool('a', 'f'), tool('a', 'f', { input: '{}' }), tool('a', 'f', { stop: true }), tool('b', 'g'), tool('b', 'g', { stop: true }), ...usage],
  ],
  [
    'interleaved tools',
    { tools: [{ id: 'a', name: 'f', input: '{}' }, { id: 'b', name: 'g' }], interleave: true, usage: false },
    [tool('a', 'f'), tool('b', 'g'), tool('a', 'f', { input: '{}' }), tool('b', 'g', { stop: true }), tool('a', 'f', { stop: true })],
  ],
  [
    'native reasoning, its signature in pieces',
    { thinking: 'Hm.', pieces: 3, signature: 'abcd', signature_pieces: 2, text: 'Yes', usage: false },
    [...'Hm.'].map((c) => thought({ text: c })).concat([thought({ signature: 'ab' }), thought({ signature: 'cd' }), text('Y'), text('e'), text('s')]),
  ],
  ['redacted reasoning', { redacted: 'AAEC', usage: false, text: 'x' }, [thought({ redactedContent: new Uint8Array([0, 1, 2]) }), text('x')]],
  ['thinking in tags', { thinking: 'why', tags: true, text: 'so', usage: false }, [text('<thinking>\nwhy\n</thinking>\n\nso')]],
  [
    'real usage',
    { text: 'x', usage: { percent: 2.5, tokens: { uncachedInputTokens: 1, outputTokens: 2, totalTokens: 3, cacheReadInputTokens: 4 } } },
    [
      text('x'),
      ['metadataEvent', { tokenUsage: { uncachedInputTokens: 1, outputTokens: 2, totalTokens: 3, cacheReadInputTokens: 4 } }],
      ['contextUsageEvent', { contextUsagePercentage: 2.5 }],
    ],
  ],
  [
    'literal events; unknown ones and unknown members are dropped',
    {
      steps: [
        { event: 'messageMetadataEvent', payload: { conversationId: 'c', utteranceId: 'u' } },
        { event: 'somethingNewEvent', payload: { a: 1 } },
        { event: 'followupPromptEvent', payload: { followupPrompt: { content: '?' }, news: 1 } },
        { text: 'x' },
      ],
    },
    [
      ['messageMetadataEvent', { conversationId: 'c', utteranceId: 'u' }],
      ['followupPromptEvent', { followupPrompt: { content: '?' } }],
      text('x'),
    ],
  ],
  ['an empty payload', { steps: [{ event: 'metadataEvent', raw: '' }, { text: 'x' }] }, [['metadataEvent', {}], text('x')]],
]

for (const [name, scenario, expected] of scenarios) {
  test(`the client reads ${name} (K1a)`, { timeout: 60_000 }, async () => {
    assert.deepEqual(await read(scenario), expected)
  })
}

test('the demo answer, which says that it is simulated (K1a)', async () => {
  const events = await read()
  assert.equal(events.length, 23)
  assert.match(events.slice(0, 20).map(([, { content }]) => content).join(''), /simulated/)
  assert.deepEqual(events.slice(20), usage)
})

test('a thought in signed segments, asked for by fields (K1a)', async () => {
  const fields = { thinking: { type: 'adaptive', display: 'summarized' }, output_config: { effort: 'xhigh' } }
  const events = await read({ think: 'Hmm.', segments: 2, text: 'Yes', usage: false }, 'token', { model: 'claude-opus-5', fields })
  const [first, second] = [events[1][1].signature, events[3][1].signature]
  assert.match(first, /^[A-Za-z0-9+/]{43}=$/)
  assert.notEqual(first, second)
  assert.deepEqual(events, [thought({ text: 'Hm' }), thought({ signature: first }), thought({ text: 'm.' }), thought({ signature: second }), text('Yes')])
})

test('a thought that nobody can read (K1a)', async () => {
  const events = await read({ think: true, text: 'x', usage: false }, 'token', { model: 'gpt-5.6-sol', fields: { reasoning: { effort: 'max' } } })
  assert.ok(events[0][1].redactedContent instanceof Uint8Array)
})

test('figures in tokens (K1a)', async () => {
  const events = await read({ text: 'some' }, 'sim-token-usage')
  assert.deepEqual(events[1], ['metadataEvent', { tokenUsage: { uncachedInputTokens: 2436, outputTokens: 64, totalTokens: 2500 } }])
})

test('the client searches the web, and reads what is wrong with a search (K1a)', async () => {
  const client = connect('token')
  const search = (name) => {
    const params = { name, arguments: { query: 'rust' } }
    return client.send(new InvokeMCPCommand({ id: 'web_search_tooluse_1', jsonrpc: '2.0', method: 'tools/call', params }))
  }
  const { id, result, error } = await search('web_search')
  assert.equal(id, 'web_search_tooluse_1')
  assert.equal(error, undefined)
  assert.equal(JSON.parse(result.content[0].text).results.length, 3)
  const refused = await search('other')
  assert.equal(refused.result, undefined)
  assert.deepEqual(refused.error, { code: -32601, message: 'Method not found' })
  client.destroy()
})

test('an input that is an object is read (K33)', async () => {
  const events = await read({ tool: { id: 't', name: 'f', input: { x: 1 }, object: true, open: false, stop: 'last' } })
  assert.deepEqual(events[0], tool('t', 'f', { input: { x: 1 }, stop: true }))
})

const failures = [
  ['an exception frame by the name of the union', { text: 'x', exception: { type: 'error', message: 'm', reason: 'r' } }, { name: 'InternalServerException', message: 'm', reason: 'r' }, 1],
  // Not in its model of the stream: it hands on what it got.
  ['an exception frame by the name of its shape', { text: 'x', exception: { type: 'ThrottlingException', message: 'm' } }, { name: 'ThrottlingException', message: '{"message":"m"}' }, 1],
  ['an error frame', { text: 'x', error: { code: 'Oops', message: 'm é' } }, { name: 'Oops', message: 'm é' }, 1],
  ['a bad message checksum', { text: 'x', end: 'corrupt_crc' }, { message: /checksum/i }, 1],
  ['a bad prelude checksum', { text: 'x', end: 'corrupt_prelude' }, { message: /checksum/i }, 1],
  ['leftover bytes', { text: 'x', end: 'leftover' }, { message: /truncated/i }, 1],
  ['a cut stream', { text: 'x', end: 'cut' }, { code: 'ECONNRESET' }, 1],
  ['a reset stream', { text: 'x', end: 'reset' }, { code: 'ECONNRESET' }, 1],
]

for (const [name, scenario, expected, eventsBefore] of failures) {
  test(`the client refuses ${name}, after the events before it (K3)`, { timeout: 60_000 }, async () => {
    await assert.rejects(read(scenario), (error) => {
      for (const [key, value] of Object.entries(expected)) {
        if (value instanceof RegExp) assert.match(error[key], value)
        else assert.equal(error[key], value)
      }
      assert.equal(error.eventsBefore.length, eventsBefore)
      return true
    })
  })
}

const answers = [
  ['400', 400, 'ValidationException', {}],
  ['unknown-model', 400, 'ValidationException', { reason: 'INVALID_MODEL_ID' }],
  ['402', 402, 'ServiceQuotaExceededException', { reason: 'MONTHLY_REQUEST_COUNT' }],
  ['suspended', 403, 'AccessDeniedException', { reason: 'TEMPORARILY_SUSPENDED' }],
  ['409', 409, 'ConflictException', {}],
  ['429-retry-after-7', 429, 'ThrottlingException', {}],
  ['500', 500, 'InternalServerException', {}],
  ['503', 503, 'ServiceUnavailableException', {}],
]

const refusals = [
  ['an old version', { version: '0.8.140' }, /^This version of Kiro is no longer supported\./, undefined],
  ['an unknown model', { model: 'claude-opus-6' }, /select a different model/, 'INVALID_MODEL_ID'],
  ['fields that the model has not', { fields: { output_config: { effort: 'low' } } }, /^additionalModelRequestFields is not supported/, 'REQUEST_BODY_INVALID'],
  ['a value that the schema has not', { model: 'claude-opus-4.6', fields: { output_config: { effort: 'xhigh' } } }, /the enumeration/, 'REQUEST_BODY_INVALID'],
]

for (const [what, more, message, reason] of refusals) {
  test(`the client reads the refusal of ${what} (K1a)`, async () => {
    await assert.rejects(read(undefined, 'token', more), (error) => {
      assert.equal(error.name, 'ValidationException')
      assert.equal(error.$metadata.httpStatusCode, 400)
      assert.match(error.message, message)
      assert.equal(error.reason, reason)
      return true
    })
  })
}

for (const [preset, status, name, more] of answers) {
  test(`the client reads the answer sim-${preset} as ${name} (K1a)`, async () => {
    await assert.rejects(read(undefined, `sim-${preset}`), (error) => {
      assert.equal(error.name, name)
      assert.equal(error.$metadata.httpStatusCode, status)
      for (const [key, value] of Object.entries(more)) assert.equal(error[key], value)
      return true
    })
  })
}
