"""Pieces of prompts: text to token ids, filler sentences, names and numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from ropex.texts.tokens import require_embedded
from ropex_eval.measure.answers import Ids

# A tokenizer may treat the beginning of a text as that of a word. No piece begins a text, so each
# is encoded after this letter, whose ids are then removed.
_ANCHOR = "a"
_BLOCK = 64  # sentences that are encoded at a time

# fmt: off
CITIES = (
    "Lisbon", "Oslo", "Cairo", "Lima", "Quito", "Delhi", "Hanoi", "Paris", "Rome", "Berlin",
    "Madrid", "Dublin", "Vienna", "Athens", "Warsaw", "Prague", "Tokyo", "Seoul", "Boston",
    "Denver", "Dallas", "Austin", "Tunis", "Accra", "Dakar", "Nairobi", "Lagos", "Havana",
    "Bogota", "Kyoto", "Osaka", "Milan", "Turin", "Geneva", "Zurich", "Munich", "Bremen", "Lyon",
    "Nice", "Porto", "Seville", "Bilbao", "Glasgow", "Leeds", "Cork", "Bergen", "Malmo", "Tampere",
    "Riga", "Vilnius", "Krakow", "Brno", "Graz", "Basel", "Ghent", "Utrecht", "Naples", "Palermo",
    "Ankara", "Izmir", "Tbilisi", "Baku", "Tashkent", "Kabul",
)
_ADJECTIVES = (
    "quiet", "narrow", "old", "bright", "patient", "heavy", "gentle", "broken", "clever", "damp",
    "early", "faded", "golden", "hollow", "idle", "little", "modest", "northern", "plain", "rusty",
)
_NOUNS = (
    "miller", "canal", "lantern", "orchard", "kettle", "bridge", "painter", "cellar", "meadow",
    "ladder", "harbour", "tailor", "chimney", "basket", "sailor", "garden", "window", "carpenter",
    "barrel", "valley", "teacher", "engine", "blanket", "market", "tower", "baker", "carriage",
)
_VERBS = (
    "waited", "rested", "turned", "worked", "stayed", "moved", "stood", "slept", "sang", "walked",
)
_PLACES = ("behind", "beside", "below", "above", "near", "beyond", "opposite", "around")
# fmt: on
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Encoder:
    """Turns pieces of text into the ids that they have inside a longer text.

    Args:
        tokenizer: Of the measured model.
        model: The measured model; without it, ids that it does not know are not detected.
    """

    def __init__(self, tokenizer: Any, model: Any = None) -> None:
        self.tokenizer, self.model = tokenizer, model
        (self._lead,) = self._encode([_ANCHOR])

    def __call__(self, text: str) -> Ids:
        """Ids of one piece, without special tokens."""
        return self.all([text])[0]

    def all(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of every piece, as if it followed a word."""
        size, found = len(self._lead), []
        for text, ids in zip(texts, self._encode([_ANCHOR + each for each in texts]), strict=True):
            whole = ids[:size] == self._lead  # not so if the tokenizer joins them
            found.append(ids[size:] if whole else self._encode([text])[0])
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def _encode(self, texts: list[str]) -> list[Ids]:
        if not texts:
            return []
        # A text that spells "<s>" means those three characters, not the token.
        settings = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        found = [tuple(ids) for ids in self.tokenizer(texts, **settings)["input_ids"]]
        if self.model is not None:
            require_embedded(chain.from_iterable(found), self.model, "this model")
        return found


def sentences(encode: Encoder, rng: random.Random, tokens: int) -> Ids:
    """The first `tokens` ids of an endless text without numbers or names."""
    ids: list[int] = []
    while len(ids) < tokens:
        ids += encode("".join(_sentence(rng) for _ in range(_BLOCK)))
    return tuple(ids[:tokens])


def _sentence(rng: random.Random) -> str:
    (a, b), (who, where) = rng.sample(_ADJECTIVES, 2), rng.sample(_NOUNS, 2)
    return f" The {a} {who} {rng.choice(_VERBS)} {rng.choice(_PLACES)} the {b} {where}."


def distinct(draw: Callable[[], str], count: int) -> list[str]:
    """`count` different texts out of `draw`."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


def number(rng: random.Random) -> str:
    """Five digits."""
    return f"{rng.randrange(100_000):05d}"


def code(rng: random.Random, letters: int) -> str:
    """Random small letters."""
    return "".join(rng.choices(_LETTERS, k=letters))


def word(rng: random.Random) -> str:
    """A word of three syllables that no language has, so that they never run out."""
    return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(3))


def identifier(rng: random.Random) -> str:
    """A random UUID."""
    text = f"{rng.getrandbits(128):032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
