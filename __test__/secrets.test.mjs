// Case 38: nothing that comes out of the addon or the server holds a token, a key or the text of a prompt (N41).
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { test } from 'node:test'
import { inspect } from 'node:util'
import { KiroGateway } from 'kiro-messages'
import { accounts, ask, collect, gateway, server, simulator, until } from './support/stack.mjs'

const KEY = 'secret-client-key-4711'
const TOKENS = ['secret-access-token-one', 'secret-access-token-two']
const PROMPT = 'the secret of the prompt is swordfish'
const UPSTREAM = 'upstream says where the treasure is'
const FORBIDDEN = [KEY, ...TOKENS, 'refresh-', 'swordfish', 'treasure', 'Bearer ', 'sim-ok.']

/** Everything that a person could see of a value. */
const seen = (value) => `${inspect(value, { depth: 10, showHidden: true, getters: true })}\n${JSON.stringify(value)}\n${value?.stack ?? ''}`

test('errors, events, outcomes, summaries, accounts, health, metrics and logs hold no secret (case 38, N41)', async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t, ...TOKENS)
  const said = []
  const keep = (what, value) => said.push(`${what}: ${typeof value === 'string' ? value : seen(value)}`)
  const gate = await gateway(t, sim, pool, { apiKey: KEY, recordOutcome: (outcome) => keep('outcome', outcome) })
  for (const event of ['accountEjected', 'tokenRefreshed', 'storeLost', 'storeBack']) gate.on(event, (value) => keep(event, value))
  const listening = createServer(gate.handler()).listen(0, '127.0.0.1')
  await once(listening, 'listening')
  t.after(() => listening.close())
  const standalone = await server(t, sim, pool, { KIRO_API_KEY: KEY, KIRO_LOG_LEVEL: 'debug' })

  const request = ask({ text: 'x' })
  request.messages[0].content += PROMPT
  const scenarios = ['402', 'suspended', '403', '500', '401', '429-retry-after-1', 'drop', 'cut', 'corrupt', 'late-exception-Boom']
  const [one, two] = pool.ids
  for (const scenario of [...scenarios, { http: { status: 500, type: 'InternalServerException', message: UPSTREAM } }]) {
    await sim.script(TOKENS.map((token) => ({ token, scenarios: [scenario, scenario, scenario] })))
    await gate.createMessage(request, { accountId: one }).catch((error) => keep('pinned', error))
    await gate.streamMessages(request).then(
      async (stream) => {
        await collect(stream)
        keep('summary', await stream.summary)
      },
      (error) => keep('stream', error),
    )
    for (const url of [`http://127.0.0.1:${listening.address().port}`, standalone.url]) {
      const answer = await fetch(`${url}/v1/messages`, { method: 'POST', headers: { 'x-api-key': KEY }, body: JSON.stringify(request) })
      keep('answer', `${[...answer.headers]} ${answer.ok ? '' : await answer.text()}`)
    }
    await fetch(`${sim.url}/_sim/reset`, { method: 'POST' })
  }
  await gate.streamMessages(request, { signal: AbortSignal.abort() }).catch((error) => keep('abort', error))
  await gate.createMessage({ ...request, model: 'gpt-4o' }).catch((error) => keep('model', error))
  await gate.createMessage({ ...request, max_tokens: 'many' }).catch((error) => keep('invalid', error))
  const wrong = await fetch(`${standalone.url}/v1/messages?key=${KEY}x`, { method: 'POST', body: JSON.stringify(request) })
  keep('wrong key', await wrong.text())
  await sim.script({ refresh_token: `refresh-${two}`, answers: ['dead'], forever: true })
  await gate.refresh(one).catch((error) => keep('refresh', error))
  await gate.refresh(two).catch((error) => keep('refresh', error))
  await gate.usageLimits('nobody').catch((error) => keep('usageLimits', error))
  await KiroGateway.connect({ env: { REDIS_PASSWORD: KEY }, redisUrl: `redis://:${KEY}@127.0.0.1:1`, storeWaitMs: 300 }).catch((error) =>
    keep('connect', error),
  )
  await KiroGateway.connect({ env: {}, store: 'file:x', apiKey: KEY, maxConns: TOKENS[0].slice(0, 3) }).catch((error) =>
    keep('config', error),
  )
  keep('accounts', gate.accounts())
  keep('health', gate.health())
  keep('metrics', gate.metrics())
  keep('gateway', gate)
  await gate.close({ graceMs: 100 })
  standalone.child.kill('SIGTERM')
  await until(() => standalone.child.exitCode !== null, 'the server to end')
  keep('log', standalone.child.output)
  assert.ok(standalone.child.output.split('\n').length > 10, 'the log says something')
  assert.ok(said.length > 40, `${said.length} things were said`)
  for (const text of said) {
    // K48 lets upstream's own words through where they say what is wrong with the request: none of these cases.
    for (const secret of FORBIDDEN) assert.ok(!text.includes(secret), `${secret} in ${text}`)
  }
  // In messages, account ids are cut; the whole id is a property, for the caller that named it.
  for (const text of said.filter((text) => /^(log|metrics|answer)/.test(text))) {
    for (const id of pool.ids) assert.ok(!text.includes(id), `a whole account id in ${text}`)
  }
})
