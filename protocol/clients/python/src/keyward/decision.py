"""What the daemon decided."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

#: Milliseconds of the protocol that stand for that many or more.
_LONGEST_MS = 0xFFFF_FFFF


class Verdict(enum.IntEnum):
    """The verdicts of SPEC.md, section 7. One that this client does not know is a denial.

    Such a verdict is called ``UNKNOWN_VERDICT_`` and its number.
    """

    ALLOWED = 0
    NOT_READY = 1
    STALE_SNAPSHOT = 2
    MALFORMED_KEY = 3
    UNKNOWN_KEY = 4
    REVOKED = 5
    DISABLED = 6
    NOT_YET_VALID = 7
    EXPIRED = 8
    WRONG_ENVIRONMENT = 9
    IP_NOT_ALLOWED = 10
    ORIGIN_NOT_ALLOWED = 11
    MISSING_SCOPE = 12
    COST_EXCEEDS_BURST = 13
    RATE_LIMITED = 14
    UNKNOWN_LIMIT = 15
    OUT_OF_CREDIT = 16

    @classmethod
    def _missing_(cls, value: object) -> Verdict | None:
        if not isinstance(value, int) or not 0 <= value <= 255:
            return None
        verdict = int.__new__(cls, value)
        verdict._name_ = f"UNKNOWN_VERDICT_{value}"
        verdict._value_ = value
        return verdict


class LimitKind(enum.IntEnum):
    """How a limit gets its balance back. A kind that this client does not know stays a number."""

    #: Continuously, at its rate, up to its burst.
    BUCKET = 0
    #: All of it when the next calendar window begins.
    WINDOW = 1
    #: Only by a larger grant.
    CREDITS = 2


class Limit(NamedTuple):
    """The limit that decided."""

    name: str
    #: Its burst, count or grant. 4294967295 stands for that or more.
    limit: int
    #: What can be spent now, after this request.
    remaining: int
    #: Seconds until the limit is full again; infinite for credits, and for 49 days or longer.
    reset: float


class Balance(NamedTuple):
    """One of the limits of a key."""

    name: str
    #: A :class:`LimitKind`, or the number of a later one.
    kind: int
    #: Its burst, count or grant.
    limit: int
    #: What this request charged; in the answer to a refund, what it gave back.
    charged: int
    #: What can be spent now. Below zero if the limit is overdrawn.
    balance: int
    #: Seconds until the limit is full again; infinite for credits, and for 49 days or longer.
    reset: float


def seconds(milliseconds: int) -> float:
    """The seconds of a time in the protocol."""
    return math.inf if milliseconds == _LONGEST_MS else milliseconds / 1000


class Decision:
    """The daemon's answer. It is true if the request may go ahead, and false if not.

    :ivar verdict: why; :attr:`allowed` is the one that matters
    :ivar key_id: the id of the key in the export; empty if the key is unknown
    :ivar owner: empty if the key is unknown or has none, as the next two
    :ivar environment: the environment of the key
    :ivar plan: the plan of the key
    :ivar limit: the limit that decided; ``None`` if none did
    :ivar shadow_limit: the first limit in shadow mode that would have refused the request
    :ivar balances: every limit of the key by its name, in the order of the configuration;
        ``None`` if the request did not ask for them, or the key is unknown
    :ivar generation: the state of all keys that the answer was taken from
    """

    __slots__ = (
        "_metadata",
        "balances",
        "environment",
        "generation",
        "key_id",
        "limit",
        "owner",
        "plan",
        "retry_after_ms",
        "shadow_limit",
        "verdict",
    )

    verdict: Verdict
    generation: int
    key_id: str
    owner: str
    environment: str
    plan: str
    limit: Limit | None
    retry_after_ms: int
    shadow_limit: str | None
    balances: Mapping[str, Balance] | None

    def __init__(
        self,
        verdict: Verdict,
        generation: int = 0,
        key_id: str = "",
        owner: str = "",
        environment: str = "",
        plan: str = "",
        limit: Limit | None = None,
        retry_after_ms: int = 0,
        metadata: str | None = None,
        shadow_limit: str | None = None,
        balances: Mapping[str, Balance] | None = None,
    ) -> None:
        self.verdict = verdict
        self.generation = generation
        self.key_id = key_id
        self.owner = owner
        self.environment = environment
        self.plan = plan
        self.limit = limit
        self.retry_after_ms = retry_after_ms
        self._metadata = metadata
        self.shadow_limit = shadow_limit
        self.balances = balances

    @property
    def allowed(self) -> bool:
        """Whether the request may go ahead, and has been charged."""
        return self.verdict == 0

    def __bool__(self) -> bool:
        return self.verdict == 0

    @property
    def reason(self) -> str:
        """The name of the verdict, such as ``RATE_LIMITED``."""
        return self.verdict.name

    @property
    def remaining(self) -> int | None:
        """What is left of the limit that decided; ``None`` if none did."""
        return None if self.limit is None else self.limit.remaining

    @property
    def retry_after(self) -> int | None:
        """Whole seconds until the same request would be admitted, as ``Retry-After`` states them.

        ``None`` unless the verdict is ``RATE_LIMITED``. They are rounded up.
        """
        return -(-self.retry_after_ms // 1000) if self.verdict == Verdict.RATE_LIMITED else None

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the key, decoded; empty if there is none or the request did not ask for it.

        :raises ValueError: if it is no JSON object
        """
        if self._metadata is None:
            return {}
        metadata = json.loads(self._metadata)
        if not isinstance(metadata, dict):
            raise ValueError("the metadata of the key is no JSON object")
        return metadata

    def __repr__(self) -> str:
        fields = ("key_id", "owner", "environment", "plan", "limit", "balances")
        values = ((name, getattr(self, name)) for name in fields)
        stated = "".join(f", {name}={value!r}" for name, value in values if value)
        return f"Decision({self.reason}{stated})"
