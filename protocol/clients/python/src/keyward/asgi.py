"""Guards an ASGI application.

::

    app = KeywardMiddleware(app, scopes=["orders:read"])
"""

from __future__ import annotations

from collections.abc import Awaitable, MutableMapping
from typing import Any, Callable, Union

from .aio import Client
from .decision import Decision
from .errors import KeywardError
from .http import ClientAddress, Credentials, Guard, Needs, Problem, needs_of, rate_limit_headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
#: What the requests of a scope need; `None`: no key.
NeedsOf = Callable[[Scope], Union[Needs, None]]


def peer(scope: Scope) -> ClientAddress:
    """The address that the server states: that of the connection, or of a trusted proxy's header."""
    client = scope.get("client")
    return client[0] if client and client[0] else None


class KeywardMiddleware:
    """Lets requests and WebSockets through whose key the daemon allows.

    The decision is ``scope["state"]["keyward"]``, which is ``request.state.keyward`` in Starlette and
    FastAPI. It is absent if the request needs no key, and ``None`` if it was let through by ``fail_open``.
    """

    def __init__(
        self,
        app: Application,
        client: Client | str | None = None,
        *,
        needs: NeedsOf | None = None,
        credentials: Credentials | None = None,
        client_address: Callable[[Scope], ClientAddress] = peer,
        **options: Any,
    ) -> None:
        """
        :param client: the client, or the daemon's socket
        :param needs: what a request needs, if not all need the same; it returns ``None`` for no key
        :param credentials: where the key is
        :param client_address: the address that a request came from; ``None`` denies keys with networks
        :param options: what requests need, as the parameters of :class:`keyward.http.Needs`
        """
        self._app = app
        self._client = client if isinstance(client, Client) else Client(client) if client else Client()
        self._needs: NeedsOf = needs_of(needs, options)
        self._guard = Guard(credentials)
        self._client_address = client_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        needs = self._needs(scope) if scope["type"] in ("http", "websocket") else None
        if needs is None:
            await self._app(scope, receive, send)
            return
        try:
            decision = await check(self._guard, self._client, needs, scope["headers"], self._client_address(scope))
        except Problem as problem:
            await _refuse(problem, scope, receive, send)
            return
        scope.setdefault("state", {})["keyward"] = decision
        headers = rate_limit_headers(decision) if decision is not None else []
        await self._app(scope, receive, _adding(headers, send) if headers else send)


async def check(
    guard: Guard, client: Client, needs: Needs, headers: Any, address: ClientAddress
) -> Decision | None:
    """The decision of a request that is let through; `None` if it is without one.

    :raises Problem: the request is not let through
    """
    question = guard.question(needs, headers, address)
    try:
        decision = await client.verify(**question)
    except KeywardError as error:
        guard.failed(needs, error)
        return None
    return guard.conclude(needs, decision)


def _adding(headers: list[tuple[str, str]], send: Send) -> Send:
    encoded = [(name.encode(), value.encode()) for name, value in headers]

    async def add(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.accept"):
            message["headers"] = [*message.get("headers", ()), *encoded]
        await send(message)

    return add


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    body = problem.body()
    prefix = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            # The server responds 403.
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": problem.code})
            return
        prefix = "websocket.http"
    headers = [("content-type", "application/problem+json"), ("content-length", str(len(body))), *problem.headers]
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": f"{prefix}.response.start", "status": problem.status, "headers": encoded})
    await send({"type": f"{prefix}.response.body", "body": body})
