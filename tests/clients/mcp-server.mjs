// An MCP server on standard input and output, for Claude Code: one tool.
import { createInterface } from 'node:readline'

const TOOL = {
  name: 'find_a_bird_by_its_name_or_by_the_colour_of_its_feathers',
  description: 'Finds a bird.',
  inputSchema: {
    type: 'object',
    properties: { name: { type: 'string' }, colour: { type: 'string' } },
  },
}

const ANSWERS = {
  initialize: ({ protocolVersion }) => ({
    protocolVersion,
    capabilities: { tools: {} },
    serverInfo: { name: 'birds', version: '1.0.0' },
  }),
  'tools/list': () => ({ tools: [TOOL] }),
  'tools/call': ({ arguments: input }) => ({ content: [{ type: 'text', text: `The ${input.colour} one is a heron.` }] }),
}

createInterface(process.stdin).on('line', (line) => {
  const { id, method, params } = JSON.parse(line)
  if (id === undefined) return
  const result = ANSWERS[method]?.(params ?? {})
  const answer = result ? { result } : { error: { code: -32601, message: `no ${method}` } }
  process.stdout.write(`${JSON.stringify({ jsonrpc: '2.0', id, ...answer })}\n`)
})
