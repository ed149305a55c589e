"""What a training takes of its device's memory, and what could be changed where that is too much."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from engines.checkpoint.loading import load_config
from engines.checkpoint.quantization import quantized_by
from engines.params.model import TaskType
from training.folder import Fit, Memory
from training.memory.device import Device, this_device
from training.memory.kernels import kernels
from training.memory.lengths import Lengths
from training.memory.step import Batch, Learner, peak_of_step
from training.memory.weightless import built, divide_head, tuned
from training.methods import method_of
from training.methods.base import Beside
from training.optimizers import optimizer_of, state_bytes
from training.params.sft import SftParams
from training.sharding.tensor import part_of
from training.trainers.weights.narrow import gradients_stay, narrows
from training.trainers.weights.precision import Precision, precision_of
from training.tuners import tuner_of

SHORTEST = 256
"""Tokens below which `max_length` is no longer proposed to be shortened."""


def estimate(params: SftParams, config: Any, lengths: Lengths) -> Memory:
    """`config`: transformers', of the base model. Raises UnsupportedModel."""
    device = this_device()
    parts, batch = _parts(params, config, lengths, device)
    total = sum(parts.values())
    return Memory(
        parts=parts,
        total=total,
        device=device.name,
        available=device.available,
        fits=total <= device.available,
        texts=batch.texts,
        tokens=batch.tokens,
        smaller=() if total <= device.available else tuple(_smaller(params, config, lengths, device, total)),
    )


def _smaller(params: SftParams, config: Any, lengths: Lengths, device: Device, total: int) -> Iterator[Fit]:
    """Changes of one parameter that take less, one after another."""
    for changes in _changes(params, config, lengths):
        changed = params.model_copy(update=changes)
        parts, _ = _parts(changed, config, _cut(lengths, changes.get("max_length")), device)
        if (less := sum(parts.values())) < total:
            yield Fit(parameters=changes, total=less, fits=less <= device.available)


def _changes(params: SftParams, config: Any, lengths: Lengths) -> Iterator[dict[str, Any]]:
    if not params.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    rows, passes = params.per_device_train_batch_size, params.gradient_accumulation_steps
    if rows > 1:
        fewer = rows // 2
        yield {"per_device_train_batch_size": fewer, "gradient_accumulation_steps": passes * rows // fewer}
        yield {"per_device_train_batch_size": 1, "gradient_accumulation_steps": passes * rows}
    if lengths.longest > SHORTEST:
        yield {"max_length": lengths.longest // 2}
    if tuner_of(params).makes == "model":
        yield {"train_type": "lora"}
    elif params.quant_method is None and not quantized_by(config) and "bnb" in tuner_of(params).quantized_bases:
        yield {"quant_method": "bnb", "quant_bits": 4}


def _cut(lengths: Lengths, longest: int | None) -> Lengths:
    if longest is None:
        return lengths
    return replace(
        lengths,
        longest=longest,
        learned=min(lengths.learned, longest),
        learned_on_average=min(lengths.learned_on_average, longest),
    )


def _parts(params: Any, config: Any, lengths: Lengths, device: Device) -> tuple[dict[str, int], Batch]:
    method = method_of(params)
    precision, beside = precision_of(params, config), method.beside(params)
    learners = [_learner(params, config, precision, beside)]
    plain = _bytes(built(copy.deepcopy(config), precision.base, params, method.task_type))
    batch = _batch(params, lengths, beside)
    parts: dict[str, int] = {}
    if beside.reference:
        parts["reference"] = _reference(params, learners[0].model, precision)
    for name in beside.models:
        if not (beside.value_model and name == "reward_model" and tuner_of(params).makes == "adapter"):
            parts[name.removesuffix("_model") + " model"] = _named(params, name, precision)
    if beside.value_model:
        learners.append(_value_model(params, precision))
    parts["optimizer"] = sum(_kept(params, learner.model) for learner in learners)
    draws = beside.drawn and params.rollout_device is None
    if draws:
        parts["rollouts"] = plain + (_head_twice(config, precision) if device.is_cpu else 0)
    accumulates = params.gradient_accumulation_steps > 1
    step = peak_of_step(learners, batch, autocast=precision.autocast, accumulates=accumulates)
    if device.is_cpu:
        parts["kernels"] = kernels(step.seen.products, lengths, params)
    drawing = _drawing(config, precision, beside, lengths, step.parts, params.rollout_max_num_seqs) if draws else {}
    most = max((step.parts, drawing), key=lambda each: sum(each.values()))
    return {name: size for name, size in (most | parts).items() if size}, batch


def _learner(params: SftParams, config: Any, precision: Precision, beside: Beside) -> Learner:
    method, tuner = method_of(params), tuner_of(params)
    stored = precision.base if tuner.makes == "adapter" else precision.saved
    part = part_of(copy.deepcopy(config), params.tensor_model_parallel_size)
    model = built(part, stored, params, method.task_type)
    divide_head(model, params.tensor_model_parallel_size)
    asked = params.model_copy(update={"task_type": method.task_type})
    on_cpu = this_device().is_cpu
    return Learner(
        tuned(model, asked, precision),
        method.task_type,
        beside.entropy,
        at_once=optimizer_of(params).each_at_once(params),
        in_place=on_cpu and gradients_stay(params),
        narrow=on_cpu and narrows(params, precision),
    )


def _value_model(params: Any, precision: Precision) -> Learner:
    judged = params.reward_model is not None
    source = (params.reward_model, params.reward_model_revision) if judged else (params.model, params.model_revision)
    config = load_config(source[0], revision=source[1], token=params.hub_token)
    asked = params.model_copy(update={"task_type": "seq_cls"})
    model = built(config, precision.base, params, "seq_cls", packed=not judged)
    if tuner_of(params).makes == "model":
        model.requires_grad_(True)
    return Learner(tuned(model, asked, precision), "seq_cls")


def _batch(params: SftParams, lengths: Lengths, beside: Beside) -> Batch:
    samples = params.per_device_train_batch_size
    learned = lengths.learned + round((samples - 1) * lengths.learned_on_average)
    return Batch(samples * beside.texts, lengths.longest, learned)


def _reference(params: Any, model: Any, precision: Precision) -> int:
    """Bytes of what the model is compared with: see `training.trainers.reference`."""
    if params.ref_model is not None:
        return _named(params, "ref_model", precision)
    if not params.adapters and tuner_of(params).begins_as_base(params):
        return 0
    return sum(weight.numel() * weight.itemsize for weight in model.parameters() if weight.requires_grad)


def _named(params: Any, name: str, precision: Precision) -> int:
    """Bytes of the model that a parameter names."""
    revision = getattr(params, f"{name}_revision")
    config = load_config(getattr(params, name), revision=revision, token=params.hub_token)
    judges = name == "reward_model"
    task_type: TaskType = "seq_cls" if judges else "causal_lm"
    return _bytes(built(config, precision.base, params, task_type, packed=not judges))


def _kept(params: SftParams, model: Any) -> int:
    """Bytes that the optimizer keeps of the weights that learn."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    return sum(state_bytes(params, weight.shape) * weight.itemsize // 4 for weight in learning)


def _head_twice(config: Any, precision: Precision) -> int:
    """Bytes of an output head that is the embedding, too: packed for a CPU, they are two."""
    text = config.get_text_config()
    return text.vocab_size * text.hidden_size * precision.base.itemsize if text.tie_word_embeddings else 0


def _drawing(
    config: Any, precision: Precision, beside: Beside, lengths: Lengths, step: dict[str, int], at_a_time: int
) -> dict[str, int]:
    """Bytes while answers are drawn: keys and values, and logits of each answer's next token."""
    text, answers = config.get_text_config(), min(beside.drawn, at_a_time)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    token = 2 * text.num_hidden_layers * heads * width * precision.base.itemsize
    return {
        "weights": step["weights"],
        "keys and values": answers * lengths.longest * token,
        "logits": 2 * answers * text.vocab_size * torch.float32.itemsize,
    }


def _bytes(model: Any) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in (*model.parameters(), *model.buffers()))
