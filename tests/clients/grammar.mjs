// The grammar of M53 and M54, held against the bytes of a stream as they come. No SSE parser of the kind that
// clients use: it takes the one form that we may write and nothing else.
import { TextDecoder } from 'node:util'

const MEMBERS = {
  message_start: ['message'],
  content_block_start: ['index', 'content_block'],
  content_block_delta: ['index', 'delta'],
  content_block_stop: ['index'],
  message_delta: ['delta', 'usage'],
  message_stop: [],
  ping: [],
  error: ['error', 'request_id'],
}
const COUNTS = ['input_tokens', 'cache_creation_input_tokens', 'cache_read_input_tokens', 'output_tokens']
/** How each block starts, and which member each of its deltas has. */
const BLOCKS = {
  text: { start: { text: '' }, deltas: { text_delta: 'text' } },
  thinking: {
    start: { thinking: '', signature: '' },
    deltas: { thinking_delta: 'thinking', signature_delta: 'signature' },
  },
  tool_use: { start: { input: {} }, deltas: { input_json_delta: 'partial_json' } },
  redacted_thinking: { start: {}, deltas: {} },
  server_tool_use: { start: { input: {}, caller: { type: 'direct' } }, deltas: { input_json_delta: 'partial_json' } },
  web_search_tool_result: { start: { caller: { type: 'direct' } }, deltas: {} },
}
/** Blocks that are whole when they start. */
const WHOLE = ['redacted_thinking', 'web_search_tool_result']
const STOP_REASONS = [
  'end_turn',
  'tool_use',
  'max_tokens',
  'stop_sequence',
  'pause_turn',
  'refusal',
  'model_context_window_exceeded',
]
const RESULT = ['type', 'url', 'title', 'encrypted_content', 'page_age']

/** Fed with the chunks of one body; calls `wrong` with a sentence for everything that is not as it should be. */
export class StreamChecker {
  #wrong
  #decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
  #rest = ''
  /** empty → started → delta (message_delta was there) → ended */
  #state = 'empty'
  #open = null
  #closed = []
  /** The tool that was closed last has input that is no JSON. */
  #torn = false
  /** The searches that have no result yet. */
  #searches = []

  constructor(wrong) {
    this.#wrong = wrong
  }

  push(chunk) {
    try {
      this.#rest += this.#decoder.decode(chunk, { stream: true })
    } catch {
      return this.#wrong('not UTF-8 (M54)')
    }
    const events = this.#rest.split('\n\n')
    this.#rest = events.pop()
    for (const event of events) this.#event(event)
  }

  /** At the proper end of the body. */
  finish() {
    if (this.#rest !== '') this.#wrong(`the body ends inside an event: ${this.#rest} (M53)`)
    if (this.#state !== 'ended') this.#wrong('the body ends without message_stop or error (M53)')
  }

  #event(text) {
    const [, name, json, type] = /^event: ([a-z_]+)\ndata: (\{"type":"([a-z_]+)"[^\r\n]*\})$/.exec(text) ?? []
    if (!name) return this.#wrong(`not of the form of M54: ${JSON.stringify(text)}`)
    let event
    try {
      event = JSON.parse(json)
    } catch (error) {
      return this.#wrong(`${error.message}: ${json}`)
    }
    if (name !== type || event.type !== name) this.#wrong(`event ${name} has the type ${event.type} (M54)`)
    if (!(name in MEMBERS)) return this.#wrong(`unknown event ${name}`)
    for (const member of MEMBERS[name]) if (!(member in event)) return this.#wrong(`${name} without ${member}`)
    if (this.#state === 'ended') return this.#wrong(`${name} after the end (M53)`)
    if ((this.#state === 'empty') !== (name === 'message_start')) this.#wrong(`${name} at the wrong place (M53, C3)`)
    if (this.#state === 'delta' && name !== 'message_stop') this.#wrong(`${name} after message_delta (M53)`)
    if (this.#torn && !['ping', 'message_delta', 'message_stop'].includes(name))
      this.#wrong(`${name} after half a tool was closed (TS42)`)
    switch (name) {
      case 'message_start':
        return this.#messageStart(event.message)
      case 'content_block_start':
        return this.#blockStart(event)
      case 'content_block_delta':
        return this.#blockDelta(event)
      case 'content_block_stop':
        return this.#blockStop(event)
      case 'message_delta':
        return this.#messageDelta(event)
      case 'message_stop':
        if (this.#state !== 'delta') this.#wrong('message_stop without message_delta (C6)')
        this.#state = 'ended'
        return
      case 'ping':
        if (json !== '{"type":"ping"}') this.#wrong(`ping is ${json}`)
        return
      case 'error':
        if (this.#open && !isUse(this.#open)) this.#wrong('error inside a block (M53)')
        if (!event.error.type || !event.error.message) this.#wrong(`error is ${json}`)
        this.#state = 'ended'
    }
  }

  #messageStart(message) {
    this.#state = 'started'
    const { id, model, content, usage, ...fixed } = message
    if (!/^msg_[0-9A-Za-z]{24}$/.test(id)) this.#wrong(`message id ${id}`)
    if (typeof model !== 'string') this.#wrong('message_start without model')
    if (!Array.isArray(content) || content.length > 0) this.#wrong('message_start without empty content (C2)')
    this.#counts(usage)
    if (usage?.output_tokens !== 0) this.#wrong('message_start counts output')
    const wanted = { type: 'message', role: 'assistant', stop_reason: null, stop_sequence: null }
    if (JSON.stringify(fixed) !== JSON.stringify(wanted))
      this.#wrong(`message_start has ${JSON.stringify(fixed)} (M52)`)
  }

  #blockStart({ index, content_block: block }) {
    if (this.#open) this.#wrong(`block ${index} starts inside block ${this.#open.index} (M53)`)
    if (index !== this.#closed.length) this.#wrong(`block ${index} instead of ${this.#closed.length} (C7)`)
    const kind = BLOCKS[block.type]
    if (!kind) return this.#wrong(`unknown block ${JSON.stringify(block)}`)
    for (const [member, value] of Object.entries(kind.start)) {
      if (JSON.stringify(block[member]) !== JSON.stringify(value))
        this.#wrong(`a block starts as ${JSON.stringify(block)} (C8, C9)`)
    }
    if (isUse(block) && !(block.id && block.name)) this.#wrong(`${block.type} without id or name`)
    if (block.type === 'server_tool_use') this.#search(block)
    if (block.type === 'web_search_tool_result') this.#results(block)
    if (block.type === 'redacted_thinking' && !block.data) this.#wrong('redacted_thinking without data')
    this.#open = { index, type: block.type, deltas: 0, signed: false, json: '' }
  }

  #search({ id, name }) {
    if (!/^srvtoolu_[A-Za-z0-9_]{1,64}$/.test(id) || name !== 'web_search') this.#wrong(`search ${id} ${name} (TS30)`)
    this.#searches.push(id)
  }

  #results({ tool_use_id: id, content }) {
    // In the order of the searches (TS31).
    if (this.#searches.shift() !== id) this.#wrong(`results of ${id}, which is not the next search (TS31)`)
    if (!Array.isArray(content)) {
      if (content?.type !== 'web_search_tool_result_error' || !content.error_code)
        this.#wrong(`results are ${JSON.stringify(content)} (TS32)`)
      return
    }
    for (const result of content) {
      if (result.type !== 'web_search_result' || RESULT.some((member) => !(member in result)))
        this.#wrong(`a result is ${JSON.stringify(result)} (TS32)`)
    }
  }

  #blockDelta({ index, delta }) {
    const open = this.#open
    if (open?.index !== index) return this.#wrong(`delta of block ${index}, open is ${open?.index} (C7)`)
    const member = BLOCKS[open.type].deltas[delta.type]
    if (!member) return this.#wrong(`${delta.type} in a ${open.type} block`)
    if (typeof delta[member] !== 'string' || delta[member] === '') this.#wrong(`empty ${delta.type}`)
    if (open.signed) this.#wrong(`${delta.type} after the signature (C14)`)
    open.signed = delta.type === 'signature_delta'
    if (isUse(open)) open.json += delta.partial_json
    open.deltas += 1
  }

  #blockStop({ index }) {
    if (this.#open?.index !== index) return this.#wrong(`stop of block ${index}, open is ${this.#open?.index}`)
    this.#torn = isUse(this.#open) && !isJson(this.#open.json)
    this.#closed.push(this.#open)
    this.#open = null
  }

  #messageDelta({ delta, usage }) {
    this.#state = 'delta'
    if (this.#open) this.#wrong('message_delta inside a block (M53)')
    if (!STOP_REASONS.includes(delta.stop_reason)) this.#wrong(`stop_reason ${delta.stop_reason} (M57)`)
    const stopped = typeof delta.stop_sequence === 'string'
    if (stopped !== (delta.stop_reason === 'stop_sequence') || (!stopped && delta.stop_sequence !== null))
      this.#wrong(`stop_sequence ${delta.stop_sequence} of ${delta.stop_reason} (M82)`)
    if (this.#searches.length > 0 && delta.stop_reason !== 'max_tokens')
      this.#wrong(`no results of ${this.#searches} (TS31)`)
    if (delta.stop_reason === 'pause_turn' && this.#closed.at(-1)?.type !== 'web_search_tool_result')
      this.#wrong('pause_turn without results before it (TS35)')
    this.#counts(usage)
    if (this.#closed.length > 0 && usage.output_tokens < 1) this.#wrong('content without output_tokens (M59)')
    for (const block of this.#closed) {
      if (block.deltas === 0 && !WHOLE.includes(block.type)) this.#wrong(`an empty ${block.type} block (M54)`)
    }
    const tools = this.#closed.filter((block) => block.type === 'tool_use')
    if (tools.length > 0 && delta.stop_reason === 'end_turn') this.#wrong('end_turn with tools (M57)')
    if (this.#torn && delta.stop_reason !== 'max_tokens') this.#wrong(`${delta.stop_reason} after half a tool (TS42)`)
    if (delta.stop_reason === 'tool_use' && !tools.every((block) => isJson(block.json))) {
      this.#wrong(`tool input that is no JSON under stop_reason tool_use (C10)`)
    }
  }

  #counts(usage) {
    for (const count of COUNTS) {
      if (!Number.isInteger(usage?.[count]) || usage[count] < 0)
        this.#wrong(`usage.${count} is ${usage?.[count]} (M59)`)
    }
  }
}

function isUse({ type }) {
  return type === 'tool_use' || type === 'server_tool_use'
}

function isJson(text) {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}
