"""verdicts.py SOCKET EXPECTATIONS

Compares the decisions of a daemon with a list of {"key": ..., parameters of VERIFY, "expect": {...}}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import keyward
import keyward.aio

#: Long enough for a busy machine.
PATIENT = 20.0


def arguments(case: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in case.items() if name not in ("expect", "raw", "any_scope")}
    if case.get("any_scope"):
        options["any_scope"] = options.pop("scopes")
    return options


def problems(case: dict[str, Any], decision: keyward.Decision) -> list[str]:
    actual = {
        "verdict": decision.reason,
        "key_id": decision.key_id,
        "owner": decision.owner,
        "environment": decision.environment,
        "plan": decision.plan,
        "generation": decision.generation,
        "limit_name": decision.limit.name if decision.limit else "",
        "limit": decision.limit.limit if decision.limit else 0,
        "remaining": decision.limit.remaining if decision.limit else 0,
        "retry_after_ms": decision.retry_after_ms,
        "metadata": decision._metadata,
        "shadow_limit": decision.shadow_limit,
    }
    expected = case["expect"]
    return [
        f"{case['key']}: {name} is {actual.get(name)!r}, and not {value!r}"
        for name, value in expected.items()
        if actual.get(name) != value
    ]


def main(socket: str, file: str) -> int:
    with open(file) as expectations:
        cases = [case for case in json.load(expectations) if not case.get("raw")]
    found = []
    with keyward.Client(socket, deadline=PATIENT) as client:
        for case in cases:
            found += problems(case, client.verify(**arguments(case)))

    async def ask() -> None:
        async with keyward.aio.Client(socket, deadline=PATIENT) as client:
            for case in cases:
                # The first client has charged the limits.
                decision = await client.verify(**{**arguments(case), "cost": 0})
                if case["expect"]["verdict"] not in ("RATE_LIMITED", "COST_EXCEEDS_BURST", "OUT_OF_CREDIT"):
                    verdict = {"expect": {"verdict": case["expect"]["verdict"]}, "key": case["key"]}
                    found.extend(problems(verdict, decision))

    asyncio.run(ask())
    print("\n".join(found) or f"{len(cases)} decisions are as expected")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
