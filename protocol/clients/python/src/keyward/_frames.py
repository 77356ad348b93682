"""Frames as bytes (SPEC.md, sections 2 to 8)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from struct import Struct, error as StructError
from typing import NamedTuple

from .decision import Balance, Decision, Limit, LimitKind, Verdict, seconds
from .errors import ProtocolError

VERSION = 1
HELLO, VERIFY, REFUND, DEBIT = 0x01, 0x02, 0x03, 0x04
WELCOME, ANSWER, ERROR = 0x81, 0x82, 0xFF

#: Bytes of a header, the first four of which are not part of `length`.
HEADER_BYTES = 12
LENGTH_BYTES = 4
MIN_LENGTH, MAX_REQUEST_LENGTH, MAX_RESPONSE_LENGTH = 8, 4096, 8192

MAX_KEY = 1024
MAX_SCOPES = 1024
MAX_ORIGIN = 512
MAX_NAME = 64
MAX_COSTS = 16
MAX_U32 = 0xFFFF_FFFF

#: Bits of WELCOME's `credentials`.
DIGEST, RAW = 0x01, 0x02

_HEADER = Struct("<IBBHI")
_U8, _U16, _U32 = Struct("<B"), Struct("<H"), Struct("<I")
_WELCOME = Struct("<BBBBIIQ")
_ANSWER = Struct("<BQIIII")
_ERROR = Struct("<BI")
_BALANCE = Struct("<BQIqI")


class RequestFlag(enum.IntFlag):
    """The flags of VERIFY, REFUND and DEBIT."""

    RAW_KEY = 0x0001
    SCOPES = 0x0002
    ANY_SCOPE = 0x0004
    IP = 0x0008
    ORIGIN = 0x0010
    ENVIRONMENT = 0x0020
    METADATA = 0x0040
    COSTS = 0x0080
    BALANCES = 0x0100


_METADATA, _SHADOW, _BALANCES = 0x0040, 0x0080, 0x0100
_CLOSING = 0x0001
_ANSWER_FLAGS = _METADATA | _SHADOW | _BALANCES
_VERDICTS = [Verdict(value) for value in range(256)]
_KINDS: list[int] = [*LimitKind, *range(len(LimitKind), 256)]


class Welcome(NamedTuple):
    """The response to HELLO."""

    version: int
    min_version: int
    max_version: int
    credentials: int
    max_length: int
    idle_timeout_ms: int
    generation: int
    server: str


class Refusal(NamedTuple):
    """An ERROR."""

    code: int
    detail: int
    closing: bool
    message: str


def frame(kind: int, flags: int, request_id: int, body: bytes) -> bytes:
    """A frame of the client."""
    return _HEADER.pack(8 + len(body), VERSION, kind, flags, request_id) + body


def hello(request_id: int, min_version: int = VERSION, max_version: int = VERSION) -> bytes:
    """HELLO."""
    return frame(HELLO, 0, request_id, bytes((min_version, max_version)))


def text8(value: bytes) -> bytes:
    """A text of at most 255 bytes, after its length."""
    return _U8.pack(len(value)) + value


def text16(value: bytes) -> bytes:
    """A text or bytes, after the length."""
    return _U16.pack(len(value)) + value


def u32(value: int) -> bytes:
    """A cost."""
    return _U32.pack(value)


def costs(amounts: Mapping[bytes, int]) -> bytes:
    """Costs by the names of limits."""
    pairs = (text8(name) + u32(cost) for name, cost in amounts.items())
    return _U8.pack(len(amounts)) + b"".join(pairs)


def frame_end(buffer: bytes | bytearray, start: int) -> int | None:
    """Where the frame that begins at `start` ends; `None` if its length has not been received."""
    if len(buffer) - start < LENGTH_BYTES:
        return None
    (length,) = _U32.unpack_from(buffer, start)
    if not MIN_LENGTH <= length <= MAX_RESPONSE_LENGTH:
        raise ProtocolError(f"a frame has a length of {length}, and not of {MIN_LENGTH} to {MAX_RESPONSE_LENGTH}")
    end: int = start + LENGTH_BYTES + length
    return end


def parse(data: bytes) -> tuple[int, Welcome | Decision | Refusal]:
    """The request id and the contents of a whole frame of the daemon."""
    _, version, kind, flags, request_id = _HEADER.unpack_from(data)
    if version != VERSION:
        raise ProtocolError(f"a frame is of version {version}")
    try:
        if kind == ANSWER:
            return request_id, _answer(data, flags)
        if kind == ERROR:
            return request_id, _refusal(data, flags)
        if kind == WELCOME:
            return request_id, _welcome(data, flags)
    except StructError:
        raise ProtocolError("a frame ends within a field") from None
    except UnicodeDecodeError:
        raise ProtocolError("a text is not UTF-8") from None
    raise ProtocolError(f"a frame is of the unknown kind {kind:#04x}")


def _text(data: bytes, start: int, end: int, max_bytes: int) -> str:
    if end - start > max_bytes:
        raise ProtocolError(f"a text is {end - start} bytes long, and not at most {max_bytes}")
    if end > len(data):
        raise ProtocolError("a frame ends within a text")
    return data[start:end].decode()


def _text8(data: bytes, offset: int, max_bytes: int) -> tuple[str, int]:
    """A text, and the offset behind it."""
    if offset >= len(data):
        raise ProtocolError("a frame ends before a text")
    end = offset + 1 + data[offset]
    return _text(data, offset + 1, end, max_bytes), end


def _consumed(data: bytes, end: int) -> None:
    if end != len(data):
        raise ProtocolError(f"a frame has {len(data) - end} bytes after its last field")


def _flags(flags: int, known: int) -> None:
    if flags & ~known:
        raise ProtocolError(f"a frame has the unknown flags {flags & ~known:#06x}")


def _welcome(data: bytes, flags: int) -> Welcome:
    _flags(flags, 0)
    fields = _WELCOME.unpack_from(data, HEADER_BYTES)
    server, end = _text8(data, HEADER_BYTES + _WELCOME.size, 255)
    _consumed(data, end)
    return Welcome._make((*fields, server))


def _refusal(data: bytes, flags: int) -> Refusal:
    _flags(flags, _CLOSING)
    code, detail = _ERROR.unpack_from(data, HEADER_BYTES)
    message, end = _text8(data, HEADER_BYTES + _ERROR.size, 255)
    _consumed(data, end)
    return Refusal(code, detail, bool(flags & _CLOSING), message)


def _answer(data: bytes, flags: int) -> Decision:
    _flags(flags, _ANSWER_FLAGS)
    verdict, generation, limit, remaining, retry_after_ms, reset_ms = _ANSWER.unpack_from(data, HEADER_BYTES)
    key_id, offset = _text8(data, HEADER_BYTES + _ANSWER.size, MAX_NAME)
    owner, offset = _text8(data, offset, 128)
    environment, offset = _text8(data, offset, MAX_NAME)
    plan, offset = _text8(data, offset, MAX_NAME)
    limit_name, offset = _text8(data, offset, MAX_NAME)
    metadata = shadow_limit = balances = None
    if flags & _METADATA:
        (length,) = _U16.unpack_from(data, offset)
        metadata = _text(data, offset + 2, offset + 2 + length, 4096)
        offset += 2 + length
    if flags & _SHADOW:
        shadow_limit, offset = _text8(data, offset, MAX_NAME)
    if flags & _BALANCES:
        balances, offset = _parse_balances(data, offset)
    _consumed(data, offset)
    return Decision(
        _VERDICTS[verdict],
        generation,
        key_id,
        owner,
        environment,
        plan,
        Limit(limit_name, limit, remaining, seconds(reset_ms)) if limit_name else None,
        retry_after_ms,
        metadata,
        shadow_limit,
        balances,
    )


def _parse_balances(data: bytes, offset: int) -> tuple[dict[str, Balance], int]:
    (count,) = _U8.unpack_from(data, offset)
    if count > MAX_COSTS:
        raise ProtocolError(f"an answer has {count} balances, and not at most {MAX_COSTS}")
    offset += 1
    balances = {}
    for _ in range(count):
        name, offset = _text8(data, offset, MAX_NAME)
        kind, limit, charged, balance, reset_ms = _BALANCE.unpack_from(data, offset)
        balances[name] = Balance(name, _KINDS[kind], limit, charged, balance, seconds(reset_ms))
        offset += _BALANCE.size
    return balances, offset
