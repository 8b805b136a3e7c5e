"""A run: a folder that holds everything that was measured, and that a second start continues."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tqdm import tqdm

import ropex
from ropex.rope import Rope
from ropex.strategies.base import Strategy
from ropex_eval.corpus import Corpus
from ropex_eval.measure import Protocol, cost, measure, passes
from ropex_eval.memory import enough_memory
from ropex_eval.nll import Scorer
from ropex_eval.results import Result, Results
from ropex_eval.table import NllTable, length_classes, mean_nll, perplexity


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that decides the numbers of a run.

    Attributes:
        model_id: What the user called the model.
        folder: Its checkpoint.
        scorer: The loaded model.
        corpus: The windows.
        protocol: Lengths, targets and metrics.
        trained_length: Where the config does not say.
        lift_sliding_window: As for `ropex.patch`.
    """

    model_id: str
    folder: Path
    scorer: Scorer
    corpus: Corpus
    protocol: Protocol
    trained_length: int | None = None
    lift_sliding_window: bool = False

    @property
    def rope(self) -> Rope:
        """The rotary embedding of the model."""
        return ropex.rope_of(self.scorer.model, self.trained_length)

    def about(self) -> dict[str, Any]:
        """What a reader needs to know to compute the same numbers."""
        model, rope = self.scorer.model, self.rope
        return {
            "model": {
                "id": self.model_id,
                "type": model.config.model_type,
                "sha256": fingerprint(self.folder),
                "dtype": str(model.dtype).removeprefix("torch."),
                "trained_length": rope.trained_length,
                "rope_theta": rope.base,
                "rotary_dim": rope.dim,
                "sliding_window_lifted": self.lift_sliding_window,
            },
            "data": {
                "source": self.corpus.source,
                "documents": self.corpus.documents,
                "too_short": self.corpus.too_short,
                "windows": len(self.corpus.windows),
                "bos": self.corpus.bos,
                "tokens_sha256": self.corpus.sha256,
            },
            "protocol": {**asdict(self.protocol), "head_in_chunks": self.scorer.chunked},
            "versions": {
                "ropex": ropex.__version__,
                "transformers": transformers.__version__,
                "torch": torch.__version__,
            },
        }


def fingerprint(folder: Path) -> str:
    """Hash of a checkpoint: its config and every byte of its weights.

    All of them, since a fine-tuning may change the middle of a file alone; reading them a second
    time costs less than loading them did.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def check_out(out: Path, force: bool) -> None:
    """Refuse a folder with other files in it, before anything is computed.

    Raises:
        FileExistsError: `out` is a file, or a folder of other files, and `force` is not set.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; give a folder")
    if force or not out.is_dir() or (out / "results.json").is_file():
        return
    if any(not path.name.startswith(".") for path in out.iterdir()):
        raise FileExistsError(f"{out} holds other files; give another folder, or --force")


def run(
    study: Study,
    strategies: Sequence[Strategy],
    out: Path,
    *,
    force: bool = False,
    begin: Callable[[], None] = lambda: None,
) -> Results:
    """Measure every strategy, writing results as they come; what is there already is kept.

    Args:
        study: What to measure on.
        strategies: What to measure; strategies of an earlier start stay in the results.
        out: Folder of the run.
        force: Replace another run in `out`.
        begin: Called once nothing stands in the way, before anything is measured or written.

    Raises:
        FileExistsError: `out` holds a run with another model, text or protocol.
        MemoryError: A pass was too large; the strategies before it are kept.
        ValueError: A strategy does not fit the model.
    """
    check_out(out, force)
    results, key = _continued(study, out, force)
    for strategy in strategies:
        strategy.plan(study.rope)
        length_classes(strategy, study.rope, study.protocol.lengths)
    begin()
    out.mkdir(parents=True, exist_ok=True)
    if force and not results.strategies:
        shutil.rmtree(out / "nll", ignore_errors=True)  # of a run that --force replaces
    results.save(out)
    found = {str(s): (s, _stored(out, str(s), key)) for s in strategies}
    with _progress(study, [s for s, table in found.values() if table is None]) as bar:
        for strategy, table in found.values():
            results = _add(study, strategy, table, out, key, bar)
    return results


def _add(
    study: Study, strategy: Strategy, table: NllTable | None, out: Path, key: str, bar: Any
) -> Results:
    """Measure a strategy that has no table yet, and add its numbers to the results in `out`."""
    text, seconds = str(strategy), None
    if table is None:
        began = time.perf_counter()
        table = _measured(study, strategy, bar)
        seconds = round(time.perf_counter() - began, 2)
        table.save(table_path(out, text), {"key": key, "strategy": text})
    results = Results.load(out)  # another process may have added to it meanwhile
    if seconds is None:
        seconds = results.strategies.get(text, {}).get("seconds", 0.0)
    about = {**_about_strategy(study, strategy), "seconds": seconds}
    results = results.including(text, about, _rows(study.protocol, text, table))
    results.save(out)
    return results


def _measured(study: Study, strategy: Strategy, bar: Any) -> NllTable:
    """The table of a strategy; `bar` moves on with every pass."""
    lengths = [length for _, length in passes(strategy, study.rope, study.protocol)]
    finished = 0

    def advance(length: int) -> None:
        nonlocal finished
        finished += 1
        bar.update(cost(study.scorer.model, length))

    def where() -> str:
        return (
            f"at {lengths[finished % len(lengths)]} tokens under {strategy}; smaller --lengths or "
            "--dtype bfloat16 need less, and what is finished is kept"
        )

    bar.set_description_str(str(strategy))
    with enough_memory(where):
        return measure(
            study.scorer,
            study.corpus,
            study.protocol,
            strategy,
            trained_length=study.trained_length,
            lift_sliding_window=study.lift_sliding_window,
            advance=advance,
        )


def table_path(out: Path, text: str) -> Path:
    """Where the table of a strategy is stored."""
    name = re.sub(r"[^\w.=-]+", "_", text)
    if len(name) > 100:  # file systems end at 255 bytes
        name = name[:100] + "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return out / "nll" / f"{name}.safetensors"


def _continued(study: Study, out: Path, force: bool) -> tuple[Results, str]:
    """The results to add to, and the key of tables that belong to them."""
    about = study.about()
    key = hashlib.sha256(json.dumps(_deciding(about), sort_keys=True).encode()).hexdigest()
    fresh = Results(about, {}, ())
    if not (out / "results.json").is_file():
        return fresh, key
    try:
        previous = Results.load(out)
    except ValueError:
        if not force:
            raise
        return fresh, key
    old, new = _deciding(previous.about), _deciding(json.loads(json.dumps(about)))
    if old == new:
        return previous, key
    if not force:
        raise FileExistsError(
            f"{out} holds a run with another model, text or protocol ({_difference(old, new)}); "
            "give another folder, or --force to replace it"
        )
    return fresh, key


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Names of the entries that differ, such as `protocol.lengths`."""
    return ", ".join(
        f"{part}.{key}"
        for part in new
        for key in new[part]
        if old.get(part, {}).get(key) != new[part][key]
    )


def _deciding(about: dict[str, Any]) -> dict[str, Any]:
    """What decides the numbers, without the names that the user gave to things."""
    names = ("source", "documents")
    data = {key: value for key, value in about["data"].items() if key not in names}
    model = {key: value for key, value in about["model"].items() if key != "id"}
    return {**about, "data": data, "model": model}


def _stored(out: Path, text: str, key: str) -> NllTable | None:
    """The table of a strategy, if an earlier start of the same run has finished it."""
    path = table_path(out, text)
    if not path.is_file():
        return None
    try:
        table, metadata = NllTable.load(path)
    except (SafetensorError, OSError, ValueError, KeyError):
        return None  # damaged: measured again
    return table if metadata == {"key": key, "strategy": text} else None


def _rows(protocol: Protocol, text: str, table: NllTable) -> list[Result]:
    rows = []
    for metric in protocol.metrics:
        for length in protocol.lengths:
            mean, tokens = mean_nll(table, metric, length, protocol.targets)
            rows.append(Result(text, metric, length, mean, perplexity(mean), tokens))
    return rows


def _about_strategy(study: Study, strategy: Strategy) -> dict[str, Any]:
    """The numbers behind the name, at the longest length."""
    plan = strategy.plan(study.rope, study.protocol.longest)
    return {
        "length_class": strategy.length_class,
        "attention_scale": plan.attention_scale,
        "inv_freq_sha256": hashlib.sha256(plan.inv_freq.float().numpy().tobytes()).hexdigest(),
    }


@contextmanager
def _progress(study: Study, todo: Sequence[Strategy]) -> Iterator[Any]:
    """A bar that counts cost and not passes, so that the time left is right."""
    model, rope = study.scorer.model, study.rope
    lengths = [n for s in todo for _, n in passes(s, rope, study.protocol)]
    total = sum(cost(model, n) for n in lengths) * len(study.corpus.windows)
    style = "{percentage:3.0f}% |{bar:30}| {elapsed} so far, {remaining} left  {desc}"
    with tqdm(total=total, disable=None, leave=False, bar_format=style) as bar:
        yield bar
