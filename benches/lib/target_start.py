"""Targets for starts: the time to the first ALLOWED, from a snapshot or the last good keys."""

import hashlib, os, shutil, time

from . import format, keys, machine, probe, rounds
from .daemon import Keyward, compile_export
from .server import TIMEOUT
from .target_table import Measurement, Row
from .tools import log

# Bytes that the truncated snapshot lacks.
TRUNCATED_BYTES = 20


def write_compiled(workdir, key_count):
    """Writes the compiled snapshot of a key set and returns its path."""
    source, snapshot = workdir.path("keys.csv"), workdir.path("keys.kwc")
    keys.write_export(source, key_count)
    log(f"compiling {key_count:,} keys")
    compile_export(workdir, source, snapshot)
    os.remove(source)
    return snapshot


def daemon_probed_by(digest, workdir, name, source):
    """A daemon that counts as started once it allows the key with this digest."""
    daemon = Keyward(workdir, name, source)
    daemon.wait_until_ready = lambda: probe.wait_until_allowed(daemon.socket, digest, TIMEOUT)
    return daemon


def compiled(workdir, args):
    """`compiled`: a start with a compiled snapshot, against reading and hashing the file."""
    key_count = args.keys or 10_000_000
    snapshot = write_compiled(workdir, key_count)
    digest = next(keys.digests(key_count))
    starts, cold_starts, hashings = [], [], []
    # Brings the file into the page cache.
    hash_file(snapshot)

    def measure_start(name, durations):
        daemon = daemon_probed_by(digest, workdir, name, snapshot)
        try:
            durations.append(rounds.elapsed(lambda: daemon.start(key_count, workdir.cpus)))
            return daemon.memory("VmHWM"), daemon.version()
        finally:
            daemon.stop()

    for number in range(args.rounds):
        time.sleep(machine.RECLAIM_DELAY)
        needed_memory, version = measure_start(f"untouched-{number}", cold_starts)
        hashings.append(rounds.elapsed(lambda: hash_file(snapshot)))
        machine.prefault(needed_memory)
        measure_start(f"keyward-{number}", starts)
        log(f"round {number + 1} of {args.rounds}")
    cold_start = format.seconds(rounds.median(cold_starts))
    row = Row(
        f"compiled, {format.count(key_count)} keys, from start to the first ALLOWED",
        Measurement("", starts, format.seconds),
        Measurement(
            f"reading the file ({format.size(snapshot.stat().st_size)}) and taking its SHA-256",
            hashings,
            format.seconds,
        ),
        ("<=", 2),
        f"{args.rounds} rounds; the file is in the page cache; SHA-256 by Python's hashlib (OpenSSL); the "
        "memory that the daemon needs is written to and freed right before its start, because a virtual "
        "machine that returns free memory to its host makes the first program that touches it wait; "
        f"without this a start takes {cold_start}",
    )
    return [row], [version], []


def last_good(workdir, args):
    """`last-good`: a start beside a truncated source, against a normal start.

    The former serves the last good keys.
    """
    key_count = args.keys or 10_000_000
    snapshot = write_compiled(workdir, key_count)
    truncated = workdir.path("truncated.kwc")
    shutil.copyfile(snapshot, truncated)
    os.truncate(truncated, truncated.stat().st_size - TRUNCATED_BYTES)
    digest = next(keys.digests(key_count))
    source_starts, last_good_starts = [], []
    for number in range(args.rounds):
        daemon = daemon_probed_by(digest, workdir, f"keyward-{number}", snapshot)
        # The first start saves the last good keys, and shows how much memory a start needs.
        with daemon.running(key_count, workdir.cpus):
            needed_memory, version = daemon.memory("VmHWM"), daemon.version()
            daemon.wait_until_last_good_saved()
            for source, durations in ((snapshot, source_starts), (truncated, last_good_starts)):
                daemon.stop()
                daemon.source = source
                machine.prefault(needed_memory)
                durations.append(rounds.elapsed(lambda: daemon.start(key_count, workdir.cpus)))
            if not daemon.status()["last_good"]["in_use"]:
                raise RuntimeError("the truncated source was not refused")
        log(f"round {number + 1} of {args.rounds}")
    row = Row(
        f"last good keys, {format.count(key_count)}, from start beside a bad source to the first ALLOWED",
        Measurement("", last_good_starts, format.seconds),
        Measurement("a compiled start", source_starts, format.seconds),
        ("<=", 1.5),
        f"{args.rounds} rounds; the source is a compiled snapshot; the bad source lacks {TRUNCATED_BYTES} "
        "bytes, which the daemon detects in its header; both files are in the page cache; as much memory as a "
        "start needs is written to and freed right before each start",
    )
    return [row], [version], []


def hash_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")
