"""Adapters on disk, in host memory and in slots: what is kept where, and what happens when files go."""

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Never

import pytest
import torch

from engines.adapters.slots import AdapterSlots
from engines.adapters.spec import CONFIG, WEIGHTS
from engines.capabilities import AdapterSupport
from engines.errors import EngineFailure, InvalidAdapter, TuneserveError
from engines.pt.core import EngineCore
from engines.pt.lora.store import AdapterStore
from engines.pt.lora.weights import AdapterWeights
from engines.pt.outputs.requests import StepReport
from engines.types import FinishReason, GenerationRequest
from tests.engines.pt.adapters import PATIENCE, load, save_adapter, with_peft
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import Reference, core_of, prompt, request, run
from tests.engines.pt.test_parity import check


@pytest.fixture(scope="session")
def saved(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of eight adapters of the tiny llama, all different."""
    root = tmp_path_factory.mktemp("adapters")
    targets = ["q_proj", "down_proj"]
    return {
        name: save_adapter(folder("llama"), root / name, seed=ord(name), r=2 + i, target_modules=targets)
        for i, name in enumerate("abcdefgh")
    }


@pytest.fixture
def copies(saved: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The same, for a test to break."""
    return {name: shutil.copytree(path, tmp_path / name) for name, path in saved.items()}


class Lora:
    """The model's slots, without a model: notes what is written."""

    def __init__(self, support: AdapterSupport, num_slots: int) -> None:
        self.support = support
        self.num_slots = num_slots
        self.written: dict[int, AdapterWeights] = {}

    def laid_out(self, weights: AdapterWeights) -> AdapterWeights:
        return weights

    def write(self, slot: int, weights: AdapterWeights) -> None:
        self.written[slot] = weights

    def clear(self, slot: int) -> None:
        del self.written[slot]


class Stored:
    """A store with its slots, driven as the core drives it."""

    def __init__(
        self, runner: GetRunner, folders: dict[str, Path], *, num_slots: int = 2, max_in_host: int = 3
    ) -> None:
        plain = runner("llama", max_loras=num_slots)
        self.lora = Lora(plain.lora.support, num_slots)
        self.slots = AdapterSlots(num_slots)
        self.store = AdapterStore(self.lora, self.slots, dtype=torch.float32, max_in_host=max_in_host)  # type: ignore[arg-type]
        self.folders = folders
        self.woken = threading.Event()
        self.store.wake = self.woken.set

    def load(self, *versions: str, pinned: bool = False) -> dict[str, TuneserveError | None]:
        for version in versions:
            self.store.load(version, self.folders[version], pinned=pinned)
        return self.arrivals(len(versions))

    def arrivals(self, count: int) -> dict[str, TuneserveError | None]:
        """So many of them, in the order in which they come."""
        found: dict[str, TuneserveError | None] = {}
        while len(found) < count:
            self.woken.clear()
            found |= {arrival.version: arrival.error for arrival in self.store.arrivals()}
            if len(found) < count and self.store.reading:
                assert self.woken.wait(PATIENCE)
        return found

    def use(self, version: str) -> int:
        """Run one sequence with a version that is in host memory, and end it."""
        self.slots.begin()
        assert self.slots.may_run(version)
        slot = self.slots.acquire(version)
        assert self.store.fill_slots() == []
        self.slots.release(slot)
        return slot


@pytest.fixture
def stored(runner: GetRunner, copies: dict[str, Path]) -> Callable[..., Stored]:
    return lambda **changes: Stored(runner, copies, **changes)


# ---- host memory


def test_host_memory_keeps_the_most_recently_used_and_no_more(stored: Callable[..., Stored]) -> None:
    one = stored()
    assert one.load("a", "b", "c") == dict.fromkeys("abc")
    assert one.store.in_host == ("a", "b", "c")
    one.use("a")
    one.load("d")
    assert one.store.in_host == ("c", "a", "d")
    assert one.slots.ready == {"c", "a", "d"}
    assert all(version in one.store for version in "abcd"), "on disk they all are"


def test_what_the_first_in_line_wait_for_is_read_in_their_order_and_kept(stored: Callable[..., Stored]) -> None:
    one = stored()
    one.load(*"abcdef")
    one.store.want(["a", "b", "a", "d", "c"])
    assert list(one.arrivals(2)) == ["a", "b"], "the third is there already, the fourth finds no room"
    assert {*one.store.in_host} == {*"abd"}
    one.load("g")
    assert {*one.store.in_host} == {*"abd"}


def test_what_is_in_a_slot_is_not_read_again(stored: Callable[..., Stored]) -> None:
    one = stored(max_in_host=1)
    one.load("a")
    one.use("a")
    one.load("b")
    assert one.store.in_host == ("b",)
    one.store.want(["a", "b"])
    assert not one.store.reading


def test_what_is_on_its_way_to_a_slot_stays_until_it_is_there(stored: Callable[..., Stored]) -> None:
    one = stored(max_in_host=1)
    one.load("a")
    one.slots.begin()
    one.slots.acquire("a")
    one.load("b")
    assert "a" in one.store.in_host
    assert one.store.fill_slots() == []
    assert len(one.store.in_host) == 1


# ---- loading, pins, unloading


def test_what_is_there_already_arrives_at_once_whatever_became_of_its_folder(stored: Callable[..., Stored]) -> None:
    one = stored(max_in_host=1)
    one.load("a")
    one.use("a")
    one.load("b")
    for version in "ab":  # one in a slot, the other in host memory
        shutil.rmtree(one.folders[version])
        one.store.load(version, one.folders[version], pinned=False)
        assert not one.store.reading
        assert [(arrival.version, arrival.error) for arrival in one.store.arrivals()] == [(version, None)]


def test_a_pinned_adapter_gets_its_slot_when_it_is_loaded_and_keeps_it(stored: Callable[..., Stored]) -> None:
    one = stored()
    one.load("a", pinned=True)
    one.store.fill_slots()
    assert one.slots.resident == ("a",) and len(one.lora.written) == 1
    one.load("b", "c")
    assert one.use("b") == one.use("c") != one.slots.slot_of("a")


def test_no_more_can_be_pinned_than_leave_a_slot_for_the_others(stored: Callable[..., Stored]) -> None:
    one = stored()
    one.load("a", pinned=True)
    with pytest.raises(InvalidAdapter) as refused:
        one.store.load("b", one.folders["b"], pinned=True)
    assert refused.value.param == "pinned"
    assert "b" not in one.store
    one.load("a", pinned=True)  # that one is pinned already
    one.load("a", pinned=False)
    one.load("b", pinned=True)
    assert one.slots.pinned == {"b"}


def test_unloading_frees_every_place(stored: Callable[..., Stored]) -> None:
    one = stored()
    one.load("a", "b", pinned=False)
    one.use("a")
    one.store.unload("a")
    one.store.unload("never heard of")
    assert "a" not in one.store
    assert (one.store.in_host, one.slots.resident, one.lora.written) == (("b",), (), {})
    one.store.want(["a"])
    assert not one.store.reading


def test_a_version_that_is_unloaded_while_it_is_read_never_arrives(
    stored: Callable[..., Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, go = stored(), threading.Event()
    read = one.store._read_folder
    monkeypatch.setattr(one.store, "_read_folder", lambda folder: go.wait(PATIENCE) and read(folder))
    one.store.load("a", one.folders["a"], pinned=False)
    one.store.unload("a")
    go.set()
    one.store.load("b", one.folders["b"], pinned=False)
    assert one.arrivals(1) == {"b": None}
    assert one.store.in_host == ("b",)


# ---- files that are gone or broken


def truncate(path: Path) -> None:
    weights = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(weights[: len(weights) // 2])


BREAK: dict[str, Callable[[Path], object]] = {
    "gone": shutil.rmtree,
    "without weights": lambda path: (path / WEIGHTS).unlink(),
    "truncated": truncate,
    "garbage": lambda path: (path / WEIGHTS).write_bytes(b"\xff" * 100),
    "no configuration": lambda path: (path / CONFIG).write_text("{"),
}


@pytest.mark.parametrize("how", BREAK)
def test_files_that_are_gone_or_broken_are_the_adapters_own_fault(stored: Callable[..., Stored], how: str) -> None:
    one = stored()
    BREAK[how](one.folders["a"])
    found = one.load("a", "b")
    assert isinstance(found["a"], InvalidAdapter) and found["b"] is None
    assert str(one.folders["a"]) not in found["a"].message
    assert one.store.in_host == ("b",)


def test_whatever_goes_wrong_while_an_adapter_is_read_is_told(
    stored: Callable[..., Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stored()

    def broken(*args: object) -> Never:
        raise MemoryError("secret details")

    monkeypatch.setattr("engines.pt.lora.store.read_weights", broken)
    error = one.load("a")["a"]
    assert isinstance(error, EngineFailure) and "secret" not in error.message


# ---- with a model


@pytest.fixture
def small_core(runner: GetRunner) -> Callable[..., EngineCore]:
    """A core with two slots, and room for two adapters in host memory."""
    return lambda **changes: core_of(runner("llama", max_loras=2), max_cpu_loras=2, **changes)


def asked_of(versions: Sequence[str | None], count: int) -> list[GenerationRequest]:
    return [
        request(prompt(5 + i, i), f"r{i}", adapter=versions[i % len(versions)], ignore_eos=True, logprobs=3)
        for i in range(count)
    ]


def test_more_adapters_than_slots_and_host_memory_hold_are_all_served(
    small_core: Callable[..., EngineCore],
    saved: dict[str, Path],
    folder: Callable[[str], Path],
    reference: Callable[[str], Reference],
) -> None:
    core = small_core()
    load(core, **saved)
    versions = (*saved, None)
    asked = asked_of(versions, 3 * len(versions))

    def bounded(step: int) -> None:
        assert len(core.stats().adapter_slots) <= 2
        assert len(core.stats().adapter_host) <= 2

    answers = run(core, asked, between=bounded)
    for version in versions:
        truth = reference("llama") if version is None else with_peft(folder("llama"), saved[version])
        check(truth, [one for one in asked if one.adapter == version], answers)
    assert sum(core.stats().adapter_evictions.values()) >= len(saved) - 2


def test_a_folder_that_is_gone_ends_only_its_own_requests(
    small_core: Callable[..., EngineCore],
    copies: dict[str, Path],
    saved: dict[str, Path],
    folder: Callable[[str], Path],
    reference: Callable[[str], Reference],
) -> None:
    core = small_core()
    load(core, **copies)
    assert "a" not in core.stats().adapter_host
    shutil.rmtree(copies["a"])
    asked = asked_of(("a", "b", None), 9)
    answers = run(core, asked)
    for one in asked:
        assert isinstance(answers[one.request_id].error, EngineFailure) == (one.adapter == "a")
    check(with_peft(folder("llama"), saved["b"]), [one for one in asked if one.adapter == "b"], answers)
    check(reference("llama"), [one for one in asked if one.adapter is None], answers)


def test_an_adapter_that_cannot_be_copied_to_its_slot_ends_only_its_own_requests(
    small_core: Callable[..., EngineCore],
    saved: dict[str, Path],
    folder: Callable[[str], Path],
    reference: Callable[[str], Reference],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = small_core()
    load(core, a=saved["a"], b=saved["b"])
    write, failures = core.runner.lora.write, [RuntimeError("not enough memory")]

    def failing(slot: int, weights: AdapterWeights) -> None:
        if failures and weights.linears["model.layers.0.self_attn.q_proj"][0].shape[0] == 2:  # that is "a"
            raise failures.pop()
        write(slot, weights)

    monkeypatch.setattr(core.runner.lora, "write", failing)
    asked = asked_of(("a", "b", None), 6)
    answers = run(core, asked)
    assert [isinstance(answers[f"r{i}"].error, EngineFailure) for i in range(6)] == [True, False, False] * 2
    check(with_peft(folder("llama"), saved["b"]), [one for one in asked if one.adapter == "b"], answers)
    again = asked_of(("a",), 2)
    check(with_peft(folder("llama"), saved["a"]), again, run(core, again))


def test_a_step_that_raises_leaves_the_adapters_right(
    small_core: Callable[..., EngineCore], saved: dict[str, Path], folder: Callable[[str], Path]
) -> None:
    core = small_core()
    load(core, a=saved["a"], b=saved["b"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.runner, "step", None)
        core.add(asked_of(("a",), 1)[0])
        with pytest.raises(TypeError):
            core.step()
        assert [request_id for request_id, _ in core.fail_running(EngineFailure("sorry")).errors] == ["r0"]
    asked = asked_of(("b", "a"), 4)
    answers = run(core, asked)
    for version in "ab":
        check(with_peft(folder("llama"), saved[version]), [o for o in asked if o.adapter == version], answers)


def test_requests_of_an_adapter_that_is_unloaded_end_with_an_error_and_the_others_go_on(
    small_core: Callable[..., EngineCore], saved: dict[str, Path]
) -> None:
    core = small_core()
    load(core, a=saved["a"], b=saved["b"])
    report = StepReport()

    def unload(step: int) -> None:
        if step == 3:
            assert "a" in core.stats().adapter_slots
            core.unload_adapter("a", report)

    asked = asked_of(("a", "b"), 4)
    found = run(core, asked, between=unload)
    assert [request_id for request_id, _ in report.errors] == ["r0", "r2"]
    assert all(isinstance(error, EngineFailure) for _, error in report.errors)
    for i in (1, 3):
        assert found[f"r{i}"].outputs[0].finish_reason is FinishReason.LENGTH
    assert "a" not in core.stats().adapter_slots
    with pytest.raises(EngineFailure, match="does not hold"):
        core.add(asked[0])
    load(core, a=saved["a"])
    assert run(core, asked_of(("a",), 1))["r0"].error is None


def test_a_request_that_waits_for_the_disk_holds_up_nobody(
    small_core: Callable[..., EngineCore], saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    core, go = small_core(max_num_seqs=1), threading.Event()
    load(core, a=saved["a"])
    read = core.adapters._read_folder
    monkeypatch.setattr(core.adapters, "_read_folder", lambda folder: go.wait(PATIENCE) and read(folder))
    core.adapters.load("b", saved["b"], pinned=False)
    core.add(request(prompt(5), "first", adapter="b", max_new_tokens=2, ignore_eos=True))
    core.add(request(prompt(5), "second", adapter="a", max_new_tokens=2, ignore_eos=True))
    core.add(request(prompt(5), "third", max_new_tokens=2, ignore_eos=True))
    ended = []
    for _ in range(4):
        ended += [request_id for request_id, output in core.step().outputs if output.finish_reason]
        assert not core.stalled
    assert ended == ["second", "third"]
    core.step()
    assert core.busy and core.stalled
    go.set()
    deadline = time.monotonic() + PATIENCE
    while core.busy:
        assert time.monotonic() < deadline
        ended += [request_id for request_id, output in core.step().outputs if output.finish_reason]
    assert ended[-1] == "first"


def test_beams_that_wait_for_their_siblings_go_on_in_a_slot_that_empties(
    runner: GetRunner, saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold the only slot until they have ended, and the first in line waits for it."""
    core, go = core_of(runner("llama", blocks=9, max_model_len=72, max_loras=1)), threading.Event()
    load(core, b=saved["b"])
    read = core.adapters._read_folder
    monkeypatch.setattr(core.adapters, "_read_folder", lambda folder: go.wait(PATIENCE) and read(folder))
    core.adapters.load("a", saved["a"], pinned=False)
    asked = [
        request(prompt(5), "first", adapter="a", ignore_eos=True),
        request(prompt(7), "search", adapter="b", num_beams=3),
        request(prompt(49), "filler", max_new_tokens=1),  # leaves a block for one beam only, in the first step
    ]

    def let_the_first_in_line_come(step: int) -> None:
        if step == 1:
            assert sum(sequence.group.beams is not None for sequence in core.scheduler.waiting) == 2
            go.set()
            wait(core.adapters._reading.values(), timeout=PATIENCE)

    answers = run(core, asked, between=let_the_first_in_line_come)
    assert all(answer.error is None and answer.outputs[0].finish_reason for answer in answers.values())
