"""Targets for memory: of keys that share a policy, of keys with policies of their own, and of usage."""

import json, os, time

from . import format, keys, probe
from .daemon import Keyward, compile_export
from .target_table import Measurement, Row
from .tools import log, run

# The targets in bytes per key, besides the keys' strings: for keys that share a policy, for keys each
# with a policy of its own, and for what usage adds to a key that was used.
BYTES_PER_KEY, BYTES_WITH_OWN_POLICY, BYTES_OF_USAGE = 128, 250, 192

# Seconds in which the daemon frees what it has written.
SETTLE = 1.0


class UsageInMemory(Keyward):
    """keyward that does not write usage while it is measured."""

    extra_config = '[usage]\ninterval = "1h"\n'

    def used_keys(self):
        command = [self.workdir.binary, "usage", "--admin-socket", self.directory / "admin.sock", "--json"]
        return json.loads(run([*command, "--deadline", "60s"]))["matched"]


def memory(workdir, args):
    """`memory`: resident memory after loading, its peak during a reload, and with all keys used."""
    key_count = args.keys or 10_000_000
    exports = keys.AlternatingExports(workdir, key_count)
    daemon = UsageInMemory(workdir)
    with daemon.running(key_count, workdir.cpus):
        resident = daemon.memory("VmRSS")

        def reload():
            exports.publish()
            daemon.reload()

        peaks = [daemon.peak_memory_during(reload) for _ in range(args.rounds)]
        daemon.wait_until_last_good_saved()
        resident_after, version = daemon.memory("VmRSS"), daemon.version()
        # An odd number of reloads leaves the first key disabled.
        probe.verify_all(daemon.socket, keys.blocks(key_count))
        if daemon.used_keys() != key_count:
            raise RuntimeError("not all keys have been used")
        used = daemon.memory("VmRSS")
    string_bytes = keys.string_bytes(key_count)
    limit = BYTES_PER_KEY * key_count + string_bytes
    per_key = per(key_count)
    reference = lambda count: Measurement(
        f"{BYTES_PER_KEY} B a key and its strings", [limit] * count, per_key
    )
    note = (
        f"{format.count(key_count)} keys with one limit each, from CSV; VmRSS of the whole process, "
        f"{format.size(resident)} after loading, {format.size(resident_after)} after {args.rounds} "
        f"reloads and {format.size(used)} after one VERIFY for each key; VmHWM for the peak; the keys' "
        f"strings are {per_key(string_bytes)}"
    )
    size = format.count(key_count)
    rows = [
        Row(f"memory, {size} keys", Measurement("", [resident], per_key), reference(1), ("<=", 1), note),
        Row(
            f"memory, {size} keys, peak of a reload",
            Measurement("", peaks, per_key),
            reference(len(peaks)),
            ("<=", 2.2),
            note,
        ),
        Row(
            f"memory, {size} keys, all used since the start",
            Measurement("", [used], per_key),
            Measurement(
                f"{BYTES_PER_KEY} B a key, {BYTES_OF_USAGE} B for its usage, and its strings twice",
                [limit + BYTES_OF_USAGE * key_count + string_bytes],
                per_key,
            ),
            ("<=", 1),
            note,
        ),
    ]
    return rows, [version], []


def own_policies(workdir, args):
    """`policies`: resident memory of keys each with a policy of its own, from CSV and compiled."""
    key_count = args.keys or 1_000_000
    per_key, size = per(key_count), format.count(key_count)
    rows, peaks = [], []
    for kind in keys.KINDS:
        source, snapshot = workdir.path(f"{kind.name}.csv"), workdir.path(f"{kind.name}.kwc")
        kind.write_export(source, key_count)
        compile_export(workdir, source, snapshot)
        string_bytes = keys.string_bytes(key_count) + kind.own_bytes(key_count)
        bytes_per_key = BYTES_WITH_OWN_POLICY if kind.is_own else BYTES_PER_KEY
        for number, path in enumerate((source, snapshot)):
            daemon = Keyward(workdir, f"{kind.name}-{number}", path)
            with daemon.running(key_count, workdir.cpus):
                # Until then, the daemon also holds the policies as their rows state them.
                daemon.wait_until_last_good_saved()
                time.sleep(SETTLE)
                resident, peak = daemon.memory("VmRSS"), daemon.memory("VmHWM")
                version = daemon.version()
            origin = "compiled" if path == snapshot else "CSV"
            peaks.append(f"{kind.label} from {origin} {per_key(peak)}")
            rows.append(
                Row(
                    f"memory, {size} keys, each with {kind.label}, {origin}",
                    Measurement("", [resident], per_key),
                    Measurement(
                        f"{bytes_per_key} B a key and its strings",
                        [bytes_per_key * key_count + string_bytes],
                        per_key,
                    ),
                    ("<=", 1),
                    "VmRSS of the whole process once the last good keys are written",
                )
            )
            log(rows[-1].line())
            os.remove(path)
    return rows, [version], [f"peaks of the load: {', '.join(peaks)}"]


def per(key_count):
    return lambda value: f"{value / key_count:.0f} B a key"
