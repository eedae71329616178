// The addon's handler() in node:http.
import { createServer } from 'node:http'
import { KiroGateway } from 'kiro-messages'
import { report } from './subject.mjs'

const gateway = await KiroGateway.connect({ env: {}, ...JSON.parse(process.argv[2]) })
const server = createServer(gateway.handler({ auth: 'none' }))
server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 }, () => report({ port: server.address().port }))
