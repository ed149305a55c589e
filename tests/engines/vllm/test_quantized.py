"""vLLM with weights that torchao quantises while they are loaded: the base model and an adapter say what transformers
and PEFT say of the same quantised model."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from peft import PeftModel

from engines.checkpoint.loading import load_config, load_model
from engines.checkpoint.quantization import Quantization
from engines.vllm.client import VllmEngine
from engines.vllm.config import VllmConfig
from tests.contract.engines import answer, request
from tests.engines.pt.adapters import save_adapter
from tests.engines.pt.driving import Output, Reference
from tests.engines.vllm.tiny import TINY, needs_vllm, save_for_vllm

pytestmark = [needs_vllm, pytest.mark.asyncio(loop_scope="module")]

FOUR_BITS = Quantization(method="torchao", bits=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_for_vllm(tmp_path_factory.mktemp("model"), positions=512)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[VllmEngine]:
    config = VllmConfig(**TINY, model=str(model), max_loras=1, torchao_bits=4)
    engine = VllmEngine(config, max_num_queued_reqs=8)
    await engine.start()
    yield engine
    await engine.stop()


async def check(engine: VllmEngine, truth: torch.nn.Module, adapter: str | None) -> None:
    asked = request("a prompt", max_new_tokens=8, ignore_eos=True, logprobs=3, adapter=adapter)
    made = await answer(engine, asked)
    Reference(truth).check_greedy(asked, Output(made.token_ids, made.logprobs))


async def test_base_and_adapter_answer_as_in_transformers_and_peft_on_the_quantised_model(
    engine: VllmEngine, model: Path, tmp_path: Path
) -> None:
    base = load_model(
        str(model), config=load_config(str(model)), dtype=torch.float32, device_map="cpu", quantization=FOUR_BITS
    )
    await engine.load_adapter("a@1", save_adapter(model, tmp_path))

    await check(engine, base, None)
    await check(engine, PeftModel.from_pretrained(base, tmp_path).eval(), "a@1")
