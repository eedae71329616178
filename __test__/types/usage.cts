// The same from CommonJS.
import kiro = require('kiro-messages')

export const options: kiro.GatewayOptions = { upstream: 'simulator' }
export const is: boolean = kiro.KiroError.is(new Error())
