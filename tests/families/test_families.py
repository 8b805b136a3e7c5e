"""Every causal language model of the installed transformers, and what ropex makes of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
import transformers
from transformers import RoFormerConfig, RoFormerForMaskedLM

import ropex
from ropex.cli import main
from ropex.families.check import CLAUSES, Family, Outcome, check, look
from ropex.families.tiny import causal_types, tiny_model
from tests.support.models import tiny_multimodal
from tests.support.paths import ROOT
from tools.families_page import page_name, row, text

PAGE = (ROOT / "docs" / page_name()).read_text(encoding="utf-8")
TYPES = causal_types()
VERSION_5 = int(transformers.__version__.split(".")[0]) >= 5
# What cannot be built from its default config, or without a package that the tests do not have.
NOT_BUILT = (
    {"gemma3n", "gemma4_assistant", "gemma4_unified_assistant"}
    if VERSION_5
    else {"gemma3n", "musicgen", "musicgen_melody", "qdqbert", "speech_to_text_2", "transfo-xl"}
)


@pytest.mark.parametrize("model_type", TYPES)
def test_the_contract_holds_and_the_page_says_so(model_type: str) -> None:
    family = check(model_type)
    assert family.passed, {n: o for n, o in family.outcomes.items() if o.passed is False}
    assert (family.status == "not built") == (model_type in NOT_BUILT)
    if family.status == "no rotary":
        assert f"`{model_type}`" in PAGE.partition("## Without rotary embeddings")[2]
        assert "looked for" in family.reason
    elif family.status == "rotary":  # what could not be built depends on the packages there are
        assert row(family) in PAGE.splitlines(), "run: python -m tools.families_page"


def test_the_page_lists_every_family_once() -> None:
    assert f"under transformers {transformers.__version__}\n" in PAGE
    page = re.sub(r"## Where transformers itself is wrong.*?(?=##)", "", PAGE, flags=re.DOTALL)
    starts = ("| `", "- `")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith(starts)]
    listed += PAGE.partition("## Without rotary embeddings")[2].replace("`", "").split()
    assert sorted(name.strip(",.") for name in listed) == list(TYPES)
    assert PAGE.count("\n| `") == (130 if VERSION_5 else 81)


def test_a_clause_that_fails_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ropex.patching.apply.apply_rope", lambda *_: True)  # a silent no-op
    outcomes = check("llama").outcomes
    failed = [name for name in outcomes if outcomes[name].passed is False]
    assert failed == ["undone", "verified", "bfloat16"]


def test_a_failure_is_told_on_the_page_and_by_the_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = dict.fromkeys(CLAUSES, Outcome(False, "off by 1"))
    failed = Family("llama", "rotary", tables=("model.rotary_emb",), outcomes=outcomes)
    assert "**failed**: off by 1" in text((failed,))
    monkeypatch.setattr("ropex.families.check.check", lambda _: failed)
    with pytest.raises(SystemExit) as exit_info:
        main(["families", "llama", "--check"])
    assert exit_info.value.code == 1
    out, err = capsys.readouterr()
    assert "llama: undone: off by 1" in out
    assert err == "ropex: failed: llama\n"


def test_the_verb_lists_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "llama", "gptj", "bert"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["family", "tables"]
    assert lines[1].split() == ["llama", "model.rotary_emb"]
    assert lines[2].split() == ["gptj", "transformer.h.*.attn"]
    assert lines[3].startswith("bert: no rotary: bert has no rotary embedding that ropex knows")
    assert lines[4] == "2 of 3 model types have rotary embeddings"
    assert main(["families", "llama", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tables"] == ["model.rotary_emb"]
    assert main(["families", "lama"]) == 2
    assert "did you mean 'llama'?" in capsys.readouterr().err


def test_looking_tries_nothing() -> None:
    assert look("llama") == Family("llama", "rotary", tables=("model.rotary_emb",))


IDS = torch.randint(3, 60, (1, 40), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any, ids: Any = IDS) -> Any:
    return model(input_ids=ids, use_cache=False).logits


def with_weights_of(model: Any, built: Any) -> Any:
    built.load_state_dict(model.state_dict())
    return built


LATENT: tuple[str, ...] = (
    "axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite",
    "glm_moe_dsa", "hy_v4", "longcat_flash", "minicpm3", "youtu",
)  # fmt: skip
if not VERSION_5:  # its deepseek_v2 forgets to scale; see below
    LATENT = LATENT[4:5] + LATENT[9:10]
MSCALES = {"mscale": 1.0, "mscale_all_dim": 0.7}


def yarn_settings(**entry: Any) -> dict[str, Any]:
    """Settings by which transformers scales a tiny model itself, or leaves it unscaled."""
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    given = {**scaled, **entry} if entry else {}
    if VERSION_5:
        given = {"rope_type": "default", "rope_theta": 10000.0, **given}
        return {"rope_parameters": given, "max_position_embeddings": 32}
    return {"rope_scaling": given or None, "rope_theta": 10000.0, "max_position_embeddings": 32}


@pytest.mark.parametrize("model_type", LATENT)
def test_latent_attention_scales_all_its_logits(model_type: str) -> None:
    model = tiny_model(model_type, **yarn_settings())
    native = with_weights_of(model, tiny_model(model_type, **yarn_settings(**MSCALES)))
    without = with_weights_of(model, tiny_model(model_type, **yarn_settings(factor=4.0)))
    text = "yarn:factor=4,mscale=1,mscale_all_dim=0.7"
    with ropex.patch(model, text) as patch:
        assert patch.in_config
        assert "logits x " in repr(patch)
        assert torch.equal(logits(model), logits(native))
        assert not torch.equal(logits(model), logits(without))
    assert not torch.equal(logits(model), logits(native))
    with pytest.warns(match="scaled already"):  # over what the checkpoint has, which stays
        patch = ropex.patch(native, "linear:2")
    with patch:
        assert patch.in_config
        again = type(native)._from_config(native.config).eval()
        assert torch.equal(logits(with_weights_of(native, again)), logits(native))


@pytest.mark.skipif(VERSION_5, reason="transformers 5 scales the logits of deepseek_v2 itself")
def test_latent_attention_that_transformers_4_forgets_is_scaled_but_not_saved() -> None:
    model = tiny_model("deepseek_v2")
    before = [m.scaling for m in model.modules() if hasattr(m, "kv_lora_rank")]
    with ropex.patch(model, "yarn:factor=4,mscale=1,mscale_all_dim=0.7") as patch:
        after = [m.scaling for m in model.modules() if hasattr(m, "kv_lora_rank")]
        assert after == [s * patch.plan.softmax_scale for s in before]
        assert not patch.in_config


def test_encoders_are_patched_too() -> None:
    config = RoFormerConfig(
        vocab_size=64, embedding_size=32, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    model: Any = RoFormerForMaskedLM(config).eval()
    ids = IDS[:, :24]
    plain = logits_of_encoder(model, ids)
    with ropex.patch(model, "linear:2") as patch:
        assert patch.verify().logit_change > 0
        moved = logits_of_encoder(model, ids)
        assert logits_of_encoder(model, IDS).shape[1] == IDS.shape[1]  # beyond its own table
    assert not torch.equal(moved, plain)
    assert torch.equal(logits_of_encoder(model, ids), plain)


@torch.no_grad()
def logits_of_encoder(model: Any, ids: Any) -> Any:
    return model(input_ids=ids).logits


def test_towers_for_images_are_left_alone() -> None:
    model = tiny_multimodal()
    found = [site.name for site in ropex.patch(model, "linear:2").sites]
    assert all(name.startswith("model.language_model.") for name in found)
    assert any("visual" in name and name.endswith("inv_freq") for name, _ in model.named_buffers())
