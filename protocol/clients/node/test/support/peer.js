'use strict'

// A peer that plays the daemon's part as a test scripts it.

const fs = require('node:fs')
const net = require('node:net')
const os = require('node:os')
const path = require('node:path')
const { answer, welcome } = require('./notation.js')

const HELLO = 1

/** One connection, on the side of the daemon. */
class PeerConnection {
  #received = Buffer.alloc(0)
  #ended = false
  #wake = () => {}

  constructor (socket, requests) {
    this.socket = socket
    this.requests = requests
    socket.on('data', (data) => {
      this.#received = Buffer.concat([this.#received, data])
      this.#wake()
    })
    socket.on('close', () => {
      this.#ended = true
      this.#wake()
    })
    socket.on('error', () => {})
  }

  /** The next frame; undefined at the end of the stream. Frames other than HELLO are remembered. */
  async request () {
    const length = () => (this.#received.length < 4 ? Infinity : 4 + this.#received.readUInt32LE(0))
    while (this.#received.length < length()) {
      if (this.#ended) return undefined
      await new Promise((resolve) => { this.#wake = resolve })
    }
    const data = this.#received.subarray(0, length())
    this.#received = this.#received.subarray(data.length)
    const request = { kind: data[5], flags: data.readUInt16LE(6), requestId: data.readUInt32LE(8), body: data.subarray(12) }
    if (request.kind !== HELLO) this.requests.push(request)
    return request
  }

  send (...frames) {
    this.socket.write(Buffer.concat(frames))
  }

  async welcome (fields) {
    const { requestId } = await this.request()
    this.send(welcome(requestId, fields))
  }

  /** Answers everything until the client ends the connection. */
  async serve () {
    for (let request; (request = await this.request()) !== undefined;) {
      this.send((request.kind === HELLO ? welcome : answer)(request.requestId))
    }
  }

  async waitForEnd () {
    while (await this.request() !== undefined);
  }
}

const serve = (connection) => connection.serve()

/** Listens, and runs the next script with each connection. The last script is repeated. */
class Peer {
  #scripts
  #server
  #sockets = new Set()

  constructor (scripts) {
    this.#scripts = scripts.length > 0 ? scripts : [serve]
    this.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'keyward-'))
    this.path = path.join(this.directory, 'keyward.sock')
    this.requests = []
    this.connections = 0
  }

  static async start (...scripts) {
    const peer = new Peer(scripts)
    await peer.listen()
    return peer
  }

  listen () {
    this.#server = net.createServer(async (socket) => {
      this.#sockets.add(socket)
      const script = this.#scripts[Math.min(this.connections++, this.#scripts.length - 1)]
      await script(new PeerConnection(socket, this.requests))
      socket.end()
    })
    return new Promise((resolve) => { this.#server.listen(this.path, resolve) })
  }

  /** Ends everything, as a daemon that is killed. */
  async stop () {
    for (const socket of this.#sockets) socket.destroy()
    await new Promise((resolve) => { this.#server.close(resolve) })
  }

  async close () {
    await this.stop()
    fs.rmSync(this.directory, { recursive: true })
  }
}

module.exports = { Peer, serve }
