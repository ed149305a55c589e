"""What every folder of tests shares."""

import functools
import gc
import importlib.metadata
import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import jinja2
import pytest
from hypothesis import settings

from engines.setup.demo import demo_model as converted_demo_model
from tests.databases import database_url, postgres

__all__ = [
    "database_url",
    "demo_model",
    "postgres",
    "pytest_collection",
    "pytest_collection_modifyitems",
    "quick_libraries",
    "state_of_its_own",
    "what_lasts_is_not_collected",
]

LONG = (
    "e2e", "faults", "contract", "engines/vllm", "engines/lmdeploy", "training/evaluation", "training/parallel",
    "engines/pt/layers/test_quantized.py", "engines/setup/test_demo.py", "server/test_edge.py",
    "training/exports/test_readers.py", "training/test_several_processes.py", "training/test_two_learn_as_one.py",
    "pretended_gpu",
)  # fmt: skip
"""Folders and files that take longest: their tests start engines, servers and trainings in processes of their own."""

# The same examples every time, however slow the machine.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what servers of this user keep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_libraries() -> Iterator[None]:
    """Trainings in this process take a fifth less time: the card of each checkpoint is written by a template that was
    compiled before, what a package says of itself was read before, and no file waits for the disk."""
    compile = functools.lru_cache(maxsize=64)(jinja2.Environment.compile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", lambda *given, **named: compile(*given, **named))
        patch.setattr(importlib.metadata, "metadata", functools.cache(importlib.metadata.metadata))
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def what_lasts_is_not_collected() -> None:
    """What was imported since then, too."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Have no garbage collection look at what is imported here, nor at what pytest keeps of thousands of tests: each
    training ends with one."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give several workers the longest files first, then those with the most tests: at the end, where one of them would
    wait for another, there are short ones."""
    if not hasattr(config, "workerinput"):
        return
    counts = Counter(item.path for item in items)
    here = Path(__file__).parent
    late = {path: not any(path.is_relative_to(here / place) for place in LONG) for path in counts}
    items.sort(key=lambda item: (late[item.path], -counts[item.path]))


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's folder, converted once for this user."""
    return converted_demo_model()
