// TS42, D24–D27: no client runs half a tool, and one cut costs no more than two answers of upstream. Cuts before, inside
// and after the last byte of the input, one and two tools, by a reset, a clean end and a shutdown, for everybody who runs
// tools here, Claude Code itself among them.
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { createAnthropic } from '@ai-sdk/anthropic'
import { betaTool } from '@anthropic-ai/sdk/helpers/beta/json-schema'
import { generateText, jsonSchema, stepCountIs, streamText, tool as declare } from 'ai'
import { folder, skip, start } from './claude.mjs'
import { KEY, MODEL, ask, serve } from './kit.mjs'

const WHOLE = '{"path":"/x","mode":"all"}'

/** What upstream sends before it breaks off; `whole`: the calls that are whole by then, `fault`: those of them that had their `stop`. */
const CUTS = {
  'D24 before the first piece': { tools: [half('')], whole: 0 },
  'D25 inside of it': { tools: [half('{"path":"/x"')], whole: 0 },
  'D25 inside of it, where half of it reads like all of it': { tools: [half('{"path":"/x","mode":"a')], whole: 0 },
  'D26 inside of the second': { tools: [done(), half('{"path":"/', 'tooluse_2')], whole: 1 },
  'D26 before the second': { tools: [done(), half('', 'tooluse_2')], whole: 1 },
  'D27 after the last byte': { tools: [half(WHOLE)], whole: 1, fault: 0 },
  'TS42 inside of the first, with a second behind it': {
    tools: [half('{"path":"/x"'), { ...done(), id: 'tooluse_2' }],
    whole: 0,
  },
}
const ENDS = ['cut', 'clean', 'shutdown']

/** Each runs the tool of the house `remove` and tells with which inputs. */
const RUNNERS = {
  'the tool runner': (house, ran) => runner(house, ran, { stream: true }),
  'the eager tool runner': (house, ran) => runner(house, ran, { stream: true, runToolsEagerly: true }),
  'the tool runner without stream': (house, ran) => runner(house, ran, { stream: false }),
  'the AI SDK': (house, ran) => vercel(house, ran, true),
  'the AI SDK without stream': (house, ran) => vercel(house, ran, false),
}

for (const [who, run] of Object.entries(RUNNERS)) {
  for (const [what, { tools, whole, fault = whole }] of Object.entries(CUTS)) {
    for (const end of ENDS) {
      test(`${who}: ${what}, ${end}`, async (t) => {
        const house = await serve(t, { env: { KIRO_GRACEFUL_TIMEOUT: '200ms' } })
        await house.script(broken(tools, end), ...Array(6).fill({ text: 'Done.' }))
        const ran = []
        const running = run(house, ran).catch((error) => error)
        if (end === 'shutdown') {
          await generations(house, 1)
          await new Promise((resolve) => setTimeout(resolve, 100))
          // The stream that hangs is ended with an error, and nobody answers after that.
          await house.stop()
          await running
        } else {
          await running
          assert.ok((await generations(house, 1)) <= 2 + whole, 'one cut costs one more answer at most')
        }
        // A whole call behind a clean end is a call; an eager runner may have begun it before the fault.
        for (const input of ran) assert.deepEqual(input, JSON.parse(WHOLE), `${ran.length} were run`)
        assert.ok(ran.length <= (end === 'clean' ? whole : fault), JSON.stringify(ran))
      })
    }
  }
}

for (const end of ENDS) {
  for (const [what, input] of Object.entries({
    'D24 before the first piece': '',
    'D25 inside of it': '{"command":"touch ',
    'D26 inside of the second': 'second',
    'D27 after the last byte': 'whole',
  })) {
    test(`Claude Code itself: ${what}, ${end}`, { skip, timeout: 120_000 }, async (t) => {
      const house = await serve(t, { env: { KIRO_GRACEFUL_TIMEOUT: '200ms' } })
      const cwd = folder(t)
      const mark = path.join(cwd, 'it-ran')
      const whole = JSON.stringify({ command: `touch ${mark}`, description: 'mark' })
      const begun = { id: 'tooluse_1', name: 'Bash', input: input === 'whole' ? whole : input, stop: 'never' }
      // A tool that needs nothing: `{}` would run it.
      const bare = { id: 'tooluse_2', name: 'ListAgents', input: '', stop: 'never' }
      const first = { id: 'tooluse_3', name: 'Bash', input: JSON.stringify({ command: 'true', description: 'first' }) }
      // All but the closing brace: read leniently, it is the whole call.
      const second = { ...begun, input: whole.slice(0, -1) }
      const tools = { '': [begun, bare], second: [first, second] }[input] ?? [begun]
      const answer = broken(tools, end)
      await house.scriptFor(house.accounts[0], [answer, ...Array(8).fill({ text: 'Done.' })])
      const args = ['-p', 'Go on.', '--allowedTools', 'Bash', 'ListAgents', '--max-turns', '3']
      const running = await start(t, house, args, { cwd })
      if (end === 'shutdown') {
        await generations(house, 1)
        await new Promise((resolve) => setTimeout(resolve, 300))
        await house.stop()
        running.child.kill()
      }
      await running.ended
      const allowed = input === 'whole' && end === 'clean'
      assert.equal(existsSync(mark), allowed, 'a whole tool is run, half a tool is not')
      if (end === 'shutdown') return
      const bodies = await house.upstream()
      const answered = allowed || end === 'clean' || input === 'second'
      assert.ok(!JSON.stringify(bodies.at(-1)).includes('toolResults') || answered)
      assert.ok(bodies.length <= 3, `${bodies.length} answers of upstream`)
    })
  }
}

function half(input, id = 'tooluse_1') {
  return { id, name: 'remove', input, stop: 'never' }
}

function done() {
  return { id: 'tooluse_1', name: 'remove', input: WHOLE, pieces: 3 }
}

function broken(tools, end) {
  const steps = [{ text: 'I do it.' }, ...tools.map((tool) => ({ tool }))]
  return { steps, end: { cut: 'cut', clean: 'clean', shutdown: 'hang' }[end] }
}

/** Answers that upstream was asked for, once there are `least`. */
async function generations(house, least) {
  for (;;) {
    const count = (await house.upstream()).length
    if (count >= least) return count
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

const SCHEMA = {
  type: 'object',
  // Nothing is required: half an input passes for a whole one.
  properties: { path: { type: 'string' }, mode: { type: 'string' } },
}

function runner(house, ran, settings) {
  const remove = betaTool({
    name: 'remove',
    description: 'Removes.',
    inputSchema: SCHEMA,
    run: (input) => {
      ran.push(input)
      return 'removed'
    },
  })
  return house.client().beta.messages.toolRunner(ask('Remove it.', { tools: [remove], ...settings })).runUntilDone()
}

async function vercel(house, ran, streams) {
  const anthropic = createAnthropic({ baseURL: `${house.url}/v1`, apiKey: KEY, fetch: house.checkedFetch })
  const remove = declare({
    description: 'Removes.',
    inputSchema: jsonSchema(SCHEMA),
    execute: (input) => {
      ran.push(input)
      return 'removed'
    },
  })
  const options = {
    model: anthropic(MODEL),
    prompt: 'Remove it.',
    tools: { remove },
    stopWhen: stepCountIs(3),
    maxRetries: 0,
  }
  if (!streams) return generateText(options)
  const stream = streamText({ ...options, onError: () => {} })
  await stream.consumeStream()
  return stream.text
}
