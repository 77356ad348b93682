"""What requests need, what their clients get, and the middleware for each interface."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import unittest
from hashlib import sha256
from importlib.util import find_spec
from typing import Any, NamedTuple

import keyward
import keyward.aio
from keyward import Verdict
from keyward.asgi import KeywardMiddleware as AsgiMiddleware
from keyward.http import Credentials, Guard, Needs, Problem
from keyward.wsgi import KeywardMiddleware as WsgiMiddleware
from notation import frame, text8
from peer import Connection, Peer

PATIENT = 20.0


def decide(connection: Connection) -> None:
    """Answers with the verdict that the key is named after, and a limit of 10 requests."""
    connection.welcome()
    verdicts = {sha256(verdict.name.encode()).digest(): verdict for verdict in Verdict}
    while (received := connection.request()) is not None:
        verdict = verdicts[received.body[4:36]]
        retry_ms = 1001 if verdict == Verdict.RATE_LIMITED else 0
        body = struct.pack("<BQIIII", verdict, 7, 10, 9, retry_ms, 29_001)
        texts = ("key", "owner", "live", "pro", "per minute")
        connection.send(frame(0x82, received.request_id, body + b"".join(map(text8, texts))))


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


#: The table of SPEC.md, section 7.
STATUS = {
    Verdict.ALLOWED: 200,
    Verdict.NOT_READY: 503,
    Verdict.STALE_SNAPSHOT: 503,
    Verdict.IP_NOT_ALLOWED: 403,
    Verdict.ORIGIN_NOT_ALLOWED: 403,
    Verdict.MISSING_SCOPE: 403,
    Verdict.COST_EXCEEDS_BURST: 403,
    Verdict.UNKNOWN_LIMIT: 500,
    Verdict.OUT_OF_CREDIT: 402,
    Verdict.RATE_LIMITED: 429,
}


class Interfaces:
    """The tests of every interface. A subclass answers a request by an application behind it."""

    problems_are_bodies = True

    def get(self, *headers: tuple[str, str], peer: str | None = None, **options: Any) -> Response:
        raise NotImplementedError

    def setUp(self) -> None:
        self.peer = Peer(decide)
        self.addCleanup(self.peer.close)  # type: ignore[attr-defined]

    def test_every_verdict_has_its_status_and_headers(self) -> None:
        for verdict in Verdict:
            response = self.get(("Authorization", f"Bearer {verdict.name}"), scopes=["a:b"])
            status = STATUS.get(verdict, 401)
            self.assertEqual(response.status, status, verdict.name)
            challenge = response.headers.get("www-authenticate")
            if status == 401:
                self.assertEqual(challenge, 'Bearer error="invalid_token"')
            elif verdict == Verdict.MISSING_SCOPE:
                self.assertEqual(challenge, 'Bearer error="insufficient_scope", scope="a:b"')
            else:
                self.assertIsNone(challenge)
            self.assertEqual(response.headers.get("retry-after"), "2" if status == 429 else None)
            if status in (200, 402, 429):
                self.assertEqual(response.headers["ratelimit"], '"per minute";r=9;t=30')
                self.assertEqual(response.headers["ratelimit-policy"], '"per minute";q=10')
            if status == 200:
                self.assertEqual(response.body, b"owner")
            elif self.problems_are_bodies:
                self.assertEqual(response.headers["content-type"], "application/problem+json")
                self.assertEqual(response.headers["cache-control"], "no-store")
                problem = json.loads(response.body)
                self.assertEqual((problem["status"], problem["code"]), (status, verdict.name))

    def test_request_without_one_clear_key_is_refused(self) -> None:
        for headers, status in [
            ([], 401),
            ([("Authorization", "Digest a")], 401),
            ([("Authorization", "Bearer ")], 400),
            ([("Authorization", "Bearer a b")], 400),
            ([("X-API-Key", "a,b")], 400),
            ([("X-API-Key", "a"), ("Authorization", "Bearer b")], 400),
            ([("X-API-Key", "ALLOWED"), ("Authorization", "Bearer ALLOWED")], 200),
            ([("Authorization", "apikey ALLOWED")], 200),
        ]:
            self.assertEqual(self.get(*headers).status, status, headers)

    def test_daemon_that_cannot_be_asked_refuses_or_fails_open(self) -> None:
        self.peer.close()
        key = ("Authorization", "Bearer ALLOWED")
        with self.assertLogs("keyward", logging.WARNING):  # type: ignore[attr-defined]
            self.assertEqual(self.get(key).status, 503)
        with self.assertLogs("keyward", logging.WARNING) as logs:  # type: ignore[attr-defined]
            response = self.get(key, fail_open=True)
        self.assertEqual((response.status, response.body), (200, b"anonymous"))
        self.assertIn("WITHOUT A CHECK", logs.output[0])
        # A request without a key is refused all the same.
        self.assertEqual(self.get(fail_open=True).status, 401)

    def test_request_that_no_daemon_accepts_does_not_fail_open(self) -> None:
        with self.assertLogs("keyward", logging.ERROR):  # type: ignore[attr-defined]
            response = self.get(("X-API-Key", "ALLOWED"), scopes=["no scope"], fail_open=True)
        self.assertEqual(response.status, 500)

    def test_scopes_of_an_iterator_are_needed_by_every_request(self) -> None:
        needs = Needs(scopes=iter(["s:1"]))
        headers = [(b"x-api-key", b"a")]
        for _ in range(2):
            self.assertEqual(Guard().question(needs, headers, None)["scopes"], ("s:1",))

    def test_daemon_learns_scopes_address_and_origin(self) -> None:
        self.get(("X-API-Key", "ALLOWED"), ("Origin", "https://a.example"), scopes=["s:1"], peer="10.1.2.3")
        received = self.peer.requests[-1]
        self.assertIn(b"s:1", received.body)
        self.assertIn(b"\xff\xff\x0a\x01\x02\x03", received.body)
        self.assertIn(b"https://a.example", received.body)


class Asgi(Interfaces, unittest.TestCase):
    def get(self, *headers: tuple[str, str], peer: str | None = None, **options: Any) -> Response:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            decision = scope["state"]["keyward"]
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": (decision.owner if decision else "anonymous").encode()})

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def run() -> None:
            async with keyward.aio.Client(self.peer.path, deadline=PATIENT) as client:
                encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
                scope = {"type": "http", "headers": encoded, "client": (peer, 1) if peer else None}
                await AsgiMiddleware(app, client, **options)(scope, None, send)  # type: ignore[arg-type]

        asyncio.run(run())
        decoded = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Response(sent[0]["status"], decoded, sent[1]["body"])

    def test_websocket_is_refused(self) -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        for extensions in ({}, {"websocket.http.response": {}}):
            scope = {"type": "websocket", "headers": [], "client": None, "extensions": extensions}
            asyncio.run(AsgiMiddleware(None, self.peer.path)(scope, receive, send))  # type: ignore[arg-type]
        types = [message["type"] for message in sent]
        self.assertEqual(types, ["websocket.close", "websocket.http.response.start", "websocket.http.response.body"])

    def test_other_scopes_and_open_requests_reach_the_application(self) -> None:
        reached: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            reached.append(scope)

        middleware = AsgiMiddleware(app, self.peer.path, needs=lambda scope: None)
        for scope in ({"type": "lifespan"}, {"type": "http", "headers": []}):
            asyncio.run(middleware(scope, None, None))  # type: ignore[arg-type]
        self.assertEqual(len(reached), 2)
        self.assertNotIn("state", reached[1])

    def test_needs_and_options_exclude_each_other(self) -> None:
        for middleware in (AsgiMiddleware, WsgiMiddleware):
            with self.assertRaises(TypeError):
                middleware(None, needs=lambda _: None, scopes=["a"])  # type: ignore[arg-type]


class Wsgi(Interfaces, unittest.TestCase):
    def get(self, *headers: tuple[str, str], peer: str | None = None, **options: Any) -> Response:
        def app(environ: Any, start_response: Any) -> Any:
            decision = environ["keyward.decision"]
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [(decision.owner if decision else "anonymous").encode()]

        environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers}
        if peer:
            environ["REMOTE_ADDR"] = peer
        started: list[Any] = []
        with keyward.Client(self.peer.path, deadline=PATIENT) as client:
            body = WsgiMiddleware(app, client, **options)(environ, lambda *arguments: started.append(arguments))
            status, lines = started[0][:2]
            names = {name.lower(): value for name, value in lines}
            return Response(int(status.split()[0]), names, b"".join(body))


@unittest.skipUnless(find_spec("fastapi") and find_spec("httpx"), "FastAPI and httpx are not installed")
class FastApi(Interfaces, unittest.TestCase):
    is_installed = True

    def get(self, *headers: tuple[str, str], peer: str | None = None, **options: Any) -> Response:
        from fastapi import Depends, FastAPI
        from fastapi.responses import PlainTextResponse
        from fastapi.testclient import TestClient
        from keyward.fastapi import RequireKey, install

        app = FastAPI()
        if self.is_installed:
            install(app)
        require_key = RequireKey(keyward.aio.Client(self.peer.path, deadline=PATIENT), **options)

        @app.get("/", response_class=PlainTextResponse)
        async def owner(decision=Depends(require_key)) -> str:  # type: ignore[no-untyped-def]
            return decision.owner if decision else "anonymous"

        with TestClient(app, client=(peer or "testclient", 1) if peer else ("127.0.0.1", 1)) as client:
            response = client.get("/", headers=list(headers))
            assert "API key" in client.get("/openapi.json").json()["components"]["securitySchemes"]
        return Response(response.status_code, dict(response.headers), response.content)


class FastApiWithItsOwnBodies(FastApi):
    is_installed = False
    problems_are_bodies = False

    def test_body_is_that_of_fastapi(self) -> None:
        self.assertEqual(json.loads(self.get().body), {"detail": "The request carries no API key."})


@unittest.skipUnless(find_spec("django"), "Django is not installed")
class Django(Interfaces, unittest.TestCase):
    is_async = False

    def get(self, *headers: tuple[str, str], peer: str | None = None, **options: Any) -> Response:
        import django
        from django.conf import settings
        from django.http import HttpResponse
        from django.test import Client, override_settings
        from django.urls import path

        if not settings.configured:
            settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="test")
            django.setup()

        import keyward.django

        def owner(request: Any) -> HttpResponse:
            return HttpResponse(request.keyward.owner if request.keyward else "anonymous")

        async def aowner(request: Any) -> HttpResponse:
            return owner(request)

        urls = type("urls", (), {"urlpatterns": [path("", aowner if self.is_async else owner)]})
        keyward.django._checker.cache_clear()
        with override_settings(
            ROOT_URLCONF=urls,
            MIDDLEWARE=["keyward.django.KeywardMiddleware"],
            KEYWARD={"socket": self.peer.path, "deadline": PATIENT, **options},
        ):
            if self.is_async:
                return asyncio.run(self.over_asgi(headers, peer))
            response = Client().get("/", headers=dict(headers), REMOTE_ADDR=peer or "127.0.0.1")
        names = {name.lower(): value for name, value in response.headers.items()}
        return Response(response.status_code, names, response.content)

    async def over_asgi(self, headers: Any, peer: str | None) -> Response:
        from django.core.handlers.asgi import ASGIHandler

        sent: list[Any] = []
        requests = [{"type": "http.request", "body": b""}]

        async def receive() -> Any:
            return requests.pop() if requests else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
        fields = {"method": "GET", "path": "/", "query_string": b"", "client": (peer or "127.0.0.1", 1)}
        scope = {"type": "http", "headers": [(b"host", b"testserver"), *encoded], **fields}
        await ASGIHandler()(scope, receive, send)
        names = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return Response(sent[0]["status"], names, sent[1]["body"])


class AsyncDjango(Django):
    is_async = True


class Keys(unittest.TestCase):
    def find(self, credentials: Credentials, *headers: tuple[bytes, bytes]) -> bytes | int:
        try:
            return credentials.find(headers)
        except Problem as problem:
            return problem.status

    def test_only_named_places_hold_keys(self) -> None:
        bearer, basic = (b"Authorization", b"Bearer a"), (b"authorization", b"Basic dTpw")
        for credentials, headers, expected in [
            (Credentials(), [bearer], b"a"),
            (Credentials(bearer=False), [bearer], 401),
            (Credentials(api_key=False), [(b"authorization", b"ApiKey a")], 401),
            (Credentials(), [basic], 401),
            (Credentials(basic="user"), [basic], b"u"),
            (Credentials(basic="password"), [basic], b"p"),
            (Credentials(basic="user"), [(b"authorization", b"Basic !")], 400),
            (Credentials(basic="user"), [(b"authorization", b"Basic dQ==")], 400),
            (Credentials(headers=("X-Key",)), [(b"x-key", b" a ")], b"a"),
            (Credentials(headers=("X-Key",)), [(b"x-api-key", b"a")], 401),
            (Credentials(), [bearer, bearer], b"a"),
            (Credentials(), [(b"x-api-key", b"\xff")], b"\xff"),
        ]:
            self.assertEqual(self.find(credentials, *headers), expected, (credentials, headers))

    def test_several_origins_are_refused(self) -> None:
        headers = [(b"x-api-key", b"a"), (b"origin", b"https://a"), (b"origin", b"https://b")]
        with self.assertRaises(Problem):
            Guard().question(Needs(), headers, None)


if __name__ == "__main__":
    unittest.main()
