"""Key sets, and the exports that servers load them from.

Keys are numbered, and a number yields the same key in every run. Hashes are seeded random numbers,
which have the distribution of SHA-256; no client here sends a raw key. They are generated in blocks,
so any part of a set can be recomputed without the rest.
"""

import itertools, os, random
from typing import NamedTuple

# A limit that no load reaches: refusals are not measured here.
LIMIT = "10000000/s burst 1000000000"
# Keys generated at once.
BLOCK = 1 << 16
KEYS_PER_OWNER = 10
# The most digests that a client is given. They cover many times what the caches hold, and the
# client's own requests still take little memory.
MAX_DIGESTS = 1_000_000
# Bytes of a hash.
HASH = 32


def blocks(count):
    """Yields (number of the block's first key, concatenated hashes) for the keys 0..count."""
    for first in range(0, count, BLOCK):
        yield first, random.Random(first).randbytes(HASH * min(BLOCK, count - first))


def digests(count):
    """Yields the hash of each key."""
    for _, block in blocks(count):
        yield from (block[offset : offset + HASH] for offset in range(0, len(block), HASH))


def key_id(number):
    return f"key_{number:08}"


def record(number):
    """The record that a look-up should return: the same fields that keyward's answer carries."""
    return b"key_%08d,owner_%07d,live,pro,%s" % (number, number // KEYS_PER_OWNER, LIMIT.encode())


def string_bytes(count):
    """Bytes of the strings that a daemon has to store: every key id, and every owner once."""
    owners = -(-count // KEYS_PER_OWNER)
    return count * len("key_00000000") + owners * len("owner_0000000")


def write_export(path, count, changed=False):
    """Writes the keys as CSV. In a `changed` export the first key is disabled."""
    limit = LIMIT.encode()
    with open(path, "wb") as file:
        file.write(b"key_hash,key_id,owner,environment,plan,limits,status\n")
        for first, block in blocks(count):
            text = block.hex().encode()
            rows = (
                b"%s,key_%08d,owner_%07d,live,pro,%s,active\n"
                % (text[at * 64 : at * 64 + 64], first + at, (first + at) // KEYS_PER_OWNER, limit)
                for at in range(len(block) // HASH)
            )
            if changed and first == 0:
                rows = (
                    row.replace(b",active\n", b",disabled\n") if at == 0 else row
                    for at, row in enumerate(rows)
                )
            file.writelines(rows)


class Kind(NamedTuple):
    """Keys each with something of its own, as rows of an export."""

    # In file names.
    name: str
    # After "each with".
    label: str
    # The header of the columns, and their text for a key.
    columns: str
    row: object
    # The key's own text, if it has one.
    text: object = None
    is_own: bool = True

    def own_bytes(self, count):
        """Bytes of the texts that only one key has."""
        return sum(len(self.text(number)) for number in range(count)) if self.text else 0

    def write_export(self, path, count):
        """Writes the keys as CSV."""
        with open(path, "w") as file:
            file.write(f"key_hash,key_id,owner,plan,{self.columns}\n")
            for first, block in blocks(count):
                text = block.hex()
                file.writelines(
                    f"{text[at * 64 : at * 64 + 64]},key_{number:08d},owner_{number // KEYS_PER_OWNER:07d},pro,"
                    f"{self.row(number)}\n"
                    for at, number in enumerate(range(first, first + len(block) // HASH))
                )


def scope(number):
    return f"tenant:{number}:*"


def origin(number):
    return f"https://customer-{number}.example"


def environment(number):
    return f"environment-{number}"


def limit_name(number):
    return f"limit-{number}"


def ipv4(number):
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def ipv6(number):
    return f"2001:db8::{number >> 16:x}:{number & 0xFFFF:x}"


KINDS = [
    Kind("shared", "the same policy", "limits", lambda _: LIMIT, is_own=False),
    Kind("scope", "a scope of its own", "limits,scopes", lambda n: f"{LIMIT},{scope(n)}", scope),
    Kind("ipv4", "an IPv4 address of its own", "limits,allowed_ips", lambda n: f"{LIMIT},{ipv4(n)}"),
    Kind("ipv6", "an IPv6 address of its own", "limits,allowed_ips", lambda n: f"{LIMIT},{ipv6(n)}"),
    Kind("origin", "an origin of its own", "limits,allowed_origins", lambda n: f"{LIMIT},{origin(n)}", origin),
    Kind("limit", "a limit of its own", "limits", lambda n: f"{n + 1}/h"),
    Kind(
        "environment",
        "an environment of its own",
        "limits,environment",
        lambda n: f"{LIMIT},{environment(n)}",
        environment,
    ),
    Kind("name", "a limit's name of its own", "limits", lambda n: f"{limit_name(n)}={LIMIT}", limit_name),
]


def write_digests(path, count, limit=MAX_DIGESTS, first=0):
    """Writes about `limit` digests at most, evenly spaced from key `first` on."""
    step = max(1, (count - first) // limit)
    with open(path, "wb") as file:
        for start, block in blocks(count):
            # Offset of the first key in this block whose number is a multiple of the step.
            offset = max(-start % step, first - start)
            file.writelines(
                block[at * HASH : at * HASH + HASH].hex().encode() + b"\n"
                for at in range(offset, len(block) // HASH, step)
            )


class AlternatingExports:
    """Two exports that differ in one key, published in turn under the same path by renaming."""

    def __init__(self, workdir, count):
        self.source, self.next = workdir.path("keys.csv"), workdir.path("next.csv")
        files = [workdir.path("original.csv"), workdir.path("changed.csv")]
        for file, changed in zip(files, (False, True)):
            write_export(file, count, changed)
        self.turns = itertools.cycle(files)
        self.publish()

    def publish(self):
        os.link(next(self.turns), self.next)
        os.rename(self.next, self.source)
