"""Runs one load with `keyward-bench`, the load generator for all servers."""

import json, subprocess

from .server import TIMEOUT

# Outcomes of a request that succeeded, as each server reports them.
SUCCESSES = {"ALLOWED", "hit", "allowed", "echoed"}
# Warm-up time as a share of the measured time, and its minimum in seconds.
WARM_UP_SHARE = 0.25
MIN_WARM_UP = 0.02


def run(server, target, case, seconds, *, rate=None, prepare=None):
    """Returns the figures of `keyward-bench`, without its histogram.

    The client runs on the first processor; `prepare` is called in its process first. Raises RuntimeError unless every request succeeded.
    """
    workdir = server.workdir
    command = [
        workdir.loadgen,
        "--socket",
        server.socket,
        "--target",
        target,
        "--digests",
        workdir.path("digests"),
        "--connections",
        str(case.connections),
        "--depth",
        str(case.depth),
        "--pin",
        str(workdir.first_cpu),
        "--warmup",
        milliseconds(max(MIN_WARM_UP, seconds * WARM_UP_SHARE)),
        "--duration",
        milliseconds(seconds),
        "--json",
    ]
    command += ["--busy-poll"] if case.spinning else []
    command += ["--rate", str(rate)] if rate else []
    command += ["--answer-size", str(server.answer_size)] if target == "echo" else []
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT + 2 * seconds, preexec_fn=prepare
    )
    if process.returncode != 0:
        raise RuntimeError(f"{server.name}, {case.name}: {process.stderr.strip()}")
    figures = json.loads(process.stdout)
    if (
        figures["errors"]
        or figures["unanswered"]
        or not set(figures["outcomes"]) <= SUCCESSES
        or not figures["answers"]
    ):
        outcomes = f"{figures['outcomes']} {figures['errors']}"
        raise RuntimeError(f"{server.name}, {case.name}: some requests did not succeed: {outcomes}")
    del figures["histogram_ns"]
    return figures


def milliseconds(seconds):
    return f"{seconds * 1000:.0f}ms"
