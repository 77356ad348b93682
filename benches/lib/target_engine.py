"""The engine's target: the benches of benches/verify.rs, a batch of 64 with one limit each, against SHA-256 of such keys."""

import contextlib, json, os, signal, subprocess, time
from pathlib import Path

from . import format
from .tools import ROOT, first_line, log, target_directory
from .target_table import Row, Side

LIMIT = ("<=", 2.5)
BATCH = 64
# Tables of benches/verify.rs; and of these, the ones that the target is about.
SIZES = {1_000: "1 k keys", 1_000_000: "1 M keys", 10_000_000: "10 M keys"}
# Its questions: the daemon finds and charges; does it and writes the answer; hashes, finds and charges.
QUESTIONS = ["one limit by digest", "one limit by digest, encoded", "one limit by raw key"]
BASELINE = ("sha256", "keys of 40 bytes")
# An hour would be too long for anyone.
PATIENCE = 3600


def measure(options):
    """(rows, versions, notes)."""
    keys = options.keys or max(SIZES)
    sizes = [name for size, name in SIZES.items() if 1_000_000 <= size <= keys] or [SIZES[1_000]]
    questions = "|".join(f"{question}/batch {BATCH}$" for question in QUESTIONS)
    pattern = f"^({BASELINE[0]}/|verify, ({'|'.join(sizes)})/({questions}))"
    command = ["cargo", "bench", "--locked", "--bench", "verify", "--", pattern]
    # Trials are not for the precision.
    command += ["--quick"] if options.seconds < 1 else ["--measurement-time", f"{options.seconds:g}"]
    environment = {**os.environ} | ({"KEYWARD_BENCH_10M": "1"} if keys >= 10_000_000 else {})
    started = time.time()
    log(f"running {' '.join(command[:6])}")
    run_bench(command, environment)
    criterion = Path(os.environ.get("CRITERION_HOME") or target_directory() / "criterion")
    hash_alone = Side("SHA-256 of the key", samples(criterion, *BASELINE, started), format.time)
    rows = [
        Row(
            f"engine, {size}, {question}",
            Side("", samples(criterion, f"verify, {size}", question, started), format.time),
            hash_alone,
            LIMIT,
            f"One request of a batch of {BATCH}; criterion's median, and its 95 % interval as the spread",
        )
        for size in sizes
        for question in QUESTIONS
    ]
    return rows, [first_line(["rustc", "--version"])], []


def run_bench(command, environment):
    """In a group of its own: cargo's end would not be its child's."""
    bench = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        if bench.wait(PATIENCE) != 0:
            raise RuntimeError(f"{' '.join(command[:6])} fails")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(bench.pid, signal.SIGKILL)
        bench.wait()


def samples(criterion, group, function, started):
    """Nanoseconds of one request: criterion's estimate, between the ends of its interval."""
    file = criterion / group / function / f"batch {BATCH}" / "new" / "estimates.json"
    if not file.exists() or file.stat().st_mtime < started:
        raise RuntimeError(f"{file}: this run has not written it: does benches/verify.rs still call it so?")
    median = json.loads(file.read_text())["median"]
    interval = median["confidence_interval"]
    ends = [interval["lower_bound"], median["point_estimate"], interval["upper_bound"]]
    return [nanoseconds / BATCH for nanoseconds in ends]
