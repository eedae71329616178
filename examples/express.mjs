// The Messages API in an Express app, beside routes and middleware of your own. Needs: npm install express
//
//   KIRO_UPSTREAM=simulator node examples/express.mjs 8081
//   curl localhost:8081/v1/messages -d '{"model":"claude-sonnet-4-5","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
import express from 'express'
import { KiroGateway } from 'kiro-messages'

const gateway = await KiroGateway.connect()
const app = express()

app.use((req, res, next) => {
  console.log(`${req.method} ${req.path}`)
  next()
})
// Before express.json() where you can: the request is then read by the gateway and parsed once. After it works too.
app.use(gateway.handler())
app.use(express.json())
app.post('/echo', (req, res) => {
  res.json(req.body)
})

const server = app.listen(Number(process.argv[2] ?? 8081), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}/v1/messages`)
})

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, async () => {
    server.close()
    await gateway.close({ graceMs: 4000 })
    server.closeAllConnections()
  })
}
