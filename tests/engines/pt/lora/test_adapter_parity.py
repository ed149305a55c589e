"""Requests for the base model and for adapters in one batch: each answer is what PEFT's merged model says, alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.pt.core import EngineCore
from engines.pt.runner import ModelRunner
from engines.types import GenerationRequest, PoolingRequest
from tests.engines.pt.adapters import load, save_adapter, with_peft
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import Answer, Reference, core_of, prompt, request, run, settings
from tests.engines.pt.test_parity import BUDGET, LENGTHS, check
from tests.engines.pt.tiny import CONFIGS

VERSIONS = (None, "a", "b")
RANKS = {"a": 4, "b": 7}
WITH_EXPERTS = ("mixtral", "qwen3-moe", "phimoe")
"""Of these models the attention alone is adapted: experts, and routers that are no plain linear layers, are refused."""


@pytest.fixture(scope="session")
def adapter(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of adapter "a" or "b" of a tiny model: all linear layers, in different ranks."""
    known = {}

    def get(name: str, version: str) -> Path:
        if (name, version) not in known:
            target = tmp_path_factory.mktemp(f"{name}-{version}")
            layers = ["q_proj", "k_proj", "v_proj", "o_proj"] if name in WITH_EXPERTS else "all-linear"
            known[name, version] = save_adapter(
                folder(name), target, seed=ord(version), r=RANKS[version], target_modules=layers
            )
        return known[name, version]

    return get


@pytest.fixture(scope="session")
def references(
    folder: Callable[[str], Path], reference: Callable[[str], Reference], adapter: Callable[[str, str], Path]
) -> Callable[[str], dict[str | None, Reference]]:
    known = {}

    def get(name: str) -> dict[str | None, Reference]:
        if name not in known:
            known[name] = {None: reference(name)} | {v: with_peft(folder(name), adapter(name, v)) for v in RANKS}
        return known[name]

    return get


@pytest.fixture
def adapted_core(runner: GetRunner, adapter: Callable[[str, str], Path]) -> Callable[..., EngineCore]:
    """A core that holds both adapters."""

    def get(name: str, *, blocks: int | None = None, **changes: Any) -> EngineCore:
        core = core_of(runner(name) if blocks is None else runner(name, blocks=blocks), **changes)
        load(core, a=adapter(name, "a"), b=adapter(name, "b"))
        return core

    return get


@pytest.fixture(params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def requests() -> list[GenerationRequest]:
    """Every version with prompts of all lengths, in turns."""
    lengths = [length for length in LENGTHS[::3] for _ in VERSIONS]
    return [
        request(prompt(length, seed=i), f"r{i}", adapter=VERSIONS[i % 3], max_new_tokens=6, ignore_eos=True, logprobs=5)
        for i, length in enumerate(lengths)
    ]


def check_all(
    references: dict[str | None, Reference], asked: list[GenerationRequest], answers: dict[str, Answer]
) -> None:
    for version, truth in references.items():
        check(truth, [one for one in asked if one.adapter == version], answers)


def test_together_with_chunked_prefill(
    name: str, adapted_core: Callable[..., EngineCore], references: Callable[[str], dict[str | None, Reference]]
) -> None:
    core = adapted_core(name, max_num_batched_tokens=BUDGET, max_num_seqs=18)
    asked = requests()
    check_all(references(name), asked, run(core, asked))


def test_preempted(
    name: str, adapted_core: Callable[..., EngineCore], references: Callable[[str], dict[str | None, Reference]]
) -> None:
    core = adapted_core(name, blocks=16, max_num_batched_tokens=BUDGET, max_num_seqs=18)
    asked = requests()
    check_all(references(name), asked, run(core, asked))
    assert core.stats().preemptions > 0


def test_the_prefix_cache_never_crosses_versions(
    name: str, adapted_core: Callable[..., EngineCore], references: Callable[[str], dict[str | None, Reference]]
) -> None:
    core = adapted_core(name, max_num_batched_tokens=BUDGET)
    for seen in (0, 32):
        for version in VERSIONS:
            one = request(prompt(35), adapter=version, ignore_eos=True, logprobs=5)
            answers = run(core, [one])
            check(references(name)[version], [one], answers)
            assert answers["r"].first.cached_tokens == seen
    assert (core.stats().prefix_cache_queries, core.stats().prefix_cache_hits) == (6 * 35, 3 * 32)


# ---- everything that a request may ask for


@pytest.fixture(scope="session")
def merged(
    folder: Callable[[str], Path], adapter: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a model that adapter "a" has been merged into: to the engine it is a base model."""
    target = tmp_path_factory.mktemp("merged")
    with_peft(folder("llama"), adapter("llama", "a")).model.save_pretrained(target)
    return target


@pytest.fixture(scope="session")
def merged_core(merged: Path) -> Callable[..., EngineCore]:
    known = ModelRunner(settings(merged))
    return lambda **changes: core_of(known, **changes)


def both(
    adapted_core: Callable[..., EngineCore], merged_core: Callable[..., EngineCore], *, n: int = 1, **sampling: Any
) -> tuple[Answer, Answer]:
    """The answer with the adapter, beside two of the others; and that of the merged model."""
    one = request(prompt(21), n=n, ignore_eos=True, **sampling)
    asked = [
        request(one.prompt_ids, adapter="a", n=n, ignore_eos=True, **sampling),
        request(one.prompt_ids, "b", adapter="b", ignore_eos=True),
        request(one.prompt_ids, "base", ignore_eos=True),
    ]
    return run(adapted_core("llama"), asked)["r"], run(merged_core(), [one])["r"]


def test_several_outputs_of_a_prompt(
    adapted_core: Callable[..., EngineCore], merged_core: Callable[..., EngineCore]
) -> None:
    found, expected = both(adapted_core, merged_core, n=4, temperature=1.0, seed=5)
    assert len(found.outputs) == 4
    assert {i: o.token_ids for i, o in found.outputs.items()} == {i: o.token_ids for i, o in expected.outputs.items()}


def test_beams(adapted_core: Callable[..., EngineCore], merged_core: Callable[..., EngineCore]) -> None:
    found, expected = both(adapted_core, merged_core, n=3, num_beams=3)
    assert len(found.outputs) == 3
    assert {i: o.token_ids for i, o in found.outputs.items()} == {i: o.token_ids for i, o in expected.outputs.items()}


def test_prompt_logprobs(
    adapted_core: Callable[..., EngineCore], references: Callable[[str], dict[str | None, Reference]]
) -> None:
    one = request(prompt(21), adapter="a", prompt_logprobs=5)
    answers = run(adapted_core("llama", max_num_batched_tokens=8), [one, request(prompt(9), "base")])
    references("llama")["a"].check_prompt(one.prompt_ids, answers["r"].first.prompt_logprobs)


def test_embeddings(adapted_core: Callable[..., EngineCore], merged_core: Callable[..., EngineCore]) -> None:
    one = PoolingRequest(request_id="e", prompt_ids=prompt(21), adapter="a")
    base = PoolingRequest(request_id="base", prompt_ids=prompt(21))
    answers = run(adapted_core("llama"), [one, base, request(prompt(9), adapter="b")])
    expected = run(merged_core(), [base])["base"].pooled
    assert answers["e"].pooled == pytest.approx(expected, abs=1e-4)
    assert answers["base"].pooled != pytest.approx(expected, abs=1e-2)
