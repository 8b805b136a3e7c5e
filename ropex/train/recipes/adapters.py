"""Low-rank adapters, through peft."""

from __future__ import annotations

from typing import Any

from torch import nn

from ropex.train.recipes.recipe import Lora


def with_adapters(model: Any, lora: Lora, checkpointed: bool) -> Any:
    """A PEFT model that trains adapters, and the parts that LongLoRA (2309.12307) trains in full.

    Args:
        model: A causal language model.
        lora: What to train.
        checkpointed: Whether activations are recomputed; inputs then need a gradient.

    Raises:
        ValueError: peft is not installed, or the model has no such matrix.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("a recipe with lora needs peft: pip install peft") from None
    names = {name.rpartition(".")[2] for name, each in model.named_modules() if _linear(each)}
    if unknown := [target for target in lora.targets if target not in names]:
        known = ", ".join(sorted(names))
        raise ValueError(f"lora.targets: the model has no {unknown[0]}; it has {known}")
    if model.config.tie_word_embeddings and (head := _head(model)) in lora.targets:
        raise ValueError(
            f"lora.targets: {head} is tied to the input embeddings of this model, and an adapter "
            "of it would change both; leave it out, and give also: [embeddings]"
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        modules_to_save=_in_full(model, lora) or None,
        task_type="CAUSAL_LM",
    )
    if checkpointed:
        model.enable_input_require_grads()
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # small steps would be lost to rounding in bfloat16
            parameter.data = parameter.data.float()
    return adapted


def _head(model: Any) -> str:
    """The last part of the name of the output embeddings."""
    head = model.get_output_embeddings()
    names = (name for name, module in model.named_modules() if module is head)
    return next(names, "").rpartition(".")[2]


def _linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _in_full(model: Any, lora: Lora) -> list[str]:
    """Names of the modules that are trained in full."""
    chosen: list[str] = []
    embeddings = [model.get_input_embeddings()]
    if model.config.tie_word_embeddings:  # one matrix for both, which peft splits in two
        embeddings.append(model.get_output_embeddings())
    for name, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower() and not list(module.children())
        if ("norms" in lora.also and is_norm) or (
            "embeddings" in lora.also and any(module is each for each in embeddings)
        ):
            chosen.append(name)
    return chosen
