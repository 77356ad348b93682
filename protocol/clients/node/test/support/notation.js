'use strict'

// The notation of protocol/vectors, and frames of a daemon for tests.

const fs = require('node:fs')
const path = require('node:path')
const { frame } = require('../../src/frames.js')

const RATE_LIMITED = 14
const VECTORS = path.join(__dirname, '../../../../vectors')

/** JSON whose integers are exact: those beyond 2^53 become a BigInt. */
function load (name) {
  const text = fs.readFileSync(path.join(VECTORS, name), 'utf8')
  const marked = text.replace(/: (-?\d{16,})(?=[,}\n\]])/g, ': "integer:$1"')
  const reviver = (_, value) => {
    if (typeof value !== 'string' || !value.startsWith('integer:')) return value
    return BigInt(value.slice('integer:'.length))
  }
  return JSON.parse(marked, reviver)
}

/** Hex in tokens, each of which may be repeated. */
function toBytes (text) {
  const tokens = text.replaceAll('|', ' ').split(' ').filter((token) => token !== '')
  return Buffer.concat(tokens.map((token) => {
    const [hex, times = '1'] = token.split('*')
    return Buffer.from(hex.repeat(Number(times)), 'hex')
  }))
}

/** A text, which may be a list of parts. */
function toText (value) {
  if (!Array.isArray(value)) return value
  return value.map((part) => (typeof part === 'string' ? part : part.repeat.repeat(part.times))).join('')
}

function text8 (text) {
  return Buffer.concat([Buffer.from([Buffer.byteLength(text)]), Buffer.from(text)])
}

function integers (...pairs) {
  return Buffer.concat(pairs.map(([size, value]) => {
    const data = Buffer.alloc(size)
    data.writeUIntLE(value, 0, Math.min(size, 6))
    return data
  }))
}

function welcome (requestId, { version = 1, credentials = 3, idleTimeoutMs = 60_000 } = {}) {
  const fields = integers([1, version], [1, 1], [1, 1], [1, credentials], [4, 4096], [4, idleTimeoutMs], [8, 7])
  return frame(0x81, 0, requestId, Buffer.concat([fields, text8('keyward/test')]))
}

/** With `limited`, a limit of 10 decided, and is full again in 29.001 s. */
function answer (requestId, { verdict = 0, owner = 'owner', limited = false } = {}) {
  const retryMs = verdict === RATE_LIMITED ? 1001 : 0
  const limit = limited ? [[4, 10], [4, 9], [4, retryMs], [4, 29_001]] : [[4, 0], [4, 0], [4, 0], [4, 0]]
  const fields = integers([1, verdict], [8, 7], ...limit)
  const texts = ['key', owner, '', '', limited ? 'per minute' : ''].map(text8)
  return frame(0x82, 0, requestId, Buffer.concat([fields, ...texts]))
}

function error (requestId, code, detail = 0, closing = false) {
  return frame(0xff, Number(closing), requestId, Buffer.concat([integers([1, code], [4, detail]), text8('test')]))
}

module.exports = { answer, error, load, toBytes, toText, welcome }
