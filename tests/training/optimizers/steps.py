"""Steps of an optimizer on a tiny model, one after the other, without a trainer around them."""

import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaForCausalLM

from tests.engines.pt.tiny import CONFIGS
from training.optimizers import optimizer_of, refusals
from training.params.sft import SftParams

STEPS = 8
ARGUMENTS = SimpleNamespace(
    learning_rate=0.01, weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, world_size=1
)
"""What optimizers read of transformers' TrainingArguments."""
Make = Callable[[Any], Any]
"""Model -> a torch optimizer for it."""


def tiny_model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIGS["llama"]()).float()


def as_asked(**given: Any) -> tuple[SftParams, Make]:
    """The optimizer that parameters ask for, as a trainer makes it."""
    params = SftParams(train_type="full", **given)
    assert refusals(params) == []
    return params, lambda model: optimizer_of(params).make(model, params, ARGUMENTS, steps=STEPS)


def losses_of(
    model: Any, optimizer: Any, steps: range, before: Callable[[int], None] = lambda _: None
) -> Iterator[float]:
    """`before`: called before each step."""
    for step in steps:
        before(step)
        ids = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(step % 3))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def learned(make: Make) -> tuple[list[float], Any]:
    """Losses, and the model afterwards."""
    model = tiny_model()
    return list(losses_of(model, make(model), range(STEPS))), model


def saved(held: Any) -> Any:
    """What `state_dict` gives, written and read again as transformers' trainer does."""
    file = io.BytesIO()
    torch.save(held.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def equal(one: Any, two: Any, tolerance: float = 0) -> bool:
    """Whether two models have the same weights."""
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return all(torch.allclose(first, second, rtol=0, atol=tolerance) for first, second in pairs)
