"""Servers with the same keys. Missing servers are left out; all are stopped at the end."""

from typing import NamedTuple

from . import cases, keys, loadgen
from .daemon import BUSY_POLL, EXIT_BAD_CONFIGURATION, Keyward, SpinningKeyward
from .echo import Echo, SpinningEcho
from .memcached import Memcached
from .postgres import Postgres
from .redis import Redis, RedisBucket
from .server import Server, ServerStartError
from .tools import ToolMissingError, log

# By their names on the command line. keyward starts first: the echo takes over its answer size.
SERVER_TYPES = {
    "keyward": Keyward,
    "echo": Echo,
    "redis": Redis,
    "redis-bucket": RedisBucket,
    "memcached": Memcached,
    "postgres": Postgres,
}


class Contender(NamedTuple):
    """A server and the kind of request that it is measured with."""

    server: Server
    label: str
    # The argument of `keyward-bench --target`.
    target: str
    spinning: bool


class ServerGroup:
    def __init__(self, workdir, key_count):
        self.workdir, self.key_count = workdir, key_count
        self.contenders, self.notes, self.servers = [], [], []

    def __enter__(self):
        keys.write_export(self.workdir.path("keys.csv"), self.key_count)
        keys.write_digests(self.workdir.path("digests"), self.key_count)
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.stop()

    def contenders_for(self, case):
        """The contenders of a case: spinning servers if its client spins, all others otherwise."""
        if case.separate_cpus and self.workdir.second_cpu is None:
            return []
        return [contender for contender in self.contenders if contender.spinning == case.spinning]

    def start(self, names, spinning=False):
        """Starts the named servers; with `spinning`, also a spinning keyward and a spinning echo."""
        server_types = [SERVER_TYPES[name] for name in SERVER_TYPES if name in names]
        if RedisBucket in server_types and Redis not in server_types:
            self.add(Redis, is_contender=False)
        for server_type in server_types:
            self.add(server_type)
        if spinning and self.workdir.second_cpu is not None:
            if self.add(SpinningKeyward, name="keyward-spinning", spinning=True):
                self.add(SpinningEcho, name="echo-spinning", spinning=True)
        log(f"all servers have loaded {self.key_count:,} keys")

    def add(self, server_type, name=None, spinning=False, is_contender=True):
        """Starts a server. Returns False if it has to be left out."""
        try:
            server = self.start_server(server_type, name or server_type.target)
        except ToolMissingError as error:
            return self.leave_out(name or server_type.label, error)
        except ServerStartError as error:
            if server_type is not SpinningKeyward or error.exit_code != EXIT_BAD_CONFIGURATION:
                raise
            return self.leave_out(name, f"this keyward does not know server.{BUSY_POLL}")
        if is_contender:
            self.contenders.append(Contender(server, server_type.label, server_type.target, spinning))
        return True

    def leave_out(self, name, reason):
        self.notes.append(f"{name} is left out: {reason}")
        log(self.notes[-1])
        return False

    def start_server(self, server_type, name):
        if server_type is RedisBucket:
            return self.running_redis()
        server = server_type(self.workdir, name)
        if isinstance(server, Echo):
            server.answer_size = self.answer_size()
        self.servers.append(server)
        try:
            server.start(self.key_count)
        except (ToolMissingError, ServerStartError):
            server.stop()
            self.servers.remove(server)
            raise
        return server

    def running_redis(self):
        """The Redis server that GET is measured with; the token bucket uses the same one."""
        for server in self.servers:
            if isinstance(server, Redis):
                return server
        raise ToolMissingError("there is no Redis")

    def answer_size(self):
        """Bytes of keyward's answers."""
        for server in self.servers:
            if isinstance(server, Keyward):
                return round(loadgen.run(server, "keyward", cases.ONE_CORE, 0.05)["bytes"][1])
        return Echo.answer_size

    def versions(self):
        return list(dict.fromkeys(version for server in self.servers if (version := server.version())))


def packages(names):
    """{program: Debian package} of the named servers."""
    return {program: package for name in names for program, package in SERVER_TYPES[name].packages.items()}
