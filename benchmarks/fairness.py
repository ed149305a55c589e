"""Shares, measured: how long one key waits for its first tokens alone, and while another asks for all there is.

`python -m benchmarks.fairness`. The greedy key keeps 64 streams going, of long prompts and long answers. `--one_name`
gives both keys one name, and so one share: what it is without fair shares. See benchmarks/README.md.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import report, serving
from benchmarks.client import Client
from benchmarks.environments import HOME
from benchmarks.process import Tree
from benchmarks.servers import Setting, ignore_eos, ours
from benchmarks.workload import MODES, WORDS, Load

GREEDY, LITTLE = "greedy-0123456789abcdef", "little-0123456789abcdef"
STREAMS = 64
GREEDY_WORDS, GREEDY_OUTPUT = 1000, 256
LITTLE_OUTPUT = 16
BETWEEN_SECONDS = 1.0
"""Seconds from an answer to the next request: somebody reads it."""
FILL_SECONDS = 15
"""Seconds that the greedy key has to itself before the other one begins."""
MOST = 2.0
"""The time to the first token beside a greedy key, of that alone, at most."""


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    HOME.mkdir(exist_ok=True)
    setting = serving.make_setting(arguments)
    serving.refuse_taken_port(setting)
    report.check_quiet()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for words in arguments.words:
            rows.append(measure(setting, arguments, Path(folder), words))
            report.say(line(rows[-1]))
    write(rows, setting, arguments)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.fairness", description=__doc__)
    add = parser.add_argument
    add("--words", nargs="+", type=int, default=[100, 400], help="words of the little key's prompts", metavar="N")
    add("--requests", type=int, default=15, help="of the little key, alone and beside the greedy one")
    add("--one_name", action="store_true", help="both keys are one share")
    add("--port", type=int, default=8290)
    add("--threads", type=int, help="of the engine (default: the physical cores)")
    add("--dtype", choices=["float32", "bfloat16"], help="default: the fastest on this machine")
    add("--model", help="a folder (default: the demo model)")
    add("--more", nargs=argparse.REMAINDER, default=[], help="of the parameters of deploy")
    return parser.parse_args(argv)


def measure(setting: Setting, arguments: argparse.Namespace, folder: Path, words: int) -> report.Row:
    keys = folder / "keys"
    names = ("team", "team") if arguments.one_name else ("greedy", "little")
    keys.write_text("".join(f"{name}={key}\n" for name, key in zip(names, (GREEDY, LITTLE), strict=True)))
    keys.chmod(0o600)
    state = ("--state_dir", str(folder / "state"))
    command = [*ours(setting), "--api_key_file", str(keys), *state, *arguments.more]
    variables = {"OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1"}
    with Tree(command, variables, HOME / "fairness.log") as tree:
        wait_for_answer(setting, tree)
        alone = asyncio.run(ask_little(setting, arguments.requests, words, seed=1))
        with greedy(setting):
            time.sleep(FILL_SECONDS)
            beside = asyncio.run(ask_little(setting, arguments.requests, words, seed=2))
    return {"words": words, "tokens": alone["tokens"], "alone": alone, "beside": beside, "one_name": arguments.one_name}


def wait_for_answer(setting: Setting, tree: Tree) -> None:
    client = Client(setting.url, "bench", LITTLE)
    while asyncio.run(client.ask(load(1, 5, 4, seed=0), 0)).error:
        if tree.process.poll() is not None:
            raise SystemExit(f"the server ended while it started: see {HOME / 'fairness.log'}")
        time.sleep(0.2)


def greedy(setting: Setting) -> Tree:
    """The greedy key at work, in a process of its own, until the context ends."""
    command = [sys.executable, "-m", "benchmarks.client", setting.url, "bench", GREEDY]
    tree = Tree(command, {}, HOME / "fairness-client.log", talks=True)
    driver = serving.Driver(tree.process)
    driver.wait_until_ready()
    work = replace(load(40 * STREAMS, GREEDY_WORDS, GREEDY_OUTPUT, seed=3), concurrency=STREAMS)
    threading.Thread(target=driver.run, args=(work,), daemon=True).start()
    return tree


async def ask_little(setting: Setting, count: int, words: int, *, seed: int) -> dict[str, Any]:
    """One request after another."""
    client, work = Client(setting.url, "bench", LITTLE), load(count, words, LITTLE_OUTPUT, seed=seed)
    answers = []
    for position in range(count):
        answers.append(await client.ask(work, position))
        await asyncio.sleep(BETWEEN_SECONDS)
    if wrong := [answer.error for answer in answers if answer.error]:
        raise SystemExit(f"the little key got no answer: {wrong[0]}")
    first = [answer.arrivals[0] - answer.started for answer in answers]
    return {
        "ttft_p50_ms": report.percentile(first, 50),
        "ttft_p95_ms": report.percentile(first, 95),
        "tokens": sum(answer.prompt_tokens for answer in answers) / count,
    }


def load(count: int, words: int, output: int, *, seed: int) -> Load:
    """Prompts that differ from their first words on: no prefix cache helps."""
    rng = random.Random(seed)
    texts = (" ".join(rng.choices(WORDS, k=words)) for _ in range(count))
    sampling = MODES["greedy"]
    return Load(
        messages=[[{"role": "user", "content": text}] for text in texts],
        concurrency=1,
        sampling=sampling,
        output_tokens=output,
        extra=ignore_eos(sampling),
    )


# ---- words


def ratio(row: report.Row, rank: str) -> float:
    return float(row["beside"][f"ttft_{rank}_ms"] / row["alone"][f"ttft_{rank}_ms"])


def line(row: report.Row) -> str:
    return f"{row['tokens']:.0f} tokens: p50 {ratio(row, 'p50'):.2f}, p95 {ratio(row, 'p95'):.2f} times alone"


def tables(rows: list[report.Row]) -> str:
    cells = [
        ["prompt, tokens", "alone p50 / p95, ms", "beside p50 / p95, ms", "times, p50", "times, p95", "p50, target"]
    ]
    for row in rows:
        alone, beside = (
            f"{row[name]['ttft_p50_ms']:.0f} / {row[name]['ttft_p95_ms']:.0f}" for name in ("alone", "beside")
        )
        reached = "reached" if ratio(row, "p50") <= MOST else "MISSED"
        cells.append(
            [
                f"{row['tokens']:.0f}",
                alone,
                beside,
                f"{ratio(row, 'p50'):.2f}",
                f"{ratio(row, 'p95'):.2f}",
                "one share" if row["one_name"] else f"at most {MOST:g}: {reached}",
            ]
        )
    return report.table(cells)


def write(rows: list[report.Row], setting: Setting, arguments: argparse.Namespace) -> None:
    report.RESULTS.mkdir(exist_ok=True)
    machine = report.machine()
    kind = "fairness-one-name" if arguments.one_name else "fairness"
    stem = report.RESULTS / f"{time.strftime('%Y-%m-%d')}-{kind}"
    document = {"machine": machine, "model": Path(setting.model).name, "dtype": setting.dtype, "rows": rows}
    head = (
        f"# Time to the first token beside a greedy key, in {setting.dtype}, {time.strftime('%Y-%m-%d')}\n\n"
        f"{report.hardware(machine)}.\n{Path(setting.model).name}, {setting.threads} threads; the greedy key keeps "
        f"{STREAMS} streams of {GREEDY_WORDS} words in and {GREEDY_OUTPUT} tokens out. "
        f"`python -m benchmarks.fairness`; what is measured: ../README.md.\n\n"
    )
    report.save(stem, document, f"{head}{tables(rows)}\n")
    sys.stdout.write(f"\n{tables(rows)}\n")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
