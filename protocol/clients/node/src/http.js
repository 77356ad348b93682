'use strict'

// What a request of HTTP needs of its key, and what its client gets otherwise: as `keyward http` responds.

const { STATUS_CODES } = require('node:http')
const { InvalidRequestError, KeywardError, UnavailableError } = require('./errors.js')
const { scopeNames } = require('./request.js')

const UNAVAILABLE = 'API keys cannot be checked at the moment.'
const MISCONFIGURED = 'The service is not configured correctly.'
/** The largest integer of a structured field (RFC 9651). */
const MAX_INTEGER = 999_999_999_999_999
/** Time between two warnings about the same. */
const WARNING_INTERVAL_MS = 1000

const INVALID = {
  MALFORMED_KEY: 'The API key is not complete, or has a typing error.',
  UNKNOWN_KEY: 'The API key is not known.',
  REVOKED: 'The API key has been revoked.',
  DISABLED: 'The API key is disabled.',
  NOT_YET_VALID: 'The API key is not valid yet.',
  EXPIRED: 'The API key has expired.',
  WRONG_ENVIRONMENT: 'The API key belongs to another environment.',
}
const FORBIDDEN = {
  IP_NOT_ALLOWED: 'The API key may not be used from this address.',
  ORIGIN_NOT_ALLOWED: 'The API key may not be used from this origin.',
  MISSING_SCOPE: 'The API key lacks a scope that this request needs.',
}

/** Why a request is not let through, for its client. */
class Problem extends Error {
  constructor (status, code, detail, headers = {}, retryAfter = undefined) {
    super(detail)
    this.name = 'Problem'
    this.status = status
    this.code = code
    this.detail = detail
    this.retryAfter = retryAfter
    this.headers = { 'cache-control': 'no-store', ...headers }
    if (retryAfter !== undefined) this.headers['retry-after'] = `${retryAfter}`
  }

  get body () {
    const members = {
      type: 'about:blank',
      title: STATUS_CODES[this.status],
      status: this.status,
      detail: this.detail,
      code: this.code,
    }
    if (this.retryAfter !== undefined) members.retry_after = this.retryAfter
    return JSON.stringify(members)
  }
}

/** Where the key is. What is not named here is not a key. */
class Credentials {
  constructor ({ bearer = true, apiKey = true, basic = undefined, headers = ['x-api-key'] } = {}) {
    this.bearer = bearer
    this.apiKey = apiKey
    this.basic = basic
    this.headers = headers.map((name) => name.toLowerCase())
  }

  /** The key of a request, given as names and values in turn. Throws a problem if there is not exactly one. */
  find (rawHeaders) {
    let found
    for (let index = 0; index < rawHeaders.length; index += 2) {
      const name = rawHeaders[index].toLowerCase()
      const value = rawHeaders[index + 1].trim()
      let key = name === 'authorization' ? this.#authorization(value) : undefined
      if (this.headers.includes(name)) key = value
      if (key === undefined) continue
      if (key === '') throw this.#invalid('The request carries an empty API key.')
      if (key.includes(',')) {
        throw this.#invalid('The request carries an API key with a comma, which is a list of several; send one.')
      }
      if (/\s/.test(key)) throw this.#invalid('The request carries an API key with a space in it.')
      if (found !== undefined && found !== key) {
        throw this.#invalid('The request carries several different API keys; send one.')
      }
      found = key
    }
    if (found === undefined) {
      throw new Problem(401, 'NO_KEY', 'The request carries no API key.', this.challenge())
    }
    // A header is bytes, which Node gives as Latin-1.
    return Buffer.from(found, 'latin1')
  }

  #authorization (value) {
    const [, scheme, parameter] = /^(\S*)\s*(.*)$/s.exec(value)
    const is = (name) => scheme.toLowerCase() === name
    if ((this.bearer && is('bearer')) || (this.apiKey && is('apikey'))) return parameter
    if (this.basic === undefined || !is('basic')) return undefined
    const decoded = Buffer.from(parameter, 'base64')
    const pair = decoded.toString('latin1')
    const colon = pair.indexOf(':')
    if (decoded.toString('base64') !== parameter || colon < 0) {
      throw this.#invalid('The request carries an API key that is not encoded correctly.')
    }
    return this.basic === 'user' ? pair.slice(0, colon) : pair.slice(colon + 1)
  }

  #invalid (detail) {
    return new Problem(400, 'INVALID_CREDENTIAL', detail, this.challenge('invalid_request'))
  }

  challenge (error, scopes = []) {
    const isBasic = this.basic !== undefined && !this.bearer && !this.apiKey
    const scheme = isBasic ? 'Basic' : this.bearer ? 'Bearer' : 'ApiKey'
    const parameters = isBasic ? ['realm="API key"'] : []
    if (error !== undefined) parameters.push(`error="${error}"`)
    if (error === 'insufficient_scope') parameters.push(`scope="${scopes.map(encoded).join(' ')}"`)
    return { 'www-authenticate': `${scheme} ${parameters.join(', ')}`.trim() }
  }
}

/** A text as a string of a structured field. */
function encoded (text) {
  return [...Buffer.from(text)]
    .map((byte) => {
      const character = String.fromCharCode(byte)
      const isPlain = byte >= 0x20 && byte < 0x7f && !'"\\%'.includes(character)
      return isPlain ? character : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`
    })
    .join('')
}

/** The headers about the limit that decided (draft-ietf-httpapi-ratelimit-headers). */
function rateLimitHeaders ({ limit }) {
  if (limit === undefined) return {}
  const name = encoded(limit.name)
  const reset = limit.resetMs === Infinity ? '' : `;t=${Math.ceil(limit.resetMs / 1000)}`
  return {
    'ratelimit-policy': `"${name}";q=${Math.min(limit.limit, MAX_INTEGER)}`,
    ratelimit: `"${name}";r=${Math.min(limit.remaining, MAX_INTEGER)}${reset}`,
  }
}

/** A warning, at most once a second, with the number of requests that it stands for. */
class LimitedWarning {
  #message
  #count = 0
  #next = 0

  constructor (message) {
    this.#message = message
  }

  warn (log, reason) {
    this.#count++
    const now = performance.now()
    if (now < this.#next) return
    log(`keyward: ${this.#count} ${this.#message} (${reason})`)
    this.#count = 0
    this.#next = now + WARNING_INTERVAL_MS
  }
}

/** Decides whether requests are let through. The middleware is built from it. */
class Guard {
  #client
  #credentials
  #failOpen
  #needs
  #log
  #unavailable = new LimitedWarning('requests were refused, because keys cannot be checked')
  #failedOpen = new LimitedWarning('REQUESTS WERE LET THROUGH WITHOUT A CHECK: failOpen is set')

  constructor (client, { credentials, failOpen = false, log = console.warn, ...needs } = {}) {
    this.#client = client
    this.#credentials = new Credentials(credentials)
    this.#failOpen = failOpen
    // An iterator would be empty for the second request.
    this.#needs = { ...needs, scopes: scopeNames(needs.scopes), anyScope: scopeNames(needs.anyScope) }
    this.#log = log
  }

  /** The decision of a request that is let through; null if it is without one. Throws a problem otherwise. */
  async check (rawHeaders, ip) {
    const key = this.#credentials.find(rawHeaders)
    const origins = new Set()
    for (let index = 0; index < rawHeaders.length; index += 2) {
      if (rawHeaders[index].toLowerCase() === 'origin') origins.add(rawHeaders[index + 1])
    }
    if (origins.size > 1) throw new Problem(400, 'INVALID_ORIGIN', 'The request has several origins.')
    const [origin] = origins
    let decision
    try {
      decision = await this.#client.verify(key, { ...this.#needs, ip, origin })
    } catch (error) {
      if (!(error instanceof KeywardError)) throw error
      return this.#failed(error)
    }
    if (decision.allowed) return decision
    if (decision.verdict === 'NOT_READY' || decision.verdict === 'STALE_SNAPSHOT') {
      return this.#cannotDecide(decision.verdict, decision.verdict)
    }
    throw this.#denial(decision)
  }

  #failed (error) {
    if (error instanceof UnavailableError) return this.#cannotDecide('UNAVAILABLE', error.message)
    const isCaller = error instanceof InvalidRequestError
    this.#log(`keyward: ${isCaller ? 'a request needs what no key can have' : 'requests of this program are refused'}: ${error.message}`)
    throw new Problem(500, 'MISCONFIGURED', MISCONFIGURED)
  }

  #cannotDecide (code, reason) {
    if (this.#failOpen) {
      this.#failedOpen.warn(this.#log, reason)
      return null
    }
    this.#unavailable.warn(this.#log, reason)
    throw new Problem(503, code, UNAVAILABLE)
  }

  #denial (decision) {
    const code = decision.verdict
    const headers = rateLimitHeaders(decision)
    const limit = decision.limit ? `the limit "${decision.limit.name}"` : 'a limit'
    if (code in INVALID) {
      return new Problem(401, code, INVALID[code], { ...this.#credentials.challenge('invalid_token'), ...headers })
    }
    if (code === 'MISSING_SCOPE') {
      const scopes = this.#needs.scopes ?? this.#needs.anyScope ?? []
      Object.assign(headers, this.#credentials.challenge('insufficient_scope', scopes))
    }
    if (code in FORBIDDEN) return new Problem(403, code, FORBIDDEN[code], headers)
    switch (code) {
      case 'RATE_LIMITED':
        return new Problem(429, code, `The request exceeds ${limit}.`, headers, decision.retryAfter)
      case 'OUT_OF_CREDIT':
        return new Problem(402, code, `The credits of ${limit} are used up.`, headers)
      case 'COST_EXCEEDS_BURST':
        return new Problem(403, code, `The request costs more than ${limit} ever admits.`, headers)
      case 'UNKNOWN_LIMIT':
        this.#log('keyward: a cost names a limit that no plan and no key has')
        return new Problem(500, code, MISCONFIGURED)
      default:
        return new Problem(403, code, 'The request is not allowed.', headers)
    }
  }
}

/** Middleware for Express and Connect. The decision is `req.keyward`. */
function express (client, { clientAddress = (req) => req.ip ?? req.socket.remoteAddress, ...options } = {}) {
  const guard = new Guard(client, options)
  return async function keyward (req, res, next) {
    let decision
    try {
      decision = await guard.check(req.rawHeaders, addressOf(clientAddress(req)))
    } catch (error) {
      if (!(error instanceof Problem)) return next(error)
      res.statusCode = error.status
      for (const [name, value] of Object.entries(error.headers)) res.setHeader(name, value)
      res.setHeader('content-type', 'application/problem+json')
      return res.end(error.body)
    }
    req.keyward = decision
    for (const [name, value] of Object.entries(decision ? rateLimitHeaders(decision) : {})) res.setHeader(name, value)
    next()
  }
}

/** A hook for Fastify: `fastify.addHook('onRequest', keyward.fastify(client))`. The decision is `request.keyward`. */
function fastify (client, { clientAddress = (request) => request.ip, ...options } = {}) {
  const guard = new Guard(client, options)
  return async function keyward (request, reply) {
    try {
      const decision = await guard.check(request.raw.rawHeaders, addressOf(clientAddress(request)))
      request.keyward = decision
      if (decision) reply.headers(rateLimitHeaders(decision))
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      return reply.code(error.status).headers(error.headers).type('application/problem+json').send(error.body)
    }
  }
}

/**
 * For handlers of the Fetch API, such as those of Hono: resolves to `{ decision, headers }`, or to
 * `{ response }` if the request is not let through.
 */
function fetchGuard (client, { clientAddress = () => undefined, ...options } = {}) {
  const guard = new Guard(client, options)
  return async function check (request, context) {
    try {
      const decision = await guard.check([...request.headers].flat(), addressOf(clientAddress(request, context)))
      return { decision, headers: decision ? rateLimitHeaders(decision) : {} }
    } catch (error) {
      if (!(error instanceof Problem)) throw error
      const headers = { ...error.headers, 'content-type': 'application/problem+json' }
      return { response: new Response(error.body, { status: error.status, headers }) }
    }
  }
}

/** Middleware for Hono. The decision is `c.get('keyward')`. */
function hono (client, { clientAddress = () => undefined, ...options } = {}) {
  const check = fetchGuard(client, { ...options, clientAddress: (_, c) => clientAddress(c) })
  return async function keyward (c, next) {
    const { decision, headers, response } = await check(c.req.raw, c)
    if (response !== undefined) return response
    c.set('keyward', decision)
    await next()
    for (const [name, value] of Object.entries(headers)) c.res.headers.set(name, value)
  }
}

/** An address that Node has given. A socket that has ended has none; then keys with networks are denied. */
function addressOf (address) {
  return address === undefined || address === '' ? undefined : address
}

module.exports = { Credentials, Guard, Problem, express, fastify, fetchGuard, hono, rateLimitHeaders }
