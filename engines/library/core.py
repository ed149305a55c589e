"""What a library brings to become an engine: its configuration, its stream, and where its adapters lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engines.capabilities import Capabilities
from engines.types import EngineStats, GenerationRequest, PoolingRequest, TokenOutput


class Slots(Protocol):
    """Where adapters lie. Each name is given once only: a library's caches go by it, and may forget nothing."""

    async def put(self, slot: int, name: str, folder: Path) -> None:
        """Bring the adapter of `folder` into an empty slot. Raises InvalidAdapter, EngineFailure."""
        ...

    async def take(self, slot: int, name: str) -> None:
        """Empty a slot that no request uses."""
        ...


class Asked(Protocol):
    """One request. Its methods are cancelled where nobody wants it any more, and end it in the library, too."""

    async def prepare(self) -> None:
        """Do what needs no adapter."""
        ...

    async def begin(self, adapter: str | None) -> None:
        """Its adapter is in a slot by this name. Do what comes before the outputs."""
        ...

    async def compute(self, index: int, tell: Callable[[TokenOutput], None]) -> None:
        """Compute one of the outputs to its end, and tell what each step adds.

        With the first of each output goes what there is to tell of the prompt; `queue_seconds` counts from this call.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the engine's requests ask of the library, now and so far."""

    outputs: int
    """Outputs that more is to come of, and prompts whose numbers are."""
    held_back: int
    """Requests of which no output has been asked for: they wait for an adapter, or are prepared."""
    waiting_for: dict[str, int]
    """Reason -> how many outputs wait for that before they are asked for."""
    prompt_tokens: int
    """Since the start, of the requests that have got their first output."""
    cached_tokens: int
    """How many of these the prefix cache gave."""


class Core(Protocol):
    async def start(self) -> Capabilities:
        """Load the model. Raises UnsupportedModel, EngineFailure."""
        ...

    async def stop(self) -> None:
        """Free everything. May be called in any state, and twice."""
        ...

    @property
    def slots(self) -> Slots | None:
        """None: it serves the base model only. Asked for once it has started."""
        ...

    def death(self) -> str | None:
        """Why the library will not answer any more; None where it will."""
        ...

    def stats(self, load: Load) -> EngineStats:
        """All numbers but those of adapters."""
        ...

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for what the library would not refuse, or not in our words."""
        ...

    def ask(self, request: GenerationRequest) -> Asked: ...

    def check_pooling(self, request: PoolingRequest) -> None:
        """Raises InvalidRequest, and UnsupportedParameter where it cannot do what is asked."""
        ...

    async def pool(self, request: PoolingRequest, adapter: str | None) -> list[float]: ...

    async def sleep(self) -> None: ...

    async def wake_up(self) -> None: ...
