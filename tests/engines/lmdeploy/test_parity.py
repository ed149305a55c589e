"""LMDeploy says what plain transformers and PEFT say, in float32, whatever else is in the batch."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from engines.errors import InvalidRequest
from engines.lmdeploy.client import LmdeployEngine
from engines.types import GenerationRequest, TokenOutput
from tests.contract.engines import answer, collect, whole
from tests.engines.pt.adapters import save_adapter, with_peft
from tests.engines.pt.driving import Output, Reference, prompt, request
from tests.training.jobs import BRIEF, WORDS, trained
from tests.training.tuners.kinds import KINDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

LENGTHS = (1, 3, 15, 16, 17, 31, 33, 48, 64, 90)
"""Prompt lengths on, before and behind the borders of blocks and of steps."""
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rank-stabilised": {"r": 8, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {"r": 2, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"layers.1.mlp.up_proj": 30}},
}


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(model, root / name, seed=i, **ADAPTERS[name]) for i, name in enumerate(ADAPTERS)}


def asked(length: int, adapter: str | None = None, **sampling: Any) -> GenerationRequest:
    sampling = {"max_new_tokens": 6 + length % 5, "ignore_eos": True, "logprobs": 5} | sampling
    one = request(prompt(length, seed=length), f"{adapter}-{length}", **sampling)
    return replace(one, adapter=adapter)


async def check(
    engine: LmdeployEngine, reference: dict[str | None, Reference], *requests: GenerationRequest
) -> list[TokenOutput]:
    """Compute these together; return the first output of each."""
    answers = await asyncio.gather(*(collect(engine, one) for one in requests))
    for one, outputs in zip(requests, answers, strict=True):
        end = whole(outputs)
        assert len(end.token_ids) == one.sampling.max_new_tokens
        reference[one.adapter].check_greedy(one, Output(end.token_ids, end.logprobs))
        if one.sampling.prompt_logprobs is not None:
            reference[one.adapter].check_prompt(one.prompt_ids, outputs[0].prompt_logprobs)
    return [outputs[0] for outputs in answers]


@pytest.fixture(scope="module")
def reference(model: Path, adapters: dict[str, Path]) -> dict[str | None, Reference]:
    plain = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    return {None: Reference(plain)} | {name: with_peft(model, folder) for name, folder in adapters.items()}


async def test_the_base_model(engine: LmdeployEngine, reference: dict[str | None, Reference]) -> None:
    await check(engine, reference, *(asked(length) for length in LENGTHS))


async def test_prompt_logprobs(engine: LmdeployEngine, reference: dict[str | None, Reference]) -> None:
    await check(engine, reference, *(asked(length, prompt_logprobs=3) for length in LENGTHS))


async def test_adapters_of_all_kinds_that_take_turns(
    engine: LmdeployEngine, reference: dict[str | None, Reference], adapters: dict[str, Path]
) -> None:
    for name, folder in adapters.items():
        await engine.load_adapter(name, folder)
    await check(engine, reference, *(asked(length, name) for length in LENGTHS for name in (None, *adapters)))
    await check(
        engine, reference, *(asked(length, name, prompt_logprobs=2) for length in (40, 70) for name in adapters)
    )
    for name in adapters:
        await engine.unload_adapter(name)


async def test_adapters_that_trainings_wrote(
    engine: LmdeployEngine, reference: dict[str | None, Reference], model: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{word} and the {word}"}) + "\n" for word in WORDS))
    ways = {
        kind.name: {**BRIEF, "dataset": str(rows), "max_steps": 4, **kind.settings, **kind.choice}
        for kind in KINDS
        if kind.served == "adapter"
    }
    learned = {
        name: trained(tmp_path / str(number), "pt", model=str(model), **params).path / "checkpoint-4"
        for number, (name, params) in enumerate(ways.items())
    }
    for name, folder in learned.items():
        await engine.load_adapter(name, folder)
    known = reference | {name: with_peft(model, folder) for name, folder in learned.items()}
    await check(engine, known, *(asked(length, name) for length in (5, 40) for name in (None, *learned)))
    for name in learned:
        await engine.unload_adapter(name)


async def test_a_prompt_that_is_too_long_is_refused_and_an_output_ends_where_the_context_does(
    engine: LmdeployEngine,
) -> None:
    limit = engine.capabilities().max_model_len
    with pytest.raises(InvalidRequest, match=f"maximum context length is {limit} tokens"):
        await answer(engine, request(prompt(limit)))
    end = await answer(engine, request(prompt(limit - 3), max_new_tokens=100, ignore_eos=True))
    assert len(end.token_ids) == 3


async def test_prefix_hits(engine: LmdeployEngine, reference: dict[str | None, Reference]) -> None:
    await check(engine, reference, asked(90))
    [again] = await check(engine, reference, asked(90))
    assert again.cached_tokens >= 64


async def test_prefixes_of_another_salt_are_not_found(
    engine: LmdeployEngine, reference: dict[str | None, Reference], adapters: dict[str, Path]
) -> None:
    await engine.load_adapter("a@1", adapters["plain"])
    found = []
    for salt in ("a", "b", "a"):
        both = [replace(asked(90, name), cache_salt=salt) for name in (None, "a@1")]
        firsts = await check(engine, {None: reference[None], "a@1": reference["plain"]}, *both)
        found.append([(first.cached_tokens or 0) >= 64 for first in firsts])
    assert found == [[False] * 2, [False] * 2, [True] * 2]
    await engine.unload_adapter("a@1")


async def test_an_adapter_that_is_replaced_leaves_nothing_in_the_prefix_cache(
    engine: LmdeployEngine, reference: dict[str | None, Reference], adapters: dict[str, Path]
) -> None:
    long = [replace(asked(90), request_id=name, adapter="a@1") for name in ("first", "second", "third")]
    await engine.load_adapter("a@1", adapters["plain"])
    await check(engine, {"a@1": reference["plain"]}, long[0])
    [cached] = await check(engine, {"a@1": reference["plain"]}, long[1])
    assert cached.cached_tokens >= 64
    await engine.unload_adapter("a@1")
    await engine.load_adapter("a@1", adapters["patterns"])
    [fresh] = await check(engine, {"a@1": reference["patterns"]}, long[2])
    assert fresh.cached_tokens == 0
    await engine.unload_adapter("a@1")


async def test_slots_change_hands_while_their_adapters_are_unloaded(
    engine: LmdeployEngine, reference: dict[str | None, Reference], adapters: dict[str, Path]
) -> None:
    folders = adapters | {"again": adapters["plain"]}
    references = reference | {"again": reference["plain"]}
    for delay in range(8):
        for name, folder in folders.items():
            await engine.load_adapter(name, folder)
            await check(engine, references, asked(20, name))
        resident = engine.stats().adapter_slots
        waiting = [name for name in folders if name not in resident]
        checking = asyncio.create_task(check(engine, references, *(asked(21, name) for name in waiting)))
        await asyncio.sleep(delay / 2000)
        await asyncio.gather(checking, *(engine.unload_adapter(name) for name in resident))
        for name in waiting:
            await engine.unload_adapter(name)
