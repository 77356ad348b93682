"""Targets of `keyward http`: whole requests through nginx and Envoy, by `wrk`."""

import contextlib, json, subprocess

from . import format
from .daemon import Keyward
from .gateways import Application, Companion, Envoy, EnvoyGrpc, Nginx, RedisChecker, key, write_export
from .redis import Redis
from .server import TIMEOUT
from .target_table import Measurement, Row
from .tools import ToolMissingError, find_tool, log

packages = {"wrk": "wrk", **Nginx.packages, **Redis.packages}

CONNECTIONS = 64
# Of the rate with a checker that decides nothing.
MIN_RATE_SHARE = 0.85
# Above the median time with a checker that decides nothing, in ns.
MAX_ADDED = 60_000

# Each request has the next key. The figures are one line of JSON.
SCRIPT = """
local requests, number = {}, 0
function init()
  for key in io.lines(os.getenv("KEYS")) do
    requests[#requests + 1] = wrk.format("GET", "/", {Authorization = "Bearer " .. key})
  end
end
function request()
  number = number % #requests + 1
  return requests[number]
end
function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\n{"rate": %f, "p50_ns": %d, "failed": %d}\\n',
    summary.requests / summary.duration * 1e6, latency:percentile(50) * 1000, failed))
end
"""


def row(workdir, args):
    """`gateways`: rate on 64 connections and median time on one, through each gateway."""
    if workdir.second_cpu is None:
        return [], [], ["the client needs a processor of its own"]
    key_count = args.keys or 10_000
    write_export(workdir.path("keys.csv"), key_count)
    workdir.path("keys").write_text("".join(f"{key(number)}\n" for number in range(key_count)))
    workdir.path("load.lua").write_text(SCRIPT)
    rows, versions, notes = [], [], []
    with contextlib.ExitStack() as running:
        cpus = {workdir.second_cpu}
        start = lambda server: running.enter_context(server.running(0, cpus))
        daemon, redis, application = start(Keyward(workdir)), start(Redis(workdir, "redis")), start(Application(workdir))
        versions += [daemon.version(), redis.version(), "wrk"]
        for gateway_type in (Nginx, Envoy, EnvoyGrpc):
            try:
                rows += measure(workdir, args, gateway_type, (daemon, redis, application), versions)
            except ToolMissingError as error:
                notes.append(f"{gateway_type.page} is left out: {error}")
                log(notes[-1])
    return rows, list(dict.fromkeys(versions)), notes


def measure(workdir, args, gateway_type, shared, versions):
    """The rows of a gateway."""
    daemon, redis, application = shared
    page, allows = gateway_type.page, gateway_type.allows
    idle = gateway_type.idle_checker(workdir, f"none-{page}", allows)
    checkers = [Companion(workdir, page, daemon), idle]
    # What asks Redis speaks HTTP.
    if gateway_type is not EnvoyGrpc:
        checkers.append(RedisChecker(workdir, f"redis-{page}", allows, redis))
    rates, times = {}, {}
    with contextlib.ExitStack() as running:
        cpus = {workdir.second_cpu}
        gateways = []
        for checker in checkers:
            running.enter_context(checker.running(0, cpus))
            gateways.append(gateway_type(workdir, checker, application))
            running.enter_context(gateways[-1].running(0, cpus))
        versions.append(gateways[0].version())
        for number in range(args.rounds):
            for gateway in reversed(gateways) if number % 2 else gateways:
                label = gateway.checker.label
                rates.setdefault(label, []).append(load(gateway, CONNECTIONS, args.seconds)["rate"])
                times.setdefault(label, []).append(load(gateway, 1, args.seconds)["p50_ns"])
            log(f"{page}, round {number + 1} of {args.rounds}")
    note = (
        f"{args.rounds} rounds of {args.seconds:g} s; the configurations of systemd/gateways; gateway, checker, "
        "daemon, Redis and the application on the second processor, wrk on the first"
    )
    rate = lambda label: Measurement(label, rates[label], format.rate)
    added = [value + MAX_ADDED for value in times[idle.label]]
    name = f"{page}, {CONNECTIONS} connections"
    rows = [Row(name, rate("keyward"), rate(idle.label), (">=", MIN_RATE_SHARE), note)]
    if RedisChecker.label in rates:
        rows.append(Row(name, rate("keyward"), rate(RedisChecker.label), (">=", 1), note))
    rows.append(
        Row(
            f"{page}, p50 on one connection",
            Measurement("", times["keyward"], format.nanoseconds),
            Measurement(f"{idle.label} and {format.nanoseconds(MAX_ADDED)}", added, format.nanoseconds),
            ("<=", 1),
            note,
        )
    )
    return rows


def load(gateway, connections, seconds):
    """The figures of one load through a gateway. Every request has to be let through."""
    workdir = gateway.workdir
    process = subprocess.run(
        [
            "taskset",
            "-c",
            str(workdir.first_cpu),
            find_tool("wrk"),
            "--threads=1",
            f"--connections={connections}",
            f"--duration={max(1, round(seconds))}s",
            "--script",
            workdir.path("load.lua"),
            f"http://127.0.0.1:{gateway.port}/",
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT + seconds,
        env={"KEYS": str(workdir.path("keys"))},
    )
    if process.returncode != 0:
        raise RuntimeError(f"{gateway.name}: {(process.stderr or process.stdout).strip()}")
    figures = json.loads(process.stdout.strip().splitlines()[-1])
    if figures["failed"]:
        raise RuntimeError(f"{gateway.name}: {figures['failed']} requests failed; its log:\n{gateway.read_log()}")
    return figures
