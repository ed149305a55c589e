"""vLLM's answers are those of the same checkpoint in plain transformers, with PEFT's adapters merged into its
weights."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from engines.adapters.spec import CONFIG
from engines.errors import ContextLengthExceeded, InvalidRequest
from engines.pt.config import PtConfig
from engines.pt.runner import ModelRunner
from engines.types import FinishReason, GenerationRequest, Structured, StructuredKind
from engines.vllm.client import VllmEngine
from engines.vllm.config import VllmConfig
from tests.adapter_folders import lora_tensors, write_adapter
from tests.contract.engines import answer, collect, request
from tests.engines.pt.adapters import load
from tests.engines.pt.driving import core_of, run
from tests.engines.pt.tiny import byte_level_tokenizer
from tests.engines.vllm.tiny import TINY, forking, needs_vllm, save_for_vllm
from tests.training.jobs import trained
from tests.training.tuners.kinds import KINDS, Kind
from tests.until import async_until

pytestmark = [needs_vllm, pytest.mark.asyncio(loop_scope="module")]

POSITIONS = 8192
SEATS = 4
CLOSE = 0.02
"""Between log-probabilities of two programs in float32."""
PROMPT = "a prompt that is longer than one block of the cache, which has 32 tokens"
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_for_vllm(tmp_path_factory.mktemp("model"), positions=POSITIONS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[VllmEngine]:
    engine = forking(
        VllmConfig(**TINY | {"max_num_seqs": SEATS}, model=str(model), max_loras=2), max_num_queued_reqs=64
    )
    await engine.start()
    yield engine
    await engine.stop()


def reference(model: Path, adapter: Path | None = None) -> torch.nn.Module:
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return base if adapter is None else PeftModel.from_pretrained(base, adapter).merge_and_unload()


def continued(model: torch.nn.Module, prompt_ids: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy tokens with their log-probabilities."""
    ids, logprobs = list(prompt_ids), []
    for _ in range(count):
        with torch.no_grad():
            last = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(last.argmax()))
        logprobs.append(float(last.max()))
    return ids[len(prompt_ids) :], logprobs


async def assert_same(engine: VllmEngine, model: torch.nn.Module, adapter: str | None) -> list[int]:
    asked = request(PROMPT, max_new_tokens=24, ignore_eos=True, logprobs=3, adapter=adapter)
    made = await answer(engine, asked)
    tokens, logprobs = continued(model, asked.prompt_ids, 24)
    assert made.token_ids == tokens
    assert [one.logprob for one in made.logprobs] == pytest.approx(logprobs, abs=CLOSE)
    return tokens


async def test_the_base_model(engine: VllmEngine, model: Path) -> None:
    await assert_same(engine, reference(model), None)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 40.0}},
        {"lora_alpha": 3, "rank_pattern": {r"layers\.1\.mlp\.down_proj": 5}, "use_rslora": True},
    ],
    ids=["plain", "rslora", "alpha_pattern", "rank_pattern"],
)
async def test_adapters_whatever_their_layers_ranks_and_scales_are(
    engine: VllmEngine, model: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    support = engine.capabilities().adapters
    ranks = {Q: 2, DOWN: 5 if "rank_pattern" in config else 2}
    tensors: dict[str, Any] = {}
    for module, rank in ranks.items():
        tensors |= lora_tensors([module], rank=rank, support=support, seed=rank)
    folder = write_adapter(
        tmp_path / "adapter", rank=2, tensors=tensors, target_modules=["q_proj", "down_proj"],
        task_type="CAUSAL_LM", layers_to_transform=None, **config,
    )  # fmt: skip
    merged = reference(model, folder)
    await engine.load_adapter("a@1", folder)
    try:
        adapted = await assert_same(engine, merged, "a@1")
        assert adapted != await assert_same(engine, reference(model), None)
    finally:
        await engine.unload_adapter("a@1")


async def test_every_layer_that_is_said_to_be_adapted_is(engine: VllmEngine, model: Path, tmp_path: Path) -> None:
    support = engine.capabilities().adapters
    assert len(support.linears) == 2 * 7 and not support.embeddings and not support.replaceable
    suffixes = sorted({path.rpartition(".")[2] for path in support.linears})
    folder = write_adapter(
        tmp_path / "all", tensors=lora_tensors(support.linears, support=support, seed=3), target_modules=suffixes,
        lora_alpha=1, task_type="CAUSAL_LM",
    )  # fmt: skip
    await engine.load_adapter("all@1", folder)
    try:
        await assert_same(engine, reference(model, folder), "all@1")
    finally:
        await engine.unload_adapter("all@1")


async def test_an_adapter_that_says_little_of_itself_is_served(engine: VllmEngine, tmp_path: Path) -> None:
    """vLLM itself refuses a configuration without target_modules."""
    tensors = lora_tensors(support=engine.capabilities().adapters)
    folder = write_adapter(tmp_path / "little", tensors=tensors)
    assert "target_modules" not in json.loads((folder / CONFIG).read_text())
    await engine.load_adapter("little@1", folder)
    assert (await answer(engine, request(adapter="little@1"))).token_ids
    await engine.unload_adapter("little@1")


@pytest.fixture(scope="module")
def ours(model: Path) -> ModelRunner:
    return ModelRunner(PtConfig(model=str(model), dtype="float32", max_loras=1))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.served == "adapter"], ids=lambda kind: kind.name)
async def test_what_a_training_writes_answers_as_in_our_engine(
    engine: VllmEngine, ours: ModelRunner, model: Path, tmp_path: Path, kind: Kind
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f'{{"text": "the red and the blue {i % 3}"}}\n' for i in range(8)))
    how = {"learning_rate": 1e-2, "max_steps": 4, "split_dataset_ratio": 0, "report_to": ["none"]}
    given = {"model": str(model), "dataset": str(texts), "torch_dtype": "float32"} | how
    given |= {**kind.settings, **kind.choice}
    learned = trained(tmp_path / "job", "pt", **given).path / "checkpoint-4"
    asked = request(PROMPT, max_new_tokens=16, ignore_eos=True, logprobs=3, adapter="learned")
    core = core_of(ours)
    load(core, learned=learned)
    expected = run(core, [asked])["r"].outputs[0]

    await engine.load_adapter("learned@1", learned)
    try:
        made = await answer(engine, replace(asked, adapter="learned@1"))
    finally:
        await engine.unload_adapter("learned@1")
    assert made.token_ids == expected.token_ids
    logprobs = [one.logprob for one in expected.logprobs]
    assert [one.logprob for one in made.logprobs] == pytest.approx(logprobs, abs=CLOSE)
    base = await answer(engine, replace(asked, adapter=None))
    assert [one.logprob for one in base.logprobs] != pytest.approx(logprobs, abs=CLOSE)


async def test_prompt_logprobs_are_the_models_also_of_a_prompt_that_the_cache_has(
    engine: VllmEngine, model: Path
) -> None:
    asked = request(PROMPT, prompt_logprobs=1, n=2)
    await answer(engine, request(PROMPT))
    first = (await collect(engine, asked))[0]
    with torch.no_grad():
        logits = reference(model)(input_ids=torch.tensor([asked.prompt_ids])).logits[0].log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(logits, asked.prompt_ids[1:], strict=False)]
    assert [one.logprob for one in first.prompt_logprobs[1:]] == pytest.approx(expected, abs=CLOSE)


async def test_logprobs_are_the_models_own_whatever_shapes_the_choice(engine: VllmEngine) -> None:
    plain = await answer(engine, request(ignore_eos=True, logprobs=5))
    token = plain.token_ids[0]
    shaped = await answer(
        engine,
        request(
            ignore_eos=True, logprobs=5, temperature=0.5, seed=1, top_k=1, frequency_penalty=2.0,
            logit_bias={token: 100.0},
        ),
    )  # fmt: skip
    assert shaped.token_ids[0] == token
    assert shaped.logprobs[0].logprob == pytest.approx(plain.logprobs[0].logprob, abs=1e-4)
    assert [one for one, _ in shaped.logprobs[0].top] == [one for one, _ in plain.logprobs[0].top]


# ---- what shapes the choice


async def test_penalties_and_filters_have_their_effect(engine: VllmEngine) -> None:
    # The likeliest token is favoured so much that it comes again and again, unless something is against it.
    favourite: dict[str, Any] = {"logit_bias": {65: 20.0}, "ignore_eos": True, "max_new_tokens": 6}
    assert (await answer(engine, request(**favourite))).token_ids == [65] * 6
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 100.0}):
        bias = {65: 20.0, 66: 19.5} if "repetition_penalty" not in penalty else {65: 20.0}
        assert {*(await answer(engine, request(**favourite | penalty | {"logit_bias": bias}))).token_ids} != {65}
    greedy = (await answer(engine, request(ignore_eos=True))).token_ids
    for only_one in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert (await answer(engine, request(ignore_eos=True, temperature=2.0, seed=5, **only_one))).token_ids == greedy


async def test_outputs_of_one_request_draw_from_streams_of_their_own(engine: VllmEngine) -> None:
    asked = request(n=3, temperature=2.0, seed=11, ignore_eos=True)
    outputs = await collect(engine, asked)
    texts = [[t for o in outputs if o.index == i for t in o.token_ids] for i in range(3)]
    assert len({*map(tuple, texts)}) == 3
    alone = await answer(engine, request(temperature=2.0, seed=12, ignore_eos=True))
    assert alone.token_ids == texts[1]


async def test_nothing_is_made_where_nothing_is_asked_for(engine: VllmEngine) -> None:
    [only] = await collect(engine, request(max_new_tokens=0, prompt_logprobs=0, logprobs=1))
    assert (only.token_ids, only.logprobs, only.finish_reason) == ((), (), FinishReason.LENGTH)
    assert len(only.prompt_logprobs) == len("hello world")


async def test_an_output_ends_where_the_context_does(engine: VllmEngine) -> None:
    made = await answer(engine, request("x" * (POSITIONS - 5), max_new_tokens=100, ignore_eos=True))
    assert (len(made.token_ids), made.finish_reason) == (5, FinishReason.LENGTH)
    with pytest.raises(ContextLengthExceeded):
        await answer(engine, request("x" * POSITIONS))


@pytest.mark.parametrize(
    ("kind", "value", "matches"),
    [
        ("json_object", "", lambda text: isinstance(json.loads(text), dict)),
        ("grammar", 'start: "yes" | "no" "!"', lambda text: text in ("yes", "no!")),
        ("grammar", 'root ::= "<eos>" | "::="', lambda text: text in ("<eos>", "::=")),
        ("choice", json.dumps(["<bos> and <eos>"]), lambda text: text == "<bos> and <eos>"),
    ],
    ids=["json_object", "lark", "gbnf", "special"],
)
async def test_structured_output_of_every_kind_even_with_texts_of_special_tokens(
    engine: VllmEngine, kind: StructuredKind, value: str, matches: Callable[[str], bool]
) -> None:
    tokenizer = byte_level_tokenizer()
    schema = Structured(kind=kind, value=value)
    # A model of random weights would fill strings for ever: closing brackets and quotes are what it likes best here.
    likes = dict.fromkeys(tokenizer.convert_tokens_to_ids([*'}"']), 30.0)
    for ignore_eos in (False, True):
        made = await answer(
            engine, request(structured=schema, max_new_tokens=80, logit_bias=likes, ignore_eos=ignore_eos)
        )
        assert made.finish_reason is FinishReason.STOP
        assert matches(tokenizer.decode(made.token_ids[:-1]))


# ---- what is wrong with one request is no other's affair


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": 2.5},
        {"top_p": 0.0},
        {"logprobs": 50},
        {"logit_bias": {300: 1.0}},
        {"allowed_token_ids": (300,)},
        {"allowed_token_ids": ()},
        {"bad_words_ids": ((65, 300),)},
        {"stop_token_ids": (-1,)},
        {"allowed_token_ids": (1, 65), "bad_words_ids": ((65,),), "min_new_tokens": 1},
        {"num_beams": 2},
        {"logit_bias": dict.fromkeys(range(1025), 1.0)},
        {"stop_token_ids": tuple(range(128))},
        {"bad_words_ids": ((65,),) * 129},
        {"bad_words_ids": ((65,) * 1025,)},
        {"structured": Structured(kind="grammar", value="start: !!")},
        {"structured": Structured(kind="regex", value="(")},
    ],
    ids=lambda wrong: "+".join(wrong),
)
async def test_a_wrong_request_fails_alone(engine: VllmEngine, wrong: dict[str, Any]) -> None:
    beside = answer(engine, request("beside", "beside", max_new_tokens=40, ignore_eos=True))
    with pytest.raises(InvalidRequest):
        await answer(engine, request(**wrong))
    assert len((await beside).token_ids) == 40


def endless(request_id: str) -> GenerationRequest:
    """So long that it has not ended when a test has seen what it wants to."""
    return request("x", request_id, max_new_tokens=POSITIONS, ignore_eos=True)


async def test_the_urgent_overtakes(engine: VllmEngine) -> None:
    """With all seats taken, the one of lower priority number is the next to sit down, whoever came first."""
    order = []

    async def queued(name: str, priority: int) -> None:
        await collect(engine, replace(request("y", name, ignore_eos=True), priority=priority))
        order.append(name)

    busy = [asyncio.create_task(collect(engine, endless(f"busy{i}"))) for i in range(SEATS)]
    await async_until(lambda: engine.stats().running == SEATS)
    late = []
    for name, priority in (("patient", 5), ("urgent", 1)):
        late.append(asyncio.create_task(queued(name, priority)))
        await async_until(lambda: engine.stats().waiting == len(late))
    busy.pop().cancel()
    await asyncio.gather(*late)
    assert order == ["urgent", "patient"]
    for task in busy:
        task.cancel()


async def test_a_prefix_is_found_by_requests_of_the_same_salt_only(engine: VllmEngine) -> None:
    text = "another text that is long enough to fill more than one block of the cache for sure"
    found = []
    for salt in ("a", "b", "a", None):
        outputs = await collect(engine, replace(request(text), cache_salt=salt))
        found.append(outputs[0].cached_tokens)
    assert found == [0, 0, 64, 0]


async def test_statistics(engine: VllmEngine) -> None:
    before = engine.stats()
    text = "a text that is long enough to fill more than one block of the cache for sure"
    [first] = [o for o in await collect(engine, request(text)) if o.cached_tokens is not None]
    [again] = [o for o in await collect(engine, request(text)) if o.cached_tokens is not None]
    assert (first.cached_tokens, again.cached_tokens) == (0, 64)
    running = asyncio.create_task(collect(engine, endless("endless")))
    await async_until(lambda: engine.stats().running and engine.stats().kv_cache_usage)
    assert engine.stats().kv_cache_usage < 1
    running.cancel()
    await async_until(lambda: not engine.stats().running and not engine.stats().kv_cache_usage)
    after = engine.stats()
    assert after.prefix_cache_hits - before.prefix_cache_hits >= 64
    assert after.prefix_cache_queries - before.prefix_cache_queries >= 2 * len(text)
