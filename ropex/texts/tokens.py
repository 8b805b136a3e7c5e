"""Texts as token ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text: "<s>" is three characters, not a token."""
    settings = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    ids: list[int] = tokenizer(text, **settings)["input_ids"]
    return ids


def usual_front(tokenizer: Any, wanted: str) -> str:
    """`wanted`, but `none` for `auto` if the tokenizer has no BOS (Qwen)."""
    return "none" if wanted == "auto" and tokenizer.bos_token_id is None else wanted


def require_embedded(ids: Iterable[int], model: Any, name: str) -> None:
    """Raise a ValueError where a model has no embedding for one of these ids.

    Args:
        ids: Ids that the model is to read.
        model: With or without its weights.
        name: What to call it in the message.
    """
    table = model.get_input_embeddings()
    known = int(getattr(table, "num_embeddings", 0) or table.weight.shape[0])
    largest = max(ids, default=0)
    if largest >= known:
        raise ValueError(
            f"the tokenizer gives the id {largest}, and {name} has embeddings of 0 to {known - 1}; "
            "give it the tokenizer that it was trained with, or resize its embeddings"
        )


def first_token(tokenizer: Any, wanted: str, model: str) -> int | None:
    """Id of the token in front of every text; None for no token.

    Args:
        tokenizer: Of the model.
        wanted: `auto` for the tokenizer's BOS, `none`, or a token of its vocabulary.
        model: What to call the model in a message.

    Raises:
        ValueError: The tokenizer has no such token.
    """
    if wanted == "none":
        return None
    if wanted != "auto":
        found: int | None = tokenizer.get_vocab().get(wanted)
        if found is None:
            raise ValueError(
                f"the tokenizer of {model} has no token {wanted!r} to start texts with"
            )
        return found
    if tokenizer.bos_token_id is None:
        raise ValueError(
            f"the tokenizer of {model} has no BOS token; --bos none starts texts with text, "
            "--bos TOKEN with a token of your choice"
        )
    return int(tokenizer.bos_token_id)
