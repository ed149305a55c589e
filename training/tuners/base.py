"""What a tuner says of itself: all that is known of it is in its file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from engines.capabilities import AdapterSupport
from training.params.refusal import Refusal
from training.params.sft import SftParams


class Examples(Protocol):
    """What the training is about to learn from, for adapters whose first values are computed of it."""

    def __call__(self, size: int, max_length: int | None = None) -> Iterator[dict[str, Any]]:
        """Batches of `size` samples, in the order of the data, of which there may be no end: what a model takes,
        `input_ids`, `attention_mask` and `labels`. `max_length`: most tokens of a sample."""


class Tuned:
    """A model with what is trained of it, for as long as it is trained."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def callbacks(self) -> Sequence[Any]:
        """transformers' TrainerCallbacks that go with it."""
        return ()

    def weights(self) -> dict[str, Any] | None:
        """What the trainer is to write into a checkpoint, by name; None: the weights that are trained, as they are."""
        return None

    def as_loaded(self, weights: dict[str, Any]) -> dict[str, Any]:
        """`weights` that were gathered from several processes, in the types that a checkpoint has."""
        return weights

    def penalty(self) -> Any:
        """A scalar (tensor) to add to the loss of each step, whatever is learned; None: nothing."""
        return None

    def source(self, given: str) -> AbstractContextManager[str]:
        """What an engine loads to have the weights that this model has, by the same names. `given`: what the model was
        loaded from."""
        return nullcontext(given)

    def saved(self, checkpoint: Path) -> None:
        """Finish a checkpoint, into which the trainer has just written the weights that are trained."""

    def without(self) -> Callable[[], AbstractContextManager[None]] | None:
        """Makes the model for a while what it is without what is trained; None: it would be none then."""
        return None

    def resume(self, checkpoint: Path) -> Path | None:
        """Make the model ready to go on from `checkpoint`.

        Returns the folder that the trainer loads its weights from; None: they are loaded. Raises InvalidRequest where
        they do not fit.
        """
        return checkpoint


class Tuner(ABC):
    """What of a model is trained, by `train_type`."""

    name: ClassVar[str]
    makes: ClassVar[Literal["adapter", "model"]]
    mergeable: ClassVar[bool]
    """Whether `merge` makes a model of what it makes."""
    divisible: ClassVar[bool] = False
    """Whether processes may divide what it trains among them (deepspeed, fsdp)."""
    reads: ClassVar[frozenset[str]]
    """Parameters that it reads, beside those that every training reads."""
    draws: ClassVar[bool] = True
    """Whether the engine that draws answers during a training can draw them of what is trained."""
    learning_rate: ClassVar[float]
    """Peak learning rate unless one is given."""
    quantized_bases: ClassVar[frozenset[str]] = frozenset()
    """Values of `quant_method` of a base model that it trains on."""

    @abstractmethod
    def refusals(self, params: SftParams) -> list[Refusal]:
        """Parameters that do not go together with this tuner, or with one another in it."""

    def check_config(self, params: SftParams, config: Any) -> None:  # noqa: B027  # most train any model
        """Refuse a model (`PreTrainedConfig`) that cannot be trained so, before it is loaded.

        Raises InvalidRequest, UnsupportedModel.
        """

    def unserved(self, params: SftParams, support: AdapterSupport) -> list[Refusal]:
        """Parameters with which it makes what an engine with such `support` does not serve as an adapter."""
        return [("train_type", f"{self.name!r} makes no LoRA adapter, and no other is served")]

    def shape(self, model: Any) -> dict[str, Any]:
        """The parameters that would make the adapter which `model` (a `PeftModel`) holds, as far as it says them."""
        return {}

    def begins_as_base(self, params: SftParams) -> bool:
        """Whether it makes an adapter that changes nothing yet, and without which the model stays what it is."""
        return False

    @abstractmethod
    def attach(self, model: Any, params: SftParams, examples: Examples | None = None) -> Tuned:
        """`model`, ready for a trainer: with an adapter, or with the weights chosen that learn. `examples`: needed
        where the training's own data says how an adapter begins.

        Raises InvalidRequest, InvalidAdapter.
        """
