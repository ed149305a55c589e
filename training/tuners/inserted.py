"""What tuners have in common that put modules of our own into the model."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from engines.adapters.source import fetch_adapter, name_adapters
from engines.adapters.spec import INSERTED_WEIGHTS
from engines.capabilities import AdapterSupport
from engines.errors import InvalidRequest
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.tuners.base import Examples, Tuned, Tuner


class InsertingTuner(Tuner):
    makes = "adapter"
    mergeable = False
    draws = False
    learning_rate = 1e-4

    @abstractmethod
    def settings(self, params: SftParams) -> dict[str, Any]:
        """Parameters that say all of the modules' shape, as they are saved."""

    def refusals(self, params: SftParams) -> list[Refusal]:
        if params.method in ("seq_cls", "rm"):
            return [("train_type", f"{self.name} trains no head: choose lora or full")]
        return []

    def unserved(self, params: SftParams, support: AdapterSupport) -> list[Refusal]:
        return [("train_type", f"{self.name!r} puts modules into the model, which no engine serves")]

    def shape(self, model: Any) -> dict[str, Any]:
        return dict(model.inserted_as)

    def attach(self, model: Any, params: SftParams, examples: Examples | None = None) -> Tuned:
        from training.layers.inserted import insert, inserted, load_inserted

        model.requires_grad_(False)
        if params.adapters:
            load_inserted(model, self._trained_before(params))
        else:
            insert(model, self.name, self.settings(params))
        for weight in inserted(model).values():
            weight.requires_grad_(True)
        if params.gradient_checkpointing:
            model.enable_input_require_grads()  # else no gradient reaches a layer behind frozen embeddings
        return Inserted(model, self.name, base=params.model)

    def _trained_before(self, params: SftParams) -> Path:
        """The folder that `adapters` name. Raises InvalidRequest, InvalidAdapter."""
        from training.layers.inserted import read_config

        sources = list(name_adapters(params.adapters).values())
        if len(sources) > 1:
            raise InvalidRequest("training goes on with one adapter", param="adapters")
        folder = fetch_adapter(sources[0], token=params.hub_token)
        kind, _ = read_config(folder)
        if kind != self.name:
            message = f"{folder.name!r} is of kind {kind}, and train_type {self.name} goes on with its own"
            raise InvalidRequest(message, param="train_type")
        return folder


class Inserted(Tuned):
    """A model with modules of ours, which alone are trained."""

    def __init__(self, model: Any, kind: str, *, base: str | None) -> None:
        super().__init__(model)
        self._kind = kind
        self._base = base

    def without(self) -> Callable[[], AbstractContextManager[None]]:
        from training.layers.inserted import switched_off

        return partial(switched_off, self.model)

    def weights(self) -> dict[str, Any]:
        from training.layers.inserted import inserted

        return {name: weight.detach().cpu() for name, weight in inserted(self.model).items()}

    def saved(self, checkpoint: Path) -> None:
        """The trainer has written them as if they were a model."""
        from training.layers.inserted import write_config

        (checkpoint / "model.safetensors").rename(checkpoint / INSERTED_WEIGHTS)
        for name in ("config.json", "generation_config.json"):
            (checkpoint / name).unlink(missing_ok=True)
        write_config(checkpoint, self._kind, self.model.inserted_as, self._base)

    def resume(self, checkpoint: Path) -> None:
        """Raises InvalidRequest where it is of another shape."""
        from training.layers.inserted import load_weights, read_config

        kind, settings = read_config(checkpoint)
        if (kind, settings) != (self._kind, self.model.inserted_as):
            different = [name for name, value in settings.items() if self.model.inserted_as.get(name) != value]
            named = different[0] if different else "train_type"
            raise InvalidRequest(f"{checkpoint.name} was trained with another: {settings.get(named)}", param=named)
        load_weights(self.model, checkpoint)
