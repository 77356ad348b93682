// Compiled by tsc and not run: the types fit the ways in which the client is used.

import { type Balance, Client, type Decision, KeywardError, express, fetchGuard, fastify, hono } from 'keyward'
import createApp from 'express'

const client = new Client({ socket: 'unix:/run/keyward/keyward.sock', deadlineMs: 20 })

export async function ask (key: string): Promise<string> {
  try {
    const decision: Decision = await client.verify(key, { scopes: ['a'], costs: { tokens: 5 }, balances: true })
    const balances: readonly Balance[] = decision.balances ?? []
    const exact: bigint | undefined = balances[0]?.exact.balance
    await client.debit(key, { costs: new Map([['tokens', 1]]) })
    return decision.allowed ? `${decision.owner} ${exact}` : `${decision.verdict} ${decision.retryAfter ?? 0}`
  } catch (error) {
    if (error instanceof KeywardError && !error.maybeCharged) return 'repeat'
    throw error
  }
}

const app = createApp()
app.use(express(client, { scopes: 'orders:read', failOpen: false, clientAddress: (req: createApp.Request) => req.ip }))

export const hooks = [fastify(client), hono(client, { cost: 2 })]

export async function handle (request: Request): Promise<Response> {
  const checked = await fetchGuard(client)(request)
  if (checked.response !== undefined) return checked.response
  return new Response(checked.decision?.owner, { headers: checked.headers })
}

// @ts-expect-error: a cost is a number.
void client.verify('key', { cost: '1' })
// @ts-expect-error: a refund has an amount.
void client.refund('key')
