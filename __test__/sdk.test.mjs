// The official SDK against kiro-server, handler() in node:http, and the same prompts through the addon
// (contract/messages.md, C; case 15).
import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { describe, test } from 'node:test'
import Anthropic, * as sdk from '@anthropic-ai/sdk'
import { KiroError } from 'kiro-messages'
import { accounts, ask as askStack, collect, events, gateway, listening, server, simulator, until, withoutIds } from './support/stack.mjs'

/** Above about 21,000 tokens the SDK wants a stream. */
const ask = (scenario, more = {}) => askStack(scenario, { max_tokens: 20_000, ...more })

const KEY = 'the-client-key'
const TOOLS = ['weather', 'clock'].map((name) => ({ name, description: name, input_schema: { type: 'object' } }))

const TEXT = ask({ text: 'Two halves, é and 漢.', pieces: 7 })
const TWO_TOOLS = ask(
  {
    text: 'Looking.',
    tools: [
      { id: 'tooluse_w', name: 'weather', input: { city: 'Zürich', days: [1, 2, 3], deep: { er: null } }, pieces: 5 },
      { id: 'tooluse_c', name: 'clock', input: { zone: 'UTC' }, pieces: 3 },
    ],
  },
  { tools: TOOLS },
)
const THINKING = ask(
  { thinking: 'Let me see, step by step.', pieces: 4, signature: 'c2lnbmF0dXJl', text: 'Seen.' },
  { thinking: { type: 'enabled', budget_tokens: 2048 }, max_tokens: 4096 },
)
const CUT = ask({ text: 'half of what was to come', pieces: 4, end: 'cut' })

/** The faces of the product, as an SDK client sees them. */
const FACES = {
  'kiro-server': async (t, sim, pool) => (await server(t, sim, pool, { KIRO_API_KEY: KEY })).url,
  'handler()': async (t, sim, pool) => {
    const gate = await gateway(t, sim, pool, { apiKey: KEY })
    return `http://127.0.0.1:${await listening(t, createServer(gate.handler()))}`
  },
  'listen()': async (t, sim, pool) => {
    const gate = await gateway(t, sim, pool, { apiKey: KEY })
    const { host, port } = await gate.listen({ port: 0 })
    return `http://${host}:${port}`
  },
}

for (const [name, face] of Object.entries(FACES)) {
  describe(`the SDK on ${name} (case 15)`, () => {
    const open = async (t, ...tokens) => {
      const sim = await simulator(t)
      const baseURL = await face(t, sim, accounts(t, ...tokens))
      return { sim, client: new Anthropic({ baseURL, apiKey: KEY, maxRetries: 0 }) }
    }

    test('text: the accumulated message is what upstream sent', async (t) => {
      const { client } = await open(t)
      const stream = client.messages.stream(TEXT)
      const types = []
      stream.on('streamEvent', (event) => types.push(event.type))
      const message = await stream.finalMessage()
      assert.deepEqual(message.content, [{ type: 'text', text: 'Two halves, é and 漢.' }])
      assert.equal(message.role, 'assistant')
      assert.equal(message.model, TEXT.model)
      assert.equal(message.stop_reason, 'end_turn')
      assert.equal(message.stop_sequence, null)
      assert.ok(message.usage.output_tokens > 0 && message.usage.input_tokens > 0)
      assert.equal(types.filter((type) => type === 'content_block_delta').length, 7)
      // Without stream it is the same message.
      const whole = await client.messages.create(TEXT)
      assert.deepEqual(whole.content, message.content)
      assert.deepEqual(whole.usage, message.usage)
      assert.match(whole._request_id, /^req_/)
    })

    test('two parallel tools arrive whole', async (t) => {
      const { client } = await open(t)
      const message = await client.messages.stream(TWO_TOOLS).finalMessage()
      assert.deepEqual(message.content, [
        { type: 'text', text: 'Looking.' },
        { type: 'tool_use', id: 'tooluse_w', name: 'weather', input: { city: 'Zürich', days: [1, 2, 3], deep: { er: null } } },
        { type: 'tool_use', id: 'tooluse_c', name: 'clock', input: { zone: 'UTC' } },
      ])
      assert.equal(message.stop_reason, 'tool_use')
      assert.deepEqual((await client.messages.create(TWO_TOOLS)).content, message.content)
    })

    test('thinking comes with its signature', async (t) => {
      const { client } = await open(t)
      const message = await client.messages.stream(THINKING).finalMessage()
      assert.deepEqual(message.content, [
        { type: 'thinking', thinking: 'Let me see, step by step.', signature: 'c2lnbmF0dXJl' },
        { type: 'text', text: 'Seen.' },
      ])
    })

    test('a cut stream: the SDK raises, with what came before', async (t) => {
      const { client } = await open(t)
      let text = ''
      const stream = client.messages.stream(CUT).on('text', (delta) => (text += delta))
      const error = await stream.finalMessage().catch((error) => error)
      assert.ok(error instanceof sdk.APIError, String(error))
      assert.equal(error.type, 'api_error')
      assert.equal(text, 'half of what was to come')
      const whole = await client.messages.create(CUT).catch((error) => error)
      assert.ok(whole instanceof sdk.InternalServerError)
      assert.equal(whole.status, 500)
    })

    test('errors before the commit are typed, streaming or not', async (t) => {
      const { sim, client } = await open(t, 'a')
      const http = (status, type, message, more = {}) => ({ http: { status, type, message, ...more } })
      const cases = [
        [http(400, 'ValidationException', 'Improperly formed request.'), sdk.BadRequestError, 400, 'invalid_request_error'],
        [
          http(400, 'ValidationException', 'Input is too long.', { reason: 'CONTENT_LENGTH_EXCEEDS_THRESHOLD' }),
          sdk.BadRequestError,
          400,
          'invalid_request_error',
        ],
      ]
      for (const [scenario, kind, status, type] of cases) {
        for (const stream of [true, false]) {
          await sim.script({ token: 'a', scenarios: [scenario] })
          const error = await client.messages.create({ ...ask(), stream }).catch((error) => error)
          assert.ok(error instanceof kind, String(error))
          assert.equal(error.status, status)
          assert.equal(error.type, type)
          assert.equal(error.error.request_id, error.requestID)
        }
      }
      await sim.script({
        token: 'a',
        scenarios: [http(429, 'ThrottlingException', 'slow', { headers: { 'retry-after': '7' } })],
      })
      const limited = await client.messages.create({ ...ask(), stream: true }).catch((error) => error)
      assert.ok(limited instanceof sdk.RateLimitError, String(limited))
      assert.equal(limited.type, 'rate_limit_error')
      assert.equal(limited.headers.get('retry-after'), '7')
      const wrong = new Anthropic({ baseURL: client.baseURL, apiKey: 'wrong', maxRetries: 0 })
      const refused = await wrong.messages.create(ask()).catch((error) => error)
      assert.ok(refused instanceof sdk.AuthenticationError)
      const unknown = await client.messages.create({ ...ask(), model: 'gpt-4o' }).catch((error) => error)
      assert.ok(unknown instanceof sdk.NotFoundError)
      const invalid = await client.messages.create({ ...ask(), messages: [] }).catch((error) => error)
      assert.ok(invalid instanceof sdk.BadRequestError)
      assert.match(invalid.message, /messages: must not be empty/)
    })

    test('leaving a stream frees upstream', async (t) => {
      const { sim, client } = await open(t)
      const stream = await client.messages.create({ ...ask({ text: '{n} ', count: 10_000, gap_ms: 100 }), stream: true })
      for await (const event of stream) if (event.type === 'content_block_delta') break
      await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be dropped', 1000)
    })

    test('models and count_tokens answer', async (t) => {
      const { client } = await open(t)
      const ids = []
      for await (const model of client.models.list({ limit: 2 })) ids.push(model.id)
      assert.ok(ids.includes('claude-sonnet-4-5'))
      assert.equal(new Set(ids).size, ids.length)
      const { input_tokens } = await client.messages.countTokens({ model: TEXT.model, messages: TEXT.messages })
      assert.ok(input_tokens > 0)
    })
  })
}

test('the same prompts through the addon give the same bytes as through kiro-server, ids aside', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t)
  const gate = await gateway(t, sim, pool)
  const { url } = await server(t, sim, pool)
  for (const request of [TEXT, TWO_TOOLS, THINKING, CUT, ask({ error: { code: 'Boom' }, text: 'x' }), ask({ text: '', usage: false }), { ...TEXT, thread: { id: 't' } }]) {
    const ours = await gate.streamMessages(request).then(collect, String)
    const answer = await fetch(`${url}/v1/messages`, { method: 'POST', body: JSON.stringify({ ...request, stream: true }) })
    const theirs = Buffer.from(await answer.arrayBuffer())
    if (answer.status === 200) {
      assert.equal(withoutIds(ours), withoutIds(theirs))
      assert.ok(['message_stop', 'error'].includes(events(ours).at(-1).type))
    } else assert.match(ours, new RegExp(JSON.parse(theirs).error.message))
    const message = await gate.createMessage(request).catch((error) => error)
    const folded = await fetch(`${url}/v1/messages`, { method: 'POST', body: JSON.stringify(request) })
    const body = await folded.json()
    if (message instanceof KiroError) {
      assert.equal(message.status, folded.status)
      assert.deepEqual(message.toJSON().error, body.error)
    } else assert.equal(withoutIds(Buffer.from(JSON.stringify(message))), withoutIds(Buffer.from(JSON.stringify(body))))
  }
})
