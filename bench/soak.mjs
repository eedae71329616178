// The server's bars that are too big for `npm test`, held against the release build: a part of `npm run soak`. Ends with 1
// when one breaks.
//
//   node bench/soak.mjs                5,000 streams open at once, an event a second each
//   node bench/soak.mjs --streams N    fewer, or more
//   node bench/soak.mjs --no-build
//
// Linux only: it reads /proc.
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { open } from './measure.mjs'
import { House } from './processes.mjs'
import { needRust, run, serverBinary, target } from '../scripts/steps.mjs'

const MOST_A_STREAM = 32 * 1024
const FILES_BACK_WITHIN = 10_000
const KEPT_WARM = 4 // upstream connections that stay for 55 s (src/policy/idle.rs)

const { values: options } = parseArgs({
  options: { streams: { type: 'string', default: '5000' }, 'no-build': { type: 'boolean', default: false } },
})
const binary = serverBinary('release')
if (!options['no-build']) {
  needRust()
  const args = ['build', '--release', '--no-default-features', '--features', 'server', '--bin', 'kiro-server']
  if (!(await run('cargo', [...args, '--example', 'load']))) process.exit(1)
}

const house = new House()
for (const [signal, status] of [['SIGINT', 130], ['SIGTERM', 143]]) process.on(signal, () => house.end().then(() => process.exit(status)))
const broken = []
try {
  await openStreams(Number(options.streams))
} finally {
  await house.end()
}
for (const what of broken) console.error(`soak: ${what}`)
process.exit(broken.length === 0 ? 0 : 1)

/** Memory and open files of a fresh server. */
async function openStreams(streams) {
  const upstream = await house.simulator(binary)
  const server = await house.server('kiro-server', binary, upstream)
  const files = () => readdirSync(`/proc/${server.child.pid}/fd`).length
  // A first request leaves DNS threads and one connection: they belong to an idle server.
  const load = { binary: path.join(target, 'release', 'examples', 'load'), face: () => [] }
  await open(load, server, 1 / 5000)
  const before = files() + KEPT_WARM
  const figures = await open(load, server, streams / 5000)
  const ended = performance.now()
  while (files() > before && performance.now() - ended < FILES_BACK_WITHIN) {
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  const back = Math.round(performance.now() - ended)
  console.log(
    `${streams} streams open at once: ${figures.failed} failed, ${(figures.bytesAStream / 1024).toFixed(1)} KiB each ` +
      `(${Math.round(figures.rssBefore / 1024)} KiB idle), open files ${before} before, ${files()} ${back} ms after`,
  )
  if (figures.failed > 0) broken.push(`${figures.failed} of ${streams} streams failed: ${JSON.stringify(figures.failures)}`)
  if (!(figures.bytesAStream <= MOST_A_STREAM)) broken.push(`${figures.bytesAStream} bytes a stream, over ${MOST_A_STREAM}`)
  if (files() > before) broken.push(`${files()} files are open ${FILES_BACK_WITHIN} ms after the last stream, ${before} before`)
}
