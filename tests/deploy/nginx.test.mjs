// The real nginx with deploy/nginx.conf in front of two kiro-servers on one Redis, and of a Node.js service.
import assert from 'node:assert/strict'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, request } from 'node:http'
import path from 'node:path'
import test from 'node:test'
import { ask, folder, freePort, redis, redisAccounts, server, simulator, sleep, start, until } from '../../__test__/support/stack.mjs'
import { root } from '../../scripts/steps.mjs'

const KEY = 'deploy-test-key'
const PREFIX = '/claude-kiro-oauth'

/** deploy/nginx.conf with this machine's addresses and folders. Each replacement must find its place: the file may not drift. */
async function nginx(t, kiroPorts, nodePort) {
  const dir = folder(t)
  const port = await freePort()
  let text = readFileSync(path.join(root, 'deploy', 'nginx.conf'), 'utf8')
  const replace = (from, to) => {
    assert.ok(text.includes(from), `deploy/nginx.conf has no ${JSON.stringify(from)}`)
    text = text.replaceAll(from, to)
  }
  const temp = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${dir}/${name};`)
  replace('\nhttp {', `\nhttp {\n${temp.join('\n')}`)
  replace('/var/log/nginx/', `${dir}/`)
  replace('/var/run/nginx.pid', `${dir}/nginx.pid`)
  replace('listen 80 ', `listen 127.0.0.1:${port} `)
  replace('server kiro-server:8081;', kiroPorts.map((other) => `server 127.0.0.1:${other};`).join('\n'))
  replace('server node-service:3000;', `server 127.0.0.1:${nodePort};`)
  const file = path.join(dir, 'nginx.conf')
  writeFileSync(file, text)
  mkdirSync(path.join(dir, 'logs'))
  // Workers of root become somebody who may not look into this folder.
  const directives = `daemon off;${process.getuid?.() === 0 ? 'user root;' : ''}`
  // Workers outlive a master that is killed, and hold this process's pipes: it is asked to end before that.
  let child
  t.after(async () => {
    child?.kill('SIGTERM')
    await child?.ended
  })
  child = start(t, 'nginx', ['-p', dir, '-c', file, '-e', `${dir}/error.log`, '-g', directives])
  const url = `http://127.0.0.1:${port}`
  await until(async () => (await fetch(`${url}/up`).catch(() => null)) !== null, 'nginx', 20_000)
  return { url, child, log: (name) => readFileSync(path.join(dir, name), 'utf8') }
}

/** Where the Node.js service goes: it tells what reached it. */
async function nodeService(t) {
  const service = createServer(async (req, res) => {
    let length = 0
    for await (const chunk of req) length += chunk.length
    res.setHeader('content-type', 'application/json')
    res.end(JSON.stringify({ node: true, method: req.method, url: req.url, headers: req.headers, length }))
  })
  let upgraded
  service.on('upgrade', (req, socket) => {
    upgraded = socket
    socket.end(`HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ${req.headers.upgrade}\r\n\r\nhello`)
  })
  await new Promise((resolve) => service.listen(0, '127.0.0.1', resolve))
  t.after(() => {
    // It is no connection of the service's any more, and close() waits for it all the same.
    upgraded?.destroy()
    service.closeAllConnections()
    return new Promise((resolve) => service.close(resolve))
  })
  return service.address().port
}

async function house(t) {
  const [sim, store] = await Promise.all([simulator(t), redis(t)])
  const pool = await redisAccounts(t, store, 'sim-ok.one', 'sim-ok.two')
  const env = { KIRO_API_KEY: KEY, KIRO_LOG_FORMAT: 'json' }
  const servers = await Promise.all([server(t, sim, pool, env), server(t, sim, pool, env)])
  const front = await nginx(
    t,
    servers.map(({ url }) => new URL(url).port),
    await nodeService(t),
  )
  return { sim, pool, servers, front }
}

function post(front, body, { signal, key = KEY } = {}) {
  return fetch(`${front.url}${PREFIX}/v1/messages?beta=true`, {
    method: 'POST',
    headers: { 'x-api-key': key, 'content-type': 'application/json' },
    body: typeof body === 'string' ? body : JSON.stringify(body),
    signal,
  })
}

/** A stream that has sent its first text and then says nothing more. */
async function hold(front, text = 'first') {
  const abort = new AbortController()
  const answer = await post(front, ask({ text, end: 'hang' }, { stream: true }), { signal: abort.signal })
  assert.equal(answer.status, 200)
  const reader = answer.body.getReader()
  let seen = ''
  while (!seen.includes(text)) {
    const { value, done } = await reader.read()
    assert.ok(!done, `the stream ended: ${seen}`)
    seen += Buffer.from(value).toString()
  }
  return { answer, seen, abort: () => abort.abort() }
}

/** A metric without labels. */
async function metric({ url }, name) {
  const text = await (await fetch(`${url}/metrics`)).text()
  const line = text.split('\n').find((line) => line.startsWith(`${name} `))
  assert.ok(line, `${name} in\n${text}`)
  return Number(line.split(' ')[1])
}

test('nginx with deploy/nginx.conf', { timeout: 120_000 }, async (t) => {
  const { sim, servers, front } = await house(t)

  await t.test('the first delta passes before the second exists', async () => {
    // Upstream is silent after the first text: whatever nginx holds back would never come.
    const held = await hold(front)
    assert.match(held.seen, /^event: message_start\n/)
    assert.equal(held.answer.headers.get('content-type'), 'text/event-stream; charset=utf-8')
    assert.match(held.answer.headers.get('request-id'), /^req_\w{24}$/)
    assert.equal((await sim.stats()).streams.open, 1)
    held.abort()
    await until(async () => (await sim.stats()).streams.open === 0, 'upstream to be closed')
  })

  await t.test('a client that goes away is gone upstream too', async () => {
    const before = (await sim.stats()).streams.closed_by_client
    const held = await hold(front)
    const left = Date.now()
    held.abort()
    const stats = await until(async () => {
      const stats = await sim.stats()
      return stats.streams.closed_by_client > before && stats
    }, 'upstream to notice')
    const late = stats.closed_by_client.at(-1).at_ms - left
    t.diagnostic(`upstream was closed ${late} ms after the client had left`)
    assert.ok(late < 2000, `${late} ms`)
    for (const each of servers) await until(async () => (await metric(each, 'kiro_streams_open')) === 0, 'no open stream')
  })

  await t.test('bodies of 20 MB pass, larger ones than 32 MiB get an error that clients can read', async () => {
    // What the request is about comes last, so it is understood only when all of it has come. The padding itself is ignored,
    // because a debug build would translate it for half a minute.
    const answer = await post(front, { padding: 'x'.repeat(20_000_000), ...ask({ text: 'I read it all' }) })
    const text = await answer.text()
    assert.equal(answer.status, 200, text)
    assert.equal(JSON.parse(text).content[0].text, 'I read it all')

    const refused = await post(front, `"${'x'.repeat(32 << 20)}"`)
    assert.equal(refused.status, 413)
    assert.equal(refused.headers.get('x-should-retry'), 'false')
    assert.equal((await refused.json()).error.type, 'request_too_large')
  })

  await t.test('two servers share the load, each gets what has least', async () => {
    const held = await Promise.all(Array.from({ length: 10 }, () => hold(front)))
    const open = await Promise.all(servers.map((each) => metric(each, 'kiro_streams_open')))
    assert.deepEqual(open, [5, 5])
    for (const each of held) each.abort()
    for (const each of servers) await until(async () => (await metric(each, 'kiro_streams_open')) === 0, 'no open stream')
  })

  await t.test('everything else goes to the Node.js service', async () => {
    for (const target of ['/', '/v1/messages?beta=true', '/api/config', '/claude-kiro-oauthx/v1/messages', '/health']) {
      const seen = await (await fetch(front.url + target, { headers: { 'x-request-id': 'mine-1' } })).json()
      assert.equal(seen.url, target)
      assert.equal(seen.headers['x-request-id'], 'mine-1')
    }
    const body = 'x'.repeat(9 << 20)
    const sent = await (await fetch(`${front.url}/openai/v1/chat/completions`, { method: 'POST', body })).json()
    assert.deepEqual([sent.method, sent.length], ['POST', body.length])
    assert.equal(await upgraded(front.url), 'hello')
  })

  await t.test('who comes through nginx needs the key, also where loopback needs none', async () => {
    for (const route of ['/metrics', '/v1/models']) {
      assert.equal((await fetch(`${front.url}${PREFIX}${route}`)).status, 401, route)
      const answer = await fetch(`${front.url}${PREFIX}${route}?key=${KEY}`)
      assert.equal(answer.status, 200, route)
    }
    assert.equal((await fetch(`${servers[0].url}/metrics`)).status, 200)
    assert.equal((await fetch(`${front.url}${PREFIX}/health`)).status, 200)
    await until(() => front.log('access.log').includes(`GET ${PREFIX}/v1/models" 200`), 'the access log')
    assert.ok(!front.log('access.log').includes(KEY), 'no key in the access log')
  })

  await t.test('a server that stops is not missed; without any, clients are told to come back', async () => {
    let failed = []
    let running = true
    const load = Array.from({ length: 4 }, async () => {
      while (running) {
        const answer = await post(front, ask({ text: 'still here', gap_ms: 5, pieces: 4 }, { stream: true }))
        const text = await answer.text()
        if (answer.status !== 200 || !text.includes('message_stop')) failed.push(`${answer.status} ${text}`)
      }
    })
    await sleep(300)
    servers[0].child.kill('SIGTERM')
    assert.equal((await servers[0].child.ended).code, 0)
    await sleep(300)
    running = false
    await Promise.all(load)
    assert.deepEqual(failed, [])

    servers[1].child.kill('SIGKILL')
    await servers[1].child.ended
    const away = await post(front, ask())
    assert.equal(away.status, 503)
    assert.equal(away.headers.get('retry-after'), '5')
    assert.equal((await away.json()).error.type, 'overloaded_error')
  })
})

/** What a WebSocket client would get after the switch of protocols. */
function upgraded(url) {
  return new Promise((resolve, reject) => {
    const asked = request(`${url}/socket`, { headers: { connection: 'upgrade', upgrade: 'websocket' } })
    asked.on('upgrade', (answer, socket, head) => {
      const done = (text) => {
        socket.destroy()
        resolve(text)
      }
      socket.setEncoding('utf8').on('data', (more) => done(head + more))
      if (head.length > 0) done(head.toString())
    })
    asked.on('response', (answer) => reject(new Error(`status ${answer.statusCode}`)))
    asked.on('error', reject)
    asked.end()
  })
}
