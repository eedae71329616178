// A conversation in the terminal that shows what streams: text as it comes, thoughts in grey, tools and what they gave.
// Ctrl-C ends the answer that is running, Ctrl-D the conversation.
//
//   node examples/chat.mjs [model]
//
// Accounts come from Redis as the environment says (REDIS_URL …), or from a file: KIRO_STORE=file:accounts.json.
// Without any account: KIRO_UPSTREAM=simulator.
import { createInterface } from 'node:readline/promises'
import { KiroError, KiroGateway } from 'kiro-messages'

const model = process.argv[2] ?? 'claude-sonnet-4-5'
const terminal = process.stdout.isTTY
const style = (code) => (text) => (terminal ? `\x1b[${code}m${text}\x1b[0m` : text)
const grey = style(90)
const yellow = style(33)

/** What the model may call, and what each does. */
const tools = {
  clock: {
    description: 'The time now in a time zone.',
    input_schema: { type: 'object', properties: { zone: { type: 'string', description: 'IANA name, such as Europe/Zurich' } } },
    run: ({ zone = 'UTC' }) => new Date().toLocaleString('en-GB', { timeZone: zone, timeZoneName: 'short' }),
  },
  dice: {
    description: 'Throws dice.',
    input_schema: { type: 'object', properties: { count: { type: 'integer' }, sides: { type: 'integer' } } },
    run: ({ count = 1, sides = 6 }) => JSON.stringify(Array.from({ length: Math.min(count, 100) }, () => 1 + Math.floor(Math.random() * sides))),
  },
}
const declared = Object.entries(tools).map(([name, { description, input_schema }]) => ({ name, description, input_schema }))

const gateway = await KiroGateway.connect()
const messages = []
const lines = createInterface({ input: process.stdin, output: terminal ? process.stdout : undefined })
let running = null
lines.on('SIGINT', () => {
  if (running === null) lines.close()
  else running.abort()
})

// The input may end while an answer runs: newer Node.js refuses to prompt then.
let ended = false
lines.once('close', () => {
  ended = true
})

lines.setPrompt('> ')
lines.prompt()
for await (const line of lines) {
  if (line.trim() !== '') await turn(line)
  if (!ended) lines.prompt()
}
await gateway.close({ graceMs: 0 })

/** One question, with as many answers as the model's tools need. */
async function turn(question) {
  const before = messages.length
  messages.push({ role: 'user', content: question })
  try {
    for (;;) {
      const content = await answer()
      messages.push({ role: 'assistant', content })
      const results = content.filter(({ type }) => type === 'tool_use').map(use)
      if (results.length === 0) return
      messages.push({ role: 'user', content: results })
    }
  } catch (error) {
    if (!KiroError.is(error)) throw error
    // What was half said isn't part of the conversation.
    messages.length = before
    console.log(yellow(error.code === 'KIRO_CANCELLED' ? '\n(stopped)' : `\n${error.code}: ${error.message}`))
  } finally {
    running = null
  }
}

/** Streams one answer to the terminal, and gives its blocks as the next request wants them. */
async function answer() {
  running = new AbortController()
  const request = { model, max_tokens: 8192, thinking: { type: 'enabled', budget_tokens: 4096 }, tools: declared, messages }
  const content = []
  for await (const event of gateway.streamEvents(request, { signal: running.signal })) {
    if (event.type === 'content_block_start') {
      content[event.index] = { ...event.content_block }
      if (event.content_block.type === 'tool_use') content[event.index].input = ''
    } else if (event.type === 'content_block_delta') {
      const block = content[event.index]
      const { delta } = event
      if (delta.type === 'text_delta') {
        block.text += delta.text
        process.stdout.write(delta.text)
      } else if (delta.type === 'thinking_delta') {
        block.thinking += delta.thinking
        process.stdout.write(grey(delta.thinking))
      } else if (delta.type === 'signature_delta') {
        block.signature = delta.signature
      } else if (delta.type === 'input_json_delta') {
        // The JSON of a tool's input comes in pieces.
        block.input += delta.partial_json
      }
    } else if (event.type === 'content_block_stop') {
      const block = content[event.index]
      if (block.type === 'tool_use') block.input = JSON.parse(block.input || '{}')
      process.stdout.write('\n')
    } else if (event.type === 'message_delta' && event.delta.stop_reason === 'max_tokens') {
      console.log(yellow('(cut at max_tokens)'))
    }
  }
  return content
}

/** Runs a tool and tells the model what came of it. */
function use({ id, name, input }) {
  let content
  let is_error = false
  try {
    content = tools[name].run(input)
  } catch (error) {
    content = error.message
    is_error = true
  }
  console.log(yellow(`${name}(${JSON.stringify(input)}) → ${content}`))
  return { type: 'tool_result', tool_use_id: id, content, is_error }
}
