"""One model for all of these tests, and its engine on a CPU."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engines.lmdeploy.client import LmdeployEngine
from tests.engines.lmdeploy.engines import with_two_slots
from tests.engines.pt.tiny import CONFIGS, save


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = CONFIGS["llama"]()
    llama.max_position_embeddings = 2048
    return save(llama, tmp_path_factory.mktemp("llama"), tokenizer=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[LmdeployEngine]:
    async with with_two_slots(model) as engine:
        yield engine
