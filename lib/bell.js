'use strict'

/**
 * This thread's end of the doorbell (src/addon/bell.rs): the open calls by number, and the delivery of each batch.
 */

const timers = require('node:timers')
const { performance } = require('node:perf_hooks')
const { markAsUntransferable } = require('node:worker_threads')
const native = require('./native.js')

/** Message kinds; the other end is `MessageKind` in src/addon/bell.rs. */
const DATA = 0
const HEAD = 1
const END = 2
const FAIL = 3
const NOTICE = 4
const MORE = 5

/** Reported as taken in steps of this size, so that most Buffers cost no crossing; a quarter of the bound (N31). */
const REPORT = 16 * 1024
/** How long batches may follow each other, or requests begin, before other work on this thread gets its turn. */
const TURN_MS = 1
/** A kept view keeps its whole batch in memory: in a larger batch a small Buffer is copied out (N54). */
const SHARED = 8 * 1024

/** Open calls by number. A call is any object with `receive(kind, bytes)`; nothing here holds a user's object. */
const calls = new Map()
const bell = new native.Bell(onRing)
let last = 0

/** Enters a call and gives it its number. */
function enter(call) {
  do last = (last + 1) >>> 0 || 1
  while (calls.has(last))
  call.id = last
  calls.set(last, call)
  return last
}

/** Enters a call and starts it; it keeps the process alive until it is released. */
function begin(call, start) {
  const id = enter(call)
  hold(call)
  try {
    start(id)
  } catch (error) {
    calls.delete(id)
    release(call)
    throw error
  }
}

let turnBegan = 0
let turnEnded = 0

function onRing() {
  const now = performance.now()
  if (now - turnEnded > 0.1) turnBegan = now
  const long = now - turnBegan > TURN_MS
  // Rings that come while this function runs are answered in the same turn of the event loop. When that has gone on
  // for long, say that we come by ourselves, after everything else has had its turn.
  drain(long)
  turnEnded = performance.now()
}

function drain(again) {
  const batch = bell.drain(again)
  if (batch === null) return
  const more = batch[0] === 1
  dispatch(batch)
  if (again || more) setImmediate(again ? drainAgain : onRing)
}

function drainAgain() {
  turnBegan = performance.now()
  drain(true)
}

function dispatch(batch) {
  let at = 4
  let shares = 0
  while (at < batch.length) {
    const call = calls.get(batch.readUInt32LE(at))
    const kind = batch.readUInt32LE(at + 4)
    const from = at + 12
    at = from + batch.readUInt32LE(at + 8)
    // Two Buffers share the batch's memory: transferring one to another thread must not take the other along (N54).
    if (kind === DATA && ++shares === 2) markAsUntransferable(batch.buffer)
    if (call === undefined) continue
    if (kind === END || kind === FAIL) {
      calls.delete(call.id)
      release(call)
    }
    try {
      call.receive(kind, batch.subarray(from, at), batch.length <= SHARED)
    } catch (error) {
      // A sink of the user's threw. The other calls of this batch must go on.
      queueMicrotask(() => {
        throw error
      })
    }
  }
}

// Awaited calls keep the process alive (N51). A ref'ed timer does it without a crossing. It is released a little later,
// because a consumer that takes one Buffer after the other starts and stops waiting all the time.
const keeper = timers.setInterval(() => {}, 0x7fffffff).unref()
let held = 0
let letGo = null

/** The process must live until `release(call)`. Once a call. */
function hold(call) {
  if (call.held === true) return
  call.held = true
  if (held++ === 0 && letGo === null) keeper.ref()
}

function release(call) {
  if (call.held !== true) return
  call.held = false
  if (--held === 0 && letGo === null) {
    letGo = timers
      .setTimeout(() => {
        letGo = null
        if (held === 0) keeper.unref()
      }, 20)
      .unref()
  }
}

/** A call with one result and no body in pieces; `head` gets what comes before it. */
function once(start, head) {
  return new Promise((resolve, reject) => {
    const call = {
      id: 0,
      held: false,
      receive(kind, bytes) {
        if (kind === END) resolve(bytes)
        else if (kind === HEAD) head(bytes, call.id)
        else reject(JSON.parse(bytes))
      },
    }
    begin(call, start)
  })
}

module.exports = { native, bell, DATA, HEAD, END, FAIL, NOTICE, MORE, REPORT, TURN_MS, enter, begin, hold, release, once }
