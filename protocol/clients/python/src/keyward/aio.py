"""The client for asyncio. All tasks of an event loop share one connection, and pipeline on it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from time import monotonic
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
    RefusedError,
)

_Response = Union[Welcome, Decision, Refusal]

#: Seconds within which a connection and its HELLO have to be done. A call waits within its deadline.
_CONNECT_TIMEOUT = 1.0
_RECEIVE_BYTES = 65536


class _Unprocessed(Exception):
    """The daemon has not processed the request: it can be sent again, on another connection."""

    def __init__(self, error: KeywardError) -> None:
        super().__init__(error)
        self.error = error


class _Waiting:
    """A request without a response. If its caller has given up, the response will be dropped."""

    __slots__ = ("data", "end", "expects", "future", "is_written", "request_id")

    def __init__(
        self,
        future: asyncio.Future[_Response],
        expects: type[Welcome] | type[Decision],
        request_id: int,
        data: bytes,
        end: float,
    ) -> None:
        self.future = future
        self.expects = expects
        #: Whether the socket has taken any byte of its frame.
        self.is_written = False
        self.request_id = request_id
        self.data = data
        #: When its caller gives up.
        self.end = end


class _Pipeline:
    """A connection. Requests of one turn of the event loop are written together.

    It reads and writes the socket itself: a transport of asyncio does not tell what was written.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connected: socket.socket, max_in_flight: int) -> None:
        self._loop = loop
        self._socket = connected
        self._max_in_flight = max_in_flight
        self._received = b""
        #: Requests of which no byte was written, in order.
        self._unsent: deque[_Waiting] = deque()
        #: Requests of which some of the frame was written, in the order of their responses.
        self._waiting: deque[_Waiting] = deque()
        #: The rest of a frame.
        self._rest = b""
        #: Whether the event loop tells when the socket takes more.
        self._is_full = False
        self._flush_is_due = False
        self._next_id = 0
        self._error: Exception | None = None
        self.last_response = monotonic()
        self.session: Session | None = None
        loop.add_reader(connected, self._read)

    def __del__(self) -> None:
        # The event loop has ended before the connection.
        self._socket.close()

    @property
    def is_usable(self) -> bool:
        """Whether requests can be sent: it has not ended, is not silent for too long, and does not stall."""
        if self._error is not None:
            return False
        now = monotonic()
        if self._waiting:
            return now - self._waiting[0].end < _rules.STALL
        silence = self.session.max_silence if self.session else None
        return silence is None or now - self.last_response < silence

    async def exchange(self, request: Request | Hello, raw: bool, end: float, deadline: float) -> _Response:
        """Sends a request, and returns its response."""
        if self._error is not None:
            raise self._error
        request_id = self._next_id
        data = self.session.checked(request, request_id, raw) if self.session else request.encode(request_id, raw)
        self._next_id = (request_id + 1) & frames.MAX_U32
        waiting = _Waiting(self._loop.create_future(), request.expects, request_id, data, end)
        self._unsent.append(waiting)
        if not self._flush_is_due and not self._is_full:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)
        timer = self._loop.call_later(max(end - monotonic(), 0), self._expire, waiting, deadline)
        try:
            return await waiting.future
        finally:
            timer.cancel()

    def close(self) -> None:
        """Ends the connection. Requests without a response fail."""
        self._end(None)

    def _expire(self, waiting: _Waiting, deadline: float) -> None:
        if not waiting.future.done():
            waiting.future.set_exception(DeadlineError(deadline, maybe_charged=waiting.is_written))

    def _flush(self) -> None:
        """Writes what the socket takes and the limit of requests in flight allows."""
        self._flush_is_due = False
        if self._error is not None:
            return
        ready: list[_Waiting] = []
        room = self._max_in_flight - len(self._waiting)
        while self._unsent and len(ready) < room:
            waiting = self._unsent.popleft()
            # Given up before it was sent.
            if not waiting.future.done():
                ready.append(waiting)
        data = self._rest + b"".join([waiting.data for waiting in ready])
        try:
            sent = self._socket.send(data) if data else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._unsent.extendleft(reversed(ready))
            # The daemon may have said why before it ended the connection.
            self._read()
            self._end(None)
            return
        boundary = len(self._rest)
        self._rest = self._rest[sent:]
        for index, waiting in enumerate(ready):
            if sent <= boundary:
                self._unsent.extendleft(reversed(ready[index:]))
                break
            boundary += len(waiting.data)
            self._rest = data[sent:boundary]
            waiting.is_written = True
            self._waiting.append(waiting)
        is_full = sent < len(data)
        if is_full and not self._is_full:
            self._loop.add_writer(self._socket, self._flush)
        elif self._is_full and not is_full:
            self._loop.remove_writer(self._socket)
        self._is_full = is_full

    def _read(self) -> None:
        while self._error is None:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._end(None)
                return
            self._receive(data)
            if len(data) < _RECEIVE_BYTES:
                return

    def _receive(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        start = 0
        try:
            while (end := frames.frame_end(data, start)) is not None and end <= len(data):
                self._respond(*frames.parse(data[start:end]))
                if self._error is not None:
                    return
                start = end
        except ProtocolError as error:
            self._end(error)
            return
        self._received = data[start:]
        self.last_response = monotonic()
        if self._unsent and not self._is_full:
            self._flush()

    def _respond(self, request_id: int, response: _Response) -> None:
        if isinstance(response, Refusal) and response.closing:
            self._end(_rules.refused(response))
            return
        if not self._waiting:
            raise ProtocolError(f"a response to request {request_id} came, and none was due")
        due = self._waiting[0]
        if due.request_id != request_id:
            raise ProtocolError(f"the response to request {due.request_id} was due, and that to {request_id} came")
        if not isinstance(response, (due.expects, Refusal)):
            raise ProtocolError(f"{type(response).__name__} is no response to this request")
        self._waiting.popleft()
        if not due.future.done():
            due.future.set_result(response)

    def _end(self, error: KeywardError | None) -> None:
        """Ends the connection, for a reason of the daemon's or for none."""
        if self._error is not None:
            return
        refusal = error if isinstance(error, RefusedError) else None
        self._error = _unprocessed(refusal or ConnectionLostError(False))
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for index, waiting in enumerate(self._waiting):
            if waiting.future.done():
                continue
            if refusal is None:
                waiting.future.set_exception(error or ConnectionLostError(True))
            elif index == 0 and not isinstance(refusal, RefusedConnectionError):
                # The daemon blames the oldest request.
                waiting.future.set_exception(refusal)
            else:
                waiting.future.set_exception(_unprocessed(refusal))
        for waiting in self._unsent:
            if not waiting.future.done():
                waiting.future.set_exception(self._error)
        self._waiting.clear()
        self._unsent.clear()


def _unprocessed(error: KeywardError) -> Exception:
    """The exception for a request that the daemon had not processed when the connection ended."""
    if isinstance(error, RefusedConnectionError) and not _rules.may_repeat(error):
        return error
    return _Unprocessed(error)


class Client:
    """Asks the daemon about keys, in the tasks of an event loop.

    The connection is made on first use, and again in another event loop or process.
    """

    def __init__(
        self,
        socket: str = _rules.DEFAULT_SOCKET,
        *,
        deadline: float = _rules.DEFAULT_DEADLINE,
        max_in_flight: int = 4096,
    ) -> None:
        """
        :param socket: path of the daemon's socket, or a URL such as ``unix:/run/keyward/keyward.sock``
        :param deadline: seconds that a call may take, connecting included
        :param max_in_flight: requests without a response at the same time; further ones wait
        """
        if not deadline > 0:
            raise ValueError(f"the deadline is {deadline!r}, and not above 0 seconds")
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight is {max_in_flight!r}, and not at least 1")
        self._path = _rules.socket_path(socket)
        self._deadline = deadline
        self._max_in_flight = max_in_flight
        self._forget()

    def _forget(self) -> None:
        """Begins anew. What belongs to another process or event loop is left alone."""
        self._pipeline: _Pipeline | None = None
        self._connecting: asyncio.Task[_Pipeline] | None = None
        self._back_off = BackOff()
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def verify(
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
        """As :meth:`keyward.Client.verify`."""
        request = _request.verify(
            key, scopes, any_scope, cost, costs, ip, origin, environment, metadata, balances
        )
        return await self._decide(request, deadline)

    async def refund(
        self,
        key: Key,
        cost: int = 0,
        *,
        costs: Mapping[str, int] | None = None,
        balances: bool = False,
        deadline: float | None = None,
    ) -> Decision:
        """As :meth:`keyward.Client.refund`."""
        return await self._decide(_request.adjustment(frames.REFUND, key, cost, costs, balances), deadline)

    async def debit(
        self,
        key: Key,
        cost: int = 0,
        *,
        costs: Mapping[str, int] | None = None,
        balances: bool = False,
        deadline: float | None = None,
    ) -> Decision:
        """As :meth:`keyward.Client.debit`."""
        return await self._decide(_request.adjustment(frames.DEBIT, key, cost, costs, balances), deadline)

    async def hello(self, *, deadline: float | None = None) -> Welcome:
        """As :meth:`keyward.Client.hello`."""
        return cast(Welcome, await self._call(Hello(), deadline))

    async def close(self) -> None:
        """Ends the connection. The client can be used again."""
        if self._pid == os.getpid() and self._loop is asyncio.get_running_loop():
            if self._connecting is not None:
                self._connecting.cancel()
            if self._pipeline is not None:
                self._pipeline.close()
        self._forget()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _decide(self, request: Request, deadline: float | None) -> Decision:
        return cast(Decision, await self._call(request, deadline))

    async def _call(self, request: Request | Hello, deadline: float | None) -> Welcome | Decision:
        if deadline is None:
            deadline = self._deadline
        end = monotonic() + deadline
        for attempt in range(1, _rules.MAX_ATTEMPTS + 1):
            try:
                return await self._attempt(request, end, deadline)
            except _Unprocessed as unprocessed:
                error = unprocessed.error
            except ConnectionLostError as lost:
                if not request.may_repeat:
                    raise
                error = lost
            if isinstance(error, RefusedConnectionError) and error.code != ErrorCode.IDLE_TIMEOUT:
                self._back_off.failed(error, monotonic())
            if attempt == _rules.MAX_ATTEMPTS or monotonic() >= end:
                raise error
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, request: Request | Hello, end: float, deadline: float) -> Welcome | Decision:
        pipeline = self._usable_pipeline() or await self._connected(end, deadline)
        session = pipeline.session
        assert session is not None
        sends_raw = session.sends_raw
        if sends_raw and not request.fits_raw:
            return Decision(Verdict.UNKNOWN_KEY)
        response = await pipeline.exchange(request, sends_raw, end, deadline)
        if isinstance(response, Refusal) and session.follows(response, sends_raw):
            if not sends_raw and not request.fits_raw:
                return Decision(Verdict.UNKNOWN_KEY)
            response = await pipeline.exchange(request, not sends_raw, end, deadline)
        if self._back_off.has_failed:
            self._back_off.succeeded()
        if isinstance(response, Refusal):
            raise _rules.refused(response)
        return response

    def _usable_pipeline(self) -> _Pipeline | None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._pid != os.getpid():
            self._forget()
            self._loop = loop
        pipeline = self._pipeline
        if pipeline is not None and not pipeline.is_usable:
            pipeline.close()
            self._pipeline = pipeline = None
        return pipeline

    async def _connected(self, end: float, deadline: float) -> _Pipeline:
        """A new connection, which all calls wait for that need one now."""
        if self._connecting is None or self._connecting.done():
            wait = self._back_off.wait(monotonic(), end)
            self._connecting = asyncio.get_running_loop().create_task(self._connect(wait))
            # Its callers may all have given up.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        connecting = self._connecting
        done, _ = await asyncio.wait({connecting}, timeout=end - monotonic())
        if not done:
            raise DeadlineError(deadline, maybe_charged=False)
        if connecting.cancelled():
            # The client was closed.
            raise ConnectionLostError(maybe_charged=False)
        return connecting.result()

    async def _connect(self, wait: float) -> _Pipeline:
        loop = asyncio.get_running_loop()
        if wait:
            await asyncio.sleep(wait)
        end = monotonic() + _CONNECT_TIMEOUT
        pipeline = await self._connect_socket(loop)
        try:
            try:
                response = await pipeline.exchange(Hello(), False, end, _CONNECT_TIMEOUT)
            except (DeadlineError, ConnectionLostError) as error:
                # The request itself was not sent.
                error.maybe_charged = False
                raise
            if isinstance(response, Refusal):
                raise _rules.refused(response)
            pipeline.session = Session(cast(Welcome, response))
        except BaseException as error:
            pipeline.close()
            if isinstance(error, KeywardError):
                self._back_off.failed(error, monotonic())
            raise
        self._pipeline = pipeline
        return pipeline

    async def _connect_socket(self, loop: asyncio.AbstractEventLoop) -> _Pipeline:
        calls = 0
        while True:
            connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connecting.setblocking(False)
            try:
                # It succeeds or fails at once. asyncio takes EAGAIN, a full queue, for a connection.
                connecting.connect(self._path)
                return _Pipeline(loop, connecting, self._max_in_flight)
            except OSError as error:
                connecting.close()
                calls += 1
                pause = _rules.connect_pause(calls, error)
                if pause is None:
                    failed = _rules.connect_error(self._path, error)
                    failed.__cause__ = error
                    self._back_off.failed(failed, monotonic())
                    raise failed from error
                await asyncio.sleep(pause)
