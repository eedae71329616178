// The status page in a real browser. Keeps screenshots in .cache/status/.
import assert from 'node:assert/strict'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { accounts, ask, server, simulator, until } from '../../__test__/support/stack.mjs'
import { root } from '../../scripts/steps.mjs'
import { browser } from './browser.mjs'

const KEY = 'status-test-key'
const SHOTS = path.join(root, '.cache', 'status')

/** A page whose every complaint fails the test. */
async function open(t, context, url) {
  const page = await context.newPage()
  const wrong = []
  const asked = []
  page.on('pageerror', (error) => wrong.push(error.message))
  page.on('console', (message) => message.type() === 'error' && wrong.push(message.text()))
  page.on('request', (request) => asked.push(request.url()))
  await page.goto(`${url}/status`)
  return { page, wrong, asked }
}

const text = (page, id) => page.locator(`#${id}`).innerText()
const reads = (page, id, wanted, ms = 15_000) =>
  until(async () => wanted.test(await text(page, id)), `#${id} to read ${wanted}`, ms)

test('the status page is live, strict and legible', { timeout: 120_000 }, async (t) => {
  const sim = await simulator(t)
  const pool = accounts(t, 'sim-ok.one', 'sim-ok.two', 'sim-ok.three', 'sim-402', 'sim-suspended', 'sim-429-retry-after-90')
  const names = ['Ada', 'Grace', 'Edsger', 'Barbara', 'Donald', 'Margaret <b>H.</b>']
  const store = JSON.parse(readFileSync(pool.file, 'utf8'))
  pool.ids.forEach((id, i) => (store.accounts[id].customName = names[i]))
  writeFileSync(pool.file, JSON.stringify(store), { mode: 0o600 })
  const env = { KIRO_API_KEY: KEY, KIRO_MAX_ATTEMPTS: '6' }
  const kiro = await server(t, sim, pool, env)
  const post = (body, signal) =>
    fetch(`${kiro.url}/v1/messages`, { method: 'POST', headers: { 'x-api-key': KEY }, body: JSON.stringify(body), signal })
  const launched = await browser(t)
  const context = await launched.newContext({ viewport: { width: 1180, height: 900 }, colorScheme: 'light' })
  const { page, wrong, asked } = await open(t, context, kiro.url)

  await t.test('numbers change while requests run', async () => {
    await reads(page, 'total', /^0 since the start$/)
    assert.equal(await text(page, 'streams'), '0')
    assert.equal(await page.locator('#accounts tr').count(), 6)

    const abort = new AbortController()
    const held = await Promise.all(
      Array.from({ length: 4 }, () => post(ask({ text: 'on and on', end: 'hang' }, { stream: true }), abort.signal)),
    )
    await reads(page, 'streams', /^4$/)
    await reads(page, 'in-flight', /^4 requests in flight$/)

    for (const first_ms of [0, 0, 0, 20, 40, 60, 60, 120, 120, 120, 200, 300, 300, 600]) {
      await (await post(ask({ text: 'fine', first_ms }, { stream: true }))).text()
    }
    await (await post(ask('400'))).text()
    await (await post({ ...ask(), model: 'claude-none' })).text()
    await reads(page, 'outcome-complete', /^14$/)
    await reads(page, 'outcome-error', /^1$/)
    await reads(page, 'outcome-refused', /^1$/)
    assert.match(await text(page, 'median'), /^[\d.]+ (ms|s)$/)
    assert.match(await page.locator('#histogram').getAttribute('aria-label'), /^Requests by time to first event\. up to .+: \d+/)
    const heights = await page.locator('.column i').evaluateAll((bars) => bars.map((bar) => bar.offsetHeight))
    assert.ok(heights.filter((height) => height > 0).length > 1, `bars of ${heights}`)

    abort.abort()
    await reads(page, 'streams', /^0$/)
    await reads(page, 'outcome-cancelled', /^4$/)
    assert.equal(held.length, 4)
  })

  await t.test('accounts show their health and rest, never a whole id', async () => {
    await until(async () => (await page.locator('#accounts .badge').allInnerTexts()).includes('quota'), 'the quota to be seen')
    const rows = await page.locator('#accounts tr').evaluateAll((all) => all.map((row) => [...row.cells].map((cell) => cell.innerText)))
    const of = (name) => rows.find((row) => row[1] === name)
    const state = Object.fromEntries(names.map((name) => [name, of(name)?.[2]]))
    assert.deepEqual(state, { Ada: 'healthy', Grace: 'healthy', Edsger: 'healthy', Barbara: 'quota', Donald: 'ejected', [names[5]]: 'cooling' })
    assert.match(of(names[5])[3], /^\d+ s$|^1 min \d+ s$/)
    assert.deepEqual(rows.slice(0, 3).map((row) => row[2]), ['ejected', 'quota', 'cooling'], 'what needs a look first')
    assert.match(of('Donald')[6], /suspended/)
    const all = await page.content()
    for (const id of pool.ids) {
      assert.ok(all.includes(id.slice(0, 8)) && !all.includes(id.slice(0, 9)), 'ids are cut to 8')
    }
    assert.ok(!all.includes(KEY) && !all.includes('refresh-'), 'no secret')
  })

  await t.test('it can be read: light, dark, narrow', async () => {
    mkdirSync(SHOTS, { recursive: true })
    const abort = new AbortController()
    const held = await Promise.all([1, 2].map(() => post(ask({ text: 'seen', end: 'hang' }, { stream: true }), abort.signal)))
    await reads(page, 'streams', new RegExp(`^${held.length}$`))
    for (const [name, scheme, width] of [['light', 'light', 1180], ['dark', 'dark', 1180], ['narrow', 'light', 400]]) {
      await page.emulateMedia({ colorScheme: scheme, reducedMotion: 'reduce' })
      await page.setViewportSize({ width, height: 900 })
      await page.screenshot({ path: path.join(SHOTS, `${name}.png`), fullPage: true })
      const wide = await page.evaluate(() => document.documentElement.scrollWidth)
      assert.ok(wide <= width, `${name}: ${wide} wide in ${width}`)
      const [ground, ink] = await page.evaluate(() => {
        const style = getComputedStyle(document.body)
        return [style.backgroundColor, style.color]
      })
      assert.ok(contrast(ground, ink) > 7, `${name}: ${ink} on ${ground}`)
    }
    abort.abort()
    await page.setViewportSize({ width: 1180, height: 900 })
    const headings = await page.getByRole('heading').allInnerTexts()
    assert.deepEqual(headings, ['kiro-server', 'Time to first event', 'Requests by outcome', 'Accounts'])
    assert.equal(await page.getByRole('table', { name: 'Accounts with their health, rest and load' }).count(), 1)
  })

  await t.test('nothing else can run in it, and it asks nobody else', async () => {
    assert.deepEqual(wrong, [])
    assert.ok(asked.every((url) => url.startsWith(kiro.url) || url.startsWith('data:')), asked.join('\n'))
    const ran = await page.evaluate(() => {
      try {
        const script = document.createElement('script')
        script.textContent = 'window.foreign = true'
        document.body.append(script)
      } catch {}
      return window.foreign === true
    })
    assert.equal(ran, false)
  })

  await t.test('it comes back after a restart', async () => {
    const port = new URL(kiro.url).port
    kiro.child.kill('SIGTERM')
    assert.equal((await kiro.child.ended).code, 0)
    await reads(page, 'notice', /connection is lost/)
    await server(t, sim, pool, env, port)
    await reads(page, 'live', /^live$/)
    await reads(page, 'total', /^0 since the start$/)
    assert.equal(await page.locator('#notice').isVisible(), false)
  })

  await t.test('from elsewhere it wants the key, as a password', async () => {
    const extraHTTPHeaders = { 'x-forwarded-for': '192.0.2.1' }
    const stranger = await launched.newContext({ extraHTTPHeaders })
    // Without anybody to fill in its form, the browser gives up.
    await assert.rejects((await stranger.newPage()).goto(`${kiro.url}/status`), /ERR_INVALID_AUTH_CREDENTIALS/)
    const known = await launched.newContext({ extraHTTPHeaders, httpCredentials: { username: 'operator', password: KEY } })
    const { page } = await open(t, known, kiro.url)
    await reads(page, 'live', /^live$/)
    await reads(page, 'health', /^healthy$/)
    const byQuery = await (await launched.newContext({ extraHTTPHeaders })).newPage()
    await byQuery.goto(`${kiro.url}/claude-kiro-oauth/status?key=${KEY}`)
    await reads(byQuery, 'live', /^live$/)
  })
})

/** WCAG's contrast of two `rgb(…)` colours. */
function contrast(...colours) {
  const [low, high] = colours
    .map((colour) => {
      const [r, g, b] = colour.match(/[\d.]+/g).map((part) => {
        const value = Number(part) / 255
        return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4
      })
      return 0.2126 * r + 0.7152 * g + 0.0722 * b
    })
    .sort((a, b) => a - b)
  return (high + 0.05) / (low + 0.05)
}
