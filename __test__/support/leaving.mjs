// Clients that leave (case 26; N17), the same for every face that answers over HTTP.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { ask, sleep, until } from './stack.mjs'

/** When, and after what. */
const SCENES = [
  ['before the first event', { first_ms: 60_000 }, async () => {}],
  ['in mid-stream', { text: '{n} ', count: 10_000, gap_ms: 200 }, (socket) => once(socket, 'data')],
  [
    // Nobody reads: the socket fills, then what is before it, then upstream stands still.
    'with a full socket',
    { text: `${'x'.repeat(4000)}{n}`, count: 50_000 },
    async (socket) => {
      socket.pause()
      await sleep(700)
    },
  ],
]

/**
 * Plays every scene against a server: upstream must be dropped within 100 ms of the client, and must have been held up
 * where the client didn't read. `afterwards(n)` is called after the n-th, from 1.
 */
export async function leave(sim, { port, path = '/v1/messages' }, afterwards) {
  for (const [index, [what, scenario, meanwhile]] of SCENES.entries()) {
    const body = JSON.stringify(ask(scenario, { stream: true }))
    const socket = connect(port, '127.0.0.1')
    socket.on('error', () => {})
    socket.write(`POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`)
    await until(async () => (await sim.stats()).streams.open === 1, 'the call to reach upstream')
    await meanwhile(socket)
    const before = (await sim.stats()).closed_by_client.length
    const at = Date.now()
    socket.destroy()
    const closed = await until(async () => (await sim.stats()).closed_by_client[before], `upstream to be dropped ${what}`)
    // As the simulator saw it; a little more than 100 ms, for a machine that is busy.
    assert.ok(closed.at_ms - at < 150, `${closed.at_ms - at} ms ${what}`)
    // 16 MB: what the system's socket buffers take, not what 700 ms can carry.
    assert.ok(closed.events < 4000, `${closed.events} events ${what}`)
    await afterwards(index + 1)
  }
}
