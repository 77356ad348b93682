"""One request by this process: to see the moment at which a daemon answers it. protocol/SPEC.md has the bytes."""

import contextlib, socket, struct, time

VERIFY, ANSWER, ALLOWED, NOT_READY = 0x02, 0x82, 0, 1
HEADER = struct.Struct("<IBBHI")
# Between two attempts: what it costs is no part of what is measured, and what it adds is.
PAUSE = 0.001


def until_allowed(path, digest, patience):
    """Asks until the answer is ALLOWED, from before there is a socket on."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(patience)
            stream.connect(str(path))
            while (verdict := ask(stream, digest)) == NOT_READY:
                time.sleep(PAUSE)
            if verdict != ALLOWED:
                raise RuntimeError(f"the first verdict is number {verdict}")
            return
        time.sleep(PAUSE)
    raise RuntimeError(f"{path}: no key is allowed after {patience} s")


def ask(stream, digest):
    body = struct.pack("<I", 1) + digest
    stream.sendall(HEADER.pack(8 + len(body), 1, VERIFY, 0, 1) + body)
    header = exactly(stream, HEADER.size)
    length, _, kind, _, _ = HEADER.unpack(header)
    body = exactly(stream, length - 8)
    if kind != ANSWER:
        raise RuntimeError(f"the daemon answers with a frame of kind {kind:#x}")
    return body[0]


def exactly(stream, count):
    data = b""
    while len(data) < count:
        part = stream.recv(count - len(data))
        if not part:
            raise ConnectionError("the daemon ended the connection")
        data += part
    return data
