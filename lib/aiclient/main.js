'use strict'

const { createKiroAdapter, createKiroAdapterClass } = require('./adapter.js')
const { createKiroHandler } = require('./handler.js')
const { close, configure } = require('./shared.js')

exports.close = close
exports.configure = configure
exports.createKiroAdapter = createKiroAdapter
exports.createKiroAdapterClass = createKiroAdapterClass
exports.createKiroHandler = createKiroHandler
