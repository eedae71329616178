// What scripts/valgrind.mjs runs: everything a stream, a thread and a process can end in, on the built-in simulator.
import { once } from 'node:events'
import { createServer, request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { KiroGateway } from 'kiro-messages'

const ask = (scenario) => ({
  model: 'claude-sonnet-4-6',
  max_tokens: 1_000_000,
  messages: [{ role: 'user', content: `[[sim ${JSON.stringify(scenario)}]]` }],
})
const WHOLE = ask({ text: '{n} ', count: 200 })
const ENDLESS = ask({ text: '{n} ', count: 1_000_000, gap_ms: 50 })
const LARGE = ask({ text: `${'x'.repeat(4000)}{n}`, count: 100 })
const options = { env: {}, upstream: 'simulator' }

const gateway = await KiroGateway.connect(options)
for (const body of [WHOLE, LARGE]) {
  let bytes = 0
  for await (const buffer of await gateway.streamMessages(body)) bytes += buffer.length
  console.log(`whole: ${bytes} bytes`)
}
for await (const _ of gateway.streamEvents(WHOLE));
for await (const _ of gateway.streamEvents(ENDLESS)) break
await gateway.createMessage(WHOLE)
await gateway.createMessage({ ...WHOLE, model: 'nope' }).catch((error) => console.log(`refused: ${error.code}`))
const abort = new AbortController()
const aborted = gateway.streamMessages(ENDLESS, { signal: abort.signal })
abort.abort()
await aborted.catch((error) => console.log(`aborted: ${error.code}`))
await (async () => {
  for (let n = 0; n < 5; n++) await (await gateway.streamMessages(ENDLESS)).next()
})()
gc()
await sleep(100)
gc()
console.log('dropped')

const server = createServer(gateway.handler()).listen(0, '127.0.0.1')
await once(server, 'listening')
// Not fetch(): it needs WebAssembly, and there is none without a JIT.
const req = request({ port: server.address().port, path: '/v1/messages', method: 'POST', agent: false })
req.end(JSON.stringify({ ...WHOLE, stream: true }))
const [answer] = await once(req, 'response')
let characters = 0
for await (const part of answer) characters += part.length
console.log(`handler: ${characters} characters`)
server.close()

const worker = new Worker(
  `const { KiroGateway } = require(require('node:worker_threads').workerData.main)
   KiroGateway.connect(${JSON.stringify(options)}).then(async (gateway) => {
     const stream = await gateway.streamMessages(${JSON.stringify(ENDLESS)})
     for await (const bytes of stream) require('node:worker_threads').parentPort.postMessage(bytes.length)
   })`,
  { eval: true, workerData: { main: new URL('../../lib/main.js', import.meta.url).pathname } },
)
await once(worker, 'message')
await worker.terminate()
console.log('thread terminated')

const second = await KiroGateway.connect(options)
const cut = await second.streamMessages(ENDLESS)
await second.close({ graceMs: 0 })
for await (const _ of cut);
console.log('closed')

const open = await Promise.all(Array.from({ length: 20 }, () => gateway.streamMessages(ENDLESS)))
for (const stream of open) stream.next().then(() => stream.next())
await sleep(200)
console.log('leaving with 20 open streams')
process.exit(7)
