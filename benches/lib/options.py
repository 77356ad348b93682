"""What the command lines have in common, and how a run begins."""

import argparse, os, signal, subprocess, sys, time
from pathlib import Path

from . import machine
from .tools import ROOT, Missing, install, log, release_build

SECONDS_AT_MOST = 600


def parser(text, **defaults):
    """With `keys`, `seconds` and `rounds` where they have a default."""
    common = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    helps = {
        "keys": (count, "keys of each server"),
        "rounds": (count, "how often everything is measured"),
        "seconds": (duration, "of each measurement, after a quarter of it of warm-up"),
    }
    for name, default in defaults.items():
        kind, text = helps[name]
        common.add_argument(f"--{name}", type=kind, default=default, help=f"{text} [{default:,}]")
    common.add_argument(
        "--pin",
        type=processors,
        default=None,
        metavar="CPU,CPU",
        help="the client's processor, and the servers' where there are two [the first two that are there]",
    )
    common.add_argument(
        "--binary", type=Path, help="the keyward to measure, and to measure with [a release build]"
    )
    common.add_argument(
        "--out", type=Path, default=ROOT / "benches" / "results", help="where results are written to"
    )
    common.add_argument("--no-install", action="store_true", help="leave out what is not installed")
    return common


def processors(text):
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError("write one or two processors, as in 0,1") from None


def count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("write a number, 1 or more")
    return int(text)


def counts(text):
    return [count(part) for part in text.split(",")]


def duration(text):
    try:
        if 0 < float(text) <= SECONDS_AT_MOST:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"write seconds, at most {SECONDS_AT_MOST}")


def parse(common):
    options = common.parse_args()
    allowed = machine.usable()
    options.pin = ((options.pin or allowed[:2]) + [None])[:2]
    if any(processor not in allowed for processor in options.pin if processor is not None):
        common.error(f"--pin: this process may use {allowed}")
    return options


def begin(options, packages):
    """Says what would disturb the run, builds, and installs {program: package}."""
    machine.warn_if_busy()
    options.binary = release_build(options.binary)
    if not options.no_install:
        install(packages)


def header(options, versions):
    """What all figures of a run hold for."""
    return {
        **machine.facts(),
        "pin": options.pin,
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
        "command": command(),
    }


def command(row=None):
    """The command line; of one row, where it was for all of them."""
    words = [row if row and word == "all" else word for word in sys.argv[1:]]
    return " ".join([os.path.relpath(sys.argv[0], ROOT), *words])


def run(main):
    """An interrupted or terminated run stops what it started, as every run does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.SubprocessError, OSError, Missing) as error:
        log(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
