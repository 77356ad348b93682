'use strict'

// A request, encoded but for its id and its key.

const { createHash } = require('node:crypto')
const { isIPv4, isIPv6, SocketAddress } = require('node:net')
const { FLAG, KIND, frame, hello, prefixed, u32 } = require('./frames.js')
const { InvalidRequestError } = require('./errors.js')

const MAX_U32 = 0xffffffff
const MAX_KEY = 1024
const MAX_SCOPES = 1024
const MAX_ORIGIN = 512
const MAX_NAME = 64
const MAX_COSTS = 16

class Hello {
  constructor () {
    this.mayRepeat = true
    this.fitsRaw = true
    this.expects = KIND.WELCOME
  }

  encode (requestId) {
    return hello(requestId)
  }
}

class Request {
  constructor (kind, key, flags, cost, tail, isPeek) {
    if (typeof key !== 'string' && !(key instanceof Uint8Array)) {
      throw new InvalidRequestError('the key is neither a string nor bytes')
    }
    this.kind = kind
    this.key = Buffer.from(key)
    this.flags = flags
    this.cost = u32(cost)
    this.tail = Buffer.concat(tail)
    /** Whether it can be sent twice: it charges nothing. */
    this.mayRepeat = isPeek
    this.expects = KIND.ANSWER
  }

  /** Whether the key can be sent raw. A daemon that takes only raw keys knows no longer one. */
  get fitsRaw () {
    return this.key.length <= MAX_KEY
  }

  encode (requestId, raw) {
    const credential = raw ? prefixed(this.key, 2) : createHash('sha256').update(this.key).digest()
    const flags = raw ? this.flags | FLAG.RAW_KEY : this.flags
    return frame(this.kind, flags, requestId, Buffer.concat([this.cost, credential, this.tail]))
  }
}

function verify (key, options) {
  const { cost = 1, costs, ip, origin, environment } = options
  const tail = []
  let flags = addScopes(options, tail)
  if (ip !== undefined) {
    flags |= FLAG.IP
    tail.push(address(ip))
  }
  if (origin !== undefined) {
    const bytes = encode('origin', origin)
    // A longer one matches no list: it is left out, and a key with a list is refused.
    if (bytes.length <= MAX_ORIGIN) {
      flags |= FLAG.ORIGIN
      tail.push(prefixed(bytes, 2))
    }
  }
  if (environment !== undefined) {
    flags |= FLAG.ENVIRONMENT
    tail.push(prefixed(encode('environment', environment, MAX_NAME), 1))
  }
  if (options.metadata) flags |= FLAG.METADATA
  if (options.balances) flags |= FLAG.BALANCES
  flags |= addCosts(costs, tail)
  checkCost('cost', cost)
  const isPeek = cost === 0 && amounts(costs).every(([, amount]) => amount === 0)
  return new Request(KIND.VERIFY, key, flags, cost, tail, isPeek)
}

function adjustment (kind, key, options) {
  const { cost = 0, costs } = options
  const tail = []
  const flags = (options.balances ? FLAG.BALANCES : 0) | addCosts(costs, tail)
  checkCost('cost', cost)
  if (cost === 0 && !(flags & FLAG.COSTS)) {
    throw new InvalidRequestError('a refund or debit is at least 1; a request of cost 0 has charged nothing')
  }
  return new Request(kind, key, flags, cost, tail, false)
}

function encode (field, value, max = Infinity) {
  if (typeof value !== 'string') throw new InvalidRequestError(`${field} is no string`)
  const bytes = Buffer.from(value)
  // A lone surrogate has become U+FFFD.
  if (bytes.toString() !== value) throw new InvalidRequestError(`${field} is not Unicode: it has a lone surrogate`)
  if (bytes.length > max) throw new InvalidRequestError(`${field} is ${bytes.length} bytes long, and not at most ${max}`)
  return bytes
}

/** Scopes as an array, which may be given as a single string. */
function scopeNames (scopes) {
  return scopes === undefined ? undefined : typeof scopes === 'string' ? [scopes] : [...scopes]
}

function addScopes ({ scopes, anyScope }, tail) {
  const [all, any] = [scopeNames(scopes) ?? [], scopeNames(anyScope) ?? []]
  if (all.length > 0 && any.length > 0) throw new InvalidRequestError('scopes and anyScope exclude each other')
  if (anyScope !== undefined && any.length === 0) {
    throw new InvalidRequestError('anyScope has no scope: one of none cannot be had')
  }
  const names = [...all, ...any]
  if (names.length === 0) return 0
  for (const name of names) {
    if (typeof name !== 'string' || name === '' || name.includes(' ')) {
      throw new InvalidRequestError(`${JSON.stringify(name)} is no scope: it is empty, or has a space`)
    }
  }
  tail.push(prefixed(encode('scopes', names.join(' '), MAX_SCOPES), 2))
  return FLAG.SCOPES | (any.length > 0 ? FLAG.ANY_SCOPE : 0)
}

function address (ip) {
  const bytes = Buffer.alloc(16)
  if (isIPv4(ip)) {
    bytes.fill(0xff, 10, 12)
    ip.split('.').forEach((part, index) => { bytes[12 + index] = Number(part) })
    return bytes
  }
  // A zone is not part of an address.
  const [plain] = typeof ip === 'string' ? ip.split('%') : ['']
  if (!isIPv6(plain)) throw new InvalidRequestError(`${JSON.stringify(ip)} is no IP address`)
  return parseIPv6(plain)
}

function parseIPv6 (ip) {
  // The canonical form has no dotted part, except where it stands for an IPv4 address.
  const canonical = new SocketAddress({ address: ip, family: 'ipv6' }).address
  const dotted = canonical.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, ...parts) => {
    const [a, b, c, d] = parts.slice(0, 4).map(Number)
    return `${(a * 256 + b).toString(16)}:${(c * 256 + d).toString(16)}`
  })
  const [head, tail] = dotted.split('::').map((half) => (half === '' ? [] : half.split(':')))
  const groups = tail === undefined ? head : [...head, ...Array(8 - head.length - tail.length).fill('0'), ...tail]
  const bytes = Buffer.alloc(16)
  groups.forEach((group, index) => bytes.writeUInt16BE(parseInt(group, 16), 2 * index))
  return bytes
}

/** The pairs of an object or a map. */
function amounts (costs) {
  return costs instanceof Map ? [...costs] : Object.entries(costs ?? {})
}

function checkCost (field, cost) {
  if (!Number.isInteger(cost) || cost < 0 || cost > MAX_U32) {
    throw new InvalidRequestError(`${field} is ${cost}, and not a whole number from 0 to ${MAX_U32}`)
  }
}

function addCosts (costs, tail) {
  const pairs = amounts(costs)
  if (pairs.length === 0) return 0
  if (pairs.length > MAX_COSTS) {
    throw new InvalidRequestError(`there are ${pairs.length} costs, and not at most ${MAX_COSTS}`)
  }
  tail.push(Buffer.from([pairs.length]))
  for (const [name, cost] of pairs) {
    if (name === '') throw new InvalidRequestError('the name of a limit is empty')
    checkCost(`the cost of ${JSON.stringify(name)}`, cost)
    tail.push(prefixed(encode('the name of a limit', name, MAX_NAME), 1), u32(cost))
  }
  return FLAG.COSTS
}

module.exports = { Hello, Request, adjustment, scopeNames, verify }
