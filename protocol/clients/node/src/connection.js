'use strict'

// One connection. Requests of one turn of the event loop are written together.

const net = require('node:net')
const { performance } = require('node:perf_hooks')
const { frameEnd, parse } = require('./frames.js')
const { ConnectionLostError, DeadlineError, ProtocolError, RefusedConnectionError } = require('./errors.js')
const { PEER_REFUSED, STALL_MS, refused } = require('./rules.js')

/** Bytes that are handed to the socket at once. While it takes them, no others are. */
const MAX_CHUNK = 64 * 1024

/** The daemon has not processed the request: it can be sent again, on another connection. */
class Unprocessed extends Error {
  constructor (error) {
    super(error.message)
    this.error = error
  }
}

class Connection {
  #socket
  #maxInFlight
  #received = Buffer.alloc(0)
  /** Requests that were not handed to the socket, in order. */
  #unsent = []
  /** Requests that were handed to the socket, in the order of their responses. */
  #waiting = []
  /** The number of those at the end of #waiting that the socket may not have taken yet. */
  #inChunk = 0
  /** Whether the socket is known to have taken nothing of them. */
  #isChunkUnwritten = false
  #flushIsDue = false
  #nextId = 0
  #error
  #lastResponse = performance.now()

  constructor (socket, maxInFlight) {
    this.#socket = socket
    this.#maxInFlight = maxInFlight
    this.session = undefined
    socket.on('data', (data) => this.#receive(data))
    socket.on('error', () => {})
    socket.on('close', () => this.#end())
    // Idle connections do not keep the process alive; requests do.
    socket.unref()
  }

  static connect (path, maxInFlight) {
    return new Promise((resolve, reject) => {
      const socket = net.connect({ path })
      socket.once('error', reject)
      socket.once('connect', () => {
        socket.off('error', reject)
        resolve(new Connection(socket, maxInFlight))
      })
    })
  }

  /** Whether requests can be sent: it has not ended, is not silent for too long, and does not stall. */
  get isUsable () {
    if (this.#error !== undefined) return false
    const now = performance.now()
    if (this.#waiting.length > 0) return now - this.#waiting[0].end < STALL_MS
    return now - this.#lastResponse < (this.session?.maxSilenceMs ?? Infinity)
  }

  /** Sends a request, and resolves to its response. */
  exchange (request, raw, end, deadlineMs) {
    if (this.#error !== undefined) return Promise.reject(this.#error)
    const requestId = this.#nextId
    const data = this.session?.encode(request, requestId, raw) ?? request.encode(requestId, raw)
    this.#nextId = (requestId + 1) >>> 0
    return new Promise((resolve, reject) => {
      const entry = { requestId, expects: request.expects, data, end, settled: false }
      const timer = setTimeout(() => this.#expire(entry, deadlineMs), Math.max(end - performance.now(), 0))
      const settle = (callback) => (value) => {
        if (entry.settled) return
        entry.settled = true
        clearTimeout(timer)
        callback(value)
      }
      entry.resolve = settle(resolve)
      entry.reject = settle(reject)
      this.#unsent.push(entry)
      if (!this.#flushIsDue) {
        this.#flushIsDue = true
        queueMicrotask(() => this.#flush())
      }
    })
  }

  close () {
    this.#end()
  }

  #expire (entry, deadlineMs) {
    const index = this.#waiting.indexOf(entry)
    const isSent = index >= 0
    entry.reject(new DeadlineError(deadlineMs, isSent))
    // It cannot be taken back from the socket, and must not be written later.
    if (isSent && index >= this.#waiting.length - this.#inChunk) this.#end()
  }

  #flush () {
    this.#flushIsDue = false
    if (this.#error !== undefined || this.#inChunk > 0) return
    const chunk = []
    let size = 0
    while (this.#unsent.length > 0 && size < MAX_CHUNK && this.#waiting.length < this.#maxInFlight) {
      const entry = this.#unsent.shift()
      // Given up before it was sent.
      if (entry.settled) continue
      chunk.push(entry.data)
      size += entry.data.length
      entry.data = undefined
      this.#waiting.push(entry)
      this.#inChunk++
    }
    if (chunk.length === 0) return
    // If the kernel has no unread bytes of earlier requests, it takes all of a chunk or nothing.
    const isAlone = this.#waiting.length === this.#inChunk
    this.#socket.write(chunk.length === 1 ? chunk[0] : Buffer.concat(chunk), (error) => {
      if (error) {
        this.#isChunkUnwritten = isAlone && (error.code === 'EPIPE' || error.code === 'ECONNRESET')
        this.#end()
        return
      }
      this.#inChunk = 0
      if (this.#unsent.length > 0) this.#flush()
    })
  }

  #receive (data) {
    if (this.#error !== undefined) return
    if (this.#received.length > 0) data = Buffer.concat([this.#received, data])
    let start = 0
    try {
      for (let end = frameEnd(data, start); end !== undefined && end <= data.length; end = frameEnd(data, start)) {
        this.#respond(parse(data.subarray(start, end)))
        if (this.#error !== undefined) return
        start = end
      }
    } catch (error) {
      this.#end(error)
      return
    }
    this.#received = data.subarray(start)
    this.#lastResponse = performance.now()
    if (this.#unsent.length > 0) this.#flush()
  }

  #respond (response) {
    const { kind, requestId, refusal } = response
    if (refusal?.closing) {
      this.#end(refused(refusal))
      return
    }
    const due = this.#waiting[0]
    if (due === undefined) throw new ProtocolError(`a response to request ${requestId} came, and none was due`)
    if (due.requestId !== requestId) {
      throw new ProtocolError(`the response to request ${due.requestId} was due, and that to ${requestId} came`)
    }
    if (kind !== due.expects && refusal === undefined) {
      throw new ProtocolError(`a frame of kind ${kind} is no response to this request`)
    }
    this.#waiting.shift()
    // It was answered, so it was written.
    this.#inChunk = Math.min(this.#inChunk, this.#waiting.length)
    due.resolve(response)
  }

  /** Ends the connection, for a reason of the daemon's or for none. */
  #end (error) {
    if (this.#error !== undefined) return
    const endedByDaemon = error instanceof RefusedConnectionError
    const isViolation = error instanceof ProtocolError
    this.#error = unprocessed(endedByDaemon ? error : new ConnectionLostError(false))
    const [waiting, unsent] = [this.#waiting, this.#unsent]
    const firstUnwritten = waiting.length - (this.#isChunkUnwritten ? this.#inChunk : 0)
    this.#waiting = []
    this.#unsent = []
    this.#socket.destroy()
    waiting.forEach((entry, index) => {
      if (isViolation) entry.reject(error)
      else if (endedByDaemon) entry.reject(unprocessed(error))
      // The daemon blames the oldest request, and has not processed the others.
      else if (error !== undefined) entry.reject(index === 0 ? error : unprocessed(error))
      else if (index >= firstUnwritten) entry.reject(unprocessed(new ConnectionLostError(false)))
      else entry.reject(new ConnectionLostError(true))
    })
    for (const entry of unsent) entry.reject(this.#error)
  }
}

/** The error for a request that the daemon had not processed when the connection ended. */
function unprocessed (error) {
  return error instanceof RefusedConnectionError && error.code === PEER_REFUSED ? error : new Unprocessed(error)
}

module.exports = { Connection, Unprocessed }
