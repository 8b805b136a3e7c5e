"""A random string that begins to repeat: its first occurrence gives the continuation."""

from __future__ import annotations

from ropex_eval.measure.answers import Branch
from ropex_eval.tasks.context import Context, Question, Setting

_CUE = 8  # tokens of the second copy that are given; fewer might occur elsewhere by chance
_COPY = 24  # tokens that are asked for


def induction(setting: Setting) -> Context:
    """Random ids; a piece from every depth begins to repeat at the end.

    The distance between the two copies ranges from the whole length, at depth 0, to nothing. No
    language is needed, no tokenizer and no instruction: only attention to where the cue stood.
    """
    piece = _CUE + _COPY
    room = setting.room(len(setting.start) + piece, least=piece)
    ids = tuple(setting.rng().choices(setting.source.vocabulary, k=room))
    trunk = setting.start + ids
    questions = []
    for depth in setting.depths:
        place = round(depth * (room - piece))
        cue, answer = ids[place : place + _CUE], ids[place + _CUE : place + piece]
        text = " ".join(map(str, answer))
        branch = Branch(len(trunk), cue, answer)
        questions.append(Question(depth, " ".join(map(str, cue)), (text,), (branch,)))
    return Context(setting, trunk, tuple(questions))
