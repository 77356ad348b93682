"""A copy of the working tree, in which tests/defects/run and tests/mutants/run change the code,
the commands that they run in it, and the option by which machines share the changes."""

import argparse, contextlib, os, shutil, signal, subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def update(tree):
    """Makes `tree` a copy of the files as they are now: tracked ones, and those that are neither
    tracked nor ignored. Unchanged files keep their times, so that cargo does not build them again.
    Returns their names."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    names = sorted(name for name in files.stdout.split("\0") if name and (ROOT / name).is_file())
    for name in names:
        source, copy = ROOT / name, tree / name
        content = source.read_bytes()
        if not copy.is_file() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            shutil.copymode(source, copy)
    copied = set(names)
    for copy in [path for path in tree.rglob("*") if path.is_file()]:
        if str(copy.relative_to(tree)) not in copied:
            copy.unlink()
    return names


def run(command, seconds, **options):
    """Runs a command for at most `seconds` (`None`: without a limit), and returns it as
    subprocess.run does. Whatever ends the wait early also kills the processes that the command has
    started: test binaries and daemons do not end with cargo."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def shard(text):
    """The value of --shard: as in 2/4, the second of four shards."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError("write K/N, as in 2/4")
    return int(number), int(count)
