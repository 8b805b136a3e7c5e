"""The guard of a training: which tables it lets pass, and what it says of others."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import ropex
from ropex.config.notations import version_5
from ropex.errors import UnsupportedModel
from ropex.train.guard import RopeChanged, RopeGuard
from tests.support.configs import LISTED
from tests.support.configs import NATIVE as ENTRIES
from tests.support.guarded import At, checkpoints, rounded, trainer
from tests.support.models import TRAINED, rope_settings, tiny_config, tiny_model, tokens
from tests.support.processes import ranks

# What a checkpoint can say by itself; Phi-3 keeps the length of short sequences at the root.
TEXTS = {"linear": "linear:4", "dynamic": "dynamic:4", "yarn": "yarn:4", "llama3": "llama3:4"}
NATIVE: dict[str, dict[str, Any]] = {
    "none": rope_settings(),
    **{kind: rope_settings(**ENTRIES[text]) for kind, text in TEXTS.items()},
    "longrope": {**rope_settings(**ENTRIES[LISTED]), "original_max_position_embeddings": TRAINED},
}
for kind in ("yarn", "llama3", "longrope"):
    NATIVE[kind]["max_position_embeddings"] = 4 * TRAINED
PATCHES = ("yarn:4", "linear:1.7", "dynamic:4", "yarn:4+logn", "dynamic_yarn")


def native(kind: str) -> Any:
    return tiny_model("llama", **copy.deepcopy(NATIVE[kind]))


def guarded(kind: str, patched: bool) -> tuple[Any, RopeGuard]:
    """A model that is scaled by a patch or by its checkpoint, and its guard."""
    model = tiny_model("llama") if patched else native(kind)
    if patched:
        ropex.patch(model, TEXTS[kind])
    return model, RopeGuard(model)


def said(guard: RopeGuard, model: Any = None) -> str:
    """The one sentence of a guard that stops."""
    with pytest.raises(RopeChanged) as caught:
        guard.check(model)
    text = str(caught.value)
    assert "\n" not in text
    assert ". " not in text
    return text


# What passes.


@pytest.mark.parametrize("text", PATCHES)
@pytest.mark.parametrize("cast", ["bfloat16", "half"])
def test_a_patched_model_passes_cast_or_not(llama: Any, text: str, cast: str) -> None:
    ropex.patch(llama, text)
    guard = RopeGuard(llama, text)
    guard.check()
    getattr(llama, cast)()
    guard.check()


def test_a_patch_that_leaves_the_tables_alone_does_not_protect_them(llama: Any) -> None:
    ropex.patch(llama, "logn")
    guard = RopeGuard(llama, "logn")
    guard.check()
    llama.to(torch.bfloat16)
    assert "is rounded to bfloat16" in said(guard)


@pytest.mark.parametrize("kind", NATIVE)
def test_a_checkpoint_that_scales_passes_as_it_is_loaded(tmp_path: Path, kind: str) -> None:
    native(kind).save_pretrained(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    guard = RopeGuard(model)
    guard.check()
    for length in (8, 200, 40):  # some tables follow what was read last
        model(tokens(length), use_cache=False)
        guard.check()


@pytest.mark.parametrize("length", [8, 60])
def test_a_guard_only_reads(llama: Any, length: int) -> None:
    for model in (native("dynamic"), native("longrope"), llama):
        if model is llama:
            ropex.patch(model, "dynamic:4")
        model(tokens(length), use_cache=False)
        rotary = model.model.rotary_emb
        before = {name: value.clone() for name, value in rotary.named_buffers()}
        held = {id(value) for value in rotary.buffers()}
        config = model.config.to_dict()
        RopeGuard(model).check()
        assert {id(value) for value in rotary.buffers()} == held
        assert all(torch.equal(before[name], value) for name, value in rotary.named_buffers())
        assert model.config.to_dict() == config


def test_edits_of_the_config_that_rotate_nothing_pass(llama: Any) -> None:
    ropex.patch(llama, "yarn:4")
    guard = RopeGuard(llama)
    llama.config.use_cache = False
    llama.resize_token_embeddings(80, mean_resizing=False)
    guard.check()


def test_what_no_config_can_say_is_not_asked_of_it(llama: Any) -> None:
    ropex.patch(llama, "yarn:4+logn")
    guard = RopeGuard(llama)
    refactored(llama.config)
    guard.check()


# Through wrappers.


@pytest.mark.parametrize("wrapper", ["compiled", "adapter", "inside another"])
@pytest.mark.parametrize("patched", [False, True])
def test_a_wrapped_model_is_seen_through(llama: Any, wrapper: str, patched: bool) -> None:
    from peft import LoraConfig, get_peft_model

    wrappers: dict[str, Callable[[Any], Any]] = {
        "compiled": lambda model: torch.compile(model, backend="eager"),
        "adapter": lambda model: get_peft_model(model, LoraConfig(target_modules=["q_proj"])),
        "inside another": lambda model: torch.nn.ModuleDict({"module": model}),
    }
    if patched:
        ropex.patch(llama, "yarn:4")
    guard = RopeGuard(llama)
    rotary, outer = llama.model.rotary_emb, wrappers[wrapper](llama)
    guard.check(outer)
    RopeGuard(outer).check()
    rotary.inv_freq.mul_(1.01)
    assert "rotary_emb does not hold the planned frequencies" in said(guard, outer)


# What does not pass.


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("back", [False, True])
def test_a_cast_that_rounds_is_named(kind: str, dtype: torch.dtype, back: bool) -> None:
    model = native(kind)
    guard = RopeGuard(model)
    model.to(dtype)
    if back:
        model.float()
    if kind == "longrope" and not version_5():  # it keeps a whole one, and takes that in each call
        guard.check()
        return
    text = said(guard)
    assert text.startswith(f"model.rotary_emb is rounded to {str(dtype).removeprefix('torch.')}")
    assert f"load the model with dtype={dtype} instead" in text
    later = RopeGuard(model)  # it does not take the rounded table for what is planned
    assert said(later) == text


def retable(model: Any) -> None:
    """Load a state dict with a table of its own, as of a checkpoint that has it among weights."""
    rotary = model.model.rotary_emb
    rotary._non_persistent_buffers_set.discard("inv_freq")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["model.rotary_emb.inv_freq"] /= 2
    model.load_state_dict(state)


def emptied(model: Any) -> None:
    model.to_empty(device="cpu")
    for value in model.model.rotary_emb.buffers():
        value.fill_(0.5)


WRITTEN: dict[str, Callable[[Any], Any]] = {
    "in place": lambda model: model.model.rotary_emb.inv_freq.copy_(torch.rand(8)),
    "one pair": lambda model: model.model.rotary_emb.inv_freq[3].mul_(1 + 1e-5),
    "state dict": retable,
    "scale": lambda model: setattr(model.model.rotary_emb, "attention_scaling", 1.5),
}


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("patched", [False, True])
def test_a_table_that_is_written_over_is_told(how: str, patched: bool) -> None:
    model, guard = guarded("yarn", patched)
    WRITTEN[how](model)
    assert said(guard).startswith("model.rotary_emb does not hold the planned frequencies, so")


@pytest.mark.parametrize("kind", ["none", "yarn", "dynamic"])
def test_a_table_without_content_is_told(kind: str) -> None:
    model = native(kind)
    guard = RopeGuard(model)
    emptied(model)
    assert "does not hold the planned frequencies" in said(guard)
    model.to("meta")
    assert "has no table yet; load the weights" in said(guard)


def test_initialising_anew_is_told_if_it_writes_another_table() -> None:
    model = native("yarn")
    guard = RopeGuard(model)
    model.init_weights()
    guard.check()
    entry = getattr(model.config, "rope_parameters", None) or model.config.rope_scaling
    entry["factor"] = 8.0
    model._init_weights(model.model.rotary_emb)
    entry["factor"] = 4.0
    if version_5():
        assert "weights that were loaded or initialised" in said(guard)
    else:  # it writes no tables
        guard.check()


@pytest.mark.parametrize("text", ["yarn:4", "yarn:4+logn", "dynamic:4"])
def test_a_rotary_module_that_is_built_anew_has_lost_the_patch(llama: Any, text: str) -> None:
    ropex.patch(llama, text)
    guard = RopeGuard(llama)
    rotary = llama.model.rotary_emb
    llama.model.rotary_emb = type(rotary)(llama.config)
    assert said(guard).startswith(f"model.rotary_emb was replaced after {text} was applied")
    llama.model.rotary_emb = torch.nn.Identity()
    assert said(guard).startswith("the model has 0 rotary tables, and had 1 when the guard was")


def test_a_module_of_an_unpatched_model_may_be_built_anew() -> None:
    model = native("yarn")
    guard = RopeGuard(model)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    guard.check()
    model.model.rotary_emb = type(model.model.rotary_emb)(tiny_config("llama"))
    model.model.rotary_emb.config = model.config
    assert "does not hold the planned frequencies" in said(guard)


def test_patches_that_come_and_go_are_told(llama: Any) -> None:
    before = RopeGuard(llama)
    patch = ropex.patch(llama, "yarn:4")
    assert said(before) == "yarn:4 was applied after the guard was made; make the guard after it"
    during = RopeGuard(llama)
    with ropex.patch(llama, "logn"):
        assert said(during).startswith("logn was applied after")
        RopeGuard(llama).check()
    during.check()
    patch.remove()
    assert said(during).startswith("yarn:4 was removed from the model; patch it again")
    before.check()


def edited(**entry: Any) -> Callable[[Any], None]:
    def edit(config: Any) -> None:
        for key, value in rope_settings(**entry).items():
            setattr(config, key, value)

    return edit


def refactored(config: Any) -> None:
    entry = getattr(config, "rope_parameters", None) or config.rope_scaling
    entry["factor"] = 8.0


EDITS: dict[str, Callable[[Any], None]] = {
    "unscaled": edited(),
    "linear": edited(rope_type="linear", factor=4.0),
    "unknown": edited(rope_type="yarn"),
    "factor": refactored,
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("patched", [False, True])
def test_a_config_that_no_longer_says_what_is_trained_is_told(edit: str, patched: bool) -> None:
    model, guard = guarded("yarn", patched)
    EDITS[edit](model.config)
    assert said(guard).startswith("the config was changed, so that a checkpoint would compute")


@pytest.mark.parametrize("patched", [False, True])
def test_a_length_that_tables_go_by_is_part_of_the_config(patched: bool) -> None:
    model, guard = guarded("dynamic", patched)
    model.config.max_position_embeddings *= 2
    assert said(guard).startswith("the config was changed")


@pytest.mark.parametrize("text", ["yarn:4", None])
def test_another_config_in_the_place_of_the_model_s_is_told(llama: Any, text: str | None) -> None:
    if text:
        ropex.patch(llama, text)
    guard = RopeGuard(llama)
    llama.config = copy.deepcopy(llama.config)
    guard.check()
    llama.config = tiny_config("llama", **NATIVE["linear"])
    assert said(guard).startswith("the config was changed")


# The strategy that was asked for.


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("none", "none"),
        ("yarn", "yarn:4"),
        ("yarn", "yarn:length=128"),
        ("yarn", "none"),
        ("linear", "linear:4"),
        ("llama3", "llama3:4"),
        ("dynamic", "dynamic:4"),
    ],
)
def test_a_checkpoint_can_be_under_the_strategy_by_itself(kind: str, text: str) -> None:
    RopeGuard(native(kind), text).check()


def test_a_patch_of_nothing_is_none(llama: Any) -> None:
    ropex.patch(llama, "none")
    RopeGuard(llama, "none").check()


@pytest.mark.parametrize(
    ("kind", "text", "under"),
    [
        ("none", "yarn:4", "no scaling"),
        ("yarn", "yarn:8", "yarn, factor 4"),
        ("yarn", "linear:4", "yarn, factor 4"),
        ("yarn", "yarn:4+logn", "yarn, factor 4"),
        ("dynamic", "dynamic:2", "dynamic, factor 4"),
    ],
)
def test_another_strategy_than_the_checkpoint_s_is_told(kind: str, text: str, under: str) -> None:
    guard = RopeGuard(native(kind), text)
    assert said(guard).startswith(f"the model is under {under}, and the guard was made for {text}")


def test_a_patched_model_is_under_what_gives_the_same_tables(llama: Any) -> None:
    ropex.patch(llama, "yarn:4")
    RopeGuard(llama, "yarn:length=128").check()
    for text in ("yarn:8", "yarn:4+logn", "none", "dynamic:4"):
        assert f"is under yarn:4, and the guard was made for {text}" in said(RopeGuard(llama, text))


def test_what_cannot_be_guarded_is_refused_at_once(llama: Any) -> None:
    with pytest.raises(ValueError, match="unknown strategy 'yran'"):
        RopeGuard(llama, "yran:4")
    with pytest.raises(UnsupportedModel, match="gpt2 has no rotary embedding"):
        RopeGuard(AutoModelForCausalLM.from_config(tiny_config("gpt2")))
    ropex.patch(llama, "yarn:4+logn")
    with pytest.raises(UnsupportedModel, match="this is a copy of a patched model"):
        RopeGuard(copy.deepcopy(llama))


def test_a_copy_whose_config_says_all_is_guarded_by_that(llama: Any) -> None:
    ropex.patch(llama, "yarn:4")
    twin = copy.deepcopy(llama)
    guard = RopeGuard(twin)
    guard.check()
    twin.model.rotary_emb.inv_freq.mul_(2)
    assert "does not hold the planned" in said(guard)


# Under Trainer.


def test_a_patched_model_trains_and_resumes_under_the_guard(llama: Any, tmp_path: Path) -> None:
    ropex.patch(llama, "linear:4")
    trainer(llama, tmp_path, RopeGuard(llama, "linear:4")).train()
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    again = tiny_model("llama", seed=1)
    ropex.patch(again, "linear:4")
    resumed = trainer(again, tmp_path, RopeGuard(again, "linear:4"), max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 6
    assert checkpoints(tmp_path)[-1] == "checkpoint-6"
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    RopeGuard(loaded, "linear:4").check()


def test_training_does_not_begin_when_a_resumed_checkpoint_has_spoilt_a_table(
    llama: Any, tmp_path: Path
) -> None:
    """Some checkpoints hold tables among their weights."""
    ropex.patch(llama, "linear:4")
    trainer(llama, tmp_path, max_steps=2).train()
    again = tiny_model("llama")
    ropex.patch(again, "linear:4")
    again.model.rotary_emb._non_persistent_buffers_set.discard("inv_freq")
    path = tmp_path / "checkpoint-2" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    weights["model.rotary_emb.inv_freq"] = torch.rand(8)
    save_file(weights, path, {"format": "pt"})
    guard = RopeGuard(again)
    guard.check()
    resumed = trainer(again, tmp_path, guard)
    with pytest.raises(RopeChanged, match="weights that were loaded"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 2
    assert checkpoints(tmp_path) == ["checkpoint-2"]


@pytest.mark.parametrize("strategy", ["steps", "epoch", "best"])
def test_no_checkpoint_is_written_once_a_table_is_spoilt(tmp_path: Path, strategy: str) -> None:
    model = native("yarn")
    spoil = At(3, rounded)
    given: dict[str, Any] = {"save_strategy": strategy}
    if strategy == "best":
        given |= {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss"}
        given |= {"learning_rate": 1e-2}  # so that the last step is the best
    training = trainer(model, tmp_path, spoil, RopeGuard(model), **given)
    with pytest.raises(RopeChanged, match="is rounded to bfloat16"):
        training.train()
    assert training.state.global_step == 4
    assert checkpoints(tmp_path) == ["checkpoint-2"]
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    fresh = native("yarn")
    trainer(fresh, tmp_path, RopeGuard(fresh), **given).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    assert checkpoints(tmp_path)[-1] == "checkpoint-4"


@pytest.mark.parametrize("when", [0, 4])
def test_beginning_and_end_are_checked_without_checkpoints(tmp_path: Path, when: int) -> None:
    model = native("yarn")
    guard = RopeGuard(model)
    if when == 0:
        rounded(model)
    training = trainer(model, tmp_path, At(when, rounded), guard, save_strategy="no")
    with pytest.raises(RopeChanged, match="is rounded to bfloat16"):
        training.train()
    assert training.state.global_step == when


def test_another_attention_stops_the_very_next_step(llama: Any, tmp_path: Path) -> None:
    """Not by this guard but by the patch, as it is the forward pass that would go wrong."""
    ropex.patch(llama, "yarn:4+logn")
    switch = At(1, lambda model: model.set_attn_implementation("eager"))
    training = trainer(llama, tmp_path, switch, RopeGuard(llama), save_strategy="no")
    with pytest.raises(RuntimeError, match="the attention implementation was set to eager after"):
        training.train()
    assert training.state.global_step == 1


# On several ranks.

SCRIPT = """
import json, os
from pathlib import Path

import torch.distributed as dist
from tests.support.guarded import At, checkpoints, rounded, trainer
from tests.support.models import tiny_model

import ropex
from ropex.train.guard import RopeChanged, RopeGuard
from ropex.train.ranks import agreed, gathered, of_first

rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
told = {}

def stopped(name, function):
    try:
        function()
        told[name] = None
    except RopeChanged as error:
        told[name] = str(error)

model = tiny_model("llama")
with ropex.patch(model, ("yarn:4", "yarn:8")[rank]):
    stopped("other factor", RopeGuard(model).check)
with ropex.patch(model, ("yarn:4", "yarn:4+logn")[rank]):
    stopped("other queries", RopeGuard(model).check)
with ropex.patch(model, ("yarn:4", "yarn:length=128")[rank]):
    stopped("same tables", RopeGuard(model).check)
stopped("other asked", RopeGuard(model, ("none", "yarn:4")[rank]).check)

patch = ropex.patch(model, "yarn:4")
spoil = At(4, rounded if rank == 1 else lambda model: None)
training = trainer(model, Path("out"), spoil, RopeGuard(model))
stopped("training", training.train)
told["wrapped"] = type(training.model_wrapped).__name__
told["step"] = training.state.global_step
dist.barrier()
told["checkpoints"] = checkpoints(Path("out"))
told["ranks"] = [gathered(rank), of_first(rank), agreed(None), agreed("a"), agreed("b" * rank)]
Path(f"told-{rank}.json").write_text(json.dumps(told))
dist.barrier()
"""


def test_all_ranks_stop_with_one_sentence_about_the_one_that_differs(tmp_path: Path) -> None:
    for status, _, err in ranks(tmp_path, 2, code=SCRIPT):
        assert status == 0, err
    told, other = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    assert told == other  # the same words on both
    assert told["other factor"].startswith(
        "rank 1 of 2: the model is under yarn:8 here and under yarn:4 on rank 0; load it from"
    )
    assert told["other queries"].startswith("rank 1 of 2: the model is under yarn:4+logn here and")
    assert told["same tables"] is None
    assert told["other asked"].startswith("rank 1 of 2: the model is under no scaling, and the")
    assert told["training"].startswith("rank 1 of 2: model.rotary_emb is rounded to bfloat16")
    assert (told["wrapped"], told["step"]) == ("DistributedDataParallel", 4)
    assert told["checkpoints"] == ["checkpoint-2"]
    assert told["ranks"] == [[0, 1], 0, None, "rank 0 of 2: a", "rank 1 of 2: b"]


def test_a_process_alone_agrees_with_itself() -> None:
    from ropex.train.ranks import agreed, gathered, of_first

    assert (gathered(3), of_first(3), agreed(None), agreed("a")) == ([3], 3, None, "a")
