// docs/reliability.md shows each row of the fault suite, and nothing else.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import test from 'node:test'
import { ROWS } from '../tests/faults/rows.mjs'

test('docs/reliability.md has every row of npm run test:faults', () => {
  const page = readFileSync(new URL('../docs/reliability.md', import.meta.url), 'utf8')
  const rows = page.split('\n').filter((line) => line.startsWith('| **'))
  for (const { kind, name } of ROWS) {
    const found = rows.filter((row) => row.startsWith(`| **${kind}**: ${name}`))
    assert.equal(found.length, 1, `${kind}: ${name}`)
  }
  assert.equal(rows.length, ROWS.length)
})

test('no two rows of the fault suite are equal', () => {
  const names = ROWS.map(({ kind, name }) => `${kind}: ${name}`)
  assert.equal(new Set(names).size, names.length)
  for (const { load, run } of ROWS) assert.ok(load.length > 0 && typeof run === 'function')
})
