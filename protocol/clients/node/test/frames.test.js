'use strict'

// Every frame of protocol/vectors/vectors.json.

const assert = require('node:assert/strict')
const test = require('node:test')
const { ERROR_CODES, ProtocolError } = require('../src/errors.js')
const { KIND, frame, frameEnd, hello, parse } = require('../src/frames.js')
const { adjustment, verify } = require('../src/request.js')
const { load, toBytes, toText } = require('./support/notation.js')

const vectors = load('vectors.json')
const KINDS = Object.fromEntries(Object.entries(KIND).map(([name, kind]) => [kind, name]))

/** The frame that the client writes for these fields. */
function encoded (fields) {
  const { kind, request_id: requestId, flags } = fields
  if (kind === 'HELLO') return hello(requestId, fields.min_version, fields.max_version)
  const options = {
    cost: fields.cost,
    costs: fields.costs && new Map(fields.costs.map(({ name, cost }) => [toText(name), cost])),
    ip: fields.ip,
    origin: toText(fields.origin),
    environment: toText(fields.environment),
    metadata: flags.includes('METADATA'),
    balances: flags.includes('BALANCES'),
  }
  if (fields.scopes !== undefined) {
    options[flags.includes('ANY_SCOPE') ? 'anyScope' : 'scopes'] = toText(fields.scopes).split(' ')
  }
  const key = toBytes(fields.key ?? '')
  const request = kind === 'VERIFY' ? verify(key, options) : adjustment(KIND[kind], key, options)
  if (flags.includes('RAW_KEY')) return request.encode(requestId, true)
  // A digest is that of a key, which vectors do not name.
  const body = Buffer.concat([request.cost, toBytes(fields.digest), request.tail])
  return frame(request.kind, request.flags, requestId, body)
}

const milliseconds = (value) => (value === Infinity ? 0xffffffff : value)
const integer = (value) => (typeof value === 'bigint' && value <= BigInt(Number.MAX_SAFE_INTEGER) && value >= BigInt(Number.MIN_SAFE_INTEGER) ? Number(value) : value)

/** A response in the terms of the vectors. */
function decoded ({ kind, requestId, welcome, refusal, decision }) {
  const common = { kind: KINDS[kind], request_id: requestId, flags: [] }
  if (welcome !== undefined) {
    return {
      ...common,
      version: welcome.version,
      min_version: welcome.minVersion,
      max_version: welcome.maxVersion,
      credentials: welcome.credentials,
      max_length: welcome.maxLength,
      idle_timeout_ms: welcome.idleTimeoutMs,
      generation: integer(welcome.generation),
      server: welcome.server,
    }
  }
  if (refusal !== undefined) {
    const { code, detail, message, closing } = refusal
    return { ...common, flags: closing ? ['CLOSING'] : [], code: ERROR_CODES[code] ?? code, detail, message }
  }
  const { limit, balances } = decision
  const fields = {
    ...common,
    verdict: decision.verdict.startsWith('UNKNOWN_VERDICT_') ? decision.verdictNumber : decision.verdict,
    generation: integer(decision.generation),
    limit: limit?.limit ?? 0,
    remaining: limit?.remaining ?? 0,
    retry_after_ms: decision.retryAfterMs,
    reset_ms: milliseconds(limit?.resetMs ?? 0),
    key_id: decision.keyId,
    owner: decision.owner,
    environment: decision.environment,
    plan: decision.plan,
    limit_name: limit?.name ?? '',
  }
  if (decision.metadataText !== undefined) {
    fields.flags.push('METADATA')
    fields.metadata = decision.metadataText
  }
  if (decision.shadowLimit !== undefined) {
    fields.flags.push('SHADOW')
    fields.shadow_limit = decision.shadowLimit
  }
  if (balances !== undefined) {
    fields.flags.push('BALANCES')
    fields.balances = balances.map(({ name, kind, charged, resetMs, exact }) => ({
      name, kind, limit: integer(exact.limit), charged, balance: integer(exact.balance), reset_ms: milliseconds(resetMs),
    }))
  }
  return fields
}

function expected (fields) {
  const entries = Object.entries(fields).map(([name, value]) => {
    if (name === 'flags') return [name, [...value].sort()]
    if (name === 'balances') return [name, value.map((limit) => ({ ...limit, name: toText(limit.name) }))]
    return [name, toText(value)]
  })
  return Object.fromEntries(entries)
}

test('the client writes the frames of the vectors', () => {
  const written = vectors.filter(({ from, fields }) => from === 'client' && fields)
  assert.ok(written.length > 80)
  for (const { name, fields, bytes } of written) {
    assert.equal(encoded(fields).toString('hex'), toBytes(bytes).toString('hex'), name)
  }
})

test('the client reads the frames of the vectors', () => {
  const read = vectors.filter(({ from, fields }) => from === 'daemon' && fields)
  assert.ok(read.length > 70)
  for (const { name, fields, bytes } of read) {
    const data = toBytes(bytes)
    assert.equal(frameEnd(data, 0), data.length, name)
    const actual = decoded(parse(data))
    actual.flags.sort()
    assert.deepEqual(actual, expected(fields), name)
  }
})

test('the client rejects frames that violate the protocol', () => {
  const bad = vectors.filter(({ group }) => group === 'bad-daemon')
  assert.ok(bad.length > 70)
  for (const { name, bytes } of bad) {
    const data = toBytes(bytes)
    assert.throws(() => parse(data.subarray(0, frameEnd(data, 0))), ProtocolError, name)
  }
})
