"""The text form of strategies: parsing, printing, listing, and what a mistake is told."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropex.strategies.base import Strategy
from ropex.strategies.composed import Composed
from ropex.strategies.dynamic import Dynamic
from ropex.strategies.llama3 import Llama3
from ropex.strategies.logn import LogN
from ropex.strategies.none import Unscaled
from ropex.strategies.registry import list_strategies, registry, strategy
from ropex.strategies.yarn import Yarn
from tests.support.cases import ALL


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("none", Unscaled()),
        ("yarn:4", Yarn(4)),
        ("YaRN:4", Yarn(4)),
        ("yarn:factor=4,beta_fast=16", Yarn(4, beta_fast=16)),
        ("yarn:4,beta_fast=16", Yarn(4, beta_fast=16)),
        ("yarn:length=32k", Yarn(length=32768)),
        ("yarn:4,truncate=false", Yarn(4, truncate=False)),
        ("dynamic", Dynamic()),
        ("dynamic_ntk:4", Dynamic(4)),
        ("logn:2k", LogN(2048)),
        ("llama3:8", Llama3(8, alpha=1, beta=4)),
        ("yarn:4+logn", Composed((Yarn(4), LogN()))),
        (" yarn:4 + logn ", Composed((Yarn(4), LogN()))),
    ],
)
def test_text_is_read_as_the_strategy_it_says(text: str, value: Strategy) -> None:
    assert strategy(text) == value


@pytest.mark.parametrize("text", ["none", *ALL])
def test_text_forms_are_canonical_and_need_no_quotes(text: str) -> None:
    assert str(strategy(text)) == text
    assert not set(text) & set(" ()[]{}'\"$&*;<>?\\|`!#~")


@given(
    factor=st.floats(1, 2**20),
    slow=st.floats(1e-10, 1),
    truncate=st.booleans(),
    attention=st.none() | st.floats(0.001, 1000),
)
def test_every_value_survives_its_text(
    factor: float, slow: float, truncate: bool, attention: float | None
) -> None:
    made = Yarn(factor, None, 32.0, slow, truncate, attention)
    assert strategy(str(made)) == made
    assert strategy(f"{made}+logn") == Composed((made, LogN()))


@given(length=st.integers(2, 2**40))
def test_every_length_survives_its_text(length: int) -> None:
    assert strategy(str(Yarn(length=length))) == Yarn(length=length)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yran:4", "unknown strategy 'yran'; did you mean 'yarn'?"),
        ("zzz", "unknown strategy 'zzz'; known: clip, dca, dpe, drope, dynamic, "),
        ("", "a strategy has no name; write yarn:4, or yarn:4+logn for two"),
        ("yarn:4+", "a strategy has no name"),
        ("yarn:4,", "'yarn:4,' has an empty parameter"),
        ("yarn:4_0", "yarn: factor is '4_0', it must be a number"),
        ("yarn:factor", "'yarn:factor': write 'factor' as KEY=VALUE"),
        ("linear:length=8k+ntk:length=8k", "linear:length=8k+ntk:length=8k: each part starts"),
        ("yarn", "yarn takes a factor or a target length, one of the two: yarn:4 or "),
        ("yarn:4,length=8k", "yarn takes a factor or a target length, one of the two"),
        ("yarn:0.5", "yarn: factor is 0.5, it must be from 1 to 1048576"),
        ("yarn:inf", "yarn: factor is inf, it must be from 1 to 1048576"),
        ("yarn:nan", "yarn: factor is 'nan', it must be a number"),
        ("yarn:x", "yarn: factor is 'x', it must be a number"),
        ("yarn:length=1", "yarn: length is 1, it must be at least 2"),
        ("yarn:length=1.5k", "yarn: length is '1.5k', it must be a length such as 32k"),
        ("yarn:4,truncate=maybe", "yarn: truncate is 'maybe', it must be true or false"),
        ("yarn:4,betafast=2", "yarn has no parameter 'betafast'; did you mean 'beta_fast'?"),
        ("yarn:4,beta_fast=0.5", "yarn: beta_fast is 0.5, it must be above beta_slow, 1.0"),
        ("yarn:4,beta_slow=0", "yarn: beta_slow is 0.0, it must be above 0"),
        (
            "yarn:4,attention_factor=0",
            "yarn: attention_factor is 0.0, it must be above 0: from 0.001 to 1000",
        ),
        ("yarn:factor=4,factor=2", "'yarn:factor=4,factor=2' gives factor twice"),
        ("yarn:4,2", "'yarn:4,2': write '2' as KEY=VALUE"),
        ("none:4", "'none:4': none takes no parameters"),
        ("llama3:8,alpha=5", "llama3: beta is 4.0, it must be at least alpha, 5.0"),
        ("dynamic:0", "dynamic: factor is 0.0, it must be from 1 to 1048576"),
        ("dynamic:length=1", "dynamic: length is 1, it must be at least 2"),
        ("yarn:4,ramp=turns", "yarn: ramp is 'turns', it must be index or rotations"),
        ("yarn:4,ramp=rotations,truncate=false", "yarn: a ramp in rotations has no bounds"),
        ("yarn:4,mscale=1", "yarn: mscale and mscale_all_dim are given together"),
        (
            "yarn:4,mscale=1,mscale_all_dim=1,attention_factor=1",
            "yarn: attention_factor would overrule mscale; give one",
        ),
        ("yarn:4,range_length=0", "yarn: range_length is 0, it must be above 0 and at most 2**40"),
        ("mrrope:4,radix=x", "mrrope: radix is 'x', it must be progressive, uniform or degressive"),
        ("longrope:4", "longrope: long_factor is (), it must be given: one divisor for each pair"),
        ("longrope:4,long_factor=1/0", "longrope: long_factor is (1.0, 0.0), it must be made of"),
        ("longrope:4,long_factor=1/x", "longrope: long_factor is '1/x', it must be numbers with"),
        ("theta", "theta takes base: theta:base=VALUE"),
        ("theta:1", "theta: base is 1.0, it must be above 1 and at most 1e+30"),
        ("proportional:0", "proportional: p is 0.0, it must be above 0 and at most 1"),
        ("clip:0", "clip: pairs is 0, it must be at least 1"),
        ("clip:x", "clip: pairs is 'x', it must be a whole number"),
        ("temperature:0", "temperature: factor is 0.0, it must be above 0: from 0.001 to 1000"),
        ("dynamic_linear:32k", "'dynamic_linear:32k': write '32k' as KEY=VALUE"),
        ("resonance+yarn:4", "resonance+yarn:4: yarn would change the frequencies that resonance"),
        ("dynamic+dynamic_yarn", "dynamic+dynamic_yarn: each part starts from the result"),
        ("logn:1", "logn: length is 1, it must be at least 2"),
    ],
)
def test_a_mistake_is_told_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        strategy(text)


def test_wildcards_match_names_and_aliases() -> None:
    assert list_strategies("*ntk*") == [
        "dynamic", "dynamic_qwen", "ntk", "ntk_by_parts", "ntk_fixed", "ntk_mixed",
    ]  # fmt: skip
    assert list_strategies("pi") == ["linear"]
    assert list_strategies("Y*") == ["mrrope", "yarn", "yarn_log", "yarn_pose"]
    assert list_strategies("zzz*") == []
    assert list_strategies() == sorted(registry())


@pytest.mark.parametrize("name", list_strategies())
def test_every_strategy_says_what_it_is(name: str) -> None:
    cls = registry()[name]
    assert cls.__doc__
    assert cls.paper.startswith("https://")
    assert "arXiv:" in cls.__doc__ or "(20" in cls.__doc__


def test_a_composition_says_what_its_parts_are() -> None:
    both = strategy("yarn:4+logn")
    assert both.name == "yarn+logn"
    assert both.paper == f"{registry()['yarn'].paper} {registry()['logn'].paper}"


@pytest.mark.parametrize("text", ["yarn:length=", "yarn:ramp=", "logn:length=", "none:", "yarn"])
@pytest.mark.parametrize("digits", [400, 5000])
def test_many_digits_are_refused_in_a_short_sentence(text: str, digits: int) -> None:
    with pytest.raises(ValueError, match=r"1111 \.\.\.'") as told:
        strategy(text + "1" * digits)
    assert len(str(told.value)) < 800
