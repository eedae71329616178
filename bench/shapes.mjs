// Why the doorbell: the same bytes brought into JavaScript in other ways (bench/shapes). Each shape runs in a process of its
// own, so that none warms or litters the other's heap.
import { spawnSync } from 'node:child_process'
import { copyFileSync } from 'node:fs'
import path from 'node:path'
import { run, target } from '../scripts/steps.mjs'
import { median } from './measure.mjs'

const here = path.join(import.meta.dirname, 'shapes')
export const SHAPES = ['call per chunk', 'promise per next()', 'web ReadableStream', 'doorbell, for await', 'doorbell, sink']
/** What a chunk is: twenty deltas as one write of upstream's gives them, or one. */
const LOADS = {
  bursts: { streams: 50, chunks: 400, bytes: 3000, gapMs: 2 },
  singly: { streams: 500, chunks: 100, bytes: 150, gapMs: 20 },
}

/** Builds the experiment; gives the library that node loads. */
export async function build() {
  const folder = path.join(target, 'shapes')
  const args = ['build', '--release', '--manifest-path', path.join(here, 'Cargo.toml'), '--target-dir', folder]
  if (!(await run('cargo', args))) return null
  const library = path.join(folder, 'shapes.node')
  const name = process.platform === 'darwin' ? 'libkiro_bench_shapes.dylib' : 'libkiro_bench_shapes.so'
  copyFileSync(path.join(folder, 'release', name), library)
  return library
}

/** One round of all: `keep(case, shape, figures)`. */
export function shapes(library, keep) {
  for (const [load, plan] of Object.entries(LOADS)) {
    for (const shape of SHAPES) {
      const child = spawnSync(process.execPath, [path.join(here, 'run.mjs'), library, shape, JSON.stringify(plan)], {
        encoding: 'utf8',
      })
      if (child.status !== 0) throw new Error(`${shape}: ${child.stderr}`)
      keep(`shapes-${load}`, shape, JSON.parse(child.stdout))
    }
  }
}

/** Rows as report.mjs has them: no targets, only what was measured. */
export function judgeShapes(cases) {
  const rows = []
  for (const [load, label] of [
    ['bursts', 'a chunk of 20 deltas'],
    ['singly', 'a chunk of one delta'],
  ]) {
    const found = cases[`shapes-${load}`]
    if (found === undefined) continue
    for (const [shape, figures] of Object.entries(found)) {
      const of = (name) => `${median(figures.map((f) => f[name])).toFixed(2)} µs`
      rows.push({ what: `${label}: ${shape}`, target: '–', measured: `${of('mainMicros')} main thread, ${of('cpuMicros')} CPU` })
    }
  }
  return rows
}
