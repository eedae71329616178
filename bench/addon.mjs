// The addon in node:http beside a plain JavaScript implementation (bench/addon/undici.mjs), each in a process of its own,
// on the same load in the same run.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { Subject, accounts } from './processes.mjs'
import { burst, median, trickle } from './measure.mjs'

const here = path.join(import.meta.dirname, 'addon')

/** A measured Node.js process: what its main thread spends is known apart. */
class NodeSubject extends Subject {
  /** Time on a CPU so far, in seconds, of the thread that runs JavaScript. */
  mainCpu() {
    const { pid } = this.child
    return Number(readFileSync(`/proc/${pid}/task/${pid}/schedstat`, 'utf8').split(' ')[0]) / 1e9
  }

  async ask(what) {
    this.child.send(what)
    const [answer] = await once(this.child, 'message')
    return answer
  }
}

/** The addon's handler. `binary` is its release build. */
export function handler(house, upstreamPort, binary) {
  const store = path.join(house.folder, 'addon.json')
  writeFileSync(store, JSON.stringify(accounts()), { mode: 0o600 })
  const upstream = `http://127.0.0.1:${upstreamPort}`
  const options = { store: `file:${store}`, upstreamUrl: `${upstream}/generateAssistantResponse`, maxConns: 16_384 }
  return node(house, 'addon', ['handler.mjs', JSON.stringify(options)], { NAPI_RS_NATIVE_LIBRARY_PATH: binary })
}

/** The gateway in plain JavaScript. */
export function plain(house, upstreamPort) {
  return node(house, 'undici', ['undici.mjs', `http://127.0.0.1:${upstreamPort}`, 'bench-access'])
}

/** A Node.js process of bench/addon. */
export async function node(house, name, [script, ...args], env = {}) {
  const child = spawn(process.execPath, [path.join(here, script), ...args], {
    env: { PATH: process.env.PATH, ...env },
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  house.adopt(child, name)
  const [{ port }] = await Promise.race([once(child, 'message'), child.ended.then(() => [{}])])
  return new NodeSubject(name, port, { child })
}

/** One round of one case: what `measure` gives, with the main thread's share and how late the event loop was. */
async function round(measure, load, subject, scale) {
  await subject.ask('begin')
  const before = subject.mainCpu()
  const figures = await measure(load, subject, scale)
  const main = subject.mainCpu() - before
  const { loopDelayMs } = await subject.ask('end')
  const deltas = figures.cpuSeconds / (figures.cpuMicros / 1e6)
  return { ...figures, mainMicros: (main * 1e6) / deltas, loopDelayMs }
}

export const addonBurst = (load, subject, scale) => round(burst, load, subject, scale)
export const addonTrickle = (load, subject, scale) => round(trickle, load, subject, scale)

/** Rows as report.mjs has them. */
export function judgeAddon(cases) {
  const rows = []
  const row = (what, target, measured, holds) => rows.push({ what, target, measured, holds })
  const of = (name, who, pick) => median((cases[name]?.[who] ?? []).map(pick))
  const ratio = (name, pick) =>
    median((cases[name]?.undici ?? []).map((theirs, round) => pick(theirs) / pick(cases[name].addon[round])))
  const us = (value) => `${value.toFixed(2)} µs`
  for (const [name, label, bar] of [
    ['addon-burst', 'in bursts of 20', 0.6],
    ['addon-trickle', 'singly', 3],
  ]) {
    if (!cases[name]?.addon) continue
    const main = of(name, 'addon', (f) => f.mainMicros)
    row(`addon: main thread a delta, ${label}`, `≤ ${bar} µs`, `${us(main)} (undici ${us(of(name, 'undici', (f) => f.mainMicros))})`, main <= bar)
    const times = ratio(name, (f) => f.cpuMicros)
    const cpu = `${us(of(name, 'addon', (f) => f.cpuMicros))} (undici ${us(of(name, 'undici', (f) => f.cpuMicros))})`
    row(`addon: CPU a delta, ${label}`, '≥ 10 × less than undici', `${times.toFixed(1)} × less, ${cpu}`, times >= 10)
    row(`addon: main thread beside undici, ${label}`, '–', `${ratio(name, (f) => f.mainMicros).toFixed(1)} × less`)
    // nginx only passes bytes on: a lower bound for a program that reads and writes each event.
    const floor = median((cases[name.replace('addon-', '')]?.nginx ?? []).map((f) => f.cpuMicros))
    if (floor === null) continue
    const [ours, theirs] = ['addon', 'undici'].map((who) => of(name, who, (f) => f.cpuMicros) / floor)
    row(`addon: CPU beside nginx, ${label}`, '–', `${ours.toFixed(1)} × (undici ${theirs.toFixed(1)} ×)`)
  }
  if (cases['addon-trickle']?.addon) {
    const late = of('addon-trickle', 'addon', (f) => f.loopDelayMs.p99)
    const theirs = of('addon-trickle', 'undici', (f) => f.loopDelayMs.p99)
    row('addon: event loop delay p99, 500 streams', '≤ 5 ms', `${late.toFixed(2)} ms (undici ${theirs.toFixed(2)} ms)`, late <= 5)
  }
  for (const name of ['addon-burst', 'addon-trickle']) {
    const failed = (cases[name]?.addon ?? []).reduce((sum, f) => sum + f.failed + f.missing, 0)
    if (cases[name]?.addon) row(`${name}: failed streams, missing events`, '0', `${failed}`, failed === 0)
  }
  return rows
}
