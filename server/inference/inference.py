"""The engine while it serves: its adapters, whether it is ready, and what is counted of it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from fastapi import Depends

from engines.adapters.registry import AdapterRegistry, Lease
from engines.engine import Engine
from engines.errors import UnsupportedParameter
from engines.types import Head
from server.deps import part
from server.inference.fine_tuned import FineTunedModels
from server.inference.lifecycle import Lifecycle
from server.inference.rate_limits import RateLimits
from server.inference.salts import Salts
from server.metrics.metrics import Metrics
from server.pools import Pools
from server.store.access import Access


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    engine: Engine
    adapters: AdapterRegistry
    """What `model` may name besides the base model."""
    fine_tuned: FineTunedModels
    """The owners of those that jobs have made."""
    lifecycle: Lifecycle
    metrics: Metrics
    rate_limits: RateLimits
    weight_of: Callable[[str | None], float]
    """The weight of an owner's share of the engine."""
    pools: Pools
    """Threads for work on requests that takes long."""
    salts: Salts = field(default_factory=Salts)

    async def lease(self, model: str, access: Access, held: ExitStack) -> Lease:
        """What `model` names: the base model, an adapter, an alias. Raises ModelNotFound, also for a fine-tuned model
        that `access` does not cover.

        The adapter's version stays loaded until `held` is closed: when the request is answered, however that ends.
        """
        leased = await self.adapters.lease(model, partial(self.fine_tuned.are_known_to, access))
        held.callback(leased.release)
        return leased

    def head(self, leased: Lease) -> Head | None:
        """The head that what was leased classifies by; None where it generates."""
        return leased.head or self.engine.capabilities().head

    def check_generates(self, leased: Lease) -> None:
        """Raises UnsupportedParameter where what was leased classifies."""
        if self.head(leased) is not None:
            raise UnsupportedParameter(
                f"The model {leased.name!r} classifies texts and generates none: ask it at /v1/classify, /v1/score or "
                "/v1/rerank.",
                param="model",
            )


InferenceDep = Annotated[Inference, Depends(part(Inference))]
"""For routes that answer in every state of the engine."""


async def ready_inference(inference: InferenceDep) -> Inference:
    """Only while requests can be answered; else EngineUnavailable."""
    inference.lifecycle.check_ready()
    return inference


ReadyInference = Annotated[Inference, Depends(ready_inference)]
"""For routes that need the engine."""
