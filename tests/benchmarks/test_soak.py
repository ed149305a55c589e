"""What a soak concludes from what it saw."""

import pytest

from benchmarks.soak import Seen, faults, growth

GOOD = ("stream: read to its end", "load an adapter: 200", "unload an adapter: 200", "create a job: 200")


def seen(*, mib_per_minute: float = 0.0, minutes: int = 10) -> Seen:
    made = Seen()
    for outcome in GOOD:
        made.count(outcome)
    made.memory["server"] = [
        (minute, 300.0 - 50 * (minute == 0) + mib_per_minute * minute) for minute in range(minutes + 1)
    ]
    return made


def test_growth_is_of_the_time_after_the_warm_up() -> None:
    samples = [(0.0, 0.0), (1.0, 500.0), (4.0, 600.0), (6.0, 601.0), (8.0, 602.0), (9.0, 602.5)]
    assert growth(samples) == pytest.approx(0.5)
    assert growth(samples[:2]) is None and growth([]) is None


def test_what_comes_and_goes_is_no_growth_and_what_stays_is() -> None:
    tide = [(number / 12, 300.0 + 15 * (number % 6 > 1)) for number in range(120)]
    assert growth(tide) == pytest.approx(0.0, abs=0.5)
    assert growth([(minutes, mib + 3 * minutes) for minutes, mib in tide]) == pytest.approx(3.0, abs=0.5)


def test_a_run_in_which_all_went_as_planned_has_no_faults() -> None:
    assert faults(seen(mib_per_minute=1), minutes=10) == []


def test_memory_that_grows_is_a_fault_where_the_run_was_long_enough_to_tell() -> None:
    assert faults(seen(mib_per_minute=3), minutes=10) == ["the memory of the server grows by 3.00 MiB a minute"]
    assert faults(seen(mib_per_minute=3), minutes=1) == []


def test_what_was_not_planned_and_what_never_happened_are_faults() -> None:
    made = seen()
    made.count("stream: 500", planned=False)
    del made.outcomes["create a job: 200"]
    assert faults(made, minutes=10) == ["stream: 500, 1 times", "never: create a job: 200"]
