"""What a method of training says of itself: all that is known of it is in its file."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from engines.params.model import TaskType
from training.data.samples import Learns
from training.params.refusal import Refusal
from training.params.sft import SftParams

if TYPE_CHECKING:
    from training.trainers.job.job import Training

P = TypeVar("P", bound=SftParams)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a step has in memory beside the model that learns, and a text of each sample."""

    texts: int = 1
    """Texts of a sample that go through the model at a time."""
    entropy: bool = False
    """Whether the entropy of the answers is told of."""
    reference: bool = False
    """Whether the model is compared with another, or with what it was."""
    models: tuple[str, ...] = ()
    """Parameters that name further models."""
    value_model: bool = False
    """Whether a second model learns, which begins as the one that `reward_model` names."""
    drawn: int = 0
    """Answers that the model gives at a time."""
    drawn_tokens: int = 0
    """Tokens of such an answer at most."""


class Method(ABC, Generic[P]):
    """How a model is taught."""

    name: ClassVar[str]
    task: ClassVar[str]
    """The task that it belongs to."""
    params: type[P]
    """The parameters of that task."""
    choice: ClassVar[Mapping[str, Any]] = {}
    """The parameters that choose this method within its task."""
    task_type: ClassVar[TaskType] = "causal_lm"
    """What kind of model it trains: one that continues text, or one with a head that judges it."""
    num_labels: ClassVar[int | None] = None
    """Outputs of that head, where they are not for the parameters to say."""
    needs: ClassVar[Mapping[str, str]] = {}
    """Parameters that it cannot do without, and what is told where one is not given."""
    rows: Learns
    """What a row of its data is read and encoded as."""
    reads: ClassVar[frozenset[str]]
    """Parameters that it reads, beside those that every training reads."""
    openai_name: ClassVar[str | None] = None
    """What OpenAI's fine-tuning API calls it, where it is offered there."""
    openai_defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults of its parameters there, where they are others."""
    hyperparameters: ClassVar[Mapping[str, Any]] = {}
    """Hyperparameters of its own there, with the value for each `"auto"`; None where nothing is chosen."""
    least_in_a_pass: ClassVar[int] = 1
    """Fewest samples of a forward pass from which it learns."""
    compares: ClassVar[bool] = False
    """Whether there is a reference model."""
    divisible: ClassVar[bool] = False
    """Whether processes may divide weights, gradients and optimizer among them (deepspeed, fsdp)."""
    part_of_rate: ClassVar[float] = 1.0
    """The learning rate that suits it, as a part of the one that teaches answers."""

    def of_openai(self, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that its own hyperparameters there come to."""
        return dict(hyperparameters)

    def answers_to_a_row(self, params: Mapping[str, Any]) -> int:
        """How many answers to each row of data it learns from, where `params` are given."""
        return 1

    def draws(self, params: P) -> bool:
        """Whether it learns from answers that the model in training gives."""
        return False

    def beside(self, params: P) -> Beside:
        """What is in memory with the model that learns."""
        return Beside()

    def metrics(self, params: P) -> tuple[str, ...]:
        """What an evaluation reports beside `loss`."""
        return ()

    def refusals(self, params: P) -> list[Refusal]:
        """Parameters that do not go together with this method, or with one another in it."""
        return []

    @abstractmethod
    def trainer(self, job: "Training[P]") -> Any:
        """A Trainer behind a JobTrainer, with this method's loss and way to make batches of rows.

        Raises InvalidRequest.
        """
