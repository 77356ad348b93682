"""Guards routes of FastAPI.

::

    orders = RequireKey(client, scopes=["orders:read"])

    @app.get("/orders")
    async def list_orders(key: Annotated[Decision, Depends(orders)]) -> list[Order]:
        return orders_of(key.owner)

The exception that refuses a request has the status and the headers that ``keyward http`` would respond
with. :func:`install` makes its body a problem of RFC 9457 instead of FastAPI's ``{"detail": …}``. For a
whole application, or Starlette, use :class:`keyward.asgi.KeywardMiddleware`.
"""

from __future__ import annotations

from typing import Any, Callable

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from .aio import Client
from .asgi import Scope, check, peer
from .decision import Decision
from .http import ClientAddress, Credentials, Guard, Needs, Problem, rate_limit_headers


class KeyRefused(HTTPException):
    """A request is not let through."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.status, detail=problem.detail, headers=dict(problem.headers))
        self.problem = problem


class RequireKey(SecurityBase):
    """A dependency whose value is the decision, or ``None`` if ``fail_open`` let the request through."""

    def __init__(
        self,
        client: Client,
        *,
        credentials: Credentials | None = None,
        client_address: Callable[[Scope], ClientAddress] = peer,
        scheme_name: str = "API key",
        **options: Any,
    ) -> None:
        """
        :param client: the client
        :param credentials: where the key is
        :param client_address: the address that a request came from; ``None`` denies keys with networks
        :param scheme_name: the name of the security scheme in OpenAPI
        :param options: what requests need, as the parameters of :class:`keyward.http.Needs`
        """
        self.model = HTTPBearer(description="An API key")
        self.scheme_name = scheme_name
        self._client = client
        self._guard = Guard(credentials)
        self._client_address = client_address
        self._needs = Needs(**options)

    async def __call__(self, request: Request, response: Response) -> Decision | None:
        address = self._client_address(request.scope)
        try:
            decision = await check(self._guard, self._client, self._needs, request.headers.raw, address)
        except Problem as problem:
            raise KeyRefused(problem) from problem
        request.state.keyward = decision
        if decision is not None:
            response.headers.update(dict(rate_limit_headers(decision)))
        return decision


def install(app: FastAPI) -> None:
    """Makes the body of refused requests a problem of RFC 9457."""

    async def respond(_: Request, error: Exception) -> Response:
        assert isinstance(error, KeyRefused)
        problem = error.problem
        return Response(
            problem.body(), problem.status, headers=dict(problem.headers), media_type="application/problem+json"
        )

    app.add_exception_handler(KeyRefused, respond)
