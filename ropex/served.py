"""Compare a model with a server that claims to serve it, by log-probabilities of a prompt."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch

_SECONDS = 600


def served_logprobs(url: str, name: str, ids: Sequence[int], key: str | None = None) -> list[float]:
    """Log-probabilities of the tokens of a prompt but the first, by an OpenAI-compatible server.

    vLLM, SGLang and llama.cpp's server answer `/v1/completions` with the prompt's own
    log-probabilities if they are asked to echo it.

    Args:
        url: Such as `http://localhost:8000`, with or without `/v1`.
        name: What the server calls the model.
        ids: Token ids of the prompt.
        key: An API key, if the server wants one.

    Raises:
        OSError: The server does not answer.
        ValueError: It answers something else than log-probabilities of these tokens.
    """
    asked = {
        "model": name,
        "prompt": list(ids),
        "max_tokens": 1,
        "temperature": 0.0,
        "echo": True,
        "logprobs": 1,
    }
    answer = _post(f"{url.rstrip('/').removesuffix('/v1')}/v1/completions", asked, key)
    try:
        found = answer["choices"][0]["logprobs"]["token_logprobs"]
        values = [float(each) for each in found[1 : len(ids)]]
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(
            f"{url} does not return log-probabilities of the prompt (echo with logprobs)"
        ) from None
    if len(values) != len(ids) - 1:
        raise ValueError(f"{url} returns {len(values)} log-probabilities, not {len(ids) - 1}")
    return values


def _post(url: str, content: dict[str, Any], key: str | None) -> Any:
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        said = error.read(300).decode(errors="replace").strip()
        raise ValueError(f"{url} answers {error.code}: {said or error.reason}") from None
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from None


@torch.no_grad()
def own_logprobs(model: Any, ids: Sequence[int]) -> list[float]:
    """Log-probabilities of the tokens of a prompt but the first, by a loaded model."""
    device = model.get_input_embeddings().weight.device
    prompt = torch.tensor([list(ids)], device=device)
    logits = model(prompt, use_cache=False).logits[0, :-1].float()
    values: list[float] = logits.log_softmax(-1).gather(1, prompt[0, 1:, None])[:, 0].tolist()
    return values
