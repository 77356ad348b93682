"""Faults of a daemon, for both clients: no wrong decision, no hang, nothing charged twice."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
import time
import unittest
from hashlib import sha256
from pathlib import Path
from typing import Any

import keyward
import keyward.aio
from keyward import ErrorCode, Verdict
from notation import answer, error, welcome
from peer import Connection, Peer, Script, serve

#: Long enough for a busy machine; a call that waits for nothing ends long before.
PATIENT = 20.0
#: The deadline of calls that are to miss it.
SHORT = 0.1
DENIED = int(Verdict.REVOKED)


class Blocking:
    """Calls of the client for threads."""

    def __init__(self, path: str, deadline: float) -> None:
        self.client = keyward.Client(path, deadline=deadline)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.client, method)(*arguments, **options)

    def call_often(self, count: int) -> list[Any]:
        """Concurrent calls: decisions and exceptions."""
        results: list[Any] = [None] * count

        def call(index: int) -> None:
            try:
                results[index] = self.client.verify(b"%d" % index)
            except keyward.KeywardError as failure:
                results[index] = failure

        threads = [threading.Thread(target=call, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENT)
        return results

    def close(self) -> None:
        self.client.close()


class Asyncio:
    """Calls of the client for asyncio."""

    def __init__(self, path: str, deadline: float) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = keyward.aio.Client(path, deadline=deadline)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self.loop.run_until_complete(getattr(self.client, method)(*arguments, **options))

    def call_often(self, count: int) -> list[Any]:
        async def call() -> list[Any]:
            calls = (self.client.verify(b"%d" % index) for index in range(count))
            return await asyncio.gather(*calls, return_exceptions=True)

        return self.loop.run_until_complete(call())

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


class Faults:
    """The tests. Subclasses say which client they are for."""

    adapter: type[Blocking] | type[Asyncio]

    def start(self, *scripts: Script, deadline: float = PATIENT) -> tuple[Peer, Any]:
        peer = Peer(*scripts)
        self.addCleanup(peer.close)  # type: ignore[attr-defined]
        return peer, self.connect(peer.path, deadline)

    def connect(self, path: str, deadline: float = PATIENT) -> Any:
        client = self.adapter(path, deadline)
        self.addCleanup(client.close)  # type: ignore[attr-defined]
        return client

    def test_connection_is_kept(self) -> None:
        peer, client = self.start()
        for _ in range(100):
            self.assertTrue(client.call("verify", "key"))
        self.assertEqual((peer.connections, len(peer.requests)), (1, 100))

    def test_denial_is_a_value_and_an_unknown_verdict_is_a_denial(self) -> None:
        def script(connection: Connection) -> None:
            connection.welcome()
            for verdict in range(256):
                received = connection.request()
                assert received is not None
                connection.send(answer(received.request_id, verdict))

        _, client = self.start(script)
        for verdict in range(256):
            decision = client.call("verify", "key")
            self.assertEqual((decision.allowed, bool(decision), int(decision.verdict)), (verdict == 0, verdict == 0, verdict))

    def test_answer_in_pieces_is_joined(self) -> None:
        def script(connection: Connection) -> None:
            connection.welcome()
            while (received := connection.request()) is not None:
                for byte in answer(received.request_id):
                    connection.send(bytes([byte]))

        _, client = self.start(script)
        self.assertEqual(client.call("verify", "key").owner, "owner")
        self.assertEqual(client.call("verify", "key").owner, "owner")

    def test_half_an_answer_is_a_lost_connection(self) -> None:
        def script(connection: Connection) -> None:
            connection.welcome()
            received = connection.request()
            assert received is not None
            connection.send(answer(received.request_id)[:20])

        peer, client = self.start(script, serve)
        with self.assertRaises(keyward.ConnectionLostError) as lost:
            client.call("verify", "key")
        self.assertTrue(lost.exception.maybe_charged)
        self.assertEqual(len(peer.requests), 1)
        self.assertTrue(client.call("verify", "key"))

    def test_request_that_was_written_is_sent_again_only_if_it_charges_nothing(self) -> None:
        def script(connection: Connection) -> None:
            connection.welcome()
            connection.request()

        for method, options, is_repeated in [
            ("verify", {}, False),
            ("verify", {"cost": 0, "costs": {"a": 1}}, False),
            ("refund", {"cost": 1}, False),
            ("debit", {"cost": 1}, False),
            ("verify", {"cost": 0}, True),
            ("verify", {"cost": 0, "costs": {"a": 0}}, True),
        ]:
            peer, client = self.start(script, serve)
            if is_repeated:
                self.assertTrue(client.call(method, "key", **options))
            else:
                with self.assertRaises(keyward.ConnectionLostError) as lost:
                    client.call(method, "key", **options)
                self.assertTrue(lost.exception.maybe_charged)
            self.assertEqual(len(peer.requests), 1 + is_repeated, (method, options))

    def test_answer_to_another_request_ends_the_connection(self) -> None:
        def wrong_id(connection: Connection) -> None:
            connection.welcome()
            received = connection.request()
            assert received is not None
            connection.send(answer(received.request_id + 1))
            connection.wait_for_end()

        def no_answer(connection: Connection) -> None:
            connection.welcome()
            received = connection.request()
            assert received is not None
            connection.send(welcome(received.request_id))
            connection.wait_for_end()

        def garbage(connection: Connection) -> None:
            connection.welcome()
            connection.request()
            connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.wait_for_end()

        for script in (wrong_id, no_answer, garbage):
            peer, client = self.start(script, serve)
            with self.assertRaises(keyward.ProtocolError) as violation:
                client.call("verify", "key")
            self.assertTrue(violation.exception.maybe_charged)
            self.assertTrue(client.call("verify", "key"))
            self.assertEqual((peer.connections, len(peer.requests)), (2, 2), script.__name__)

    def test_late_answer_is_not_that_of_the_next_request(self) -> None:
        is_late = threading.Event()

        def script(connection: Connection) -> None:
            connection.welcome()
            first = connection.request()
            assert first is not None
            is_late.wait(PATIENT)
            connection.send(answer(first.request_id, owner="late"))
            connection.serve()

        _, client = self.start(script, serve)
        started = time.monotonic()
        with self.assertRaises(keyward.DeadlineError) as late:
            client.call("verify", "first", deadline=SHORT)
        self.assertLess(time.monotonic() - started, PATIENT / 2)
        self.assertTrue(late.exception.maybe_charged)
        is_late.set()
        self.assertEqual(client.call("verify", "second").owner, "owner")

    def test_silent_peer_costs_no_more_than_the_deadline(self) -> None:
        def silent(connection: Connection) -> None:
            connection.wait_for_end()

        _, client = self.start(silent, deadline=SHORT)
        started = time.monotonic()
        with self.assertRaises(keyward.DeadlineError) as late:
            client.call("verify", "key")
        self.assertLess(time.monotonic() - started, PATIENT / 2)
        # Only HELLO was sent.
        self.assertFalse(late.exception.maybe_charged)

    def test_error_leaves_the_connection_if_it_does_not_close_it(self) -> None:
        codes = [code for code in ErrorCode if code != ErrorCode.CREDENTIAL_REFUSED] + [99]

        def script(connection: Connection) -> None:
            connection.welcome()
            for code in codes:
                received = connection.request()
                assert received is not None
                connection.send(error(received.request_id, code, 5))
            connection.serve()

        peer, client = self.start(script)
        for code in codes:
            with self.assertRaises(keyward.RefusedError) as refused:
                client.call("verify", "key")
            self.assertEqual((refused.exception.code, refused.exception.detail), (code, 5))
            self.assertFalse(refused.exception.maybe_charged)
        self.assertTrue(client.call("verify", "key"))
        self.assertEqual((peer.connections, len(peer.requests)), (1, len(codes) + 1))

    def test_error_that_closes_says_whether_to_send_again(self) -> None:
        for code in [*ErrorCode, 99]:

            def script(connection: Connection, code: int = code) -> None:
                connection.welcome()
                connection.request()
                connection.send(error(0, code, closing=True))

            is_repeated = code > 9 and code != ErrorCode.PEER_REFUSED
            peer, client = self.start(script, serve)
            if is_repeated:
                self.assertTrue(client.call("debit", "key", 1))
            else:
                with self.assertRaises(keyward.RefusedError) as refused:
                    client.call("debit", "key", 1)
                self.assertFalse(refused.exception.maybe_charged)
            self.assertEqual(len(peer.requests), 1 + is_repeated, code)

    def test_daemon_that_refuses_every_connection_is_not_asked_for_ever(self) -> None:
        def full(connection: Connection) -> None:
            connection.send(error(0, ErrorCode.TOO_MANY_CONNECTIONS, 7, closing=True))

        peer, client = self.start(full)
        with self.assertRaises(keyward.RefusedConnectionError):
            client.call("verify", "key")
        self.assertLessEqual(peer.connections, 4)

    def test_peer_that_is_refused_does_not_connect_again_at_once(self) -> None:
        def refuse(connection: Connection) -> None:
            connection.send(error(0, ErrorCode.PEER_REFUSED, 7, closing=True))

        peer, client = self.start(refuse, deadline=SHORT)
        for _ in range(5):
            with self.assertRaises(keyward.UnavailableError):
                client.call("verify", "key")
        self.assertEqual(peer.connections, 1)

    def test_key_is_sent_in_the_form_that_the_daemon_takes(self) -> None:
        key, digest_bytes = "key", 32

        def script(connection: Connection) -> None:
            connection.welcome(credentials=1)
            first = connection.request()
            assert first is not None
            connection.send(error(first.request_id, ErrorCode.CREDENTIAL_REFUSED, 2))
            connection.serve()

        peer, client = self.start(script)
        for _ in range(2):
            self.assertTrue(client.call("verify", key))
        forms = [(received.flags & 1, len(received.body)) for received in peer.requests]
        raw = (1, 4 + 2 + len(key))
        self.assertEqual(forms, [(0, 4 + digest_bytes), raw, raw])

        peer, client = self.start(lambda connection: (connection.welcome(credentials=2), connection.serve())[1])
        self.assertTrue(client.call("verify", key))
        # No daemon that takes only raw keys knows a longer one.
        self.assertEqual(client.call("verify", "k" * 1025).verdict, Verdict.UNKNOWN_KEY)
        self.assertEqual([(received.flags & 1, len(received.body)) for received in peer.requests], [raw])

    def test_key_is_not_sent_raw_unless_the_daemon_says_so(self) -> None:
        for code, detail in [(10, 1), (10, 3), (10, 0), (8, 2)]:

            def script(connection: Connection, code: int = code, detail: int = detail) -> None:
                connection.welcome(credentials=1)
                received = connection.request()
                assert received is not None
                connection.send(error(received.request_id, code, detail))
                connection.serve()

            peer, client = self.start(script)
            with self.assertRaises(keyward.RefusedError):
                client.call("verify", "key")
            self.assertTrue(client.call("verify", "key"))
            self.assertEqual([received.flags & 1 for received in peer.requests], [0, 0])

    def test_daemon_that_speaks_another_version_is_refused(self) -> None:
        for fields in ({"version": 2}, {"credentials": 0}, {"credentials": 0xFC}):
            _, client = self.start(lambda connection, fields=fields: connection.welcome(**fields))
            with self.assertRaises(keyward.ProtocolError):
                client.call("verify", "key")

    def test_restart_is_survived(self) -> None:
        peer, client = self.start()
        self.assertTrue(client.call("verify", "key"))
        peer.stop()
        with self.assertRaises(keyward.KeywardError):
            client.call("verify", "key", deadline=SHORT)
        peer.listen()
        deadline = time.monotonic() + PATIENT
        while time.monotonic() < deadline:
            try:
                self.assertTrue(client.call("verify", "key"))
                return
            except keyward.UnavailableError as failure:
                self.assertFalse(failure.maybe_charged and isinstance(failure, keyward.ConnectError))
        self.fail("the client does not connect again")

    def test_silent_connection_is_replaced_before_the_daemon_ends_it(self) -> None:
        def script(connection: Connection) -> None:
            connection.welcome(idle_timeout_ms=100)
            connection.serve()

        peer, client = self.start(script)
        self.assertTrue(client.call("verify", "key"))
        time.sleep(0.09)
        self.assertTrue(client.call("verify", "key"))
        self.assertEqual(peer.connections, 2)

    def test_full_backlog_is_waited_for_within_the_deadline(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)  # type: ignore[attr-defined]
        path = str(Path(directory.name) / "full.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(listener.close)  # type: ignore[attr-defined]
        listener.bind(path)
        listener.listen(0)
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(waiting.close)  # type: ignore[attr-defined]
        waiting.connect(path)
        client = self.connect(path, SHORT)
        started = time.monotonic()
        with self.assertRaises(keyward.UnavailableError) as failure:
            client.call("verify", "key")
        self.assertLess(time.monotonic() - started, PATIENT / 2)
        self.assertFalse(failure.exception.maybe_charged)

    def test_absent_daemon_is_an_error_at_once(self) -> None:
        client = self.connect("/nonexistent/keyward.sock", 10.0)
        started = time.monotonic()
        with self.assertRaises(keyward.ConnectError) as failure:
            client.call("verify", "key")
        self.assertLess(time.monotonic() - started, 5)
        self.assertIn("/nonexistent/keyward.sock", str(failure.exception))

    def test_requests_that_cannot_be_sent_are_refused(self) -> None:
        peer, client = self.start()
        for options in (
            {"cost": -1},
            {"cost": 1 << 32},
            {"cost": 1.5},
            {"scopes": ["a b"]},
            {"scopes": [""]},
            {"scopes": ["a"], "any_scope": ["b"]},
            {"any_scope": []},
            {"any_scope": iter(())},
            {"scopes": ["x" * 1025]},
            {"ip": "10.0.0"},
            {"environment": "x" * 65},
            {"environment": "\ud800"},
            {"costs": {"": 1}},
            {"costs": {"x" * 65: 1}},
            {"costs": {"x": -1}},
            {"costs": {str(number): 1 for number in range(17)}},
        ):
            with self.assertRaises(keyward.InvalidRequestError, msg=str(options)):
                client.call("verify", "key", **options)
        for method in ("refund", "debit"):
            with self.assertRaises(keyward.InvalidRequestError):
                client.call(method, "key")
        for key in (None, 5, "\ud800"):
            with self.assertRaises(keyward.InvalidRequestError):
                client.call("verify", key)
        self.assertEqual(peer.requests, [])

    def test_concurrent_callers_get_their_own_answers(self) -> None:
        def script(connection: Connection) -> None:
            connection.welcome()
            while (received := connection.request()) is not None:
                # The digest tells the keys apart.
                connection.send(answer(received.request_id, owner=received.body[4:12].hex()))

        peer, client = self.start(script)
        for decision, index in zip(client.call_often(200), range(200)):
            self.assertEqual(decision.owner, sha256(b"%d" % index).digest()[:8].hex())
        self.assertEqual(len(peer.requests), 200)

    def test_child_of_a_fork_has_a_connection_of_its_own(self) -> None:
        peer, client = self.start()
        self.assertTrue(client.call("verify", "key"))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if isinstance(client, Asyncio):
                    client.loop = asyncio.new_event_loop()
                status = 0 if all(client.call("verify", "key") for _ in range(10)) else 2
            finally:
                os._exit(status)
        for _ in range(10):
            self.assertTrue(client.call("verify", "key"))
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(peer.connections, 2)

    def test_client_can_be_closed_and_used_again(self) -> None:
        peer, client = self.start()
        for _ in range(2):
            self.assertTrue(client.call("verify", "key"))
            self._close(client)
        self.assertEqual(peer.connections, 2)

    def _close(self, client: Any) -> None:
        if isinstance(client, Asyncio):
            client.loop.run_until_complete(client.client.close())
        else:
            client.client.close()


class BlockingFaults(Faults, unittest.TestCase):
    adapter = Blocking


class AsyncioFaults(Faults, unittest.TestCase):
    adapter = Asyncio


class AsyncioPipeline(unittest.TestCase):
    """What only the client for asyncio does."""

    def run_with(self, script: Script, test: Any, **options: Any) -> Peer:
        peer = Peer(script, serve)
        self.addCleanup(peer.close)

        async def run() -> None:
            async with keyward.aio.Client(peer.path, deadline=PATIENT, **options) as client:
                await asyncio.wait_for(test(client), PATIENT)

        asyncio.run(run())
        return peer

    def test_requests_of_one_turn_are_written_together(self) -> None:
        sizes: list[int] = []

        def script(connection: Connection) -> None:
            connection.welcome()
            while data := connection._socket.recv(1 << 20):
                sizes.append(len(data))
                connection.send(*(answer(index + 1) for index in range(len(data) // 48)))

        async def test(client: keyward.aio.Client) -> None:
            await asyncio.gather(*(client.verify("key") for _ in range(100)))

        self.run_with(script, test)
        self.assertEqual(sizes, [4800])

    def test_requests_beyond_the_limit_wait(self) -> None:
        most: list[int] = []

        def script(connection: Connection) -> None:
            connection.welcome()
            while data := connection._socket.recv(1 << 20):
                most.append(len(data) // 48)
                ids = [int.from_bytes(data[at + 8 : at + 12], "little") for at in range(0, len(data), 48)]
                connection.send(*map(answer, ids))

        async def test(client: keyward.aio.Client) -> None:
            await asyncio.gather(*(client.verify("key") for _ in range(100)))

        self.run_with(script, test, max_in_flight=7)
        self.assertEqual(sum(most), 100)
        self.assertLessEqual(max(most), 7)

    def test_cancelled_call_does_not_disturb_the_others(self) -> None:
        is_cancelled = threading.Event()

        def script(connection: Connection) -> None:
            connection.welcome()
            first, second = connection.request(), connection.request()
            assert first is not None and second is not None
            is_cancelled.wait(PATIENT)
            connection.send(answer(first.request_id, owner="first"), answer(second.request_id, owner="second"))
            connection.serve()

        async def test(client: keyward.aio.Client) -> None:
            cancelled = asyncio.ensure_future(client.verify("a"))
            other = asyncio.ensure_future(client.verify("b"))
            await asyncio.sleep(0.05)
            cancelled.cancel()
            is_cancelled.set()
            self.assertEqual((await other).owner, "second")
            with self.assertRaises(asyncio.CancelledError):
                await cancelled
            self.assertEqual((await client.verify("c")).owner, "owner")

        self.assertEqual(self.run_with(script, test).connections, 1)

    def test_request_is_not_written_after_its_deadline(self) -> None:
        reads = threading.Event()

        def script(connection: Connection) -> None:
            connection.welcome()
            reads.wait(PATIENT)
            connection.serve()

        async def test(client: keyward.aio.Client) -> None:
            def calls(count: int) -> Any:
                long = "x" * 1000
                options = {"scopes": [long], "origin": "https://example.com", "deadline": SHORT}
                return asyncio.gather(*(client.verify("k", **options) for _ in range(count)), return_exceptions=True)

            # More than a socket takes.
            results = await calls(2000)
            unwritten.extend(result for result in results if not result.maybe_charged)
            reads.set()
            self.assertTrue(await client.verify("key"))

        unwritten: list[keyward.KeywardError] = []
        peer = self.run_with(script, test)
        # Those that may have been charged, and the last one.
        self.assertEqual(len(peer.requests), 2000 - len(unwritten) + 1)
        self.assertGreater(len(unwritten), 0)

    def test_client_works_in_one_event_loop_after_another(self) -> None:
        peer = Peer()
        self.addCleanup(peer.close)
        client = keyward.aio.Client(peer.path, deadline=PATIENT)

        async def call() -> None:
            self.assertTrue(await client.verify("key"))

        for _ in range(3):
            asyncio.run(call())
        self.assertEqual(peer.connections, 3)


class Sockets(unittest.TestCase):
    def test_socket_is_a_path_or_a_url(self) -> None:
        peer = Peer()
        self.addCleanup(peer.close)
        for socket_name in (peer.path, f"unix:{peer.path}", f"unix://{peer.path}"):
            with keyward.Client(socket_name, deadline=PATIENT) as client:
                self.assertTrue(client.verify("key"))
        for invalid in ("unix:", "unix:relative", "unix://host/path"):
            with self.assertRaises(ValueError):
                keyward.Client(invalid)



if __name__ == "__main__":
    unittest.main()
