// A forked process with a gateway of its own (life.test.mjs).
import { KiroGateway } from 'kiro-messages'

const { options, request } = JSON.parse(process.argv[2])
const gateway = await KiroGateway.connect(options)
const message = await gateway.createMessage(request)
process.send(message.content[0].text, () => process.disconnect())
