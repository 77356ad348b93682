import type { IncomingMessage, ServerResponse } from 'node:http'

/** The verdicts of SPEC.md, section 7. One of a later daemon is `UNKNOWN_VERDICT_` and its number: a denial. */
export type Verdict =
  | 'ALLOWED'
  | 'NOT_READY'
  | 'STALE_SNAPSHOT'
  | 'MALFORMED_KEY'
  | 'UNKNOWN_KEY'
  | 'REVOKED'
  | 'DISABLED'
  | 'NOT_YET_VALID'
  | 'EXPIRED'
  | 'WRONG_ENVIRONMENT'
  | 'IP_NOT_ALLOWED'
  | 'ORIGIN_NOT_ALLOWED'
  | 'MISSING_SCOPE'
  | 'COST_EXCEEDS_BURST'
  | 'RATE_LIMITED'
  | 'UNKNOWN_LIMIT'
  | 'OUT_OF_CREDIT'
  | `UNKNOWN_VERDICT_${number}`

/** The limit that decided. */
export interface Limit {
  readonly name: string
  /** Its burst, count or grant. 4294967295 stands for that or more. */
  readonly limit: number
  /** What can be spent now, after this request. */
  readonly remaining: number
  /** Milliseconds until the limit is full again; infinite for credits, and for 49 days or longer. */
  readonly resetMs: number
}

/** One of the limits of a key. */
export interface Balance {
  readonly name: string
  /** A number is a kind of a later daemon. */
  readonly kind: 'BUCKET' | 'WINDOW' | 'CREDITS' | number
  readonly limit: number
  /** What this request charged; in the answer to a refund, what it gave back. */
  readonly charged: number
  /** What can be spent now. Below zero if the limit is overdrawn. */
  readonly balance: number
  readonly resetMs: number
  /** Numbers beyond 2^53 are rounded above, and exact here. */
  readonly exact: { readonly limit: bigint, readonly balance: bigint }
}

/** The daemon's answer. */
export class Decision {
  private constructor ()
  /** Whether the request may go ahead, and has been charged. */
  readonly allowed: boolean
  readonly verdict: Verdict
  readonly verdictNumber: number
  /** The state of all keys that the answer was taken from. */
  readonly generation: bigint
  /** Empty if the key is unknown. */
  readonly keyId: string
  /** Empty if the key is unknown or has none, as the next two. */
  readonly owner: string
  readonly environment: string
  readonly plan: string
  readonly limit: Limit | undefined
  /** What is left of the limit that decided. */
  readonly remaining: number | undefined
  readonly retryAfterMs: number
  /** Whole seconds until the same request would be admitted; undefined unless `RATE_LIMITED`. */
  readonly retryAfter: number | undefined
  /** The first limit in shadow mode that would have refused the request. */
  readonly shadowLimit: string | undefined
  /** Every limit of the key, if the request asked for them. */
  readonly balances: readonly Balance[] | undefined
  /** The metadata of the key, decoded when it is read; empty unless the request asked for it. */
  readonly metadata: Record<string, unknown>
  readonly metadataText: string | undefined
}

export interface CallOptions {
  /** Milliseconds that this call may take. */
  deadlineMs?: number
}

/** What a request needs of its key. */
export interface Needs {
  /** Scopes that the key needs, all of them. */
  scopes?: Iterable<string> | string
  /** Scopes of which the key needs one. */
  anyScope?: Iterable<string> | string
  /** What to charge each limit that `costs` does not name. Default: 1; 0 asks without charging. */
  cost?: number
  /** What to charge limits by their names. */
  costs?: Readonly<Record<string, number>> | ReadonlyMap<string, number>
  /** The environment that this program serves. */
  environment?: string
  /** Whether the metadata of the key is wanted. */
  metadata?: boolean
  /** Whether the balance of every limit is wanted. */
  balances?: boolean
}

export interface VerifyOptions extends Needs, CallOptions {
  /** The address that the request came from. */
  ip?: string
  /** The `Origin` of the request, as the browser has sent it. */
  origin?: string
}

export interface AdjustmentOptions extends CallOptions {
  /** The amount for each limit that `costs` does not name. Default: 0. */
  cost?: number
  costs?: Needs['costs']
  balances?: boolean
}

export interface Welcome {
  readonly version: number
  readonly minVersion: number
  readonly maxVersion: number
  readonly credentials: number
  readonly maxLength: number
  readonly idleTimeoutMs: number
  readonly generation: bigint
  readonly server: string
}

export interface ClientOptions {
  /** Path of the daemon's socket, or a URL such as unix:/run/keyward/keyward.sock, which is the default. */
  socket?: string
  /** Milliseconds that a call may take, connecting included. Default: 50. */
  deadlineMs?: number
  /** Requests without a response at the same time; further ones wait. Default: 4096. */
  maxInFlight?: number
}

/** Asks the daemon about keys. All calls are pipelined on one connection, which is made on first use. */
export class Client {
  constructor (options?: ClientOptions | string)
  /** Asks whether a key may make a request now, and charges its limits if it may. A denial is an answer. */
  verify (key: string | Uint8Array, options?: VerifyOptions): Promise<Decision>
  /** Gives back what an allowed request has charged. Never repeat one whose error is `maybeCharged`. */
  refund (key: string | Uint8Array, options: AdjustmentOptions): Promise<Decision>
  /** Charges what a response has cost, down to the floor of each limit. Never repeat one, as a refund. */
  debit (key: string | Uint8Array, options: AdjustmentOptions): Promise<Decision>
  /** Asks the daemon for its version, and how it takes keys. */
  hello (options?: CallOptions): Promise<Welcome>
  /** Ends the connection. Calls without an answer fail. The client can be used again. */
  close (): void
}

/** There is no answer. keyward recommends to deny the request then. */
export class KeywardError extends Error {
  /** Whether the key may have been charged all the same. If not, the call can be repeated. */
  maybeCharged: boolean
}
/** The request cannot be sent: the caller is wrong. */
export class InvalidRequestError extends KeywardError {}
/** The daemon cannot be asked. The request itself is not the reason. */
export class UnavailableError extends KeywardError {}
/** The client cannot connect to the daemon. Nothing was sent. */
export class ConnectError extends UnavailableError {}
/** The deadline passed before there was an answer. */
export class DeadlineError extends UnavailableError {}
/** The connection ended before the answer. */
export class ConnectionLostError extends UnavailableError {}
/** The peer does not follow the protocol. The connection has been closed. */
export class ProtocolError extends UnavailableError {}
/** The daemon responded with an ERROR (SPEC.md, section 8). The request has charged nothing. */
export class RefusedError extends KeywardError {
  readonly code: number
  readonly codeName: string | undefined
  readonly detail: number
  readonly closing: boolean
}
/** The daemon ended the connection, or refused it: it stops, is full, or does not admit this user. */
export class RefusedConnectionError extends UnavailableError {
  readonly code: number
  readonly codeName: string | undefined
  readonly detail: number
  readonly closing: true
}

export interface CredentialOptions {
  /** `Authorization: Bearer KEY`. Default: true. */
  bearer?: boolean
  /** `Authorization: ApiKey KEY`. Default: true. */
  apiKey?: boolean
  /** `Authorization: Basic`, with the key as the user or as the password. Default: neither. */
  basic?: 'user' | 'password'
  /** Headers whose whole value is the key. Default: X-API-Key. */
  headers?: readonly string[]
}

/** Where the key of a request is. */
export class Credentials {
  constructor (options?: CredentialOptions)
  /** The key, of names and values in turn. Throws a problem if there is not exactly one. */
  find (rawHeaders: readonly string[]): Buffer
}

export interface GuardOptions extends Needs, CallOptions {
  credentials?: CredentialOptions
  /** Whether requests are let through, without a decision, while the daemon cannot be asked. */
  failOpen?: boolean
  /** Where warnings go. Default: console.warn. */
  log?: (message: string) => void
}

/** Why a request is not let through, for its client. */
export class Problem extends Error {
  readonly status: number
  /** The name of the verdict, or what takes its place: `NO_KEY`, `UNAVAILABLE` and the like. */
  readonly code: string
  readonly detail: string
  readonly retryAfter: number | undefined
  readonly headers: Readonly<Record<string, string>>
  /** A problem of RFC 9457, of the type application/problem+json. */
  readonly body: string
}

/** Decides whether requests are let through, for middleware of other frameworks. */
export class Guard {
  constructor (client: Client, options?: GuardOptions)
  /** The decision; null if the request was let through without one. Throws a problem otherwise. */
  check (rawHeaders: readonly string[], ip: string | undefined): Promise<Decision | null>
}

type MiddlewareOptions<Request> = GuardOptions & {
  /** The address that a request came from; undefined denies keys with networks. */
  clientAddress?: (request: Request) => string | undefined
}

/** Middleware for Express and Connect. The decision is `req.keyward`. */
export function express<Request extends IncomingMessage = IncomingMessage> (
  client: Client,
  options?: MiddlewareOptions<Request>,
): (req: Request, res: ServerResponse, next: (error?: unknown) => void) => Promise<void>

/** A hook for Fastify's `onRequest`. The decision is `request.keyward`. */
export function fastify (
  client: Client,
  options?: MiddlewareOptions<any>,
): (request: any, reply: any) => Promise<unknown>

/** For handlers of the Fetch API: the decision and headers for the response, or the response that refuses. */
export function fetchGuard<Context = undefined> (
  client: Client,
  options?: GuardOptions & { clientAddress?: (request: Request, context: Context) => string | undefined },
): (request: Request, context?: Context) => Promise<
  | { decision: Decision | null, headers: Record<string, string>, response?: undefined }
  | { response: Response, decision?: undefined, headers?: undefined }
>

/** Middleware for Hono. The decision is `c.get('keyward')`. */
export function hono (
  client: Client,
  options?: MiddlewareOptions<any>,
): (c: any, next: () => Promise<void>) => Promise<Response | void>

/** `RateLimit` and `RateLimit-Policy` of the limit that decided. */
export function rateLimitHeaders (decision: Pick<Decision, 'limit'>): Record<string, string>
