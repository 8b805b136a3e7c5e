"""Compare a model with a server that claims to serve it, by log-probabilities of a prompt."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from http.client import HTTPException
from typing import Any
from urllib import request as web
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import torch

# Limits of the whole exchange in seconds, and of an answer in bytes.
_SECONDS = 600.0
_BYTES, _BYTES_A_TOKEN = 2**20, 2**11
_SHOWN = 300  # characters of an error message


def served_logprobs(url: str, name: str, ids: Sequence[int], key: str | None = None) -> list[float]:
    """Log-probabilities of the tokens of a prompt but the first, by an OpenAI-compatible server.

    vLLM, SGLang and llama.cpp's server answer `/v1/completions` with the prompt's own
    log-probabilities if they are asked to echo it. Redirects are not followed. The answer is
    limited to ten minutes and to a size that fits the prompt.

    Args:
        url: Such as `http://localhost:8000`, with or without `/v1`.
        name: What the server calls the model.
        ids: Token ids of the prompt.
        key: An API key, if the server wants one.

    Raises:
        OSError: The server does not answer, or not in time.
        ValueError: It answers with something other than log-probabilities of these tokens, or the
            URL or the key is malformed.
    """
    asked = {
        "model": name, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "echo": True,
        "logprobs": 1,
    }  # fmt: skip
    request = web.Request(_endpoint(url), json.dumps(asked).encode(), _headers(key))
    answer = _parsed(url, _answer(url, request, _BYTES + _BYTES_A_TOKEN * len(ids)))
    try:
        found = answer["choices"][0]["logprobs"]["token_logprobs"][1 : len(ids)]
    except (KeyError, IndexError, TypeError):
        found = [None]
    # Compared without conversion: an integer may be too large for a float. NaN fails too.
    if not all(type(each) in (int, float) and -1e30 < each < 1e30 for each in found):
        raise ValueError(
            f"{url} does not return log-probabilities of the prompt (echo with logprobs)"
        )
    if len(found) != len(ids) - 1:
        raise ValueError(f"{url} returns {len(found)} log-probabilities, not {len(ids) - 1}")
    return [float(each) for each in found]


def _endpoint(url: str) -> str:
    """Where to ask for completions."""
    try:
        parts = urlsplit(url)
        there = parts.hostname is not None and parts.port != 0
    except ValueError:
        parts, there = urlsplit(""), False
    plain = url.isascii() and url.isprintable() and not set(url) & set(" @?#")
    if parts.scheme not in ("http", "https") or not (there and plain):
        given = "an address with a user in it" if "@" in url else repr(url)
        raise ValueError(
            f"the address of a server is such as http://localhost:8000, with nothing but a path "
            f"after it, not {given}"
        )
    return f"{url.rstrip('/').removesuffix('/v1')}/v1/completions"


def _headers(key: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if key:
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("an API key has printable ASCII characters only, and no space")
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _answer(url: str, request: web.Request, most: int) -> bytes:
    """The body of the answer, of at most `most` bytes.

    Socket timeouts count from one byte to the next, so a thread bounds the whole; it is abandoned
    if the server continues.
    """
    try:
        body = _within(_SECONDS, lambda: _exchange(url, request, most))
    except (TimeoutError, Late):
        raise TimeoutError(f"{url} has not answered within {_SECONDS:g} seconds") from None
    if len(body) > most:
        raise ValueError(
            f"{url} answers with more than {most:,} bytes, which are no log-probabilities of this "
            "prompt"
        )
    return body


def _within(seconds: float, work: Callable[[], bytes]) -> bytes:
    done: Future[bytes] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # raised when the result is read
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(seconds)


def _exchange(url: str, request: web.Request, most: int) -> bytes:
    """Send a request; read at most one byte more than `most`."""
    try:
        with _opener().open(request, timeout=_SECONDS) as response:
            body: bytes = response.read(most + 1)
            return body
    except HTTPError as error:
        with error:
            raise ValueError(f"{url} answers {error.code}{_complaint(error)}") from None
    except HTTPException as error:
        said = _printable(str(error))
        raise ValueError(f"{url} does not answer in HTTP, or its answer is cut: {said}") from None
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            raise TimeoutError from None
        raise OSError(f"{url} does not answer: {_printable(str(reason))}") from None


def _opener() -> web.OpenerDirector:
    """An opener for HTTP that follows no redirect: the key is for the named server only."""
    opener = web.OpenerDirector()
    for handler in (
        web.ProxyHandler, web.HTTPHandler, web.HTTPSHandler, web.HTTPDefaultErrorHandler,
        web.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _complaint(error: HTTPError) -> str:
    """The error message of a server."""
    if 300 <= error.code < 400:
        where = _printable(error.headers.get("Location") or "nowhere")
        return (
            f", a redirect to {where}, which is not followed, as the key would go along; if that "
            "is the server, name it with --url"
        )
    try:
        said = error.read(_SHOWN).decode(errors="replace")
    except (OSError, HTTPException):
        said = ""
    return f": {_printable(said) or _printable(error.reason)}"


def _parsed(url: str, body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # cut, too deep, or with a number too long
        raise ValueError(f"{url} does not answer in JSON: {_printable(str(error))}") from None


def _printable(text: str) -> str:
    """The beginning of a message in one line, without control characters."""
    line = " ".join(text.split())[:_SHOWN]
    shown = (each if each.isprintable() else ascii(each)[1:-1] for each in line)
    return "".join(shown)[:_SHOWN]


@torch.no_grad()
def own_logprobs(model: Any, ids: Sequence[int]) -> list[float]:
    """Log-probabilities of the tokens of a prompt but the first, by a loaded model."""
    device = model.get_input_embeddings().weight.device
    prompt = torch.tensor([list(ids)], device=device)
    logits = model(prompt, use_cache=False).logits[0, :-1].float()
    values: list[float] = logits.log_softmax(-1).gather(1, prompt[0, 1:, None])[:, 0].tolist()
    return values
