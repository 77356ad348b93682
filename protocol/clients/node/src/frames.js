'use strict'

// Frames as bytes (SPEC.md, sections 2 to 8).

const { isUtf8 } = require('node:buffer')
const { Decision, LIMIT_KINDS } = require('./decision.js')
const { ProtocolError } = require('./errors.js')

const VERSION = 1
const KIND = { HELLO: 1, VERIFY: 2, REFUND: 3, DEBIT: 4, WELCOME: 0x81, ANSWER: 0x82, ERROR: 0xff }
const FLAG = {
  RAW_KEY: 0x0001,
  SCOPES: 0x0002,
  ANY_SCOPE: 0x0004,
  IP: 0x0008,
  ORIGIN: 0x0010,
  ENVIRONMENT: 0x0020,
  METADATA: 0x0040,
  COSTS: 0x0080,
  BALANCES: 0x0100,
}
const ANSWER_FLAG = { METADATA: 0x0040, SHADOW: 0x0080, BALANCES: 0x0100 }
const CLOSING = 0x0001
/** Bits of WELCOME's `credentials`. */
const CREDENTIAL = { DIGEST: 1, RAW: 2 }
/** Bytes of `length` itself, and of the whole header. */
const LENGTH_BYTES = 4
const HEADER_BYTES = 12
const MIN_LENGTH = 8
const MAX_REQUEST_LENGTH = 4096
const MAX_RESPONSE_LENGTH = 8192
const MAX_NAME = 64
const MAX_LIMITS = 16

function frame (kind, flags, requestId, body) {
  const data = Buffer.allocUnsafe(HEADER_BYTES + body.length)
  data.writeUInt32LE(HEADER_BYTES - LENGTH_BYTES + body.length, 0)
  data[4] = VERSION
  data[5] = kind
  data.writeUInt16LE(flags, 6)
  data.writeUInt32LE(requestId, 8)
  body.copy(data, HEADER_BYTES)
  return data
}

function hello (requestId, minVersion = VERSION, maxVersion = VERSION) {
  return frame(KIND.HELLO, 0, requestId, Buffer.from([minVersion, maxVersion]))
}

/** Bytes after their length in `size` bytes. */
function prefixed (bytes, size) {
  const data = Buffer.allocUnsafe(size + bytes.length)
  data.writeUIntLE(bytes.length, 0, size)
  bytes.copy(data, size)
  return data
}

function u32 (value) {
  const data = Buffer.allocUnsafe(4)
  data.writeUInt32LE(value)
  return data
}

/** Reads the fields of a body, and notices if it ends too early. */
class Reader {
  constructor (data) {
    this.data = data
    this.offset = HEADER_BYTES
  }

  take (count) {
    const start = this.offset
    this.offset += count
    if (this.offset > this.data.length) throw new ProtocolError('a frame ends within a field')
    return start
  }

  u8 () { return this.data[this.take(1)] }
  u16 () { return this.data.readUInt16LE(this.take(2)) }
  u32 () { return this.data.readUInt32LE(this.take(4)) }
  u64 () { return this.data.readBigUInt64LE(this.take(8)) }
  i64 () { return this.data.readBigInt64LE(this.take(8)) }

  text (length, max) {
    if (length > max) throw new ProtocolError(`a text is ${length} bytes long, and not at most ${max}`)
    const start = this.take(length)
    const bytes = this.data.subarray(start, start + length)
    if (!isUtf8(bytes)) throw new ProtocolError('a text is not UTF-8')
    return bytes.toString()
  }

  text8 (max) { return this.text(this.u8(), max) }

  end () {
    const rest = this.data.length - this.offset
    if (rest > 0) throw new ProtocolError(`a frame has ${rest} bytes after its last field`)
  }
}

/** Where the frame that begins at `start` ends; undefined if its length has not been received. */
function frameEnd (data, start) {
  if (data.length - start < LENGTH_BYTES) return undefined
  const length = data.readUInt32LE(start)
  if (length < MIN_LENGTH || length > MAX_RESPONSE_LENGTH) {
    throw new ProtocolError(`a frame has a length of ${length}, and not of ${MIN_LENGTH} to ${MAX_RESPONSE_LENGTH}`)
  }
  return start + LENGTH_BYTES + length
}

/** The contents of a whole frame of the daemon. */
function parse (data) {
  const version = data[4]
  const kind = data[5]
  const flags = data.readUInt16LE(6)
  const requestId = data.readUInt32LE(8)
  if (version !== VERSION) throw new ProtocolError(`a frame is of version ${version}`)
  const parser = PARSERS[kind]
  if (parser === undefined) throw new ProtocolError(`a frame is of the unknown kind ${kind}`)
  if ((flags & ~parser.flags) !== 0) throw new ProtocolError(`a frame has unknown flags in ${flags}`)
  const reader = new Reader(data)
  const response = parser.parse(reader, flags)
  reader.end()
  return { kind, requestId, ...response }
}

const PARSERS = {
  [KIND.WELCOME]: {
    flags: 0,
    parse: (reader) => ({
      welcome: {
        version: reader.u8(),
        minVersion: reader.u8(),
        maxVersion: reader.u8(),
        credentials: reader.u8(),
        maxLength: reader.u32(),
        idleTimeoutMs: reader.u32(),
        generation: reader.u64(),
        server: reader.text8(255),
      },
    }),
  },
  [KIND.ERROR]: {
    flags: CLOSING,
    parse: (reader, flags) => ({
      refusal: {
        code: reader.u8(),
        detail: reader.u32(),
        message: reader.text8(255),
        closing: (flags & CLOSING) !== 0,
      },
    }),
  },
  [KIND.ANSWER]: {
    flags: ANSWER_FLAG.METADATA | ANSWER_FLAG.SHADOW | ANSWER_FLAG.BALANCES,
    parse: (reader, flags) => ({ decision: parseAnswer(reader, flags) }),
  },
}

function parseAnswer (reader, flags) {
  const verdict = reader.u8()
  const generation = reader.u64()
  const limit = reader.u32()
  const remaining = reader.u32()
  const retryAfterMs = reader.u32()
  const resetMs = reader.u32()
  const keyId = reader.text8(MAX_NAME)
  const owner = reader.text8(128)
  const environment = reader.text8(MAX_NAME)
  const plan = reader.text8(MAX_NAME)
  const name = reader.text8(MAX_NAME)
  return new Decision({
    verdict,
    generation,
    keyId,
    owner,
    environment,
    plan,
    limit: name === '' ? undefined : { name, limit, remaining, resetMs: duration(resetMs) },
    retryAfterMs,
    metadata: flags & ANSWER_FLAG.METADATA ? reader.text(reader.u16(), 4096) : undefined,
    shadowLimit: flags & ANSWER_FLAG.SHADOW ? reader.text8(MAX_NAME) : undefined,
    balances: flags & ANSWER_FLAG.BALANCES ? parseBalances(reader) : undefined,
  })
}

function parseBalances (reader) {
  const count = reader.u8()
  if (count > MAX_LIMITS) throw new ProtocolError(`an answer has ${count} balances, and not at most ${MAX_LIMITS}`)
  const balances = []
  for (let index = 0; index < count; index++) {
    const name = reader.text8(MAX_NAME)
    const kind = reader.u8()
    const limit = reader.u64()
    const charged = reader.u32()
    const balance = reader.i64()
    balances.push({
      name,
      kind: LIMIT_KINDS[kind] ?? kind,
      limit: Number(limit),
      charged,
      balance: Number(balance),
      resetMs: duration(reader.u32()),
      exact: { limit, balance },
    })
  }
  return balances
}

/** 4294967295 stands for that many milliseconds or more. */
function duration (milliseconds) {
  return milliseconds === 0xffffffff ? Infinity : milliseconds
}

module.exports = { CREDENTIAL, FLAG, KIND, LENGTH_BYTES, MAX_REQUEST_LENGTH, VERSION, frame, frameEnd, hello, parse, prefixed, u32 }
