// Point B in a service around it: CORS, a configuration for each request, a pool manager, a hook. What the real one does
// beside these (log lines, plugins, its UI) is its own.
import { createServer } from 'node:http'
import { configure, createKiroHandler } from 'kiro-messages/aiclient'
import { report } from './subject.mjs'

const { uuid, ...options } = JSON.parse(process.argv[2])
const account = { uuid, isHealthy: true, usageCount: 0 }
const manager = {
  providerPools: { 'claude-kiro-oauth': [account] },
  markProviderHealthy: () => (account.usageCount += 1),
}
configure({ env: {}, ...options })
const kiro = createKiroHandler({ getPoolManager: () => manager, onContentGenerated: () => {} })
const server = createServer(async (req, res) => {
  res.setHeader('Access-Control-Allow-Origin', '*')
  res.setHeader('Access-Control-Allow-Methods', 'GET, POST, PUT, DELETE, OPTIONS')
  res.setHeader('Access-Control-Allow-Headers', 'Content-Type, Authorization, x-goog-api-key, Model-Provider')
  if (await kiro(req, res, { MODEL_PROVIDER: 'claude-kiro-oauth', PROMPT_LOG_MODE: 'none' })) return
  res.writeHead(404).end()
})
server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 }, () => report({ port: server.address().port }))
