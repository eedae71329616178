'use strict'

/**
 * Calls that an AbortSignal ends: one listener for each signal, however many calls wait for it. Node.js warns of the
 * eleventh.
 */

/** By signal: its listener, and the functions that it calls. */
const heard = new WeakMap()

/** `tell` is called when the signal is aborted, unless {@link forget} was there before. */
function onAbort(signal, tell) {
  let ears = heard.get(signal)
  if (ears === undefined) {
    const tells = new Set()
    const listener = () => {
      heard.delete(signal)
      for (const each of [...tells]) each()
    }
    heard.set(signal, (ears = { tells, listener }))
    signal.addEventListener('abort', listener, { once: true })
  }
  ears.tells.add(tell)
}

/** With the last call the listener goes, too. */
function forget(signal, tell) {
  const ears = heard.get(signal)
  if (ears === undefined || !ears.tells.delete(tell) || ears.tells.size > 0) return
  heard.delete(signal)
  signal.removeEventListener('abort', ears.listener)
}

module.exports = { onAbort, forget }
