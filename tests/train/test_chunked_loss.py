"""A loss over chunks of rows against the loss that transformers computes of all logits."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, Trainer, TrainingArguments

import ropex
from ropex.errors import UnsupportedModel
from ropex.train import loss_pass
from ropex.train.chunked_loss import chunk_loss
from tests.support.models import VOCABULARY, logits, rope_settings, tiny_config, tiny_model, tokens

IDS = tokens(40, rows=2)
LABELS = IDS.clone()
LABELS[0, :9] = -100
LABELS[1, 30:] = -100

Step = tuple[float, dict[str, Tensor]]


def step(model: Any, **inputs: Any) -> Step:
    """The loss of one step, and the gradients."""
    model.zero_grad()
    loss = model(**{"input_ids": IDS, "labels": LABELS, **inputs})[0]
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


def loss_of(output: Any) -> float:
    return float(output[0].detach())


# Of float32: a sum over the vocabulary, one over all rows, and one over the hidden size.
SUMS = torch.finfo(torch.float32).eps * (VOCABULARY + IDS.numel() + 64)


def assert_same(found: Step, wanted: Step, tolerance: float = SUMS) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=tolerance, abs=0)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert float((found[1][name] - gradient).norm()) <= tolerance * float(gradient.norm()), name


@contextmanager
def rows_of_head(model: Any) -> Iterator[list[int]]:
    """Rows of logits that each call of the output embedding makes."""
    seen: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda _, args, output: seen.append(output.shape[:-1].numel())
    )
    yield seen
    hook.remove()


MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}), ("llama", {"tie_word_embeddings": True}),
    ("gemma2", {"final_logit_softcapping": 5.0}), ("cohere", {"logit_scale": 0.25}),
    ("granite", {"logits_scaling": 8.0}), ("qwen2", {}), ("gpt_neox", {}), ("phi3", {}),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), MODELS)
def test_loss_and_gradients_are_those_of_the_model(family: str, changes: dict[str, Any]) -> None:
    model = tiny_model(family, **changes)
    wanted = step(model)
    for rows in (None, 1, 7, 1000):
        with chunk_loss(model, rows):
            assert_same(step(model), wanted)
    assert_same(step(model), wanted, 0)


PADDING = torch.ones_like(IDS)
PADDING[1, 30:] = 0
SHIFTED = torch.cat([LABELS[:, 1:], torch.full((2, 1), 5)], dim=1)
INPUTS: list[dict[str, Any]] = [
    {"num_items_in_batch": 123}, {"num_items_in_batch": torch.tensor(123)},
    {"shift_labels": SHIFTED}, {"shift_labels": SHIFTED, "num_items_in_batch": torch.tensor(77.0)},
    {"ignore_index": int(IDS[0, 3]), "labels": IDS}, {"attention_mask": PADDING},
    {"position_ids": torch.arange(40)[None].expand(2, -1) * 2, "use_cache": False},
    {"use_cache": False, "output_hidden_states": True}, {"return_dict": False},
    {"return_dict": True},
]  # fmt: skip


@pytest.mark.parametrize("inputs", INPUTS, ids=lambda inputs: "-".join(inputs))
def test_what_a_trainer_passes_is_respected(inputs: dict[str, Any]) -> None:
    model = tiny_model()
    given = {"input_ids": IDS, "labels": LABELS, **inputs}
    wanted, plain = step(model, **inputs), model(**given)
    with chunk_loss(model, rows=7):
        assert_same(step(model, **inputs), wanted)
        output = model(**given)
    assert type(output) is type(plain)
    if isinstance(plain, tuple):
        assert len(output) == len(plain) - 1
    else:
        assert output.keys() == plain.keys() - {"logits"}
        assert output.logits is None


def test_labels_may_be_given_by_position() -> None:
    model = tiny_model()
    wanted = loss_of(model(IDS, labels=LABELS))
    place = list(inspect.signature(model.forward).parameters).index("labels")
    with chunk_loss(model, rows=7):
        assert loss_of(model(IDS, *[None] * (place - 1), LABELS)) == pytest.approx(wanted, 1e-6)
        with pytest.raises(ValueError, match="argument"):
            model(*[None] * 40)


def test_config_that_asks_for_tuples_gets_them() -> None:
    model = tiny_model()
    model.config = copy.deepcopy(model.config)  # its decoder cannot do without
    model.config.return_dict = False
    wanted = model(IDS, labels=LABELS)
    with chunk_loss(model):
        output = model(IDS, labels=LABELS)
    assert isinstance(output, tuple)
    assert loss_of(output) == pytest.approx(loss_of(wanted), 1e-6)


def test_texts_without_any_label_have_the_loss_of_the_model() -> None:
    model, none = tiny_model(), torch.full_like(IDS, -100)
    with chunk_loss(model, rows=7):
        assert torch.isnan(model(IDS, labels=none).loss).all()
        assert loss_of(model(IDS, labels=none, num_items_in_batch=3)) == 0


def test_without_labels_the_model_is_as_ever() -> None:
    model, ids = tiny_model(), tokens(20)
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    plain = logits(model, ids), model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    with chunk_loss(model):
        assert torch.equal(logits(model, ids), plain[0])
        assert torch.equal(
            model.generate(ids, attention_mask=torch.ones_like(ids), **settings), plain[1]
        )


def test_router_loss_is_part_of_the_output() -> None:
    model = tiny_model("mixtral", num_local_experts=4, output_router_logits=True)
    plain = model(IDS, labels=LABELS)
    with chunk_loss(model, rows=7):
        output = model(IDS, labels=LABELS)
    assert float(plain.aux_loss.detach()) > 1
    assert torch.equal(output.aux_loss, plain.aux_loss)


def test_patched_model_has_the_loss_of_the_patch() -> None:
    model = tiny_model()
    unpatched = step(model)[0]
    with ropex.patch(model, "yarn:4+logn"):
        wanted = step(model)
        with chunk_loss(model, rows=7):
            assert_same(step(model), wanted)
    assert abs(wanted[0] - unpatched) > 1e-3


# peft and Trainer still ask transformers 5 by the old name.
OLD_NAME = "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"


@pytest.mark.filterwarnings(OLD_NAME)
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "lm_head"], "init_lora_weights": False},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ],
    ids=["layers", "head", "saved head"],
)
@pytest.mark.parametrize("first", ["peft", "chunks"])
def test_adapters_have_the_same_gradients(settings: dict[str, Any], first: str) -> None:
    from peft import LoraConfig, get_peft_model

    def adapted(model: Any) -> Any:
        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))

    wanted = step(adapted(tiny_model()))
    model = tiny_model()
    if first == "peft":
        model = adapted(model)
        chunk_loss(model, rows=7)
    else:
        chunk_loss(model, rows=7)
        model = adapted(model)
    with rows_of_head(model) as rows:
        found = step(model)
    assert max(rows) == 7
    assert_same(found, wanted)


def test_head_under_autocast_rounds_as_the_model_does() -> None:
    model = tiny_model()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = step(model)
        with chunk_loss(model, rows=7):
            assert_same(step(model), wanted, 2e-2)
        assert model(IDS).logits.dtype == torch.bfloat16


def test_half_precision_is_summed_in_float32() -> None:
    model = tiny_model().to(torch.bfloat16)
    wanted = step(model)
    with chunk_loss(model, rows=7):
        loss = model(IDS, labels=LABELS).loss
        assert loss.dtype == torch.float32
        assert float(loss.detach()) == pytest.approx(wanted[0], rel=1e-3)
        assert_same(step(model), wanted, 3e-2)


@pytest.mark.filterwarnings(OLD_NAME)
def test_gradient_checkpointing_goes_on() -> None:
    model = tiny_model().train()
    wanted = step(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with chunk_loss(model, rows=7):
        assert_same(step(model), wanted)


@pytest.mark.parametrize("rows", [1, 7, 80, 1000])
def test_few_logits_are_made_at_a_time_in_both_passes(rows: int) -> None:
    model = tiny_model()
    with chunk_loss(model, rows), rows_of_head(model) as seen:
        step(model)
    whole, rest = divmod(80, rows)
    chunks = [rows] * whole + [rest] * (rest > 0)
    assert seen == [2, *chunks, *reversed(chunks)]


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    model, kept = tiny_model(vocab_size=200), [0]

    def keep(tensor: Tensor) -> Tensor:
        weight = tensor.data_ptr() == model.lm_head.weight.data_ptr()
        kept.append(tensor.numel() if tensor.shape[-1:] == (200,) and not weight else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(IDS, labels=LABELS)
        assert max(kept) == 80 * 200
        kept.clear()
        with chunk_loss(model, rows=7):
            model(IDS, labels=LABELS)
    assert max(kept) == 0


@pytest.mark.parametrize(
    ("vocabulary", "length", "rows"),
    [
        # Hidden states of 64 in float32: 256 bytes a row; 16 bytes a logit.
        (2048, 1024, 16),  # as much as the output embedding: 2048 * 256 bytes
        (64, 1024, 256),  # as much as the hidden states: 1024 * 256 bytes
    ],
)
def test_chunks_take_no_more_than_the_head_or_the_states(
    vocabulary: int, length: int, rows: int
) -> None:
    model = tiny_model(vocab_size=vocabulary, num_hidden_layers=1)
    ids = torch.arange(length)[None] % vocabulary
    with chunk_loss(model), torch.no_grad(), rows_of_head(model) as seen:
        model(ids, labels=ids)
    assert max(seen) == rows


def test_trainer_takes_the_same_steps(tmp_path: Path) -> None:
    data = [
        {"input_ids": row, "labels": row.masked_fill(torch.arange(24) < first, -100)}
        for row, first in zip(tokens(24, rows=12), [0, 5, 20, 1, 9, 23] * 2, strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, per_device_eval_batch_size=5,
        gradient_accumulation_steps=3, max_steps=2, learning_rate=1e-2, save_strategy="no",
        report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip

    def trained(chunked: bool) -> tuple[Any, float, bool]:
        model = tiny_model()
        if chunked:
            chunk_loss(model, rows=7)
        trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
        trainer.train()
        return model, trainer.evaluate()["eval_loss"], trainer.model_accepts_loss_kwargs

    plain, wanted, accepts = trained(False)
    model, loss, still = trained(True)
    assert (accepts, still) == (True, True)
    assert loss == pytest.approx(wanted, rel=1e-4)
    for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-4)


def test_forward_looks_as_before() -> None:
    model = tiny_model()
    signature, names = inspect.signature(model.forward), (model.forward.__name__,)
    with chunk_loss(model):
        assert inspect.signature(model.forward) == signature
        assert (model.forward.__name__,) == names


def test_removal_leaves_nothing_behind() -> None:
    model = tiny_model().train()
    before = [vars(module).keys() - set() for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    plain = step(model)
    handle = chunk_loss(model, rows=7)
    assert all(module.training for module in model.modules())
    step(model)
    handle.remove()
    handle.remove()
    assert [vars(module).keys() for module in model.modules()] == before
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert_same(step(model), plain, 0)


def test_error_in_a_step_leaves_the_model_ready_for_the_next() -> None:
    model = tiny_model()
    wanted = step(model)
    with chunk_loss(model, rows=7):
        with pytest.raises((IndexError, RuntimeError)):
            model(IDS, labels=LABELS + VOCABULARY)
        assert "_loss_function" not in vars(model)
        assert_same(step(model), wanted)


def test_copy_computes_with_its_own_weights() -> None:
    model = tiny_model()
    with chunk_loss(model, rows=7):
        twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.mul_(1.5)
    plain: Any = type(model)(model.config)
    plain.load_state_dict(twin.state_dict())
    with rows_of_head(twin) as rows:
        assert_same(step(twin), step(plain))
    assert max(rows) == 7
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture
def half_precision() -> Iterator[Any]:
    """An accelerator that wraps the forward pass of what it prepares."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_wrapper_of_accelerate_stays_when_the_chunks_go(half_precision: Any) -> None:
    model = tiny_model()
    plain = logits(model, IDS)
    with chunk_loss(model, rows=7) as chunks:
        prepared = half_precision.prepare_model(model)
        with rows_of_head(model) as rows:
            wanted = step(prepared)[0]
        assert max(rows) == 7
    output = prepared(IDS, labels=LABELS)
    assert output.logits.shape == (2, 40, VOCABULARY)
    assert loss_of(output) == pytest.approx(wanted, rel=2e-2)
    with chunk_loss(model, rows=5), rows_of_head(model) as rows:
        assert prepared(IDS, labels=LABELS).logits is None
    assert max(rows) == 5
    half_precision.unwrap_model(prepared, keep_fp32_wrapper=False)
    chunks.remove()
    assert torch.equal(logits(model, IDS), plain)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("first", ["wrap", "chunks"])
def test_distributed_data_parallel_has_the_same_gradients(first: str) -> None:
    from torch.nn.parallel import DistributedDataParallel

    model = tiny_model()
    wanted = step(model)
    if first == "chunks":
        chunk_loss(model, rows=7)
    wrapped = DistributedDataParallel(model)
    if first == "wrap":
        chunk_loss(wrapped, rows=7)
    with rows_of_head(model) as rows:
        found, gradients = step(wrapped)
    assert max(rows) == 7
    assert_same((found, {n.removeprefix("module."): g for n, g in gradients.items()}), wanted)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("first", ["wrap", "chunks"])
@pytest.mark.parametrize("tied", [False, True])
def test_fully_sharded_model_has_the_same_gradients(first: str, tied: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny_model(tie_word_embeddings=tied)
    wanted = step(model)
    if first == "chunks":
        chunk_loss(model, rows=7)
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if first == "wrap":
        chunk_loss(model, rows=7)
    with rows_of_head(model) as rows:
        found, sharded = step(model)
    assert max(rows) == 7
    gradients: dict[str, Any] = dict(sharded)
    assert_same((found, {n: g.full_tensor() for n, g in gradients.items()}), wanted)


def test_weights_may_come_later() -> None:
    there = tiny_model("granite", logits_scaling=8.0)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(there.config)
    chunk_loss(model, rows=7)
    model.load_state_dict(there.state_dict(), assign=True)
    model.model.rotary_emb = there.model.rotary_emb
    assert_same(step(model), step(there))


def test_what_is_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma2", final_logit_softcapping=5.0)
    before = vars(model).keys() - set()
    monkeypatch.setattr(loss_pass, "finishes", lambda config: iter([lambda logits: logits]))
    with pytest.raises(UnsupportedModel, match="more than its output embedding"):
        chunk_loss(model)
    assert vars(model).keys() == before


def test_loss_that_is_not_a_mean_over_tokens_is_refused() -> None:
    model = tiny_model()
    own = model.loss_function
    model.loss_function = lambda *args, **kwargs: own(*args, **kwargs) ** 2
    with pytest.raises(UnsupportedModel, match="cannot be computed in chunks"):
        chunk_loss(model)


def test_loss_of_another_model_is_refused() -> None:
    torch.manual_seed(0)
    whole: Any = AutoModelForSeq2SeqLM.from_config(
        tiny_config("t5", d_model=64, d_ff=64, d_kv=16, num_layers=1, num_heads=4,
                    decoder_start_token_id=0)
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="cannot be computed in chunks"):
        chunk_loss(whole)
    with pytest.raises(UnsupportedModel, match="no output embedding"):
        chunk_loss(tiny_model().model)


def test_rows_and_repetition_are_checked() -> None:
    model = tiny_model(**rope_settings())
    with pytest.raises(ValueError, match="rows is 0"):
        chunk_loss(model, rows=0)
    with chunk_loss(model), pytest.raises(ValueError, match="already"):
        chunk_loss(model)
