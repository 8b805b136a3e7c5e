"""`ropex tasks`."""

from __future__ import annotations

import argparse

from ropex.cli.common import Verbs, add_checkpoint, add_verb, quiet, refuse, size


def add_verbs(verbs: Verbs) -> None:
    """Add `tasks`."""
    parser = add_verb(
        verbs, "tasks", _tasks,
        "list the retrieval tasks, or print a prompt of one as a model gets it",
        "ropex tasks passkey ./llama --length 512",
    )  # fmt: skip
    parser.add_argument("task", nargs="?", metavar="TASK", help="print a prompt of this one")
    add_checkpoint(parser, default="demo")
    parser.add_argument(
        "--length", type=size, metavar="N", help="tokens of the prompt (default: 256)"
    )
    parser.add_argument(
        "--depth", type=float, metavar="D", help="where the answer is, from 0 to 1 (default: 0.5)"
    )


def _tasks(arguments: argparse.Namespace) -> None:
    if arguments.task is None:
        refuse(arguments, "is for a prompt; name a TASK", "length", "depth", "trust_remote_code")
    from ropex.checkpoints.find import find
    from ropex.checkpoints.loading import load_skeleton, load_tokenizer
    from ropex_eval.tasks import TASKS, Source, show

    if arguments.task is None:
        for task in TASKS.values():
            print(f"{task.name:<16}{task.help}")
        return
    if arguments.task not in TASKS:
        raise ValueError(f"unknown task {arguments.task!r}; known: {', '.join(TASKS)}")
    quiet()
    folder, trusted = find(arguments.model, weights=False), arguments.trust_remote_code
    skeleton = load_skeleton(folder, trust_remote_code=trusted)
    tokenizer = load_tokenizer(folder, trust_remote_code=trusted)
    source = Source.of(skeleton, tokenizer, tokenizer.bos_token_id)
    depth = 0.5 if arguments.depth is None else arguments.depth
    print(show(TASKS[arguments.task], source, arguments.length or 256, depth))
