'use strict'

const { HEAD, END, begin } = require('./bell.js')

/** Begins to serve; `start(id)` gives the native server. Rejects with a fault. */
function listen(start) {
  return new Promise((resolve, reject) => {
    let native
    const call = new ServerCall((head) => resolve(new GatewayServer(native, call, head)), reject)
    begin(call, (id) => {
      native = start(id)
    })
  })
}

/** Held until the server has ended: a listening server keeps the process alive (N51). */
class ServerCall {
  id = 0
  held = false
  #opened
  #refused

  constructor(opened, refused) {
    this.#opened = opened
    this.#refused = refused
    this.ended = new Promise((resolve) => {
      this.end = resolve
    })
  }

  receive(kind, bytes) {
    if (kind === HEAD) this.#opened(JSON.parse(bytes))
    else if (kind === END) this.end()
    else {
      this.#refused(JSON.parse(bytes))
      this.end()
    }
  }
}

/** Declared in src/addon/types.d.ts. */
class GatewayServer {
  #native
  #call

  constructor(native, call, { host, port }) {
    this.#native = native
    this.#call = call
    this.host = host
    this.port = port
  }

  async close(graceMs) {
    if (graceMs !== undefined && !(Number.isFinite(graceMs) && graceMs >= 0)) {
      throw new TypeError('graceMs must be a number of milliseconds')
    }
    this.#native.close(graceMs)
    await this.#call.ended
  }

  async [Symbol.asyncDispose]() {
    await this.close()
  }
}

module.exports = { listen }
