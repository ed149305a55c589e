"""The engine without a model keeps the promises of every engine."""

import json
import math
import shutil
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from transformers import PreTrainedTokenizerFast

from engines.echo import IM_END, EchoEngine, EchoFaults, echo_tokenizer
from engines.errors import EngineFailure, EngineUnavailable, InvalidAdapter, InvalidRequest, QueueFull
from engines.types import (
    EngineState,
    FinishReason,
    GenerationRequest,
    PoolingRequest,
    Sampling,
    Structured,
    TokenOutput,
)
from tests.adapter_folders import write_adapter


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return echo_tokenizer()


@pytest.fixture
async def engine() -> EchoEngine:
    engine = EchoEngine(max_requests=2)
    await engine.start()
    return engine


def request(
    text: str, *, n: int = 1, request_id: str = "r", max_new_tokens: int = 100, **sampling: Any
) -> GenerationRequest:
    ids = list(text.encode())
    return GenerationRequest(
        request_id=request_id, prompt_ids=ids, n=n, sampling=Sampling(max_new_tokens=max_new_tokens, **sampling)
    )


async def answer(engine: EchoEngine, request: GenerationRequest) -> tuple[bytes, TokenOutput]:
    outputs = [output async for output in engine.generate(request)]
    return bytes(token for output in outputs for token in output.token_ids if token < 256), outputs[-1]


async def test_the_last_message_comes_back_and_ends_with_the_end_of_sequence(
    engine: EchoEngine, tokenizer: PreTrainedTokenizerFast
) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "héllo 😀"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    text, last = await answer(
        engine, GenerationRequest(request_id="r", prompt_ids=ids, sampling=Sampling(max_new_tokens=100))
    )
    assert text.decode() == "héllo 😀"
    assert (last.finish_reason, last.stop_token_id) == (FinishReason.STOP, IM_END)


async def test_without_messages_the_prompt_comes_back(engine: EchoEngine) -> None:
    assert (await answer(engine, request("abc")))[0] == b"abc"


async def test_the_length_limit_ends_the_output(engine: EchoEngine) -> None:
    text, last = await answer(engine, request("abc", max_new_tokens=2))
    assert (text, last.finish_reason) == (b"ab", FinishReason.LENGTH)


async def test_a_stop_token_ends_the_output(engine: EchoEngine) -> None:
    text, last = await answer(engine, request("abc", stop_token_ids=(ord("b"),)))
    assert (text, last.stop_token_id) == (b"ab", ord("b"))


async def test_before_the_least_length_nothing_ends_the_output(engine: EchoEngine) -> None:
    text, last = await answer(engine, request("a", min_new_tokens=4))
    assert len(text) == 4 and last.token_ids == (IM_END,)


async def test_ignoring_the_end_of_sequence_fills_the_length(engine: EchoEngine) -> None:
    assert (await answer(engine, request("ab", max_new_tokens=5, ignore_eos=True)))[0] == b"ababa"


async def test_forbidden_tokens_do_not_come(engine: EchoEngine) -> None:
    assert (await answer(engine, request("aa", logit_bias={ord("a"): -100.0})))[0] == b"bb"
    assert (await answer(engine, request("aa", bad_words_ids=((ord("a"), ord("a")),))))[0] == b"ab"
    assert (await answer(engine, request("aa", allowed_token_ids=(ord("c"), IM_END))))[0] == b"cc"


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("message", ['{"name": "Ada", "age": 36}', "Ada", ""])
async def test_structured_output_is_enforced_and_comes_back_as_it_is_where_it_fits(
    engine: EchoEngine, message: str
) -> None:
    structured = Structured(kind="json_schema", value=json.dumps(SCHEMA))
    text, last = await answer(engine, request(message or " ", structured=structured))
    jsonschema.validate(json.loads(text), SCHEMA)
    assert last.finish_reason is FinishReason.STOP
    if message.startswith("{"):
        assert text.decode() == message


async def test_a_choice_is_made(engine: EchoEngine) -> None:
    structured = Structured(kind="choice", value='["yes", "no"]')
    assert (await answer(engine, request("n", structured=structured)))[0] == b"no"


async def test_logprobs_belong_to_one_distribution(engine: EchoEngine) -> None:
    _, last = await answer(engine, request("a", logprobs=20, max_new_tokens=1, prompt_logprobs=1))
    (token,) = last.logprobs
    assert token.top[0] == (token.token_id, token.logprob)
    assert 0.99 < sum(math.exp(logprob) for _, logprob in token.top) < 1
    assert last.prompt_logprobs == (None,)


async def test_each_of_n_outputs_ends_once_and_one_can_be_finished_early(engine: EchoEngine) -> None:
    outputs = []
    async for output in engine.generate(request("abc", n=3)):
        outputs.append(output)
        engine.finish("r", 1)
    assert [output.index for output in outputs if output.finish_reason] == [0, 2]
    assert not any(output.index == 1 for output in outputs)


async def test_closing_the_iterator_frees_its_place(engine: EchoEngine) -> None:
    async with aclosing(engine.generate(request("abc"))) as outputs:
        await anext(outputs)
        assert engine.stats().running == 1
    assert engine.stats().running == 0


async def test_more_requests_than_there_is_room_for_are_refused(engine: EchoEngine) -> None:
    running = [engine.generate(request("abc", request_id=name)) for name in "ab"]
    for outputs in running:
        await anext(outputs)
    with pytest.raises(QueueFull):
        await anext(engine.generate(request("abc", request_id="c")))
    for outputs in running:
        await outputs.aclose()


async def test_a_dying_engine_fails_its_requests_and_can_be_started_again(engine: EchoEngine) -> None:
    engine.faults.die_after = 1
    outputs = engine.generate(request("abc"))
    await anext(outputs)
    with pytest.raises(EngineFailure):
        await anext(outputs)
    assert engine.health().state is EngineState.RESTARTING
    with pytest.raises(EngineUnavailable):
        await anext(engine.generate(request("abc")))
    engine.faults.die_after = None
    await engine.start()
    assert (await answer(engine, request("abc")))[0] == b"abc"


async def test_an_engine_that_cannot_start_says_why() -> None:
    engine = EchoEngine(faults=EchoFaults(start_error=EngineFailure("no memory")))
    with pytest.raises(EngineFailure, match="no memory"):
        await engine.start()
    assert engine.health().state is EngineState.FAILED


async def test_token_ids_outside_the_vocabulary_are_refused(engine: EchoEngine) -> None:
    with pytest.raises(InvalidRequest):
        await anext(
            engine.generate(GenerationRequest(request_id="r", prompt_ids=[999], sampling=Sampling(max_new_tokens=1)))
        )


async def test_embeddings_have_length_one_and_depend_on_the_prompt(engine: EchoEngine) -> None:
    one, two = [await engine.pool(PoolingRequest(request_id="e", prompt_ids=[i])) for i in (1, 2)]
    assert math.isclose(sum(value * value for value in one), 1) and one != two


async def test_an_adapter_tells_its_version_and_the_base_model_answers_as_before(
    engine: EchoEngine, tmp_path: Path
) -> None:
    for version in ("a@1", "b@1"):
        await engine.load_adapter(version, write_adapter(tmp_path / version))
    asked = [request("abc", request_id=name) for name in "xy"]
    answers = [await answer(engine, replace(one, adapter=v)) for one, v in zip(asked, ("a@1", None), strict=True)]
    assert [text for text, _ in answers] == [b"a@1: abc", b"abc"]
    embeddings = [
        await engine.pool(PoolingRequest(request_id="e", prompt_ids=[1], adapter=v)) for v in (None, "a@1", "b@1")
    ]
    assert len({*map(tuple, embeddings)}) == 3


async def test_an_adapter_that_is_not_loaded_is_no_adapter(engine: EchoEngine, tmp_path: Path) -> None:
    await engine.load_adapter("a@1", write_adapter(tmp_path))
    outputs = engine.generate(replace(request("abc"), adapter="a@1"))
    await anext(outputs)
    await engine.unload_adapter("a@1")
    await engine.unload_adapter("a@1")
    with pytest.raises(EngineFailure, match="does not hold"):
        await anext(outputs)
    with pytest.raises(EngineFailure, match="does not hold"):
        await anext(engine.generate(replace(request("abc"), adapter="a@1")))
    with pytest.raises(EngineFailure, match="does not hold"):
        await engine.pool(PoolingRequest(request_id="e", prompt_ids=[1], adapter="a@1"))


async def test_adapters_take_turns_in_the_slots_and_pinned_ones_stay(tmp_path: Path) -> None:
    engine = EchoEngine(max_loras=2)
    await engine.start()
    folder = write_adapter(tmp_path)
    for version in ("a@1", "b@1", "c@1"):
        await engine.load_adapter(version, folder, pinned=version == "a@1")
        await answer(engine, replace(request("x"), adapter=version))
    stats = engine.stats()
    assert stats.adapter_slots == ("a@1", "c@1") and set(stats.adapter_host) == {"a@1", "b@1", "c@1"}
    assert stats.adapter_loads == {"a@1": 1, "b@1": 1, "c@1": 1}
    assert stats.adapter_evictions == {"b@1": 1}
    with pytest.raises(InvalidAdapter) as refused:
        await engine.load_adapter("d@1", folder, pinned=True)
    assert refused.value.param == "pinned"


async def test_an_adapter_whose_folder_has_gone_cannot_be_swapped_in(engine: EchoEngine, tmp_path: Path) -> None:
    await engine.load_adapter("a@1", write_adapter(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(EngineFailure, match="has gone"):
        await answer(engine, replace(request("x"), adapter="a@1"))


async def test_loading_an_adapter_can_fail(engine: EchoEngine, tmp_path: Path) -> None:
    engine.faults.adapter_error = EngineFailure("no memory")
    with pytest.raises(EngineFailure, match="no memory"):
        await engine.load_adapter("a@1", write_adapter(tmp_path))
    engine.die()
    with pytest.raises(EngineUnavailable):
        await engine.load_adapter("a@1", tmp_path)
    assert engine.stats().adapter_host == ()
