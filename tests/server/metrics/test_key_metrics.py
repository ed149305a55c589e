"""Metrics of keys: by their names, never by their texts, and by no more names than there are."""

import logging
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.http.keys.keys import Keys
from tests.server.client import ReadyClient, echo_client
from tests.server.keys import ASK, FULL, TEACH, bearer


def counts(client: ReadyClient, name: str) -> dict[str, float]:
    """Value of each series of the family, by its only label."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == f"tuneserve:{name}_total"]
    return {"".join(sample.labels.values()): sample.value for sample in samples}


def test_requests_are_counted_by_the_name_of_the_key() -> None:
    with echo_client(api_key=[f"team=infer:{ASK}", f"team=train:{TEACH}", f"idle={FULL}"]) as client:
        for key in (ASK, TEACH):
            client.get("/v1/models", headers=bearer(key))
        client.post("/tokenize", json={"prompt": "a"}, headers=bearer(TEACH))
        for headers in ({}, bearer("x" * 20), bearer(FULL[:-1])):
            client.get("/v1/models", headers=headers)
        client.get("/health", headers=bearer(ASK))
        assert counts(client, "key_requests") == {"team": 3, "idle": 0}
        assert counts(client, "auth_failures") == {"invalid_api_key": 3, "insufficient_permissions": 1}


def test_without_keys_there_is_nobody_to_count() -> None:
    with echo_client() as client:
        client.get("/v1/models", headers=bearer(FULL))
        assert counts(client, "key_requests") == {}
        assert set(counts(client, "auth_failures").values()) == {0}


def test_a_name_that_goes_takes_its_series_along(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"old={ASK}")
    with echo_client(api_key_file=str(file)) as client:
        client.get("/v1/models", headers=bearer(ASK))
        file.write_text(f"new={TEACH}")
        client.parts[Keys].reload()
        client.get("/v1/models", headers=bearer(TEACH))
        assert counts(client, "key_requests") == {"new": 1}


def test_no_text_of_a_key_stands_in_the_log_or_the_metrics(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "keys"
    file.write_text(TEACH)
    with echo_client(api_key=[f"team={FULL}", f"infer:{ASK}"], api_key_file=str(file), log_interval=1) as client:
        for key in (FULL, ASK, TEACH, "not-a-key-of-ours"):
            for path in ("/v1/models", "/v1/adapters", "/nope"):
                client.get(path, headers=bearer(key))
        client.parts[Keys].reload()
        told = caplog.text + client.get("/metrics").text
    assert "testclient team GET /v1/models 200" in told
    for key in (FULL, ASK, TEACH, "not-a-key-of-ours"):
        assert key not in told
