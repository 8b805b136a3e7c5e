"""The formulas of the engines against what was measured and what must follow from them."""

from __future__ import annotations

import math

import pytest

from tests.support.engine_formulas import BASE, linear, llama3, mscale, root


def test_the_two_lengths_give_the_temperature_that_was_measured() -> None:
    original = round(131072 ** (1 / 1.1386294**2))
    entry = {"original_max_position_embeddings": original}
    assert root(entry, 131072) == pytest.approx(1.1386302, abs=1e-7)


def test_three_keys_give_any_temperature() -> None:
    m = (1.25 - 1) / (0.1 * math.log(4))
    assert mscale(4, m) / mscale(4, 0.0) == pytest.approx(1.25, rel=1e-15)


def test_all_low_is_linear() -> None:
    entry = {"rope_theta": BASE, "factor": 1.7, "original_max_position_embeddings": 8192}
    low = {**entry, "low_freq_factor": 8192.0, "high_freq_factor": 32768.0}
    assert llama3(low) == linear(entry)
