"""EVA (Paischer et al. 2024, arXiv:2410.07170): the first matrix starts with the main directions of what its layer gets
from the training's data, and layers where more of that lies in few directions give up rank to the others."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from engines.errors import InvalidRequest
from training.params.sft import SftParams
from training.tuners.base import Examples
from training.tuners.starts.base import Start, on_accelerator

SHARE = 2
"""How many times the rank asked for a layer can have in the end: PEFT's and the paper's."""
SAMPLES = 256
LONGEST = 2048
"""The most samples that are looked at, and tokens of one."""
PASSES = 1000
"""Batches after which directions that are still changing are given up."""


class Eva(Start):
    def __init__(self) -> None:
        super().__init__("eva", begins_as_base=True, uses_data=True, widens=SHARE)

    def settings(self, params: SftParams) -> dict[str, Any]:
        from peft.tuners.lora.config import EvaConfig

        return {"eva_config": EvaConfig(rho=SHARE)}

    def finish(self, adapted: Any, params: SftParams, examples: Examples | None) -> None:
        from peft.tuners.lora.eva import initialize_lora_eva_weights

        assert examples is not None, "refused otherwise"
        on_accelerator(adapted)
        try:
            initialize_lora_eva_weights(
                adapted,
                _Rounds(_batches(examples, least=SHARE * params.lora_rank)),
                forward_fn=_forward,
                gather_distributed_inputs=False,
                show_progress_bar=False,
            )
        except (ValueError, RuntimeError) as error:  # more directions than a layer has
            raise InvalidRequest(f"EVA finds no start: {str(error).splitlines()[0]}", param="lora_rank") from error
        config = adapted.peft_config["default"]
        config.init_lora_weights, config.eva_config = True, None  # loading it needs no data
        config.target_modules = set(config.target_modules)  # as PEFT reads it back


class _Rounds:
    """The batches again and again, as long as PEFT asks for more."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(PASSES):
            yield self._batches[number % len(self._batches)]
        message = f"the directions of the data do not settle in {PASSES} batches: choose another start"
        raise InvalidRequest(message, param="init_weights")


def _batches(examples: Examples, least: int) -> list[dict[str, Any]]:
    """Batches with `least` tokens to look at, or more: of fewer PEFT takes no directions."""
    size = 1
    while size <= SAMPLES:
        found = [_looked_at(batch) for batch in islice(examples(size, LONGEST), SAMPLES // size)]
        if found and all(int(batch["attention_mask"].sum()) >= least for batch in found[:-1] or found):
            return found
        size *= 2
    raise InvalidRequest(f"the data has too few tokens for {least} directions: choose less", param="lora_rank")


def _looked_at(batch: dict[str, Any]) -> dict[str, Any]:
    """All tokens: of short answers there would be too few for PEFT."""
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _forward(model: Any, batch: dict[str, Any]) -> Any:
    return model(**batch, use_cache=False)
