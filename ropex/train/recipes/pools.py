"""Rows of a stage on disk, so that a resumed run does not read the texts again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from ropex.files.writing import atomically
from ropex.train.recipes.recipe import Source, Stage
from ropex.train.recipes.rows import Cutter, MixedRows, Row, StreamedRows, turns
from ropex.train.recipes.whole import seal_file

_SPARE = 4  # times as many rows as needed are cut from local texts, so that they come from all over


def rows_of(stage: Stage, cutter: Cutter, folder: Path, seed: int) -> MixedRows | StreamedRows:
    """The rows of a stage in the order of training.

    Args:
        stage: What to read, and for how many steps.
        cutter: Cuts documents.
        folder: Where rows are kept, in files of the Arrow format.
        seed: Of their order.

    Raises:
        FileNotFoundError: A text is not there.
        ValueError: A text has no rows.
    """
    sources, count = stage.data.sources, stage.training.steps * stage.training.batch
    chosen = turns(sources, count, seed)
    if stage.data.streaming:
        return StreamedRows(cutter, sources, chosen)
    needed = [chosen.count(i) for i in range(len(sources))]
    pools = [_pool(cutter, each, n, folder) for each, n in zip(sources, needed, strict=True)]
    return MixedRows(pools, chosen, seed)


def _pool(cutter: Cutter, source: Source, needed: int, folder: Path) -> Any:
    """Rows of a source as a `datasets.Dataset` that stays on disk.

    The first process of a machine writes them, which may take hours. The others wait for the file,
    since no collective waits that long.
    """
    from datasets import Dataset

    remote = source.text.startswith("hf:")
    most = max(1, needed * (1 if remote else _SPARE))
    described = f"{source} {cutter.front} {cutter.length} {most}"
    path = folder / f"{hashlib.sha256(described.encode()).hexdigest()[:16]}.arrow"
    first = PartialState().is_local_main_process
    while not path.is_file():
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            with atomically(path) as temporary:
                _write(temporary, islice(cutter.rows(source), most), most, source.text)
                seal_file(temporary, path)
        else:
            time.sleep(0.2)
    return Dataset.from_file(str(path))


def _write(path: Path, rows: Iterator[Row], most: int, text: str) -> None:
    from datasets import Features, Sequence, Value
    from datasets.arrow_writer import ArrowWriter

    numbers = Sequence(Value("int32"))
    features = Features({"input_ids": numbers, "lengths": numbers})
    with ArrowWriter(path=str(path), features=features) as writer:
        bar = tqdm(rows, f"rows of {text}", total=most, disable=None, leave=False)
        for row in bar:
            writer.write(row)
        writer.finalize()
