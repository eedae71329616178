// What is measured: each case gives one row of figures per subject and round.
import { spawn } from 'node:child_process'

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
export async function open(load, subject, scale) {
  const streams = Math.ceil(5000 * scale)
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

export function median(numbers) {
  const sorted = numbers.filter((n) => Number.isFinite(n)).sort((a, b) => a - b)
  if (sorted.length === 0) return null
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}
