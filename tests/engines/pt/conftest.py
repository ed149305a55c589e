"""Tiny models on disk and loaded, each made once a session."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from engines.pt.kernels import build
from engines.pt.runner import ModelRunner
from engines.sampler.grammar import GrammarCompiler
from tests.engines.pt.driving import Reference, cache_of, settings
from tests.engines.pt.tiny import CONFIGS, EOS, VOCAB_SIZE, byte_level_tokenizer, save

GetRunner = Callable[..., ModelRunner]


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """The C kernels, built for this machine."""
    found = build.load()
    if found is None:
        pytest.skip("no C compiler: the engine then runs on plain torch, which the other tests cover")
    return found


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest) -> ctypes.CDLL | None:
    """The kernel's library, or None for plain torch."""
    return request.getfixturevalue("library") if request.param == "kernel" else None


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model, by its name in `tiny.CONFIGS`."""
    known: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in known:
            known[name] = save(CONFIGS[name](), tmp_path_factory.mktemp(name), tokenizer=True)
        return known[name]

    return get


@pytest.fixture(scope="session")
def reference(folder: Callable[[str], Path]) -> Callable[[str], Reference]:
    """The same model in plain transformers, with eager attention: the one that leaves nothing out."""
    known: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in known:
            model = AutoModelForCausalLM.from_pretrained(folder(name), attn_implementation="eager").eval()
            known[name] = Reference(model)
        return known[name]

    return get


@pytest.fixture(scope="session")
def runner(folder: Callable[[str], Path]) -> GetRunner:
    """The same model in the engine. `blocks` bounds the cache; the rest is as in `PtConfig`."""
    known: dict[tuple[str, str], ModelRunner] = {}

    def get(name: str, *, blocks: int | None = None, **changes: Any) -> ModelRunner:
        if blocks is not None:
            changes["kv_cache_memory"] = cache_of(blocks, get(name))
        key = (name, repr(sorted(changes.items())))
        if key not in known:
            known[key] = ModelRunner(settings(folder(name), **changes))
        return known[key]

    return get


class Grammars(GrammarCompiler):
    """A compiler that can also say what its tokens mean."""

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode_bytes(tokens).decode()


@pytest.fixture(scope="session")
def grammars() -> Grammars:
    return Grammars(byte_level_tokenizer(), VOCAB_SIZE, (EOS,))
