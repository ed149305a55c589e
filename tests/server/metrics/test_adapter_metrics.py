"""What the metrics tell of each adapter, and that they forget one that is gone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.echo import EchoEngine
from server.inference.inference import Inference
from tests.adapter_folders import write_adapter
from tests.server.api import EchoApi
from tests.server.client import echo_client

LABELS = {"model_name": "echo", "engine": "pt"}


def ask(api: EchoApi, model: str) -> None:
    api.complete("abc", model=model, max_tokens=5)


def samples(api: EchoApi, name: str) -> dict[tuple[str, ...], float]:
    """Values by the labels that not all series have."""
    families = text_string_to_metric_families(api.http.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == f"tuneserve:{name}"]
    assert all(sample.labels.items() >= LABELS.items() for sample in samples)
    return {
        tuple(value for label, value in sample.labels.items() if label not in LABELS): sample.value
        for sample in samples
    }


@pytest.fixture
def api(tmp_path: Path) -> Iterator[EchoApi]:
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / name, seed=seed)
    folders: dict[str, Any] = {"adapter_roots": (str(tmp_path),), "state_dir": str(tmp_path / "state")}
    with echo_client(EchoEngine(max_loras=2), **folders) as client:
        yield EchoApi(client)


COUNTERS = (
    "adapter_requests_total",
    "adapter_prompt_tokens_total",
    "adapter_generation_tokens_total",
    "adapter_time_to_first_token_seconds_count",
)


def test_requests_are_counted_by_adapter_and_those_of_the_base_model_only_in_the_total(api: EchoApi) -> None:
    api.adapters.create("sql", "a")
    api.adapters.create("idle", "b")
    for model in ("sql", "echo:sql", "echo"):
        ask(api, model)
    assert [samples(api, name) for name in COUNTERS] == [{("sql",): 2}, {("sql",): 6}, {("sql",): 10}, {("sql",): 2}]
    assert samples(api, "prompt_tokens_total") == {(): 9}


def test_embeddings_count_too(api: EchoApi) -> None:
    api.adapters.create("sql", "a")
    api.post("/v1/embeddings", model="sql", input=["ab", "c"])
    assert samples(api, "adapter_requests_total") == {("sql",): 1}
    assert samples(api, "adapter_prompt_tokens_total") == {("sql",): 3}


def test_requests_by_an_alias_count_for_the_adapter(api: EchoApi) -> None:
    api.adapters.create("sql", "a")
    api.adapters.alias("stable", "sql")
    ask(api, "stable")
    assert samples(api, "adapter_requests_total") == {("sql",): 1}


def test_each_adapter_is_in_one_state(api: EchoApi) -> None:
    api.adapters.create("sql", "a")
    api.adapters.create("idle", "b")
    ask(api, "sql")
    there = {labels: value for labels, value in samples(api, "adapter_state").items() if value}
    assert there == {("sql", "slot"): 1, ("idle", "host"): 1}
    assert samples(api, "adapter_state")["sql", "draining"] == 0


def test_slots_that_are_filled_and_given_away_are_counted(api: EchoApi) -> None:
    for name in ("one", "two", "three"):
        api.adapters.create(name, "a")
        ask(api, name)
    assert samples(api, "adapter_loads_total") == {("one",): 1, ("two",): 1, ("three",): 1}
    assert samples(api, "adapter_evictions_total") == {("one",): 1}


def test_the_labels_of_an_adapter_go_with_it(api: EchoApi) -> None:
    api.adapters.create("sql", "a")
    ask(api, "sql")
    api.adapters.delete("sql").raise_for_status()
    assert [samples(api, name) for name in (*COUNTERS, "adapter_state")] == [{}] * 5
    assert samples(api, "prompt_tokens_total") == {(): 3}


def test_adapters_that_come_and_go_leave_nothing_even_where_nobody_scrapes(api: EchoApi) -> None:
    metrics = api.http.parts[Inference].metrics
    for number in range(20):
        api.adapters.create(f"sql-{number}", "a")
        ask(api, f"sql-{number}")
        api.adapters.delete(f"sql-{number}").raise_for_status()
    assert len(metrics.adapters.counted) <= 1


def test_a_replaced_adapter_goes_on_counting(api: EchoApi) -> None:
    api.adapters.create("sql", "a")
    ask(api, "sql")
    api.adapters.create("sql", "b", replace=True)
    ask(api, "sql")
    assert samples(api, "adapter_requests_total") == {("sql",): 2}
