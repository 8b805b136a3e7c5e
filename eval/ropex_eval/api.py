"""The harness in Python: what the command line and a notebook call."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, ParamSpec

import torch
from tqdm import tqdm

import ropex
from ropex.strategies.base import Strategy
from ropex.texts.tokens import first_token
from ropex_eval.report.results import Results
from ropex_eval.report.written import write_report
from ropex_eval.running.check import Finding, prove, require_checkable
from ropex_eval.running.claim import check_out
from ropex_eval.running.cost import Plan, planned
from ropex_eval.running.lm_eval_suites import Suites, require_known, scores
from ropex_eval.running.processes import launched
from ropex_eval.running.retrieving import Questions, Retriever
from ropex_eval.running.run import Effort, run
from ropex_eval.running.subject import Subject, live, named
from ropex_eval.scores.protocol import USUAL, Protocol, around
from ropex_eval.study.corpus import imagined_corpus, load_corpus
from ropex_eval.study.study import Study
from ropex_eval.training.in_training import bare, undisturbed

_UNTOLD = ("lm_eval", "lm_eval_limit", "cp", "device_map")
_UNCHECKED = ("tasks", "depths", "samples", "lm_eval", "lm_eval_limit", "budget", "max_memory",
              "cp", "out", "force")  # fmt: skip
_Given = ParamSpec("_Given")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is to be measured: a model under some strategies, on a text, at some lengths.

    Attributes:
        model: A folder, a hub id, `demo`, or a causal language model of transformers that is
            loaded: it is read in evaluation mode, and is as it was afterwards.
        strategies: Such as `"yarn:4"`, or `"@FILE"` for what a file says. Without any, YaRN to the
            longest length. `none` is always measured, for the others are compared with it.
        lengths: Tokens of context; a quarter of the trained length to four times as much if None.
        definitions: Of perplexity; see `ropex_eval.scores.definitions`.
        targets: Tokens that `local` and `fixed` are over; 64, or half of a length below 128.
        stride: Tokens from one sliding window to the next; a quarter of each length if None.
        short: Context that `longppl` compares with; an eighth of each length, at most 4096.
        evaluator: The strategy that says which tokens `longppl` is over.
        data: A source of `ropex.texts.sources.read_texts`; Python's standard library if None.
        excerpts: How many pieces of text are read; 32, or 1 to check, if None.
        excerpt: Tokens of each; the longest length if None.
        bos: The token in front: `auto` for the tokenizer's own, `none`, or a token.
        tasks: Names of retrieval tasks to ask as well; see `ropex_eval.tasks`.
        depths: Where answers stand, from 0 to 1.
        samples: Contexts of each length and task.
        lm_eval: Suites of lm-evaluation-harness that are run on each patched model.
        lm_eval_limit: Examples of each of their tasks; all if None.
        tokenizer: Of the model; the one that comes with its checkpoint if None.
        trained_length: Tokens that the model was trained at, where its config does not say.
        lift_sliding_window: Let every token see all before it, where attention has a window.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        dtype: `float32`, `bfloat16`, `float16`; `auto` is the checkpoint's, float32 on a CPU.
        device: Such as `cuda:1`; `auto` is an accelerator if there is one.
        device_map: How accelerate spreads the model over devices; None for one device.
        budget: Seconds after which no more excerpts are begun; all strategies read the same ones.
        max_memory: Bytes for weights and passes: longer texts are read in pieces.
        cp: Processes of a launcher that share each text; with 1 they share the texts.
        out: Folder of the run, which a second start continues; a temporary one if None.
        force: Replace the results of a different model in `out`.
        command: What asked for it, for the reader of the results.
        tell: Called with each sentence that the user should read.
        begin: Called with what is measured on what, before it is.
    """

    model: Any
    strategies: str | Strategy | Sequence[str | Strategy] = ()
    _: KW_ONLY
    lengths: Sequence[int] | None = None
    definitions: Sequence[str] = USUAL
    targets: int | None = None
    stride: int | None = None
    short: int | None = None
    evaluator: str = "none"
    data: str | None = None
    excerpts: int | None = None
    excerpt: int | None = None
    bos: str = "auto"
    tasks: Sequence[str] = ()
    depths: Sequence[float] = Questions.depths
    samples: int = Questions.samples
    lm_eval: Sequence[str] = ()
    lm_eval_limit: int | None = None
    tokenizer: Any = None
    trained_length: int | None = None
    lift_sliding_window: bool = False
    trust_remote_code: bool = False
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    budget: float | None = None
    max_memory: int | None = None
    cp: int = 1
    out: Path | str | None = None
    force: bool = False
    command: str | None = None
    tell: Callable[[str], None] = tqdm.write
    begin: Callable[[str], None] = lambda text: None

    def run(self) -> Results:
        """Measure, or continue what was measured in `out`; see `evaluate`."""
        with ExitStack() as stack:
            if self.lm_eval:
                require_known(self.lm_eval)
            out = self._folder(stack)
            processes = launched(self.cp)
            subject = self._subject(processes.device, stack)
            protocol = self._protocol(subject)
            chosen = self._chosen(subject, protocol)  # before the text, which may take long
            study = self._study(subject, protocol)
            effort = Effort(self.budget, self.max_memory, processes)
            found = run(
                study, chosen, out, retriever=self._retriever(study, out), effort=effort,
                force=self.force, tell=self.tell,
                begin=lambda: self.begin(study.summary) if processes.first else None,
            )  # fmt: skip
            if not processes.first:
                return Results(**vars(found))
            if self.out is not None:
                write_report(found, out)
            asked = Suites(tuple(self.lm_eval), self.lm_eval_limit)
            suites = {str(each): scores(study, each, asked, out) for each in chosen if asked.tasks}
            return Results(**vars(found), suites=suites)

    def plan(self) -> Plan:
        """What `run` would take: passes, tokens, time and memory. No weights are loaded.

        A text is read only if `data` names one; without it, every excerpt is taken to be there.

        Raises:
            MemoryError: A pass does not fit into `max_memory`.
            ValueError: Something cannot be known before it is run.
        """
        self._refuse("a dry run cannot tell what that takes", *_UNTOLD)
        with ExitStack() as stack:
            out, subject = self._folder(stack), self._subject(None, stack, weights=False)
            protocol = self._protocol(subject)
            chosen = self._chosen(subject, protocol)
            study = self._study(subject, protocol, imagined=not self.data)
            retriever = self._retriever(study, out)
            asked = [context.setting.length for _, context in retriever.asked] if retriever else []
            return planned(study, subject.device, chosen, asked, self.max_memory, self.budget)

    def check(self, seen: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
        """Prove on the model that what `run` does to be fast changes no number; nothing is kept.

        Without strategies, `none` and `yarn:4`; without lengths, 256 and 512.

        Args:
            seen: Called with each finding as it is made.

        Raises:
            ValueError: Texts are too short or too long, or something cannot be checked.
        """
        self._refuse("a check is of what is read alone, and keeps nothing", *_UNCHECKED)
        with ExitStack() as stack:
            subject = self._subject(None, stack)
            protocol = self._protocol(subject, (256, 512))
            require_checkable(protocol.excerpt)
            study = self._study(subject, protocol, 1)
            chosen = self._given(subject) or [ropex.strategy("none"), ropex.strategy("yarn:4")]
            return prove(study, chosen, seen)

    def _refuse(self, why: str, *names: str) -> None:
        """Raise a ValueError for settings that mean nothing here, and are not as by default."""
        defaults = {each.name: each.default for each in fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"--{name.replace('_', '-')}: {why}; leave it out")

    def _folder(self, stack: ExitStack) -> Path:
        """Where the run is kept: in `out`, or until the stack is closed."""
        if self.out is None:
            return Path(stack.enter_context(tempfile.TemporaryDirectory()))
        check_out(Path(self.out), self.force)
        return Path(self.out)

    def _subject(self, device: str | None, stack: ExitStack, *, weights: bool = True) -> Subject:
        """The model; a live one is put back as it was when the stack is closed."""
        trust, trained = self.trust_remote_code, self.trained_length
        if isinstance(self.model, (str, Path)):
            return named(
                str(self.model), trained, dtype=self.dtype, device=device or self.device,
                device_map=self.device_map, trust=trust, weights=weights,
            )  # fmt: skip
        self._refuse("a live model stays as it is loaded", "dtype", "device", "device_map")
        model = bare(self.model) if isinstance(self.model, torch.nn.Module) else self.model
        stack.enter_context(undisturbed(model))
        return live(model, trained, trust=trust)

    def _protocol(self, subject: Subject, usual: tuple[int, ...] = ()) -> Protocol:
        """What is measured."""
        usual = usual or around(subject.rope.trained_length)
        return Protocol.of(
            usual if self.lengths is None else self.lengths, self.targets,
            () if tuple(self.definitions) == ("none",) else self.definitions, self.stride,
            self.excerpt, self.short, self.evaluator,
        )  # fmt: skip

    def _given(self, subject: Subject) -> list[Strategy]:
        """The strategies that are named, each tried before any work."""
        given = self.strategies
        given = [given] if isinstance(given, (str, Strategy)) else given
        return [subject.fitting(each, self.lift_sliding_window) for each in given]

    def _chosen(self, subject: Subject, protocol: Protocol) -> list[Strategy]:
        """The strategies that are compared: no scaling comes first, and YaRN if none is named."""
        chosen, longest = self._given(subject), protocol.lengths[-1]
        if not chosen and longest > subject.rope.trained_length:
            chosen = [ropex.strategy(f"yarn:length={longest}")]
        plain = ropex.strategy("none")
        return [*([] if plain in chosen else [plain]), *chosen]

    def _study(
        self, subject: Subject, protocol: Protocol, usual: int = 32, *, imagined: bool = False
    ) -> Study:
        """Model, text and protocol; of an imagined text only the length is known."""
        length, count = protocol.excerpt, usual if self.excerpts is None else self.excerpts
        tokenizer = self.tokenizer
        if self.tasks or not imagined:
            tokenizer = tokenizer or subject.tokenizer()
            bos = first_token(tokenizer, self.bos, subject.name)
        else:
            bos = None if self.bos == "none" else 0
        if imagined:
            corpus = imagined_corpus(length, bos, count)
        else:
            corpus = load_corpus(self.data or "stdlib", tokenizer, bos, length, count)
        return subject.study(
            corpus, protocol, lift_sliding_window=self.lift_sliding_window, command=self.command,
            warnings=() if imagined else corpus.warnings(tokenizer), tokenizer=tokenizer,
        )  # fmt: skip

    def _retriever(self, study: Study, out: Path) -> Retriever | None:
        """The tasks to ask; None if there are none."""
        questions = Questions(tuple(self.tasks), tuple(self.depths), self.samples)
        if not questions.tasks:
            return None
        if self.cp > 1:
            raise ValueError("--cp splits texts that are read; ask --tasks in a run without it")
        return Retriever.asking(study, questions, out, self.tell)


def _running(kind: Callable[_Given, Evaluation]) -> Callable[_Given, Results]:
    """`evaluate`, which takes what `Evaluation` takes, with the same types."""

    @functools.wraps(kind, assigned=(), updated=())
    def evaluate(*given: _Given.args, **settings: _Given.kwargs) -> Results:
        """Measure perplexity of a model by length under several strategies, and what tasks ask.

        It does what `ropex eval` does: what is in `out` already is not measured again, every number
        has an interval, and strategies are compared on the same tokens.

        Args:
            *given: The model and the strategies; see `Evaluation`.
            **settings: Its other attributes, such as `lengths`, `data`, `tasks` and `out`.

        Raises:
            FileExistsError: `out` holds other files, or a run of a different model.
            MemoryError: The model or a pass does not fit; what is finished is kept in `out`.
            UnsupportedModel: The model has no rotary embedding that ropex can patch.
            ValueError: Something does not fit the model, the text or each other.

        Example:
            >>> results = evaluate(model, ["yarn:4"], lengths=(4096, 16384), data="book.txt")
            >>> print(results.table())
            >>> results.frame()  # of pandas; one row a strategy, definition and length
        """
        return kind(*given, **settings).run()

    return evaluate


evaluate = _running(Evaluation)
