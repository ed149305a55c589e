"""Training by preferences, measured: a job of ours beside a bare TRL script, on the same samples and settings.

`python -m benchmarks.preferences`, or `--methods dpo` for a part of it. See benchmarks/README.md.
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
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import report, reward_of_words, serving
from benchmarks.environments import HOME, NotRun
from benchmarks.process import Tree
from benchmarks.servers import Setting
from benchmarks.trainers import SAMPLE_TOKENS, Training, our_command, train_runtime, tuneserve_runtime
from benchmarks.training import add_options, page, sample
from engines.checkpoint.loading import load_tokenizer
from training.folder import JobFolder, Step

MEMORY_MOST = 1.0
"""Largest share of TRL's peak memory."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Method:
    """A method that both train by."""

    name: str
    words: tuple[str, ...]
    """What our command is told of it beside what both are told."""
    rows: Callable[[Any, random.Random], tuple[Row, Row]]
    """A tokenizer and a source of chance -> a row of the data, as we read it and as TRL does."""
    tokens: int
    """Tokens that the model reads of a row, without those of answers that it gives itself."""
    least: float
    """Least share of TRL's tokens/s."""
    batch_size: int = 4
    answers: bool = False
    """Whether the model answers, so that what it says counts too."""


def pair(tokenizer: Any, rng: random.Random) -> tuple[Row, Row]:
    """Two answers to one prompt, of SAMPLE_TOKENS tokens each with it."""
    chosen, rejected = sample(tokenizer, rng), sample(tokenizer, rng)
    theirs = {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
    return {"messages": chosen, "rejected_response": rejected[-1]["content"]}, theirs


def judged(tokenizer: Any, rng: random.Random) -> tuple[Row, Row]:
    """An answer that was good or bad."""
    messages, label = sample(tokenizer, rng), rng.random() < 0.5
    return {"messages": messages, "label": label}, {
        "prompt": messages[:-1],
        "completion": messages[-1:],
        "label": label,
    }


def asked(tokenizer: Any, rng: random.Random) -> tuple[Row, Row]:
    """A prompt of PROMPT_TOKENS tokens."""
    prompt = sample(tokenizer, rng)[:-1]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    assert len(ids) == PROMPT_TOKENS, "each word has one token"
    return {"messages": prompt}, {"prompt": prompt}


PROMPT_TOKENS = 45
"""Of the demo model."""
ANSWER_TOKENS, ANSWERS = 64, 4
"""Of each answer at most, and to each prompt, where the model answers."""
REWARD = f"{reward_of_words.__file__}:{reward_of_words.share_of_vowels.__name__}"
GROUPS = (
    *("--num_generations", str(ANSWERS), "--max_completion_length", str(ANSWER_TOKENS), "--temperature", "1.0"),
    *("--reward_funcs", REWARD),
)
METHODS = (
    Method("dpo", ("--rpo_alpha", "0"), pair, 2 * SAMPLE_TOKENS, least=1.2),
    Method("kto", (), judged, SAMPLE_TOKENS, least=1.0),
    Method("rm", (), pair, 2 * SAMPLE_TOKENS, least=1.0),
    Method("grpo", GROUPS, asked, PROMPT_TOKENS, least=1.2, batch_size=16, answers=True),
)


def tuneserve(method: Method, training: Training, folder: Path) -> list[str]:
    return our_command(
        "rlhf", training, folder, folder / "data" / "ours.jsonl", "--rlhf_type", method.name, *method.words
    )


def trl(method: Method, training: Training, folder: Path) -> list[str]:
    settings = asdict(training) | {"method": method.name, "output_dir": str(folder / "out")}
    settings |= {"answers": ANSWERS, "answer_tokens": ANSWER_TOKENS}
    (folder / "settings.json").write_text(json.dumps(settings | {"dataset": str(folder / "data" / "theirs.jsonl")}))
    return [sys.executable, "-m", "benchmarks.trl_preferences", str(folder / "settings.json")]


def tuneserve_answers(folder: Path) -> float:
    events = (event for event, _ in JobFolder(folder / "out").read_events() if isinstance(event, Step))
    return statistics.fmean(event.metrics[LENGTH] for event in events)


def trl_answers(folder: Path) -> float:
    return float(json.loads((folder / "out" / "train_runtime.json").read_text())[LENGTH])


LENGTH = "completions/mean_length"
TRAINERS = {
    "tuneserve": (tuneserve, tuneserve_runtime, tuneserve_answers),
    "trl": (trl, train_runtime("train_runtime.json"), trl_answers),
}
"""Name -> its command; the seconds of the training itself, as transformers' trainer counts them in both; and the tokens
of an answer on average, where the model answers."""


def measure(method: Method, name: str, training: Training, tokenizer: Any, setting: Setting) -> Row:
    command_of, runtime_of, length_of = TRAINERS[name]
    training = replace(training, batch_size=method.batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(method, tokenizer, folder / "data", training.steps * training.batch_size)
        command = command_of(method, training, folder)
        variables = {"OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1"}
        with Tree(command, variables, HOME / f"{name}-{method.name}.log") as tree:
            tree.process.wait()
        runtime = runtime_of(folder)
        length = length_of(folder) if method.answers else 0.0
    tokens = training.steps * training.batch_size * (method.tokens + length)
    row = {"tokens_per_second": tokens / runtime, "pss_mib": tree.peak.pss_mib, "command": shlex.join(command)}
    report.say(f"{method.name}, {name}: {row['tokens_per_second']:.1f} tokens/s, {row['pss_mib']:.0f} MiB")
    return row


def write_data(method: Method, tokenizer: Any, folder: Path, count: int) -> None:
    folder.mkdir()
    rng = random.Random(0)
    both = [method.rows(tokenizer, rng) for _ in range(count)]
    for at, name in enumerate(("ours", "theirs")):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(rows[at])}\n" for rows in both))


def compare(method: Method, training: Training, setting: Setting, repeats: int) -> Row:
    """In turns, so that what changes about the machine meanwhile meets both."""
    tokenizer = load_tokenizer(setting.model)
    runs: dict[str, list[Row]] = {name: [] for name in TRAINERS}
    for _ in range(repeats):
        for name in TRAINERS:
            try:
                runs[name].append(measure(method, name, training, tokenizer, setting))
            except NotRun as reason:
                return {"method": method.name, "not_run": f"{name}: {reason}"}
    names = ("tokens_per_second", "pss_mib")
    row: Row = {"method": method.name, "least": method.least, "runs": runs}
    for name, mine in runs.items():
        row[name] = {number: statistics.median(run[number] for run in mine) for number in names}
    both = [*zip(runs["tuneserve"], runs["trl"], strict=True)]
    for number in names:
        row[f"of_trl_{number}"] = statistics.median(ours[number] / theirs[number] for ours, theirs in both)
    return row


# ---- the run, and its words


def main(argv: list[str] | None = None) -> int:
    """1 where a goal is missed."""
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    HOME.mkdir(exist_ok=True)
    setting = serving.make_setting(arguments)
    training = Training(setting.model, setting.dtype, arguments.steps)
    report.check_quiet()
    chosen = [method for method in METHODS if method.name in arguments.methods]
    rows = [compare(method, training, setting, arguments.repeats) for method in chosen]
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": report.machine(),
        "setting": asdict(training) | {"threads": setting.threads, "sample_tokens": SAMPLE_TOKENS},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "rows": rows,
    }
    text = f"{table(rows)}\n"
    target = report.RESULTS / f"{document['date']}-preferences"
    report.save(target, document, _page(document, text))
    sys.stdout.write(f"\n{text}")
    return 0 if all(reached(row) for row in rows) else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    names = [method.name for method in METHODS]
    parser = argparse.ArgumentParser(prog="benchmarks.preferences", description=__doc__)
    add = parser.add_argument
    add("--methods", nargs="+", choices=names, default=names)
    add_options(parser, steps=10)
    return parser.parse_args(argv)


def reached(row: Row) -> bool:
    if "not_run" in row:
        return False
    return bool(row["of_trl_tokens_per_second"] >= row["least"] and row["of_trl_pss_mib"] <= MEMORY_MOST)


def table(rows: list[Row]) -> str:
    cells = [["method", "tokens/s", "TRL's", "share", "peak PSS MiB", "TRL's", "share", "target"]]
    for row in rows:
        if "not_run" in row:
            cells.append([row["method"], "not run", "", "", "", "", "", row["not_run"]])
            continue
        numbers = []
        for number, form in (("tokens_per_second", ".1f"), ("pss_mib", ".0f")):
            numbers += [f"{row[name][number]:{form}}" for name in TRAINERS] + [f"{row[f'of_trl_{number}']:.3f}"]
        goal = f"at least {row['least']:g}, and at most {MEMORY_MOST:g}"
        cells.append([row["method"], *numbers, f"{goal}: {'reached' if reached(row) else 'MISSED'}"])
    return report.table(cells)


def _page(document: dict[str, Any], text: str) -> str:
    s = document["setting"]
    said = (
        f"LoRA of rank {s['rank']} on all linear layers, {s['steps']} steps of 4 rows, whose answers have "
        f"{s['sample_tokens']} tokens each with their prompt; in grpo 16 answers of at most {ANSWER_TOKENS} tokens, "
        f"{ANSWERS} to a prompt"
    )
    return page("Preferences", document, said, text)


if __name__ == "__main__":
    sys.exit(main())
