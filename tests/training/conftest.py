"""A tiny model and data for jobs."""

from pathlib import Path

import pytest

from tests.training.jobs import make_data, make_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose layers have biases."""
    return make_model(tmp_path_factory.mktemp("biased"), "qwen2")


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "lines.jsonl")
