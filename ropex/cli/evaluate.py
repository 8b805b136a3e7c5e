"""`ropex eval` and `ropex demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_model, add_verb, count, name_of, quiet, read_model, size
from ropex.sizes import format_size, parse_sizes

if TYPE_CHECKING:
    from ropex.strategies.base import Strategy
    from ropex_eval.measure import Protocol
    from ropex_eval.run import Study

_DEMO_FACTOR = 16
_DEMO = ("none", "dynamic", *(f"{name}:{_DEMO_FACTOR}" for name in (
    "linear", "ntk", "llama3", "yarn")))  # fmt: skip


def add_verbs(verbs: Verbs) -> None:
    """Add `eval` and `demo`."""
    parser = add_verb(
        verbs,
        "eval",
        _eval,
        "measure perplexity beyond the trained length under several strategies",
        "ropex eval ./llama -s none -s yarn:4 --lengths 1k..16k --data book.txt -o runs/llama",
    )
    add_model(parser)
    _add_what(parser)
    _add_text(parser)
    _add_where(parser)
    demo = add_verb(
        verbs, "demo", _demo, "see it work on a small model that ropex ships", "ropex demo"
    )
    demo.add_argument("-o", "--out", type=Path, default=Path("ropex-demo"), metavar="DIR")


def _add_what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "-s",
        "--strategy",
        action="append",
        default=[],
        metavar="S",
        help="a strategy, such as yarn:4; may be repeated (default: none, and yarn to the longest "
        "length); ropex strategies lists them",
    )
    group.add_argument(
        "--lengths",
        type=_lengths,
        metavar="L",
        help="256,1k,4k or 256..4k (doubling) or 1k..8k:1k (steps); default: a quarter of the "
        "trained length to four times as much",
    )
    group.add_argument(
        "--metrics",
        type=_names,
        default="local,fixed,prefix",
        metavar="M",
        help="which of local, fixed and prefix (default: all)",
    )
    group.add_argument(
        "--targets",
        type=size,
        metavar="N",
        help="tokens that local and fixed-target perplexity are taken over (default: 64, or half "
        "of a shortest length below 128)",
    )


def _add_text(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on which text")
    group.add_argument(
        "--data",
        default="stdlib",
        metavar="TEXT",
        help="a text file, a folder of them, FILE.jsonl:FIELD, hf:NAME[:SPLIT[:FIELD]], or stdlib: "
        "modules of Python's own library (default)",
    )
    group.add_argument(
        "--windows", type=int, default=16, metavar="N", help="pieces of text to read (default: 16)"
    )
    group.add_argument(
        "--bos",
        default="auto",
        metavar="TOKEN",
        help="the token in front of each piece: auto for the tokenizer's own, none, or a token",
    )


def _add_where(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how the model runs")
    how.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="auto is the checkpoint's on an accelerator, float32 on a CPU",
    )
    how.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: auto)")
    how.add_argument(
        "--lift-sliding-window",
        action="store_true",
        help="let every token see all before it, in a model whose attention has a window",
    )
    where = parser.add_argument_group("where the results go")
    where.add_argument("-o", "--out", type=Path, metavar="DIR", help="default: runs/MODEL")
    where.add_argument("--force", action="store_true", help="replace another run in DIR")
    where.add_argument("--json", action="store_true", help="print results.json, and no table")


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return parse_sizes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _demo(arguments: argparse.Namespace) -> None:
    from ropex.cli import build_parser

    strategies = [part for text in _DEMO for part in ("-s", text)]
    options = ["--lengths", "64..4k", "--windows", "5", "--targets", "48"]
    _eval(
        build_parser().parse_args(["eval", "demo", *strategies, *options, "-o", str(arguments.out)])
    )
    _say(
        "\nThe model was trained at 256 tokens. The same on a model of yours:\n"
        "  ropex eval MODEL -s none -s yarn:4 --data book.txt\n"
        "Keep what you chose:\n"
        "  ropex patch MODEL -s yarn:4 -o OUT"
    )


def _eval(arguments: argparse.Namespace) -> None:
    import ropex

    strategies = [ropex.strategy(text) for text in arguments.strategy]
    out = arguments.out or Path("runs") / name_of(arguments.model)
    quiet()
    from ropex_eval.report import plot, render
    from ropex_eval.run import check_out, run

    check_out(out, arguments.force)
    folder, skeleton, rope = read_model(arguments)
    lift = arguments.lift_sliding_window
    for chosen in strategies:  # what does not fit the model is told before any work
        ropex.patch(
            skeleton, chosen, trained_length=arguments.trained_length, lift_sliding_window=lift
        ).remove()
    protocol = _protocol(arguments, rope.trained_length)
    strategies = strategies or _usual(rope.trained_length, protocol.longest)
    study = _study(arguments, folder, protocol)
    results = run(study, strategies, out, force=arguments.force, begin=lambda: _say(_header(study)))
    plot(results, out / "ppl.png")
    if arguments.json:
        print((out / "results.json").read_text(encoding="utf-8"), end="")
    else:
        print(render(results))
    _say(f"\n{out}/results.json  {out}/results.csv  {out}/ppl.png  {out}/nll/")


def _protocol(arguments: argparse.Namespace, trained: int) -> Protocol:
    from ropex_eval.measure import Protocol

    lengths = arguments.lengths or tuple(n for n in _around(trained) if n >= 2)
    return Protocol.of(lengths, arguments.targets, arguments.metrics)


def _usual(trained: int, longest: int) -> list[Strategy]:
    """What is compared unless the user says: no scaling, and YaRN where that may help."""
    import ropex

    texts = ["none", f"yarn:length={longest}"] if longest > trained else ["none"]
    return [ropex.strategy(text) for text in texts]


def _study(arguments: argparse.Namespace, folder: Path, protocol: Protocol) -> Study:
    """Read the text, then the weights, which take longer."""
    from ropex.loading import load_model, load_tokenizer
    from ropex_eval.corpus import load_corpus
    from ropex_eval.memory import enough_memory
    from ropex_eval.nll import Scorer
    from ropex_eval.run import Study

    if arguments.windows < 1:
        raise ValueError(f"--windows is {arguments.windows}, it must be at least 1")
    tokenizer = load_tokenizer(folder, trust_remote_code=arguments.trust_remote_code)
    bos = _bos(tokenizer, arguments.bos, arguments.model)
    corpus = load_corpus(arguments.data, tokenizer, bos, protocol.longest, arguments.windows)
    device, dtype = _placement(arguments.device, arguments.dtype)
    with enough_memory(lambda: f"loading the model onto {device}; --dtype bfloat16 needs less"):
        model = load_model(folder, dtype=dtype, trust_remote_code=arguments.trust_remote_code)
        model.to(device)
    return Study(
        arguments.model,
        folder,
        Scorer(model),
        corpus,
        protocol,
        arguments.trained_length,
        arguments.lift_sliding_window,
    )


def _header(study: Study) -> str:
    """What is measured, on what."""
    model, corpus = study.scorer.model, study.corpus
    left_out = f" ({corpus.too_short} too short)" if corpus.too_short else ""
    return (
        f"model  {study.model_id}: {model.config.model_type}, trained at "
        f"{format_size(study.rope.trained_length)} tokens, "
        f"{str(model.dtype).removeprefix('torch.')} on {model.device}\n"
        f"text   {corpus.source}: {count(len(corpus.windows), 'window')} of "
        f"{format_size(study.protocol.longest)} tokens from "
        f"{count(len(corpus.documents), 'document')}{left_out}"
    )


def _around(trained: int) -> tuple[int, ...]:
    return (trained // 4, trained // 2, trained, 2 * trained, 4 * trained)


def _bos(tokenizer: Any, wanted: str, model: str) -> int | None:
    """Id of the token in front of each window.

    Raises:
        ValueError: The tokenizer has no such token.
    """
    if wanted == "none":
        return None
    if wanted != "auto":
        found: int | None = tokenizer.get_vocab().get(wanted)
        if found is None:
            raise ValueError(f"--bos {wanted}: the tokenizer of {model} has no such token")
        return found
    if tokenizer.bos_token_id is None:
        raise ValueError(
            f"the tokenizer of {model} has no BOS token; --bos none starts windows with text, "
            "--bos TOKEN with a token of your choice"
        )
    return int(tokenizer.bos_token_id)


def _placement(device: str, dtype: str) -> tuple[str, str]:
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by backend
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
    return device, "float32" if dtype == "auto" and device == "cpu" else dtype


def _say(text: str) -> None:
    """Print to stderr, where everything goes that is not a result."""
    print(text, file=sys.stderr)
