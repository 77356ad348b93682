"""What a request of HTTP needs of its key, and what its client gets otherwise.

The middleware modules are built from it. Its answers are those of ``keyward http``: the status that
SPEC.md assigns to a verdict, ``WWW-Authenticate`` as in RFC 6750, ``Retry-After``, ``RateLimit``, and a
problem of RFC 9457 as the body.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Callable, Literal, NamedTuple, Union
from urllib.parse import quote

from ._request import Address, scope_names
from .decision import Decision, Verdict
from .errors import InvalidRequestError, KeywardError, UnavailableError

logger = logging.getLogger("keyward")

#: The address of a client, if it is known.
ClientAddress = Union[Address, None]
#: Headers as pairs, with names in lower case.
Headers = list[tuple[str, str]]
RequestHeaders = Iterable[tuple[bytes, bytes]]

_UNAVAILABLE = "API keys cannot be checked at the moment."
_MISCONFIGURED = "The service is not configured correctly."
#: The largest integer of a structured field (RFC 9651).
_MAX_INTEGER = 999_999_999_999_999
#: Visible ASCII that a string of a structured field takes as it is, and space.
_STRING = " !#$&'()*+,-./:;<=>?@[]^_`{|}~"

_INVALID: dict[Verdict, str] = {
    Verdict.MALFORMED_KEY: "The API key is not complete, or has a typing error.",
    Verdict.UNKNOWN_KEY: "The API key is not known.",
    Verdict.REVOKED: "The API key has been revoked.",
    Verdict.DISABLED: "The API key is disabled.",
    Verdict.NOT_YET_VALID: "The API key is not valid yet.",
    Verdict.EXPIRED: "The API key has expired.",
    Verdict.WRONG_ENVIRONMENT: "The API key belongs to another environment.",
}
_FORBIDDEN: dict[Verdict, str] = {
    Verdict.IP_NOT_ALLOWED: "The API key may not be used from this address.",
    Verdict.ORIGIN_NOT_ALLOWED: "The API key may not be used from this origin.",
    Verdict.MISSING_SCOPE: "The API key lacks a scope that this request needs.",
}


class Problem(Exception):
    """Why a request is not let through, for its client."""

    def __init__(
        self, status: int, code: str, detail: str, headers: Iterable[tuple[str, str]] = (), retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        #: The name of the verdict, or what takes its place: ``NO_KEY``, ``UNAVAILABLE`` and the like.
        self.code = code
        self.detail = detail
        self.retry_after = retry_after
        self.headers: Headers = [("cache-control", "no-store"), *headers]
        if retry_after is not None:
            self.headers.append(("retry-after", str(retry_after)))

    @property
    def title(self) -> str:
        """The phrase of the status."""
        return HTTPStatus(self.status).phrase

    def members(self) -> dict[str, Any]:
        """The members of the body."""
        members = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        return members if self.retry_after is None else {**members, "retry_after": self.retry_after}

    def body(self) -> bytes:
        """The body, of the type ``application/problem+json``."""
        return json.dumps(self.members(), separators=(",", ":")).encode()


class Credentials(NamedTuple):
    """Where the key is. What is not named here is not a key."""

    #: ``Authorization: Bearer KEY``
    bearer: bool = True
    #: ``Authorization: ApiKey KEY``
    api_key: bool = True
    #: ``Authorization: Basic``, with the key as the user or as the password.
    basic: Literal["user", "password"] | None = None
    #: Headers whose whole value is the key.
    headers: tuple[str, ...] = ("x-api-key",)

    def find(self, headers: RequestHeaders) -> bytes:
        """The key of a request. One with several different keys, a list or an empty value has none.

        :raises Problem: there is none
        """
        names = [name.lower().encode() for name in self.headers]
        found: bytes | None = None
        for name, value in headers:
            name = name.lower()
            key = None
            if name == b"authorization":
                key = self._authorization(value)
            if name in names:
                key = value.strip()
            if key is None:
                continue
            if not key:
                raise self._invalid("The request carries an empty API key.")
            if b"," in key:
                raise self._invalid("The request carries an API key with a comma, which is a list of several; send one.")
            if len(key.split()) > 1:
                raise self._invalid("The request carries an API key with a space in it.")
            if found not in (None, key):
                raise self._invalid("The request carries several different API keys; send one.")
            found = key
        if found is None:
            raise Problem(401, "NO_KEY", "The request carries no API key.", [self.challenge()])
        return found

    def _authorization(self, value: bytes) -> bytes | None:
        scheme, _, parameter = value.strip().partition(b" ")
        scheme, parameter = scheme.lower(), parameter.strip()
        if (self.bearer and scheme == b"bearer") or (self.api_key and scheme == b"apikey"):
            return parameter
        if self.basic is None or scheme != b"basic":
            return None
        try:
            user, colon, password = base64.b64decode(parameter, validate=True).partition(b":")
        except binascii.Error:
            colon = b""
        if not colon:
            raise self._invalid("The request carries an API key that is not encoded correctly.")
        return user if self.basic == "user" else password

    def _invalid(self, detail: str) -> Problem:
        return Problem(400, "INVALID_CREDENTIAL", detail, [self.challenge("invalid_request")])

    def challenge(self, error: str | None = None, scopes: Iterable[str] = ()) -> tuple[str, str]:
        """``WWW-Authenticate``."""
        is_basic = self.basic is not None and not self.bearer and not self.api_key
        scheme = "Basic" if is_basic else "Bearer" if self.bearer else "ApiKey"
        parameters = ['realm="API key"'] if is_basic else []
        if error is not None:
            parameters.append(f'error="{error}"')
        if error == "insufficient_scope":
            parameters.append('scope="%s"' % " ".join(quote(scope, safe=_STRING) for scope in scopes))
        return "www-authenticate", f"{scheme} {', '.join(parameters)}".strip()


class Needs:
    """What a request needs of its key."""

    def __init__(
        self,
        *,
        scopes: Iterable[str] = (),
        any_scope: Iterable[str] | None = None,
        cost: int = 1,
        costs: Mapping[str, int] | None = None,
        environment: str | None = None,
        metadata: bool = False,
        balances: bool = False,
        fail_open: bool = False,
    ) -> None:
        """As the parameters of :meth:`keyward.Client.verify`, and

        :param fail_open: whether requests are let through while the daemon cannot be asked. They have
            no decision then, and a warning about once a second says how many there were
        """
        # An iterator would be empty for the second request.
        self.scopes = scope_names(scopes)
        self.any_scope = None if any_scope is None else scope_names(any_scope)
        self.fail_open = fail_open
        self.options: dict[str, Any] = {
            "scopes": self.scopes,
            "any_scope": self.any_scope,
            "cost": cost,
            "costs": costs,
            "environment": environment,
            "metadata": metadata,
            "balances": balances,
        }


def needs_of(needs: Callable[[Any], Needs | None] | None, options: dict[str, Any]) -> Callable[[Any], Needs | None]:
    """What a middleware asks of each request: the function, or the same for all by the options."""
    if needs is not None and options:
        raise TypeError(f"needs and {', '.join(options)} exclude each other")
    fixed = Needs(**options)
    return needs or (lambda _: fixed)


class Guard:
    """Decides whether requests are let through, apart from asking the daemon."""

    def __init__(self, credentials: Credentials | None = None) -> None:
        self.credentials = credentials or Credentials()
        self._unavailable = _LimitedLog("requests were refused, because keys cannot be checked")
        self._failed_open = _LimitedLog("REQUESTS WERE LET THROUGH WITHOUT A CHECK: fail_open is set")

    def question(
        self, needs: Needs, headers: Iterable[tuple[bytes, bytes]], ip: Address | None
    ) -> dict[str, Any]:
        """The arguments of `verify`.

        :raises Problem: the request has no key, or no clear one
        """
        headers = list(headers)
        origins = {value for name, value in headers if name.lower() == b"origin"}
        if len(origins) > 1:
            raise Problem(400, "INVALID_ORIGIN", "The request has several origins.")
        # A browser's origin is ASCII. Another one matches no list.
        origin = origins.pop().decode("ascii", "replace") if origins else None
        return {"key": self.credentials.find(headers), "ip": ip, "origin": origin, **needs.options}

    def conclude(self, needs: Needs, decision: Decision) -> Decision | None:
        """The decision of a request that is let through; `None` if it is without one.

        :raises Problem: the request is not let through
        """
        if decision.allowed:
            return decision
        if decision.verdict in (Verdict.NOT_READY, Verdict.STALE_SNAPSHOT):
            self._cannot_decide(needs, decision.reason, decision.reason)
            return None
        raise self._denial(needs, decision)

    def failed(self, needs: Needs, error: KeywardError) -> None:
        """Lets a request without an answer through, if it needs none.

        :raises Problem: the request is not let through
        """
        if isinstance(error, UnavailableError):
            self._cannot_decide(needs, "UNAVAILABLE", str(error))
            return
        if isinstance(error, InvalidRequestError):
            logger.error("a request needs what no key can have: %s", error)
        else:
            logger.error("keyward refuses requests of this program: %s", error)
        raise Problem(500, "MISCONFIGURED", _MISCONFIGURED) from error

    def _cannot_decide(self, needs: Needs, code: str, reason: str) -> None:
        if needs.fail_open:
            self._failed_open.warn(reason)
            return
        self._unavailable.warn(reason)
        raise Problem(503, code, _UNAVAILABLE)

    def _denial(self, needs: Needs, decision: Decision) -> Problem:
        verdict, code, headers = decision.verdict, decision.reason, rate_limit_headers(decision)
        limit = f'the limit "{decision.limit.name}"' if decision.limit else "a limit"
        if verdict in _INVALID:
            challenge = self.credentials.challenge("invalid_token")
            return Problem(401, code, _INVALID[verdict], [challenge, *headers])
        if verdict == Verdict.MISSING_SCOPE:
            headers.append(self.credentials.challenge("insufficient_scope", needs.scopes or needs.any_scope or ()))
        if verdict in _FORBIDDEN:
            return Problem(403, code, _FORBIDDEN[verdict], headers)
        if verdict == Verdict.RATE_LIMITED:
            return Problem(429, code, f"The request exceeds {limit}.", headers, decision.retry_after)
        if verdict == Verdict.OUT_OF_CREDIT:
            return Problem(402, code, f"The credits of {limit} are used up.", headers)
        if verdict == Verdict.COST_EXCEEDS_BURST:
            return Problem(403, code, f"The request costs more than {limit} ever admits.", headers)
        if verdict == Verdict.UNKNOWN_LIMIT:
            logger.error("a cost names a limit that no plan and no key has")
            return Problem(500, code, _MISCONFIGURED)
        return Problem(403, code, "The request is not allowed.", headers)


def rate_limit_headers(decision: Decision) -> Headers:
    """``RateLimit`` and ``RateLimit-Policy`` (draft-ietf-httpapi-ratelimit-headers) of the limit that decided."""
    limit = decision.limit
    if limit is None:
        return []
    name = quote(limit.name, safe=_STRING)
    state = f'"{name}";r={min(limit.remaining, _MAX_INTEGER)}'
    if limit.reset != float("inf"):
        state += f";t={-(-round(limit.reset * 1000) // 1000)}"
    return [
        ("ratelimit-policy", f'"{name}";q={min(limit.limit, _MAX_INTEGER)}'),
        ("ratelimit", state),
    ]


class _LimitedLog:
    """A warning, at most once a second, with the number of requests that it stands for."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._count = 0
        self._next = 0.0

    def warn(self, reason: str) -> None:
        self._count += 1
        now = time.monotonic()
        if now >= self._next:
            count, self._count, self._next = self._count, 0, now + 1
            logger.warning("%d %s (%s)", count, self._message, reason)


