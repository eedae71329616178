// The service with both drop-in points on a gateway of their own, on accounts in Redis.
import { createKiroAdapter, createKiroHandler } from 'kiro-messages/aiclient'
import { PoolManager, service } from './host.mjs'
import { gateway, redis, redisAccounts, simulator, wholeFile } from './stack.mjs'

/** The simulated Kiro and the Redis of one test file, and `stage`: dropIn() on both. */
export async function dropInFile() {
  const file = wholeFile()
  const sim = await simulator(file)
  const server = await redis(file)
  return { sim, server, stage: (t, tokens, how) => dropIn(t, sim, server, tokens, how) }
}

/**
 * `lends` is added to what the service lends; `others` are its adapters for other providers. Without tokens the pool is
 * empty at the start, and `record` is an account to be added.
 */
async function dropIn(t, sim, server, tokens, { options, config, lends, others } = {}) {
  const pool = await redisAccounts(t, server, ...tokens)
  const [first] = pool.ids
  const record = await pool.account(first)
  if (tokens.length === 0) await pool.remove(first)
  const gate = await gateway(t, sim, pool, { accountCacheTtlMs: 200, ...options })
  const records = tokens.length === 0 ? [] : await Promise.all(pool.ids.map((id) => pool.account(id)))
  const stage = { pool, gate, record, manager: new PoolManager(records, pool), generated: [], instances: {} }
  stage.lent = {
    gateway: gate,
    getPoolManager: () => stage.manager,
    getServiceInstances: () => stage.instances,
    onContentGenerated: (config) => stage.generated.push(config),
    getApiService: (config) => stage.host.getApiService(config),
    ...lends,
  }
  stage.host = await service(t, {
    manager: () => stage.manager,
    adapterOf: (config) => createKiroAdapter(config, stage.lent),
    kiro: createKiroHandler(stage.lent),
    config,
    others,
  })
  return stage
}
