"""Requests whose prompts begin alike, and which arrive together: who computes what."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from engines.pt.core import EngineCore
from engines.types import GenerationRequest
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import BLOCK_SIZE, Reference, core_of, prompt, request, run

LENGTH = 8 * BLOCK_SIZE + 3
BUDGET = 2 * BLOCK_SIZE
ALIKE = prompt(LENGTH)


def ask(prompt_ids: list[int], name: str, *, salt: str | None = None, priority: int = 0) -> GenerationRequest:
    one = request(prompt_ids, name, max_new_tokens=3, ignore_eos=True, logprobs=1, priority=priority)
    return replace(one, cache_salt=salt)


def computed(core: EngineCore, outputs: int) -> int:
    """Prompt tokens that were computed, where so many outputs of 3 tokens were."""
    return core.stats().step_tokens - 2 * outputs


@pytest.fixture
def core(runner: GetRunner) -> EngineCore:
    return core_of(runner("llama"), max_num_batched_tokens=BUDGET)


def test_equal_prompts_are_computed_once(core: EngineCore, reference: Callable[[str], Reference]) -> None:
    asked = [ask(ALIKE, f"r{i}") for i in range(3)]
    answers = run(core, asked)
    assert computed(core, 3) == LENGTH + 2 * (LENGTH % BLOCK_SIZE)
    firsts = [answers[one.request_id].first for one in asked]
    shared = LENGTH // BLOCK_SIZE * BLOCK_SIZE
    assert [first and first.cached_tokens for first in firsts] == [0, shared, shared]
    for one in asked:
        reference("llama").check_greedy(one, answers[one.request_id].outputs[0])


def test_what_prompts_have_in_common_is_computed_once(core: EngineCore) -> None:
    common = ALIKE[: 5 * BLOCK_SIZE]
    run(core, [ask(ALIKE, "one"), ask(common + prompt(30, 1), "other")])
    assert computed(core, 2) == LENGTH + 30


def test_others_go_first_meanwhile(runner: GetRunner) -> None:
    core = core_of(runner("llama"), max_num_batched_tokens=2 * LENGTH)
    for one in (ask(ALIKE, "one"), ask(ALIKE, "same"), ask(prompt(5, 1), "short")):
        core.add(one)
    core.step()
    assert [sequence.group.request.request_id for sequence in core.scheduler.running] == ["one", "short"]
    assert core.stats().waiting_for == {"prefix": 1}
    core.step()
    assert core.stats().waiting == 0


@pytest.mark.parametrize("ends", ["aborted", "preempted"])
def test_where_the_first_does_not_go_on_nobody_waits_for_it(core: EngineCore, ends: str) -> None:
    core.add(ask(ALIKE, "one"))
    core.step()
    core.add(ask(ALIKE, "same"))
    core.step()
    [first] = core.scheduler.running
    if ends == "aborted":
        core.requests.abort("one")
    else:
        core.scheduler._preempt(first)
    told: list[str] = []
    for _ in range(20):
        told += [name for name, _ in core.step().outputs]
    assert not core.busy and told.count("same") == 3
    assert told.count("one") == (0 if ends == "aborted" else 3)
    assert computed(core, 1 if ends == "aborted" else 2) <= LENGTH + LENGTH % BLOCK_SIZE


@pytest.mark.parametrize(
    "other",
    [ask(ALIKE, "other", salt="b"), ask(ALIKE, "other", priority=-1), ask(prompt(LENGTH, 1), "other")],
    ids=["of another salt", "that goes first", "that begins otherwise"],
)
def test_nobody_waits_for_a_request(core: EngineCore, other: GenerationRequest) -> None:
    core.add(ask(ALIKE, "one", salt="a"))
    core.step()
    core.add(other)
    core.step()
    assert core.stats().waiting_for.get("prefix") is None


def test_without_a_prefix_cache_nobody_waits(runner: GetRunner) -> None:
    core = core_of(runner("llama"), max_num_batched_tokens=BUDGET, enable_prefix_caching=False)
    run(core, [ask(ALIKE, "one"), ask(ALIKE, "same")])
    assert computed(core, 2) == 2 * LENGTH
