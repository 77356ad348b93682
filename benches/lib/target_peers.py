"""Targets beside peers that misbehave: latency of another client, and the daemon's memory."""

import json, os, subprocess, sys, time

from . import cases, format, keys, loadgen
from .bad_peers import __file__ as BAD_PEERS
from .daemon import Keyward
from .server import TIMEOUT
from .target_table import Measurement, Row
from .tools import log

POLITE = cases.Case(
    "a polite client",
    "1 connection, 1 request at a time, client and server on separate cores",
    separate_cpus=True,
)
CONNECTIONS = 1000
# Share of the time after which the memory that the peers occupy no longer grows.
WARM_UP_SHARE = 0.2
# Growth of resident memory that does not count, in bytes: fragments of the allocator.
MEMORY_TOLERANCE = 4 << 20


class TolerantKeyward(Keyward):
    """keyward that disconnects a peer that does not read within the measurement."""

    server_settings = f'{Keyward.server_settings}\nidle_timeout = "5s"\nmax_connections = 2000'


def row(workdir, args):
    """`peers`: p99 of a polite client beside 1,000 peers that misbehave, and memory."""
    if workdir.second_cpu is None:
        return [], [], ["clients need a processor of their own"]
    key_count = args.keys or 100_000
    source = workdir.path("keys.csv")
    keys.write_export(source, key_count)
    keys.write_digests(workdir.path("digests"), key_count)
    daemon = TolerantKeyward(workdir, source=source)
    steady, beside, early, late = [], [], [], []
    with daemon.running(key_count, {workdir.second_cpu}):
        for number in range(args.rounds):
            steady.append(polite(daemon, max(1, args.seconds / 4)))
            peers = start_peers(daemon, args.seconds)
            time.sleep(args.seconds * WARM_UP_SHARE)
            early.append(daemon.memory("VmRSS"))
            remaining = args.seconds * (1 - WARM_UP_SHARE) - 1
            beside.append(polite(daemon, remaining))
            late.append(daemon.memory("VmRSS"))
            output, _ = peers.communicate(timeout=TIMEOUT + args.seconds)
            log(
                f"round {number + 1} of {args.rounds}: {format.nanoseconds(steady[-1])} steady, "
                f"{format.nanoseconds(beside[-1])} beside the peers, {early[-1]:,} to {late[-1]:,} bytes, "
                f"actions: {json.loads(output)}"
            )
        version = daemon.version()
    setting = (
        f"{key_count:,} keys; {args.rounds} rounds of {args.seconds:.0f} s; the worker on the second "
        f"processor, all clients on the first; {CONNECTIONS:,} connections in equal parts slow, "
        "half-closed, not reading and passing descriptors"
    )
    latency = Row(
        f"p99 beside {CONNECTIONS:,} peers that misbehave",
        Measurement("", beside, format.nanoseconds),
        Measurement("p99 without them", steady, format.nanoseconds),
        ("<=", 2.0),
        setting,
    )
    memory = Row(
        f"resident memory after {args.seconds:.0f} s of them",
        Measurement("", late, format.size),
        Measurement(f"after {args.seconds * WARM_UP_SHARE:.0f} s, and 4 MiB", [it + MEMORY_TOLERANCE for it in early], format.size),
        ("<=", 1.0),
        setting,
    )
    return [latency, memory], [version], []


def polite(daemon, seconds):
    """p99 of one request at a time, in nanoseconds. Raises unless all are answered."""

    def prepare():
        if os.geteuid() == 0:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    return loadgen.run(daemon, "keyward", POLITE, seconds, prepare=prepare)["latency_ns"]["p99"]


def start_peers(daemon, seconds):
    cpu = daemon.workdir.first_cpu
    return subprocess.Popen(
        [sys.executable, "-B", BAD_PEERS, daemon.socket, str(CONNECTIONS), str(seconds)],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
    )
