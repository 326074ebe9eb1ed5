"""The object server lets requests fail as the rules say, in this process and in another."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest

from aioxarray.testing import ObjectServer

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
        assert (server.log.in_flight, server.log.completed) == (1, 0)
        client.close()
        assert ask(server) == BODY


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
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(arguments: dict[str, object], message: str) -> None:
    with ObjectServer() as server, pytest.raises(ValueError, match=message):
        server.fail("*", **arguments)  # type: ignore[arg-type]  # wrong on purpose
