"""`ropex export`."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ropex.cli.common import Verbs, add_model, add_strategy, add_verb, quiet, refuse
from ropex.engines.facts import ENGINES, engine_name

if TYPE_CHECKING:
    from ropex.engines import Export
    from ropex.engines.wanted import Wanted

# What stands before and after the checkpoint and the flags of an engine.
_COMMANDS = {
    "vllm": ("vllm", "serve"),
    "sglang": ("python", "-m", "sglang.launch_server", "--model-path"),
    "llama.cpp": ("llama-server", "-m"),
    "tensorrt-llm": ("trtllm-serve",),
}
_GGUF = "MODEL.gguf"  # stands for a file that the user has converted


def add_verbs(verbs: Verbs) -> None:
    """Add `export`."""
    parser = add_verb(
        verbs, "export", _export,
        "print the flags or config with which an engine computes a checkpoint, and how exactly",
        "ropex export ./llama -s yarn:4 --for vllm",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument(
        "--for", dest="engine", required=True, metavar="ENGINE",
        help=f"{', '.join(ENGINES)}, or all for a table",
    )  # fmt: skip
    add_strategy(parser, "apply it first, without writing a checkpoint")
    parser.add_argument("--json", action="store_true", help="print the answer for programs")
    parser.add_argument(
        "--gguf", type=Path, metavar="FILE", help="a GGUF file of the model, to be rewritten"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="where to write it; with --gguf"
    )
    parser.add_argument("--force", action="store_true", help="replace the file of -o")


def _export(arguments: argparse.Namespace) -> None:
    text = arguments.strategy
    _check(arguments)
    quiet()
    from ropex.checkpoints.find import find
    from ropex.config.from_file import read_strategy, require_base
    from ropex.engines import exports
    from ropex.engines.judge import answer
    from ropex.engines.wanted import read

    wanted = read(
        find(arguments.model, weights=False), text and str(read_strategy(text)),
        trained_length=arguments.trained_length, trust_remote_code=arguments.trust_remote_code,
    )  # fmt: skip
    if text:
        require_base(text, wanted.base)
    if arguments.engine == "all":
        found = exports(wanted)
        print(_json([asdict(each) for each in found]) if arguments.json else _table(found))
        return
    result = _write(arguments, wanted) if arguments.gguf else answer(arguments.engine, wanted)
    print(_json(asdict(result)) if arguments.json else _text(result, arguments))
    if result.exactness == "not expressible":
        raise SystemExit(1)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse an engine that is not known, and options that do not go together."""
    if arguments.engine != "all":
        arguments.engine = engine_name(arguments.engine)
    if (arguments.gguf is None) != (arguments.out is None):
        raise ValueError(
            "--gguf FILE and -o FILE are given together: what to read, and where to write"
        )
    if arguments.gguf is None:
        refuse(arguments, "is for a file that is written (--gguf)", "force")
    elif not arguments.gguf.is_file():
        raise FileNotFoundError(f"no such file: {arguments.gguf}")
    if arguments.gguf and arguments.engine != "llama.cpp":
        raise ValueError(f"--gguf is for llama.cpp, not for {arguments.engine}")


def _write(arguments: argparse.Namespace, wanted: Wanted) -> Export:
    from ropex.engines import write_gguf

    return write_gguf(wanted, arguments.gguf, arguments.out, force=arguments.force)


def _json(content: object) -> str:
    return json.dumps(content, indent=2)


def _text(result: Export, arguments: argparse.Namespace) -> str:
    """The command or the config, the class of exactness, and why."""
    if result.exactness == "not expressible":
        return f"{result.engine}: not expressible\n{result.reason}\nsource: {result.source}"
    lines = [_command(result, arguments)] if result.engine in _COMMANDS else []
    if result.config and not _overridden(result):
        lines.append(f"in config.json:\n{_json(result.config)}")
    elif not result.flags:
        lines.append("config.json stays as it is")
    if arguments.gguf:
        lines.append(f"written: {arguments.out}")
    elif result.metadata:
        where = f"with {' and '.join(result.tensors)}, " if result.tensors else "or "
        lines.append(f"{where}in the GGUF file:\n{_json(result.metadata)}")
    return "\n".join([*lines, _verdict(result), result.reason, f"source: {result.source}"])


def _command(result: Export, arguments: argparse.Namespace) -> str:
    model = arguments.model
    if result.engine == "llama.cpp":
        model = str(arguments.out or _GGUF)
    flags = result.flags
    if arguments.gguf:  # the file says the rest
        flags = flags[:2]
    return shlex.join([*_COMMANDS[result.engine], model, *flags])


def _overridden(result: Export) -> bool:
    """Whether the flags say what the config would have to."""
    return any(flag in result.flags for flag in ("--hf-overrides", "--json-model-override-args"))


def _verdict(result: Export) -> str:
    if result.exactness == "exact" or result.bound is None:
        return f"{result.engine}: {result.exactness}"
    return f"{result.engine}: {result.exactness}, within {result.bound:.2g}"


def _table(found: list[Export]) -> str:
    """A line for each engine."""
    rows = [(each.engine, _verdict(each).split(": ", 1)[1], each.reason) for each in found]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows)
