"""The notation of protocol/vectors, and frames of a daemon for tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).resolve().parents[3] / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def to_bytes(text: str) -> bytes:
    """Hex in tokens, each of which may be repeated."""
    tokens = (token.partition("*") for token in text.replace("|", " ").split())
    return b"".join(bytes.fromhex(token) * int(times or 1) for token, _, times in tokens)


def to_text(value: Any) -> Any:
    """A text, which may be a list of parts."""
    if isinstance(value, list):
        return "".join(part if isinstance(part, str) else part["repeat"] * part["times"] for part in value)
    return value


def frame(kind: int, request_id: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("<IBBHI", 8 + len(body), 1, kind, flags, request_id) + body


def text8(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def welcome(request_id: int, credentials: int = 3, idle_timeout_ms: int = 60_000, version: int = 1) -> bytes:
    fields = struct.pack("<BBBBIIQ", version, 1, 1, credentials, 4096, idle_timeout_ms, 7)
    return frame(0x81, request_id, fields + text8("keyward/test"))


def answer(request_id: int, verdict: int = 0, owner: str = "owner") -> bytes:
    fields = struct.pack("<BQIIII", verdict, 7, 0, 0, 0, 0)
    return frame(0x82, request_id, fields + text8("key") + text8(owner) + b"\0\0\0")


def error(request_id: int, code: int, detail: int = 0, closing: bool = False) -> bytes:
    return frame(0xFF, request_id, struct.pack("<BI", code, detail) + text8("test"), int(closing))
