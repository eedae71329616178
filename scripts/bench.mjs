// npm run bench: the release server beside nginx, in the same run, against the same simulated upstream.
//
//   npm run bench                          every case, 5 rounds
//   npm run bench -- --only burst,trickle  some of: burst trickle single conversation mixed hand-over rate open many-open start size addon shapes
//   npm run bench -- --rounds 9            more rounds, steadier medians
//   npm run bench -- --quick               a tenth of the load, one round: does it work at all
//   npm run bench -- --beside PATH         another kiro-server binary in the same run: before and after
//   npm run bench -- --beside-name TEXT    what that one is called in the tables
//   npm run bench -- --publish             the run that the project shows: docs/performance.md and the chart; 3 rounds or more
//   npm run bench -- --micro               the micro-benchmarks too (cargo bench)
//   npm run bench -- --no-build --no-save
//
// Prints figures next to their targets and keeps them in bench/results/. A case that breaks is said and left out, and the
// run ends with 1 then; figures alone never do that: people judge them. Linux only: the figures are read from /proc.
import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import * as addon from '../bench/addon.mjs'
import * as shapes from '../bench/shapes.mjs'
import { burst, conversation, mixed, open, rate, single, size, trickle } from '../bench/measure.mjs'
import { handOver } from '../bench/handover.mjs'
import { House, Subject } from '../bench/processes.mjs'
import { publish, unfit } from '../bench/publish.mjs'
import { chart, judge, table } from '../bench/report.mjs'
import { installPackages, needRust, root, run, serverBinary, target } from './steps.mjs'

const { values: options } = parseArgs({
  options: {
    only: { type: 'string' },
    rounds: { type: 'string' },
    quick: { type: 'boolean', default: false },
    beside: { type: 'string' },
    'beside-name': { type: 'string' },
    publish: { type: 'boolean', default: false },
    micro: { type: 'boolean', default: false },
    'no-build': { type: 'boolean', default: false },
    'no-save': { type: 'boolean', default: false },
  },
})
const ALL = ['burst', 'trickle', 'single', 'conversation', 'mixed', 'hand-over', 'rate', 'open', 'many-open', 'start', 'size', 'addon', 'shapes']
const wanted = options.only?.split(',') ?? ALL
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

// Said before anything is built or measured: a whole run takes long.
const refused = options['no-save'] ? 'with --no-save nothing is kept' : unfit({ quick: options.quick, only: options.only, rounds })
if (options.publish && refused) fail(`can't be published: ${refused}`)
if (process.platform !== 'linux') fail('it reads /proc: Linux only')
const server = wanted.some((name) => !['addon', 'shapes'].includes(name))
if (server && spawnSync('nginx', ['-v']).error) fail('nginx is missing: install it (apt-get install nginx-light), it is the baseline')
if (!options['no-build']) {
  needRust()
  const args = ['build', '--release', '--no-default-features', '--features', 'server', '--bin', 'kiro-server']
  if (!(await run('cargo', [...args, '--example', 'load']))) fail('the build failed')
  if (wanted.includes('addon') && !(await run('cargo', ['build', '--release', '--lib']))) fail('the build of the addon failed')
}
// Built before anything is measured.
const shaped = wanted.includes('shapes') ? await shapes.build() : null
const broken = []
const javascript = ['conversation', 'addon'].some((name) => wanted.includes(name)) && (await installPackages())

const house = new House()
for (const [signal, status] of [['SIGINT', 130], ['SIGTERM', 143]]) process.on(signal, () => house.end().then(() => process.exit(status)))
const cases = {}
try {
  await measure()
} finally {
  await house.end()
}
const subjects = ['nginx', ...(options.beside ? ['beside'] : []), 'kiro-server']
const rows = [...(server ? judge(cases, 'kiro-server') : []), ...addon.judgeAddon(cases), ...shapes.judgeShapes(cases)]
const beside = options.beside && { name: options['beside-name'] ?? path.basename(options.beside), rows: judge(cases, 'beside') }
if (beside) console.log(`\nbeside: ${options.beside}\n${table(beside.rows)}`)
console.log(`\n${table(rows)}`)
const cpu = os.cpus()
console.log(`\n${cpu.length} × ${cpu[0]?.model.trim()}, load ${os.loadavg().map((load) => load.toFixed(1)).join(' ')}`)
for (const { name, error } of broken) console.error(`bench: ${name} broke: ${error}`)
if (!options['no-save']) save()
if (options.micro) await run('cargo', ['bench', '--no-default-features'])
process.exitCode = broken.length === 0 ? 0 : 1

/** Part of a run. When it breaks the others still count. */
async function part(name, work) {
  try {
    return await work()
  } catch (error) {
    console.error(`bench: ${name}: ${error.stack}`)
    broken.push({ name, error: error.message })
    return undefined
  }
}

function keep(name, who, figures) {
  const places = (cases[name] ??= {})
  ;(places[who] ??= []).push(figures)
  const text = JSON.stringify(figures, (_, value) => (typeof value === 'number' ? Number(value.toFixed(3)) : value))
  console.log(`${name} ${who} ${text}`)
}

async function measure() {
  const upstream = server || wanted.includes('addon') ? await part('simulator', () => house.simulator(binary)) : 0
  const load = {
    binary: path.join(target, 'release', 'examples', 'load'),
    face: (subject) => (['nginx', 'direct'].includes(subject.name) ? ['--raw', '--key', 'bench-access'] : []),
  }
  if (wanted.includes('addon')) await part('addon', () => measureAddon(load, upstream))
  if (wanted.includes('shapes')) await part('shapes', measureShapes)
  if (!server || upstream === undefined) return
  await part('rounds', () => measureRounds(load, upstream))
  for (const name of Object.keys(ON_FRESH)) if (wanted.includes(name)) await part(name, () => measureFresh(name, load, upstream))
  if (wanted.includes('hand-over')) await part('hand-over', () => measureHandOver(upstream))
  if (wanted.includes('start')) await part('start', () => measureStart(upstream))
  if (wanted.includes('size')) await part('size', () => programs().forEach(([name, program]) => keep('size', name, size(program))))
}

/** The server's programs: the other one first. */
function programs() {
  return [...(options.beside ? [['beside', options.beside]] : []), ['kiro-server', binary]]
}

/** What processes that serve for long are asked for, in turn. */
async function measureRounds(load, upstream) {
  if (!['burst', 'trickle', 'single', 'rate'].some((name) => wanted.includes(name))) return
  const direct = new Subject('direct', upstream, { pids: () => [] })
  const nginx = await house.nginx(upstream)
  const servers = []
  for (const [name, program] of programs().toReversed()) servers.push(await house.server(name, program, upstream))

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
  if (wanted.includes('rate')) {
    const found = await rate(load, [direct, nginx, ...servers], scale)
    for (const [subject, figures] of found) keep('rate', subject.name, figures)
  }
  for (const subject of [nginx, ...servers]) await house.stop(subject)
}

/** A case of ON_FRESH: each subject in a process of its own. */
async function measureFresh(name, load, upstream) {
  const fresh = [() => house.nginx(upstream), ...programs().map(([who, program]) => () => house.server(who, program, upstream))]
  if (name === 'conversation') {
    if (!javascript) broken.push({ name: 'undici', error: 'npm ci failed' })
    else fresh.push(() => addon.plain(house, upstream))
    if (javascript && wanted.includes('addon')) fresh.push(() => addon.handler(house, upstream, library()))
  }
  for (const start of fresh) {
    const subject = await start()
    keep(name, subject.name, await ON_FRESH[name](load, subject))
    await house.stop(subject)
  }
}

async function measureHandOver(upstream) {
  for (const [name, program] of programs()) {
    const { subject, ...figures } = await handOver((port) => house.server(name, program, port), upstream, Math.ceil(200 * scale))
    keep('hand-over', name, figures)
    await house.stop(subject)
  }
}

async function measureStart(upstream) {
  for (let n = 0; n < 5; n++) {
    for (const [name, program] of programs().toReversed()) {
      const subject = await house.server(name, program, upstream)
      keep('start', name, subject.startMs)
      await house.stop(subject)
    }
  }
}

async function measureShapes() {
  if (shaped === null) throw new Error('the build of bench/shapes failed')
  for (let round = 0; round < Math.min(rounds, 3); round++) shapes.shapes(shaped, keep)
}

/** The addon's library, by a name that Node.js loads. */
function library() {
  const file = path.join(house.folder, 'kiro-messages.node')
  if (!existsSync(file)) copyFileSync(path.join(target, 'release', 'libkiro_messages.so'), file)
  return file
}

/** The addon in node:http beside plain JavaScript. */
async function measureAddon(load, upstream) {
  if (!javascript) throw new Error('npm ci failed')
  const subjects = [await addon.handler(house, upstream, library()), await addon.plain(house, upstream)]
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
    only: options.only,
    broken,
    rows,
    beside,
    cases,
  }
  writeFileSync(`${name}.json`, `${JSON.stringify(result, null, 1)}\n`)
  writeFileSync(`${name}.svg`, chart(cases, [...subjects, 'addon', 'undici', ...shapes.SHAPES], date.slice(0, 10)))
  console.log(`kept in ${path.relative(root, name)}.json and .svg`)
  if (!options.publish) return
  const why = unfit(result)
  if (why) console.error(`bench: not published: ${why}`)
  else publish(path.basename(name))
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
