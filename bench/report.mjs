// Figures next to their targets (docs/performance.md): as a table, and as a chart.
import { median } from './measure.mjs'

/**
 * One row a target: what it is, the bar, what was measured, whether it holds.
 * Ratios are taken round by round, where both ran side by side, and then their median.
 */
export function judge(cases, subject) {
  const rows = []
  const values = (name, who, of) => (cases[name]?.[who] ?? []).map(of)
  const ratio = (name, of) => {
    const ours = values(name, subject, of)
    const theirs = values(name, 'nginx', of)
    return median(ours.map((value, round) => value / theirs[round]))
  }
  const row = (what, target, measured, holds) => rows.push({ what, target, measured, holds })

  if (cases.burst?.[subject]) {
    const cpu = median(values('burst', subject, (f) => f.cpuMicros))
    const nginx = median(values('burst', 'nginx', (f) => f.cpuMicros))
    const times = ratio('burst', (f) => f.cpuMicros)
    const text = `${us(cpu)}, ${x(times)} nginx (${us(nginx)})`
    row('burst: CPU a delta', '≤ 1.0 µs and ≤ 1.5 × nginx', text, cpu <= 1 && times <= 1.5)
    const speed = median(values('burst', subject, (f) => f.streamsPerSecond))
    const nginxSpeed = median(values('burst', 'nginx', (f) => f.streamsPerSecond))
    row('burst: streams a second', '–', `${Math.round(speed)} (nginx ${Math.round(nginxSpeed)})`)
  }
  if (cases.trickle?.[subject]) {
    const cpu = median(values('trickle', subject, (f) => f.cpuMicros))
    const nginx = median(values('trickle', 'nginx', (f) => f.cpuMicros))
    const times = ratio('trickle', (f) => f.cpuMicros)
    row('trickle: CPU a delta', '≤ 1.06 × nginx', `${us(cpu)}, ${x(times)} nginx (${us(nginx)})`, times <= 1.06)
    const p99 = (f) => f.firstEventMs.p99
    const [ours, theirs] = [median(values('trickle', subject, p99)), median(values('trickle', 'nginx', p99))]
    const first = ratio('trickle', p99)
    row('trickle: p99 first event', '≤ 1.15 × nginx', `${ms(ours)}, ${x(first)} nginx (${ms(theirs)})`, first <= 1.15)
    const peak = median(values('trickle', subject, (f) => f.peakRss))
    const nginxPeak = median(values('trickle', 'nginx', (f) => f.peakRss))
    row('trickle: memory of the process', '–', `${mib(peak)} (nginx ${mib(nginxPeak)})`)
  }
  if (cases.single?.[subject]) {
    const p50 = (f) => f.firstEventMs.p50
    const direct = values('single', 'direct', p50)
    const added = median(values('single', subject, p50).map((value, round) => value - direct[round]))
    const nginx = median(values('single', 'nginx', p50).map((value, round) => value - direct[round]))
    row('added time to first event', '≤ 0.5 ms', `${ms(added)} (nginx ${ms(nginx)})`, added <= 0.5)
  }
  if (cases.conversation?.[subject]) {
    const of = (who, pick) => median(values('conversation', who, pick))
    const others = ['nginx', 'addon', 'undici'].filter((who) => cases.conversation[who])
    const beside = (pick, as) => `${as(of(subject, pick))} (${others.map((who) => `${who} ${as(of(who, pick))}`).join(', ')})`
    const cpu = ratio('conversation', (f) => f.cpuMillis)
    row('1 MB, 40 tools: CPU a request', '≤ 1.4 × nginx', `${x(cpu)} nginx, ${beside((f) => f.cpuMillis, ms)}`, cpu <= 1.4)
    row('1 MB, 100 at once: p99 first event', '–', beside((f) => f.firstEventMs.p99, ms))
    const held = of(subject, (f) => f.held)
    row('1 MB, 100 at once: memory held', '≤ 1.25 × the bodies', beside((f) => f.held, x), held <= 1.25)
    row('… by a server that has served nothing before', '–', beside((f) => f.heldFresh, x))
    const streaming = of(subject, (f) => f.streamingRss)
    row('… a stream, after the commit', '≤ 60 KiB', beside((f) => f.streamingRss, kib), streaming !== null && streaming <= 60 * 1024)
    row('… of a server that has served nothing before', '–', beside((f) => f.streamingFresh, kib))
    const kept = of(subject, (f) => f.keptRss)
    row('… ten seconds after', '≤ before + 25 MB', beside((f) => f.keptRss, mib), kept <= 25e6)
  }
  if (cases.mixed?.[subject]) {
    const late = (who) => median(values('mixed', who, (f) => f.lateMs.p99))
    row('slow streams beside 50 × 1 MB a second: p99 late', '≤ 5 ms', `${ms(late(subject))} (nginx ${ms(late('nginx'))})`, late(subject) <= 5)
  }
  if (cases['hand-over']?.[subject]) {
    const [{ largeMs, smallMs }] = cases['hand-over'][subject]
    const text = `${ms(largeMs.p50)}, p99 ${ms(largeMs.p99)} (1 KB: ${ms(smallMs.p50)})`
    row('1 MB: from its last byte to the first one upstream', '≤ 1.5 ms', text, largeMs.p50 <= 1.5)
  }
  if (cases.rate?.[subject] && cases.rate.direct) {
    const [{ at }] = cases.rate[subject]
    const [{ at: bare }] = cases.rate.direct
    const added = (of, clients, share) => of[clients].firstEventMs[share] - bare[clients].firstEventMs[share]
    const most = (of, limit) =>
      Math.max(0, ...Object.keys(of).filter((clients) => added(of, clients, 'p99') < limit).map((clients) => of[clients].perSecond))
    const [nginx] = cases.rate.nginx ?? []
    const beside = (say) => (nginx === undefined ? say(at) : `${say(at)} (nginx ${say(nginx.at)})`)
    const both = (clients) => beside((of) => `p50 ${ms(added(of, clients, 'p50'))}, p99 ${ms(added(of, clients, 'p99'))}`)
    row('added, one request at a time', 'p99 ≤ 0.25 ms', both(1), added(at, 1, 'p99') <= 0.25)
    row('added, 64 at a time', '–', both(64))
    for (const limit of [1, 5, 10]) {
      const holds = limit === 1 ? most(at, 1) >= 10_000 : undefined
      const target = limit === 1 ? '≥ 10,000' : '–'
      row(`requests a second, p99 added below ${limit} ms`, target, beside((of) => `${Math.round(most(of, limit))}`), holds)
    }
    row('CPU a request of one event', '–', beside((of) => us(of[64].cpuMicros)))
  }
  for (const name of ['open', 'many-open']) {
    if (!cases[name]?.[subject]) continue
    const bytes = median(values(name, subject, (f) => f.bytesAStream))
    const nginx = median(values(name, 'nginx', (f) => f.bytesAStream))
    const streams = cases[name][subject][0].streams
    const beside = nginx === null ? '' : ` (nginx ${kib(nginx)})`
    const bar = name === 'open' ? 32 : 24
    row(`memory an open stream, ${streams} open`, `≤ ${bar} KiB`, `${kib(bytes)}${beside}`, bytes !== null && bytes <= bar * 1024)
  }
  if (cases.start?.[subject]) {
    const start = median(cases.start[subject])
    row('start to listening', '≤ 100 ms', ms(start), start <= 100)
  }
  if (cases.size?.[subject]) {
    const [{ bytes, packed }] = cases.size[subject]
    row('the image: its one file, and that as a registry sends it', '–', `${mib(bytes)}, ${mib(packed)}`)
  }
  const rounds = Object.values(cases).flatMap((byWho) => byWho[subject] ?? [])
  const failed = rounds.reduce((total, f) => total + (f.failed ?? 0), 0)
  const missing = rounds.reduce((total, f) => total + (f.missing ?? 0), 0)
  row('failed streams, missing events', '0', `${failed}, ${missing}`, failed === 0 && missing === 0)
  return rows
}

export function table(rows) {
  const cells = rows.map((row) => [
    row.holds === undefined ? ' ' : row.holds ? '✓' : '✗',
    row.what,
    row.target,
    row.measured,
  ])
  const lines = [['', 'what', 'target', 'measured'], ...cells]
  const widths = [0, 1, 2, 3].map((column) => Math.max(...lines.map((line) => line[column].length)))
  return lines.map((line) => line.map((cell, column) => cell.padEnd(widths[column])).join('  ').trimEnd()).join('\n')
}

/** Bars side by side, one group a figure, each group in its own unit. */
export function chart(cases, subjects, date) {
  const groups = [
    ['burst', 'burst: CPU a delta, µs', (f) => f.cpuMicros],
    ['trickle', 'trickle: CPU a delta, µs', (f) => f.cpuMicros],
    ['trickle', 'trickle: p99 first event, ms', (f) => f.firstEventMs.p99],
    ['conversation', '1 MB with 40 tools: CPU a request, ms', (f) => f.cpuMillis],
    ['conversation', '1 MB, 100 at once: memory held, × the bodies', (f) => f.held],
    ['open', 'memory an open stream, KiB', (f) => f.bytesAStream / 1024],
    ['addon-burst', 'in Node.js, bursts of 20: CPU a delta, µs', (f) => f.cpuMicros],
    ['addon-burst', 'in Node.js, bursts of 20: main thread a delta, µs', (f) => f.mainMicros],
    ['addon-trickle', 'in Node.js, singly: CPU a delta, µs', (f) => f.cpuMicros],
    ['addon-trickle', 'in Node.js, singly: main thread a delta, µs', (f) => f.mainMicros],
    ['addon-trickle', 'in Node.js, 500 streams: event loop delay p99, ms', (f) => f.loopDelayMs.p99],
    ['shapes-bursts', 'into JavaScript: main thread a chunk of 20 deltas, µs', (f) => f.mainMicros],
    ['shapes-singly', 'into JavaScript: main thread a chunk of one delta, µs', (f) => f.mainMicros],
  ]
  const colours = ['#8a8f98', '#c2410c', '#1d4ed8', '#047857']
  const [left, barHeight, width] = [190, 18, 420]
  let y = 48
  const parts = []
  for (const [name, title, of] of groups) {
    const bars = subjects.filter((who) => cases[name]?.[who]).map((who) => [who, median(cases[name][who].map(of))])
    if (bars.length === 0) continue
    parts.push(`<text x="16" y="${y + 12}" font-weight="600">${title}</text>`)
    const most = Math.max(...bars.map(([, value]) => value))
    y += 22
    for (const [who, value] of bars) {
      const length = Math.max(1, (value / most) * width)
      parts.push(
        `<text x="${left - 8}" y="${y + 13}" text-anchor="end">${who}</text>` +
          `<rect x="${left}" y="${y}" width="${length.toFixed(1)}" height="${barHeight}" fill="${colours[subjects.indexOf(who) % 4]}"/>` +
          `<text x="${(left + length + 6).toFixed(1)}" y="${y + 13}">${number(value)}</text>`,
      )
      y += barHeight + 4
    }
    y += 14
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" width="700" height="${y}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="#fff"/>
<text x="16" y="26" font-size="15" font-weight="600">kiro-messages: side by side in one run, ${date}</text>
${parts.join('\n')}
</svg>
`
}

const number = (value) => (value === null ? '–' : spelled(value))
const spelled = (value) => value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2)
const us = (value) => `${number(value)} µs`
const ms = (value) => `${number(value)} ms`
const x = (value) => `${value.toFixed(2)} ×`
const kib = (value) => `${(value / 1024).toFixed(1)} KiB`
const mib = (value) => `${(value / 1024 / 1024).toFixed(1)} MiB`
