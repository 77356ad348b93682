"""Targets of what is served: round trips, pipelined load and many connections, against the echo and Redis."""

from . import cases, rounds, servers, format
from .target_table import Row, Side

ECHO, GET, LUA = "raw echo", "Redis GET", "Redis Lua token bucket"

# Sub-command: its case, the servers besides keyward, and what is asked: (against, sign, ratio).
ROWS = {
    "round-trip": (cases.ONE_CORE, ["echo", "redis"], [(ECHO, "<=", 1.2), (GET, "<=", 1)]),
    "busy-poll": (cases.SPINNING, ["echo"], [(ECHO, "<=", 1.3)]),
    "pipelined": (
        cases.DEEP,
        ["echo", "redis", "redis-bucket"],
        [(ECHO, ">=", 0.55), (GET, ">=", 6), (LUA, ">=", 60)],
    ),
    "connections": (cases.SIXTEEN, ["echo", "redis"], [(ECHO, ">=", 0.85), (GET, ">=", 1)]),
}


def server_names(name):
    return ["keyward", *ROWS[name][1]]


def measure(name, place, options):
    """(rows, versions, notes)."""
    case, _, bounds = ROWS[name]
    with servers.Stage(place, options.keys or 1_000_000) as servers_with_keys:
        servers_with_keys.start(server_names(name), spinning=case.spinning)
        measured = rounds.measure(servers_with_keys, [case], options.rounds, options.seconds).get(case, {})
        versions, notes = servers_with_keys.versions(), servers_with_keys.notes
    unit = format.rate if case.show == cases.RATE else format.time
    side = lambda label: Side(label, measured[label].values(case), unit)
    note = f"{servers_with_keys.count:,} keys, {case.what}, {options.rounds} rounds of {options.seconds:g} s"
    rows = [
        Row(case.name, side("keyward"), side(against), (sign, limit), note)
        for against, sign, limit in bounds
        if "keyward" in measured and against in measured
    ]
    return rows, versions, notes
