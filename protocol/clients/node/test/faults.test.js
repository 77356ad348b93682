'use strict'

// Faults of a daemon: no wrong decision, no hang, nothing charged twice.

const assert = require('node:assert/strict')
const { createHash } = require('node:crypto')
const { setTimeout: sleep } = require('node:timers/promises')
const test = require('node:test')
const keyward = require('../src/index.js')
const { answer, error, welcome } = require('./support/notation.js')
const { Peer, serve } = require('./support/peer.js')

/** Long enough for a busy machine; a call that waits for nothing ends long before. */
const PATIENT_MS = 20_000
/** The deadline of calls that are to miss it. */
const SHORT_MS = 100
const CODES = Array.from({ length: 16 }, (_, index) => index + 1).concat(99)
const CREDENTIAL_REFUSED = 10
const PEER_REFUSED = 11
const TOO_MANY_CONNECTIONS = 12

async function start (t, ...scripts) {
  const peer = await Peer.start(...scripts)
  const client = new keyward.Client({ socket: peer.path, deadlineMs: PATIENT_MS })
  t.after(() => {
    client.close()
    return peer.close()
  })
  return { peer, client }
}

/** The error of a call. */
async function failure (call) {
  try {
    await call
  } catch (error) {
    return error
  }
  return assert.fail('the call has an answer')
}

test('a connection is kept', async (t) => {
  const { peer, client } = await start(t)
  for (let count = 0; count < 100; count++) assert.ok((await client.verify('key')).allowed)
  assert.deepEqual([peer.connections, peer.requests.length], [1, 100])
})

test('a denial is a value, and an unknown verdict is a denial', async (t) => {
  const { client } = await start(t, async (connection) => {
    await connection.welcome()
    for (let verdict = 0; verdict < 256; verdict++) {
      connection.send(answer((await connection.request()).requestId, { verdict }))
    }
  })
  for (let verdict = 0; verdict < 256; verdict++) {
    const decision = await client.verify('key')
    assert.deepEqual([decision.allowed, decision.verdictNumber], [verdict === 0, verdict])
  }
})

test('an answer in pieces is joined', async (t) => {
  const { client } = await start(t, async (connection) => {
    await connection.welcome()
    for (let request; (request = await connection.request()) !== undefined;) {
      for (const byte of answer(request.requestId)) {
        connection.send(Buffer.from([byte]))
        await sleep(0)
      }
    }
  })
  assert.equal((await client.verify('key')).owner, 'owner')
  assert.equal((await client.verify('key')).owner, 'owner')
})

test('a request that was written is sent again only if it charges nothing', async (t) => {
  const half = async (connection) => {
    await connection.welcome()
    connection.send(answer((await connection.request()).requestId).subarray(0, 20))
  }
  for (const [method, options, isRepeated] of [
    ['verify', {}, false],
    ['verify', { cost: 0, costs: { a: 1 } }, false],
    ['refund', { cost: 1 }, false],
    ['debit', { cost: 1 }, false],
    ['verify', { cost: 0 }, true],
    ['verify', { cost: 0, costs: { a: 0 } }, true],
  ]) {
    const { peer, client } = await start(t, half, serve)
    if (isRepeated) {
      assert.ok((await client[method]('key', options)).allowed)
    } else {
      const lost = await failure(client[method]('key', options))
      assert.ok(lost instanceof keyward.ConnectionLostError && lost.maybeCharged, `${lost}`)
    }
    assert.equal(peer.requests.length, 1 + isRepeated, method)
    assert.ok((await client.verify('key')).allowed)
  }
})

test('a response to another request ends the connection', async (t) => {
  for (const respond of [
    (connection, { requestId }) => connection.send(answer(requestId + 1)),
    (connection, { requestId }) => connection.send(welcome(requestId)),
    (connection) => connection.send(Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')),
  ]) {
    const script = async (connection) => {
      await connection.welcome()
      respond(connection, await connection.request())
      await connection.waitForEnd()
    }
    const { peer, client } = await start(t, script, serve)
    const violation = await failure(client.verify('key'))
    assert.ok(violation instanceof keyward.ProtocolError && violation.maybeCharged, `${violation}`)
    assert.ok((await client.verify('key')).allowed)
    assert.deepEqual([peer.connections, peer.requests.length], [2, 2])
  }
})

test('a late answer is not that of the next request', async (t) => {
  let release
  const released = new Promise((resolve) => { release = resolve })
  const { client } = await start(t, async (connection) => {
    await connection.welcome()
    const first = await connection.request()
    await released
    connection.send(answer(first.requestId, { owner: 'late' }))
    await connection.serve()
  }, serve)
  const late = await failure(client.verify('first', { deadlineMs: SHORT_MS }))
  assert.ok(late instanceof keyward.DeadlineError && late.maybeCharged)
  release()
  assert.equal((await client.verify('second')).owner, 'owner')
})

test('a silent peer costs no more than the deadline', async (t) => {
  const { client } = await start(t, (connection) => connection.waitForEnd())
  const started = performance.now()
  const late = await failure(client.verify('key', { deadlineMs: SHORT_MS }))
  assert.ok(late instanceof keyward.DeadlineError && !late.maybeCharged)
  assert.ok(performance.now() - started < PATIENT_MS / 2)
})

test('an ERROR leaves the connection if it does not close it', async (t) => {
  const codes = CODES.filter((code) => code !== CREDENTIAL_REFUSED)
  const { peer, client } = await start(t, async (connection) => {
    await connection.welcome()
    for (const code of codes) connection.send(error((await connection.request()).requestId, code, 5))
    await connection.serve()
  })
  for (const code of codes) {
    const refused = await failure(client.verify('key'))
    assert.ok(refused instanceof keyward.RefusedError && !refused.maybeCharged)
    assert.deepEqual([refused.code, refused.detail], [code, 5])
  }
  assert.ok((await client.verify('key')).allowed)
  assert.deepEqual([peer.connections, peer.requests.length], [1, codes.length + 1])
})

test('an ERROR that closes says whether to send again', async (t) => {
  for (const code of CODES) {
    const { peer, client } = await start(t, async (connection) => {
      await connection.welcome()
      await connection.request()
      connection.send(error(0, code, 0, true))
    }, serve)
    const isRepeated = code > 9 && code !== PEER_REFUSED
    if (isRepeated) {
      assert.ok((await client.debit('key', { cost: 1 })).allowed)
    } else {
      assert.equal((await failure(client.debit('key', { cost: 1 }))).code, code)
    }
    assert.equal(peer.requests.length, 1 + isRepeated, `${code}`)
  }
})

test('a daemon that refuses connections is not asked for ever', async (t) => {
  for (const [code, most] of [[TOO_MANY_CONNECTIONS, 4], [PEER_REFUSED, 1]]) {
    const { peer, client } = await start(t, (connection) => connection.send(error(0, code, 7, true)))
    for (let call = 0; call < (code === PEER_REFUSED ? 5 : 1); call++) {
      assert.ok(await failure(client.verify('key', { deadlineMs: 1000 })) instanceof keyward.UnavailableError)
    }
    assert.ok(peer.connections <= most, `${code}: ${peer.connections}`)
  }
})

test('the key is sent in the form that the daemon takes', async (t) => {
  const forms = (peer) => peer.requests.map(({ flags, body }) => [flags & 1, body.length])
  const digest = [0, 36]
  const raw = [1, 9]
  const first = await start(t, async (connection) => {
    await connection.welcome({ credentials: 1 })
    connection.send(error((await connection.request()).requestId, CREDENTIAL_REFUSED, 2))
    await connection.serve()
  })
  for (let call = 0; call < 2; call++) assert.ok((await first.client.verify('key')).allowed)
  assert.deepEqual(forms(first.peer), [digest, raw, raw])

  const second = await start(t, async (connection) => {
    await connection.welcome({ credentials: 2 })
    await connection.serve()
  })
  assert.ok((await second.client.verify('key')).allowed)
  // No daemon that takes only raw keys knows a longer one.
  assert.equal((await second.client.verify('k'.repeat(1025))).verdict, 'UNKNOWN_KEY')
  assert.deepEqual(forms(second.peer), [raw])

  for (const [code, detail] of [[10, 1], [10, 3], [10, 0], [8, 2]]) {
    const { peer, client } = await start(t, async (connection) => {
      await connection.welcome({ credentials: 1 })
      connection.send(error((await connection.request()).requestId, code, detail))
      await connection.serve()
    })
    assert.ok(await failure(client.verify('key')) instanceof keyward.RefusedError)
    assert.ok((await client.verify('key')).allowed)
    assert.deepEqual(forms(peer), [digest, digest])
  }
})

test('a daemon that speaks another version is refused', async (t) => {
  for (const fields of [{ version: 2 }, { credentials: 0 }, { credentials: 0xfc }]) {
    const { client } = await start(t, (connection) => connection.welcome(fields))
    assert.ok(await failure(client.verify('key')) instanceof keyward.ProtocolError)
  }
})

test('a restart is survived', async (t) => {
  const { peer, client } = await start(t)
  assert.ok((await client.verify('key')).allowed)
  await peer.stop()
  assert.ok(await failure(client.verify('key', { deadlineMs: SHORT_MS })) instanceof keyward.KeywardError)
  await peer.listen()
  const end = performance.now() + PATIENT_MS
  for (;;) {
    try {
      assert.ok((await client.verify('key')).allowed)
      return
    } catch (error) {
      assert.ok(error instanceof keyward.UnavailableError && performance.now() < end, `${error}`)
      await sleep(10)
    }
  }
})

test('a silent connection is replaced before the daemon ends it', async (t) => {
  const { peer, client } = await start(t, async (connection) => {
    await connection.welcome({ idleTimeoutMs: 100 })
    await connection.serve()
  })
  assert.ok((await client.verify('key')).allowed)
  await sleep(90)
  assert.ok((await client.verify('key')).allowed)
  assert.equal(peer.connections, 2)
})

test('an absent daemon is an error at once', async () => {
  const client = new keyward.Client({ socket: '/nonexistent/keyward.sock', deadlineMs: 10_000 })
  const started = performance.now()
  const absent = await failure(client.verify('key'))
  assert.ok(absent instanceof keyward.ConnectError && absent.message.includes('/nonexistent/keyward.sock'))
  assert.ok(performance.now() - started < 5_000)
})

test('requests that cannot be sent are refused', async (t) => {
  const { peer, client } = await start(t)
  for (const options of [
    { cost: -1 },
    { cost: 2 ** 32 },
    { cost: 1.5 },
    { cost: '1' },
    { scopes: ['a b'] },
    { scopes: [''] },
    { scopes: ['a'], anyScope: ['b'] },
    { anyScope: [] },
    { scopes: ['x'.repeat(1025)] },
    { ip: '10.0.0' },
    { ip: '' },
    { environment: 'x'.repeat(65) },
    { environment: '\ud800' },
    { costs: { '': 1 } },
    { costs: { ['x'.repeat(65)]: 1 } },
    { costs: { x: -1 } },
    { costs: Object.fromEntries(Array.from({ length: 17 }, (_, index) => [`${index}`, 1])) },
  ]) {
    assert.ok(await failure(client.verify('key', options)) instanceof keyward.InvalidRequestError, JSON.stringify(options))
  }
  for (const method of ['refund', 'debit']) {
    assert.ok(await failure(client[method]('key')) instanceof keyward.InvalidRequestError)
  }
  assert.ok(await failure(client.verify(undefined)) instanceof keyward.InvalidRequestError)
  assert.deepEqual(peer.requests, [])
})

test('concurrent callers get their own answers', async (t) => {
  const { peer, client } = await start(t, async (connection) => {
    await connection.welcome()
    for (let request; (request = await connection.request()) !== undefined;) {
      // The digest tells the keys apart.
      connection.send(answer(request.requestId, { owner: request.body.toString('hex', 4, 12) }))
    }
  })
  await Promise.all(Array.from({ length: 1000 }, async (_, index) => {
    const digest = createHash('sha256').update(`${index}`).digest()
    assert.equal((await client.verify(`${index}`)).owner, digest.toString('hex', 0, 8))
  }))
  assert.deepEqual([peer.connections, peer.requests.length], [1, 1000])
})

test('requests beyond the limit wait', async (t) => {
  let unanswered = 0
  let most = 0
  const peer = await Peer.start(async (connection) => {
    await connection.welcome()
    for (let request; (request = await connection.request()) !== undefined;) {
      most = Math.max(most, ++unanswered)
      setTimeout(() => {
        unanswered--
        connection.send(answer(request.requestId))
      }, 1)
    }
  })
  const client = new keyward.Client({ socket: peer.path, deadlineMs: PATIENT_MS, maxInFlight: 7 })
  t.after(() => {
    client.close()
    return peer.close()
  })
  await Promise.all(Array.from({ length: 100 }, () => client.verify('key')))
  assert.ok(most <= 7, `${most}`)
})

test('a request is not written after its deadline', async (t) => {
  const { peer, client } = await start(t, async (connection) => {
    await connection.welcome()
    connection.socket.pause()
    await sleep(5 * SHORT_MS)
    connection.socket.resume()
    await connection.serve()
  }, serve)
  const options = { scopes: ['x'.repeat(1000)], deadlineMs: SHORT_MS }
  const results = await Promise.all(Array.from({ length: 2000 }, () => failure(client.verify('k', options))))
  const unwritten = results.filter((error) => !error.maybeCharged)
  assert.ok(unwritten.length > 0)
  assert.ok((await client.verify('key')).allowed)
  await sleep(5 * SHORT_MS)
  assert.ok(peer.requests.length <= 2000 - unwritten.length + 1, `${peer.requests.length}, ${unwritten.length}`)
})

test('the socket is a path or a URL', async (t) => {
  const { peer } = await start(t)
  for (const socket of [peer.path, `unix:${peer.path}`, `unix://${peer.path}`]) {
    const client = new keyward.Client(socket)
    assert.ok((await client.verify('key', { deadlineMs: PATIENT_MS })).allowed)
    client.close()
  }
  for (const socket of ['unix:', 'unix:relative', 'unix://host/path']) {
    assert.throws(() => new keyward.Client(socket), TypeError)
  }
  assert.throws(() => new keyward.Client({ deadlineMs: 0 }), RangeError)
  assert.throws(() => new keyward.Client({ maxInFlight: 0 }), RangeError)
})

test('the module can be imported and required', async () => {
  const imported = await import('../src/index.mjs')
  for (const [name, value] of Object.entries(keyward)) assert.equal(imported[name], value, name)
})
