"""Targets for fairness: what a polite client waits while other connections keep the worker busy."""

import json, os, signal, subprocess, time

from . import format, keys, loadgen
from .daemon import Keyward
from .server import TIMEOUT
from .target_table import Measurement, Row
from .tools import log, run

# Connections of the busy client.
BUSY_CONNECTIONS = (64, 1000)
# Requests that a busy connection writes at a time: they fill the daemon's input buffer.
BUSY_DEPTH = 700
# Requests that a connection is answered in one turn, at most: INPUT_BYTES / 48.
REQUESTS_PER_TURN = 683
# The uid and gid of the polite client where it is not the busy client's: `nobody`.
OTHER_UID = 65534
# Seconds in which a revocation has to be acknowledged.
MAX_REVOCATION = 1.0


class OpenKeyward(Keyward):
    """keyward with a socket that every user may connect to."""

    server_settings = f'{Keyward.server_settings}\nsocket_mode = "0666"\nmax_connections = 2000'


def row(workdir, args):
    """`fairness`: p99 of a polite client beside a busy one, of another uid and of the same."""
    key_count = args.keys or 1_000_000
    if workdir.second_cpu is None:
        return [], [], ["clients need a processor of their own"]
    uids = {"another uid": OTHER_UID, "the same uid": None} if os.geteuid() == 0 else {"the same uid": None}
    notes = [] if os.geteuid() == 0 else ["without root, there is no client of another uid"]
    source = workdir.path("keys.csv")
    keys.write_export(source, key_count)
    # The first key is left to the revocations.
    keys.write_digests(workdir.path("digests"), key_count, first=1)
    rows = []
    daemon = OpenKeyward(workdir, source=source)
    with daemon.running(key_count, {workdir.first_cpu}):
        daemon.pin({workdir.second_cpu}, "worker-")
        for connections in BUSY_CONNECTIONS:
            for whose, uid in uids.items():
                measured, bounds, revocations = [], [], []
                for number in range(args.rounds):
                    steady = loadgen.polite(daemon, args.seconds / 4, uid)["latency_ns"]["p99"]
                    with Busy(daemon, connections, args.seconds) as busy:
                        figures = loadgen.polite(daemon, args.seconds, uid)
                        revocations.append(revoke(daemon))
                    turn = REQUESTS_PER_TURN / busy.rate * 1e9
                    turns = 1 if uid else connections
                    measured.append(figures["latency_ns"]["p99"])
                    bounds.append(steady + turns * turn)
                    log(
                        f"{whose}, {connections} connections, round {number + 1} of {args.rounds}: "
                        f"{format.nanoseconds(steady)} steady, a turn takes {format.nanoseconds(turn)}, "
                        f"{busy.rate:,.0f} requests a second, revoked in {revocations[-1]:.3f} s"
                    )
                if max(revocations) > MAX_REVOCATION:
                    raise RuntimeError(f"a revocation took {max(revocations):.3f} s")
                rows.append(
                    Row(
                        f"p99 beside {connections} busy connections of {whose}",
                        Measurement("", measured, format.nanoseconds),
                        Measurement(
                            f"p99 steady + {'one turn' if uid else 'one turn of each'}",
                            bounds,
                            format.nanoseconds,
                        ),
                        ("<=", 1.0),
                        f"{key_count:,} keys; {args.rounds} rounds of {args.seconds:.1f} s; the worker alone on the "
                        "second processor, the daemon's other threads and both clients on the first, where the "
                        f"polite client has the higher priority; each busy connection writes {BUSY_DEPTH} requests at "
                        "a time. One turn is the mean time of a turn. Revocations under this load were acknowledged in "
                        f"{max(revocations):.3f} s at most",
                    )
                )
        version = daemon.version()
    return rows, [version], notes


def revoke(daemon):
    """Seconds until a revocation of the first key is acknowledged. It is lifted again."""
    socket = daemon.directory / "admin.sock"
    key_id = keys.key_id(0)
    start = time.monotonic()
    run([daemon.workdir.binary, "revoke", "--admin-socket", socket, key_id], timeout=TIMEOUT)
    took = time.monotonic() - start
    run([daemon.workdir.binary, "unrevoke", "--admin-socket", socket, key_id], timeout=TIMEOUT)
    return took


class Busy:
    """A client that keeps its connections filled with requests until the end of the block."""

    def __init__(self, daemon, connections, seconds):
        self.daemon, self.connections, self.seconds = daemon, connections, seconds
        self.rate = 0

    def __enter__(self):
        workdir = self.daemon.workdir
        self.process = subprocess.Popen(
            [
                *(workdir.loadgen, "--socket", self.daemon.socket, "--digests", workdir.path("digests")),
                *("--connections", str(self.connections), "--depth", str(BUSY_DEPTH)),
                *("--pin", str(workdir.first_cpu), "--warmup", "500ms", "--json"),
                *("--duration", loadgen.milliseconds(2 * self.seconds + 5)),
            ],
            stdout=subprocess.PIPE,
        )
        time.sleep(1)
        return self

    def __exit__(self, *_):
        # It prints the figures so far.
        self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=TIMEOUT)
        figures = json.loads(output)
        self.rate = figures["answers"] / figures["seconds"]
