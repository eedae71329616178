// The very objects of the CommonJS entry, so that there is one KiroError in a process (N60).
import main from './main.js'

export const { KiroError, KiroGateway } = main
