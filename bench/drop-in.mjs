// The drop-in beside kiro-server, in turn, on the same load and upstream. Ends with 1 when a bar breaks (N97).
//
//   node bench/drop-in.mjs                   release builds: cargo build --release --features server --lib --bin kiro-server --example load
//   node bench/drop-in.mjs --profile debug   what `npm run build:debug` made
//   node bench/drop-in.mjs --quick           one round of the 500 streams, with fewer events
import { copyFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { serverBinary, target } from '../scripts/steps.mjs'
import { node } from './addon.mjs'
import { burst, median, trickle } from './measure.mjs'
import { House, accounts } from './processes.mjs'

const { values } = parseArgs({
  options: { profile: { type: 'string', default: 'release' }, rounds: { type: 'string' }, quick: { type: 'boolean', default: false } },
})
const rounds = Number(values.rounds ?? (values.quick ? 1 : 5))
const binary = serverBinary(values.profile)
const house = new House()
let held = true
try {
  const upstream = await house.simulator(binary)
  const server = await house.server('kiro-server', binary, upstream)
  const library = path.join(house.folder, 'kiro-messages.node')
  copyFileSync(path.join(target, values.profile, 'libkiro_messages.so'), library)
  const store = path.join(house.folder, 'drop-in.json')
  writeFileSync(store, JSON.stringify(accounts()), { mode: 0o600 })
  const options = {
    uuid: Object.keys(accounts().accounts)[0],
    store: `file:${store}`,
    upstreamUrl: `http://127.0.0.1:${upstream}/generateAssistantResponse`,
    maxConns: 16_384,
  }
  const dropIn = await node(house, 'drop-in', ['drop-in.mjs', JSON.stringify(options)], { NAPI_RS_NATIVE_LIBRARY_PATH: library })
  const load = (more) => ({ binary: path.join(target, values.profile, 'examples', 'load'), face: () => more })
  const cases = values.quick
    ? { trickle: (subject) => trickle(load(['--events', '10']), subject) }
    : { trickle: (subject) => trickle(load([]), subject), burst: (subject) => burst(load([]), subject, 1) }
  for (const subject of [server, dropIn]) await burst(load(['--streams', '10']), subject, 0.05) // warm
  for (const [name, run] of Object.entries(cases)) {
    const figures = { 'kiro-server': [], 'drop-in': [] }
    for (let round = 0; round < rounds; round++) {
      for (const subject of round % 2 === 0 ? [server, dropIn] : [dropIn, server]) {
        const before = subject.mainCpu?.()
        const measured = await run(subject)
        const main = subject === dropIn ? subject.mainCpu() - before : 0
        const deltas = measured.cpuSeconds / (measured.cpuMicros / 1e6)
        figures[subject.name].push({ ...measured, mainMicros: (main * 1e6) / deltas })
      }
    }
    judge(name, figures)
  }
} finally {
  await house.end()
}
process.exitCode = held ? 0 : 1

function judge(name, { 'kiro-server': servers, 'drop-in': ours }) {
  const failed = ours.reduce((sum, { failed, missing }) => sum + failed + missing, 0)
  row(name, 'failed streams, missing events', failed, failed === 0, '0')
  const beside = (pick) => median(ours.map((figures, round) => pick(figures) / pick(servers[round])))
  const both = (pick, unit) => `${median(ours.map(pick)).toFixed(2)} ${unit} beside ${median(servers.map(pick)).toFixed(2)} ${unit}`
  const late = ({ firstEventMs }) => firstEventMs.p99
  const cpu = ({ cpuMicros }) => cpuMicros
  // The bars are for 500 streams; a burst of 50 only shows the floor.
  const [first, delta] = [beside(late), beside(cpu)]
  const bars = name === 'trickle'
  row(name, 'p99 of the first event', `${first.toFixed(2)} × (${both(late, 'ms')})`, !bars || first <= 3, bars ? '≤ 3 ×' : '–')
  row(name, 'main thread a delta', `${median(ours.map(({ mainMicros }) => mainMicros)).toFixed(2)} µs`, true, '–')
  row(name, 'CPU a delta', `${delta.toFixed(2)} × (${both(cpu, 'µs')})`, !bars || delta <= 2, bars ? '≤ 2 ×' : '–')
}

function row(name, what, measured, holds, bar) {
  if (!holds) held = false
  console.log(`${name}: ${what}: ${measured}, bar ${bar}${holds ? '' : ': MISSED'}`)
}
