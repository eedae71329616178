// Streams one answer to the terminal. Ctrl-C leaves it, which ends the upstream request too.
//
//   node examples/stream.mjs "Why is the sky blue?"
//
// Accounts come from Redis as the environment says (REDIS_URL …), or from a file: KIRO_STORE=file:accounts.json.
// Without any account: KIRO_UPSTREAM=simulator.
import { KiroGateway, KiroError } from 'kiro-messages'

const gateway = await KiroGateway.connect()
const interrupted = new AbortController()
process.once('SIGINT', () => interrupted.abort())

try {
  const stream = await gateway.streamMessages(
    {
      model: 'claude-sonnet-4-5',
      max_tokens: 1024,
      messages: [{ role: 'user', content: process.argv[2] ?? 'Say hello.' }],
    },
    { signal: interrupted.signal },
  )
  for await (const bytes of stream) {
    // Each Buffer holds whole events.
    for (const [, data] of bytes.toString().matchAll(/^data: (.*)$/gm)) {
      const event = JSON.parse(data)
      if (event.delta?.type === 'text_delta') process.stdout.write(event.delta.text)
      if (event.type === 'error') console.error(`\n${event.error.type}: ${event.error.message}`)
    }
  }
  const { outcome, usage, durationMs } = await stream.summary
  console.log(`\n(${outcome}, ${usage?.output_tokens ?? 0} output tokens, ${durationMs} ms)`)
} catch (error) {
  if (!KiroError.is(error)) throw error
  console.error(`${error.code}: ${error.message}${error.retryAfterMs ? ` (again in ${error.retryAfterMs} ms)` : ''}`)
  process.exitCode = 1
} finally {
  await gateway.close({ graceMs: 0 })
}
