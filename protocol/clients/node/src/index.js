'use strict'

const { Client } = require('./client.js')
const { Decision } = require('./decision.js')
const errors = require('./errors.js')
const http = require('./http.js')

module.exports = {
  Client,
  Credentials: http.Credentials,
  ConnectError: errors.ConnectError,
  ConnectionLostError: errors.ConnectionLostError,
  DeadlineError: errors.DeadlineError,
  Decision,
  InvalidRequestError: errors.InvalidRequestError,
  KeywardError: errors.KeywardError,
  ProtocolError: errors.ProtocolError,
  RefusedConnectionError: errors.RefusedConnectionError,
  RefusedError: errors.RefusedError,
  Guard: http.Guard,
  Problem: http.Problem,
  UnavailableError: errors.UnavailableError,
  express: http.express,
  fastify: http.fastify,
  fetchGuard: http.fetchGuard,
  hono: http.hono,
  rateLimitHeaders: http.rateLimitHeaders,
}
