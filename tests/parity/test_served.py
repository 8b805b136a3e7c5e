"""Servers that answer wrongly, too much, too slowly, or send the request elsewhere."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

import ropex
from ropex.checkpoints.loading import load_model
from ropex.parity import server as served
from ropex.parity.server import own_logprobs, served_logprobs
from tests.support.shell import Shell

IDS = [1, 5, 9]
Script = Callable[[socket.socket], None]


def request(line: socket.socket) -> bytes:
    """A whole request: what is left unread when a line is closed takes the answer with it."""
    found = b""
    while part := line.recv(65536):
        found += part
        head, gap, body = found.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if gap and len(body) >= int(length[1] if length else 0):
            break
    return found


@contextmanager
def serving(script: Script) -> Iterator[tuple[str, list[bytes]]]:
    """A server that runs a script on each connection once the request is there; its requests."""
    asked: list[bytes] = []
    lines: list[socket.socket] = []
    door = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                line, _ = door.accept()
            except OSError:  # closed
                return
            lines.append(line)
            with line, suppress(OSError):  # whoever asked has gone
                asked.append(request(line))
                script(line)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}", asked
    finally:
        for line in (door, *lines):
            with suppress(OSError):  # closed already
                line.shutdown(socket.SHUT_RDWR)
        door.close()
        thread.join(5)
        assert not thread.is_alive()


def says(answer: bytes) -> Script:
    return lambda line: line.sendall(answer)


def whole(body: bytes | str, status: str = "200 OK", more: str = "") -> Script:
    """An answer whose head fits its body."""
    body = body if isinstance(body, bytes) else body.encode()
    return says(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body)


def logprobs(values: str) -> str:
    return f'{{"choices": [{{"logprobs": {{"token_logprobs": {values}}}}}]}}'


def endless(head: bytes, again: bytes, pause: float = 0.0) -> Script:
    def script(line: socket.socket) -> None:
        line.sendall(head)
        while True:
            line.sendall(again)
            time.sleep(pause)

    return script


def refused(script: Script, key: str | None = None) -> str:
    with serving(script) as (url, _), pytest.raises((ValueError, OSError)) as caught:
        served_logprobs(url, "tiny", IDS, key)
    return str(caught.value)


def test_a_whole_answer_is_read() -> None:
    with serving(whole(logprobs("[null, -1.5, -2]"))) as (url, asked):
        assert served_logprobs(url, "tiny", IDS, "secret") == [-1.5, -2.0]
    assert b"POST /v1/completions" in asked[0]
    assert b"Bearer secret" in asked[0]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_carries_no_key(status: int) -> None:
    with serving(whole(logprobs("[null, -1, -1]"))) as (elsewhere, asked):
        told = refused(
            whole("", f"{status} Moved", f"Location: {elsewhere}/v1/completions\r\n"), "secret"
        )
        assert asked == []
    assert "redirect" in told
    assert f"{elsewhere}/v1/completions" in told
    assert "secret" not in told


@pytest.mark.parametrize("where", ["", "Location: file:///etc/passwd\r\n"])
def test_a_redirect_to_no_address_is_refused(where: str) -> None:
    assert "redirect" in refused(whole("", "302 Found", where))


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "script",
    [
        says(b""),
        says(HEAD),
        says(HEAD + b"Content-Length: 900\r\n\r\n" + b'{"choices": ['),
        says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n40\r\n{"),
        says(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{"),
        says(HEAD + b"Content-Length: x\r\n\r\n{"),
        says(b"SSH-2.0-OpenSSH_9.6\r\n"),
        says(b"\x00\xff\xfe\r\n\r\n"),
        says(b"HTTP/1.1 two OK\r\n\r\n"),
        says(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n"),
        says(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n"),
        whole(b"\xff\xfe{}"),
        whole("[" * 200_000),
        whole('{"a":' * 200_000),
        whole("[]"),
        whole("null"),
        whole('{"choices": []}'),
        whole(logprobs("[null, -1]")),
        whole(logprobs(f"[null, -1, {'9' * 400}]")),
        whole(logprobs(f"[null, -1, {'9' * 5000}]")),
        whole(logprobs("[null, -1, NaN]")),
        whole(logprobs("[null, -1, -Infinity]")),
        whole(logprobs('[null, -1, "-1"]')),
        whole(logprobs("[null, -1, true]")),
        whole(logprobs("{}")),
    ],
)
def test_what_is_no_answer_is_an_error_of_the_server(script: Script) -> None:
    assert "127.0.0.1" in refused(script)


@pytest.mark.parametrize(
    "head", [HEAD + b"\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n", HEAD]
)
def test_an_endless_answer_ends(head: bytes) -> None:
    block = b" " * 65536
    again = b"10000\r\n" + block + b"\r\n" if b"chunked" in head else block
    started = time.monotonic()
    told = refused(endless(head, again))
    assert time.monotonic() - started < 20
    assert "more than" in told or "HTTP" in told


@pytest.mark.parametrize(
    "script",
    [
        lambda line: line.recv(1), endless(b"", b"H", 0.05),
        endless(b"HTTP/1.1 200 OK\r\n", b"A", 0.05),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05), endless(HEAD + b"\r\n", b" ", 0.05),
        endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.05),
        endless(b"HTTP/1.1 500 No\r\n\r\n", b" ", 0.05),
    ],
)  # fmt: skip
def test_a_slow_answer_is_given_up(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_SECONDS", 0.3)
    started = time.monotonic()
    assert "0.3 seconds" in refused(script)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "script",
    [
        whole("\x1b[31mno\x07 such\r\n model\u202e\x9b2J", "404 No"),
        whole("", "404 \x1b]0;title\x07"),
        whole("", "307 Moved", "Location: http://\x1b[2J.example/\r\n"),
        says(b"\x1b[2J\x1b]0;title\x07\r\n\r\n"),
    ],
)
def test_no_control_character_of_a_server_is_told(script: Script) -> None:
    assert refused(script).isprintable()


def test_a_long_complaint_is_cut() -> None:
    assert len(refused(whole("x" * 100_000, "400 Bad"))) < 500


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc", "ftp://example.org", "localhost:8000", "http://", "http:///v1", "",
        "http://host:99999", "http://host:x", "http://ho st", "http://host/\x1b[2J",
        "http://[::1", "http://user:word@host",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://localhost:8000") as caught:
        served_logprobs(url, "tiny", IDS, "secret")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["sec\nret", "sec\x00ret", "secrét", "sec ret"])
def test_a_key_that_no_head_holds_is_refused_and_not_told(key: str) -> None:
    with pytest.raises(ValueError, match="key") as caught:
        served_logprobs("http://127.0.0.1:9", "tiny", IDS, key)
    assert key not in str(caught.value)


# `ropex verify --url`.


def verify(url: str, *arguments: object) -> tuple[object, ...]:
    return ("verify", "tiny", "--url", url, "--data", "book.txt", *arguments)


def test_the_command_line_tells_it_in_one_line(world: Shell) -> None:
    for script, said in (
        (whole("[" * 200_000), "does not answer in JSON"),
        (says(b"\x1b[2J\r\n"), "does not answer in HTTP"),
        (whole("\x1b[2J\nno", "500 No"), "answers 500: "),
        (whole(logprobs("null")), "does not return log-probabilities of the prompt"),
        (whole(logprobs("[null, -1]")), "returns 1 log-probabilities, not "),
    ):
        with serving(script) as (url, _):
            told = world.refused(*verify(url))
        assert "\x1b" not in told
        assert said in told
    assert "refused" in world.refused(*verify("http://127.0.0.1:9"))


def test_a_server_that_serves_the_model_passes(world: Shell) -> None:
    model = load_model(world.folder / "tiny")
    ropex.patch(model, "yarn:4")
    prompts: list[list[int]] = []

    def answer(line: socket.socket) -> None:
        prompts.append(json.loads(asked[-1].partition(b"\r\n\r\n")[2])["prompt"])
        values = [None, *own_logprobs(model, prompts[-1]), -1.0]
        whole(logprobs(json.dumps(values)))(line)

    with serving(answer) as (url, asked):
        right = verify(f"{url}/v1/", "-s", "yarn:4", "--api-key", "secret")
        told = world.done(*right)
        status, wrong, _ = world(*verify(url, "-s", "linear:4"))
    assert told.startswith("ok  ")
    assert "log-probabilities of 40 tokens" in told
    assert len(prompts[0]) == 40
    assert b"POST /v1/completions" in asked[0]
    assert b"Bearer secret" in asked[0]
    assert (status, wrong[:4]) == (1, "FAIL")
