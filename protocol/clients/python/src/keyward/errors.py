"""Why a call has no answer. A denial is an answer, and never an exception."""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """The codes of ERROR frames (SPEC.md, section 8)."""

    FRAME_TOO_SHORT = 1
    FRAME_TOO_LONG = 2
    UNSUPPORTED_VERSION = 3
    UNKNOWN_KIND = 4
    UNKNOWN_FLAG = 5
    BODY_TOO_SHORT = 6
    TRAILING_BYTES = 7
    INVALID_FIELD = 8
    TRUNCATED_FRAME = 9
    CREDENTIAL_REFUSED = 10
    PEER_REFUSED = 11
    TOO_MANY_CONNECTIONS = 12
    IDLE_TIMEOUT = 13
    SHUTTING_DOWN = 14
    QUOTA_EXCEEDED = 15
    REQUEST_REFUSED = 16


class KeywardError(Exception):
    """There is no answer. keyward recommends to deny the request then.

    ``maybe_charged`` tells whether the key may have been charged all the same (or refunded, or
    debited). If it is false, the call can be repeated without charging twice.
    """

    maybe_charged: bool = False


class InvalidRequestError(KeywardError, ValueError):
    """The request cannot be sent, or the daemon refuses it whatever its state: the caller is wrong."""


class UnavailableError(KeywardError):
    """The daemon cannot be asked. The request itself is not the reason."""


class ConnectError(UnavailableError):
    """The client cannot connect to the daemon. Nothing was sent."""


class DeadlineError(UnavailableError, TimeoutError):
    """The deadline passed before there was an answer."""

    def __init__(self, deadline: float, maybe_charged: bool) -> None:
        super().__init__(f"no answer from keyward within {deadline * 1000:g} ms; {_delivery(maybe_charged)}")
        self.maybe_charged = maybe_charged


class ConnectionLostError(UnavailableError, ConnectionError):
    """The connection ended before the answer."""

    def __init__(self, maybe_charged: bool) -> None:
        super().__init__(f"the connection to keyward ended before its answer; {_delivery(maybe_charged)}")
        self.maybe_charged = maybe_charged


class ProtocolError(UnavailableError):
    """The peer does not follow the protocol. The connection has been closed."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the peer does not follow keyward's protocol: {problem}; is the socket keyward's?")
        self.maybe_charged = True


class RefusedError(KeywardError):
    """The daemon responded with an ERROR. The request was not processed, and has charged nothing."""

    def __init__(self, code: int, detail: int, closing: bool, message: str) -> None:
        try:
            name = ErrorCode(code).name
        except ValueError:
            name = f"error {code}"
        super().__init__(f"keyward refused the request: {name}: {message}")
        #: The number of the code: an :class:`ErrorCode`, or that of a later daemon.
        self.code = code
        #: The value at fault; its meaning depends on the code.
        self.detail = detail
        #: Whether the daemon has ended the connection.
        self.closing = closing
        #: The daemon's message for people.
        self.message = message


class RefusedConnectionError(RefusedError, UnavailableError):
    """The daemon ended the connection, or refused it: it stops, is full, or does not admit this user."""


def _delivery(maybe_charged: bool) -> str:
    if maybe_charged:
        return "the request was sent, and may have been charged"
    return "the request was not sent: it can be repeated"
