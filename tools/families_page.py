"""Write docs/families-N.md: every family of the installed transformers, and what was tried on it.

Run it from the root of the repository: `python -m tools.families_page`, once per major version.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from ropex.families.check import CLAUSES, Family, Outcome, check
from ropex.families.tiny import causal_types
from ropex.files.writing import write_text

_COLUMNS = {
    "undone": "undone", "verified": "verified", "bfloat16": "bfloat16", "decoded": "decoding",
    "unrotated": "un-rotated keys", "reloaded": "reloaded", "saved": "saved in the config",
}  # fmt: skip
assert _COLUMNS.keys() == CLAUSES.keys()

_HEAD = """\
# Families under transformers {version}

{rotary} of the {all} model types that transformers {version} maps to a causal language model have
rotary embeddings. Each row is the result of checks on a tiny random model of the family, in float32
on a CPU; every run of the tests repeats them. `ropex families --check` runs them on your machine;
`python -m tools.families_page` writes this page.

- *tables*: where the frequencies are; `*` is any layer, and the type of the layers that use a table
  is in brackets. A table that only layers with a sliding window use is left as it is.
- *undone*: `none` changes no bit of the logits, and neither does a patch after its removal.
- *verified*: the live tables are the planned ones, and logits beyond position 0 move.
- *bfloat16*: `.to(torch.bfloat16)` after patching rounds no frequency.
- *decoding*: with YaRN, token by token with a key-value cache gives the logits of one pass.
- *un-rotated keys*: the same for dynamic NTK with `cache="unrotated"`; where it is refused, a
  strategy that depends on the length refuses to continue a cache beyond the trained length.
- *reloaded*: `save_pretrained` and plain `from_pretrained` give the logits of the patched model.
- *saved in the config*: strategies (of linear, yarn, llama3, ntk and dynamic) which the config
  holds, so that plain transformers computes the same bits; saving any other is refused.
"""


# What is wrong in transformers without any patch; it stays so under a patch.
_WRONG = {
    "5": """
- `bamba`: positions start at 0 again with a filled cache; pass `position_ids`.
- `blt`: `use_cache=True` raises an AttributeError.
- `doge`: beyond `keep_window_size` it selects keys, and selects different ones with a cache.
- `recurrent_gemma`: returns no cache object.
- `mixtral`, `minimax`: `head_dim` is null by default, so that transformers' own `yarn`,
  `dynamic` and `longrope` raise a TypeError; ropex writes the number.
- Any family with an entry per layer type: `truncate: false` of a nested `yarn` entry is ignored;
  ropex detects that and writes a list instead.
""",
    "4": """
- `doge`: with an `attention_mask`, attention is not causal: changing the last ten of twenty tokens
  moves logits of the first ten by 3.2 (a tiny model, sdpa).
- `deepseek_v2`: `mscale_all_dim` does not scale the logits, unlike in version 5 and in DeepSeek;
  ropex scales them, and refuses to save what version 4 would not compute.
- `nemotron`, `dbrx`, `recurrent_gemma`, `modernbert-decoder`: any `rope_scaling` is ignored.
- `llama4`, `llama4_text`: any type but `llama3` raises a KeyError (`low_freq_factor`).
- `phimoe`, `open-llama`: positions beyond the number of tokens raise an IndexError.
- `gemma3n_text`: without a cache, layers that share keys compute their own.
- `blt`, `bamba`, `falcon_h1`, `granitemoehybrid`: plain `use_cache=True` returns no cache.
- `open-llama`: its cache is a tuple that its own code no longer reads.
- `recurrent_gemma`: returns no cache object.
""",
}


def write_page(families: Iterable[Family], folder: Path) -> Path:
    """Write the page of the installed transformers, `families-5.md` or `families-4.md`.

    Args:
        families: All of them, checked.
        folder: Where to; it is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / page_name()
    write_text(page, text(tuple(families)))
    return page


def page_name() -> str:
    """`families-5.md` under transformers 5."""
    return f"families-{_version().split('.')[0]}.md"


def text(families: tuple[Family, ...]) -> str:
    """The page, in Markdown."""
    rotary = [family for family in families if family.status == "rotary"]
    head = _HEAD.format(version=_version(), rotary=len(rotary), all=len(families))
    columns = ["family", "tables", *_COLUMNS.values()]
    lines = [head, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += map(row, rotary)
    lines += ["\n## Where transformers itself is wrong", _WRONG[_version().split(".")[0]].rstrip()]
    lines += ["\n## Could not be built here\n"]
    lines += [row(family) for family in families if family.status == "not built"]
    plain = [f"`{family.model_type}`" for family in families if family.status == "no rotary"]
    lines += ["\n## Without rotary embeddings\n", ", ".join(plain) + "."]
    return "\n".join(lines) + "\n"


def row(family: Family) -> str:
    """The row of one family."""
    if family.status == "not built":
        return f"- `{family.model_type}`: {family.reason}"
    tables = "<br>".join(f"`{_broken(table)}`" for table in family.tables)
    cells = [_cell(name, family.outcomes[name]) for name in _COLUMNS]
    return f"| `{family.model_type}` | {tables} | {' | '.join(cells)} |"


def _cell(name: str, outcome: Outcome) -> str:
    if outcome.passed is False:
        return f"**failed**: {outcome.detail}"
    return outcome.detail if outcome.passed is None or name == "saved" else "yes"


def _broken(path: str) -> str:
    """A path without its first part, `model` or `transformer`."""
    return re.sub(r"^(model|transformer)\.", "", path)


def _version() -> str:
    import transformers

    return str(transformers.__version__)


def main() -> None:
    """Check all families and write their page into docs/; exit status 1 if a clause failed."""
    torch.set_num_threads(1)  # more only get in each other's way on models as tiny as these
    families = [check(each) for each in tqdm(causal_types(), unit="type")]
    print(f"written: {write_page(families, Path(__file__).resolve().parents[1] / 'docs')}")
    sys.exit(not all(family.passed for family in families))


if __name__ == "__main__":
    main()
