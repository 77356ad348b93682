"""A request, encoded but for its id and its key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Union

from . import _frames as frames
from ._frames import RequestFlag
from .decision import Decision
from .errors import InvalidRequestError

Key = Union[str, bytes]
Address = Union[str, IPv4Address, IPv6Address]

_MAPPED = b"\0" * 10 + b"\xff\xff"


class Hello:
    """A HELLO."""

    may_repeat = True
    fits_raw = True
    expects = frames.Welcome

    def encode(self, request_id: int, raw: bool) -> bytes:
        """The frame. It has no key."""
        return frames.hello(request_id)


class Request:
    """A VERIFY, REFUND or DEBIT."""

    __slots__ = ("flags", "head", "key", "kind", "may_repeat", "tail")

    expects = Decision

    def __init__(self, kind: int, key: Key, flags: int, cost: int, tail: bytes, is_peek: bool) -> None:
        self.kind = kind
        if not isinstance(key, (str, bytes, bytearray, memoryview)):
            raise InvalidRequestError(f"the key is of the type {type(key).__name__}, and neither text nor bytes")
        self.key = _encode("the key", key) if isinstance(key, str) else bytes(key)
        self.flags = flags
        self.head = frames.u32(cost)
        self.tail = tail
        #: Whether it can be sent twice: it charges nothing.
        self.may_repeat = is_peek

    def encode(self, request_id: int, raw: bool) -> bytes:
        """The frame, with the key or with its digest."""
        if raw:
            body = self.head + frames.text16(self.key) + self.tail
            return frames.frame(self.kind, self.flags | RequestFlag.RAW_KEY, request_id, body)
        body = self.head + sha256(self.key).digest() + self.tail
        return frames.frame(self.kind, self.flags, request_id, body)

    @property
    def fits_raw(self) -> bool:
        """Whether the key can be sent raw. A daemon that takes only raw keys knows no longer one."""
        return len(self.key) <= frames.MAX_KEY


def verify(
    key: Key,
    scopes: Iterable[str],
    any_scope: Iterable[str] | None,
    cost: int,
    costs: Mapping[str, int] | None,
    ip: Address | None,
    origin: str | None,
    environment: str | None,
    metadata: bool,
    balances: bool,
) -> Request:
    """A VERIFY."""
    flags, tail = _scopes(scopes, any_scope)
    if ip is not None:
        flags |= RequestFlag.IP
        tail += _address(ip)
    if origin is not None:
        encoded = _encode("origin", origin)
        # A longer one matches no list: it is left out, and a key with a list is refused.
        if len(encoded) <= frames.MAX_ORIGIN:
            flags |= RequestFlag.ORIGIN
            tail += frames.text16(encoded)
    if environment is not None:
        flags |= RequestFlag.ENVIRONMENT
        tail += frames.text8(_encode("environment", environment, frames.MAX_NAME))
    if metadata:
        flags |= RequestFlag.METADATA
    if balances:
        flags |= RequestFlag.BALANCES
    if costs:
        flags |= RequestFlag.COSTS
        tail += _costs(costs)
    _check_cost("cost", cost)
    is_peek = cost == 0 and (not costs or not any(costs.values()))
    return Request(frames.VERIFY, key, flags, cost, tail, is_peek)


def adjustment(kind: int, key: Key, cost: int, costs: Mapping[str, int] | None, balances: bool) -> Request:
    """A REFUND or DEBIT."""
    flags, tail = (RequestFlag.BALANCES if balances else 0), b""
    if costs:
        flags |= RequestFlag.COSTS
        tail = _costs(costs)
    _check_cost("cost", cost)
    if cost == 0 and not costs:
        raise InvalidRequestError("a refund or debit is at least 1; a request of cost 0 has charged nothing")
    return Request(kind, key, flags, cost, tail, is_peek=False)


def _encode(field: str, value: str, max_bytes: int | None = None) -> bytes:
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        # The value may be a key.
        raise InvalidRequestError(f"{field} is not Unicode: it has a surrogate") from None
    if max_bytes is not None and len(encoded) > max_bytes:
        raise InvalidRequestError(f"{field} is {len(encoded)} bytes long, and not at most {max_bytes}")
    return encoded


def _scopes(all_of: Iterable[str], any_of: Iterable[str] | None) -> tuple[int, bytes]:
    names, alternatives = scope_names(all_of), None if any_of is None else scope_names(any_of)
    if alternatives is not None:
        if names:
            raise InvalidRequestError("scopes and any_scope exclude each other")
        if not alternatives:
            raise InvalidRequestError("any_scope has no scope: one of none cannot be had")
        names = alternatives
    if not names:
        return 0, b""
    for name in names:
        if not name or " " in name:
            raise InvalidRequestError(f"{name!r} is no scope: it is empty, or has a space")
    flags = RequestFlag.SCOPES if alternatives is None else RequestFlag.SCOPES | RequestFlag.ANY_SCOPE
    return flags, frames.text16(_encode("scopes", " ".join(names), frames.MAX_SCOPES))


def scope_names(scopes: Iterable[str]) -> tuple[str, ...]:
    """Scopes, which may be a single text. Its letters are no scopes."""
    return (scopes,) if isinstance(scopes, str) else tuple(scopes)


def _address(ip: Address) -> bytes:
    try:
        address = ip_address(ip)
    except ValueError:
        raise InvalidRequestError(f"{ip!r} is no IP address") from None
    return _MAPPED + address.packed if address.version == 4 else address.packed


def _check_cost(field: str, cost: int) -> None:
    if not isinstance(cost, int) or not 0 <= cost <= frames.MAX_U32:
        raise InvalidRequestError(f"{field} is {cost!r}, and not a whole number from 0 to {frames.MAX_U32}")


def _costs(costs: Mapping[str, int]) -> bytes:
    if len(costs) > frames.MAX_COSTS:
        raise InvalidRequestError(f"there are {len(costs)} costs, and not at most {frames.MAX_COSTS}")
    encoded = {}
    for name, cost in costs.items():
        _check_cost(f"the cost of {name!r}", cost)
        if not name:
            raise InvalidRequestError("the name of a limit is empty")
        encoded[_encode("the name of a limit", name, frames.MAX_NAME)] = cost
    return frames.costs(encoded)
