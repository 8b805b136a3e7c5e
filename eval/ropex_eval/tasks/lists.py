"""Structured contexts: pairs of keys and values, and chains of variables."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise

from ropex_eval.tasks.context import Asked, Context, Question, Setting, about_all, behind, splice
from ropex_eval.tasks.pieces import code, distinct, identifier, number

_HOPS = 4  # RULER's number


def kv(setting: Setting) -> Context:
    """As many pairs of UUIDs as fit; a key is asked for at every depth."""
    pairs, ask = _pairs(setting), "\n}\nOnce more, the value of this key:"
    head, tail = setting.encode.all(["\n{", ask])
    sizes, comma = [pair.tokens for pair in pairs], len(pairs[0].comma)
    most = accumulate(sizes, max)  # a pair that is asked for stands there once more
    sums = zip(accumulate(sizes), most, strict=True)
    whole = [n * comma + sum(two) for n, two in enumerate(sums, start=1)]
    taken = len(setting.start) + len(head) + len(tail)
    count = bisect_right(whole, setting.room(taken, least=whole[1]))
    asked = [pairs[round(depth * (count - 1))] for depth in setting.depths]
    body = (i for pair in pairs[:count] for i in (*pair.ids, *pair.answers[0], *pair.comma))
    rest = max(pair.tokens for pair in asked)
    trunk = behind(setting, (*head, *body, *tail), rest)
    questions = (
        Question(depth, ask + pair.text, pair.expected, pair.branches(len(trunk)))
        for depth, pair in zip(setting.depths, asked, strict=True)
    )
    return Context(setting, trunk, tuple(questions))


def vt(setting: Setting) -> Context:
    """Variables set to each other, scattered in a text; those with one value are asked for."""
    rng, encode = setting.rng(), setting.encode
    value = number(rng)
    names = distinct(lambda: code(rng, 5).upper(), _HOPS + 1)
    hops = [f"\nVAR {new} = VAR {old}.\n" for old, new in pairwise(names)]
    pieces = encode.all([f"\nVAR {names[0]} = {value}.\n", *hops])
    example = encode(
        "\nAn example: VAR AAB = 7. VAR AAC = VAR AAB. Asked for the variables that are 7, in "
        "order, one answers AAB, AAC.\n"
    )
    question = f"\nThe variables that are {value}, in the order in which they were set, are"
    asked = Asked.of(encode, question, *names)
    taken = len(setting.start) + len(example) + sum(map(len, pieces)) + asked.tokens
    room = setting.room(taken)
    places = sorted(rng.randint(0, room) for _ in pieces)
    hay = splice(setting.filler(room), zip(places, pieces, strict=True))
    return about_all(setting, setting.start + example + hay, asked)


def _pairs(setting: Setting) -> list[Asked]:
    """Keys and their values, more than fit."""
    rng, tokens = setting.rng(), 0
    pairs: list[Asked] = []
    while tokens < setting.length or len(pairs) < 2:
        key, value = (f'"{identifier(rng)}"' for _ in range(2))
        pairs.append(Asked.of(setting.encode, f"\n{key}:", value))
        tokens += pairs[-1].tokens
    return pairs
