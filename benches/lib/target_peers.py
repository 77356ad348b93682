"""Targets beside peers that misbehave: latency of another client, and the daemon's memory."""

import json, os, subprocess, sys, time
from pathlib import Path

from . import format, keys, loadgen
from .daemon import Keyward
from .server import TIMEOUT
from .target_table import Measurement, Row
from .tools import log

BAD_PEERS = Path(__file__).with_name("bad_peers.py")
CONNECTIONS = 1000
# A shorter measurement leaves no time beside the peers.
MIN_SECONDS = 3
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
    key_count, seconds = args.keys or 100_000, max(args.seconds, MIN_SECONDS)
    source = workdir.path("keys.csv")
    keys.write_export(source, key_count)
    keys.write_digests(workdir.path("digests"), key_count)
    daemon = TolerantKeyward(workdir, source=source)
    steady, beside, early, late = [], [], [], []
    with daemon.running(key_count, {workdir.second_cpu}):
        for number in range(args.rounds):
            steady.append(p99(daemon, max(1, seconds / 4)))
            with Peers(daemon, seconds) as peers:
                time.sleep(seconds * WARM_UP_SHARE)
                require_connected(daemon)
                early.append(daemon.memory("VmRSS"))
                beside.append(p99(daemon, seconds * (1 - WARM_UP_SHARE) - 1))
                late.append(daemon.memory("VmRSS"))
                actions = peers.finish()
            log(
                f"round {number + 1} of {args.rounds}: {format.nanoseconds(steady[-1])} steady, "
                f"{format.nanoseconds(beside[-1])} beside the peers, {early[-1]:,} to {late[-1]:,} bytes, "
                f"actions: {actions}"
            )
        version = daemon.version()
    setting = (
        f"{key_count:,} keys; {args.rounds} rounds of {seconds:.0f} s; the worker on the second "
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
        f"resident memory after {seconds:.0f} s of them",
        Measurement("", late, format.size),
        Measurement(
            f"after {seconds * WARM_UP_SHARE:.0f} s, and 4 MiB",
            [it + MEMORY_TOLERANCE for it in early],
            format.size,
        ),
        ("<=", 1.0),
        setting,
    )
    return [latency, memory], [version], []


def p99(daemon, seconds):
    """p99 of a polite client, in nanoseconds."""
    return loadgen.polite(daemon, seconds)["latency_ns"]["p99"]


class Peers:
    """Peers that misbehave for `seconds`. None is left at the end of the block."""

    def __init__(self, daemon, seconds):
        self.daemon, self.seconds = daemon, seconds

    def __enter__(self):
        cpu = self.daemon.workdir.first_cpu
        self.process = subprocess.Popen(
            [sys.executable, "-B", BAD_PEERS, self.daemon.socket, str(CONNECTIONS), str(self.seconds)],
            stdout=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
        )
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def finish(self):
        """Waits until they end. Returns the number of their actions of each kind."""
        output, _ = self.process.communicate(timeout=TIMEOUT + self.seconds)
        if self.process.returncode != 0:
            raise RuntimeError(f"the peers failed: exit code {self.process.returncode}")
        return json.loads(output)


def require_connected(daemon):
    """Raises unless most of the peers are connected. Some are always about to connect again."""
    connections = (daemon.status() or {}).get("connections", 0)
    if connections < CONNECTIONS // 2:
        raise RuntimeError(f"only {connections} of {CONNECTIONS} peers are connected")
