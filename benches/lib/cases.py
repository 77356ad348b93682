"""What is asked of servers: how many connections, how many requests at once, and where the two ends are."""

from typing import NamedTuple

LATENCY, RATE = "latency", "rate"


class Case(NamedTuple):
    name: str
    # For people.
    what: str
    connections: int = 1
    # Requests that each connection writes at once.
    depth: int = 1
    # Whether the server has a processor of its own.
    apart: bool = False
    # Whether both ends spin instead of sleeping.
    spinning: bool = False
    # What is looked at: the median time of a request, or answers a second.
    show: str = LATENCY


ONE_CORE = Case("1 request at a time, one core", "1 connection, 1 request at a time, both ends on one core")
TWO_CORES = Case(
    "1 request at a time, two cores", "1 connection, 1 request at a time, an end on each of two cores", apart=True
)
SPINNING = Case(
    "1 request at a time, both spinning",
    "1 connection, 1 request at a time, both ends spinning, each on a core",
    apart=True,
    spinning=True,
)
DEEP = Case(
    "128 deep, one core", "1 connection, 128 requests at once, both ends on one core", depth=128, show=RATE
)
DEEP_APART = Case(
    "128 deep, two cores",
    "1 connection, 128 requests at once, an end on each of two cores",
    depth=128,
    apart=True,
    show=RATE,
)
SIXTEEN = Case(
    "16 connections, one core",
    "16 connections, 1 request at a time on each, both ends on one core",
    connections=16,
    show=RATE,
)

ALL = [ONE_CORE, TWO_CORES, DEEP, DEEP_APART, SIXTEEN, SPINNING]
