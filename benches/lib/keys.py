"""Key sets: the same keys in every run, by number, and the exports that servers are loaded from.

The hashes are random numbers from a seed, which is what SHA-256 makes of any keys: no client here sends a raw key. They
come a block at a time, so that any part of a hundred million can be made again without the rest.
"""

import random

# What no load reaches: nothing here is about refusals.
LIMIT = "10000000/s burst 1000000000"
# Keys made at once.
BLOCK = 1 << 16
# Keys that share an owner.
KEYS_OF_OWNER = 10
# Digests that a client is given, at most: a random part of the keys, many times what the caches hold, and little enough
# that the client's own requests do not crowd the machine.
ASKED = 1_000_000
HASH = 32


def blocks(count):
    """(number of the first, hashes one after another), from the first key to the last."""
    for first in range(0, count, BLOCK):
        yield first, random.Random(first).randbytes(HASH * min(BLOCK, count - first))


def digests(count):
    """One by one."""
    for _, block in blocks(count):
        yield from (block[at : at + HASH] for at in range(0, len(block), HASH))


def record(number):
    """What a look-up should tell of a key: as much as keyward's answer does."""
    return b"key_%08d,owner_%07d,live,pro,%s" % (number, number // KEYS_OF_OWNER, LIMIT.encode())


def strings(count):
    """Bytes of the texts that a daemon has to keep for these keys: every id, and every owner once."""
    owners = -(-count // KEYS_OF_OWNER)
    return count * len("key_00000000") + owners * len("owner_0000000")


def write_export(path, count, changed=False):
    """The keys as CSV. A `changed` export says of its first key that it is disabled, and is otherwise the same."""
    limit = LIMIT.encode()
    with open(path, "wb") as file:
        file.write(b"key_hash,key_id,owner,environment,plan,limits,status\n")
        for first, block in blocks(count):
            text = block.hex().encode()
            rows = (
                b"%s,key_%08d,owner_%07d,live,pro,%s,active\n"
                % (text[at * 64 : at * 64 + 64], first + at, (first + at) // KEYS_OF_OWNER, limit)
                for at in range(len(block) // HASH)
            )
            if changed and first == 0:
                rows = (
                    row.replace(b",active\n", b",disabled\n") if at == 0 else row for at, row in enumerate(rows)
                )
            file.writelines(rows)


def write_digests(path, count, most=ASKED, first=0):
    """At most so many of the keys, evenly from all of them but the first few, for `keyward bench --digests`."""
    step = max(1, (count - first) // most)
    with open(path, "wb") as file:
        for start, block in blocks(count):
            # The first number of this block that is a multiple of the step.
            offset = max(-start % step, first - start)
            file.writelines(
                block[at * HASH : at * HASH + HASH].hex().encode() + b"\n"
                for at in range(offset, len(block) // HASH, step)
            )
