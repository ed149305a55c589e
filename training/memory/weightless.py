"""A model with all that is trained of it, whose weights have types and shapes, and no memory."""

from typing import Any

import torch
from torch import nn

from engines.checkpoint.loading import attention_of
from engines.checkpoint.quantization import quantization_of
from engines.params.model import TaskType
from training.memory.packed import pack
from training.memory.peak import Answers
from training.optimizers import optimizer_of
from training.params.sft import SftParams
from training.trainers.weights.divided import is_divided
from training.trainers.weights.low_rank import in_one_piece
from training.trainers.weights.precision import Precision, hold
from training.tuners import tuner_of


def built(
    config: Any, dtype: torch.dtype, params: SftParams, task_type: TaskType = "causal_lm", *, packed: bool = True
) -> Any:
    """A `PreTrainedModel` on the device "meta". `config`: transformers'. `packed`: quantised, where `params` say so."""
    import transformers

    auto = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "seq_cls": transformers.AutoModelForSequenceClassification,
    }[task_type]
    asked = attention_of(config, params.attn_impl)
    chosen = {"flash_attn": "sdpa"}.get(asked or "", asked)  # they take as much
    with torch.device("meta"):
        model = auto.from_config(config, dtype=dtype, attn_implementation=chosen)
    if packed and (quantization := quantization_of(params)):
        pack(model, quantization)
    return model


def tuned(model: Any, params: SftParams, precision: Precision) -> Any:
    """`model` (on "meta"), as its tuner has it trained."""
    shapes = params.model_copy(update={"adapters": (), "init_weights": "true"})  # its first values change no shape
    with torch.device("meta"), Answers():
        attached = tuner_of(params).attach(model, shapes).model
    hold(attached, precision)
    optimizer_of(params).rest(attached, params)
    attached.train()
    if not is_divided(params) and params.tensor_model_parallel_size == 1:
        in_one_piece(attached)
    if params.gradient_checkpointing:
        kwargs = params.gradient_checkpointing_kwargs or {"use_reentrant": False}
        attached.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    return attached


def divide_head(model: Any, size: int) -> None:
    """Leave of the output head of `model` (on "meta") what each of `size` processes has of it, where they divide it:
    each computes the logits of its part of the vocabulary, and gets all others."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if size == 1 or head.weight is embeddings.weight or len(head.weight) % size:
        return
    head.weight = nn.Parameter(head.weight.data.chunk(size)[0].clone())
    head.forward = lambda hidden: torch.cat([nn.functional.linear(hidden, head.weight)] * size, dim=-1)


def faked(model: nn.Module) -> None:
    """Have the weights of `model`, and other tensors that its modules have, say that they are on a CPU. Within a
    FakeTensorMode."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for tensors in [each for each in vars(module).values() if isinstance(each, dict)]:
            for name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor):
                    tensors[name] = made.setdefault(id(tensor), _fake(tensor))


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if not isinstance(tensor, nn.Parameter):
        return empty
    return nn.Parameter(empty, requires_grad=tensor.requires_grad)
