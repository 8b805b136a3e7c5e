"""Retrieval tasks: exact lengths, the right place, one right answer, and how they are scored."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

import ropex
from ropex.checkpoints.loading import load_model, load_tokenizer
from ropex.shipped import demo_checkpoint
from ropex_eval.measure.answers import Answer, AnswerScorer, Branch, Ids
from ropex_eval.tasks import (
    TASKS,
    Context,
    Question,
    Sample,
    Setting,
    Source,
    ask,
    contexts,
    counts,
    rows,
    show,
    wilson,
)
from ropex_eval.tasks.context import splice
from ropex_eval.tasks.pieces import Encoder
from tests.support.models import tiny_causal, tiny_tokenizer
from tests.support.processes import begin

DEPTHS = (0.0, 0.25, 0.5, 1.0)
HIDDEN = ("passkey", "niah", "niah_multikey", "niah_multivalue", "niah_multiquery", "kv")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, and a blank in front of every text, as Llama 2 has it."""
    letters = ["<s>", "</s>", "▁", "\n", *map(chr, range(33, 127))]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    steps: list[Any] = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Replace("▁", " ")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


class Words:
    """A tokenizer with a token a word, blank included; it learns words as it reads them."""

    def __init__(self) -> None:
        self.words = ["<s>", "</s>"]

    def __call__(self, texts: str | list[str], **settings: bool) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": self.ids(texts)}
        return {"input_ids": [self.ids(text) for text in texts]}

    def ids(self, text: str) -> list[int]:
        found = re.findall(r" ?\w+|\s|[^\w\s]", text)
        self.words += [word for word in dict.fromkeys(found) if word not in self.words]
        return [self.words.index(word) for word in found]

    def decode(self, ids: list[int], **settings: bool) -> str:
        return "".join(self.words[i] for i in ids)


TOKENIZERS: dict[str, Any] = {
    "bytes": tiny_tokenizer(), "metaspace": metaspace_tokenizer(), "words": Words(),
}  # fmt: skip
SOURCES = {
    name: Source(Encoder(tokenizer), 0, range(2, 98)) for name, tokenizer in TOKENIZERS.items()
}
SOURCE = SOURCES["bytes"]


def built(
    task: str, length: int = 1500, depths: Sequence[float] = DEPTHS, sample: int = 0,
    source: Source = SOURCE, seed: int = 0,
) -> Context:  # fmt: skip
    *_, last = contexts(TASKS[task], source, [length], depths, sample + 1, seed)
    return last


def text_of(context: Context, question: Question) -> str:
    """The prompt, without BOS."""
    return context.setting.encode.decode(context.prompt(question)[1:])


def sizes(context: Context) -> list[int]:
    return [branch.tokens for question in context.questions for branch in question.branches]


def positions(ids: Ids, piece: Ids) -> list[int]:
    return [i for i in range(len(ids)) if ids[i : i + len(piece)] == piece]


# Lengths.


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [999, 1500, 2600])
def test_the_longest_prompt_takes_the_length_and_none_takes_more(
    task: str, length: int, name: str
) -> None:
    for sample in (0, 1):
        found = sizes(built(task, length, sample=sample, source=SOURCES[name]))
        # Answers that come before, in multiquery, may be the last of the list.
        wanted = length if task != "niah_multiquery" else max(found)
        assert max(found) == wanted <= length
        assert max(found) > length - 20


@pytest.mark.parametrize("task", ["passkey", "niah", "induction"])
def test_every_prompt_of_one_needle_takes_the_length(task: str) -> None:
    for length in range(200, 230):
        assert set(sizes(built(task, length))) == {length}


@pytest.mark.parametrize("bos", [None, 0])
def test_bos_counts(bos: int | None) -> None:
    context = built("passkey", 300, source=replace(SOURCE, bos=bos))
    assert set(sizes(context)) == {300}
    assert (context.trunk[0] == 0) == (bos == 0)
    assert 0 not in context.trunk[1:]


@pytest.mark.parametrize("task", TASKS)
def test_too_short_a_length_is_refused_with_the_one_that_is_needed(task: str) -> None:
    with pytest.raises(ValueError, match=f"{task} does not fit into 40 tokens") as caught:
        built(task, 40)
    needed = re.search(r"at least (\d+); give a greater length", str(caught.value))
    assert needed
    least, names = int(needed[1]), 60  # other samples have longer and shorter names
    with pytest.raises(ValueError, match="does not fit"):
        built(task, least - names)
    for length in range(least, least + names, 7):
        with suppress(ValueError):
            assert max(sizes(built(task, length))) <= length
    assert max(sizes(built(task, least + names))) <= least + names


@pytest.mark.parametrize(
    ("task", "least"),
    [
        ("passkey", len("^\nThe pass key is 12345. Remember it.\n\nWhat is the pass key? ")
         + len("The pass key is 12345")),
        ("induction", 1 + 32 + 32),
    ],
)  # fmt: skip
def test_the_least_length_fits_and_one_less_does_not(task: str, least: int) -> None:
    assert sizes(built(task, least)) == [least] * 4
    with pytest.raises(ValueError, match=f"at least {least}"):
        built(task, least - 1)


# Random, but always the same.

DIGEST = """
import hashlib
from ropex_eval.tasks import TASKS, Source, contexts
from ropex_eval.tasks.pieces import Encoder

class Bytes:
    def __call__(self, texts, **settings):
        return {"input_ids": [[byte + 2 for byte in text.encode()] for text in texts]}

source = Source(Encoder(Bytes()), 0, range(2, 258))
seen = [
    (context.trunk, context.questions)
    for task in TASKS.values() for context in contexts(task, source, [999], [0, 0.5], 2)
]
digest = hashlib.sha256(repr(seen).encode()).hexdigest()
"""


def test_another_process_builds_the_same(tmp_path: Path) -> None:
    here: dict[str, Any] = {}
    exec(DIGEST, here)
    _, there, _ = begin(tmp_path, code=DIGEST + "print(digest)").end()  # it hashes texts otherwise
    assert there.strip() == here["digest"]


@pytest.mark.parametrize("task", TASKS)
def test_every_length_sample_and_seed_has_its_own(task: str) -> None:
    first = built(task)
    assert built(task) == first
    expected = [q.expected for q in first.questions]
    for other in (built(task, sample=1), built(task, 1501), built(task, seed=1)):
        assert other.trunk[1:100] != first.trunk[1:100] or task == "vt"
        assert [q.expected for q in other.questions] != expected


@pytest.mark.parametrize("task", ["passkey", "niah"])
def test_every_depth_of_one_needle_has_its_own_answer(task: str) -> None:
    found = {question.expected for question in built(task).questions}
    assert len(found) == len(DEPTHS)
    alone = built(task, depths=[0.25]).questions[0]
    assert alone == built(task).questions[1]


# What is in a prompt, and where.


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("task", HIDDEN)
def test_the_answer_is_in_the_prompt_once(task: str, name: str) -> None:
    context = built(task, source=SOURCES[name])
    assert [q.depth for q in context.questions] == list(DEPTHS)
    for question in context.questions:
        (expected,), (branch,) = question.expected, question.branches
        text = text_of(context, question)
        assert text.count(expected) == 1
        assert context.setting.encode.decode(branch.answer) == f" {expected}"
        assert not text.endswith(" ")
        assert positions(context.prompt(question), branch.answer)


@pytest.mark.parametrize("task", ["passkey", "niah"])
@pytest.mark.parametrize("length", [200, 1500])
def test_the_needle_is_at_its_depth_of_one_haystack(task: str, length: int) -> None:
    context = built(task, length, depths=[0, 0.1, 0.37, 0.9, 1])
    needle_of = {
        "passkey": r"\nThe pass key is \d{5}\. Remember it\.\n",
        "niah": r"\nThe number of \w+ is \d{5}\.\n",
    }
    hays = []
    for question in context.questions:
        text = text_of(context, question)
        found = re.search(needle_of[task], text)
        assert found
        hay = text.removesuffix(question.text).replace(found[0], "")
        assert question.depth is not None
        assert abs(found.start() - question.depth * len(hay)) <= 0.5
        assert len(hay) == length - 1 - len(found[0]) - len(question.text) - len(" 12345")
        hays.append(hay)
    longest = max(hays, key=len)
    assert all(longest.startswith(hay) for hay in hays)
    assert not re.search(r"\d", longest)


@pytest.mark.parametrize("task", ["niah_multikey", "niah_multivalue", "niah_multiquery"])
@pytest.mark.parametrize("depths", [(0.5,), (0.0, 1.0), (0.1, 0.2, 0.5, 0.6, 0.7, 0.9)])
def test_several_needles_are_at_their_depths(task: str, depths: tuple[float, ...]) -> None:
    context = built(task, depths=depths)
    assert [q.depth for q in context.questions] == list(depths)
    text = text_of(context, context.questions[0]).split("\nWhat is")[0].split("\nThe numbers")[0]
    needle = r"\n(?:The number|One of the numbers) of \w+ is (\d{5})\.\n"
    needles = list(re.finditer(needle, text))
    assert len(needles) == max(4, len(depths))
    room = len(text) - sum(len(found[0]) for found in needles)
    before = 0
    places = {}
    for found in needles:
        places[found[1]] = (found.start() - before) / room
        before += len(found[0])
    for question in context.questions:
        assert places[question.expected[0]] == pytest.approx(question.depth, abs=1 / room)


@pytest.mark.parametrize("task", ["niah", "niah_multikey"])
def test_the_number_is_that_of_the_city_in_question(task: str) -> None:
    context = built(task)
    for question in context.questions:
        city = question.text.removesuffix(" is").split()[-1]
        text = text_of(context, question)
        assert f"\nThe number of {city} is {question.expected[0]}.\n" in text
        assert len(re.findall(rf"number of {city} is \d", text)) == 1


def test_numbers_of_one_city_are_asked_in_the_order_of_the_text() -> None:
    context = built("niah_multivalue", depths=(0.2, 0.9))
    text = text_of(context, max(context.questions, key=lambda q: q.branches[0].tokens))
    hidden, asked = text.split("\nThe numbers of ")
    numbers = re.findall(r"\d{5}", hidden)
    assert len(numbers) == 4
    assert len(set(re.findall(r"numbers of (\w+) is", hidden))) == 1
    assert [*re.findall(r"\d{5}", asked)] == numbers[: len(re.findall(r"\d{5}", asked))]
    for question in context.questions:
        given = re.findall(r"\d{5}", text_of(context, question).split("\nThe numbers of ")[1])
        assert [*given, question.expected[0]] == numbers[: len(given) + 1]


def test_numbers_of_several_cities_are_asked_in_the_order_of_the_question() -> None:
    context = built("niah_multiquery")
    for question in context.questions:
        hidden, asked = text_of(context, question).split("\nThe numbers of ")
        numbers = dict(re.findall(r"The number of (\w+) is (\d{5})", hidden))
        cities = re.findall(r"[A-Z]\w+", asked)
        right = [numbers[city] for city in cities]
        given = re.findall(r"\d{5}", asked)
        assert [*given, question.expected[0]] == right[: len(given) + 1]


@pytest.mark.parametrize("length", [600, 2500])
def test_pairs_are_json_and_asked_for_at_their_depth(length: int) -> None:
    context = built("kv", length)
    for question in context.questions:
        text = text_of(context, question)
        pairs = json.loads(text[text.index("{") : text.index("}")].rstrip().rstrip(",") + "}")
        key = re.findall(r'"([^"]+)":', question.text)[-1]
        assert question.expected == (f'"{pairs[key]}"',)
        assert text.count(key) == 2
        assert question.depth is not None
        assert list(pairs).index(key) == round(question.depth * (len(pairs) - 1))
        assert len(pairs) == pytest.approx(length / 85, abs=3)


def test_variables_with_the_value_are_those_that_a_run_would_find() -> None:
    context = built("vt")
    (question,) = context.questions
    assert question.depth is None
    text = text_of(context, question).split("\n", 2)[2]  # behind the example
    memory: dict[str, str] = {}
    for name, _, value in re.findall(r"VAR (\w+) = (VAR )?(\w+)\.", text):
        memory[name] = memory.get(value, value)
    asked = re.search(r"variables that are (\d{5})", question.text)
    assert asked
    assert question.expected == tuple(memory)
    assert set(memory.values()) == {asked[1]}
    assert len(memory) == 5


@pytest.mark.parametrize(
    ("name", "length", "often", "seldom"),
    [("bytes", 1500, 6, 1), ("bytes", 6000, 30, 3), ("words", 4095, 6, 1), ("words", 4096, 30, 3)],
)
def test_common_words_are_the_commonest(name: str, length: int, often: int, seldom: int) -> None:
    context = built("cwe", length, source=SOURCES[name])
    (question,) = context.questions
    text = text_of(context, question)
    listed = text.split("A list of words:")[1].split("\n")[0]
    found = Counter(re.findall(r"\d+\. (\w+)", listed))
    assert [int(n) for n in re.findall(r"(\d+)\.", listed)] == [*range(1, found.total() + 1)]
    common = found.most_common(10)
    assert question.expected == tuple(sorted(word for word, _ in common))
    assert {count for _, count in common} == {often}
    assert {found[word] for word in found.keys() - set(question.expected)} == {seldom}
    assert len(context.setting.encode(listed)) > length - 300


def test_common_words_occur_less_often_where_they_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = built("cwe", 2500)
    monkeypatch.setattr(counts, "_LONG", 2500)
    assert built("cwe", 2500) == short


@pytest.mark.parametrize("length", [600, 1500, 4000])
def test_coded_words_follow_a_power_law(length: int) -> None:
    context = built("fwe", length)
    (question,) = context.questions
    text = text_of(context, question).split("mean nothing:")[1].removesuffix(question.text)
    (dots, most), *others = Counter(text.split()).most_common()
    assert dots == "..."
    assert question.expected == tuple(code for code, _ in others[:3])
    often = [count for _, count in others[:4]]
    assert sorted(set(often), reverse=True) == often  # no two alike
    assert often[0] == pytest.approx(most / 4, abs=1)


def test_a_piece_of_a_random_string_comes_again() -> None:
    context = built("induction", 400, depths=(0, 0.5, 1))
    for question in context.questions:
        (branch,) = question.branches
        piece = branch.ids + branch.answer
        (place,) = positions(context.trunk, piece)
        assert question.depth is not None
        assert abs(place - 1 - question.depth * (len(context.trunk) - 1 - len(piece))) <= 0.5
        assert (branch.at, len(branch.ids), len(branch.answer)) == (len(context.trunk), 8, 24)
    assert set(context.trunk[1:]) <= set(SOURCE.vocabulary)


def test_answers_of_a_list_are_asked_behind_the_right_ones() -> None:
    context = built("vt")
    (question,) = context.questions
    said = ""
    decode = context.setting.encode.decode
    for branch, expected in zip(question.branches, question.expected, strict=True):
        assert decode(branch.ids) == question.text + said
        assert decode(branch.answer) == f" {expected}"
        said += f" {expected},"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_have_the_ids_that_they_have_in_a_text(name: str) -> None:
    encode, tokenizer = Encoder(TOKENIZERS[name]), TOKENIZERS[name]
    pieces = [" The key", "\nis", " 12345", ".", " <s>"]
    whole = tokenizer("a" + "".join(pieces), add_special_tokens=False, split_special_tokens=True)
    joined = [i for ids in encode.all(pieces) for i in ids]
    assert [*encode("a")[-1:], *joined] == whole["input_ids"][-len(joined) - 1 :]
    assert encode.decode(joined) == "".join(pieces)


def test_a_piece_that_joins_the_word_before_it_is_encoded_alone() -> None:
    tokenizer = tiny_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["aĊ"] = 258
    state["model"]["merges"] = [["a", "Ċ"]]
    state["pre_tokenizer"]["use_regex"] = False
    joining = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    assert joining("a\nb")["input_ids"] == [0, 258, *tokenizer("b")["input_ids"][1:]]
    assert (
        Encoder(joining)("\nb")
        == Encoder(tokenizer)("\nb")
        == (*tokenizer("\nb")["input_ids"][1:],)
    )


@pytest.mark.parametrize(
    ("needles", "whole"),
    [([], "abc"), ([(0, "X")], "Xabc"), ([(3, "X")], "abcX"), ([(1, "X"), (1, "Y")], "aXYbc")],
)
def test_needles_are_spliced_in(needles: list[tuple[int, str]], whole: str) -> None:
    pieces = [(place, tuple(map(ord, text))) for place, text in needles]
    assert "".join(map(chr, splice(tuple(map(ord, "abc")), pieces))) == whole


# Records.


@pytest.mark.parametrize("task", TASKS)
def test_contexts_can_be_stored(task: str) -> None:
    context = built(task)
    records = json.loads(json.dumps(context.records()))
    for record, question in zip(records, context.questions, strict=True):
        assert record["prompt"] == "<s>" + text_of(context, question)
        assert record["question"] in record["prompt"] or task == "induction"
        assert record["expected"] == list(question.expected)
        about = [record[key] for key in ("task", "length", "depth", "sample")]
        assert about == [task, 1500, question.depth, 0]


def test_a_prompt_is_shown_with_its_answer() -> None:
    shown = show(TASKS["passkey"], SOURCE, 300)
    assert re.search(r"(\d{5})\. Remember(.|\n)*The pass key is \[\1\]$", shown)


def test_every_task_has_its_line_of_help() -> None:
    for name, task in TASKS.items():
        assert name == task.name
        assert task.help
        assert "\n" not in task.help


# Mistakes.


@pytest.mark.parametrize(
    ("task", "depths", "samples", "message"),
    [
        ("passkey", [0.5, 1.5], 1, "depth 1.5 is not between 0"),
        ("passkey", [-0.1], 1, "depth -0.1 is not between 0"),
        ("passkey", [math.nan], 1, "depth nan is not between 0"),
        ("passkey", [], 1, "passkey needs depths from 0 to 1; none is given"),
        ("vt", [], 0, "samples is 0, it must be at least 1"),
        ("niah_multikey", [i / 100 for i in range(80)], 1, "each of 80 depths.*fewer depths"),
    ],
)
def test_impossible_grids_are_refused(
    task: str, depths: list[float], samples: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(contexts(TASKS[task], SOURCE, [5000], depths, samples))


def test_tasks_without_places_ignore_depths() -> None:
    assert built("vt", depths=()) == built("vt", depths=(0.1, 0.5))


# Scores.


class Parrot:
    """A scorer that gives the answers that it was told, in order."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.asked = answers, list[Branch]()

    def score(self, trunk: Ids, branches: Sequence[Branch]) -> tuple[Answer, ...]:
        self.asked += branches
        return self.answers


def right(*logprobs: float) -> Answer:
    return Answer(logprobs, (0,) * len(logprobs))


WRONG = Answer((-4.0, -6.0), (0, 7))


@pytest.mark.parametrize(
    ("task", "answers", "exact", "logprob", "rank"),
    [
        ("passkey", [right(-1.0, -2.0)], 1.0, -1.5, 0.0),
        ("passkey", [WRONG], 0.0, -5.0, 3.5),
        ("induction", [WRONG], 0.5, -5.0, 3.5),
        ("fwe", [right(-1.0), WRONG, right(-3.0)], 2 / 3, -3.5, 0.0),
    ],
)
def test_a_sample_is_the_share_of_right_answers(
    task: str, answers: list[Answer], exact: float, logprob: float, rank: float
) -> None:
    context, parrot = built(task, depths=[0.5]), Parrot(*answers)
    (sample,) = ask(parrot, TASKS[task], context)  # type: ignore[arg-type]
    assert parrot.asked == [b for q in context.questions for b in q.branches]
    depth = context.questions[0].depth
    assert sample == Sample(task, 1500, depth, 0, exact, logprob, rank)


def test_samples_are_put_together() -> None:
    samples = [
        Sample("niah", length, depth, number, exact, -1.0 - number, 3.0 * number)
        for length in (64, 128)
        for number, exacts in enumerate([(1.0, 0.0), (1.0, 1.0)])
        for depth, exact in zip((0.0, 1.0), exacts, strict=True)
    ]
    grid = rows("yarn:4", samples)
    keys = [(row.length, row.depth, row.trials, row.accuracy) for row in grid]
    assert keys == [(n, d, 2, a) for n in (64, 128) for d, a in ((0.0, 1.0), (1.0, 0.5))]
    assert {(row.strategy, row.logprob, row.rank) for row in grid} == {("yarn:4", -1.5, 1.5)}
    assert (grid[1].low, grid[1].high) == wilson(1, 2)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 1 - 0.1611, 1.0),
    ],
)
def test_intervals_are_wilsons(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2), (math.nan, 2)])
def test_impossible_shares_are_refused(successes: float, trials: int) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        wilson(successes, trials)


# Whole measurements.


def test_random_ids_are_tokens_of_the_tokenizer_and_not_special() -> None:
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    assert len(tokenizer) == 258  # of 300 embeddings
    assert set(Source.of(model, tokenizer, 0).vocabulary) == set(range(2, 258))


@pytest.mark.parametrize(
    ("task", "length", "strategy", "least", "most"),
    [
        ("passkey", 256, "none", 0.95, 1),
        ("passkey", 512, "none", 0, 0.1),
        ("passkey", 512, "yarn:4", 0.95, 1),
        ("niah_multikey", 256, "none", 0.6, 1),
        ("induction", 256, "none", 0.9, 1),
        ("induction", 1024, "none", 0, 0.2),
        ("induction", 1024, "yarn:4", 0.5, 1),
    ],
)
def test_the_shipped_checkpoint_finds_what_it_was_trained_to(
    demo: tuple[Any, Any], task: str, length: int, strategy: str, least: float, most: float
) -> None:
    model, tokenizer = demo
    with ropex.patch(model, strategy):
        source = Source.of(model, tokenizer, 0)
        scorer = AnswerScorer(model)
        asked = contexts(TASKS[task], source, [length], [0.2, 0.8], 3)
        found = [each.exact for context in asked for each in ask(scorer, TASKS[task], context)]
    assert least <= sum(found) / len(found) <= most


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    folder = demo_checkpoint()
    return load_model(folder, dtype="float32"), load_tokenizer(folder)


def test_settings_are_values() -> None:
    setting = Setting(SOURCE, "niah", 100, (0.5,), 3, 0)
    assert setting.rng("x").random() == replace(setting).rng("x").random()
    assert setting.rng("x").random() != setting.rng("y").random()
