// The Kiro client of a Node.js service replaced in its process (docs/drop-in.md): `service` stands for that program, and
// the two lines that change in it are marked A and B.
//
//   KIRO_UPSTREAM=simulator node examples/drop-in.mjs 8081
//   curl localhost:8081/claude-kiro-oauth/v1/messages -d '{"model":"claude-sonnet-4-5","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
//   curl localhost:8081/claude-kiro-oauth/v1/chat/completions -d '{"model":"claude-sonnet-4-5","messages":[{"role":"user","content":"hi"}]}'
import { createServer } from 'node:http'
import { KiroGateway } from 'kiro-messages'
import { createKiroAdapter, createKiroHandler } from 'kiro-messages/aiclient'

const TYPE = 'claude-kiro-oauth'

// The service has its accounts from Redis, and connects nothing: the first call does. This example takes the gateway's
// accounts, so that it runs on the simulator too.
const gateway = await KiroGateway.connect()
const accounts = gateway.accounts().map(({ id }) => ({ uuid: id, usageCount: 0 }))

/** What the service lends: its pool manager hears how requests ended, its plugins hear of each. */
const kiroHost = {
  gateway,
  getPoolManager: () => poolManager,
  onContentGenerated: () => console.log('a plugin counts one request'),
}

const poolManager = {
  providerPools: { [TYPE]: accounts },
  markProviderHealthy(type, { uuid }) {
    accounts.find((account) => account.uuid === uuid).usageCount += 1
    console.log(`account ${uuid.slice(0, 8)} was used`)
  },
  markProviderUnhealthyImmediately: (type, { uuid }, message) => console.log(`account ${uuid.slice(0, 8)} is out: ${message}`),
  markProviderUnhealthyWithRecoveryTime: (type, { uuid }, message) => console.log(`account ${uuid.slice(0, 8)} is out: ${message}`),
  markProviderNeedRefresh: (type, { uuid }) => console.log(`account ${uuid.slice(0, 8)} needs a refresh`),
  resetProviderRefreshStatus: (type, uuid) => console.log(`account ${uuid.slice(0, 8)} was refreshed`),
}

// A: the service's adapter factory. Other protocols, health checks, the usage page and the refresh queue use it.
const serviceInstances = {}
function adapterOf(config) {
  const key = TYPE + config.uuid
  serviceInstances[key] ??= createKiroAdapter(config, kiroHost)
  return serviceInstances[key]
}

// B: the service's request handler, after its authentication.
const kiro = createKiroHandler(kiroHost)

const service = createServer(async (req, res) => {
  res.setHeader('access-control-allow-origin', '*')
  const config = { MODEL_PROVIDER: TYPE }
  if (config.MODEL_PROVIDER === TYPE && (await kiro(req, res, config))) return
  if (req.url === `/${TYPE}/v1/chat/completions`) return openai(req, res, config)
  res.writeHead(404).end()
})

/** One of the service's converters: it needs the answer as an object, and so the adapter. */
async function openai(req, res, config) {
  let body = ''
  for await (const chunk of req.setEncoding('utf8')) body += chunk
  try {
    const { model, messages } = JSON.parse(body)
    const { content } = await adapterOf({ ...config, ...accounts[0] }).generateContent(model, { messages, max_tokens: 200_000 })
    const text = content.map((block) => block.text ?? '').join('')
    res.setHeader('content-type', 'application/json')
    res.end(JSON.stringify({ choices: [{ message: { role: 'assistant', content: text } }] }))
  } catch (error) {
    res.writeHead(error.status ?? 500, { 'content-type': 'application/json' })
    res.end(JSON.stringify(error.response?.data ?? { error: { message: error.message } }))
  }
}

service.listen(Number(process.argv[2] ?? 8081), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${service.address().port}/${TYPE}/v1/messages`)
})

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, async () => {
    service.close()
    await gateway.close({ graceMs: 4000 })
    service.closeAllConnections()
  })
}
