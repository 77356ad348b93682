"""When to try again, and how keys are sent: the rules of both clients (SPEC.md, sections 5, 8 and 9)."""

from __future__ import annotations

import errno
import random

from . import _frames as frames
from ._frames import Refusal, Welcome
from ._request import Hello, Request
from .errors import (
    ConnectError,
    ErrorCode,
    InvalidRequestError,
    KeywardError,
    ProtocolError,
    RefusedConnectionError,
    RefusedError,
)

#: Attempts of one call. Those after the first use a new connection, or another form of the key.
MAX_ATTEMPTS = 4
#: How often `connect` is called if there is no daemon. One that restarts is soon back.
MAX_CONNECT_CALLS = 3
#: Pauses between failed attempts to connect, in seconds.
FIRST_PAUSE, LONGEST_PAUSE, PAUSE_AFTER_REFUSAL = 0.004, 1.0, 3.0
#: How late an answer may be before its connection is given up, in seconds.
STALL = 1.0
#: The share of the idle timeout after which a silent connection is not written to.
MAX_SILENT_SHARE = 0.8

DEFAULT_SOCKET = "/run/keyward/keyward.sock"
DEFAULT_DEADLINE = 0.05

_ABSENT = (errno.ENOENT, errno.ECONNREFUSED)
#: Codes with which the daemon blames the frame: the client is wrong, and sends nothing again.
_CLIENT_IS_WRONG = (
    ErrorCode.FRAME_TOO_SHORT,
    ErrorCode.FRAME_TOO_LONG,
    ErrorCode.UNSUPPORTED_VERSION,
    ErrorCode.UNKNOWN_KIND,
    ErrorCode.UNKNOWN_FLAG,
    ErrorCode.BODY_TOO_SHORT,
    ErrorCode.TRAILING_BYTES,
    ErrorCode.INVALID_FIELD,
    ErrorCode.TRUNCATED_FRAME,
)


def socket_path(socket: str) -> str:
    """The path of a socket, given as a path or as a URL such as unix:/run/keyward/keyward.sock."""
    if not socket.startswith("unix:"):
        return socket
    path = socket[len("unix:") :]
    if path.startswith("//"):
        path = path[2:]
    if not path.startswith("/"):
        raise ValueError(f"{socket!r} has no absolute path: unix:/run/keyward/keyward.sock")
    return path


class Session:
    """What WELCOME has said about a connection."""

    __slots__ = ("credentials", "max_length", "max_silence")

    def __init__(self, welcome: Welcome) -> None:
        if welcome.version != frames.VERSION:
            raise ProtocolError(f"WELCOME chooses version {welcome.version}")
        self.credentials = welcome.credentials & (frames.DIGEST | frames.RAW)
        if not self.credentials:
            raise ProtocolError("WELCOME accepts keys neither as digests nor raw")
        self.max_length = min(welcome.max_length, frames.MAX_REQUEST_LENGTH)
        #: Seconds of silence after which the connection is not used; `None`: it always is.
        self.max_silence = welcome.idle_timeout_ms / 1000 * MAX_SILENT_SHARE if welcome.idle_timeout_ms else None

    @property
    def sends_raw(self) -> bool:
        """Whether the key itself has to be sent."""
        return not self.credentials & frames.DIGEST

    def follows(self, refusal: Refusal, sent_raw: bool) -> bool:
        """Whether the daemon takes the key in the other form only, which is used from now on."""
        other = frames.DIGEST if sent_raw else frames.RAW
        accepted = refusal.detail & (frames.DIGEST | frames.RAW)
        if refusal.code != ErrorCode.CREDENTIAL_REFUSED or accepted != other:
            return False
        self.credentials = other
        return True

    def checked(self, request: Request | Hello, request_id: int, raw: bool) -> bytes:
        """The frame of a request, unless it is longer than the daemon takes."""
        data = request.encode(request_id, raw)
        length = len(data) - frames.LENGTH_BYTES
        if length > self.max_length:
            raise InvalidRequestError(f"the request is {length} bytes long; the daemon takes {self.max_length}")
        return data


def refused(refusal: Refusal) -> RefusedError:
    """The exception for an ERROR."""
    kind = RefusedConnectionError if refusal.closing and refusal.code not in _CLIENT_IS_WRONG else RefusedError
    return kind(*refusal)


def may_repeat(error: KeywardError) -> bool:
    """Whether the daemon has ended the connection and may take the request on another one."""
    return isinstance(error, RefusedConnectionError) and error.code != ErrorCode.PEER_REFUSED


def connect_pause(calls: int, error: OSError) -> float | None:
    """Seconds before the next call of `connect`; `None` if the error is final."""
    pause: float = 0.001 * 2 ** min(calls, 5)
    if isinstance(error, (BlockingIOError, InterruptedError)):
        return pause
    return pause if error.errno in _ABSENT and calls < MAX_CONNECT_CALLS else None


def connect_error(path: str, error: OSError) -> ConnectError:
    """The exception for a failed `connect`."""
    problem = error.strerror or str(error)
    return ConnectError(
        f"cannot connect to keyward at {path}: {problem}; is the daemon running, and may this user open its socket?"
    )


class BackOff:
    """When the next connection may be made, after one has failed."""

    __slots__ = ("_failures", "_last", "_not_before")

    def __init__(self) -> None:
        self._failures = 0
        self._not_before = 0.0
        self._last: KeywardError | None = None

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt has failed."""
        return self._failures > 0

    def failed(self, error: KeywardError, now: float) -> None:
        """Notes a failure. The pause doubles, with a random part, so that clients do not return together."""
        # Threads that fail together have failed once.
        if now < self._not_before:
            return
        final = isinstance(error, RefusedError) and error.code == ErrorCode.PEER_REFUSED
        if final or isinstance(error.__cause__, PermissionError):
            pause = PAUSE_AFTER_REFUSAL
        else:
            pause = min(FIRST_PAUSE * 2**self._failures, LONGEST_PAUSE) * random.uniform(0.5, 1)
        self._failures = min(self._failures + 1, 16)
        self._not_before = now + pause
        self._last = error

    def succeeded(self) -> None:
        """Notes a response that is not the end of the connection."""
        self._failures = 0
        self._not_before = 0.0
        self._last = None

    def wait(self, now: float, deadline: float) -> float:
        """Seconds to wait before connecting. If the deadline is earlier, raises an error at once."""
        pause = self._not_before - now
        if pause <= 0:
            return 0.0
        if now + pause >= deadline:
            raise ConnectError(f"not connecting for {pause:.3f} s after a failure: {self._last}") from self._last
        return pause
