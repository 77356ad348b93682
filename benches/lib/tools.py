"""Programs: finding them, installing those that are missing where that is allowed, and building keyward."""

import json, os, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Missing(Exception):
    """A program that is not there; what can be is measured without it."""


def log(text):
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def find(program):
    """The path of a program; Debian's PostgreSQL keeps its own out of PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda path: float(path.parts[4]))
    found = (
        str(versions[-1])
        if versions
        else shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/bin")
    )
    if not found:
        raise Missing(f"{program} is not installed")
    return found


def run(command, **options):
    """To its end, which has to be a good one; what it printed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(
            f"{Path(command[0]).name} exits with {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def first_line(command):
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0].strip()


def release_build(given):
    """The keyward that is measured, and measured with."""
    if given:
        return given.resolve()
    log("building keyward for release")
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
    return target_directory() / "release" / "keyward"


def target_directory():
    command = ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"]
    return Path(json.loads(run(command, cwd=ROOT))["target_directory"])


def install(needed):
    """Installs what is missing of {program: package}, without starting any of it."""
    wanted = [package for program, package in needed.items() if not installed(program)]
    if not wanted:
        return
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    may = shutil.which("apt-get") and (
        not as_root or subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0
    )
    if not may:
        log(f"not installed, for want of root or apt-get; on Debian: apt-get install {' '.join(wanted)}")
        return
    log(f"installing {' '.join(wanted)}")
    # Debian starts a service, and makes a database, when it installs them. None is wanted here.
    files = {
        "/usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
        "/etc/postgresql-common/createcluster.d/keyward-benches.conf": "create_main_cluster = false\n",
    }
    ours = [path for path in files if not os.path.exists(path)]
    try:
        for path in ours:
            subprocess.run([*as_root, "mkdir", "-p", os.path.dirname(path)], check=True)
            subprocess.run(
                [*as_root, "tee", path], input=files[path], text=True, stdout=subprocess.DEVNULL, check=True
            )
            subprocess.run([*as_root, "chmod", "755", path], check=True)
        subprocess.run([*as_root, "apt-get", "update", "-q"], stdout=subprocess.DEVNULL)
        subprocess.run(
            [
                *as_root,
                "env",
                "DEBIAN_FRONTEND=noninteractive",
                "apt-get",
                "install",
                "-qy",
                "--no-install-recommends",
                *wanted,
            ],
            stdout=subprocess.DEVNULL,
        )
    finally:
        subprocess.run([*as_root, "rm", "-f", *ours])


def installed(program):
    try:
        return bool(find(program))
    except Missing:
        return False
