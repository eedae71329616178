// Every kind of block that the official SDK's types allow in a message is known here (M39–M46, M69): a conversation that
// began at Anthropic goes on, instead of being refused for a block that an earlier answer left in it.
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { accounts, gateway, simulator } from './support/stack.mjs'

const declarations = path.join(
  path.dirname(fileURLToPath(import.meta.url)),
  '../node_modules/@anthropic-ai/sdk/resources/beta/messages/messages.d.ts',
)

/** The values of `type` in a union of the SDK. */
function kinds(union) {
  const program = ts.createProgram([declarations], { skipLibCheck: true, strict: true })
  const checker = program.getTypeChecker()
  const found = program.getSourceFile(declarations).statements.find((statement) => statement.name?.text === union)
  return checker.getTypeAtLocation(found).types.map((member) => checker.getTypeOfSymbol(member.getProperty('type')).value)
}

test('no block of the SDK is unknown, in messages and in tool results (M46)', { timeout: 120_000 }, async (t) => {
  const gate = await gateway(t, await simulator(t), accounts(t))
  const refusal = (messages) =>
    gate.countTokens({ model: 'claude-sonnet-4-6', messages }).then(
      () => '',
      (error) => error.message,
    )
  const blocks = kinds('BetaContentBlockParam')
  assert.ok(blocks.length > 20 && blocks.every((kind) => typeof kind === 'string'), `${blocks}`)
  for (const type of blocks) {
    // Where it is not allowed, or lacks its members, it is refused for that.
    for (const role of ['user', 'assistant', 'system']) {
      const said = await refusal([{ role: 'user', content: 'a' }, { role, content: [{ type: 'text', text: 'x' }, { type }] }])
      assert.doesNotMatch(said, /unknown block type/, `${type} in a message of role ${role}`)
    }
  }
  for (const type of kinds('BetaToolResultContentBlockParam')) {
    const said = await refusal([
      { role: 'user', content: [{ type: 'tool_result', tool_use_id: 't', content: [{ type }] }] },
    ])
    assert.doesNotMatch(said, /unknown block type|not allowed/, type)
  }
  assert.match(await refusal([{ role: 'user', content: [{ type: 'hologram' }] }]), /unknown block type 'hologram'/)
})
