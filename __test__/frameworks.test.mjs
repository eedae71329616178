// handler() in the frameworks that people use, each the real package (cases 12, 13).
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, request as httpRequest } from 'node:http'
import { describe, test } from 'node:test'
import { createGunzip } from 'node:zlib'
import compression from 'compression'
import express5 from 'express'
import express4 from 'express4'
import Fastify from 'fastify'
import { accounts, ask, events, gateway, listening, meaning, server, simulator, textOf, withoutIds } from './support/stack.mjs'

const KEY = 'right-key'

/** Programs as somebody would write them. Each gives its port. */
const PROGRAMS = {
  'node:http': async (t, gate) => listening(t, createServer(gate.handler())),
  'Express 4, express.json() before it': async (t, gate) => express(t, gate, express4),
  'Express 5, express.json() before it': async (t, gate) => express(t, gate, express5),
  'Fastify 5, raw': async (t, gate) => {
    const app = Fastify()
    const handle = gate.handler()
    // The body is left to the handler.
    app.removeAllContentTypeParsers()
    app.addContentTypeParser('*', (_request, _payload, done) => done(null))
    app.all('/*', (request, reply) => {
      reply.hijack()
      return handle(request.raw, reply.raw)
    })
    await app.listen({ port: 0, host: '127.0.0.1' })
    t.after(() => app.close())
    return app.server.address().port
  },
  'Fastify 5, parsed': async (t, gate) => {
    const app = Fastify()
    const handle = gate.handler()
    app.all('/*', (request, reply) => {
      reply.hijack()
      request.raw.body = request.body
      return handle(request.raw, reply.raw)
    })
    await app.listen({ port: 0, host: '127.0.0.1' })
    t.after(() => app.close())
    return app.server.address().port
  },
}

async function express(t, gate, framework) {
  const app = framework()
  app.use(framework.json({ limit: '32mb' }))
  app.get('/mine', (_req, res) => res.send('mine'))
  app.use(gate.handler())
  app.use((_req, res) => res.status(404).send('theirs'))
  return listening(t, createServer(app))
}

for (const [name, program] of Object.entries(PROGRAMS)) {
  test(`${name}: the same statuses, headers and bytes as kiro-server (case 12)`, async (t) => {
    const sim = await simulator(t)
    const pool = accounts(t)
    const gate = await gateway(t, sim, pool, { apiKey: KEY })
    const ours = `http://127.0.0.1:${await program(t, gate)}`
    const { url: theirs } = await server(t, sim, pool, { KIRO_API_KEY: KEY })
    const good = { 'x-api-key': KEY, 'content-type': 'application/json' }
    const request = ask({ text: 'é one', pieces: 5, tool: { name: 'f', input: { a: 1 } } }, { stream: true })
    const cases = [
      ['POST', '/v1/messages', good, JSON.stringify(request)],
      ['POST', '/claude-kiro-oauth/v1/messages?beta=true', good, JSON.stringify(request)],
      ['POST', '/v1/messages', good, JSON.stringify({ ...request, stream: false })],
      ['POST', '/v1/messages', { ...good, 'x-api-key': 'wrong' }, JSON.stringify(request)],
      ['POST', '/v1/messages', good, JSON.stringify({ ...request, model: 'gpt-4o' })],
      ['POST', '/v1/messages/count_tokens', good, JSON.stringify(request)],
      ['GET', '/v1/models', good],
      ['GET', '/v1/messages', good],
      ['OPTIONS', '/v1/messages', { 'access-control-request-headers': 'x-stainless-os' }],
    ]
    for (const [method, path, headers, body] of cases) {
      const [a, b] = await Promise.all([ours, theirs].map((base) => fetch(base + path, { method, headers, body })))
      const what = `${method} ${path} ${body?.slice(0, 40)}`
      assert.equal(a.status, b.status, what)
      assert.deepEqual(meaning(a.headers), meaning(b.headers), what)
      assert.equal(withoutIds(await a.text()), withoutIds(await b.text()), what)
    }
    if (!name.startsWith('Express')) return
    assert.equal(await (await fetch(`${ours}/mine`)).text(), 'mine')
    const unknown = await fetch(`${ours}/nope`)
    assert.deepEqual([unknown.status, await unknown.text()], [404, 'theirs'])
  })
}

describe('behind compression() the first delta is there before the second is sent (case 13)', () => {
  for (const [name, framework] of Object.entries({ 'Express 4': express4, 'Express 5': express5 })) {
    test(name, async (t) => {
      const sim = await simulator(t)
      const gate = await gateway(t, sim, accounts(t))
      const app = framework()
      // Else SSE isn't compressed at all.
      app.use(compression({ filter: () => true, threshold: 0 }))
      app.use(gate.handler())
      const port = await listening(t, createServer(app))
      const req = httpRequest({ port, path: '/v1/messages', method: 'POST', headers: { 'accept-encoding': 'gzip' } })
      req.end(JSON.stringify(ask({ text: '{n} ', count: 3, gap_ms: 1000 }, { stream: true })))
      const [res] = await once(req, 'response')
      assert.equal(res.headers['content-encoding'], 'gzip')
      const plain = res.pipe(createGunzip())
      const came = []
      let text = ''
      for await (const part of plain) {
        text += part
        for (const n of [0, 1, 2]) if (came[n] === undefined && text.includes(`"${n} "`)) came[n] = performance.now()
      }
      assert.equal(textOf(events(Buffer.from(text))), '0 1 2 ')
      assert.ok(came[1] - came[0] > 500 && came[2] - came[1] > 500, `${came.map((at) => at - came[0])}`)
    })
  }
})
