"""What one request may cost others: `python -m benchmarks.edge [--only WORDS]`.

Starts `tuneserve deploy` on a model and sends it, one after another, bodies that put each field at its limit. Meanwhile
`/health` is asked every 10 ms. Prints a row for each body, keeps them in benchmarks/results/, and ends with 1 where one
costs more than it may. Run it on a machine that does nothing else.
"""

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx

from benchmarks.edge_cases import cases, hostile_grammar, prompt_to_count
from benchmarks.edge_probe import Beside, Cost, beside_grammars, cost_of
from benchmarks.process import Tree
from benchmarks.report import RESULTS, check_quiet, hardware, machine, say
from benchmarks.servers import Setting, ours
from engines.setup.demo import demo_model

MOST_HEALTH_SECONDS = 0.1
MOST_TOKENIZE_SECONDS = 0.2
PATIENCE = 8.0
"""Seconds for an answer: what the engine makes of a request is not measured. Status 0: not waited for any longer."""
GRAMMARS, PROMPTS = 8, 50


def main() -> int:
    given = _arguments()
    check_quiet()
    setting = Setting(model=given.model or str(demo_model()), dtype="float32", threads=1, port=given.port)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [*ours(setting), "--state_dir", f"{folder}/state", "--max_running_jobs", "0", "--verbose", "false"]
        with Tree(command, {}, log) as server:
            _wait_until_ready(setting.url, log)
            costs = [
                _told(cost_of(case, setting.url, server.process.pid, patience=PATIENCE))
                for case in cases("bench")
                if any(word in case.name for word in given.only)
            ]
            grammars = [hostile_grammar("bench", number) for number in range(GRAMMARS)]
            prompts = [prompt_to_count("bench", number) for number in range(PROMPTS)]
            beside = beside_grammars(grammars, prompts, setting.url)
    report = _report(costs, beside)
    say(report)
    if given.only == [""]:
        (RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-edge.md").write_text(report)
    return 0 if all(map(_is_within, costs)) and beside.worst_seconds <= MOST_TOKENIZE_SECONDS else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="only bodies with such a word")
    parser.add_argument("--model", help="a folder; the demo model unless given")
    parser.add_argument("--port", type=int, default=8123)
    return parser.parse_args()


def _wait_until_ready(url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    sys.exit(f"the server did not start:\n{log.read_text()[-2000:]}")


def _told(cost: Cost) -> Cost:
    say(f"{cost.name}: {cost.status}, {cost.seconds:.2f} s, /health {1000 * cost.worst_health_seconds:.0f} ms")
    return cost


def _is_within(cost: Cost) -> bool:
    return cost.worst_health_seconds <= MOST_HEALTH_SECONDS and cost.memory_mib <= cost.memory_allowed_mib


def _report(costs: list[Cost], beside: Beside) -> str:
    rows = "\n".join(
        f"| {cost.name} | {cost.body_mib:.2f} | {cost.status} | {cost.seconds:.2f} "
        f"| {1000 * cost.worst_health_seconds:.0f} | {cost.memory_mib:.0f} of {cost.memory_allowed_mib:.0f} "
        f"| {'' if _is_within(cost) else 'beyond'} |"
        for cost in costs
    )
    return f"""# What one request may cost, {datetime.now(UTC):%Y-%m-%d}

{hardware(machine())}
`python -m benchmarks.edge`; what is measured: ../README.md.

| body | MiB | status | seconds | worst `/health`, ms | memory, MiB | |
|---|---|---|---|---|---|---|
{rows}

Beside {GRAMMARS} hostile grammars at once, {len(beside.statuses)} of which had been answered by then, {PROMPTS} prompts
of 25,000 characters were tokenized one after another, the slowest in {1000 * beside.worst_seconds:.0f} ms.
"""


if __name__ == "__main__":
    sys.exit(main())
