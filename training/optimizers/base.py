"""What an optimizer says of itself: all that is known of it is in its file."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from training.params.refusal import Refusal
from training.params.sft import SftParams


class Optimizer(ABC):
    """How weights are changed by their gradients, in place of AdamW at one rate."""

    parameter: ClassVar[str]
    """The parameter that asks for it."""
    reads: ClassVar[frozenset[str]]
    """Parameters that it reads, the one that asks for it among them."""

    @abstractmethod
    def asked_for(self, params: SftParams) -> bool: ...

    @abstractmethod
    def refusals(self, params: SftParams) -> list[Refusal]:
        """Parameters that do not go together with this optimizer, where it is asked for."""

    @abstractmethod
    def make(self, model: Any, params: SftParams, arguments: Any) -> Any:
        """A torch optimizer for the weights of `model` that are trained.

        `arguments`: transformers' TrainingArguments.
        """
