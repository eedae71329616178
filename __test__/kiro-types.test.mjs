// K1b: every request we make has the type that AWS publishes for it, and AWS's own client serialises it to what we send.
//
// Each request of tests/golden/request/bodies.txt becomes a typed literal, `const request: GenerateAssistantResponseCommandInput = {…}`,
// blobs as Uint8Array and `agentMode` added, checked with --strict. No cast, and no import of the JSON, which would widen
// the enums: a wrong enum, a missing or an invented member fails.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { CodeWhispererStreamingClient, GenerateAssistantResponseCommand } from '@aws/codewhisperer-streaming-client'
import ts from 'typescript'

const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..')
const [, ...lines] = readFileSync(path.join(root, 'tests', 'golden', 'request', 'bodies.txt'), 'utf8').split('\n')
const goldens = new Map()
for (const [at, line] of lines.entries()) {
  if (line.startsWith('> {"conversationState"')) goldens.set(lines[at - 1], line.slice(2))
}

test('there are golden requests to check', () => {
  assert.ok(goldens.size > 100, `only ${goldens.size}`)
})

test('every golden request is of the published type (K1b)', { timeout: 300_000 }, () => {
  const literals = new Map([...goldens].map(([name, json]) => [name, literal(JSON.parse(json))]))
  assert.deepEqual(typeErrors(literals), [])
})

test('the type check fails on wrong requests (K1b)', { timeout: 300_000 }, () => {
  const good = () => JSON.parse(goldens.get('tv14-tool-round-trip'))
  const state = (request) => request.conversationState
  const current = (request) => state(request).currentMessage.userInputMessage
  const mistakes = {
    'a wrong enum': (request) => (state(request).chatTriggerType = 'AUTOMATIC'),
    'a wrong enum deep inside': (request) => (current(request).userInputMessageContext.toolResults[0].status = 'failed'),
    'a missing member': (request) => delete current(request).content,
    'an invented member': (request) => (current(request).temperature = 1),
    'an invented member at the top': (request) => (request.max_tokens = 1),
    'null for a string': (request) => (current(request).modelId = null),
    'both members of a union': (request) => {
      state(request).history[0].assistantResponseMessage = { content: 'x' }
    },
  }
  const literals = new Map([['good', literal(good())]])
  for (const [name, mistake] of Object.entries(mistakes)) {
    const request = good()
    mistake(request)
    literals.set(name, literal(request))
  }
  const wrong = new Set(typeErrors(literals).map((error) => error.split(':')[0]))
  assert.deepEqual([...wrong].sort(), Object.keys(mistakes).sort())
})

test('the client serialises every golden request to the same JSON values (K1b)', async (t) => {
  for (const [name, json] of goldens) {
    await t.test(name, async () => {
      const sent = await serialised(withBlobs(JSON.parse(json), (base64) => new Uint8Array(Buffer.from(base64, 'base64'))))
      // Through JSON.stringify, because JavaScript writes -0 as 0.
      assert.deepEqual(JSON.parse(sent.body), JSON.parse(JSON.stringify(JSON.parse(json))))
      assert.equal(`${sent.method} ${sent.path}`, 'POST /generateAssistantResponse')
      assert.equal(sent.headers['x-amzn-kiro-agent-mode'], 'vibe')
      assert.equal(sent.headers['content-type'], 'application/json')
    })
  }
})

/** What the client would send. */
async function serialised(request) {
  let sent
  const client = new CodeWhispererStreamingClient({
    endpoint: 'http://127.0.0.1:9',
    region: 'us-east-1',
    token: async () => ({ token: 'token', expiration: new Date(Date.now() + 3_600_000) }),
    maxAttempts: 1,
    requestHandler: {
      async handle(request) {
        sent = request
        throw new Error('seen enough')
      },
    },
  })
  await assert.rejects(client.send(new GenerateAssistantResponseCommand({ ...request, agentMode: 'vibe' })), /seen enough/)
  return { ...sent, body: new TextDecoder().decode(sent.body) }
}

/** The request as TypeScript. JSON is an expression of it as it stands; blobs become a call. */
function literal(request) {
  const blobs = []
  const marked = withBlobs({ ...request, agentMode: 'vibe' }, (base64) => `\0blob ${blobs.push(base64) - 1}\0`)
  const source = JSON.stringify(marked, null, 1).replace(/"\\u0000blob (\d+)\\u0000"/g, (_, n) => `blob(${JSON.stringify(blobs[n])})`)
  return [
    "import type { GenerateAssistantResponseCommandInput } from '@aws/codewhisperer-streaming-client'",
    'declare function blob(base64: string): Uint8Array',
    `export const request: GenerateAssistantResponseCommandInput = ${source}`,
    '',
  ].join('\n')
}

/** A copy of a request with `change` done to the base64 of every blob: images, documents, redacted reasoning. */
function withBlobs(request, change) {
  const copy = structuredClone(request)
  const { currentMessage, history = [] } = copy.conversationState
  for (const { userInputMessage: user, assistantResponseMessage: assistant } of [currentMessage, ...history]) {
    for (const { source } of [...(user?.images ?? []), ...(user?.documents ?? [])]) source.bytes = change(source.bytes)
    const reasoning = assistant?.reasoningContent
    if (reasoning?.redactedContent !== undefined) reasoning.redactedContent = change(reasoning.redactedContent)
  }
  return copy
}

/** What `tsc --strict` says about files that exist only here, as `NAME: message`. */
function typeErrors(sources) {
  const options = {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.Node16,
    moduleResolution: ts.ModuleResolutionKind.Node16,
    types: ['node'],
  }
  const names = [...sources.keys()]
  const place = (n) => path.join(root, '__test__', `golden-${n}.ts`)
  const virtual = new Map(names.map((name, n) => [place(n), sources.get(name)]))
  const host = ts.createCompilerHost(options)
  const { fileExists, readFile, getSourceFile } = host
  host.fileExists = (file) => virtual.has(path.normalize(file)) || fileExists(file)
  host.readFile = (file) => virtual.get(path.normalize(file)) ?? readFile(file)
  host.getSourceFile = (file, language, ...rest) => {
    const text = virtual.get(path.normalize(file))
    return text === undefined ? getSourceFile(file, language, ...rest) : ts.createSourceFile(file, text, language)
  }
  const program = ts.createProgram([...virtual.keys()], options, host)
  return ts.getPreEmitDiagnostics(program).map(({ file, messageText }) => {
    const n = file === undefined ? -1 : [...virtual.keys()].indexOf(path.normalize(file.fileName))
    return `${names[n] ?? file?.fileName ?? 'tsc'}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`
  })
}
