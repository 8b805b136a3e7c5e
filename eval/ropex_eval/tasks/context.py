"""The parts of a prompt, and the questions about it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ropex_eval.measure.answers import Branch, Ids
from ropex_eval.tasks.pieces import Encoder, sentences


@dataclass(frozen=True)
class Source:
    """The material of all prompts of a run.

    Attributes:
        encoder: Of the model's tokenizer; None if there is none.
        bos: Id in front of every prompt, or None.
        haystack: Ids of a text to hide things in; sentences are made up if it is None.
        vocabulary: Ids that random strings are drawn from.
        text: The text of the haystack, so that no answer is taken from it.
    """

    encoder: Encoder | None
    bos: int | None
    haystack: Ids | None
    vocabulary: Sequence[int]
    text: str = field(repr=False)

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, bos: int | None, haystack: Iterable[int] | None = None
    ) -> Source:
        """Take the vocabulary from a model, without special tokens.

        Args:
            model: The measured model.
            tokenizer: Its tokenizer, or None.
            bos: Id in front of every prompt, or None.
            haystack: Ids of the user's text.
        """
        ids: int = model.get_input_embeddings().weight.shape[0]
        special = {bos}
        if tokenizer is not None:  # embeddings may have more rows than there are tokens
            ids, special = min(ids, len(tokenizer)), special | set(tokenizer.all_special_ids)
        encoder = None if tokenizer is None else Encoder(tokenizer, model)
        hay = None if haystack is None else tuple(haystack)
        text = encoder.decode(hay) if encoder and hay else ""
        return cls(encoder, bos, hay, [i for i in range(ids) if i not in special], text)


@dataclass(frozen=True)
class Setting:
    """The settings of one context.

    Attributes:
        source: Shared by all contexts of a run.
        task: Name of the task.
        length: Tokens of a prompt and its answer.
        depths: Where things are hidden, from 0 (the beginning) to 1.
        sample: Number of the sample.
        seed: Of the run.
    """

    source: Source
    task: str
    length: int
    depths: tuple[float, ...]
    sample: int
    seed: int

    def rng(self, purpose: object = "") -> random.Random:
        """Random numbers, the same in every process and different for every purpose."""
        key = f"{self.seed}/{self.task}/{self.length}/{self.sample}/{purpose}"
        return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))

    @property
    def start(self) -> Ids:
        """BOS, if there is one."""
        return () if self.source.bos is None else (self.source.bos,)

    @property
    def encode(self) -> Encoder:
        """Encode a text.

        Raises:
            ValueError: There is no tokenizer.
        """
        if self.source.encoder is None:
            raise ValueError(f"{self.task} needs a tokenizer; only induction does without")
        return self.source.encoder

    def room(self, taken: int, least: int = 0) -> int:
        """Number of tokens left for filler.

        Args:
            taken: Tokens of everything else.
            least: Tokens that are needed.

        Raises:
            ValueError: Fewer are left.
        """
        if self.length < taken + least:
            raise ValueError(
                f"{self.task} does not fit into {self.length} tokens: sample {self.sample} needs "
                f"at least {taken + least}; give a greater length"
            )
        return self.length - taken

    def filler(self, tokens: int) -> Ids:
        """`tokens` tokens of the haystack, from a different place for every sample.

        Raises:
            ValueError: The user's text is shorter.
        """
        hay = self.source.haystack
        if hay is None:
            return sentences(self.encode, self.rng("haystack"), tokens)
        if len(hay) < tokens:
            raise ValueError(
                f"the haystack has {len(hay)} tokens, and {self.task} at {self.length} needs "
                f"{tokens}; give a longer text or a smaller length"
            )
        place = self.rng("haystack").randint(0, len(hay) - tokens)
        return hay[place : place + tokens]


@dataclass(frozen=True)
class Asked:
    """A question and its answers, as text and as ids.

    Several answers follow one another; each is asked for after the right ones before it.

    Attributes:
        text: The question.
        expected: The answers.
        ids: Of the question.
        answers: Ids of each answer.
        comma: Ids of the separator of answers.
    """

    text: str
    expected: tuple[str, ...]
    ids: Ids
    answers: tuple[Ids, ...]
    comma: Ids = ()

    @classmethod
    def of(cls, encode: Encoder, text: str, *expected: str) -> Asked:
        """Encode a question and its answers, each after a space."""
        ids, comma, *answers = encode.all([text, ",", *(f" {each}" for each in expected)])
        return cls(text, expected, ids, tuple(answers), comma)

    @property
    def tokens(self) -> int:
        """Length of the question and all answers."""
        answers = sum(map(len, self.answers))
        return len(self.ids) + answers + len(self.comma) * (len(self.answers) - 1)

    def branches(self, at: int, before: Ids = ()) -> tuple[Branch, ...]:
        """One branch for each answer, behind `at` shared tokens and `before`."""
        ids, found = before + self.ids, []
        for answer in self.answers:
            found.append(Branch(at, ids, answer))
            ids += answer + self.comma
        return tuple(found)


@dataclass(frozen=True)
class Question:
    """A question about one depth of a context, or about all of it.

    Attributes:
        depth: From 0 to 1; None if the task has no places.
        text: The question.
        expected: Right answers.
        branches: One for each right answer.
    """

    depth: float | None
    text: str
    expected: tuple[str, ...]
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Context:
    """A text, and questions that share it.

    Attributes:
        setting: What it is made of.
        trunk: Ids that the questions share, BOS included.
        questions: Each with where it leaves the trunk.
    """

    setting: Setting
    trunk: Ids
    questions: tuple[Question, ...]

    def prompt(self, question: Question) -> Ids:
        """Ids of a question with everything before it, down to its first answer."""
        first = question.branches[0]
        return self.trunk[: first.at] + first.ids

    def records(self) -> list[dict[str, Any]]:
        """Every question with its whole prompt, ready for JSON; ids if there is no tokenizer."""
        setting, encoder = self.setting, self.setting.source.encoder
        about = {"task": setting.task, "length": setting.length, "sample": setting.sample}
        found = []
        for question in self.questions:
            ids = self.prompt(question)
            asked = {"question": question.text, "expected": list(question.expected)}
            prompt = encoder.decode(ids) if encoder else list(ids)
            found.append({**about, "depth": question.depth, "prompt": prompt, **asked})
        return found


def behind(setting: Setting, body: Ids, rest: int) -> Ids:
    """A context that ends with `body`, after filler that leaves room for `rest` tokens."""
    room = setting.room(len(setting.start) + len(body) + rest)
    return setting.start + setting.filler(room) + body


def about_all(setting: Setting, trunk: Ids, asked: Asked) -> Context:
    """A context with one question, about all of it."""
    branches = asked.branches(len(trunk))
    return Context(setting, trunk, (Question(None, asked.text, asked.expected, branches),))


def splice(hay: Ids, needles: Iterable[tuple[int, Ids]]) -> Ids:
    """`hay` with needles at places of it, in ascending order."""
    ids, done = [], 0
    for place, needle in needles:
        ids += [*hay[done:place], *needle]
        done = place
    return (*ids, *hay[done:])
