"""Targets for tail latency: p99 while keys are reloaded, and while the last good keys are written."""

import os, threading, time

from . import cases, format, keys, loadgen
from .daemon import Keyward
from .target_table import OVERLAP, Measurement, Row
from .tools import log

# The rate of the open loop, in requests per second. It leaves a worker idle most of the time, so that
# every pause of the daemon shows and pauses do not add up.
OPEN_LOOP_RATE = 20_000
OPEN_LOOP = cases.Case(
    "an open loop",
    "4 connections, 20,000 requests a second whatever the daemon does, client and server on one core",
    connections=4,
    depth=256,
)
# Length of a measurement in reloads. It contains at least one whole reload, with swap and freeing.
RELOADS_PER_MEASUREMENT = 1.3


def during_reloads(workdir, args):
    """`reload-p99`: p99 while one reload follows another, against p99 without reloads."""
    key_count = args.keys or 10_000_000
    exports = keys.AlternatingExports(workdir, key_count)
    # The first key is left out, because the exports differ in it.
    keys.write_digests(workdir.path("digests"), key_count, first=1)
    has_second_cpu = workdir.second_cpu is not None
    notes = [] if has_second_cpu else ["there is only one processor, which reloads share with the worker"]
    daemon = Keyward(workdir)
    with daemon.running(key_count, {workdir.second_cpu if has_second_cpu else workdir.first_cpu}):
        daemon.pin({workdir.first_cpu}, thread_prefix="worker-")
        exports.publish()
        reload_time = daemon.reload()
        seconds = max(args.seconds, reload_time * RELOADS_PER_MEASUREMENT)
        log(f"a reload takes {reload_time:.1f} s; each measurement takes {seconds:.1f} s")
        loads = {
            "closed": lambda: loadgen.run(daemon, "keyward", cases.ONE_CORE, seconds),
            "open": lambda: loadgen.run(daemon, "keyward", OPEN_LOOP, seconds, rate=OPEN_LOOP_RATE),
        }
        steady, reloading = ({name: [] for name in loads} for _ in range(2))
        for number in range(args.rounds):
            for name, load in loads.items():
                steady[name].append(load()["latency_ns"]["p99"])
                with ReloadLoop(daemon, exports):
                    reloading[name].append(load()["latency_ns"]["p99"])
            log(f"round {number + 1} of {args.rounds}")
        version = daemon.version()
    note = (
        f"{key_count:,} keys in CSV; {args.rounds} rounds of {seconds:.1f} s; a reload takes "
        f"{reload_time:.1f} s and the next one follows at once; worker and client run on the first "
        f"processor, the daemon's other threads on the second. The open loop: {OPEN_LOOP.description}; latency counts "
        "from when a request was due"
    )
    descriptions = {"closed": "1 request at a time", "open": f"{OPEN_LOOP_RATE:,} a second, open loop"}
    rows = [
        Row(
            f"p99 while {format.count(key_count)} keys reload, {descriptions[name]}",
            Measurement("", reloading[name], format.nanoseconds),
            Measurement("p99 steady", steady[name], format.nanoseconds),
            ("<=", 1.5),
            note,
        )
        for name in loads
    ]
    return rows, [version], notes


class ReloadLoop:
    """Reloads changed exports one after another, in a thread, until the end of the block."""

    def __init__(self, daemon, exports):
        self.daemon, self.exports, self.done, self.error = daemon, exports, threading.Event(), None
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            while not self.done.is_set():
                self.exports.publish()
                self.daemon.reload()
        except Exception as error:
            self.error = error

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        if self.error:
            raise self.error


def while_saving_last_good(workdir, args):
    """`keeping`: p99 right after a reload, while its keys are written to the state directory.

    The reference has state.keep_snapshot = false. Each runs in its own daemon, so that neither has the
    other's memory beside it.
    """
    key_count = args.keys or 10_000_000
    source = workdir.path("keys.csv")
    keys.write_export(source, key_count)
    keys.write_digests(workdir.path("digests"), key_count)
    saving, not_saving, notes, versions = [], [], set(), []
    for number in range(args.rounds):
        for saves, latencies in ((True, saving), (False, not_saving)):
            daemon = Keyward(workdir, f"keyward-{number}-{saves}", source)
            daemon.extra_config = f"[state]\nkeep_snapshot = {str(saves).lower()}\n"
            with daemon.running(key_count, workdir.cpus):
                versions.append(daemon.version())
                daemon.pin({workdir.first_cpu}, thread_prefix="worker-")
                if saves:
                    daemon.wait_until_last_good_saved()
                # A new modification time makes the unchanged file a new one to the daemon.
                os.utime(source)
                daemon.reload()
                start = time.monotonic()
                figures = loadgen.run(daemon, "keyward", cases.ONE_CORE, args.seconds)
                latencies.append(figures["latency_ns"]["p99"])
                if saves:
                    if daemon.has_saved_last_good():
                        notes.add("in one round the keys were written before the load ended")
                    daemon.wait_until_last_good_saved()
                    log(f"keys written {time.monotonic() - start:.1f} s after the reload")
        log(f"round {number + 1} of {args.rounds}")
    row = Row(
        f"p99 while {format.count(key_count)} keys are written as last good keys, 1 request at a time",
        Measurement("", saving, format.nanoseconds),
        Measurement("with state.keep_snapshot = false", not_saving, format.nanoseconds),
        OVERLAP,
        f"{key_count:,} keys in CSV; {args.rounds} rounds of {args.seconds:.1f} s each, right after a "
        "reload; worker and client run on the first processor, the daemon's other threads on both",
    )
    return [row], versions[:1], sorted(notes)
