"""`ropex verify`: two ways to one model are told apart from two models."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import ropex
from ropex.checkpoints.loading import load_model
from ropex.parity.server import own_logprobs
from tests.support.models import save_checkpoint, tiny_causal
from tests.support.shell import Shell
from tests.support.tiny_eval import words


class Server(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does that is asked to echo a prompt."""

    model: ClassVar[Any] = None
    answer: ClassVar[Any] = None
    asked: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.asked.append((self.path, asked, self.headers.get("Authorization")))
        if Server.answer is not None:
            self._send(*Server.answer)
            return
        values = [None, *own_logprobs(Server.model, asked["prompt"]), -1.0]
        self._send(200, {"choices": [{"logprobs": {"token_logprobs": values}}]})

    def _send(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "tiny")


@pytest.fixture
def url(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Server, "model", load_model(folder))
    monkeypatch.setattr(Server, "asked", [])
    (folder.parent / "book.txt").write_text(words(200), encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("text", ["yarn:4", "ntk:2+clip:2", "llama3:4"])
def test_a_saved_checkpoint_is_the_live_model(shell: Shell, folder: Path, text: str) -> None:
    shell.done("patch", folder, "-s", text, "-o", "out")
    status, told, _ = shell("verify", folder, "out", "-s", text)
    assert status == 0
    lines = told.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("ok  ") for line in lines)
    assert max(float(line.rpartition(": ")[2]) for line in lines) < 1e-20  # a pair that stands


@pytest.mark.parametrize("live", [("-s", "linear:4"), ("-s", "yarn:8"), ()])
def test_another_model_is_told(shell: Shell, folder: Path, live: tuple[str, ...]) -> None:
    shell.done("patch", folder, "-s", "yarn:4", "-o", "out")
    status, told, _ = shell("verify", folder, "out", *live)
    assert status == 1
    assert "FAIL  cos and sin of model.rotary_emb" in told
    assert "FAIL  logits at positions up to the target" in told


def test_a_window_that_was_lifted_is_lifted_here_too(shell: Shell, tmp_path: Path) -> None:
    tiny_causal("mistral", sliding_window=40).save_pretrained(tmp_path / "model")
    how = ("-s", "yarn:4", "--lift-sliding-window")
    shell.done("patch", "model", *how, "-o", "out")
    told = shell.done("verify", "model", "out", *how).splitlines()
    assert max(float(line.rpartition(": ")[2]) for line in told) < 1e-20
    with pytest.warns(UserWarning, match="only the last 40 tokens"):
        assert shell("verify", "model", "out", "-s", "yarn:4")[0] == 1


def test_other_weights_are_told(shell: Shell, folder: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other", seed=1)
    status, told, _ = shell("verify", folder, other)
    assert status == 1
    assert [line[:4] for line in told.splitlines()] == ["ok  ", "FAIL", "FAIL", "FAIL"]


def test_a_server_that_serves_the_model_passes(shell: Shell, folder: Path, url: str) -> None:
    ropex.patch(Server.model, "yarn:4")
    served = ("--url", f"{url}/v1/", "--data", folder.parent / "book.txt", "--api-key", "secret")
    status, told, _ = shell("verify", folder, "-s", "yarn:4", *served)
    assert (status, told[:4]) == (0, "ok  ")
    assert "log-probabilities of 40 tokens" in told
    ((path, asked, key),) = Server.asked
    assert (path, asked["model"], len(asked["prompt"]), key) == (
        "/v1/completions", "tiny", 40, "Bearer secret",
    )  # fmt: skip
    status, told, _ = shell("verify", folder, "-s", "linear:4", *served)
    assert (status, told[:4]) == (1, "FAIL")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, {"error": "no such model"}), "answers 404: "),
        ((200, {"choices": []}), "does not return log-probabilities of the prompt"),
        ((200, {"choices": [{"logprobs": {"token_logprobs": [None, -1.0]}}]}), "returns 1 log-"),
        ((200, {"choices": [{"logprobs": None}]}), "does not return log-probabilities"),
    ],
)
def test_a_server_that_answers_otherwise_is_told(
    shell: Shell, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch, answer: Any, said: str
) -> None:
    monkeypatch.setattr(Server, "answer", answer)
    book = folder.parent / "book.txt"
    assert said in shell.refused("verify", folder, "--url", url, "--data", book)


def test_a_server_that_is_not_there_is_told(shell: Shell, folder: Path) -> None:
    (folder.parent / "book.txt").write_text(words(200), encoding="utf-8")
    told = shell.refused(
        "verify", folder, "--url", "http://127.0.0.1:9", "--data", folder.parent / "book.txt"
    )
    assert "refused" in told


@pytest.mark.parametrize("extra", [(), ("out", "--url", "http://127.0.0.1:9")])
def test_one_thing_to_compare_with_is_named(
    shell: Shell, folder: Path, extra: tuple[str, ...]
) -> None:
    assert "one of the two" in shell.refused("verify", folder, *extra)
