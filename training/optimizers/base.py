"""What an optimizer says of itself: all that is known of it is in its file."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar

from training.params.refusal import Refusal
from training.params.sft import SftParams

ADAMW = frozenset({"adamw_torch", "adamw_torch_fused"})
"""Values of `optim` that are torch's AdamW."""


class Optimizer(ABC):
    """How weights are changed by their gradients."""

    parameter: ClassVar[str]
    """The parameter that asks for it."""
    names: ClassVar[frozenset[str]] = frozenset()
    """Values of `optim` that ask for it as well."""
    beside: ClassVar[frozenset[str]] = ADAMW
    """Other values of `optim` that it goes together with."""
    reads: ClassVar[frozenset[str]]
    """Parameters that it reads, the one that asks for it among them."""
    train_types: ClassVar[frozenset[str] | None] = None
    """Values of `train_type` whose weights it is for; None: of all."""
    whole: ClassVar[bool] = False
    """Whether it looks at each weight as a whole, so that none may be divided among processes."""

    def asked_for(self, params: SftParams) -> bool:
        return params.optim in self.names

    def refusals(self, params: SftParams) -> list[Refusal]:
        """Parameters that do not go together with this optimizer, where it is asked for."""
        return []

    def settings(self, params: SftParams) -> Mapping[str, type]:
        """Names in `optim_args` that it knows, each with the type of its value."""
        return {}

    def arguments(self, params: SftParams) -> dict[str, Any]:
        """Settings of transformers' TrainingArguments that take the place of those that the parameters say."""
        return {}

    def callbacks(self, model: Any, params: SftParams) -> Sequence[Any]:
        """transformers' TrainerCallbacks that go with it, for a training of `model`."""
        return ()

    @abstractmethod
    def make(self, model: Any, params: SftParams, arguments: Any, *, steps: int) -> Any:
        """A torch optimizer for the weights of `model` that are trained; None: the one that transformers makes of
        `arguments`, its TrainingArguments.

        `steps`: how many the training has in all. Raises InvalidRequest.
        """

    def state_bytes(self, params: SftParams, shape: Sequence[int]) -> int:
        """Bytes that it keeps, at most, for a weight of `shape` that is trained in float32."""
        return 8 * prod(shape)

    def each_at_once(self, params: SftParams) -> bool:
        """Whether it changes each weight as soon as its gradient is there, which then goes."""
        return False

    def rest(self, model: Any, params: SftParams) -> None:  # noqa: B027  # most have all weights learn in each step
        """Have those weights of `model` need no gradient that do not learn in the first step."""


def setting(params: SftParams, name: str, default: Any) -> Any:
    """What `optim_args` say of `name`."""
    return (params.optim_args or {}).get(name, default)


def decayed(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """The weights that are trained as groups of a torch optimizer, as transformers' trainer has them: biases and norms
    are not decayed."""
    from transformers import Trainer

    names = set(Trainer.get_decay_parameter_names(None, model))
    learned = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = (
        {"params": [weight for name, weight in learned if name in names], "weight_decay": weight_decay},
        {"params": [weight for name, weight in learned if name not in names], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def inner_linear(model: Any) -> dict[str, Any]:
    """The weights of the linear layers, by the name of the layer, but for those of embeddings and output
    head."""
    from torch import nn

    head = model.get_output_embeddings()
    outer = {id(module.weight) for module in (head, model.get_input_embeddings()) if module is not None}
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {name: module.weight for name, module in modules if id(module.weight) not in outer}
