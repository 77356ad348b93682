"""Asks the daemon keyward whether an API key may make a request now.

::

    import keyward

    client = keyward.Client("/run/keyward/keyward.sock")
    decision = client.verify(key, scopes=["invoices:read"])
    if decision.allowed:
        print("owner", decision.owner)
    else:
        print("denied:", decision.reason)

A denial is a value. An exception says that there is no answer: all of them are :class:`KeywardError`.
:class:`keyward.aio.Client` is the same for asyncio, and :mod:`keyward.asgi`, :mod:`keyward.wsgi`,
:mod:`keyward.fastapi` and :mod:`keyward.django` guard web applications.
"""

from ._frames import Welcome
from ._rules import DEFAULT_DEADLINE, DEFAULT_SOCKET
from .client import Client
from .decision import Balance, Decision, Limit, LimitKind, Verdict
from .errors import (
    ConnectError,
    ConnectionLostError,
    DeadlineError,
    ErrorCode,
    InvalidRequestError,
    KeywardError,
    ProtocolError,
    RefusedConnectionError,
    RefusedError,
    UnavailableError,
)

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_DEADLINE",
    "DEFAULT_SOCKET",
    "Balance",
    "Client",
    "ConnectError",
    "ConnectionLostError",
    "DeadlineError",
    "Decision",
    "ErrorCode",
    "InvalidRequestError",
    "KeywardError",
    "Limit",
    "LimitKind",
    "ProtocolError",
    "RefusedConnectionError",
    "RefusedError",
    "UnavailableError",
    "Verdict",
    "Welcome",
]
