"""The embeddings of single tokens are trained, such as those of tokens that are new or mean something new, and all else
stays as it is."""

from typing import Any

from engines.errors import InvalidRequest
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.params.tokens import TrainableTokensParams
from training.tuners.adapter import PEFT_TASKS, AdapterTuner


class TrainableTokens(AdapterTuner):
    name = "trainable_tokens"
    quantized_bases = frozenset({"bnb", "hqq", "torchao"})
    reads = frozenset(TrainableTokensParams.model_fields)

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = super().refusals(params)
        goes_on = params.adapters or params.resume_from_checkpoint
        if not params.trainable_token_indices and not goes_on:
            found.append(("trainable_token_indices", "say which tokens are trained"))
        if params.method in ("seq_cls", "rm"):
            found.append(("train_type", "a head would have to be trained beside the tokens: choose lora"))
        return found

    def check_config(self, params: SftParams, config: Any) -> None:
        known = config.get_text_config().vocab_size
        for token in params.trainable_token_indices:
            if not 0 <= token < known:
                raise InvalidRequest(f"the model has no token {token}, only {known}", param="trainable_token_indices")

    def config(self, params: SftParams) -> Any:
        from peft import TrainableTokensConfig

        return TrainableTokensConfig(
            token_indices=sorted(set(params.trainable_token_indices)), task_type=PEFT_TASKS[params.task_type]
        )

    def shape(self, model: Any) -> dict[str, Any]:
        return {"trainable_token_indices": list(model.peft_config["default"].token_indices)}
