"""Guards a WSGI application.

::

    app = KeywardMiddleware(app, scopes=["orders:read"])
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable, Union

from .client import Client
from .decision import Decision
from .errors import KeywardError
from .http import ClientAddress, Credentials, Guard, Needs, Problem, needs_of, rate_limit_headers

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]
NeedsOf = Callable[[Environ], Union[Needs, None]]


def peer(environ: Environ) -> ClientAddress:
    """The address of the connection."""
    return environ.get("REMOTE_ADDR") or None


def request_headers(environ: Environ) -> list[tuple[bytes, bytes]]:
    """The headers of a request. WSGI joins those with the same name by commas."""
    return [
        (name[5:].replace("_", "-").lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]


class KeywardMiddleware:
    """Lets requests through whose key the daemon allows.

    The decision is ``environ["keyward.decision"]``. It is absent if the request needs no key, and ``None``
    if it was let through by ``fail_open``.
    """

    def __init__(
        self,
        app: Application,
        client: Client | str | None = None,
        *,
        needs: NeedsOf | None = None,
        credentials: Credentials | None = None,
        client_address: Callable[[Environ], ClientAddress] = peer,
        **options: Any,
    ) -> None:
        """As that of :class:`keyward.asgi.KeywardMiddleware`; ``needs`` gets the environ."""
        self._app = app
        self._client = client if isinstance(client, Client) else Client(client) if client else Client()
        self._needs: NeedsOf = needs_of(needs, options)
        self._guard = Guard(credentials)
        self._client_address = client_address

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        needs = self._needs(environ)
        # A value of a server or of another middleware.
        environ.pop("keyward.decision", None)
        if needs is None:
            return self._app(environ, start_response)
        try:
            headers, address = request_headers(environ), self._client_address(environ)
            decision = check(self._guard, self._client, needs, headers, address)
        except Problem as problem:
            body = problem.body()
            lines = [("Content-Type", "application/problem+json"), ("Content-Length", str(len(body)))]
            start_response(f"{problem.status} {problem.title}", lines + problem.headers)
            return [body]
        environ["keyward.decision"] = decision
        added = rate_limit_headers(decision) if decision is not None else []

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start_response(status, [*headers, *added], *error)

        return self._app(environ, start)


def check(
    guard: Guard, client: Client, needs: Needs, headers: Any, address: ClientAddress
) -> Decision | None:
    """The decision of a request that is let through; `None` if it is without one.

    :raises Problem: the request is not let through
    """
    question = guard.question(needs, headers, address)
    try:
        decision = client.verify(**question)
    except KeywardError as error:
        guard.failed(needs, error)
        return None
    return guard.conclude(needs, decision)
