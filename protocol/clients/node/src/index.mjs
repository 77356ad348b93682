import keyward from './index.js'

export const {
  Client,
  ConnectError,
  Credentials,
  Guard,
  Problem,
  ConnectionLostError,
  DeadlineError,
  Decision,
  InvalidRequestError,
  KeywardError,
  ProtocolError,
  RefusedConnectionError,
  RefusedError,
  UnavailableError,
  express,
  fastify,
  fetchGuard,
  hono,
  rateLimitHeaders,
} = keyward
