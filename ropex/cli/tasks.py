"""`ropex tasks`."""

from __future__ import annotations

import argparse

from ropex.cli.common import Verbs, add_model, add_verb, quiet, read_model, size


def add_verbs(verbs: Verbs) -> None:
    """Add `tasks`."""
    parser = add_verb(
        verbs,
        "tasks",
        _tasks,
        "list the retrieval tasks, or show a prompt of one as a model is given it",
        "ropex tasks passkey ./llama --length 512",
    )
    parser.add_argument("task", nargs="?", metavar="TASK", help="show a prompt of this one")
    add_model(parser, default="demo")
    parser.add_argument(
        "--length", type=size, default=256, metavar="N", help="tokens of the prompt (default: 256)"
    )
    parser.add_argument(
        "--depth", type=float, default=0.5, metavar="D", help="where the answer is (default: 0.5)"
    )


def _tasks(arguments: argparse.Namespace) -> None:
    quiet()
    from ropex.checkpoints.find import load_tokenizer
    from ropex_eval.tasks import TASKS, Source, show

    if arguments.task is None:
        for task in TASKS.values():
            print(f"{task.name:<16}{task.help}")
        return
    if arguments.task not in TASKS:
        raise ValueError(f"unknown task {arguments.task!r}; known: {', '.join(TASKS)}")
    folder, skeleton, _ = read_model(arguments, weights=False)
    tokenizer = load_tokenizer(folder, trust_remote_code=arguments.trust_remote_code)
    source = Source.of(skeleton, tokenizer, tokenizer.bos_token_id)
    print(show(TASKS[arguments.task], source, arguments.length, arguments.depth))
