"""Guards a Django project.

In ``settings.py``::

    MIDDLEWARE = ["keyward.django.KeywardMiddleware", ...]
    KEYWARD = {"socket": "/run/keyward/keyward.sock", "scopes": ["orders:read"], "open_paths": ["/health"]}

The decision is ``request.keyward``; it is ``None`` for open paths, and if ``fail_open`` let the request
through. :func:`require_key` guards a single view instead, or asks more of its key.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from . import aio, asgi, wsgi
from .client import Client
from .decision import Decision
from .http import ClientAddress, Credentials, Guard, Needs, Problem, rate_limit_headers
from ._rules import DEFAULT_DEADLINE, DEFAULT_SOCKET


def peer(request: HttpRequest) -> ClientAddress:
    """The address of the connection. Behind a proxy, name a function in ``KEYWARD["client_address"]``."""
    return request.META.get("REMOTE_ADDR") or None


class _Checker:
    """The clients of this process, and the settings that all requests share."""

    def __init__(self) -> None:
        options: dict[str, Any] = dict(getattr(settings, "KEYWARD", {}))
        socket = options.pop("socket", DEFAULT_SOCKET)
        deadline = options.pop("deadline", DEFAULT_DEADLINE)
        credentials: Credentials | None = options.pop("credentials", None)
        self.address: Callable[[HttpRequest], ClientAddress] = options.pop("client_address", peer)
        self.open_paths = frozenset(options.pop("open_paths", ()))
        self.needs = Needs(**options)
        self.guard = Guard(credentials)
        self.client = Client(socket, deadline=deadline)
        self.aio_client = aio.Client(socket, deadline=deadline)

    def check(self, request: HttpRequest, needs: Needs) -> Decision | None:
        headers = wsgi.request_headers(request.META)
        return wsgi.check(self.guard, self.client, needs, headers, self.address(request))

    async def acheck(self, request: HttpRequest, needs: Needs) -> Decision | None:
        headers = wsgi.request_headers(request.META)
        return await asgi.check(self.guard, self.aio_client, needs, headers, self.address(request))


@functools.lru_cache(maxsize=1)
def _checker() -> _Checker:
    return _Checker()


def _let_through(request: HttpRequest, decision: Decision | None) -> None:
    request.keyward = decision  # type: ignore[attr-defined]


def _complete(response: HttpResponseBase, decision: Decision | None) -> HttpResponseBase:
    for name, value in rate_limit_headers(decision) if decision is not None else ():
        response.headers[name] = value
    return response


def _refused(problem: Problem) -> HttpResponse:
    return HttpResponse(
        problem.body(),
        status=problem.status,
        content_type="application/problem+json",
        headers=dict(problem.headers),
    )


class KeywardMiddleware:
    """Lets requests through whose key the daemon allows, in synchronous and asynchronous projects."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        self._checker = _checker()

    def __call__(self, request: HttpRequest) -> Any:
        if self._is_async:
            return self._acall(request)
        _let_through(request, None)
        if request.path in self._checker.open_paths:
            return self._get_response(request)
        try:
            decision = self._checker.check(request, self._checker.needs)
        except Problem as problem:
            return _refused(problem)
        _let_through(request, decision)
        return _complete(self._get_response(request), decision)

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        _let_through(request, None)
        if request.path in self._checker.open_paths:
            return await self._get_response(request)  # type: ignore[no-any-return]
        try:
            decision = await self._checker.acheck(request, self._checker.needs)
        except Problem as problem:
            return _refused(problem)
        _let_through(request, decision)
        return _complete(await self._get_response(request), decision)


def require_key(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Guards a view. The options are the parameters of :class:`keyward.http.Needs`.

    Beside the middleware, it asks the daemon a second time: give it ``cost=0`` then.
    """
    needs = Needs(**options)

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        if iscoroutinefunction(view):

            @functools.wraps(view)
            async def aguarded(request: HttpRequest, *arguments: Any, **named: Any) -> HttpResponseBase:
                try:
                    decision = await _checker().acheck(request, needs)
                except Problem as problem:
                    return _refused(problem)
                _let_through(request, decision)
                return _complete(await view(request, *arguments, **named), decision)

            return aguarded

        @functools.wraps(view)
        def guarded(request: HttpRequest, *arguments: Any, **named: Any) -> HttpResponseBase:
            try:
                decision = _checker().check(request, needs)
            except Problem as problem:
                return _refused(problem)
            _let_through(request, decision)
            return _complete(view(request, *arguments, **named), decision)

        return guarded

    return decorate
