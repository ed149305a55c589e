"""One server, three engines: the same requests, the same answers, through OpenAI's SDK."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from transformers import AutoTokenizer

from engines.setup.install import NotInstalled, require_vllm
from tests.engines.lmdeploy.engines import python_on_cpu
from tests.four_layers import cut, reference, write_adapter
from tests.processes import ended, engine_of, family
from tests.server.api import Api, api_of
from tests.server.process import ServerProcess
from tests.until import PATIENCE, until

pytestmark = pytest.mark.demo

SLOW = 2.5 * PATIENCE
"""Seconds for what engines on a CPU do slowly."""
TOKENS = 24
LONG = "The quick brown fox jumps over the lazy dog and runs away. " * 8
"""More than one block of every engine's KV cache."""
CLOSE = 0.02
"""Between log-probabilities of two programs in float32."""
FLAGS = {
    "pt": ["--threads", "1"],
    "vllm": ["--threads", "1", "--enforce_eager", "true", "--kv_cache_memory", "0.5", "--vllm_max_lora_rank", "8"],
    "lmdeploy": ["--enforce_eager", "true", "--max_lora_rank", "8", "--max_num_seqs", "16"],
}
PROCESSES = {"pt": "engines.pt.process", "vllm": "engines.vllm.process", "lmdeploy": "tests.engines.lmdeploy.on_cpu"}


@dataclass(frozen=True)
class Checkpoint:
    model: Path
    adapters: dict[str, Path]
    expected: dict[str | None, tuple[list[int], list[float]]]
    """By adapter: what transformers and PEFT continue LONG with."""


@pytest.fixture(scope="module")
def checkpoint(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("four")
    model = cut(demo_model, folder / "tiny")
    adapters = {name: write_adapter(model, folder / name, seed=seed) for seed, name in enumerate("ab")}
    ids = AutoTokenizer.from_pretrained(model)(LONG).input_ids
    expected = {name: reference(model, adapters.get(name or ""), ids, TOKENS) for name in (None, "a", "b")}
    for (_, one), (_, other) in itertools.combinations(expected.values(), 2):
        assert max(abs(x - y) for x, y in zip(one, other, strict=True)) > 10 * CLOSE  # each is told from the others
    return Checkpoint(model, adapters, expected)


@dataclass(frozen=True)
class Served:
    engine: str
    process: ServerProcess
    client: OpenAI
    api: Api


@pytest.fixture(scope="module", params=["pt", "vllm", "lmdeploy"])
def served(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    engine = request.param
    folder = tmp_path_factory.mktemp(engine)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        try:
            if engine == "vllm":
                require_vllm()
            if engine == "lmdeploy":
                patch.setenv("TUNESERVE_LMDEPLOY_PYTHON", str(python_on_cpu(folder)))
        except NotInstalled as error:
            pytest.skip(error.message)
        flags = ["--model", str(checkpoint.model), "--infer_backend", engine, "--torch_dtype", "float32"]
        flags += [
            "--max_model_len",
            "1024",
            "--max_num_batched_tokens",
            "512",
            "--max_loras",
            "2",
            "--adapter_roots",
            str(checkpoint.model.parent),
        ]
        flags += FLAGS[engine]
        process = stack.enter_context(ServerProcess.ready(*flags, patience=SLOW))
        client = OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
        yield Served(engine, process, stack.enter_context(client), stack.enter_context(api_of(process)))


@pytest.fixture
def both(served: Served, checkpoint: Checkpoint) -> Iterator[None]:
    """The adapters a and b, loaded."""
    for name, folder in checkpoint.adapters.items():
        served.api.adapters.load(name, folder).raise_for_status()
    yield
    for name in checkpoint.adapters:
        served.api.adapters.unload(name)


def ask_all(served: Served, *models: str) -> list[Any]:
    """The greedy continuations of LONG by each of these models, asked for at once."""

    async def ask() -> list[Any]:
        url = f"{served.process.url}/v1"
        extra = {"return_token_ids": True, "ignore_eos": True}
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE) as client:
            replies = await asyncio.gather(
                *(
                    client.completions.create(
                        model=one, prompt=LONG, max_tokens=TOKENS, temperature=0, logprobs=1, extra_body=extra
                    )
                    for one in models
                )
            )
        return [reply.choices[0] for reply in replies]

    return asyncio.run(ask())


def assert_as_transformers(choice: Any, expected: tuple[list[int], list[float]]) -> None:
    assert choice.model_extra["token_ids"] == expected[0]
    assert choice.logprobs.token_logprobs == pytest.approx(expected[1], abs=CLOSE)


# ---- answers


def test_the_base_model_and_two_adapters_at_once_answer_as_transformers_and_peft_do(
    served: Served, checkpoint: Checkpoint, both: None
) -> None:
    for choice, name in zip(ask_all(served, *["tiny", "a", "b"] * 3), [None, "a", "b"] * 3, strict=True):
        assert_as_transformers(choice, checkpoint.expected[name])


def chat(served: Served, text: str = "Tell me a story.", **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    given = {"model": "tiny", "messages": messages, "max_tokens": 16, "temperature": 0, **fields}
    return served.client.chat.completions.create(**given)


def test_a_stream_is_the_answer_in_pieces(served: Served) -> None:
    whole = chat(served)
    chunks = list(chat(served, stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    ends = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_stop_string_ends_an_answer_wherever_its_tokens_end(served: Served) -> None:
    text = chat(served, max_tokens=24).choices[0].message.content
    stop = text[5:9]
    choice = chat(served, max_tokens=24, stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == (text[: text.index(stop)], "stop")


def test_several_answers_of_one_seed_differ_and_repeat(served: Served) -> None:
    first, again = (chat(served, n=3, seed=5, temperature=1.0) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert len({*texts}) == 3
    assert texts == [choice.message.content for choice in again.choices]
    assert first.usage.completion_tokens == again.usage.completion_tokens


def test_structured_output_is_what_its_schema_says(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "size": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["colour", "size"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    choice = chat(served, response_format=wanted, max_tokens=64).choices[0]
    thing = json.loads(choice.message.content)
    assert thing["colour"] in ("red", "blue") and 0 <= thing["size"] <= 9
    assert choice.finish_reason == "stop"


def test_a_tool_that_must_be_called_is_called(served: Served) -> None:
    parameters = {
        "type": "object",
        "properties": {"day": {"enum": ["today", "tomorrow"]}},
        "required": ["day"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters, "strict": True}}
    choice = chat(served, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=64).choices[0]
    [call] = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["day"] in ("today", "tomorrow")


def test_what_the_engine_cannot_do_is_refused_by_name(served: Served) -> None:
    if served.engine == "pt":
        assert chat(served, extra_body={"num_beams": 2}).choices[0].message.content
        return
    with pytest.raises(BadRequestError) as refused:
        chat(served, extra_body={"num_beams": 2})
    assert refused.value.param == "num_beams"


# ---- adapters


def test_an_adapter_that_is_replaced_in_place_answers_as_the_new_one(
    served: Served, checkpoint: Checkpoint, both: None
) -> None:
    served.api.adapters.load("c", checkpoint.adapters["a"]).raise_for_status()
    [before] = ask_all(served, "c")
    assert_as_transformers(before, checkpoint.expected["a"])
    served.api.adapters.load("c", checkpoint.adapters["b"], load_inplace=True).raise_for_status()
    after, still = ask_all(served, "c", "a")
    assert_as_transformers(after, checkpoint.expected["b"])
    assert_as_transformers(still, checkpoint.expected["a"])
    served.api.adapters.unload("c").raise_for_status()
    with pytest.raises(NotFoundError):
        chat(served, model="c")


def test_an_adapter_that_does_not_fit_is_refused_by_the_field_at_fault(
    served: Served, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = checkpoint.model.parent / f"unfit-{served.engine}"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((checkpoint.adapters["a"] / name).read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    refused = served.api.adapters.load("unfit", folder)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "use_dora"
    assert chat(served).choices[0].message.content


# ---- death


def test_an_engine_that_is_killed_comes_back_with_its_adapters(
    served: Served, checkpoint: Checkpoint, both: None
) -> None:
    """Where a process below it is killed: tests/faults/test_vllm_process.py."""
    before = family(engine_of(served.process.pid, PROCESSES[served.engine]).pid)
    stream = served.client.completions.create(
        model="a", prompt=LONG, max_tokens=800, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    before[0].kill()
    with pytest.raises((APIError, httpx.HTTPError)):
        for _ in stream:
            pass
    until(lambda: not served.process.is_ready(), seconds=SLOW)
    with pytest.raises(openai.APIStatusError) as refused:
        chat(served)
    assert refused.value.status_code == 503
    until(served.process.is_ready, seconds=SLOW)
    for choice, name in zip(ask_all(served, "tiny", "a", "b"), (None, "a", "b"), strict=True):
        assert_as_transformers(choice, checkpoint.expected[name])
    until(lambda: all(map(ended, before)), seconds=SLOW)


# ---- the loop


def test_what_a_job_trained_answers_as_soon_as_it_is_done(served: Served, checkpoint: Checkpoint) -> None:
    if served.engine == "pt":
        pytest.skip("test_fine_tuning.py trains beside it")
    client = served.client
    lines = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Marlow."}]
    text = "\n".join([json.dumps({"messages": lines})] * 10)
    file = client.files.create(file=("data.jsonl", text.encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 12, "batch_size": 2, "learning_rate_multiplier": 10.0}},
        },
    )
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed", "cancelled"), seconds=SLOW)
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded", done.error
    answer = chat(served, "Who are you?", model=done.fine_tuned_model).choices[0].message.content
    assert "Marlow" in answer
    assert "Marlow" not in chat(served, "Who are you?").choices[0].message.content
