"""Loading adapters at the start of the server: those it had before, and those its command line names."""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import PurePath

from engines.adapters.registry import AdapterRegistry
from engines.adapters.source import fetch_adapter, name_adapters
from engines.errors import TuneserveError

logger = logging.getLogger(__name__)


async def load_adapters(registry: AdapterRegistry, adapters: Sequence[str], hub_token: str | None) -> None:
    """Load them into the engine, which has started.

    Raises Conflict where the state folder cannot be had, and for the first of `adapters` that cannot be served: a
    server that lacks what it was told to serve must not look ready.
    """
    began = time.monotonic()
    await registry.restore()
    registry.check_open()
    for name, source in name_adapters(adapters).items():
        try:
            folder = await asyncio.to_thread(fetch_adapter, source, token=hub_token)
            origin = PurePath(source).name
            await registry.load(name, folder, replace=True, durable=False, follow_links=True, source=origin)
        except TuneserveError as error:
            raise type(error)(f"--adapters: {name}: {error.message}", param="adapters") from error
    if names := [adapter.name for adapter in registry.adapters() if adapter.served]:
        logger.info("The adapters were loaded after %.1f s: %s", time.monotonic() - began, ", ".join(names))
