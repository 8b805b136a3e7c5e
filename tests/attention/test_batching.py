"""Continuous batching computes what `generate` does, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import GenerationConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager

import ropex
from tests.support.models import TRAINED, tiny_model, tokens

PROMPTS = [tokens(n, seed=n)[0].tolist() for n in (TRAINED + 8, 12, TRAINED - 7)]
NEW = 10
SWITCHED = "longrope:factor=4,long_factor=1/1/1.5/2/2.5/3/4/4"


def settings() -> dict[str, Any]:
    generation = GenerationConfig(
        max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    if transformers.__version__.startswith("4."):
        return {"generation_config": generation}
    from transformers import ContinuousBatchingConfig

    sizes = ContinuousBatchingConfig(page_size=16, num_blocks=16, max_batch_tokens=64)
    return {"generation_config": generation, "continuous_batching_config": sizes}


def batched(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    found = model.generate_batch(prompts, **settings(), **options, warmup=False)
    return [each.generated_tokens for each in found.values()]


def one_by_one(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    given: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    rows = (model.generate(torch.tensor([each]), use_cache=False, **given) for each in prompts)
    return [row[0, -NEW:].tolist() for row in rows]


needs_5 = pytest.mark.skipif(
    transformers.__version__.startswith("4."),
    reason="continuous batching of transformers 4 asks a GPU for its free memory",
)


@needs_5
@pytest.mark.filterwarnings("ignore")
def test_what_no_length_changes_is_batched(llama: Any) -> None:
    with ropex.patch(llama, "yarn:4"):
        assert batched(llama, PROMPTS) == one_by_one(llama, PROMPTS)


@needs_5
@pytest.mark.filterwarnings("ignore")
def test_shared_beginnings_are_not_shared_between_patches() -> None:
    model, prompts = tiny_model("llama"), [tokens(100)[0].tolist()]
    batched(model, prompts, persistent_manager=True)
    with ropex.patch(model, "linear:2"):
        assert batched(model, prompts, persistent_manager=True) == one_by_one(model, prompts)
    assert batched(model, prompts, persistent_manager=True) == one_by_one(model, prompts)


@pytest.mark.parametrize(
    ("text", "cache", "told"),
    [
        ("dynamic", "rotated", "would get the frequencies of the longest; call generate"),
        ("dynamic", "unrotated", "would get the frequencies of the longest"),
        (SWITCHED, "rotated", "would get the frequencies of the longest"),
        ("yarn:4", "unrotated", "that holds rotated keys"),
        ("logn", "rotated", "would not scale queries"),
        ("yarn:4+logn", "rotated", "would not scale queries"),
    ],
)
def test_what_it_cannot_compute_is_refused(llama: Any, text: str, cache: Any, told: str) -> None:
    before = vars(llama).copy()
    with ropex.patch(llama, text, cache=cache):
        with pytest.raises(RuntimeError, match=told):
            llama.generate_batch(PROMPTS, **settings())
        with pytest.raises(RuntimeError, match=told):
            llama.init_continuous_batching(**settings())
        with pytest.raises(RuntimeError, match=told):
            llama(tokens(), cache=object())
    assert vars(llama) == before


@needs_5
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", ["dynamic", "logn"])
def test_a_manager_from_before_the_patch_fails_its_requests(llama: Any, text: str) -> None:
    manager = llama.init_continuous_batching(**settings())
    with ropex.patch(llama, text):
        manager.start()
        manager.add_request(PROMPTS[0], max_new_tokens=NEW)
        result = manager.get_result(timeout=30)
        manager.stop(block=True, timeout=5)
    assert isinstance(manager, ContinuousBatchingManager)
    assert "continuous batching" in str(result.error)
