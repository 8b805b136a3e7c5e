"""`ropex eval`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_verb, count, name_of, quiet, read_model, say
from ropex.cli.eval_arguments import add_arguments
from ropex.sizes import format_size

if TYPE_CHECKING:
    from ropex.rope import Rope
    from ropex.strategies.base import Strategy
    from ropex_eval.running.retrieving import Retriever
    from ropex_eval.study.corpus import Corpus
    from ropex_eval.study.protocol import Protocol
    from ropex_eval.study.study import Study

_UNKNOWN = 0.01  # share of unknown tokens from which on a text is not the model's


def add_verbs(verbs: Verbs) -> None:
    """Add `eval`."""
    evaluate = add_verb(
        verbs,
        "eval",
        _eval,
        "measure perplexity beyond the trained length under several strategies",
        "ropex eval ./llama -s yarn:4 --lengths 1k..16k --data book.txt -o runs/llama",
    )
    add_arguments(evaluate)


def _eval(arguments: argparse.Namespace) -> None:
    from ropex.config.from_file import read_strategy

    chosen = [read_strategy(text) for text in arguments.strategy]
    out = arguments.out or Path("runs") / name_of(arguments.model)
    quiet()
    from ropex_eval.report.terminal import render
    from ropex_eval.report.written import write_report
    from ropex_eval.running.claim import check_out
    from ropex_eval.running.lm_eval_suites import require_known
    from ropex_eval.running.processes import launched
    from ropex_eval.running.run import Effort, run

    check_out(out, arguments.force)
    if arguments.lm_eval:
        require_known(arguments.lm_eval)
    processes = launched(arguments.cp)
    folder, skeleton, rope = read_model(arguments)
    for each in chosen:  # what does not fit the model is told before any work
        _try_on(skeleton, each, arguments)
    protocol = protocol_of(arguments, rope.trained_length)
    study = study_of(arguments, folder, skeleton, protocol, processes.device)
    results = run(
        study,
        with_baseline(chosen, rope.trained_length, protocol),
        out,
        retriever=_retriever(arguments, study, out),
        effort=Effort(arguments.budget, arguments.max_memory, processes),
        force=arguments.force,
        tell=lambda text: say(f"ropex: {text}"),
        begin=lambda: say(_header(study, rope)) if processes.first else None,
    )
    if not processes.first:
        return
    if arguments.json:
        print((out / "results.json").read_text(encoding="utf-8"), end="")
    else:
        print(render(results))
    write_report(results, out)
    _lm_eval(arguments, study, chosen, out)
    say("".join(f"\nropex: warning: {text}" for text in results.about["warnings"]).lstrip("\n"))
    say(f"\n{out}/report.html  {out}/results.json  {out}/results.csv  {out}/ppl.png  {out}/nll/")


def _lm_eval(
    arguments: argparse.Namespace, study: Study, chosen: list[Strategy], out: Path
) -> None:
    """Run suites of lm-evaluation-harness on each patched model, and print what it finds."""
    if not arguments.lm_eval:
        return
    from ropex_eval.report.terminal import align
    from ropex_eval.running.lm_eval_suites import Suites, as_rows, scores

    suites = Suites(arguments.lm_eval, arguments.lm_eval_limit)
    found = {
        str(strategy): scores(study, strategy, study.tokenizer, suites, out)
        for strategy in with_baseline(chosen, study.rope.trained_length, study.protocol)
    }
    if not arguments.json:
        print(f"\nlm-evaluation-harness\n{align(as_rows(found))}")


def _try_on(skeleton: Any, strategy: Strategy, arguments: argparse.Namespace) -> None:
    import ropex

    ropex.patch(
        skeleton,
        strategy,
        trained_length=arguments.trained_length,
        lift_sliding_window=arguments.lift_sliding_window,
    ).remove()


def _retriever(arguments: argparse.Namespace, study: Study, out: Path) -> Retriever | None:
    """What is asked besides reading; None if nothing is."""
    from ropex_eval.running.retrieving import Questions, Retriever

    if not arguments.tasks:
        return None
    if arguments.cp > 1:
        raise ValueError("--cp splits texts that are read; ask --tasks in a run without it")
    questions = Questions(arguments.tasks, arguments.depths, arguments.samples)
    retriever = Retriever(study, questions, study.tokenizer, out)
    retriever.asked  # noqa: B018  # lengths that are all too short are told before any work
    for text in retriever.left_out:
        say(f"ropex: left out: {text}")
    return retriever


def protocol_of(arguments: argparse.Namespace, trained: int) -> Protocol:
    """What is measured, as the arguments say."""
    from ropex_eval.study.protocol import Protocol

    around = (trained // 4, trained // 2, trained, 2 * trained, 4 * trained)
    lengths = arguments.lengths or tuple(n for n in around if n >= 2)
    return Protocol.of(
        lengths,
        arguments.targets,
        () if arguments.definitions == ("none",) else arguments.definitions,
        arguments.stride,
        arguments.excerpt,
        arguments.short,
        arguments.evaluator or "none",
    )


def with_baseline(chosen: list[Strategy], trained: int, protocol: Protocol) -> list[Strategy]:
    """The strategies that are compared: no scaling comes first, and YaRN if none was named."""
    import ropex

    longest = protocol.lengths[-1]
    if not chosen and longest > trained:
        chosen = [ropex.strategy(f"yarn:length={longest}")]
    plain = ropex.strategy("none")
    return [*([] if plain in chosen else [plain]), *chosen]


def study_of(
    arguments: argparse.Namespace,
    folder: Path,
    skeleton: Any,
    protocol: Protocol,
    device: str | None = None,
) -> Study:
    """Read the text; the weights, which take longer, are loaded if anything is missing."""
    from ropex.checkpoints.find import load_tokenizer
    from ropex.texts.tokens import first_token
    from ropex_eval.study.corpus import load_corpus
    from ropex_eval.study.study import Study

    if arguments.excerpts < 1:
        raise ValueError(f"--excerpts is {arguments.excerpts}, it must be at least 1")
    tokenizer = load_tokenizer(folder, trust_remote_code=arguments.trust_remote_code)
    bos = first_token(tokenizer, arguments.bos, arguments.model)
    corpus = load_corpus(arguments.data, tokenizer, bos, protocol.excerpt, arguments.excerpts)
    device, dtype = placement(device or arguments.device, arguments.dtype)

    return Study(
        model_id=arguments.model,
        folder=folder,
        skeleton=skeleton,
        load=_loader(arguments, folder, device, dtype),
        corpus=corpus,
        protocol=protocol,
        dtype=dtype if dtype != "auto" else own_dtype(skeleton),
        device=device.partition(":")[0],
        trained_length=arguments.trained_length,
        lift_sliding_window=arguments.lift_sliding_window,
        command=shlex.join(["ropex", *sys.argv[1:]]),
        warnings=_about_text(corpus, tokenizer),
        tokenizer=tokenizer,
    )


def _loader(
    arguments: argparse.Namespace, folder: Path, device: str, dtype: str
) -> Callable[[], Any]:
    """Loads the model once, when it is first needed."""
    from ropex.checkpoints.find import load_model
    from ropex_eval.measure.memory import enough_memory

    @cache
    def load() -> Any:
        trust = arguments.trust_remote_code
        with enough_memory(lambda: f"loading the model onto {device}; --dtype bfloat16 needs less"):
            spread = arguments.device_map
            model = load_model(folder, dtype=dtype, device_map=spread, trust_remote_code=trust)
            return model if spread else model.to(device)

    return load


def _about_text(corpus: Corpus, tokenizer: Any) -> tuple[str, ...]:
    """Warnings where the tokenizer cannot read the text, and where documents are much alike."""
    found = []
    share = corpus.share_of(tokenizer.unk_token_id)
    if share > _UNKNOWN:
        found.append(
            f"{share:.0%} of the tokens are {tokenizer.unk_token}: the tokenizer does not know "
            "this text, so its perplexities say little"
        )
    if corpus.repeated:
        found.append(
            f"{count(corpus.repeated, 'document')} repeated others word for word and "
            f"{'was' if corpus.repeated == 1 else 'were'} left out"
        )
    if alike := corpus.alike:
        found.append(
            f"some documents are nearly the same ({' and '.join(alike[0])}: "
            f"{count(len(alike), 'pair')} in all), yet count as independent: intervals and "
            "verdicts are surer than they should be"
        )
    return tuple(found)


def _header(study: Study, rope: Rope) -> str:
    """What is measured, on what."""
    corpus = study.corpus
    reasons = ((corpus.too_short, "too short"), (corpus.repeated, "repeated"))
    said = ", ".join(f"{number} {reason}" for number, reason in reasons if number)
    left_out = f" ({said})" if said else ""
    return (
        f"model  {study.model_id}: {study.skeleton.config.model_type}, trained at "
        f"{format_size(rope.trained_length)} tokens, {study.dtype} on {study.device}\n"
        f"text   {corpus.source}: {count(len(corpus.excerpts), 'excerpt')} of "
        f"{format_size(study.protocol.excerpt)} tokens from "
        f"{count(len(corpus.documents), 'document')}{left_out}"
    )


def placement(device: str, dtype: str) -> tuple[str, str]:
    """Device and number type to use.

    Raises:
        ValueError: There is no such device here.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by backend
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
    return device, "float32" if dtype == "auto" and device == "cpu" else dtype


def own_dtype(skeleton: Any) -> str:
    """The number type that the checkpoint says it has."""
    return str(getattr(skeleton.config, "dtype", None) or skeleton.dtype).removeprefix("torch.")
