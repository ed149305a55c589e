"""What becomes of an answer under a schema, and which schemas are asked for."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.schemas import SETS, choose
from benchmarks.structured import outcome_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def answer(text: str, finish_reason: str = "stop") -> httpx.Response:
    choice = {"message": {"content": text}, "finish_reason": finish_reason}
    return httpx.Response(200, json={"choices": [choice], "usage": {"completion_tokens": 5}})


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (answer('{"a": 1}'), "valid"),
        (answer('{"a": "x"}'), "invalid"),
        (answer('{"a": 1'), "invalid"),
        (answer('{"a": 1', "length"), "cut"),
        (httpx.Response(400, text="no"), "refused"),
        (httpx.Response(500, text="oh"), "failed"),
    ],
)
def test_an_answer_counts_only_when_it_ends_and_is_what_the_schema_describes(
    response: httpx.Response, outcome: str
) -> None:
    assert outcome_of(response, SCHEMA)["outcome"] == outcome


def test_the_same_short_schemas_are_chosen_from_every_set(tmp_path: Path) -> None:
    long: dict[str, Any] = {"enum": ["x" * 3000]}
    for name in SETS:
        (tmp_path / name).mkdir()
        for index in range(5):
            (tmp_path / name / f"{index}.json").write_text(json.dumps(long if index == 2 else SCHEMA))
    chosen = choose(tmp_path, each=4)
    assert len(chosen) == 4 * len(SETS)
    assert [named.name.partition("/")[0] for named in chosen[: len(SETS)]] == list(SETS)
    assert not any(named.name.endswith("/2") for named in chosen)
    assert [named.name for named in choose(tmp_path, each=2)] == [named.name for named in chosen[: 2 * len(SETS)]]
