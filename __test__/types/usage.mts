// Compiled, never run: what a strict TypeScript program may write (N60).
import { createServer } from 'node:http'
import { Readable } from 'node:stream'
import type Anthropic from '@anthropic-ai/sdk'
import {
  KiroError,
  KiroGateway,
  type AccountInfo,
  type ContentBlock,
  type ContentBlockDelta,
  type CountTokensRequest,
  type Credential,
  type GatewayOptions,
  type GatewayServer,
  type Health,
  type KiroErrorCode,
  type Message,
  type MessagesInput,
  type MessagesRequest,
  type MessageStream,
  type ModelInfo,
  type Outcome,
  type StreamEvent,
  type StreamSummary,
  type Usage,
} from 'kiro-messages'

export const options: GatewayOptions = { store: 'file:accounts.json', strategy: 'sticky', storeWaitMs: 0, env: {} }
export const service: GatewayOptions = { store: 'aiclient:configs/provider_pools.json' }
// @ts-expect-error: no such word
export const wrong: GatewayOptions = { strategy: 'random' }
// @ts-expect-error: no such option
export const unknown: GatewayOptions = { redisUlr: '' }
// @ts-expect-error: connect() makes them
export const made = new KiroGateway()

/** The example of the class's documentation, with what TypeScript adds. */
export async function example(signal: AbortSignal): Promise<StreamSummary> {
  await using gateway = await KiroGateway.connect(options)
  const stream: MessageStream = await gateway.streamMessages(
    { model: 'claude-sonnet-4-5', max_tokens: 1024, messages: [{ role: 'user', content: 'Hello' }] },
    { signal, requestId: 'mine', headers: { 'x-claude-code-session-id': 'a' }, accountId: 'b', record: false },
  )
  for await (const bytes of stream) process.stdout.write(bytes.toString('utf8'))
  return stream.summary
}

export async function everything(gateway: KiroGateway, input: MessagesInput): Promise<void> {
  createServer(gateway.handler({ basePath: '/kiro', auth: 'none' })).listen(0)
  const message: Message = await gateway.createMessage(input)
  const usage: Usage = message.usage
  const tokens: number = (await gateway.countTokens(input)).input_tokens + gateway.countTokensSync(input).input_tokens
  // As the package's own page has it: without max_tokens.
  const short: CountTokensRequest = { model: 'claude-sonnet-4-5', messages: [{ role: 'user', content: 'How long is this?' }] }
  const counts: number[] = [(await gateway.countTokens(short)).input_tokens, gateway.countTokensSync({ ...short, max_tokens: 1 }).input_tokens]
  // @ts-expect-error: an answer needs it
  await gateway.createMessage(short)
  const models: ModelInfo[] = gateway.listModels()
  const health: Health = gateway.health()
  const text: string = gateway.metrics()
  const stream = await gateway.streamMessages(input)
  Readable.from(stream).destroy()
  stream.cancel()
  console.log(usage, tokens, counts, models, health, text)
  await gateway.close({ graceMs: 4000 })
}

/** Accounts, events and outcomes. */
export async function pool(signal: AbortSignal): Promise<Credential | null> {
  const seen: Outcome[] = []
  const gateway = await KiroGateway.connect({ recordOutcome: (outcome) => seen.push(outcome) > 0 })
  gateway
    .on('accountEjected', ({ accountId, message }) => console.log(accountId.slice(0, 8), message))
    .once('storeBack', ({ awayMs, written }) => console.log(awayMs + written))
    // @ts-expect-error: no such event
    .on('nothing', () => {})
  const [account]: AccountInfo[] = gateway.accounts()
  if (account === undefined) return null
  const limits = await gateway.usageLimits(account.id, { signal })
  console.log(limits.usageBreakdownList?.[0]?.currentUsage, (await gateway.refresh(account.id)).expiresAt)
  const { account: mine, warnings } = await gateway.login({ method: 'google', onCode: ({ userCode }) => console.log(userCode), signal })
  const taken = await gateway.importAccounts('credentials.json', { dryRun: true })
  for (const one of taken.accounts) if (one.outcome === 'failed') console.log(one.error, mine.kind, warnings)
  // @ts-expect-error: no such way to sign in
  await gateway.login({ method: 'okta', onCode: () => {} })
  for (const outcome of seen) {
    if (outcome.kind === 'quota') console.log(outcome.until.getTime(), outcome.message)
    if (outcome.kind === 'failure') console.log(outcome.cause)
  }
  return gateway.credential(account.id)
}

/** What the API has beyond what is declared may be written down as it is. */
export const literal: MessagesRequest = {
  model: 'claude-sonnet-4-5',
  max_tokens: 1024,
  system: [{ type: 'text', text: 'Be brief.', cache_control: { type: 'ephemeral' } }],
  tools: [
    { name: 'look', input_schema: { type: 'object' }, strict: true, cache_control: { type: 'ephemeral' } },
    { type: 'web_search_20250305', name: 'web_search', max_uses: 3 },
  ],
  output_config: { effort: 'high' },
  messages: [
    { role: 'user', content: [{ type: 'image', source: { type: 'base64', media_type: 'image/png', data: '' } }] },
    { role: 'assistant', content: [{ type: 'tool_use', id: 'a', name: 'look', input: {} }] },
    { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'a', content: 'red', is_error: false }] },
  ],
}
// @ts-expect-error: a member of the wrong name, and no max_tokens
export const slip: MessagesRequest = { model: 'claude-sonnet-4-5', max_token: 1024, messages: [] }
// @ts-expect-error: a block without its type
export const typeless: MessagesRequest['messages'][number] = { role: 'user', content: [{ text: 'Hello' }] }

/** Every reason to stop, and nothing else. */
export const goesOn: Record<NonNullable<Message['stop_reason']>, boolean> = {
  end_turn: false,
  tool_use: true,
  max_tokens: false,
  stop_sequence: false,
  pause_turn: true,
  refusal: false,
  model_context_window_exceeded: false,
}

export function found(block: ContentBlock): string[] {
  if (block.type === 'server_tool_use') return [block.id]
  if (block.type !== 'web_search_tool_result') return []
  return Array.isArray(block.content) ? block.content.map(({ url }) => url) : [block.content.error_code]
}

export async function events(gateway: KiroGateway, input: MessagesInput): Promise<string> {
  let text = ''
  const system = { mode: 'append', text: 'Be brief.' } as const
  for await (const event of gateway.streamEvents(input, { coalesce: false, system })) {
    if (event.type === 'content_block_delta' && event.delta.type === 'text_delta') text += event.delta.text
  }
  return text
}

/** What they have in common with the SDK's events; `ping` isn't declared there. */
type Shared<T extends StreamEvent['type']> = Extract<Anthropic.MessageStreamEvent, { type: T }>
export function eventToSdk(
  event: Extract<StreamEvent, { type: 'content_block_delta' | 'content_block_stop' | 'message_stop' }>,
): Shared<'content_block_delta' | 'content_block_stop' | 'message_stop'> {
  return event
}
export function deltaFromSdk(event: Anthropic.MessageStreamEvent): string | undefined {
  const ours: Pick<StreamEvent, 'type'> = event
  return ours.type
}

type SdkDelta = Anthropic.TextDelta | Anthropic.ThinkingDelta | Anthropic.SignatureDelta | Anthropic.InputJSONDelta
export function deltaToSdk(delta: ContentBlockDelta): SdkDelta {
  return delta
}
export function deltaBack(delta: SdkDelta): ContentBlockDelta {
  return delta
}
export function startToSdk(message: Message): Pick<Anthropic.Message, 'id' | 'type' | 'role' | 'model'> {
  return message
}
export function startFromSdk(message: Anthropic.Message): Pick<Message, 'id' | 'type' | 'role' | 'stop_sequence'> {
  return message
}
type Delta = Extract<StreamEvent, { type: 'message_delta' }>['delta']
export function endToSdk(delta: Delta): Pick<Anthropic.RawMessageDeltaEvent.Delta, keyof Delta> {
  return delta
}
/** What the answer says goes back in as it came. */
export function turn(message: Message): Anthropic.MessageParam {
  return { role: message.role, content: message.content }
}
export function ourTurn(message: Message): MessagesRequest['messages'][number] {
  return { role: message.role, content: message.content }
}
export function paramFromSdk(message: Anthropic.MessageParam): MessagesRequest['messages'][number] {
  return message
}

export async function serve(gateway: KiroGateway): Promise<number> {
  const server: GatewayServer = await gateway.listen({ host: '127.0.0.1', port: 0 })
  await server.close(1000)
  return server.port
}

export function codeOf(error: unknown): KiroErrorCode | undefined {
  if (error instanceof KiroError && error.code === 'KIRO_RATE_LIMITED') console.log(error.retryAfterMs ?? 0)
  return KiroError.is(error) ? error.code : undefined
}

export function textOf(block: ContentBlock): string {
  switch (block.type) {
    case 'text':
      return block.text
    case 'thinking':
      return block.thinking
    case 'tool_use':
      return JSON.stringify(block.input)
    case 'redacted_thinking':
      return ''
    case 'server_tool_use':
    case 'web_search_tool_result':
      return found(block).join()
  }
}

/** The SDK's requests are ours, and our answers are what the SDK's have in common with them. */
export function fromSdk(request: Anthropic.MessageCreateParams): MessagesRequest {
  return request
}
export function toSdk(message: Message): Pick<Anthropic.Message, 'id' | 'role' | 'type' | 'stop_reason' | 'stop_sequence'> {
  return message
}
export function usageToSdk(usage: Usage): Pick<Anthropic.Usage, keyof Usage> {
  return { server_tool_use: null, ...usage }
}
export function modelsToSdk(model: ModelInfo): Pick<Anthropic.ModelInfo, 'id' | 'type' | 'display_name' | 'created_at'> {
  return model
}
