"""What is trained of a model, by `train_type`."""

from typing import Any

from training.params.sft import SftParams
from training.tuners.full import choose_weights
from training.tuners.lora import add_lora


def tuned(model: Any, params: SftParams) -> Any:
    """`model`, ready for a trainer: with an adapter, or with the weights chosen that learn. Raises InvalidRequest."""
    if params.train_type == "full":
        return choose_weights(model, params)
    adapted = add_lora(model, params)
    if params.gradient_checkpointing:
        adapted.enable_input_require_grads()  # else no gradient reaches a layer behind frozen embeddings
    return adapted
