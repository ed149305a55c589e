"""What a run of the serving benchmark concludes."""

from typing import Any

import pytest

from benchmarks.report import comparisons, median_of, percentile, rows_of, summarize, tables, verdict


def row(server: str, mode: str, concurrency: int, speed: float, **more: Any) -> dict[str, Any]:
    head = {"server": server, "mode": mode, "concurrency": concurrency, "output_tokens_per_second": speed}
    return head | {"startup_seconds": 9.0, "pss_mib": 1500.0} | more


def test_percentiles_are_nearest_ranks_in_milliseconds() -> None:
    seconds = [number / 1000 for number in range(100, 0, -1)]

    assert percentile(seconds, 50) == pytest.approx(50)
    assert percentile(seconds, 99) == pytest.approx(99)
    assert percentile([], 50) is None


def test_speed_is_of_the_tokens_that_were_really_made_and_failures_are_kept() -> None:
    good = {
        "started": 0.0,
        "arrivals": [0.5, 0.6, 0.8],
        "ended": 1.0,
        "prompt_tokens": 128,
        "output_tokens": 30,
        "error": "",
    }
    bad = good | {"error": "status 500", "arrivals": [], "output_tokens": 0}

    summary = summarize({"seconds": 2.0, "answers": [good, bad]}, cpu_seconds=3.0)

    assert summary["output_tokens_per_second"] == 15
    assert summary["tokens_per_cpu_second"] == 10
    assert summary["ttft_mean_ms"] == summary["ttft_p50_ms"] == 500
    assert (summary["failed"], summary["first_error"]) == (1, "status 500")


def test_the_median_of_runs_adds_up_their_failures() -> None:
    runs: list[dict[str, Any]] = [
        {"cpu_seconds": 1.0, "failed": 1, "first_error": "a"},
        {"cpu_seconds": 3.0, "failed": 2, "first_error": None},
    ]

    assert median_of(runs) == {"cpu_seconds": 2.0, "failed": 3, "first_error": "a"}


def test_the_rounds_of_one_measurement_make_one_row_and_a_server_that_failed_in_one_says_so() -> None:
    head = {"server": "vllm", "title": "vLLM", "mode": "greedy", "concurrency": 8}
    runs = [{**head, "output_tokens_per_second": speed, "failed": 0} for speed in (90.0, 100.0, 200.0)]
    failed = {"server": "vllm", "title": "vLLM", "mode": None, "concurrency": None, "not_run": "it ended"}

    measured, not_run = rows_of([runs[0], runs[1], failed, runs[2]])

    assert (measured["server"], measured["output_tokens_per_second"], len(measured["runs"])) == ("vllm", 100, 3)
    assert not_run == failed


def test_ours_is_divided_by_the_peer_of_the_same_concurrency_and_mode() -> None:
    rows = [
        row("tuneserve", "greedy", 32, 300.0),
        row("tuneserve", "greedy", 8, 100.0),
        row("swift", "greedy", 32, 150.0),
        row("swift", "sampled", 32, 150.0),
    ]

    found = {comparison["what"]: comparison for comparison in comparisons(rows)}

    assert found["tuneserve / swift, c=32, greedy"]["value"] == 2
    assert verdict(found["tuneserve / swift, c=32, greedy"]) == "at least 1.5: reached"
    assert "tuneserve / swift, c=32, sampled" not in found
    assert verdict(found["tuneserve start-up, s"]) == "at most 15: reached"


def test_a_ratio_is_the_median_of_those_of_the_rounds_where_both_were_measured_in_each() -> None:
    def of_rounds(server: str, *speeds: float) -> dict[str, Any]:
        return row(server, "greedy", 8, speeds[0], runs=[{"output_tokens_per_second": speed} for speed in speeds])

    mine = of_rounds("tuneserve", 90.0, 200.0, 100.0)  # the machine was slower in the first round and in the last
    assert comparisons([mine, of_rounds("engine", 100.0, 200.0, 80.0)])[0]["value"] == 1
    assert comparisons([mine, of_rounds("engine", 100.0, 200.0)])[0]["value"] == 0.9
    assert comparisons([mine, of_rounds("engine", 100.0, 0.0, 80.0)])[0]["value"] == 0.9


def test_our_server_over_vllm_is_held_to_vllms_own() -> None:
    rows = [
        row("tuneserve-vllm", "greedy", 8, 96.0, ttft_p50_ms=120.0, ttft_mean_ms=105.0),
        row("vllm", "greedy", 8, 100.0, ttft_p50_ms=100.0, ttft_mean_ms=100.0),
    ]

    speed, mean, median = comparisons(rows)

    assert speed["what"] == "tuneserve over vLLM / vLLM, c=8, greedy"
    assert verdict(speed) == "at least 0.95: reached"
    assert verdict(mean) == "at most 1.1: reached"
    assert verdict(median) == "at most 1.1: MISSED"


def test_a_target_that_is_missed_is_called_so() -> None:
    rows = [row("tuneserve", "greedy", 8, 30.0), row("transformers", "greedy", 8, 10.0)]

    assert verdict(comparisons(rows)[0]) == "at least 4: MISSED"


def test_the_tables_have_a_line_for_each_measurement_each_ratio_and_what_was_not_run() -> None:
    rows = [row("tuneserve", "greedy", 8, 30.0, title="ours"), row("swift", "greedy", 8, 10.0, title="theirs")]
    not_run = {"server": "vllm", "title": "vLLM", "mode": None, "concurrency": None, "not_run": "no room"}

    text = tables({"rows": [*rows, not_run], "comparisons": comparisons(rows)})

    assert "30.0" in text and "tuneserve / swift, c=8, greedy" in text
    assert "not run: no room" in text
