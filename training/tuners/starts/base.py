"""What a LoRA adapter starts with, by `init_weights`."""

from collections.abc import Iterator
from typing import Any, ClassVar

from training.device import accelerated
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.processes import Processes
from training.tuners.base import Examples


class Start:
    reads: ClassVar[frozenset[str]] = frozenset()
    """Parameters that it reads, beside those of every LoRA adapter."""

    def __init__(
        self,
        name: str,
        value: Any = None,
        *,
        begins_as_base: bool = False,
        takes_out: bool = False,
        uses_data: bool = False,
        widens: int = 1,
        conv1d: bool = True,
    ) -> None:
        """
        name: value of `init_weights`
        value: PEFT's, where that is another
        begins_as_base: whether the adapter changes nothing before the first step
        takes_out: whether the base model loses what the adapter adds at first (`taken_out.py`)
        uses_data: whether it is computed of the training's data
        conv1d: whether PEFT has it for transformers' `Conv1D`, too, which GPT-2 has in place of linear layers
        widens: how many times the rank asked for a layer of what is written can have
        """
        self.name = name
        self.value = name if value is None else value
        self.begins_as_base = begins_as_base
        self.takes_out = takes_out
        self.uses_data = uses_data
        self.conv1d = conv1d
        self.widens = 2 if takes_out else widens

    def refusals(self, params: SftParams) -> Iterator[Refusal]:
        """What does not go together with it."""
        given = {"use_dora": params.use_dora, "lora_bias": params.lora_bias != "none"}
        if self.takes_out or self.uses_data:
            yield from ((name, f"not together with init_weights {self.name}") for name, asked in given.items() if asked)

    def settings(self, params: SftParams) -> dict[str, Any]:
        """Fields of PEFT's configuration that are its own."""
        return {}

    def prepare(self, model: Any, config: Any, params: SftParams, examples: Examples | None) -> None:
        """Compute what it takes before `model` gets its adapter, by the configuration `config`.

        Raises InvalidRequest.
        """

    def finish(self, adapted: Any, params: SftParams, examples: Examples | None) -> None:
        """Put into the new adapter of `adapted`, a `PeftModel`, what is computed with it there.

        Raises InvalidRequest.
        """


def on_accelerator(model: Any) -> Any:
    """`model` where it is going to be trained, as far as it can be moved there."""
    if not accelerated() or getattr(model, "is_quantized", False):
        return model
    import torch

    kind = torch.accelerator.current_accelerator()
    return model.to(torch.device(kind.type, Processes.of_environment().local_rank))


def name_linears(config: Any, model: Any) -> None:
    """Have `config` name the layers that `all-linear` means: what is computed beforehand is computed for these."""
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    _maybe_include_all_linear_layers(config, model)
