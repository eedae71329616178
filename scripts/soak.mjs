// npm run soak: the tests of life and death at their full size, on the release build: 100,000 streams ended and dropped in
// every way, 1,000 that nobody reads. And kiro-server's memory and open files with 5,000 streams (bench/soak.mjs).
//
//   npm run soak                  the build, then 100,000 streams
//   npm run soak -- 20000         as many
//   npm run soak -- --no-build    with the addon that is there
//
// With a time: random faults for so long, two servers and the Node.js service on one Redis, refresh tokens that work once, an
// hour of life in two seconds (tests/faults/soak.mjs).
//
//   npm run soak -- 30m           on a release build of kiro-server; also 90s, 2h
//   npm run soak -- 30m --seed 7  the faults in that seed's order; without it, a seed from the clock, which is printed
//   npm run soak -- 5m --dev      on a debug build
//   npm run soak -- 5m --server FILE
import { parseArgs } from 'node:util'
import { build } from './build.mjs'
import { need } from './needs.mjs'
import { conclude, installPackages, run, serverUnderTest, totals } from './steps.mjs'

const started = Date.now()
const { values, positionals: words } = parseArgs({
  options: {
    'no-build': { type: 'boolean', default: false },
    seed: { type: 'string' },
    dev: { type: 'boolean', default: false },
    server: { type: 'string' },
  },
  allowPositionals: true,
})
const time = words.map((word) => /^(\d+)(s|m|h)$/.exec(word)).find(Boolean)
await (time ? faults(Number(time[1]) * { s: 1, m: 60, h: 3600 }[time[2]]) : streams())

async function faults(seconds) {
  if (process.platform !== 'linux') {
    console.error('soak: it reads /proc: Linux only')
    process.exit(1)
  }
  const ready = (await installPackages()) && (await need('redis-server'))
  const binary = ready && (await serverUnderTest(values))
  if (!binary) conclude(false, started)
  const { soak } = await import('../tests/faults/soak.mjs')
  const seed = Number(values.seed ?? started % 100_000)
  console.log(`random faults for ${seconds} s, --seed ${seed}`)
  const wrong = await soak({ binary, seconds, seed })
  for (const what of wrong) console.error(`soak: ${what}`)
  totals[wrong.length === 0 ? 'passed' : 'failed'] += 1
  conclude(true, started)
}

async function streams() {
  const count = words.find((word) => /^\d+$/.test(word)) ?? '100000'
  // The debug build has the simulator; the release build takes the addon's place after it.
  let ok = values['no-build'] || ((await build(false)) && (await build(true)))
  if (ok) {
    ok = await run(process.execPath, ['--expose-gc', '--test', '--test-reporter=spec', '__test__/life.test.mjs'], {
      env: { KIRO_TEST_STREAMS: count },
    })
  }
  // It reads /proc.
  if (process.platform === 'linux') ok = (await run(process.execPath, ['bench/soak.mjs'])) && ok
  conclude(ok, started)
}
