"""One model for all of these tests, and its engine on a CPU."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engines.lmdeploy.client import LmdeployEngine
from tests.engines.lmdeploy.engines import lmdeploy_on_cpu
from tests.engines.pt.tiny import CONFIGS, save


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = CONFIGS["llama"]()
    llama.max_position_embeddings = 2048
    return save(llama, tmp_path_factory.mktemp("llama"), tokenizer=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[LmdeployEngine]:
    """Two slots, and steps so short that prompts are computed in several."""
    engine = lmdeploy_on_cpu(str(model), max_loras=2, max_num_batched_tokens=32)
    await engine.start()
    yield engine
    await engine.stop()
