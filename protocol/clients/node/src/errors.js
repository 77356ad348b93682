'use strict'

/** The codes of ERROR frames (SPEC.md, section 8), by number. */
const ERROR_CODES = [
  undefined,
  'FRAME_TOO_SHORT',
  'FRAME_TOO_LONG',
  'UNSUPPORTED_VERSION',
  'UNKNOWN_KIND',
  'UNKNOWN_FLAG',
  'BODY_TOO_SHORT',
  'TRAILING_BYTES',
  'INVALID_FIELD',
  'TRUNCATED_FRAME',
  'CREDENTIAL_REFUSED',
  'PEER_REFUSED',
  'TOO_MANY_CONNECTIONS',
  'IDLE_TIMEOUT',
  'SHUTTING_DOWN',
  'QUOTA_EXCEEDED',
  'REQUEST_REFUSED',
]

class KeywardError extends Error {
  constructor (message, options) {
    super(message, options)
    this.name = new.target.name
    this.maybeCharged = false
  }
}

class InvalidRequestError extends KeywardError {}

class UnavailableError extends KeywardError {}

class ConnectError extends UnavailableError {}

class DeadlineError extends UnavailableError {
  constructor (deadlineMs, maybeCharged) {
    super(`no answer from keyward within ${deadlineMs} ms; ${delivery(maybeCharged)}`)
    this.maybeCharged = maybeCharged
  }
}

class ConnectionLostError extends UnavailableError {
  constructor (maybeCharged) {
    super(`the connection to keyward ended before its answer; ${delivery(maybeCharged)}`)
    this.maybeCharged = maybeCharged
  }
}

class ProtocolError extends UnavailableError {
  constructor (problem) {
    super(`the peer does not follow keyward's protocol: ${problem}; is the socket keyward's?`)
    this.maybeCharged = true
  }
}

class RefusedError extends KeywardError {
  constructor ({ code, detail, closing, message }) {
    const codeName = ERROR_CODES[code]
    super(`keyward refused the request: ${codeName ?? `error ${code}`}: ${message}`)
    this.code = code
    this.codeName = codeName
    this.detail = detail
    this.closing = closing
  }
}

/** The daemon ended the connection, or refused it: it stops, is full, or does not admit this user. */
class RefusedConnectionError extends UnavailableError {
  constructor (refusal) {
    const { code, codeName, detail, message } = new RefusedError(refusal)
    super(message)
    Object.assign(this, { code, codeName, detail, closing: true })
  }
}

function delivery (maybeCharged) {
  return maybeCharged
    ? 'the request was sent, and may have been charged'
    : 'the request was not sent: it can be repeated'
}

module.exports = {
  ConnectError,
  ConnectionLostError,
  DeadlineError,
  ERROR_CODES,
  InvalidRequestError,
  KeywardError,
  ProtocolError,
  RefusedConnectionError,
  RefusedError,
  UnavailableError,
}
