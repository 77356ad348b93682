"""Every frame of protocol/vectors/vectors.json."""

from __future__ import annotations

import unittest
from typing import Any

from keyward import Decision, ErrorCode, LimitKind, ProtocolError, Verdict, Welcome, _frames, _request
from keyward._frames import Refusal
from notation import load, to_bytes, to_text

VECTORS = load("vectors.json")
KINDS = {"HELLO": 1, "VERIFY": 2, "REFUND": 3, "DEBIT": 4, "WELCOME": 0x81, "ANSWER": 0x82, "ERROR": 0xFF}
MILLISECONDS = 0xFFFF_FFFF
#: Fields whose lists are no parts of a text.
LISTS = ("flags", "balances")


def encoded(fields: dict[str, Any]) -> bytes:
    """The frame that the client writes for these fields."""
    if fields["kind"] == "HELLO":
        return _frames.hello(fields["request_id"], fields["min_version"], fields["max_version"])
    flags = set(fields["flags"])
    # A digest is that of a key, which vectors do not name: it takes the key's place.
    key = to_bytes(fields.get("key", ""))
    costs = {to_text(pair["name"]): pair["cost"] for pair in fields.get("costs", [])} or None
    if fields["kind"] == "VERIFY":
        scopes = to_text(fields["scopes"]).split(" ") if "scopes" in fields else []
        any_of, all_of = (scopes, ()) if "ANY_SCOPE" in flags else (None, scopes)
        request = _request.verify(
            key,
            all_of,
            any_of,
            fields["cost"],
            costs,
            fields.get("ip"),
            to_text(fields.get("origin")),
            to_text(fields.get("environment")),
            "METADATA" in flags,
            "BALANCES" in flags,
        )
    else:
        request = _request.adjustment(KINDS[fields["kind"]], key, fields["cost"], costs, "BALANCES" in flags)
    if "RAW_KEY" in flags:
        return request.encode(fields["request_id"], raw=True)
    body = request.head + to_bytes(fields["digest"]) + request.tail
    return _frames.frame(request.kind, request.flags, fields["request_id"], body)


def expected_ms(seconds: float) -> int:
    return MILLISECONDS if seconds == float("inf") else round(seconds * 1000)


def named(kind: Any, value: int) -> Any:
    """A name, or a number without one."""
    try:
        name: str = kind(value).name
    except ValueError:
        return value
    return value if name.startswith("UNKNOWN_VERDICT_") else name


def decoded(response: Welcome | Decision | Refusal) -> dict[str, Any]:
    """A response in the terms of the vectors."""
    if isinstance(response, Welcome):
        return {"kind": "WELCOME", "flags": [], **response._asdict()}
    if isinstance(response, Refusal):
        fields = {**response._asdict(), "code": named(ErrorCode, response.code)}
        return {"kind": "ERROR", "flags": ["CLOSING"] if fields.pop("closing") else [], **fields}
    limit = response.limit
    fields = {
        "kind": "ANSWER",
        "flags": [],
        "verdict": named(Verdict, response.verdict),
        "generation": response.generation,
        "limit": limit.limit if limit else 0,
        "remaining": limit.remaining if limit else 0,
        "retry_after_ms": response.retry_after_ms,
        "reset_ms": expected_ms(limit.reset) if limit else 0,
        "key_id": response.key_id,
        "owner": response.owner,
        "environment": response.environment,
        "plan": response.plan,
        "limit_name": limit.name if limit else "",
    }
    if response._metadata is not None:
        fields["flags"].append("METADATA")
        fields["metadata"] = response._metadata
    if response.shadow_limit is not None:
        fields["flags"].append("SHADOW")
        fields["shadow_limit"] = response.shadow_limit
    if response.balances is not None:
        fields["flags"].append("BALANCES")
        fields["balances"] = [
            {
                "name": balance.name,
                "kind": named(LimitKind, balance.kind),
                "limit": balance.limit,
                "charged": balance.charged,
                "balance": balance.balance,
                "reset_ms": expected_ms(balance.reset),
            }
            for balance in response.balances.values()
        ]
    return fields


class Frames(unittest.TestCase):
    def test_client_writes_the_frames_of_the_vectors(self) -> None:
        vectors = [vector for vector in VECTORS if vector["from"] == "client" and "fields" in vector]
        self.assertGreater(len(vectors), 80)
        for vector in vectors:
            with self.subTest(vector["name"]):
                self.assertEqual(encoded(vector["fields"]).hex(), to_bytes(vector["bytes"]).hex())

    def test_client_reads_the_frames_of_the_vectors(self) -> None:
        vectors = [vector for vector in VECTORS if vector["from"] == "daemon" and "fields" in vector]
        self.assertGreater(len(vectors), 70)
        for vector in vectors:
            with self.subTest(vector["name"]):
                data = to_bytes(vector["bytes"])
                self.assertEqual(_frames.frame_end(data, 0), len(data))
                request_id, response = _frames.parse(data)
                actual = {"request_id": request_id, **decoded(response)}
                expected = {name: to_text(value) for name, value in vector["fields"].items() if name not in LISTS}
                expected["flags"] = set(vector["fields"]["flags"])
                actual["flags"] = set(actual["flags"])
                if "balances" in vector["fields"]:
                    limits = vector["fields"]["balances"]
                    expected["balances"] = [{**limit, "name": to_text(limit["name"])} for limit in limits]
                self.assertEqual(actual, expected)

    def test_client_rejects_frames_that_violate_the_protocol(self) -> None:
        vectors = [vector for vector in VECTORS if vector["group"] == "bad-daemon"]
        self.assertGreater(len(vectors), 70)
        for vector in vectors:
            with self.subTest(vector["name"]), self.assertRaises(ProtocolError):
                data = to_bytes(vector["bytes"])
                end = _frames.frame_end(data, 0)
                assert end is not None
                _frames.parse(data[:end])


if __name__ == "__main__":
    unittest.main()
