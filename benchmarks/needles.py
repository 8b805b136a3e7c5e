"""Time to score needles at many depths: greedy decoding without and with a cache, and ropex.

The same model, haystack and needles, and one process; the ways take turns. The pass-key
scripts of LongRoPE, PoSE and LongLoRA use no cache: every answer token costs a whole prompt. Every
way decides whether greedy decoding gives the answer, and these verdicts are compared; half of the
answers are what the model would write.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from ropex_eval.measure.answers import AnswerScorer, Branch, Ids
from ways import random_llama, random_text

VOCABULARY = 32_000


def main() -> None:
    """Print one line for every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    parser.add_argument("--repeats", type=int, default=5, help="of each way (default 5)")
    parser.add_argument("--length", type=int, default=512, help="tokens (default 512)")
    parser.add_argument("--cells", type=int, default=12, help="depths (default 12)")
    parser.add_argument("--answer", type=int, default=8, help="tokens of an answer (default 8)")
    parser.add_argument("--hidden", type=int, default=512, help="width (default 512)")
    parser.add_argument("--layers", type=int, default=6, help="default 6")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = random_llama(args.layers, args.hidden, VOCABULARY)
    trunk, branches = grid(model, args.length, args.cells, args.answer)
    print(
        f"{args.layers} layers, width {args.hidden}; {args.cells} cells of {args.length} tokens, "
        f"{args.answer} answer tokens; {torch.get_num_threads()} threads"
    )
    ways: dict[str, Callable[[], list[bool]]] = {
        "generate, no cache": lambda: generated(model, trunk, branches, cache=False),
        "generate, cache": lambda: generated(model, trunk, branches, cache=True),
        "ropex": lambda: forced(model, trunk, branches),
    }
    seconds, verdicts = compare(ways, args.repeats)
    for name, taken in seconds.items():
        ratio = taken / seconds["ropex"]
        print(f"{name:>20}  {taken:7.2f} s  {ratio:5.1f}x  right: {sum(verdicts[name])}")
    print("verdicts equal:", len({tuple(each) for each in verdicts.values()}) == 1)


def grid(model: Any, length: int, cells: int, answer: int) -> tuple[Ids, list[Branch]]:
    """A haystack, and a needle at each depth of it; every other answer is the model's own."""
    needle, question = 16, 16
    ids = tuple(random_text(2 * length + cells * (needle + answer), VOCABULARY).tolist())
    hay, tail, drawn = ids[:length], ids[length : length + question], ids[2 * length :]
    room, branches = length - needle - question - answer, []
    for cell in range(cells):
        place = round(room * (cell + 0.5) / cells)
        own = drawn[cell * (needle + answer) :][: needle + answer]
        rest = own[:needle] + hay[place:room] + tail
        wanted = own[needle:]
        if cell % 2:
            wanted = written(model, hay[:place] + rest, answer, cache=True)
        branches.append(Branch(place, rest, wanted))
    return hay[:room], branches


def written(model: Any, prompt: Ids, tokens: int, *, cache: bool) -> Ids:
    """What greedy decoding writes after a prompt."""
    inputs = torch.tensor([prompt])
    options = {"do_sample": False, "use_cache": cache, "eos_token_id": None, "pad_token_id": 0}
    whole = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=tokens, **options
    )
    return tuple(whole[0, len(prompt) :].tolist())


def generated(model: Any, trunk: Ids, branches: list[Branch], *, cache: bool) -> list[bool]:
    """Whether each answer is what greedy decoding writes."""
    return [
        written(model, trunk[: b.at] + b.ids, len(b.answer), cache=cache) == b.answer
        for b in branches
    ]


def forced(model: Any, trunk: Ids, branches: list[Branch]) -> list[bool]:
    """The same by teacher forcing, including the time to inspect the model."""
    return [answer.exact for answer in AnswerScorer(model).score(trunk, branches)]


def compare(
    ways: dict[str, Callable[[], list[bool]]], repeats: int
) -> tuple[dict[str, float], dict[str, list[bool]]]:
    """Median seconds of each way, and its verdicts."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    verdicts = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            verdicts[name] = way()
            times[name].append(time.perf_counter() - start)
    return {name: median(taken) for name, taken in times.items()}, verdicts


if __name__ == "__main__":
    main()
