"""The model that the trained one is compared with: what training began with, or another one that is named.

What training began with needs no second model in memory. Beside a new adapter it is the model without it; otherwise
the weights that learn are kept as they were, and put in place for as long as the reference speaks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from engines.errors import InvalidRequest
from training.losses.log_probs import token_log_probs
from training.params.rlhf import RlhfParams
from training.trainers.job.job import Training
from training.trainers.model import load_base_config, load_for_training
from training.tuners import tuner_of


class Reference:
    def __init__(
        self,
        model: Any,
        changed: Callable[[], AbstractContextManager[Any]] = nullcontext,
        weights: Sequence[Tensor] | None = None,
    ) -> None:
        """`changed`: makes the reference of `model` for a while. `weights`: see there; None: all of the model."""
        self._model = model
        self._changed = changed
        self.weights = tuple(model.parameters()) if weights is None else weights
        """What it computes with, before the first step."""

    @contextmanager
    def speaking(self) -> Iterator[Any]:
        """The model (a `PreTrainedModel` or `PeftModel`) as the reference, for inference."""
        learns = self._model.training
        with torch.no_grad(), self._changed():
            self._model.eval()
            try:
                yield self._model
            finally:
                self._model.train(learns)

    def log_probs(
        self, inputs: Mapping[str, Any], positions: Tensor, wanted: Tensor, *, temperature: float = 1.0
    ) -> Tensor:
        """(positions,) float32: as `token_log_probs`, without gradients."""
        with self.speaking() as model:
            return token_log_probs(model, inputs, positions, wanted, temperature=temperature).log_probs


def reference_of(job: Training[RlhfParams], device: torch.device, *, lasting: bool = True) -> Reference:
    """The reference of a training that is about to begin: `job.tuned.model` is as it is before the first step, and on
    `device`. `lasting`: whether it is asked after that step too. Raises InvalidRequest, UnsupportedModel."""
    model = job.tuned.model
    if job.params.ref_model is not None:
        return Reference(_named(job).to(device))
    if (without := _without(job)) is not None:
        return Reference(model, without, [each for each in model.parameters() if not each.requires_grad])
    return Reference(model, _as_now(model) if lasting else nullcontext)


def without_dropout(model: nn.Module) -> None:
    """Model and reference are to differ by what was learned only."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _named(job: Training[RlhfParams]) -> Any:
    params = job.params
    named = params.model_copy(update={"model": params.ref_model, "model_revision": params.ref_model_revision})
    config = load_base_config(named)
    if params.ref_model_type not in (None, config.model_type):
        raise InvalidRequest(f"the reference model is of type {config.model_type}", param="ref_model_type")
    known = config.get_text_config().vocab_size
    if known < len(job.tokenizer):
        message = f"it knows {known} tokens, and the model's tokenizer has {len(job.tokenizer)}"
        raise InvalidRequest(message, param="ref_model")
    return load_for_training(named, config, job.precision.base).requires_grad_(False)


def _without(job: Training[RlhfParams]) -> Callable[[], AbstractContextManager[Any]] | None:
    """Makes what training began with of the model, where it is the model without what is trained."""
    if _begins_as_nothing(job.params, job.tuned.model):
        return job.tuned.model.disable_adapter  # type: ignore[no-any-return]  # PEFT is untyped here
    return None if job.params.adapters else job.tuned.without()


def _begins_as_nothing(params: RlhfParams, model: Any) -> bool:
    """Whether `model` has an adapter that changes nothing yet, and without which it stays what it is."""
    from peft import PeftModel

    if not isinstance(model, PeftModel) or params.adapters or not tuner_of(params).begins_as_base(params):
        return False
    return getattr(model.active_peft_config, "bias", "none") == "none"


def _as_now(model: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the weights of `model` that learn are what they are now."""
    kept = [(weight, weight.detach().clone()) for weight in model.parameters() if weight.requires_grad]

    def swap() -> None:
        for at, (weight, other) in enumerate(kept):
            kept[at] = (weight, weight.data)
            weight.data = other

    @contextmanager
    def as_then() -> Iterator[None]:
        swap()
        try:
            yield
        finally:
            swap()

    return as_then
