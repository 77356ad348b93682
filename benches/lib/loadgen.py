"""Runs one load with `keyward-bench`, the load generator for all servers."""

import json, os, subprocess

from . import cases
from .server import TIMEOUT

# Outcomes of a request that succeeded, as each server reports them.
SUCCESSES = {"ALLOWED", "hit", "allowed", "echoed"}
# Warm-up time as a share of the measured time, and its minimum in seconds.
WARM_UP_SHARE = 0.25
MIN_WARM_UP = 0.02
POLITE = cases.Case(
    "a polite client",
    "1 connection, 1 request at a time, client and server on separate cores",
    separate_cpus=True,
)


def run(server, target, case, seconds, *, rate=None, prepare=None):
    """Returns the figures of `keyward-bench`, without its histogram.

    The client runs on the first processor; `prepare` is called in its process first. Raises
    RuntimeError unless every request succeeded.
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


def polite(daemon, seconds, uid=None):
    """The figures of one request at a time, from a process of higher priority than other clients."""

    def prepare():
        if os.geteuid() == 0:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        if uid:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)

    return run(daemon, "keyward", POLITE, seconds, prepare=prepare)


def milliseconds(seconds):
    return f"{seconds * 1000:.0f}ms"
