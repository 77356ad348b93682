"""The load shapes that are measured: connections, depth, and where client and server run."""

from typing import NamedTuple

# The metrics that a case can report: the median time of one request, or answers per second.
LATENCY, THROUGHPUT = "latency", "throughput"


class Case(NamedTuple):
    name: str
    description: str
    connections: int = 1
    # Requests that each connection writes before it reads their answers.
    depth: int = 1
    # Whether client and server run on separate processors.
    separate_cpus: bool = False
    # Whether client and server spin instead of sleeping.
    spinning: bool = False
    metric: str = LATENCY


ONE_CORE = Case(
    "1 request at a time, one core", "1 connection, 1 request at a time, client and server on one core"
)
TWO_CORES = Case(
    "1 request at a time, two cores",
    "1 connection, 1 request at a time, client and server on separate cores",
    separate_cpus=True,
)
SPINNING = Case(
    "1 request at a time, both spinning",
    "1 connection, 1 request at a time, client and server spinning on separate cores",
    separate_cpus=True,
    spinning=True,
)
PIPELINED = Case(
    "128 deep, one core",
    "1 connection, 128 requests per write, client and server on one core",
    depth=128,
    metric=THROUGHPUT,
)
PIPELINED_TWO_CORES = Case(
    "128 deep, two cores",
    "1 connection, 128 requests per write, client and server on separate cores",
    depth=128,
    separate_cpus=True,
    metric=THROUGHPUT,
)
SIXTEEN_CONNECTIONS = Case(
    "16 connections, one core",
    "16 connections, 1 request at a time on each, client and server on one core",
    connections=16,
    metric=THROUGHPUT,
)

ALL = [ONE_CORE, TWO_CORES, PIPELINED, PIPELINED_TWO_CORES, SIXTEEN_CONNECTIONS, SPINNING]
