"""vLLM with quantised weights: the base model and an adapter say what transformers and PEFT say of the same weights."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from engines.checkpoint.loading import load_config, load_model
from engines.checkpoint.quantization import Quantization
from engines.types import GenerationRequest
from engines.vllm.client import VllmEngine
from engines.vllm.config import VllmConfig
from tests.contract.engines import answer, request
from tests.engines.pt.adapters import save_adapter
from tests.engines.pt.driving import Output, Reference
from tests.engines.vllm.tiny import TINY, forking, needs_vllm, save_for_vllm
from tests.quantized_folders import save_compressed

pytestmark = [needs_vllm, pytest.mark.asyncio]

FOUR_BITS = Quantization(method="torchao", bits=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_for_vllm(tmp_path_factory.mktemp("model"), positions=512)


@asynccontextmanager
async def started(**settings: Any) -> AsyncIterator[VllmEngine]:
    engine = forking(VllmConfig(**TINY | {"max_loras": 1} | settings), max_num_queued_reqs=8)
    await engine.start()
    yield engine
    await engine.stop()


def loaded(model: Path, quantization: Quantization | None) -> Any:
    return load_model(
        str(model), config=load_config(str(model)), dtype=torch.float32, device_map="cpu", quantization=quantization
    )


def asked(adapter: str | None) -> GenerationRequest:
    return request("a prompt", max_new_tokens=8, ignore_eos=True, logprobs=3, adapter=adapter)


async def test_base_and_adapter_answer_as_in_transformers_and_peft_on_the_model_that_torchao_quantised(
    model: Path, tmp_path: Path
) -> None:
    base = loaded(model, FOUR_BITS)
    async with started(model=str(model), torchao_bits=4) as engine:
        await engine.load_adapter("a@1", save_adapter(model, tmp_path))
        for name in (None, "a@1"):
            made = await answer(engine, asked(name))
            truth = base if name is None else PeftModel.from_pretrained(base, tmp_path).eval()
            Reference(truth).check_greedy(asked(name), Output(made.token_ids, made.logprobs))


async def test_a_checkpoint_that_is_quantised_already_answers_nearly_as_the_weights_that_it_stands_for(
    tmp_path: Path,
) -> None:
    """Its kernels compute in bfloat16: of a larger adapter, rounding would be seen more than what it says."""
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = save_for_vllm(tmp_path / "model", positions=512, **wide)
    meant = loaded(model, None)
    meant.load_state_dict(save_compressed(model, tmp_path / "packed", bits=4, group=32))
    save_adapter(model, tmp_path / "adapter", lora_alpha=1)
    told: dict[str | None, Any] = {}
    async with started(model=str(tmp_path / "packed"), dtype=None) as engine:
        await engine.load_adapter("a@1", tmp_path / "adapter")
        for name in (None, "a@1"):
            told[name] = (await answer(engine, asked(name))).logprobs[0].top
    truth: dict[str | None, torch.Tensor] = {None: next_logprobs(meant)}
    truth["a@1"] = next_logprobs(PeftModel.from_pretrained(meant, tmp_path / "adapter").eval())
    for name, other in ((None, "a@1"), ("a@1", None)):
        tokens, values = zip(*told[name], strict=True)
        assert tokens[0] == truth[name].argmax()
        right, wrong = ((torch.tensor(values) - truth[which][[*tokens]]).abs().max() for which in (name, other))
        assert right < 0.6 and right < wrong


def next_logprobs(model: Any) -> torch.Tensor:
    logprobs: torch.Tensor = Reference(model).logits(asked(None).prompt_ids)[-1].log_softmax(-1)
    return logprobs
