"""A checkpoint that classifies, in vLLM: its logits are those of plain transformers."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.errors import ContextLengthExceeded, EngineFailure, UnsupportedParameter
from engines.types import EngineState, Head, PoolingRequest
from engines.vllm.client import VllmEngine
from engines.vllm.config import VllmConfig
from tests.contract.engines import answer, request
from tests.engines.pt.adapters import classify_with_peft, save_head_adapter
from tests.engines.pt.driving import prompt
from tests.engines.pt.tiny import EOS
from tests.engines.vllm.tiny import TINY, forking, needs_vllm, save_for_vllm
from tests.processes import family, whose_commands_have
from tests.until import async_until

pytestmark = [needs_vllm, pytest.mark.asyncio(loop_scope="module")]

POSITIONS = 2048
LENGTHS = (1, 4, 13, 40, 90, 200)
CLOSE = 1e-3
BROKEN = 0
"""A token of which the model makes no finite numbers."""
STEP = 32
"""Tokens at most that a step takes."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its padding is its end-of-sequence token."""
    folder = save_for_vllm(
        tmp_path_factory.mktemp("model"), positions=POSITIONS, kind=AutoModelForSequenceClassification,
        pad_token_id=EOS, id2label={0: "sport", 1: "money", 2: "weather"},
        problem_type="single_label_classification",
    )  # fmt: skip
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][BROKEN] = torch.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[VllmEngine]:
    config = VllmConfig(
        **TINY, model=str(model), max_loras=3, max_num_batched_tokens=STEP
    )  # long prompts come in pieces
    engine = forking(config, max_num_queued_reqs=64)
    await engine.start()
    yield engine
    await engine.stop()


def classify(ids: list[int], request_id: str = "c", adapter: str | None = None) -> PoolingRequest:
    return PoolingRequest(request_id=request_id, prompt_ids=ids, task="classify", adapter=adapter)


def expected(model: Path, ids: list[int]) -> list[float]:
    plain = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: list[float] = plain(input_ids=torch.tensor([ids])).logits[0].tolist()
    return logits


async def test_what_the_head_says_of_itself(engine: VllmEngine) -> None:
    told = engine.capabilities()
    labels = ("sport", "money", "weather")
    assert told.head == Head(labels=labels, problem_type="single_label_classification", padding=EOS)
    assert told.adapters is not None and told.adapters.head_inputs == 64
    assert not told.embeddings


async def test_texts_of_any_length_are_classified_together_as_transformers_does_it_alone(
    engine: VllmEngine, model: Path
) -> None:
    prompts = [prompt(length) for length in LENGTHS]
    asked = [classify(ids, f"c{at}") for at, ids in enumerate(prompts)]
    for _ in range(2):  # the second time from the prefix cache
        found = await asyncio.gather(*map(engine.pool, asked))
        assert found == [pytest.approx(expected(model, ids), abs=CLOSE) for ids in prompts]
    assert engine.stats().prefix_cache_hits


async def test_a_text_that_ends_with_padding_is_classified_by_the_token_before(engine: VllmEngine, model: Path) -> None:
    head = engine.capabilities().head
    assert head is not None
    for ids in ([*prompt(9), EOS], [*prompt(9), EOS, EOS], [EOS, *prompt(9)], [EOS, EOS]):
        assert await engine.pool(classify(head.read(ids))) == pytest.approx(expected(model, ids), abs=CLOSE)


async def test_adapters_bring_heads_of_their_own_and_classify_beside_the_model(
    engine: VllmEngine, model: Path, tmp_path: Path
) -> None:
    """One with more labels, one with fewer, and one that learned beside the model's own head."""
    labels = {"more@1": 5, "one@1": 1, "none@1": 3}
    for seed, (name, count) in enumerate(labels.items()):
        folder = save_head_adapter(model, tmp_path / name, num_labels=count, seed=seed)
        if name == "none@1":
            without_head(folder)
        await engine.load_adapter(name, folder)
    asked = [(name, prompt(length)) for length in LENGTHS[:5] for name in (*labels, None)]
    for _ in range(2):
        requests = [classify(ids, f"a{at}", name) for at, (name, ids) in enumerate(asked)]
        found = await asyncio.gather(*map(engine.pool, requests))
        for (name, ids), logits in zip(asked, found, strict=True):
            folder = None if name is None else tmp_path / name
            plain = classify_with_peft(model, folder, labels[name], ids) if folder else expected(model, ids)
            assert logits == pytest.approx(plain, abs=CLOSE), name
    for name in labels:
        await engine.unload_adapter(name)


def without_head(folder: Path) -> None:
    """What is left of an adapter that shares the model's head."""
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "score" not in name}, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_bytes())
    (folder / CONFIG).write_text(json.dumps(config | {"modules_to_save": None, "task_type": None}))


async def test_what_such_a_model_cannot_do_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(UnsupportedParameter, match="a head that classifies, and generates no text"):
        await answer(engine, request())
    with pytest.raises(UnsupportedParameter, match="classes or embeddings"):
        await engine.pool(PoolingRequest(request_id="e", prompt_ids=prompt(5)))
    assert len(await engine.pool(classify([65] * POSITIONS))) == 3
    with pytest.raises(ContextLengthExceeded):
        await engine.pool(classify([65] * (POSITIONS + 1)))


async def test_numbers_that_are_not_finite_fail_their_text_alone(engine: VllmEngine, model: Path) -> None:
    broken, whole = await asyncio.gather(
        engine.pool(classify([65, BROKEN], "broken")), engine.pool(classify(prompt(40), "whole")),
        return_exceptions=True,
    )  # fmt: skip
    assert isinstance(broken, EngineFailure) and "not finite" in broken.message
    assert whole == pytest.approx(expected(model, prompt(40)), abs=CLOSE)


def core_of(engine: VllmEngine) -> psutil.Process:
    assert engine._life is not None
    return next(whose_commands_have("EngineCore", family(engine._life.process.pid)))


async def test_a_text_that_nobody_waits_for_any_more_is_not_computed(engine: VllmEngine, model: Path) -> None:
    core = core_of(engine)
    core.suspend()  # until it has been told both
    asked = asyncio.create_task(engine.pool(classify(prompt(2000))))
    await async_until(lambda: engine.stats().waiting == 1)
    asked.cancel()
    await async_until(lambda: engine.stats().waiting == 0)
    steps = engine.stats().steps
    core.resume()
    assert await engine.pool(classify(prompt(40))) == pytest.approx(expected(model, prompt(40)), abs=CLOSE)
    assert engine.stats().steps - steps < 2000 / STEP


async def test_a_text_fails_with_the_process_that_dies_and_the_next_process_classifies_it(engine: VllmEngine) -> None:
    before = await engine.pool(classify(prompt(40)))
    core = core_of(engine)
    core.suspend()
    asked = asyncio.create_task(engine.pool(classify(prompt(40))))
    await async_until(lambda: engine.stats().waiting == 1)
    core.kill()
    with pytest.raises(EngineFailure):
        await asked
    await async_until(lambda: engine.health().state is EngineState.RESTARTING)
    await async_until(lambda: engine.health().state is EngineState.READY)
    assert await engine.pool(classify(prompt(40))) == pytest.approx(before, abs=CLOSE)
