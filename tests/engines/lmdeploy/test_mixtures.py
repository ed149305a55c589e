"""Mixtures of experts on LMDeploy: adapters of their attention come and go as any do, others are refused by name."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from transformers import AutoModelForCausalLM

from engines.adapters.folder import read_adapter
from engines.errors import InvalidAdapter, TuneserveError
from engines.lmdeploy.client import LmdeployEngine
from tests.engines.lmdeploy.engines import with_two_slots
from tests.engines.lmdeploy.test_parity import asked, check
from tests.engines.pt.adapters import save_adapter, with_peft
from tests.engines.pt.driving import Reference
from tests.engines.pt.tiny import CONFIGS, save

pytestmark = pytest.mark.asyncio(loop_scope="module")

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
RANKS = {"a": 4, "b": 7, "c": 2}


@pytest.fixture(scope="module", params=["mixtral", "qwen3-moe"])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(CONFIGS[request.param](), tmp_path_factory.mktemp(request.param), tokenizer=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mixed(mixture: Path) -> AsyncIterator[LmdeployEngine]:
    async with with_two_slots(mixture) as engine:
        yield engine


async def test_adapters_of_the_attention_take_turns_in_the_slots(
    mixed: LmdeployEngine, mixture: Path, tmp_path: Path
) -> None:
    folders = {
        name: save_adapter(mixture, tmp_path / name, seed=rank, r=rank, target_modules=ATTENTION)
        for name, rank in RANKS.items()
    }
    plain = AutoModelForCausalLM.from_pretrained(mixture, attn_implementation="eager").eval()
    reference: dict[str | None, Reference] = {None: Reference(plain)}
    reference |= {name: with_peft(mixture, folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        await mixed.load_adapter(name, folder)
    await check(mixed, reference, *(asked(length, name) for length in (1, 17, 48) for name in reference))

    await asyncio.gather(check(mixed, reference, asked(33), asked(16, "b")), mixed.unload_adapter("a"))
    await mixed.load_adapter("a", folders["c"])
    await check(mixed, reference | {"a": reference["c"]}, *(asked(length, "a") for length in (1, 17, 48)))
    for name in folders:
        await mixed.unload_adapter(name)


@pytest.mark.parametrize(
    "adapted",
    [
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
        {"target_modules": ["q_proj", "gate"]},
        {"target_modules": "all-linear"},
    ],
    ids=["experts", "router", "all"],
)
async def test_adapters_of_experts_and_routers_are_refused(
    mixed: LmdeployEngine, mixture: Path, tmp_path: Path, adapted: dict[str, Any]
) -> None:
    folder = save_adapter(mixture, tmp_path / "adapter", **adapted)
    with pytest.raises(InvalidAdapter, match=r"experts|mlp\.gate"):
        read_adapter(folder, mixed.capabilities().adapters)
    with pytest.raises(TuneserveError, match=r"experts|mlp\.gate"):
        await mixed.load_adapter("a", folder)
    assert mixed.stats().adapter_slots == ()
