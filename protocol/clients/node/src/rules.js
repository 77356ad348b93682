'use strict'

// When to try again, and how keys are sent (SPEC.md, sections 5, 8 and 9).

const { CREDENTIAL, LENGTH_BYTES, MAX_REQUEST_LENGTH, VERSION } = require('./frames.js')
const { ConnectError, InvalidRequestError, ProtocolError, RefusedConnectionError, RefusedError } = require('./errors.js')

const DEFAULT_SOCKET = '/run/keyward/keyward.sock'
const DEFAULT_DEADLINE_MS = 50
/** Attempts of one call. Those after the first use a new connection, or another form of the key. */
const MAX_ATTEMPTS = 4
/** How often `connect` is called if there is no daemon. One that restarts is soon back. */
const MAX_CONNECT_CALLS = 3
/** Pauses between failed attempts to connect. */
const FIRST_PAUSE_MS = 4
const LONGEST_PAUSE_MS = 1000
const PAUSE_AFTER_REFUSAL_MS = 3000
/** How late an answer may be before its connection is given up. */
const STALL_MS = 1000
/** The share of the idle timeout after which a silent connection is not written to. */
const MAX_SILENT_SHARE = 0.8

const CREDENTIAL_REFUSED = 10
const PEER_REFUSED = 11
const IDLE_TIMEOUT = 13
/** The last code with which the daemon blames the frame: the client is wrong, and sends nothing again. */
const LAST_BLAMING_CODE = 9

/** The path of a socket, given as a path or as a URL such as unix:/run/keyward/keyward.sock. */
function socketPath (socket) {
  if (!socket.startsWith('unix:')) return socket
  const path = socket.slice('unix:'.length).replace(/^\/\/(?=\/)/, '')
  if (!path.startsWith('/') || path.startsWith('//')) {
    throw new TypeError(`${JSON.stringify(socket)} has no absolute path: unix:/run/keyward/keyward.sock`)
  }
  return path
}

/** What WELCOME has said about a connection. */
class Session {
  constructor (welcome) {
    if (welcome.version !== VERSION) throw new ProtocolError(`WELCOME chooses version ${welcome.version}`)
    this.credentials = welcome.credentials & (CREDENTIAL.DIGEST | CREDENTIAL.RAW)
    if (this.credentials === 0) throw new ProtocolError('WELCOME accepts keys neither as digests nor raw')
    this.maxLength = Math.min(welcome.maxLength, MAX_REQUEST_LENGTH)
    this.maxSilenceMs = welcome.idleTimeoutMs === 0 ? Infinity : welcome.idleTimeoutMs * MAX_SILENT_SHARE
  }

  get sendsRaw () {
    return (this.credentials & CREDENTIAL.DIGEST) === 0
  }

  /** Whether the daemon takes the key in the other form only, which is used from now on. */
  follows (refusal, sentRaw) {
    const other = sentRaw ? CREDENTIAL.DIGEST : CREDENTIAL.RAW
    const accepted = refusal.detail & (CREDENTIAL.DIGEST | CREDENTIAL.RAW)
    if (refusal.code !== CREDENTIAL_REFUSED || accepted !== other) return false
    this.credentials = other
    return true
  }

  /** The frame of a request, unless it is longer than the daemon takes. */
  encode (request, requestId, raw) {
    const data = request.encode(requestId, raw)
    const length = data.length - LENGTH_BYTES
    if (length > this.maxLength) {
      throw new InvalidRequestError(`the request is ${length} bytes long; the daemon takes ${this.maxLength}`)
    }
    return data
  }
}

/** The error for an ERROR. */
function refused (refusal) {
  const endsConnection = refusal.closing && refusal.code > LAST_BLAMING_CODE
  return endsConnection ? new RefusedConnectionError(refusal) : new RefusedError(refusal)
}

/** Milliseconds before the next call of `connect`; undefined if the error is final. */
function connectPause (calls, error) {
  const pause = 2 ** Math.min(calls, 5)
  if (error.code === 'EAGAIN' || error.code === 'EINTR') return pause
  const isAbsent = error.code === 'ENOENT' || error.code === 'ECONNREFUSED'
  return isAbsent && calls < MAX_CONNECT_CALLS ? pause : undefined
}

/** When the next connection may be made, after one has failed. */
class BackOff {
  #failures = 0
  #notBefore = 0
  #last

  /** The pause doubles, with a random part, so that the clients of a host do not return together. */
  failed (error, now) {
    if (now < this.#notBefore) return
    const isFinal = error.code === PEER_REFUSED || error.cause?.code === 'EACCES'
    const pause = Math.min(FIRST_PAUSE_MS * 2 ** this.#failures, LONGEST_PAUSE_MS) * (0.5 + Math.random() / 2)
    this.#failures = Math.min(this.#failures + 1, 16)
    this.#notBefore = now + (isFinal ? PAUSE_AFTER_REFUSAL_MS : pause)
    this.#last = error
  }

  succeeded () {
    this.#failures = 0
    this.#notBefore = 0
    this.#last = undefined
  }

  /** Milliseconds to wait before connecting. If the deadline is earlier, throws at once. */
  wait (now, end) {
    const pause = this.#notBefore - now
    if (pause <= 0) return 0
    if (now + pause >= end) {
      const message = `not connecting for ${Math.ceil(pause)} ms after a failure: ${this.#last.message}`
      throw new ConnectError(message, { cause: this.#last })
    }
    return pause
  }
}

module.exports = {
  BackOff,
  DEFAULT_DEADLINE_MS,
  DEFAULT_SOCKET,
  IDLE_TIMEOUT,
  MAX_ATTEMPTS,
  PEER_REFUSED,
  STALL_MS,
  Session,
  connectPause,
  refused,
  socketPath,
}
