"""The harness in Python: what the command line and a notebook call."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Any, ParamSpec

import torch
from tqdm import tqdm

import ropex
from ropex.config.from_file import read_strategy, require_base
from ropex.strategies.base import Strategy
from ropex.texts.tokens import first_token
from ropex_eval.measure.losses import Scorer
from ropex_eval.measure.memory import Shape
from ropex_eval.report.results import Results
from ropex_eval.report.written import write_report
from ropex_eval.running.check import LONGEST, SHORTEST, Checker, Finding
from ropex_eval.running.claim import check_out
from ropex_eval.running.cost import Plan, cost, speed
from ropex_eval.running.lm_eval_suites import Suites, require_known, scores
from ropex_eval.running.processes import launched
from ropex_eval.running.retrieving import Questions, Retriever
from ropex_eval.running.run import Effort, run
from ropex_eval.running.subject import Loading, Subject, live, named
from ropex_eval.scores.protocol import USUAL, Protocol
from ropex_eval.study.corpus import Corpus, imagined, load_corpus
from ropex_eval.study.passes import passes
from ropex_eval.study.study import Study
from ropex_eval.training.in_training import bare, undisturbed

_EXCERPTS = 32
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
        tasks: What is asked besides; see `ropex_eval.tasks`.
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
        force: Replace the results of another model in `out`.
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
            study = self._study(subject, self._protocol(subject), _EXCERPTS)
            chosen = self._chosen(subject, study.protocol)
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
            ValueError: Something is asked for that cannot be told before.
        """
        self._refuse("a dry run cannot tell what that takes", "lm_eval", "lm_eval_limit", "cp")
        with ExitStack() as stack:
            out = self._folder(stack)
            subject = self._subject(None, stack, weights=False)
            protocol = self._protocol(subject)
            count = self._count(_EXCERPTS)
            text = None if self.data else imagined(protocol.excerpt, count, bos=self.bos != "none")
            study = self._study(subject, protocol, count, text)
            text = study.corpus
            retriever = self._retriever(study, out)
            asked = [context.setting.length for _, context in retriever.asked] if retriever else []
            dtype: torch.dtype = getattr(torch, subject.dtype)
            shape = Shape.of(subject.skeleton, dtype)
            costs = {
                str(each): cost(
                    shape,
                    passes(study.corpus, protocol, each, subject.rope),
                    self.max_memory,
                    asked,
                )
                for each in self._chosen(subject, protocol)
            }
            rate = speed(shape, subject.device, dtype)
            return Plan(study, shape, costs, rate, self.budget, self.device_map is not None)

    def check(self) -> Iterator[Finding]:
        """Prove on the model that what `run` does to be fast changes no number; nothing is kept.

        Without strategies, `none` and `yarn:4`; without lengths, 256 and 512.

        Raises:
            ValueError: Texts are too short or too long to be checked, or something is asked for
                that is not checked.
        """
        self._refuse(
            "a check is of what is read alone, and keeps nothing", "tasks", "depths", "samples",
            "lm_eval", "lm_eval_limit", "budget", "max_memory", "cp", "out", "force",
        )  # fmt: skip
        with ExitStack() as stack:
            subject = self._subject(None, stack)
            protocol = self._protocol(subject, (256, 512))
            if not SHORTEST <= protocol.excerpt <= LONGEST:
                raise ValueError(
                    f"texts of {protocol.excerpt} tokens cannot be checked, only of {SHORTEST} to "
                    f"{LONGEST} (--lengths, --excerpt): each is read some twenty times, and all "
                    "its logits are held"
                )
            study = self._study(subject, protocol, 1)
            chosen = self._given(subject) or [ropex.strategy("none"), ropex.strategy("yarn:4")]
            yield from Checker(study, Scorer(study.load())).run(chosen)

    def _refuse(self, why: str, *names: str) -> None:
        """Refuse settings that mean nothing here.

        Raises:
            ValueError: One of them is not what it is by default.
        """
        defaults = {each.name: each.default for each in fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"--{name.replace('_', '-')}: {why}; leave it out")

    def _folder(self, stack: ExitStack) -> Path:
        """Where the run is kept, as far as it is."""
        if self.out is None:
            return Path(stack.enter_context(tempfile.TemporaryDirectory()))
        check_out(Path(self.out), self.force)
        return Path(self.out)

    def _subject(self, device: str | None, stack: ExitStack, *, weights: bool = True) -> Subject:
        """The model, which a live one is until the stack is closed, and then what it was."""
        how = Loading(self.dtype, self.device, self.device_map, self.trust_remote_code)
        if isinstance(self.model, (str, Path)):
            how = replace(how, device=device or how.device)
            return named(str(self.model), self.trained_length, how, weights=weights)
        model = bare(self.model) if isinstance(self.model, torch.nn.Module) else self.model
        stack.enter_context(undisturbed(model))
        return live(model, self.trained_length, how)

    def _protocol(self, subject: Subject, usual: tuple[int, ...] = ()) -> Protocol:
        """What is measured."""
        trained = subject.rope.trained_length
        usual = usual or (trained // 4, trained // 2, trained, 2 * trained, 4 * trained)
        return Protocol.of(
            [each for each in usual if each >= 2] if self.lengths is None else self.lengths,
            self.targets,
            () if tuple(self.definitions) == ("none",) else self.definitions,
            self.stride,
            self.excerpt,
            self.short,
            self.evaluator,
        )

    def _count(self, usual: int) -> int:
        found = usual if self.excerpts is None else self.excerpts
        if found < 1:
            raise ValueError(f"--excerpts is {found}, it must be at least 1")
        return found

    def _given(self, subject: Subject) -> list[Strategy]:
        """The strategies that are named, each tried on the model.

        Raises:
            ValueError: One does not fit it.
        """
        if isinstance(self.strategies, (str, Strategy)):
            return [self._fitting(self.strategies, subject)]
        return [self._fitting(each, subject) for each in self.strategies]

    def _fitting(self, given: str | Strategy, subject: Subject) -> Strategy:
        """A strategy, tried on the model."""
        if isinstance(given, str):
            require_base(given, subject.rope.base)
            given = read_strategy(given)
        ropex.patch(
            subject.skeleton,
            given,
            trained_length=self.trained_length,
            lift_sliding_window=self.lift_sliding_window,
        ).remove()
        return given

    def _chosen(self, subject: Subject, protocol: Protocol) -> list[Strategy]:
        """The strategies that are compared: no scaling comes first, and YaRN if none is named."""
        chosen, longest = self._given(subject), protocol.lengths[-1]
        if not chosen and longest > subject.rope.trained_length:
            chosen = [ropex.strategy(f"yarn:length={longest}")]
        plain = ropex.strategy("none")
        return [*([] if plain in chosen else [plain]), *chosen]

    def _study(
        self, subject: Subject, protocol: Protocol, usual: int, corpus: Corpus | None = None
    ) -> Study:
        """Model, text and protocol; the text is read unless it is given."""
        tokenizer = self.tokenizer
        if corpus is None or self.tasks:
            tokenizer = tokenizer or subject.tokenizer()
        if corpus is None:
            bos, source = first_token(tokenizer, self.bos, subject.name), self.data or "stdlib"
            count = self._count(usual)
            corpus = load_corpus(source, tokenizer, bos, protocol.excerpt, count)
        return Study(
            model_id=subject.name,
            folder=subject.folder,
            skeleton=subject.skeleton,
            load=subject.load,
            corpus=corpus,
            protocol=protocol,
            dtype=subject.dtype,
            device=subject.device.partition(":")[0],
            trained_length=self.trained_length,
            lift_sliding_window=self.lift_sliding_window,
            command=self.command,
            warnings=corpus.warnings(tokenizer) if tokenizer else (),
            tokenizer=tokenizer,
        )

    def _retriever(self, study: Study, out: Path) -> Retriever | None:
        """What is asked besides reading; None if nothing is."""
        questions = Questions(tuple(self.tasks), tuple(self.depths), self.samples)
        if not questions.tasks:
            return None
        if self.cp > 1:
            raise ValueError("--cp splits texts that are read; ask --tasks in a run without it")
        retriever = Retriever(study, questions, study.tokenizer, out)
        retriever.asked  # noqa: B018  # lengths that are all too short are told before any work
        for text in retriever.left_out:
            self.tell(f"left out: {text}")
        return retriever


def _running(kind: Callable[_Given, Evaluation]) -> Callable[_Given, Results]:
    """`evaluate`, which takes what `Evaluation` takes, with the same types."""

    @functools.wraps(kind, assigned=(), updated=())
    def evaluate(*given: _Given.args, **settings: _Given.kwargs) -> Results:
        """Measure perplexity of a model by length under several strategies, and what tasks ask.

        Everything that `ropex eval` does: what is in `out` already is not measured again, every
        number comes with an interval, and strategies are compared on the same tokens.

        Args:
            *given: The model and the strategies; see `Evaluation`.
            **settings: All its other attributes, such as `lengths`, `data`, `tasks` and `out`.

        Returns:
            Tables, verdicts, a picture and a DataFrame of what was measured.

        Raises:
            FileExistsError: `out` holds other files, or a run of another model.
            MemoryError: The model or a pass does not fit; what is finished is kept in `out`.
            UnsupportedModel: The model has no rotary embedding that ropex can patch.
            ValueError: Something does not fit the model, the text or each other.

        Example:
            >>> results = ropex_eval.evaluate(
            ...     "./llama", ["yarn:4", "dynamic"], lengths=(4096, 16384), data="book.txt"
            ... )
            >>> print(results.table())
            >>> results.plot("ppl.png")
            >>> frame = results.frame()  # of pandas; one row a strategy, definition and length
        """
        return kind(*given, **settings).run()

    return evaluate


evaluate = _running(Evaluation)
