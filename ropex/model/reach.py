"""How many tokens it takes to reach every branch of a model's attention.

Windows, chunks and selections of keys do nothing on a text that is shorter than they are.
"""

from __future__ import annotations

import re
from typing import Any

FEWEST = 8
# On a model of eight billion parameters some hundred tokens take a second on a GPU and ten on a
# processor, and most windows, chunks and selections below that are reached.
MOST = 512
_SPAN = re.compile(r"window|chunk|index_topk|budget|local_attention|block_size|compress_rate")
_NO_SPAN = re.compile(r"layers|pattern|feed_forward|dropout|probs")


def probe_size(*configs: Any) -> int:
    """Tokens that reach beyond all spans of some configs that are not above `MOST`."""
    spans = [span for config in configs for span in spans_of(config).values()]
    return FEWEST + max((span for span in spans if span <= MOST), default=0)


def unreached(*configs: Any) -> tuple[str, ...]:
    """Spans that `probe_size` leaves out, as `sliding_window 4096`."""
    found = (item for config in configs for item in spans_of(config).items())
    return tuple(dict.fromkeys(f"{name} {span}" for name, span in found if span > MOST))


def spans_of(config: Any) -> dict[str, int]:
    """Settings of a config that count the tokens from which attention does something else."""
    spans: dict[str, int] = {}
    for name, value in vars(config).items():
        if not _SPAN.search(name) or _NO_SPAN.search(name):
            continue
        parts = value.values() if isinstance(value, dict) else (value,)
        counts = [part for part in parts if isinstance(part, int) and not isinstance(part, bool)]
        if counts and max(counts) > 0:
            spans[name] = max(counts)
    if {"index_topk_blocks", "index_block_size"} <= spans.keys():
        spans["index_topk_blocks"] *= spans["index_block_size"]
    return spans
