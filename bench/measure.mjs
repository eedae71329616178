// What is measured: each case gives one row of figures per subject and round.
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { gzipSync } from 'node:zlib'

/** The load generator's answer, with what the subject spent meanwhile. */
export async function burst(load, subject, scale) {
  return figures(await underLoad(load, subject, ['burst', '--rounds', String(Math.ceil(40 * scale))]))
}

export async function trickle(load, subject) {
  return figures(await underLoad(load, subject, ['trickle']))
}

/** Time to first event of one stream at a time. */
export async function single(load, subject, scale) {
  const { answer } = await underLoad(load, subject, ['single', '--rounds', String(Math.ceil(300 * scale))])
  return { failed: answer.failed, firstEventMs: answer.first_event_ms }
}

/** Memory of streams that stay open. `subject` should be fresh: it may keep memory that it once needed. */
export async function open(load, subject, streams) {
  const before = subject.rss()
  let opened
  const { answer } = await underLoad(load, subject, ['open', '--streams', String(streams)], () => {
    // Some events later, when every stream has settled.
    setTimeout(() => (opened = subject.rss()), 4000)
  })
  return {
    failed: answer.failed,
    failures: answer.failures,
    streams,
    rssBefore: before,
    rssOpen: opened ?? null,
    bytesAStream: opened === undefined ? null : Math.round((opened - before) / streams),
  }
}

/**
 * Requests of 1 MB with 40 tools, all at once: CPU, memory while the bodies are held, while the answers stream, and ten
 * seconds after. `subject` should be fresh. The same comes three times more, each above what was resident before it: of
 * the first a part is the program's own, once (code, threads and their heaps).
 */
export async function conversation(load, subject, scale) {
  const streams = Math.ceil(100 * scale)
  const idle = subject.rss()
  const first = await requests(load, subject, streams)
  await new Promise((resolve) => setTimeout(resolve, 10_000))
  const keptRss = subject.rss() - idle
  const later = []
  for (let round = 0; round < 3; round++) {
    later.push(await requests(load, subject, streams))
    await new Promise((resolve) => setTimeout(resolve, 5000))
  }
  const all = [first, ...later]
  const failures = Object.assign({}, ...all.map(({ answer }) => answer.failures))
  return {
    failed: sum(all, ({ answer }) => answer.failed),
    failures,
    missing: sum(all, ({ answer }) => answer.expected - answer.deltas),
    cpuMillis: (sum(all, ({ cpu }) => cpu) * 1e3) / (all.length * streams),
    firstEventMs: { p50: median(all.map((load) => load.answer.first_event_ms.p50)), p99: median(all.map((load) => load.answer.first_event_ms.p99)) },
    held: median(later.map((load) => load.held)),
    heldFresh: first.held,
    streamingRss: median(later.map((load) => load.streaming)),
    streamingFresh: first.streaming,
    keptRss,
  }
}

/** So many of them at once. The streams last five seconds; what they hold is looked at in the third, when all has settled. */
async function requests(load, subject, streams) {
  const before = subject.rss()
  let streaming
  const { answer, cpu, peak } = await underLoad(load, subject, ['conversation', '--streams', String(streams), '--gap-ms', '1000'], () => {
    setTimeout(() => (streaming = (subject.rss() - before) / streams), 2500)
  })
  return { answer, cpu, held: (peak - before) / (streams * MEGABYTE), streaming }
}

/** How late the events of 100 slow streams come while 50 requests of 1 MB a second do. */
export async function mixed(load, subject, scale) {
  const seconds = Math.max(1, 4 * scale)
  const slow = underLoad(load, subject, ['trickle', '--streams', '100', '--events', String(Math.ceil(seconds * 60))])
  await new Promise((resolve) => setTimeout(resolve, 500))
  const many = ['--streams', String(Math.ceil(50 * seconds)), '--ramp-ms', String(1000 * seconds), '--first-ms', '0', '--gap-ms', '0']
  const large = await underLoad(load, subject, ['conversation', ...many])
  const { answer } = await slow
  const failures = { ...answer.failures, ...large.answer.failures }
  return { failed: answer.failed + large.answer.failed, failures, lateMs: answer.late_ms, firstEventMs: large.answer.first_event_ms }
}

/** One-event streams, so many at a time: requests a second and the time to the first event of each number, every subject in turn. */
export async function rate(load, subjects, scale) {
  const figures = new Map(subjects.map((subject) => [subject, { failed: 0, at: {} }]))
  for (const clients of [1, 2, 4, 8, 16, 32, 64, 128, 256]) {
    const rounds = String(Math.ceil((Math.max(4000, 40 * clients) * scale) / clients))
    for (const [subject, found] of figures) {
      const { answer, cpu } = await underLoad(load, subject, ['single', '--streams', String(clients), '--rounds', rounds])
      found.failed += answer.failed
      found.at[clients] = { firstEventMs: answer.first_event_ms, perSecond: answer.streams_per_second, cpuMicros: (cpu * 1e6) / answer.streams }
    }
  }
  return figures
}

/**
 * The image holds the server's program and an empty folder, on no base (deploy/Dockerfile.release): its layer is that file.
 * The released one is linked with musl and has traces in it, so its size is not to the byte this build's.
 */
export function size(binary) {
  const program = readFileSync(binary)
  return { bytes: program.length, packed: gzipSync(program).length }
}

const MEGABYTE = 1 << 20

function figures({ answer, cpu, peak }) {
  return {
    failed: answer.failed,
    failures: answer.failures,
    missing: answer.expected - answer.deltas,
    cpuMicros: (cpu * 1e6) / answer.deltas,
    cpuSeconds: cpu,
    streamsPerSecond: answer.streams_per_second,
    firstEventMs: answer.first_event_ms,
    peakRss: peak,
  }
}

/** `load` gives the arguments that lead to a subject, and the program itself. */
async function underLoad(load, subject, args, onOpen = () => {}) {
  const child = spawn(load.binary, [...args, '--to', `127.0.0.1:${subject.port}`, ...load.face(subject)], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let peak = 0
  const watch = setInterval(() => (peak = Math.max(peak, subject.rss())), 100)
  const cpuBefore = subject.cpu()
  let [out, said] = ['', '']
  child.stdout.on('data', (chunk) => (out += chunk))
  child.stderr.on('data', (chunk) => {
    said += chunk
    if (String(chunk).includes('all open')) onOpen()
  })
  await new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', resolve)
  })
  clearInterval(watch)
  const cpu = subject.cpu() - cpuBefore
  if (out === '') throw new Error(`the load generator said: ${said}`)
  return { answer: JSON.parse(out), cpu, peak }
}

/** What `of` gives of each, together. */
export function sum(items, of) {
  return items.reduce((total, item) => total + of(item), 0)
}

export function median(numbers) {
  const sorted = numbers.filter((n) => Number.isFinite(n)).sort((a, b) => a - b)
  if (sorted.length === 0) return null
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}
