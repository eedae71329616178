// npm run valgrind: the addon's life and death under valgrind (case 33): streams whole, broken off,
// aborted, dropped to the garbage collector, a thread that is terminated, process.exit() with open streams.
//
// Fails on an invalid read, write or free in which our library takes part. V8's own uninitialised words are ignored.
// Needs valgrind (apt-get install valgrind) and the debug build; takes minutes, so it is no part of npm test.
import { spawnSync } from 'node:child_process'
import { readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { root } from './steps.mjs'

if (spawnSync('valgrind', ['--version']).error) fail('valgrind is missing: apt-get install valgrind')
const log = path.join(tmpdir(), `kiro-valgrind-${process.pid}.log`)
const program = path.join(root, '__test__', 'support', 'valgrind.mjs')
const child = spawnSync(
  'valgrind',
  [
    '--tool=memcheck',
    '--undef-value-errors=no',
    '--leak-check=no',
    '--num-callers=40',
    '--fair-sched=yes',
    `--log-file=${log}`,
    process.execPath,
    '--expose-gc',
    // V8's generated code changes under valgrind's feet otherwise.
    '--jitless',
    program,
  ],
  { stdio: ['ignore', 'pipe', 'inherit'], encoding: 'utf8', timeout: 1_200_000 },
)
process.stdout.write(child.stdout)
const report = readFileSync(log, 'utf8')
rmSync(log)
// An error is a paragraph: what happened, and the stacks of it.
const errors = report
  .replaceAll(/^==\d+== ?/gm, '')
  .split(/\n\s*\n/)
  .filter((text) => /^\s*(Invalid|Mismatched|Jump|Process terminating)/.test(text))
const ours = errors.filter((text) => /kiro.messages/i.test(text))
console.log(report.split('\n').filter((line) => /ERROR SUMMARY/.test(line)).join('\n'))
console.log(`${errors.length} kinds of invalid access, ${ours.length} with the addon in the stack`)
for (const text of ours) console.log(text)
if (child.status !== 7 || !child.stdout.includes('leaving with 20 open streams')) {
  fail(`the program ended with ${child.signal ?? child.status} instead of 7\n${report.slice(-3000)}`)
}
if (ours.length > 0) fail('invalid access')
console.log('ok')

function fail(why) {
  console.error(`valgrind: ${why}`)
  process.exit(1)
}
