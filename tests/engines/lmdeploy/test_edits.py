"""Penalties, bias, bans and structured output mean the same on LMDeploy as on the pt engine, also where it preempts."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engines.errors import InvalidRequest
from engines.lmdeploy.client import LmdeployEngine
from engines.pt.client import PtEngine
from engines.pt.config import PtConfig
from engines.types import GenerationRequest, Structured
from tests.contract.engines import Whole, answer, collect
from tests.engines.lmdeploy.engines import lmdeploy_on_cpu
from tests.engines.pt.driving import prompt, request
from tests.engines.pt.tiny import EOS

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 22]}, "b": {"type": "string", "maxLength": 5}}}
STRUCTURED = [
    Structured(kind="json_schema", value=json.dumps(SCHEMA | {"required": ["a", "b"], "additionalProperties": False})),
    Structured(kind="json_object", value=""),
    Structured(kind="regex", value="[a-c]{3}-[0-9]{2}"),
    Structured(kind="choice", value=json.dumps(["red", "blue"])),
    Structured(kind="grammar", value='root ::= "hi " ("bob" | "eve")'),
]
EDITS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"logit_bias": {50: 4.0, 60: -100.0}},
    {"allowed_token_ids": tuple(range(40, 90))},
    {"bad_words_ids": ((44,), (19, 184), (12, 13, 14))},
    {"min_new_tokens": 9, "logit_bias": {EOS: 9.0}, "ignore_eos": False},
    {"stop_token_ids": tuple(range(0, 300, 7)), "min_new_tokens": 4},
    {"repetition_penalty": 0.8, "frequency_penalty": 0.3, "allowed_token_ids": tuple(range(200))},
    *({"structured": structured, "max_new_tokens": 40, "ignore_eos": False} for structured in STRUCTURED),
]


def requests() -> list[GenerationRequest]:
    return [
        request(prompt(10 + 3 * i, seed=i), f"r{i}", **{"max_new_tokens": 60, "ignore_eos": True} | edits)
        for i, edits in enumerate(EDITS)
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def truth(model: Path) -> list[Whole]:
    """What the pt engine answers to each."""
    pt = PtEngine(PtConfig(model=str(model), dtype="float32", device_map="cpu", threads=1), max_num_queued_reqs=64)
    await pt.start()
    answers = await asyncio.gather(*(answer(pt, one) for one in requests()))
    await pt.stop()
    return answers


async def check(engine: LmdeployEngine, truth: list[Whole]) -> None:
    answers = await asyncio.gather(*(answer(engine, one) for one in requests()))
    for edits, mine, other in zip(EDITS, answers, truth, strict=True):
        assert mine == other, edits


async def test_all_at_once(engine: LmdeployEngine, truth: list[Whole]) -> None:
    await check(engine, truth)


async def test_where_pages_run_out(model: Path, truth: list[Whole]) -> None:
    """What has been computed is dropped then, and computed again."""
    engine = lmdeploy_on_cpu(str(model), max_loras=1, cache_max_entry_count=0.0009)
    await engine.start()
    await check(engine, truth)
    assert engine.stats().preemptions > 0
    async with asyncio.timeout(30):
        while (engine.stats().running, engine.stats().waiting, engine.stats().kv_cache_usage) != (0, 0, 0):
            await asyncio.sleep(0.01)
    await engine.stop()


async def test_a_dead_end_is_the_requests_own_fault_and_nobody_elses(
    engine: LmdeployEngine, truth: list[Whole]
) -> None:
    dead_end = request(
        prompt(20), "dead", max_new_tokens=20, allowed_token_ids=(65, 66), bad_words_ids=((65, 65), (65, 66), (66,))
    )
    beside = asyncio.create_task(check(engine, truth))
    with pytest.raises(InvalidRequest, match="no token may come next"):
        await collect(engine, dead_end)
    with pytest.raises(InvalidRequest, match="logit_bias"):
        await collect(engine, request(prompt(20), "unknown", logit_bias={300: 1.0}))
    await beside


async def test_a_seed_decides_also_where_the_batch_is_another(engine: LmdeployEngine) -> None:
    asked = request(prompt(20), "seeded", temperature=1.0, top_p=0.9, seed=5, n=3, ignore_eos=True, frequency_penalty=1)
    alone = [
        (await answer(engine, replace(asked, n=1, sampling=replace(asked.sampling, seed=5 + i)))) for i in range(3)
    ]
    others = asyncio.gather(*(answer(engine, one) for one in requests()))
    outputs, _ = await asyncio.gather(collect(engine, asked), others)
    for i, one in enumerate(alone):
        assert [token for output in outputs if output.index == i for token in output.token_ids] == one.token_ids
    assert len({tuple(one.token_ids) for one in alone}) == 3
