// The Vercel AI SDK (`ai`) with its Anthropic provider (`@ai-sdk/anthropic`): a client that reads the API by schemas of
// its own.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createAnthropic } from '@ai-sdk/anthropic'
import { APICallError, Output, generateText, jsonSchema, stepCountIs, streamText, tool as declare } from 'ai'
import { KEY, MODEL, PDF, PNG, rejection, serve } from './kit.mjs'

const THINKING = { anthropic: { thinking: { type: 'enabled', budgetTokens: 2048 } } }

test('text: generated and streamed equal what upstream sent, with usage', async (t) => {
  const { house, model } = await provide(t)
  const text = 'Bonjour – “ça va” 你好 😀 <b>&amp;</b>\n\nfin'
  const usage = {
    uncachedInputTokens: 200,
    outputTokens: 7,
    totalTokens: 1000,
    cacheReadInputTokens: 700,
    cacheWriteInputTokens: 93,
  }
  const answer = {
    text,
    pieces: 12,
    write_bytes: 11,
    steps: [{ event: 'metadataEvent', payload: { tokenUsage: usage } }],
  }
  await house.script(answer, answer)
  const whole = await generateText({ model, prompt: 'Say something.' })
  const stream = streamText({ model, prompt: 'Say something.' })
  let streamed = ''
  for await (const delta of stream.textStream) streamed += delta
  for (const [text_, reason, counts] of [
    [whole.text, whole.finishReason, whole.usage],
    [streamed, await stream.finishReason, await stream.usage],
  ]) {
    assert.equal(text_, text)
    assert.equal(reason, 'stop')
    assert.equal(counts.inputTokens, 993)
    assert.equal(counts.outputTokens, 7)
    assert.equal(counts.inputTokenDetails.cacheReadTokens, 700)
  }
  assert.equal((await stream.response).modelId, MODEL)
})

test('an agent of three steps with two parallel tools gets through', async (t) => {
  const { house, model } = await provide(t)
  await house.script(
    { text: 'First.', tools: [{ id: 'tooluse_1', name: 'weather', input: { city: 'Oslo' }, pieces: 3 }] },
    {
      tools: [
        { id: 'tooluse_2', name: 'weather', input: { city: 'Rome' }, pieces: 3 },
        { id: 'tooluse_3', name: 'clock' },
      ],
      interleave: true,
    },
    { text: 'Oslo is cold, Rome is warm.' },
  )
  const asked = []
  const weather = declare({
    description: 'The weather of a city.',
    inputSchema: jsonSchema({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }),
    execute: async ({ city }) => {
      asked.push(city)
      return { city, degrees: city === 'Oslo' ? -3 : 17 }
    },
  })
  const clock = declare({
    description: 'The time.',
    inputSchema: jsonSchema({ type: 'object', properties: {} }),
    execute: async () => {
      throw new Error('the clock is broken')
    },
  })
  const stream = streamText({ model, prompt: 'Compare.', tools: { weather, clock }, stopWhen: stepCountIs(5) })
  assert.equal(await stream.text, 'Oslo is cold, Rome is warm.')
  const steps = await stream.steps
  assert.deepEqual(
    steps.map((step) => step.finishReason),
    ['tool-calls', 'tool-calls', 'stop'],
  )
  assert.deepEqual(
    steps[1].toolCalls.map((call) => [call.toolCallId, call.input]),
    [
      ['tooluse_2', { city: 'Rome' }],
      ['tooluse_3', {}],
    ],
  )
  assert.deepEqual(asked, ['Oslo', 'Rome'])
  const bodies = await house.upstream()
  assert.equal(bodies.length, 3)
  const { toolResults } = bodies[2].conversationState.currentMessage.userInputMessage.userInputMessageContext
  assert.deepEqual(
    toolResults.map(({ toolUseId, status }) => [toolUseId, status]),
    [
      ['tooluse_2', 'success'],
      ['tooluse_3', 'error'],
    ],
  )
  assert.deepEqual(JSON.parse(toolResults[0].content[0].text), { city: 'Rome', degrees: 17 })
})

test('thinking with its signature returns in the next step, redacted thinking too', async (t) => {
  const { house, model } = await provide(t)
  const signature = 'EqoBCkgIARAB'.repeat(20)
  const call = (id) => ({ tools: [{ id, name: 'look' }] })
  await house.script(
    { thinking: 'I should look.', signature, signature_pieces: 3, ...call('tooluse_1') },
    { redacted: 'c2VjcmV0', ...call('tooluse_2') },
    { thinking: 'Enough.', signature: 'c2ln', text: 'Seen.' },
  )
  const look = declare({ inputSchema: jsonSchema({ type: 'object', properties: {} }), execute: async () => 'a tree' })
  const result = streamText({
    model,
    prompt: 'Look twice.',
    tools: { look },
    stopWhen: stepCountIs(5),
    providerOptions: THINKING,
  })
  assert.equal(await result.text, 'Seen.')
  const [first, second, third] = await result.steps
  assert.equal(first.reasoningText, 'I should look.')
  assert.equal(first.reasoning[0].providerOptions.anthropic.signature, signature)
  assert.equal(second.reasoning[0].providerOptions.anthropic.redactedData, 'c2VjcmV0')
  assert.equal(third.reasoningText, 'Enough.')
  const { history } = (await house.upstream())[2].conversationState
  const thoughts = history.map((turn) => turn.assistantResponseMessage?.reasoningContent).filter(Boolean)
  assert.deepEqual(thoughts, [
    { reasoningText: { text: 'I should look.', signature } },
    { redactedContent: 'c2VjcmV0' },
  ])
})

test('an image and a PDF arrive', async (t) => {
  const { house, model } = await provide(t)
  await house.script({ text: 'A dot and a page.' })
  const content = [
    { type: 'text', text: 'What are these?' },
    { type: 'file', data: Buffer.from(PNG, 'base64'), mediaType: 'image/png' },
    { type: 'file', data: Buffer.from(PDF, 'base64'), mediaType: 'application/pdf', filename: 'page.pdf' },
  ]
  assert.equal((await generateText({ model, messages: [{ role: 'user', content }] })).text, 'A dot and a page.')
  const sent = (await house.upstream())[0].conversationState.currentMessage.userInputMessage
  assert.deepEqual(sent.images, [{ format: 'png', source: { bytes: PNG } }])
  assert.deepEqual(sent.documents, [{ name: 'page', format: 'pdf', source: { bytes: PDF } }])
})

test('an object follows its schema', async (t) => {
  const { house, model } = await provide(t)
  const ada = { name: 'Ada', age: 36 }
  // The provider asks with output_config.format for models that it knows to take it, else with a forced tool `json`.
  await house.script({ text: JSON.stringify(ada), pieces: 4 })
  const schema = jsonSchema({
    type: 'object',
    properties: { name: { type: 'string' }, age: { type: 'number' } },
    required: ['name', 'age'],
    additionalProperties: false,
  })
  const result = await generateText({ model, prompt: 'Who?', output: Output.object({ schema }) })
  assert.deepEqual(result.output, ada)
})

test('a search of the provider gives its sources, in mid-stream too (A134)', async (t) => {
  const { house, model, provider } = await provide(t)
  const answer = [{ tools: [{ id: 'tooluse_S1', name: 'web_search', input: { query: 'herons' } }] }, { text: 'They fish.' }]
  await house.script(...answer, ...answer)
  const tools = { web_search: provider.tools.webSearch_20250305({ maxUses: 2 }) }
  const streamed = streamText({ model, tools, prompt: 'What do herons eat?' })
  await streamed.consumeStream()
  const whole = await generateText({ model, tools, prompt: 'What do they eat?' })
  for (const { text, sources, finishReason } of [
    { text: await streamed.text, sources: await streamed.sources, finishReason: await streamed.finishReason },
    whole,
  ]) {
    assert.deepEqual([text, finishReason], ['They fish.', 'stop'])
    assert.deepEqual(
      sources.map(({ url }) => url),
      [1, 2, 3].map((n) => `https://site${n}.test/herons`),
    )
  }
})

test('errors have their status and say whether a retry may help', async (t) => {
  for (const [account, status, retryable] of [
    ['sim-400', 400, false],
    ['sim-413', 413, false],
    ['sim-429-retry-after-7', 429, true],
    ['sim-500', 500, true],
    ['sim-402', 500, true],
    ['sim-529', 529, true],
  ]) {
    const { model } = await provide(t, [account])
    const error = await rejection(generateText({ model, prompt: 'Hi', maxRetries: 0 }))
    assert.ok(APICallError.isInstance(error), error.stack)
    assert.equal(error.statusCode, status)
    assert.equal(error.isRetryable, retryable)
    assert.equal(error.data.error.message, error.message, 'the body was understood')
    let streamed
    const stream = streamText({ model, prompt: 'Hi', maxRetries: 0, onError: ({ error }) => (streamed = error) })
    await stream.consumeStream()
    if (account !== 'sim-429-retry-after-7' && account !== 'sim-402') assert.equal(streamed.statusCode, status)
    else assert.ok(streamed.statusCode === status || streamed.statusCode === 503)
  }
  const { house } = await provide(t)
  const stranger = createAnthropic({ baseURL: `${house.url}/v1`, apiKey: 'wrong' })(MODEL)
  assert.equal((await rejection(generateText({ model: stranger, prompt: 'Hi', maxRetries: 0 }))).statusCode, 401)
  const unknown = createAnthropic({ baseURL: `${house.url}/v1`, apiKey: KEY })('gpt-4o')
  assert.equal((await rejection(generateText({ model: unknown, prompt: 'Hi', maxRetries: 0 }))).statusCode, 404)
})

test('a failure in mid-stream is an error and never a finished answer', async (t) => {
  const { house, model } = await provide(t)
  for (const scenario of ['cut', 'late-exception-InternalServerException', 'corrupt-late']) {
    await house.script(scenario)
    const parts = []
    for await (const part of streamText({ model, prompt: 'Hi', maxRetries: 0, onError() {} }).fullStream)
      parts.push(part)
    assert.match(
      parts
        .filter((part) => part.type === 'text-delta')
        .map((part) => part.text)
        .join(''),
      /^This answer/,
    )
    assert.ok(
      parts.some((part) => part.type === 'error'),
      scenario,
    )
    assert.notEqual(parts.find((part) => part.type === 'finish')?.finishReason, 'stop')
  }
})

test('its own retries pass an overload and get the answer', async (t) => {
  const { house, model } = await provide(t)
  await house.script('529', { text: 'Second time.' })
  assert.equal((await generateText({ model, prompt: 'Hi', maxRetries: 1 })).text, 'Second time.')
})

test('aborting cancels the upstream call', async (t) => {
  const { house, model } = await provide(t)
  await house.script({ text: '{n} ', count: 100_000, gap_ms: 10 })
  const controller = new AbortController()
  const stream = streamText({ model, prompt: 'Count.', abortSignal: controller.signal, onError() {} })
  for await (const _ of stream.textStream) {
    controller.abort()
    break
  }
  await house.closes(1, 1000)
})

async function provide(t, accounts) {
  const house = await serve(t, { accounts })
  const provider = createAnthropic({ baseURL: `${house.url}/v1`, apiKey: KEY, fetch: house.checkedFetch })
  return { house, provider, model: provider(MODEL) }
}
