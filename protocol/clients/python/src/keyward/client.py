"""The client for threads, and for programs without any."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from time import monotonic, sleep
from types import TracebackType
from typing import Union, cast

from . import _frames as frames
from . import _request, _rules
from ._frames import Refusal, Welcome
from ._request import Address, Hello, Key, Request
from ._rules import BackOff, Session
from .decision import Decision, Verdict
from .errors import (
    ConnectionLostError,
    DeadlineError,
    ErrorCode,
    KeywardError,
    ProtocolError,
    RefusedConnectionError,
    UnavailableError,
)

#: Most bytes that are received at once. An answer is some 60 bytes, and never more than 8196.
_RECEIVE_BYTES = 4096

_Response = Union[Welcome, Decision, Refusal]

#: Python 3.9 has two.
_TIMEOUTS = (TimeoutError, socket.timeout)


class _Repeatable(Exception):
    """The daemon has not processed the request: it can be sent again, on another connection."""

    def __init__(self, error: KeywardError) -> None:
        super().__init__(error)
        self.error = error


class _Connection:
    """One connection, with one request at a time."""

    __slots__ = ("_buffer", "_socket", "_timeout", "last_response", "next_id", "session")

    session: Session

    def __init__(self, connected: socket.socket, timeout: float) -> None:
        self._socket = connected
        self._timeout = timeout
        self._buffer = b""
        self.next_id = 0
        self.last_response = monotonic()

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        self._socket.close()

    @property
    def is_clean(self) -> bool:
        """Whether nothing was received that belongs to no request, such as the daemon's farewell."""
        return not self._buffer

    def may_be_used(self, now: float) -> bool:
        """Whether the daemon keeps the connection for some more time."""
        silence = self.session.max_silence
        return silence is None or now - self.last_response < silence

    def exchange(
        self, data: bytes, expects: type[Welcome] | type[Decision], end: float, deadline: float
    ) -> _Response:
        """Sends a frame with the next id, and receives its response. After an exception, close the connection."""
        request_id = self.next_id
        self.next_id = (request_id + 1) & frames.MAX_U32
        sent = 0
        try:
            while sent < len(data):
                self._set_timeout(end, deadline)
                sent += self._socket.send(data[sent:] if sent else data)
        except _TIMEOUTS:
            raise DeadlineError(deadline, maybe_charged=sent > 0) from None
        except OSError as error:
            # The daemon may have said why before it ended the connection.
            raise self._lost(sent > 0, end, deadline) from error
        frame = self._receive(end, deadline)
        if frame is None:
            raise self._lost(True, end, deadline)
        self.last_response = monotonic()
        received_id, response = frames.parse(frame)
        if isinstance(response, Refusal):
            if response.closing:
                raise _closed(response)
        elif not isinstance(response, expects):
            raise ProtocolError(f"{type(response).__name__} is no response to this request")
        if received_id != request_id:
            raise ProtocolError(f"the response to request {request_id} was due, and that to {received_id} came")
        return response

    def _receive(self, end: float, deadline: float) -> bytes | None:
        """The next frame; `None` at the end of the stream."""
        buffer = self._buffer
        while True:
            frame_end = frames.frame_end(buffer, 0)
            if frame_end is not None and len(buffer) >= frame_end:
                self._buffer = buffer[frame_end:]
                return buffer[:frame_end]
            try:
                self._set_timeout(end, deadline)
                data = self._socket.recv(_RECEIVE_BYTES)
            except _TIMEOUTS:
                raise DeadlineError(deadline, maybe_charged=True) from None
            except OSError:
                data = b""
            if not data:
                return None
            buffer += data

    def _lost(self, maybe_charged: bool, end: float, deadline: float) -> Exception:
        """The exception for a connection that has ended, after reading what the daemon has left."""
        try:
            while (frame := self._receive(end, deadline)) is not None:
                _, response = frames.parse(frame)
                if isinstance(response, Refusal) and response.closing:
                    return _closed(response)
        except UnavailableError:
            pass
        error = ConnectionLostError(maybe_charged)
        return error if maybe_charged else _Repeatable(error)

    def _set_timeout(self, end: float, deadline: float) -> None:
        # A call that has just begun has its whole deadline, which the socket usually has already.
        left = end - monotonic()
        if left <= 0:
            raise TimeoutError
        if left < self._timeout * 0.95 or left > self._timeout:
            self._timeout = left if left < deadline * 0.95 else deadline
            self._socket.settimeout(self._timeout)


def _closed(refusal: Refusal) -> Exception:
    error = _rules.refused(refusal)
    return _Repeatable(error) if _rules.may_repeat(error) else error


class Client:
    """Asks the daemon about keys. All threads can share it: each call has a connection of its own.

    Connections are made on first use and kept. After a fork, the child makes its own.
    """

    def __init__(
        self,
        socket: str = _rules.DEFAULT_SOCKET,
        *,
        deadline: float = _rules.DEFAULT_DEADLINE,
        max_idle_connections: int = 64,
    ) -> None:
        """
        :param socket: path of the daemon's socket, or a URL such as ``unix:/run/keyward/keyward.sock``
        :param deadline: seconds that a call may take, connecting included
        :param max_idle_connections: connections that are kept while no call uses them
        """
        if not deadline > 0:
            raise ValueError(f"the deadline is {deadline!r}, and not above 0 seconds")
        self._path = _rules.socket_path(socket)
        self._deadline = deadline
        self._max_idle = max_idle_connections
        self._idle: deque[_Connection] = deque()
        self._back_off = BackOff()
        self._pid = os.getpid()

    def verify(
        self,
        key: Key,
        *,
        scopes: Iterable[str] = (),
        any_scope: Iterable[str] | None = None,
        cost: int = 1,
        costs: Mapping[str, int] | None = None,
        ip: Address | None = None,
        origin: str | None = None,
        environment: str | None = None,
        metadata: bool = False,
        balances: bool = False,
        deadline: float | None = None,
    ) -> Decision:
        """Asks whether a key may make a request now, and charges its limits if it may.

        :param key: the key as its holder presents it; a text is sent as UTF-8
        :param scopes: scopes that the key needs, all of them
        :param any_scope: scopes of which the key needs one; at least one
        :param cost: what to charge each limit that ``costs`` does not name; 0 asks without charging
        :param costs: what to charge limits by their names
        :param ip: the address that the request came from
        :param origin: the ``Origin`` of the request, as the browser has sent it
        :param environment: the environment that this program serves
        :param metadata: whether the metadata of the key is wanted
        :param balances: whether the balance of every limit is wanted
        :param deadline: seconds that this call may take
        :raises KeywardError: there is no answer. A denial is an answer
        """
        request = _request.verify(
            key, scopes, any_scope, cost, costs, ip, origin, environment, metadata, balances
        )
        return self._decide(request, deadline)

    def refund(
        self,
        key: Key,
        cost: int = 0,
        *,
        costs: Mapping[str, int] | None = None,
        balances: bool = False,
        deadline: float | None = None,
    ) -> Decision:
        """Gives back what an allowed request has charged. Never repeat one whose error is ``maybe_charged``."""
        return self._decide(_request.adjustment(frames.REFUND, key, cost, costs, balances), deadline)

    def debit(
        self,
        key: Key,
        cost: int = 0,
        *,
        costs: Mapping[str, int] | None = None,
        balances: bool = False,
        deadline: float | None = None,
    ) -> Decision:
        """Charges what a response has cost, down to the floor of each limit. Never repeat one, as a refund."""
        return self._decide(_request.adjustment(frames.DEBIT, key, cost, costs, balances), deadline)

    def hello(self, *, deadline: float | None = None) -> Welcome:
        """Asks the daemon for its version, and how it takes keys. Suitable as a health check."""
        return cast(Welcome, self._call(Hello(), deadline))

    def close(self) -> None:
        """Closes the idle connections. The client can be used again."""
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _decide(self, request: Request, deadline: float | None) -> Decision:
        return cast(Decision, self._call(request, deadline))

    def _call(self, request: Request | Hello, deadline: float | None) -> Welcome | Decision:
        if deadline is None:
            deadline = self._deadline
        end = monotonic() + deadline
        for attempt in range(1, _rules.MAX_ATTEMPTS + 1):
            try:
                return self._attempt(request, end, deadline)
            except _Repeatable as repeatable:
                error = repeatable.error
                if isinstance(error, RefusedConnectionError) and error.code != ErrorCode.IDLE_TIMEOUT:
                    self._back_off.failed(error, monotonic())
            except ConnectionLostError as lost:
                if not request.may_repeat:
                    raise
                error = lost
            if attempt == _rules.MAX_ATTEMPTS or monotonic() >= end:
                raise error
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, request: Request | Hello, end: float, deadline: float) -> Welcome | Decision:
        connection = self._idle_connection() or self._connect(end, deadline)
        try:
            response = self._exchange(connection, request, end, deadline)
        except BaseException:
            # Also after an exception of a signal: a late answer must not be taken for another one.
            connection.close()
            raise
        if self._back_off.has_failed:
            self._back_off.succeeded()
        if connection.is_clean and len(self._idle) < self._max_idle:
            self._idle.append(connection)
        else:
            connection.close()
        if isinstance(response, Refusal):
            raise _rules.refused(response)
        return response

    def _exchange(
        self, connection: _Connection, request: Request | Hello, end: float, deadline: float
    ) -> _Response:
        """Sends a request, and once more if the daemon wants the key in the other form."""
        session = connection.session
        sends_raw = session.sends_raw
        if sends_raw and not request.fits_raw:
            return Decision(Verdict.UNKNOWN_KEY)
        frame = session.checked(request, connection.next_id, sends_raw)
        response = connection.exchange(frame, request.expects, end, deadline)
        if isinstance(response, Refusal) and session.follows(response, sends_raw):
            if session.sends_raw and not request.fits_raw:
                return Decision(Verdict.UNKNOWN_KEY)
            frame = session.checked(request, connection.next_id, session.sends_raw)
            return connection.exchange(frame, request.expects, end, deadline)
        return response

    def _idle_connection(self) -> _Connection | None:
        """The connection that was used last, if the daemon still keeps it."""
        if self._pid != os.getpid():
            # They are the parent's. Closing this process's descriptors does not end them.
            self.close()
            self._back_off = BackOff()
            self._pid = os.getpid()
        now = monotonic()
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.may_be_used(now):
                return connection
            connection.close()
        return None

    def _connect(self, end: float, deadline: float) -> _Connection:
        wait = self._back_off.wait(monotonic(), end)
        if wait:
            sleep(wait)
        connection = _Connection(self._connect_socket(end), deadline)
        try:
            response = connection.exchange(Hello().encode(0, False), Welcome, end, deadline)
            if isinstance(response, Refusal):
                raise _rules.refused(response)
            connection.session = Session(cast(Welcome, response))
        except _Repeatable:
            connection.close()
            raise
        except BaseException as error:
            connection.close()
            if isinstance(error, DeadlineError):
                # The request itself was not sent.
                error = DeadlineError(deadline, maybe_charged=False)
            if isinstance(error, KeywardError):
                self._back_off.failed(error, monotonic())
            raise error from None
        return connection

    def _connect_socket(self, end: float) -> socket.socket:
        calls = 0
        while True:
            connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connecting.settimeout(max(end - monotonic(), 0.001))
                connecting.connect(self._path)
                return connecting
            except OSError as error:
                connecting.close()
                calls += 1
                pause = _rules.connect_pause(calls, error)
                if pause is None or monotonic() + pause >= end:
                    failed = _rules.connect_error(self._path, error)
                    failed.__cause__ = error
                    self._back_off.failed(failed, monotonic())
                    raise failed from error
                sleep(pause)
            except BaseException:
                connecting.close()
                raise
