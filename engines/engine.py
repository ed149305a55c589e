"""The contract of every engine."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Protocol

from engines.capabilities import Capabilities
from engines.errors import EngineUnavailable, UnsupportedParameter
from engines.types import EngineState, EngineStats, GenerationRequest, Health, PoolingRequest, TokenOutput


class Engine(Protocol):
    """One loaded base model that turns prompts into tokens. No exception but `engines.errors` leaves an engine."""

    async def start(self) -> None:
        """Load the model and return once requests can be answered.

        Raises UnsupportedModel where this engine cannot run the model as asked, EngineFailure where it died starting.
        """
        ...

    async def stop(self) -> None:
        """End every request with EngineUnavailable and free everything. May be called in any state, and twice."""
        ...

    def capabilities(self) -> Capabilities:
        """Fixed by the model; raises EngineUnavailable before the first `start` has returned."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        """Yield what each step adds, for all n outputs, until each has finished. Closing the iterator aborts.

        Its first `anext` raises QueueFull, EngineUnavailable or InvalidRequest where the request was not taken, so a
        server can await the first output before it opens a stream; UnsupportedParameter where the model or the adapter
        has a head that classifies. Later, EngineFailure where the engine died.
        """
        ...

    def finish(self, request_id: str, index: int) -> None:
        """End one of the n outputs early (it met a stop string): it yields nothing more, also of what was made and not
        read yet; the others go on.

        Nothing happens where that output's end has been read already.
        """
        ...

    async def pool(self, request: PoolingRequest) -> list[float]:
        """Return what the model makes of the prompt's last token. `embed`: its hidden state, L2-normalised, as
        (hidden_size,) floats. `classify`: the logits of the head, (labels,) floats; `Head.read` says where a text ends.

        Raises UnsupportedParameter where neither the model nor the adapter has a head to classify with, and else what
        `generate` raises.
        """
        ...

    async def load_adapter(self, version: str, folder: Path, *, pinned: bool = False) -> None:
        """Take in the PEFT adapter of `folder`; return once requests may name it by `version`.

        The folder has been checked against `capabilities().adapters`, and stays as it is until the version is unloaded:
        an engine with more adapters than room reads it again, and after a death of its process it does so by itself.
        `pinned`: never swapped out. Raises InvalidAdapter, EngineUnavailable, EngineFailure, and Conflict where it was
        unloaded meanwhile. Loading what is there already changes `pinned` and nothing else.
        """
        ...

    async def unload_adapter(self, version: str) -> None:
        """Forget a version and free its memory. The caller has made sure that no request names it any more: one that
        does ends with EngineFailure. Nothing happens where the version is unknown.
        """
        ...

    async def sleep(self) -> None:
        """Take no more requests; once those that run have ended, give up the memory of weights and KV cache.

        Adapters stay loaded. Raises UnsupportedParameter where `capabilities().sleep` is false, EngineUnavailable,
        EngineFailure. Nothing happens where it sleeps already.
        """
        ...

    async def wake_up(self) -> None:
        """Return once requests can be answered again. Raises what `sleep` raises."""
        ...

    def health(self) -> Health: ...

    def stats(self) -> EngineStats: ...


def check_ready(engine: Engine) -> None:
    """Raises EngineUnavailable."""
    state = engine.health().state
    if state is not EngineState.READY:
        raise EngineUnavailable(f"the engine is {state}")


def check_can_sleep(engine: Engine) -> None:
    """Raises UnsupportedParameter."""
    if not engine.capabilities().sleep:
        raise UnsupportedParameter("this engine cannot sleep, or was not started with --enable_sleep_mode true")
