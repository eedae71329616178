// One row of the suite: what is done to whom, and the bars that hold for every fault (docs/reliability.md).
import { writeFileSync } from 'node:fs'
import { Stage, eventually, login, numberOf, sleep } from './kit.mjs'

/** How long tokens and counts may take to be in the store once it takes writes. */
const SAVED_WITHIN = 10_000
const SECRET = /sim-ok\.\d|login-\d+|start-\d|secret-of-a-client|arn:aws/

/** A fault that can't be made on this machine. */
export class Skip extends Error {}

export class Run {
  requests = 0
  designed = 0
  failed = 0
  lost = 0
  /** Uses: streams that began, whatever became of them then. */
  uses = 0
  recoveredMs = 0
  notes = []
  problems = []
  #endedAt
  #samples = new Map()

  constructor(row, { binary, size }) {
    Object.assign(this, { row, size })
    this.stage = new Stage(binary)
  }

  /** A store, an upstream and servers on them. `proxied`: they reach it through a proxy that can go wrong. */
  async place({ accounts = 4, servers = 1, life, worlds, file = false, args, proxied = false, ...server } = {}) {
    const upstream = await this.stage.upstream({ life, worlds })
    const store = file ? this.stage.file({ accounts, life }) : await this.stage.redis({ accounts, life, args })
    const proxy = proxied ? await this.stage.proxy(upstream.port) : undefined
    const all = []
    for (let n = 0; n < servers; n++) all.push(await this.stage.server({ store, upstream, upstreamPort: proxy?.port, ...server }))
    return { upstream, store, proxy, servers: all, server: all[0] }
  }

  /** A bar on how quickly something must be done. The short form runs beside other tests and on debug builds: three times that. */
  bar(ms) {
    return this.size === 'short' ? 3 * ms : ms
  }

  /** Of a figure its part for this size of run. */
  of({ short, normal, long = normal }) {
    return { short: short ?? normal, normal, long }[this.size]
  }

  expect(is, otherwise) {
    if (!is) this.problems.push(otherwise)
    return is
  }

  note(text) {
    this.notes.push(text)
  }

  /** The fault is over now: from here on the time to recover counts. */
  over() {
    this.#endedAt = performance.now()
  }

  /**
   * Takes a load's outcomes in. What fails must say a sentence that `says` knows, and then failed by design; an answer is
   * lost unless `breaks` knows how it broke, as where the process was killed that gave it.
   */
  take(outcomes, { says, breaks } = {}) {
    for (const outcome of outcomes) {
      this.requests += 1
      if (outcome.ok || /"type":"content_block_delta"/.test(outcome.text ?? '')) this.uses += 1
      if (outcome.ok) continue
      if (this.#endedAt !== undefined && outcome.began > this.#endedAt) {
        this.recoveredMs = Math.max(this.recoveredMs, outcome.at - this.#endedAt)
      }
      const { says: told, lost } = outcome
      if (told !== undefined && says?.test(told)) this.designed += 1
      else if (told === undefined && breaks?.test(lost)) this.designed += 1
      else {
        this[told === undefined ? 'lost' : 'failed'] += 1
        const sample = `${outcome.status ?? 'no status'}: ${told ?? `lost: ${lost}`}`
        this.#samples.set(sample, (this.#samples.get(sample) ?? 0) + 1)
      }
    }
    return outcomes
  }

  /** Fails when recovering took longer. */
  within(ms) {
    const most = this.bar(ms)
    this.expect(this.recoveredMs <= most, `it took ${Math.round(this.recoveredMs)} ms to recover, over ${most}`)
  }

  /** No account was marked for a fault that isn't its own. */
  async unmarked(store) {
    const marked = (await store.accounts()).filter(({ record }) => record.isHealthy !== true || record.lastErrorMessage)
    this.expect(marked.length === 0, `${marked.length} accounts are marked: ${JSON.stringify(marked[0]?.record)}`)
  }

  /**
   * The bars of every fault: no process ended, no login lost, no dead refresh but `dead`, no count lost. `counted` are the
   * uses that must be in the store, by default all streams that began; `missing` may be missing.
   */
  async whole({ store, upstream, dead = 0, counted = this.uses, missing = 0, lostLogins = [], more = 0 }) {
    for (const { process } of this.stage.servers) {
      this.expect(process.ended === null || process.wanted, `${process.name} ended: ${JSON.stringify(process.ended)}\n${process.tail(5)}`)
      const panic = process.lines.find((line) => line.includes('panicked'))
      this.expect(!panic, `it panicked: ${panic}`)
      const secret = process.lines.find((line) => SECRET.test(line))
      this.expect(!secret, `a secret is in the log: ${secret?.slice(0, 300)}`)
    }
    const wrongLogins = async () => {
      const [accounts, theirs] = await Promise.all([store.accounts(), upstream.accounts()])
      const works = ({ id }) => theirs[login(numberOf(id))]?.refresh_token ?? login(numberOf(id))
      return accounts
        .filter((account) => !lostLogins.includes(numberOf(account.id)) && account.token?.refreshToken !== works(account))
        .map((account) => `account ${numberOf(account.id)} has ${account.token?.refreshToken}, ${works(account)} works`)
    }
    const began = performance.now()
    const right = await eventually(async () => (await wrongLogins().catch((error) => [String(error)])).length === 0, SAVED_WITHIN)
    this.savedMs = performance.now() - began
    if (!right) {
      const wrong = await wrongLogins().catch((error) => [String(error)])
      // A refresh may have come between the two looks at it.
      this.expect(wrong.length === 0, `${wrong.length} logins are lost: ${wrong.slice(0, 3).join('; ')}`)
    }
    const { dead: deadCalls } = await upstream.refreshes()
    this.expect(deadCalls <= dead, `${deadCalls} refresh calls with a token that was used up`)
    if (counted === null) return
    const uncertain = this.stage.servers.reduce((sum, server) => sum + server.uncertain(), 0)
    const uses = async () => (await store.accounts()).reduce((sum, { record }) => sum + Number(record.usageCount ?? 0), 0)
    const fits = (there) => there <= counted + more && there >= counted - missing - uncertain
    if (!(await eventually(async () => fits(await uses().catch(() => -1)), SAVED_WITHIN))) {
      const there = await uses().catch((error) => String(error))
      this.expect(false, `the store counts ${there} uses of ${counted} (${uncertain} uncertain, ${missing} may be missing)`)
    }
  }

  async run() {
    const began = performance.now()
    try {
      await this.row.run(this)
    } catch (error) {
      if (error instanceof Skip) this.skipped = error.message
      else this.problems.push(error.stack ?? String(error))
    }
    const most = [...this.#samples].sort(([, a], [, b]) => b - a).slice(0, 6)
    this.problems = [...most.map(([sample, times]) => `${times} × ${sample}`), ...new Set(this.problems)].slice(0, 12)
    if (this.problems.length > 0 && process.env.FAULTS_KEEP) for (const { process: one } of this.stage.servers) writeFileSync(`${process.env.FAULTS_KEEP}/${one.name}.log`, one.lines.join('\n'))
    if (this.problems.length > 0) this.logs = this.stage.servers.map(({ process }) => `${process.name}:\n${process.tail()}`).join('\n')
    this.problems.push(...(await this.stage.end()))
    this.seconds = (performance.now() - began) / 1000
    return this
  }
}

export { sleep }
