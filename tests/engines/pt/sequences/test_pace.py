"""How much of a prompt a step takes beside running outputs: as much as it has time for, by what steps have taken."""

from collections.abc import Callable

import pytest

from engines.pt.sequences.pace import LEAST_TOKENS, NO_WORK, STEPS_PER_REST, Cost, Kind, Pace, Work, work_of
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import core_of, prompt, request, run
from tests.engines.pt.sequences.test_shares import BUDGET, Line

COST = Cost(step=0.008, row=0.001, key=0.0)


def pace_of(cost: Cost | None, slowdown: float = 2.0) -> Pace:
    pace = Pace(slowdown)
    pace.cost = cost
    return pace


def line_of(cost: Cost | None, *, running: int = 2) -> Line:
    """A line where outputs run, and a long prompt has just come."""
    line = Line()
    for _ in range(running):
        line.ask(None, 1, 1000)
    line.run(1)
    line.scheduler.pace = pace_of(cost)
    line.ask(None, 500, 1)
    line.run(1)
    return line


def test_a_prompt_takes_as_long_as_the_outputs_beside_it() -> None:
    """Two rows take 10 ms, and ten more another 10."""
    assert sum(length for _, length in line_of(COST).lengths[-1]) == 2 + 10


def test_it_takes_less_where_it_sees_more() -> None:
    cost = Cost(0.028, 0.001, 0.000001)
    pace, outputs = pace_of(cost), work_of(100, 1)
    rooms = [pace.room(outputs, Work(), start) for start in (0, 1000, 40000)]
    assert rooms == [28, 14, LEAST_TOKENS]
    assert cost.seconds(outputs + work_of(0, 28)) < 2 * cost.seconds(outputs) < cost.seconds(outputs + work_of(0, 29))


@pytest.mark.parametrize("cost", [Cost(0.0, 1.0, 0.0), Cost(0.0, 0.001, 1.0)], ids=str)
def test_it_never_stands_still(cost: Cost) -> None:
    assert line_of(cost, running=1).lengths[-1][-1] == ("None-1", LEAST_TOKENS)


@pytest.mark.parametrize(("cost", "running"), [(COST, 0), (None, 2), (Cost(0.008, 0.0, 0.0), 2)], ids=str)
def test_it_takes_the_whole_step_where_nobody_would_wait(cost: Cost | None, running: int) -> None:
    """Nothing runs; no step has been measured; rows take no time."""
    assert sum(length for _, length in line_of(cost, running=running).lengths[-1]) == BUDGET


def test_a_prompt_of_one_step_is_not_stretched_and_goes_first_meanwhile() -> None:
    line = line_of(Cost(0.0, 0.001, 0.0))
    line.ask(None, 500, 1)  # it waits for the other long one
    short = line.ask(None, 15, 1)
    line.run(1)
    assert dict(line.lengths[-1]) == {"None-0": 1, "None-1": 1, "None-2": LEAST_TOKENS, short: 15}
    assert line.scheduler.waiting_for == {}


def test_long_prompts_end_one_after_another_however_many_short_ones_come() -> None:
    line = line_of(Cost(0.0, 0.001, 0.0))
    line.ask(None, 100, 1)
    for _ in range(160):
        line.ask(None, 20, 1)
        line.run(1)
    assert [name for name in line.ended if name in ("None-2", "None-3")] == ["None-2", "None-3"]


def test_two_long_prompts_that_began_in_quiet_end_both() -> None:
    line = Line()
    line.scheduler.pace = pace_of(COST)
    line.ask(None, 1, 1000)
    line.ask(None, 40, 1)
    line.ask(None, 40, 1)
    line.run(12)
    assert line.ended == ["None-1", "None-2"]


def test_what_one_prompt_leaves_another_takes() -> None:
    pace, outputs = pace_of(COST), Work(2, 0)
    assert pace.room(outputs, Work(4, 0), 0) == 6
    assert pace.room(outputs, Work(10, 0), 0) == 0


def test_the_cost_is_learned_from_the_steps() -> None:
    pace, truth = Pace(2.0), Cost(0.006, 0.0006, 0.0000003)
    assert pace.cost is None
    for start in (10, 100, 1000, 3000):
        for length in (1, 8, 32, 200):
            work = work_of(start, length)
            pace.note(work, truth.seconds(work))
    assert pace.cost is not None
    for start, length in ((500, 20), (2000, 100), (50, 2)):
        work = work_of(start, length)
        assert pace.cost.seconds(work) == pytest.approx(truth.seconds(work), rel=0.1)


def test_the_latest_steps_count_most() -> None:
    pace = Pace(2.0)
    for factor in (1.0, 3.0):
        for _ in range(100):
            pace.note(Work(1, 10), 0.01 * factor)
            pace.note(Work(100, 1000), 0.1 * factor)
    assert pace.cost is not None
    assert pace.cost.seconds(Work(1, 10)) == pytest.approx(0.03, rel=0.1)


Piece = tuple[int, int]
"""First token and length."""


def steps_of_16_rows(pieces: list[Piece]) -> float:
    rows, keys = sum(length for _, length in pieces), sum(length * start for start, length in pieces)
    return max(0.007, 0.005 + 0.0015 * -(-rows // 16)) + 2e-8 * keys


def cheaper_in_numbers(pieces: list[Piece]) -> float:
    rows = sum(length for _, length in pieces)
    return 0.006 + 0.00075 * min(rows, 32) + 0.0004 * max(0, rows - 32)


def dear_to_read(pieces: list[Piece]) -> float:
    """Keys are laid out for 32 rows at a time, and up to 8 rows have more threads."""
    keys = sum(-(-length // 32) * (start + length) * (1.0 if length <= 8 else 1.33) for start, length in pieces)
    return 0.008 + 0.0006 * sum(length for _, length in pieces) + 1.5e-6 * keys


class Machine:
    """Eight outputs run on a machine, and a long prompt beside them, whose pieces are as long as the pace has time."""

    def __init__(self, seconds: Callable[[list[Piece]], float]) -> None:
        self.seconds, self.pace, self.at, self.length = seconds, Pace(2.0), 0, 64
        for _ in range(2):
            prompts = [(0, 64)] * 4
            self.pace.note(sum((work_of(*each) for each in prompts), NO_WORK), seconds(prompts))

    def step(self, *, prompt: bool, best: bool = False) -> tuple[int, float]:
        """Tokens of the prompt, and how many times as long as without it the step takes. `best`: as many as there is
        time for in truth."""
        outputs = [(self.length, 1)] * 8
        work = sum((work_of(*each) for each in outputs), NO_WORK)
        alone = self.seconds(outputs)
        tokens = 0
        if best:
            tokens = sum(self.seconds([*outputs, (self.at, n)]) <= 2 * alone for n in range(1, 200))
        elif prompt:
            tokens = min(self.pace.room(work, NO_WORK, self.at) or 0, 200)
        pieces = [*outputs, (self.at, tokens)] if tokens else outputs
        taken = self.seconds(pieces)
        kind = Kind.BESIDE if tokens else Kind.QUIET
        self.pace.note(sum((work_of(*each) for each in pieces), NO_WORK), taken, kind)
        self.at, self.length = self.at + tokens, self.length + 1
        return tokens, taken / alone


def prompt_on(machine: Machine, **how: bool) -> list[tuple[int, float]]:
    steps = []
    while machine.at < 4000:
        steps.append(machine.step(prompt=True, **how))
    return steps


MACHINES = [steps_of_16_rows, cheaper_in_numbers, dear_to_read]


@pytest.mark.parametrize("seconds", MACHINES)
def test_steps_take_the_time_they_may_and_no_more_on_machines_that_no_sum_describes(
    seconds: Callable[[list[Piece]], float],
) -> None:
    machine, ideal = Machine(seconds), Machine(seconds)
    for _ in range(100):
        machine.step(prompt=False)
        ideal.step(prompt=False)
    steps, best = prompt_on(machine), prompt_on(ideal, best=True)
    times = sorted(time for _, time in steps)
    assert times[len(times) // 2] < 2.05
    assert times[len(times) * 98 // 100] < 2.2
    assert len(steps) < 1.1 * len(best)


def test_a_step_that_was_held_up_says_little_of_the_next() -> None:
    machine = Machine(cheaper_in_numbers)
    for number in range(200):
        before, _ = machine.step(prompt=number >= 100)
    held_up = work_of(machine.at, before) + Work(8, 8 * machine.length, 8 * machine.length)
    machine.pace.note(held_up, 20 * cheaper_in_numbers([(machine.at, before + 8)]), Kind.BESIDE)
    after, _ = machine.step(prompt=True)
    assert after > before / 2


def test_on_a_machine_that_has_become_slower_a_prompt_takes_its_part_as_before() -> None:
    slower = 1.0

    def seconds(pieces: list[Piece]) -> float:
        return slower * cheaper_in_numbers(pieces)

    machine = Machine(seconds)
    for _ in range(100):
        machine.step(prompt=False)
    before = [machine.step(prompt=True)[0] for _ in range(STEPS_PER_REST)][-1]
    slower = 3.0
    later = [machine.step(prompt=True)[0] for _ in range(20 * STEPS_PER_REST)]
    assert sorted(later[-STEPS_PER_REST:])[STEPS_PER_REST // 2] > 0.75 * before


def test_every_so_often_a_step_leaves_long_prompts_out_to_know_what_outputs_take_alone() -> None:
    machine = Machine(cheaper_in_numbers)
    for _ in range(20):
        machine.step(prompt=False)
    tokens = [machine.step(prompt=True)[0] for _ in range(2 * (STEPS_PER_REST + 1))]
    assert [at for at, length in enumerate(tokens) if length == 0] == [STEPS_PER_REST, 2 * STEPS_PER_REST + 1]


def test_the_engine_measures_its_steps_and_answers_as_before(runner: GetRunner) -> None:
    asked = [request(prompt(60, i), f"r{i}", ignore_eos=True) for i in range(3)]
    core = core_of(runner("llama"), max_num_batched_tokens=32, max_itl_slowdown=1.5)
    paced = run(core, asked)
    plain = run(core_of(runner("llama"), max_num_batched_tokens=32), asked)
    assert core.scheduler.pace is not None and core.scheduler.pace.cost is not None
    assert all(paced[one.request_id].tokens == plain[one.request_id].tokens for one in asked)
