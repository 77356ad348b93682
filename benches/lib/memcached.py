"""memcached: the key's record, by its hash in base64."""

import base64, os

from .keys import digests, record
from .tools import find, first_line
from .server import Server, connected

# Items written at once while keys are loaded.
CHUNK = 10_000
# Bytes of a record with its key and memcached's own bookkeeping: some 200, and room to spare.
ITEM = 400


class Memcached(Server):
    label, target, packages = "memcached get", "memcached", {"memcached": "memcached"}
    keys = 0

    def start(self, count, processors=None):
        self.keys = count
        super().start(count, processors)

    def command(self):
        megabytes = 64 + self.keys * ITEM // (1 << 20)
        user = ["-u", "root"] if os.geteuid() == 0 else []
        return [find("memcached"), "-s", self.socket, "-a", "0700", "-t", "1", "-m", str(megabytes), *user]

    def load(self, count):
        with connected(self.socket) as stream:
            items = []
            for number, key in enumerate(digests(count), 1):
                value = record(number - 1)
                items.append(
                    b"set %s 0 0 %d noreply\r\n%s\r\n" % (base64.urlsafe_b64encode(key)[:43], len(value), value)
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
        return first_line([find("memcached"), "--version"])
