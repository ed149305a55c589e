"""What the metrics tell of each adapter, and that they forget one that is gone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.echo import EchoEngine
from server.inference.inference import Inference
from tests.adapter_folders import write_adapter
from tests.server.client import ReadyClient, echo_client

LABELS = {"model_name": "echo", "engine": "pt"}


class Server:
    def __init__(self, client: ReadyClient) -> None:
        self.client = client

    def load(self, name: str, path: str = "a", **fields: Any) -> dict[str, Any]:
        return self.client.post("/v1/adapters", json={"name": name, "path": path, **fields}).json()

    def unload(self, name: str) -> None:
        assert self.client.delete(f"/v1/adapters/{name}").status_code == 200

    def ask(self, model: str) -> dict[str, Any]:
        return self.client.post("/v1/completions", json={"model": model, "prompt": "abc", "max_tokens": 5}).json()

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Values by the labels that not all series have."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == f"tuneserve:{name}"]
        assert all(sample.labels.items() >= LABELS.items() for sample in samples)
        return {
            tuple(value for label, value in sample.labels.items() if label not in LABELS): sample.value
            for sample in samples
        }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / name, seed=seed)
    folders: dict[str, Any] = {"adapter_roots": (str(tmp_path),), "state_dir": str(tmp_path / "state")}
    with echo_client(EchoEngine(max_loras=2), **folders) as client:
        yield Server(client)


COUNTERS = (
    "adapter_requests_total",
    "adapter_prompt_tokens_total",
    "adapter_generation_tokens_total",
    "adapter_time_to_first_token_seconds_count",
)


def test_requests_are_counted_by_adapter_and_those_of_the_base_model_only_in_the_total(server: Server) -> None:
    server.load("sql")
    server.load("idle", "b")
    for model in ("sql", "echo:sql", "echo"):
        server.ask(model)
    assert [server.samples(name) for name in COUNTERS] == [{("sql",): 2}, {("sql",): 6}, {("sql",): 10}, {("sql",): 2}]
    assert server.samples("prompt_tokens_total") == {(): 9}


def test_embeddings_count_too(server: Server) -> None:
    server.load("sql")
    server.client.post("/v1/embeddings", json={"model": "sql", "input": ["ab", "c"]})
    assert server.samples("adapter_requests_total") == {("sql",): 1}
    assert server.samples("adapter_prompt_tokens_total") == {("sql",): 3}


def test_requests_by_an_alias_count_for_the_adapter(server: Server) -> None:
    server.load("sql")
    server.client.post("/v1/adapters/stable/alias", json={"target": "sql"})
    server.ask("stable")
    assert server.samples("adapter_requests_total") == {("sql",): 1}


def test_each_adapter_is_in_one_state(server: Server) -> None:
    server.load("sql")
    server.load("idle", "b")
    server.ask("sql")
    there = {labels: value for labels, value in server.samples("adapter_state").items() if value}
    assert there == {("sql", "slot"): 1, ("idle", "host"): 1}
    assert server.samples("adapter_state")["sql", "draining"] == 0


def test_slots_that_are_filled_and_given_away_are_counted(server: Server) -> None:
    for name in ("one", "two", "three"):
        server.load(name)
        server.ask(name)
    assert server.samples("adapter_loads_total") == {("one",): 1, ("two",): 1, ("three",): 1}
    assert server.samples("adapter_evictions_total") == {("one",): 1}


def test_the_labels_of_an_adapter_go_with_it(server: Server) -> None:
    server.load("sql")
    server.ask("sql")
    server.unload("sql")
    assert [server.samples(name) for name in (*COUNTERS, "adapter_state")] == [{}] * 5
    assert server.samples("prompt_tokens_total") == {(): 3}


def test_adapters_that_come_and_go_leave_nothing_even_where_nobody_scrapes(server: Server) -> None:
    metrics = server.client.parts[Inference].metrics
    for number in range(20):
        server.load(f"sql-{number}")
        server.ask(f"sql-{number}")
        server.unload(f"sql-{number}")
    assert len(metrics.adapters.counted) <= 1


def test_a_replaced_adapter_goes_on_counting(server: Server) -> None:
    server.load("sql")
    server.ask("sql")
    server.load("sql", "b", replace=True)
    server.ask("sql")
    assert server.samples("adapter_requests_total") == {("sql",): 2}
