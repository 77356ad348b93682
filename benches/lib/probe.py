"""Single requests, to time a daemon's first ALLOWED. protocol/SPEC.md defines the bytes."""

import contextlib, socket, struct, time

VERIFY, ANSWER = 0x02, 0x82
ALLOWED, NOT_READY = 0, 1
HEADER = struct.Struct("<IBBHI")
LENGTH = struct.Struct("<I")
# Bytes of a hash.
HASH = 32
# A VERIFY request of cost 1, up to the hash.
PREFIX = HEADER.pack(HEADER.size - LENGTH.size + 4 + HASH, 1, VERIFY, 0, 1) + struct.pack("<I", 1)
# Requests that are sent before their answers are read: they fit into the buffers of a socket.
DEPTH = 256
# Seconds between two attempts: the resolution of the measurement.
RETRY_INTERVAL = 0.001


def wait_until_allowed(path, digest, timeout):
    """Sends requests until the verdict is ALLOWED. The socket does not need to exist yet."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(timeout)
            stream.connect(str(path))
            while (verdict := verify(stream, digest)) == NOT_READY:
                time.sleep(RETRY_INTERVAL)
            if verdict != ALLOWED:
                raise RuntimeError(f"the first verdict has the number {verdict}")
            return
        time.sleep(RETRY_INTERVAL)
    raise RuntimeError(f"{path}: the key is not allowed after {timeout} s")


def verify(stream, digest):
    """Sends one VERIFY request and returns the number of the verdict."""
    stream.sendall(PREFIX + digest)
    header = read_exact(stream, HEADER.size)
    length, _, kind, _, _ = HEADER.unpack(header)
    body = read_exact(stream, length - 8)
    if kind != ANSWER:
        raise RuntimeError(f"the daemon answers with a frame of kind {kind:#x}")
    return body[0]


def verify_all(path, blocks):
    """Sends one VERIFY for each hash of `blocks` ((first number, concatenated hashes)) and reads the answers."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(path))
        answers = stream.makefile("rb", buffering=1 << 16)
        for _, block in blocks:
            hashes = [block[offset : offset + HASH] for offset in range(0, len(block), HASH)]
            for first in range(0, len(hashes), DEPTH):
                some = hashes[first : first + DEPTH]
                stream.sendall(PREFIX + PREFIX.join(some))
                for _ in some:
                    (length,) = LENGTH.unpack(answers.read(LENGTH.size))
                    if answers.read(length)[1] != ANSWER:
                        raise RuntimeError("the daemon answers with another frame")


def read_exact(stream, count):
    data = b""
    while len(data) < count:
        part = stream.recv(count - len(data))
        if not part:
            raise ConnectionError("the daemon closed the connection")
        data += part
    return data
