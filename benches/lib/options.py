"""Common command-line options, and how a run starts and ends."""

import argparse, os, signal, subprocess, sys, time
from pathlib import Path

from . import machine
from .tools import ROOT, ToolMissingError, install, keyward_binary, log

MAX_SECONDS = 600


def argument_parser(description, **defaults):
    """A parser with the common options. `keys`, `seconds` and `rounds` need a default to be added."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    optional = {
        "keys": (count, "number of keys on each server"),
        "rounds": (count, "number of rounds"),
        "seconds": (duration, "seconds of each measurement, after a warm-up of a quarter of them"),
    }
    for name, default in defaults.items():
        kind, text = optional[name]
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} [{default:,}]")
    parser.add_argument(
        "--pin",
        type=cpus,
        default=None,
        metavar="CPU,CPU",
        help="the client's processor, and the servers' where a case uses two [the first two available]",
    )
    parser.add_argument(
        "--binary",
        type=Path,
        help="the keyward binary to measure, with keyward-bench beside it [a release build]",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benches" / "results", help="directory of the result files"
    )
    parser.add_argument("--no-install", action="store_true", help="leave out servers that are not installed")
    return parser


def cpus(text):
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError("expected one or two processors, as in 0,1") from None


def count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("expected a number of 1 or more")
    return int(text)


def counts(text):
    return [count(part) for part in text.split(",")]


def duration(text):
    try:
        if 0 < float(text) <= MAX_SECONDS:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected seconds, at most {MAX_SECONDS}")


def parse_args(parser):
    args = parser.parse_args()
    usable = machine.usable_cpus()
    args.pin = ((args.pin or usable[:2]) + [None])[:2]
    if any(cpu not in usable for cpu in args.pin if cpu is not None):
        parser.error(f"--pin: this process may use {usable}")
    return args


def prepare(args, packages):
    """Warns about a busy machine, builds keyward, and installs {program: Debian package}."""
    machine.warn_if_busy()
    args.binary = keyward_binary(args.binary)
    if not args.no_install:
        install(packages)


def run_metadata(args, versions):
    """The conditions under which all figures of a run were measured."""
    return {
        **machine.describe(),
        "pin": args.pin,
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
        "command": command_line(),
    }


def command_line(row=None):
    """The command line; with `row`, the one that measures only this row instead of all."""
    arguments = [row if row and argument == "all" else argument for argument in sys.argv[1:]]
    return " ".join([os.path.relpath(sys.argv[0], ROOT), *arguments])


def run_main(main):
    """Runs `main` and exits. SIGTERM and Ctrl-C unwind the stack, so that servers are stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.SubprocessError, OSError, ToolMissingError) as error:
        log(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
