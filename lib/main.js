'use strict'

const { KiroError } = require('./error.js')

exports.KiroError = KiroError
