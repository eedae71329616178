// @anthropic-ai/sdk, the official TypeScript SDK: what a program sees of answers.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import Anthropic from '@anthropic-ai/sdk'
import { betaTool } from '@anthropic-ai/sdk/helpers/beta/json-schema'
import { KEY, MODEL, PDF, PNG, ask, rejection, serve, tool } from './kit.mjs'

const WEATHER = tool('get_weather', { city: { type: 'string' } }, ['city'])
const CLOCK = tool('get_time', { zone: { type: 'string' } })
/** Everything that has ever been cut, decoded or escaped wrongly. */
const AWKWARD =
  'ha ha  é 你好 😀👩‍👩‍👧 \u2028 \u2029 \u0085 \ufeff \u007f "quoted" \\back\\ <b>&amp;</b> tab\t cr\r lf\n\n event: ping\ndata: {} \n end'

/** What sends a request in a mode, and gives the whole message. */
const sender = (client, mode) => (request) =>
  mode === 'stream' ? client.messages.stream(request).finalMessage() : client.messages.create(request)

test('text: the accumulated message equals what upstream sent, at every way of writing it', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const ways = [
    { pieces: 1 },
    { pieces: 40 },
    { pieces: 40, write_bytes: 1 },
    { pieces: 40, write_bytes: 7, gap_ms: 1 },
    { pieces: 40, burst: 16, content_length: true },
  ]
  for (const way of ways) {
    await house.script({ text: AWKWARD, ...way }, { text: AWKWARD, ...way })
    const stream = client.messages.stream(ask('Say something.'))
    const deltas = []
    stream.on('text', (delta) => deltas.push(delta))
    const streamed = await stream.finalMessage()
    const whole = await client.messages.create(ask('Say something.'))
    for (const message of [streamed, whole]) {
      assert.deepEqual(message.content, [{ type: 'text', text: AWKWARD }], JSON.stringify(way))
      assert.equal(message.stop_reason, 'end_turn')
      assert.equal(message.model, MODEL)
      assert.equal(message.role, 'assistant')
      assert.match(message.id, /^msg_[0-9A-Za-z]{24}$/)
    }
    assert.equal(deltas.length, way.pieces, 'one delta for each of upstream’s pieces')
    assert.equal(deltas.join(''), AWKWARD)
    assert.deepEqual(streamed.usage, { ...whole.usage })
    assert.ok(Object.values(whole.usage).every(Number.isInteger))
  }
})

test('equal neighbours stay, and an answer without content is an empty message', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const laugh = { steps: [{ text: 'ha' }, { text: 'ha' }, { text: '' }, { text: '!' }] }
  const nothing = { steps: [{ usage: true }] }
  await house.script(laugh, nothing, nothing)
  assert.equal(await client.messages.stream(ask('Laugh.')).finalText(), 'haha!')
  assert.deepEqual((await client.messages.stream(ask('Hush.')).finalMessage()).content, [])
  assert.deepEqual((await client.messages.create(ask('Hush.'))).content, [])
})

test('usage has four counts, and the final ones replace the estimate of the start (C13)', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const usage = {
    uncachedInputTokens: 200,
    outputTokens: 7,
    totalTokens: 1000,
    cacheReadInputTokens: 700,
    cacheWriteInputTokens: 93,
  }
  const reported = { text: 'Hi', steps: [{ event: 'metadataEvent', payload: { tokenUsage: usage } }] }
  await house.script(reported, reported, {
    text: 'Hi',
    steps: [{ event: 'contextUsageEvent', payload: { contextUsagePercentage: 1 } }],
  })
  const wanted = { input_tokens: 200, cache_creation_input_tokens: 93, cache_read_input_tokens: 700, output_tokens: 7 }
  const streamed = await client.messages.stream(ask('Hi')).finalMessage()
  const whole = await client.messages.create(ask('Hi'))
  assert.deepEqual({ ...streamed.usage }, wanted)
  assert.deepEqual({ ...whole.usage }, wanted)
  const split = (await client.messages.create(ask('Hi'))).usage
  assert.deepEqual(
    { ...split },
    { input_tokens: 71, cache_creation_input_tokens: 142, cache_read_input_tokens: 1786, output_tokens: 1 },
  )
})

test('two parallel tools arrive whole, one after the other and interleaved', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const paris = {
    id: 'tooluse_A',
    name: 'get_weather',
    input: { city: 'Paris "é" \u2028', n: 12.5, deep: [{ a: null }] },
  }
  const tokyo = { id: 'tooluse_B', name: 'get_time', input: { zone: 'Asia/Tokyo 東京' } }
  const cut = (use) => ({ ...use, pieces: 9 })
  for (const interleave of [false, true]) {
    const answer = { text: 'Let me look.', tools: [cut(paris), cut(tokyo)], interleave }
    await house.script(answer, answer)
    const request = ask('Weather and time?', { tools: [WEATHER, CLOCK] })
    const stream = client.messages.stream(request)
    const pieces = []
    stream.on('inputJson', (piece) => pieces.push(piece))
    for (const message of [await stream.finalMessage(), await client.messages.create(request)]) {
      assert.equal(message.stop_reason, 'tool_use')
      assert.deepEqual(message.content, [
        { type: 'text', text: 'Let me look.' },
        { type: 'tool_use', ...paris },
        { type: 'tool_use', ...tokyo },
      ])
    }
    assert.ok(pieces.length >= 18, `tool input came in ${pieces.length} pieces (M55)`)
  }
})

test('a tool without input is {} and a cut one only in a stream, with max_tokens (C10, M51)', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const request = ask('Go.', { tools: [tool('list')] })
  const bare = { tools: [{ id: 'tooluse_A', name: 'list' }] }
  const cut = { text: 'Writing.', tools: [{ id: 'tooluse_B', name: 'list', input: '{"path":"a","te', stop: 'never' }] }
  await house.script(bare, bare, cut, cut)
  for (const message of [await client.messages.stream(request).finalMessage(), await client.messages.create(request)]) {
    assert.deepEqual(message.content, [{ type: 'tool_use', id: 'tooluse_A', name: 'list', input: {} }])
    assert.equal(message.stop_reason, 'tool_use')
  }
  const streamed = await client.messages.stream(request).finalMessage()
  assert.equal(streamed.stop_reason, 'max_tokens')
  assert.equal(streamed.content.length, 2)
  const whole = await client.messages.create(request)
  assert.equal(whole.stop_reason, 'max_tokens')
  assert.deepEqual(whole.content, [{ type: 'text', text: 'Writing.' }])
})

for (const mode of ['stream', 'create']) {
  test(`a loop of three turns by hand, ${mode}: each turn reaches upstream whole`, async (t) => {
    const house = await serve(t)
    const send = sender(house.client(), mode)
    await house.script(
      { text: 'First the weather.', tools: [{ id: 'tooluse_1', name: 'get_weather', input: { city: 'Oslo' } }] },
      {
        tools: [
          { id: 'tooluse_2', name: 'get_time', input: {} },
          { id: 'tooluse_3', name: 'get_weather', input: { city: 'Rome' } },
        ],
      },
      { text: 'Oslo is cold, Rome is warm.' },
    )
    const tools = [WEATHER, CLOCK]
    const messages = [{ role: 'user', content: 'Compare.' }]
    for (let turn = 0; ; turn++) {
      assert.ok(turn < 3, 'the loop ends')
      const message = await send(ask(messages, { tools, system: 'Be brief.' }))
      messages.push({ role: 'assistant', content: message.content })
      if (message.stop_reason !== 'tool_use') break
      const uses = message.content.filter((block) => block.type === 'tool_use')
      messages.push({
        role: 'user',
        content: uses.map((use) => ({
          type: 'tool_result',
          tool_use_id: use.id,
          content: `result of ${use.name}`,
          is_error: use.id === 'tooluse_3',
        })),
      })
    }
    assert.deepEqual(messages.at(-1).content, [{ type: 'text', text: 'Oslo is cold, Rome is warm.' }])
    const [first, , third] = await house.upstream()
    assert.equal(first.conversationState.currentMessage.userInputMessage.content, 'Compare.')
    assert.equal(first.conversationState.history[0].userInputMessage.content, 'Be brief.')
    const history = third.conversationState.history.map(
      (turn) => turn.userInputMessage ?? turn.assistantResponseMessage,
    )
    assert.deepEqual(
      history.map(({ content, toolUses, userInputMessageContext }) => ({
        content,
        ...(toolUses && { uses: toolUses }),
        ...(userInputMessageContext?.toolResults && { results: userInputMessageContext.toolResults }),
      })),
      [
        { content: 'Be brief.' },
        { content: 'I will follow these instructions.' },
        { content: 'Compare.' },
        {
          content: 'First the weather.',
          uses: [{ toolUseId: 'tooluse_1', name: 'get_weather', input: { city: 'Oslo' } }],
        },
        {
          content: 'Tool results provided.',
          results: [{ toolUseId: 'tooluse_1', content: [{ text: 'result of get_weather' }], status: 'success' }],
        },
        {
          content: ' ',
          uses: [
            { toolUseId: 'tooluse_2', name: 'get_time', input: {} },
            { toolUseId: 'tooluse_3', name: 'get_weather', input: { city: 'Rome' } },
          ],
        },
      ],
    )
    const current = third.conversationState.currentMessage.userInputMessage
    assert.deepEqual(current.userInputMessageContext.toolResults, [
      { toolUseId: 'tooluse_2', content: [{ text: 'result of get_time' }], status: 'success' },
      { toolUseId: 'tooluse_3', content: [{ text: 'result of get_weather' }], status: 'error' },
    ])
    assert.deepEqual(
      current.userInputMessageContext.tools.map((declared) => declared.toolSpecification.name),
      ['get_weather', 'get_time'],
    )
  })

  // It asks for a message thread first (M68).
  test(`the SDK’s own tool runner through three turns, ${mode}`, async (t) => {
    const house = await serve(t)
    await house.script(
      { tools: [{ id: 'tooluse_1', name: 'add', input: { a: 1, b: 2 } }] },
      { text: 'And again.', tools: [{ id: 'tooluse_2', name: 'add', input: { a: 3, b: 4 } }] },
      { text: 'The sum is 7.' },
    )
    const calls = []
    const add = betaTool({
      name: 'add',
      description: 'Adds two numbers.',
      inputSchema: {
        type: 'object',
        properties: { a: { type: 'number' }, b: { type: 'number' } },
        required: ['a', 'b'],
      },
      run: ({ a, b }) => {
        calls.push([a, b])
        return String(a + b)
      },
    })
    const runner = house
      .client()
      .beta.messages.toolRunner(ask('1 + 2 + 4?', { tools: [add], stream: mode === 'stream' }))
    const last = await runner.runUntilDone()
    assert.deepEqual(calls, [
      [1, 2],
      [3, 4],
    ])
    assert.equal(last.content[0].text, 'The sum is 7.')
    const bodies = await house.upstream()
    assert.equal(bodies.length, 3)
    assert.equal(bodies[2].conversationState.history.length, 4, 'the whole conversation, not only what is new')
    const results = bodies[2].conversationState.currentMessage.userInputMessage.userInputMessageContext.toolResults
    assert.deepEqual(results, [{ toolUseId: 'tooluse_2', content: [{ text: '7' }], status: 'success' }])
  })

  // It asks for a message thread first (M68), and tells of the tools in system messages.
  test(`tools that the runner adds and takes away on its way (M69), ${mode}`, async (t) => {
    const house = await serve(t)
    const sum = (name) =>
      betaTool({
        name,
        description: `What ${name} does.`,
        inputSchema: { type: 'object', properties: { a: { type: 'number' } }, required: ['a'] },
        run: ({ a }) => `${name} of ${a}`,
      })
    await house.script(
      { tools: [{ id: 'tooluse_1', name: 'first', input: { a: 1 } }] },
      { tools: [{ id: 'tooluse_2', name: 'second', input: { a: 2 } }] },
      { text: 'Done.' },
    )
    const runner = house
      .client()
      .beta.messages.toolRunner(ask('Go on.', { tools: [sum('first')], stream: mode === 'stream' }))
    const texts = []
    for await (const step of runner) {
      const message = mode === 'stream' ? await step.finalMessage() : step
      const [block] = message.content
      texts.push(block.text ?? block.name)
      if (block.name === 'first') runner.addTools(sum('second'))
      if (block.name === 'second') runner.removeTools('first')
    }
    assert.deepEqual(texts, ['first', 'second', 'Done.'])
    const bodies = await house.upstream()
    assert.equal(bodies.length, 3)
    const currents = bodies.map((body) => body.conversationState.currentMessage.userInputMessage)
    const tools = currents.map(({ userInputMessageContext: { tools } }) =>
      tools.map(({ toolSpecification: { name, description } }) => [name, description]),
    )
    const first = ['first', 'What first does.']
    assert.deepEqual(tools, [
      [first],
      [first, ['second', 'What second does.']],
      // Its use in the history still has to be declared.
      [
        ['second', 'What second does.'],
        ['first', 'Tool used earlier in this conversation.'],
      ],
    ])
    assert.deepEqual(
      currents.slice(1).map(({ userInputMessageContext: { toolResults } }) => toolResults[0].content[0].text),
      ['first of 1', 'second of 2'],
    )
  })

  test(`thinking with its signature comes back in the next turn, ${mode}`, async (t) => {
    const house = await serve(t)
    const send = sender(house.client(), mode)
    const signature = 'EqoBCkgIARAB' + 'x'.repeat(300) + '=='
    await house.script(
      {
        thinking: 'I should look it up. “é”',
        signature,
        signature_pieces: 5,
        pieces: 6,
        text: 'Looking.',
        tools: [{ id: 'tooluse_1', name: 'get_weather', input: { city: 'Oslo' } }],
      },
      { text: 'Cold.' },
    )
    const more = { tools: [WEATHER], thinking: { type: 'enabled', budget_tokens: 2048 }, max_tokens: 4096 }
    const first = await send(ask('Weather?', more))
    assert.deepEqual(first.content, [
      { type: 'thinking', thinking: 'I should look it up. “é”', signature },
      { type: 'text', text: 'Looking.' },
      { type: 'tool_use', id: 'tooluse_1', name: 'get_weather', input: { city: 'Oslo' } },
    ])
    const result = { type: 'tool_result', tool_use_id: 'tooluse_1', content: '-3 °C' }
    await send(
      ask(
        [
          { role: 'user', content: 'Weather?' },
          { role: 'assistant', content: first.content },
          { role: 'user', content: [result] },
        ],
        more,
      ),
    )
    const second = (await house.upstream())[1].conversationState
    assert.deepEqual(second.history.at(-1).assistantResponseMessage.reasoningContent, {
      reasoningText: { text: 'I should look it up. “é”', signature },
    })
    assert.match(
      second.history[0].userInputMessage.content,
      /<thinking_mode>enabled<\/thinking_mode><max_thinking_length>2048</,
    )
  })

  test(`a thought whose text is omitted has its signature alone, ${mode} (A110)`, async (t) => {
    const house = await serve(t)
    const send = sender(house.client(), mode)
    await house.script({ signature: 'c2lnbmF0dXJl', signature_pieces: 3, text: 'Done.' }, { text: 'Fine.' })
    const more = { model: 'claude-opus-5', thinking: { type: 'adaptive', display: 'omitted' } }
    const first = await send(ask('Think.', more))
    assert.deepEqual(first.content, [
      { type: 'thinking', thinking: '', signature: 'c2lnbmF0dXJl' },
      { type: 'text', text: 'Done.' },
    ])
    const messages = [
      { role: 'user', content: 'Think.' },
      { role: 'assistant', content: first.content },
      { role: 'user', content: 'And?' },
    ]
    await send(ask(messages, more))
    const [asked, again] = await house.upstream()
    for (const { additionalModelRequestFields: fields } of [asked, again]) {
      assert.deepEqual(fields.thinking, { type: 'adaptive', display: 'omitted' })
    }
  })

  test(`redacted thinking comes back in the next turn, ${mode}`, async (t) => {
    const house = await serve(t)
    const send = sender(house.client(), mode)
    await house.script({ redacted: 'c2VjcmV0IHRob3VnaHQ=', text: 'Done.' }, { text: 'Fine.' })
    const more = { thinking: { type: 'adaptive' } }
    const first = await send(ask('Think.', more))
    assert.deepEqual(first.content, [
      { type: 'redacted_thinking', data: 'c2VjcmV0IHRob3VnaHQ=' },
      { type: 'text', text: 'Done.' },
    ])
    await send(
      ask(
        [
          { role: 'user', content: 'Think.' },
          { role: 'assistant', content: first.content },
          { role: 'user', content: 'And?' },
        ],
        more,
      ),
    )
    const { history } = (await house.upstream())[1].conversationState
    assert.deepEqual(history.at(-1).assistantResponseMessage.reasoningContent, {
      redactedContent: 'c2VjcmV0IHRob3VnaHQ=',
    })
  })
}

test('a message thread is refused by its code, and a whole conversation passes (M68)', async (t) => {
  const house = await serve(t)
  const thread = house.client().beta.messages.thread({ model: MODEL, max_tokens: 100 })
  const error = await rejection(thread.send({ role: 'user', content: 'Hello' }))
  assert.ok(error instanceof Anthropic.BadRequestError)
  assert.equal(error.errorCode, 'thread_unsupported_request')
  assert.deepEqual((await house.stats()).requests, {})
  assert.equal((await house.client().beta.messages.create({ ...ask('Hello'), thread: null })).type, 'message')
})

test('thinking in tags becomes thinking blocks; without thinking nobody gets any', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const tagged = { thinking: 'A plan.', tags: true, text: 'The answer.', pieces: 30 }
  await house.script(tagged, { thinking: 'Not asked for.', signature: 's', text: 'Plain.' })
  const stream = client.messages.stream(
    ask('Go.', { thinking: { type: 'enabled', budget_tokens: 1024 }, max_tokens: 2048 }),
  )
  let thought = ''
  stream.on('thinking', (delta) => (thought += delta))
  const message = await stream.finalMessage()
  assert.deepEqual(message.content, [
    { type: 'thinking', thinking: 'A plan.\n', signature: '' },
    { type: 'text', text: 'The answer.' },
  ])
  assert.equal(thought, 'A plan.\n')
  assert.deepEqual((await client.messages.create(ask('Go.'))).content, [{ type: 'text', text: 'Plain.' }])
})

test('images arrive in a message and inside a tool result', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const image = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } }
  await house.script({ text: 'A red dot.' }, { text: 'Red again.' })
  await client.messages.create(ask([{ role: 'user', content: [{ type: 'text', text: 'What is it?' }, image] }]))
  await client.messages
    .stream(
      ask(
        [
          { role: 'user', content: 'Take a screenshot.' },
          { role: 'assistant', content: [{ type: 'tool_use', id: 'tooluse_1', name: 'shot', input: {} }] },
          { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'tooluse_1', content: [image] }] },
        ],
        { tools: [tool('shot')] },
      ),
    )
    .done()
  const sent = (await house.upstream()).map((body) => body.conversationState.currentMessage.userInputMessage)
  for (const message of sent) assert.deepEqual(message.images, [{ format: 'png', source: { bytes: PNG } }])
  assert.equal(sent[0].content, 'What is it?')
  assert.deepEqual(sent[1].userInputMessageContext.toolResults[0].content, [{ text: 'Image provided.' }])
})

test('a PDF goes as document, and text goes into the prompt', async (t) => {
  const house = await serve(t)
  await house.script({ text: 'One empty page.' })
  const message = await house.client().messages.create(
    ask([
      {
        role: 'user',
        content: [
          {
            type: 'document',
            title: 'Q3 (final).pdf',
            source: { type: 'base64', media_type: 'application/pdf', data: PDF },
          },
          {
            type: 'document',
            title: 'notes.txt',
            source: { type: 'text', media_type: 'text/plain', data: 'hello' },
            citations: { enabled: true },
          },
          { type: 'text', text: 'Sum up.', cache_control: { type: 'ephemeral' } },
        ],
      },
    ]),
  )
  assert.equal(message.content[0].text, 'One empty page.')
  const [sent] = (await house.upstream()).map((body) => body.conversationState.currentMessage.userInputMessage)
  assert.deepEqual(sent.documents, [{ name: 'Q3 (final)', format: 'pdf', source: { bytes: PDF } }])
  assert.equal(sent.content, '[document: notes.txt]\nhello\nSum up.')
})

test('count_tokens equals the input of message_start and calls no upstream (M65)', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const { max_tokens: _, ...counted } = ask('How many tokens is this? 你好', {
    system: 'Count.',
    tools: [WEATHER],
    tool_choice: { type: 'auto' },
  })
  const { input_tokens: tokens } = await client.messages.countTokens(counted)
  assert.ok(Number.isInteger(tokens) && tokens > 20)
  assert.equal((await client.beta.messages.countTokens(counted)).input_tokens, tokens)
  assert.deepEqual((await house.stats()).requests, {})
  for await (const event of await client.messages.create({ ...counted, max_tokens: 10, stream: true })) {
    if (event.type !== 'message_start') continue
    const {
      input_tokens: plain,
      cache_creation_input_tokens: made,
      cache_read_input_tokens: read,
    } = event.message.usage
    assert.equal(plain + made + read, tokens)
  }
})

test('auto-paging gives every model once, newest first; an alias is found, an unknown one is not', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const paged = []
  for await (const model of client.models.list({ limit: 2 })) paged.push(model)
  const whole = await client.models.list({ limit: 1000 })
  assert.ok(paged.length > 4, `${paged.length} models`)
  assert.deepEqual(paged, whole.data)
  assert.equal(new Set(paged.map((model) => model.id)).size, paged.length)
  assert.ok(paged.every((model) => model.type === 'model' && model.id.startsWith('claude') && model.display_name))
  assert.deepEqual(
    paged.map((model) => model.created_at),
    paged
      .map((model) => model.created_at)
      .sort()
      .reverse(),
  )
  const backwards = await client.models.list({ before_id: paged[3].id, limit: 2 })
  assert.deepEqual(
    backwards.data.map((model) => model.id),
    [paged[1].id, paged[2].id],
  )
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL)
  assert.equal((await client.models.retrieve(`${MODEL}-20250929`)).type, 'model')
  assert.ok((await rejection(client.models.retrieve('claude-nope'))) instanceof Anthropic.NotFoundError)
  assert.ok((await rejection(client.models.list({ limit: 0 }))) instanceof Anthropic.BadRequestError)
})

test('a tool name that upstream can’t take comes back as the client wrote it', async (t) => {
  const house = await serve(t)
  const long = 'mcp__plugin_cloudflare_cloudflare-docs__search_cloudflare_documentation'
  await house.script({
    tools: [
      { id: 'tooluse_1', name: 'mcp__plugin_cloudflare_cloudflare-docs__search_cloudfla_44402c4d', input: { q: 'x' } },
    ],
  })
  const message = await house
    .client()
    .messages.stream(ask('Search.', { tools: [tool(long)] }))
    .finalMessage()
  assert.equal(message.content[0].name, long)
})

test('structured output: what upstream writes is parsed', async (t) => {
  const house = await serve(t)
  await house.script({ text: '{"name":"Ada","age":36}', pieces: 5 })
  const schema = {
    type: 'object',
    properties: { name: { type: 'string' }, age: { type: 'number' } },
    required: ['name', 'age'],
    additionalProperties: false,
  }
  const message = await house
    .client()
    .messages.parse(
      ask('Who?', { output_config: { format: { type: 'json_schema', schema, parse: (text) => JSON.parse(text) } } }),
    )
  assert.deepEqual(message.parsed_output, { name: 'Ada', age: 36 })
})

test('the key is right as x-api-key and as bearer, also under the other base path, and the request id is shown (C16)', async (t) => {
  const house = await serve(t)
  for (const options of [
    { apiKey: KEY },
    { apiKey: null, authToken: KEY },
    { baseURL: `${house.url}/claude-kiro-oauth` },
  ]) {
    const { data, response, request_id: id } = await house.client(options).messages.create(ask('Hi')).withResponse()
    assert.equal(data.type, 'message')
    assert.match(id, /^req_[0-9A-Za-z]{24}$/)
    assert.equal(data._request_id, id)
    assert.equal(response.headers.get('request-id'), id)
  }
})

test('with the built-in simulator no other upstream is asked, and every answer says so', async (t) => {
  const house = await serve(t, { env: { KIRO_UPSTREAM: 'simulator' } })
  const asked = house.client().messages.create(ask('[[sim {"text":"Not from a model."}]]'))
  const { data, response } = await asked.withResponse()
  assert.deepEqual(data.content, [{ type: 'text', text: 'Not from a model.' }])
  assert.equal(response.headers.get('x-kiro-upstream'), 'simulator')
  assert.deepEqual((await house.stats()).requests, {})
})

test('a browser may send every header that the SDK sends (M7)', async (t) => {
  const house = await serve(t)
  let sent
  const spy = (input, init) => {
    sent = [...new Headers(init.headers).keys()]
    return house.checkedFetch(input, init)
  }
  await house
    .client({ fetch: spy, dangerouslyAllowBrowser: true })
    .beta.messages.create(ask('Hi', { betas: ['some-beta-2026-01-01'] }))
  assert.ok(sent.includes('x-stainless-os') && sent.includes('anthropic-beta'), sent.join())
  const answer = await fetch(`${house.url}/v1/messages?beta=true`, {
    method: 'OPTIONS',
    headers: {
      origin: 'https://app.example',
      'access-control-request-method': 'POST',
      'access-control-request-headers': sent.join(','),
    },
  })
  assert.equal(answer.status, 204)
  const allowed = answer.headers.get('access-control-allow-headers').toLowerCase().split(/ *, */)
  assert.deepEqual(
    sent.filter((name) => !allowed.includes(name)),
    [],
  )
  assert.match(answer.headers.get('access-control-allow-methods'), /POST/)
  assert.equal(answer.headers.get('access-control-allow-origin'), '*')
})

test('aborting and breaking off cancel the upstream call within 100 ms (A68)', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const long = { text: '{n} ', count: 100_000, gap_ms: 10 }
  await house.script(long, long, long)

  const stream = client.messages.stream(ask('Count.'))
  await new Promise((resolve) => stream.once('text', resolve))
  stream.abort()
  assert.ok((await rejection(stream.done())) instanceof Anthropic.APIUserAbortError)
  await house.closes(1, 100)

  for await (const event of await client.messages.create({ ...ask('Count.'), stream: true })) {
    if (event.type === 'content_block_delta') break
  }
  await house.closes(2, 100)

  const controller = new AbortController()
  const whole = rejection(client.messages.create(ask('Count.'), { signal: controller.signal }))
  while ((await house.stats()).streams.open === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  controller.abort()
  assert.ok((await whole) instanceof Anthropic.APIUserAbortError)
  await house.closes(3, 100)
})
