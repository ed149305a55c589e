"""What tuners have in common that put an adapter of PEFT's into the model."""

from abc import abstractmethod
from typing import Any

from engines.adapters.source import fetch_adapter, name_adapters
from engines.errors import InvalidRequest
from training.params.sft import SftParams
from training.refusal import Refusal
from training.tuners.base import Tuned, Tuner

WHERE = frozenset({"target_modules", "target_regex", "modules_to_save"})
"""Parameters that say which modules are trained."""


class AdapterTuner(Tuner):
    makes = "adapter"
    mergeable = True
    float16 = True  # PEFT keeps the adapter itself in float32
    learning_rate = 1e-4

    @abstractmethod
    def config(self, params: SftParams) -> Any:
        """PEFT's configuration of a new adapter. Raises InvalidRequest."""

    def refusals(self, params: SftParams) -> list[Refusal]:
        if params.target_regex is not None and "target_modules" in params.model_fields_set:
            return [("target_modules", "target_regex goes before it: give one of the two")]
        return []

    def attach(self, model: Any, params: SftParams) -> Tuned:
        from peft import PeftModel

        before = _trained_before(params)
        goes_on = before is not None
        adapted = PeftModel.from_pretrained(model, before, is_trainable=True) if goes_on else self.new(model, params)
        if params.gradient_checkpointing:
            adapted.enable_input_require_grads()  # else no gradient reaches a layer behind frozen embeddings
        return Tuned(adapted)

    def shape(self, model: Any) -> dict[str, Any]:
        config = model.peft_config["default"]
        named = config.target_modules
        where = {"target_regex": named} if isinstance(named, str) else {"target_modules": sorted(named or ())}
        return where | {"modules_to_save": list(config.modules_to_save or ())}

    def new(self, model: Any, params: SftParams) -> Any:
        """A `PeftModel` with a new adapter."""
        from peft import get_peft_model

        try:
            return get_peft_model(model, self.config(params))
        except ValueError as error:  # names that fit no module, or one of a kind that takes no adapter
            given = "target_regex" if params.target_regex else "target_modules"
            raise InvalidRequest(str(error).splitlines()[0], param=given) from error


def targets(params: SftParams) -> str | list[str]:
    """PEFT's `target_modules`, which takes a text for a regular expression, `all-linear` aside.

    Raises InvalidRequest.
    """
    if params.target_regex is not None:
        return params.target_regex
    if params.target_modules == ("all-linear",):
        return "all-linear"
    if "all-linear" in params.target_modules:
        raise InvalidRequest("all-linear stands alone: name all modules, or use target_regex", param="target_modules")
    return list(params.target_modules)


def _trained_before(params: SftParams) -> str | None:
    """The folder of an adapter whose weights training goes on with; a whole checkpoint is left to the trainer."""
    if params.resume_from_checkpoint and params.resume_only_model:
        return params.resume_from_checkpoint
    sources = list(name_adapters(params.adapters).values())
    if len(sources) > 1:
        raise InvalidRequest("training goes on with one adapter", param="adapters")
    return str(fetch_adapter(sources[0], token=params.hub_token)) if sources else None
