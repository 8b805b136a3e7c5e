"""Which formula of `reference.py` each text stands for; {} is the factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support import reference as ref
from tests.support.reference import Shape

Formula = Callable[[Shape, float], list[float]]


def by_yarn(shape: Shape, s: float, blend: Any = ref.blend_frequencies, **ramp: Any) -> list[float]:
    frequencies: list[float] = blend(shape, s, ref.kept_by_index(shape, *ref.bounds(shape, **ramp)))
    return frequencies


FORMULAS: dict[str, Formula] = {
    "none": lambda r, s: ref.default(r),
    "linear:{}": ref.linear,
    "ntk:{}": ref.ntk,
    "ntk_fixed:{}": ref.ntk_fixed,
    "ntk_mixed:{}": ref.ntk_mixed,
    "ntk_mixed:{},beta=0.75": lambda r, s: ref.ntk_mixed(r, s, 0.75),
    "theta:2000000": lambda r, s: ref.theta(r, 2e6),
    "theta_scale:{}": ref.theta_scale,
    "eabf": lambda r, s: ref.theta(r, 5e5),
    "ntk_by_parts:{}": ref.ntk_by_parts,
    "ntk_by_parts:{},alpha=2,beta=16": lambda r, s: ref.ntk_by_parts(r, s, 2, 16),
    "yarn:{}": ref.yarn,
    "yarn:{},beta_fast=16,beta_slow=2": lambda r, s: by_yarn(r, s, fast=16, slow=2),
    "yarn:{},truncate=false": lambda r, s: by_yarn(r, s, truncate=False),
    "yarn:{},ramp=rotations": ref.ntk_by_parts,
    "yarn:{},blend=wavelength": lambda r, s: by_yarn(r, s, ref.blend_wavelengths),
    "yarn:{},blend=log": lambda r, s: by_yarn(r, s, ref.blend_logarithms),
    "yarn:{},ramp=rotations,blend=wavelength": lambda r, s: ref.blend_wavelengths(
        r, s, ref.kept_by_turns(r, 1, 32)
    ),
    "yarn:{},ramp=rotations,blend=log,range_length=128k": lambda r, s: ref.blend_logarithms(
        r, s, ref.kept_by_turns(r, 1, 32, 131072)
    ),
    "yarn:{},clamp=pairs,beta_slow=0.001": lambda r, s: by_yarn(
        r, s, slow=0.001, last=r.dim // 2 - 1
    ),
    "yarn:{},clamp=dim,beta_slow=0.001": lambda r, s: by_yarn(r, s, slow=0.001),
    "yarn:{},range_length=128k": lambda r, s: by_yarn(r, s, length=131072),
    "yarn_pose:{}": lambda r, s: by_yarn(r, s, ref.blend_wavelengths),
    "yarn_log:{}": lambda r, s: by_yarn(r, s, ref.blend_logarithms),
    "mrrope:{}": lambda r, s: ref.mrrope(r, s, ref.mrrope_progressive),
    "mrrope:{},radix=uniform": lambda r, s: ref.mrrope(r, s, ref.mrrope_uniform),
    "mrrope:{},radix=degressive": lambda r, s: ref.mrrope(r, s, ref.mrrope_degressive),
    "mrrope_uni:{}": lambda r, s: ref.mrrope(r, s, ref.mrrope_uniform),
    "llama3:{}": ref.llama3,
    "llama3:{},alpha=2,beta=8": lambda r, s: ref.llama3(r, s, 2, 8),
    "llama3:{},alpha=1,beta=1": lambda r, s: ref.llama3(r, s, 1, 1),
    "ntk_by_parts:{},alpha=9,beta=9": lambda r, s: ref.llama3(r, s, 9, 9),
    "proportional": lambda r, s: ref.proportional(r, 0.25),
    "proportional:0.33": lambda r, s: ref.proportional(r, 0.33),
    "clip": lambda r, s: ref.clip(ref.default(r), 20),
    "clip:7,hard=true": lambda r, s: ref.clip(ref.default(r), 7, hard=True),
    "ntk:{}+clip:5": lambda r, s: ref.clip(ref.ntk(r, s), 5),
    "giraffe_power:0.1": lambda r, s: ref.giraffe_power(r, 0.1),
    "giraffe_truncated:100": lambda r, s: ref.giraffe_truncated(r, 100),
    "drope": lambda r, s: ref.drope(r),
    "linear:{}+drope:length=1M": lambda r, s: ref.drope(r),
    "resonance": lambda r, s: ref.resonance(ref.default(r)),
    "resonance:50": lambda r, s: ref.resonance(ref.default(r), 50),
    "yarn:{}+resonance": lambda r, s: ref.resonance(ref.yarn(r, s)),
    "temperature:1.07": lambda r, s: ref.default(r),
}  # fmt: skip
# Text to what cos and sin are multiplied by, where it is not 1.
TEMPERATURES: dict[str, Callable[[float], float]] = {
    **dict.fromkeys([t for t in FORMULAS if t.startswith(("yarn:", "yarn_pose", "mrrope"))],
                    ref.yarn_temperature),
    "temperature:1.07": lambda s: 1.07,
    "yarn:{},attention_factor=1.25": lambda s: 1.25,
    "yarn:{},mscale=0.7,mscale_all_dim=1.3": lambda s: (
        ref.yarn_temperature(s, 0.7) / ref.yarn_temperature(s, 1.3)
    ),
    "mrrope:{},attention_factor=0.9": lambda s: 0.9,
    "linear:2+yarn:{}+temperature:1.5": lambda s: 1.5 * ref.yarn_temperature(s),
}  # fmt: skip
# The same by the length of the sequence.
GROWING: dict[str, Callable[[Shape, int], list[float]]] = {
    "dynamic": ref.dynamic, "dynamic:1.5": lambda r, n: ref.dynamic(r, n, 1.5),
    "dynamic:4": lambda r, n: ref.dynamic(r, n, 4), "dynamic_linear": ref.dynamic_linear,
    "dynamic_yarn": ref.dynamic_yarn, "dynamic_qwen": ref.dynamic_qwen,
}  # fmt: skip
# Text to the factor of the query at a position, for a trained length.
QUERIES: dict[str, Callable[[int, int], float]] = {
    "logn": ref.logn,
    "eabf": ref.logn,
    "dynamic_qwen": ref.logn,
    "logn:2k": lambda m, trained: ref.logn(m, 2048),
    "llama4_temperature": lambda m, trained: ref.llama4_temperature(m),
    "llama4_temperature:1000,beta=0.3": lambda m, trained: ref.llama4_temperature(m, 1000, 0.3),
    "ministral_temperature": ref.ministral_temperature,
    "ministral_temperature:0.3,length=777": lambda m, trained: ref.ministral_temperature(
        m, 777, 0.3
    ),
}
