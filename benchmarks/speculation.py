"""What speculative decoding gains and costs in our engine, without a server: `python -m benchmarks.speculation`.

Texts that repeat what their prompt says (a JSON object with one value changed), and texts that do not (stories, drawn
at temperature 0.8), at 1, 8 and 16 sequences at once: without guesses, with prompt lookup, and with the object as the
requests' prediction. Every way must give the same outputs. Tokens a second are of decoding alone: from the step in
which the last sequence got its first token.
"""

import argparse
import json
import random
import shlex
import statistics
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import RESULTS, hardware, machine, save, say, table
from engines.checkpoint.loading import load_eos_token_ids, load_tokenizer
from engines.pt.config import PromptLookup, PtConfig
from engines.pt.core import EngineCore
from engines.pt.runner import ModelRunner
from engines.setup.demo import demo_model
from engines.text.vocabulary import Vocabulary
from engines.types import GenerationRequest, Sampling

CONCURRENCY = (1, 8, 16)
TOKENS = 128
"""The most of one output."""
LOOKUP = PromptLookup(num_speculative_tokens=8, prompt_lookup_min=2, prompt_lookup_max=5)
WAYS = {"repeated": ("plain", "lookup", "prediction"), "ordinary": ("plain", "lookup")}
NAMES = [
    "Ada",
    "Grace",
    "Alan",
    "Edsger",
    "Barbara",
    "Donald",
    "Frances",
    "Tony",
    "John",
    "Kathleen",
    "Leslie",
    "Niklaus",
    "Radia",
    "Robin",
    "Shafi",
    "Tim",
]
TOPICS = [
    "a lighthouse",
    "a bakery",
    "the sea",
    "a robot",
    "winter",
    "a train",
    "an old map",
    "two friends",
    "a garden",
    "a storm",
]


@dataclass(frozen=True, slots=True)
class Text:
    """What is asked for, and what the answer is expected to be."""

    prompt: str
    predicted: str | None
    sampling: Sampling


def repeated(number: int) -> Text:
    name, others = NAMES[number % len(NAMES)], random.Random(number)
    record = {
        "name": name,
        "email": f"{name.lower()}@example.org",
        "age": others.randint(20, 80),
        "city": others.choice(("Lisbon", "Oslo", "Quito", "Hanoi")),
        "languages": others.sample(["Python", "C", "Rust", "Go", "Haskell"], 3),
        "active": True,
    }
    text = json.dumps(record, indent=2)
    prompt = f"Repeat this JSON, with the city changed to Paris. Answer with the JSON alone.\n\n{text}"
    return Text(prompt, text, Sampling(max_new_tokens=TOKENS, temperature=0.0))


def ordinary(number: int) -> Text:
    prompt = f"Write a short story about {TOPICS[number % len(TOPICS)]}, number {number}."
    return Text(prompt, None, Sampling(max_new_tokens=TOKENS, temperature=0.8, seed=number, ignore_eos=True))


TEXTS = {"repeated": repeated, "ordinary": ordinary}


class Bench:
    def __init__(self, folder: str, dtype: str, threads: int) -> None:
        settings: dict[str, Any] = {"model": folder, "dtype": dtype, "threads": threads}
        self._config = PtConfig(**settings)
        self._runner = ModelRunner(self._config)
        self._tokenizer = load_tokenizer(folder)
        self._eos = load_eos_token_ids(folder)
        self._token_bytes = Vocabulary(self._tokenizer).token_bytes

    def run(self, kind: str, way: str, count: int) -> tuple[dict[str, Any], dict[str, list[int]]]:
        """What came of `count` texts at once, with all their tokens."""
        config = replace(self._config, prompt_lookup=LOOKUP if way == "lookup" else None)
        core = EngineCore(self._runner, config, self._eos, None, self._token_bytes)
        outputs: dict[str, list[int]] = {}
        for number in range(count):
            core.add(self._request(number, TEXTS[kind](number), predicts=way == "prediction"))
        began = tokens = 0.0
        steps = 0
        while core.busy:
            for request_id, output in core.step().outputs:
                outputs.setdefault(request_id, []).extend(output.token_ids)
                tokens += len(output.token_ids) if began else 0
            if began:
                steps += 1
            elif len(outputs) == count:
                began = time.perf_counter()
        seconds = time.perf_counter() - began
        stats = core.stats()
        found = {
            "tokens_per_second": tokens / seconds,
            "tokens": tokens,
            "steps": steps,
            "guessed": stats.spec_draft_tokens,
            "right": sum(stats.spec_accepted.values()),
        }
        return found, outputs

    def _request(self, number: int, text: Text, *, predicts: bool) -> GenerationRequest:
        messages = [{"role": "user", "content": text.prompt}]
        ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        predicted = self._tokenizer.encode(text.predicted, add_special_tokens=False) if text.predicted else None
        return GenerationRequest(
            request_id=str(number),
            prompt_ids=list(ids),
            sampling=text.sampling,
            prediction_ids=predicted if predicts else None,
        )


def measure(bench: Bench, repeats: int) -> list[dict[str, Any]]:
    """Each way in turn, and all of them again: medians over the repeats."""
    rows = []
    for kind, ways in WAYS.items():
        for count in CONCURRENCY:
            runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
            for _ in range(repeats):
                outputs = []
                for way in ways:
                    found, tokens = bench.run(kind, way, count)
                    runs[way].append(found)
                    outputs.append(tokens)
                if any(each != outputs[0] for each in outputs):
                    raise SystemExit(f"{kind}, {count} at once: guesses have changed an output")
            rows += [_row(kind, count, way, found, runs["plain"]) for way, found in runs.items()]
            for row in rows[-len(ways) :]:
                say(f"{kind} {count} {row['way']}: {row['tokens_per_second']:.1f} tokens/s, {row['ratio']:.2f}")
    return rows


def _row(kind: str, count: int, way: str, runs: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [run["tokens_per_second"] / other["tokens_per_second"] for run, other in zip(runs, plain, strict=True)]
    speed = statistics.median(run["tokens_per_second"] for run in runs)
    row = {"text": kind, "sequences": count, "way": way, "ratio": statistics.median(ratios)}
    return {**row, **runs[0], "tokens_per_second": speed}


def as_table(rows: list[dict[str, Any]]) -> str:
    cells = [["text", "sequences", "guesses", "tokens/s", "of plain", "steps", "tokens", "guessed", "right"]]
    for row in rows:
        numbers = [f"{row[name]:.0f}" for name in ("steps", "tokens", "guessed", "right")]
        speed = [f"{row['tokens_per_second']:.1f}", f"{row['ratio']:.2f}"]
        cells.append([row["text"], str(row["sequences"]), row["way"], *speed, *numbers])
    return table(cells)


def write(rows: list[dict[str, Any]], given: argparse.Namespace, folder: str, seconds: float) -> None:
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks.speculation {shlex.join(sys.argv[1:])}".strip(),
        "duration_seconds": seconds,
        "machine": machine(),
        "model": Path(folder).name,
        "dtype": given.dtype,
        "threads": given.threads,
        "repeats": given.repeats,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "rows": rows,
    }
    save(
        RESULTS / f"{document['date']}-speculation",
        document,
        f"# Speculative decoding, {document['date']}\n\n{hardware(machine())}.\n\n"
        f"{document['model']} in {given.dtype}, {given.threads} threads, {given.repeats} repeats in turns. "
        f"`{document['command']}` took {seconds:.0f} seconds. Decoding alone, without a server; outputs of all ways "
        f"were the same. How: ../README.md.\n\n{as_table(rows)}\n",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder (default: the demo model)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="write no results")
    given = parser.parse_args()
    began = time.monotonic()
    folder = given.model or str(demo_model())
    rows = measure(Bench(folder, given.dtype, given.threads), given.repeats)
    if not given.dry:
        write(rows, given, folder, time.monotonic() - began)
    sys.stdout.write(as_table(rows) + "\n")


if __name__ == "__main__":
    main()
