// A TCP proxy that goes wrong on demand: it delays, loses packets, resets, refuses, and falls silent with its connections
// open. What it does to a connection it does to bytes that are on their way, too.
import { connect, createServer } from 'node:net'
import { once } from 'node:events'

/** What a lost packet costs at least: Linux sends it again after 200 ms. */
const RESEND_MS = 200

export class Proxy {
  /** Every byte comes so much later. */
  delayMs = 0
  /** How much of the delay varies, 0 to 1. */
  jitter = 0
  /** Share of the chunks that must be sent again, 0 to 1. */
  loss = 0
  /** Nothing passes, nothing is closed: a cable that was pulled. */
  silent = false
  #target
  #server
  #pairs = new Set()

  static async to(port) {
    const proxy = new Proxy()
    proxy.#target = port
    await proxy.#listen(0)
    proxy.port = proxy.#server.address().port
    return proxy
  }

  /** Who connects is refused from now on, and who is connected is reset. */
  async refuse() {
    const closed = once(this.#server, 'close')
    this.#server.close()
    this.reset()
    await closed
  }

  /** Listens again where it did. */
  async accept() {
    await this.#listen(this.port)
  }

  /** Resets all connections there are. */
  reset() {
    for (const pair of this.#pairs) for (const socket of pair) socket.resetAndDestroy()
  }

  get connections() {
    return this.#pairs.size
  }

  async end() {
    this.reset()
    if (this.#server.listening) await new Promise((resolve) => this.#server.close(resolve))
  }

  async #listen(port) {
    this.#server = createServer({ allowHalfOpen: true }, (client) => this.#carry(client))
    this.#server.listen(port, '127.0.0.1')
    await once(this.#server, 'listening')
  }

  #carry(client) {
    const target = connect({ port: this.#target, host: '127.0.0.1', allowHalfOpen: true })
    const pair = [client, target]
    this.#pairs.add(pair)
    for (const [from, to] of [pair, pair.toReversed()]) {
      from.setNoDelay(true)
      // Nothing overtakes: what comes later is sent later.
      let line = Promise.resolve()
      const later = (send) => {
        const due = performance.now() + this.#pause()
        line = line.then(() => this.#until(due, from)).then(() => to.destroyed || send())
      }
      from.on('data', (chunk) => {
        from.pause()
        later(() => {
          to.write(chunk)
          from.resume()
        })
      })
      from.on('end', () => later(() => to.end()))
      from.on('error', () => to.resetAndDestroy())
      from.on('close', () => {
        this.#pairs.delete(pair)
        later(() => to.end())
      })
    }
  }

  #pause() {
    const sentAgain = Math.random() < this.loss ? RESEND_MS * (1 + Math.random()) : 0
    return this.delayMs * (1 - this.jitter * Math.random()) + sentAgain
  }

  async #until(due, socket) {
    while (this.silent && !socket.destroyed) await new Promise((resolve) => setTimeout(resolve, 50))
    const left = due - performance.now()
    if (left > 0) await new Promise((resolve) => setTimeout(resolve, left))
  }
}
