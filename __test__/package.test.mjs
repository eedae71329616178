// What a program sees when it loads the package.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { test } from 'node:test'
import * as imported from 'kiro-messages'

const require = createRequire(import.meta.url)
const required = require('kiro-messages')

test('case 1: import and require give the same objects', () => {
  assert.deepEqual(Object.keys(imported).filter((name) => name !== 'default').sort(), Object.keys(required).sort())
  for (const name of Object.keys(required)) assert.equal(imported[name], required[name], name)
})

test('index.d.ts declares every class that is exported, and nothing else that exists at run time', () => {
  const types = readFileSync(new URL('../index.d.ts', import.meta.url), 'utf8')
  const declared = [...types.matchAll(/^export declare (?:class|function|const) (\w+)/gm)].map((match) => match[1])
  assert.deepEqual([...new Set(declared)].sort(), Object.keys(required).sort())
})

test('every option of the settings table is in the types', () => {
  const types = readFileSync(new URL('../index.d.ts', import.meta.url), 'utf8')
  const settings = JSON.parse(require('../index.js').settings())
  assert.ok(settings.length > 30)
  for (const { js } of settings) assert.match(types, new RegExp(`^  ${js}\\?: `, 'm'))
})
