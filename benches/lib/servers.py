"""Servers with the same keys, side by side. Those that are missing are left out with a word; all are stopped at the end."""

from typing import NamedTuple

from . import cases, loadgen, keys
from .daemon import BAD_CONFIGURATION, BUSY_POLL, Keyward, Spinning
from .echo import Echo, SpinningEcho
from .memcached import Memcached
from .postgres import Postgres
from .tools import Missing, log
from .redis import Bucket, Redis
from .server import DoesNotStart, Server

# By the names of the command line; keyward first, whose answers' size the echo takes.
SERVERS = {
    "keyward": Keyward,
    "echo": Echo,
    "redis": Redis,
    "redis-bucket": Bucket,
    "memcached": Memcached,
    "postgres": Postgres,
}


class Rival(NamedTuple):
    server: Server
    label: str
    target: str
    spinning: bool


class Stage:
    def __init__(self, place, count):
        self.place, self.count = place, count
        self.all, self.notes, self.servers = [], [], []

    def __enter__(self):
        keys.write_export(self.place.path("keys.csv"), self.count)
        keys.write_digests(self.place.path("digests"), self.count)
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.stop()

    def rivals(self, case):
        """Who can be asked that: a client that spins is for servers that do."""
        if case.apart and self.place.second is None:
            return []
        return [rival for rival in self.all if rival.spinning == case.spinning]

    def start(self, names, spinning=False):
        """Those of SERVERS; and keyward and the echo once more, spinning."""
        kinds = [SERVERS[name] for name in SERVERS if name in names]
        if Bucket in kinds and Redis not in kinds:
            self.add(Redis, shown=False)
        for kind in kinds:
            self.add(kind)
        if spinning and self.place.second is not None:
            if self.add(Spinning, name="keyward-spinning", spinning=True):
                self.add(SpinningEcho, name="echo-spinning", spinning=True)
        log(f"{self.count:,} keys are loaded everywhere")

    def add(self, kind, name=None, spinning=False, shown=True):
        """Whether it is there."""
        try:
            server = self.server(kind, name or kind.target)
        except (Missing, DoesNotStart) as error:
            if isinstance(error, DoesNotStart) and not (kind is Spinning and error.status == BAD_CONFIGURATION):
                raise
            why = f"this keyward does not know server.{BUSY_POLL}" if kind is Spinning else error
            self.notes.append(f"{name or kind.label} is left out: {why}")
            log(self.notes[-1])
            return False
        if shown:
            self.all.append(Rival(server, kind.label, kind.target, spinning))
        return True

    def server(self, kind, name):
        if kind is Bucket:
            redis = [server for server in self.servers if isinstance(server, Redis)]
            if not redis:
                raise Missing("there is no Redis")
            return redis[0]
        server = kind(self.place, name)
        if isinstance(server, Echo):
            server.answer_size = self.answer_size()
        self.servers.append(server)
        try:
            server.start(self.count)
        except (Missing, DoesNotStart):
            server.stop()
            self.servers.remove(server)
            raise
        return server

    def answer_size(self):
        """Bytes of keyward's answers."""
        keyward = [server for server in self.servers if isinstance(server, Keyward)]
        if not keyward:
            return Echo.answer_size
        return round(loadgen.load(keyward[0], "keyward", cases.ONE_CORE, 0.05)["bytes"][1])

    def versions(self):
        return list(dict.fromkeys(version for server in self.servers if (version := server.version())))


def packages(names):
    """{program: package} that these need."""
    return {program: package for name in names for program, package in SERVERS[name].packages.items()}
