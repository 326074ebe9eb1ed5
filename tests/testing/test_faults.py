"""The object server lets requests fail as the rules say, in this process and in another."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest

from aioxarray.testing import ObjectServer, Request
from aioxarray.testing._serving.faults import Fault, Faults

BODY = b"abcdefgh"


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("a", BODY)
        server.put("b", BODY)
        yield server


def ask(
    server: ObjectServer, key: str = "a", method: str = "GET", body: bytes | None = None
) -> int | bytes | str:
    """Make a request by a connection of its own: the body, an error's status or its type."""
    client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    try:
        client.request(method, f"/{key}", body)
        with client.getresponse() as answer:
            data = answer.read()
    except (ConnectionError, http.client.IncompleteRead) as error:
        return type(error).__name__
    finally:
        client.close()
    return answer.status if answer.status >= 400 else data


def test_a_status_is_answered_until_a_later_rule_ends_it(server: ObjectServer) -> None:
    server.fail("a", 503)
    assert [ask(server, key) for key in "ab"] == [503, BODY]
    server.fail("a", None)
    assert ask(server) == BODY


def test_a_status_can_say_when_to_come_back(server: ObjectServer) -> None:
    server.fail("a", 429, times=1, retry_after=7)
    client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    for status, header in ((429, "7"), (200, None)):
        client.request("GET", "/a")
        answer = client.getresponse()
        answer.read()
        assert (answer.status, answer.getheader("Retry-After")) == (status, header)
    client.close()


def test_only_some_requests_fail(server: ObjectServer) -> None:
    server.fail("a", 500, after=1, times=2)
    assert [ask(server) for _ in range(4)] == [BODY, 500, 500, BODY]


def test_only_one_verb_fails(server: ObjectServer) -> None:
    server.fail("*", 500, method="PUT")
    assert ask(server, "a", "PUT", b"new") == 500
    assert ask(server) == BODY


def test_the_latest_rule_that_strikes_decides(server: ObjectServer) -> None:
    server.fail("*", 500, times=1)
    server.fail("a", 429, times=1)
    assert [ask(server) for _ in range(3)] == [429, 500, BODY]


def test_the_same_requests_fail_in_every_run() -> None:
    def run(seed: int) -> list[object]:
        with ObjectServer() as server:
            server.put("a", BODY)
            server.fail("a", 500, probability=0.3, seed=seed)
            return [ask(server) for _ in range(40)]

    one, again, other = run(1), run(1), run(2)
    assert one == again != other
    assert 4 <= one.count(500) <= 20


def test_the_connection_is_reset(server: ObjectServer) -> None:
    server.fail("a", "reset", times=1)
    assert [ask(server), ask(server)] == ["ConnectionResetError", BODY]
    server.fail("a", "reset", method="PUT")
    assert ask(server, "a", "PUT", b"new") == "ConnectionResetError"
    assert server.data["a"] == BODY


def test_the_answer_is_lost_but_not_its_effect(server: ObjectServer) -> None:
    server.fail("a", "lose", method="PUT")
    assert ask(server, "a", "PUT", b"new") == "ConnectionResetError"
    assert server.data["a"] == b"new"


def test_the_body_is_truncated(server: ObjectServer) -> None:
    server.fail("a", "truncate", times=1)
    assert [ask(server), ask(server)] == ["IncompleteRead", BODY]


def test_the_body_is_too_long(server: ObjectServer) -> None:
    server.fail("a", "extend", times=1)
    assert [ask(server), ask(server)] == [BODY + b"\0" * 16, BODY]


def test_more_follows_than_was_announced(server: ObjectServer) -> None:
    server.fail("a", "overrun", times=1)
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"GET /a HTTP/1.1\r\n\r\n")
        data = b""
        while not data.endswith(b"\0" * 16):
            data += connection.recv(1 << 16)
    assert f"Content-Length: {len(BODY)}\r\n".encode() in data
    assert data.endswith(b"\r\n\r\n" + BODY + b"\0" * 16)


def test_no_answer_comes_until_the_client_gives_up() -> None:
    with ObjectServer() as server:
        server.put("a", BODY)
        server.fail("a", "stall", times=1)
        client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=0.01)
        client.request("GET", "/a")
        with pytest.raises(TimeoutError):
            client.getresponse()
        server.log.wait_in_flight(1)
        assert server.log.completed == 0
        client.close()
        assert ask(server) == BODY


def test_half_of_the_body_comes_and_then_nothing(server: ObjectServer) -> None:
    server.fail("a", "stall-body", times=1)
    client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    client.request("GET", "/a")
    answer = client.getresponse()
    client.sock.settimeout(0.01)
    assert answer.read(len(BODY) // 2) == BODY[: len(BODY) // 2]
    with pytest.raises(TimeoutError):
        answer.read()
    assert server.log.in_flight == 1
    answer.close()
    client.close()
    server.log.wait_in_flight(0)
    assert server.log.cancelled == 1
    assert ask(server) == BODY


def test_an_answer_without_a_body_stalls_after_it_was_carried_out(server: ObjectServer) -> None:
    server.fail("a", "stall-body", method="PUT")
    client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=0.01)
    client.request("PUT", "/a", b"new")
    with pytest.raises(TimeoutError):
        client.getresponse()
    server.log.wait_in_flight(1)
    client.close()
    server.log.wait_in_flight(0)
    assert server.data["a"] == b"new"


def test_one_bit_of_the_body_is_wrong(server: ObjectServer) -> None:
    server.fail("a", "flip", times=1)
    damaged, again = ask(server), ask(server)
    assert again == BODY
    assert isinstance(damaged, bytes)
    bits = [(one ^ other).bit_count() for one, other in zip(damaged, BODY, strict=True)]
    assert sorted(bits) == [0] * 7 + [1]


def test_rules_are_forgotten(server: ObjectServer) -> None:
    server.fail("a", 503)
    server.fail("*", 500)
    server.mend()
    assert ask(server) == BODY


def test_requests_fail_while_too_many_are_in_flight(server: ObjectServer) -> None:
    server.fail("a", 503, above=2)
    server.hold("b")
    held = [http.client.HTTPConnection(server.url.removeprefix("http://")) for _ in range(2)]
    for client in held:
        client.request("GET", "/b")
    server.wait_requested("b", count=2)
    assert ask(server) == 503
    server.release("b")
    for client in held:
        assert client.getresponse().read() == BODY
        client.close()
    assert ask(server) == BODY


def test_requests_fail_that_exceed_a_rate() -> None:
    faults = Faults()
    faults.add(Fault("*", 503, above_per_s=10))

    def failed(now: float) -> int:
        return sum(faults.of(Request("GET", "a"), 1, now) is not None for _ in range(15))

    # Ten may come at once, and one more each tenth of a second.
    assert [failed(100.0), failed(100.25), failed(200.0)] == [5, 13, 5]


def test_the_rules_reach_a_server_in_another_process() -> None:
    with ObjectServer(process=True) as server:
        server.put("a", BODY)
        server.fail("a", "reset", times=1)
        server.fail("a", 429, method="GET", after=1, times=1, retry_after=1)
        server.fail("a", "truncate", times=1)
        assert [ask(server) for _ in range(4)] == [
            "IncompleteRead",
            "ConnectionResetError",
            429,
            BODY,
        ]
        assert server.log.failed == 2
        server.fail("a", 500)
        server.mend()
        assert ask(server) == BODY


def test_faults_are_counted_as_failed(server: ObjectServer) -> None:
    server.fail("a", "truncate", times=1)
    ask(server)
    ask(server)
    assert (server.log.count("GET", "a"), server.log.failed, server.log.completed) == (2, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"effect": "explode"}, "an HTTP status or one of 'reset'.*got 'explode'"),
        ({"effect": 799}, "799 is not a valid HTTPStatus"),
        ({"probability": 1.5}, "between 0 and 1; got 1.5"),
        ({"times": -1}, "count requests; got 0, -1"),
        ({"effect": "reset", "retry_after": 1}, "only a status has a Retry-After"),
        ({"effect": "reset", "code": "SlowDown"}, "only a status has a code"),
        ({"above": -1}, "above must not be negative; got -1"),
        ({"above_per_s": 0}, "above_per_s must be at least 1; got 0"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(arguments: dict[str, object], message: str) -> None:
    with ObjectServer() as server, pytest.raises(ValueError, match=message):
        server.fail("*", **arguments)  # type: ignore[arg-type]  # wrong on purpose
