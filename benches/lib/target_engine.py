"""The engine's target: batches of 64 in benches/verify.rs, against SHA-256 of the keys."""

import contextlib, json, os, signal, subprocess, time
from pathlib import Path

from . import format
from .target_table import Measurement, Row
from .tools import ROOT, first_line, log, target_directory

BOUND = ("<=", 2.5)
BATCH = 64
# Key set sizes of benches/verify.rs, and their names in its ids.
SIZES = {1_000: "1 k keys", 1_000_000: "1 M keys", 10_000_000: "10 M keys"}
# The functions in benches/verify.rs that the target is about. The first looks up and charges; the
# second also encodes the answer; the third also hashes the key.
FUNCTIONS = ["one limit by digest", "one limit by digest, encoded", "one limit by raw key"]
# Criterion group and function of the reference.
REFERENCE = ("sha256", "keys of 40 bytes")
# Seconds after which the bench is killed.
TIMEOUT = 3600


def measure(args):
    """Returns (rows, versions, notes)."""
    key_count = args.keys or max(SIZES)
    sizes = [name for size, name in SIZES.items() if 1_000_000 <= size <= key_count] or [SIZES[1_000]]
    functions = "|".join(f"{function}/batch {BATCH}$" for function in FUNCTIONS)
    pattern = f"^({REFERENCE[0]}/|verify, ({'|'.join(sizes)})/({functions}))"
    command = ["cargo", "bench", "--locked", "--bench", "verify", "--", pattern]
    # A short measuring time is a trial run, which needs no precision.
    command += ["--quick"] if args.seconds < 1 else ["--measurement-time", f"{args.seconds:g}"]
    environment = {**os.environ} | ({"KEYWARD_BENCH_10M": "1"} if key_count >= 10_000_000 else {})
    started = time.time()
    log(f"running {' '.join(command[:6])}")
    run_bench(command, environment)
    criterion = Path(os.environ.get("CRITERION_HOME") or target_directory() / "criterion")
    measurement = lambda label, group, function: Measurement(
        label, read_estimate(criterion, group, function, started), format.nanoseconds
    )
    reference = measurement("SHA-256 of the key", *REFERENCE)
    note = f"One request of a batch of {BATCH}; criterion's median, with its 95 % interval as the spread"
    rows = [
        Row(
            f"engine, {size}, {function}",
            measurement("", f"verify, {size}", function),
            reference,
            BOUND,
            note,
        )
        for size in sizes
        for function in FUNCTIONS
    ]
    return rows, [first_line(["rustc", "--version"])], []


def run_bench(command, environment):
    """Runs the bench in its own process group: killing cargo alone would leave the bench running."""
    bench = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        if bench.wait(TIMEOUT) != 0:
            raise RuntimeError(f"{' '.join(command[:6])} fails")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(bench.pid, signal.SIGKILL)
        bench.wait()


def read_estimate(criterion, group, function, started):
    """Criterion's median with the ends of its confidence interval, in nanoseconds per request."""
    file = criterion / group / function / f"batch {BATCH}" / "new" / "estimates.json"
    if not file.exists() or file.stat().st_mtime < started:
        raise RuntimeError(f"{file}: not written by this run; were the ids in benches/verify.rs changed?")
    median = json.loads(file.read_text())["median"]
    interval = median["confidence_interval"]
    estimates = [interval["lower_bound"], median["point_estimate"], interval["upper_bound"]]
    return [nanoseconds / BATCH for nanoseconds in estimates]
