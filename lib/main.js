'use strict'

const { KiroError } = require('./error.js')
const { KiroGateway } = require('./gateway.js')

exports.KiroError = KiroError
exports.KiroGateway = KiroGateway
