// @anthropic-ai/sdk: searches, tools of Anthropic's that the client runs, structured output, context editing, with the
// SDK's own helpers for each.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { betaTool } from '@anthropic-ai/sdk/helpers/beta/json-schema'
import { betaMemoryTool } from '@anthropic-ai/sdk/helpers/beta/memory'
import { jsonSchemaOutputFormat } from '@anthropic-ai/sdk/helpers/json-schema'
import { zodOutputFormat } from '@anthropic-ai/sdk/helpers/zod'
import * as z from 'zod'
import { ask, rejection, serve, tool } from './kit.mjs'

const SEARCH = { type: 'web_search_20250305', name: 'web_search', max_uses: 3 }
const search = (n, query) => ({ id: `tooluse_S${n}`, name: 'web_search', input: { query } })
const MODES = ['stream', 'whole']
const send = (house, mode, body, options) =>
  mode === 'stream'
    ? house.client().messages.stream(body, options).finalMessage()
    : house.client().messages.create(body, options)

for (const mode of MODES) {
  test(`a search within one message, and its results in the next turn (A134, A139), ${mode}`, async (t) => {
    const house = await serve(t)
    await house.script(
      { text: 'I look.', tools: [search(1, 'grey herons')] },
      { text: 'They fish.', pieces: 3 },
      { text: 'Frogs too.' },
    )
    const body = ask('What do grey herons eat?', { tools: [SEARCH] })
    const message = await send(house, mode, body)
    const [before, use, found, after] = message.content
    assert.deepEqual([before.text, after.text, message.stop_reason], ['I look.', 'They fish.', 'end_turn'])
    assert.deepEqual([use.type, use.name, use.input], ['server_tool_use', 'web_search', { query: 'grey herons' }])
    assert.equal(found.tool_use_id, use.id)
    assert.deepEqual(
      found.content.map(({ type, title, url, page_age: age }) => [type, title, url, age]),
      [1, 2, 3].map((n) => [
        'web_search_result',
        `grey herons (${n})`,
        `https://site${n}.test/greyherons`,
        `October ${6 - n}, 2026`,
      ]),
    )
    assert.equal(message.usage.server_tool_use.web_search_requests, 1)
    const turns = [...body.messages, { role: 'assistant', content: message.content }]
    await send(house, mode, { ...body, messages: [...turns, { role: 'user', content: 'Nothing else?' }] })
    const [, second, third] = await house.upstream()
    const [result] = current(second).userInputMessageContext.toolResults
    assert.match(result.content[0].text, /What a simulated page 1 says about grey herons\./)
    const replayed = third.conversationState.history.flatMap(
      ({ userInputMessage: user }) => user?.userInputMessageContext?.toolResults ?? [],
    )
    assert.deepEqual(replayed, [result], 'the next turn says it in the same words')
  })

  test(`a search beside a tool that the runner runs (A138), ${mode}`, async (t) => {
    const house = await serve(t)
    await house.script(
      { tools: [search(1, 'herons'), { id: 'tooluse_1', name: 'add', input: { a: 1, b: 2 } }] },
      { text: 'Three herons.' },
    )
    const runner = house
      .client()
      .beta.messages.toolRunner(ask('How many herons?', { tools: [SEARCH, adder()], stream: mode === 'stream' }))
    const last = await runner.runUntilDone()
    assert.equal(last.content[0].text, 'Three herons.')
    const [, second] = await house.upstream()
    const results = current(second).userInputMessageContext.toolResults
    assert.deepEqual(
      results.map(({ toolUseId }) => toolUseId),
      ['tooluse_S1', 'tooluse_1'],
    )
    assert.match(results[0].content[0].text, /What a simulated page 1 says/)
  })

  test(`a search that pauses is taken up again by the runner (A144), ${mode}`, async (t) => {
    const house = await serve(t, { env: { KIRO_WEB_SEARCH_MAX_ROUNDS: '2' } })
    await house.script(
      { tools: [search(1, 'herons')] },
      { tools: [search(2, 'storks')] },
      { text: 'Both are birds.' },
    )
    const reasons = []
    const runner = house
      .client()
      .beta.messages.toolRunner(ask('What are they?', { tools: [SEARCH, adder()], stream: mode === 'stream' }))
    for await (const step of runner) {
      const message = mode === 'stream' ? await step.finalMessage() : step
      reasons.push(message.stop_reason)
    }
    assert.deepEqual(reasons, ['pause_turn', 'end_turn'])
    assert.equal((await runner.done()).content[0].text, 'Both are birds.')
  })

  test(`a search that fails is an error in its block, and the answer goes on (K135), ${mode}`, async (t) => {
    const house = await serve(t)
    await world(house, 'search-down')
    await house.script({ tools: [search(1, 'herons')] }, { text: 'I could not look.' })
    const { content, stop_reason: reason } = await send(house, mode, ask('Herons?', { tools: [SEARCH] }))
    assert.equal(reason, 'end_turn')
    assert.deepEqual(content[1].content, { type: 'web_search_tool_result_error', error_code: 'unavailable' })
    assert.equal(content[2].text, 'I could not look.')
  })

  test(`structured output is the JSON alone, whatever stands around it (A177), ${mode}`, async (t) => {
    const house = await serve(t)
    const ada = { name: 'Ada', age: 36 }
    const formats = [
      jsonSchemaOutputFormat({
        type: 'object',
        properties: { name: { type: 'string' }, age: { type: 'integer' } },
        required: ['name', 'age'],
        additionalProperties: false,
      }),
      zodOutputFormat(z.object({ name: z.string(), age: z.number().int() })),
    ]
    for (const format of formats) {
      await house.script({ text: `Here it is:\n\`\`\`json\n${JSON.stringify(ada)}\n\`\`\``, pieces: 6 })
      const body = ask('Who wrote the first program?', { output_config: { format } })
      const message =
        mode === 'stream'
          ? await house.client().messages.stream(body).finalMessage()
          : await house.client().messages.parse(body)
      assert.deepEqual(message.parsed_output, ada)
      assert.deepEqual(message.content.map(({ type }) => type), ['text'])
    }
    const [{ conversationState: state }] = await house.upstream()
    assert.match(state.currentMessage.userInputMessage.content, /valid against this JSON Schema/)
  })

  test(`structured output that is wrong is asked for once more (A178, A179), ${mode}`, async (t) => {
    const house = await serve(t)
    const format = zodOutputFormat(z.object({ name: z.string() }))
    const ask1 = (text) => {
      const body = ask(text, { output_config: { format } })
      return mode === 'stream'
        ? house.client().messages.stream(body).finalMessage()
        : house.client().messages.parse(body)
    }
    await house.script({ text: 'It was Ada.' }, { text: '{"name":"Ada"}' })
    assert.deepEqual((await ask1('Who?')).parsed_output, { name: 'Ada' })
    await house.script({ text: 'It was Ada.' }, { text: '{"nom":"Ada"}' })
    const error = await rejection(ask1('Who was it?'))
    // A stream has begun by then, and has no status any more.
    assert.deepEqual([error.status, error.error.error.type], [mode === 'stream' ? undefined : 500, 'api_error'])
    assert.equal((await house.upstream()).length, 4)
  })

  test(`bash, the text editor and memory are run by the runner (A161), ${mode}`, async (t) => {
    const house = await serve(t)
    const ran = []
    const run = (name) => (input) => {
      ran.push([name, input])
      return `${name} did it`
    }
    const own = (type, name) => ({ type, name, parse: (input) => input, run: run(name) })
    const memory = betaMemoryTool(
      Object.fromEntries(
        ['view', 'create', 'str_replace', 'insert', 'delete', 'rename'].map((command) => [command, run('memory')]),
      ),
    )
    const calls = [
      ['memory', { command: 'view', path: '/memories' }],
      ['bash', { command: 'ls' }],
      ['str_replace_based_edit_tool', { command: 'view', path: '/x' }],
    ]
    await house.script(
      ...calls.map(([name, input], n) => ({ tools: [{ id: `tooluse_${n}`, name, input, pieces: 2 }] })),
      { text: 'Done.' },
    )
    const tools = [own('bash_20250124', 'bash'), own('text_editor_20250728', 'str_replace_based_edit_tool'), memory]
    const runner = house.client().beta.messages.toolRunner(ask('Go on.', { tools, stream: mode === 'stream' }))
    assert.equal((await runner.runUntilDone()).content[0].text, 'Done.')
    assert.deepEqual(ran, calls)
    const specifications = current((await house.upstream())[0]).userInputMessageContext.tools.map(
      ({ toolSpecification: { name, inputSchema } }) => [name, Object.keys(inputSchema.json.properties)],
    )
    assert.deepEqual(specifications[0], ['bash', ['command', 'restart']])
    assert.ok(specifications.every(([, properties]) => properties.includes('command')))
  })

  test(`context editing clears old results and says so (A171, A172, A176), ${mode}`, async (t) => {
    const house = await serve(t)
    const { messages } = client(house)
    const edits = [
      { type: 'clear_tool_uses_20250919', trigger: { type: 'tool_uses', value: 4 }, keep: { type: 'tool_uses', value: 2 } },
    ]
    const text = (n) => `result ${n} `.repeat(40)
    const turns = [{ role: 'user', content: 'Begin.' }]
    for (let n = 1; n <= 5; n++) {
      turns.push(
        { role: 'assistant', content: [{ type: 'tool_use', id: `toolu_${n}`, name: 'f', input: { n } }] },
        { role: 'user', content: [{ type: 'tool_result', tool_use_id: `toolu_${n}`, content: text(n) }] },
      )
    }
    const body = ask(turns, { tools: [tool('f')], context_management: { edits }, betas: ['context-management-2025-06-27'] })
    await house.script({ text: 'Done.' }, { text: 'Done.' })
    const edited = (more) =>
      mode === 'stream' ? messages.stream({ ...body, ...more }).finalMessage() : messages.create({ ...body, ...more })
    const [applied, ...others] = (await edited()).context_management.applied_edits
    assert.deepEqual([applied.type, applied.cleared_tool_uses, others.length], ['clear_tool_uses_20250919', 3, 0])
    assert.ok(applied.cleared_input_tokens > 0)
    const few = [...turns.slice(0, 3), { role: 'assistant', content: 'So.' }, { role: 'user', content: 'Go on.' }]
    assert.deepEqual((await edited({ messages: few })).context_management.applied_edits, [])
    const [{ conversationState: state }] = await house.upstream()
    const results = [...state.history, state.currentMessage].flatMap(({ userInputMessage: user }) =>
      (user?.userInputMessageContext?.toolResults ?? []).map(({ content }) => content[0].text),
    )
    const cleared = '[cleared to save context]'
    assert.deepEqual(results, [cleared, cleared, cleared, text(4), text(5)])
    const { max_tokens: _, ...counted } = body
    const counts = await messages.countTokens(counted)
    assert.ok(counts.context_management.original_input_tokens > counts.input_tokens)
  })

  test(`a stop sequence and a limit of one token (M82, M83), ${mode}`, async (t) => {
    const house = await serve(t)
    await house.script({ text: 'alpha STOP beta', pieces: 5 }, { text: 'A long answer to a probe, in many words.', pieces: 8 })
    const stopped = await send(house, mode, ask('Say it.', { stop_sequences: ['STOP', 'HALT'] }))
    assert.deepEqual(
      [stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence],
      ['alpha ', 'stop_sequence', 'STOP'],
    )
    const probe = await send(house, mode, ask('quota', { max_tokens: 1 }))
    assert.equal(probe.stop_reason, 'max_tokens')
    assert.ok(probe.content[0].text.length < 10, probe.content[0].text)
  })
}

test('tools that are loaded when they are found: the list grows at its end (A166, A167)', async (t) => {
  const house = await serve(t)
  const deferred = (name) => ({ ...tool(name), defer_loading: true })
  const body = ask('Find tools.', { tools: [tool('find'), deferred('a'), deferred('b'), deferred('c')] })
  await house.script({ tools: [{ id: 'tooluse_1', name: 'find', input: { q: 'x' } }] }, { text: 'Found.' })
  const first = await house.client().messages.create(body)
  const found = ['b', 'a'].map((name) => ({ type: 'tool_reference', tool_name: name }))
  await house.client().messages.create({
    ...body,
    messages: [
      ...body.messages,
      { role: 'assistant', content: first.content },
      { role: 'user', content: [{ type: 'tool_result', tool_use_id: first.content[0].id, content: found }] },
    ],
  })
  const declared = (await house.upstream()).map((sent) =>
    current(sent).userInputMessageContext.tools.map(({ toolSpecification: { name } }) => name),
  )
  assert.deepEqual(declared, [['find'], ['find', 'b', 'a']])
})

test('what has no effect is named in a header (M80)', async (t) => {
  const house = await serve(t)
  const tools = [{ ...tool('f'), strict: true }, { type: 'code_execution_20250825', name: 'code_execution' }]
  const { response } = await house.client().messages.create(ask('Hi.', { tools, service_tier: 'auto' })).withResponse()
  const ignored = response.headers.get('x-kiro-ignored')
  for (const part of ['tools.0.strict', 'code_execution', 'service_tier']) assert.ok(ignored.includes(part), ignored)
})

// Nothing here makes summaries: the runner keeps the conversation and goes on.
test('a runner that asks for a summary goes on without one', async (t) => {
  const house = await serve(t)
  await house.script(
    { tools: [{ id: 'tooluse_1', name: 'add', input: { a: 1, b: 2 } }] },
    { text: 'No summary.' },
    { text: 'Three.' },
  )
  const warned = []
  const logger = { error() {}, info() {}, debug() {}, warn: (text) => warned.push(text) }
  const runner = house.client({ logger }).beta.messages.toolRunner(ask('1 + 2?', { tools: [adder()] }))
  let steps = 0
  for await (const _ of runner) if (steps++ === 0) runner.compactBeforeNextTurn()
  assert.equal((await runner.done()).content[0].text, 'Three.')
  assert.equal(steps, 3)
  assert.match(warned.join(), /no summary/)
  const { history } = (await house.upstream()).at(-1).conversationState
  assert.ok(!JSON.stringify(history).includes('No summary.'), 'the conversation is as it was')
})

function adder() {
  return betaTool({
    name: 'add',
    description: 'Adds two numbers.',
    inputSchema: { type: 'object', properties: { a: { type: 'number' }, b: { type: 'number' } }, required: ['a', 'b'] },
    run: ({ a, b }) => String(a + b),
  })
}

function client(house) {
  return house.client().beta
}

async function world(house, change) {
  const answer = await fetch(`${house.upstreamUrl}/_sim/script`, { method: 'POST', body: JSON.stringify({ world: change }) })
  assert.equal(answer.status, 200, await answer.text())
}

function current(body) {
  return body.conversationState.currentMessage.userInputMessage
}
