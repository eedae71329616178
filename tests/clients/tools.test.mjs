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
