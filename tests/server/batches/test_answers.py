"""One request of a batch, and the files in which its answers come together."""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engines.echo import EchoEngine, EchoFaults, echo_tokenizer
from engines.params.deploy import DeployParams
from engines.types import BATCH_PRIORITY, EngineState, GenerationRequest, TokenOutput
from server.batches.answers import MAX_FAILURES, Answering, Reply, answer
from server.batches.results import Results
from server.deps import Parts
from server.http.keys.caller import ANYBODY
from server.inference.inference import Inference
from server.kept.completions import KeptCompletions
from server.model.served import ServedModel
from server.parts import make_parts
from server.responses.responses import Responses

CHAT = "/v1/chat/completions"
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


class Engine(EchoEngine):
    """Tells what it was asked, and comes back when it dies."""

    def __init__(self, faults: EchoFaults) -> None:
        super().__init__(faults=faults)
        self.requests: list[GenerationRequest] = []

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        return super().generate(request)

    async def keep_alive(self) -> None:
        while True:
            if self.health().state is EngineState.RESTARTING:
                await self.start()
            await asyncio.sleep(0.01)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine(EchoFaults())
    keeper = asyncio.create_task(engine.keep_alive())
    yield engine
    keeper.cancel()


@pytest.fixture
async def parts(engine: Engine, tmp_path: Path) -> AsyncIterator[Parts]:
    parts = make_parts(engine, echo_tokenizer(), DeployParams(model="echo", state_dir=str(tmp_path)))
    await parts[Inference].lifecycle.start_engine()
    yield parts
    await parts[Inference].adapters.close()


async def ask(parts: Parts, body: dict[str, Any], *, refuse_unknown: bool = False) -> Reply:
    answering = (parts[ServedModel], parts[Inference], parts[KeptCompletions], parts[Responses])
    return await answer(Answering(ANYBODY, *answering, refuse_unknown=refuse_unknown), CHAT, body)


async def test_a_request_of_a_batch_comes_after_all_others(engine: Engine, parts: Parts) -> None:
    reply = await ask(parts, HELLO)
    assert (reply.status, reply.body["choices"][0]["message"]["content"]) == (200, "hello")
    assert [request.priority for request in engine.requests] == [BATCH_PRIORITY]


async def test_a_request_waits_until_the_engine_is_back(engine: Engine, parts: Parts) -> None:
    engine.die()
    assert (await ask(parts, HELLO)).status == 200


async def test_an_engine_that_dies_of_a_request_again_and_again_is_spared_it(engine: Engine, parts: Parts) -> None:
    engine.faults.die_after = 2
    reply = await ask(parts, HELLO)
    assert (reply.status, reply.body["error"]["code"], len(engine.requests)) == (500, "internal_error", MAX_FAILURES)
    engine.faults.die_after = None
    assert (await ask(parts, HELLO)).status == 200


async def test_unknown_fields_are_ignored_or_where_the_server_says_so_refused(parts: Parts) -> None:
    assert (await ask(parts, HELLO | {"zeta": 1})).status == 200
    reply = await ask(parts, HELLO | {"zeta": 1}, refuse_unknown=True)
    assert (reply.status, reply.body["error"]["code"]) == (400, "unknown_parameter")


async def test_a_body_that_is_nested_too_deep_is_refused(parts: Parts) -> None:
    deep: list[Any] = []
    for _ in range(1000):
        deep = [deep]
    assert (await ask(parts, {**HELLO, "tools": deep})).status == 400


# ---- the files


def test_what_was_cut_is_taken_off_and_the_rest_counts(tmp_path: Path) -> None:
    results = Results(tmp_path)
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    results.add_answer("a", 200, "req-1", {"usage": usage})
    results.add_answer("b", 400, "req-2", {"error": {}})
    results.add_expired("c")
    for path in (results.output, results.errors):
        whole = path.read_bytes()
        path.write_bytes(whole + whole.splitlines()[0][:-1])
    again = Results(tmp_path)
    assert (again.done, again.completed, again.failed) == ({"a", "b", "c"}, 1, 2)
    assert again.usage == results.usage
    assert (again.usage.input_tokens, again.usage.cached_tokens, again.usage.output_tokens) == (3, 1, 2)
    again.add_answer("d", 200, "req-3", {})
    assert Results(tmp_path).done == {"a", "b", "c", "d"}


def test_a_disk_that_is_full_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path)
    results.add_answer("a", 200, "req-1", {})
    before = results.output.read_bytes()

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:-5])

    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            results.add_answer("b", 200, "req-2", {})
    assert results.output.read_bytes() == before
    assert results.done == {"a"} == Results(tmp_path).done
