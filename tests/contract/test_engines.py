"""What `engines.engine.Engine` promises, tried on every engine."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engines.echo import BYTES, EchoEngine, EchoFaults
from engines.engine import Engine
from engines.errors import EngineFailure, EngineUnavailable, InvalidAdapter, InvalidRequest, UnsupportedParameter
from engines.pt.client import PtEngine
from engines.pt.config import PtConfig
from engines.text.grammar_check import validate
from engines.types import EngineState, FinishReason, GenerationRequest, PoolingRequest, Structured, StructuredKind
from engines.vllm.config import VllmConfig
from tests.adapter_folders import lora_tensors, write_adapter
from tests.contract.engines import Contestant, answer, collect, request, whole
from tests.engines.lmdeploy.engines import lmdeploy_on_cpu
from tests.engines.pt.tiny import CONFIGS, byte_level_tokenizer, save
from tests.engines.vllm.tiny import TINY, forking, needs_vllm, save_for_vllm
from tests.hosted_echo import echo_in_its_process
from tests.until import async_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def echo(tmp_path_factory: pytest.TempPathFactory) -> Contestant:
    return Contestant(
        make=lambda: EchoEngine(faults=EchoFaults(token_delay=0.001)),
        decode=lambda ids: bytes(token for token in ids if token < BYTES).decode(),
        samples=False,
    )


def hosted_echo(tmp_path_factory: pytest.TempPathFactory) -> Contestant:
    return replace(echo(tmp_path_factory), make=lambda: echo_in_its_process(token_delay=0.001))


def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = CONFIGS["llama"]()
    llama.max_position_embeddings = 4096  # as many as echo has
    return save(llama, tmp_path_factory.mktemp("llama"), tokenizer=True)


def decode(ids: Sequence[int]) -> str:
    """The text of the tiny llama's tokens."""
    return byte_level_tokenizer().decode(ids, skip_special_tokens=True)


def pt(tmp_path_factory: pytest.TempPathFactory) -> Contestant:
    folder = tiny_llama(tmp_path_factory)
    config = PtConfig(model=str(folder), dtype="float32", device_map="cpu", threads=1, block_size=8)
    return Contestant(make=lambda: PtEngine(config, max_num_queued_reqs=64), decode=decode)


def lmdeploy(tmp_path_factory: pytest.TempPathFactory) -> Contestant:
    folder = str(tiny_llama(tmp_path_factory))
    lmdeploy_on_cpu(folder)
    return Contestant(make=lambda: lmdeploy_on_cpu(folder), decode=decode, counts_steps=False)


def vllm(tmp_path_factory: pytest.TempPathFactory) -> Contestant:
    config = VllmConfig(
        **TINY, enable_sleep_mode=True, model=str(save_for_vllm(tmp_path_factory.mktemp("vllm"), positions=4096))
    )
    return Contestant(make=lambda: forking(config, max_num_queued_reqs=64), decode=decode)


@pytest.fixture(scope="module", params=[echo, hosted_echo, pt, lmdeploy, pytest.param(vllm, marks=needs_vllm)])
def contestant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Contestant:
    return request.param(tmp_path_factory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(contestant: Contestant) -> AsyncIterator[Engine]:
    engine = contestant.make()
    await engine.start()
    yield engine
    await engine.stop()


# ---- life


async def test_an_engine_that_was_not_started_is_not_ready_and_refuses(contestant: Contestant) -> None:
    engine = contestant.make()
    assert engine.health().state is not EngineState.READY
    with pytest.raises(EngineUnavailable):
        engine.capabilities()
    with pytest.raises(EngineUnavailable):
        await answer(engine, request())


async def test_an_engine_that_was_started_is_ready(engine: Engine) -> None:
    assert engine.health().state is EngineState.READY


# ---- outputs


@pytest.mark.parametrize("n", [1, 4])
async def test_every_output_has_exactly_one_finish_and_nothing_after_it(engine: Engine, n: int) -> None:
    outputs = await collect(engine, request(n=n, ignore_eos=True))
    assert {output.index for output in outputs} == {*range(n)}
    for index in range(n):
        mine = [output for output in outputs if output.index == index]
        assert [output.finish_reason for output in mine] == [None] * (len(mine) - 1) + [FinishReason.LENGTH]
        assert len(whole(outputs, index).token_ids) == 8


async def test_the_facts_about_the_prompt_come_with_the_first_output_alone(engine: Engine) -> None:
    first, *rest = await collect(engine, request(n=3, ignore_eos=True, prompt_logprobs=0))
    assert first.cached_tokens is not None and first.cached_tokens >= 0
    assert first.queue_seconds is not None and first.queue_seconds >= 0
    assert first.prompt_logprobs is not None
    for output in rest:
        assert (output.cached_tokens, output.queue_seconds, output.prompt_logprobs) == (None, None, None)


async def test_steps_preemptions_and_the_cache_are_told_where_the_engine_can(
    contestant: Contestant, engine: Engine
) -> None:
    before = engine.stats()
    *parts, last = await collect(engine, request("counted", max_new_tokens=4, ignore_eos=True))
    assert [part.preemptions for part in parts] == [None] * len(parts)
    if not contestant.counts_steps:
        assert (last.preemptions, engine.stats().step_sizes, engine.capabilities().cache_config) == (None, {}, {})
        return
    assert last.preemptions == 0
    assert int(engine.capabilities().cache_config["block_size"]) > 0
    await async_until(lambda: sum(engine.stats().step_sizes.values()) >= sum(before.step_sizes.values()) + 4)
    assert engine.stats().step_tokens >= before.step_tokens + 4


async def test_one_token_is_the_least(engine: Engine) -> None:
    only = await answer(engine, request(max_new_tokens=1, ignore_eos=True))
    assert (len(only.token_ids), only.finish_reason) == (1, FinishReason.LENGTH)


async def test_a_greedy_answer_repeats_alone_and_beside_others(engine: Engine) -> None:
    alone = await answer(engine, request(ignore_eos=True))
    others = [request(f"another text {i}", f"r{i}", ignore_eos=True, max_new_tokens=5 + i) for i in range(6)]
    again, *rest = await asyncio.gather(*(answer(engine, one) for one in (request(ignore_eos=True), *others)))
    assert again.token_ids == alone.token_ids
    assert [len(one.token_ids) for one in rest] == [5 + i for i in range(6)]


async def test_a_seed_repeats_an_answer(engine: Engine) -> None:
    asked = request(temperature=1.0, seed=7, ignore_eos=True)
    assert (await answer(engine, asked)).token_ids == (await answer(engine, asked)).token_ids


# ---- how an output ends


async def test_a_stop_token_is_the_last_and_is_named(engine: Engine) -> None:
    tokens = (await answer(engine, request(ignore_eos=True))).token_ids
    end = await answer(engine, request(ignore_eos=True, stop_token_ids=(tokens[3],)))
    assert (end.finish_reason, end.stop_token_id) == (FinishReason.STOP, tokens[3])
    assert end.token_ids == tokens[: tokens.index(tokens[3]) + 1]


async def test_the_end_of_sequence_ends_an_output_unless_ignored(engine: Engine) -> None:
    eos = engine.capabilities().eos_token_ids[0]
    forced = request(allowed_token_ids=(eos,))
    end = await answer(engine, forced)
    assert (end.token_ids, end.finish_reason, end.stop_token_id) == ([eos], FinishReason.STOP, eos)
    sampling = replace(forced.sampling, ignore_eos=True)
    goes_on = await answer(engine, replace(forced, sampling=sampling))
    assert (goes_on.token_ids, goes_on.finish_reason) == ([eos] * 8, FinishReason.LENGTH)
    assert goes_on.stop_token_id is None


async def test_no_stop_token_comes_before_the_shortest_length(engine: Engine) -> None:
    tokens = (await answer(engine, request(ignore_eos=True))).token_ids
    end = await answer(engine, request(stop_token_ids=(tokens[1],), min_new_tokens=5))
    assert len(end.token_ids) >= 5
    assert tokens[1] not in end.token_ids[:5]


async def test_finish_ends_one_output_and_the_others_go_on(engine: Engine) -> None:
    lengths = dict.fromkeys(range(3), 0)
    async with aclosing(engine.generate(request(n=3, max_new_tokens=30, ignore_eos=True))) as outputs:
        async for output in outputs:
            lengths[output.index] += len(output.token_ids)
            if output.index == 1 and lengths[1] == 2:
                engine.finish("r", 1)
                engine.finish("r", 1)  # nothing happens where it has finished
    assert lengths == {0: 30, 1: 2, 2: 30}


async def test_the_iterator_ends_with_the_last_output_that_is_finished(engine: Engine) -> None:
    seen = 0
    async with aclosing(engine.generate(request(n=2, max_new_tokens=100, ignore_eos=True))) as outputs:
        async for _ in outputs:
            seen += 1
            await asyncio.sleep(0.05)  # more outputs come meanwhile: they are not for a reader who had enough
            engine.finish("r", 0)
            engine.finish("r", 1)
    assert seen == 1
    engine.finish("r", 0)
    engine.finish("never heard of", 0)
    assert (await answer(engine, request())).token_ids


async def test_closing_the_iterator_aborts(engine: Engine) -> None:
    async with aclosing(engine.generate(request(max_new_tokens=4000, ignore_eos=True))) as outputs:
        await anext(outputs)
    async with asyncio.timeout(30):
        while engine.stats().running or engine.stats().waiting:
            await asyncio.sleep(0.01)
    assert engine.stats().kv_cache_usage == 0
    assert (await answer(engine, request())).token_ids


async def test_a_reader_who_is_cancelled_aborts(engine: Engine) -> None:
    reading = asyncio.create_task(collect(engine, request(max_new_tokens=4000, ignore_eos=True)))
    async with asyncio.timeout(30):
        while not engine.stats().running:
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        while engine.stats().running or engine.stats().waiting:
            await asyncio.sleep(0.01)
    assert (await answer(engine, request())).token_ids


# ---- what may come next


async def test_bias_and_allowed_tokens_and_bad_words_forbid_tokens(engine: Engine) -> None:
    tokens = (await answer(engine, request(ignore_eos=True))).token_ids
    biased = await answer(engine, request(ignore_eos=True, logit_bias={tokens[0]: -100.0}))
    assert tokens[0] not in biased.token_ids
    allowed = await answer(engine, request(ignore_eos=True, allowed_token_ids=(65, 66)))
    assert {*allowed.token_ids} <= {65, 66}
    pair = (tokens[0], tokens[1])
    without = await answer(engine, request(ignore_eos=True, bad_words_ids=(pair,)))
    assert pair not in zip(without.token_ids, without.token_ids[1:], strict=False)


@pytest.mark.parametrize(
    "filter_", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-3}], ids=lambda one: next(iter(one))
)
async def test_what_leaves_the_likeliest_token_alone_is_greedy(engine: Engine, filter_: dict[str, Any]) -> None:
    greedy = await answer(engine, request(ignore_eos=True, max_new_tokens=20))
    sampled = await answer(engine, request(ignore_eos=True, max_new_tokens=20, **{"temperature": 1.0} | filter_))
    assert sampled.token_ids == greedy.token_ids


async def test_a_high_temperature_leads_elsewhere(engine: Engine, contestant: Contestant) -> None:
    if not contestant.samples:
        pytest.skip("it always takes its likeliest token")
    greedy = await answer(engine, request(ignore_eos=True, max_new_tokens=20))
    hot = await answer(engine, request(ignore_eos=True, max_new_tokens=20, temperature=2.0, seed=1))
    assert hot.token_ids != greedy.token_ids


@pytest.mark.parametrize(
    "penalty",
    [{"repetition_penalty": 1000.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}],
    ids=lambda one: next(iter(one)),
)
async def test_a_penalty_lets_no_token_come_twice(
    engine: Engine, contestant: Contestant, penalty: dict[str, Any]
) -> None:
    if not contestant.samples:
        pytest.skip("it always takes its likeliest token")
    asked = request("aabbcc", ignore_eos=True, max_new_tokens=40, **penalty)
    tokens = (await answer(engine, asked)).token_ids
    assert len({*tokens}) == 40
    if "repetition_penalty" in penalty:
        assert not {*tokens} & {*asked.prompt_ids}


async def test_nothing_allowed_is_the_requests_own_fault(engine: Engine) -> None:
    with pytest.raises(InvalidRequest):
        await answer(engine, request(allowed_token_ids=(65,), bad_words_ids=((65,),)))
    assert (await answer(engine, request())).token_ids


async def test_structured_output_is_what_it_shall_be(engine: Engine, contestant: Contestant) -> None:
    assert {"json_schema", "choice", "regex"} <= engine.capabilities().structured
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 22]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    kinds: dict[StructuredKind, str] = {
        "json_schema": json.dumps(schema),
        "choice": json.dumps(["red", "blue"]),
        "regex": "[a-c]{3}",
    }
    wanted = [Structured(kind=kind, value=value) for kind, value in kinds.items()]
    wanted.append(validate(wanted[0]))  # as the server sends it: with rules for white space
    assert wanted[-1].rules
    asked = [request("x", str(i), structured=one, max_new_tokens=160) for i, one in enumerate(wanted)]
    texts = [contestant.decode(end.token_ids) for end in await asyncio.gather(*(answer(engine, one) for one in asked))]
    assert all(json.loads(text)["a"] in (1, 22) for text in (texts[0], texts[3]))
    assert texts[1] in ("red", "blue")
    assert len(texts[2]) == 3 and {*texts[2]} <= {*"abc"}


# ---- logprobs


@pytest.mark.parametrize("count", [0, 1, 20])
async def test_each_token_has_its_logprob_and_the_likeliest(engine: Engine, count: int) -> None:
    end = await answer(engine, request(ignore_eos=True, logprobs=count))
    assert [logprob.token_id for logprob in end.logprobs] == end.token_ids
    for logprob in end.logprobs:
        assert logprob.logprob <= 0
        values = [value for _, value in logprob.top]
        assert len(values) == count and values == sorted(values, reverse=True)


async def test_no_logprobs_unless_asked_for(engine: Engine) -> None:
    outputs = await collect(engine, request())
    assert all(output.logprobs is None for output in outputs)
    assert outputs[0].prompt_logprobs is None


async def test_prompt_logprobs_are_of_each_token_but_the_first(engine: Engine) -> None:
    asked = request(prompt_logprobs=2)
    first = (await collect(engine, asked))[0]
    nothing, *told = first.prompt_logprobs
    assert nothing is None
    assert [logprob.token_id for logprob in told] == asked.prompt_ids[1:]
    assert all(len(logprob.top) == 2 for logprob in told)
    for logprob in told:
        above = [token_id for token_id, value in logprob.top if value > logprob.logprob]
        assert logprob.rank == len(above) + 1 if len(above) < 2 else logprob.rank >= 3


# ---- refusals


@pytest.mark.parametrize("prompt_ids", [[], [10**6], [-1]])
async def test_a_prompt_that_is_none_is_refused_at_the_first_output(engine: Engine, prompt_ids: list[Any]) -> None:
    with pytest.raises(InvalidRequest):
        await anext(engine.generate(replace(request(), prompt_ids=prompt_ids)))
    with pytest.raises(InvalidRequest):
        await engine.pool(PoolingRequest(request_id="e", prompt_ids=prompt_ids))


# ---- embeddings


@pytest.fixture
def embeds(engine: Engine) -> None:
    if not engine.capabilities().embeddings:
        pytest.skip("this engine makes no embeddings")


async def test_an_engine_without_embeddings_says_so(engine: Engine) -> None:
    if not engine.capabilities().embeddings:
        with pytest.raises(UnsupportedParameter):
            await engine.pool(PoolingRequest(request_id="e", prompt_ids=[65]))


async def test_an_engine_without_a_head_to_classify_with_says_so(engine: Engine) -> None:
    assert engine.capabilities().head is None
    with pytest.raises(UnsupportedParameter, match=r"classify|classes"):
        await engine.pool(PoolingRequest(request_id="c", prompt_ids=[65], task="classify"))


async def test_an_embedding_has_length_one_and_repeats_beside_generations(engine: Engine, embeds: None) -> None:
    asked = PoolingRequest(request_id="e", prompt_ids=list(b"hello"))
    alone = await engine.pool(asked)
    assert math.isclose(sum(value * value for value in alone), 1, rel_tol=1e-4)
    beside, *_ = await asyncio.gather(
        engine.pool(asked), *(answer(engine, request(f"text {i}", f"r{i}")) for i in range(4))
    )
    assert beside == pytest.approx(alone, abs=1e-4)
    other = await engine.pool(PoolingRequest(request_id="e", prompt_ids=list(b"goodbye")))
    assert other != pytest.approx(alone, abs=1e-2)


# ---- adapters


@pytest.fixture
def adapter_folder(engine: Engine, tmp_path: Path) -> Callable[[int], Path]:
    """The folder of an adapter that this engine can serve; another seed makes another one."""

    def get(seed: int) -> Path:
        tensors = lora_tensors(seed=seed, support=engine.capabilities().adapters)
        return write_adapter(tmp_path / str(seed), tensors=tensors)

    return get


@pytest_asyncio.fixture(loop_scope="module")
async def adapters(engine: Engine, adapter_folder: Callable[[int], Path]) -> AsyncIterator[tuple[str, str]]:
    """Two versions of one adapter that the engine holds."""
    versions = ("a@1", "a@2")
    for seed, version in enumerate(versions):
        await engine.load_adapter(version, adapter_folder(seed))
    yield versions
    for version in versions:
        await engine.unload_adapter(version)


async def answers(engine: Engine, *asked: GenerationRequest) -> list[list[int]]:
    return [end.token_ids for end in await asyncio.gather(*(answer(engine, one) for one in asked))]


def in_batch(*adapters: str | None, **changes: Any) -> list[GenerationRequest]:
    """The same request once for each of these versions."""
    return [request("hello", f"r{i}", adapter=one, ignore_eos=True, **changes) for i, one in enumerate(adapters)]


async def test_versions_and_the_base_answer_side_by_side_as_they_do_alone(
    engine: Engine, adapters: tuple[str, str]
) -> None:
    asked = in_batch(None, *adapters)
    alone = [(await answers(engine, one))[0] for one in asked]
    assert len({tuple(tokens) for tokens in alone}) == 3
    assert await answers(engine, *asked) == alone
    assert await answers(engine, *reversed(asked)) == alone[::-1]


async def test_embeddings_are_of_the_adapter_that_is_asked_for(
    engine: Engine, embeds: None, adapters: tuple[str, str]
) -> None:
    base, one, other = [
        await engine.pool(PoolingRequest(request_id="e", prompt_ids=list(b"hello"), adapter=adapter))
        for adapter in (None, *adapters)
    ]
    assert one != pytest.approx(base, abs=1e-2) and other != pytest.approx(one, abs=1e-2)


async def test_a_version_that_the_engine_does_not_hold_is_refused_at_the_first_output(engine: Engine) -> None:
    with pytest.raises(EngineFailure):
        await anext(engine.generate(request(adapter="never@heard")))
    if engine.capabilities().embeddings:
        with pytest.raises(EngineFailure):
            await engine.pool(PoolingRequest(request_id="e", prompt_ids=[65], adapter="never@heard"))
    await engine.unload_adapter("never@heard")
    assert (await answer(engine, request())).token_ids


async def test_an_adapter_is_loaded_replaced_and_unloaded_while_requests_run(
    engine: Engine, adapters: tuple[str, str], adapter_folder: Callable[[int], Path]
) -> None:
    one, other = adapters
    [old, new] = [(await answers(engine, asked))[0] for asked in in_batch(one, other, max_new_tokens=60)]
    [base] = await answers(engine, request("hello", max_new_tokens=60, ignore_eos=True))
    await engine.unload_adapter(other)
    running = asyncio.create_task(answers(engine, *in_batch(None, one, max_new_tokens=60)))
    await engine.load_adapter(other, adapter_folder(1))
    late = request("hello", "late", adapter=other, max_new_tokens=60, ignore_eos=True)
    assert await answers(engine, late) == [new]
    assert await running == [base, old]
    await engine.unload_adapter(one)
    assert await answers(engine, late) == [new]
    with pytest.raises(EngineFailure):
        await answer(engine, request(adapter=one))


async def test_a_request_whose_adapter_is_unloaded_under_it_ends_with_an_error(
    engine: Engine, adapters: tuple[str, str]
) -> None:
    [mine, others] = in_batch(*adapters, max_new_tokens=4000)
    async with aclosing(engine.generate(mine)) as outputs, aclosing(engine.generate(others)) as going_on:
        await anext(outputs)
        await anext(going_on)
        await engine.unload_adapter(adapters[0])
        with pytest.raises(EngineFailure):
            async with asyncio.timeout(30):
                [output async for output in outputs]
        for _ in range(20):
            await anext(going_on)


async def test_the_same_version_may_be_loaded_by_several_at_once_and_again(
    engine: Engine, adapter_folder: Callable[[int], Path]
) -> None:
    folder = adapter_folder(0)
    await asyncio.gather(*(engine.load_adapter("a@1", folder) for _ in range(3)))
    [tokens] = await answers(engine, request(adapter="a@1"))
    await engine.load_adapter("a@1", folder)
    assert await answers(engine, request(adapter="a@1")) == [tokens]
    await engine.unload_adapter("a@1")
    with pytest.raises(EngineFailure):
        await answer(engine, request(adapter="a@1"))


async def test_more_adapters_than_slots_are_served_at_once(
    engine: Engine, adapter_folder: Callable[[int], Path]
) -> None:
    versions = [f"a@{seed}" for seed in range(12)]
    for seed, version in enumerate(versions):
        await engine.load_adapter(version, adapter_folder(seed))
    asked = in_batch(*versions)
    alone = [(await answers(engine, one))[0] for one in asked]
    before = engine.stats()
    assert len(before.adapter_slots) == 8 and {*before.adapter_slots} < {*versions}
    assert await answers(engine, *asked) == alone
    assert sum(engine.stats().adapter_loads.values()) > sum(before.adapter_loads.values())
    assert sum(engine.stats().adapter_evictions.values()) > sum(before.adapter_evictions.values())
    for version in versions:
        await engine.unload_adapter(version)
    async with asyncio.timeout(30):
        while engine.stats().adapter_slots or engine.stats().adapter_host:
            await answer(engine, request())


async def test_so_many_adapters_can_be_pinned_and_no_more(
    engine: Engine, adapter_folder: Callable[[int], Path]
) -> None:
    most = engine.capabilities().adapters.max_pinned
    folder = adapter_folder(0)
    for i in range(most):
        await engine.load_adapter(f"pinned@{i}", folder, pinned=True)
    with pytest.raises(InvalidAdapter) as refused:
        await engine.load_adapter("one@more", folder, pinned=True)
    assert refused.value.param == "pinned"
    await engine.load_adapter("pinned@0", folder, pinned=False)
    await engine.load_adapter("one@more", folder, pinned=True)
    with pytest.raises(InvalidAdapter):
        await engine.load_adapter("pinned@0", folder, pinned=True)
    for version in ("one@more", *(f"pinned@{i}" for i in range(most))):
        assert (await answer(engine, request(adapter=version))).token_ids
        await engine.unload_adapter(version)


async def test_adapters_are_loaded_by_an_engine_that_is_ready(contestant: Contestant, tmp_path: Path) -> None:
    engine = contestant.make()
    with pytest.raises(EngineUnavailable):
        await engine.load_adapter("a@1", tmp_path)
    await engine.unload_adapter("a@1")
    await engine.stop()
    with pytest.raises(EngineUnavailable):
        await engine.load_adapter("a@1", tmp_path)
    await engine.unload_adapter("a@1")


# ---- sleep


async def test_an_engine_that_can_sleep_ends_what_runs_and_wakes_up_with_its_adapters(
    engine: Engine, adapters: tuple[str, str]
) -> None:
    if not engine.capabilities().sleep:
        with pytest.raises(UnsupportedParameter):
            await engine.sleep()
        return
    asked = in_batch(None, *adapters)
    before = await answers(engine, *asked)
    running = asyncio.create_task(answer(engine, request("hello", "long", max_new_tokens=50, ignore_eos=True)))
    await asyncio.sleep(0.01)
    await asyncio.gather(engine.sleep(), engine.sleep())
    assert len((await running).token_ids) == 50
    assert engine.health().state is EngineState.SLEEPING
    with pytest.raises(EngineUnavailable):
        await answer(engine, request())
    await engine.unload_adapter(adapters[1])
    await engine.wake_up()
    await engine.wake_up()
    assert engine.health().state is EngineState.READY
    assert await answers(engine, *asked[:2]) == before[:2]
    with pytest.raises(EngineFailure):
        await answer(engine, asked[2])


# ---- the end: last in this file, for what is stopped is the engine that all tests share


async def test_an_engine_that_is_stopped_ends_what_runs_and_refuses_what_comes(engine: Engine) -> None:
    assert engine.health().state is EngineState.READY
    async with aclosing(engine.generate(request(max_new_tokens=4000, ignore_eos=True))) as outputs:
        await anext(outputs)
        await engine.stop()
        with pytest.raises(EngineUnavailable):
            [output async for output in outputs]
    await engine.stop()
    assert engine.health().state is EngineState.STOPPED
    with pytest.raises(EngineUnavailable):
        await answer(engine, request())
