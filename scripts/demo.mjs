// One message through the whole house, without an account: kiro-server on the embedded file store, its upstream simulated.
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort, needRust, root, run, serverBinary } from './steps.mjs'

const PROMPT = 'Say hello to someone who has just cloned this repository.'
/** As somebody types it in the repository. */
const release = path.relative(root, serverBinary('release'))

needRust()
console.log('Building kiro-server (a few minutes the first time) …')
if (!(await run('cargo', ['build', '--features', 'server', '--bin', 'kiro-server']))) process.exit(1)

const home = mkdtempSync(path.join(tmpdir(), 'kiro-demo-'))
const port = await freePort()
const url = `http://127.0.0.1:${port}`
const server = spawn(serverBinary(), ['--port', String(port)], {
  // Nothing of the caller's own set-up may leak into the demonstration.
  env: {
    ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(GO_)?KIRO_|^REDIS_/.test(name))),
    KIRO_UPSTREAM: 'simulator',
    KIRO_STORE: `file:${path.join(home, 'accounts.json')}`,
    KIRO_LOG_LEVEL: 'warn',
  },
  stdio: ['ignore', 'inherit', 'inherit'],
})
let ended = false
server.on('exit', () => {
  ended = true
})

// Ending this script ends the server too, also when the signal doesn't come from the terminal, which reaches both.
for (const [signal, status] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]]) {
  process.once(signal, () => {
    server.kill('SIGKILL')
    rmSync(home, { recursive: true, force: true })
    process.exit(status)
  })
}

let ok = false
try {
  await ready()
  ok = await stream()
} catch (error) {
  console.error(`demo: ${error.message}`)
} finally {
  server.kill('SIGTERM')
  for (let i = 0; i < 100 && !ended; i++) await sleep(50)
  if (!ended) server.kill('SIGKILL')
  rmSync(home, { recursive: true, force: true })
}
process.exit(ok ? 0 : 1)

async function ready() {
  for (let i = 0; i < 200; i++) {
    if (ended) throw new Error('kiro-server has ended before it listened')
    const answer = await fetch(`${url}/health`).catch(() => null)
    if (answer?.ok) return
    await sleep(50)
  }
  throw new Error('kiro-server did not become healthy within 10 s')
}

async function stream() {
  console.log(`\nPOST ${url}/v1/messages   "${PROMPT}"\n`)
  const began = performance.now()
  const answer = await fetch(`${url}/v1/messages`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'anthropic-version': '2023-06-01' },
    body: JSON.stringify({
      model: 'claude-sonnet-4-5',
      max_tokens: 256,
      stream: true,
      messages: [{ role: 'user', content: PROMPT }],
    }),
  })
  let first = 0
  let text = ''
  const decoder = new TextDecoder()
  for await (const chunk of answer.body) {
    first ||= performance.now() - began
    const piece = decoder.decode(chunk, { stream: true })
    process.stdout.write(piece)
    text += piece
  }
  const events = text.split('\n\n').filter(Boolean)
  const finish = events.find((event) => event.startsWith('event: message_delta'))
  const { delta, usage } = finish ? JSON.parse(finish.slice(finish.indexOf('{'))) : {}
  const whole = answer.status === 200 && events.at(-1)?.startsWith('event: message_stop')
  console.log(
    `${whole ? 'OK' : 'FAILED'}: HTTP ${answer.status}, ${events.length} events, first after ${first.toFixed(0)} ms, ` +
      `all after ${(performance.now() - began).toFixed(0)} ms, stop_reason ${delta?.stop_reason}, ` +
      `${usage?.output_tokens} output tokens, ${answer.headers.get('request-id')}`,
  )
  console.log(`
The upstream was simulated: no account was used and nothing left this machine. With a real account:
  npm run build:server
  ${release} accounts add --store file:accounts.json     (takes the Kiro IDE's token file)
  ${release} --store file:accounts.json`)
  return Boolean(whole)
}
