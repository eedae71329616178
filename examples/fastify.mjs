// The Messages API in a Fastify app, on its raw objects. Needs: npm install fastify
//
//   KIRO_UPSTREAM=simulator node examples/fastify.mjs 8081
//   curl localhost:8081/kiro/v1/messages -d '{"model":"claude-sonnet-4-5","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
import Fastify from 'fastify'
import { KiroGateway } from 'kiro-messages'

const gateway = await KiroGateway.connect()
const handle = gateway.handler({ basePath: '/kiro' })
const app = Fastify()

app.register(async (kiro) => {
  // In here bodies are left to the gateway, of whatever type they say they are.
  kiro.removeAllContentTypeParsers()
  kiro.addContentTypeParser('*', (request, payload, done) => done(null))
  kiro.all('/kiro/*', async (request, reply) => {
    reply.hijack()
    await handle(request.raw, reply.raw)
  })
})
app.post('/echo', async (request) => request.body)
app.addHook('onClose', () => gateway.close({ graceMs: 4000 }))

const address = await app.listen({ port: Number(process.argv[2] ?? 8081), host: '127.0.0.1' })
console.log(`${address}/kiro/v1/messages`)

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => app.close())
}
