"""Alignment, measured: whether each way to train moves what it optimises, and only because it learns.

`python -m benchmarks.alignment`: each task of `alignment_tasks.py` on three seeds, by the pipeline that runs a job, and
on the first once more with a learning rate that changes nothing. It may run in parts (`--tasks`, `--seeds`): runs are
kept in .bench/, and the report is of all that are there. See benchmarks/README.md.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.alignment_tasks import BY_NAME, TASKS, Task
from benchmarks.alignment_world import World
from benchmarks.environments import HOME
from benchmarks.servers import SERVERS

SEEDS = (1, 2, 3)
STILL = 1e-4
"""Most by which something moves that does not learn: weights that stay are saved as they were."""
NO_RATE = 1e-30
"""The learning rate that stands for zero, which parameters refuse: a step of it changes no weight in float32."""
FOLDER = HOME / "alignment"

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    given = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    FOLDER.mkdir(parents=True, exist_ok=True)
    world = World(FOLDER)
    for task in (BY_NAME[name] for name in given.tasks):
        for seed in given.seeds:
            if given.again or not kept_file(task, seed).exists():
                measure(task, world, seed)
    document = report_of()
    sys.stdout.write(f"\n{tables(document)}\n")
    return 0 if all(row["reached"] and row["still"] for row in document["rows"]) else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.alignment", description=__doc__)
    add = parser.add_argument
    names = [task.name for task in TASKS]
    add(
        "--tasks", nargs="+", choices=names, default=names, metavar="TASK", help=f"of {', '.join(names)} (default: all)"
    )
    add("--seeds", nargs="+", type=int, default=list(SEEDS))
    add("--again", action="store_true", help="run what has been run already")
    return parser.parse_args(argv)


# ---- one task on one seed


def measure(task: Task, world: World, seed: int) -> None:
    """Train, and keep what came of it. Raises RuntimeError where a job did not succeed."""
    report.say(f"{task.name}, seed {seed}")
    began = time.perf_counter()
    after = value_of(task, world, seed)
    seconds = time.perf_counter() - began
    still = value_of(task, world, seed, learning_rate=NO_RATE) if seed == SEEDS[0] else None
    before = before_of(task, world, seed)
    row = {"task": task.name, "seed": seed, "before": before, "after": after, "still": still, "seconds": seconds}
    report.say(f"{task.name}, seed {seed}: {before:.3f} -> {after:.3f}; at learning rate 0: {still}")
    kept_file(task, seed).write_text(json.dumps(row | {"versions": report.versions(SERVERS[0])}, indent=1))


def kept_file(task: Task, seed: int) -> Path:
    return FOLDER / f"{task.name}-{seed}.json"


def before_of(task: Task, world: World, seed: int) -> float:
    """What the task measures of what its training begins from."""
    if task.own_head:
        return value_of(task, world, seed, learning_rate=NO_RATE, max_steps=1)
    return task.measure(world.model, world)


def value_of(task: Task, world: World, seed: int, **params: Any) -> float:
    """What the task measures, of the model that its training makes. `params` besides the task's."""
    folder = world.folder / f"{task.name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return task.measure(task.train(world, seed, folder, **params), world)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- what they say together


def report_of() -> Row:
    """Keep all that has been measured, as JSON and to be read. Returns the document."""
    runs = [
        json.loads(kept_file(task, seed).read_text())
        for task in TASKS
        for seed in SEEDS
        if kept_file(task, seed).exists()
    ]
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": report.machine(),
        "rows": [row_of(task, found) for task in TASKS if (found := [run for run in runs if run["task"] == task.name])],
        "runs": runs,
    }
    report.RESULTS.mkdir(exist_ok=True)
    stem = report.RESULTS / f"{document['date']}-alignment"
    report.save(stem, document, as_markdown(document))
    return document


def row_of(task: Task, runs: list[Row]) -> Row:
    """All seeds of one task."""
    return {
        "task": task.name,
        "measured": task.measured,
        "goal": task.goal,
        "falls": task.falls,
        "before": [run["before"] for run in runs],
        "after": [run["after"] for run in runs],
        "zero": [run["still"] for run in runs if run["still"] is not None],
        "reached": all(task.reached(run["after"]) and not task.reached(run["before"]) for run in runs),
        "still": all(abs(run["still"] - run["before"]) <= STILL for run in runs if run["still"] is not None),
        "seconds": max(run["seconds"] for run in runs),
    }


def tables(document: Row) -> str:
    head = ["method", "what is measured", "before", "goal", "after, each seed", "at rate 0", "s", "", ""]
    missing = {task.name: _missing(task, document) for task in TASKS}
    told = [f"- {name}: not run on seed {', '.join(seeds)}" for name, seeds in missing.items() if seeds]
    return "\n\n".join([report.table([head, *map(_cells, document["rows"])]), *(["\n".join(told)] if told else [])])


def _missing(task: Task, document: Row) -> list[str]:
    run = {run["seed"] for run in document["runs"] if run["task"] == task.name}
    return [str(seed) for seed in SEEDS if seed not in run]


def _cells(row: Row) -> list[str]:
    return [
        row["task"],
        row["measured"],
        _range(row["before"]),
        f"{'at most' if row['falls'] else 'at least'} {row['goal']:g}",
        ", ".join(f"{value:.2f}" for value in row["after"]),
        _range(row["zero"]) if row["zero"] else "-",
        f"{row['seconds']:.0f}",
        "reached" if row["reached"] else "MISSED",
        "still" if row["still"] else "MOVED",
    ]


def _range(values: list[float]) -> str:
    least, most = f"{min(values):.2f}", f"{max(values):.2f}"
    return least if least == most else f"{least} to {most}"


def as_markdown(document: Row) -> str:
    commits = sorted({run["versions"].get("tuneserve", "?") for run in document["runs"]})
    versions = document["runs"][-1]["versions"] if document["runs"] else {}
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "tuneserve")
    return (
        f"# Alignment, {document['date']}\n\n"
        f"{report.hardware(document['machine'])}.\n\n"
        f"A model of two layers on a language of eight letters; {named}, tuneserve {', '.join(commits)}. "
        "`python -m benchmarks.alignment`; what is measured: ../README.md. The machine was busy with other work, which "
        "is nothing to what is measured but the seconds: those of the longest training.\n\n"
        f"{tables(document)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
