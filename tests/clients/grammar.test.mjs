// The checker that every stream here goes through: it has to find what it is there for.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { StreamChecker } from './grammar.mjs'

const USAGE = { input_tokens: 1, cache_creation_input_tokens: 0, cache_read_input_tokens: 0, output_tokens: 0 }
const START = {
  type: 'message_start',
  message: {
    id: 'msg_0123456789abcdefghijABCD',
    type: 'message',
    role: 'assistant',
    model: 'm',
    content: [],
    stop_reason: null,
    stop_sequence: null,
    usage: USAGE,
  },
}
const OPEN = { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } }
const DELTA = { type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text: 'é😀\u2028' } }
const CLOSE = { type: 'content_block_stop', index: 0 }
const PING = { type: 'ping' }
const FINISH = {
  type: 'message_delta',
  delta: { stop_reason: 'end_turn', stop_sequence: null },
  usage: { ...USAGE, output_tokens: 1 },
}
const STOP = { type: 'message_stop' }
const ERROR = { type: 'error', error: { type: 'api_error', message: 'x' }, request_id: 'req_x' }
const TOOL = {
  ...OPEN,
  content_block: { type: 'tool_use', id: 'a', name: 'f', input: {} },
}
const INPUT = { ...DELTA, delta: { type: 'input_json_delta', partial_json: '{}' } }
const HALF = { ...DELTA, delta: { type: 'input_json_delta', partial_json: '{"a' } }
const USED = { ...FINISH, delta: { ...FINISH.delta, stop_reason: 'tool_use' } }
const ended = (reason, more) => ({ ...FINISH, delta: { ...FINISH.delta, stop_reason: reason, ...more } })
const caller = { type: 'direct' }
const searched = (index, n) => [
  { ...OPEN, index, content_block: { type: 'server_tool_use', id: `srvtoolu_${n}`, name: 'web_search', input: {}, caller } },
  { ...INPUT, index },
  { ...CLOSE, index },
]
const FOUND = { type: 'web_search_result', url: 'https://a.test/', title: 'A', encrypted_content: 'k1.e30', page_age: null }
const found = (index, n, content = [FOUND]) => [
  { ...OPEN, index, content_block: { type: 'web_search_tool_result', tool_use_id: `srvtoolu_${n}`, caller, content } },
  { ...CLOSE, index },
]
const text = (index) => [OPEN, DELTA, CLOSE].map((event) => ({ ...event, index }))

const GOOD = {
  text: [START, PING, OPEN, DELTA, PING, DELTA, CLOSE, PING, FINISH, STOP],
  nothing: [START, { ...FINISH, usage: USAGE }, STOP],
  tool: [START, TOOL, INPUT, CLOSE, USED, STOP],
  'error in mid-text': [START, OPEN, DELTA, CLOSE, ERROR],
  'error before content': [START, PING, ERROR],
  'a search': [START, ...text(0), ...searched(1, 1), PING, ...found(2, 1), ...text(3), FINISH, STOP],
  'two searches, one of them failed': [
    START,
    ...searched(0, 1),
    ...searched(1, 2),
    ...found(2, 1, []),
    ...found(3, 2, { type: 'web_search_tool_result_error', error_code: 'unavailable' }),
    ended('pause_turn'),
    STOP,
  ],
  'an error in mid-search': [START, ...searched(0, 1).slice(0, 2), ERROR],
  'a stop sequence': [START, ...text(0), ended('stop_sequence', { stop_sequence: 'X' }), STOP],
  'TS42 error in mid-tool': [START, TOOL, HALF, ERROR],
  'TS42 an answer that ends in mid-tool': [
    START,
    TOOL,
    HALF,
    CLOSE,
    { ...FINISH, delta: { ...FINISH.delta, stop_reason: 'max_tokens' } },
    STOP,
  ],
}

const BAD = {
  'M53 something before message_start': [PING, ...GOOD.text],
  'M53 two message_starts': [START, ...GOOD.text],
  'M53 no end': [START, OPEN, DELTA, CLOSE, FINISH],
  'M53 error inside a block': [START, OPEN, DELTA, ERROR],
  'TS42 half a tool is closed before an error': [START, TOOL, HALF, CLOSE, ERROR],
  'TS42 a block after half a tool': [
    START,
    TOOL,
    HALF,
    CLOSE,
    { ...OPEN, index: 1 },
    { ...DELTA, index: 1 },
    { ...CLOSE, index: 1 },
    { ...FINISH, delta: { ...FINISH.delta, stop_reason: 'max_tokens' } },
    STOP,
  ],
  'M53 something after the end': [...GOOD.text, PING],
  'M57 an error after a stop reason': [START, OPEN, DELTA, CLOSE, FINISH, ERROR],
  'M53 a block inside a block': [START, OPEN, DELTA, { ...OPEN, index: 1 }, CLOSE, FINISH, STOP],
  'C7 a gap in the indices': [
    START,
    { ...OPEN, index: 1 },
    { ...DELTA, index: 1 },
    { ...CLOSE, index: 1 },
    FINISH,
    STOP,
  ],
  'C7 a delta before its start': [START, DELTA, OPEN, DELTA, CLOSE, FINISH, STOP],
  'M54 a block without content': [START, OPEN, CLOSE, FINISH, STOP],
  'M54 an empty delta': [START, OPEN, { ...DELTA, delta: { type: 'text_delta', text: '' } }, CLOSE, FINISH, STOP],
  'C8 a start without text': [START, { ...OPEN, content_block: { type: 'text' } }, DELTA, CLOSE, FINISH, STOP],
  'C9 a tool without input': [
    START,
    { ...TOOL, content_block: { type: 'tool_use', id: 'a', name: 'f' } },
    INPUT,
    CLOSE,
    USED,
    STOP,
  ],
  'C10 half a tool input': [
    START,
    TOOL,
    { ...INPUT, delta: { ...INPUT.delta, partial_json: '{"a' } },
    CLOSE,
    USED,
    STOP,
  ],
  'M57 end_turn with a tool': [START, TOOL, INPUT, CLOSE, FINISH, STOP],
  'M57 another stop reason': [START, ...text(0), ended('compaction'), STOP],
  'TS35 a pause without results': [START, ...text(0), ended('pause_turn'), STOP],
  'M82 a stop sequence that isn’t said': [START, ...text(0), ended('stop_sequence'), STOP],
  'M82 a stop sequence of another reason': [START, ...text(0), ended('end_turn', { stop_sequence: 'X' }), STOP],
  'TS31 a search without results': [START, ...searched(0, 1), ...text(1), FINISH, STOP],
  'TS31 results of no search': [START, ...found(0, 1), ...text(1), FINISH, STOP],
  'TS31 results in another order': [
    START,
    ...searched(0, 1),
    ...searched(1, 2),
    ...found(2, 2),
    ...found(3, 1),
    ...text(4),
    FINISH,
    STOP,
  ],
  'TS32 a result without its url': [
    START,
    ...searched(0, 1),
    ...found(1, 1, [{ ...FOUND, url: undefined, type: 'x' }]),
    ...text(2),
    FINISH,
    STOP,
  ],
  'TS32 results that are neither a list nor an error': [
    START,
    ...searched(0, 1),
    ...found(1, 1, { error_code: 'unavailable' }),
    ...text(2),
    FINISH,
    STOP,
  ],
  'C6 no message_delta': [START, OPEN, DELTA, CLOSE, STOP],
  'C4 a count missing': [START, OPEN, DELTA, CLOSE, { ...FINISH, usage: { output_tokens: 1 } }, STOP],
  'M59 content without output': [START, OPEN, DELTA, CLOSE, { ...FINISH, usage: USAGE }, STOP],
  'C2 message_start without usage': [
    { ...START, message: { ...START.message, usage: undefined } },
    ...GOOD.text.slice(1),
  ],
  'M52 an unknown member': [{ ...START, message: { ...START.message, container: null } }, ...GOOD.text.slice(1)],
  'C14 two signatures': [
    START,
    { ...OPEN, content_block: { type: 'thinking', thinking: '', signature: '' } },
    ...['a', 'b'].map((signature) => ({ ...DELTA, delta: { type: 'signature_delta', signature } })),
    CLOSE,
    FINISH,
    STOP,
  ],
}

const BAD_BYTES = {
  'C1 no event line': 'data: {"type":"ping"}\n\n',
  'M54 CR LF': 'event: ping\r\ndata: {"type":"ping"}\r\n\r\n',
  'M54 a comment': ': hello\n\n',
  'M54 two data lines': 'event: ping\ndata: {"type":\ndata: "ping"}\n\n',
  'M54 another name than its type': 'event: pong\ndata: {"type":"ping"}\n\n',
  'M54 type is not first':
    'event: error\ndata: {"request_id":"x","type":"error","error":{"type":"a","message":"b"}}\n\n',
  'no JSON': 'event: ping\ndata: {"type":"ping",}\n\n',
  'M54 not UTF-8': Buffer.from([0xc3, 0x28]),
  'M53 cut inside an event': 'event: pi',
}

for (const [name, events] of Object.entries(GOOD)) {
  test(`good: ${name}, at every split`, () => {
    const bytes = Buffer.from(events.map(line).join(''))
    for (let at = 0; at <= bytes.length; at++) assert.deepEqual(wrongs(bytes.subarray(0, at), bytes.subarray(at)), [])
  })
}

for (const [name, events] of Object.entries(BAD)) {
  test(`bad: ${name}`, () => assert.notDeepEqual(wrongs(Buffer.from(events.map(line).join(''))), []))
}

for (const [name, bytes] of Object.entries(BAD_BYTES)) {
  test(`bad: ${name}`, () => {
    const [start, ...rest] = GOOD.text.map(line)
    const found = wrongs(Buffer.from(start), Buffer.from(bytes), Buffer.from(rest.join('')))
    assert.notDeepEqual(found, [])
  })
}

function line(event) {
  return `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`
}

function wrongs(...chunks) {
  const found = []
  const checker = new StreamChecker((what) => found.push(what))
  for (const chunk of chunks) checker.push(chunk)
  checker.finish()
  return found
}
