"""Targets for requests: round trips, pipelining and many connections, against the echo and Redis."""

from . import cases, format, rounds, servers
from .target_table import Measurement, Row

ECHO, GET, LUA = "raw echo", "Redis GET", "Redis Lua token bucket"

# Row: its case, the servers besides keyward, and its bounds as (reference, comparison, ratio).
ROWS = {
    "round-trip": (cases.ONE_CORE, ["echo", "redis"], [(ECHO, "<=", 1.2), (GET, "<=", 1)]),
    "busy-poll": (cases.SPINNING, ["echo"], [(ECHO, "<=", 1.3)]),
    "pipelined": (
        cases.PIPELINED,
        ["echo", "redis", "redis-bucket"],
        [(ECHO, ">=", 0.55), (GET, ">=", 6), (LUA, ">=", 60)],
    ),
    "connections": (cases.SIXTEEN_CONNECTIONS, ["echo", "redis"], [(ECHO, ">=", 0.85), (GET, ">=", 1)]),
}


def server_names(name):
    return ["keyward", *ROWS[name][1]]


def measure(name, workdir, args):
    """Returns (rows, versions, notes)."""
    case, _, bounds = ROWS[name]
    with servers.ServerGroup(workdir, args.keys or 1_000_000) as group:
        group.start(server_names(name), spinning=case.spinning)
        measured = rounds.measure(group, [case], args.rounds, args.seconds).get(case, {})
        versions, notes = group.versions(), group.notes
    formatter = format.rate if case.metric == cases.THROUGHPUT else format.nanoseconds
    measurement = lambda label: Measurement(label, measured[label].values(case), formatter)
    note = f"{group.key_count:,} keys, {case.description}, {args.rounds} rounds of {args.seconds:g} s"
    rows = [
        Row(case.name, measurement("keyward"), measurement(reference), (comparison, ratio), note)
        for reference, comparison, ratio in bounds
        if "keyward" in measured and reference in measured
    ]
    return rows, versions, notes
