'use strict'

/** Names of models in the host: what it lists, what serves a name that nobody knows, and names that it made (N90, N91, N98). */

const { nativeOf } = require('../gateway.js')

/** The model that serves unknown names unless somebody says otherwise: one that every plan of Kiro has. */
const DEFAULT_MODEL = 'claude-sonnet-4-5'

/** The names that the host itself lists for the provider: clients were set up with them. */
const LISTED = [
  'claude-opus-4-7',
  'claude-opus-4-6',
  'claude-sonnet-4-6',
  'claude-opus-4-5',
  'claude-opus-4-5-20251101',
  'claude-haiku-4-5',
  'claude-sonnet-4-5',
  'claude-sonnet-4-5-20250929',
  'claude-sonnet-4-20250514',
  'claude-3-7-sonnet-20250219',
]

/** For an unknown model without a fallback: upstream decides whether it exists. */
const SOME_MAXIMUM = 32_000

/** The gateways whose log lines are written already. */
const watched = new WeakSet()

/** The model for names that aren't known: the host's wish, else the gateway's setting, else the default. None for null. */
function fallbackOf(host, gateway) {
  const wish = host?.modelFallback
  const fallback = wish === undefined ? (nativeOf(gateway).modelFallback() ?? DEFAULT_MODEL) : wish
  if (fallback !== null && !watched.has(gateway)) {
    watched.add(gateway)
    gateway.on('modelReplaced', ({ model, instead }) => console.warn(`[kiro-messages] model ${model} is not known: ${instead} serves it`))
  }
  return fallback ?? undefined
}

/** The most output tokens of the model that will serve. */
function maximumOf(gateway, model, fallback) {
  const native = nativeOf(gateway)
  const most = (name) => (typeof name === 'string' ? native.maxOutput(name) : null)
  return most(model) ?? most(fallback) ?? SOME_MAXIMUM
}

/** The models that can be asked for, and all names that the host lists. */
function namesOf(gateway) {
  return [...new Set([...gateway.listModels().map(({ id }) => id), ...LISTED])]
}

/**
 * The host's custom models for its gateway, `id` and `model` in turn (N98). As the host reads them: the first of an id counts,
 * and one without a model stands for itself.
 */
function customNames({ customModels }) {
  if (!Array.isArray(customModels)) return []
  return customModels.flatMap((custom) => (isName(custom?.id) ? [custom.id, isName(custom.model) ? custom.model : custom.id] : []))
}

function isName(name) {
  return typeof name === 'string' && name !== ''
}

module.exports = { DEFAULT_MODEL, customNames, fallbackOf, maximumOf, namesOf }
