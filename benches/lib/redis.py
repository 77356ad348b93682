"""Redis: the key's record for GET, and the key's token bucket for a Lua script."""

import re, time

from .keys import digests, record
from .tools import find, first_line
from .server import Server, connected

# Requests written at once while keys are loaded.
CHUNK = 10_000


class Redis(Server):
    label, target, packages = "Redis GET", "redis", {"redis-server": "redis-server"}

    def command(self):
        return [
            find("redis-server"),
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

    def load(self, count):
        """The record of each key, and its token bucket, full since a moment ago."""
        now = b"%d" % time.time()
        with connected(self.socket) as stream:
            written, commands = 0, []
            for number, key in enumerate(digests(count), 1):
                commands.append(words(b"SET", key, record(number - 1)))
                commands.append(words(b"HSET", b"b:" + key, b"t", b"1000000000", b"at", now))
                if number - written == CHUNK or number == count:
                    stream.sendall(b"".join(commands))
                    expect(stream, b"+OK\r\n:2\r\n" * (number - written))
                    written, commands = number, []

    def version(self):
        return re.sub(r"^Redis server v=(\S+).*", r"Redis \1", first_line([find("redis-server"), "--version"]))


class Bucket(Redis):
    """The same server, asked by a script to charge the key's bucket."""

    label, target = "Redis Lua token bucket", "redis-bucket"


def words(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def expect(stream, answer):
    received = bytearray()
    while len(received) < len(answer):
        part = stream.recv(1 << 20)
        if not part:
            raise RuntimeError("Redis ended the connection while keys were loaded")
        received += part
    if received != answer:
        raise RuntimeError(f"Redis does not take the keys: {bytes(received[:200])!r}")
