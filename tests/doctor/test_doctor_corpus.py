"""No bad config passes, no good one is blamed, and what is fixed is clean."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import pytest
import transformers

from ropex.config.families import BASE_IN_4
from ropex.config.notations import written
from ropex.doctor import ENGINES, RULES, Checkpoint, examine, repaired
from tests.support.doctor_configs import GOOD, NOTED, Config, mutated, scaled
from tests.support.doctor_fixed import FIXED
from tests.support.doctor_mutations import BAD
from tests.support.doctor_published import PUBLISHED
from tests.support.doctor_values import CARD, ORIGINAL


def checkpoint(config: Config) -> Checkpoint:
    return Checkpoint({"config.json": config})


def broken(config: Config) -> tuple[str, ...]:
    return tuple(finding.rule for finding in examine(checkpoint(config)))


@pytest.mark.parametrize("name", GOOD | PUBLISHED)
def test_good_config_is_not_blamed(name: str) -> None:
    assert broken((GOOD | PUBLISHED)[name]) == ()


@pytest.mark.parametrize("name", NOTED)
def test_harmless_is_noted_and_left(name: str) -> None:
    [finding] = examine(checkpoint(NOTED[name]))
    assert (finding.rule, finding.severity, finding.edits) == ("two-type-keys", "note", ())


@pytest.mark.parametrize(("config", "rules"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_bad_config_is_told(config: Config, rules: tuple[str, ...]) -> None:
    assert broken(config) == rules
    for finding in examine(checkpoint(config)):
        assert finding.severity != "note" or finding.rule == "two-type-keys"
        assert finding.message
        assert finding.fix


@pytest.mark.parametrize("config", [case[1] for case in BAD], ids=[case[0] for case in BAD])
def test_fixed_config_has_nothing_left_to_fix(config: Config) -> None:
    before = copy.deepcopy(config)
    once, mended = repaired(checkpoint(config))
    assert repr(config) == repr(before)
    assert not any(finding.fixable for finding in examine(once))
    assert repaired(once) == (once, ())
    assert bool(mended) == (repr(once.documents["config.json"]) != repr(config))


@pytest.mark.parametrize(("name", "config"), [case[:2] for case in BAD], ids=[c[0] for c in BAD])
def test_what_is_fixed_without_a_person(name: str, config: Config) -> None:
    clean = broken(repaired(checkpoint(config))[0].documents["config.json"]) == ()
    assert clean == (name in FIXED)


def test_fixes_are_what_the_rest_of_the_config_says() -> None:
    cases = {name: config for name, config, _ in BAD}

    def fixed(name: str) -> Config:
        return repaired(checkpoint(cases[name]))[0].documents["config.json"]

    assert fixed("two originals, one fits the factor")[ORIGINAL] == 4096
    assert fixed("factor is null, and max raised")["rope_scaling"]["factor"] == 16.0
    assert fixed("base of Llama 3 lost")["rope_theta"] == 5e5
    assert fixed("dynamic with a raised max")["max_position_embeddings"] == 4096
    entry = fixed("R1 0528 Qwen3 8B, as published")["rope_scaling"]
    assert "attn_factor" not in entry
    assert entry["attention_factor"] == pytest.approx(1.0, abs=1e-12)
    assert 0.1 * entry["mscale"] * math.log(4.0) + 1 == pytest.approx(1.0, abs=1e-12)
    assert entry["mscale_all_dim"] == 0.0
    untyped = fixed("scaling without a type beside one with it")
    assert untyped["rope_scaling"] == GOOD["Llama 3.1 8B"]["rope_scaling"]
    assert untyped["rope_parameters"] == untyped["rope_scaling"] | {"rope_theta": 5e5}
    assert fixed("more than all, a text") == cases["more than all, a text"]
    assert fixed("lists swapped") == GOOD["Phi 3 mini 128k"]
    assert fixed("truncate is a text") == GOOD["gpt-oss 20B"]
    added = fixed("scaling added to a config of transformers 5")
    assert added["rope_parameters"] == added["rope_scaling"] | {"rope_theta": 5e5}


def test_names_of_gpt_neox_are_its_own() -> None:
    entry = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.25}
    [finding] = examine(checkpoint({"model_type": "gpt_neox", "rope_parameters": entry}))
    assert [str(edit) for edit in finding.edits] == ["set rotary_emb_base to 20000.0"]


@pytest.mark.parametrize(
    ("name", "engines"),
    [
        ("integer factor, linear", ("vllm", "sglang")),
        ("longrope, original in the entry alone", ("transformers4",)),
        ("llama3 of another length, original in the entry alone", ("llama.cpp",)),
        ("dynamic with a raised max", ("transformers5", "transformers4")),
        ("linear with a raised max", ("vllm", "sglang")),
        ("attention factor", ("sglang", "tensorrt-llm", "mlx")),
    ],
)
def test_engines_are_those_that_go_wrong(name: str, engines: tuple[str, ...]) -> None:
    [config] = [config for each, config, _ in BAD if each == name]
    [finding] = examine(checkpoint(config))
    assert finding.engines == engines
    assert examine(checkpoint(config), engine=engines[0]) == (finding,)
    assert examine(checkpoint(config), engine="exllama") == ()


def test_nothing_is_fixed_by_a_guess_at_which_of_two_types_is_meant() -> None:
    entry = {"type": "linear", "rope_type": "yarn", "factr": 4.0, ORIGINAL: 4096}
    config = scaled(**entry) | {"max_position_embeddings": 16384, "rope_theta": "1e4"}
    found = examine(checkpoint(config))
    assert "type-keys-disagree" in {finding.rule for finding in found}
    assert any("settle type-keys-disagree first" in finding.fix for finding in found)
    after, mended = repaired(checkpoint(config))
    assert (after.documents["config.json"], mended) == (config, ())
    del config["rope_scaling"]["type"]
    assert repaired(checkpoint(config))[1]


def test_integer_factor_of_yarn_is_a_note_that_is_fixed() -> None:
    [finding] = examine(checkpoint(mutated(CARD, "rope_scaling", "factor", to=4)))
    assert (finding.rule, finding.severity, finding.fixable) == ("integer-factor", "note", True)


@pytest.mark.parametrize(
    "name",
    [
        "scaling without a type beside one with it", "scaling without a type beside another",
        "scaling of no known type beside another",
    ],
)  # fmt: skip
def test_a_right_entry_is_not_replaced_by_one_that_nobody_can_read(name: str) -> None:
    [config] = [config for each, config, _ in BAD if each == name]
    after = repaired(checkpoint(config))[0].documents["config.json"]
    assert after["rope_parameters"] == config["rope_parameters"]


@pytest.mark.parametrize(
    "config",
    [
        mutated("Llama 3 8B", max_position_embeddings=131072, rope_theta=8e6),
        mutated("Llama 3 8B", max_position_embeddings=16384),
        mutated("Llama 3.1 8B", rope_scaling=None, vocab_size=128258),
        mutated("Llama 3.1 8B", rope_scaling={"rope_type": "linear", "factor": 16.0}),
        mutated("Llama 3.1 8B", "rope_scaling", ORIGINAL, to=8192, max_position_embeddings=8192),
        mutated("Yi 6B", num_hidden_layers=48, rope_theta=1e4),
        mutated("Gemma 3 1B", "rope_theta", remove=True),
        mutated("MiniCPM3 4B", "rope_scaling", "long_factor", to=[1.0] * 16),
    ],
)
def test_what_resembles_a_family_is_not_blamed(config: Config) -> None:
    assert broken(config) == ()


def test_a_stated_length_settles_what_llama3_leaves_open() -> None:
    cases = {name: config for name, config, _ in BAD}
    unscaled = cases["Llama 3.1 unscaled"]
    scaled_length = cases["llama3 with the scaled length for the trained one"]
    assert examine(Checkpoint({"config.json": unscaled}, stated=131072)) == ()
    after, mended = repaired(Checkpoint({"config.json": scaled_length}, stated=8192))
    assert [each.rule for each in mended] == ["original-above-max"]
    assert after.documents["config.json"] == GOOD["Llama 3.1 8B"]


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_latent_attention_is_not_told_to_write_mscale(factor: float) -> None:
    config = mutated("DeepSeek V3", "rope_scaling", "attention_factor", to=factor)
    assert broken(config) == ()
    named = mutated("DeepSeek V3", "rope_scaling", "attn_factor", to=factor)
    assert not any(finding.fixable for finding in examine(checkpoint(named)))


def test_attention_factor_that_longrope_has_anyway_is_not_blamed() -> None:
    usual = math.sqrt(1 + math.log(32) / math.log(4096))
    config = mutated("Phi 3 mini 128k", "rope_scaling", "attention_factor", to=usual)
    assert "longrope-attention" not in broken(config)


def test_entries_do_not_pull_the_root_to_and_fro() -> None:
    one, other = (
        {"rope_type": "yarn", "factor": factor, ORIGINAL: length, "rope_theta": 1e4}
        for factor, length in ((2.0, 8192), (4.0, 4096))
    )
    entries = {"full_attention": one, "sliding_attention": other}
    lengths = {"max_position_embeddings": 16384, ORIGINAL: 4096}
    [finding] = examine(checkpoint({"rope_parameters": entries, **lengths}))
    assert (finding.rule, finding.edits) == ("original-disagrees", ())


def test_scaling_is_not_copied_where_the_bases_differ_too() -> None:
    [_, config, _] = next(case for case in BAD if case[0] == "two factors")
    assert broken(config | {"rope_theta": 2e4}) == ("notations-disagree",)
    assert repaired(checkpoint(config | {"rope_theta": 2e4}))[1] == ()


def test_only_one_of_two_misspelt_keys_is_taken_for_the_right_one() -> None:
    config = mutated("Llama 2 7B", rope_scaling={"type": "linear", "factr": 4.0, "facto": 2.0})
    entry = repaired(checkpoint(config))[0].documents["config.json"]["rope_scaling"]
    assert entry == {"type": "linear", "factor": 4.0, "facto": 2.0}


def test_what_is_no_strict_json_is_not_moved() -> None:
    entry = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 4096, "beta_fastt": float("nan")}
    [finding] = examine(checkpoint(mutated("Llama 2 7B", rope_scaling=entry)))
    assert (finding.rule, finding.edits) == ("misspelt-key", ())


def entry_of(config: Config) -> Config:
    """What transformers 5 makes of a config of transformers 4."""
    scaling = config.get("rope_scaling") or {}
    entry = {key: value for key, value in scaling.items() if key != "type"}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    entry["rope_type"] = "longrope" if kind == "su" else kind
    entry["rope_theta"] = config.get("rope_theta", config.get("rotary_emb_base", 10000.0))
    share = config.get("partial_rotary_factor", config.get("rotary_pct"))
    return entry if share is None else {**entry, "partial_rotary_factor": share}


FLAT = [
    name
    for name, config in GOOD.items()
    if config["model_type"] in BASE_IN_4
    and not {"auto_map", "rope_parameters", "rope_local_base_freq"} & config.keys()
]
OLD_KEYS = ("rope_scaling", "rope_theta", "partial_rotary_factor", "rotary_emb_base", "rotary_pct")


@pytest.mark.parametrize("name", FLAT)
def test_both_notations_as_ropex_writes_them_are_not_blamed(name: str) -> None:
    config = GOOD[name]
    assert broken({**config, **written(entry_of(config), config["model_type"])}) == ()


@pytest.mark.parametrize("name", FLAT)
def test_transformers_5_alone_is_completed_to_what_4_read_before(name: str) -> None:
    old = GOOD[name]
    new = {key: value for key, value in old.items() if key not in OLD_KEYS}
    new["rope_parameters"] = entry_of(old)
    after, mended = repaired(checkpoint(new))
    config = after.documents["config.json"]
    layered = {"ignored-entry"} if old["model_type"] == "olmo3" else set()
    assert {finding.rule for finding in mended} <= {"one-notation"} | layered
    assert broken(config) == ()
    for key in set(OLD_KEYS) & config.keys() & old.keys():
        if key != "rope_scaling":
            assert config[key] == old[key]
    assert entry_of({**old, **config}) == entry_of(old)


def test_corpus_is_large_and_reaches_every_rule_on_configs() -> None:
    reached = {rule for *_, rules in BAD for rule in rules}
    on_configs = {rule.name for rule in RULES if rule.name in reached}
    elsewhere = {rule.name for rule in RULES} - on_configs
    assert {name for name, *_ in BAD} >= FIXED
    assert len({name for name, *_ in BAD}) == len(BAD)
    assert len(GOOD) >= 60
    assert len(BAD) >= 60
    assert elsewhere == {
        "tokenizer-limit", "rounded-table", "pickled-weights", "unrecorded-adapter",
        "broken-record", "other-base", "weights-misfit",
        *(rule.name for rule in RULES if rule.name.startswith("gguf-")),
    }  # fmt: skip


def test_no_key_that_a_family_has_is_taken_for_a_misspelt_one() -> None:
    files = Path(transformers.__file__).parent.glob("models/*/configuration_*.py")
    words = {word for file in files for word in re.findall(r"\w+", file.read_text("utf-8"))}
    assert len(words) > 5000
    assert {"max_2d_position_embeddings", "rope_theta", "rope_scaling"} <= words
    assert "misspelt-root-key" not in broken(dict.fromkeys(sorted(words), 1))


def test_rules_have_names_of_their_own_and_say_what_they_look_at() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES) >= 25
    assert all(rule.about.endswith(".") for rule in RULES)
    assert all(set(rule.engines) <= set(ENGINES) and rule.engines for rule in RULES)
