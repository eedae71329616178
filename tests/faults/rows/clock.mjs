// The wall clock of the server's machine steps. A library of a few lines stands between the server and clock_gettime
// (clock.c): libfaketime would also slow down what it should leave alone.
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { has, sleep } from '../kit.mjs'
import { Skip } from '../row.mjs'

const kind = 'clock'
const HOUR = 3_600_000

/** The steps of the clock in milliseconds from the right time, two seconds each. */
function steps({ name, short, at, life = 3600 }) {
  return {
    kind,
    name,
    short,
    load: '20 requests/s',
    async run(t) {
      if (!has('cc')) throw new Skip('no C compiler to make a clock with')
      const library = path.join(t.stage.folder, 'clock.so')
      const source = fileURLToPath(new URL('../clock.c', import.meta.url))
      const made = spawnSync('cc', ['-shared', '-fPIC', '-O1', '-o', library, source, '-ldl'], { encoding: 'utf8' })
      if (made.status !== 0) throw new Skip(`the clock can't be compiled: ${made.stderr}`)
      const file = path.join(t.stage.folder, 'step')
      writeFileSync(file, '0')
      const env = { LD_PRELOAD: library, CLOCK_STEP: file }
      const { upstream, store, server } = await t.place({ accounts: 6, life, env })
      const load = t.stage.load(server, { rate: 20 })
      await sleep(1500)
      for (const step of [...at, 0]) {
        writeFileSync(file, String(step))
        await sleep(2000)
      }
      t.over()
      await sleep(2000)
      t.take(await load.stop())
      const { refreshes } = await upstream.refreshes()
      t.note(`${refreshes} refreshes`)
      t.expect(refreshes < 120, `${refreshes} refreshes of 6 accounts`)
      await t.whole({ store, upstream })
    },
  }
}

export const rows = [
  steps({ name: 'the clock is set two hours ahead, and back', short: true, at: [2 * HOUR, 2 * HOUR] }),
  steps({ name: 'the clock is set two hours back, and right again; tokens live 2 s', at: [-2 * HOUR, -2 * HOUR, -2 * HOUR, -2 * HOUR, -2 * HOUR, -2 * HOUR], life: 2 }),
  steps({ name: 'the clock jumps every two seconds, by seconds to years', at: [5000, -5000, 60_000, -HOUR, 24 * HOUR, -24 * HOUR, 8760 * HOUR, -8760 * HOUR] }),
]
