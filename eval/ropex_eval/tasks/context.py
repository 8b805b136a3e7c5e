"""The parts of a prompt, and the questions about it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ropex_eval.measure.answers import Branch, Ids
from ropex_eval.tasks.pieces import Encoder, sentences


@dataclass(frozen=True)
class Source:
    """The material of all prompts of a run.

    Attributes:
        encoder: Of the model's tokenizer.
        bos: Id in front of every prompt, or None.
        vocabulary: Ids that random strings are drawn from.
    """

    encoder: Encoder
    bos: int | None
    vocabulary: Sequence[int]

    @classmethod
    def of(cls, model: Any, tokenizer: Any, bos: int | None) -> Source:
        """Take the vocabulary from a model, without special tokens."""
        embeddings: int = model.get_input_embeddings().weight.shape[0]
        ids = range(min(embeddings, len(tokenizer)))  # there may be more rows than tokens
        special = {bos, *tokenizer.all_special_ids}
        return cls(Encoder(tokenizer, model), bos, [i for i in ids if i not in special])


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
        """Encodes a text."""
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
        """`tokens` tokens of made-up sentences, others for every sample."""
        return sentences(self.encode, self.rng("haystack"), tokens)


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
        """Every question with its whole prompt, ready for JSON."""
        setting = self.setting
        about = {"task": setting.task, "length": setting.length, "sample": setting.sample}
        found = []
        for question in self.questions:
            prompt = setting.encode.decode(self.prompt(question))
            asked = {"question": question.text, "expected": list(question.expected)}
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
