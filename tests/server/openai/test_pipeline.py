"""A request with several faults is refused for the one that the pipeline comes to first, whatever the endpoint."""

from collections.abc import Callable
from typing import Any

import pytest

from engines.echo import EchoEngine
from tests.server.api import Api

FAULTS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"temperature": 3}, "temperature", "invalid_request"),
    ({"stream_options": {}}, "stream_options", "invalid_request"),
    ({"model": "nobody"}, "model", "model_not_found"),
    ({"response_format": {"type": "poem"}}, "response_format.type", "invalid_request"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "invalid_request"),
    ({"num_beams": 2}, "num_beams", "unsupported_parameter"),
    ({}, None, "rate_limit_exceeded"),
]
"""Faults in the order of the steps that find them, with what they are refused for; the last is a full queue."""


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("first", range(len(FAULTS)))
def test_the_first_step_that_finds_a_fault_refuses(make_api: Callable[..., Api], path: str, first: int) -> None:
    body = {field: value for fault, _, _ in FAULTS[first:] for field, value in fault.items()}
    refusal = make_api(engine=EchoEngine(max_requests=0)).refusal(path, **body)
    assert (refusal.param, refusal.code) == FAULTS[first][1:]
