"""memcached: the key's record, stored under the base64 of its hash."""

import base64, os

from .keys import digests, record
from .server import Server, connect
from .tools import find_tool, first_line

# Items written at once while keys are loaded.
CHUNK = 10_000
# Bytes to reserve for an item: a record, its key and memcached's overhead take about 200.
ITEM = 400


class Memcached(Server):
    label, target, packages = "memcached get", "memcached", {"memcached": "memcached"}
    key_count = 0

    def start(self, key_count, cpus=None):
        self.key_count = key_count
        super().start(key_count, cpus)

    def command(self):
        megabytes = 64 + self.key_count * ITEM // (1 << 20)
        user = ["-u", "root"] if os.geteuid() == 0 else []
        return [
            find_tool("memcached"),
            "-s",
            self.socket,
            "-a",
            "0700",
            "-t",
            "1",
            "-m",
            str(megabytes),
            *user,
        ]

    def load_keys(self, count):
        with connect(self.socket) as stream:
            items = []
            for number, key in enumerate(digests(count), 1):
                value = record(number - 1)
                items.append(
                    b"set %s 0 0 %d noreply\r\n%s\r\n"
                    % (base64.urlsafe_b64encode(key)[:43], len(value), value)
                )
                if number % CHUNK == 0 or number == count:
                    stream.sendall(b"".join(items))
                    items = []
            stream.sendall(b"stats\r\n")
            stats = b""
            while not stats.endswith(b"END\r\n"):
                stats += stream.recv(1 << 16) or b"END\r\n"
        if b"STAT curr_items %d\r\n" % count not in stats:
            raise RuntimeError("memcached does not hold all keys")

    def version(self):
        return first_line([find_tool("memcached"), "--version"])
