"""Redis: the key's record for GET, and the key's token bucket for a Lua script."""

import re, time

from .keys import digests, record
from .server import Server, connect
from .tools import find_tool, first_line

# Keys written at once while keys are loaded.
CHUNK = 10_000


class Redis(Server):
    label, target, packages = "Redis GET", "redis", {"redis-server": "redis-server"}

    def command(self):
        return [
            find_tool("redis-server"),
            "--port",
            "0",
            "--unixsocket",
            self.socket,
            "--unixsocketperm",
            "700",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            self.directory,
            "--daemonize",
            "no",
        ]

    def load_keys(self, count):
        """Stores each key's record and a full token bucket."""
        now = b"%d" % time.time()
        with connect(self.socket) as stream:
            written, commands = 0, []
            for number, key in enumerate(digests(count), 1):
                commands.append(encode_command(b"SET", key, record(number - 1)))
                commands.append(encode_command(b"HSET", b"b:" + key, b"t", b"1000000000", b"at", now))
                if number - written == CHUNK or number == count:
                    stream.sendall(b"".join(commands))
                    expect(stream, b"+OK\r\n:2\r\n" * (number - written))
                    written, commands = number, []

    def version(self):
        line = first_line([find_tool("redis-server"), "--version"])
        return re.sub(r"^Redis server v=(\S+).*", r"Redis \1", line)


class RedisBucket(Redis):
    """The same server; the client runs a script that charges the key's token bucket."""

    label, target = "Redis Lua token bucket", "redis-bucket"


def encode_command(*arguments):
    """A command in RESP."""
    parts = (b"$%d\r\n%s\r\n" % (len(argument), argument) for argument in arguments)
    return b"*%d\r\n" % len(arguments) + b"".join(parts)


def expect(stream, reply):
    received = bytearray()
    while len(received) < len(reply):
        part = stream.recv(1 << 20)
        if not part:
            raise RuntimeError("Redis closed the connection while keys were loaded")
        received += part
    if received != reply:
        raise RuntimeError(f"Redis refuses the keys: {bytes(received[:200])!r}")
