// Claude Code itself, of the version that package-lock.json pins, against the server: what people do with it. claude.mjs says
// how it is kept from everything else on this machine and outside.
import assert from 'node:assert/strict'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test as one } from 'node:test'
import { fileURLToPath } from 'node:url'
import { folder, print, session, skip } from './claude.mjs'
import { PNG, serve } from './kit.mjs'

const test = (name, body) => one(`Claude Code itself: ${name}`, { skip, timeout: 60_000 }, body)

test('an answer in print mode, whole (A72, C30, C32)', async (t) => {
  const house = await serve(t)
  await house.script({ text: 'It is all there: é, 😀, <tag>.', pieces: 5 })
  const { code, said } = await print(t, house, ['Say hello.'])
  assert.equal(code, 0, said)
  assert.equal(said.trim(), 'It is all there: é, 😀, <tag>.')
  const [sent] = await house.upstream()
  assert.ok(current(sent).content.includes('Say hello.'), 'the prompt reached upstream')
})

test('a loop of tools: it reads, edits and runs, two of them at once (A72)', async (t) => {
  const house = await serve(t)
  const cwd = folder(t)
  const [note, other] = ['note.txt', 'other.txt'].map((name) => path.join(cwd, name))
  writeFileSync(note, 'the word is heron\n')
  writeFileSync(other, 'the number is 6\n')
  await house.script(
    { text: 'I look.', tools: [call('Read', 1, { file_path: note }), call('Read', 2, { file_path: other }, { pieces: 7 })] },
    { tools: [call('Edit', 3, { file_path: note, old_string: 'heron', new_string: 'stork' })] },
    { tools: [call('Bash', 4, { command: `cat ${note}`, description: 'Look again' })] },
    { text: 'It says stork.' },
  )
  const claude = await session(t, house, ['--allowedTools', 'Read', 'Edit', 'Bash'], { cwd })
  const { result, is_error: failed, num_turns: turns } = await claude.turn('Change the word.')
  assert.deepEqual([result, failed, turns], ['It says stork.', false, 5])
  assert.equal(await claude.end(), 0)
  assert.equal(readFileSync(note, 'utf8'), 'the word is stork\n')
  const rounds = (await house.upstream()).map(results)
  // In the order in which they came to their end.
  rounds[1].sort((one, other) => (one.toolUseId < other.toolUseId ? -1 : 1))
  assert.deepEqual(
    rounds.map((round) => round.map(({ toolUseId }) => toolUseId)),
    [[], ['tooluse_1', 'tooluse_2'], ['tooluse_3'], ['tooluse_4']],
  )
  const [first, second] = rounds[1].map(({ content }) => content[0].text)
  assert.match(first, /the word is heron/)
  assert.match(second, /the number is 6/)
  assert.match(rounds[3][0].content[0].text, /the word is stork/)
})

test('a sub-agent answers, and its words come back to the one that asked (C40)', async (t) => {
  const house = await serve(t)
  const ask = { description: 'Look', prompt: 'Which bird is it?', subagent_type: 'general-purpose', run_in_background: false }
  await house.script({ tools: [call('Agent', 1, ask)] }, { text: 'A heron, says the agent.' }, { text: 'It is a heron.' })
  const claude = await session(t, house, ['--allowedTools', 'Agent'])
  assert.equal((await claude.turn('Ask an agent.')).result, 'It is a heron.')
  assert.equal(await claude.end(), 0)
  const agents = claude.requests.filter(({ headers }) => headers['x-claude-code-agent-id'])
  assert.equal(agents.length, 1, 'the agent names itself')
  const [, agent, back] = await house.upstream()
  assert.ok(current(agent).content.includes('Which bird is it?'))
  assert.match(results(back)[0].content[0].text, /A heron, says the agent\./)
})

test('/compact: what comes after it stands on the summary (A72)', async (t) => {
  const house = await serve(t)
  await house.script(
    { text: 'Noted: heron.' },
    { text: '<analysis>Short.</analysis>\n<summary>They talked of a long-legged bird.</summary>', pieces: 3 },
    { text: 'Of a bird.' },
  )
  const claude = await session(t, house)
  assert.equal((await claude.turn('Remember the word heron.')).result, 'Noted: heron.')
  assert.equal((await claude.turn('/compact')).is_error, false)
  assert.equal((await claude.turn('Of what did we talk?')).result, 'Of a bird.')
  assert.equal(await claude.end(), 0)
  assert.ok(claude.seen.some(({ subtype }) => subtype === 'compact_boundary'))
  const bodies = await house.upstream()
  assert.equal(bodies.length, 3)
  const last = JSON.stringify(bodies[2].conversationState)
  assert.ok(last.includes('They talked of a long-legged bird.') && !last.includes('Noted: heron.'))
})

test('too long a prompt makes it compact by itself and go on (C31)', async (t) => {
  const house = await serve(t)
  await house.script(
    { text: 'Noted: heron.' },
    'prompt-too-long',
    { text: '<analysis>Short.</analysis>\n<summary>They talked of a long-legged bird.</summary>' },
    { text: 'Of a bird.' },
  )
  const claude = await session(t, house)
  await claude.turn('Remember the word heron.')
  const { result, is_error: failed } = await claude.turn('Of what did we talk?')
  assert.deepEqual([result, failed], ['Of a bird.', false])
  assert.equal(await claude.end(), 0)
  assert.ok(JSON.stringify((await house.upstream()).at(-1)).includes('They talked of a long-legged bird.'))
})

test('a picture in the prompt, and one that it reads itself (A72)', async (t) => {
  const house = await serve(t)
  const cwd = folder(t)
  const file = path.join(cwd, 'dot.png')
  writeFileSync(file, Buffer.from(PNG, 'base64'))
  await house.script({ tools: [call('Read', 1, { file_path: file })] }, { text: 'Both are red.' })
  const claude = await session(t, house, ['--allowedTools', 'Read'], { cwd })
  const source = { type: 'base64', media_type: 'image/png', data: PNG }
  const { result } = await claude.turn([
    { type: 'text', text: 'Is it the colour of dot.png?' },
    { type: 'image', source },
  ])
  assert.equal(result, 'Both are red.')
  assert.equal(await claude.end(), 0)
  const [asked, read] = await house.upstream()
  for (const { images } of [asked, read].map(current)) {
    assert.deepEqual(
      images.map(({ format }) => format),
      ['png'],
    )
  }
})

test('an interrupt ends the answer upstream too, and the next turn goes on (A72)', async (t) => {
  const house = await serve(t)
  await house.script({ text: 'word '.repeat(400), pieces: 400, gap_ms: 50 }, { text: 'Gladly.' })
  const claude = await session(t, house)
  claude.say('Tell me a long story.')
  await claude.until(({ event }) => event?.type === 'content_block_delta')
  await claude.control({ subtype: 'interrupt' })
  await claude.until(({ type }) => type === 'result')
  await house.closes(1, 1000)
  assert.equal((await claude.turn('Stop here.')).result, 'Gladly.')
  assert.equal(await claude.end(), 0)
  const [, next] = await house.upstream()
  assert.match(next.conversationState.history.at(-1).assistantResponseMessage.content, /^word/)
  assert.match(current(next).content, /Stop here\./)
})

test('half an answer is never taken for a whole one: it goes on from the partial text (C33, C40)', async (t) => {
  const house = await serve(t)
  await house.script({ steps: [{ text: 'Half an ' }, { exception: 'InternalServerException' }] }, { text: 'answer.' })
  const claude = await session(t, house)
  const { result, is_error: failed } = await claude.turn('Say hello.')
  assert.deepEqual([result, failed], ['answer.', false])
  assert.equal(await claude.end(), 0)
  const [, resumed] = await house.upstream()
  assert.equal(resumed.conversationState.history.at(-1).assistantResponseMessage.content, 'Half an ')
})

test('too long a prompt is explained (A72, C31)', async (t) => {
  const house = await serve(t, { accounts: ['sim-prompt-too-long'] })
  const { said } = await print(t, house, ['Say hello.'])
  assert.match(said, /prompt is too long/i)
})

// Older models are asked for another form.
const refusals = ['<block>yes</block>', '<thinking>No.</thinking><block>yes</block><reason>It marks.</reason>']
for (const [what, answers, runs, model] of [
  ['allows at once', ['<severity>3</severity>'], true],
  ['thinks in its text, then allows', ['<severity>70</severity>', '<thinking>Harmless.</thinking><severity>9</severity>'], true],
  ['refuses, by a model that was named', refusals, false, 'claude-haiku-4-5'],
]) {
  test(`auto mode, its check an ordinary request that ${what} (C40)`, async (t) => {
    const house = await serve(t)
    const mark = path.join(folder(t), 'it-ran')
    const bash = call('Bash', 1, { command: `python3 -c "open('${mark}', 'w')"`, description: 'Mark' })
    await house.script({ tools: [bash] }, ...answers.map((text) => ({ text })), { text: 'Done.' })
    const env = model && { CLAUDE_CODE_AUTO_MODE_MODEL: model }
    const claude = await session(t, house, ['--permission-mode', 'auto'], { env })
    assert.equal((await claude.turn('Mark it.')).result, 'Done.')
    assert.equal(await claude.end(), 0)
    assert.equal(existsSync(mark), runs)
    const checks = claude.requests.filter(({ body }) => JSON.stringify(body.system).includes('security monitor'))
    assert.deepEqual(
      checks.map(({ body }) => body.model),
      answers.map(() => model ?? 'claude-sonnet-5'),
    )
    // It asks for thinking `updates` first, is refused (TR42), and goes on without.
    const displays = claude.requests.map(({ body }) => body.thinking?.display)
    assert.ok(displays.includes('updates') && displays.at(-1) === undefined, JSON.stringify(displays))
  })
}

test('its model picker shows the models that the accounts have (C37)', async (t) => {
  const house = await serve(t)
  const claude = await session(t, house, [], { env: { CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY: '1' } })
  await house.script({ text: 'Hello.' })
  await claude.turn('Say hello.')
  const { models } = await claude.control({ subtype: 'initialize' })
  assert.equal(await claude.end(), 0)
  const listed = []
  for await (const { id } of house.client().models.list()) listed.push(id)
  const shown = new Set(models.map(({ resolvedModel }) => resolvedModel))
  assert.deepEqual(
    listed.filter((id) => !shown.has(id)),
    [],
    'not in the picker',
  )
})

test('WebSearch, found by ToolSearch: the model reads the results, Claude Code gets the links (A134, A167)', async (t) => {
  const house = await serve(t)
  await house.script(
    { tools: [call('ToolSearch', 1, { query: 'select:WebSearch', max_results: 1 })] },
    { tools: [call('WebSearch', 2, { query: 'grey herons' })] },
    // Its own request for the search, with the server tool alone.
    { text: 'I look.', tools: [call('web_search', 3, { query: 'grey herons' }, { pieces: 4 })] },
    { text: 'They fish.' },
    { text: 'Herons fish.' },
  )
  const claude = await session(t, house, ['--allowedTools', 'ToolSearch', 'WebSearch'])
  assert.equal((await claude.turn('What do herons eat?')).result, 'Herons fish.')
  assert.equal(await claude.end(), 0)
  const [, loaded, , searched, told] = await house.upstream()
  const declared = current(loaded).userInputMessageContext.tools.map(({ toolSpecification: { name } }) => name)
  assert.ok(declared.includes('WebSearch') && !declared.includes('WebFetch'), declared.join())
  assert.match(results(loaded)[0].content[0].text, /Tool loaded: WebSearch/)
  assert.match(results(searched)[0].content[0].text, /What a simulated page 3 says about grey herons\./)
  const shown = results(told)[0].content[0].text
  for (const n of [1, 2, 3]) assert.ok(shown.includes(`https://site${n}.test/greyherons`), shown)
  assert.match(shown, /They fish\./)
})

test('a tool of an MCP server, whose name is too long for upstream', async (t) => {
  const house = await serve(t)
  const args = [fileURLToPath(new URL('mcp-server.mjs', import.meta.url))]
  const mcpServers = { feathered_friends: { type: 'stdio', command: process.execPath, args } }
  const name = 'mcp__feathered_friends__find_a_bird_by_its_name_or_by_the_colour_of_its_feathers'
  const settings = ['--mcp-config', JSON.stringify({ mcpServers }), '--strict-mcp-config', '--allowedTools', name]
  const claude = await session(t, house, settings, { env: { ENABLE_TOOL_SEARCH: 'false' } })
  await house.script({ text: 'Ready.' })
  await claude.turn('Are you ready?')
  const [first] = await house.upstream()
  const declared = current(first).userInputMessageContext.tools.map(({ toolSpecification }) => toolSpecification.name)
  const short = declared.find((name) => name.startsWith('mcp__feathered_friends__'))
  assert.ok(short?.length <= 64, declared.join())
  await house.script({ tools: [call(short, 1, { colour: 'grey' })] }, { text: 'A heron.' })
  assert.equal((await claude.turn('Which bird is grey?')).result, 'A heron.')
  assert.equal(await claude.end(), 0)
  assert.match(results((await house.upstream()).at(-1))[0].content[0].text, /The grey one is a heron\./)
})

test('/context: its many figures are counted here (M65)', async (t) => {
  const house = await serve(t)
  const claude = await session(t, house)
  const { result } = await claude.turn('/context')
  assert.equal(await claude.end(), 0)
  assert.match(result, /System tools \| \d/)
  assert.ok(claude.requests.length > 5)
  for (const { url } of claude.requests) assert.match(url, /^\/v1\/messages\/count_tokens/)
  assert.deepEqual(await house.upstream(), [])
})

test('a hook that asks a model, and the title of a session: JSON, whatever stands around it (A177, A178)', async (t) => {
  const house = await serve(t)
  const hooks = { Stop: [{ hooks: [{ type: 'prompt', prompt: 'Is the bird named? $ARGUMENTS' }] }] }
  await house.script(
    { text: 'It is a bird.' },
    { text: 'Not yet:\n```json\n{"ok":false,"reason":"Name the bird."}\n```', pieces: 4 },
    { text: 'It is a heron.' },
    { text: 'Yes, it is.' },
    { text: '{"ok":true,"reason":"It is named."}' },
    { text: '```json\n{"title":"A heron by the river"}\n```' },
  )
  const claude = await session(t, house, ['--settings', JSON.stringify({ hooks })])
  assert.equal((await claude.turn('Which bird is it?')).result, 'It is a heron.')
  const titled = await claude.control({ subtype: 'generate_session_title', description: 'Which bird is it?', persist: false })
  assert.equal(titled.title, 'A heron by the river')
  assert.equal(await claude.end(), 0)
})

/** A tool call as the model makes it. */
function call(name, n, input, more = {}) {
  return { id: `tooluse_${n}`, name, input, ...more }
}

function current(body) {
  return body.conversationState.currentMessage.userInputMessage
}

function results(body) {
  return current(body).userInputMessageContext?.toolResults ?? []
}
