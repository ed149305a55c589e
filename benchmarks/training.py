"""Training, measured: a job of ours beside a bare TRL script, LLaMA-Factory and ms-swift, on the same samples and
settings.

`python -m benchmarks.training`, or `--setups lora --peers tuneserve trl` for a part of it. See benchmarks/README.md.
"""

import argparse
import json
import random
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import report, serving
from benchmarks.environments import HOME, NotRun
from benchmarks.process import Tree
from benchmarks.servers import Setting
from benchmarks.trainers import ENVIRONMENTS, OURS, SAMPLE_TOKENS, TRAINERS, Trainer, Training
from benchmarks.workload import WORDS
from engines.checkpoint.loading import load_tokenizer

SYSTEM = "You tell long stories."
SHARE_LEAST = 1.0
"""Least share of the fastest peer's tokens/s."""

WATCH_SECONDS = 0.1
"""Between two looks at memory: a step takes most for less than half a second."""

Row = dict[str, Any]


SETUPS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"full": True, "learning_rate": 1e-5},
    "qlora": {"nf4": True},
    "dora": {"dora": True},
    "packed": {"packing": True, "batch_size": 1, "max_length": 8 * SAMPLE_TOKENS},
}
"""What they are told besides."""


# ---- the samples


def write_data(tokenizer: Any, folder: Path, count: int) -> None:
    """`count` conversations of SAMPLE_TOKENS tokens each, so that every batch is full whatever the order: as messages,
    and as prompt and completion, of which TRL trains on the completion only, as we do."""
    folder.mkdir()
    rng = random.Random(0)
    samples = [sample(tokenizer, rng) for _ in range(count)]
    _write(folder / "messages.jsonl", [{"messages": sample} for sample in samples])
    _write(folder / "pairs.jsonl", [{"prompt": sample[:-1], "completion": sample[-1:]} for sample in samples])


def sample(tokenizer: Any, rng: random.Random) -> list[dict[str, str]]:
    words = rng.choices(WORDS, k=SAMPLE_TOKENS)
    for length in range(SAMPLE_TOKENS, 0, -1):
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Tell a story about: {' '.join(words[:20])}."},
            {"role": "assistant", "content": " ".join(words[20:length])},
        ]
        if _length(tokenizer, messages) == SAMPLE_TOKENS:
            return messages
    raise AssertionError("some length fits: the words have one token each")


def _length(tokenizer: Any, messages: list[dict[str, str]]) -> int:
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return len(tokenizer.encode(text, add_special_tokens=False))


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


# ---- one training


def measure(trainer: Trainer, training: Training, tokenizer: Any, setting: Setting) -> Row:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(tokenizer, folder / "data", training.samples)
        command = trainer.command(training, folder)
        variables = {"OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1"}
        log = HOME / f"{trainer.name}-train.log"
        with Tree(command, variables, log, watch_seconds=WATCH_SECONDS) as tree:
            status = tree.process.wait()
            seconds = time.perf_counter() - tree.started
        if status != 0:
            raise NotRun(next(iter(reversed(log.read_text().strip().splitlines())), f"it ended with status {status}"))
        runtime = trainer.runtime(folder)
        return {
            "tokens_per_second": training.tokens / runtime,
            "seconds": seconds,
            "around_seconds": seconds - runtime,
            "pss_mib": tree.peak.pss_mib,
            "command": shlex.join(command),
        }


def measure_all(names: list[str], trainings: dict[str, Training], setting: Setting, repeats: int) -> list[Row]:
    """In turns, so that what changes about the machine meanwhile meets all of them."""
    tokenizer = load_tokenizer(setting.model)
    trainers = [trainer for trainer in TRAINERS if trainer.name in names]
    return [
        row
        for setup, training in trainings.items()
        for row in _measure_setup(
            setup, training, trainers, lambda trainer, training: measure(trainer, training, tokenizer, setting), repeats
        )
    ]


def _measure_setup(
    setup: str,
    training: Training,
    trainers: list[Trainer],
    measured: Callable[[Trainer, Training], Row],
    repeats: int,
) -> list[Row]:
    runs: dict[str, list[Row]] = {trainer.name: [] for trainer in trainers}
    failed: dict[str, str] = {}
    for _ in range(repeats):
        for trainer in trainers:
            if trainer.name in failed:
                continue
            try:
                row = measured(trainer, training)
            except NotRun as reason:
                failed[trainer.name] = str(reason)
                report.say(f"{setup}, {trainer.title}: not run: {reason}")
                continue
            runs[trainer.name].append(row)
            report.say(f"{setup}, {trainer.title}: {row['tokens_per_second']:.1f} tokens/s, {row['pss_mib']:.0f} MiB")
    return [{"setup": setup} | _row(trainer, runs, failed) for trainer in trainers]


def _row(trainer: Trainer, runs: dict[str, list[Row]], failed: dict[str, str]) -> Row:
    head: Row = {"trainer": trainer.name, "title": trainer.title}
    if trainer.name in failed:
        return head | {"not_run": failed[trainer.name]}
    mine = runs[trainer.name]
    names = ("tokens_per_second", "seconds", "around_seconds", "pss_mib")
    row = head | {name: statistics.median(run[name] for run in mine) for name in names} | {"runs": mine}
    peers = [runs[name] for name in runs if name not in failed and name != OURS]
    if trainer.name == OURS and peers:
        fastest = [max(run["tokens_per_second"] for run in turn) for turn in zip(*peers, strict=True)]
        row["of_fastest"] = statistics.median(
            run["tokens_per_second"] / best for run, best in zip(mine, fastest, strict=True)
        )
    return row


# ---- the run, and its words


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    HOME.mkdir(exist_ok=True)
    setting = serving.make_setting(arguments)
    alike = Training(setting.model, setting.dtype, arguments.steps)
    trainings = {name: replace(alike, **SETUPS[name]) for name in arguments.setups}
    for name in ENVIRONMENTS.keys() & set(arguments.peers):
        ENVIRONMENTS[name].prepare(arguments.torch_index)
    report.check_quiet()
    rows = measure_all(arguments.peers, trainings, setting, arguments.repeats)
    run = {
        "command": shlex.join(["python", "-m", "benchmarks.training", *sys.argv[1:]]),
        "ended": time.strftime("%H:%M UTC", time.gmtime()),
    }
    rows = [row | {"run": run} for row in rows]
    document: Row = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": report.machine(),
        "setting": asdict(alike) | {"threads": setting.threads, "sample_tokens": SAMPLE_TOKENS},
        "setups": SETUPS,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }
    target = report.RESULTS / f"{document['date']}-training"
    document["rows"] = rows = beside_others(rows, target)
    text = f"{tables(rows)}\n"
    report.save(target, document, _page(document, text))
    sys.stdout.write(f"\n{text}")
    return 0


def beside_others(rows: list[Row], target: Path) -> list[Row]:
    """`rows`, with what was measured today of other set-ups."""
    file, measured = target.with_suffix(".json"), {row["setup"] for row in rows}
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    every = [*rows, *(row for row in before if row["setup"] not in measured)]
    return sorted(every, key=lambda row: list(SETUPS).index(row["setup"]))


def parse(argv: list[str] | None) -> argparse.Namespace:
    names = [trainer.name for trainer in TRAINERS]
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    add = parser.add_argument
    add("--setups", nargs="+", choices=list(SETUPS), default=list(SETUPS))
    add("--peers", nargs="+", choices=names, default=names)
    add_options(parser, steps=20)
    add("--torch-index", help="index that torch comes from in LLaMA-Factory's environment")
    return parser.parse_args(argv)


def add_options(parser: argparse.ArgumentParser, *, steps: int) -> None:
    """Those of every comparison of trainings."""
    add = parser.add_argument
    add("--steps", type=int, default=steps, help="of each training")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, help="of everything (default: the physical cores)")
    add("--dtype", choices=["float32", "bfloat16"], help="(default: the fastest on this machine)")
    add("--model", help="a folder (default: the demo model)")
    parser.set_defaults(port=0)  # no server is started


def tables(rows: list[Row]) -> str:
    cells = [["set-up", "trainer", "tokens/s", "peak PSS MiB", "seconds", "around it", "of the fastest peer", "target"]]
    for row in rows:
        head = [row["setup"], row["title"]]
        if "not_run" in row:
            cells.append([*head, "not run", "", "", "", "", row["not_run"]])
            continue
        share = row.get("of_fastest")
        target = "" if share is None else f"at least {SHARE_LEAST:g}: {_verdict(share >= SHARE_LEAST)}"
        numbers = [f"{row['tokens_per_second']:.1f}", f"{row['pss_mib']:.0f}"]
        numbers += [f"{row['seconds']:.1f}", f"{row['around_seconds']:.1f}"]
        cells.append([*head, *numbers, "" if share is None else f"{share:.3f}", target])
    return report.table(cells)


def _verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def _page(document: dict[str, Any], text: str) -> str:
    s = document["setting"]
    said = f"{s['steps']} steps of {s['batch_size']} samples with {s['sample_tokens']} tokens each"
    return page("Training", document, said, f"{text}\n{_runs(document['rows'])}")


def _runs(rows: list[Row]) -> str:
    """Of which run each set-up is: they may be of several, of one day."""
    runs = {row["setup"]: f"`{row['run']['command']}`, ended at {row['run']['ended']}" for row in rows if "run" in row}
    return "".join(f"- {setup}: {run}\n" for setup, run in runs.items())


def page(title: str, document: dict[str, Any], said: str, text: str) -> str:
    """What was compared, and what came of it. `said`: the trainings, in words."""
    s = document["setting"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    checkpointing = f"gradient checkpointing {'on' if s['gradient_checkpointing'] else 'off'}"
    return (
        f"# {title}, {document['date']}\n\n{report.hardware(document['machine'])}; {versions}.\n\n"
        f"{Path(s['model']).name} in {s['dtype']}, {s['threads']} threads; {said}; {checkpointing}. "
        f"What is compared and how: ../README.md.\n\n{text}"
    )


if __name__ == "__main__":
    sys.exit(main())
