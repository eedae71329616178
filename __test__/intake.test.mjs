// Accounts that come in while a gateway runs: login() and importAccounts() (K93–K96, R78, R87–R89).
import assert from 'node:assert/strict'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { KiroError } from 'kiro-messages'
import { accounts, ask, collect, folder, gateway, simulator } from './support/stack.mjs'

const failure = (promise) => promise.then(() => assert.fail('did not reject'), (error) => error)
const pool = (place) => JSON.parse(readFileSync(place.file, 'utf8'))

test('a person signs in, and the account serves at once (K93–K95, R88, R89)', async (t) => {
  const sim = await simulator(t)
  const place = accounts(t, 'sim-402')
  const gate = await gateway(t, sim, place)
  await sim.script({ device: ['pending', 'ok'] })
  const codes = []
  const done = await gate.login({ method: 'builder-id', name: 'mine', onCode: (code) => codes.push(code) })
  assert.equal(codes.length, 1)
  assert.equal(codes[0].userCode, 'ABCD-EFGH')
  assert.equal(codes[0].verificationUriComplete, 'https://view.awsapps.com/start/#/device?user_code=ABCD-EFGH')
  assert.ok(Date.parse(codes[0].expiresAt) > Date.now())
  const { account, plan, used, limit, warnings } = done
  assert.deepEqual([account.name, account.kind, account.state, warnings], ['mine', 'builder-id', 'healthy', []])
  assert.deepEqual([typeof plan, typeof used, typeof limit], ['string', 'number', 'number'])
  assert.ok(gate.accounts().some(({ id }) => id === account.id))
  const answer = await collect(await gate.streamMessages(ask({ text: 'x' }), { accountId: account.id }))
  assert.match(String(answer), /message_stop/)
  const text = JSON.stringify({ done, codes })
  for (const secret of ['sim-acct', 'sim-client', 'sim-device-code']) assert.ok(!text.includes(secret), text)
})

test('a refused or abandoned login keeps nothing (K95, P59, P68)', async (t) => {
  const sim = await simulator(t)
  const place = accounts(t)
  const gate = await gateway(t, sim, place)
  const before = pool(place)
  await sim.script({ device: ['denied'] })
  const denied = await failure(gate.login({ method: 'google', onCode: () => {} }))
  assert.ok(denied instanceof KiroError)
  assert.equal(denied.code, 'KIRO_ACCOUNT_UNAUTHORIZED')
  assert.ok(denied.stack.includes(import.meta.filename), denied.stack)

  await sim.script({ device: Array(50).fill('pending') })
  const stop = new AbortController()
  const aborted = await failure(gate.login({ method: 'github', onCode: () => stop.abort(), signal: stop.signal }))
  assert.equal(aborted.name, 'AbortError')
  const early = await failure(gate.login({ method: 'github', onCode: () => {}, signal: AbortSignal.abort() }))
  assert.equal(early.name, 'AbortError')

  const mine = new Error('mine')
  const thrown = await failure(
    gate.login({
      method: 'github',
      onCode: () => {
        throw mine
      },
    }),
  )
  assert.equal(thrown, mine)
  const unknown = await failure(gate.login({ method: 'github', onCode: () => {}, replace: 'nobody' }))
  assert.equal(unknown.code, 'KIRO_NOT_FOUND')
  assert.deepEqual(pool(place), before)
})

test('what is asked wrongly is named (N21)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const onCode = () => {}
  for (const [name, options] of [
    ['options', undefined],
    ['options.onCode', { method: 'google' }],
    ['options.method', { onCode }],
    ['options.startUrl', { method: 'idc', startUrl: 5, onCode }],
    ['options.force', { method: 'google', force: 'yes', onCode }],
    ['options.signal', { method: 'google', signal: {}, onCode }],
  ]) {
    const error = await failure(gate.login(options))
    assert.ok(error instanceof TypeError && error.message.startsWith(name), `${name}: ${error}`)
  }
  for (const [name, options] of [
    ['options.method: ', { method: 'okta', onCode }],
    ['options.startUrl: ', { method: 'idc', onCode }],
    ['options.region: ', { method: 'idc', startUrl: 'https://x.awsapps.com/start', region: 'nowhere', onCode }],
    ['options.name: ', { method: 'google', name: ' ', onCode }],
  ]) {
    const error = await failure(gate.login(options))
    assert.equal(error.code, 'KIRO_INVALID_REQUEST')
    assert.ok(error.message.startsWith(name), error.message)
  }
  const wrong = [
    ['path', [5]],
    ['options.only', ['x', { only: 0 }]],
    ['options.dryRun', ['x', { dryRun: 1 }]],
  ]
  for (const [name, args] of wrong) {
    const error = await failure(gate.importAccounts(...args))
    assert.ok(error instanceof TypeError && error.message.startsWith(name), `${name}: ${error}`)
  }
})

test('a login takes the place of another credential (R87)', async (t) => {
  const sim = await simulator(t)
  const place = accounts(t, 'sim-acct-social.old')
  const gate = await gateway(t, sim, place)
  await sim.script({ device: ['ok'], account: 'sim-acct-social' })
  const [id] = place.ids
  const { account } = await gate.login({ method: 'google', onCode: () => {}, replace: id, check: false })
  assert.equal(account.id, id)
  assert.notEqual(pool(place).tokens[id].accessToken, 'sim-acct-social.old')
  assert.equal(Object.keys(pool(place).accounts).length, 1)
})

test('accounts of other programs are taken over and serve at once (R78–R86)', async (t) => {
  const sim = await simulator(t)
  const place = accounts(t, 'sim-402')
  const gate = await gateway(t, sim, place)
  const from = folder()
  const long = (text) => text.padEnd(120, 'x')
  const expiresAt = '2099-01-01T00:00:00.000Z'
  writeFileSync(
    path.join(from, 'credentials.json'),
    JSON.stringify([
      { accessToken: 'sim-ok', refreshToken: long('one'), expiresAt, authMethod: 'social', nickname: 'desk' },
      { refreshToken: long('two'), authMethod: 'idc' },
    ]),
  )
  const dry = await gate.importAccounts(from, { dryRun: true })
  assert.deepEqual(dry.accounts.map(({ outcome }) => outcome), ['would-add', 'failed'])
  assert.equal(Object.keys(pool(place).accounts).length, 1)
  const done = await gate.importAccounts(from)
  const [added, failed] = done.accounts
  assert.deepEqual([added.outcome, added.name, added.method, added.expiresAt], ['added', 'desk', 'social', expiresAt])
  assert.match(failed.error, /client registration missing/)
  const answer = await collect(await gate.streamMessages(ask({ text: 'x' }), { accountId: added.id }))
  assert.match(String(answer), /message_stop/)
  const again = await gate.importAccounts(path.join(from, 'credentials.json'), { only: 1 })
  assert.deepEqual(again.accounts, [{ source: 'desk', outcome: 'duplicate', id: added.id }])
  assert.ok(!JSON.stringify([dry, done, again]).includes('xxxx'))
})

test('what holds nothing is refused with its path (R86)', async (t) => {
  const sim = await simulator(t)
  const gate = await gateway(t, sim, accounts(t))
  const from = folder()
  writeFileSync(path.join(from, 'data.sqlite3'), Buffer.concat([Buffer.from('SQLite format 3\0'), Buffer.alloc(100)]))
  mkdirSync(path.join(from, 'empty'))
  for (const [name, words] of [
    ['none.json', 'not found'],
    ['empty', 'holds nothing that can be taken over'],
    ['data.sqlite3', 'only `npx kiro-messages accounts add --from` reads one'],
  ]) {
    const error = await failure(gate.importAccounts(path.join(from, name)))
    assert.equal(error.code, 'KIRO_INVALID_REQUEST')
    assert.ok(error.message.includes(path.join(from, name)) && error.message.includes(words), error.message)
  }
})
