"""External programs: finding, installing and running them, and building keyward."""

import json, os, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class ToolMissingError(Exception):
    """A program is not installed. A run leaves out what needs it."""


def log(message):
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)


def find_tool(name):
    """The path of a program. Debian installs PostgreSQL's server programs outside PATH."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4])
    )
    if versions:
        return str(versions[-1])
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/bin")
    if not path:
        raise ToolMissingError(f"{name} is not installed")
    return path


def run(command, **options):
    """Runs a command that has to succeed, and returns its standard output."""
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    if process.returncode != 0:
        message = (process.stderr or process.stdout).strip()
        raise RuntimeError(f"{Path(command[0]).name} exits with {process.returncode}: {message}")
    return process.stdout


def first_line(command):
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0].strip()


def keyward_binary(given):
    """The given keyward binary, or a new release build."""
    if given:
        return given.resolve()
    log("building keyward for release")
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
    return target_directory() / "release" / "keyward"


def target_directory():
    """Cargo's target directory."""
    command = ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"]
    return Path(json.loads(run(command, cwd=ROOT))["target_directory"])


def install(packages):
    """Installs the missing programs of {program: Debian package}, without starting any service."""
    missing = [package for program, package in packages.items() if not is_installed(program)]
    if not missing:
        return
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if not shutil.which("apt-get") or not may_use_root(as_root):
        log(f"cannot install without root and apt-get; on Debian: apt-get install {' '.join(missing)}")
        return
    log(f"installing {' '.join(missing)}")
    # Debian's packages start their services and create a database cluster. These files prevent both.
    guards = {
        "/usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
        "/etc/postgresql-common/createcluster.d/keyward-benches.conf": "create_main_cluster = false\n",
    }
    created = [path for path in guards if not os.path.exists(path)]
    try:
        for path in created:
            subprocess.run([*as_root, "mkdir", "-p", os.path.dirname(path)], check=True)
            subprocess.run(
                [*as_root, "tee", path], input=guards[path], text=True, stdout=subprocess.DEVNULL, check=True
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
                *missing,
            ],
            stdout=subprocess.DEVNULL,
        )
    finally:
        subprocess.run([*as_root, "rm", "-f", *created])


def may_use_root(as_root):
    """Whether the command prefix `as_root` works without a password."""
    return not as_root or subprocess.run([*as_root, "true"], capture_output=True).returncode == 0


def is_installed(program):
    try:
        find_tool(program)
        return True
    except ToolMissingError:
        return False
