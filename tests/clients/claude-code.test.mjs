// Requests of the shape that Claude Code sends (C30–C38): sizes, headers and members as measured, words of our own.
// claude-code-itself.test.mjs runs the program.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { test } from 'node:test'
import { KEY, serve } from './kit.mjs'

const SESSION = randomUUID()
const EPHEMERAL = { cache_control: { type: 'ephemeral' } }
const NAMES =
  'Agent AskUserQuestion Bash CronCreate CronDelete CronList Edit EnterPlanMode EnterWorktree ExitPlanMode ExitWorktree ' +
  'Glob Grep KillShell LSP NotebookEdit Read Skill TaskCreate TaskList TaskOutput TaskUpdate WebFetch WebSearch Write'

test('HEAD / without a key, then the real request of 124 KB passes (C30, C32)', async (t) => {
  const house = await serve(t)
  const greeting = await fetch(`${house.url}/`, { method: 'HEAD' })
  assert.equal(greeting.status, 200)
  assert.equal(await greeting.text(), '')

  await house.script({ thinking: 'A greeting.', signature: 'c2ln', text: 'Hello! What shall we do?', pieces: 4 })
  const body = request()
  const size = Buffer.byteLength(JSON.stringify(body))
  assert.ok(size > 120_000 && size < 130_000, `${size} bytes`)
  const answer = await post(house, body)
  assert.equal(answer.status, 200)
  const events = await read(answer)
  assert.equal(events.at(-1).type, 'message_stop')
  assert.equal(events[0].message.model, body.model)

  const [sent] = await house.upstream()
  const { conversationState: state } = sent
  assert.equal(state.conversationId, SESSION)
  const current = state.currentMessage.userInputMessage
  assert.equal(current.modelId, 'claude-sonnet-4.5')
  const specifications = current.userInputMessageContext.tools.map((tool) => tool.toolSpecification)
  assert.deepEqual(
    specifications.map(({ name }) => name),
    NAMES.split(' '),
    'WebSearch is the client’s own',
  )
  assert.deepEqual(
    specifications.map(({ description }) => description.length).filter((length) => length > 9000),
    [10_240, 10_240],
  )
  assert.deepEqual(specifications[0].inputSchema.json, body.tools[0].input_schema, '$schema and key order stay')
  assert.equal(JSON.stringify(specifications[0].inputSchema.json), JSON.stringify(body.tools[0].input_schema))
  const text = state.history?.[0].userInputMessage.content ?? current.content
  for (const block of body.system) assert.ok(text.includes(block.text), 'every system block is there')
  assert.match(text, /^<thinking_mode>enabled<\/thinking_mode><max_thinking_length>24576<\/max_thinking_length>\n/)
  assert.equal(current.content.match(/Say hello\./g).length, 1)
})

test('adaptive thinking with an effort passes, and a later turn with tools, thinking and a reminder (C32)', async (t) => {
  const house = await serve(t)
  await house.script({ text: 'Two files.' })
  const body = request({
    thinking: { type: 'adaptive' },
    output_config: { effort: 'medium' },
    messages: [
      {
        role: 'user',
        content: [
          { type: 'text', text: '<system-reminder>\nToday is Monday.\n</system-reminder>' },
          { type: 'text', text: 'List.' },
        ],
      },
      {
        role: 'assistant',
        content: [
          { type: 'thinking', thinking: 'I list.', signature: 'c2lnbmF0dXJl' },
          { type: 'text', text: 'Listing.' },
          {
            type: 'tool_use',
            id: 'toolu_01',
            name: 'Bash',
            input: { command: 'ls | grep "<a>&b"', description: 'List' },
          },
          { type: 'tool_use', id: 'toolu_02', name: 'TaskList', input: {} },
        ],
      },
      {
        role: 'user',
        content: [
          { type: 'tool_result', tool_use_id: 'toolu_01', content: 'a\nb', is_error: false },
          { type: 'tool_result', tool_use_id: 'toolu_02', content: [{ type: 'text', text: 'none' }], ...EPHEMERAL },
          { type: 'text', text: '<system-reminder>\nThe list is empty.\n</system-reminder>' },
        ],
      },
    ],
  })
  const answer = await post(house, body)
  assert.equal(answer.status, 200)
  assert.equal((await read(answer)).at(-1).type, 'message_stop')
  const { conversationState: state } = (await house.upstream())[0]
  const last = state.history.at(-1).assistantResponseMessage
  // Nobody knows who made this signature, so it goes to nobody (TR44).
  assert.equal(last.reasoningContent, undefined)
  assert.deepEqual(last.toolUses[0].input, { command: 'ls | grep "<a>&b"', description: 'List' })
  assert.equal(last.toolUses.length, 2, 'a tool without required members keeps its empty input')
  // The model of this test knows the enabled form only (TR40).
  assert.match(
    state.history[0].userInputMessage.content,
    /^<thinking_mode>enabled<\/thinking_mode><max_thinking_length>10000</,
  )
})

test('the small requests around it are answered: a probe of one token, a title as JSON, count_tokens', async (t) => {
  const house = await serve(t)
  const probe = {
    model: 'claude-haiku-4-5-20251001',
    max_tokens: 1,
    messages: [{ role: 'user', content: 'quota' }],
    metadata: metadata(),
  }
  assert.equal((await post(house, probe)).status, 200)
  await house.script({ text: '{"title":"A greeting"}' })
  const title = await post(house, {
    ...probe,
    max_tokens: 32_000,
    system: [{ type: 'text', text: 'Make a title.' }],
    tools: [],
    temperature: 1,
    stream: true,
    output_config: {
      format: { type: 'json_schema', schema: { type: 'object', properties: { title: { type: 'string' } } } },
    },
  })
  assert.equal(title.status, 200)
  assert.equal(
    (await read(title)).find((event) => event.delta?.type === 'text_delta').delta.text,
    '{"title":"A greeting"}',
  )
  const { stream: _, max_tokens: __, ...counted } = request()
  const counts = await post(house, counted, '/v1/messages/count_tokens?beta=true')
  assert.equal(counts.status, 200)
  assert.ok((await counts.json()).input_tokens > 20_000)
})

test('a message thread is refused, at its start and later, and the same turn passes whole (M68)', async (t) => {
  const house = await serve(t)
  for (const thread of [{ type: 'create' }, { type: 'continue', previous_message_id: 'msg_01' }]) {
    const {
      system: _,
      tools: __,
      ...more
    } = request({ thread, ...(thread.type === 'continue' && { messages: [{ role: 'user', content: 'And?' }] }) })
    const answer = await post(house, more)
    assert.equal(answer.status, 400)
    assert.equal(answer.headers.get('x-should-retry'), 'false')
    assert.equal((await answer.json()).error.details.error_code, 'thread_unsupported_request')
  }
  assert.equal(
    (await post(house, { ...request(), thread: { type: 'create' } }, '/v1/messages/count_tokens?beta=true')).status,
    200,
  )
  assert.equal((await post(house, request({ stream: false }))).status, 200)
})

test('too long a prompt is said in the words that make it compact (C31)', async (t) => {
  const house = await serve(t, { accounts: ['sim-prompt-too-long'] })
  for (const stream of [true, false]) {
    const answer = await post(house, request({ stream }))
    assert.equal(answer.status, 400)
    assert.equal(answer.headers.get('x-should-retry'), 'false')
    const [, tokens, limit] = /prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)/i.exec(
      (await answer.json()).error.message,
    )
    assert.ok(Number(tokens) > Number(limit) && Number(limit) === 200_000)
  }
})

test('after an error in mid-stream it sends the whole request again without stream (C33)', async (t) => {
  const house = await serve(t)
  // The reset waits: it would take along what the server has not read yet, and then nothing was seen of the answer.
  const cut = { steps: [{ text: 'Half an ' }, { wait_ms: 200 }], end: 'cut' }
  await house.script('late-exception-InternalServerException', { text: 'Once more.' }, cut, { text: 'And again.' })
  for (const wanted of ['Once more.', 'And again.']) {
    const events = await read(await post(house, request()))
    assert.equal(events.at(-1).type, 'error')
    const { stream: _, ...whole } = request()
    const answer = await post(house, whole)
    assert.equal(answer.status, 200)
    assert.equal(answer.headers.get('content-type'), 'application/json')
    assert.deepEqual((await answer.json()).content, [{ type: 'text', text: wanted }])
  }
  const bodies = (await house.upstream()).map((body) =>
    JSON.stringify({ ...body.conversationState, agentContinuationId: 0 }),
  )
  assert.equal(bodies[0], bodies[1], 'the same conversation')
})

test('no 401, 402, 403 or 413 for an account’s trouble; what may be retried says so (C34, C35)', async (t) => {
  for (const [account, status, retry = null] of [
    ['sim-403', 500],
    // Until a person acts, or for longer than two minutes (M85).
    ['sim-suspended', 500, 'false'],
    ['sim-402', 500, 'false'],
    ['sim-429', 429],
    ['sim-529', 529],
  ]) {
    const house = await serve(t, { accounts: [account] })
    const answer = await post(house, request())
    assert.equal(answer.status, status, account)
    assert.equal(answer.headers.get('x-should-retry'), retry, account)
  }
})

test('model discovery and telemetry are answered (C37, C38)', async (t) => {
  const house = await serve(t)
  const began = performance.now()
  const models = await fetch(`${house.url}/v1/models?limit=1000`, { headers: headers(), redirect: 'error' })
  assert.equal(models.status, 200)
  assert.ok(performance.now() - began < 3000)
  const { data, has_more: more } = await models.json()
  assert.equal(more, false)
  assert.ok(data.length > 0 && data.every(({ id }) => /^(claude|anthropic)/.test(id)))
  const telemetry = await fetch(`${house.url}/api/event_logging/batch`, {
    method: 'POST',
    body: JSON.stringify({ events: [{ event_type: 'x' }] }),
  })
  assert.equal(telemetry.status, 200)
  assert.deepEqual(await telemetry.json(), { success: true })
})

test('it gives up after 300 s without an event; the server is not more patient by default (C36)', () => {
  const shown = spawnSync(process.env.CLIENTS_KIRO_SERVER, ['--print-config'], { encoding: 'utf8', env: {} })
  assert.equal(shown.status, 0, shown.stderr)
  assert.match(shown.stdout, /idle_timeout\W+(300s|5m)\b/i, shown.stdout)
})

function post(house, body, target = '/v1/messages?beta=true') {
  return house.checkedFetch(`${house.url}${target}`, { method: 'POST', headers: headers(), body: JSON.stringify(body) })
}

function headers() {
  return {
    accept: 'application/json',
    authorization: `Bearer ${KEY}`,
    'content-type': 'application/json',
    'anthropic-version': '2023-06-01',
    'anthropic-beta':
      'claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,effort-2025-11-24',
    'anthropic-dangerous-direct-browser-access': 'true',
    'user-agent': 'claude-cli/2.1.197 (external, sdk-cli)',
    'x-app': 'cli',
    'x-claude-code-session-id': SESSION,
    'x-stainless-arch': 'x64',
    'x-stainless-lang': 'js',
    'x-stainless-os': 'Linux',
    'x-stainless-package-version': '0.110.0',
    'x-stainless-retry-count': '0',
    'x-stainless-runtime': 'node',
    'x-stainless-runtime-version': 'v24.3.0',
    'x-stainless-timeout': '600',
  }
}

async function read(answer) {
  const blocks = (await answer.text()).split('\n\n').filter(Boolean)
  return blocks.map((block) => JSON.parse(block.slice(block.indexOf('{'))))
}

function metadata() {
  return { user_id: JSON.stringify({ device_id: 'd'.repeat(64), account_uuid: '', session_id: SESSION }) }
}

/** The main request: three system blocks, 25 tools, two of them with a description over 10,240 characters. */
function request(more = {}) {
  return {
    model: 'claude-sonnet-4-5-20250929',
    messages: [
      {
        role: 'user',
        content: [
          {
            type: 'text',
            text: '<system-reminder>\nThe following skills are available:\n- review: looks at a change\n</system-reminder>',
          },
          { type: 'text', text: 'Say hello.', ...EPHEMERAL },
        ],
      },
    ],
    system: [
      { type: 'text', text: 'x-anthropic-billing-header: cc_version=2.1.197; cc_entrypoint=sdk-cli;' },
      { type: 'text', text: 'You are a coding assistant on a command line.', ...EPHEMERAL },
      { type: 'text', text: prose('Rule', 27_000), ...EPHEMERAL },
    ],
    tools: NAMES.split(' ').map(declare),
    metadata: metadata(),
    max_tokens: 32_000,
    thinking: { type: 'enabled', budget_tokens: 31_999 },
    context_management: { edits: [{ type: 'clear_thinking_20251015', keep: 'all' }] },
    stream: true,
    ...more,
  }
}

function declare(name) {
  const long = { Agent: 10_900, Bash: 11_800 }[name]
  return {
    name,
    description: prose(name, long ?? 1_900),
    input_schema: {
      $schema: 'https://json-schema.org/draft/2020-12/schema',
      type: 'object',
      properties: {
        command: { description: prose('Command', 250), type: 'string', minLength: 1 },
        mode: { description: prose('Mode', 150), type: 'string', enum: ['once', 'watch'] },
        limits: {
          type: 'object',
          properties: {
            seconds: { type: 'number', exclusiveMinimum: 0, maximum: 600 },
            '<path> & more': { anyOf: [{ type: 'string' }, { type: 'null' }] },
          },
          additionalProperties: false,
        },
      },
      ...(name === 'TaskList' ? {} : { required: ['command'] }),
      additionalProperties: false,
    },
  }
}

/** Sentences about `subject`, exactly `length` characters. */
function prose(subject, length) {
  const sentence = (n) => `${subject} ${n}: prefer the "smallest" change that works – and say <why> it does.\n`
  let text = ''
  for (let n = 1; text.length < length; n++) text += sentence(n)
  return text.slice(0, length)
}
