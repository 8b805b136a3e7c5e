"""Methods that are YaRN in a different convention, under their own names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ropex.strategies.yarn import Yarn


@dataclass(frozen=True)
class YarnPose(Yarn):
    """YaRN that blends wavelengths: the slow pairs are interpolated much earlier.

    Zhu et al., "PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training"
    (arXiv:2309.10400), whose code calls it revised YaRN; also footnote 4 of the YaRN paper.
    The parameters are those of `yarn`.
    """

    name: ClassVar[str] = "yarn_pose"
    aliases: ClassVar[tuple[str, ...]] = ("pose_yarn",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.10400"

    blend: Literal["frequency", "wavelength", "log"] = "wavelength"


@dataclass(frozen=True)
class YarnLog(Yarn):
    """YaRN that blends logarithms of frequencies, without a temperature.

    In the code of Grok-1 (2024) and of vLLM, which leave the attention factor out. The frequencies
    are those of `mrrope:radix=uniform`. The parameters are those of `yarn`.
    """

    name: ClassVar[str] = "yarn_log"
    paper: ClassVar[str] = "https://github.com/xai-org/grok-1"

    attention_factor: float = 1.0  # None would be YaRN's temperature
    blend: Literal["frequency", "wavelength", "log"] = "log"
