"""Facts hidden in a text and asked for at its end."""

from __future__ import annotations

import random
from collections.abc import Callable

from ropex_eval.measure.answers import Ids
from ropex_eval.tasks.context import Asked, Context, Question, Setting, splice
from ropex_eval.tasks.pieces import CITIES, distinct, number

_AT_LEAST = 4  # facts in a context that has several; RULER's number


def passkey(setting: Setting) -> Context:
    """One number in a text; one context for every depth, sharing the text up to it."""

    def draw(rng: random.Random) -> tuple[str, str, str]:
        key = number(rng)
        question = "\nWhat is the pass key? The pass key is"
        return f"\nThe pass key is {key}. Remember it.\n", question, key

    return _single(setting, draw)


def niah(setting: Setting) -> Context:
    """The number of one city in a text; one context for every depth."""

    def draw(rng: random.Random) -> tuple[str, str, str]:
        city, value = rng.choice(CITIES), number(rng)
        return _fact(city, value), _about(city), value

    return _single(setting, draw)


def multikey(setting: Setting) -> Context:
    """Several cities with a number each, one at every depth; each is asked for alone."""
    depths, values = _several(setting)
    cities = setting.rng("cities").sample(CITIES, len(depths))
    pairs = list(zip(cities, values, strict=True))
    asked = [Asked.of(setting.encode, _about(city), value) for city, value in pairs]
    facts = [_fact(city, value) for city, value in pairs]
    trunk = _hidden(setting, facts, depths, max(each.tokens for each in asked))
    questions = (
        Question(depth, each.text, each.expected, each.branches(len(trunk)))
        for depth, each in zip(setting.depths, asked, strict=False)
    )
    return Context(setting, trunk, tuple(questions))


def multivalue(setting: Setting) -> Context:
    """One city with several numbers, one at every depth; all are asked for in turn."""
    depths, values = _several(setting)
    city = setting.rng("cities").choice(CITIES)
    facts = [f"\nOne of the numbers of {city} is {value}.\n" for value in values]
    order = sorted(range(len(depths)), key=depths.__getitem__)
    asked = f"\nThe numbers of {city}, in the order of the text, are"
    return _listed(setting, facts, depths, order, asked, values)


def multiquery(setting: Setting) -> Context:
    """Several cities with a number each, one at every depth; all are asked for together."""
    depths, values = _several(setting)
    cities = setting.rng("cities").sample(CITIES, len(depths))
    facts = [_fact(city, value) for city, value in zip(cities, values, strict=True)]
    order = setting.rng("order").sample(range(len(depths)), len(depths))
    *others, last = (cities[index] for index in order)
    asked = f"\nThe numbers of {', '.join(others)} and {last}, in this order, are"
    return _listed(setting, facts, depths, order, asked, values)


def _fact(city: str, value: str) -> str:
    return f"\nThe number of {city} is {value}.\n"


def _about(city: str) -> str:
    return f"\nWhat is the number of {city}? The number of {city} is"


def _single(setting: Setting, draw: Callable[[random.Random], tuple[str, str, str]]) -> Context:
    """One context for every depth, all with the same haystack.

    Args:
        setting: What to make.
        draw: A needle, a question and its answer.
    """
    cells = []
    for depth in setting.depths:
        needle, question, answer = draw(setting.rng(depth))
        asked, ids = Asked.of(setting.encode, question, answer), setting.encode(needle)
        room = setting.room(len(setting.start) + len(ids) + asked.tokens)
        cells.append((depth, asked, ids, room))
    trunk = setting.start + setting.filler(max(room for *_, room in cells))
    questions = []
    for depth, asked, ids, room in cells:
        at, end = (len(setting.start) + place for place in (round(depth * room), room))
        branches = asked.branches(at, ids + trunk[at:end])
        questions.append(Question(depth, asked.text, asked.expected, branches))
    return Context(setting, trunk, tuple(questions))


def _several(setting: Setting) -> tuple[list[float], list[str]]:
    """Depths of all facts, those that are asked about first, and a number for each.

    Raises:
        ValueError: There are more depths than cities.
    """
    rng, spare = setting.rng("numbers"), max(0, _AT_LEAST - len(setting.depths))
    if len(setting.depths) > len(CITIES):
        raise ValueError(
            f"{setting.task} hides a city at each of {len(setting.depths)} depths, and there are "
            f"{len(CITIES)}; give fewer depths"
        )
    depths = [*setting.depths, *(rng.random() for _ in range(spare))]
    return depths, distinct(lambda: number(rng), len(depths))


def _hidden(setting: Setting, facts: list[str], depths: list[float], rest: int) -> Ids:
    """The whole context: facts at their depths, and room for `rest` tokens behind it."""
    needles = setting.encode.all(facts)
    room = setting.room(len(setting.start) + sum(map(len, needles)) + rest)
    places = [round(depth * room) for depth in depths]
    found = sorted(zip(places, needles, strict=True), key=lambda pair: pair[0])
    return setting.start + splice(setting.filler(room), found)


def _listed(
    setting: Setting, facts: list[str], depths: list[float], order: list[int], question: str,
    values: list[str],
) -> Context:  # fmt: skip
    """A context whose one question has a value for each depth.

    Args:
        setting: What to make.
        facts: What is hidden at each depth.
        depths: Those that are asked about first.
        order: In which the facts are asked for.
        question: Asks for all values.
        values: Of the facts.
    """
    asked = Asked.of(setting.encode, question, *(values[index] for index in order))
    trunk = _hidden(setting, facts, depths, asked.tokens)
    branches = dict(zip(order, asked.branches(len(trunk)), strict=True))
    questions = (
        Question(depth, question, (values[index],), (branches[index],))
        for index, depth in enumerate(setting.depths)
    )
    return Context(setting, trunk, tuple(questions))
