// What a measured Node.js process tells: its port, and when asked how late its event loop was.
import { monitorEventLoopDelay } from 'node:perf_hooks'

const delay = monitorEventLoopDelay({ resolution: 1 })

export function report(head) {
  process.on('message', (what) => {
    if (what === 'begin') {
      delay.reset()
      delay.enable()
      process.send({ begun: true })
    } else {
      delay.disable()
      // The timer itself takes its millisecond.
      const late = (ns) => Math.max(0, ns / 1e6 - 1)
      process.send({ loopDelayMs: { p50: late(delay.percentile(50)), p99: late(delay.percentile(99)), max: late(delay.max) } })
    }
  })
  process.on('disconnect', () => process.exit(0))
  process.send(head)
}
