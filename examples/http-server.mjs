// The Messages API on node:http, beside routes of your own.
//
//   KIRO_UPSTREAM=simulator node examples/http-server.mjs 8081
//   curl localhost:8081/v1/messages -d '{"model":"claude-sonnet-4-5","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
import { createServer } from 'node:http'
import { KiroGateway } from 'kiro-messages'

const gateway = await KiroGateway.connect()
const messages = gateway.handler()

const server = createServer((req, res) => {
  messages(req, res, () => {
    res.writeHead(404, { 'content-type': 'text/plain' }).end('nothing here\n')
  })
})
server.listen(Number(process.argv[2] ?? 8081), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}/v1/messages`)
})

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, async () => {
    server.close()
    // Open streams may finish; those left after four seconds end with an error event.
    await gateway.close({ graceMs: 4000 })
    server.closeAllConnections()
  })
}
