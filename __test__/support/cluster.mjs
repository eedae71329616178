// Two workers on one port, each with a gateway of its own (life.test.mjs).
import cluster from 'node:cluster'
import { createServer } from 'node:http'
import { KiroGateway } from 'kiro-messages'

const { options } = JSON.parse(process.argv[2])

if (cluster.isPrimary) {
  cluster.setupPrimary({ args: process.argv.slice(2) })
  const workers = [cluster.fork(), cluster.fork()]
  let listening = 0
  cluster.on('listening', (_worker, { port }) => {
    if (++listening === workers.length) process.send(port)
  })
  process.on('message', () => {
    for (const worker of workers) worker.kill('SIGTERM')
    process.disconnect()
  })
} else {
  const gateway = await KiroGateway.connect(options)
  const handle = gateway.handler()
  createServer((req, res) => {
    res.setHeader('x-pid', process.pid)
    return handle(req, res)
  }).listen(0, '127.0.0.1')
}
