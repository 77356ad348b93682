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


def write_rows(path, count, columns, row):
    """Writes the keys as CSV: hashes, ids and owners, and `row(number)` as the text of `columns`."""
    with open(path, "w") as file:
        file.write(f"key_hash,key_id,owner,{columns}\n")
        for first, block in blocks(count):
            text = block.hex()
            file.writelines(
                f"{text[at * 64 : at * 64 + 64]},key_{number:08d},owner_{number // KEYS_PER_OWNER:07d},{row(number)}\n"
                for at, number in enumerate(range(first, first + len(block) // HASH))
            )


def write_export(path, count, changed=False):
    """Writes the keys as CSV. In a `changed` export the first key is disabled."""
    active, disabled = (f"live,pro,{LIMIT},{status}" for status in ("active", "disabled"))
    write_rows(
        path, count, "environment,plan,limits,status", lambda n: disabled if changed and n == 0 else active
    )


class Kind(NamedTuple):
    """Keys each with something of its own, as rows of an export."""

    # In file names.
    name: str
    # After "each with".
    label: str
    # The header of the columns.
    columns: str
    # The format of what a key has of its own: of its number `n`, its bytes `high`, `middle` and `low`,
    # and `count`, the number of keys up to it.
    value: str
    # The format of the columns: of the value.
    row: str = f"{LIMIT},{{value}}"
    # Whether the value is stored as a string that only one key has.
    is_string: bool = True
    is_own: bool = True

    def value_of(self, number):
        high, middle, low = number >> 16, number >> 8 & 255, number & 255
        return self.value.format(n=number, count=number + 1, high=high, middle=middle, low=low)

    def own_bytes(self, count):
        """Bytes of the strings that only one key has."""
        return sum(len(self.value_of(number)) for number in range(count)) if self.is_string else 0

    def write_export(self, path, count):
        """Writes the keys as CSV."""
        write_rows(
            path, count, f"plan,{self.columns}", lambda n: f"pro,{self.row.format(value=self.value_of(n))}"
        )


KINDS = [
    Kind("shared", "the same policy", "limits", LIMIT, row="{value}", is_string=False, is_own=False),
    Kind("scope", "a scope of its own", "limits,scopes", "tenant:{n}:*"),
    Kind("ipv4", "an IPv4 address of its own", "limits,allowed_ips", "10.{high}.{middle}.{low}", is_string=False),
    Kind(
        "ipv6",
        "an IPv6 address of its own",
        "limits,allowed_ips",
        "2001:db8::{high:x}:{middle:x}{low:02x}",
        is_string=False,
    ),
    Kind("origin", "an origin of its own", "limits,allowed_origins", "https://customer-{n}.example"),
    Kind("limit", "a limit of its own", "limits", "{count}/h", row="{value}", is_string=False),
    Kind("environment", "an environment of its own", "limits,environment", "environment-{n}"),
    Kind("name", "a limit's name of its own", "limits", "limit-{n}", row=f"{{value}}={LIMIT}"),
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
