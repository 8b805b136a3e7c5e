"""Perplexity by length during a training: right numbers, and a training that does not notice."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import ropex
from ropex_eval.measure.reader import Reader
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import Corpus
from ropex_eval.training.by_length import ByLength
from ropex_eval.training.callback import FILE, PerplexityByLength
from tests.support.models import TRAINED, plain, tiny_causal, tiny_tokenizer
from tests.support.rounding import LOSS
from tests.support.tiny_eval import (
    LENGTHS,
    corpus_of,
    plain_nll,
    start,
    strict_json,
    study_of,
    words,
)

LISTS = "long_factor=1/2/3/4,short_factor=1/1/1.5/2"
BY_LENGTH = ("dynamic", "dynamic:4", f"longrope:factor=4,{LISTS}")
TEXTS = ("none", "yarn:4", "yarn:4+logn", "dynamic:2+logn", "dynamic_yarn", *BY_LENGTH)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus_of(tmp_path_factory.mktemp("corpus") / "texts", LENGTHS[-1], 3)


def watch_of(corpus: Corpus, **settings: Any) -> PerplexityByLength:
    settings = {"lengths": LENGTHS, "tell": lambda text: None, **settings}
    return PerplexityByLength(tiny_tokenizer(), corpus, **settings)


# Numbers.


@pytest.mark.parametrize("text", TEXTS)
def test_numbers_of_a_patched_model_are_those_of_a_run(
    tmp_path: Path, checkpoint: Path, causal: Any, corpus: Corpus, text: str
) -> None:
    study = study_of(tmp_path, checkpoint, causal, Protocol.of(LENGTHS, definitions=("local",)))
    assert study.corpus.sha256 == corpus.sha256
    wanted = start(study, tmp_path / "out", text).of("local")[text]
    with ropex.patch(causal, text):
        found = watch_of(corpus).measure(causal)
    assert found.trained_length == TRAINED
    for length, row in wanted.items():
        each = found.estimates[length]
        assert (each.mean, each.se) == pytest.approx((row.nll, row.se), abs=1e-6)
        assert found.perplexity[length] == pytest.approx(row.perplexity, rel=1e-6)


@pytest.mark.parametrize("lengths", [(40, 41, 96), (12,), (24, 96)])
@pytest.mark.parametrize("batch", [1, 2])
def test_numbers_are_those_of_the_models_own_logits(
    causal: Any, corpus: Corpus, lengths: tuple[int, ...], batch: int
) -> None:
    found = watch_of(corpus, lengths=lengths, batch=batch, targets=6).measure(causal)
    for length, row in zip(lengths, found.nll, strict=True):
        for excerpt, nll in zip(corpus.excerpts, row, strict=True):
            ids = torch.cat([torch.tensor([0]), excerpt.ids])[:length]
            assert nll == pytest.approx(float(plain_nll(causal, ids)[-6:].mean()), abs=LOSS)


@pytest.mark.parametrize("text", ["yarn:4", *BY_LENGTH])
@pytest.mark.parametrize("seen", [8, 200])
def test_a_saved_model_has_the_numbers_of_the_patched_one(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, text: str, seen: int
) -> None:
    model, watch = tiny_causal(), watch_of(corpus, lengths=(24, 48, 96))
    with ropex.patch(model, text):
        wanted = watch.measure(model)
        model.save_pretrained(tmp_path / "saved")
    native = plain(tmp_path / "saved")
    with torch.no_grad():
        native(torch.arange(seen)[None])  # what transformers keeps of it must not show
    before = {name: each.clone() for name, each in native.named_buffers()}
    # A probe of a few tokens would hide it.
    monkeypatch.setattr("ropex_eval.measure.losses.Scorer._chunks_are_exact", lambda scorer: True)
    for lengths, rows in (((24, 48, 96), wanted.nll), ((48, 96), wanted.nll[1:])):
        found = watch_of(corpus, lengths=lengths, targets=12).measure(native)
        for ours, theirs in zip(found.nll, rows, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)
        assert all(torch.equal(each, before[name]) for name, each in native.named_buffers())


def test_a_model_that_rotates_by_length_is_not_read_in_pieces(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, watch = tiny_causal(), watch_of(corpus)
    with ropex.patch(model, "dynamic"):
        wanted = watch.measure(model)
        # A model whose logits are made all at once is read in pieces where it may be.
        monkeypatch.setattr("ropex_eval.measure.losses.Scorer._found_finish", lambda scorer: None)
        monkeypatch.setattr("ropex_eval.measure.reader.SHORTEST_CHUNK", 8)
        monkeypatch.setattr("ropex_eval.measure.reader._LOGITS_BYTES", 1)
        found = watch.measure(model)
    for ours, theirs in zip(found.nll, wanted.nll, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_copy_of_a_patched_model_is_measured_by_length(corpus: Corpus) -> None:
    model, watch = tiny_causal(), watch_of(corpus)
    ropex.patch(model, "dynamic")
    assert watch.measure(copy.deepcopy(model)).nll == watch.measure(model).nll


def measured(*rows: tuple[float, ...], trained: int | None = 256) -> ByLength:
    names = tuple("abcd"[: len(rows[0])])
    return ByLength((256, 512)[: len(rows)], rows, names, 64, "text", trained)


def test_changes_are_paired_with_students_interval() -> None:
    before = measured((2.0, 3.0, 4.0, 5.0))
    change = measured((2.1, 3.3, 4.0, 5.2)).change_from(before)[256]
    differences = [0.1, 0.3, 0.0, 0.2]
    spread = math.sqrt(sum((each - 0.15) ** 2 for each in differences) / 3 / 4)
    assert change.mean == pytest.approx(0.15)
    half = 3.18245 * spread  # the 97.5 % point of Student's t with 3 degrees of freedom
    low, high = change.interval
    assert low is not None
    assert high is not None
    assert (low + high) / 2 == pytest.approx(0.15)
    assert (high - low) / 2 == pytest.approx(half, rel=2e-3)  # as near as `student` is


def test_what_is_logged_is_perplexity_change_in_percent_and_tax() -> None:
    before = measured((1.0, 1.0), (2.0, 2.0))
    now = measured((1.1, 1.1), (1.5, 1.5))
    assert now.numbers(before) == pytest.approx(
        {
            "ppl_local_256": math.e**1.1,
            "ppl_local_512": math.e**1.5,
            "ppl_change_at_256": 100 * (math.e**0.1 - 1),
            "ppl_change_at_512": 100 * (math.e**-0.5 - 1),
            "ppl_tax": 100 * (math.e**0.1 - 1),
        }
    )
    short = [measured((1.0,), trained=each).numbers(measured((1.0,))) for each in (255, None)]
    assert all("ppl_tax" not in numbers for numbers in short)
    with pytest.raises(ValueError, match="same text, lengths and targets"):
        now.change_from(measured((1.0, 1.0)))


# Training.


class Listener(TrainerCallback):
    """Hears logs as one that reports does: it comes before the callbacks of the user."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, dict[str, Any]]] = []
        self.until_end = 0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.until_end = len(self.heard)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.heard.append((state.global_step, dict(logs)))


def arguments_of(folder: Path, **settings: Any) -> TrainingArguments:
    settings = {
        "per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 1e-2, "save_steps": 2,
        "logging_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 3,
        **settings,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **settings)


def trainer_of(
    folder: Path, model: Any = None, watch: PerplexityByLength | None = None, **settings: Any
) -> Any:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 250, (16, 64), generator=generator)
    trainer = Trainer(
        model=tiny_causal() if model is None else model, args=arguments_of(folder, **settings),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows], callbacks=[Listener()],
    )  # fmt: skip
    if watch:
        watch.attach(trainer)
    return trainer


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / FILE).read_text(encoding="utf-8")
    return [strict_json(line) for line in text.splitlines()]


def losses(trainer: Any) -> list[Any]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


class Noisy(nn.Module):
    """Draws random numbers whether it trains or not."""

    def forward(self, states: Any) -> Any:
        return states + 1e-3 * torch.randn(())


@pytest.mark.parametrize("kind", ["none", "dynamic", "native dynamic", "checkpointing", "noisy"])
def test_a_training_is_the_same_to_the_bit_with_it_as_without(
    tmp_path: Path, corpus: Corpus, kind: str
) -> None:
    def trained(watch: PerplexityByLength | None) -> Any:
        settings: dict[str, Any] = {"attention_dropout": 0.2}
        model = tiny_causal(**settings)
        if kind == "native dynamic":
            ropex.patch(model, "dynamic")
            model.save_pretrained(tmp_path / "native")
            model = plain(tmp_path / "native").train()
        elif kind == "dynamic":
            ropex.patch(model, "dynamic")
        elif kind == "noisy":
            model.model.norm = nn.Sequential(model.model.norm, Noisy())
        elif kind == "checkpointing":
            new = getattr(model, "activation_checkpointing_enable", None)  # its name from 5.23 on
            (new or model.gradient_checkpointing_enable)()
        trainer = trainer_of(tmp_path / str(watch is None), model, watch, save_strategy="no")
        trainer.train()
        return trainer

    with_it, without = trained(watch_of(corpus, every=1)), trained(None)
    assert len(lines_of(tmp_path / "False")) == 5
    assert losses(with_it) == losses(without)
    assert len(set(losses(without))) == 4
    pairs = zip(
        [*with_it.model.parameters(), *with_it.model.buffers()],
        [*without.model.parameters(), *without.model.buffers()],
        strict=True,
    )
    assert all(torch.equal(*pair) for pair in pairs)
    assert with_it.model.config.to_dict() == without.model.config.to_dict()


def test_a_model_is_left_as_it_was(corpus: Corpus) -> None:
    model = tiny_causal(attention_dropout=0.5).train()
    model.model.layers[1].eval()
    model(torch.arange(40)[None], labels=torch.arange(40)[None]).loss.backward()
    modes = [module.training for module in model.modules()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    found = watch_of(corpus).measure(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert watch_of(corpus).measure(model.eval()) == found  # which nothing was dropped from


def test_a_failed_measurement_leaves_a_model_as_it_was(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("no luck")

    model = tiny_causal().train()
    monkeypatch.setattr("ropex_eval.training.in_training.Reader.read", fail)
    with pytest.raises(RuntimeError, match="no luck"):
        watch_of(corpus).measure(model)
    assert model.training
    assert torch.is_grad_enabled()


def test_it_measures_at_the_start_at_saves_and_at_the_end(tmp_path: Path, corpus: Corpus) -> None:
    told: list[str] = []
    watch = watch_of(corpus, tell=told.append)
    trainer = trainer_of(tmp_path, watch=watch, max_steps=5)
    trainer.train()
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [0, 2, 4, 5]
    assert [text.partition(",")[0] for text in told] == ["step 0", "step 2", "step 4", "step 5"]
    found = watch.measure(trainer.model)
    assert lines[-1]["perplexity"] == list(found.perplexity.values())
    changes = found.change_from(watch_of(corpus).measure(tiny_causal()))
    for length, change, (low, high) in zip(
        LENGTHS, lines[-1]["change"], lines[-1]["interval"], strict=True
    ):
        assert math.log1p(change / 100) == pytest.approx(changes[length].mean)
        ends = [math.log1p(end / 100) for end in (low, high)]
        assert ends == pytest.approx(changes[length].interval)
    assert lines[-1]["tax"] == lines[-1]["change"][LENGTHS.index(24)] != 0
    assert f"96 {found.perplexity[96]:.3g}" in told[-1]
    assert f"{lines[-1]['change'][-1]:+.1f} % (" in told[-1]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"every": 3, "max_steps": 5}, [0, 3, 5]),
        ({"every": 2}, [0, 2, 4]),
        ({"save_strategy": "no"}, [0, 4]),
        ({"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}, [0, 8, 16]),
    ],
)
def test_it_measures_when_it_is_asked_to(
    tmp_path: Path, corpus: Corpus, settings: dict[str, Any], steps: list[int]
) -> None:
    watch = watch_of(corpus, every=settings.pop("every", None))
    trainer_of(tmp_path, watch=watch, **settings).train()
    assert [line["step"] for line in lines_of(tmp_path)] == steps


def test_numbers_reach_those_that_report_and_the_log_history(
    tmp_path: Path, corpus: Corpus
) -> None:
    trainer = trainer_of(tmp_path, watch=watch_of(corpus, every=2))
    trainer.train()
    (listener,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, Listener))
    heard = [(step, logs) for step, logs in listener.heard if "ppl_local_96" in logs]
    lines = lines_of(tmp_path)
    assert [step for step, _ in heard] == [line["step"] for line in lines] == [0, 2, 4]
    for (_, logs), line in zip(heard, lines, strict=True):
        assert [logs[f"ppl_local_{n}"] for n in LENGTHS] == line["perplexity"]
        assert [logs[f"ppl_change_at_{n}"] for n in LENGTHS] == line["change"]
        assert logs["ppl_tax"] == line["tax"]
    history = [row for row in trainer.state.log_history if "ppl_local_96" in row]
    assert [(row.pop("step"), row) for row in history] == heard
    # The loss of a step is logged after what was measured there.
    assert [step for step, logs in listener.heard if "loss" in logs] == [1, 2, 3, 4]


class StopsLate(TrainerCallback):
    """Ends a training after an epoch that others did not take for the last."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_the_last_numbers_come_before_reporters_close_if_the_end_is_known(
    tmp_path: Path, corpus: Corpus
) -> None:
    for late in (False, True):
        trainer = trainer_of(tmp_path, watch=watch_of(corpus), save_strategy="no", max_steps=9)
        if late:
            trainer.add_callback(StopsLate())
        trainer.train()
        (listener,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, Listener))
        assert [line["step"] for line in lines_of(tmp_path)] == [0, 8 if late else 9]
        assert (listener.until_end == len(listener.heard)) != late


def test_what_no_reporter_would_see_is_a_warning(tmp_path: Path, corpus: Corpus) -> None:
    watch = watch_of(corpus)
    trainer = trainer_of(tmp_path)
    trainer.add_callback(watch)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "ppl_tax" in row] == [0, 2, 4]
    trainer.args.report_to = ["wandb"]
    with pytest.warns(UserWarning, match=r"wandb will not see .*attach\(trainer\)"):
        trainer.train()
    watch.attach(trainer)
    assert trainer.callback_handler.callbacks.count(watch) == 1


def test_a_resumed_training_keeps_its_start_and_repeats_no_step(
    tmp_path: Path, corpus: Corpus
) -> None:
    trainer_of(tmp_path, watch=watch_of(corpus)).train()
    before = lines_of(tmp_path)
    assert [line["step"] for line in before] == [0, 2, 4]
    resumed = trainer_of(tmp_path, watch=watch_of(corpus, every=3), max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    after = lines_of(tmp_path)
    assert [line["step"] for line in after] == [0, 2, 3, 6]
    assert after[:2] == before[:2]
    found = watch_of(corpus).measure(resumed.model)
    wanted = found.numbers(watch_of(corpus).measure(tiny_causal()))
    assert after[-1]["change"] == pytest.approx([wanted[f"ppl_change_at_{n}"] for n in LENGTHS])
    logged = [row["step"] for row in resumed.state.log_history if "ppl_tax" in row]
    assert sorted(set(logged)) == sorted(logged)


def test_a_training_that_begins_anew_begins_its_file_anew(tmp_path: Path, corpus: Corpus) -> None:
    for seed in (0, 1):
        model = tiny_causal(seed=seed)
        trainer_of(tmp_path, model, watch_of(corpus), save_strategy="no").train()
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [0, 4]
    other = watch_of(corpus).measure(tiny_causal(seed=1))
    assert lines[0]["perplexity"] == list(other.perplexity.values())


def test_a_file_of_other_tokens_or_damaged_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    def resume(watch: PerplexityByLength) -> None:
        state = TrainerState(global_step=2)
        watch.on_train_begin(arguments_of(tmp_path), state, TrainerControl(), model=tiny_causal())

    trainer_of(tmp_path, watch=watch_of(corpus), max_steps=1).train()
    others = (watch_of(corpus, lengths=LENGTHS[1:]), watch_of(corpus.first(2)))
    for watch in (*others, watch_of(corpus, targets=3)):
        with pytest.raises(ValueError, match=f"{FILE} was measured on a different text"):
            resume(watch)
    resume(watch_of(corpus))
    (tmp_path / FILE).write_text("{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{FILE} is damaged"):
        resume(watch_of(corpus))


def test_numbers_that_json_does_not_have_are_written_and_read(
    tmp_path: Path, corpus: Corpus
) -> None:
    model = tiny_causal()
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    trainer_of(tmp_path, model, watch_of(corpus), save_steps=1, max_steps=1).train()
    assert lines_of(tmp_path)[0]["perplexity"] == ["nan"] * len(LENGTHS)
    resumed = trainer_of(tmp_path, model, watch_of(corpus), max_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 1, 2]


def test_a_training_in_bfloat16_is_measured_in_it(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watch_of(corpus)
    exact = watch.measure(tiny_causal())
    with torch.autocast("cpu", torch.bfloat16):
        wanted = watch.measure(tiny_causal())
    assert wanted != exact
    alone, read = [], Reader.read

    def reads(reader: Reader, *given: Any) -> Any:
        alone.append(reader.scorer.head_alone)
        return read(reader, *given)

    monkeypatch.setattr(Reader, "read", reads)
    trainer_of(tmp_path, tiny_causal(), watch, bf16=True, max_steps=1).train()
    assert lines_of(tmp_path)[0]["perplexity"] == list(wanted.perplexity.values())
    assert all(alone)  # parts of the model compute in it as the whole does


def test_autocast_around_a_measurement_leaves_gradients_alone(corpus: Corpus) -> None:
    def gradients(measure: bool) -> list[Any]:
        model, ids = tiny_causal().train(), torch.arange(40)[None]
        with torch.autocast("cpu", torch.bfloat16):
            if measure:
                watch_of(corpus).measure(model)
            model(ids, labels=ids).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(map(torch.equal, gradients(True), gradients(False)))


# Wrapped models, and loops without a trainer.


def test_a_loop_of_ones_own_calls_it(corpus: Corpus) -> None:
    model, watch = tiny_causal(), watch_of(corpus)
    first = watch(model)
    assert first["ppl_change_at_96"] == 0
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    now = watch(model)
    change = 100 * (now["ppl_local_96"] / first["ppl_local_96"] - 1)
    assert now["ppl_change_at_96"] == pytest.approx(change) != 0


def test_adapters_are_measured_and_prompts_are_refused(corpus: Corpus) -> None:
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    plain, watch = tiny_causal(), watch_of(corpus)
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, **settings)
    wrapped: Any = get_peft_model(tiny_causal(), lora)
    found = watch.measure(wrapped)
    assert found.nll != watch.measure(plain).nll
    merged = watch.measure(wrapped.merge_and_unload())
    for ours, theirs in zip(found.nll, merged.nll, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    prompt: Any = get_peft_model(
        tiny_causal(), PromptTuningConfig(num_virtual_tokens=2, **settings)
    )
    with pytest.raises(ValueError, match="prompt tuning"):
        watch.measure(prompt)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    from torch import distributed

    where = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "compiled", "both", "fsdp"])
@pytest.mark.usefixtures("group")
def test_wrapped_models_have_the_numbers_of_what_is_in_them(corpus: Corpus, kind: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    watch, model = watch_of(corpus), tiny_causal()
    wanted = watch.measure(model)
    wrapped: Any = model
    if kind in ("compiled", "both"):
        wrapped = torch.compile(wrapped, backend="eager")
    if kind in ("ddp", "both"):
        wrapped = nn.parallel.DistributedDataParallel(wrapped)
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (1,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    found = watch.measure(wrapped)
    for ours, theirs in zip(found.nll, wanted.nll, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    if kind in ("ddp", "fsdp"):
        ids = torch.arange(40)[None]
        wrapped(input_ids=ids, labels=ids).loss.backward()  # what hooks it has still work


# Mistakes.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"excerpts": 0}, "excerpts is 0, it must be at least 1"),
        ({"every": 0}, "every is 0, it must be at least 1"),
        ({"batch": 0}, "batch is 0, it must be at least 1"),
        ({"lengths": ()}, "lengths must be at least 2"),
        ({"targets": 8}, "targets is 8, it must be at least 1 and below the shortest length, 8"),
        ({"lengths": (8, 97)}, "excerpts of 96 tokens do not hold the longest length, 97"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    corpus: Corpus, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        watch_of(corpus, **settings)


def test_texts_and_models_that_do_not_fit_are_refused(tmp_path: Path, corpus: Corpus) -> None:
    (tmp_path / "short.txt").write_text(words(40), encoding="utf-8")
    watch = PerplexityByLength(tiny_tokenizer(), str(tmp_path / "short.txt"), (8, 64))
    with pytest.raises(ValueError, match=r"short.txt, has 40 tokens, and 63 are needed"):
        watch.measure(tiny_causal())
    without = PerplexityByLength(tiny_tokenizer(bos=False), str(tmp_path / "short.txt"), (8, 32))
    with pytest.raises(ValueError, match="has no BOS token"):
        without.measure(tiny_causal())
    gptj = tiny_causal("gptj", n_embd=32, n_layer=2, n_head=4, n_positions=TRAINED, rotary_dim=8)
    with pytest.raises(ValueError, match=r"ends at 32 tokens, and 96 are to be read; .* patch"):
        watch_of(corpus).measure(gptj)
    with ropex.patch(gptj, "none"):
        assert watch_of(corpus).measure(gptj).trained_length == TRAINED
    assert watch_of(corpus, lengths=(8, 32)).measure(gptj).perplexity[32] > 1
    gpt2 = tiny_causal("gpt2", n_embd=32, n_layer=1, n_head=4)
    with pytest.raises(ropex.UnsupportedModel, match="no rotary embedding"):
        watch_of(corpus).measure(gpt2)


def test_a_source_is_read_once_and_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "book.txt"
    watch = PerplexityByLength(tiny_tokenizer(), str(source), (8, 64), excerpts=5)
    source.write_text(words(1000), encoding="utf-8")
    first = watch.measure(tiny_causal())
    source.unlink()
    assert watch.measure(tiny_causal()) == first
    assert len(first.nll[0]) == 5
    assert json.dumps(first.line(0, first))
