// The same job in JavaScript, written as well as it can be in plain style: what the addon is measured against.
//
// node:http in front, an undici Pool towards upstream, frames checked and cut from the chunks as they come, one write a
// chunk, back-pressure both ways, an aborted request when the client leaves. It knows the plain path only: a conversation
// with tools in, text deltas out, one account, no thinking, no pictures, no limits, no estimate of tokens, no failover, no
// metrics, no logs. What it leaves out makes it faster.
import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import zlib from 'node:zlib'
import { Pool } from 'undici'
import { report } from './subject.mjs'

const [upstream, token] = process.argv.slice(2)
const pool = new Pool(upstream, { connections: 1024, pipelining: 1, keepAliveTimeout: 15_000, bodyTimeout: 300_000 })
const crc32 = zlib.crc32 // Node.js ≥ 20.15

const server = createServer((req, res) => {
  const parts = []
  req.on('data', (part) => parts.push(part))
  req.on('end', () => {
    try {
      answer(res, JSON.parse(Buffer.concat(parts)))
    } catch (error) {
      fail(res, error)
    }
  })
})
server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 }, () => report({ port: server.address().port }))

// The simulator refuses clients that aren't Kiro's.
const IDE = `KiroIDE-9.9.9-${'0a'.repeat(32)}`
const AGENTS = {
  'user-agent': `aws-sdk-js/1.0.34 ua/2.1 os/linux#6.1 lang/js md/nodejs#24.18.0 api/codewhispererstreaming#1.0.34 m/E ${IDE}`,
  'x-amz-user-agent': `aws-sdk-js/1.0.34 ${IDE}`,
}

function answer(res, request) {
  const body = JSON.stringify(translate(request))
  const headers = {
    'content-type': 'application/json',
    accept: 'application/json',
    authorization: `Bearer ${token}`,
    'amz-sdk-request': 'attempt=1; max=1',
    'amz-sdk-invocation-id': randomUUID(),
    'x-amzn-kiro-agent-mode': 'vibe',
    ...AGENTS,
  }
  pool.dispatch({ method: 'POST', path: '/generateAssistantResponse', headers, body }, new Transcoder(res, request))
}

/** undici's dispatch handler: the shortest way from its parser to the response, with no stream in between. */
class Transcoder {
  #res
  #request
  #rest = null
  #index = -1
  #chars = 0

  constructor(res, request) {
    this.#res = res
    this.#request = request
  }

  onRequestStart(controller) {
    this.#res.on('drain', () => controller.resume())
    this.#res.on('close', () => {
      if (!this.#res.writableFinished) controller.abort(new Error('the client left'))
    })
  }

  onResponseStart(_controller, status) {
    if (status !== 200) throw new Error(`upstream answered ${status}`)
  }

  onResponseData(controller, chunk) {
    const out = this.#transcode(chunk)
    if (out !== '' && !this.#res.write(out)) controller.pause()
  }

  onResponseEnd() {
    const output_tokens = Math.max(1, Math.ceil(this.#chars / 4))
    this.#res.end(
      sse('content_block_stop', { type: 'content_block_stop', index: this.#index }) +
        sse('message_delta', {
          type: 'message_delta',
          delta: { stop_reason: 'end_turn', stop_sequence: null },
          usage: { input_tokens: 1, cache_creation_input_tokens: 0, cache_read_input_tokens: 0, output_tokens },
        }) +
        sse('message_stop', { type: 'message_stop' }),
    )
  }

  onResponseError(_controller, error) {
    fail(this.#res, error)
  }

  /** Every whole frame of what has come, as SSE text. */
  #transcode(chunk) {
    const data = this.#rest === null ? chunk : Buffer.concat([this.#rest, chunk])
    let out = ''
    let at = 0
    while (data.length - at >= 16) {
      const total = data.readUInt32BE(at)
      if (data.length - at < total) break
      const headers = data.readUInt32BE(at + 4)
      if (crc32(data.subarray(at, at + 8)) !== data.readUInt32BE(at + 8)) throw new Error('prelude checksum')
      const end = at + total - 4
      if (crc32(data.subarray(at, end)) !== data.readUInt32BE(end)) throw new Error('frame checksum')
      if (eventType(data, at + 12, at + 12 + headers) === 'assistantResponseEvent') {
        out += this.#text(JSON.parse(data.toString('utf8', at + 12 + headers, end)).content)
      }
      at += total
    }
    this.#rest = at === data.length ? null : data.subarray(at)
    return out
  }

  #text(text) {
    let out = ''
    if (this.#index === -1) {
      this.#index = 0
      this.#res.writeHead(200, {
        'content-type': 'text/event-stream; charset=utf-8',
        'cache-control': 'no-cache',
        'x-accel-buffering': 'no',
      })
      const usage = { input_tokens: 1, cache_creation_input_tokens: 0, cache_read_input_tokens: 0, output_tokens: 1 }
      const { model } = this.#request
      const message = { id: `msg_${randomUUID()}`, type: 'message', role: 'assistant', model, content: [], stop_reason: null, stop_sequence: null, usage }
      out += sse('message_start', { type: 'message_start', message })
      out += sse('content_block_start', { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } })
    }
    this.#chars += text.length
    return `${out}event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":${JSON.stringify(text)}}}\n\n`
  }
}

/** The header `:event-type` of a frame: names and string values in turn. */
function eventType(data, at, end) {
  while (at < end) {
    const nameEnd = at + 1 + data[at]
    const name = data.latin1Slice(at + 1, nameEnd)
    const length = data.readUInt16BE(nameEnd + 1)
    const valueEnd = nameEnd + 3 + length
    if (name === ':event-type') return data.latin1Slice(nameEnd + 3, valueEnd)
    at = valueEnd
  }
  return ''
}

const sse = (event, data) => `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`

function translate({ system, messages, tools = [], model }) {
  const modelId = model.replace(/-(\d+)-(\d+)$/, '-$1.$2')
  const specifications = tools.map(({ name, description, input_schema }) => ({
    toolSpecification: { name, description, inputSchema: { json: input_schema } },
  }))
  const history = messages.slice(0, -1).map((message) => turn(message, modelId))
  if (system !== undefined) {
    const said = { role: 'user', content: system }
    history.unshift(turn(said, modelId), turn({ role: 'assistant', content: 'OK' }, modelId))
  }
  return {
    conversationState: {
      agentTaskType: 'vibe',
      chatTriggerType: 'MANUAL',
      conversationId: randomUUID(),
      // Upstream refuses an empty one.
      ...(history.length > 0 && { history }),
      currentMessage: turn(messages.at(-1), modelId, specifications),
    },
  }
}

/** Upstream refuses empty texts and an empty context. */
function turn({ role, content }, modelId, tools = []) {
  const text = textOf(content) || ' '
  const blocks = typeof content === 'string' ? [] : content
  if (role === 'assistant') {
    const toolUses = blocks.filter(({ type }) => type === 'tool_use').map(({ id, name, input }) => ({ toolUseId: id, name, input }))
    return { assistantResponseMessage: { content: text, ...(toolUses.length > 0 && { toolUses }) } }
  }
  const toolResults = blocks
    .filter(({ type }) => type === 'tool_result')
    .map(({ tool_use_id, content }) => ({ toolUseId: tool_use_id, content: [{ text: textOf(content) }], status: 'success' }))
  const context = { ...(tools.length > 0 && { tools }), ...(toolResults.length > 0 && { toolResults }) }
  const userInputMessageContext = Object.keys(context).length > 0 ? context : undefined
  return { userInputMessage: { content: text, modelId, origin: 'AI_EDITOR', userInputMessageContext } }
}

function textOf(content) {
  if (typeof content === 'string') return content
  return content.filter(({ type }) => type === 'text').map(({ text }) => text).join('\n')
}

function fail(res, error) {
  if (res.destroyed) return
  if (res.headersSent) return res.destroy()
  res.writeHead(500, { 'content-type': 'application/json' })
  res.end(JSON.stringify({ type: 'error', error: { type: 'api_error', message: error.message } }))
}
