'use strict'

const { performance } = require('node:perf_hooks')
const { setTimeout: sleep } = require('node:timers/promises')
const { Connection, Unprocessed } = require('./connection.js')
const { Decision } = require('./decision.js')
const { ConnectError, ConnectionLostError, DeadlineError, KeywardError, RefusedConnectionError } = require('./errors.js')
const { KIND } = require('./frames.js')
const { Hello, adjustment, verify } = require('./request.js')
const rules = require('./rules.js')

const UNKNOWN_KEY = 4
/** Time within which a connection and its HELLO have to be done. A call waits within its deadline. */
const CONNECT_TIMEOUT_MS = 1000

class Client {
  #path
  #deadlineMs
  #maxInFlight
  #backOff = new rules.BackOff()
  #connection
  #connecting

  constructor (options = {}) {
    const { socket = rules.DEFAULT_SOCKET, deadlineMs = rules.DEFAULT_DEADLINE_MS, maxInFlight = 4096 } =
      typeof options === 'string' ? { socket: options } : options
    if (!(deadlineMs > 0)) throw new RangeError(`deadlineMs is ${deadlineMs}, and not above 0`)
    if (!(maxInFlight >= 1)) throw new RangeError(`maxInFlight is ${maxInFlight}, and not at least 1`)
    this.#path = rules.socketPath(socket)
    this.#deadlineMs = deadlineMs
    this.#maxInFlight = maxInFlight
  }

  async verify (key, options = {}) {
    return (await this.#call(verify(key, options), options)).decision
  }

  async refund (key, options = {}) {
    return (await this.#call(adjustment(KIND.REFUND, key, options), options)).decision
  }

  async debit (key, options = {}) {
    return (await this.#call(adjustment(KIND.DEBIT, key, options), options)).decision
  }

  async hello (options = {}) {
    return (await this.#call(new Hello(), options)).welcome
  }

  close () {
    this.#connection?.close()
    this.#connection = undefined
  }

  async #call (request, { deadlineMs = this.#deadlineMs }) {
    const end = performance.now() + deadlineMs
    for (let attempt = 1; ; attempt++) {
      let error
      try {
        return await this.#attempt(request, end, deadlineMs)
      } catch (thrown) {
        if (thrown instanceof Unprocessed) error = thrown.error
        else if (thrown instanceof ConnectionLostError && request.mayRepeat) error = thrown
        else throw thrown
      }
      if (error instanceof RefusedConnectionError && error.code !== rules.IDLE_TIMEOUT) {
        this.#backOff.failed(error, performance.now())
      }
      if (attempt === rules.MAX_ATTEMPTS || performance.now() >= end) throw error
    }
  }

  async #attempt (request, end, deadlineMs) {
    const connection = this.#usableConnection() ?? (await this.#connected(end, deadlineMs))
    const { session } = connection
    const unknown = { decision: new Decision({ verdict: UNKNOWN_KEY }) }
    const sendsRaw = session.sendsRaw
    if (sendsRaw && !request.fitsRaw) return unknown
    let response = await connection.exchange(request, sendsRaw, end, deadlineMs)
    if (response.refusal !== undefined && session.follows(response.refusal, sendsRaw)) {
      if (!sendsRaw && !request.fitsRaw) return unknown
      response = await connection.exchange(request, !sendsRaw, end, deadlineMs)
    }
    this.#backOff.succeeded()
    if (response.refusal !== undefined) throw rules.refused(response.refusal)
    return response
  }

  #usableConnection () {
    if (this.#connection !== undefined && !this.#connection.isUsable) this.close()
    return this.#connection
  }

  /** A new connection, which all calls wait for that need one now. */
  async #connected (end, deadlineMs) {
    if (this.#connecting === undefined) {
      const wait = this.#backOff.wait(performance.now(), end)
      this.#connecting = this.#connect(wait).finally(() => { this.#connecting = undefined })
      // Its callers may all have given up.
      this.#connecting.catch(() => {})
    }
    const timeout = new AbortController()
    const late = sleep(Math.max(end - performance.now(), 0), undefined, { signal: timeout.signal }).then(
      () => { throw new DeadlineError(deadlineMs, false) },
      () => {},
    )
    try {
      return await Promise.race([this.#connecting, late])
    } finally {
      timeout.abort()
    }
  }

  async #connect (wait) {
    if (wait > 0) await sleep(wait)
    const end = performance.now() + CONNECT_TIMEOUT_MS
    const connection = await this.#connectSocket()
    try {
      const { welcome, refusal } = await connection.exchange(new Hello(), false, end, CONNECT_TIMEOUT_MS)
      if (refusal !== undefined) throw rules.refused(refusal)
      connection.session = new rules.Session(welcome)
    } catch (error) {
      connection.close()
      if (error instanceof KeywardError) {
        // The request itself was not sent.
        if (error instanceof DeadlineError || error instanceof ConnectionLostError) error.maybeCharged = false
        this.#backOff.failed(error, performance.now())
      }
      throw error
    }
    this.#connection = connection
    return connection
  }

  async #connectSocket () {
    for (let calls = 1; ; calls++) {
      try {
        return await Connection.connect(this.#path, this.#maxInFlight)
      } catch (error) {
        const pause = rules.connectPause(calls, error)
        if (pause === undefined) {
          const message = `cannot connect to keyward at ${this.#path}: ${error.message}; ` +
            'is the daemon running, and may this user open its socket?'
          const failed = new ConnectError(message, { cause: error })
          this.#backOff.failed(failed, performance.now())
          throw failed
        }
        await sleep(pause)
      }
    }
  }
}

module.exports = { Client }
