"""One load by one client for all servers, `keyward bench`: what it measured, or why that is nothing."""

import json, subprocess

from .server import PATIENCE

# What a server says to a request that went as it should.
GOOD = {"ALLOWED", "hit", "allowed", "echoed"}
# Of the measured time, before it.
WARM_UP = 0.25
SHORTEST_WARM_UP = 0.02


def load(server, target, case, seconds, *, rate=None):
    """`bench`'s own figures, its histogram apart. The client is on the place's first processor."""
    place = server.place
    command = [
        place.binary,
        "bench",
        "--socket",
        server.socket,
        "--target",
        target,
        "--digests",
        place.path("digests"),
        "--connections",
        str(case.connections),
        "--depth",
        str(case.depth),
        "--pin",
        str(place.first),
        "--warmup",
        milliseconds(max(SHORTEST_WARM_UP, seconds * WARM_UP)),
        "--duration",
        milliseconds(seconds),
        "--json",
    ]
    command += ["--busy-poll"] if case.spinning else []
    command += ["--rate", str(rate)] if rate else []
    command += ["--answer-size", str(server.answer_size)] if target == "echo" else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE + 2 * seconds)
    if done.returncode != 0:
        raise RuntimeError(f"{server.name}, {case.name}: {done.stderr.strip()}")
    figures = json.loads(done.stdout)
    if (
        figures["errors"]
        or figures["unanswered"]
        or not set(figures["outcomes"]) <= GOOD
        or not figures["answers"]
    ):
        outcomes = f"{figures['outcomes']} {figures['errors']}"
        raise RuntimeError(f"{server.name}, {case.name}: not every answer was the right one: {outcomes}")
    del figures["histogram_ns"]
    return figures


def milliseconds(seconds):
    return f"{seconds * 1000:.0f}ms"
