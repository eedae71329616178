// Failures as the TypeScript SDK shows them: typed errors with their real status before the first content, an error in
// the stream after it. The table in errors.json is also read by test_errors.py.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import Anthropic from '@anthropic-ai/sdk'
import { KEY, ask, rejection, serve, tool } from './kit.mjs'

const CASES = JSON.parse(readFileSync(new URL('errors.json', import.meta.url), 'utf8'))
const CLASSES = {
  400: Anthropic.BadRequestError,
  401: Anthropic.AuthenticationError,
  404: Anthropic.NotFoundError,
  413: Anthropic.ContentTooLargeError,
  429: Anthropic.RateLimitError,
  500: Anthropic.InternalServerError,
  503: Anthropic.ServiceUnavailableError,
  504: Anthropic.GatewayTimeoutError,
  529: Anthropic.OverloadedError,
}
/** Those that a retry can't help (contract/messages.md); and what lasts until a person acts (M85). */
const FINAL = [400, 401, 404, 413]

for (const mode of ['create', 'stream']) {
  for (const wanted of CASES) {
    test(`${wanted.status} ${wanted.name}, ${mode}`, async (t) => {
      const house = await serve(t, { accounts: wanted.accounts, env: wanted.env })
      if (wanted.refresh) await house.scriptRefresh(wanted.accounts[0], wanted.refresh)
      const client = house.client({ apiKey: wanted.key ?? KEY })
      const request = { ...ask('Hi'), ...wanted.request }
      if (request.system) request.system = 'x'.repeat(Number.parseInt(request.system))
      const error = await rejection(
        mode === 'stream' ? client.messages.stream(request).done() : client.messages.create(request),
      )

      assert.equal(error.constructor, CLASSES[wanted.status], error.stack)
      assert.equal(error.status, wanted.status)
      assert.equal(error.type, wanted.type)
      assert.equal(error.error.type, 'error')
      assert.match(error.requestID, /^req_[0-9A-Za-z]{24}$/)
      assert.equal(error.error.request_id, error.requestID)
      assert.match(error.apiMessage, new RegExp(wanted.message ?? '^\\w.*\\w'))
      assert.doesNotMatch(error.apiMessage, new RegExp(wanted.not_message ?? 'arn:aws|sim-|127\\.0\\.0\\.1'))
      const retryAfter = error.headers.get('retry-after')
      if (wanted.retry_after) assert.match(retryAfter ?? 'none', new RegExp(wanted.retry_after))
      else if (wanted.status !== 503 && wanted.status !== 429) assert.equal(retryAfter, null)
      assert.equal(error.headers.get('x-should-retry'), FINAL.includes(wanted.status) || wanted.lasting ? 'false' : null)
      const { requests } = await house.stats()
      assert.equal(requests['POST /generateAssistantResponse'] ?? 0, wanted.calls, 'calls upstream')
    })
  }
}

test('one request more than KIRO_MAX_CONNS gets 529', async (t) => {
  const house = await serve(t, { env: { KIRO_MAX_CONNS: '1' } })
  const client = house.client()
  await house.script({ text: '{n} ', count: 100_000, gap_ms: 10 })
  const first = client.messages.stream(ask('Count.'))
  await new Promise((resolve) => first.once('text', resolve))
  assert.ok((await rejection(client.messages.create(ask('Hi')))) instanceof Anthropic.OverloadedError)
  first.abort()
  await rejection(first.done())
})

for (const fault of [
  '429',
  '500',
  '402',
  'suspended',
  'capacity',
  'cut-early',
  'corrupt',
  'exception-ThrottlingException',
]) {
  test(`sim-${fault} on one account, the next one answers: the client sees nothing of it (A57)`, async (t) => {
    const house = await serve(t, { accounts: [`sim-${fault}`, 'sim-ok'] })
    for (let n = 0; n < 2; n++) {
      // Another conversation each time: one stays with its account.
      const request = ask(`${n} [[sim {"text":"Fine."}]]`)
      const message = await house.client().messages.stream(request).finalMessage()
      assert.deepEqual(message.content, [{ type: 'text', text: 'Fine.' }])
    }
    const { calls_by_token: calls } = await house.stats()
    assert.deepEqual(Object.keys(calls).sort(), [`sim-${fault}`, 'sim-ok'].sort())
  })
}

const LATE = [
  ['cut', 'api_error'],
  ['reset', 'api_error'],
  ['corrupt-late', 'api_error'],
  ['leftover', 'api_error'],
  ['late-exception-InternalServerException', 'api_error'],
  ['late-exception-ThrottlingException', 'rate_limit_error'],
  ['late-error-ServiceUnavailableException', 'api_error'],
]
for (const [scenario, type] of LATE) {
  test(`${scenario} in mid-text: the SDK raises ${type}, and nothing is taken for whole`, async (t) => {
    const house = await serve(t, { accounts: ['a', 'b'] })
    for (const token of ['a', 'b']) await house.scriptFor(token, [scenario, scenario])
    const client = house.client()
    const stream = client.messages.stream(ask('Hi'))
    let text = ''
    stream.on('text', (delta) => (text += delta))
    const error = await rejection(stream.finalMessage())
    assert.ok(error instanceof Anthropic.APIError, error.stack)
    assert.equal(error.status, undefined)
    assert.equal(error.type, type)
    assert.match(error.requestID, /^req_/)
    assert.match(text, /^This answer/)
    const whole = await rejection(client.messages.create(ask('Hi')))
    assert.equal(whole.status, type === 'rate_limit_error' ? 429 : 500)
    assert.equal(whole.type, type)
    assert.equal(
      (await house.stats()).requests['POST /generateAssistantResponse'],
      2,
      'no second account after content (M9)',
    )
  })
}

test('cut in mid-tool: the SDK raises and gives no torso (A62)', async (t) => {
  const house = await serve(t)
  const client = house.client()
  const cut = { text: 'Writing.', tools: [{ name: 'write', input: '{"path":"a","te', stop: 'never' }], end: 'cut' }
  await house.script(cut, cut)
  const request = ask('Write.', { tools: [tool('write')] })
  assert.equal((await rejection(client.messages.stream(request).finalMessage())).type, 'api_error')
  const error = await rejection(client.messages.create(request))
  assert.ok(error instanceof Anthropic.InternalServerError)
})

test('a stall in mid-answer ends with timeout_error', async (t) => {
  const house = await serve(t, { env: { KIRO_IDLE_TIMEOUT: '300ms' } })
  const client = house.client()
  await house.script('stall', 'stall')
  assert.equal((await rejection(client.messages.stream(ask('Hi')).done())).type, 'timeout_error')
  assert.ok((await rejection(client.messages.create(ask('Hi')))) instanceof Anthropic.GatewayTimeoutError)
})

test('an exception after the whole answer is none (TS17), the output limit is max_tokens (TS16)', async (t) => {
  const house = await serve(t)
  const client = house.client()
  await house.script('ghost', 'ghost', 'output-limit', 'output-limit')
  for (const reason of ['end_turn', 'max_tokens']) {
    const streamed = await client.messages.stream(ask('Hi')).finalMessage()
    const whole = await client.messages.create(ask('Hi'))
    assert.deepEqual([streamed.stop_reason, whole.stop_reason], [reason, reason])
    assert.deepEqual(streamed.content, whole.content)
  }
})

test('pings in a silence disturb nobody (C11, A67)', async (t) => {
  const house = await serve(t, { env: { KIRO_PING_INTERVAL: '100ms' } })
  await house.script({ steps: [{ text: 'Wait' }, { wait_ms: 370 }, { text: ' for it.' }, { usage: true }] })
  let raw = ''
  const spy = async (input, init) => {
    const response = await house.checkedFetch(input, init)
    const heard = new TransformStream({
      transform(chunk, controller) {
        raw += Buffer.from(chunk)
        controller.enqueue(chunk)
      },
    })
    return new Response(response.body.pipeThrough(heard), response)
  }
  const stream = house.client({ fetch: spy }).messages.stream(ask('Hi'))
  assert.equal(await stream.finalText(), 'Wait for it.')
  assert.equal(raw.split('event: ping\ndata: {"type":"ping"}\n\n').length - 1, 3)
})

test('early headers: 200 and pings while upstream is silent, then the answer, or the error in the stream (A60)', async (t) => {
  const env = { KIRO_EARLY_HEADERS: '100ms', KIRO_PING_INTERVAL: '100ms' }
  const house = await serve(t, { env })
  const client = house.client()
  await house.script({ first_ms: 350, text: 'At last.' }, { first_ms: 350, exception: 'InternalServerException' })
  assert.equal(await client.messages.stream(ask('Hi')).finalText(), 'At last.')
  const error = await rejection(client.messages.stream(ask('Hi')).done())
  assert.equal(error.status, undefined)
  assert.equal(error.type, 'api_error')
})

test('the SDK’s own retries: overload twice, then the answer; 400 is tried once (C17)', async (t) => {
  const house = await serve(t)
  const client = house.client({ maxRetries: 2 })
  await house.script('529', 'capacity', { text: 'Third time.' }, '400')
  assert.equal((await client.messages.create(ask('Hi'))).content[0].text, 'Third time.')
  await rejection(client.messages.create(ask('Hi')))
  assert.equal((await house.stats()).requests['POST /generateAssistantResponse'], 4)
})
