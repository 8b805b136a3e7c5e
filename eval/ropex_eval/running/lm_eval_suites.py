"""Suites of lm-evaluation-harness (RULER, LongBench, ...) on a patched model.

The suites are not copied: the harness is handed the model, and everything else is its own.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ropex
from ropex.strategies.base import Strategy
from ropex_eval.scores.results import write
from ropex_eval.study.study import Study


@dataclass(frozen=True)
class Suites:
    """What the harness is asked for.

    Attributes:
        tasks: Names of tasks or groups that it knows.
        limit: Examples of each task; all if None.
    """

    tasks: tuple[str, ...]
    limit: int | None = None


def require_known(tasks: Sequence[str]) -> None:
    """Raise a ValueError if the harness is not there, or knows no such task."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError(
            "--lm-eval needs lm-evaluation-harness: pip install 'lm_eval[ruler]'"
        ) from None
    known = TaskManager()
    if unknown := [name for name in tasks if not known.match_tasks([name])]:
        raise ValueError(f"--lm-eval: the harness knows no task {unknown[0]!r}")


def scores(study: Study, strategy: Strategy, suites: Suites, out: Path) -> dict[str, Any]:
    """What the harness finds under one strategy, kept in `out/lm_eval` and not asked for twice.

    Args:
        study: Model, lengths and BOS; the model is patched meanwhile.
        strategy: The strategy.
        suites: What is asked for.
        out: Folder of the run.

    Returns:
        Task to metrics, as the harness names them.
    """
    import lm_eval

    lengths = study.protocol.lengths
    asked = [lm_eval.__version__, suites.tasks, suites.limit, lengths, study.corpus.bos]
    decisive = [asked, study.keys(strategy).ranges]
    key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
    path = out / "lm_eval" / f"{key[:32]}.json"
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8"))["results"])
    cache = "rotated" if strategy.class_on(study.rope) == "static" else "unrotated"
    model = study.load()
    with ropex.patch(
        model,
        strategy,
        trained_length=study.trained_length,
        lift_sliding_window=study.lift_sliding_window,
        cache=cache,  # type: ignore[arg-type]
    ):
        found = _evaluated(study, model, suites)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"strategy": str(strategy), "asked": asked, "results": found}
    write(path, json.dumps(content, indent=2, default=str) + "\n")
    return found


def harness_model(model: Any, tokenizer: Any, length: int, bos: int | None) -> Any:
    """The model as the harness takes it, with losses in float32.

    Args:
        model: Patched or not.
        tokenizer: Its tokenizer.
        length: Tokens of the longest text.
        bos: Id in front of texts, or None.
    """
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model, tokenizer=tokenizer, max_length=length, batch_size=1,
        softmax_dtype="float32", add_bos_token=bos is not None, prefix_token_id=bos,
    )  # fmt: skip


def _evaluated(study: Study, model: Any, suites: Suites) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    lengths, tokenizer = study.protocol.lengths, study.tokenizer
    named = str(study.folder or tokenizer.name_or_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its libraries, and not about the model
        known = TaskManager(metadata={"tokenizer": named, "max_seq_lengths": list(lengths)})
        found = lm_eval.simple_evaluate(
            model=harness_model(model, tokenizer, lengths[-1], study.corpus.bos),
            tasks=list(suites.tasks), limit=suites.limit, bootstrap_iters=0, task_manager=known,
        )  # fmt: skip
    return dict(found["results"]) if found else {}
