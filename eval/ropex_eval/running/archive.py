"""Runs that are finished, opened again: other numbers of the same table, without model or text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ropex_eval.running.keeper import TEXT
from ropex_eval.running.numbers import Numbers
from ropex_eval.scores.definitions import DEFINITIONS
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Results, require_run
from ropex_eval.scores.statistics import Estimate, estimate
from ropex_eval.study.corpus import Corpus
from ropex_eval.study.store import Store
from ropex_eval.study.table import Keys, NotMeasured, Table


@dataclass(frozen=True, eq=False)
class Archive:
    """A run's folder.

    Attributes:
        folder: Where it is.
        results: What its last start has written.
        corpus: Its excerpts.
        tables: What is known of each strategy, by its text form.
    """

    folder: Path
    results: Results
    corpus: Corpus
    tables: dict[str, Table]

    @classmethod
    def open(cls, folder: Path) -> Archive:
        """Read a run.

        Raises:
            FileNotFoundError: The folder is no run, or nothing is finished in it.
            ValueError: Something in it is damaged.
        """
        require_run(folder)
        results = Results.load(folder)
        if not results.strategies or not (folder / TEXT).is_file():
            raise FileNotFoundError(f"nothing is finished in {folder}; start its ropex eval again")
        corpus, store = _text(folder, results), Store(folder / "nll")
        tables = {
            text: Table(corpus, Keys(tuple(map(tuple, about["keys"]))), store)
            for text, about in results.strategies.items()
        }
        return cls(folder, results, corpus, tables)

    @property
    def protocol(self) -> Protocol:
        """What was measured."""
        return self.results.protocol

    @property
    def trained(self) -> int:
        """Tokens that the model was trained at."""
        return int(self.results.about["model"]["trained_length"])

    def rescore(
        self, definitions: Sequence[str] | None = None, lengths: Sequence[int] | None = None,
        targets: int | None = None, stride: int | None = None, short: int | None = None,
        evaluator: str | None = None,
    ) -> Results:  # fmt: skip
        """Other numbers of the same table; what is not given stays as it was measured.

        Raises:
            NotMeasured: The table does not hold them; the message says what would measure them.
        """
        old = self.protocol
        chosen = old.lengths if lengths is None else lengths
        shortest = min(chosen, default=2)
        protocol = Protocol.of(
            chosen, min(old.targets, shortest - 1) if targets is None else targets,
            definitions or old.definitions, old.stride if stride is None else stride, old.excerpt,
            old.short if short is None else short, evaluator or old.evaluator,
        )  # fmt: skip
        numbers = Numbers(self.tables, protocol, self.trained)
        try:
            summary = numbers.summary()
        except NotMeasured as error:
            raise NotMeasured(
                f"{self.folder} does not hold what that takes ({error}); ropex eval with the same "
                "model and text, these --lengths and --definitions, and -o "
                f"{self.folder} adds what is missing"
            ) from None
        about = {**self.results.about, "warnings": numbers.warnings()}
        return replace(self.results, about=about, protocol=protocol, retrieval=(), **summary)


def _text(folder: Path, results: Results) -> Corpus:
    """The excerpts that results are about; a run that was killed may have written more."""
    about = results.about["data"]
    corpus = Corpus.load(folder / TEXT).first(about["excerpts"])
    if corpus.sha256 != about["tokens_sha256"]:
        raise ValueError(
            f"{folder / TEXT} is damaged (it is not the text of results.json); start its ropex "
            "eval again"
        )
    return corpus


def common(left: Archive, right: Archive) -> tuple[Archive, Archive]:
    """Two runs, on the excerpts, at the lengths and by the definitions that both have.

    Raises:
        ValueError: They did not read the same text in the same way.
    """
    if left.corpus.bos != right.corpus.bos or left.protocol.excerpt != right.protocol.excerpt:
        raise ValueError(
            f"{left.folder} and {right.folder} cannot be compared: their excerpts begin "
            "differently, or are not of one length"
        )
    shared = _shared(left.corpus, right.corpus)
    lengths = tuple(n for n in left.protocol.lengths if n in right.protocol.lengths)
    names = tuple(n for n in left.protocol.definitions if _alike(n, left, right, lengths))
    missing = {
        "excerpts": not shared, "lengths": not lengths,
        "targets": left.protocol.targets != right.protocol.targets, "definitions": not names,
    }  # fmt: skip
    if what := next((name for name, lacks in missing.items() if lacks), None):
        raise ValueError(
            f"{left.folder} and {right.folder} cannot be compared: they have no {what} in common, "
            "and only numbers on the same tokens can be"
        )
    corpus = replace(left.corpus, excerpts=tuple(left.corpus.excerpts[i] for i in shared))
    return _only(left, corpus, lengths, names), _only(right, corpus, lengths, names)


def _shared(left: Corpus, right: Corpus) -> list[int]:
    """The excerpts of the left run that the right one has read too, under whatever name."""
    others, found = list(right.excerpts), []
    for index, mine in enumerate(left.excerpts):
        for place, other in enumerate(others):
            if torch.equal(mine.ids, other.ids):
                found.append(index)
                del others[place]
                break
    return found


def _alike(name: str, left: Archive, right: Archive, lengths: tuple[int, ...]) -> bool:
    """Whether a definition is, in both runs, nats of the same tokens after the same text."""
    if name not in right.protocol.definitions or name == "longppl":  # each chooses its tokens
        return False
    definition, text = DEFINITIONS[name], left.corpus.text
    return definition.weigh != "excerpt" and all(
        definition.spans(text, length, left.protocol.settings)
        == definition.spans(text, length, right.protocol.settings)
        for length in lengths
    )


def _only(
    archive: Archive, corpus: Corpus, lengths: tuple[int, ...], names: tuple[str, ...]
) -> Archive:
    """A run, on some of its excerpts, which may be called otherwise."""
    tables = {text: replace(table, corpus=corpus) for text, table in archive.tables.items()}
    protocol = replace(archive.protocol, lengths=lengths, definitions=names)
    data = {
        **archive.results.about["data"], "documents": corpus.documents,
        "excerpts": len(corpus.excerpts), "tokens_sha256": corpus.sha256,
        "clusters": "documents" if len(corpus.documents) > 1 else "excerpts",
    }  # fmt: skip
    about = {**archive.results.about, "data": data}
    results = replace(archive.results, about=about, protocol=protocol)
    return replace(archive, results=results, corpus=corpus, tables=tables)


def difference(left: Archive, right: Archive, strategy: str, name: str, length: int) -> Estimate:
    """How much more a token costs in the right run, on the same tokens.

    Args:
        left: As `common` returns it.
        right: Likewise.
        strategy: One that both have.
        name: A definition.
        length: Tokens of context.
    """
    new, old = (Numbers(run.tables, run.protocol, run.trained) for run in (right, left))
    return estimate(new.totals(strategy, name, length).minus(old.totals(strategy, name, length)))
