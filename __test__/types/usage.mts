// Compiled, never run: what a strict TypeScript program may write (N60).
import { KiroError, type GatewayOptions, type KiroErrorCode } from 'kiro-messages'

export const options: GatewayOptions = { store: 'file:accounts.json', strategy: 'sticky', storeWaitMs: 0, env: {} }
// @ts-expect-error: no such word
export const wrong: GatewayOptions = { strategy: 'random' }
// @ts-expect-error: no such option
export const unknown: GatewayOptions = { redisUlr: '' }

export function codeOf(error: unknown): KiroErrorCode | undefined {
  return KiroError.is(error) ? error.code : undefined
}
