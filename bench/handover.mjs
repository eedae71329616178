// How long a server holds a large request that is whole: from its last byte to its first byte upstream.
import net from 'node:net'
import { median } from './measure.mjs'

const CODE = '    pub fn insert(&mut self, key: K, value: V) -> Option<V> {\n        let hash = self.hasher.hash_one(&key);\n'
/** After all bytes but the last the server is given so long to read them. */
const PAUSE_MS = 30

/**
 * One request after the other, each on a connection of its own. `start` starts a server in front of a port. A tap between it and
 * `upstream`, the simulator's port, tells when the request comes through, so what is told holds the reading of the last byte,
 * the translation and the first write; a small request tells how much of it is this measurement's own.
 */
export async function handOver(start, upstream, rounds) {
  let heard = () => {}
  const tap = net.createServer((socket) => {
    const on = net.connect(upstream, '127.0.0.1')
    socket.on('data', (chunk) => {
      heard()
      on.write(chunk)
    })
    on.on('data', (chunk) => socket.write(chunk))
    for (const [one, other] of [[socket, on], [on, socket]]) {
      one.on('error', () => {})
      one.on('close', () => other.destroy())
    }
  })
  await new Promise((resolve) => tap.listen(0, '127.0.0.1', resolve))
  const subject = await start(tap.address().port)
  const ofBody = async (body) => {
    const times = []
    for (let round = 0; round < rounds; round++) times.push(await once(subject.port, body, (listener) => (heard = listener)))
    times.sort((a, b) => a - b)
    return { p50: median(times), p99: times[Math.floor(times.length * 0.99)] }
  }
  try {
    await ofBody(request(1024)) // warm
    return { subject, smallMs: await ofBody(request(1024)), largeMs: await ofBody(request(1 << 20)) }
  } finally {
    tap.close()
  }
}

async function once(port, body, listen) {
  const client = net.connect(port, '127.0.0.1')
  client.setNoDelay(true)
  const ended = new Promise((resolve, reject) => {
    client.on('error', reject)
    client.on('close', resolve)
  })
  let answer = ''
  client.on('data', (chunk) => (answer += chunk))
  const head = `POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n`
  await new Promise((resolve) => client.write(Buffer.concat([Buffer.from(head), body.subarray(0, -1)]), resolve))
  await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
  let began
  const through = new Promise((resolve) => listen(() => resolve(performance.now() - began)))
  began = performance.now()
  client.write(body.subarray(-1))
  const time = await Promise.race([through, ended])
  await ended
  if (time === undefined || !answer.includes('event: message_stop')) throw new Error(`no answer: ${answer.slice(0, 500)}`)
  return time
}

/** A coding agent's request of about so many bytes: from 64 KB on with 40 tools. */
function request(bytes) {
  const properties = Object.fromEntries(
    Array.from({ length: 6 }, (_, place) => [`property_${place}`, { type: 'string', description: 'What to look for, as a regular expression.' }]),
  )
  const tools = Array.from({ length: bytes < 65536 ? 0 : 40 }, (_, number) => ({
    name: `tool_${number}`,
    description: 'Looks for something in the files of a project. '.repeat(20),
    input_schema: { type: 'object', properties, required: ['property_0'], additionalProperties: false },
  }))
  const messages = [{ role: 'user', content: 'Please find out why the retries are so slow.' }]
  let left = bytes - JSON.stringify(tools).length
  for (let turn = 0; left > 0; turn++) {
    const result = CODE.repeat(Math.min(60, Math.ceil(left / CODE.length)))
    left -= result.length + 500
    const id = `toolu_${String(turn).padStart(24, '0')}`
    messages.push({ role: 'assistant', content: [{ type: 'tool_use', id, name: `tool_${turn % 40}`, input: { path: `/src/module_${turn}/file.rs` } }] })
    messages.push({ role: 'user', content: [{ type: 'tool_result', tool_use_id: id, content: result }] })
  }
  return Buffer.from(JSON.stringify({ model: 'claude-sonnet-4-5', max_tokens: 32000, stream: true, tools, messages }))
}
