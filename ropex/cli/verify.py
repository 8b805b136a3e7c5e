"""`ropex verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_model, add_strategy, add_verb, quiet, refuse, size

if TYPE_CHECKING:
    from ropex.parity.models import Difference
    from ropex.patching.record import Record

_SERVER = ("served", "api_key", "data", "length", "allowed")


def add_verbs(verbs: Verbs) -> None:
    """Add `verify`."""
    parser = add_verb(
        verbs, "verify", _verify,
        "prove that a saved checkpoint, or a server, computes what a patched model does",
        "ropex verify ./llama ./llama-16k -s yarn:4",
        "ropex verify ./llama-16k --url http://localhost:8000 --served llama-16k",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument("other", nargs="?", metavar="DIR", help="a checkpoint to compare with")
    add_strategy(parser, "what to patch MODEL with")
    parser.add_argument(
        "--lift-sliding-window", action="store_true",
        help="in MODEL, as ropex patch does with this option",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"),
        help="that both are loaded in (default: float32)",
    )  # fmt: skip
    _add_server(parser.add_argument_group("against a server with OpenAI's API"))


def _add_server(server: argparse._ArgumentGroup) -> None:
    server.add_argument("--url", metavar="URL", help="such as http://localhost:8000")
    server.add_argument("--served", metavar="NAME", help="what it calls the model")
    server.add_argument("--api-key", metavar="KEY", help="if it wants one")
    server.add_argument("--data", metavar="TEXT", help="as for ropex eval (default: stdlib)")
    server.add_argument(
        "--length", type=size, metavar="N",
        help="tokens of text (default: a quarter beyond trained)",
    )  # fmt: skip
    server.add_argument(
        "--allowed", type=float, metavar="NATS",
        help="mean difference of a token's log-probability (default: 0.05)",
    )  # fmt: skip


def _verify(arguments: argparse.Namespace) -> None:
    if (arguments.other is None) == (arguments.url is None):
        raise ValueError("name a checkpoint to compare with, or a server (--url), one of the two")
    if arguments.url is None:
        from ropex.checkpoints.find import find, local

        refuse(arguments, "is for a server (--url)", *_SERVER)
        if local(arguments.other):
            find(arguments.other, weights=False)
    quiet()
    compared = _with_server if arguments.url else _with_checkpoint
    found = compared(arguments, _live(arguments))
    for each in found:
        print(each)
    if not all(each.same for each in found):
        raise SystemExit(1)


def _live(arguments: argparse.Namespace) -> Any:
    """MODEL, patched as the arguments say."""
    import ropex
    from ropex.checkpoints.find import find
    from ropex.checkpoints.loading import load_model
    from ropex.config.from_file import read_strategy, require_base

    text = arguments.strategy
    chosen = read_strategy(text) if text else None
    reading = {"dtype": arguments.dtype, "trust_remote_code": arguments.trust_remote_code}
    trained = arguments.trained_length
    if arguments.lift_sliding_window:
        model = load_model(find(arguments.model), **reading)
        ropex.patch(model, chosen or "none", trained_length=trained, lift_sliding_window=True)
    else:
        model = ropex.load(arguments.model, chosen, trained_length=trained, **reading)
    if text and text.startswith("@"):
        require_base(text, _base(model))
    return model


def _base(model: Any) -> float:
    """The base that a patch found."""
    from ropex.model.rotary import sites
    from ropex.patching.stack import stack

    handle = stack(sites(model))[0].handle
    assert handle is not None  # no copy
    return handle.state.rope.base


def _with_checkpoint(arguments: argparse.Namespace, model: Any) -> list[Difference]:
    import torch

    from ropex.checkpoints.find import find
    from ropex.checkpoints.loading import load_model
    from ropex.files.untrusted import read_json
    from ropex.parity.models import Folded, differences
    from ropex.patching.record import Record

    folder, trust = find(arguments.other), arguments.trust_remote_code
    other = load_model(folder, dtype=arguments.dtype, trust_remote_code=trust)
    written, config = Record.read(folder), read_json(folder / "config.json")
    folded = None
    if written and written.folded_temperature != 1:
        stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        folded = Folded(written.folded_temperature, getattr(torch, stored.removeprefix("torch.")))
    trained, target = _lengths(arguments, model, Record.of(model) or written)
    return list(differences(model, other, trained, target, folded))


def _lengths(arguments: argparse.Namespace, model: Any, record: Record | None) -> tuple[int, int]:
    """Tokens that the model was trained at, and that it is to reach."""
    import ropex

    if record is not None:
        return record.trained_length, record.target_length
    trained = ropex.rope_of(model, arguments.trained_length).trained_length
    return trained, 2 * trained


def _with_server(arguments: argparse.Namespace, model: Any) -> list[Difference]:
    """The text's tokens under both; engines round differently, so the means are compared."""
    from ropex.checkpoints.find import find
    from ropex.checkpoints.loading import load_tokenizer
    from ropex.parity.models import Difference
    from ropex.parity.server import own_logprobs, served_logprobs
    from ropex.patching.record import Record
    from ropex.texts.tokens import require_embedded
    from ropex_eval.study.corpus import load_corpus

    folder = find(arguments.model)
    tokenizer = load_tokenizer(folder, trust_remote_code=arguments.trust_remote_code)
    record = Record.of(model) or Record.read(folder)
    trained, target = _lengths(arguments, model, record)
    given, usual = arguments.length, min(target, trained + trained // 4)
    length = usual if given is None else given
    corpus = load_corpus(arguments.data or "stdlib", tokenizer, tokenizer.bos_token_id, length, 1)
    ids = corpus.excerpts[0].ids.tolist()
    ids = ids if corpus.bos is None else [corpus.bos, *ids]
    require_embedded(ids, model, arguments.model)
    name = arguments.served or Path(arguments.model).name
    theirs = served_logprobs(arguments.url, name, ids, arguments.api_key)
    ours = own_logprobs(model, ids)
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    what = f"log-probabilities of {len(ids)} tokens, mean difference"
    allowed = 0.05 if arguments.allowed is None else arguments.allowed
    return [Difference(what, sum(apart) / len(apart), allowed)]
