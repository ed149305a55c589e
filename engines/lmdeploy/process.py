"""The engine's own process, run by the Python of LMDeploy's environment: `python -m engines.lmdeploy.process FD`."""

import sys
from typing import Any

import msgspec
from transformers.utils.logging import disable_progress_bar

from engines.errors import UnsupportedModel
from engines.library.engine import LibraryEngine
from engines.lmdeploy.config import LmdeployConfig
from engines.logs import configure_logging
from engines.process.asyncio_engine import AsyncioEngine
from engines.process.host import host
from engines.process.imports import uncollected


def make(fields: dict[str, Any]) -> AsyncioEngine:
    try:
        with uncollected():
            from engines.lmdeploy.core import LmdeployCore
    except ImportError as error:
        raise UnsupportedModel(f"LMDeploy cannot be imported by {sys.executable}: {error}") from error
    config = msgspec.convert(fields, LmdeployConfig)
    return AsyncioEngine(
        LibraryEngine(LmdeployCore(config), max_loras=config.max_loras, max_num_seqs=config.max_num_seqs)
    )


def main() -> None:
    disable_progress_bar()
    configure_logging()
    host(make)


if __name__ == "__main__":
    main()
