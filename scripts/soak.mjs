// npm run soak: the tests of life and death at their full size, on the release build: 100,000 streams ended and dropped in
// every way, 1,000 that nobody reads. And kiro-server's memory and open files with 5,000 streams (bench/soak.mjs).
//
//   npm run soak                the build, then 100,000 streams
//   npm run soak -- 20000       as many
//   npm run soak -- --no-build  with the addon that is there
import { build } from './build.mjs'
import { conclude, run } from './steps.mjs'

const started = Date.now()
const words = process.argv.slice(2)
const streams = words.find((word) => /^\d+$/.test(word)) ?? '100000'
// The debug build has the simulator; the release build takes the addon's place after it.
let ok = words.includes('--no-build') || ((await build(false)) && (await build(true)))
if (ok) {
  ok = await run(process.execPath, ['--expose-gc', '--test', '--test-reporter=spec', '__test__/life.test.mjs'], {
    env: { KIRO_TEST_STREAMS: streams },
  })
}
// It reads /proc.
if (process.platform === 'linux') ok = (await run(process.execPath, ['bench/soak.mjs'])) && ok
conclude(ok, started)
