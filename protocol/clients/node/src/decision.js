'use strict'

/** The verdicts of SPEC.md, section 7, by number. */
const VERDICTS = [
  'ALLOWED',
  'NOT_READY',
  'STALE_SNAPSHOT',
  'MALFORMED_KEY',
  'UNKNOWN_KEY',
  'REVOKED',
  'DISABLED',
  'NOT_YET_VALID',
  'EXPIRED',
  'WRONG_ENVIRONMENT',
  'IP_NOT_ALLOWED',
  'ORIGIN_NOT_ALLOWED',
  'MISSING_SCOPE',
  'COST_EXCEEDS_BURST',
  'RATE_LIMITED',
  'UNKNOWN_LIMIT',
  'OUT_OF_CREDIT',
]

const LIMIT_KINDS = ['BUCKET', 'WINDOW', 'CREDITS']

class Decision {
  #metadata

  constructor (fields) {
    this.verdict = VERDICTS[fields.verdict] ?? `UNKNOWN_VERDICT_${fields.verdict}`
    this.verdictNumber = fields.verdict
    this.generation = fields.generation ?? 0n
    this.keyId = fields.keyId ?? ''
    this.owner = fields.owner ?? ''
    this.environment = fields.environment ?? ''
    this.plan = fields.plan ?? ''
    this.limit = fields.limit
    this.retryAfterMs = fields.retryAfterMs ?? 0
    this.shadowLimit = fields.shadowLimit
    this.balances = fields.balances
    this.#metadata = fields.metadata
  }

  get allowed () {
    return this.verdictNumber === 0
  }

  get remaining () {
    return this.limit?.remaining
  }

  get retryAfter () {
    return this.verdict === 'RATE_LIMITED' ? Math.ceil(this.retryAfterMs / 1000) : undefined
  }

  get metadataText () {
    return this.#metadata
  }

  get metadata () {
    if (this.#metadata === undefined) return {}
    const metadata = JSON.parse(this.#metadata)
    if (metadata === null || typeof metadata !== 'object' || Array.isArray(metadata)) {
      throw new TypeError('the metadata of the key is no JSON object')
    }
    return metadata
  }
}

module.exports = { Decision, LIMIT_KINDS, VERDICTS }
