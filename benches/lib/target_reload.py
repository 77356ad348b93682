"""Targets of loading: a PostgreSQL export until it is in force, a compiled snapshot until it is served, and what reloads do to
the requests beside them and to memory."""

import hashlib, itertools, os, shutil, threading, time
from contextlib import ExitStack

from . import cases, loadgen, keys, machine, probe, rounds, format
from .daemon import Keyward, compile_export
from .postgres import PLAIN_TABLE, REAL_TABLE, Postgres
from .tools import log
from .target_table import OVERLAP, Row, Side

# A load at a fixed rate: one that leaves a worker idle most of the time, so that every pause shows and none adds up.
OPEN_RATE = 20_000
OPEN = cases.Case(
    "an open loop",
    "4 connections, 20,000 requests a second whatever the daemon does, both ends on one core",
    connections=4,
    depth=256,
)
# Bytes that a source lacks that was cut short.
CUT = 20
# Of a reload's own time, how long the load beside it is measured: one is whole in it, with its swap and its freeing.
WHOLE_RELOADS = 1.3


def started(stack, server, count=0, processors=None):
    stack.callback(server.stop)
    server.start(count, processors)
    return server


def seconds(value):
    return format.time(value * 1e9)


def exported(place, options):
    """`reload`: COPY to a file, timed; then its rename and the reload, timed, of a daemon that has such a set already."""
    count, rows, versions = options.keys or 1_000_000, [], []
    both = {place.first, place.second} - {None}
    for what, table in (("a real table's columns", REAL_TABLE), ("hash, id, owner, limit", PLAIN_TABLE)):
        with ExitStack() as stack:
            postgres = started(stack, Postgres(place, f"postgres-{table is REAL_TABLE}"), processors=both)
            versions.append(postgres.version())
            postgres.psql(table.format(rows=count))
            postgres.psql("VACUUM (ANALYZE, FREEZE) exported")
            fresh, source = postgres.directory / "fresh.csv", place.path(f"exported-{table is REAL_TABLE}.csv")
            copy = lambda: postgres.psql(f"COPY exported TO '{fresh}' WITH (FORMAT csv, HEADER)")
            copy()
            os.rename(fresh, source)
            daemon = started(stack, Keyward(place, f"keyward-{table is REAL_TABLE}", source), processors=both)
            copies, reloads = [], []
            for number in range(options.rounds):
                # As exports do, it differs from the one before.
                postgres.psql(
                    f"UPDATE exported SET status = '{['revoked', 'active'][number % 2]}' WHERE key_id = 'id_1'"
                )
                copies.append(copy())
                # A reload needs a second table for a while.
                machine.touch(daemon.memory("VmRSS"))
                start = time.monotonic()
                os.rename(fresh, source)
                daemon.reload()
                reloads.append(time.monotonic() - start)
            versions.append(daemon.version())
        rows.append(
            Row(
                f"{format.count(count)} rows of CSV ({what}), from rename to acknowledged",
                Side("", reloads, seconds),
                Side("PostgreSQL's COPY that wrote it", copies, seconds),
                ("<=", 1),
                f"{options.rounds} rounds; the daemon has such a set already; both may use all processors; as much memory as it has is "
                "written to and freed right before the reload (as for `compiled`)",
            )
        )
    return rows, list(dict.fromkeys(versions)), []


def compiled(place, options):
    """`compiled`: from the start of the daemon to the first ALLOWED."""
    count = options.keys or 10_000_000
    source, snapshot = place.path("keys.csv"), place.path("keys.kwc")
    keys.write_export(source, count)
    log(f"compiling {count:,} keys")
    compile_export(place, source, snapshot)
    os.remove(source)
    digest, both = next(keys.digests(count)), {place.first, place.second} - {None}
    serving, untouched, hashing = [], [], []
    digest_of(snapshot)

    def start(name, into):
        with ExitStack() as stack:
            daemon = Keyward(place, name, snapshot)
            stack.callback(daemon.stop)
            # What `start` does besides is not waited for.
            daemon.wait = lambda: probe.until_allowed(daemon.socket, digest, 300)
            into.append(timed(lambda: daemon.start(count, both)))
            return daemon.memory("VmHWM"), daemon.version()

    for number in range(options.rounds):
        time.sleep(machine.GIVEN_BACK)
        needed, version = start(f"untouched-{number}", untouched)
        hashing.append(timed(lambda: digest_of(snapshot)))
        machine.touch(needed)
        start(f"keyward-{number}", serving)
        log(f"round {number + 1} of {options.rounds}")
    first_touch = (
        "memory that the daemon needs has been written to and freed right before its start: a virtual machine that gives free memory back "
        f"lets the first to touch it wait for the host; {seconds(rounds.median(untouched))} where it has not"
    )
    row = Row(
        f"compiled, {format.count(count)} keys, from start to the first ALLOWED",
        Side("", serving, seconds),
        Side(
            f"reading the file ({format.size(snapshot.stat().st_size)}) and taking its SHA-256", hashing, seconds
        ),
        ("<=", 2),
        f"{options.rounds} rounds; the file is in the page cache; SHA-256 by Python's hashlib (OpenSSL); {first_touch}",
    )
    return [row], [version], []


def last_good(place, options):
    """`last-good`: a start beside a source that is cut short, against one beside the whole source."""
    count = options.keys or 10_000_000
    source, snapshot, cut = place.path("keys.csv"), place.path("keys.kwc"), place.path("cut.kwc")
    keys.write_export(source, count)
    log(f"compiling {count:,} keys")
    compile_export(place, source, snapshot)
    os.remove(source)
    shutil.copyfile(snapshot, cut)
    os.truncate(cut, cut.stat().st_size - CUT)
    digest, both = next(keys.digests(count)), {place.first, place.second} - {None}
    whole, beside = [], []
    for number in range(options.rounds):
        with ExitStack() as stack:
            daemon = Keyward(place, f"keyward-{number}", snapshot)
            stack.callback(daemon.stop)
            daemon.wait = lambda: probe.until_allowed(daemon.socket, digest, 300)
            # The first has no last good keys yet, and is where memory that is needed is touched first.
            daemon.start(count, both)
            needed, version = daemon.memory("VmHWM"), daemon.version()
            daemon.until("the keys are kept", lambda: kept(daemon), every=0.05)
            for name, into in ((snapshot, whole), (cut, beside)):
                daemon.stop()
                daemon.source = name
                machine.touch(needed)
                into.append(timed(lambda: daemon.start(count, both)))
            if not daemon.status()["last_good"]["in_use"]:
                raise RuntimeError("the source that is cut short was not refused")
        log(f"round {number + 1} of {options.rounds}")
    row = Row(
        f"last good keys, {format.count(count)}, from start beside a bad source to the first ALLOWED",
        Side("", beside, seconds),
        Side("a compiled start", whole, seconds),
        ("<=", 1.5),
        f"{options.rounds} rounds; the source is a compiled snapshot, for the one start cut by {CUT} bytes, which is noticed in its header; "
        "both files are in the page cache; as much memory as is needed is written to and freed right before each start",
    )
    return [row], [version], []


def beside_keeping(place, options):
    """`keeping`: the same load right after a reload, while its keys are written to the state directory, and with
    state.keep_snapshot = false; by turns."""
    count = options.keys or 10_000_000
    source = place.path("keys.csv")
    keys.write_export(source, count)
    keys.write_digests(place.path("digests"), count)
    both, waits, versions = {place.first, place.second} - {None}, [], []
    writing, without = [], []
    for number in range(options.rounds):
        # Each in a daemon of its own, so that neither has the other's memory beside it.
        for keeps, into in ((True, writing), (False, without)):
            with ExitStack() as stack:
                daemon = Keyward(place, f"keyward-{number}-{keeps}", source)
                daemon.rest = f"[state]\nkeep_snapshot = {str(keeps).lower()}\n"
                started(stack, daemon, count, both)
                versions.append(daemon.version())
                daemon.pin({place.first}, thread="worker-")
                if keeps:
                    daemon.until("the keys are kept", lambda: kept(daemon), every=0.05)
                # The same content again, which is another file as far as the daemon can tell.
                os.utime(source)
                daemon.reload()
                begun = time.monotonic()
                into.append(loadgen.load(daemon, "keyward", cases.ONE_CORE, options.seconds)["latency_ns"]["p99"])
                if keeps:
                    if kept(daemon):
                        waits.append("in one round the keys were kept before the load ended")
                    daemon.until("the keys are kept", lambda: kept(daemon), every=0.05)
                    log(f"kept {time.monotonic() - begun:.1f} s after the reload")
        log(f"round {number + 1} of {options.rounds}")
    row = Row(
        f"p99 while {format.count(count)} keys are kept, 1 request at a time",
        Side("", writing, format.time),
        Side("with state.keep_snapshot = false", without, format.time),
        OVERLAP,
        f"{count:,} keys in CSV; {options.rounds} rounds of {options.seconds:.1f} s each, right after a reload; worker and client on "
        "the first processor, everything else of the daemon on both",
    )
    return [row], versions[:1], sorted(set(waits))


def kept(daemon):
    status = daemon.status() or {}
    return status.get("last_good", {}).get("generation") == status.get("generation", 0)


def timed(action):
    start = time.monotonic()
    action()
    return time.monotonic() - start


def digest_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")


def two_exports(place, count):
    """Two that differ in a key; what is returned publishes them by turns, as one that was never missing."""
    source, files = place.path("keys.csv"), [place.path("one.csv"), place.path("other.csv")]
    for number, file in enumerate(files):
        keys.write_export(file, count, changed=number == 1)
    turns = itertools.cycle(files)

    def publish():
        beside = place.path("next.csv")
        os.link(next(turns), beside)
        os.rename(beside, source)

    publish()
    return publish


def beside_reloads(place, options):
    """`reload-p99`: the same load alone, and while reloads follow one upon another."""
    count = options.keys or 10_000_000
    publish = two_exports(place, count)
    # The first key is the one that exports differ in.
    keys.write_digests(place.path("digests"), count, first=1)
    notes = [] if place.second is not None else ["there is one processor: reloads had none to themselves"]
    with ExitStack() as stack:
        daemon = started(
            stack, Keyward(place), count, {place.second if place.second is not None else place.first}
        )
        daemon.pin({place.first}, thread="worker-")
        publish()
        took = daemon.reload()
        length = max(options.seconds, took * WHOLE_RELOADS)
        log(f"a reload takes {took:.1f} s; each measurement {length:.1f} s")
        loads = {
            "closed": lambda: loadgen.load(daemon, "keyward", cases.ONE_CORE, length),
            "open": lambda: loadgen.load(daemon, "keyward", OPEN, length, rate=OPEN_RATE),
        }
        steady, during = ({name: [] for name in loads} for _ in range(2))
        for number in range(options.rounds):
            for name, load in loads.items():
                steady[name].append(load()["latency_ns"]["p99"])
                with reloading(daemon, publish):
                    during[name].append(load()["latency_ns"]["p99"])
            log(f"round {number + 1} of {options.rounds}")
        version = daemon.version()
    note = (
        f"{count:,} keys in CSV; {options.rounds} rounds of {length:.1f} s; a reload takes {took:.1f} s and the next follows at "
        "once; worker and client on the first processor, everything else of the daemon on the second. "
        f"The open loop: {OPEN.what}; latency from when each was due"
    )
    what = {"closed": "1 request at a time", "open": f"{OPEN_RATE:,} a second, open loop"}
    rows = [
        Row(
            f"p99 while {format.count(count)} keys reload, {what[name]}",
            Side("", during[name], format.time),
            Side("p99 steady", steady[name], format.time),
            ("<=", 1.5),
            note,
        )
        for name in loads
    ]
    return rows, [version], notes


class reloading:
    """Reloads one upon another, from before the load to after it."""

    def __init__(self, daemon, publish):
        self.daemon, self.publish, self.stop, self.failure = daemon, publish, threading.Event(), None
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            while not self.stop.is_set():
                self.publish()
                self.daemon.reload()
        except Exception as failure:
            self.failure = failure

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        if self.failure:
            raise self.failure


def memory(place, options):
    """`memory`: resident after loading, and at most during a reload."""
    count = options.keys or 10_000_000
    publish = two_exports(place, count)
    with ExitStack() as stack:
        daemon = started(stack, Keyward(place), count, {place.first, place.second} - {None})
        resident = daemon.memory("VmRSS")

        def reload():
            publish()
            daemon.reload()

        peaks = [daemon.peak_of(reload) for _ in range(options.rounds)]
        after, version = daemon.memory("VmRSS"), daemon.version()
    strings = keys.strings(count)
    allowed = 128 * count + strings
    per_key = lambda value: f"{value / count:.0f} B a key"
    note = (
        f"{format.count(count)} keys with one limit each, from CSV; VmRSS of the whole process, {format.size(resident)} after loading and "
        f"{format.size(after)} after {options.rounds} reloads; VmHWM for the peak; the keys' own texts are {per_key(strings)}"
    )
    rows = [
        Row(
            f"memory, {format.count(count)} keys",
            Side("", [resident], per_key),
            Side("128 B a key and its texts", [allowed], per_key),
            ("<=", 1),
            note,
        ),
        Row(
            f"memory, {format.count(count)} keys, peak of a reload",
            Side("", peaks, per_key),
            Side("128 B a key and its texts", [allowed] * len(peaks), per_key),
            ("<=", 2.2),
            note,
        ),
    ]
    return rows, [version], []
