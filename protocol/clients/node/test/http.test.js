'use strict'

// What requests need, what their clients get, and the middleware of each framework.

const assert = require('node:assert/strict')
const { createHash } = require('node:crypto')
const http = require('node:http')
const test = require('node:test')
const keyward = require('../src/index.js')
const { VERDICTS } = require('../src/decision.js')
const { answer } = require('./support/notation.js')
const { Peer } = require('./support/peer.js')

/** The table of SPEC.md, section 7. */
const STATUS = {
  ALLOWED: 200,
  NOT_READY: 503,
  STALE_SNAPSHOT: 503,
  IP_NOT_ALLOWED: 403,
  ORIGIN_NOT_ALLOWED: 403,
  MISSING_SCOPE: 403,
  COST_EXCEEDS_BURST: 403,
  UNKNOWN_LIMIT: 500,
  OUT_OF_CREDIT: 402,
  RATE_LIMITED: 429,
}

/** Answers with the verdict that the key is named after. */
async function decide (connection) {
  const verdicts = new Map(VERDICTS.map((name, value) => [createHash('sha256').update(name).digest('hex'), value]))
  await connection.welcome()
  for (let request; (request = await connection.request()) !== undefined;) {
    const verdict = verdicts.get(request.body.toString('hex', 4, 36))
    connection.send(answer(request.requestId, { verdict, limited: true }))
  }
}

/** An application of each framework behind its middleware; undefined if the framework is not installed. */
const FRAMEWORKS = {
  node: (client, options) => {
    const guard = keyward.express(client, { clientAddress: (req) => req.socket.remoteAddress, ...options })
    return http.createServer((req, res) => guard(req, res, () => res.end(req.keyward?.owner ?? 'anonymous')))
  },
  express: (client, options) => {
    const app = installed('express')()
    app.use(keyward.express(client, options))
    app.get('/', (req, res) => { res.send(req.keyward?.owner ?? 'anonymous') })
    return http.createServer(app)
  },
  fastify: async (client, options) => {
    const fastify = installed('fastify')()
    fastify.addHook('onRequest', keyward.fastify(client, options))
    fastify.get('/', (request) => request.keyward?.owner ?? 'anonymous')
    await fastify.ready()
    return fastify.server
  },
  hono: (client, options) => {
    const { Hono } = installed('hono')
    const app = new Hono()
    app.use(keyward.hono(client, { clientAddress: (c) => c.env.address, ...options }))
    app.get('/', (c) => c.text(c.get('keyward')?.owner ?? 'anonymous'))
    // The Fetch API on Node's server.
    return http.createServer(async (req, res) => {
      const headers = new Headers()
      for (let index = 0; index < req.rawHeaders.length; index += 2) {
        headers.append(req.rawHeaders[index], req.rawHeaders[index + 1])
      }
      const response = await app.fetch(new Request('http://h/', { headers }), { address: req.socket.remoteAddress })
      res.writeHead(response.status, Object.fromEntries(response.headers))
      res.end(Buffer.from(await response.arrayBuffer()))
    })
  },
}

class NotInstalledError extends Error {}

function installed (name) {
  try {
    return require(name)
  } catch {
    throw new NotInstalledError(name)
  }
}

async function get (port, headers) {
  return new Promise((resolve, reject) => {
    const request = http.get({ port, headers, agent: false }, async (response) => {
      const chunks = await response.toArray()
      resolve({ status: response.statusCode, headers: response.headers, body: Buffer.concat(chunks).toString() })
    })
    request.on('error', reject)
  })
}

for (const [name, create] of Object.entries(FRAMEWORKS)) {
  /** Starts an application, and returns what requests it. */
  const start = async (t, options, socket) => {
    const logged = []
    const client = new keyward.Client({ socket, deadlineMs: 20_000 })
    let server
    try {
      server = await create(client, { log: (message) => logged.push(message), ...options })
    } catch (error) {
      if (!(error instanceof NotInstalledError)) throw error
      t.skip(`${error.message} is not installed`)
      return {}
    }
    await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve) })
    t.after(() => {
      client.close()
      return new Promise((resolve) => { server.close(resolve) })
    })
    return { logged, get: (headers) => get(server.address().port, headers) }
  }

  const withPeer = async (t, options) => {
    const peer = await Peer.start(decide)
    t.after(() => peer.close())
    return { peer, ...await start(t, options, peer.path) }
  }

  test(`${name}: every verdict has its status and headers`, async (t) => {
    const { get } = await withPeer(t, { scopes: ['a:b'] })
    if (get === undefined) return
    for (const verdict of VERDICTS) {
      const { status, headers, body } = await get({ authorization: `Bearer ${verdict}` })
      const expected = STATUS[verdict] ?? 401
      assert.equal(status, expected, verdict)
      const challenge = expected === 401
        ? 'Bearer error="invalid_token"'
        : verdict === 'MISSING_SCOPE' ? 'Bearer error="insufficient_scope", scope="a:b"' : undefined
      assert.equal(headers['www-authenticate'], challenge, verdict)
      assert.equal(headers['retry-after'], expected === 429 ? '2' : undefined)
      if ([200, 402, 429].includes(expected)) {
        assert.equal(headers.ratelimit, '"per minute";r=9;t=30')
        assert.equal(headers['ratelimit-policy'], '"per minute";q=10')
      }
      if (expected === 200) {
        assert.equal(body, 'owner')
      } else {
        assert.match(headers['content-type'], /^application\/problem\+json/)
        assert.equal(headers['cache-control'], 'no-store')
        const problem = JSON.parse(body)
        assert.deepEqual([problem.status, problem.code], [expected, verdict])
      }
    }
  })

  test(`${name}: a request without one clear key is refused`, async (t) => {
    const { get } = await withPeer(t, {})
    if (get === undefined) return
    for (const [headers, status] of [
      [{}, 401],
      [{ authorization: 'Digest a' }, 401],
      [{ authorization: 'Bearer' }, 400],
      [{ authorization: 'Bearer a b' }, 400],
      [{ 'x-api-key': 'a,b' }, 400],
      [{ 'x-api-key': ['a', 'b'] }, 400],
      [{ 'x-api-key': 'a', authorization: 'Bearer b' }, 400],
      [{ 'x-api-key': 'ALLOWED', authorization: 'Bearer ALLOWED' }, 200],
      [{ authorization: 'apikey ALLOWED' }, 200],
    ]) {
      assert.equal((await get(headers)).status, status, JSON.stringify(headers))
    }
  })

  test(`${name}: a daemon that cannot be asked refuses or fails open`, async (t) => {
    const key = { authorization: 'Bearer ALLOWED' }
    const closed = await start(t, {}, '/nonexistent')
    if (closed.get === undefined) return
    assert.equal((await closed.get(key)).status, 503)
    assert.equal(closed.logged.length, 1)
    const open = await start(t, { failOpen: true }, '/nonexistent')
    const { status, body } = await open.get(key)
    assert.deepEqual([status, body], [200, 'anonymous'])
    assert.match(open.logged[0], /WITHOUT A CHECK/)
    // A request without a key is refused all the same.
    assert.equal((await open.get({})).status, 401)
    const wrong = await start(t, { failOpen: true, scopes: ['no scope'] }, '/nonexistent')
    assert.equal((await wrong.get(key)).status, 500)
  })

  test(`${name}: the daemon learns scopes, address and origin`, async (t) => {
    // An iterator: every request needs its scopes, and not only the first.
    const { peer, get } = await withPeer(t, { scopes: ['s:1'].values() })
    if (get === undefined) return
    await get({ 'x-api-key': 'ALLOWED' })
    await get({ 'x-api-key': 'ALLOWED', origin: 'https://a.example' })
    const { body } = peer.requests.at(-1)
    for (const part of ['s:1', 'https://a.example', Buffer.from([0xff, 0xff, 127, 0, 0, 1])]) {
      assert.ok(body.includes(part), `${part}`)
    }
  })
}

test('only named places hold keys', () => {
  for (const [options, headers, expected] of [
    [{}, ['Authorization', 'Bearer a'], 'a'],
    [{ bearer: false }, ['Authorization', 'Bearer a'], 401],
    [{ apiKey: false }, ['Authorization', 'ApiKey a'], 401],
    [{}, ['Authorization', 'Basic dTpw'], 401],
    [{ basic: 'user' }, ['Authorization', 'Basic dTpw'], 'u'],
    [{ basic: 'password' }, ['Authorization', 'Basic dTpw'], 'p'],
    [{ basic: 'user' }, ['Authorization', 'Basic !'], 400],
    [{ basic: 'user' }, ['Authorization', 'Basic dQ=='], 400],
    [{ headers: ['X-Key'] }, ['x-key', ' a '], 'a'],
    [{ headers: ['X-Key'] }, ['x-api-key', 'a'], 401],
    [{}, ['Authorization', 'Bearer a', 'Authorization', 'Bearer a'], 'a'],
    [{}, ['x-api-key', '\xff'], '\xff'],
  ]) {
    let found
    try {
      found = new keyward.Credentials(options).find(headers).toString('latin1')
    } catch (problem) {
      found = problem.status
    }
    assert.equal(found, expected, JSON.stringify([options, headers]))
  }
})
