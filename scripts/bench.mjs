// npm run bench: the release server beside nginx, in the same run, against the same simulated upstream.
//
//   npm run bench                          every case, 5 rounds
//   npm run bench -- --only burst,trickle  some of: burst trickle single conversation mixed hand-over rate open many-open start addon shapes
//   npm run bench -- --rounds 9            more rounds, steadier medians
//   npm run bench -- --quick               a tenth of the load, one round: does it work at all
//   npm run bench -- --beside PATH         another kiro-server binary in the same run: before and after
//   npm run bench -- --micro               the micro-benchmarks too (cargo bench)
//   npm run bench -- --no-build --no-save
//
// Prints figures next to their targets and keeps them in bench/results/. Always ends with 0 when it could measure: people
// judge the figures. Linux only: the figures are read from /proc.
import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import * as addon from '../bench/addon.mjs'
import * as shapes from '../bench/shapes.mjs'
import { burst, conversation, mixed, open, rate, single, trickle } from '../bench/measure.mjs'
import { handOver } from '../bench/handover.mjs'
import { House, Subject } from '../bench/processes.mjs'
import { chart, judge, table } from '../bench/report.mjs'
import { needRust, root, run, serverBinary, target } from './steps.mjs'

const { values: options } = parseArgs({
  options: {
    only: { type: 'string' },
    rounds: { type: 'string' },
    quick: { type: 'boolean', default: false },
    beside: { type: 'string' },
    micro: { type: 'boolean', default: false },
    'no-build': { type: 'boolean', default: false },
    'no-save': { type: 'boolean', default: false },
  },
})
const wanted = options.only?.split(',') ?? ['burst', 'trickle', 'single', 'conversation', 'mixed', 'hand-over', 'rate', 'open', 'many-open', 'start', 'addon', 'shapes']
const rounds = Number(options.rounds ?? (options.quick ? 1 : 5))
const scale = options.quick ? 0.1 : 1
const binary = serverBinary('release')

/** What wants a process that hasn't served yet. */
const ON_FRESH = {
  conversation: (load, subject) => conversation(load, subject, scale),
  mixed: (load, subject) => mixed(load, subject, scale),
  open: (load, subject) => open(load, subject, Math.ceil(5000 * scale)),
  // Each takes two files, and one process has all of them.
  'many-open': (load, subject) => open(load, subject, Math.min(Math.ceil(10_000 * scale), Math.floor((files() - 200) / 2))),
}

if (process.platform !== 'linux') fail('it reads /proc: Linux only')
const server = wanted.some((name) => !['addon', 'shapes'].includes(name))
if (server && spawnSync('nginx', ['-v']).error) fail('nginx is missing: install it (apt-get install nginx-light), it is the baseline')
if (!options['no-build']) {
  needRust()
  const args = ['build', '--release', '--no-default-features', '--features', 'server', '--bin', 'kiro-server']
  if (!(await run('cargo', [...args, '--example', 'load']))) fail('the build failed')
  if (wanted.includes('addon') && !(await run('cargo', ['build', '--release', '--lib']))) fail('the build of the addon failed')
}
const library = wanted.includes('shapes') ? await shapes.build() : null
if (wanted.includes('shapes') && library === null) fail('the build of bench/shapes failed')

const house = new House()
for (const [signal, status] of [['SIGINT', 130], ['SIGTERM', 143]]) process.on(signal, () => house.end().then(() => process.exit(status)))
let cases
try {
  cases = await measure()
} finally {
  await house.end()
}
const subjects = ['nginx', ...(options.beside ? ['beside'] : []), 'kiro-server']
const rows = [...(server ? judge(cases, 'kiro-server') : []), ...addon.judgeAddon(cases), ...shapes.judgeShapes(cases)]
if (options.beside) console.log(`\nbeside: ${options.beside}\n${table(judge(cases, 'beside'))}`)
console.log(`\n${table(rows)}`)
const cpu = os.cpus()
console.log(`\n${cpu.length} × ${cpu[0]?.model.trim()}, load ${os.loadavg().map((load) => load.toFixed(1)).join(' ')}`)
if (!options['no-save']) save()
if (options.micro) await run('cargo', ['bench', '--no-default-features'])

async function measure() {
  const upstream = server || wanted.includes('addon') ? await house.simulator(binary) : 0
  const load = {
    binary: path.join(target, 'release', 'examples', 'load'),
    face: (subject) => (['nginx', 'direct'].includes(subject.name) ? ['--raw', '--key', 'bench-access'] : []),
  }
  const cases = {}
  const keep = (name, who, figures) => {
    const places = (cases[name] ??= {})
    ;(places[who] ??= []).push(figures)
    const text = JSON.stringify(figures, (_, value) => (typeof value === 'number' ? Number(value.toFixed(3)) : value))
    console.log(`${name} ${who} ${text}`)
  }
  if (wanted.includes('addon')) await measureAddon(load, upstream, keep)
  if (wanted.includes('shapes')) for (let round = 0; round < Math.min(rounds, 3); round++) shapes.shapes(library, keep)
  if (!server) return cases
  const direct = new Subject('direct', upstream, { pids: () => [] })
  const nginx = await house.nginx(upstream)
  const servers = [await house.server('kiro-server', binary, upstream)]
  if (options.beside) servers.push(await house.server('beside', options.beside, upstream))

  for (const subject of [nginx, ...servers]) await burst(load, subject, 0.05) // warm
  for (let round = 0; round < rounds; round++) {
    // The first subject has the cooler machine, so the order alternates from round to round.
    const inTurn = round % 2 === 0 ? [nginx, ...servers] : [...servers, nginx]
    if (wanted.includes('burst')) {
      for (const subject of inTurn) keep('burst', subject.name, await burst(load, subject, scale))
    }
    if (wanted.includes('trickle')) {
      for (const subject of inTurn) keep('trickle', subject.name, await trickle(load, subject))
    }
    if (wanted.includes('single')) {
      for (const subject of [direct, ...inTurn]) keep('single', subject.name, await single(load, subject, scale))
    }
  }
  // Once, and not on a machine that other rounds have warmed: it is one long sweep.
  if (wanted.includes('rate')) for (const subject of [direct, nginx, ...servers]) keep('rate', subject.name, await rate(load, subject, scale))
  for (const [name, run] of Object.entries(ON_FRESH)) {
    if (!wanted.includes(name)) continue
    const fresh = [
      () => house.nginx(upstream),
      ...(options.beside ? [() => house.server('beside', options.beside, upstream)] : []),
      () => house.server('kiro-server', binary, upstream),
    ]
    for (const start of fresh) {
      const subject = await start()
      keep(name, subject.name, await run(load, subject))
      await house.stop(subject)
    }
  }
  if (wanted.includes('hand-over')) {
    for (const [name, program] of [['beside', options.beside], ['kiro-server', binary]]) {
      if (!program) continue
      const { subject, ...figures } = await handOver((port) => house.server(name, program, port), upstream, Math.ceil(200 * scale))
      keep('hand-over', name, figures)
      await house.stop(subject)
    }
  }
  if (wanted.includes('start')) {
    for (let n = 0; n < 5; n++) {
      for (const [name, program] of [['kiro-server', binary], ['beside', options.beside]]) {
        if (!program) continue
        const subject = await house.server(name, program, upstream)
        keep('start', name, subject.startMs)
        await house.stop(subject)
      }
    }
  }
  return cases
}

/** The addon in node:http beside plain JavaScript. */
async function measureAddon(load, upstream, keep) {
  const binary = path.join(house.folder, 'kiro-messages.node')
  copyFileSync(path.join(target, 'release', 'libkiro_messages.so'), binary)
  const subjects = await addon.start(house, upstream, binary)
  const messages = { ...load, face: () => [] }
  for (const subject of subjects) await addon.addonBurst(messages, subject, 0.1) // warm
  for (let round = 0; round < rounds; round++) {
    for (const subject of round % 2 === 0 ? subjects : subjects.toReversed()) {
      keep('addon-burst', subject.name, await addon.addonBurst(messages, subject, scale))
      keep('addon-trickle', subject.name, await addon.addonTrickle(messages, subject, scale))
    }
  }
  for (const subject of subjects) await house.stop(subject)
}

function save() {
  const date = new Date().toISOString()
  const folder = path.join(root, 'bench', 'results')
  mkdirSync(folder, { recursive: true })
  const name = path.join(folder, date.slice(0, 16).replace(':', ''))
  const machine = {
    cpu: os.cpus()[0]?.model.trim(),
    cores: os.availableParallelism(),
    memory: os.totalmem(),
    kernel: os.release(),
    load: os.loadavg(),
  }
  const result = {
    date,
    commit: commit(),
    version: JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')).version,
    machine,
    rounds,
    quick: options.quick,
    rows,
    cases,
  }
  writeFileSync(`${name}.json`, `${JSON.stringify(result, null, 1)}\n`)
  writeFileSync(`${name}.svg`, chart(cases, [...subjects, 'addon', 'undici', ...shapes.SHAPES], date.slice(0, 10)))
  console.log(`kept in ${path.relative(root, name)}.json and .svg`)
}

/** Most files that a process may have open here. */
function files() {
  const [, most] = /^Max open files +\S+ +(\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))
  return most === 'unlimited' ? Infinity : Number(most)
}

/** None outside of a checkout: from a tarball, say. */
function commit() {
  try {
    return execFileSync('git', ['rev-parse', 'HEAD'], { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
  } catch {
    return null
  }
}

function fail(why) {
  console.error(`bench: ${why}`)
  process.exit(1)
}
