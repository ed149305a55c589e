"""What a tuner says of itself: all that is known of it is in its file."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from training.params.sft import SftParams
from training.refusal import Refusal


class Tuner(ABC):
    """What of a model is trained, by `train_type`."""

    name: ClassVar[str]
    makes: ClassVar[Literal["adapter", "model"]]
    reads: ClassVar[frozenset[str]]
    """Parameters that it reads, beside those that every training reads."""
    learning_rate: ClassVar[float]
    """Peak learning rate unless one is given."""

    @abstractmethod
    def refusals(self, params: SftParams) -> list[Refusal]:
        """Parameters that do not go together with this tuner, or with one another in it."""
