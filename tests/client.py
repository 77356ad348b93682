"""A keyward client in plain Python, written from protocol/SPEC.md alone, to use and to port.

    answer = Client("/run/keyward/keyward.sock").verify("acme_live_...", scopes=["orders:read"])

`python3 tests/client.py SOCKET VECTORS EXPECTATIONS` tests this client and a daemon that accepts
digests and raw keys. VECTORS is protocol/vectors/vectors.json. EXPECTATIONS is a list of
{"key": ..., parameters of verify, "expect": {fields of ANSWER}}.
"""

import contextlib, hashlib, json, socket, struct, sys

RAW_KEY, SCOPES, ANY_SCOPE, IP, ORIGIN, ENVIRONMENT, METADATA = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40
COSTS, SHADOW, BALANCES = 0x80, 0x80, 0x100
VERDICTS = """ALLOWED NOT_READY STALE_SNAPSHOT MALFORMED_KEY UNKNOWN_KEY REVOKED DISABLED NOT_YET_VALID EXPIRED
    WRONG_ENVIRONMENT IP_NOT_ALLOWED ORIGIN_NOT_ALLOWED MISSING_SCOPE COST_EXCEEDS_BURST RATE_LIMITED
    UNKNOWN_LIMIT OUT_OF_CREDIT""".split()
CODES = [0] + """FRAME_TOO_SHORT FRAME_TOO_LONG UNSUPPORTED_VERSION UNKNOWN_KIND UNKNOWN_FLAG BODY_TOO_SHORT
    TRAILING_BYTES INVALID_FIELD TRUNCATED_FRAME CREDENTIAL_REFUSED PEER_REFUSED TOO_MANY_CONNECTIONS IDLE_TIMEOUT
    SHUTTING_DOWN QUOTA_EXCEEDED REQUEST_REFUSED""".split()
LIMIT_KINDS = "BUCKET WINDOW CREDITS".split()
# kind: (name, flags, layout of the integers, their names, strings with their maximum lengths)
REPLIES = {
    0x81: (
        "WELCOME",
        {},
        "<BBBBIIQ",
        "version min_version max_version credentials max_length idle_timeout_ms " "generation",
        {"server": 255},
    ),
    0x82: (
        "ANSWER",
        {"METADATA": METADATA, "SHADOW": SHADOW, "BALANCES": BALANCES},
        "<BQIIII",
        "verdict generation limit remaining retry_after_ms reset_ms",
        {
            "key_id": 64,
            "owner": 128,
            "environment": 64,
            "plan": 64,
            "limit_name": 64,
            "metadata": 4096,
            "shadow_limit": 64,
        },
    ),
    0xFF: ("ERROR", {"CLOSING": 0x01}, "<BI", "code detail", {"message": 255}),
}


def frame(kind, flags, request_id, body):
    return struct.pack("<IBBHI", 8 + len(body), 1, kind, flags, request_id) + body


def length_prefixed(layout, value):
    """A string or bytes after their length; None for None."""
    data = value.encode() if isinstance(value, str) else value
    return None if data is None else struct.pack(layout, len(data)) + data


def hello(request_id, min_version=1, max_version=1):
    return frame(0x01, 0, request_id, struct.pack("BB", min_version, max_version))


def verify(
    request_id,
    cost,
    digest=None,
    key=None,
    scopes=None,
    any_scope=False,
    ip=None,
    origin=None,
    environment=None,
    costs=None,
    metadata=False,
    balances=False,
):
    flags = ANY_SCOPE * any_scope | METADATA * metadata | BALANCES * balances
    body = struct.pack("<I", cost) + (digest if key is None else b"")
    ip = None if ip is None else socket.inet_pton(socket.AF_INET6, ip if ":" in ip else "::ffff:" + ip)
    for flag, field in (
        (RAW_KEY, length_prefixed("<H", key)),
        (SCOPES, length_prefixed("<H", scopes)),
        (IP, ip),
        (ORIGIN, length_prefixed("<H", origin)),
        (ENVIRONMENT, length_prefixed("<B", environment)),
        (COSTS, encode_costs(costs)),
    ):
        if field is not None:
            flags, body = flags | flag, body + field
    return frame(0x02, flags, request_id, body)


def encode_costs(costs):
    """Costs by the names of limits, as a dictionary; None for none."""
    pairs = (length_prefixed("<B", name) + struct.pack("<I", cost) for name, cost in (costs or {}).items())
    return bytes([len(costs)]) + b"".join(pairs) if costs else None


def adjustment(kind, request_id, cost, digest=None, key=None, costs=None, balances=False):
    credential, costs = digest if key is None else length_prefixed("<H", key), encode_costs(costs)
    flags = RAW_KEY * (key is not None) | COSTS * (costs is not None) | BALANCES * balances
    return frame(kind, flags, request_id, struct.pack("<I", cost) + credential + (costs or b""))


def refund(*fields, **named):
    return adjustment(0x03, *fields, **named)


def debit(*fields, **named):
    return adjustment(0x04, *fields, **named)


def parse_balances(data, offset):
    """The limits at `offset`, and the offset behind them."""
    (count,) = struct.unpack_from("<B", data, offset)
    if count > 16:
        raise ValueError(f"{count} limits")
    limits, offset = [], offset + 1
    for _ in range(count):
        start = offset + 1
        offset = start + struct.unpack_from("<B", data, offset)[0]
        if offset - start > 64:
            raise ValueError(f"the name of a limit has {offset - start} bytes")
        kind, limit, charged, balance, reset_ms = struct.unpack_from("<BQIqI", data, offset)
        limits.append(
            {
                "name": data[start:offset].decode(),
                "kind": LIMIT_KINDS[kind] if kind < len(LIMIT_KINDS) else kind,
                "limit": limit,
                "charged": charged,
                "balance": balance,
                "reset_ms": reset_ms,
            }
        )
        offset += 25
    return limits, offset


def parse(data):
    """The fields of a frame from the daemon. Unknown verdicts and codes remain numbers."""
    length, version, kind, bits, request_id = struct.unpack_from("<IBBHI", data)
    if not 8 <= length <= 8192 or length != len(data) - 4 or version != 1 or kind not in REPLIES:
        raise ValueError(f"length {length} (actual {len(data) - 4}), version {version}, kind {kind:#x}")
    name, flags, layout, integers, strings = REPLIES[kind]
    if bits & ~sum(flags.values()):
        raise ValueError(f"{name} with flags {bits:#x}")
    reply = {
        "kind": name,
        "request_id": request_id,
        "flags": [flag for flag in flags if bits & flags[flag]],
        **dict(zip(integers.split(), struct.unpack_from(layout, data, 12))),
    }
    offset = 12 + struct.calcsize(layout)
    optional = {"metadata": METADATA, "shadow_limit": SHADOW}
    for name in (name for name in strings if name not in optional or bits & optional[name]):
        prefix = "<H" if name == "metadata" else "<B"
        start = offset + struct.calcsize(prefix)
        offset = start + struct.unpack_from(prefix, data, offset)[0]
        if offset - start > strings[name] or offset > len(data):
            raise ValueError(f"{name} has {offset - start} bytes")
        reply[name] = data[start:offset].decode()
    if kind == 0x82 and bits & BALANCES:
        reply["balances"], offset = parse_balances(data, offset)
    if offset < len(data):
        raise ValueError(f"{len(data) - offset} trailing bytes")
    for name, values in (("verdict", VERDICTS), ("code", CODES)):
        if reply.get(name, len(values)) < len(values):
            reply[name] = values[reply[name]]
    return reply


class RefusedError(Exception):
    """The daemon sent an ERROR frame, whose fields are the argument."""


class Client:
    """One connection with one request at a time.

    Replace it after an exception, because an answer may still arrive.
    """

    def __init__(self, path, timeout=0.05):
        self.socket, self.request_id, self.raw = socket.socket(socket.AF_UNIX), 0, False
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rb")

    def verify(self, key, cost=1, scopes=None, raw=False, **fields):
        """Returns the fields of the ANSWER.

        `scopes` is a list of names, and `fields` are the other optional parameters of the function
        `verify`. No verdict other than "ALLOWED" allows the request.
        """
        scopes = None if scopes is None else " ".join(scopes)
        return self.send(verify, key, cost, raw, scopes=scopes, **fields)

    def refund(self, key, cost=1, **fields):
        """Refunds what an ALLOWED request was charged. Do not retry it, even without an answer."""
        return self.send(refund, key, cost, False, **fields)

    def debit(self, key, cost=1, **fields):
        """Charges what a response has cost. Do not retry it, even without an answer."""
        return self.send(debit, key, cost, False, **fields)

    def send(self, encode, key, cost, raw, **fields):
        raw, self.request_id = raw or self.raw, (self.request_id + 1) % 2**32
        credential = {"key": key.encode()} if raw else {"digest": hashlib.sha256(key.encode()).digest()}
        reply = self.exchange(encode(self.request_id, cost, **credential, **fields))
        if reply["request_id"] == self.request_id and reply["kind"] == "ANSWER":
            return reply
        if (reply.get("code"), reply.get("detail"), raw) == ("CREDENTIAL_REFUSED", 2, False):
            self.raw = True  # the daemon has a pepper and takes only raw keys
            return self.send(encode, key, cost, True, **fields)
        raise RefusedError(reply)

    def exchange(self, request, last=False):
        with contextlib.suppress(ConnectionError):  # the daemon may have closed the connection after an ERROR
            self.socket.sendall(request)
        if last:
            self.socket.shutdown(socket.SHUT_WR)
        prefix = self.stream.read(4)
        if len(prefix) < 4:
            raise ConnectionError("the daemon closed the connection")
        return parse(prefix + self.stream.read(min(struct.unpack("<I", prefix)[0], 8192)))


def unhex(text):
    """Parses the notation of vectors.json: hex digits, `|` as a separator, and `byte*times`."""
    tokens = (token.partition("*") for token in text.replace("|", " ").split())
    return b"".join(bytes.fromhex(unit) * int(times or 1) for unit, _, times in tokens)


def text(value):
    """The text that a list of its parts stands for. Other values remain."""
    parts = value if isinstance(value, list) else []
    return "".join(p if isinstance(p, str) else p["repeat"] * p["times"] for p in parts) if parts else value


def check_vector(path, vector):
    data, error, fields = unhex(vector["bytes"]), vector.get("error"), vector.get("fields", {})
    for name, value in fields.items():
        if name in ("digest", "key"):
            fields[name] = unhex(value)
        elif name == "costs":
            fields[name] = {text(cost["name"]): cost["cost"] for cost in value}
        elif name == "balances":
            fields[name] = [{**limit, "name": text(limit["name"])} for limit in value]
        elif name != "flags":
            fields[name] = text(value)
    if vector["from"] == "daemon":
        try:
            return compare(fields or {"malformed": True}, parse(data))
        except (ValueError, struct.error):
            return compare({"malformed": error is not None}, {"malformed": True})
    expected = error and {"kind": "ERROR", **error, "flags": ["CLOSING"] if error["closes"] else []}
    if fields:
        kind, flags = fields.pop("kind"), fields.pop("flags")
        expected = {"kind": "WELCOME" if kind == "HELLO" else "ANSWER", "request_id": fields["request_id"]}
        if kind == "VERIFY":
            fields.update(any_scope="ANY_SCOPE" in flags, metadata="METADATA" in flags)
        if kind != "HELLO":
            fields.update(balances="BALANCES" in flags)
        encode = {"HELLO": hello, "VERIFY": verify, "REFUND": refund, "DEBIT": debit}[kind]
        compare({"bytes": data}, {"bytes": encode(**fields)})
    closes, client = expected.pop("closes", False), Client(path, timeout=5)
    compare(expected, client.exchange(data, last=expected.get("code") == "TRUNCATED_FRAME"))
    if not closes:
        return compare({"kind": "WELCOME", "request_id": 99}, client.exchange(hello(99)))
    with contextlib.suppress(ConnectionResetError):  # the daemon closed the stream with unread bytes
        compare({"after": b""}, {"after": client.stream.read(1)})


def check_verdict(path, expectation):
    compare(expectation.pop("expect"), Client(path, timeout=5).verify(**expectation))


def compare(expected, actual):
    if wrong := [name for name in expected if actual.get(name) != expected[name]]:
        raise AssertionError(
            "; ".join(f"{name} is {actual.get(name)!r}, not {expected[name]!r}" for name in wrong)
        )


if __name__ == "__main__":
    path, vectors, expectations = sys.argv[1], json.load(open(sys.argv[2])), json.load(open(sys.argv[3]))
    checks, failed = [(check_vector, vector, vector["name"]) for vector in vectors], 0
    checks += [(check_verdict, item, f"expectation {number}") for number, item in enumerate(expectations, 1)]
    for check, item, name in checks:
        try:
            check(path, item)
        except (AssertionError, OSError, RefusedError, ValueError, struct.error) as error:
            print(f"{name}: {error}")
            failed += 1
    print(
        f"client.py: {len(vectors)} vectors, {len(expectations)} verdicts: {f'{failed} failed' if failed else 'ok'}"
    )
    sys.exit(1 if failed else 0)
