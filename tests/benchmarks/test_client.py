"""The benchmark's client against a real server."""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.client import Client
from benchmarks.driver import run_concurrently
from benchmarks.workload import Load
from tests.server.process import ServerProcess
from tests.until import until


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ServerProcess.echo(params={"served_model_name": "bench", "verbose": False})
    try:
        url = server.wait_until_listening()
        until(server.is_ready)
        yield url
    finally:
        server.close()


def make_load(**changes: Any) -> Load:
    messages = [[{"role": "user", "content": f"a sentence to repeat, number {number}"}] for number in range(5)]
    usual: dict[str, Any] = {
        "messages": messages,
        "concurrency": 2,
        "sampling": {"temperature": 0.0},
        "output_tokens": 6,
    }
    return Load(**usual | changes)


async def test_every_request_is_answered_with_its_tokens_counted_and_its_pieces_timed(url: str) -> None:
    answers = await run_concurrently(make_load(), Client(url, "bench").ask)

    assert len(answers) == 5
    assert [answer.error for answer in answers] == [""] * 5
    assert all(answer.output_tokens == 6 and answer.prompt_tokens > 0 for answer in answers)
    assert all(answer.started <= answer.arrivals[0] <= answer.arrivals[-1] <= answer.ended for answer in answers)


async def test_a_refusal_becomes_the_answers_error(url: str) -> None:
    answers = await run_concurrently(make_load(extra={"guided_regex": "a"}), Client(url, "bench").ask)

    assert all("guided_regex" in answer.error for answer in answers)


async def test_a_server_that_is_not_there_becomes_the_answers_error() -> None:
    answers = await run_concurrently(make_load(), Client("http://127.0.0.1:9", "bench").ask)

    assert all(answer.error for answer in answers)
