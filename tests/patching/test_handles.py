"""A handle is a block that may be entered again: inside it the model is patched, or it raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ropex
from tests.support.models import logits, tokens

IDS = tokens()


@pytest.mark.parametrize("text", ["yarn:4", "dynamic", "logn"])
def test_a_removed_handle_that_is_entered_applies_again(llama: Any, text: str) -> None:
    plain = logits(llama, IDS)
    with ropex.patch(llama, text) as patch:
        wanted = logits(llama, IDS)
    for _ in range(2):
        with patch as again:
            assert again is patch
            assert torch.equal(logits(llama, IDS), wanted)
            assert patch.verify().logit_change > 0
        assert torch.equal(logits(llama, IDS), plain)


def test_a_block_within_a_block_leaves_the_outer_one_patched(llama: Any) -> None:
    plain = logits(llama, IDS)
    patch = ropex.patch(llama, "yarn:4")
    wanted = logits(llama, IDS)
    with patch:
        inner = ropex.patch(llama, "linear:2")
        both = logits(llama, IDS)
        with patch:
            ropex.patch(llama, "temperature:1.1")
        assert torch.equal(logits(llama, IDS), both)
        inner.remove()
        with patch:
            pass
        assert torch.equal(logits(llama, IDS), wanted)
    assert torch.equal(logits(llama, IDS), plain)


def test_what_is_removed_inside_a_block_stays_removed(llama: Any) -> None:
    plain = logits(llama, IDS)
    with ropex.patch(llama, "yarn:4") as patch:
        wanted = logits(llama, IDS)
        patch.remove()
        assert torch.equal(logits(llama, IDS), plain)
        with patch:
            assert torch.equal(logits(llama, IDS), wanted)
        assert torch.equal(logits(llama, IDS), plain)
        with patch, patch:
            patch.remove()
        with patch:
            pass
    assert torch.equal(logits(llama, IDS), plain)


def test_a_block_that_ends_by_an_error_can_be_entered_again(llama: Any) -> None:
    plain, patch = logits(llama, IDS), ropex.patch(llama, "yarn:4")
    with pytest.raises(KeyError), patch, patch:
        raise KeyError
    assert torch.equal(logits(llama, IDS), plain)
    with patch:
        assert not torch.equal(logits(llama, IDS), plain)
    assert torch.equal(logits(llama, IDS), plain)


def test_a_handle_is_not_applied_over_other_patches_than_it_was_made_for(llama: Any) -> None:
    with ropex.patch(llama, "linear:2") as below:
        above = ropex.patch(llama, "ntk:2")
        wanted = logits(llama, IDS)
    plain = logits(llama, IDS)
    with pytest.raises(RuntimeError, match="ntk:2 was made for the model with linear:2 and"), above:
        raise AssertionError
    assert torch.equal(logits(llama, IDS), plain)
    with below, above:
        assert torch.equal(logits(llama, IDS), wanted)
    with (
        ropex.patch(llama, "yarn:4"),
        pytest.raises(RuntimeError, match="cannot be applied to it with yarn:4; remove that"),
        below,
    ):
        raise AssertionError
    assert torch.equal(logits(llama, IDS), plain)


def test_a_removed_handle_stays_so_after_it_is_suspended(llama: Any) -> None:
    plain, patch = logits(llama, IDS), ropex.patch(llama, "yarn:4")
    patch.remove()
    with patch.suspended():
        assert torch.equal(logits(llama, IDS), plain)
    assert torch.equal(logits(llama, IDS), plain)
    with patch.suspended(), patch:
        assert not torch.equal(logits(llama, IDS), plain)
    assert torch.equal(logits(llama, IDS), plain)
