// `accounts login --browser` with a real browser: opened by the program itself, led from page to page, and told the end.
import assert from 'node:assert/strict'
import { chmodSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { serverBinary } from '../../scripts/steps.mjs'
import { folder, simulator, start, until } from '../../__test__/support/stack.mjs'
import { browser } from './browser.mjs'

/** A login under way, and the address that it had the browser open. */
async function login(t, sim, args) {
  const home = folder(t)
  const [opener, opened] = [path.join(home, 'browser'), path.join(home, 'opened')]
  writeFileSync(opener, `#!/bin/sh\nprintf %s "$1" > ${opened}.new && mv ${opened}.new ${opened}\n`)
  chmodSync(opener, 0o755)
  const pool = path.join(home, 'pool.json')
  const child = start(t, serverBinary(), ['accounts', 'login', ...args], {
    env: { ...sim.env, BROWSER: opener, KIRO_STORE: `file:${pool}`, KIRO_PORTAL_URL: `${sim.url}/signin`, KIRO_EXTERNAL_IDP_HOSTS: sim.url },
  })
  await until(() => existsSync(opened), 'the browser to be opened', 20_000)
  return { child, page: readFileSync(opened, 'utf8'), record: () => Object.values(JSON.parse(readFileSync(pool, 'utf8')).tokens)[0] }
}

async function signsIn(t, sim, address) {
  const page = await (await (await browser(t)).newContext()).newPage()
  await page.goto(address)
  await page.click('#sign-in')
  return page
}

const ended = (child) => until(() => child.exitCode !== null, 'the command to end', 30_000)

test('a browser signs in at the portal', { timeout: 120_000 }, async (t) => {
  const sim = await simulator(t)
  await sim.script({ portal: 'google' })
  const { child, page: address, record } = await login(t, sim, ['--browser'])
  const page = await signsIn(t, sim, address)
  await page.waitForSelector('text=Almost done')
  const shown = await page.content()
  assert.ok(!/sim-code|state=/.test(shown), shown)
  await ended(child)
  assert.equal(child.exitCode, 0, child.output)
  assert.match(child.output, /✓ signed in: account [0-9a-f]{8} \(social\)/)
  assert.doesNotMatch(child.output, /sim-code|sim-acct/)
  assert.equal(record().provider, 'Google')
})

test('a browser is led to the organisation and back', { timeout: 120_000 }, async (t) => {
  const sim = await simulator(t)
  await sim.script({ portal: 'external_idp' })
  const { child, page: address, record } = await login(t, sim, ['external', '--browser'])
  const page = await signsIn(t, sim, address)
  await page.waitForSelector('text=Almost done')
  await ended(child)
  assert.equal(child.exitCode, 0, child.output)
  assert.doesNotMatch(child.output, /someone|sim-idp-client|\/idp\//)
  assert.equal(record().authMethod, 'external_idp')
})

test('a browser hears that the sign-in failed', { timeout: 120_000 }, async (t) => {
  const sim = await simulator(t)
  await sim.script({ portal: 'denied' })
  const { child, page: address } = await login(t, sim, ['--browser'])
  const page = await signsIn(t, sim, address)
  await page.waitForSelector('text=Not signed in')
  await ended(child)
  assert.equal(child.exitCode, 1, child.output)
  assert.match(child.output, /the sign-in was refused in the browser/)
})
