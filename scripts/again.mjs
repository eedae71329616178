// A second try, alone, for the few tests that failed beside hundreds of others. Most of ours wait for real time-outs and
// other processes, and on two busy cores one in a thousand comes too late. What passes alone is no failure of the change;
// it is a fault of the test all the same, so its name is the last thing that a run says.
import { flaky, run, totals } from './steps.mjs'

/** More than these are no bad luck. */
const MOST = 3

/**
 * Runs tests: `first(listen)`, then `alone(names)` for the names that `failed` finds in the lines of the first output.
 * Both resolve to whether all was well, as `run` does.
 */
export async function twice(first, failed, alone) {
  const names = new Set()
  const before = { ...totals }
  const ok = await first((line) => {
    const name = failed(line)
    if (name) names.add(name)
  })
  const after = { ...totals }
  if (ok || names.size === 0 || names.size > MOST) return ok
  console.log(`\nonce more, alone: ${[...names].join(', ')}`)
  const passed = await alone([...names])
  const ran = totals.passed - after.passed
  if (!passed || ran < names.size) return false
  const lost = after.failed - before.failed
  Object.assign(totals, { ...after, passed: after.passed + lost, failed: before.failed })
  flaky.push(...names)
  return true
}

/** Runs files of node:test; `flags` are for the first try alone. */
export function nodeTests(files, { flags = [], env } = {}) {
  const always = ['--expose-gc', '--test', '--test-reporter=spec', '--test-reporter-destination=stdout']
  const start = (files, flags, listen) => run(process.execPath, [...always, ...flags, ...files], { env, listen })
  return twice(
    (listen) => start(files, flags, listen),
    (line) => /^\s*test at (\S+\.test\.mjs):\d+:\d+$/.exec(line)?.[1],
    (failed) => start(failed, ['--test-concurrency=1']),
  )
}
