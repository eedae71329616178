// One shape in a process of its own: node run.mjs LIBRARY SHAPE PLAN. Prints what a chunk cost.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const [library, shape, plan] = process.argv.slice(2)
const { streams, ...each } = JSON.parse(plan)
const require = createRequire(import.meta.url)
const native = require(library)

// lib/ gets this library's bell in place of the addon's.
const place = require.resolve('../../lib/native.js')
require.cache[place] = { id: place, filename: place, loaded: true, exports: native }
const { bell, begin } = require('../../lib/bell.js')
const { MessageStream, StreamCall } = require('../../lib/stream.js')

/** Each takes one stream whole and resolves to its bytes. */
const SHAPES = {
  'call per chunk': () =>
    new Promise((resolve) => {
      let bytes = 0
      native.callPerChunk(each, (chunk) => {
        bytes += chunk.length
        if (chunk.length === 0) resolve(bytes)
      })
    }),
  'promise per next()': async () => {
    const reader = new native.Reader(each)
    let bytes = 0
    for (let chunk = await reader.next(); chunk !== null; chunk = await reader.next()) bytes += chunk.length
    return bytes
  },
  'web ReadableStream': async () => {
    let bytes = 0
    for await (const chunk of native.webStream(each)) bytes += chunk.length
    return bytes
  },
  'doorbell, for await': async () => {
    const call = new StreamCall()
    begin(call, (id) => bell.stream(id, each))
    let bytes = 0
    for await (const chunk of new MessageStream(call, await call.opened)) bytes += chunk.length
    return bytes
  },
  'doorbell, sink': () =>
    new Promise((resolve) => {
      let bytes = 0
      let unsaid = 0
      const call = {
        id: 0,
        held: false,
        receive(kind, chunk) {
          if (kind === 2) resolve(bytes)
          if (kind !== 0) return
          bytes += chunk.length
          unsaid += chunk.length
          if (unsaid < 16_384) return
          bell.taken(call.id, unsaid)
          unsaid = 0
        },
      }
      begin(call, (id) => bell.stream(id, each))
    }),
}

const main = () => Number(readFileSync(`/proc/${process.pid}/task/${process.pid}/schedstat`, 'utf8').split(' ')[0]) / 1e3
const cpu = () => {
  const { user, system } = process.cpuUsage()
  return user + system
}
const run = () => Promise.all(Array.from({ length: streams }, () => SHAPES[shape]()))
await run() // warm
const before = [main(), cpu()]
const bytes = await run()
const wanted = each.chunks * each.bytes
if (bytes.some((length) => length !== wanted)) throw new Error(`${shape}: bytes are missing`)
const chunks = streams * each.chunks
console.log(JSON.stringify({ mainMicros: (main() - before[0]) / chunks, cpuMicros: (cpu() - before[1]) / chunks }))
process.exit(0)
