"""`tuneserve deploy` as a user has it: a command, a model, the pt engine in its process, HTTP, and OpenAI's SDK."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForCausalLM

from tests.engines.pt.tiny import CONFIGS, save
from tests.processes import engine_of
from tests.server.process import ServerProcess
from tests.until import PATIENCE, until

POSITIONS = 4096
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
PARAMETERS = {"max_num_seqs": 4, "block_size": 8, "threads": 1, "torch_dtype": "float32", "device_map": "cpu"}
SENTENCE = "the red and the blue, the red and the blue"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = CONFIGS["llama"]()
    llama.max_position_embeddings = POSITIONS
    return save(llama, tmp_path_factory.mktemp("model") / "tiny", tokenizer=True)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Ready, with its parameters from a file and from flags."""
    file = tmp_path_factory.mktemp("parameters") / "server.json"
    file.write_text(json.dumps(PARAMETERS))
    with ServerProcess.ready(str(file), "--model", str(folder), "--chat-template", TEMPLATE) as process:
        yield process


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def chat(text: str = SENTENCE, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0, **fields}


def metric(http: httpx.Client, name: str) -> float:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return next(sample.value for family in families for sample in family.samples if sample.name == f"tuneserve:{name}")


# ---- answers


def test_a_greedy_answer_and_its_logprobs_are_those_of_transformers(client: openai.OpenAI, folder: Path) -> None:
    extra = {"return_token_ids": True, "ignore_eos": True}
    answer = client.chat.completions.create(**chat(logprobs=True, top_logprobs=3), extra_body=extra)
    [choice] = answer.choices
    prompt, ids = answer.model_extra["prompt_token_ids"], choice.model_extra["token_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert ids == rows.argmax(-1).tolist()
    told = [[entry.logprob, *(top.logprob for top in entry.top_logprobs)] for entry in choice.logprobs.content]
    for values, row in zip(told, rows, strict=True):
        assert values == pytest.approx([row.max().item(), *row.topk(3).values.tolist()], abs=1e-3)


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**chat()).choices[0].message.content
    pieces = client.chat.completions.create(**chat(), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole


def test_a_prompt_that_was_computed_before_comes_from_the_cache(client: openai.OpenAI, http: httpx.Client) -> None:
    text = "numbers " * 40
    first, second = (client.chat.completions.create(**chat(text)) for _ in range(2))
    assert second.usage.prompt_tokens_details.cached_tokens == (second.usage.prompt_tokens - 1) // 8 * 8
    assert second.choices[0].message.content == first.choices[0].message.content
    assert metric(http, "prefix_cache_hits_total") >= second.usage.prompt_tokens_details.cached_tokens


async def test_a_seed_gives_the_same_answer_whatever_else_runs(server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=PATIENCE) as client:

        async def ask(text: str, **fields: Any) -> str | None:
            answer = await client.chat.completions.create(**chat(text, temperature=1, **fields))
            return answer.choices[0].message.content

        alone = await ask(SENTENCE, seed=7)
        _, _, beside, *_ = await asyncio.gather(
            ask("a", top_p=0.5), ask("b", n=2), ask(SENTENCE, seed=7), ask("c"), ask("d", presence_penalty=1)
        )
    assert beside == alone


def test_what_may_come_next_is_constrained(client: openai.OpenAI, http: httpx.Client) -> None:
    def ask(**extra: Any) -> str | None:
        return client.chat.completions.create(**chat(max_tokens=30), extra_body=extra).choices[0].message.content

    [a], [b] = (http.post("/tokenize", json={"model": "tiny", "prompt": letter}).json()["tokens"] for letter in "ab")
    assert ask(structured_outputs={"choice": ["red", "blue"]}) in ("red", "blue")
    assert {*ask(allowed_token_ids=[a, b])} <= {"a", "b"}
    assert ask(allowed_token_ids=[a, b], bad_words=["a"]) == "b" * 30
    assert ask(allowed_token_ids=[a, 1], logit_bias={"1": 100}, min_tokens=5) == "a" * 5  # 1 ends the output


def test_a_beam_search_gives_its_best_outputs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**chat(n=2), extra_body={"num_beams": 3, "ignore_eos": True})
    assert len({choice.message.content for choice in answer.choices}) == 2


def test_prompt_logprobs_are_of_each_token_but_the_first(client: openai.OpenAI) -> None:
    extra = {"prompt_logprobs": 1, "return_token_ids": True}
    answer = client.chat.completions.create(**chat(), extra_body=extra).model_extra
    nothing, *told = answer["prompt_logprobs"]
    assert nothing is None
    assert all(str(token) in entry for token, entry in zip(answer["prompt_token_ids"][1:], told, strict=True))


# ---- faults


def test_a_client_that_leaves_frees_the_blocks(http: httpx.Client) -> None:
    endless = chat(stream=True, max_tokens=POSITIONS // 2, ignore_eos=True)
    with http.stream("POST", "/v1/chat/completions", json=endless) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert metric(http, "kv_cache_usage_perc") > 0
    until(lambda: metric(http, "num_requests_running") == metric(http, "kv_cache_usage_perc") == 0)


def test_a_killed_engine_fails_what_ran_and_comes_back_by_itself(server: ServerProcess, http: httpx.Client) -> None:
    before = http.post("/v1/chat/completions", json=chat()).json()["choices"]
    endless = chat(stream=True, max_tokens=POSITIONS // 2, ignore_eos=True)
    with http.stream("POST", "/v1/chat/completions", json=endless) as reply:
        lines = (line for line in reply.iter_lines() if line)
        next(lines)
        engine_of(server.pid).kill()
        *_, error, done = lines
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
    assert done == "data: [DONE]"
    refused = http.post("/v1/chat/completions", json=chat())
    assert (refused.status_code, http.get("/ready").status_code, http.get("/health").status_code) == (503, 503, 200)
    until(lambda: http.get("/ready").status_code == 200)
    assert http.post("/v1/chat/completions", json=chat()).json()["choices"] == before


def test_on_sigterm_the_server_ends_and_its_engine_with_it(folder: Path) -> None:
    server = ServerProcess.deploy("--model", str(folder), "--chat_template", TEMPLATE, "--threads", "1")
    try:
        with httpx.Client(base_url=server.wait_until_listening(), timeout=PATIENCE) as http:
            until(lambda: http.get("/ready").status_code == 200)
            engine = engine_of(server.pid)
            server.signal()
            assert server.wait() == 0
        until(lambda: not engine.is_running())
    finally:
        server.close()


def test_a_model_that_cannot_be_run_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    server = ServerProcess.deploy("--model", str(tmp_path))
    try:
        assert server.wait() == 1
    finally:
        server.close()
    assert "cannot be loaded" in "".join(server.log)
