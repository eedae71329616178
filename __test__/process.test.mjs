// What a gateway does to the process around it (N51, N52; case 33).
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { accounts, ask, simulator, start, until } from './support/stack.mjs'

/** Runs a program in a process of its own; `gateway` and `ask` are there. */
async function run(t, sim, body) {
  const pool = accounts(t)
  const program = `
    import { KiroGateway } from 'kiro-messages'
    const gateway = await KiroGateway.connect(${JSON.stringify({ env: {}, ...pool.options, ...sim.options })})
    const silent = ${JSON.stringify(ask({ steps: [{ text: 'a' }, { wait_ms: 60_000 }] }))}
    ${body}`
  const began = performance.now()
  const child = start(t, process.execPath, ['--input-type=module', '-e', program], { cwd: import.meta.dirname })
  return {
    child,
    ended: child.ended.then(({ code, signal }) => ({ code, signal, output: child.output, ms: performance.now() - began })),
  }
}

test('a script that connects and ends exits by itself within 1 s (case 33)', async (t) => {
  const sim = await simulator(t)
  const { child, ended } = await run(t, sim, 'console.log("connected")')
  await until(() => child.output.includes('connected'), 'the program to connect')
  const at = performance.now()
  const { code, output } = await ended
  assert.equal(code, 0, output)
  assert.ok(performance.now() - at < 1000, `${performance.now() - at} ms`)
  assert.equal(output, 'connected\n')
})

test('after a whole stream it exits by itself too (case 33)', async (t) => {
  const sim = await simulator(t)
  const { ended } = await run(
    t,
    sim,
    `const request = ${JSON.stringify(ask({ text: 'x' }))}
     for await (const _ of await gateway.streamMessages(request));
     await gateway.createMessage(request)
     console.log('done')`,
  )
  const { code, output } = await ended
  assert.equal(code, 0)
  assert.equal(output, 'done\n')
})

test('an open stream that nobody waits for does not keep the process, a waiting next() does (case 33)', async (t) => {
  const sim = await simulator(t)
  const { ended } = await run(t, sim, 'const stream = await gateway.streamMessages(silent); console.log("open")')
  assert.equal((await ended).code, 0)
  const waiting = await run(
    t,
    sim,
    `const stream = await gateway.streamMessages(${JSON.stringify(ask({ steps: [{ text: 'a' }, { wait_ms: 1500 }, { text: 'b' }] }))})
     let text = ''
     for await (const bytes of stream) text += bytes
     console.log(text.includes('"b"'))`,
  )
  const { code, output } = await waiting.ended
  assert.equal(code, 0, output)
  assert.equal(output, 'true\n')
})

test('a summary that somebody waits for keeps the process too (N51)', async (t) => {
  const sim = await simulator(t)
  const { ended } = await run(
    t,
    sim,
    `const request = ${JSON.stringify(ask({ steps: [{ text: 'a' }, { wait_ms: 500 }, { text: 'b' }] }))}
     const stream = await gateway.streamMessages(request)
     console.log((await stream.summary).outcome)`,
  )
  const { code, output } = await ended
  assert.equal(code, 0, output)
  assert.equal(output, 'complete\n')
})

test('process.exit() with 100 open streams: the code is kept, quick and quiet (case 33)', async (t) => {
  const sim = await simulator(t)
  const { child, ended } = await run(
    t,
    sim,
    `const streams = await Promise.all(Array.from({ length: 100 }, () => gateway.streamMessages(silent)))
     for (const stream of streams) stream.next().then(() => stream.next())
     setTimeout(() => { console.log('exit'); process.exit(7) }, 100)`,
  )
  await until(() => child.output.includes('exit'), '100 streams', 20_000)
  const at = performance.now()
  const { code, output } = await ended
  assert.equal(code, 7)
  assert.ok(performance.now() - at < 400, `${performance.now() - at} ms`)
  assert.equal(output, 'exit\n')
  await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be closed', 1000)
})

test('an uncaught exception and SIGTERM end the process as always (N52)', async (t) => {
  const sim = await simulator(t)
  const opened = `const stream = await gateway.streamMessages(silent); await stream.next(); stream.next();`
  const thrown = await (await run(t, sim, `${opened} setTimeout(() => { throw new Error('mine') })`)).ended
  assert.equal(thrown.code, 1)
  assert.match(thrown.output, /Error: mine/)
  const { child, ended } = await run(t, sim, `${opened} console.log('open')`)
  await until(() => child.output.includes('open'), 'the stream to open')
  child.kill('SIGTERM')
  const { signal, output } = await ended
  assert.equal(signal, 'SIGTERM')
  assert.equal(output, 'open\n')
})
