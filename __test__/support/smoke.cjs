// What every binary must do before it is published, on its own platform: load, stream a thousand deltas from the simulator
// byte for byte, and let the process end. Run in a folder where the package is installed; prints one line.
'use strict'

const assert = require('node:assert/strict')
const { KiroGateway, KiroError } = require('kiro-messages')

const DELTAS = 1000

async function main() {
  const gateway = await KiroGateway.connect({ env: {}, upstream: 'simulator' })
  const scenario = JSON.stringify({ count: DELTAS, text: '{n} é漢😀 ' })
  const stream = await gateway.streamMessages({
    model: 'claude-sonnet-4-5',
    max_tokens: 20_000,
    messages: [{ role: 'user', content: `[[sim ${scenario}]]` }],
  })
  let sse = ''
  for await (const bytes of stream) {
    assert.ok(bytes.subarray(-2).equals(Buffer.from('\n\n')), 'whole events')
    sse += bytes.toString('utf8')
  }
  const deltas = [...sse.matchAll(/^data: (\{"type":"content_block_delta".*)$/gm)].map(([, data]) => JSON.parse(data).delta.text)
  assert.equal(deltas.join(''), Array.from({ length: DELTAS }, (_, n) => `${n} é漢😀 `).join(''))
  assert.equal((await stream.summary).outcome, 'complete')
  await assert.rejects(gateway.createMessage('{}'), (error) => error instanceof KiroError)
  await gateway.close()
  console.log(`ok: ${process.platform} ${process.arch}, Node.js ${process.version}, ${deltas.length} deltas`)
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
